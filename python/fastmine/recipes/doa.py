"""Train a network to find directions of arrival: from a measured covariance to sources, angles and a better covariance.

The three things that let it look healthy while it learns nothing, and what is done here:

1. *A loss that shows its parts.* :class:`~fastmine.losses.HybridCovarianceLoss` is a sum of up to nine components;
   the total and the angle error look fine with the main one switched off. Each is in the line per epoch, with one
   owner for its weight, and ``cov`` may not be 0.
2. *The prediction before blending.* The answer is a mixture of what the network predicts and what was measured, and
   what was measured is not bad: a dead network hides behind it. So the unblended prediction has a component of its own.
3. *The right measure.* Angles are compared under the best assignment, on recordings never trained on, beside MUSIC,
   which is told the number of sources, and the Cramér-Rao bound, which nobody beats.

Recordings are simulated, new ones in every epoch; see :mod:`~fastmine.recipes.signals`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import Evidence, array
from ..health import LossReport, check_loss
from ..losses import ArrayPrediction, ArrayTarget, EvidentLoss, HybridCovarianceLoss
from ..losses.array import HYBRID_WEIGHTS
from . import processes, searching, training
from .errors import UsageError, from_extra
from .screen import Column, Screen
from .settings import Option, Settings, parsed, real, weights, whole
from .signals import Recording, Scene, record
from .system import Goal, Numbers, Step, System, fingerprint, mean, random_for

if TYPE_CHECKING:
    from .pictures import Directions

HELD_OUT = 2048  # recordings
BATCH = 64  # of them, that the loss is examined with
NEAR = 1.0  # degrees, within which a source is found
LEVELS = range(-10, 31, 5)  # dB of the picture of errors


@dataclass(frozen=True, kw_only=True)
class DoaSettings(Settings):
    """The options of ``fastmine train doa``."""

    epochs: Annotated[int, Option("times that many new recordings are learned from", whole, "N", at_least=1)] = 24
    batch_size: Annotated[int, Option("recordings in a batch", whole, "N", at_least=1, at_most=65536)] = 64
    lr: Annotated[float, Option("learning rate of AdamW", real, "X", above=0, at_most=1000)] = 4e-3
    samples: Annotated[
        int, Option("recordings to simulate for an epoch", whole, "N", at_least=1, at_most=100_000_000)
    ] = 8192
    sensors: Annotated[
        int, Option("of a uniform linear array, half a wavelength apart", whole, "M", at_least=2, at_most=256)
    ] = 8
    sources: Annotated[int, Option("at most, in a recording", whole, "K", at_least=1, at_most=6)] = 2
    snr: Annotated[float, Option("of a source at one sensor", real, "DB", at_least=-100, at_most=100)] = 10.0
    snr_spread: Annotated[
        float, Option("every source is within so many dB of --snr", real, "DB", at_least=0, at_most=100)
    ] = 0.0
    snapshots: Annotated[int, Option("that a recording has", whole, "N", at_least=1, at_most=1_000_000)] = 100
    separation: Annotated[
        float, Option("degrees between two sources, at least", real, "DEG", at_least=0, at_most=60)
    ] = 10.0
    correlation: Annotated[
        float, Option("between two sources; 1: coherent, as echoes are", real, "X", at_least=0, at_most=1)
    ] = 0.0
    weights: Annotated[
        str,
        Option("weights of components, such as angle=3,peak=0; 0 leaves one out, the others keep theirs", weights, "W"),
    ] = ""
    search_weights: Annotated[
        str, Option("factors on them that --search found, such as cov=0.5,angle=3", weights, "W")
    ] = ""
    ramp: Annotated[
        int,
        Option(
            "steps over which all weights but that of cov grow to their full size; 1: at once", whole, "N", at_least=1
        ),
    ] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amp != "off":
            raise UsageError("--amp must be off here: covariances are complex, and no complex number is bfloat16")


# --- model ------------------------------------------------------------------------------------------------------------


class DirectionNet(nn.Module):
    """A perceptron from measured covariances [B, M, M] to an :class:`~fastmine.losses.ArrayPrediction`.

    It sees the covariance at unit power and the logarithms of its eigenvalues. It says factors and the noise, of which
    its covariance F F^H + noise I is made, and mixes that with the measured one by a learned share.
    """

    def __init__(self, sensors: int, sources: int) -> None:
        super().__init__()
        width, self.shape = 256, (sensors, sources)
        self.body = nn.Sequential(
            nn.Linear(sensors * sensors + sensors, width), nn.SiLU(), nn.LayerNorm(width),
            nn.Linear(width, width), nn.SiLU(), nn.LayerNorm(width),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, sum(sizes(sensors, sources))),
        )  # fmt: skip
        self.blend = nn.Parameter(torch.zeros(()))

    def forward(self, measured: Tensor) -> ArrayPrediction:
        """Covariances, factors, azimuths, and logits of the number of sources."""
        power = torch.diagonal(measured, dim1=-2, dim2=-1).real.mean(dim=-1)[:, None, None]
        seen = measured / power
        found = assembled(self.body(features(seen)), *self.shape)
        share = self.blend.sigmoid()
        return found._replace(covariance=share * torch.view_as_real(seen) + (1 - share) * found.covariance)


def sizes(sensors: int, sources: int) -> tuple[int, int, int, int]:
    """How many numbers are for the factors, the noise, the azimuths, and the logits of the count."""
    return 2 * sensors * sources, 1, sources, sources + 1


def assembled(numbers: Tensor, sensors: int, sources: int) -> ArrayPrediction:
    """A prediction, nothing blended, from as many numbers [B, ...] as :func:`sizes` says."""
    factors, noise, azimuth, count = torch.split(numbers, list(sizes(sensors, sources)), dim=-1)
    raw = factors.reshape(-1, sensors, sources, 2)
    covariance = torch.view_as_real(array.low_rank(raw, F.softplus(noise.squeeze(-1))))
    directions = 2 * (azimuth / 2).tanh().atan()  # whose sine, that phases are linear in, is tanh
    return ArrayPrediction(covariance, covariance, raw, directions, count_logits=count)


def disassembled(truth: Recording) -> Tensor:
    """The numbers of which :func:`assembled` makes the truth, for noise of power 1."""
    M, K = truth.covariance.shape[-1], truth.azimuth.shape[-1]
    values, vectors = torch.linalg.eigh(truth.covariance - torch.eye(M))
    factors = vectors[..., -K:] * values[:, None, -K:].clamp(min=0).sqrt()
    noise = torch.full((len(values), 1), math.log(math.e - 1))
    count = F.one_hot(truth.present.sum(dim=-1), K + 1)
    return torch.cat([torch.view_as_real(factors).flatten(1), noise, truth.azimuth.sin().atanh(), 30.0 * count], dim=-1)


def features(covariance: Tensor) -> Tensor:
    """The M^2 different numbers of a Hermitian matrix and the logarithms of its M eigenvalues."""
    M = covariance.shape[-1]
    rows, columns = torch.triu_indices(M, M, device=covariance.device)
    above = rows != columns
    upper = covariance[:, rows, columns]
    return torch.cat([upper.real, upper.imag[:, above], torch.linalg.eigvalsh(covariance).log()], dim=-1)


class OfNumbers(nn.Module):
    """A loss of what the network says last, before a prediction is made of it, and of the parts of the truth."""

    def __init__(self, loss: nn.Module, sensors: int, sources: int) -> None:
        super().__init__()
        self.loss, self.shape = loss, (sensors, sources)

    def forward(self, numbers: Tensor, *truth: Tensor) -> Tensor:
        """The loss."""
        value: Tensor = self.loss(assembled(numbers, *self.shape), ArrayTarget(*truth))
        return value


# --- system -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ramp:
    """A schedule from nearly 0 to 1."""

    steps: int

    def __call__(self, step: int) -> float:
        """The factor of a weight at a step."""
        return min(1.0, (step + 1) / self.steps)


class Batch(NamedTuple):
    """This process's measured covariances, and the truth of the whole batch."""

    measured: Tensor
    target: ArrayTarget
    teaches: bool = True


class Doa(System[Batch, Evidence]):
    """A perceptron that learns from simulated recordings, judged by its angles on others."""

    name: ClassVar[str] = "doa"
    shown: ClassVar[str] = "spectra"
    metric: ClassVar[Column] = Column("near", f"within {NEAR:g}°", ".1%")
    fit: ClassVar[tuple[Goal, ...]] = (
        Goal("loss", "loss", ready=0.5, marginal=1.0),
        Goal("cov", "NMSE of the covariance", ready=0.05, marginal=0.2),
        Goal("error_median", "median error of an angle, degrees", ready=1.0, marginal=3.0),
        Goal("error_mean", "mean error of an angle, degrees", ready=1.0, marginal=3.0),
    )
    ops: ClassVar[tuple[str, ...]] = ()

    settings: DoaSettings
    loss: HybridCovarianceLoss

    def __init__(self, settings: DoaSettings, screen: Screen) -> None:  # noqa: ARG002
        self.settings = settings
        self.device = torch.device(settings.device)
        self.scene = scene(settings)
        self.held_out = record(self.scene, HELD_OUT, random_for(settings.seed))
        self.fingerprint = fingerprint(self.held_out.azimuth, torch.view_as_real(self.held_out.measured))
        self.data_summary = _describe(self.scene, settings)
        self.model_options = {"sensors": settings.sensors, "sources": settings.sources}
        self.model = DirectionNet(**self.model_options).to(self.device)
        self.loss = self.criterion().to(self.device)
        self.components = list(self.loss.components)
        self.grid = torch.linspace(-math.pi / 2, math.pi / 2, 361)
        music = classic(self.held_out, self.scene, self.grid)
        errors = torch.rad2deg(source_errors(music, self.held_out))
        bound = torch.rad2deg(bounds(self.held_out, self.scene).square().mean().sqrt())
        self.baselines = {
            "within 1° by MUSIC, told the number": _share_near(errors),
            "median error of MUSIC": float(errors.median()),
            "root mean square error, Cramér-Rao bound": float(bound),
        }
        self.judged = (
            self.metric,
            Column("median", "median error, degrees", ".3f"),
            Column("mean", "mean error, degrees", ".3f"),
            Column("count_right", "number of sources right", ".1%"),
            Column("nmse", "NMSE of the covariance", ".4f"),
            Column("nmse_unblended", "NMSE before blending", ".4f"),
            Column("nmse_measured", "NMSE of the measured covariance", ".4f"),
        )
        self.columns = (
            Column("loss", "loss", ".3f"),
            *(Column(name, name[:8], ".3f") for name in self.components),
            Column("median", "median°", ".2f"),
            Column("mean", "mean°", ".2f"),
            Column("count_right", "count", ".1%"),
            self.metric,
        )
        self.glance = self.columns[:2]

    def criterion(self) -> HybridCovarianceLoss:
        """The hybrid loss with the weights of the settings; one of 0 leaves its component out, but for that of cov."""
        try:
            given = {**HYBRID_WEIGHTS, **parsed(self.settings.weights)}
            chosen = {name: weight for name, weight in given.items() if weight != 0 or name == "cov"}
            ramp = Ramp(self.settings.ramp)
            return HybridCovarianceLoss(
                self.scene.positions,
                chosen,
                schedule={name: ramp for name in chosen if name != "cov"},
                search=parsed(self.settings.search_weights),
            )
        except ValueError as error:
            raise UsageError(f"--weights or --search-weights: {error}") from error

    def steps(self) -> int:
        """As many as make the recordings of an epoch."""
        return math.ceil(self.settings.samples / self.settings.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """New recordings: a function of seed, epoch and batch."""
        size = self.settings.batch_size
        for number in range(self.steps()):
            count = min(size, self.settings.samples - number * size)
            heard = record(self.scene, count, random_for(self.settings.seed, epoch, number)).to(self.device)
            truth = ArrayTarget(heard.covariance, heard.azimuth, heard.present)
            yield Batch(heard.measured[processes.own(count)], truth)

    def learn(self, batch: Batch) -> Step[Evidence]:
        """Predict, compare, and let the schedules of the weights advance."""
        count = len(batch.target.present)
        mine: ArrayPrediction = self.model(batch.measured)
        parts = {name: x for name, x in mine._asdict().items() if x is not None}
        found = mine._replace(**{name: processes.together(x, count) for name, x in parts.items()})
        loss = self.loss(found, batch.target)
        self.loss.step()
        return Step(loss, self._evidence())

    def _evidence(self) -> Evidence:
        """Weight and value of every component, and the errors of the angles if they are learned from."""
        parts = [self.loss.evidence]
        if "angle" in self.loss.parts:
            parts.append(cast("EvidentLoss[Evidence]", self.loss.components["angle"]).evidence)
        return Evidence(torch.cat([part.tensor for part in parts]), [f for part in parts for f in part.fields])

    def record(self, evidence: Evidence) -> Numbers:
        """The value of every component, NaN if its weight is 0, and angles in degrees."""
        read = evidence.as_dict()
        values = {name: read.get(f"{name}_value", math.nan) for name in self.components}
        errors = {key: math.degrees(read.get(key, math.nan)) for key in ("error_median", "error_mean")}
        return {**values, **errors, "nonfinite": read.get("nonfinite", 0.0)}

    def summarise(self, records: Sequence[Numbers]) -> Numbers:
        """Means over the batches."""
        return {key: mean(one[key] for one in records) for key in (*self.components, "error_median", "error_mean")}

    def remarks(self, records: Sequence[Numbers]) -> list[str]:
        """Components that are switched off."""
        off = [name for name in self.components if all(math.isnan(one[name]) for one in records)]
        return [f"{', '.join(off)}: the weight is 0, so nothing was learned from it"] if off else []

    def fitted(self, evidence: Evidence) -> Numbers:
        """The covariance and the angles."""
        return self.record(evidence)

    def examine(self) -> LossReport:
        """The loss at random numbers of the network, and at those that make the truth."""
        heard = record(self.scene, BATCH, random_for(self.settings.seed, 0))
        perfect = disassembled(heard)
        examined = copy.deepcopy(self.loss)
        for name, component in self.loss.components.items():
            examined.components[name] = OfNumbers(component, self.settings.sensors, self.settings.sources)
        target = (heard.covariance, heard.azimuth, heard.present)
        return check_loss(examined.cpu(), lambda: torch.randn_like(perfect), target, oracle=perfect)

    @torch.inference_mode()
    def judge(self, model: nn.Module) -> Numbers:
        """Angles, their number and the covariance on held-out recordings."""
        truth = self.held_out
        found = self._predict(model, truth)
        errors = torch.rad2deg(source_errors(found["azimuth"], truth))
        right = found["count_logits"].argmax(dim=-1) == truth.present.sum(dim=-1)
        sides = {"nmse": found["covariance"], "nmse_unblended": found["unblended"], "nmse_measured": truth.measured}
        return {
            "near": _share_near(errors),
            "median": float(errors.median()),
            "mean": float(errors.mean()),
            "count_right": float(right.double().mean()),
            **{key: float(array.covariance_nmse(R, truth.covariance).mean()) for key, R in sides.items()},
        }

    def _predict(self, model: nn.Module, recordings: Recording) -> dict[str, Tensor]:
        """What the network says, by name, on the host."""
        found: ArrayPrediction = model(recordings.measured.to(self.device))
        return {name: x.cpu() for name, x in found._asdict().items() if x is not None}

    @torch.inference_mode()
    def pictures(self, model: nn.Module, history: Sequence[Numbers], best: int, folder: Path) -> list[Path]:
        """Curves, errors against the signal-to-noise ratio, and spectra of held-out recordings."""
        with from_extra("plot", "matplotlib"):
            from . import pictures
        curves, errors, spectra = (folder / f"{name}.png" for name in ("curves", "errors", self.shown))
        others = [name for name in self.components if name not in {"cov", "peak"}]  # no peak reaches 0
        panels = [
            pictures.Panel("training loss", {"loss": "loss", "cov": "cov"}),
            pictures.Panel("other components, unweighted", {name: name for name in others}),
            pictures.Panel("error of an angle, held out, degrees", {"median": "median", "mean": "mean"}),
            pictures.Panel(
                "held out: sources found",
                {f"within {NEAR:g}°": "near", "number right": "count_right"},
                percent=True,
                reference=("MUSIC, told the number", self.baselines["within 1° by MUSIC, told the number"]),
            ),
        ]
        pictures.draw_curves(curves, f"Directions of arrival, {len(history)} epochs", panels, history, best)
        pictures.draw_errors(errors, "Error of an angle, and the least possible", LEVELS, self._errors_by_level(model))
        self.show(model, len(history), spectra)
        return [curves, errors, spectra]

    @torch.inference_mode()
    def show(self, model: nn.Module, epochs: int, path: Path) -> None:
        """Spectra of held-out recordings, with the true directions and those of the network."""
        with from_extra("plot", "matplotlib"):
            from . import pictures
        pictures.draw_spectra(path, f"Held-out recordings after epoch {epochs}", *self._examples(model))

    def _errors_by_level(self, model: nn.Module) -> dict[str, list[float]]:
        """Root mean square errors in degrees at every level of :data:`LEVELS`, in scenes like that of the run."""
        found: dict[str, list[float]] = {"network": [], "MUSIC, told the number": [], "Cramér-Rao bound": []}
        for level in LEVELS:
            there = scene(self.settings, snr=float(level), snr_spread=0.0)
            heard = record(there, HELD_OUT // 4, random_for(self.settings.seed, 0, 1000 + level))
            rows = (
                source_errors(self._predict(model, heard)["azimuth"], heard),
                source_errors(classic(heard, there, self.grid), heard),
                bounds(heard, there),
            )
            for line, row in zip(found.values(), rows, strict=True):
                line.append(float(torch.rad2deg(row.square().mean().sqrt())))
        return found

    def _examples(self, model: nn.Module) -> tuple[Tensor, list[Directions]]:
        """The grid, and the spectra of four recordings with all sources, at equal steps of rank by their error."""
        from .pictures import Directions

        full = self.held_out.present.all(dim=-1).nonzero()[:, 0]
        some = Recording(*(x[full] for x in self.held_out))
        azimuth = self._predict(model, some)["azimuth"]
        errors = torch.rad2deg(matched(azimuth, some).amax(dim=-1))
        chosen = errors.argsort()[torch.linspace(0, len(full) - 1, 4).round().long()]
        steering = array.steering(self.scene.positions, self.grid)
        loaded = some.measured + 1e-3 * torch.eye(some.measured.shape[-1])  # else singular with few snapshots
        examples = []
        for row in chosen.tolist():
            spectra = {
                "Bartlett": array.bartlett(some.measured[row], steering),
                "MVDR": array.mvdr(loaded[row], steering),
                "MUSIC": array.music(some.measured[row], steering, some.present[row].sum()),
            }
            decibels = {name: 10 * (power / power.max()).log10() for name, power in spectra.items()}
            true, mine = (torch.rad2deg(side[row]) for side in (some.azimuth, azimuth))
            examples.append(Directions(decibels, true, mine, f"largest error {float(errors[row]):.2f}°"))
        return torch.rad2deg(self.grid), examples


SYSTEM = Doa


def scene(settings: DoaSettings, **changes: float) -> Scene:
    """What the settings describe, with some of it changed."""
    described: dict[str, Any] = {
        "positions": array.uniform_linear(settings.sensors),
        "sources": settings.sources,
        "snr": settings.snr,
        "snr_spread": settings.snr_spread,
        "snapshots": settings.snapshots,
        "separation": math.radians(settings.separation),
        "correlation": settings.correlation,
    }
    found = Scene(**{**described, **changes})
    if (found.sources - 1) * found.separation > 2 * found.sector:
        raise UsageError(
            f"--sources {settings.sources} with --separation {settings.separation:g} do not fit into "
            f"{math.degrees(2 * found.sector):g} degrees; take fewer, or closer ones"
        )
    return found


def matched(azimuth: Tensor, truth: Recording) -> Tensor:
    """Errors of the angles [B, K] under the best assignment, radians; 0 where there is no source."""
    return array.matched_error(azimuth.unsqueeze(-1), truth.azimuth.unsqueeze(-1), truth.present)


def source_errors(azimuth: Tensor, truth: Recording) -> Tensor:
    """The same of all sources that are present, in one row."""
    return matched(azimuth, truth)[truth.present]


def classic(heard: Recording, where: Scene, grid: Tensor) -> Tensor:
    """The azimuths [B, K] of the highest peaks of MUSIC, told the number of sources; 0 where it lacks one."""
    spectrum = array.music(heard.measured, array.steering(where.positions, grid), heard.present.sum(dim=-1))
    return array.peaks(spectrum, grid, heard.present.shape[-1])[0]


def bounds(heard: Recording, where: Scene) -> Tensor:
    """The Cramér-Rao bound of the standard deviation of every source, in one row, radians."""
    found = torch.zeros(heard.azimuth.shape, dtype=torch.float64)
    for n in range(1, where.sources + 1):
        rows = heard.present.sum(dim=-1) == n
        S = heard.sources[rows][:, :n, :n]
        found[rows, :n] = array.cramer_rao(where.positions, heard.azimuth[rows, :n], S, 1.0, where.snapshots).sqrt()
    return found[heard.present]


def _share_near(degrees: Tensor) -> float:
    return float((degrees < NEAR).double().mean())


def _describe(what: Scene, settings: DoaSettings) -> list[str]:
    spread = f" ± {settings.snr_spread:g}" if settings.snr_spread else ""
    coherent = f", correlation {settings.correlation:g}" if settings.correlation else ""
    held_out = f"{HELD_OUT} others are held out"
    apart = f"at least {settings.separation:g} degrees apart, within ±{math.degrees(what.sector):g}"
    return [
        f"data: {settings.samples} simulated recordings an epoch, {settings.snapshots} snapshots each; {held_out}",
        f"array: {settings.sensors} sensors in a line, half a wavelength apart",
        f"sources: 1 to {what.sources} at {settings.snr:g}{spread} dB{coherent}, {apart}",
    ]


def train(
    *,
    out: Path | None = None,
    resume: Path | bool | None = None,
    search: int | None = None,
    dry_run: bool = False,
    **options: Any,
) -> Mapping[str, Any]:
    """``fastmine train doa``; the options are those of :class:`DoaSettings`.

    With ``search``, so many runs with other weights instead, see :mod:`~fastmine.recipes.searching`.
    """
    if search is not None:
        return searching.search(Doa, DoaSettings, options, search, out=out, resume=resume, dry_run=dry_run)
    return training.train(Doa, DoaSettings, options, out=out, resume=resume, dry_run=dry_run)


def load(path: Path | str) -> nn.Module:
    """The model that a run kept: ``load("runs/doa-1/best.pt")``."""
    return training.load_average(Path(path), Doa.name, DirectionNet)
