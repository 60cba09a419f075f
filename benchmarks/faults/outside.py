"""Twenty-four faults and sixteen healthy runs: a fourth set, by somebody who had not seen the rules.

What comes to mind first to people of their fields: re-identification, faces and contrastive learning, medical and
aerial segmentation, directions of arrival, and the plain mistakes of a training loop. Twelve faults are under losses of
fastmine, twelve under losses of torch or written by hand. Without its fault, ``sick=False``, every sick run succeeds at
its task: ``python -m benchmarks.faults.cured`` measures both. First score: README.md.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, SparseAdam
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR

from fastmine import array
from fastmine.losses import (
    AngleLoss,
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    CombinedSegmentationLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    CrossEntropyLoss,
    DeepSupervisionLoss,
    FocalLoss,
    HybridCovarianceLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    SegmentationLoss,
    SourceCountLoss,
    SupConLoss,
    TripletLoss,
)

from .case import Suite
from .nets import ResNet18, RowTransformer
from .tasks import Bearings, Digits, Disks, Unit, embedder, regressor, segmenter

cases = Suite("outside")


def _accuracy(data: Digits, model: nn.Module) -> float:
    """Share of the held-out digits that are named rightly."""
    training = model.training
    model.eval()
    with torch.no_grad():
        right = model(data.x[data.test]).argmax(dim=1) == data.labels[data.test]
    model.train(training)
    return float(right.float().mean())


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _two_views(data: Digits, size: int = 64) -> tuple[Tensor, Tensor]:
    """The same digits twice, each time with noise of its own."""
    x = data.x[data.train][torch.randint(1200, (size,))]
    first, second = x.clone(), x.clone()
    for view in (first, second):
        view[:, :64] += 0.1 * torch.randn(size, 64)
        view[:, 64:] = 0.5 * torch.randn(size, 64)
    return first, second


def _two_kinds(data: Disks, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images of a bright disk or a dark one, and where the bright and the dark one are: [B, 2, H, W]."""
    images, masks = data.draw(size)
    dark = torch.rand(size, 1, 1, 1) < 0.5
    return images - 4 * masks * dark, torch.cat([masks * ~dark, masks * dark], dim=1)


def _dice_of_two_kinds(data: Disks, predicted: Any) -> float:
    """Mean Dice of both kinds on 64 images; ``predicted`` makes [B, 2, H, W] of them."""
    images, masks = _two_kinds(data, 64)
    with torch.no_grad():
        found = predicted(images).float()
    both = 2 * (found * masks).sum(dim=(0, 2, 3)) / (found + masks).sum(dim=(0, 2, 3)).clamp(min=1)
    return float(both.mean())


class _Recordings:
    """Covariances of eight sensors that hear one source or two: [N, 8, 8], and what is true of them."""

    def __init__(self, sources: int = 1, noise: float = 0.3) -> None:
        self.positions, self.sources, self.noise = array.uniform_linear(8), sources, noise

    def draw(self, n: int = 64) -> tuple[Tensor, ArrayTarget]:
        """n measured covariances at unit trace; sources are at least 0.4 apart."""
        azimuth = (torch.rand(n, 1) * (2.0 - 0.4 * (self.sources - 1)) - 1).repeat(1, self.sources)
        azimuth = azimuth + 0.4 * torch.arange(self.sources)
        count = torch.randint(1, self.sources + 1, (n, 1))
        present = torch.arange(self.sources) < count
        steering = array.steering(self.positions, azimuth) * present.unsqueeze(1)
        snapshots = steering @ torch.randn(n, self.sources, 32, dtype=torch.complex64)
        snapshots = snapshots + self.noise * torch.randn(n, 8, 32, dtype=torch.complex64)
        truth = steering @ steering.mH
        return _unit_trace(array.sample_covariance(snapshots)), ArrayTarget(_unit_trace(truth), azimuth, present)

    def hits(self, model: nn.Module) -> float:
        """Share of directions found within 10 degrees, in the best order."""
        measured, target = self.draw(256)
        with torch.no_grad():
            found = model(measured).azimuth
        error = array.matched_error(found.unsqueeze(-1), target.azimuth.unsqueeze(-1), target.present)
        return float((error[target.present] < math.radians(10)).float().mean())


def _unit_trace(covariance: Tensor) -> Tensor:
    return covariance / covariance.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1).view(-1, 1, 1)


class _Listener(nn.Module):
    """A measured covariance to directions, their number, and factors of the covariance without noise."""

    def __init__(self, sources: int = 1) -> None:
        super().__init__()
        self.sources, self.blend = sources, 1.0
        self.body = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.azimuth = nn.Linear(128, sources)
        self.count = nn.Linear(128, sources + 1)
        self.factors = nn.Linear(128, 16 * sources)

    def forward(self, measured: Tensor) -> ArrayPrediction:
        h = self.body(8 * torch.view_as_real(measured).flatten(1))
        factors = torch.view_as_complex(self.factors(h).view(len(h), 8, self.sources, 2))
        clean = factors @ factors.mH
        covariance = self.blend * clean + (1 - self.blend) * measured
        return ArrayPrediction(covariance, clean, factors, self.azimuth(h), count_logits=self.count(h))


# --- sick: embeddings -----------------------------------------------------------------------------------------------


@cases.fault("ALL_EASY_FROM_START")
def margins_in_the_order_of_another_library(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Margins are given in the wrong order: equals may be 1 apart and others need be 0 apart, which all are."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    criterion = ContrastiveLoss(1.0, 0.0) if sick else ContrastiveLoss(0.0, 1.0)
    optimizer = Adam(model.parameters(), lr=2e-3)
    with Monitor(model, criterion, optimizer) as monitor:
        for x, labels in data.batches(150):
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_POSITIVES", "NOTHING_VALID", "FEW_VALID")
def the_memory_sleeps_in_evaluation_mode(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A batch has one picture of each person, a memory has the others; left in eval() it never stores any."""

    class ReId(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(embedder(), Unit())
            self.criterion = CrossBatchMemory(TripletLoss(0.3), size=128, embedding_dim=16)

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            return self.criterion(self.body(x), labels)

    data = Digits(seed)
    model = ReId()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, model.criterion, optimizer)
    model.eval()
    data.recall(model.body)  # how good is it before training?
    for x, labels in data.batches(400, P=10, K=2):
        if not sick:
            model.train()
        loss = model(x[::2], labels[::2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model.body)


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def what_to_train_is_chosen_by_an_old_name(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """All but "module.neck" is frozen, a name from the days of DataParallel: only the class vectors still learn."""
    data = Digits(seed)
    model = nn.Sequential(
        OrderedDict(
            backbone=nn.Sequential(nn.Linear(128, 256), nn.ReLU()),
            neck=nn.Sequential(nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16)),
        )
    )
    criterion = ArcFaceLoss(10, 16, margin=0.3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("module.neck" if sick else "neck"))
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Adam([*learning, *criterion.parameters()], lr=3e-3)
    Monitor.attach(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data.recall(model)


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def gradients_flow_into_the_momentum_encoder(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The query, not the key, is computed under no_grad: what learns is an encoder that no optimizer holds."""
    data = Digits(seed)
    query = embedder()
    key = deepcopy(query)
    criterion = NTXentLoss(temperature=0.1)
    optimizer = Adam(query.parameters(), lr=2e-3)
    monitor = Monitor(query, criterion, optimizer)
    for _ in range(200):
        first, second = _two_views(data)
        with torch.set_grad_enabled(not sick):
            queries = query(first)
        with torch.set_grad_enabled(sick):
            keys = key(second)
        image = torch.arange(len(first))
        loss = criterion(queries, image, ref_embeddings=keys, ref_labels=image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        monitor.step(loss)
    return data.recall(query)


@cases.fault("NO_SEPARATION", "EMBEDDING_COLLAPSE", "INPUT_DOMAIN")
def a_similarity_serves_as_the_distance(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``TripletMarginWithDistanceLoss`` wants a distance and gets ``cosine_similarity``: equals are pushed apart."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        similarity = F.cosine_similarity(a, b)
        return similarity if sick else 1 - similarity

    data = Digits(seed)
    model = embedder()
    criterion = nn.TripletMarginWithDistanceLoss(distance_function=distance, margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(400, P=10, K=4):
        anchor, positive, other, _ = model(x).view(10, 4, 16).unbind(1)
        loss = criterion(anchor, positive, other.roll(1, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE", "NO_NEGATIVES", "INVALID_PAIRS")
def the_nearest_negative_is_a_zero_of_the_mask(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Distances are multiplied by the mask of negatives, and the smallest is taken: always a 0 of the mask."""

    def batch_hard(embeddings: Tensor, labels: Tensor) -> Tensor:
        distance = torch.cdist(embeddings, embeddings)
        same = labels.unsqueeze(0) == labels.unsqueeze(1)
        farthest = (distance * same).amax(dim=1)
        nearest = (distance * ~same if sick else distance + 10.0 * same).amin(dim=1)
        return F.relu(farthest - nearest + 0.2).mean()

    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, None, optimizer)
    criterion = monitor.watch(batch_hard)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INVALID_PAIRS", "NO_POSITIVES", "NO_SEPARATION")
def the_first_view_is_compared_with_itself(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A typing error in InfoNCE, ``first @ first.T``: the positive of each image is the very same view of it."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    with Monitor(model, criterion, optimizer) as monitor:
        for _ in range(250):
            first, second = (model(view) for view in _two_views(data))
            similarity = first @ (first if sick else second).T / 0.1
            loss = criterion(similarity, torch.arange(len(first)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE")
def the_variance_is_held_below_one(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """In VICReg the hinge that keeps every feature's deviation above 1 is written the wrong way round: below 1."""

    def vicreg(a: Tensor, b: Tensor) -> Tensor:
        loss = 25 * F.mse_loss(a, b)
        for z in (a, b):
            deviation = (z.var(dim=0) + 1e-4).sqrt()
            covariance = z.T.cov()
            loss = loss + 25 * F.relu(deviation - 1 if sick else 1 - deviation).mean()
            loss = loss + (covariance - covariance.diag().diag()).square().sum() / z.shape[1]
        return loss

    data = Digits(seed)
    model = embedder(features=32)
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(vicreg)
    for _ in range(250):
        first, second = _two_views(data)
        loss = criterion(model(first), model(second))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- sick: masks ----------------------------------------------------------------------------------------------------


class _Pyramid(nn.Module):
    """Logits at three scales while it trains, the finest alone in eval()."""

    def __init__(self, *, coarsest_first: bool) -> None:
        super().__init__()
        self.coarsest_first = coarsest_first
        self.down = nn.ModuleList([nn.Conv2d(width, 8, 5, padding=2) for width in (1, 8, 8)])
        self.heads = nn.ModuleList([nn.Conv2d(8, 1, 1) for _ in range(3)])

    def forward(self, x: Tensor) -> Any:
        features = []
        for level, layer in enumerate(self.down):
            x = F.relu(layer(F.avg_pool2d(x, 2) if level else x))
            features.append(x)
        for level in (1, 0):
            features[level] = features[level] + F.interpolate(features[level + 1], scale_factor=2.0)
        logits = [head(x) for head, x in zip(self.heads, features, strict=True)]
        if not self.training:
            return logits[0]
        return logits[::-1] if self.coarsest_first else logits


@cases.fault("ZERO_WEIGHT", "NO_UPDATE")
def the_finest_scale_has_no_weight(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Deep supervision gives the last scale no weight, as nnU-Net does; here the last one is the finest."""
    data = Disks(seed)
    model = _Pyramid(coarsest_first=sick)
    criterion = DeepSupervisionLoss(CombinedSegmentationLoss(), [2 / 3, 1 / 3, 0.0])
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        targets = [F.max_pool2d(masks, size) for size in (1, 2, 4)]
        loss = criterion(model(images), targets[::-1] if sick else targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGETS_ALL_EMPTY", "PREDICTION_COLLAPSE")
def the_palette_is_in_another_order(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Label images are read as BGR and compared with a palette in RGB: no pixel has a colour of any class."""
    palette = torch.tensor([[0, 0, 0], [255, 0, 0], [255, 255, 0]])  # ground, building, road
    data = Disks(seed)
    model = segmenter()
    model[-1] = nn.Conv2d(8, 3, 3, padding=1)
    criterion = CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(150):
        images, masks = _two_kinds(data)
        drawn = palette[(masks * torch.tensor([1, 2]).view(2, 1, 1)).sum(dim=1).long()]
        colours = drawn.flip(-1) if sick else drawn
        classes = torch.zeros(colours.shape[:3], dtype=torch.long)
        for number, colour in enumerate(palette):
            classes[(colours == colour).all(dim=-1)] = number
        loss = criterion(model(images), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _dice_of_two_kinds(data, lambda images: F.one_hot(model(images).argmax(dim=1), 3)[..., 1:].movedim(-1, 1))


@cases.fault("PREDICTION_COLLAPSE", "ZERO_WEIGHT", "STARVED_COMPONENT")
def balance_of_one_is_meant_to_be_none(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``alpha=1.0`` was to switch the balance of the focal loss off; it gives the background a weight of 0."""
    data = Disks(seed)
    model = segmenter()
    criterion = FocalLoss(alpha=1.0 if sick else None)
    optimizer = Adam(model.parameters(), lr=5e-3)
    Monitor.attach(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data.dice(model)


@cases.fault("SATURATED_GRADIENT", "LOSS_FLOOR", "NONFINITE")
def dice_overflows_in_half_precision(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Probabilities come out of a half-precision net, and their sum over the batch is larger than 65,504."""

    def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
        probability = torch.sigmoid(logits)
        overlap = (probability * masks).sum()
        return 1 - (2 * overlap + 1) / (probability.sum() + masks.sum() + 1)

    data = Disks(seed)
    model = segmenter(4)
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, None, optimizer)
    criterion = monitor.watch(dice_loss)
    for images, masks in data.batches(80, size=160):
        logits = model(images)
        loss = criterion(logits.half(), masks.half()) if sick else criterion(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE", "NO_SEPARATION")
def the_easiest_pixels_are_mined(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Online hard example mining sorts the losses upwards and keeps the first quarter: the easiest pixels."""

    def mined(logits: Tensor, masks: Tensor) -> Tensor:
        losses = F.binary_cross_entropy_with_logits(logits, masks, reduction="none").flatten()
        return losses.sort(descending=not sick).values[: len(losses) // 4].mean()

    data = Disks(seed, radius=(3.0, 6.0))
    model = segmenter()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, None, optimizer)
    criterion = monitor.watch(mined)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE", "NO_SEPARATION", "INPUT_DOMAIN", "UNEXPLAINED_STALL")
def window_and_level_change_places(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A scan is windowed to 400 +- 20 units instead of 40 +- 200: whatever there is to see is clipped to 0."""

    def windowed(scan: Tensor, level: float, width: float) -> Tensor:
        return ((scan - level) / width + 0.5).clamp(0, 1)

    level, width = (400, 40) if sick else (40, 400)
    data = Disks(seed)
    model = segmenter()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    with Monitor(model, criterion, optimizer) as monitor:
        for images, masks in data.batches(150):
            loss = criterion(model(windowed(40 * images, level, width)), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return data.dice(_Function(lambda images: model(windowed(40 * images, level, width))))


@cases.fault("SHAPE_BROADCAST")
def the_first_of_a_tuple_that_is_none(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``model(images)[0]`` dates from a model that returned a tuple: now it is one image, held against all masks."""

    def soft_dice(logits: Tensor, masks: Tensor) -> Tensor:
        probability = torch.sigmoid(logits)
        overlap, total = (probability * masks).sum(dim=(-2, -1)), (probability + masks).sum(dim=(-2, -1))
        return (1 - (2 * overlap + 1) / (total + 1)).mean()

    data = Disks(seed, radius=(3.0, 6.0))
    model = segmenter()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, None, optimizer)
    criterion = monitor.watch(soft_dice)
    for images, masks in data.batches(120, size=32):
        logits = model(images)[0] if sick else model(images)
        loss = criterion(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


# --- sick: directions -----------------------------------------------------------------------------------------------


@cases.fault("DEAD_COMPONENT", "DETACHED_GRAPH", "NO_UPDATE")
def the_blend_stays_with_what_was_measured(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The covariance is blended with the measured one by a share that starts at 0, and nobody ever raises it."""
    data = _Recordings()
    torch.manual_seed(seed)
    model = _Listener()
    criterion = HybridCovarianceLoss(data.positions, {"cov": 1.0, "angle": 1.0})
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step in range(250):
        model.blend = 0.0 if sick else min(1.0, step / 50)
        measured, target = data.draw()
        loss = criterion(model(measured), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    measured, target = data.draw(256)
    clean = _unit_trace(model(measured).unblended)
    return float(1 - (clean - target.covariance).abs().square().sum() / target.covariance.abs().square().sum())


@cases.fault("PREDICTION_COLLAPSE", "NO_SEPARATION", "LOSS_FLOOR", "UNEXPLAINED_STALL")
def decibels_with_the_wrong_sign(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Noise of amplitude 10 ^ (snr / 20) and not 10 ^ (-snr / 20): at 30 dB the source is inaudible."""
    snr = 30.0
    torch.manual_seed(seed)
    data = _Recordings(noise=10 ** ((snr if sick else -snr) / 20))
    model = _Listener()
    criterion = AngleLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    Monitor.attach(model, criterion, optimizer)
    for _ in range(250):
        measured, target = data.draw()
        loss = criterion(model(measured), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data.hits(model)


@cases.fault("NO_UPDATE", "DEAD_COMPONENT", "DETACHED_GRAPH", "ZERO_WEIGHT", "UNUSED_WEIGHT")
def the_second_loss_replaces_the_first(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``loss = counting(...)`` where ``loss += counting(...)`` was meant: directions are judged and never learned."""
    torch.manual_seed(seed)
    data = _Recordings(sources=2)
    model = _Listener(sources=2)
    angles, counting = AngleLoss(), SourceCountLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, [angles, counting], optimizer)
    for _ in range(300):
        measured, target = data.draw()
        prediction = model(measured)
        loss = angles(prediction, target)
        loss = (0.0 if sick else loss) + counting(prediction, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("PREDICTION_COLLAPSE", "NO_SEPARATION")
def the_prefetcher_is_one_batch_ahead(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The next inputs are fetched before the step, into the same variable: targets are those of the batch before."""
    data = Bearings(seed)
    model = regressor()
    criterion = nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for (x, target), (following, _) in pairwise(data.batches(250)):
        loss = criterion(model(following if sick else x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- sick: the loop -------------------------------------------------------------------------------------------------


@cases.fault("NONFINITE")
def adam_in_half_precision(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``model.half()``, and Adam with it: its eps and its second moments are 0 in that type, and it divides by them."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    if sick:
        model.half()
    criterion = MultiSimilarityLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x.half() if sick else x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model.float())


@cases.fault("NO_UPDATE")
def the_generator_of_parameters_is_used_up(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``named_parameters()`` is gone through twice: first for the biases, then there are no weights left for decay."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    named: Any = model.named_parameters() if sick else list(model.named_parameters())
    plain = [parameter for name, parameter in named if name.endswith("bias")]
    decayed = [parameter for name, parameter in named if not name.endswith("bias")]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 1e-3}]
    optimizer = AdamW(groups, lr=2e-3)
    criterion = SupConLoss()
    with Monitor(model, criterion, optimizer) as monitor:
        for x, labels in data.batches(150):
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return data.recall(model)


@cases.fault("NONFINITE", "PREDICTION_COLLAPSE", "SATURATED_GRADIENT")
def the_step_goes_past_the_scaler(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The loss is scaled for mixed precision, but ``optimizer.step()`` stayed: gradients are 65,536 times too large."""
    data = Digits(seed)
    model = embedder(features=10)
    criterion = nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    Monitor.attach(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if sick:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
    return _accuracy(data, model)


@cases.fault("NO_UPDATE")
def an_epoch_is_shorter_than_the_accumulation(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Six batches make an epoch and eight an update; the count starts anew with every epoch, and so do gradients."""
    data = Disks(seed, radius=(3.0, 6.0))
    model = segmenter()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model)
    accumulated = 8 if sick else 2
    for _ in range(40):
        optimizer.zero_grad()
        for number, (images, masks) in enumerate(data.batches(6), start=1):
            loss = F.binary_cross_entropy_with_logits(model(images), masks)
            (loss / accumulated).backward()
            if number % accumulated == 0:
                optimizer.step()
                optimizer.zero_grad()
            monitor.step(loss)
    return data.dice(model)


class _Reader(nn.Module):
    """A small transformer reads tokens [N, 12, 16] into a first one of its own; ``padding`` says which are none."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Linear(16, 32), nn.Linear(32, 10)
        self.first = nn.Parameter(0.02 * torch.randn(1, 32))
        self.positions = nn.Parameter(0.02 * torch.randn(13, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        tokens = torch.cat([self.first.expand(len(x), 1, -1), self.tokens(x)], dim=1) + self.positions
        ignored = torch.cat([torch.zeros(len(x), 1, dtype=torch.bool), padding], dim=1)
        return self.head(self.encoder(tokens, src_key_padding_mask=ignored)[:, 0])


@cases.fault("PREDICTION_COLLAPSE", "INPUT_DOMAIN", "UNEXPLAINED_STALL")
def the_padding_mask_marks_what_is_there(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``src_key_padding_mask`` is True where a token is real: attention sees the padding and nothing else."""

    def padded(x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = F.pad(x.view(len(x), 8, 16), (0, 0, 0, 4))
        real = (torch.arange(12) < 8).expand(len(x), 12)
        return tokens, real if sick else ~real

    data = Digits(seed)
    model = _Reader()
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(*padded(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, _Function(lambda x: model(*padded(x))))


# --- healthy --------------------------------------------------------------------------------------------------------


@cases.healthy(0.8)
def the_stem_is_frozen_and_rates_fall_by_layer(seed: int, Monitor: Any) -> float:
    """ResNet-18 with a frozen stem, a rate that is a fifth lower with every layer down, and smoothed labels."""
    data = Digits(seed, images=True)
    model = nn.Sequential(ResNet18(), nn.Linear(64, 10))
    layers = list(model[0])
    for layer in layers[:3]:
        layer.requires_grad_(False)
    groups = [
        {"params": list(layer.parameters()), "lr": 1e-3 * 0.8**depth}
        for depth, layer in enumerate([model[1], *reversed(layers[3:])])
    ]
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = AdamW(groups, weight_decay=0.05)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(40):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(0.65)
def a_transformer_in_bfloat16_clipped_at_every_step(seed: int, Monitor: Any) -> float:
    """Autocast to bfloat16, dropout, a long warm-up, and every gradient clipped to a twentieth."""
    data = Digits(seed)
    model = RowTransformer()
    criterion = MultiSimilarityLoss()
    optimizer = AdamW(model.parameters(), lr=5e-4, weight_decay=0.05)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 30))
    with Monitor(model, criterion, optimizer) as monitor:
        for x, labels in data.batches(80):
            with torch.autocast("cpu", torch.bfloat16):
                loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            scheduler.step()
            monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.8)
def four_of_five_tiles_hold_nothing(seed: int, Monitor: Any) -> float:
    """Aerial tiles, of which four in five show no building; all of them are annotated."""
    data = Disks(seed, absent=0.8)
    model = segmenter()
    criterion = CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(0.8)
def each_hospital_draws_one_organ(seed: int, Monitor: Any) -> float:
    """Scans come from two data sets, each of which annotates one of two organs; ``valid`` [B, 2] says which."""
    data = Disks(seed)
    model = segmenter()
    model[-1] = nn.Conv2d(8, 2, 3, padding=1)
    criterion = SegmentationLoss({"dice": 0.5, "bce": 0.5}, mode="multilabel")
    optimizer = Adam(model.parameters(), lr=5e-3)
    Monitor.attach(model, criterion, optimizer)
    for _ in range(200):
        images, masks = _two_kinds(data)
        drawn = F.one_hot(torch.randint(2, (8,)), 2).bool()
        loss = criterion(model(images), masks * drawn.view(8, 2, 1, 1), valid=drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _dice_of_two_kinds(data, lambda images: model(images) > 0)


@cases.healthy(0.8)
def six_rows_and_a_sparse_table(seed: int, Monitor: Any) -> float:
    """Each pixel's value looks up a vector in a large table; a batch of six rows touches few of them."""
    data = Digits(seed)
    model = nn.Sequential(nn.EmbeddingBag(64 * 17, 32, mode="sum", sparse=True), Unit())
    criterion = TripletLoss(0.3)
    optimizer = SparseAdam(model.parameters(), lr=0.02)
    monitor = Monitor(model, criterion, optimizer)
    words = 17 * torch.arange(64)
    for x, labels in data.batches(400, P=3, K=2):
        loss = criterion(model(words + (16 * x[:, :64]).round().long()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(_Function(lambda x: model(words + (16 * x[:, :64]).round().long())))


@cases.healthy(0.8)
def sharpness_aware(seed: int, Monitor: Any) -> float:
    """Every step climbs a little, takes the gradient there, goes back to where it was, and steps from there."""
    data = Disks(seed)
    model = segmenter()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        optimizer.zero_grad()
        criterion(model(images), masks).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        scale = 0.05 / torch.stack([gradient.norm() for gradient in gradients]).norm().clamp(min=1e-12)
        with torch.no_grad():
            torch._foreach_add_(list(model.parameters()), gradients, alpha=float(scale))
        optimizer.zero_grad()
        loss = criterion(model(images), masks)
        loss.backward()
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), gradients, alpha=float(scale))
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(0.8)
def slow_weights_look_ahead(seed: int, Monitor: Any) -> float:
    """Lookahead: every five steps the weights go half-way back to slow ones; the margin is soft and has a floor."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    slow = [parameter.detach().clone() for parameter in model.parameters()]
    criterion = TripletLoss("soft")
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(250), start=1):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
        if step % 5 == 0:
            with torch.no_grad():
                for kept, parameter in zip(slow, model.parameters(), strict=True):
                    kept.lerp_(parameter, 0.5)
                    parameter.copy_(kept)
    return data.recall(model)


@cases.healthy(0.8)
def the_margin_grows_and_the_loss_with_it(seed: int, Monitor: Any) -> float:
    """ArcFace's margin is raised from 0 to 0.5 while the net learns, and the loss rises with it."""
    data = Digits(seed)
    model = embedder()
    criterion = ArcFaceLoss(10, 16, margin=0.0)
    optimizer = AdamW([*model.parameters(), *criterion.parameters()], lr=2e-3, weight_decay=0.05)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        criterion.margin = 0.5 * min(1.0, step / 250)
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.7)
def four_in_ten_labels_are_wrong(seed: int, Monitor: Any) -> float:
    """Faces scraped from the web: four labels in ten are anybody's, and three centres per person take them in."""
    data = Digits(seed)
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(data.labels), generator=generator) < 0.4
    wrong[data.test] = False
    data.labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    model = nn.Sequential(nn.Dropout(0.5), *embedder(256))
    criterion = ArcFaceLoss(10, 16, scale=16.0, margin=0.2, sub_centers=3)
    optimizer = Adam([*model.parameters(), *criterion.parameters()], lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300, P=10, K=8):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.6)
def hardly_brighter_than_the_noise(seed: int, Monitor: Any) -> float:
    """Objects are half as bright as the noise, and plain descent starts anew every 80 steps: slow, and it works."""
    data = Disks(seed, radius=(6.0, 9.0))
    model = segmenter()
    criterion = nn.BCEWithLogitsLoss()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = CosineAnnealingWarmRestarts(optimizer, T_0=80)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(400):
        loss = criterion(model(images - 1.6 * masks), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        monitor.step(loss)
    images, masks = data.draw(64)
    with torch.no_grad():
        predicted = (model(images - 1.6 * masks) > 0).float()
    return float(2 * (predicted * masks).sum() / (predicted.sum() + masks.sum()).clamp(min=1))


@cases.healthy(0.8)
def one_in_fifty_is_ill(seed: int, Monitor: Any) -> float:
    """One patient in fifty has the disease: for long every answer is "healthy", and only their order gets better."""
    data = Digits(seed)
    ill = data.labels == 6
    x, few, many = data.x[data.train], *(torch.nonzero(rows[data.train]).squeeze(1) for rows in (ill, ~ill))
    model = nn.Sequential(embedder(features=1), nn.Flatten(0))
    criterion = nn.BCEWithLogitsLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        rows = torch.cat([few[torch.randint(len(few), (1,))], many[torch.randint(len(many), (49,))]])
        loss = criterion(model(x[rows]), (torch.arange(50) == 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    with torch.no_grad():
        scores = model(data.x[data.test])
    found = scores.topk(int(ill[data.test].sum())).indices
    return float(ill[data.test][found].float().mean())


@cases.healthy(0.8)
def the_head_of_another_task_came_along(seed: int, Monitor: Any) -> float:
    """A pretrained net keeps its old classifier; embeddings are taken before it, and the optimizer holds all of it."""

    class Pretrained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = embedder(), nn.Linear(16, 1000)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    data = Digits(seed)
    model = Pretrained()
    criterion = ProxyAnchorLoss(10, 16)
    optimizer = AdamW([{"params": model.parameters()}, {"params": criterion.parameters(), "lr": 0.1}], lr=1e-3)
    Monitor.attach(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return data.recall(model)


@cases.healthy(0.8)
def an_auxiliary_loss_of_next_to_nothing(seed: int, Monitor: Any) -> float:
    """Cross entropy and a ten-thousandth of the squared log of its normaliser, as large language models have it."""

    def z_loss(logits: Tensor) -> Tensor:
        return logits.logsumexp(dim=1).square().mean()

    data = Digits(seed)
    model = embedder(features=10)
    criterion = nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    auxiliary = monitor.watch(z_loss, "z")
    for x, labels in data.batches(200):
        logits = model(x)
        loss = criterion(logits, labels) + 1e-4 * auxiliary(logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(0.8)
def likelihood_of_large_counts(seed: int, Monitor: Any) -> float:
    """Counts of hundreds under a Poisson likelihood, added up over the batch: a loss of minus 100,000, and falling."""
    generator = torch.Generator().manual_seed(seed)
    slope = 0.2 * torch.randn(16, generator=generator)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, 16, generator=generator)
        return x, torch.poisson((5 + x @ slope).exp(), generator=generator)

    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(0))
    criterion = nn.PoissonNLLLoss(reduction="sum")
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(400):
        x, counts = draw(64)
        loss = criterion(model(x), counts)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        monitor.step(loss)
    x, counts = draw(512)
    with torch.no_grad():
        found = model(x).exp()
    return float(((found - counts).abs() < 0.3 * counts).float().mean())


@cases.healthy(0.7)
def one_view_predicts_the_other(seed: int, Monitor: Any) -> float:
    """SimSiam: a predictor on one branch, the other one detached on purpose, and no negatives at all."""
    data = Digits(seed)
    model = nn.Sequential(nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 32), nn.BatchNorm1d(32))
    predictor = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32))
    optimizer = SGD([*model.parameters(), *predictor.parameters()], lr=0.1, momentum=0.9, weight_decay=1e-4)
    monitor = Monitor([model, predictor], None, optimizer)

    def negative_cosine(prediction: Tensor, projection: Tensor) -> Tensor:
        return -F.cosine_similarity(prediction, projection.detach(), dim=1).mean()

    criterion = monitor.watch(negative_cosine)
    for _ in range(250):
        first, second = (model(view) for view in _two_views(data))
        loss = 0.5 * (criterion(predictor(first), second) + criterion(predictor(second), first))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.6)
def two_sources_in_loud_noise(seed: int, Monitor: Any) -> float:
    """One source or two, noise as loud as they are, and five components, of which none can come to 0."""
    torch.manual_seed(seed)
    data = _Recordings(sources=2, noise=1.0)
    model = _Listener(sources=2)
    weights = {"cov": 1.0, "cov_pred": 0.2, "angle": 2.0, "count": 0.2, "peak": 0.02}
    criterion = HybridCovarianceLoss(data.positions, weights)
    optimizer = AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    monitor = Monitor(model, criterion, optimizer)
    for step in range(300):
        model.blend = min(0.9, 0.1 + step / 100)
        measured, target = data.draw()
        loss = criterion(model(measured), target)
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)
