"""The training systems as a user runs them: they learn, stop, go on to the same bits, and make nothing up."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from fastmine.cli import main
from fastmine.data import PKBatchSampler
from fastmine.losses import TripletLoss
from fastmine.recipes import checkpoint, doa, embeddings, folders, named, segmentation, textures, training
from fastmine.recipes.errors import CommandError, UsageError
from fastmine.recipes.screen import Screen
from support import python

SMALL = {
    "embeddings": ["--samples-per-class", "4", "--batch-size", "40"],
    "segmentation": ["--samples", "32", "--batch-size", "8", "--annotated", "0.5"],
    "doa": ["--samples", "256", "--batch-size", "32"],
}
SYSTEMS = list(SMALL)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


Train = Callable[..., int]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Train:
    """``fastmine train NAME`` with small options, and without pictures: they take longer than training does here."""
    for system in (embeddings.Embeddings, segmentation.Segmentation, doa.Doa):
        monkeypatch.setattr(system, "pictures", lambda *_: [])
        monkeypatch.setattr(system, "show", lambda *_: None)
    return lambda name, *options: main(["train", name, *SMALL[name], *map(str, options)])


def report(folder: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "report.json").read_text()))


def saved(path: str) -> dict[str, Any]:
    """A checkpoint without what no two runs share: the time it took, and where it was told to stop."""
    found = checkpoint.load(Path(path), Path(path).parent.name.split("-")[0])
    for row in found["progress"]["history"]:
        del row["seconds"]
    del found["progress"]["seconds"], found["settings"]["epochs"]
    return found


def assert_same_bits(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_bits(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same_bits(left, right)
    else:
        assert a == b or (math.isnan(a) and math.isnan(b))


@pytest.fixture(autouse=True)
def _ctrl_c_as_at_a_terminal() -> Iterator[None]:
    """A shell that starts the tests in the background has SIGINT ignored, and Python then leaves it so."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def interrupt_at(step: int, system: type[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the loss of this step is computed."""
    calls, learn = [0], system.learn

    def learn_and_stop(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            os.kill(os.getpid(), signal.SIGINT)
        return learn(self, batch)

    monkeypatch.setattr(system, "learn", learn_and_stop)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_embeddings_learn_and_report(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("embeddings", "--epochs", 2, "--out", "run", "--unseen-classes", 2) == 0
    text, found = capsys.readouterr().out, report("run")
    header = next(line for line in text.splitlines() if line.startswith("epoch "))
    assert header.split() == [
        "epoch",
        "loss",
        "valid",
        "active",
        "d_p",
        "d_n",
        "d_n",
        "-",
        "d_p",
        "spread",
        "recall@1",
        "time",
    ]
    assert "triplet_loss, batch_hard" in found["implementation"]
    assert found["implementation"] in text.splitlines()[-1]
    assert found["epochs"] == len(found["history"]) == 2
    first, last = found["history"]
    assert last["loss"] < first["loss"]
    assert (last["valid"], last["recall"] > 0.9, last["unseen_recall"] > 0.8) == (1.0, True, True)
    assert found["baselines"]["recall@1 of the bare pixels"] > 0.9


def test_segmentation_learns_and_reports(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("segmentation", "--epochs", 2, "--out", "run") == 0
    text, found = capsys.readouterr().out, report("run")
    header = next(line for line in text.splitlines() if line.startswith("epoch "))
    assert header.split() == [
        "epoch",
        "loss",
        "bce",
        "dice",
        "focal",
        "p.area",
        "t.area",
        "prec.",
        "recall",
        "F1",
        "IoU",
        "time",
    ]
    assert "annotated: 16 of 32 training images" in text
    assert "segmentation_loss" in found["implementation"]
    first, last = found["history"]
    assert last["loss"] < first["loss"]
    assert 0 <= last["iou"] <= last["f1"] <= 1


@pytest.mark.parametrize("name", embeddings.LOSSES)
def test_every_embedding_loss_learns_and_resumes(name: str, train: Train) -> None:
    """The last epoch is better than the first, and going on is the same as not having stopped."""
    assert train("embeddings", "--loss", name, "--epochs", 3, "--out", "embeddings-straight") == 0
    losses = [row["loss"] for row in report("embeddings-straight")["history"]]
    assert losses[-1] < losses[0]
    assert train("embeddings", "--loss", name, "--epochs", 1, "--out", "embeddings-parts") == 0
    assert main(["train", "embeddings", "--resume", "embeddings-parts", "--epochs", "3"]) == 0
    assert_same_bits(saved("embeddings-straight/last.pt"), saved("embeddings-parts/last.pt"))


@pytest.mark.parametrize("name", segmentation.LOSSES)
def test_every_loss_trains(name: str, train: Train) -> None:
    assert train("segmentation", "--epochs", 1, "--loss", name, "--samples", 8, "--out", "run") == 0
    assert math.isfinite(report("run")["last"]["loss"])


def test_the_terms_of_the_combined_loss_can_be_weighted(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("segmentation", "--epochs", 1, "--weights", "bce=0.5,tversky=2", "--out", "run") == 0
    last = report("run")["last"]
    assert last["loss"] == pytest.approx(0.5 * last["bce"] + 2 * last["tversky"], rel=1e-5)
    capsys.readouterr()
    assert train("segmentation", "--weights", "bce=1,cat=2") == 2
    assert "--weights: each of terms must be one of 'bce'" in capsys.readouterr().err
    assert train("segmentation", "--weights", "bce=1", "--loss", "dice") == 2
    assert "--weights are of the combined loss, and --loss is dice" in capsys.readouterr().err


def test_use_combined_loss_is_loss_combined(train: Train) -> None:
    assert train("embeddings", "--use-combined-loss", "--epochs", 1, "--out", "run") == 0
    assert report("run")["settings"]["loss"] == "combined"
    assert set(report("run")["components"]) == {"triplet", "arcface"}


# --- the user's network -----------------------------------------------------------------------------------------------

OWN = """
    from torch import nn

    class Vectors(nn.Module):
        def __init__(self, channels, dim):
            super().__init__()
            start = nn.Conv2d(channels, 8, 3, stride=2)
            self.body = nn.Sequential(start, nn.ReLU(), nn.Flatten(), nn.LazyLinear(dim + 1))

        def forward(self, images):
            assert images.min() >= -1 and images.max() <= 1
            return self.body(images)

    def logits(channels, classes):
        return nn.Conv2d(channels, classes, 3, padding=1)

    ready = nn.Conv2d(1, 1, 5, padding=2)
    frozen = nn.Conv2d(1, 1, 5, padding=2).requires_grad_(False)

    def shrunk(channels):
        return nn.Conv2d(channels, 1, 3)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = ready

        def forward(self, images):
            return self.body(images), images

    def needs_more(channels, depth):
        return None

    def makes_nothing():
        return None
"""


@pytest.fixture
def _own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("own_models.py").write_text(textwrap.dedent(OWN))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)


@pytest.mark.usefixtures("_own_models")
def test_an_embedding_network_of_ones_own(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "own_models:Vectors", "--embedding-dim", 6, "--use-combined-loss", "--epochs"]
    assert train("embeddings", *options, 2, "--out", "run") == 0
    assert "model: own_models:Vectors with" in capsys.readouterr().out
    first, last = report("run")["history"]
    assert last["loss"] < first["loss"]
    assert train("embeddings", *options, 1, "--out", "embeddings-parts") == 0
    assert main(["train", "embeddings", "--resume", "embeddings-parts", "--epochs", "2"]) == 0
    assert report("embeddings-parts")["last"]["loss"] == last["loss"]
    made = embeddings.load("run/best.pt")(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8))
    assert made.shape == (2, 7)
    assert torch.allclose(made.norm(dim=1), torch.ones(2))


@pytest.mark.usefixtures("_own_models")
@pytest.mark.parametrize("name", ["logits", "ready"])
def test_a_segmentation_network_of_ones_own(name: str, train: Train) -> None:
    assert train("segmentation", "--model", f"own_models:{name}", "--epochs", 2, "--out", "run") == 0
    first, last = report("run")["history"]
    assert last["loss"] < first["loss"]
    assert segmentation.load("run/last.pt")(torch.zeros(2, 1, 16, 16)).shape == (2, 1, 16, 16)


@pytest.mark.usefixtures("_own_models")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("shrunk", "must make logits [2, 1, 64, 64] of images [2, 1, 64, 64]; it made [2, 1, 62, 62]"),
        ("Vectors", "one of some of channels, classes (missing a required argument: 'dim')"),
        ("Pair", "of images [2, 1, 64, 64] in -1 .. 1; it made a tuple"),
        ("frozen", "has no weight that is trained"),
        ("needs_more", "missing a required argument: 'depth'"),
        ("makes_nothing", "must make an nn.Module; it made a NoneType"),
        ("absent", "own_models:absent cannot be loaded"),
        ("OWN.nothing", "cannot be loaded"),
    ],
)
def test_a_network_that_does_not_fit_says_how_it_should(
    name: str, words: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("segmentation", "--model", f"own_models:{name}", "--out", "run") == 2
    assert words in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.usefixtures("_own_models")
def test_a_network_whose_images_do_not_fit_says_what_it_raised(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(Path("photos/a"), 8)
    draw_images(Path("photos/b"), 8, seed=1)
    assert train("embeddings", "--data", "photos", "--model", "own_models:ready", "--batch-size", 8) == 2
    words = "must make embeddings [2, D] of images [2, 3, 32, 32] in -1 .. 1; it raised RuntimeError"
    assert words in capsys.readouterr().err
    assert train("embeddings", "--model", "own_models:ready") == 2
    assert "embeddings [2, D] of 2 images; it made [2, 1, 8, 8]" in capsys.readouterr().err


# --- what is seen meanwhile -------------------------------------------------------------------------------------------


def test_the_progress_bar_has_predicted_and_target_area(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []
    monkeypatch.setattr(Screen, "progress", lambda _, text, done, total: described.append(text))
    assert train("segmentation", "--epochs", 1, "--samples", 64, "--out", "run") == 0
    assert described[0] == "epoch 1"  # nothing was read yet
    last = report("run")["last"]
    area = re.search(r"p\.area (\S+)%  t\.area (\S+)%$", described[-1])
    assert area is not None
    assert float(area[1]) / 100 == pytest.approx(last["predicted_share"], abs=0.3)
    assert float(area[2]) / 100 == pytest.approx(last["target_share"], abs=0.3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_picture_every_few_epochs(name: str, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, str]] = []
    kind = getattr(sys.modules[f"fastmine.recipes.{name}"], name.capitalize())
    monkeypatch.setattr(kind, "show", lambda self, model, epochs, path: drawn.append((epochs, path.name)))
    assert train(name, "--epochs", 5, "--pictures-every", 2, "--out", "run") == 0
    assert drawn == [(2, f"{kind.shown}-002.png"), (4, f"{kind.shown}-004.png")]


def test_tensorboard_shows_steps_and_epochs_and_no_step_twice(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with monkeypatch.context() as patch:
        interrupt_at(6, segmentation.Segmentation, patch)  # 4 an epoch
        assert train("segmentation", "--epochs", 2, "--tensorboard", "--out", "run") == 130
    assert main(["train", "segmentation", "--resume", "run"]) == 0
    assert "tensorboard --logdir run" in capsys.readouterr().out
    found = events.EventAccumulator("run").Reload()
    assert [event.step for event in found.Scalars("step/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [event.step for event in found.Scalars("epoch/f1")] == [4, 8]
    f1 = [row["f1"] for row in report("run")["history"]]
    assert [event.value for event in found.Scalars("epoch/f1")] == pytest.approx(f1)


@pytest.mark.parametrize("margin", ["soft", "leaky", "0.5"])
def test_every_margin_trains(margin: str, train: Train) -> None:
    assert train("embeddings", "--epochs", 1, "--margin", margin, "--out", "run") == 0
    assert report("run")["settings"]["margin"] == (margin if margin != "0.5" else 0.5)


@pytest.mark.parametrize(("name", "drawn"), [("embeddings", "embeddings.png"), ("segmentation", "predictions.png")])
def test_pictures_are_drawn(name: str, drawn: str) -> None:
    assert main(["train", name, *SMALL[name], "--epochs", "1", "--out", "run"]) == 0
    for picture in ("curves.png", drawn):
        with Image.open(Path("run") / picture) as image:
            assert min(image.size) > 300
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_runs_are_numbered_and_a_folder_in_use_stays_as_it_is(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert train("embeddings", "--epochs", 1) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["embeddings-1", "embeddings-2"]
    before = Path("runs/embeddings-1/last.pt").read_bytes()
    capsys.readouterr()
    assert train("embeddings", "--epochs", 1, "--seed", 5, "--out", "runs/embeddings-1") == 2
    assert "--resume runs/embeddings-1" in capsys.readouterr().err
    assert Path("runs/embeddings-1/last.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("load", "kind", "settings"),
    [
        (embeddings.load, embeddings.Embeddings, embeddings.EmbeddingSettings),
        (segmentation.load, segmentation.Segmentation, segmentation.SegmentationSettings),
    ],
)
def test_the_kept_model_is_the_one_that_was_judged(load: Any, kind: Any, settings: Any, train: Train) -> None:
    assert train(kind.name, "--epochs", 1, "--out", "run") == 0
    model = load("run/best.pt")
    assert not model.training
    judged = kind(settings(**report("run")["settings"]), Screen()).judge(model)
    assert judged
    for name, value in judged.items():
        assert report("run")["last"][name] == (None if math.isnan(value) else value)


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_one_epoch_and_two_more_equal_three(name: str, train: Train) -> None:
    assert train(name, "--epochs", 3, "--out", f"{name}-straight") == 0
    assert train(name, "--epochs", 1, "--out", f"{name}-parts") == 0
    assert main(["train", name, "--epochs", "3", "--resume", f"{name}-parts"]) == 0
    for file in ("last.pt", "best.pt"):
        assert_same_bits(saved(f"{name}-straight/{file}"), saved(f"{name}-parts/{file}"))


def dry_run(capsys: pytest.CaptureFixture[str], *options: Any, code: int = 0) -> str:
    """What a dry run says; whatever it is of, it leaves every file as it was and makes no folder."""

    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in Path().rglob("*")}

    before = everything()
    capsys.readouterr()
    assert main(["train", *map(str, options), "--dry-run"]) == code
    assert everything() == before
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_dry_run_tries_two_steps_and_writes_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = dry_run(capsys, name, *SMALL[name], "--epochs", 3)
    assert "dry run: loss" in said
    assert "steps to epoch 3" in said
    assert "No run was begun" in said


def test_a_dry_run_goes_on_from_a_checkpoint_as_the_run_would(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(3, segmentation.Segmentation, patch)
        assert train("segmentation", "--epochs", 2, "--out", "run") == 130
    said = dry_run(capsys, "segmentation", "--resume", "run")
    assert "; 5 steps to epoch 2" in said  # 4 an epoch, of which 3 are done
    torch.manual_seed(0)
    assert main(["train", "segmentation", "--resume", "run"]) == 0
    assert "all 2 epochs are done; --epochs 3 would go on" in dry_run(capsys, "segmentation", "--resume", "run")


def test_a_dry_run_is_refused_what_the_run_would_be(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        draw_images(Path(f"photos/{number}"), 6, seed=number)
    assert train("embeddings", "--data", "photos", "--epochs", 1, "--batch-size", 12, "--out", "run") == 0
    assert "exists and is not empty" in dry_run(capsys, "embeddings", "--out", "run", code=2)
    assert "--lr was 0.001" in dry_run(capsys, "embeddings", "--resume", "run", "--lr", 0.1, code=2)
    best = dry_run(capsys, "embeddings", "--resume", "run/best.pt", code=2)
    assert "would overwrite the later last.pt" in best
    draw_images(Path("photos/2"), 7)
    main(["train", "embeddings", "--resume", "run"])  # fills the cache of decoded images, which a dry run may too
    assert "the data is not that of the run to resume" in dry_run(capsys, "embeddings", "--resume", "run", code=2)


def test_a_dry_run_of_one_batch_counts_one_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = segmentation.UNet.forward
    monkeypatch.setattr(segmentation.UNet, "forward", lambda *given: forward(*given) * math.nan)
    said = dry_run(capsys, "segmentation", "--samples", 8, "--batch-size", 8, code=1)
    assert "in step 1 of 1 the loss is nan" in said


def test_there_is_no_complex_bfloat16(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("doa", "--amp", "bf16") == 2
    assert "covariances are complex" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "doa"])
def test_in_bfloat16_it_learns_nearly_the_same(name: str, train: Train) -> None:
    assert train(name, "--epochs", 2, "--out", f"{name}-float32") == 0
    assert train(name, "--epochs", 2, "--amp", "bf16", "--out", f"{name}-bf16") == 0
    exact, rough = (report(f"{name}-{kind}")["last"]["loss"] for kind in ("float32", "bf16"))
    assert rough == pytest.approx(exact, rel=0.1)
    assert rough != exact
    weights = saved(f"{name}-bf16/last.pt")["model"].values()
    assert {x.dtype for x in weights if x.is_floating_point()} == {torch.float32}


def test_a_dry_run_fails_where_the_weights_have_no_gradient(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = embeddings.EmbeddingNet.forward
    monkeypatch.setattr(embeddings.EmbeddingNet, "forward", lambda *given: forward(*given).detach().requires_grad_())
    assert train("embeddings", "--dry-run") == 1
    assert "no weight of the model has a gradient" in capsys.readouterr().err


@pytest.mark.parametrize("name", SYSTEMS)
def test_ctrl_c_within_an_epoch_loses_nothing(
    name: str, train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(name, "--epochs", 2, "--out", f"{name}-straight") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_at(3, getattr(sys.modules[f"fastmine.recipes.{name}"], name.capitalize()), patch)
        assert train(name, "--epochs", 2, "--out", f"{name}-parts") == 130
    assert f"fastmine train {name} --resume {name}-parts" in capsys.readouterr().err
    assert saved(f"{name}-parts/last.pt")["progress"]["steps"] == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(["train", name, "--resume", f"{name}-parts"]) == 0
    assert "after 0 of 2 epochs and 3 steps" in capsys.readouterr().out
    for file in ("last.pt", "best.pt"):
        assert_same_bits(saved(f"{name}-straight/{file}"), saved(f"{name}-parts/{file}"))


def test_a_seed_fixes_everything_and_another_changes_it(train: Train) -> None:
    for seed, out in ((0, "embeddings-a"), (0, "embeddings-b"), (1, "embeddings-c")):
        assert train("embeddings", "--epochs", 1, "--seed", seed, "--out", out) == 0
    assert_same_bits(saved("embeddings-a/last.pt"), saved("embeddings-b/last.pt"))
    assert report("embeddings-a")["last"]["loss"] != report("embeddings-c")["last"]["loss"]


def test_training_leaves_torch_as_it_was(train: Train) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert train("embeddings", "--epochs", 1, "--threads", 2, "--out", "run") == 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_sigint_to_the_command_saves_and_resumes() -> None:
    # A shell may have started the tests with SIGINT ignored. Pictures take longer than training does here.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fastmine.cli import main; from fastmine.recipes.embeddings import Embeddings; "
        "Embeddings.pictures = lambda *_: []; sys.exit(main())"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    options = ["train", "embeddings", *SMALL["embeddings"], "--epochs", "5000", "--threads", "1", "--out", "run"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.split()[:1] == ["2"]:
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Go on with: fastmine train embeddings --resume run" in said
    done = checkpoint.load(Path("run/last.pt"), "embeddings")["progress"]["epochs"]
    resumed = subprocess.run(
        [*command, "train", "embeddings", "--resume", "run", "--epochs", str(done + 1)],
        capture_output=True, text=True, env=environment, check=True,
    )  # fmt: skip
    assert f"going on after {done} of {done + 1} epochs" in resumed.stdout
    assert len(report("run")["history"]) == done + 1


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(train: Train) -> Path:
    """A finished run of one epoch."""
    assert train("embeddings", "--epochs", 1, "--out", "run") == 0
    return Path("run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribble(path: Path) -> None:
    path.write_text("not a checkpoint")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_text(path: Path) -> None:
    path.write_text("a\nb\n")


def replace_by_a_model(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def replace_by_pickled_code(path: Path) -> None:
    torch.save({"format": Screen}, path)


def make_older(path: Path) -> None:
    torch.save({**torch.load(path, weights_only=True), "version": 0}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "no checkpoint of fastmine, or only part of one"),
        (scribble, "no checkpoint of fastmine"),
        (empty, "no checkpoint of fastmine"),
        (replace_by_text, "no checkpoint of fastmine"),
        (replace_by_a_model, "was not written by fastmine train"),
        (replace_by_pickled_code, "no checkpoint of fastmine"),
        (make_older, "another version of fastmine"),
    ],
)
def test_a_damaged_checkpoint_is_one_line_and_stays_as_it_is(
    damage: Callable[[Path], None], words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(run / "last.pt")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    capsys.readouterr()
    assert main(["train", "embeddings", "--resume", "run", "--epochs", "3"]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_another_systems_checkpoint_is_refused_with_the_right_command(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "segmentation", "--resume", str(run)]) == 2
    assert "type: fastmine train embeddings --resume run/last.pt" in capsys.readouterr().err


def test_a_resumed_run_keeps_its_settings(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "embeddings", "--resume", "run", "--lr", "0.5"]) == 2
    assert "--lr was 0.001 in the run to resume, and 0.5 would make it another run" in capsys.readouterr().err
    assert main(["train", "embeddings", "--resume", "run", "--lr", "0.001", "--batch-size", "40"]) == 0
    assert "all 1 epochs are done; --epochs 2 would go on" in capsys.readouterr().out


def test_resume_without_a_path_takes_the_latest_run(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        assert train("embeddings", "--epochs", 1, "--seed", number) == 0
    os.utime("runs/embeddings-1/last.pt", (time.time() + 9, time.time() + 9))
    assert main(["train", "embeddings", "--resume", "--epochs", "2"]) == 0
    assert "in runs/embeddings-1" in capsys.readouterr().out
    assert len(report("runs/embeddings-1")["history"]) == 2


def test_going_on_from_the_best_needs_a_folder_of_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = str(run / "best.pt")
    assert main(["train", "embeddings", "--resume", best, "--epochs", "2"]) == 2
    assert "name another folder with --out" in capsys.readouterr().err
    assert main(["train", "embeddings", "--resume", best, "--epochs", "2", "--out", "branch"]) == 0
    assert (report("branch")["epochs"], report("run")["epochs"]) == (2, 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, a disk without room")
def test_a_full_disk_leaves_the_last_checkpoint_in_place(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    (run / ".last.pt.partial").symlink_to("/dev/full")
    capsys.readouterr()
    assert main(["train", "embeddings", "--resume", "run", "--epochs", "2"]) == 1
    said = capsys.readouterr().err
    assert "cannot write run/last.pt" in said
    assert "what was there before is untouched" in said
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert {name: after[name] for name in ("last.pt", "report.json")} == {
        name: before[name] for name in ("last.pt", "report.json")
    }
    assert main(["train", "embeddings", "--resume", "run", "--epochs", "2"]) == 0  # there is room again
    assert len(report("run")["history"]) == 2


DIES = """
    import io, os, signal, sys, torch
    from fastmine.cli import main

    save, calls = torch.save, [0]

    def save_half(contents, file):
        calls[0] += 1
        if calls[0] < int(sys.argv[1]):
            return save(contents, file)
        whole = io.BytesIO()
        save(contents, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    torch.save = save_half
    main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embeddings", "segmentation"])
def test_killed_in_the_middle_of_a_checkpoint_it_goes_on_to_the_same_bits(name: str, train: Train) -> None:
    """kill -9 while half of the second epoch's checkpoint is on the disk."""
    options = [*SMALL[name], "--epochs", "3", "--out", f"{name}-parts"]
    writes = 3  # of a checkpoint: two in the first epoch, which is the best so far
    killed = python(DIES, str(writes), "train", name, *options, OMP_NUM_THREADS="1")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    partial = list(Path(f"{name}-parts").glob(".*.partial"))
    assert len(partial) == 1
    assert saved(f"{name}-parts/last.pt")["progress"]["epochs"] == 1
    assert main(["train", name, "--resume", f"{name}-parts"]) == 0
    assert not partial[0].exists()
    assert train(name, "--epochs", 3, "--out", f"{name}-straight") == 0
    for file in ("last.pt", "best.pt"):
        assert_same_bits(saved(f"{name}-straight/{file}"), saved(f"{name}-parts/{file}"))


def test_a_checkpoint_is_whole_or_absent_when_the_process_dies(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.write_atomically(path, lambda file: file.write(b"first"))

    class DiedError(BaseException):
        pass

    def die(file: BinaryIO) -> None:
        file.write(b"sec")
        raise DiedError

    with pytest.raises(DiedError):
        checkpoint.write_atomically(path, die)
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_while_the_model_is_judged_ends_the_epoch_first_and_twice_ends_at_once(
    times: int, train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = embeddings.Embeddings.judge

    def judge_and_stop(self: Any, model: torch.nn.Module) -> Any:
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)
        return judge(self, model)

    monkeypatch.setattr(embeddings.Embeddings, "judge", judge_and_stop)
    assert train("embeddings", "--epochs", 2, "--batch-size", 16, "--samples-per-class", 2, "--out", "run") == 130
    said = capsys.readouterr().err
    if times == 1:
        assert "stopped after 1 epochs and 0 steps" in said
        assert checkpoint.load(Path("run/last.pt"), "embeddings")["progress"]["epochs"] == 1
    else:
        assert said == "fastmine: interrupted\n"
        assert not list(Path("run").iterdir())


# --- nothing is made up -----------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = embeddings.EmbeddingNet.forward
    calls = [0]

    def forward_to_nan(self: Any, images: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        return forward(self, images) * (math.nan if calls[0] == 50 else 1.0)

    monkeypatch.setattr(embeddings.EmbeddingNet, "forward", forward_to_nan)
    assert train("embeddings", "--epochs", 9, "--out", "run") == 1
    line = capsys.readouterr().err
    assert "the loss became nan in epoch 2" in line
    assert "nonfinite_rows=40" in line
    kept = checkpoint.load(Path("run/last.pt"), "embeddings")
    assert kept["progress"]["epochs"] == 1
    assert all(tensor.isfinite().all() for tensor in kept["model"].values())


def test_weights_that_are_not_finite_are_never_saved(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch can spoil them while its own loss was still a number."""
    backward = torch.Tensor.backward

    def backward_to_nan(self: torch.Tensor) -> None:
        backward(self * math.nan)

    monkeypatch.setattr(torch.Tensor, "backward", backward_to_nan)
    monkeypatch.setattr(embeddings.Embeddings, "steps", lambda _: 1)
    batches = embeddings.Embeddings.batches
    monkeypatch.setattr(embeddings.Embeddings, "batches", lambda self, epoch: [next(batches(self, epoch))])
    assert train("embeddings", "--epochs", 1, "--out", "run") == 1
    assert "of the weights, such as features.0.weight, are no longer finite" in capsys.readouterr().err
    assert not list(Path("run").iterdir())


def test_the_mean_of_no_batches_is_nan_and_never_the_best() -> None:
    assert math.isnan(training.mean([]))
    assert math.isnan(training.mean([math.nan]))
    assert training.mean([1.0, math.nan, 2.0]) == 1.5
    learned, nothing = {"loss": 1.0, "f1": 0.5}, {"loss": math.nan, "f1": 0.9}
    unknown = {"loss": 1.0, "f1": math.nan}
    assert training.best_epoch([nothing, learned, unknown, learned], "f1") == 2
    assert training.best_epoch([nothing, unknown], "f1") == 0


def test_batches_without_triplets_are_skipped_counted_and_said(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty classes of four: in shuffled batches of four hardly a pair meets."""
    for number in range(30):
        draw_images(Path(f"photos/{number}"), 4, seed=number)
    options = ["--data", "photos", "--sampler", "shuffle", "--batch-size", "4", "--epochs", "1", "--image-size", "8"]
    assert train("embeddings", *options, "--out", "run") == 0
    text = capsys.readouterr().out
    assert "LabelCheck(hopeless" in text
    (remark,) = report("run")["remarks"]
    assert "batches were skipped, since no anchor in them had both a positive and a negative" in remark
    assert "the first had 4 images of 4 classes" in remark
    assert remark in text


def test_a_run_that_learned_nothing_has_no_loss_and_no_best_epoch(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "holds_triplet", lambda _: False)
    assert train("embeddings", "--epochs", 1, "--out", "run") == 0
    found = report("run")
    assert (found["best_epoch"], found["best"], found["last"]["loss"]) == (None, None, None)
    assert "  nan" in capsys.readouterr().out
    assert not Path("run/best.pt").exists()


def test_batches_without_annotation_are_skipped_counted_and_said(train: Train) -> None:
    assert train("segmentation", "--sampler", "shuffle", "--annotated", 0.1, "--epochs", 1, "--out", "run") == 0
    (remark,) = report("run")["remarks"]
    assert "batches were skipped, since none of their images was annotated" in remark


def test_met_margins_and_empty_predictions_are_said() -> None:
    met = {"valid": 8.0, "active": 0.0, "anchors": 8.0, "classes": 2.0}
    (remark,) = embeddings.Embeddings.remarks(None, [met])  # type: ignore[arg-type]
    assert "every valid anchor met its margin" in remark
    blind = {"annotated": 4.0, "images": 4.0, "probability_on_target": 0.01}
    (remark,) = segmentation.Segmentation.remarks(None, [blind])  # type: ignore[arg-type]
    assert "predicts background everywhere" in remark


# --- folders ----------------------------------------------------------------------------------------------------------


def draw_images(folder: Path, count: int, size: tuple[int, int] = (20, 16), seed: int = 0) -> None:
    """Stripes whose direction and width are those of the seed, with noise."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    down, right = np.mgrid[: size[1], : size[0]]
    wave = np.sin(random.normal(0, 1, 2) @ np.stack([down, right]).reshape(2, -1)).reshape(down.shape)
    for number in range(count):
        pixels = 128 + 80 * wave + random.normal(0, 20, wave.shape)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")


def test_own_images_are_trained_on_and_unreadable_ones_named(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        draw_images(Path(f"photos/{number}"), 8, size=(20 + number, 30), seed=number)
    draw_images(Path("photos/0"), 9)
    cut(Path("photos/0/8.png"))
    scribble(Path("photos/1/notes.txt"))
    scribble(Path("photos/1/.hidden"))
    options = ["--data", "photos", "--epochs", 3, "--image-size", 16, "--batch-size", 16]
    assert train("embeddings", *options, "--out", "run") == 0
    text = capsys.readouterr().out
    assert "32 images in 4 classes from photos, resized to 16 x 16" in text
    assert "2 files are no readable images and were left out: photos/0/8.png, photos/1/notes.txt" in text
    assert report("run")["last"]["recall"] > 0.5
    assert train("embeddings", *options, "--out", "again") == 0  # from the cache
    assert "2 files are no readable images" in capsys.readouterr().out
    assert report("again")["last"]["loss"] == report("run")["last"]["loss"]


def test_a_run_is_not_resumed_on_other_data(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        draw_images(Path(f"photos/{number}"), 6, seed=number)
    assert train("embeddings", "--data", "photos", "--epochs", 1, "--batch-size", 12, "--out", "run") == 0
    draw_images(Path("photos/2"), 7)
    assert main(["train", "embeddings", "--resume", "run", "--epochs", "2"]) == 2
    assert "the data is not that of the run to resume" in capsys.readouterr().err


@pytest.mark.parametrize("white", [1, 255])
def test_masks_of_0_and_1_or_255_are_the_same(white: int, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    draw_images(Path("scans/images"), 10, size=(24, 20))
    Path("scans/masks").mkdir()
    for number in range(10):
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[4 : 6 + number, 6:18] = white
        Image.fromarray(mask).save(f"scans/masks/{number}.png")
    options = ["--data", "scans", "--epochs", 1, "--image-size", 16, "--annotated", 1]
    assert train("segmentation", *options, "--out", "run") == 0
    text = capsys.readouterr().out
    assert f"value is above 0; the files hold 2 values, 0 to {white}" in text
    assert "8 to learn from, 2 held out" in text
    assert report("run")["last"]["target_share"] == pytest.approx(0.16, abs=0.05)


def test_images_without_a_mask_can_be_marked_as_not_annotated(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    draw_images(Path("scans/images"), 10)
    draw_images(Path("scans/masks"), 6, seed=1)
    cut(Path("scans/masks/5.png"))
    options = ["--data", "scans", "--epochs", 1, "--image-size", 16, "--annotated", 1]
    assert train("segmentation", *options, "--missing-masks", "unannotated", "--out", "run") == 0
    text = capsys.readouterr().out
    assert "1 files are no readable images; they and their pairs were left out: scans/masks/5.png" in text
    assert "8 to learn from, 1 held out" in text
    assert "annotated: 4 of 8 training images" in text


def decoded(image: Image.Image, tmp_path: Path, name: str = "0.png") -> folders.PairSet:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir(exist_ok=True)
        image.save(tmp_path / part / name)
    return folders.read_pairs(folders.FolderPairs(*folders.image_and_mask_files(tmp_path)), 16, Screen())


LEVELS = np.where(np.arange(256).reshape(16, 16) % 16 < 8, 0, 200)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(LEVELS.astype(np.uint8)),
        Image.fromarray(LEVELS > 0),
        Image.fromarray(LEVELS.astype(np.uint16)),
        Image.fromarray(LEVELS.astype(np.uint8)).convert("RGB"),
        Image.fromarray(LEVELS.astype(np.uint8)).convert("RGBA"),
        Image.fromarray(LEVELS.astype(np.uint8)).convert("LA"),
        Image.fromarray((LEVELS > 0).astype(np.uint8)).convert("P"),
    ],
    ids=lambda image: image.mode,
)
def test_masks_of_every_mode_are_read_alike(image: Image.Image, tmp_path: Path) -> None:
    masks = decoded(image, tmp_path).masks
    assert torch.equal(masks[0, 0], torch.from_numpy(LEVELS > 0))


def test_sixteen_bit_images_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    images = decoded(Image.fromarray(ramp), tmp_path).images
    assert torch.equal(images[0, 0].flatten(), torch.arange(256, dtype=torch.uint8))


def test_a_cache_that_cannot_be_used_is_said_or_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(LEVELS.astype(np.uint8))
    expected = decoded(image, tmp_path).masks
    (cached,) = (tmp_path / "cache" / "fastmine").iterdir()
    cut(cached)
    again = folders.read_pairs(folders.FolderPairs(*folders.image_and_mask_files(tmp_path)), 16, Screen())
    assert torch.equal(again.masks, expected)
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert torch.equal(decoded(image, tmp_path).masks, expected)
    assert "not kept for the next run" in capsys.readouterr().out


def draw_scans(count: int = 10, white: int = 255) -> None:
    """Images with a bright rectangle, and its mask."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        Path("scans", part).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((20, 24), dtype=np.uint8)
        mask[4 : 8 + number % 8, 6:18] = white
        image = (mask // 2 + random.integers(0, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(image).save(f"scans/images/{number}.png")
        Image.fromarray(mask).save(f"scans/masks/{number}.png")


SCANS = ("--image-size", 16, "--batch-size", 4, "--epochs", 1, "--annotated", 1)


@pytest.mark.parametrize("kind", ["bytes", "dictionary", "path", "numbers", "csv"])
def test_a_table_is_learned_from_like_a_folder(kind: str, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the rows are flagged as not annotated, and hold a mask of zeros as such tables do."""
    draw_scans()
    cells = {
        "bytes": Path.read_bytes,
        "dictionary": lambda path: {"bytes": path.read_bytes(), "path": path.name},
        "path": str,
        "numbers": lambda path: np.asarray(Image.open(path)).tolist(),
        "csv": str,
    }[kind]
    Image.new("L", (24, 20)).save("zeros.png")
    rows = [
        {
            "has_segmentation": number % 2 == 0,
            "image": cells(Path(f"scans/images/{number}.png")),
            "mask": cells(Path("zeros.png" if number % 2 else f"scans/masks/{number}.png")),
        }
        for number in range(10)
    ]
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(str(cell) for cell in row.values()) for row in rows)]
        Path("table.csv").write_text("\n".join(lines))
        file = "table.csv"
    else:
        parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(pyarrow.Table.from_pylist(rows), "table.parquet")
        file = "table.parquet"
    assert train("segmentation", "--data", file, "--column", "has_segmentation", *SCANS, "--out", "table") == 0
    text = capsys.readouterr().out
    assert f"10 images from {file}, resized to 16 x 16" in text
    assert "9 to learn from, 1 held out" in text
    assert "annotated: 4 of 9 training images, 0 of them as empty" in text
    for number in range(1, 10, 2):
        Path(f"scans/masks/{number}.png").unlink()
    options = ("--data", "scans", "--missing-masks", "unannotated", *SCANS)
    assert train("segmentation", *options, "--out", "folder") == 0
    assert report("table")["last"]["loss"] == report("folder")["last"]["loss"]


def test_the_cache_knows_which_columns_were_read(train: Train) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    draw_scans()
    images = [Path(f"scans/images/{number}.png").read_bytes() for number in range(10)]
    masks = [Path(f"scans/masks/{number}.png").read_bytes() for number in range(10)]
    table = {"image": images, "mask": masks, "first": [masks[0]] * 10}
    parquet.write_table(pyarrow.table(table), "table.parquet")
    for column in ("mask", "first"):
        assert train("segmentation", "--data", "table.parquet", "--mask-column", column, *SCANS, "--out", column) == 0
    assert report("first")["last"]["target_share"] < report("mask")["last"]["target_share"]


def test_a_cell_that_is_no_image_is_refused_or_named(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    parquet, pyarrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    square = [[0, 200], [300, 0]]
    table = {"image": [square] * 4, "mask": [square] * 4, "ragged": [[[0, 1], [1]]] * 4}
    parquet.write_table(pyarrow.table(table), "table.parquet")
    assert train("segmentation", "--data", "table.parquet", *SCANS) == 2
    assert "4 files are no readable images" in capsys.readouterr().err  # 300 would wrap around
    assert train("segmentation", "--data", "table.parquet", "--mask-column", "ragged", *SCANS) == 2
    assert "nor a rectangle of numbers" in capsys.readouterr().err


def test_a_table_says_what_it_lacks(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    draw_scans(4)
    rows = [f"scans/images/{n}.png,{'' if n == 3 else f'scans/masks/{n}.png'},{int(n < 3)}" for n in range(4)]
    Path("table.csv").write_text("\n".join(["image,mask,drawn", *rows]))
    assert train("segmentation", "--data", "table.csv", *SCANS) == 2
    assert "1 samples of table.csv should have a mask and have none: scans/images/3.png" in capsys.readouterr().err
    for option in (("--column", "drawn"), ("--missing-masks", "unannotated")):
        assert train("segmentation", "--data", "table.csv", *SCANS, *option) == 0
    cut(Path("scans/masks/1.png"))  # its time and size have changed: the cache is not asked
    assert train("segmentation", "--data", "table.csv", "--column", "drawn", *SCANS) == 0
    assert "left out: scans/masks/1.png" in " ".join(capsys.readouterr().out.split())
    assert train("segmentation", "--data", "table.csv", "--column", "cat") == 2
    assert "no column cat to hold the flags; name one of image, mask, drawn" in capsys.readouterr().err
    Path("other.csv").write_text("a,b\n1,2\n")
    assert train("segmentation", "--data", "other.csv") == 2
    assert "does not say which column is --image-column; name one of a, b" in capsys.readouterr().err
    assert train("segmentation", "--data", "absent.csv") == 2
    assert "--data absent.csv does not exist" in capsys.readouterr().err
    assert train("segmentation", "--data", "scans", "--column", "drawn") == 2
    assert "columns are of .parquet and .csv tables; scans is none" in capsys.readouterr().err


def test_a_folder_of_masks_that_are_all_zero_is_refused(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    draw_scans(white=0)
    assert main(["doctor", "masks", "scans"]) == 1
    capsys.readouterr()
    assert train("segmentation", "--data", "scans", *SCANS, "--out", "run") == 2
    assert "all 10 masks of scans are empty, so there is no object to learn" in capsys.readouterr().err
    assert not Path("run").exists()


def test_the_data_of_the_post_mortem(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    """39 images, 31 of them of a class of their own: shuffled batches of 16 are refused, PK batches train."""
    for label in range(35):
        draw_images(Path(f"photos/{label:02d}"), 1 if label < 31 else 2, seed=label)
    assert main(["doctor", "labels", "photos", "--batch-size", "16"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "hopeless" in said
    assert "PKBatchSampler(labels, P=4, K=2)" in said
    assert train("embeddings", "--data", "photos", "--batch-size", 16) == 2
    assert "every class needs at least 2 readable images to make a pair; too few in 00 (1)" in capsys.readouterr().err
    photos = embeddings.folders.class_folders(Path("photos"))
    labels = [label for label, files in photos.items() for _ in files]
    paths = [path for files in photos.values() for path in files]
    images = embeddings.folders.read_images(paths, 16, Screen()).images
    model, criterion = embeddings.EmbeddingNet(3, 16, 8), TripletLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sampler, found = PKBatchSampler(labels, P=4, K=2), []
    classes = torch.tensor([int(label) for label in labels])
    for epoch in range(40):
        sampler.epoch = epoch
        for rows in sampler:
            loss = criterion(model(images[rows]), classes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append((criterion.evidence.valid, loss.item()))
    assert {valid for valid, _ in found} == {8}
    assert found[-1][1] < 0.5 * found[0][1]


@pytest.mark.parametrize("loss", ["triplet", "combined"])
def test_classes_that_are_only_judged_have_no_part_in_training(loss: str, train: Train) -> None:
    for number in range(5):
        draw_images(Path(f"photos/{number}"), 8, seed=number)
    options = ["--data", "photos", "--image-size", 16, "--batch-size", 12, "--loss", loss, "--unseen-classes", 2]
    assert train("embeddings", *options, "--epochs", 2, "--out", "run") == 0
    found = report("run")
    assert "of classes never trained on" in " ".join(found["data"])
    assert 0 <= found["last"]["unseen_recall"] <= 1


def test_a_class_of_few_images_is_trained_on_and_not_judged() -> None:
    labels = torch.tensor([0] * 20 + [1] * 3 + [2] * 4)
    split = embeddings.split_by_class(labels, 0, seed=0)
    assert torch.bincount(labels[split.train]).tolist() == [15, 3, 2]
    assert torch.bincount(labels[split.held_out], minlength=3).tolist() == [5, 0, 2]
    assert sorted([*split.train.tolist(), *split.held_out.tolist()]) == list(range(27))


# --- parts ------------------------------------------------------------------------------------------------------------


def test_recall_leaves_each_image_out_of_its_own_neighbours() -> None:
    z = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    assert embeddings.recall_at_1(z, torch.tensor([0, 0, 1, 1])) == 0.5  # right for 0 and 3
    assert embeddings.recall_at_1(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1])) == 0  # all in one place
    assert math.isnan(embeddings.recall_at_1(z, torch.arange(4)))


def test_scores_by_hand() -> None:
    found = segmentation.scores(torch.tensor([6, 2, 4]))
    assert found == pytest.approx({"f1": 12 / 18, "iou": 6 / 12, "precision": 6 / 8, "recall": 6 / 10})
    assert math.isnan(segmentation.scores(torch.zeros(3))["f1"])


def test_the_predicted_area_is_judged_beside_the_annotated_one() -> None:
    system = segmentation.Segmentation(segmentation.SegmentationSettings(samples=8), Screen())
    everything, nothing = (
        system.judge(torch.nn.Sequential(named.Centred(), torch.nn.Hardtanh(low, low + 1))) for low in (5.0, -5.0)
    )
    assert (everything["held_out_share"], nothing["held_out_share"]) == (1, 0)
    assert everything["precision"] == pytest.approx(system.baselines["annotated area"])
    assert (everything["recall"], nothing["recall"]) == (1, 0)


def test_half_of_every_batch_is_annotated() -> None:
    annotated = torch.zeros(100, dtype=torch.bool)
    annotated[:7] = True
    batches = segmentation.batch_rows(annotated, 16, np.random.default_rng(0), shuffle=False)
    assert [len(rows) for rows in batches] == [16] * 7
    assert all(annotated[rows].sum() >= 8 for rows in batches)
    shuffled = segmentation.batch_rows(annotated, 16, np.random.default_rng(0), shuffle=True)
    assert torch.equal(torch.cat(shuffled).sort().values, torch.arange(100))


def test_withheld_masks_are_zero_and_marked() -> None:
    data = segmentation.Images(torch.zeros(10, 1, 2, 2), torch.ones(10, 1, 2, 2, dtype=torch.bool), torch.ones(10) > 0)
    kept = segmentation.withhold(data, 0.3, seed=0)
    assert kept.annotated.sum() == 3
    assert torch.equal(kept.masks.flatten(1).all(dim=1), kept.annotated)


def test_composed_textures_are_a_function_of_seed_and_number() -> None:
    few, more = textures.compose(3, 0, held_out=False), textures.compose(5, 0, held_out=False)
    assert torch.equal(few.images, more.images[:3])
    assert torch.equal(few.masks, more.masks[:3])
    assert not torch.equal(few.images, textures.compose(3, 0, held_out=True).images)
    assert not torch.equal(few.images, textures.compose(3, 1, held_out=False).images)


def test_the_average_starts_at_the_model_and_follows_it() -> None:
    model = torch.nn.BatchNorm1d(2)
    average = training.Average(model)
    with torch.no_grad():
        model.weight.fill_(3.0)
    average.update(model)
    assert torch.equal(average.model.weight, model.weight)
    with torch.no_grad():
        model.weight.fill_(5.0)
    average.update(model)
    assert torch.allclose(average.model.weight, torch.tensor(3 + 2 * 10 / 11))


def test_python_and_the_command_line_have_the_same_options() -> None:
    with pytest.raises(UsageError, match="--epochs must be at least 1; got 0"):
        embeddings.train(epochs=0)
    with pytest.raises(TypeError, match="speed"):
        embeddings.train(speed=9)
    with pytest.raises(CommandError, match="no run of segmentation"):
        segmentation.train(resume=True)


# --- quality ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_held_out_digits_are_recalled(train: Train) -> None:
    assert main(["train", "embeddings", "--out", "run"]) == 0
    found = report("run")
    assert found["last"]["recall"] >= 0.97
    assert found["last"]["recall"] > found["baselines"]["recall@1 of the bare pixels"]
    assert found["last"]["spread"] > 0.5


@pytest.mark.slow
def test_nine_masks_of_ten_unannotated_cost_at_most_five_points_of_f1(train: Train) -> None:
    """After half of the epochs that a run has when nothing is said."""
    assert main(["train", "segmentation", "--epochs", "4", "--out", "all"]) == 0
    assert main(["train", "segmentation", "--epochs", "4", "--annotated", "0.1", "--out", "tenth"]) == 0
    full, tenth = report("all")["last"]["f1"], report("tenth")["last"]["f1"]
    assert full >= 0.9
    assert full - tenth <= 0.05
