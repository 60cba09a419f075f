"""Twelve faults and eight healthy runs that look like faults: written and scored once without a look at the rules.

Each fault is something that users do to a loss of torch or of fastmine, worked out from what the loss is, not from what
the monitor measures. The first score is in README.md.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR

from fastmine.losses import CombinedSegmentationLoss, TripletLoss

from .case import Suite
from .tasks import Bearings, Digits, Disks, embedder, regressor, segmenter

cases = Suite("blind")


def _another_view(x: Tensor) -> Tensor:
    """Other noise beside the digit, and some of its pixels gone."""
    digit, noise = x.chunk(2, dim=1)
    return torch.cat([F.dropout(digit, 0.2), 0.5 * torch.randn_like(noise)], dim=1)


# --- faults: pairs and targets ----------------------------------------------------------------------------------------


@cases.fault("TARGET_RANGE", "EMBEDDING_COLLAPSE", "NO_NEGATIVES")
def pairs_marked_0_and_1(seed: int, Monitor: Any) -> float:
    """CosineEmbeddingLoss wants 1 and -1, and gets 1 and 0: of a pair marked 0 it learns nothing."""
    data, model, criterion = Digits(seed), embedder(), nn.CosineEmbeddingLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300, K=2):
        z, shift = model(x), int(torch.randint(1, 4, ()))
        loss = criterion(z, z.roll(shift, 0), (labels == labels.roll(shift)).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INVALID_PAIRS", "NO_POSITIVES")
def anchor_is_its_own_positive(seed: int, Monitor: Any) -> float:
    """The data set draws the positive by the index of the anchor: both are one image, and only negatives teach."""
    data, model, criterion = Digits(seed), embedder(), nn.TripletMarginLoss(margin=1.0)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(200, P=10, K=2):
        loss = criterion(model(x), model(x), model(x.roll(2, 0)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("TARGETS_ALL_EMPTY")
def valid_is_inverted(seed: int, Monitor: Any) -> float:
    """The flag says "not annotated" and is handed over as ``valid``: what teaches are the zeros of no annotation."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        unannotated = torch.rand(len(images)) < 0.5
        masks[unannotated] = 0.0
        loss = criterion(model(images), masks, valid=unannotated)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("TARGETS_ALL_EMPTY", "PREDICTION_COLLAPSE")
def classes_that_never_match(seed: int, Monitor: Any) -> float:
    """Targets are made by comparing labels with the names of classes, which are numbered from 100: none is ever 1."""
    data, model, criterion = Digits(seed), embedder(64, 10), nn.BCEWithLogitsLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    names = torch.arange(100, 110)
    for x, labels in data.batches(200):
        loss = criterion(model(x), (labels[:, None] == names).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", "LOSS_FLOOR")
def labels_smoothed_away(seed: int, Monitor: Any) -> float:
    """label_smoothing is given the share to keep, 1: every target is uniform, and the label is nowhere in the loss."""
    data, model = Digits(seed), embedder(64, 10)
    criterion = nn.CrossEntropyLoss(label_smoothing=1.0)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", "NO_SEPARATION")
def targets_transposed(seed: int, Monitor: Any) -> float:
    """A batch of 10 with 10 targets each, stored the other way round: rows are learned against columns."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(400, size=10):
        loss = criterion(model(x), target.T)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- faults: what the net and the objective are -----------------------------------------------------------------------


@cases.fault("EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
def two_views_and_nothing_else(seed: int, Monitor: Any) -> float:
    """Two views of an image are drawn together, both with gradient, and nothing holds other images apart."""

    def agreement(one: Tensor, other: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(one, other, dim=1).mean()

    data, model = Digits(seed), embedder(128, 16)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(agreement)
    for x, _ in data.batches(300):
        loss = criterion(model(_another_view(x)), model(_another_view(x)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INPUT_DOMAIN", "LOSS_FLOOR")
def hyperbolic_tangent_before_cross_entropy(seed: int, Monitor: Any) -> float:
    """The net ends in a tanh: logits lie within 1 of 0, and of ten classes none gets a probability above .45."""
    data, model, criterion = Digits(seed), embedder(128, 10), nn.CrossEntropyLoss()
    model.append(nn.Tanh())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", "SATURATED_GRADIENT")
def rectifiers_killed_by_the_first_steps(seed: int, Monitor: Any) -> float:
    """Adam at a learning rate of 3: after few steps the hidden layer is 0 for every input, and stays so."""
    data, criterion = Digits(seed), nn.CrossEntropyLoss()
    model = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = Adam(model.parameters(), lr=3.0)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- faults: gradients and updates ------------------------------------------------------------------------------------


@cases.fault("NO_UPDATE")
def epsilon_without_its_sign(seed: int, Monitor: Any) -> float:
    """Adam's eps was typed as 1e8 in place of 1e-8: every update is divided by it."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=1e-3, eps=1e8)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE")
def halved_at_every_step(seed: int, Monitor: Any) -> float:
    """A learning rate that is to be halved every epoch is halved every step: never 0, and soon next to nothing."""
    data, model, criterion = Digits(seed), embedder(features=32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=1e-4)
    schedule = ExponentialLR(optimizer, gamma=0.5)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE", "DETACHED_GRAPH")
def generator_behind_a_detach(seed: int, Monitor: Any) -> float:
    """The fakes are detached once for both steps, so that the generator never hears what its judge says."""
    data, criterion = Bearings(seed), nn.BCEWithLogitsLoss()
    generator, judge = _generator(), _judge()
    learner, critic = Adam(generator.parameters(), lr=1e-3), Adam(judge.parameters(), lr=1e-3)
    monitor = Monitor([generator, judge], criterion, [learner, critic])
    for _, target in data.batches(200):
        fake, real = generator(torch.randn(64, 4)).detach(), target[:, :2]
        judged = criterion(judge(real), torch.ones(64, 1)) + criterion(judge(fake), torch.zeros(64, 1))
        critic.zero_grad()
        judged.backward()
        critic.step()
        loss = criterion(judge(fake), torch.ones(64, 1))
        learner.zero_grad()
        loss.backward()
        learner.step()
        monitor.step(loss)
    return _on_the_circle(generator)


# --- healthy ----------------------------------------------------------------------------------------------------------


def _generator() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 2))


def _judge() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))


def _on_the_circle(generator: nn.Module) -> float:
    """Share of samples within .3 of the unit circle."""
    with torch.no_grad():
        return float(((generator(torch.randn(512, 4)).norm(dim=1) - 1).abs() < 0.3).float().mean())


@cases.healthy(at_least=0.6)
def adversaries(seed: int, Monitor: Any) -> float:
    """A generator and its judge: targets of a call are all 1 or all 0, and neither loss falls when both do well."""
    data, criterion = Bearings(seed), nn.BCEWithLogitsLoss()
    generator, judge = _generator(), _judge()
    learner = Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    critic = Adam(judge.parameters(), lr=2e-3, betas=(0.5, 0.9))
    monitor = Monitor([generator, judge], criterion, [learner, critic])
    for _, target in data.batches(400):
        fake, real = generator(torch.randn(64, 4)), target[:, :2]
        judged = criterion(judge(real), torch.ones(64, 1)) + criterion(judge(fake.detach()), torch.zeros(64, 1))
        critic.zero_grad()
        judged.backward()
        critic.step()
        loss = criterion(judge(fake), torch.ones(64, 1))
        learner.zero_grad()
        loss.backward()
        learner.step()
        monitor.step(loss)
    return _on_the_circle(generator)


@cases.healthy(at_least=0.85)
def plateau_before_the_fall(seed: int, Monitor: Any) -> float:
    """The product of three signs among 16: no one or two inputs tell anything, and the loss rests at ln 2 for long."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 1))
    criterion, optimizer = nn.BCEWithLogitsLoss(), SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(0, 2, (n, 16), generator=generator).float() * 2 - 1
        return x, (x[:, :3].prod(dim=1, keepdim=True) > 0).float()

    for _ in range(400):
        x, target = draw(64)
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    x, target = draw(512)
    return float(((model(x) > 0) == (target > 0)).float().mean())


@cases.healthy(at_least=0.85)
def curriculum(seed: int, Monitor: Any) -> float:
    """Two classes at first and a margin of 0, then more of both: the loss climbs while the net learns."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.0)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step in range(300):
        criterion.margin = 0.4 * min(1.0, step / 200)
        allowed = data.labels[data.train] < 2 + step // 25
        rows = allowed.nonzero().squeeze(1)
        rows = rows[torch.randint(len(rows), (40,))]
        loss = criterion(model(data.x[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def margin_that_takes_long(seed: int, Monitor: Any) -> float:
    """A margin of 10 for embeddings that are free to grow: nearly every anchor is active from first to last."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=10.0)
    optimizer = RMSprop(model.parameters(), lr=5e-4)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.7)
def one_class_in_ninety_of_a_hundred(seed: int, Monitor: Any) -> float:
    """Is it a six? Nine of ten are not, and class weights make up for it."""
    data, model = Digits(seed), embedder(64, 2)
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0]))
    optimizer = Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        rows = torch.randint(1200, (32,))
        loss = criterion(model(data.x[rows]), (data.labels[rows] == 6).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    found, sixes = model(data.x[data.test]).argmax(dim=1) == 1, data.labels[data.test] == 6
    return float(2 * (found & sixes).sum() / (found.sum() + sixes.sum()))


@cases.healthy(at_least=0.85)
def biases_alone(seed: int, Monitor: Any) -> float:
    """A net that works is tuned for other noise by its biases alone, four batches an update, and warm restarts."""
    data, model, criterion = Digits(seed), embedder(128, 10), nn.CrossEntropyLoss()
    first = Adam(model.parameters(), lr=3e-3)
    for x, labels in data.batches(200):
        first.zero_grad()
        criterion(model(x), labels).backward()
        first.step()
    for p in model.parameters():
        p.requires_grad_(p.dim() == 1)
    optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.02, momentum=0.9)
    schedule = CosineAnnealingWarmRestarts(optimizer, T_0=20)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(240)):
        loss = criterion(model(x + 0.2 * torch.randn_like(x)), labels) / 4
        loss.backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.8)
def every_row_is_its_own_class(seed: int, Monitor: Any) -> float:
    """Two views of a batch, a matrix of similarities, and its diagonal as targets; the temperature is learned."""
    data, model, criterion = Digits(seed), embedder(256, 32), nn.CrossEntropyLoss()
    model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
    optimizer = AdamW(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(300, P=10, K=3):
        one, other = (F.normalize(model(_another_view(x)), dim=1) for _ in range(2))
        similarity = one @ other.T * model.scale.exp()
        rows = torch.arange(len(x))
        loss = (criterion(similarity, rows) + criterion(similarity.T, rows)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def taught_by_its_average(seed: int, Monitor: Any) -> float:
    """Half of the rows have no label: a moving average of the net, inside the same module, is their target."""
    data, student = Digits(seed), embedder(128, 10)
    model = nn.ModuleDict({"student": student, "teacher": deepcopy(student).requires_grad_(False)})
    criterion = nn.CrossEntropyLoss(ignore_index=-1)
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        known = torch.where(torch.rand(len(labels)) < 0.5, labels, -1)
        logits = student(_another_view(x))
        with torch.no_grad():
            wanted = model["teacher"](_another_view(x)).softmax(dim=1)
        loss = criterion(logits, known) + min(1.0, step / 150) * F.mse_loss(logits.softmax(dim=1), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for slow, fast in zip(model["teacher"].parameters(), student.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.05)
        monitor.step(loss)
    return data.recall(student)
