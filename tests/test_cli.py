"""The ``fastmine`` command as it is typed: what it prints, its exit codes, and one line for every mistake."""

from __future__ import annotations

import errno
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
from PIL import Image

import fastmine
from fastmine import cli, recipes
from fastmine.cli import main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def refused(argv: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake gets."""
    assert main(argv.split()) == 2
    output = capsys.readouterr()
    line = output.err
    assert line.startswith("fastmine: error: ")
    assert line.count("\n") == 1
    return line


def draw_images(folder: Path, count: int, size: tuple[int, int] = (20, 16), seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


# --- help and version -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--help", ["train", "doctor", "examples:", "fastmine train embeddings"]),
        ("train --help", ["embeddings", "segmentation"]),
        (
            "train embeddings --help",
            ["--embedding-dim", "--margin", "default: 0.2", "one sub-folder of images per class"],
        ),
        ("train segmentation --help", ["--annotated", "--missing-masks", "0/1 and 0/255"]),
        ("train doa --help", ["--snr-spread", "--correlation", "--search N", "simulated"]),
        ("doctor --help", ["env", "labels", "loss", "masks", "overfit"]),
        ("doctor labels --help", ["Exit code 1", "--column"]),
    ],
)
def test_help_teaches(argv: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(argv.split())
    text = capsys.readouterr().out
    for word in words:
        assert word in text


def test_only_commands_that_exist_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, listed in (
        ("train", {"embeddings", "segmentation", "doa"}),
        ("doctor", {"env", "labels", "loss", "masks", "overfit"}),
    ):
        line = refused(f"{argv} nothing", capsys)
        assert {name.strip(" '") for name in line.split("choose from ")[1].split(")")[0].split(",")} == listed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastmine {fastmine.__version__}\n"


def test_doctor_env_shows_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "env"]) == 0
    text = capsys.readouterr().out
    assert f"fastmine {fastmine.__version__}" in text
    assert "triplet_loss" in text


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("", "required: COMMAND"),
        ("train", "required: SYSTEM"),
        ("fly", "invalid choice: 'fly'"),
        ("train embeddings --epochs ten", "--epochs: must be a whole number; got 'ten'"),
        ("train embeddings --epochs 0", "--epochs: must be at least 1; got 0"),
        ("train embeddings --lr nan", "--lr: must be above 0 and at most 1000; got nan"),
        ("train embeddings --lr fast", "--lr: must be a number; got 'fast'"),
        ("train embeddings --margin wide", "--margin: must be a number, soft or leaky; got 'wide'"),
        ("train embeddings --margin -0.1", "--margin: must be at least 0; got -0.1"),
        (
            "train embeddings --loss dice",
            "--loss: must be one of triplet, combined, supcon, ntxent, multi_similarity, circle, contrastive; got dice",
        ),
        ("train embeddings --batch-size 3", "--batch-size: must be at least 4 and at most 65536; got 3"),
        ("train embeddings --speed 9", "unrecognized arguments: --speed 9"),
        ("train embeddings --samples-per-class 40", "does not hold 2 classes of 40 images; it takes 80 or more"),
        ("train embeddings --samples-per-class 500 --batch-size 5000", "use K="),
        ("train embeddings --unseen-classes 9", "leaves fewer than 2 to train on; keep out 8 at most"),
        ("train segmentation --loss triplet", "--loss: must be one of combined, dice, log_dice"),
        ("train segmentation --annotated 0", "--annotated: must be above 0 and at most 1; got 0"),
        ("train segmentation --image-size 30", "a multiple of 16; got 30"),
        ("train segmentation --device tpu", "--device: must be one of cpu, cuda; got tpu"),
        ("train segmentation --data nowhere", "nowhere does not exist"),
        ("train embeddings --resume", "there is no run of embeddings under"),
        ("train embeddings --resume nowhere", "there is no checkpoint nowhere"),
        ("doctor labels nowhere", "nowhere does not exist"),
        ("doctor labels x --batch-size 0", "--batch-size: must be at least 1; got 0"),
        ("doctor loss :loss", "name it as module:object"),
        ("train segmentation --weights bce=0.5,bce=0.2", "--weights: must have each name once; got bce twice"),
        ("bench --list --json", "--list has neither"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(argv: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in refused(argv, capsys)
    assert not Path("runs").exists()


def test_cuda_without_a_device_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "finds no CUDA device" in refused("train embeddings --device cuda", capsys)


@pytest.mark.parametrize(
    ("module", "argv", "line"),
    [
        ("rich.console", "train embeddings", "rich, which is not installed"),
        ("sklearn.datasets", "train embeddings", "scikit-learn, which is not installed"),
        ("skimage.data", "train segmentation", "scikit-image, which is not installed"),
        ("PIL", "train embeddings --data photos", "pillow, which is not installed"),
    ],
)
def test_a_missing_package_is_named_with_the_line_to_type(
    module: str, argv: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_images(Path("photos/a"), 4)
    monkeypatch.setitem(sys.modules, module, None)
    said = refused(argv, capsys)
    assert line in said
    assert "pip install 'fastmine[train]'" in said


def test_without_tensorboard_its_logs_are_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install 'fastmine[tensorboard]'" in refused("train embeddings --tensorboard", capsys)
    assert not list(Path().iterdir())


def test_the_rest_works_without_the_extras(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rich", "rich.console", "sklearn", "skimage", "PIL", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    Path("labels.txt").write_text("a\na\nb\nb\n")
    assert main(["doctor", "env"]) == 0
    assert main(["doctor", "labels", "labels.txt", "--batch-size", "4"]) == 0
    assert "good: " in capsys.readouterr().out


def test_without_matplotlib_a_run_ends_with_a_line_instead_of_pictures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "fastmine.recipes.pictures", raising=False)
    monkeypatch.delattr(recipes, "pictures", raising=False)
    assert main(["train", "embeddings", "--epochs", "1", "--out", "run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no pictures: ")]
    assert len(lines) == 1
    assert "pip install 'fastmine[plot]'" in lines[0]
    assert {path.name for path in Path("run").iterdir()} == {"best.pt", "last.pt", "report.json"}


# --- folders ----------------------------------------------------------------------------------------------------------


def test_an_empty_folder_and_a_folder_without_classes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    assert "got no sub-folder" in refused("train embeddings --data empty", capsys)
    Path("empty/cat").mkdir()
    assert "got 1 empty sub-folder" in refused("train embeddings --data empty", capsys)
    Path("file").write_text("")
    assert "is a file, not a folder" in refused("train embeddings --data file", capsys)


def test_a_folder_that_may_not_be_read_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    Path("photos").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "the folder photos cannot be read: Permission denied" in refused("train embeddings --data photos", capsys)


def test_a_class_with_one_image_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("cat", 5), ("dog", 1), ("emu", 5)):
        draw_images(Path("photos") / name, count)
    line = refused("train embeddings --data photos", capsys)
    assert "at least 2 readable images" in line
    assert "dog (1)" in line


def test_too_few_images_to_judge_by_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        draw_images(Path("photos") / name, 3)
    assert "recall@1 needs held-out images of at least 2 classes" in refused("train embeddings --data photos", capsys)


def test_masks_that_do_not_match_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = "train segmentation --data scans"
    draw_images(Path("scans/images"), 3)
    assert "must hold images/ and masks/; scans/masks does not exist" in refused(command, capsys)
    draw_images(Path("scans/masks"), 2)
    assert "1 of 3 images in scans/images have no mask: 2.png" in refused(command, capsys)
    draw_images(Path("scans/masks"), 4)
    assert "1 of 4 masks in scans/masks belong to no image: 3.png" in refused(command, capsys)
    Path("scans/masks/3.png").unlink()
    draw_images(Path("scans/masks"), 1, size=(10, 10))
    assert "0.png: image 20 x 16, mask 10 x 10" in refused(command, capsys)
    Path("scans/images/0.jpg").write_text("")
    assert "have the same name" in refused(command, capsys)


def test_a_folder_in_use_is_not_written_in(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("precious")
    line = refused("train embeddings --out mine", capsys)
    assert "is not empty; nothing there was touched" in line
    assert Path("mine/notes.txt").read_text() == "precious"
    assert "is not empty" in refused("train embeddings --out mine/notes.txt", capsys)


# --- doctor labels ----------------------------------------------------------------------------------------------------


def test_labels_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for name, count in (("cat", 6), ("dog", 4)):
        draw_images(Path("photos") / name, count)
    assert main(["doctor", "labels", "photos", "--batch-size", "4"]) == 0
    text = capsys.readouterr().out
    assert "cat" in text
    assert "rows" in text
    assert "good: shuffled batches will do" in text


@pytest.mark.parametrize(
    ("name", "content"),
    [("y.txt", "a\nb\na\n\nb\n"), ("y.csv", "file,Label\n1,a\n2,b\n3,a\n4,b\n"), ("y.csv", "kind\na\nb\na\nb\n")],
)
def test_labels_of_a_text_file(name: str, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(name).write_text(content)
    assert main(["doctor", "labels", name, "--batch-size", "4"]) == 0
    assert "classes" in capsys.readouterr().out


def test_labels_of_an_array(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("y.npy", np.arange(40) % 4)
    assert main(["doctor", "labels", "y.npy"]) == 0
    assert "4, of which 0 with a single row" in capsys.readouterr().out


def test_hopeless_labels_exit_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("y.npy", np.arange(39))
    assert main(["doctor", "labels", "y.npy", "--batch-size", "16"]) == 1
    text = capsys.readouterr().out
    assert "hopeless: " in text
    assert "100.00%" in text  # of the batches are without any valid anchor


def test_labels_that_cannot_be_read_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("matrix.npy", np.zeros((3, 2)))
    np.save("floats.npy", np.zeros(3))
    Path("broken.npy").write_bytes(b"\x93NUMPY")
    Path("bytes.txt").write_bytes(b"\xff\xfe\xfa")
    Path("empty.txt").write_text("\n")
    Path("two.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("")
    Path("y.json").write_text("[]")
    for name, words in {
        "matrix.npy": "one-dimensional array of integers or strings; got float64 of shape [3, 2]",
        "floats.npy": "got float64 of shape [3]",
        "broken.npy": "cannot be read",
        "bytes.txt": "cannot be read",
        "empty.txt": "holds no labels",
        "two.csv": "does not say which column holds the labels; name one of a, b with --column",
        "empty.csv": "empty.csv is empty; its first line names the columns",
        "two.csv --column c": "has no column c; name one of a, b",
        "y.json": "a .npy, .txt or .csv file; got y.json",
        "empty.txt --column a": "--column is of a .csv file; empty.txt is none",
    }.items():
        assert words in refused(f"doctor labels {name}", capsys)


@pytest.mark.parametrize(
    "command", ["env", "loss fastmine.losses:TripletLoss", "loss torch.nn:BCEWithLogitsLoss --inputs masks"]
)
def test_doctor_answers_in_json(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *command.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_doctor_labels_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(map(str, range(64))))
    assert main(["doctor", "labels", str(labels), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "hopeless"
    assert found["classes"] == 64


def test_doctor_loss_fails_on_a_constant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_losses.py").write_text("def constant(p, t):\n    return ((p.detach() - t) ** 2).mean()\n")
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "loss", "my_losses:constant", "--inputs", "values"]) == 1
    assert "DETACHED_GRAPH" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nothing", "fastmine.losses:Nothing", "no_such_module:loss"])
def test_doctor_loss_says_what_it_cannot_load(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "loss", name]) == 2
    assert name.split(":", maxsplit=1)[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no')", "cannot be loaded: RuntimeError: no ({file}, line 1)"),
        (
            "import no_such_module",
            "cannot be loaded: ModuleNotFoundError: No module named 'no_such_module' ({file}, line 1)",
        ),
        ("def named(:", "cannot be loaded: SyntaxError"),
        (
            "import torch\nclass named(torch.nn.Module):\n    def __init__(self): {}['gone']",
            "KeyError: 'gone' ({file}, line 3)",
        ),
        ("def named(p, t):\n    assert p is t, 'no'", "(values: AssertionError: no ({file}, line 2))"),
    ],
)
def test_what_a_module_of_ones_own_raises_was_a_traceback(
    code: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("its_own.py").absolute()
    file.write_text(code)
    monkeypatch.delitem(sys.modules, "its_own", raising=False)
    importlib.invalidate_caches()
    expected = words.format(file=file)
    assert expected in refused("doctor loss its_own:named --inputs values", capsys)
    if "values" not in expected:
        monkeypatch.delitem(sys.modules, "its_own", raising=False)
        assert expected in refused("train embeddings --model its_own:named", capsys)


def test_doctor_loss_says_that_a_class_needs_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused("doctor loss fastmine.losses:HybridCovarianceLoss", capsys)
    assert "positions" in line
    assert "name an instance of it" in line


@pytest.mark.slow
def test_doctor_overfit_learns_its_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "overfit", "embeddings", "--epochs", "12", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "READY"
    assert found["findings"] == [] or all(finding["severity"] == "info" for finding in found["findings"])


# --- standard output -------------------------------------------------------------------------------------------------


def text_into(descriptor: int, *, buffered: bool) -> TextIO:
    """As Python opens its standard output, with and without PYTHONUNBUFFERED."""
    return os.fdopen(descriptor, "w") if buffered else io.TextIOWrapper(io.FileIO(descriptor, "w"), write_through=True)


@pytest.mark.parametrize("buffered", [True, False])
def test_output_that_nobody_reads_any_more_is_no_traceback(buffered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with text_into(write, buffered=buffered) as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["doctor", "env"]) == 141


def test_what_fails_elsewhere_is_not_called_a_failure_of_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> int:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")  # as of a loader that cannot fork: of no file

    monkeypatch.setattr(cli, "_doctor_env", no_memory)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        main(["doctor", "env"])


@pytest.mark.parametrize("buffered", [True, False])
def test_output_to_a_full_disk_is_one_line(
    buffered: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with text_into(os.open("/dev/full", os.O_WRONLY), buffered=buffered) as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert main(["doctor", "env", "--json"]) == 1
    assert capsys.readouterr().err == "fastmine: error: cannot write the output: No space left on device\n"
