"""Twenty-four faults and fourteen healthy runs: what people ask about most, by somebody who had not seen the rules.

Re-identification, product search, masks of a competition or a clinic, fine-tuning, directions of arrival; eleven
faults under losses of fastmine, thirteen under losses of torch or written by hand. Without its fault, ``sick=False``,
every sick run succeeds at its task: ``python -m benchmarks.faults.cured`` measures both. First score: README.md.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, TensorDataset

from fastmine import array
from fastmine.losses import (
    AngleLoss,
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    CombinedSegmentationLoss,
    ContrastiveLoss,
    CosFaceLoss,
    CrossBatchMemory,
    DiceLoss,
    HybridCovarianceLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
    TverskyLoss,
)

from .case import Suite
from .tasks import Digits, Disks, Unit, embedder, segmenter

cases = Suite("sealed")


def _accuracy(data: Digits, model: nn.Module) -> float:
    """Share of the held-out digits that are named rightly."""
    training = model.training
    model.eval()
    with torch.no_grad():
        right = model(data.x[data.test]).argmax(dim=1) == data.labels[data.test]
    model.train(training)
    return float(right.float().mean())


def _loader(data: Digits, *, size: int = 32, shuffle: bool = True) -> DataLoader[Any]:
    """The training rows as most people load them."""
    rows = TensorDataset(data.x[data.train], data.labels[data.train])
    return DataLoader(rows, size, shuffle=shuffle, drop_last=True)


def _view(x: Tensor) -> Tensor:
    """Other noise beside the digit, and some of its pixels gone."""
    digit, noise = x.chunk(2, dim=1)
    return torch.cat([F.dropout(digit, 0.2), 0.5 * torch.randn_like(noise)], dim=1)


def _recordings(n: int, sources: int) -> tuple[Tensor, Tensor]:
    """Covariances [n, 6, 6, 2] as six sensors hear them, and directions [n, sources] from broadside, in order."""
    directions = (2 * torch.rand(n, sources) - 1).sort(dim=1).values
    A = array.steering(array.uniform_linear(6), directions)
    R = A @ A.mH + 0.05 * torch.randn(n, 6, 6, dtype=torch.complex64)
    return torch.view_as_real(R), directions


def _within(found: Tensor, directions: Tensor) -> float:
    """Share of the directions found within 6 degrees."""
    return float(((found - directions).abs() < math.radians(6)).float().mean())


def _pretrained(data: Digits) -> nn.Sequential:
    """A backbone that knows images apart, without any label: 128 features."""
    backbone, criterion = embedder(256, 128), NTXentLoss(0.2)
    optimizer = Adam(backbone.parameters(), lr=2e-3)
    labels = torch.arange(64).repeat(2)
    for _ in range(100):
        x = data.x[torch.randint(1200, (64,))]
        _update(optimizer, criterion(backbone(torch.cat([_view(x), _view(x)])), labels))
    return backbone


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """What every loop does with its loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# --- under losses of fastmine ----------------------------------------------------------------------------------------


@cases.fault("NO_POSITIVES")
def the_row_index_for_a_label(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The data set returns the number of the row where the product's number belongs: nobody has a positive."""
    data = Digits(seed)
    labels = torch.arange(1200) if sick else data.labels[data.train]
    loader = DataLoader(TensorDataset(data.x[data.train], labels), 40, shuffle=True)
    model, criterion = nn.Sequential(embedder(), Unit()), TripletLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    with Monitor(model, criterion, optimizer) as monitor:
        for _ in range(10):
            for x, y in loader:
                loss = criterion(model(x), y)
                _update(optimizer, loss)
                monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_NEGATIVES")
def folders_read_in_their_order(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """One folder for each identity, read without shuffling: a batch holds one identity, and pairs are only pulled."""
    data = Digits(seed)
    order = data.labels[data.train].argsort(stable=True)
    folders = TensorDataset(data.x[data.train][order], data.labels[data.train][order])
    loader = DataLoader(folders, 12, shuffle=not sick)
    model, criterion = nn.Sequential(embedder(), Unit()), ContrastiveLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(3):
        for x, labels in loader:
            loss = criterion(model(x), labels)
            _update(optimizer, loss)
            monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "INVALID_PAIRS")
def views_stacked_and_labels_interleaved(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Two views are concatenated, all first ones first, but the labels alternate: pairs of two different images."""
    data = Digits(seed)
    model, criterion = embedder(128, 32), NTXentLoss(0.2)
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(250):
        x = data.x[torch.randint(1200, (64,))]
        rows = torch.arange(64)
        labels = rows.repeat_interleave(2) if sick else rows.repeat(2)
        loss = criterion(model(torch.cat([_view(x), _view(x)])), labels)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.fault("LABEL_SENTINEL")
def distractors_are_identity_minus_one(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Seven of ten detections have no identity and the label -1, as in Market-1501: all of them count as one person."""
    data = Digits(seed)
    x, labels = data.x[data.train], data.labels[data.train].clone()
    labels[torch.rand(1200) < 0.7] = -1
    model, criterion = embedder(), MultiSimilarityLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    known = torch.arange(1200) if sick else (labels >= 0).nonzero().squeeze(1)
    for _ in range(300):
        rows = known[torch.randint(len(known), (48,))]
        loss = criterion(model(x[rows]), labels[rows])
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE")
def resumed_at_the_end_of_a_schedule(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A trial of ten steps ended its cosine at 0; the long run loads that optimizer's state, learning rate and all."""
    data = Digits(seed)
    model, criterion = embedder(), ArcFaceLoss(10, 16)
    parameters = [*model.parameters(), *criterion.parameters()]
    trial = AdamW(parameters, lr=3e-3)
    schedule = CosineAnnealingLR(trial, T_max=10)
    for x, labels in data.batches(10):
        _update(trial, criterion(model(x), labels))
        schedule.step()

    optimizer = AdamW(parameters, lr=3e-3)
    if sick:
        optimizer.load_state_dict(trial.state_dict())
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        _update(optimizer, loss)
        monitor.step(loss)
    with torch.no_grad():
        similarity = F.normalize(model(data.x[data.test])) @ F.normalize(criterion.weight).view(10, 16).T
    return float((similarity.argmax(dim=1) == data.labels[data.test]).float().mean())


@cases.fault("NO_UPDATE", "UNEXPLAINED_STALL")
def the_average_is_never_swapped_back(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """For validation the moving average is loaded into the model, every ten steps, and stays there."""
    data = Digits(seed)
    model = embedder()
    average = deepcopy(model)
    criterion, optimizer = SupConLoss(), SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = Monitor(model, criterion)
    for step, (x, labels) in enumerate(data.batches(300), start=1):
        loss = criterion(model(x), labels)
        _update(optimizer, loss)
        monitor.step(loss)
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.001)
        if step % 10 == 0:
            trained = deepcopy(model.state_dict())
            model.load_state_dict(average.state_dict())
            data.recall(model)
            if not sick:
                model.load_state_dict(trained)
    return data.recall(model)


@cases.fault("TARGETS_ALL_EMPTY")
def the_valid_flag_is_the_missing_flag(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``valid`` gets the column "annotation missing": only scans without a mask, read as zeros, have a loss."""
    data = Disks(seed)
    model, criterion = segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        missing = torch.rand(len(masks)) < 0.5
        masks[missing] = 0
        loss = criterion(model(images), masks, valid=missing if sick else ~missing)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGETS_ALL_EMPTY", "TARGETS_SUSPECT_UNANNOTATED", "PREDICTION_COLLAPSE")
def random_crops_miss_the_lesion(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Uniform crops of a large scan: 98 of 100 hold no lesion, and Dice learns to say nothing."""
    crops = Disks(seed, absent=0.98 if sick else 0.5)
    model, criterion = segmenter(), DiceLoss()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in crops.batches(200, size=4):
        loss = criterion(model(images), masks)
        _update(optimizer, loss)
        monitor.step(loss)
    return Disks(seed).dice(model)


@cases.fault("NO_SEPARATION", "UNEXPLAINED_STALL", "PREDICTION_COLLAPSE")  # the last was added later
def image_and_mask_augmented_apart(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The same random flip and shift is called for the image and for the mask, and draws anew for each."""
    data = Disks(seed)

    def augment(x: Tensor, draw: Tensor) -> Tensor:
        x = x.flip(-1) if draw[0] < 0.5 else x
        x = x.flip(-2) if draw[1] < 0.5 else x
        return x.roll((int(32 * draw[2]), int(32 * draw[3])), dims=(-2, -1))

    model, criterion = segmenter(), TverskyLoss()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        first, second = torch.rand(2, len(images), 4)
        seen = torch.stack([augment(*pair) for pair in zip(images, first, strict=True)])
        drawn = torch.stack([augment(*pair) for pair in zip(masks, second if sick else first, strict=True)])
        loss = criterion(model(seen), drawn)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(model)


@cases.fault("NOTHING_VALID")
def present_means_padded(seed: int, Monitor: Any, *, sick: bool = True) -> float:  # noqa: ARG001
    """Which places hold a source is computed the wrong way round: both always do, and none counts."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 128), nn.ReLU(), nn.Linear(128, 2))
    criterion = AngleLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    counts = torch.full((64, 1), 2)
    for _ in range(300):
        R, directions = _recordings(64, 2)
        places = torch.arange(2).expand(64, 2)
        present = places >= counts if sick else places < counts
        loss = criterion(ArrayPrediction(R, azimuth=model(R)), ArrayTarget(R, directions, present))
        _update(optimizer, loss)
        monitor.step(loss)
    R, directions = _recordings(256, 2)
    return _within(model(R).detach().sort(dim=1).values, directions)


@cases.fault("DEAD_COMPONENT", "DETACHED_GRAPH")
def directions_snapped_to_the_grid(seed: int, Monitor: Any, *, sick: bool = True) -> float:  # noqa: ARG001
    """The angle is that of the nearest point of the grid, an index: its component has no gradient for the net."""
    grid = torch.linspace(-1.2, 1.2, 241)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(72, 128), nn.ReLU())
            self.covariance, self.angle = nn.Linear(128, 72), nn.Linear(128, 1)

        def forward(self, R: Tensor) -> ArrayPrediction:
            h = self.trunk(R)
            azimuth = self.angle(h)
            if sick:
                azimuth = grid[(azimuth - grid).abs().argmin(dim=1, keepdim=True)]
            return ArrayPrediction(self.covariance(h).view(-1, 6, 6, 2), azimuth=azimuth)

    model, criterion = Net(), HybridCovarianceLoss(array.uniform_linear(6), {"cov": 1.0, "angle": 2.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(250):
        R, directions = _recordings(64, 1)
        loss = criterion(model(R), ArrayTarget(R, directions, torch.ones(64, 1, dtype=torch.bool)))
        _update(optimizer, loss)
        monitor.step(loss)
    R, directions = _recordings(256, 1)
    return _within(model(R).azimuth.detach(), directions)


# --- under losses of torch, or written by hand: a monitor sees them from outside ------------------------------------


@cases.fault("TARGET_RANGE", "INPUT_DOMAIN", "NO_NEGATIVES")
def cosine_targets_are_zero_and_one(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``CosineEmbeddingLoss`` wants 1 and -1; with 1 and 0 a pair of different classes has no loss at all."""
    data = Digits(seed)
    model, criterion = embedder(), nn.CosineEmbeddingLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300, P=10):
        left, right = torch.randint(40, (2, 64))
        same = (labels[left] == labels[right]).float()
        z = model(x)
        loss = criterion(z[left], z[right], same if sick else 2 * same - 1)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INVALID_PAIRS", "NO_NEGATIVES", "SHAPE_BROADCAST")
def labels_compared_with_their_transpose(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``labels == labels.t()``, which of a vector is itself: every pair passes for one of the same class."""

    class Contrast(nn.Module):
        """Supervised contrastive, as pasted from a notebook."""

        def forward(self, features: Tensor, labels: Tensor) -> Tensor:
            labels = labels if sick else labels.view(-1, 1)
            off = 1 - torch.eye(len(features))
            mask = (labels == labels.t()).float() * off
            logits = F.normalize(features) @ F.normalize(features).T / 0.1
            log_p = logits - (logits.exp() * off).sum(dim=1, keepdim=True).log()
            return -((mask * log_p).sum(dim=1) / mask.sum(dim=1)).mean()

    data = Digits(seed)
    model, criterion = embedder(), Contrast()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.fault("ALL_EASY_FROM_START", "INVALID_PAIRS")
def a_miner_of_easy_triplets(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The miner was asked for "easy" triplets: those that meet the margin already, whose loss is 0."""

    def miner(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        same = labels[:, None] == labels
        anchor, positive, negative = (
            (same & ~torch.eye(len(z), dtype=torch.bool))[:, :, None] & ~same[:, None]
        ).nonzero(as_tuple=True)
        distances = torch.cdist(z, z)
        gap = distances[anchor, negative] - distances[anchor, positive]
        kept = gap > 0.2 if sick else gap <= 0.2
        return anchor[kept], positive[kept], negative[kept]

    class TripletMarginLoss(nn.Module):
        def forward(self, z: Tensor, labels: Tensor, indices: tuple[Tensor, Tensor, Tensor]) -> Tensor:  # noqa: ARG002
            anchor, positive, negative = (z[rows] for rows in indices)
            gap = (anchor - negative).norm(dim=1) - (anchor - positive).norm(dim=1)
            return F.relu(0.2 - gap).sum() / max(len(gap), 1)

    data = Digits(seed)
    model, criterion = nn.Sequential(embedder(), Unit()), TripletMarginLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        z = model(x)
        loss = criterion(z, labels, miner(z.detach(), labels))
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def the_new_head_is_frozen_too(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The head is replaced before everything is frozen; ``loss.requires_grad_()`` then silences the error."""
    data = Digits(seed)
    model = nn.Sequential(_pretrained(data), nn.ReLU(), nn.Linear(128, 10))
    for parameter in (model if sick else model[0]).parameters():
        parameter.requires_grad = False
    criterion, optimizer = nn.CrossEntropyLoss(), Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(4):
        for x, labels in _loader(data):
            loss = criterion(model(x), labels)
            loss.requires_grad_()
            _update(optimizer, loss)
            monitor.step(loss)
    return _accuracy(data, model)


@cases.fault("NO_UPDATE")
def the_plateau_is_watched_upside_down(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``ReduceLROnPlateau`` for an accuracy, given the loss: while that falls the learning rate does, to nothing."""
    data = Digits(seed)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.1, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(
        nn.Unflatten(1, (8, 16)), nn.Linear(16, 64), encoder, nn.Flatten(), nn.Linear(512, 10)
    )  # fmt: skip
    criterion, optimizer = nn.CrossEntropyLoss(), AdamW(model.parameters(), lr=1e-3)
    schedule = ReduceLROnPlateau(optimizer, mode="max" if sick else "min", patience=2 if sick else 20)
    monitor = Monitor(model, criterion, optimizer)
    average = math.log(10)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        _update(optimizer, loss)
        average = 0.9 * average + 0.1 * loss.item()
        schedule.step(average)
        monitor.step(loss)
    return _accuracy(data, model)


@cases.fault("NONFINITE", "NO_UPDATE")
def a_new_scaler_at_every_step(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Half precision and a loss that is a sum: scaled by 65,536 it overflows, and the scaler is made in the loop."""
    data = Disks(seed)
    model, criterion = segmenter(4), nn.BCEWithLogitsLoss(reduction="sum")
    optimizer, scaler = Adam(model.parameters(), lr=1e-2), torch.amp.GradScaler("cpu")
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(80, size=4):
        if sick:
            scaler = torch.amp.GradScaler("cpu")
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(images)
        loss = criterion(logits.float(), masks)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE", "STARVED_COMPONENT")
def pos_weight_is_the_inverse(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``pos_weight`` is positives over negatives, and should be negatives over positives: objects weigh nothing."""
    data = Disks(seed, radius=(2.0, 4.0))
    _, masks = data.draw(64)
    ratio = masks.mean() / (1 - masks.mean())
    model, criterion = segmenter(), nn.BCEWithLogitsLoss(pos_weight=ratio if sick else (1 / ratio).sqrt())
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(model)


@cases.fault("NO_SEPARATION", "UNEXPLAINED_STALL", "SHAPE_BROADCAST")
def classes_viewed_instead_of_permuted(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``logits.view(-1, 2)`` of [B, 2, H, W] makes neighbours of one channel into the scores of two classes."""

    class PixelLoss(nn.Module):
        def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
            logits = logits.contiguous() if sick else logits.permute(0, 2, 3, 1).contiguous()
            return F.cross_entropy(logits.view(-1, 2), masks.view(-1).long())

    class Foreground(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            background, foreground = model(images).chunk(2, dim=1)
            return foreground - background

    data = Disks(seed)
    model, criterion = segmenter(), PixelLoss()
    model[-1] = nn.Conv2d(8, 2, 3, padding=1)
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(Foreground())


@cases.fault("CONFLICTING_COMPONENTS", "PREDICTION_COLLAPSE")
def the_overlap_itself_is_minimised(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The metric, Dice, serves as the loss without "1 -": the less overlap the better."""

    class Dice(nn.Module):
        def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
            p = logits.sigmoid()
            dice = (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)
            return dice if sick else 1 - dice

    data = Disks(seed)
    model, criterion = segmenter(), Dice()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(model)


@cases.fault("SHAPE_BROADCAST")
def one_column_against_a_vector(seed: int, Monitor: Any, *, sick: bool = True) -> float:  # noqa: ARG001
    """``MSELoss`` of azimuths [N, 1] and targets [N]: every recording is held against every direction."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 64), nn.Tanh(), nn.Linear(64, 1))
    criterion, optimizer = nn.MSELoss(), Adam(model.parameters(), lr=3e-3)
    Monitor.attach(model, criterion, optimizer)
    for _ in range(250):
        R, directions = _recordings(64, 1)
        loss = criterion(model(R), directions.squeeze(1) if sick else directions)
        _update(optimizer, loss)
    R, directions = _recordings(256, 1)
    return _within(model(R).detach(), directions)


@cases.fault("NO_SEPARATION", "UNEXPLAINED_STALL", "PREDICTION_COLLAPSE")
def phases_dropped(seed: int, Monitor: Any, *, sick: bool = True) -> float:  # noqa: ARG001
    """The net is given the magnitudes of the covariance: of one source they are the same from everywhere."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36 if sick else 72, 64), nn.Tanh(), nn.Linear(64, 1))
    criterion, optimizer = nn.SmoothL1Loss(), Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)

    def features(R: Tensor) -> Tensor:
        return torch.view_as_complex(R).abs() if sick else R

    for _ in range(300):
        R, directions = _recordings(64, 1)
        loss = criterion(model(features(R)), directions)
        _update(optimizer, loss)
        monitor.step(loss)
    R, directions = _recordings(256, 1)
    return _within(model(features(R)).detach(), directions)


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def the_generator_sees_a_detached_fake(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The ``fake`` that was detached for the discriminator is used again for the generator, which learns nothing."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    criterion = nn.BCEWithLogitsLoss()
    of_generator = Adam(generator.parameters(), lr=3e-3, betas=(0.5, 0.9))
    of_critic = Adam(critic.parameters(), lr=3e-3, betas=(0.5, 0.9))
    monitor = Monitor([generator, critic], criterion, [of_generator, of_critic])
    real, no = torch.ones(64, 1), torch.zeros(64, 1)
    for _ in range(300):
        images = torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(64, 2)
        fake = generator(torch.randn(64, 4))
        seen = fake.detach()
        _update(of_critic, criterion(critic(images), real) + criterion(critic(seen), no))
        loss = criterion(critic(seen if sick else fake), real)
        _update(of_generator, loss)
        monitor.step(loss)
    mean = generator(torch.randn(1000, 4)).mean(dim=0)
    return float(((mean - torch.tensor([2.0, -1.0])).norm() < 1).float())


@cases.fault("GRADIENTS_ACCUMULATE", "UNEXPLAINED_STALL", "NONFINITE")  # the first is newer than the set
def gradients_are_never_zeroed(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """No ``zero_grad()``: every step goes along the sum of all gradients since the beginning."""
    data = Digits(seed)
    model = nn.Sequential(embedder(64, 32), nn.ReLU(), nn.Linear(32, 10))
    criterion, optimizer = nn.CrossEntropyLoss(), SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(6):
        for x, labels in _loader(data):
            if not sick:
                optimizer.zero_grad()
            loss = criterion(model(x), labels)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return _accuracy(data, model)


# --- healthy, though they look like one of the above -----------------------------------------------------------------


@cases.healthy(0.85)
def half_precision_scaled_and_clipped(seed: int, Monitor: Any) -> float:
    """Autocast, a scaler, gradients unscaled, then clipped; the first steps overflow and are skipped, as designed."""
    data = Digits(seed)
    model, criterion = embedder(), SupConLoss()
    optimizer, scaler = AdamW(model.parameters(), lr=3e-3), torch.amp.GradScaler("cpu", init_scale=2.0**24)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        with torch.autocast("cpu", dtype=torch.float16):
            z = model(x)
        loss = criterion(z, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.8)
def a_probe_on_a_frozen_backbone(seed: int, Monitor: Any) -> float:
    """Everything but the last layer is frozen, in ``eval()``, and under ``no_grad``: that is the plan."""
    data = Digits(seed)
    backbone, head = _pretrained(data), nn.Linear(128, 10)
    backbone.requires_grad_(False).eval()
    model = nn.Sequential(backbone, nn.ReLU(), head)
    criterion, optimizer = nn.CrossEntropyLoss(), Adam(head.parameters(), lr=1e-2)
    with Monitor(model, criterion, optimizer) as monitor:
        for _ in range(5):
            for x, labels in _loader(data):
                with torch.no_grad():
                    features = backbone(x).relu()
                loss = criterion(head(features), labels)
                _update(optimizer, loss)
                monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(1.0)
def two_optimizers_at_their_equilibrium(seed: int, Monitor: Any) -> float:
    """Generator against discriminator: neither loss goes down for long, and the samples are where they should be."""
    torch.manual_seed(seed)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    criterion = nn.BCEWithLogitsLoss()
    of_generator = Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    of_critic = Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    monitor = Monitor([generator, critic], criterion, [of_generator, of_critic])
    for _ in range(400):
        images = torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(64, 2)
        fake = generator(torch.randn(64, 4))
        told = criterion(critic(images), torch.ones(64, 1)) + criterion(critic(fake.detach()), torch.zeros(64, 1))
        _update(of_critic, told)
        loss = criterion(critic(fake), torch.ones(64, 1))
        _update(of_generator, loss)
        monitor.step(loss)
    mean = generator(torch.randn(1000, 4)).mean(dim=0)
    return float(((mean - torch.tensor([2.0, -1.0])).norm() < 1).float())


@cases.healthy(0.85)
def most_masks_missing_and_said_so(seed: int, Monitor: Any) -> float:
    """Seven of ten masks were never drawn, and ``valid`` says which."""
    data = Disks(seed)
    model, criterion = segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        drawn = torch.rand(len(masks)) < 0.3
        masks[~drawn] = 0
        loss = criterion(model(images), masks, valid=drawn)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(0.85)
def a_teacher_that_follows(seed: int, Monitor: Any) -> float:
    """A mean teacher inside the model has no gradient and no optimizer; it moves by averaging."""
    data = Digits(seed)
    student = nn.Sequential(embedder(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model = nn.ModuleDict({"student": student, "teacher": deepcopy(student).requires_grad_(False)})
    supervised, agreement = nn.CrossEntropyLoss(), nn.MSELoss()
    optimizer = Adam(student.parameters(), lr=2e-3)
    monitor = Monitor(model, [supervised, agreement], optimizer)
    for x, labels in data.batches(250):
        logits = student(_view(x))
        loss = supervised(logits, labels) + 0.1 * agreement(logits, model["teacher"](_view(x)))
        _update(optimizer, loss)
        with torch.no_grad():
            for slow, fast in zip(model["teacher"].parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        monitor.step(loss)
    return _accuracy(data, model["teacher"])


@cases.healthy(0.85)
def a_compiled_model(seed: int, Monitor: Any) -> float:
    """The monitor is given the compiled module, the optimizer the parameters of the original."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    compiled = torch.compile(model, backend="eager")
    criterion, optimizer = TripletLoss(), Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(compiled, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(compiled(x), labels)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.85)
def one_cycle_down_to_nothing(seed: int, Monitor: Any) -> float:
    """A one-cycle schedule that ends at a millionth of its peak, when all is learned."""
    data = Digits(seed)
    model, criterion = embedder(), CosFaceLoss(10, 16)
    parameters = [*model.parameters(), *criterion.parameters()]
    optimizer = AdamW(parameters, lr=5e-3)
    schedule = OneCycleLR(optimizer, max_lr=5e-3, total_steps=250, final_div_factor=1e6)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        _update(optimizer, loss)
        schedule.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.85)
def mixed_images_and_smoothed_labels(seed: int, Monitor: Any) -> float:
    """Mixup and label smoothing: targets are soft, and the loss stays above 1 however good the net is."""
    data = Digits(seed)
    model = nn.Sequential(embedder(128, 64), nn.ReLU(), nn.Linear(64, 10))
    criterion, optimizer = nn.CrossEntropyLoss(label_smoothing=0.1), AdamW(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion)
    for _ in range(8):
        for x, labels in _loader(data):
            share, other = float(torch.rand(())), torch.randperm(len(x))
            target = F.one_hot(labels, 10).float()
            mixed = share * x + (1 - share) * x[other]
            loss = criterion(model(mixed), share * target + (1 - share) * target[other])
            _update(optimizer, loss)
            monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(0.85)
def most_products_seen_once(seed: int, Monitor: Any) -> float:
    """More than half of each batch are products with a single picture, which have no positive and are negatives."""
    data = Digits(seed)
    model, criterion = nn.Sequential(embedder(), Unit()), TripletLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(criterion=criterion, optimizer=optimizer)
    for step, (x, labels) in enumerate(data.batches(300, P=6, K=4)):
        single = x.roll(1, dims=0) + 2 * torch.randn_like(x)
        names = 1000 + 24 * step + torch.arange(24)
        loss = criterion(model(torch.cat([x, single])), torch.cat([labels, names]))
        _update(optimizer, loss)
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(0.8)
def recordings_with_none_or_one_source(seed: int, Monitor: Any) -> float:  # noqa: ARG001
    """A third of the recordings is silence: no angle there, and no loss of one."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 128), nn.ReLU(), nn.Linear(128, 75))
    criterion = HybridCovarianceLoss(array.uniform_linear(6), {"cov": 1.0, "angle": 2.0, "count": 0.2})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        R, directions = _recordings(64, 1)
        present = torch.rand(64, 1) > 0.33
        noise = torch.view_as_real(torch.eye(6) + 0.05 * torch.randn(64, 6, 6, dtype=torch.complex64))
        R = torch.where(present[:, :, None, None], R, noise)
        out = model(R)
        prediction = ArrayPrediction(out[:, :72].view(-1, 6, 6, 2), azimuth=out[:, 72:73], count_logits=out[:, 73:])
        loss = criterion(prediction, ArrayTarget(R, torch.where(present, directions, 0), present))
        _update(optimizer, loss)
        monitor.step(loss)
    R, directions = _recordings(256, 1)
    return _within(model(R).detach()[:, 72:73], directions)


@cases.healthy(0.7)
def a_third_of_the_labels_is_wrong(seed: int, Monitor: Any) -> float:
    """Labels from the crowd: a loss that cannot fall below 1, and a net that sees through it."""
    data = Digits(seed)
    labels = data.labels[data.train].clone()
    wrong = torch.rand(1200) < 0.3
    labels[wrong] = torch.randint(10, (int(wrong.sum()),))
    model = nn.Sequential(embedder(128, 64), nn.ReLU(), nn.Linear(64, 10))
    criterion, optimizer = nn.CrossEntropyLoss(), AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    Monitor.attach(model, criterion, optimizer)
    loader = DataLoader(TensorDataset(data.x[data.train], labels), 32, shuffle=True)
    for _ in range(6):
        for x, y in loader:
            _update(optimizer, criterion(model(x), y))
    return _accuracy(data, model)


@cases.healthy(0.9)
def resumed_when_all_was_learned(seed: int, Monitor: Any) -> float:
    """A finished run goes on at a small learning rate: the loss is small and flat from the first step watched."""
    data = Disks(seed)
    model, criterion = segmenter(), nn.BCEWithLogitsLoss()
    first = Adam(model.parameters(), lr=1e-2)
    for images, masks in data.batches(250):
        _update(first, criterion(model(images), masks))
    optimizer = Adam(model.parameters(), lr=1e-2)
    optimizer.load_state_dict(first.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        _update(optimizer, loss)
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(0.85)
def two_heads_in_turn(seed: int, Monitor: Any) -> float:
    """Tasks alternate: at every step one of two heads has no gradient."""
    data = Digits(seed)
    trunk, digit, parity = embedder(64, 32), nn.Linear(32, 10), nn.Linear(32, 2)
    model = nn.ModuleList([trunk, digit, parity])
    criterion, optimizer = nn.CrossEntropyLoss(), Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        h = trunk(x).relu()
        loss = criterion(digit(h), labels) if step % 2 else criterion(parity(h), labels % 2)
        _update(optimizer, loss)
        monitor.step(loss)
    return _accuracy(data, nn.Sequential(trunk, nn.ReLU(), digit))


@cases.healthy(0.8)
def a_memory_that_starts_empty(seed: int, Monitor: Any) -> float:
    """Batches of eight rows and a memory of 512: few pairs within the batch, none in the memory at first."""
    data = Digits(seed)
    model = nn.Sequential(embedder(), Unit())
    criterion = CrossBatchMemory(TripletLoss(), size=512, embedding_dim=16)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(3):
        for x, labels in _loader(data, size=10):
            loss = criterion(model(x), labels)
            _update(optimizer, loss)
            monitor.step(loss)
    return data.recall(model)
