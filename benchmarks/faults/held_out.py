"""Eight faults and four healthy runs that look like faults: written and scored once without a look at the rules."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fastmine.losses import ArcFaceLoss, CompositeLoss, TripletLoss

from .case import Suite
from .tasks import Bearings, Digits, Disks, embedder, regressor

cases = Suite("held out")

# --- faults: what a loss is given -------------------------------------------------------------------------------------


@cases.fault("SHAPE_BROADCAST", source="harveyslash/Facial-Similarity-with-Siamese-Networks-in-Pytorch#26")
def every_pair_with_every_label(seed: int, Monitor: Any) -> float:
    """A contrastive loss gets distances [N] and labels [N, 1]: each pair is held against the labels of all pairs."""

    def contrastive(z: Tensor, other: Tensor, different: Tensor) -> Tensor:
        distance = F.pairwise_distance(z, other)
        return ((1 - different) * distance**2 + different * (2 - distance).clamp(min=0) ** 2).mean()

    data, model = Digits(seed), embedder()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, optimizer=optimizer)
    criterion = monitor.watch(contrastive)
    for x, labels in data.batches(200, K=2):
        different = (labels != labels.roll(1)).float().unsqueeze(1)
        loss = criterion(model(x), model(x.roll(1, 0)), different)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", source="meetps/pytorch-semseg#67")
def background_is_ignored(seed: int, Monitor: Any) -> float:
    """ignore_index=0 because most pixels are background: no pixel is left that is not the object."""
    data, criterion = Disks(seed), nn.CrossEntropyLoss(ignore_index=0)
    model = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 2, 5, padding=2))
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = criterion(model(images), masks.squeeze(1).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    odds = nn.Conv2d(2, 1, 1, bias=False)
    odds.weight.data = torch.tensor([-1.0, 1.0]).view(1, 2, 1, 1)
    return data.dice(nn.Sequential(model, odds))


@cases.fault("INPUT_DOMAIN", "TARGET_RANGE", "LOSS_FLOOR", source="mikesj-public/convolutional_autoencoder#9")
def lower_half_out_of_reach(seed: int, Monitor: Any) -> float:
    """An autoencoder of standardised data whose output goes through a sigmoid: no value below 0 can be reached."""
    data, encoder, criterion = Digits(seed), embedder(128, 16), nn.MSELoss()
    data.x = (data.x - data.x.mean(dim=0)) / (data.x.std(dim=0) + 1e-2)
    model = nn.Sequential(encoder, nn.ReLU(), nn.Linear(16, 128), nn.Sigmoid())
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(200):
        loss = criterion(model(x), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(encoder)


@cases.fault("NONFINITE", "NO_UPDATE", source="utcsilab/deep-jsense#2, alibaba/FederatedScope#777")
def every_batch_is_skipped(seed: int, Monitor: Any) -> float:
    """Features are divided by their deviation, some of which are 0, and a loop that skips each loss that is NaN."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    data.x = (data.x - data.x.mean(dim=0)) / data.x.std(dim=0)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        if torch.isnan(loss):
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- faults: gradients and updates ------------------------------------------------------------------------------------


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def features_of_an_evaluation(seed: int, Monitor: Any) -> float:
    """The features come out of a function that runs under no_grad: the class vectors learn, and nothing else."""
    data, model, criterion = Digits(seed), embedder(features=32), ArcFaceLoss(10, 32)
    optimizer = Adam([*model.parameters(), *criterion.parameters()], lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        with torch.no_grad():
            z = model(x)
        loss = criterion(z, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE", source="md-mohaiminul/ViS4mer#4")
def schedule_takes_a_score_for_a_loss(seed: int, Monitor: Any) -> float:
    """ReduceLROnPlateau waits for the smallest value, and gets a score: the better the net, the sooner it stops."""
    data, model, criterion = Digits(seed), embedder(features=32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=1e-4)
    schedule = ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            schedule.step(data.recall(model))
        monitor.step(loss)
    return data.recall(model)


@cases.fault("SATURATED_GRADIENT", "NO_UPDATE", source="warner-benjamin/optimi#15")
def gradients_below_half_precision(seed: int, Monitor: Any) -> float:
    """Weights are float16 and the loss has a factor of 1e-6: each gradient is less than float16 can hold, and 0."""
    data, model, criterion = Digits(seed), embedder(64, 10).half(), nn.CrossEntropyLoss()
    optimizer = SGD(model.parameters(), lr=0.5, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = 1e-6 * criterion(model(x.half()).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model.float())


@cases.fault("STARVED_COMPONENT", "PREDICTION_COLLAPSE", source="wiseodd/generative-models#40")
def divergence_is_a_sum(seed: int, Monitor: Any) -> float:
    """A variational autoencoder: the error is a mean, the divergence a sum over the batch, so the code says nothing."""

    def error(prediction: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
        return F.mse_loss(prediction[0], target)

    def divergence(prediction: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:  # noqa: ARG001
        _, mean, log_variance = prediction
        return 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum()

    data, encoder, decoder = Digits(seed), embedder(128, 32), nn.Linear(16, 128)
    criterion = CompositeLoss({"error": error, "divergence": divergence}, {"error": 1.0, "divergence": 1.0})
    model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(200):
        mean, log_variance = encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        loss = criterion((decoder(code), mean, log_variance), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(nn.Sequential(encoder, nn.Linear(32, 16)))


# --- healthy ----------------------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.85, source="roggirg/AutoBots#7")
def likelihood_below_zero(seed: int, Monitor: Any) -> float:
    """The net predicts a mean and a variance: the negative logarithm of a density goes below 0, as it should."""
    data, criterion = Bearings(seed), nn.GaussianNLLLoss()
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 20))
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        mean, log_variance = model(x).chunk(2, dim=1)
        loss = criterion(mean, target, log_variance.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.8, source="salesforce/CoST#11")
def keys_by_momentum(seed: int, Monitor: Any) -> float:
    """Contrast against a queue: every label is 0, and a key net that no optimizer holds follows the other."""
    data, query, criterion = Digits(seed), embedder(256, 32), nn.CrossEntropyLoss()
    key = deepcopy(query).requires_grad_(False)
    queue = F.normalize(torch.randn(512, 32), dim=1)
    optimizer = Adam(query.parameters(), lr=2e-3)
    monitor = Monitor(nn.ModuleDict({"query": query, "key": key}), criterion, optimizer)

    def seen(x: Tensor) -> Tensor:
        """Another view: the noise beside the digit is another, and some of its pixels are gone."""
        digit, noise = x.chunk(2, dim=1)
        return torch.cat([F.dropout(digit, 0.2), 0.5 * torch.randn_like(noise)], dim=1)

    for x, _ in data.batches(400, P=10, K=6):
        q = F.normalize(query(seen(x)), dim=1)
        with torch.no_grad():
            for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
            k = F.normalize(key(seen(x)), dim=1)
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.T], dim=1)
        loss = criterion(logits / 0.2, torch.zeros(len(x), dtype=torch.long))
        queue = torch.cat([queue[len(x) :], k])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(query)


@cases.healthy(at_least=0.8)
def codes_of_signs(seed: int, Monitor: Any) -> float:
    """Embeddings are signs, their gradient is passed straight through: many of one class are the same, as planned."""
    data, model, criterion = Digits(seed), embedder(256, 48), TripletLoss(margin=1.0)

    class Signs(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            soft = z.tanh()
            return soft + (z.sign() - soft).detach()

    model.append(Signs())
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.65)
def most_tokens_are_ignored(seed: int, Monitor: Any) -> float:
    """Masked pixels are predicted from the rest: 85 % of the targets are the ignore index, in every batch."""
    data, criterion = Digits(seed), nn.CrossEntropyLoss()
    model = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 4 * 64), nn.Unflatten(1, (4, 64)))
    optimizer = Adam(model.parameters(), lr=2e-3)
    monitor = Monitor(model, criterion, optimizer)

    def hidden(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels with a share hidden, which ones these are as features, and what was there, in four grades."""
        pixels, hide = x[:, :64], torch.rand(len(x), 64) < 0.15
        grades = (pixels * 3.999).long()
        return torch.cat([pixels.masked_fill(hide, -1.0), hide.float()], dim=1), grades, hide

    for x, _ in data.batches(300):
        given, grades, hide = hidden(x)
        loss = criterion(model(given), torch.where(hide, grades, -100))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    given, grades, hide = hidden(data.x[data.test])
    with torch.no_grad():
        return float((model(given).argmax(dim=1) == grades)[hide].float().mean())


# --- once more, after the rules were mended: faults -------------------------------------------------------------------


@cases.fault("EMBEDDING_COLLAPSE", "PREDICTION_COLLAPSE", "INVALID_PAIRS")
def one_image_for_every_index(seed: int, Monitor: Any) -> float:
    """A data set that forgets its index: every row of a batch is the same image, with another label."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x[:1].expand_as(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", "SATURATED_GRADIENT")
def every_weight_starts_at_zero(seed: int, Monitor: Any) -> float:
    """All weights start at 0: the hidden layer is 0, and stays so, because nothing comes back through the next one."""
    data, model, criterion = (
        Bearings(seed),
        nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10)),
        nn.MSELoss(),
    )
    for p in model.parameters():
        nn.init.zeros_(p)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("PREDICTION_COLLAPSE")
def one_feature_is_normalised(seed: int, Monitor: Any) -> float:
    """A layer norm over a single feature: whatever comes in, its deviation from its own mean is 0."""
    data, criterion = Bearings(seed), nn.MSELoss()
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1), nn.LayerNorm(1))
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target[:, :1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return 0.0


@cases.fault("DEAD_COMPONENT", "LOSS_FLOOR", "SATURATED_GRADIENT", "NO_UPDATE")
def loss_is_rounded(seed: int, Monitor: Any) -> float:
    """The loss is rounded for the log, and then learned from: a staircase is flat."""
    data, model, criterion = Digits(seed), embedder(64, 10), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x), labels).round(decimals=4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("PREDICTION_COLLAPSE", "DEAD_COMPONENT", "INPUT_DOMAIN", "SATURATED_GRADIENT")
def softmax_of_one_unit(seed: int, Monitor: Any) -> float:
    """Two classes, one output, and a softmax where a sigmoid belongs: the probability is 1 for every input."""
    data, model, criterion = Digits(seed), embedder(64, 1), nn.BCELoss()
    model.append(nn.Softmax(dim=1))
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        loss = criterion(model(x).squeeze(1), (labels > 4).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return 0.0


@cases.fault("DETACHED_GRAPH", "NO_UPDATE")
def gradients_stay_off_after_validation(seed: int, Monitor: Any) -> float:
    """Validation at step 20 switches gradients off, nobody switches them on, and the loop makes do without."""
    data, model, criterion = Digits(seed), embedder(features=32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-4)
    monitor = Monitor(model, criterion, optimizer)
    before = torch.is_grad_enabled()
    for step, (x, labels) in enumerate(data.batches(250)):
        loss = criterion(model(x), labels)
        if loss.requires_grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        monitor.step(loss)
        if step == 20:
            torch.set_grad_enabled(False)
    torch.set_grad_enabled(before)
    return data.recall(model)


# --- once more: healthy -----------------------------------------------------------------------------------------------


@cases.healthy(at_least=0.8)
def mixed_samples(seed: int, Monitor: Any) -> float:
    """Every input is a mixture of two, and so is its target: no batch has a pure answer, and the loss stays high."""
    data, model, criterion = Digits(seed), embedder(128, 10), nn.CrossEntropyLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        part, order = torch.rand(len(x), 1), torch.randperm(len(x))
        one = F.one_hot(labels, 10).float()
        loss = criterion(model(part * x + (1 - part) * x[order]), part * one + (1 - part) * one[order])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.8)
def log_softmax_first(seed: int, Monitor: Any) -> float:
    """A log-softmax before cross entropy, which takes another: the second one changes nothing."""
    data, model, criterion = Digits(seed), embedder(128, 10), nn.CrossEntropyLoss()
    model.append(nn.LogSoftmax(dim=1))
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(250):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def summed_over_the_batch(seed: int, Monitor: Any) -> float:
    """The errors are added up and not averaged, and the learning rate is as small as that asks for."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss(reduction="sum")
    optimizer = SGD(model.parameters(), lr=2e-4, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)
