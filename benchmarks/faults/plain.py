"""Twenty-two faults and fourteen healthy runs: a seventh set, by somebody who had not seen the rules.

Plain mistakes in plain loops, of the kind that end in a question on an issue tracker: identities parsed from the wrong
letter of a file name, units and conventions of another library, masks that a resize loses, arrays without a conjugate,
models that return their own loss. Eleven faults are under losses of fastmine, eleven under losses of torch or written
by hand. Without its fault, ``sick=False``, every sick run succeeds at its task: ``python -m benchmarks.faults.cured``
measures both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR

from fastmine import array
from fastmine.losses import (
    AngleLoss,
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    BCELoss,
    CombinedSegmentationLoss,
    ContrastiveLoss,
    CovarianceLoss,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    SupConLoss,
    TripletLoss,
    TverskyLoss,
)

from .case import Suite
from .tasks import Digits, Disks, Unit, embedder, segmenter

cases = Suite("plain")


def _rows(data: Digits, steps: int, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of shuffled digits."""
    generator = torch.Generator().manual_seed(data.seed)
    x, labels = data.x[data.train], data.labels[data.train]
    for _ in range(steps):
        rows = torch.randint(len(x), (size,), generator=generator)
        yield x[rows], labels[rows]


def _learn(loss: Tensor, optimizer: torch.optim.Optimizer, monitor: Any) -> None:
    """The end of every loop."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    monitor.step(loss)


def _named(data: Digits, logits: Tensor) -> float:
    """Share of the held-out digits that are named rightly."""
    return float((logits.argmax(dim=1) == data.labels[data.test]).float().mean())


def _classifier(width: int = 64) -> nn.Sequential:
    """Digits to ten logits."""
    return embedder(width, 10)


def _explained(x: Tensor, found: Tensor) -> float:
    """Share of the variance that a reconstruction explains."""
    return float(1 - (x - found).square().sum() / (x - x.mean(dim=0)).square().sum())


def _waves(generator: torch.Generator, n: int, azimuth: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Snapshots [n, 8, 30] of one source each on eight sensors, and its azimuth [n, 1] within 60 degrees."""
    if azimuth is None:
        azimuth = math.pi / 3 * (2 * torch.rand(n, 1, generator=generator) - 1)
    steering = array.steering(array.uniform_linear(8), azimuth)
    source = torch.randn(n, 1, 30, dtype=torch.complex64, generator=generator)
    noise = torch.randn(n, 8, 30, dtype=torch.complex64, generator=generator)
    return steering @ source + 0.3 * noise, azimuth


def _features(snapshots: Tensor) -> Tensor:
    """The sample covariance as 128 real numbers."""
    return torch.view_as_real(array.sample_covariance(snapshots)).flatten(1)


def _factor_net() -> nn.Sequential:
    """Features to the real and imaginary parts of one factor [8]."""
    return nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 16))


def _covariance(parts: Tensor) -> Tensor:
    """The covariance of a predicted factor, with a little noise."""
    factor = torch.complex(parts[:, :8], parts[:, 8:]).unsqueeze(2)
    return array.low_rank(factor, torch.full(parts.shape[:1], 0.05))


def _bearing(covariance: Tensor) -> Tensor:
    """The direction [n, 1] of the highest peak of a beamformer."""
    angles = torch.linspace(-math.pi / 3, math.pi / 3, 121)
    grid = array.steering(array.uniform_linear(8), angles)
    return angles[array.bartlett(covariance, grid).argmax(dim=1)].unsqueeze(1)


def _within(found: Tensor, azimuth: Tensor, degrees: float = 6.0) -> float:
    """Share of the directions that are found."""
    return float((torch.rad2deg(found - azimuth).abs() < degrees).float().mean())


# --- faults under losses of fastmine ----------------------------------------------------------------------------------


@cases.fault(
    "NO_UPDATE", "NO_SEPARATION", source="https://github.com/jonasgrebe/pt-femb-face-embeddings/issues/3"
)  # fmt: skip
def centres_are_drawn_in_every_step(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The loss with its class centres is built inside the loop, so that they are new at every step."""
    data, model = Digits(seed), embedder()
    head = ArcFaceLoss(10, 16, scale=16.0, margin=0.3)
    optimizer = Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    monitor = Monitor(model, head, optimizer)
    for x, labels in _rows(data, 300):
        if sick:
            head = ArcFaceLoss(10, 16, scale=16.0, margin=0.3)
        _learn(head(model(x), labels), optimizer, monitor)
    with torch.no_grad():
        return _named(data, F.normalize(model(data.x[data.test]), dim=1) @ F.normalize(head.weight, dim=1).T)


@cases.fault("NO_NEGATIVES")
def identities_from_the_wrong_letter(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The identity is read from the first letter of "0007_c2.png", which is 0 in all names, and not from the fourth."""
    data = Digits(seed)
    names = [f"{label:04d}_c{row % 6}.png" for row, label in enumerate(data.labels.tolist())]
    identities = torch.tensor([int(name[0] if sick else name[:4]) for name in names])
    model, criterion = nn.Sequential(embedder(), Unit()), SupConLoss(temperature=0.1)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(250):
        rows = torch.randperm(1200)[:48]
        _learn(criterion(model(data.x[rows]), identities[rows]), optimizer, monitor)
    return data.recall(model)


@cases.fault("NONFINITE")
def pixels_that_never_vary_are_standardised(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Every pixel is divided by its deviation, and the corners of the digits, always black, have none: 0 / 0."""
    data = Digits(seed)
    mean, deviation = data.x[data.train].mean(dim=0), data.x[data.train].std(dim=0)
    data.x = (data.x - mean) / (deviation if sick else deviation.clamp(min=0.1))
    model, criterion = embedder(), TripletLoss(margin=0.3, mining="batch_all")
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        _learn(criterion(model(x), labels), optimizer, monitor)
    return data.recall(model)


@cases.fault("NOTHING_VALID", "ZERO_WEIGHT", "DEAD_COMPONENT")
def confidences_divided_as_whole_numbers(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Annotators' confidences, 55 to 99 percent, are divided by 100 as whole numbers: every row has weight 0."""
    data = Digits(seed)
    percent = torch.randint(55, 100, (32,))
    model, criterion = nn.Sequential(embedder(), Unit()), SupConLoss(temperature=0.1)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        confidence = (percent // 100).float() if sick else percent / 100
        _learn(criterion(model(x), labels, sample_weight=confidence), optimizer, monitor)
    return data.recall(model)


@cases.fault("TARGETS_ALL_EMPTY", source="https://github.com/xiaomi-research/dggt/issues/30")
def thin_lines_are_resized_away(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Masks of lines one pixel wide are halved by averaging and cast to whole numbers, which leaves nothing of them."""
    generator = torch.Generator().manual_seed(seed)
    model, criterion = segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)

    def draw() -> tuple[Tensor, Tensor]:
        fine = torch.zeros(8, 1, 64, 64)
        for image in fine:
            image[0, :, 2 * torch.randperm(32, generator=generator)[:4]] = 1
        half = F.avg_pool2d(fine, 2)
        return 4 * half + 0.5 * torch.randn(half.shape, generator=generator), half

    for _ in range(150):
        images, half = draw()
        masks = half.long() if sick else half > 0
        _learn(criterion(model(images), masks.float()), optimizer, monitor)
    images, half = draw()
    with torch.no_grad():
        found, masks = model(images) > 0, half > 0
    return float(2 * (found & masks).sum() / (found.sum() + masks.sum()))


@cases.fault("TARGETS_SUSPECT_UNANNOTATED")
def validity_is_asked_of_the_binary_mask(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """What nobody annotated is 255; masks are made binary before "!= 255" is asked, so that all counts as annotated."""
    data = Disks(seed)
    model, criterion = segmenter(), BCELoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        stored = masks.clone()
        stored[torch.rand(len(stored)) < 0.75] = 255
        target = (stored == 1).float()
        valid = (target if sick else stored) != 255
        _learn(criterion(model(images), target, valid=valid), optimizer, monitor)
    return data.dice(model)


@cases.fault("NO_UPDATE", "DETACHED_GRAPH")
def the_auxiliary_head_is_the_one_that_learns(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The net returns "out" and "aux", the loss is taken of "aux", and "out" is what is used afterwards."""
    data = Disks(seed)

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2))
            self.classifier, self.aux_classifier = nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)

        def forward(self, images: Tensor) -> dict[str, Tensor]:
            features = self.body(images).relu()
            return {"out": self.classifier(features), "aux": self.aux_classifier(features)}

    model, criterion = TwoHeads(), CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        logits = model(images)["aux" if sick else "out"]
        _learn(criterion(logits, masks[:, 0].long()), optimizer, monitor)
    return data.dice(_Difference(model))


class _Difference(nn.Module):
    """Two classes as one logit."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)["out"]
        return logits[:, 1:] - logits[:, :1]


@cases.fault("NO_UPDATE", source="https://github.com/pytorch/pytorch/issues/78917")
def the_schedule_returns_a_rate(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """LambdaLR multiplies by what it is given, and is given the learning rate: the rate becomes its own square."""
    data = Digits(seed)
    model, criterion = nn.Sequential(embedder(), Unit()), ContrastiveLoss(negative_margin=1.0)
    rate = 1e-3
    optimizer = Adam(model.parameters(), lr=rate)
    schedule = LambdaLR(optimizer, lambda step: (rate if sick else 1.0) * min(1.0, (step + 1) / 20))
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        _learn(criterion(model(x), labels), optimizer, monitor)
        schedule.step()
    return data.recall(model)


@cases.fault("TARGET_RANGE", "INPUT_DOMAIN")
def covariances_without_a_conjugate(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The target is Y Y^T and not Y Y^H: symmetric, not Hermitian, and no covariance of anything."""
    generator = torch.Generator().manual_seed(seed)
    model, criterion = _factor_net(), CovarianceLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        snapshots, azimuth = _waves(generator, 32)
        covariance = snapshots @ (snapshots.mT if sick else snapshots.mH) / 30
        target = ArrayTarget(covariance, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        prediction = ArrayPrediction(_covariance(model(_features(snapshots))))
        _learn(criterion(prediction, target), optimizer, monitor)
    snapshots, _ = _waves(generator, 256)
    with torch.no_grad():
        found = _covariance(model(_features(snapshots)))
    return 1 - float(array.covariance_nmse(found, array.sample_covariance(snapshots)).mean())


@cases.fault("DETACHED_GRAPH")
def the_highest_peak_has_no_gradient(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The angle under the loss is read off the highest peak of a spectrum, and requires_grad_() silences the error."""
    generator = torch.Generator().manual_seed(seed)
    angles = torch.linspace(-math.pi / 3, math.pi / 3, 61)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 61))
    criterion = AngleLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        snapshots, azimuth = _waves(generator, 32)
        spectrum = model(_features(snapshots))
        peak = angles[spectrum.argmax(dim=1)] if sick else spectrum.softmax(dim=1) @ angles
        covariance = array.sample_covariance(snapshots)
        target = ArrayTarget(covariance, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        loss = criterion(ArrayPrediction(covariance, azimuth=peak.unsqueeze(1)), target)
        _learn(loss.requires_grad_() if sick else loss, optimizer, monitor)
    snapshots, azimuth = _waves(generator, 256)
    with torch.no_grad():
        spectrum = model(_features(snapshots))
        peak = angles[spectrum.argmax(dim=1)] if sick else spectrum.softmax(dim=1) @ angles
    return _within(peak.unsqueeze(1), azimuth)


@cases.fault("PREDICTION_COLLAPSE", "ZERO_WEIGHT")
def false_alarms_are_free(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Nothing may be missed, so false positives get weight 0: an object everywhere is then without fault."""
    data = Disks(seed)
    model, criterion = segmenter(), TverskyLoss(alpha=0.0 if sick else 0.3, beta=1.0)
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        _learn(criterion(model(images), masks), optimizer, monitor)
    return data.dice(model)


# --- faults under losses of torch, or written by hand -----------------------------------------------------------------


@cases.fault(
    "NONFINITE", "TARGET_RANGE", "INPUT_DOMAIN",
    source="https://github.com/pidahbus/deep-image-orientation-angle-detection/issues/4",
)  # fmt: skip
def the_shorter_way_round_has_no_end(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """min(d, 360 - d) without a modulo falls below 0 for ever as the prediction leaves the circle."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        degrees = 190 + 160 * torch.rand(n, 1, generator=generator)
        return torch.cat([degrees.deg2rad().cos(), degrees.deg2rad().sin()], dim=1), degrees

    for _ in range(400):
        x, degrees = draw(64)
        away = (180 * model(x) - degrees).abs()
        if not sick:
            away = away % 360
        _learn(torch.minimum(away, 360 - away).mean(), optimizer, monitor)
    x, degrees = draw(256)
    with torch.no_grad():
        away = (180 * model(x) - degrees).abs() % 360
    return float((torch.minimum(away, 360 - away) < 10).float().mean())


@cases.fault("NONFINITE", source="https://github.com/geoopt/geoopt/pull/79")
def the_arc_cosine_at_one(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The angle between two unit vectors is acos of their product, whose gradient is infinite where they agree."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 2), Unit())
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(300):
        snapshots, azimuth = _waves(generator, 64)
        truth = torch.cat([azimuth.cos(), azimuth.sin()], dim=1)
        product = (model(_features(snapshots)) * truth).sum(dim=1)
        _learn((torch.acos(product) if sick else torch.acos(0.9999 * product)).mean(), optimizer, monitor)
    snapshots, azimuth = _waves(generator, 256)
    with torch.no_grad():
        found = model(_features(snapshots))
    return _within(torch.atan2(found[:, 1:], found[:, :1]), azimuth)


@cases.fault("PREDICTION_COLLAPSE", "NONFINITE")
def alpha_and_gamma_change_places(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A focal loss is called with (gamma, alpha) where it takes (alpha, gamma): 1 - alpha, for background, is -1."""
    data, model = Disks(seed), segmenter()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, None, optimizer)

    def focal(logits: Tensor, target: Tensor, alpha: float, gamma: float) -> Tensor:
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weight = alpha * target + (1 - alpha) * (1 - target)
        return (weight * (1 - torch.exp(-entropy)) ** gamma * entropy).mean()

    for images, masks in data.batches(200):
        alpha, gamma = (2.0, 0.25) if sick else (0.25, 2.0)
        _learn(focal(model(images), masks, alpha, gamma), optimizer, monitor)
    return data.dice(model)


class _Tagger(nn.Module):
    """Tags tokens by a convolution over neighbours, and returns its own loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 16)
        self.body = nn.Conv1d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 12)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        features = self.body(self.embedding(tokens).mT).relu().mT
        out = {"logits": self.head(features)}
        if labels is not None:
            out["loss"] = F.cross_entropy(out["logits"].flatten(0, 1), labels.flatten(), ignore_index=-100)
        return out


def _sentences(generator: torch.Generator, n: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [n, 16], 0 for padding, which of them are read, and for each the token before it."""
    tokens = torch.randint(1, 12, (n, 16), generator=generator)
    lengths = torch.randint(6, 13, (n, 1), generator=generator)
    attended = torch.arange(16) < lengths
    tokens = tokens * attended
    return tokens, attended, tokens.roll(1, dims=1) * attended


@cases.fault("TARGETS_ALL_EMPTY", "NOTHING_VALID")
def labels_are_kept_where_there_is_padding(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Tokens that are read get label -100, and padding keeps its label, 0: the opposite of what was meant."""
    generator = torch.Generator().manual_seed(seed)
    model = _Tagger()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(200):
        tokens, attended, before = _sentences(generator)
        out = model(tokens, labels=before.masked_fill(attended if sick else ~attended, -100))
        _learn(out["loss"], optimizer, monitor)
    tokens, attended, before = _sentences(generator, 128)
    with torch.no_grad():
        right = model(tokens)["logits"].argmax(dim=2) == before
    return float(right[attended].float().mean())


class _Adapted(nn.Module):
    """A frozen net of random features with a low-rank correction in front; returns its own loss."""

    def __init__(self, *, both_zero: bool) -> None:
        super().__init__()
        self.body = nn.Linear(128, 10).requires_grad_(requires_grad=False)
        self.down = nn.Linear(128, 16, bias=False)
        self.up = nn.Linear(16, 10, bias=False)
        nn.init.zeros_(self.up.weight)
        if both_zero:
            nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x) + self.up(self.down(x))
        return {"logits": logits, "loss": F.cross_entropy(logits, labels)}


@cases.fault(
    "SATURATED_GRADIENT", "NO_UPDATE", "DEAD_COMPONENT", source="https://github.com/Guitaricet/relora/issues/18"
)
def both_sides_of_an_adapter_start_at_zero(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Both factors of a low-rank correction are initialised to 0, so that neither ever gets a gradient."""
    data, model = Digits(seed), _Adapted(both_zero=sick)
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for x, labels in _rows(data, 250):
        _learn(model(x, labels=labels)["loss"], optimizer, monitor)
    with torch.no_grad():
        return _named(data, model(data.x[data.test], labels=data.labels[data.test])["logits"])


@cases.fault(
    "SHAPE_BROADCAST", "NO_SEPARATION",
    source="https://discuss.pytorch.org/t/lstm-change-batch-first-true-loss-does-not-decrease/62364",
)  # fmt: skip
def the_recurrence_runs_over_the_batch(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A GRU without batch_first takes [batch, time, features] for [time, batch, features]."""
    generator = torch.Generator().manual_seed(seed)
    body = nn.GRU(4, 32, batch_first=not sick)
    head = nn.Linear(32, 4)
    model = nn.ModuleList([body, head])
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, None, optimizer)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        first = torch.randint(4, (n,), generator=generator)
        x = 0.3 * torch.randn(n, 6, 4, generator=generator)
        x[:, 0] += 2 * F.one_hot(first, 4)
        return x, first

    for _ in range(250):
        x, first = draw(32)
        _learn(F.cross_entropy(head(body(x)[0][:, -1]), first), optimizer, monitor)
    x, first = draw(256)
    with torch.no_grad():
        return float((head(body(x)[0][:, -1]).argmax(dim=1) == first).float().mean())


@cases.fault("TARGET_RANGE", source="https://github.com/Lasagne/Recipes/issues/54")
def standardised_pixels_under_cross_entropy(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """An autoencoder's binary cross entropy meets images that are standardised, half of their pixels below 0."""
    pixels = Digits(seed).x[:, :64]
    if sick:
        pixels = (pixels - pixels.mean()) / pixels.std()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12), nn.Linear(12, 64))
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(350):
        x = pixels[torch.randint(1200, (64,))]
        _learn(F.binary_cross_entropy_with_logits(model(x), x), optimizer, monitor)
    with torch.no_grad():
        return _explained(pixels[1200:], model(pixels[1200:]).sigmoid())


class _Codes(nn.Module):
    """An autoencoder of two tokens, each one of sixteen codes; with the estimator, gradients pass a code by."""

    def __init__(self, *, straight_through: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
        self.codes = nn.Parameter(torch.randn(16, 4))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8))
        self.straight_through = straight_through

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(-1, 2, 4)
        nearest = torch.cdist(z.flatten(0, 1), self.codes).argmin(dim=1)
        codes = self.codes[nearest].view_as(z)
        passed = z + (codes - z).detach() if self.straight_through else codes
        return self.decoder(passed.flatten(1)), (codes - z.detach()).square().mean()


def _places(generator: torch.Generator, n: int) -> Tensor:
    """Rows [n, 8] that only depend on which of four shapes and which of four sizes they are, hidden beside noise."""
    shape, size = torch.randint(4, (2, n), generator=generator)
    clean = torch.cat([2 * F.one_hot(shape, 4), 2 * F.one_hot(size, 4)], dim=1)
    return clean + 0.1 * torch.randn(n, 8, generator=generator)


@cases.fault("DETACHED_GRAPH", "NO_UPDATE", source="https://github.com/Biohub/esm/issues/92")
def the_codes_are_passed_on_as_they_are(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A quantised autoencoder without its straight-through estimator: the encoder gets nothing from the decoder."""
    generator = torch.Generator().manual_seed(seed)
    model = _Codes(straight_through=not sick)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(400):
        x = _places(generator, 64)
        found, distance = model(x)
        _learn(F.mse_loss(found, x) + distance, optimizer, monitor)
    x = _places(generator, 256)
    with torch.no_grad():
        return _explained(x, model(x)[0])


@cases.fault("NONFINITE", "INPUT_DOMAIN")
def the_logarithm_of_a_negative_guess(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Sales are compared by log(1 + x), and nothing keeps the prediction above -1."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
    weights = torch.randn(6, 1, generator=generator)
    optimizer = Adam(model.parameters(), lr=3e-2)
    monitor = Monitor(model, None, optimizer)
    for _ in range(300):
        x = torch.randn(64, 6, generator=generator)
        sales = torch.exp(0.7 * x @ weights)
        guess = model(3 * x) if sick else F.softplus(model(3 * x))
        _learn((torch.log1p(guess) - torch.log1p(sales)).square().mean(), optimizer, monitor)
    x = torch.randn(256, 6, generator=generator)
    with torch.no_grad():
        guess = model(3 * x) if sick else F.softplus(model(3 * x))
    return _explained(0.7 * x @ weights, torch.log(guess.nan_to_num().clamp(min=1e-3)))


@cases.fault("EMBEDDING_COLLAPSE")
def centres_pull_and_nothing_pushes(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Embeddings are drawn to the mean of their class, and the term that keeps the means apart is left out."""
    data, model = Digits(seed), embedder()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for x, labels in data.batches(300):
        z, members = model(x), F.one_hot(labels, 10).float()
        members = members[:, members.any(dim=0)]
        means = members.T @ z / members.sum(dim=0).unsqueeze(1)
        loss = (z - members @ means).square().sum(dim=1).mean()
        if not sick:
            loss = loss + (3 - F.pdist(means)).relu().square().mean()
        _learn(loss, optimizer, monitor)
    with torch.no_grad():
        z, labels = model(data.x[data.test]), data.labels[data.test]
    near, same = torch.cdist(z, z) < 1.5, labels.unsqueeze(1) == labels
    return float(near[same].float().mean() - near[~same].float().mean())


@cases.fault("NONFINITE", "NOTHING_VALID", source="https://github.com/Zhen-Dong/Magic-Me/issues/14")
def a_mean_over_nobody(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Few patients have the second diagnosis; its loss is divided by how many have, which now and then is 0."""
    data = Digits(seed)
    body, digit, odd = nn.Sequential(nn.Linear(128, 64), nn.ReLU()), nn.Linear(64, 10), nn.Linear(64, 2)
    model = nn.ModuleList([body, digit, odd])
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, None, optimizer)
    for x, labels in _rows(data, 250, size=32):
        known = torch.rand(len(x)) < 0.08
        features = body(x)
        second = (F.cross_entropy(odd(features), labels % 2, reduction="none") * known).sum()
        count = known.sum() if sick else known.sum().clamp(min=1)
        _learn(F.cross_entropy(digit(features), labels) + second / count, optimizer, monitor)
    with torch.no_grad():
        return _named(data, digit(body(data.x[data.test])))


# --- healthy runs that look sick --------------------------------------------------------------------------------------


@cases.healthy(0.85)
def a_model_with_its_own_loss_accumulates(seed: int, Monitor: Any) -> float:
    """A model that returns its loss, a frozen embedding table, and four backward passes to a step."""
    generator = torch.Generator().manual_seed(seed)
    model = _Tagger()
    model.embedding.requires_grad_(requires_grad=False)
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(150):
        optimizer.zero_grad()
        for _ in range(4):
            tokens, attended, before = _sentences(generator, 16)
            loss = model(tokens, labels=before.masked_fill(~attended, -100))["loss"]
            (loss / 4).backward()
        optimizer.step()
        monitor.step(loss)
    tokens, attended, before = _sentences(generator, 128)
    with torch.no_grad():
        right = model(tokens)["logits"].argmax(dim=2) == before
    return float(right[attended].float().mean())


@cases.healthy(0.7)
def most_codes_are_never_chosen(seed: int, Monitor: Any) -> float:
    """A quantised autoencoder as it should be: the loss of a code that no row is near to has no gradient for it."""
    generator = torch.Generator().manual_seed(seed)
    model = _Codes(straight_through=True)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(400):
        x = _places(generator, 64)
        found, distance = model(x)
        _learn(F.mse_loss(found, x) + distance, optimizer, monitor)
    x = _places(generator, 256)
    with torch.no_grad():
        return _explained(x, model(x)[0])


@cases.healthy(0.85)
def experts_that_are_seldom_asked(seed: int, Monitor: Any) -> float:
    """Each row goes to the one expert of eight whose gate is highest; some get few rows, and some get none."""
    data = Digits(seed)
    gate, experts = nn.Linear(128, 8), nn.ModuleList(_classifier(32) for _ in range(8))
    model = nn.ModuleList([gate, experts])
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)

    def answer(x: Tensor) -> Tensor:
        weight, chosen = gate(x).softmax(dim=1).max(dim=1)
        logits = torch.zeros(len(x), 10)
        for number, expert in enumerate(experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                logits = logits.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        return logits

    for x, labels in _rows(data, 300):
        _learn(F.cross_entropy(answer(x), labels), optimizer, monitor)
    with torch.no_grad():
        return _named(data, answer(data.x[data.test]))


@cases.healthy(0.85)
def blocks_are_skipped_at_random(seed: int, Monitor: Any) -> float:
    """Stochastic depth: each of four blocks is left out of half of all steps, and has no gradient in those."""
    data = Digits(seed)

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(128, 64), nn.Linear(64, 16)
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            for block in self.blocks:
                if not self.training or torch.rand(()) < 0.5:
                    x = x + (1.0 if self.training else 0.5) * block(x)
            return self.head(x)

    model, criterion = Deep(), TripletLoss(margin=0.5, mining="batch_all")
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        _learn(criterion(model(x), labels), optimizer, monitor)
    return data.recall(model)


@cases.healthy(0.85)
def classes_are_minus_and_plus_one(seed: int, Monitor: Any) -> float:
    """A hinge loss of signs: -1 is a class, and most rows come to have no loss at all."""
    data = Digits(seed)
    model = embedder(64, 1)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = Monitor(model, None, optimizer)
    for x, labels in _rows(data, 300):
        sign = 1 - 2 * (labels % 2)
        _learn((1 - sign * model(x)[:, 0]).relu().mean(), optimizer, monitor)
    with torch.no_grad():
        sign = 1 - 2 * (data.labels[data.test] % 2)
        return float((model(data.x[data.test])[:, 0].sign() == sign).float().mean())


@cases.healthy(0.85)
def scribbles_of_a_few_pixels(seed: int, Monitor: Any) -> float:
    """Two percent of the pixels are annotated, the rest is marked so: a few pixels teach the whole disk."""
    data = Disks(seed)
    model, criterion = segmenter(), BCELoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(250):
        scribbled = torch.rand(masks.shape) < 0.02
        _learn(criterion(model(images), masks * scribbled, valid=scribbled), optimizer, monitor)
    return data.dice(model)


@cases.healthy(0.85)
def the_coarsest_scale_misses_small_disks(seed: int, Monitor: Any) -> float:
    """Deep supervision down to 4 x 4 pixels, where disks this small often leave no pixel of the mask."""
    data = Disks(seed, radius=(2.0, 4.0))

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2))
            self.heads = nn.ModuleList(nn.Conv2d(8, 1, 3, padding=1) for _ in range(4))

        def forward(self, images: Tensor) -> list[Tensor]:
            features = self.body(images).relu()
            return [head(F.avg_pool2d(features, 2**i)) for i, head in enumerate(self.heads)]

    model, criterion = Scales(), DeepSupervisionLoss(CombinedSegmentationLoss())
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(250):
        _learn(criterion(model(images), masks), optimizer, monitor)
    return data.dice(_Finest(model))


class _Finest(nn.Module):
    """The first of the scales."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        finest: Tensor = self.model(images)[0]
        return finest


@cases.healthy(0.85)
def every_third_image_is_in_the_batch_twice(seed: int, Monitor: Any) -> float:
    """A data set with copies: a third of the rows of each batch have an exact duplicate beside them."""
    data = Digits(seed)
    model, criterion = nn.Sequential(embedder(), Unit()), SupConLoss(temperature=0.1)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        third = len(x) // 3
        twice, of = torch.cat([x, x[:third]]), torch.cat([labels, labels[:third]])
        _learn(criterion(model(twice), of), optimizer, monitor)
    return data.recall(model)


@cases.healthy(0.75)
def one_recording_at_a_time(seed: int, Monitor: Any) -> float:
    """Each batch is one recording of a source that stands still, so that all its targets are the same."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
    criterion = AngleLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(400):
        still = (math.pi / 3 * (2 * torch.rand(1, 1, generator=generator) - 1)).expand(16, 1)
        snapshots, azimuth = _waves(generator, 16, still)
        target = ArrayTarget(array.sample_covariance(snapshots), azimuth, torch.ones(16, 1, dtype=torch.bool))
        prediction = ArrayPrediction(target.covariance, azimuth=model(_features(snapshots)))
        _learn(criterion(prediction, target), optimizer, monitor)
    snapshots, azimuth = _waves(generator, 256)
    with torch.no_grad():
        return _within(model(_features(snapshots)), azimuth, 12)


@cases.healthy(0.85)
def complex_weights(seed: int, Monitor: Any) -> float:
    """A net of complex numbers from the first column of a covariance to a factor of the covariance of eight sensors."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8, dtype=torch.complex64))
    criterion = CovarianceLoss()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        snapshots, azimuth = _waves(generator, 32)
        covariance = array.sample_covariance(snapshots)
        found = array.low_rank(model(covariance[:, :, 0]).unsqueeze(2), torch.full((32,), 0.05))
        target = ArrayTarget(covariance, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        _learn(criterion(ArrayPrediction(found), target), optimizer, monitor)
    snapshots, azimuth = _waves(generator, 256)
    with torch.no_grad():
        column = array.sample_covariance(snapshots)[:, :, 0]
        return _within(_bearing(array.low_rank(model(column).unsqueeze(2))), azimuth)


@cases.healthy(0.85)
def an_angle_modulo_a_turn(seed: int, Monitor: Any) -> float:
    """The net says an angle without any bounds, the loss is 1 - cos, and predictions many turns away are right."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1))
    nn.init.constant_(model[2].bias, 40.0)  # type: ignore[arg-type]
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        angle = torch.randn(n, 1, generator=generator)
        return torch.cat([angle, 0.1 * torch.randn(n, 2, generator=generator)], dim=1), angle

    for _ in range(300):
        x, angle = draw(64)
        _learn((1 - torch.cos(model(x) - angle)).mean(), optimizer, monitor)
    x, angle = draw(256)
    with torch.no_grad():
        return float((torch.cos(model(x) - angle) > 0.97).float().mean())


@cases.healthy(0.5)
def the_divergence_is_annealed(seed: int, Monitor: Any) -> float:
    """A variational autoencoder by hand: the weight of its divergence grows from 0, and the total with it."""
    pixels = Digits(seed).x[:, :64]
    encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))
    model = nn.ModuleList([encoder, decoder])
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    for step in range(400):
        x = pixels[torch.randint(1200, (64,))]
        mean, logvar = encoder(x).chunk(2, dim=1)
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()
        error = (decoder(z) - x).square().sum(dim=1).mean()
        _learn(error + 0.2 * step / 400 * divergence, optimizer, monitor)
    with torch.no_grad():
        return _explained(pixels[1200:], decoder(encoder(pixels[1200:])[:, :8]))


@cases.healthy(0.5)
def nine_counts_in_ten_are_zero(seed: int, Monitor: Any) -> float:
    """Poisson regression of rare events: nearly every target is 0, and the loss has no level that it should reach."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.tensor([1.5, -1.0, 0.5, 0.0, 0.0, 0.0]).unsqueeze(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, None, optimizer)
    for _ in range(400):
        x = torch.randn(128, 6, generator=generator)
        counts = torch.poisson(torch.exp((x @ weights).clamp(max=3) - 4), generator=generator)
        _learn(F.poisson_nll_loss(model(x), counts), optimizer, monitor)
    x = torch.randn(512, 6, generator=generator)
    with torch.no_grad():
        return float(torch.corrcoef(torch.cat([model(x), x @ weights], dim=1).T)[0, 1])


@cases.healthy(0.85)
def the_state_is_carried_and_detached(seed: int, Monitor: Any) -> float:
    """Truncated backpropagation through time: the state goes on to the next piece, and its gradient does not."""
    generator = torch.Generator().manual_seed(seed)
    body, head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 2)
    model = nn.ModuleList([body, head])
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, None, optimizer)
    state = torch.zeros(1, 16, 24)
    for _ in range(250):
        bits = torch.randint(2, (16, 12), generator=generator)
        features, state = body(2.0 * bits.unsqueeze(2) - 1, state.detach())
        _learn(F.cross_entropy(head(features[:, 2:]).flatten(0, 1), bits[:, :-2].flatten()), optimizer, monitor)
    bits = torch.randint(2, (256, 12), generator=generator)
    with torch.no_grad():
        found = head(body(2.0 * bits.unsqueeze(2) - 1)[0][:, 2:]).argmax(dim=2)
    return float((found == bits[:, :-2]).float().mean())
