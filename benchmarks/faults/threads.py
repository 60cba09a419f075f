"""Faults that people met, each from the issue thread it names, and healthy runs that look like them but are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW

from fastmine.losses import CombinedSegmentationLoss, CompositeLoss, DiceLoss, FocalLoss, TripletLoss

from .case import Suite
from .nets import ResNet18, RowTransformer
from .tasks import Bearings, Digits, Disks, Unit, direction_loss, embedder, regressor, segmenter, signal_nmse

cases = Suite("threads")

# --- faults: mining ---------------------------------------------------------------------------------------------------


@cases.fault("NO_POSITIVES", "FEW_VALID", source="KevinMusgrave/pytorch-metric-learning#744")
def labels_from_a_large_range(seed: int, Monitor: Any) -> float:
    """Labels are drawn from a million identities, so that two of a batch hardly ever share one."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, _ in data.batches(150):
        loss = criterion(model(x), torch.randint(0, 1_000_000, (len(x),)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("EMBEDDING_COLLAPSE", source="VisualComputingInstitute/triplet-reid#30")
def soft_margin_collapse(seed: int, Monitor: Any) -> float:
    """The soft margin sits at ln 2 = 0.69: all embeddings are one point."""
    data, model, criterion = Digits(seed), embedder(features=32), TripletLoss(margin="soft")
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


@cases.fault("MARGIN_UNREACHABLE", source="huggingface/sentence-transformers#279")
def margin_out_of_reach(seed: int, Monitor: Any) -> float:
    """A margin of 5, a default made for free embeddings, on the unit sphere: no distance there exceeds 2."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=5.0)
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


@cases.fault("LABEL_SENTINEL", source="gnn-tracking/gnn_tracking#190")
def noise_as_a_class(seed: int, Monitor: Any) -> float:
    """Pseudo-labels of a clustering: half of the rows are noise, labelled -1, and mined as if they were one class."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(200):
        noise = torch.rand(len(x)) < 0.5
        loss = criterion(model(x), torch.where(noise, -1, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("ZERO_NORM_INPUT", source="pytorch/pytorch#184575")
def embeddings_of_norm_zero(seed: int, Monitor: Any) -> float:
    """A rectifier before the embedding dies for most rows: their embedding is the zero vector."""
    data, model, criterion = Digits(seed), embedder(128, 8), TripletLoss(margin=0.2)
    model.append(nn.ReLU())
    nn.init.constant_(model[2].bias, -0.35)
    optimizer = Adam(model.parameters(), lr=1e-4)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_SEPARATION", "EMBEDDING_COLLAPSE", source="omoindrot/tensorflow-triplet-loss#51")
def labels_shuffled(seed: int, Monitor: Any) -> float:
    """Images and labels are shuffled apart: every batch has valid triplets, and none of them means anything."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels[torch.randperm(len(labels))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


# --- faults: plumbing -------------------------------------------------------------------------------------------------


@cases.fault("NO_UPDATE", source="pytorch/pytorch#14467, microsoft/nni#4521")
def optimizer_of_another_model(seed: int, Monitor: Any) -> float:
    """The optimizer was built before the net was replaced by a copy of it: it updates parameters that nobody uses."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = Adam(model.parameters(), lr=1e-3)
    model = embedder()
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE", source="Lightning-AI/pytorch-lightning#18570")
def schedule_counts_steps_as_epochs(seed: int, Monitor: Any) -> float:
    """A linear decay over 10 epochs is advanced once a step: after 10 steps the learning rate is 0."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = AdamW(model.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: max(0.0, 1 - epoch / 10))
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE", source="pytorch/ao#1124")
def updates_lost_to_rounding(seed: int, Monitor: Any) -> float:
    """Weights are bfloat16 and the learning rate 1e-6: every update is smaller than half a bit of the weight."""
    data, model, criterion = Digits(seed), embedder().bfloat16(), TripletLoss(margin=0.2)
    optimizer = SGD(model.parameters(), lr=1e-6)
    data.x = data.x.bfloat16()
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("NO_UPDATE", source="patrickloeber/pytorchTutorial#19")
def gradients_cleared_too_late(seed: int, Monitor: Any) -> float:
    """zero_grad stands between backward and step: the optimizer never sees a gradient."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target)
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("NO_UPDATE", "NONFINITE", source="keras-team/tf-keras#644")
def loss_scaler_never_recovers(seed: int, Monitor: Any) -> float:
    """One gradient overflows at any scale, so the loss scaler skips every update."""
    data, model, criterion = Digits(seed), embedder(), TripletLoss(margin=0.2)
    optimizer = SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    model[2].bias.register_hook(lambda gradient: gradient * torch.inf)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(150):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return data.recall(model)


@cases.fault("DETACHED_GRAPH", source="huggingface/torchMoji#21, ronghuaiyang/arcface-pytorch#56")
def loss_rebuilt_from_its_number(seed: int, Monitor: Any) -> float:
    """backward() complained that the loss needs no gradient, so the loss was rebuilt with requires_grad=True."""
    data, model, criterion = Bearings(seed), regressor(), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = torch.tensor(criterion(model(x), target).item(), requires_grad=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.fault("REPORTED_LOSS_MISMATCH", "NO_UPDATE", source="the third of the systems that this project grew out of")
def logged_in_a_skipped_branch(seed: int, Monitor: Any) -> float:
    """The loss is logged only where a gate lets the update through; the gate is shut and the log says 0."""
    data, model = Bearings(seed), regressor()
    criterion = CompositeLoss({"direction": direction_loss, "signal": signal_nmse}, {"direction": 1.0, "signal": 1.0})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss, logged = criterion(model(x), target), 0.0
        optimizer.zero_grad()
        loss.backward()
        if nn.utils.clip_grad_norm_(model.parameters(), 1.0) < 1e-3:
            optimizer.step()
            logged = loss.item()
        monitor.step(loss, logged=logged)
    return data.hits(model)


# --- faults: targets and components -----------------------------------------------------------------------------------


@cases.fault("SHAPE_BROADCAST", source="deepset-ai/FARM#229")
def target_broadcast(seed: int, Monitor: Any) -> float:
    """Predictions [N, 1] against targets [N]: every prediction is compared with every target and learns their mean."""
    data, model, criterion = Bearings(seed), nn.Sequential(regressor(), nn.Tanh(), nn.Linear(10, 1)), nn.MSELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(200):
        loss = criterion(model(x), target[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    x, target = data.draw(256)
    return float(torch.corrcoef(torch.stack([model(x)[:, 0], target[:, 0]]))[0, 1].nan_to_num().abs().detach())


@cases.fault("PREDICTION_COLLAPSE", source="akirasosa/mobile-semantic-segmentation#24")
def dice_minimised(seed: int, Monitor: Any) -> float:
    """The Dice coefficient itself is minimised instead of 1 - Dice: the net unlearns the object."""
    data, model, criterion = Disks(seed), segmenter(), DiceLoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(200):
        loss = 1 - criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("DEAD_COMPONENT", source="Junelin2333/LanGuideMedSeg-MICCAI2023#13")
def cross_entropy_of_one_channel(seed: int, Monitor: Any) -> float:
    """Dice plus softmax cross entropy of a single channel: the softmax is 1, the second term 0 for every prediction."""

    def softmax_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.zeros_like(masks[:, 0], dtype=torch.long))

    data, model = Disks(seed), segmenter()
    criterion = CompositeLoss({"dice": DiceLoss(), "ce": softmax_cross_entropy}, {"dice": 0.5, "ce": 0.5})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("SMOOTH_DOMINATES", source="Project-MONAI/MONAI#807")
def smoothing_swallows_dice(seed: int, Monitor: Any) -> float:
    """A smoothing constant of 1e5 beside masks of a few hundred pixels: Dice is 1 and its gradient nothing."""
    data, model, criterion = Disks(seed), segmenter(), DiceLoss(smooth=1e5)
    optimizer = SGD(model.parameters(), lr=1e-2)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(model(images), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.fault("SATURATED_GRADIENT", source="MIC-DKFZ/nnUNet#298")
def saturated_from_the_start(seed: int, Monitor: Any) -> float:
    """A temperature of 1e-7 before the sigmoid: every probability is exactly 0 or 1, and every slope exactly 0."""
    data, model, criterion = Disks(seed), segmenter(), nn.BCELoss()
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(120):
        loss = criterion(torch.sigmoid(model(images) / 1e-7), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


# --- healthy: large nets, few steps -----------------------------------------------------------------------------------


@cases.healthy(at_least=0.6)
def resnet18_triplet(seed: int, Monitor: Any) -> float:
    """ResNet-18 of full width (11 M parameters) with batch norm, from scratch, 30 steps."""
    data, model, criterion = Digits(seed, images=True), ResNet18(), TripletLoss(margin="soft")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(30):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.5)
def transformer_triplet(seed: int, Monitor: Any) -> float:
    """A transformer encoder of 4 layers (3 M parameters) with dropout, warm-up and clipping."""
    data, model, criterion = Digits(seed), RowTransformer(), TripletLoss(margin="soft")
    optimizer = AdamW(model.parameters(), lr=1e-3)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=10)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(60, P=10, K=2):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warm_up.step()
        monitor.step(loss)
    return data.recall(model)


# --- healthy: what looks like a fault ---------------------------------------------------------------------------------


@cases.healthy(at_least=0.85, source="KevinMusgrave/pytorch-metric-learning#268")
def loss_zero_when_tuned_further(seed: int, Monitor: Any) -> float:
    """A net that already meets the margin goes on: most batches have a loss of exactly 0, as they should."""
    data, model, criterion = Digits(seed), embedder(256, 32), TripletLoss(margin=0.05)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(400, P=5, K=4):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85, source="omoindrot/tensorflow-triplet-loss#51")
def stuck_near_the_margin_for_a_while(seed: int, Monitor: Any) -> float:
    """On the unit sphere batch-hard loss stays near its margin for long while recall climbs."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=1.0)
    model.append(Unit())
    optimizer = Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def backbone_frozen_on_purpose(seed: int, Monitor: Any) -> float:
    """Only the head is trained; the frozen layers do not require a gradient and are not in the optimizer."""
    data, model, criterion = Digits(seed), embedder(512, 32), TripletLoss(margin=0.5)
    model[0].requires_grad_(False)
    optimizer = Adam(model[2].parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85, source="pytorch/pytorch#26512")
def scaler_finds_its_scale(seed: int, Monitor: Any) -> float:
    """A loss scaler starts too high and skips the first updates until its scale fits; then it runs."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5, reduction="sum")
    optimizer = Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def bfloat16_autocast(seed: int, Monitor: Any) -> float:
    """Forward under bfloat16 autocast, float32 weights."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, labels in data.batches(300):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = model(x)
        loss = criterion(z, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85)
def cosine_decay_to_zero(seed: int, Monitor: Any) -> float:
    """Warm-up from 0, cosine decay to 0: the learning rate is 0 at both ends, as planned."""
    data, model, criterion = Digits(seed), embedder(128, 32), TripletLoss(margin=0.5)
    optimizer = Adam(model.parameters(), lr=5e-3)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 20))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=280)
    monitor = Monitor(model, criterion, optimizer)
    for step, (x, labels) in enumerate(data.batches(300)):
        loss = criterion(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        (warm_up if step < 20 else cosine).step()
        monitor.step(loss)
    return data.recall(model)


@cases.healthy(at_least=0.85, source="MIC-DKFZ/nnUNet#1104")
def unannotated_and_declared(seed: int, Monitor: Any) -> float:
    """80 % of the samples are not annotated, and the loss is told so."""
    data, model, criterion = Disks(seed), segmenter(), CombinedSegmentationLoss()
    optimizer = Adam(model.parameters(), lr=5e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(300):
        annotated = torch.rand(len(masks)) < 0.2
        loss = criterion(model(images), masks * annotated.view(-1, 1, 1, 1), valid=annotated)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.85)
def soft_targets(seed: int, Monitor: Any) -> float:
    """Masks smoothed to 0.05 and 0.95, focal loss: never 0, and a small gradient by design."""
    data, model, criterion = Disks(seed), segmenter(), FocalLoss(gamma=2.0)
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(250):
        loss = criterion(model(images), 0.9 * masks + 0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.dice(model)


@cases.healthy(at_least=0.85)
def classes_of_a_multiclass_net(seed: int, Monitor: Any) -> float:
    """Three classes with softmax, one of which is in few images."""
    data, model = Disks(seed), segmenter()
    model[4] = nn.Conv2d(8, 3, 3, padding=1)
    criterion = CombinedSegmentationLoss(mode="multiclass")
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for images, masks in data.batches(250):
        inverted = torch.rand(len(masks), 1, 1, 1) < 0.25
        target = masks * torch.where(inverted, 2, 1)
        loss = criterion(model(torch.where(inverted, -images, images)), target[:, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    images, masks = data.draw(64)
    with torch.no_grad():
        found = (model(images).argmax(dim=1, keepdim=True) == 1).float()
    return float(2 * (found * masks).sum() / (found.sum() + masks.sum()))


@cases.healthy(at_least=0.9)
def foreign_loss(seed: int, Monitor: Any) -> float:
    """An ordinary torch loss, about which little can be seen from outside and nothing is wrong."""
    data, model, criterion = Bearings(seed), regressor(), nn.SmoothL1Loss()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)


@cases.healthy(at_least=0.9)
def small_regulariser(seed: int, Monitor: Any) -> float:
    """A regulariser of weight 0.001 has a small share of the gradient because it was asked to."""

    def smallness(prediction: Tensor, target: Tensor) -> Tensor:  # noqa: ARG001
        return prediction.square().mean()

    data, model = Bearings(seed), regressor()
    components = {"direction": direction_loss, "signal": signal_nmse, "smallness": smallness}
    criterion = CompositeLoss(components, {"direction": 1.0, "signal": 1.0, "smallness": 1e-3})
    optimizer = Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, criterion, optimizer)
    for x, target in data.batches(300):
        loss = criterion(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    return data.hits(model)
