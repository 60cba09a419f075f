"""Eighteen faults and twelve healthy runs that look like faults: a second set by somebody who had not seen the rules.

Half of the faults are in what is given to a loss of fastmine; half are under losses of torch or of the user's own,
which a monitor can only watch from outside. The first score is in README.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from fastmine import array
from fastmine.losses import (
    AngleLoss,
    ArcFaceLoss,
    ArrayPrediction,
    ArrayTarget,
    CombinedSegmentationLoss,
    DiceLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    SupConLoss,
    TripletLoss,
)

from .case import Suite
from .tasks import Bearings, Digits, Disks, Unit, embedder, regressor, segmenter

cases = Suite("fresh")


def _accuracy(data: Digits, model: nn.Module) -> float:
    """Share of the held-out digits that are named rightly."""
    with torch.no_grad():
        return float((model(data.x[data.test]).argmax(dim=1) == data.labels[data.test]).float().mean())


def _view(x: Tensor) -> Tensor:
    """Other noise beside the digit, and some of its pixels gone."""
    digit, noise = x.chunk(2, dim=1)
    return torch.cat([F.dropout(digit, 0.2), 0.5 * torch.randn_like(noise)], dim=1)


def _recordings(n: int, sources: int) -> tuple[Tensor, Tensor]:
    """The covariance matrix as eight sensors hear it [n, 128], and the directions [n, sources] in radians."""
    directions = 2 * torch.rand(n, sources) - 1
    A = array.steering(array.uniform_linear(8), directions)
    R = A @ A.mH + 0.05 * torch.randn(n, 8, 8, dtype=torch.complex64)
    return torch.view_as_real(R).flatten(1), directions


def _net(inputs: int, outputs: int) -> nn.Sequential:
    """Three linear layers."""
    return nn.Sequential(
        nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, outputs)
    )  # fmt: skip


# --- faults: what a loss of fastmine is given -------------------------------------------------------------------------


@cases.fault("NO_SEPARATION", "EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
def classes_numbered_by_the_batch(seed: int, Monitor: Any) -> float:
    """Classes are numbered anew for every batch, which pairs would not mind; the vectors of classes mean nothing."""
    data, model, criterion = Digits(seed), embedder(), ArcFaceLoss(num_classes=10, embedding_dim=16)
    optimizer = Adam([*model.parameters(), *criterion.parameters()], lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        numbers = torch.randperm(10)
        loss = criterion(model(x), numbers[labels])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("TARGETS_ALL_EMPTY", "TARGETS_SUSPECT_UNANNOTATED")
def only_the_unannotated_are_valid(seed: int, Monitor: Any) -> float:
    """Half of the images have a mask, and ``valid`` says which do not: the loss sees the empty ones alone."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        missing = torch.arange(len(images)) % 2 == 0
        masks[missing] = 0
        loss = criterion(model(images), masks, valid=missing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("PREDICTION_COLLAPSE", "TARGET_RANGE")
def trimap_taken_for_a_mask(seed: int, Monitor: Any) -> float:
    """Masks hold 1 for the object and 2 for the rest, and everything above 0 is taken for the object."""
    data, model, criterion = Disks(seed), segmenter(), DiceLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        trimap = 2 - masks
        loss = criterion(model(images), (trimap > 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("NO_SEPARATION", "EMBEDDING_COLLAPSE", "INVALID_PAIRS")
def views_paired_with_their_neighbours(seed: int, Monitor: Any) -> float:
    """Views are stacked one set under the other, and labelled as if they took turns: pairs are of two images."""
    data, model, criterion = Digits(seed), embedder(), NTXentLoss(temperature=0.1)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        x = data.x[torch.randint(0, 1200, (64,))]
        z = model(torch.cat([_view(x), _view(x)]))
        loss = criterion(z, torch.arange(64).repeat_interleave(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("INVALID_PAIRS")
def sampler_weights_of_classes(seed: int, Monitor: Any) -> float:
    """WeightedRandomSampler wants a weight of each sample and gets one of each class: it only ever draws ten."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    model.append(Unit())
    x, labels = data.x[data.train], data.labels[data.train]
    sampler = WeightedRandomSampler(1 / labels.bincount(), num_samples=300 * 32)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for rows, classes in DataLoader(TensorDataset(x, labels), batch_size=32, sampler=sampler):
        loss = criterion(model(rows), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE")
def thawed_and_not_handed_over(seed: int, Monitor: Any) -> float:
    """The backbone is thawed after 30 steps, as planned; the optimizer was built of what was trainable before."""
    data, model, criterion = Digits(seed), embedder(width=6), MultiSimilarityLoss()
    model[0].requires_grad_(False)
    optimizer = Adam((p for p in model.parameters() if p.requires_grad), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        if step == 30:
            model[0].requires_grad_(True)
        loss = criterion(model(x), labels)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("SATURATED_GRADIENT", "EMBEDDING_COLLAPSE", "INPUT_DOMAIN")
def counts_into_a_tangent(seed: int, Monitor: Any) -> float:
    """Inputs are the counts of a converter of 16 bits and the net ends in tanh: each feature is exactly 1 or -1."""
    data, model, criterion = Digits(seed), embedder(), SupConLoss(temperature=0.1)
    model.append(nn.Tanh())
    data.x = 65535 * data.x
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("TARGET_RANGE", "PREDICTION_COLLAPSE")
def directions_in_degrees(seed: int, Monitor: Any) -> float:
    """Directions come in degrees, and the loss takes radians: wrapped round the circle, they are drawn by lot."""
    torch.manual_seed(seed)
    model, criterion = _net(128, 1), AngleLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        x, directions = _recordings(64, 1)
        covariance, present = torch.eye(8).expand(64, 8, 8), torch.ones(64, 1, dtype=torch.bool)
        target = ArrayTarget(covariance, directions.rad2deg(), present)
        loss = criterion(ArrayPrediction(covariance, azimuth=model(x)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    x, directions = _recordings(512, 1)
    return float(((model(x) - directions).abs() < 0.1).float().mean())


@cases.fault("EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE")
def every_weight_is_the_same(seed: int, Monitor: Any) -> float:
    """All weights start at one constant: all features are copies of one, and on the sphere that is one point."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.02)
        nn.init.zeros_(layer.bias)
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- faults: under losses of torch, and of the user's own -------------------------------------------------------------


class _Margin(nn.Module):
    """Logits of two classes to the logit of the second."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, 1:] - logits[:, :1]


@cases.fault("SHAPE_BROADCAST", "PREDICTION_COLLAPSE")
def channels_reshaped_into_pixels(seed: int, Monitor: Any) -> float:
    """Logits [B, 2, H, W] are reshaped to [-1, 2] without a permutation: two pixels pass for two classes of one."""
    data, criterion = Disks(seed), nn.CrossEntropyLoss()
    model = segmenter()
    model[-1] = nn.Conv2d(8, 2, 3, padding=1)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(150):
        loss = criterion(model(images).reshape(-1, 2), masks.long().reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(nn.Sequential(model, _Margin()))


@cases.fault("NO_UPDATE")
def clipped_before_it_is_unscaled(seed: int, Monitor: Any) -> float:
    """Gradients are clipped while the loss scale is still in them: what is unscaled afterwards is 1 / 65,536."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer, scaler = SGD(model.parameters(), lr=0.1, momentum=0.9), torch.amp.GradScaler("cpu")
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("INPUT_DOMAIN")
def likelihood_of_raw_scores(seed: int, Monitor: Any) -> float:
    """NLLLoss wants logarithms of probabilities and gets scores: raising all of them lowers it without end."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.NLLLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


def _spoken(n: int) -> tuple[Tensor, Tensor]:
    """Strings of 4 out of 5 signs [n, 4], each sign 3 frames long: [n, 5, 12] beside noise."""
    signs = torch.randint(1, 6, (n, 4))
    frames = F.one_hot(signs - 1, 5).float().repeat_interleave(3, dim=1)
    return frames.mT + 0.2 * torch.randn(n, 5, 12), signs


def _strings_read(model: nn.Module) -> float:
    """Share of strings that the most probable path spells, repetitions and blanks left out."""
    frames, signs = _spoken(200)
    with torch.no_grad():
        paths = model(frames).argmax(dim=1)
    spelled = [[int(s) for s in path.unique_consecutive() if s] for path in paths]
    return sum(a == b for a, b in zip(spelled, signs.tolist(), strict=True)) / len(spelled)


@cases.fault("NOTHING_VALID", "SATURATED_GRADIENT", "DEAD_COMPONENT", "NONFINITE")
def more_signs_than_frames(seed: int, Monitor: Any) -> float:
    """The net keeps one frame in four, fewer than there are signs: no path exists, and zero_infinity makes it 0."""
    torch.manual_seed(seed)
    stride = 4
    model = nn.Sequential(nn.Conv1d(5, 32, 5, stride=stride, padding=2), nn.ReLU(), nn.Conv1d(32, 6, 1))
    criterion = nn.CTCLoss(zero_infinity=True)
    optimizer = Adam(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        frames, signs = _spoken(32)
        scores = F.log_softmax(model(frames), dim=1).permute(2, 0, 1)
        loss = criterion(scores, signs, torch.full((32,), len(scores)), torch.full((32,), 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _strings_read(model)


class _Checkpointed(nn.Module):
    """A body whose activations are computed again in the backward pass, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(128, 6), nn.ReLU())
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, x, use_reentrant=True))


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def checkpoint_of_plain_inputs(seed: int, Monitor: Any) -> float:
    """A reentrant checkpoint whose inputs need no gradient returns outputs that need none: the body never learns."""
    data, model, criterion = Digits(seed), _Checkpointed(), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.fault("NO_UPDATE")
def update_of_a_loop_variable(seed: int, Monitor: Any) -> float:
    """Descent by hand: ``p = p - lr * p.grad`` gives a name to a new tensor, and leaves the weight as it was."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    monitor = Monitor(model, criterion)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p = p - 0.2 * p.grad  # noqa: PLW2901 - the fault
        monitor.step(loss)
    return _accuracy(data, model)


class _Listed(nn.Module):
    """A net that keeps its layers in a plain list, where nn.Module does not look."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(128, 6), nn.Linear(6, 6)]
        self.head = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)


@cases.fault("NO_UPDATE")
def layers_in_a_plain_list(seed: int, Monitor: Any) -> float:
    """Layers in a list and not in a ModuleList: parameters() does not know them, nor does the optimizer."""
    data, model, criterion = Digits(seed), _Listed(), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.fault("LOSS_FLOOR", "PREDICTION_COLLAPSE")
def sources_in_any_order(seed: int, Monitor: Any) -> float:
    """Two sources are labelled in any order, and compared place by place: both places learn the mean of the two."""
    torch.manual_seed(seed)
    model, criterion = _net(128, 2), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(400):
        x, directions = _recordings(64, 2)
        loss = criterion(model(x), directions)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    x, directions = _recordings(512, 2)
    errors = model(x).sort(dim=1).values - directions.sort(dim=1).values
    return float((errors.abs() < 0.15).float().mean())


class _Weighted(nn.Module):
    """The error and a penalty of long answers, in shares that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        parts = torch.stack([(prediction - target).square().mean(), 0.1 * prediction.square().mean()])
        return self.logits.softmax(dim=0) @ parts


@cases.fault("ZERO_WEIGHT", "STARVED_COMPONENT", "PREDICTION_COLLAPSE")
def shares_that_the_loss_may_choose(seed: int, Monitor: Any) -> float:
    """The weights of two components are learned by descending the loss: the one that is small anyway gets all."""
    data, model, criterion = Bearings(seed), regressor(), _Weighted()
    optimizer = Adam([{"params": model.parameters(), "lr": 1e-3}, {"params": criterion.parameters(), "lr": 0.3}])
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(400):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


# --- healthy runs -----------------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.9)
def decibels_below_zero(seed: int, Monitor: Any) -> float:
    """The loss is a ratio in decibels: negative nearly from the start, and the lower the better."""
    data, model = Bearings(seed), regressor()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer)

    def noise_to_signal(prediction: Tensor, target: Tensor) -> Tensor:
        error = (prediction - target).square().sum(dim=1) / target.square().sum(dim=1)
        return 10 * error.log10().mean()

    criterion = monitor.watch(noise_to_signal)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.8)
def one_class_is_rare(seed: int, Monitor: Any) -> float:
    """Of one digit there are ten images, so that most batches have none; the others are as many as ever."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    labels = data.labels[data.train]
    kept = torch.cat([(labels != 3).nonzero(), (labels == 3).nonzero()[:10]]).flatten()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(300):
        rows = kept[torch.randint(0, len(kept), (32,))]
        loss = criterion(model(data.x[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(at_least=0.8)
def two_rows_at_a_time(seed: int, Monitor: Any) -> float:
    """A batch is two rows: the loss of one is 3, of the next 0, and only their average goes down."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)
    for _ in range(400):
        rows = torch.randint(0, 1200, (2,))
        loss = criterion(model(data.x[rows]), data.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(at_least=0.85)
def harder_and_harder(seed: int, Monitor: Any) -> float:
    """Batches of two digits at first, and of ten in the end: the loss rises because there is more to tell apart."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for P in (2, 4, 6, 8, 10):
        for x, labels in data.batches(80, P=P):
            loss = criterion(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def clipped_at_every_step(seed: int, Monitor: Any) -> float:
    """The largest gradient norm is a hundredth of a usual one: every step is clipped, and has the same length."""
    data, model, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), lr=10.0)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(at_least=0.9)
def segmentation_from_a_good_checkpoint(seed: int, Monitor: Any) -> float:
    """A net that segments well is tuned further with a warm-up from 0: neither loss nor Dice has anywhere to go."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    for images, masks in data.batches(200):
        optimizer.zero_grad()
        criterion(model(images), masks).backward()
        optimizer.step()
    optimizer = Adam(model.parameters(), lr=1e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 50))
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(100):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.8)
def optimizer_holds_the_frozen_too(seed: int, Monitor: Any) -> float:
    """The optimizer was given all parameters, of which those of the first layer are frozen on purpose."""
    data, model, criterion = Digits(seed), embedder(width=256, features=10), nn.CrossEntropyLoss()
    model[0].requires_grad_(False)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


class _LowRank(nn.Module):
    """A frozen layer and a correction of rank 4 that starts at 0 (arXiv:2106.09685)."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


@cases.healthy(at_least=0.8)
def low_rank_corrections(seed: int, Monitor: Any) -> float:
    """Every layer is frozen, and has a correction of low rank whose one half starts without any gradient."""
    data, net, criterion = Digits(seed), embedder(features=10), nn.CrossEntropyLoss()
    model = nn.Sequential(_LowRank(net[0]), nn.ReLU(), _LowRank(net[2]))
    optimizer = Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return _accuracy(data, model)


@cases.healthy(at_least=0.6)
def generator_and_critic(seed: int, Monitor: Any) -> float:
    """A generator and its critic: neither loss falls, for each gets better, and the samples are detached on purpose."""
    torch.manual_seed(seed)
    generator, critic = (nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, n)) for n in (2, 1))
    criterion = nn.BCEWithLogitsLoss()
    optimizers = [Adam(net.parameters(), lr=2e-3, betas=(0.5, 0.99)) for net in (generator, critic)]
    monitor = Monitor([generator, critic], criterion, optimizers)
    one, zero, centre = torch.ones(128, 1), torch.zeros(128, 1), torch.tensor([2.0, -1.0])
    for _ in range(400):
        drawn = generator(torch.randn(128, 2))
        loss = criterion(critic(centre + 0.5 * torch.randn(128, 2)), one) + criterion(critic(drawn.detach()), zero)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        loss = criterion(critic(drawn), one)
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        monitor.step(loss)
    distance = (generator(torch.randn(2000, 2)).mean(dim=0) - centre).norm() / centre.norm()
    return float(1 - distance)


@cases.healthy(at_least=0.8)
def unlabelled_rows_declared(seed: int, Monitor: Any) -> float:
    """Half of the rows have no label, marked -1, and the loss is told which."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        known = torch.rand(len(labels)) < 0.5
        loss = criterion(model(x), labels.where(known, torch.tensor(-1)), valid=known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.8)
def plateau_and_then_a_drop(seed: int, Monitor: Any) -> float:
    """Three linear layers of tiny weights: the loss is flat for 50 steps, while their product grows."""
    data, criterion = Bearings(seed), nn.MSELoss()
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 10))
    for layer in model:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(400):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.8)
def heatmaps_of_one_point(seed: int, Monitor: Any) -> float:
    """A point is learned as a small hill in a map of zeros: errors are a hundredth, and nearly all answers are 0."""
    data, model, criterion = Disks(seed, radius=(3.0, 4.0)), segmenter(), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    kernel = torch.exp(-torch.linspace(-3, 3, 7).square() / 4)
    kernel = (kernel[:, None] * kernel).expand(1, 1, 7, 7)

    def hills(masks: Tensor) -> Tensor:
        rows, columns = masks.mean(dim=3).argmax(dim=2), masks.mean(dim=2).argmax(dim=2)
        points = F.one_hot(rows.flatten() * 32 + columns.flatten(), 1024).float().view(-1, 1, 32, 32)
        return F.conv2d(points, kernel, padding=3)

    for images, masks in data.batches(300):
        loss = criterion(model(images), hills(masks))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    images, masks = data.draw(200)
    found, true = model(images).flatten(1).argmax(dim=1), hills(masks).flatten(1).argmax(dim=1)
    distance = torch.maximum((found // 32 - true // 32).abs(), (found % 32 - true % 32).abs())
    return float((distance <= 4).float().mean())
