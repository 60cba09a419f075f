"""Twenty faults and fourteen healthy runs: a sixth set, by somebody who had not seen the rules.

Ordinary mistakes in ordinary loops, drawn from sixty that came to mind: labels and margins, units and ranges,
masks and channels, arrays, sums of losses, and what optimizers, schedules and scalers are told. Ten faults are under
losses of fastmine, ten under losses of torch or written by hand. Without its fault, ``sick=False``, every sick run
succeeds at its task: ``python -m benchmarks.faults.cured`` measures both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import LinearLR

from fastmine import array
from fastmine.losses import (
    AngleLoss,
    ArrayPrediction,
    ArrayTarget,
    BCELoss,
    CombinedSegmentationLoss,
    CompositeLoss,
    CosFaceLoss,
    CovarianceLoss,
    CrossEntropyLoss,
    HybridCovarianceLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
)

from .case import Suite
from .tasks import Digits, Disks, Unit, embedder, segmenter

cases = Suite("everyday")


def _fit(
    model: nn.Module, criterion: Any, optimizer: torch.optim.Optimizer, batches: Iterable[tuple[Tensor, Tensor]],
    monitor: Any,
) -> None:  # fmt: skip
    """The loop that everybody writes."""
    for x, target in batches:
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)


def _accuracy(data: Digits, model: nn.Module) -> float:
    """Share of the held-out digits that are named rightly."""
    with torch.no_grad():
        return float((model(data.x[data.test]).argmax(dim=1) == data.labels[data.test]).float().mean())


def _triplets(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors, positives and negatives of eight embeddings of each of ten digits, one digit after the other."""
    anchors, positives = z.view(10, 8, -1).chunk(2, dim=1)
    return anchors.flatten(0, 1), positives.flatten(0, 1), positives.roll(1, dims=0).flatten(0, 1)


def _recordings(generator: torch.Generator, n: int, volts: float = 1.0) -> tuple[Tensor, Tensor]:
    """Covariances [n, 8, 8] of 50 snapshots of one source each, and its azimuth [n, 1] within 60 degrees."""
    azimuth = math.pi / 3 * (2 * torch.rand(n, 1, generator=generator) - 1)
    waves = array.steering(array.uniform_linear(8), azimuth)
    source = torch.randn(n, 1, 50, dtype=torch.complex64, generator=generator)
    noise = torch.randn(n, 8, 50, dtype=torch.complex64, generator=generator)
    return array.sample_covariance(volts * (waves @ source + 0.3 * noise)), azimuth


def _features(covariance: Tensor) -> Tensor:
    """A covariance as 128 real numbers, whatever its power."""
    scaled = covariance / covariance.abs().mean(dim=(1, 2), keepdim=True)
    return torch.view_as_real(scaled).flatten(1)


def _listener(outputs: int) -> nn.Sequential:
    """From the features of a covariance."""
    return nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, outputs))


def _found(error: Tensor, degrees: float = 6.0) -> float:
    """Share of the bearings within some degrees."""
    return float((error.abs() < math.radians(degrees)).float().mean())


# --- embeddings ---------------------------------------------------------------------------------------------------


@cases.fault("NO_SEPARATION", "UNEXPLAINED_STALL")
def views_stacked_labels_interleaved(seed: int, Monitor: Any, sick: bool = True) -> float:
    """Pictures and captions are stacked, and numbered as if they alternated: pairs are of strangers."""
    generator = torch.Generator().manual_seed(seed)
    as_picture, as_caption = torch.randn(6, 40, generator=generator), torch.randn(6, 30, generator=generator)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        meaning = torch.randn(n, 6, generator=generator)
        noise = torch.randn(n, 70, generator=generator)
        return meaning @ as_picture + noise[:, :40], meaning @ as_caption + noise[:, 40:]

    pictures, captions = embedder(inputs=40), embedder(inputs=30)
    criterion = NTXentLoss(temperature=0.1)
    optimizer = Adam([*pictures.parameters(), *captions.parameters()], lr=3e-3)
    pair = torch.arange(32)
    labels = pair.repeat_interleave(2) if sick else pair.repeat(2)
    monitor = Monitor([pictures, captions], criterion, optimizer)
    for _ in range(300):
        picture, caption = draw(32)
        loss = criterion(torch.cat([pictures(picture), captions(caption)]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    with torch.no_grad():
        picture, caption = draw(64)
        likeness = F.normalize(pictures(picture)) @ F.normalize(captions(caption)).T
    return float((likeness.argmax(dim=1) == torch.arange(64)).float().mean())


@cases.fault("NO_SEPARATION", "CONFLICTING_COMPONENTS")
def cosine_similarity_for_a_distance(seed: int, Monitor: Any, sick: bool = True) -> float:
    """torch's triplet loss is given a similarity where it asks for a distance, and drives like from like."""
    data, model = Digits(seed), embedder()
    similarity = nn.CosineSimilarity()
    criterion = nn.TripletMarginWithDistanceLoss(
        distance_function=similarity if sick else lambda a, b: 1 - similarity(a, b), margin=0.3
    )
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(300, P=10, K=8):
        loss = criterion(*_triplets(model(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "UNEXPLAINED_STALL")
def classes_numbered_by_appearance(seed: int, Monitor: Any, sick: bool = True) -> float:
    """A collate function numbers the classes of each batch as it meets them: class vectors change their meaning."""
    data, model = Digits(seed), embedder()
    criterion = CosFaceLoss(10, 16)
    optimizer = Adam([*model.parameters(), *criterion.parameters()], lr=3e-3)
    numbers = torch.arange(5).repeat_interleave(6)
    batches = ((x, numbers if sick else labels) for x, labels in data.batches(300, P=5, K=6))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    return data.recall(model)


@cases.fault("LABEL_SENTINEL")
def unknown_identities_are_minus_one(seed: int, Monitor: Any, sick: bool = True) -> float:
    """Most crops carry -1, nobody knows who, and all of them pass for one person."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    criterion = TripletLoss(margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, digits in data.batches(300, P=10, K=10):
        labels = digits.where(torch.rand(len(x)) < 0.3, -1)
        loss = criterion(model(x), labels) if sick else criterion(model(x), labels, labels >= 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("ALL_EASY_FROM_START")
def margin_subtracted(seed: int, Monitor: Any, sick: bool = True) -> float:
    """The margin has the wrong sign: whoever is not worse by 0.3 is good enough, and nobody is that bad."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)
    margin = -0.3 if sick else 0.3

    def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        near, far = (anchor - positive).norm(dim=-1), (anchor - negative).norm(dim=-1)
        return F.relu(near - far + margin).mean()

    criterion = monitor.watch(triplet_loss)
    for x, _ in data.batches(300, P=10, K=8):
        loss = criterion(*_triplets(model(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- masks --------------------------------------------------------------------------------------------------------


@cases.fault("PREDICTION_COLLAPSE")
def background_is_the_ignored_class(seed: int, Monitor: Any, sick: bool = True) -> float:
    """``ignore_index=0`` was meant for a padding of 255; here 0 is the background, of which nothing is learned."""
    data = Disks(seed)
    model = nn.Sequential(*list(segmenter())[:-1], nn.Conv2d(8, 2, 3, padding=1))
    criterion = CrossEntropyLoss(ignore_index=0 if sick else 255)
    optimizer = Adam(model.parameters(), lr=3e-3)
    batches = ((images, masks[:, 0].long()) for images, masks in data.batches(150))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))

    class Foreground(nn.Module):
        def forward(self, logits: Tensor) -> Tensor:
            return logits[:, 1:] - logits[:, :1]

    return data.dice(nn.Sequential(model, Foreground()))


@cases.fault("TARGET_RANGE", "TARGETS_ALL_EMPTY")
def masks_of_ones_divided_by_255(seed: int, Monitor: Any, sick: bool = True) -> float:
    """Masks of 0 and 1 go through the pictures' transform, which divides by 255: the object is a target of 0.004."""
    data, model = Disks(seed), segmenter()
    criterion = CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    batches = ((images, masks / 255 if sick else masks) for images, masks in data.batches(150))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    return data.dice(model)


@cases.fault("SATURATED_GRADIENT", "PREDICTION_COLLAPSE", "INPUT_DOMAIN")
def softmax_over_one_channel(seed: int, Monitor: Any, sick: bool = True) -> float:
    """The softmax of a single channel is 1 everywhere, and so is the prediction."""
    data, model = Disks(seed, radius=(3.0, 5.0)), segmenter()
    criterion = nn.BCELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        logits = model(images)
        loss = criterion(logits.softmax(dim=1) if sick else logits.sigmoid(), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGETS_ALL_EMPTY")
def valid_marks_what_is_missing(seed: int, Monitor: Any, sick: bool = True) -> float:
    """The flag says which masks are missing, and goes in as the one that says which are there."""
    data, model = Disks(seed), segmenter()
    criterion = CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        missing = torch.rand(len(images)) < 0.5
        drawn = masks * ~missing.view(-1, 1, 1, 1)
        loss = criterion(model(images), drawn, valid=missing if sick else ~missing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("UNEXPLAINED_STALL", "PREDICTION_COLLAPSE")
def mask_rows_bottom_up(seed: int, Monitor: Any, sick: bool = True) -> float:
    """The raster library counts the rows of masks from below, that of pictures from above."""
    data, model = Disks(seed, radius=(3.0, 5.0)), segmenter()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    batches = ((images, masks.flip(2) if sick else masks) for images, masks in data.batches(200))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    return data.dice(model)


# --- directions of arrival ----------------------------------------------------------------------------------------


@cases.fault("LOSS_FLOOR", "CONFLICTING_COMPONENTS")
def positions_in_metres(seed: int, Monitor: Any, sick: bool = True) -> float:
    """The array is given in metres where wavelengths are asked for: the true directions are not where it looks."""
    generator = torch.Generator().manual_seed(seed)
    wavelengths = array.uniform_linear(8)
    criterion = HybridCovarianceLoss(wavelengths * (0.34 if sick else 1.0), {"cov": 0.5, "subspace": 1.0})
    model = _listener(16)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)

    def answer(covariance: Tensor) -> ArrayPrediction:
        factors = torch.view_as_complex(model(_features(covariance)).view(-1, 8, 1, 2))
        return ArrayPrediction(array.low_rank(factors, torch.full((len(factors),), 0.1)), factors=factors)

    for _ in range(250):
        covariance, azimuth = _recordings(generator, 64)
        target = ArrayTarget(covariance, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        loss = criterion(answer(covariance), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    covariance, azimuth = _recordings(generator, 256)
    with torch.no_grad():
        factors = answer(covariance).factors
        assert factors is not None
        leak = array.subspace_leakage(
            array.low_rank(factors), array.steering(wavelengths, azimuth), torch.ones_like(azimuth, dtype=torch.bool)
        )
    return float((leak < 0.1).float().mean())


@cases.fault("NOTHING_VALID")
def count_class_taken_for_the_count(seed: int, Monitor: Any, sick: bool = True) -> float:
    """Class 0 is one source, class 1 two: taken as numbers, no recording has a source."""
    generator = torch.Generator().manual_seed(seed)
    model, criterion = _listener(2), AngleLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(250):
        covariance, azimuth = _recordings(generator, 64)
        places = torch.cat([azimuth, torch.zeros_like(azimuth)], dim=1)
        count_class = torch.zeros(len(azimuth), 1)
        present = torch.arange(2) < (count_class if sick else count_class + 1)
        prediction = ArrayPrediction(covariance, azimuth=model(_features(covariance)))
        loss = criterion(prediction, ArrayTarget(covariance, places, present))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    covariance, azimuth = _recordings(generator, 256)
    with torch.no_grad():
        return _found(model(_features(covariance))[:, :1] - azimuth)


@cases.fault("SHAPE_BROADCAST")
def column_of_bearings_against_a_row(seed: int, Monitor: Any, sick: bool = True) -> float:
    """[N, 1] less [N] is [N, N]: every prediction is compared with every bearing."""
    generator = torch.Generator().manual_seed(seed)
    model = _listener(1)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)

    def mean_absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean()

    criterion = monitor.watch(mean_absolute_error)
    for _ in range(250):
        covariance, azimuth = _recordings(generator, 64)
        loss = criterion(model(_features(covariance)), azimuth.squeeze(1) if sick else azimuth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    covariance, azimuth = _recordings(generator, 256)
    with torch.no_grad():
        return _found(model(_features(covariance)) - azimuth)


@cases.fault("TARGET_RANGE", "PREDICTION_COLLAPSE", "SATURATED_GRADIENT")
def covariance_of_microvolts(seed: int, Monitor: Any, sick: bool = True) -> float:
    """The target is in square volts, about 1e-10: any prediction near zero is as good as the truth."""
    generator = torch.Generator().manual_seed(seed)
    model, criterion = _listener(128), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    volts = 1e-5 if sick else 1.0
    batches = (_recordings(generator, 64, volts)[0] for _ in range(250))
    pairs = ((_features(covariance), torch.view_as_real(covariance).flatten(1)) for covariance in batches)
    _fit(model, criterion, optimizer, pairs, Monitor(model, criterion, optimizer))
    covariance = _recordings(generator, 256, volts)[0]
    with torch.no_grad():
        predicted = torch.view_as_complex(model(_features(covariance)).view(-1, 8, 8, 2))
    return float((array.covariance_nmse(predicted, covariance) < 0.1).float().mean())


# --- sums of losses -----------------------------------------------------------------------------------------------


@cases.fault("STARVED_COMPONENT")
def reconstruction_averaged_divergence_summed(seed: int, Monitor: Any, sick: bool = True) -> float:
    """A variational autoencoder averages one loss over the pixels and sums the other: the code says nothing."""
    data = Digits(seed)
    data.x = data.x[:, :64]
    encoder, decoder = embedder(features=16, inputs=64), embedder(features=64, inputs=8)

    def reconstruction(output: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
        return F.mse_loss(output[0], x) if sick else (output[0] - x).square().sum(dim=1).mean()

    def divergence(output: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:  # noqa: ARG001
        _, mean, log_variance = output
        return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean()

    criterion = CompositeLoss(
        {"reconstruction": reconstruction, "divergence": divergence}, {"reconstruction": 1.0, "divergence": 0.1}
    )
    optimizer = Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    monitor = Monitor([encoder, decoder], criterion, optimizer)
    for x, _ in data.batches(300, P=10, K=6):
        mean, log_variance = encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        loss = criterion((decoder(code), mean, log_variance), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    held_out = data.x[data.test]
    with torch.no_grad():
        rest = held_out - decoder(encoder(held_out)[:, :8])
    return 1 - float(rest.square().sum() / (held_out - held_out.mean(dim=0)).square().sum())


# --- the loop around them -----------------------------------------------------------------------------------------


@cases.fault("NO_UPDATE")
def head_replaced_after_the_optimizer(seed: int, Monitor: Any, sick: bool = True) -> float:
    """A frozen backbone gets a head for ten classes, and the optimizer goes on with the old one's weights."""
    data = Digits(seed)
    model = nn.Sequential(nn.Linear(128, 512), nn.ReLU(), nn.Linear(512, 100))
    model[0].requires_grad_(False)
    optimizer = Adam((weight for weight in model.parameters() if weight.requires_grad), lr=3e-3)
    model[2] = nn.Linear(512, 10)
    if not sick:
        optimizer = Adam(model[2].parameters(), lr=3e-3)
    criterion = nn.CrossEntropyLoss()
    Monitor.attach(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _accuracy(data, model)


@cases.fault("NO_UPDATE")
def clipped_before_unscaled(seed: int, Monitor: Any, sick: bool = True) -> float:
    """Gradients are clipped to 1 while they are still 65,536 times too large, and divided by that afterwards."""
    data, model = Digits(seed), embedder(features=10)
    criterion = nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        with torch.autocast("cpu", torch.float16):
            loss = criterion(model(x), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if not sick:
            scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.fault("NONFINITE")
def half_weights_under_adam(seed: int, Monitor: Any, sick: bool = True) -> float:
    """``model.half()``: Adam's epsilon of 1e-8 is 0 in float16, and 0 / 0 is not a number."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    dtype = torch.float16 if sick else torch.float32
    model.to(dtype)
    criterion = TripletLoss(margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    batches = ((x.to(dtype), labels) for x, labels in data.batches(300))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    return data.recall(model.float())


@cases.fault("NO_UPDATE")
def averaged_weights_left_in_place(seed: int, Monitor: Any, sick: bool = True) -> float:
    """Every ten steps the slow average of the weights goes into the model to be judged, and nobody takes it out."""
    data, model = Digits(seed), embedder()
    average = deepcopy(model)
    criterion = SupConLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
        with torch.no_grad():
            for slow, weight in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(weight, 0.001)
        if step % 10 == 9:
            trained = deepcopy(model.state_dict())
            model.load_state_dict(average.state_dict())
            data.recall(model)
            if not sick:
                model.load_state_dict(trained)
    return data.recall(model)


@cases.fault("NO_UPDATE")
def resumed_at_the_end_of_the_schedule(seed: int, Monitor: Any, sick: bool = True) -> float:
    """A trial of 20 steps ended at a learning rate of 0; the long run resumes from it, schedule and all."""
    data, model = Digits(seed), embedder(features=10)
    criterion = nn.CrossEntropyLoss()

    def plan(steps: int) -> tuple[Adam, LinearLR]:
        optimizer = Adam(model.parameters(), lr=1e-3)
        return optimizer, LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)

    def train(optimizer: Adam, schedule: LinearLR, steps: int, monitor: Any = None) -> None:
        for x, labels in data.batches(steps):
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if monitor is not None:
                monitor.step(loss)

    optimizer, schedule = plan(20)
    train(optimizer, schedule, 20)
    checkpoint = deepcopy([optimizer.state_dict(), schedule.state_dict()])
    optimizer, schedule = plan(300)
    if sick:
        optimizer.load_state_dict(checkpoint[0])
        schedule.load_state_dict(checkpoint[1])
    train(optimizer, schedule, 280, Monitor(model, criterion, optimizer))
    return _accuracy(data, model)


# --- healthy: they look like a fault and are none -----------------------------------------------------------------


@cases.healthy(at_least=0.85)
def log_softmax_before_cross_entropy(seed: int, Monitor: Any) -> float:
    """A second log-softmax changes nothing: that of log-probabilities is themselves."""
    data = Digits(seed)
    model = nn.Sequential(*embedder(features=10), nn.LogSoftmax(dim=1))
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    _fit(model, criterion, optimizer, data.batches(300), Monitor(model, criterion, optimizer))
    return _accuracy(data, model)


@cases.healthy(at_least=0.85)
def identities_are_signed_hashes(seed: int, Monitor: Any) -> float:
    """Labels are 32-bit hashes of names, about half of them negative."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    criterion = TripletLoss(margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    batches = ((x, (labels + 1) * 2_654_435_761 % 2**32 - 2**31) for x, labels in data.batches(300))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    return data.recall(model)


@cases.healthy(at_least=0.85)
def clipped_to_a_thousandth_under_adam(seed: int, Monitor: Any) -> float:
    """Gradients a thousand times shorter than they were are the same to Adam."""
    data, model = Digits(seed), embedder()
    criterion = SupConLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def quasi_newton_with_closures(seed: int, Monitor: Any) -> float:
    """L-BFGS asks for the loss of one large batch up to ten times a step."""
    data, model = Digits(seed), embedder(features=10)
    criterion = nn.CrossEntropyLoss()
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=10, line_search_fn="strong_wolfe")
    monitor = Monitor(model, criterion, optimizer)
    penalty = 1e-2
    for x, labels in data.batches(40, P=10, K=40):

        def closure(x: Tensor = x, labels: Tensor = labels) -> Tensor:
            optimizer.zero_grad()
            weights = sum(weight.square().sum() for weight in model.parameters())
            loss: Tensor = criterion(model(x), labels) + penalty * weights
            loss.backward()
            return loss

        monitor.step(optimizer.step(closure))
    return _accuracy(data, model)


@cases.healthy(at_least=0.9)
def heatmaps_of_centres(seed: int, Monitor: Any) -> float:
    """Targets are faint bumps on the centres of disks, hardly a pixel of them above one half."""
    data, model = Disks(seed, radius=(3.0, 3.5)), segmenter()
    criterion = BCELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    grid = torch.arange(32.0)

    def bumps(masks: Tensor) -> tuple[Tensor, Tensor]:
        rows = (masks[:, 0].sum(dim=2) @ grid / masks.sum(dim=(1, 2, 3))).view(-1, 1, 1, 1)
        columns = (masks[:, 0].sum(dim=1) @ grid / masks.sum(dim=(1, 2, 3))).view(-1, 1, 1, 1)
        away = (grid.view(1, 1, -1, 1) - rows).square() + (grid.view(1, 1, 1, -1) - columns).square()
        return 0.8 * (-away / 2).exp(), away

    batches = ((images, bumps(masks)[0]) for images, masks in data.batches(200))
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    images, masks = data.draw(64)
    with torch.no_grad():
        peak = model(images).flatten(1).argmax(dim=1, keepdim=True)
    return float((bumps(masks)[1].flatten(1).gather(1, peak) < 2.5**2).float().mean())


@cases.healthy(at_least=0.85)
def first_steps_overflow(seed: int, Monitor: Any) -> float:
    """The loss scale begins far too high, and the scaler skips steps until it has come down."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    criterion = TripletLoss(margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        with torch.autocast("cpu", torch.float16):
            z = model(x)
        loss = criterion(z, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def recordings_mostly_of_silence(seed: int, Monitor: Any) -> float:
    """Seven recordings of ten have no source, and no angle to be learned."""
    generator = torch.Generator().manual_seed(seed)
    model, criterion = _listener(1), AngleLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        covariance, azimuth = _recordings(generator, 64)
        present = torch.rand(64, 1, generator=generator) < 0.3
        silence = 0.09 * torch.eye(8, dtype=torch.complex64)
        heard = covariance.where(present.unsqueeze(2), silence)
        prediction = ArrayPrediction(heard, azimuth=model(_features(heard)))
        loss = criterion(prediction, ArrayTarget(heard, azimuth * present, present))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    covariance, azimuth = _recordings(generator, 256)
    with torch.no_grad():
        return _found(model(_features(covariance)) - azimuth)


@cases.healthy(at_least=0.85)
def tasks_in_turn(seed: int, Monitor: Any) -> float:
    """One trunk, two tasks: even steps name the digit, odd steps draw it without its noise."""
    data = Digits(seed)
    trunk, namer, drawer = embedder(features=32), nn.Linear(32, 10), nn.Linear(32, 64)
    name, draw = nn.CrossEntropyLoss(), nn.MSELoss()
    model = nn.ModuleList([trunk, namer, drawer])
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, [name, draw], optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        features = trunk(x).relu()
        loss = draw(drawer(features), x[:, :64]) if step % 2 else name(namer(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, nn.Sequential(trunk, nn.ReLU(), namer))


@cases.healthy(at_least=0.85)
def penalty_of_a_ten_thousandth(seed: int, Monitor: Any) -> float:
    """A gentle pull on the length of embeddings rides along, as weak as it is meant to be."""
    data, model = Digits(seed), embedder()

    def length(z: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001
        return z.square().sum(dim=1).mean()

    criterion = CompositeLoss({"contrast": SupConLoss(), "length": length}, {"contrast": 1.0, "length": 1e-4})
    optimizer = Adam(model.parameters(), lr=3e-3)
    _fit(model, criterion, optimizer, data.batches(300), Monitor(model, criterion, optimizer))
    return data.recall(model)


@cases.healthy(at_least=0.85)
def strangers_in_most_of_the_batch(seed: int, Monitor: Any) -> float:
    """Detections of nobody in the gallery fill five rows of eight, labelled -1 and marked invalid."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    criterion = TripletLoss(margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300, P=6, K=4):
        strangers = torch.randn(40, x.shape[1])
        known = torch.arange(64) < 24
        identities = torch.cat([labels, torch.full((40,), -1)])
        loss = criterion(model(torch.cat([x, strangers])), identities, valid=known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def progress_bar_shows_a_running_mean(seed: int, Monitor: Any) -> float:
    """What is logged is the mean of all losses of the epoch so far, and lags behind the loss."""
    data, model = Digits(seed), embedder(features=10)
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(3):
        total = 0.0
        for batch, (x, labels) in enumerate(data.batches(100), 1):
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            monitor.step(loss, logged=total / batch)
    return _accuracy(data, model)


@cases.healthy(at_least=0.85)
def loss_inside_the_model(seed: int, Monitor: Any) -> float:
    """The model takes the labels and returns its loss in a dictionary; the monitor is given no criterion."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = embedder(features=10)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(x)
            return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}

    data, model = Digits(seed), Classifier()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer=optimizer)
    for x, labels in data.batches(300):
        loss = model(x, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model.net)


@cases.healthy(at_least=0.75)
def third_of_the_labels_wrong(seed: int, Monitor: Any) -> float:
    """A third of the labels are drawn at random: the loss stays high, and most digits are still named."""
    data, model = Digits(seed), embedder(features=10)
    wrong = torch.rand(1200) < 1 / 3
    labels = data.labels.clone()
    labels[data.train] = labels[data.train].where(~wrong, torch.randint(10, (1200,)))
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=1e-3, weight_decay=1e-2)
    rows = (torch.randint(1200, (128,)) for _ in range(300))
    batches = ((data.x[data.train][row], labels[data.train][row]) for row in rows)
    _fit(model, criterion, optimizer, batches, Monitor(model, criterion, optimizer))
    return _accuracy(data, model)


@cases.healthy(at_least=0.9)
def covariances_of_a_millionth(seed: int, Monitor: Any) -> float:
    """Signals of a thousandth of a volt, under a loss that sets the power of both sides to 1."""
    generator = torch.Generator().manual_seed(seed)
    model, criterion = _listener(128), CovarianceLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)

    def answer(covariance: Tensor) -> ArrayPrediction:
        factors = torch.view_as_complex(model(_features(covariance)).view(-1, 8, 8, 2))
        return ArrayPrediction(array.low_rank(factors))

    for _ in range(250):
        covariance, azimuth = _recordings(generator, 64, volts=1e-3)
        target = ArrayTarget(covariance, azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        loss = criterion(answer(covariance), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    covariance, _ = _recordings(generator, 256, volts=1e-3)
    with torch.no_grad():
        predicted = answer(covariance).covariance
    return float((array.covariance_nmse(predicted, covariance) < 0.1).float().mean())
