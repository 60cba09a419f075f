"""System C as a user runs it, and its post-mortem replayed in it: what was wrong then must fail, by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastmine import array
from fastmine.cli import main
from fastmine.health import Monitor
from fastmine.losses import ArrayPrediction, ArrayTarget, CovarianceLoss, HybridCovarianceLoss
from fastmine.recipes import doa, overfit, processes, searching, training
from fastmine.recipes.errors import CommandError, InterruptionError, UsageError
from fastmine.recipes.overfit import Overfit
from fastmine.recipes.screen import Screen
from fastmine.recipes.signals import Scene, record

SMALL = {"samples": 256, "batch_size": 64}
POSITIONS = array.uniform_linear(8)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doa, "HELD_OUT", 256)


# --- the simulator ----------------------------------------------------------------------------------------------------


def recordings(count: int = 64, seed: int = 0, **changes: Any) -> Any:
    return record(Scene(POSITIONS, **changes), count, torch.Generator().manual_seed(seed))


def test_a_recording_is_a_function_of_its_seed() -> None:
    for a, b, c in zip(recordings(), recordings(), recordings(seed=1), strict=True):
        assert torch.equal(a, b)
        assert a.dtype == torch.bool or not torch.equal(a, c)


def test_sources_keep_their_distance_and_come_first() -> None:
    found = recordings(2000, sources=4, separation=0.3, sector=1.0)
    counts = found.present.sum(dim=-1)
    assert torch.bincount(counts).tolist()[0] == 0
    assert (torch.bincount(counts)[1:] > 400).all()
    assert torch.equal(found.present, torch.arange(4) < counts.unsqueeze(-1))
    apart = found.azimuth.diff(dim=-1)[found.present[:, 1:]]
    assert apart.min() >= 0.3 - 1e-6
    assert found.azimuth[found.present].abs().max() <= 1.0 + 1e-6
    full = found.azimuth[counts == 4]
    assert full[:, 0].mean() == pytest.approx(-float(full[:, 3].mean()), abs=0.05)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_many_snapshots_come_to_the_covariance(correlation: float) -> None:
    found = recordings(8, snapshots=200_000, correlation=correlation, snr=3.0)
    assert array.covariance_nmse(found.measured, found.covariance, normalize="none").max() < 1e-3
    two = found.sources[found.present.all(dim=-1)]
    coherence = two[:, 0, 1].abs() / (two[:, 0, 0].real * two[:, 1, 1].real).sqrt()
    assert torch.allclose(coherence, torch.full_like(coherence, correlation), atol=1e-5)
    powers = torch.diagonal(found.sources, dim1=-2, dim2=-1).real[found.present]
    assert torch.allclose(10 * powers.log10(), torch.full_like(powers, 3.0), atol=1e-4)


def test_music_on_recordings_reaches_the_bound() -> None:
    found = recordings(512)
    scene = Scene(POSITIONS)
    grid = torch.linspace(-math.pi / 2, math.pi / 2, 721)
    errors = doa.source_errors(doa.classic(found, scene, grid), found)
    rms, bound = (float(x.square().mean().sqrt()) for x in (errors, doa.bounds(found, scene)))
    assert 0.9 < rms / bound < 1.2


# --- a run ------------------------------------------------------------------------------------------------------------


def train(*options: Any) -> int:
    return main(["train", "doa", "--samples", "256", *map(str, options)])


def test_it_learns_and_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--epochs", 6, "--out", "run") == 0
    text, found = capsys.readouterr().out, json.loads(Path("run/report.json").read_text())
    header = next(line for line in text.splitlines() if line.startswith("epoch "))
    assert header.split()[:4] == ["epoch", "loss", "cov", "cov_pred"]
    first, last = found["history"][0], found["history"][-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["median"] < 0.5 * first["median"]
    assert last["nmse"] < last["nmse_unblended"] < first["nmse_unblended"]
    assert 0 < found["baselines"]["root mean square error, Cramér-Rao bound"] < 0.2
    assert found["baselines"]["within 1° by MUSIC, told the number"] > 0.98
    assert found["health"]["verdict"] == "healthy"
    for picture in ("curves.png", "errors.png", "spectra.png"):
        with Image.open(Path("run") / picture) as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_the_kept_model_is_the_one_that_was_judged() -> None:
    assert train("--epochs", 1, "--out", "run") == 0
    found = json.loads(Path("run/report.json").read_text())
    judged = doa.Doa(doa.DoaSettings(**found["settings"]), Screen()).judge(doa.load("run/best.pt"))
    assert judged == {name: found["last"][name] for name in judged}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--weights cov=0", "required component 'cov' is 0"),
        ("--weights cow=1", "must be one of 'cov'"),
        ("--weights cov", "must be name=weight"),
        ("--weights cov=much", "must be a number; got 'much'"),
        ("--search-weights peek=2", "search names 'peek'"),
        ("--sources 6 --separation 60", "do not fit into 120 degrees"),
        ("--sources 7", "must be at least 1 and at most 6"),
        ("--correlation 1.5", "must be at least 0 and at most 1"),
        ("--data folder", "unrecognized arguments: --data folder"),
    ],
)
def test_mistakes_are_one_line(options: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "doa", *options.split()]) == 2
    line = capsys.readouterr().err
    assert words in line
    assert line.count("\n") == 1


def test_weights_are_those_of_the_settings_and_the_ramp_advances() -> None:
    settings = doa.DoaSettings(**SMALL, weights="angle=3,eigengap=0.1", search_weights="angle=0.5", ramp=4)
    system = doa.Doa(settings, Screen())
    assert system.loss.weights()["angle"] == pytest.approx(3 * 0.5 / 4)
    assert system.loss.weights()["cov"] == 1.0
    for batch in system.batches(1):
        system.learn(batch)
    assert system.loss.weights()["angle"] == 1.5
    assert "eigengap" in system.components
    without = doa.Doa(doa.DoaSettings(**SMALL, weights="peak=0"), Screen())
    assert "peak" not in without.components


# --- the overfit test -------------------------------------------------------------------------------------------------


def overfitted(kind: type[doa.Doa] = doa.Doa, **changes: Any) -> Overfit:
    settings = doa.DoaSettings(**{"batch_size": overfit.BATCH, "epochs": overfit.EPOCHS, **changes})
    return overfit.overfit(kind, settings, Screen())


@pytest.fixture(scope="module")
def healthy() -> Overfit:
    """The system as it is."""
    return overfitted()


@pytest.mark.slow
def test_it_learns_512_samples_by_heart(healthy: Overfit) -> None:
    """Loss below 0.5 from 0.5 .. 3, and median and mean error below 1 degree at 10 dB."""
    assert (healthy.verdict, healthy.samples, healthy.epochs) == ("READY", 512, 30)
    found = {score.goal.key: score.at_last for score in healthy.scores}
    assert 0.5 < healthy.loss_at_first < 3
    assert found["loss"] < 0.5
    assert found["error_median"] < 1
    assert found["error_mean"] < 1
    assert not [finding for finding in healthy.findings if finding.is_alarm]
    assert "READY" in str(healthy)


@pytest.mark.slow
def test_two_epochs_are_not_enough_and_nothing_is_wrong() -> None:
    found = overfitted(epochs=2)
    assert found.verdict == "FAIL"
    assert "READY takes 0.5, MARGINAL 1" in found.reason
    assert not [finding for finding in found.findings if finding.is_alarm]


class MainWeightZero(doa.Doa):
    """The total and the angle error look fine."""

    def criterion(self) -> HybridCovarianceLoss:
        return HybridCovarianceLoss(self.scene.positions, {**doa.HYBRID_WEIGHTS, "cov": 0.0}, required=())


class Component(nn.Module):
    """A component somebody wrote."""

    def __init__(self, function: Callable[[ArrayPrediction, ArrayTarget], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, prediction: ArrayPrediction, target: ArrayTarget, valid: Tensor | None = None) -> Tensor:
        return self.function(prediction, target)


def with_component(name: str, function: Callable[[ArrayPrediction, ArrayTarget], Tensor]) -> type[doa.Doa]:
    class Changed(doa.Doa):
        def criterion(self) -> HybridCovarianceLoss:
            loss = super().criterion()
            loss.components[name] = Component(function)
            return loss

    return Changed


def swallowed(prediction: ArrayPrediction, target: ArrayTarget) -> Tensor:
    try:
        assert prediction.factors is not None
        return (prediction.factors @ target.covariance).abs().mean()
    except RuntimeError:
        return torch.zeros(())


def after_the_projection(prediction: ArrayPrediction, target: ArrayTarget) -> Tensor:
    q, _ = torch.linalg.qr(array.as_complex("factors", prediction.factors))
    return array.orthogonality(q).mean()


def one_side_only(prediction: ArrayPrediction, target: ArrayTarget) -> Tensor:
    R = array.as_complex("covariance", prediction.covariance)
    scaled = R / torch.diagonal(R, dim1=-2, dim2=-1).sum(dim=-1).real[..., None, None]
    return array.covariance_nmse(scaled, target.covariance, normalize="none").mean()


def inverted(prediction: ArrayPrediction, target: ArrayTarget) -> Tensor:
    grid = array.steering(POSITIONS, torch.linspace(-1.5, 1.5, 91))
    own = array.steering(POSITIONS, target.azimuth)
    return -array.peak_nll(prediction.covariance, grid, own, target.present).mean()


class WeightNeverRead(doa.Doa):
    """One of the weights is not read."""

    def criterion(self) -> HybridCovarianceLoss:
        class Forgetful(HybridCovarianceLoss):
            def weights(self) -> dict[str, float]:
                return {**super().weights(), "peak": doa.HYBRID_WEIGHTS["peak"]}

        return Forgetful(self.scene.positions)


STORIES: dict[str, tuple[type[doa.Doa], str, str]] = {
    "the main weight is 0": (MainWeightZero, "ZERO_WEIGHT", "cov"),
    "a swallowed exception": (with_component("subspace", swallowed), "DEAD_COMPONENT", "subspace"),
    "a penalty after the projection": (
        with_component("orthogonality", after_the_projection), "DEAD_COMPONENT", "orthogonality"
    ),
    "two sides scaled differently": (with_component("cov", one_side_only), "LOSS_FLOOR", "HybridCovarianceLoss"),
    "an inverted sign": (with_component("peak", inverted), "CONFLICTING_COMPONENTS", "peak"),
    "a weight that is never read": (WeightNeverRead, "UNUSED_WEIGHT", "peak"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
def test_what_was_wrong_fails_and_is_named(story: str) -> None:
    kind, code, component = STORIES[story]
    found = overfitted(kind, epochs=12)
    assert found.verdict == "FAIL"
    assert (code, component) in {(finding.code, finding.component) for finding in found.findings if finding.is_alarm}
    assert code in found.reason or code in str(found)


@pytest.mark.slow
def test_the_main_weight_at_zero_looks_fine_but_for_its_component() -> None:
    """Why only reporting per component shows it."""
    found = overfitted(MainWeightZero)
    scores = {score.goal.key: score.verdict for score in found.scores}
    assert {key: scores[key] for key in ("loss", "error_median", "error_mean")} == dict.fromkeys(
        ("loss", "error_median", "error_mean"), "READY"
    )
    assert scores["cov"] == "FAIL"
    assert (found.verdict, found.reason.split()[0]) == ("FAIL", "ZERO_WEIGHT")


def gated(optimizer: torch.optim.Optimizer) -> None:
    """Only where the gradient is very small."""
    step = optimizer.step

    def only_if_small(_: torch.optim.Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if sum(float(g.norm()) for g in gradients) < 1e-6:
            step()

    optimizer.step = MethodType(only_if_small, optimizer)  # type: ignore[method-assign]


def without_rate(optimizer: torch.optim.Optimizer) -> None:
    """A warm-up that does not advance."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("change", "variant"), [(gated, "gated"), (without_rate, "lr0")])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_steps_that_do_not_happen_fail_and_are_named(
    change: Callable[[torch.optim.Optimizer], None], variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = torch.optim.AdamW

    def changed(*args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        optimizer = make(*args, **kwargs)
        change(optimizer)
        return optimizer

    monkeypatch.setattr(torch.optim, "AdamW", changed)
    found = overfitted(epochs=12)
    assert found.verdict == "FAIL"
    (finding,) = [finding for finding in found.findings if finding.severity == "error"]
    assert (finding.code, finding.evidence["variant"]) == ("NO_UPDATE", variant)
    assert "NO_UPDATE" in found.reason


@pytest.mark.slow
def test_sanitised_gradients_fail_and_are_named() -> None:
    """A NaN on the way, replaced by 0 before the optimizer sees it."""

    def infinite_slope(prediction: ArrayPrediction, target: ArrayTarget) -> Tensor:
        assert prediction.factors is not None
        return (0 * prediction.factors).square().sum().sqrt()

    class Sanitised(with_component("orthogonality", infinite_slope)):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            for parameter in self.model.parameters():
                parameter.register_hook(lambda gradient: gradient.nan_to_num(nan=0.0))

    found = overfitted(Sanitised, epochs=12)
    assert found.verdict == "FAIL"
    assert found.findings[0].code == "NONFINITE"


def test_the_logged_loss_of_a_gated_branch_is_named() -> None:
    """Accumulated where the optimizer steps, which it never does: the log says 0."""
    system = doa.Doa(doa.DoaSettings(**SMALL), Screen())
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-3)
    with Monitor(system.model, system.loss, optimizer, speak=False) as monitor:
        for epoch in range(1, 31):
            for batch in system.batches(epoch):
                logged, loss = 0.0, system.learn(batch).loss
                optimizer.zero_grad()
                loss.backward()
                if nn.utils.clip_grad_norm_(system.model.parameters(), 1.0) < 1e-6:
                    optimizer.step()
                    logged = loss.item()
                monitor.step(loss, logged=logged)
        codes = [finding.code for finding in monitor.check()]
    assert codes[0] == "NO_UPDATE"
    assert "REPORTED_LOSS_MISMATCH" in codes


# --- the search -------------------------------------------------------------------------------------------------------


def search(*options: Any) -> int:
    return train("--epochs", 1, "--out", "found", *options)


@pytest.fixture
def optuna() -> None:
    """Only where it is installed."""
    pytest.importorskip("optuna")


@pytest.mark.usefixtures("optuna")
def test_a_search_goes_on_where_it_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--search", 2) == 0
    before = json.loads(Path("found/search.json").read_text())
    assert [trial["number"] for trial in before["trials"]] == [1, 2]
    assert set(before["best"]["factors"]) == set(doa.HYBRID_WEIGHTS)
    assert before["trials"][0]["factors"] == dict.fromkeys(doa.HYBRID_WEIGHTS, 1.0)
    capsys.readouterr()
    assert search("--search", 3, "--resume") == 0
    text, after = capsys.readouterr().out, json.loads(Path("found/search.json").read_text())
    assert "2 of 3 trials" in text
    assert after["trials"][:2] == before["trials"]
    assert after["trials"][2]["factors"] not in [trial["factors"] for trial in before["trials"]]
    assert after["best"]["value"] == max(trial["value"] for trial in after["trials"])
    values = [trial["value"] for trial in after["trials"]]
    assert after["spread"] == pytest.approx((max(values) - min(values)) / (sum(values) / 3))
    assert "fastmine train doa --search-weights cov=" in text
    with Image.open("found/trials.png") as image:
        assert image.size[0] > 1000
    assert doa.load(f"found/trial-{after['best']['number']:02d}/best.pt")


def test_a_search_is_of_one_process(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "launched", lambda: 2)
    assert search("--search", 2) == 2
    assert "start it without torchrun" in capsys.readouterr().err


@pytest.mark.usefixtures("optuna")
def test_a_search_can_be_tried_dry(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--search", 3, "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a search of cov, cov_pred, orthogonality, count, angle, subspace, peak" in said
    assert "3 of 3 trials" in said
    assert not Path("found").exists()
    assert search("--search", 1) == 0
    before = Path("found/study.db").read_bytes()
    assert search("--search", 3, "--resume", "--dry-run") == 0
    assert "2 of 3 trials" in capsys.readouterr().out
    assert Path("found/study.db").read_bytes() == before
    assert search("--search", 3, "--lr", 0.1, "--resume", "--dry-run") == 2
    assert "had other settings: lr" in capsys.readouterr().err


@pytest.mark.usefixtures("optuna")
@pytest.mark.parametrize("stop", [KeyboardInterrupt, InterruptionError("go on with this run")])
def test_a_search_that_was_cut_off_does_its_trial_again(
    stop: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training.Run, "fit", Mock(side_effect=stop))
        assert search("--search", 1) == 130
    assert ("--resume found" in capsys.readouterr().err) == (stop is not KeyboardInterrupt)
    assert search("--search", 1, "--resume") == 0
    (trial,) = json.loads(Path("found/search.json").read_text())["trials"]
    assert set(trial["factors"].values()) == {1.0}


@pytest.mark.usefixtures("optuna")
def test_a_trial_whose_loss_is_not_finite_has_failed_and_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = training.Run.fit
    calls = []

    def fails_first(run: Any) -> None:
        calls.append(run)
        if len(calls) == 1:
            raise CommandError("the loss became nan")
        fit(run)

    monkeypatch.setattr(training.Run, "fit", fails_first)
    assert search("--search", 2) == 0
    assert "1 trials failed" in capsys.readouterr().out
    trials = json.loads(Path("found/search.json").read_text())["trials"]
    assert (trials[0]["value"], trials[0]["failed"]) == (None, "the loss became nan")


@pytest.mark.usefixtures("optuna")
def test_a_search_with_other_settings_is_another_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert search("--search", 1) == 0
    capsys.readouterr()
    assert search("--search", 2, "--resume", "--snr", 20) == 2
    assert "had other settings: snr" in capsys.readouterr().err
    assert search("--search", 2) == 2  # in use, and not to be gone on with
    assert train("--search", 1, "--resume", "elsewhere") == 2
    assert "no search to go on with" in capsys.readouterr().err


def test_a_weight_that_does_not_change_the_total_is_refused_before_anything_is_trained() -> None:
    system = with_component("subspace", swallowed)(doa.DoaSettings(**SMALL), Screen())
    with pytest.raises(CommandError, match="doubling the weight of subspace does not change the total"):
        searching.searched(system)
    healthy = doa.Doa(doa.DoaSettings(**SMALL), Screen())
    loss, steps = healthy.loss, healthy.loss.steps
    assert searching.searched(healthy) == list(doa.HYBRID_WEIGHTS)
    assert (healthy.loss, healthy.loss.steps) == (loss, steps)


def test_only_a_composite_is_searched() -> None:
    system = doa.Doa(doa.DoaSettings(**SMALL), Screen())
    system.loss = CovarianceLoss()  # type: ignore[assignment]
    with pytest.raises(UsageError, match="only a composite has weights to search"):
        searching.searched(system)
