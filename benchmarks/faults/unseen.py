"""Faults that people met and healthy runs like them, scored once before any rule had seen them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint

from fastmine.losses import BCELoss, CombinedSegmentationLoss, CompositeLoss, FocalLoss, TripletLoss

from .case import Suite
from .tasks import Bearings, Digits, Disks, Unit, direction_loss, embedder, regressor, segmenter, signal_nmse

cases = Suite("unseen")

# --- the first set: what a loss is given ------------------------------------------------------------------------------


@cases.fault("INPUT_DOMAIN", source="ariecattan/SciCo#2")
def softmax_twice(seed: int, Monitor: Any) -> float:
    """The net ends in a softmax and cross entropy takes another: its least possible value is far above 0."""
    data, model, criterion = Digits(seed), embedder(64, 10), nn.CrossEntropyLoss()
    model.append(nn.Softmax(dim=1))
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INPUT_DOMAIN", source="yanx27/Pointnet_Pointnet2_pytorch#30")
def probabilities_where_logarithms_belong(seed: int, Monitor: Any) -> float:
    """Negative log-likelihood is given probabilities: the loss is their negative mean, and below 0."""
    data, model, criterion = Digits(seed), embedder(64, 10), nn.NLLLoss()
    model.append(nn.Softmax(dim=1))
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INPUT_DOMAIN", source="vanvalenlab/deepcell-tf#624, mengcius/Surface-Defect-Detection#3")
def rectified_logits(seed: int, Monitor: Any) -> float:
    """The last layer of the net is a rectifier: no logit is below 0, and no probability below 1/2."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    model.append(nn.ReLU())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGET_RANGE", source="bigmb/Unet-Segmentation-Pytorch-Nest-of-Unets#18")
def masks_normalised_like_images(seed: int, Monitor: Any) -> float:
    """The augmentation normalises the mask as it does the image: background is -1."""
    data, model, criterion = Disks(seed), segmenter(), nn.BCEWithLogitsLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(model(images), (masks - 0.5) / 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE", source="aadeshnpn/OSDN#19")
def images_cast_after_division(seed: int, Monitor: Any) -> float:
    """Images are divided by 255 and then cast to bytes: all of them are black."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        black = (x.abs() / 255).to(torch.uint8).float()
        loss = criterion(model(black), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- the first set: the loss itself -----------------------------------------------------------------------------------


@cases.fault("ALL_EASY_FROM_START", "DEAD_COMPONENT", source="jinnnju/PaAno#1")
def own_row_is_the_farthest(seed: int, Monitor: Any) -> float:
    """The diagonal is masked with -inf as a similarity, which is +inf as a distance and always the chosen negative."""

    def pair_loss(z: Tensor, labels: Tensor) -> Tensor:
        z = F.normalize(z, dim=1)
        similarity = z @ z.T
        same = labels[:, None] == labels[None, :]
        positive = (1 - similarity).masked_fill(~same, -torch.inf).amax(dim=1)
        negative = (1 - similarity.fill_diagonal_(-torch.inf)).amax(dim=1)
        return (positive - negative + 0.5).clamp(min=0).mean()

    data, model = Digits(seed), embedder()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(pair_loss)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "EMBEDDING_COLLAPSE", source="michuanhaohao/reid-strong-baseline#16")
def ranking_arguments_swapped(seed: int, Monitor: Any) -> float:
    """The two distances of a ranking loss change places: negatives are pulled and positives pushed."""
    ranking = nn.MarginRankingLoss(margin=0.3)

    def pair_loss(z: Tensor, labels: Tensor) -> Tensor:
        distance = torch.cdist(z, z)
        same = labels[:, None] == labels[None, :]
        farthest = distance.masked_fill(~same, -torch.inf).amax(dim=1)
        nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
        return ranking(farthest, nearest, torch.ones_like(nearest))

    data, model = Digits(seed), embedder(features=32)
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(pair_loss)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NONFINITE", "NOTHING_VALID", source="zoomin-lee/SemCity#9, torch/nn#775")
def class_weights_all_zero(seed: int, Monitor: Any) -> float:
    """The class weights arrive as zeros: cross entropy divides by their sum."""
    data, model = Digits(seed), embedder(64, 10)
    criterion = nn.CrossEntropyLoss(weight=torch.zeros(10))
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(100):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", source="fudannlp16/focal-loss#6")
def objects_weighted_away(seed: int, Monitor: Any) -> float:
    """The class weight of the focal loss is meant for the background and given to the object: it is 0."""
    data, model, criterion = Disks(seed), segmenter(), FocalLoss(alpha=0.0)
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


# --- the first set: the weights ---------------------------------------------------------------------------------------


@cases.fault("NO_UPDATE", source="PKU-YuanGroup/Open-Sora-Plan#186")
def average_never_restored(seed: int, Monitor: Any) -> float:
    """For its preview the averaged weights are copied into the net at every step; the net's own never come back."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for p, kept in zip(model.parameters(), average, strict=True):
                p.copy_(kept)
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", source="ProteomicsML/ProteomicsML#203")
def rectified_regression(seed: int, Monitor: Any) -> float:
    """A rectifier after the last layer, which starts below 0 for every input: the prediction is 0 for ever."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    model.append(nn.ReLU())
    nn.init.constant_(model[2].bias, -3.0)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target.abs())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- the first set: healthy -------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.85)
def features_without_gradient(seed: int, Monitor: Any) -> float:
    """The body runs under no_grad, to save memory, and its parameters are in the optimizer all the same."""
    data, model, criterion = Digits(seed), embedder(512, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        with torch.no_grad():
            features = model[1](model[0](x))
        loss = criterion(model[2](features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def two_halves_in_turn(seed: int, Monitor: Any) -> float:
    """Body and head are trained in turns, each by its own optimizer, as adversarial pairs are."""
    data, model, criterion = Digits(seed), embedder(256, 32), TripletLoss(margin=0.5)
    optimizers = [Adam(model[0].parameters(), lr=2e-3), Adam(model[2].parameters(), lr=2e-3)]
    monitor = Monitor(model, criterion, optimizers)
    for step, (x, labels) in enumerate(data.batches(400)):
        loss = criterion(model(x), labels)
        model.zero_grad()
        loss.backward()
        optimizers[step // 5 % 2].step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85, source="mlfoundations/open_clip#573")
def checkpointed(seed: int, Monitor: Any) -> float:
    """Activations are computed again in backward(), by the reentrant checkpoint and inputs that ask for a gradient."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(checkpoint(model, x.clone().requires_grad_(), use_reentrant=True), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def one_cycle(seed: int, Monitor: Any) -> float:
    """A learning rate that climbs to 30 times its start and falls to next to nothing."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=1e-3)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=300)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.6)
def bias_at_the_prior(seed: int, Monitor: Any) -> float:
    """Small objects, cross entropy alone, and a last bias at the log-odds of their share: every probability is low."""
    data, model, criterion = Disks(seed, radius=(1.5, 2.5)), segmenter(), BCELoss()
    nn.init.constant_(model[4].bias, -4.6)
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(300):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.35)
def one_batch_by_heart(seed: int, Monitor: Any) -> float:
    """The test that every recipe recommends: a single batch is learned until its loss is exactly 0."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.3)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    x, labels = next(data.batches(1, P=10, K=6))
    for _ in range(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def hinge_is_met(seed: int, Monitor: Any) -> float:
    """A multi-class hinge on a task that it solves: at the end most batches have a loss of exactly 0."""
    data, model, criterion = Digits(seed), embedder(256, 10), nn.MultiMarginLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.8)
def distilled(seed: int, Monitor: Any) -> float:
    """A teacher's softened probabilities are the targets of a divergence; the teacher is part of the same module."""
    data, student, teacher = Digits(seed), embedder(64, 10), embedder(256, 10)
    optimizer = Adam(teacher.parameters(), lr=3e-3)
    for x, labels in data.batches(150):
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), labels).backward()
        optimizer.step()
    model, criterion = nn.ModuleDict({"student": student, "teacher": teacher}), nn.KLDivLoss(reduction="batchmean")
    optimizer = Adam(student.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(300):
        with torch.no_grad():
            target = F.softmax(teacher(x) / 4, dim=1)
        loss = 16 * criterion(F.log_softmax(student(x) / 4, dim=1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(student)


@cases.healthy(at_least=0.85)
def gradient_penalty(seed: int, Monitor: Any) -> float:
    """The gradient of the output by the input is held small: a second derivative in every step."""
    data, criterion = Bearings(seed), nn.MSELoss()
    model = regressor()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        x.requires_grad_()
        prediction = model(x)
        (slope,) = torch.autograd.grad(prediction.sum(), x, create_graph=True)
        loss = criterion(prediction, target) + 1e-4 * slope.square().sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.85)
def averaged_for_evaluation(seed: int, Monitor: Any) -> float:
    """Every 10 steps averaged weights are put into the net for an evaluation, and its own ones back after it."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    average = deepcopy(model.state_dict())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in model.state_dict().items():
            average[name].lerp_(value, 0.1)
        if step % 10 == 9:
            own = deepcopy(model.state_dict())
            model.load_state_dict(average)
            data.recall(model)
            model.load_state_dict(own)
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def weight_normalised(seed: int, Monitor: Any) -> float:
    """Weights are parametrised by direction and length, so that those of the layers are no leaves."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    for layer in (model[0], model[2]):
        nn.utils.parametrizations.weight_norm(layer)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def annotated_every_other_batch(seed: int, Monitor: Any) -> float:
    """Batches of annotated and of unannotated images take turns, and the loss is told so."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (images, masks) in enumerate(data.batches(300)):
        annotated = torch.full((len(masks),), step % 2 == 0)
        loss = criterion(model(images), masks * annotated.view(-1, 1, 1, 1), valid=annotated)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.6)
def sparse_table(seed: int, Monitor: Any) -> float:
    """Pixels are looked up in a table with sparse gradients, of which a batch touches few rows."""

    class Bag(nn.Module):
        """The mean of one row per bright pixel and brightness."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.EmbeddingBag(64 * 17, 32, mode="sum", sparse=True)
            nn.init.normal_(self.table.weight, std=0.1)

        def forward(self, x: Tensor) -> Tensor:
            rows: Tensor = self.table((16 * x[:, :64]).round().long() + 17 * torch.arange(64))
            return rows

    data, model, criterion = Digits(seed), Bag(), TripletLoss(margin=0.5)
    optimizer = torch.optim.SparseAdam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def restarts(seed: int, Monitor: Any) -> float:
    """Stochastic gradient descent whose learning rate falls to 0 and starts again, every 60 steps."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = SGD(model.parameters(), lr=0.03, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=60)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        monitor.step(loss)
    return data.recall(model)


# --- the second set: faults -------------------------------------------------------------------------------------------


@cases.fault("PREDICTION_COLLAPSE", source="divamgupta/image-segmentation-keras#191")
def masks_of_other_images(seed: int, Monitor: Any) -> float:
    """The augmentation turns the image and not its mask: object and background look the same."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images), masks.roll(1, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("ZERO_WEIGHT")
def ramp_that_nobody_advances(seed: int, Monitor: Any) -> float:
    """A component ramps up from weight 0, and the call that advances the schedule was forgotten."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss(
        {"signal": signal_nmse, "direction": direction_loss}, {"signal": 1.0, "direction": 1.0},
        required={"signal"}, schedule={"direction": lambda step: min(1.0, step / 50)},
    )  # fmt: skip
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("SATURATED_GRADIENT", "PREDICTION_COLLAPSE")
def deep_net_of_sigmoids(seed: int, Monitor: Any) -> float:
    """Twelve layers of sigmoids: each divides the gradient by 10 or more, and the input does not reach the output."""
    layers: list[nn.Module] = [nn.Linear(16, 32), nn.Sigmoid()]
    for _ in range(11):
        layers += [nn.Linear(32, 32), nn.Sigmoid()]
    data, model, criterion = Bearings(seed), nn.Sequential(*layers, nn.Linear(32, 10)), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("NO_UPDATE")
def loss_in_tiny_units(seed: int, Monitor: Any) -> float:
    """The loss is divided by the number of all samples of the data set, and plain descent has no scale of its own."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = SGD(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels) / 1_200_000
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "EMBEDDING_COLLAPSE")
def optimizer_that_climbs(seed: int, Monitor: Any) -> float:
    """maximize=True was left over from a search for a score: the optimizer makes the loss larger."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin="soft")
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=3e-3, maximize=True)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INPUT_DOMAIN")
def softmax_over_the_batch(seed: int, Monitor: Any) -> float:
    """A softmax before cross entropy, and over the wrong dimension: the rows of a batch compete."""
    data, model, criterion = Digits(seed), embedder(64, 10), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(F.softmax(model(x), dim=0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE")
def dropped_out_entirely(seed: int, Monitor: Any) -> float:
    """The share to keep was given as the share to drop, 1: every embedding is the last bias."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin="soft")
    model.insert(2, nn.Dropout(1.0))
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- the second set: healthy ------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.6)
def faint_objects(seed: int, Monitor: Any) -> float:
    """Objects hardly brighter than the noise, a small learning rate: for long both look the same to the net."""
    data, model, criterion = Disks(seed, radius=(5.0, 9.0)), segmenter(16), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(300):
        loss = criterion(model(images - masks), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    images, masks = data.draw(64)
    with torch.no_grad():
        found = (model(images - masks) > 0).float()
    return float(2 * (found * masks).sum() / (found.sum() + masks.sum()))


@cases.healthy(at_least=0.85)
def ramp_that_starts_late(seed: int, Monitor: Any) -> float:
    """A component has weight 0 for the first 150 steps, as planned."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss(
        {"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0},
        required={"direction"}, schedule={"signal": lambda step: min(1.0, max(0.0, step - 150) / 100)},
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


@cases.healthy(at_least=0.85)
def last_layer_starts_at_zero(seed: int, Monitor: Any) -> float:
    """Weights and bias of the last layer start at 0: the first prediction is the same for every input."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    optimizer = SGD(model.parameters(), lr=0.3, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.85)
def slow_descent(seed: int, Monitor: Any) -> float:
    """A net that works is tuned by plain gradient descent at a learning rate of 1e-4."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer: torch.optim.Optimizer = Adam(model.parameters(), lr=3e-3)
    for x, labels in data.batches(250):
        optimizer.zero_grad()
        criterion(model(x), labels).backward()
        optimizer.step()
    optimizer = SGD(model.parameters(), lr=1e-4)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def many_of_each_class(seed: int, Monitor: Any) -> float:
    """12 of each of 10 classes: among so many some positive is always farther than some negative."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin="soft")
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250, P=10, K=12):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def strongly_focused(seed: int, Monitor: Any) -> float:
    """A focal loss with gamma = 5: its gradient is thousands of times smaller than that of cross entropy."""
    data, model, criterion = Disks(seed), segmenter(), FocalLoss(gamma=5.0)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(250):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.7)
def labels_with_errors(seed: int, Monitor: Any) -> float:
    """A classifier with a quarter of the labels wrong and smoothed: its loss stays high, as it should."""
    data, model, criterion = Digits(seed), embedder(128, 10), nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = Adam(model.parameters(), lr=3e-3, weight_decay=1e-4)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        wrong = torch.rand(len(x)) < 0.25
        loss = criterion(model(x), torch.where(wrong, torch.randint(0, 10, (len(x),)), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.5)
def autoencoder(seed: int, Monitor: Any) -> float:
    """The target is the input, and the output goes through a sigmoid because pixels lie in [0, 1]."""
    data, criterion = Digits(seed), nn.BCELoss()
    encoder = embedder(128, 16)
    model = nn.Sequential(encoder, nn.ReLU(), nn.Linear(16, 128), nn.Sigmoid())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    data.x.clamp_(0, 1)
    for x, _ in data.batches(300):
        loss = criterion(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(encoder)
