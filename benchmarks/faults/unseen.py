"""Faults and healthy runs that were kept from the author of the rules until the rules were settled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, AdamW

from fastmine.losses import CombinedSegmentationLoss, CompositeLoss, DiceLoss, TripletLoss

from .case import Suite
from .tasks import Bearings, Digits, Disks, direction_loss, embedder, regressor, segmenter, signal_nmse

cases = Suite("unseen")

# --- faults -----------------------------------------------------------------------------------------------------------


@cases.fault("DETACHED_GRAPH", source="Project-MONAI/MONAI#8239")
def thresholded_before_the_loss(seed: int, Monitor: Any) -> float:
    """The prediction is made binary before Dice, and requires_grad_() silences the complaint of backward()."""
    data, model, criterion = Disks(seed), segmenter(), DiceLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        binary = (model(images) > 0).float().requires_grad_()
        loss = criterion(20 * binary - 10, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("INVALID_PAIRS", source="huggingface/sentence-transformers#2827")
def every_positive_is_a_copy(seed: int, Monitor: Any) -> float:
    """Each sample is in the batch twice, without augmentation, and its copy is its only positive."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(200):
        loss = criterion(model(torch.cat([x, x])), torch.arange(len(x)).repeat(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE", "ZERO_NORM_INPUT", source="KevinMusgrave/pytorch-metric-learning#20")
def decayed_to_nothing(seed: int, Monitor: Any) -> float:
    """A weight decay meant for another optimizer multiplies every weight by 0.9 a step."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.2)
    optimizer = AdamW(model.parameters(), lr=1e-3, weight_decay=100.0)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("TARGET_RANGE", "PREDICTION_COLLAPSE", "TARGETS_ALL_EMPTY", source="NifTK/NiftyNet#296")
def masks_divided_twice(seed: int, Monitor: Any) -> float:
    """Masks that are 0 and 1 already are divided by 255: the largest target is 0.004."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images), masks / 255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("NOTHING_VALID", "NONFINITE", source="pytorch/pytorch#75181")
def every_label_ignored(seed: int, Monitor: Any) -> float:
    """Every target is the ignore index of cross entropy: the mean of nothing is NaN."""
    data, model, criterion = Digits(seed), embedder(64, 10), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(100):
        loss = criterion(model(x), torch.full_like(labels, -100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE", source="Haian-Jin/LVSM#19")
def clipped_to_zero(seed: int, Monitor: Any) -> float:
    """The largest gradient norm is read from a configuration as an integer, 0: every gradient is clipped away."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=int(0.5))
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("NONFINITE", source="Project-MONAI/MONAI#807")
def diverges(seed: int, Monitor: Any) -> float:
    """A learning rate three orders of magnitude too high: infinite after a few steps."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer = SGD(model.parameters(), lr=300.0, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(150):
        loss = criterion(100 * model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("SHAPE_BROADCAST", source="jiwei0921/CoNet#3")
def map_without_its_channel(seed: int, Monitor: Any) -> float:
    """Predictions [B, 1, H, W] and targets [B, H, W] under a smooth L1 loss: each image against all of the batch."""
    data, model = Disks(seed), segmenter()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(F.smooth_l1_loss)
    for images, masks in data.batches(100):
        loss = criterion(model(images), masks[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(nn.Sequential(model, _Minus(0.5)))


class _Minus(nn.Module):
    """Subtract a constant."""

    def __init__(self, constant: float) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return x - self.constant


@cases.fault("CONFLICTING_COMPONENTS", source="ljwztc/CLIP-Driven-Universal-Model#65")
def components_against_each_other(seed: int, Monitor: Any) -> float:
    """A diversity term is the main term with the opposite sign, and nearly its weight."""

    def away(prediction: Tensor, target: Tensor) -> Tensor:
        return 2 - direction_loss(prediction, target)

    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "away": away}, {"direction": 1.0, "away": 0.999})
    optimizer = SGD(model.parameters(), lr=3e-2)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- healthy ----------------------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.85)
def validated_in_between(seed: int, Monitor: Any) -> float:
    """The same criterion is called on a validation batch, without gradients, every 10 steps."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
        if step % 10 == 0:
            with torch.no_grad():
                criterion(model(data.x[data.test][:64]), data.labels[data.test][:64])
    return data.recall(model)


@cases.healthy(at_least=0.9)
def line_search(seed: int, Monitor: Any) -> float:
    """L-BFGS calls the closure, and the loss with it, several times a step."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer = LBFGS(model.parameters(), lr=0.5, max_iter=5)
    monitor = Monitor(model, criterion, optimizer)
    x, target = data.draw(512)
    for _ in range(60):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = criterion(model(x), target)
            loss.backward()
            return loss

        monitor.step(optimizer.step(closure))
    return data.hits(model)


@cases.healthy(at_least=0.85)
def two_optimizers(seed: int, Monitor: Any) -> float:
    """One optimizer for the body at a small learning rate, one for the head."""
    data, model, criterion = Digits(seed), embedder(256, 32), TripletLoss(margin=0.5)
    body, head = Adam(model[0].parameters(), lr=1e-3), SGD(model[2].parameters(), lr=3e-2, momentum=0.9)
    monitor = Monitor(model, criterion, [body, head])
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        body.zero_grad()
        head.zero_grad()
        loss.backward()
        body.step()
        head.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def thawed_later(seed: int, Monitor: Any) -> float:
    """The body is frozen for 100 steps, then joins the optimizer."""
    data, model, criterion = Digits(seed), embedder(256, 32), TripletLoss(margin=0.5)
    model[0].requires_grad_(False)
    optimizer = Adam(model[2].parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        if step == 100:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.9)
def targets_in_the_thousands(seed: int, Monitor: Any) -> float:
    """A regression whose targets are in the thousands, and a net that scales its output."""
    data, net, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer = Adam(net.parameters(), lr=3e-3)
    monitor = Monitor(net, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(5000 * net(x), 5000 * target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(net)


@cases.healthy(at_least=0.6)
def tiny_batches_and_dropout(seed: int, Monitor: Any) -> float:
    """Batches of 8, dropout, 10 % of the labels wrong: the loss jumps between 0 and several times its mean."""
    data, model, criterion = Digits(seed), embedder(256, 32), TripletLoss(margin=0.3)
    model.insert(2, nn.Dropout(0.3))
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(400, P=4, K=2):
        wrong = torch.rand(len(x)) < 0.1
        loss = criterion(model(x), torch.where(wrong, torch.randint(0, 10, (len(x),)), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def rare_class_of_a_multilabel_net(seed: int, Monitor: Any) -> float:
    """Three channels: the disk, its inverse, and a structure that one image in ten has."""
    data, model = Disks(seed), segmenter()
    model[4] = nn.Conv2d(8, 3, 3, padding=1)
    criterion = CombinedSegmentationLoss(mode="multilabel")
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        rare = (torch.rand(len(masks), 1, 1, 1) < 0.1).float()
        loss = criterion(model(images * (1 + rare)), torch.cat([masks, 1 - masks, masks * rare], dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(nn.Sequential(model, _First()))


class _First(nn.Module):
    """The first channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


@cases.healthy(at_least=0.9)
def regularised_outside(seed: int, Monitor: Any) -> float:
    """A weight penalty is added to the criterion's value; the monitor's step comes before backward()."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0})
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target) + 1e-4 * sum(p.square().sum() for p in model.parameters())
        monitor.step(loss, logged=loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return data.hits(model)


@cases.healthy(at_least=0.85)
def deep_net_with_batch_norm(seed: int, Monitor: Any) -> float:
    """Eight convolutions of 32 channels with batch norm, on Dice alone."""
    layers: list[nn.Module] = [nn.Conv2d(1, 32, 3, padding=1)]
    for _ in range(6):
        layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    data, model, criterion = Disks(seed), nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(32, 1, 1)), DiceLoss()
    optimizer = AdamW(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(40):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)
