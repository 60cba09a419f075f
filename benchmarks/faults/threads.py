"""Faults that people met, each from the issue thread it names, and healthy runs that look like them but are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adam, AdamW

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


# --- faults: kept from the author of the rules until their first score ------------------------------------------------


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


# --- healthy: kept from the author of the rules until their first score -----------------------------------------------


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
