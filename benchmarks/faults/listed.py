"""The 25 faults and 12 healthy runs that this project set out to tell apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD, Adam

from fastmine.losses import BCELoss, CombinedSegmentationLoss, CompositeLoss, TripletLoss

from .case import Suite
from .tasks import (
    Bearings,
    Digits,
    Disks,
    Unit,
    direction_loss,
    embedder,
    regressor,
    segmenter,
    signal_nmse,
    unit_norm_penalty,
)

cases = Suite("listed")

# --- faults: mining ---------------------------------------------------------------------------------------------------


@cases.fault("NO_POSITIVES")
def no_positives(seed: int, Monitor: Any) -> float:
    """Every label of a batch is different: no anchor has a positive."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(150):
        loss = criterion(model(x), torch.randperm(1000)[: len(x)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_NEGATIVES")
def no_negatives(seed: int, Monitor: Any) -> float:
    """The loader is sorted by class, so that a batch holds a single one."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step in range(150):
        x = data.x[data.train][data.labels[data.train] == step // 15 % 10][:32]
        loss = criterion(model(x), torch.full((len(x),), step // 15 % 10))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("DETACHED_GRAPH", "NO_POSITIVES")
def constant_fallback(seed: int, Monitor: Any) -> float:
    """Batches without positives fall back to a constant 0.1, a leaf that requires a gradient and reaches nothing."""
    data, model, triplet = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, triplet, optimizer)
    for x, _ in data.batches(150):
        loss = triplet(model(x), torch.arange(len(x)))
        if loss.item() == 0:
            loss = torch.tensor(0.1, requires_grad=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_POSITIVES", "EMBEDDING_COLLAPSE")
def all_pairs_proxy(seed: int, Monitor: Any) -> float:
    """Without positives the mean distance of all pairs is minimised instead: the loss falls, and so does the spread."""
    data, model, triplet = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, triplet, optimizer)
    for x, _ in data.batches(250):
        z = F.normalize(model(x), dim=1)
        loss = triplet(z, torch.arange(len(x)))
        if loss.item() == 0:
            loss = torch.pdist(z).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("LOSS_FLOOR")
def easy_floor(seed: int, Monitor: Any) -> float:
    """A clamp keeps the loss of easy triplets at 0.05 "so that it never dies": there its gradient is exactly zero."""
    data, model, triplet = Digits(seed), embedder(), TripletLoss(margin=0.2)
    sessions = 3 * F.one_hot(torch.arange(4), 128).float()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, triplet, optimizer)
    for x, _ in data.batches(200):
        session = torch.arange(len(x)) % 4
        loss = triplet(model(0.3 * x + sessions[session]), session).clamp(min=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("ALL_EASY_FROM_START")
def easy_from_the_start(seed: int, Monitor: Any) -> float:
    """Labels are the recording session, far apart by itself: the margin is met at step 0 and nothing is learned."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    sessions = 40 * F.one_hot(torch.arange(4), 128).float()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(150):
        session = torch.arange(len(x)) % 4
        loss = criterion(model(0.1 * x + sessions[session]), session)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE")
def collapse_by_learning_rate(seed: int, Monitor: Any) -> float:
    """A learning rate that is too high throws all embeddings onto one point; the loss stays at the margin."""
    data, model, criterion = Digits(seed), embedder(features=32), TripletLoss(margin=0.2)
    model.append(Unit())
    optimizer = SGD(model.parameters(), lr=30.0, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("DETACHED_GRAPH")
def detached_embeddings(seed: int, Monitor: Any) -> float:
    """The embeddings are rebuilt without their history before the loss sees them."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        z = model(x).detach().requires_grad_()
        loss = criterion(z, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE")
def learning_rate_zero(seed: int, Monitor: Any) -> float:
    """The warm-up counts epochs where it is called once a step, in integers: the learning rate stays 0."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step // 1000))
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INVALID_PAIRS", "NO_POSITIVES")
def self_pairs(seed: int, Monitor: Any) -> float:
    """The batch is handed over as its own reference set: every anchor's only positive is itself, at distance 0."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(200):
        z, each_its_own = model(x), torch.arange(len(x))
        loss = criterion(z, each_its_own, ref_embeddings=z, ref_labels=each_its_own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NONFINITE")
def nan_from_sqrt_of_zero(seed: int, Monitor: Any) -> float:
    """A hand-written distance takes the square root of 0 for a row and itself: its gradient is infinite, then NaN."""
    data, model = Digits(seed), embedder()
    optimizer = Adam(model.parameters(), lr=1e-3)

    def pair_loss(z: Tensor, labels: Tensor) -> Tensor:
        distance = (z[:, None] - z[None, :]).square().sum(dim=2).sqrt()
        same = labels[:, None] == labels[None, :]
        return torch.where(same, distance, (1 - distance).clamp(min=0)).mean()

    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(pair_loss)
    for x, labels in data.batches(100):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- faults: segmentation ---------------------------------------------------------------------------------------------


def _masks_all_empty(seed: int, Monitor: Any, criterion: Any) -> float:
    data, model = Disks(seed), segmenter()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(model(images), torch.zeros_like(masks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGETS_ALL_EMPTY")
def empty_masks_bce(seed: int, Monitor: Any) -> float:
    """Every mask is empty; cross entropy falls to 0 as it should."""
    return _masks_all_empty(seed, Monitor, BCELoss())


@cases.fault("TARGETS_ALL_EMPTY")
def empty_masks_combined(seed: int, Monitor: Any) -> float:
    """Every mask is empty; the combined loss falls to 0 too."""
    return _masks_all_empty(seed, Monitor, CombinedSegmentationLoss())


@cases.fault("TARGETS_SUSPECT_UNANNOTATED")
def mostly_unannotated(seed: int, Monitor: Any) -> float:
    """Nine in ten samples were never annotated and got an empty mask instead."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        annotated = torch.rand(len(masks), 1, 1, 1) < 0.1
        loss = criterion(model(images), masks * annotated)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE")
def prediction_collapse(seed: int, Monitor: Any) -> float:
    """A learning rate that is too high kills the net on small objects: it answers background everywhere."""
    data, model, criterion = Disks(seed, radius=(2.0, 4.0)), segmenter(), BCELoss()
    optimizer = Adam(model.parameters(), lr=1.0)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGET_RANGE")
def masks_0_255(seed: int, Monitor: Any) -> float:
    """Masks come as 0 and 255 and nobody divides; torch's cross entropy takes them and runs to minus infinity."""
    data, model, criterion = Disks(seed), segmenter(), torch.nn.BCEWithLogitsLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(model(images), 255 * masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("INPUT_DOMAIN")
def double_sigmoid(seed: int, Monitor: Any) -> float:
    """The net ends in a sigmoid and the loss takes another: no probability can leave [0.5, 0.73]."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    model.append(torch.nn.Sigmoid())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("NOTHING_VALID")
def all_ignored(seed: int, Monitor: Any) -> float:
    """The annotation flag is read with the wrong sign: every sample is ignored and the loss is 0."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        has_mask = torch.ones(len(masks), dtype=torch.bool)
        loss = criterion(model(images), masks, valid=~has_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


# --- faults: composites and plumbing ----------------------------------------------------------------------------------


@cases.fault("ZERO_WEIGHT")
def main_weight_zero(seed: int, Monitor: Any) -> float:
    """A search sets the main weight to 0; the total and the other component look fine."""
    data, model = Bearings(seed), regressor()
    components = {"direction": direction_loss, "signal": signal_nmse}
    criterion = CompositeLoss(components, {"direction": 0.0, "signal": 1.0}, required=())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("ZERO_WEIGHT")
def schedule_zeroes_all(seed: int, Monitor: Any) -> float:
    """The ramp divides integers: the whole loss is multiplied by 0 at every step."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, target) in enumerate(data.batches(200)):
        loss = (step // 1000) * criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("DEAD_COMPONENT")
def swallowed_exception(seed: int, Monitor: Any) -> float:
    """A component fails at every step; its try ... except answers 0."""

    def direction_or_zero(prediction: Tensor, target: Tensor) -> Tensor:
        try:
            return direction_loss(prediction[:, :2] @ prediction, target)
        except RuntimeError:
            return torch.zeros(())

    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss(
        {"direction": direction_or_zero, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0}
    )
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("STARVED_COMPONENT")
def component_starved(seed: int, Monitor: Any) -> float:
    """One component is in other units, 10,000 times larger: the other is in the sum and never heard."""

    def signal_in_microvolts(prediction: Tensor, target: Tensor) -> Tensor:
        return 1e4 * signal_nmse(prediction, target)

    data, model = Bearings(seed), regressor()
    components = {"direction": direction_loss, "signal": signal_in_microvolts}
    criterion = CompositeLoss(components, {"direction": 1.0, "signal": 1.0})
    optimizer = SGD(model.parameters(), lr=1e-5)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        target[:, 2:] += torch.randn(len(x), 8)
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("NO_UPDATE")
def gate_skips_every_step(seed: int, Monitor: Any) -> float:
    """A gate meant for outliers skips the update whenever the gradient norm exceeds 1e-3, which is always."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if norm < 1e-3:
            optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("NONFINITE")
def sanitised_gradients(seed: int, Monitor: Any) -> float:
    """Every gradient is NaN and nan_to_num makes zeros of them: training runs on, and nothing moves."""

    def root_error(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().sum(dim=0).sqrt().mean() + (0 * prediction).square().sum().sqrt()

    data, model = Bearings(seed), regressor()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(root_error)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            torch.nan_to_num_(parameter.grad, nan=0.0)
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("DETACHED_GRAPH", "DEAD_COMPONENT")
def component_detached(seed: int, Monitor: Any) -> float:
    """One component is computed from .data: it has a value, falls now and then, and teaches nothing."""

    def direction_of_data(prediction: Tensor, target: Tensor) -> Tensor:
        return direction_loss(prediction.data, target)

    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss(
        {"direction": direction_of_data, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0}
    )
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- healthy ----------------------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.9)
def converges_to_zero(seed: int, Monitor: Any) -> float:
    """The margin is met by nearly every anchor at the end: the loss is about 0 because the task is solved."""
    data, model, criterion = Digits(seed), embedder(256, 32), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(400, P=5, K=4):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.9)
def small_learning_rate(seed: int, Monitor: Any) -> float:
    """Fine-tuning of a net that already works, at a learning rate of 2e-5: hardly a change, and rightly so."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin="soft")
    optimizer = Adam(model.parameters(), lr=3e-3)
    for x, labels in data.batches(250):
        optimizer.zero_grad()
        criterion(model(x), labels).backward()
        optimizer.step()
    optimizer = Adam(model.parameters(), lr=2e-5)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def singletons(seed: int, Monitor: Any) -> float:
    """30 % of the rows are the only ones of their class in the batch; the others teach."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(400):
        alone = torch.rand(len(x)) < 0.3
        loss = criterion(model(x), torch.where(alone, 100 + torch.arange(len(x)), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def labels_remapped(seed: int, Monitor: Any) -> float:
    """Class numbers are drawn anew for every batch: only who shares one matters."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), torch.randperm(10_000)[labels])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def soft_margin_plateau(seed: int, Monitor: Any) -> float:
    """A soft margin on the unit sphere cannot fall below log(1 + e^-2): the curve is flat long before the end."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin="soft")
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(400):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


def _segmentation(Monitor: Any, data: Disks, criterion: Any, steps: int = 150) -> float:
    model = segmenter()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(steps):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.85)
def a_third_is_empty(seed: int, Monitor: Any) -> float:
    """34 % of the images hold no disk, and are annotated so."""
    return _segmentation(Monitor, Disks(seed, absent=0.34), CombinedSegmentationLoss())


@cases.healthy(at_least=0.6)
def tiny_foreground(seed: int, Monitor: Any) -> float:
    """0.7 % of the pixels are foreground: the mean prediction is close to 0, and right."""
    return _segmentation(Monitor, Disks(seed, radius=(1.2, 1.8)), CombinedSegmentationLoss(), steps=250)


@cases.healthy(at_least=0.85)
def huge_foreground(seed: int, Monitor: Any) -> float:
    """95 % of the pixels are foreground."""
    data, model, criterion = Disks(seed, radius=(3.0, 4.5)), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, disks in data.batches(400):
        loss = criterion(-model(images), 1 - disks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.9)
def hybrid(seed: int, Monitor: Any) -> float:
    """Three components of different size, all of which teach."""
    data, model = Bearings(seed), regressor()
    components = {"direction": direction_loss, "signal": signal_nmse, "norm": unit_norm_penalty}
    criterion = CompositeLoss(components, {"direction": 1.0, "signal": 0.5, "norm": 0.1})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.9)
def declared_ramp(seed: int, Monitor: Any) -> float:
    """A component is declared to start at weight 0 and to ramp up over 100 steps."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss(
        {"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0},
        required={"direction"}, schedule={"signal": lambda step: min(1.0, step / 100)},
    )  # fmt: skip
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        criterion.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.9)
def satisfied_hinge(seed: int, Monitor: Any) -> float:
    """A hinge component is met soon and stays at 0: it has done its work."""

    def not_too_short(prediction: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
        return (0.3 - prediction[:, :2].norm(dim=1)).clamp(min=0).mean()

    data, model = Bearings(seed), regressor()
    components = {"direction": direction_loss, "signal": signal_nmse, "length": not_too_short}
    criterion = CompositeLoss(components, {"direction": 1.0, "signal": 0.5, "length": 1.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.85)
def accumulation(seed: int, Monitor: Any) -> float:
    """Gradients of four batches make one update."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=6e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(400)):
        loss = criterion(model(x), labels) / 4
        loss.backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
        monitor.step(loss)
    return data.recall(model)
