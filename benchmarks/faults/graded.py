"""Sixteen faults and ten healthy runs: a fifth set, small and ordinary, by somebody who had not seen the rules.

What an examiner of this package writes first: pairs that are not pairs, masks that are not masks, angles that cannot be
reached, and loops that go through the motions. Eight faults are under losses of fastmine, eight under losses of torch
or written by hand. Without its fault, ``sick=False``, every sick run succeeds at its task: ``python -m
benchmarks.faults.cured`` measures both. First score: README.md.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, StepLR

from fastmine import array
from fastmine.losses import (
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    CombinedSegmentationLoss,
    CrossBatchMemory,
    HybridCovarianceLoss,
    NTXentLoss,
    ProxyAnchorLoss,
    SegmentationLoss,
    SupConLoss,
    TripletLoss,
)

from .case import Suite
from .tasks import Bearings, Digits, Disks, Unit, embedder, regressor, segmenter

cases = Suite("graded")


def _accuracy(data: Digits, model: nn.Module) -> float:
    """Share of the held-out digits that are named rightly."""
    with torch.no_grad():
        return float((model(data.x[data.test]).argmax(dim=1) == data.labels[data.test]).float().mean())


def _mask_dice(data: Disks, model: nn.Module) -> float:
    """Dice of a net of two classes."""

    class Difference(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            logits = model(images)
            return logits[:, 1:] - logits[:, :1]

    return data.dice(Difference())


def _two_classes() -> nn.Sequential:
    """Like ``segmenter``, with a logit for the background as well."""
    net = segmenter()
    net[-1] = nn.Conv2d(8, 2, 3, padding=1)
    return net


class _Darker(nn.Module):
    """One division by 255 too many."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 255


def _views(x: Tensor) -> Tensor:
    """The same digits beside other noise: what two views of a sample are in this task."""
    return torch.cat([x[:, :64], 0.5 * torch.randn(len(x), 64)], dim=1)


def _another(labels: Tensor, *, same: bool) -> Tensor:
    """For each row another one of the same class, or of a different one."""
    alike = (labels == labels.unsqueeze(1)) & ~torch.eye(len(labels), dtype=torch.bool)
    chosen = alike if same else labels != labels.unsqueeze(1)
    return torch.multinomial(chosen.float(), 1).squeeze(1)


class _Array:
    """Six sensors hear ``sources`` directions within a radian of broadside, from left to right, and noise."""

    def __init__(self, seed: int, sources: int) -> None:
        self.generator, self.sources = torch.Generator().manual_seed(seed), sources
        self.positions = array.uniform_linear(6)

    def draw(self, n: int) -> tuple[Tensor, ArrayTarget]:
        """Inputs [n, 72], the measured covariance, and the truth."""
        width = 2.0 / self.sources
        left = -1.0 + width * torch.arange(self.sources)
        azimuth = left + 0.1 + (width - 0.2) * torch.rand(n, self.sources, generator=self.generator)
        A = array.steering(self.positions, azimuth)
        noise = torch.randn(n, 6, 50, dtype=torch.complex64, generator=self.generator)
        signal = torch.randn(n, self.sources, 50, dtype=torch.complex64, generator=self.generator)
        measured = array.sample_covariance(A @ signal + 0.2 * noise)
        target = ArrayTarget(A @ A.mH + 0.04 * torch.eye(6), azimuth, torch.ones_like(azimuth, dtype=torch.bool))
        return torch.view_as_real(measured).flatten(1), target

    def net(self) -> nn.Sequential:
        """Raw factors of the covariance, then a number for each azimuth."""
        return nn.Sequential(
            nn.Linear(72, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 13 * self.sources)
        )

    def prediction(self, output: Tensor, *, half: bool = False) -> ArrayPrediction:
        """The output as a covariance and azimuths, in a ``half`` of the circle only."""
        raw, angles = output.split([12 * self.sources, self.sources], dim=1)
        factors = torch.view_as_complex(raw.reshape(len(raw), 6, self.sources, 2).contiguous())
        azimuth = angles.sigmoid() if half else angles.tanh()
        return ArrayPrediction(factors @ factors.mH + 0.04 * torch.eye(6), azimuth=math.pi / 2 * azimuth)

    def hits(self, model: nn.Module, *, half: bool = False) -> float:
        """Share of sources found within 0.1 radians."""
        x, target = self.draw(256)
        with torch.no_grad():
            azimuth = self.prediction(model(x), half=half).azimuth
        assert azimuth is not None
        return float(((azimuth - target.azimuth).abs() < 0.1)[target.present].float().mean())


# --- faults under losses of fastmine ---------------------------------------------------------------------------------


@cases.fault("NO_SEPARATION", "INVALID_PAIRS", "UNEXPLAINED_STALL")
def views_labelled_as_if_interleaved(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Two views are stacked one after the other, but labelled 0, 0, 1, 1, ...: every positive pair is two strangers."""
    data, model, criterion = Digits(seed), nn.Sequential(embedder(), Unit()), NTXentLoss(0.2)
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for ordered, _ in data.batches(250):
        x, labels = ordered[torch.randperm(32)], torch.arange(32)
        labels = labels.repeat_interleave(2) if sick else labels.repeat(2)
        loss = criterion(model(torch.cat([_views(x), _views(x)])), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "INVALID_PAIRS", "UNEXPLAINED_STALL")
def memory_of_labels_by_batch(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """Labels are numbered anew in every batch, as a triplet loss allows; the memory holds them over batches."""
    data, model = Digits(seed), nn.Sequential(embedder(), Unit())
    criterion = CrossBatchMemory(TripletLoss(margin=0.2), size=512, embedding_dim=16)
    optimizer = Adam(model.parameters(), 1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        if sick:
            names = labels.unique()[torch.randperm(8)]
            labels = (labels.unsqueeze(1) == names).int().argmax(dim=1)  # noqa: PLW2901
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "UNEXPLAINED_STALL")
def table_sorted_without_its_images(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The table of labels was sorted by another column and the images were not: labels belong to other rows."""
    data, model, criterion = Digits(seed), nn.Sequential(embedder(), Unit()), TripletLoss(margin=0.2)
    if sick:
        data.labels[data.train] = data.labels[data.train][data.x[data.train, 100].argsort()]
    optimizer = Adam(model.parameters(), 1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", "NO_SEPARATION", "UNEXPLAINED_STALL")
def images_divided_twice(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """ToTensor has divided by 255 already, and the data set does so again: all images are black to the net."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), 1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images / 255 if sick else images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(nn.Sequential(_Darker(), model) if sick else model)


@cases.fault("UNEXPLAINED_STALL", "NO_SEPARATION", "PREDICTION_COLLAPSE")
def images_turned_without_their_masks(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The augmentation turns the image by a quarter, or two, or three, and leaves the mask as it is."""
    data, model = Disks(seed, radius=(3.0, 5.0)), segmenter()
    criterion = SegmentationLoss({"bce": 0.5, "dice": 0.5})
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        quarters = int(torch.randint(1, 4, ()))
        turned = images.rot90(quarters, dims=(2, 3))
        loss = criterion(model(turned), masks if sick else masks.rot90(quarters, dims=(2, 3)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("NOTHING_VALID", "FEW_VALID", "DEAD_COMPONENT")
def padding_mask_for_presence(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``present`` is given as transformers want it, True where there is padding: no source is present."""
    data = _Array(seed, sources=2)
    model, criterion = data.net(), HybridCovarianceLoss(data.positions, {"cov": 1.0, "angle": 2.0})
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        x, target = data.draw(64)
        target = target._replace(present=~target.present if sick else target.present)
        loss = criterion(data.prediction(model(x)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("LOSS_FLOOR", "SATURATED_GRADIENT", "UNEXPLAINED_STALL", "TARGET_RANGE")  # the last was added later
def azimuth_by_a_sigmoid(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The azimuth is a quarter circle times a sigmoid: everything on the left of broadside is out of reach."""
    data = _Array(seed, sources=1)
    model, criterion = data.net(), HybridCovarianceLoss(data.positions, {"cov": 0.5, "angle": 2.0})
    optimizer = Adam(model.parameters(), 3e-3)
    Monitor.attach(model, criterion, optimizer)
    for _ in range(300):
        x, target = data.draw(64)
        loss = criterion(data.prediction(model(x), half=sick), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data.hits(model, half=sick)


@cases.fault("NO_UPDATE")
def net_replaced_after_the_optimizer(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The net is copied for the "device" after the optimizer was made, which goes on with the original's weights."""
    data, model, criterion = Digits(seed), embedder(width=16, features=4), ArcFaceLoss(10, 4, scale=8.0, margin=0.2)
    optimizer = Adam([*model.parameters(), *criterion.parameters()], 3e-3)
    model = deepcopy(model) if sick else model
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- faults under losses of torch, or written by hand ----------------------------------------------------------------


@cases.fault("EMBEDDING_COLLAPSE", "NO_NEGATIVES", "TARGET_RANGE", "LABEL_SENTINEL")
def cosine_targets_of_zero_and_one(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``CosineEmbeddingLoss`` wants -1 for strangers and gets 0, which it leaves out without a word."""
    data, model, criterion = Digits(seed), embedder(), nn.CosineEmbeddingLoss(margin=0.2)
    optimizer = Adam(model.parameters(), 1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        z, same = model(x), torch.rand(len(x)).round()
        other = torch.where(same > 0, _another(labels, same=True), _another(labels, same=False))
        loss = criterion(z, z[other], same if sick else 2 * same - 1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE", "NO_SEPARATION", "UNEXPLAINED_STALL")
def momentum_for_weight_decay(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``SGD`` gets 0.9 as its weight decay, which was meant as momentum: the weights fade faster than they learn."""
    data, model, criterion = Digits(seed), embedder(), nn.TripletMarginLoss(1.0)
    optimizer = SGD(model.parameters(), 0.05, **{"weight_decay" if sick else "momentum": 0.9})
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        z = model(x)
        loss = criterion(z, z[_another(labels, same=True)], z[_another(labels, same=False)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("SATURATED_GRADIENT", "PREDICTION_COLLAPSE", "INPUT_DOMAIN", "DETACHED_GRAPH")
def softmax_of_one_channel(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A Dice loss by hand takes the softmax over the only channel: the probability is 1 everywhere and for ever."""

    def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
        p = logits.softmax(dim=1) if sick else logits.sigmoid()
        return 1 - (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)

    data, model = Disks(seed), segmenter()
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, None, optimizer)
    for images, masks in data.batches(150):
        logits = model(images)
        loss = dice_loss(logits, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss, inputs=(logits, masks))
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE", "CONFLICTING_COMPONENTS")
def score_for_a_loss(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """A module from a file of metrics is the criterion: it returns the Dice score, and the score is minimised."""

    class SoftDice(nn.Module):
        def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
            p = logits.sigmoid()
            score = (2 * (p * masks).sum() + 1) / (p.sum() + masks.sum() + 1)
            return score if sick else 1 - score

    data, model, criterion = Disks(seed), segmenter(), SoftDice()
    optimizer = AdamW(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE", "ZERO_WEIGHT", "STARVED_COMPONENT")
def positive_weight_upside_down(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``pos_weight`` is positives over negatives, not negatives over positives: small objects weigh next to nothing."""
    data, model = Disks(seed, radius=(2.0, 3.0)), segmenter()
    share = data.draw(64)[1].mean()
    criterion = nn.BCEWithLogitsLoss(pos_weight=share / (1 - share) if sick else ((1 - share) / share).sqrt())
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("SHAPE_BROADCAST")
def azimuth_column_against_row(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """The net says [N, 1], the truth is [N], and the smooth L1 loss compares everybody with everybody."""
    data = _Array(seed, sources=1)
    model = nn.Sequential(nn.Linear(72, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1))
    criterion, optimizer = nn.SmoothL1Loss(beta=0.1), Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        x, target = data.draw(64)
        loss = criterion(model(x), target.azimuth.squeeze(1) if sick else target.azimuth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    x, target = data.draw(256)
    with torch.no_grad():
        return float(((model(x) - target.azimuth).abs() < 0.1).float().mean())


@cases.fault("NO_UPDATE")
def scheduler_of_epochs_in_the_inner_loop(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``StepLR(step_size=5)`` counts epochs and is stepped after every batch: after fifty, the rate is 1e-10 of it."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=5, gamma=0.1)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
        if sick or step % 40 == 39:
            scheduler.step()
    return _accuracy(data, model)


@cases.fault("NO_UPDATE")
def gradients_cleared_before_the_step(seed: int, Monitor: Any, *, sick: bool = True) -> float:
    """``zero_grad`` stands between ``backward`` and ``step``: there is never a gradient to follow."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(250):
        loss = criterion(model(x), target)
        if not sick:
            optimizer.zero_grad()
        loss.backward()
        if sick:
            optimizer.zero_grad()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- healthy runs ----------------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.8)
def two_views_and_no_labels(seed: int, Monitor: Any) -> float:
    """Contrastive learning as it should be: every class is of two rows, and most strangers are alike."""
    data, model, criterion = Digits(seed), nn.Sequential(embedder(), Unit()), NTXentLoss(0.2)
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(250):
        loss = criterion(model(torch.cat([_views(x), _views(x)])), torch.arange(len(x)).repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.8)
def last_batch_of_one(seed: int, Monitor: Any) -> float:
    """Without ``drop_last``, every epoch of nine batches ends with a single row, which has nobody to compare with."""
    data, model, criterion = Digits(seed), nn.Sequential(embedder(), Unit()), SupConLoss()
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(250)):
        rows = 1 if step % 9 == 8 else len(x)
        loss = criterion(model(x[:rows]), labels[:rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def masks_smoothed_on_purpose(seed: int, Monitor: Any) -> float:
    """Label smoothing: a mask is 0.05 where there is nothing and 0.95 where there is an object."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), 0.05 + 0.9 * masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.7)
def sometimes_one_source(seed: int, Monitor: Any) -> float:
    """Two places for sources, and in half of the recordings the second one is not to be judged."""
    data = _Array(seed, sources=2)
    model, criterion = data.net(), HybridCovarianceLoss(data.positions, {"cov": 1.0, "angle": 2.0})
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        x, target = data.draw(64)
        target.present[:32, 1] = False
        loss = criterion(data.prediction(model(x)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.8)
def proxies_with_their_own_rate(seed: int, Monitor: Any) -> float:
    """The proxies at a hundred times the rate of a net that is fine-tuned gently, as the documentation says."""
    data, model, criterion = Digits(seed), embedder(), ProxyAnchorLoss(10, 16)
    optimizer = AdamW([
        {"params": model.parameters(), "lr": 5e-4}, {"params": criterion.parameters(), "lr": 5e-2}
    ])  # fmt: skip
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def warmed_up_and_annealed_to_nothing(seed: int, Monitor: Any) -> float:
    """The rate rises from 0 over 40 steps and falls to 0 along a cosine; gradients are clipped."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = AdamW(model.parameters(), 5e-3)
    scheduler = LambdaLR(optimizer, lambda step: min(step / 40, 0.5 + 0.5 * math.cos(math.pi * step / 300)))
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(at_least=0.85)
def borders_are_ignored(seed: int, Monitor: Any) -> float:
    """Nobody can say where exactly a border is: those pixels are 255, and ignored."""
    data, model, criterion = Disks(seed), _two_classes(), nn.CrossEntropyLoss(ignore_index=255)
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        grown, shrunk = F.max_pool2d(masks, 3, 1, 1), -F.max_pool2d(-masks, 3, 1, 1)
        labels = torch.where(grown > shrunk, 255, masks.long()).squeeze(1)
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _mask_dice(data, model)


@cases.healthy(at_least=0.85)
def digits_mixed_up(seed: int, Monitor: Any) -> float:
    """Mixup: inputs and one-hot labels of two rows are mixed, so that the loss stays high whatever is learned."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    mixing = torch.distributions.Beta(0.4, 0.4)
    for x, labels in data.batches(250):
        share, other, y = mixing.sample(), torch.randperm(len(x)), F.one_hot(labels, 10).float()
        loss = criterion(model(share * x + (1 - share) * x[other]), share * y + (1 - share) * y[other])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(at_least=0.8)
def resumed_where_little_is_left(seed: int, Monitor: Any) -> float:
    """A net that has converged is trained on, at a tenth of the rate: most triplets cost nothing from the start."""
    data, model, criterion = Digits(seed), nn.Sequential(embedder(), Unit()), nn.TripletMarginLoss(0.3)
    optimizer = Adam(model.parameters(), 3e-3)
    for step, (x, labels) in enumerate(data.batches(300)):
        if step == 150:
            optimizer = Adam(model.parameters(), 3e-4)
            Monitor.attach(model, criterion, optimizer)
        z = model(x)
        loss = criterion(z, z[_another(labels, same=True)], z[_another(labels, same=False)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return data.recall(model)


@cases.healthy(at_least=0.85)
def taught_by_a_teacher(seed: int, Monitor: Any) -> float:
    """Distillation: a trained net's softened answers under ``no_grad`` are the target, labels are not used at all."""
    data, teacher, model = Digits(seed), embedder(features=10), embedder(width=32, features=10)
    learning = Adam(teacher.parameters(), 3e-3)
    for x, labels in data.batches(150):
        learning.zero_grad()
        F.cross_entropy(teacher(x), labels).backward()
        learning.step()
    criterion, optimizer = nn.KLDivLoss(reduction="batchmean"), Adam(model.parameters(), 3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(250):
        with torch.no_grad():
            answers = (teacher(x) / 2).softmax(dim=1)
        loss = 4 * criterion((model(x) / 2).log_softmax(dim=1), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)
