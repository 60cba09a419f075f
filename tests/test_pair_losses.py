"""Losses over all pairs: degenerate batches, temperatures, weights, evidence, and the answers of the peer."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

import fastmine.functional as F
from compare import assert_gradients_agree, assert_values_agree
from fastmine import _ops, losses
from fastmine.health import Monitor
from fastmine.reference.pair_sums import PAIR_FIELDS, Sums

NAMES = ("supcon_loss", "ntxent_loss", "multi_similarity_loss", "circle_loss", "contrastive_loss")
LOSSES: dict[str, Callable[..., losses.EvidentLoss[Any]]] = {
    "supcon_loss": losses.SupConLoss, "ntxent_loss": losses.NTXentLoss,
    "multi_similarity_loss": losses.MultiSimilarityLoss, "circle_loss": losses.CircleLoss,
    "contrastive_loss": losses.ContrastiveLoss,
}  # fmt: skip
every_loss = pytest.mark.parametrize("name", NAMES)


def batch(n: int = 24, d: int = 8, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.arange(n) % classes


def step(name: str, x: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor, Any]:
    """Value, gradient and evidence."""
    x = x.detach().clone().requires_grad_()
    value, evidence = getattr(F, name)(x, labels, **options, return_evidence=True)
    assert value.requires_grad, "the loss is not connected to its input"
    return value.detach(), torch.autograd.grad(value.sum(), x)[0], evidence


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("sizes", [(9, 4, 20), (70, 1, 300)])
def test_the_terms_of_ntxent_are_found_in_parts(metric: str, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    """Given the log-sum-exp of all negatives, the terms of two parts of the references add up to those of the whole."""
    n, first, m = sizes
    generator = torch.Generator().manual_seed(1)
    x, refs = (torch.randn(rows, 6, generator=generator).to(dtype) for rows in (n, m))
    labels, ref_labels = torch.arange(n) % 4, torch.arange(m) % 3  # one label has no positive
    valid, ref_valid = torch.rand(n, generator=generator) < 0.8, torch.rand(m, generator=generator) < 0.8
    curve = [-0.7, 0.5, 0.0, -0.7, 0.5, 0.0]

    def sums(of: slice, level: Tensor | None) -> Tensor:
        options = (None, None, metric, "nce", curve, None, level)
        return _ops.pair_sums(x, labels, valid, refs[of], ref_labels[of], ref_valid[of], *options)[0]

    whole = sums(slice(None), None)
    level = whole[Sums._fields.index("negative_lse")].clone()
    parts = [sums(of, level) for of in (slice(first), slice(first, None))]
    for name in ("positives", "negatives", "nce", "nce_slope", "nce_curve"):
        row = Sums._fields.index(name)
        assert_values_agree((parts[0] + parts[1])[row].to(dtype), whole[row].double(), "reduction", name)
    for name in ("positive_distance", "negative_distance", "positive_curve", "negative_curve"):
        assert not parts[1][Sums._fields.index(name)].any(), name
    assert (parts[1][Sums._fields.index("negative_lse")] == -math.inf).all()


def test_sums_with_a_level_have_no_gradient_of_their_own() -> None:
    """Of one part of the references it would be wrong, and silently."""
    x, labels = batch()
    level = torch.zeros(24, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="pair_sums with a level has no gradient"):
        _ops.pair_sums(
            x.requires_grad_(), labels, *[None] * 6, "cosine", "nce", [-1.0, 1.0, 0.0] * 2, None, level
        )  # fmt: skip


# --- batches without pairs, and batches with nothing else -----------------------------------------------------------


@every_loss
@pytest.mark.parametrize(("labels", "counts"), [
    ([0, 1, 2, 3], (4, 0, 4, 0)), ([5, 5, 5, 5], (4, 4, 0, 0)), ([7], (1, 0, 0, 0)), ([], (0, 0, 0, 0)),
])  # fmt: skip
def test_without_valid_anchors_the_loss_is_a_connected_zero(
    name: str, labels: list[int], counts: tuple[int, ...]
) -> None:
    value, gradient, evidence = step(name, torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.int64))
    assert value.item() == 0
    assert not gradient.any()
    assert (evidence.admitted, evidence.has_positive, evidence.has_negative, evidence.valid) == counts
    assert evidence.active == evidence.positive_pairs == evidence.negative_pairs == 0


@every_loss
def test_an_empty_batch_can_be_said_aloud(name: str) -> None:
    x, labels = torch.randn(4, 3), torch.arange(4)
    with pytest.warns(UserWarning, match="no anchor of this batch has both"):
        getattr(F, name)(x, labels, on_empty="warn")
    with pytest.raises(ValueError, match="4 anchors 4 take part, in 4 classes; 0 have a positive"):
        getattr(F, name)(x, labels, on_empty="raise")


@every_loss
def test_singletons_do_not_thin_the_mean(name: str) -> None:
    x, labels = batch(20, 8, 5)
    alone = torch.cat([x, torch.full((1, 8), 50.0)]), torch.cat([labels, torch.tensor([99])])
    per_anchor = getattr(F, name)(*alone, reduction="none")
    assert per_anchor[-1] == 0
    assert getattr(F, name)(*alone).item() == pytest.approx(per_anchor[:-1].mean().item(), rel=1e-6)


@every_loss
def test_collapse_has_a_finite_loss_and_no_gradient_to_speak_of(name: str) -> None:
    value, gradient, evidence = step(name, torch.randn(1, 8).repeat(24, 1), batch()[1])
    assert value.isfinite()
    assert gradient.abs().max() < 1e-4
    assert abs(evidence.spread) < 1e-6


@every_loss
@pytest.mark.parametrize("fill", [0.0, 1e-30, 1e18])
def test_zero_and_extreme_rows_stay_finite(name: str, fill: float) -> None:
    x, labels = batch()
    x[3] = x[10] = fill
    value, gradient, evidence = step(name, x, labels)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert evidence.zero_rows == (2 if fill == 0 else 0)


@every_loss
@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_a_nan_row_makes_the_loss_nan_and_is_counted(name: str, fill: float) -> None:
    x, labels = batch()
    x[5, 2] = fill
    value, gradient, evidence = step(name, x, labels)
    assert value.isnan()
    assert gradient.isnan().any()
    assert evidence.nonfinite_rows == 1


@every_loss
def test_a_nan_row_marked_invalid_changes_nothing(name: str) -> None:
    x, labels = batch()
    kept = torch.ones(24, dtype=torch.bool)
    kept[5] = kept[17] = False
    want, want_gradient, _ = step(name, x[kept], labels[kept])
    x[5], x[17, 3] = math.nan, -math.inf
    value, gradient, evidence = step(name, x, labels, valid=kept)
    assert_values_agree(value, want.double(), "reduction")
    assert_gradients_agree(gradient[kept], want_gradient.double())
    assert not gradient[~kept].any()
    assert (evidence.anchors, evidence.admitted, evidence.nonfinite_rows) == (24, 22, 0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(name: str, dtype: torch.dtype) -> None:
    x, labels = batch()
    x = x.to(dtype)
    value, gradient, _ = step(name, x, labels)
    want, want_gradient, _ = step(name, x.double(), labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value.double(), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        gradient.double(), want_gradient, rtol=torch.finfo(dtype).eps, atol=1e-4 * want_gradient.abs().max().item()
    )


@every_loss
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_a_large_batch_is_as_exact_as_a_small_one(name: str, metric: str) -> None:
    """Where there is a matrix unit, its products are of whole numbers from here on."""
    x, labels = batch(400, 64, 100)
    x, labels = normalize(x), labels[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    got, gradient, _ = step(name, x, labels, metric=metric)
    want, want_gradient, _ = step(name, x.double(), labels, metric=metric)
    assert_values_agree(got, want, "reduction")
    assert_gradients_agree(gradient, want_gradient)


# --- temperatures, weights, evidence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["supcon_loss", "ntxent_loss"])
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine", "dot"])
def test_a_learned_temperature_is_a_temperature_with_a_gradient(name: str, metric: Any) -> None:
    x, labels = batch()
    x, temperature = x.double(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    value = getattr(F, name)(x, labels, metric=metric, temperature=temperature)
    assert value.item() == pytest.approx(getattr(F, name)(x, labels, metric=metric, temperature=0.3).item(), rel=1e-12)
    h = 1e-6
    above, below = (getattr(F, name)(x, labels, metric=metric, temperature=0.3 + s * h).item() for s in (1, -1))
    (gradient,) = torch.autograd.grad(value, temperature)
    assert gradient.item() == pytest.approx((above - below) / (2 * h), rel=1e-6)


@pytest.mark.parametrize("loss", [losses.SupConLoss, losses.NTXentLoss])
def test_a_temperature_that_is_a_parameter_is_found_by_optimizers(loss: Callable[..., nn.Module]) -> None:
    module = loss(nn.Parameter(torch.tensor(0.2)))
    assert [name for name, _ in module.named_parameters()] == ["temperature"]
    module(*batch()).backward()
    assert module.temperature.grad.isfinite()
    assert module.temperature.grad != 0


def test_cold_temperatures_do_not_underflow() -> None:
    """All negatives far below the positives: float32 exponentials taken about any fixed level would all be 0."""
    x = normalize(torch.eye(12).repeat(2, 1) + 1e-3)
    value, gradient, _ = step("ntxent_loss", x, torch.arange(24) % 12, temperature=0.004)
    want = F.ntxent_loss(x.double(), torch.arange(24) % 12, temperature=0.004)
    assert 0 < want < 1e-90
    per_anchor = F.pair_sums(
        x, torch.arange(24) % 12, positive_curve=(-250.0, 1.0, 0.0), negative_curve=(-250.0, 1.0, 0.0)
    )
    assert per_anchor.negative_lse.isfinite().all()
    assert value.isfinite()
    assert gradient.isfinite().all()


@every_loss
def test_sample_weights_weigh_anchors(name: str) -> None:
    x, labels = batch()
    weight = torch.rand(24)
    weight[4] = 0
    per_anchor = getattr(F, name)(x, labels, reduction="none")
    weighted = getattr(F, name)(x, labels, reduction="none", sample_weight=weight)
    torch.testing.assert_close(weighted, per_anchor * weight)
    mean = getattr(F, name)(x, labels, sample_weight=weight)
    assert mean.item() == pytest.approx(((per_anchor * weight).sum() / weight.sum()).item(), rel=1e-5)
    assert getattr(F, name)(x, labels, sample_weight=torch.zeros(24)).item() == 0


@every_loss
def test_a_module_is_its_function_and_keeps_the_evidence(name: str) -> None:
    x, labels = batch()
    module = LOSSES[name]()
    assert torch.equal(module(x, labels), getattr(F, name)(x, labels))
    assert module.evidence.fields == PAIR_FIELDS
    by_name = losses.get_loss_function(name.removesuffix("_loss"), reduction="none")
    assert torch.equal(by_name(x, labels), getattr(F, name)(x, labels, reduction="none"))


def test_evidence_counts_pairs_by_hand() -> None:
    line, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1, 1])
    value, evidence = F.contrastive_loss(line, labels, positive_margin=2.0, negative_margin=2.5, return_evidence=True)
    # Positives 1 and 4 apart, of which 4 is beyond 2; negatives 3, 7, 2, 6 apart, of which 2 is within 2.5.
    assert (evidence.valid, evidence.active, evidence.positive_pairs, evidence.negative_pairs) == (4, 3, 2, 2)
    assert evidence.positive_distance_sum == pytest.approx(1 + 1 + 4 + 4)
    assert evidence.negative_distance_sum == pytest.approx((3 + 7) / 2 + (2 + 6) / 2 + (3 + 2) / 2 + (7 + 6) / 2)
    assert value.item() == pytest.approx((0 + 0.5 + (2 + 0.5) + 2) / 4)


def test_two_views_share_one_label_tensor() -> None:
    """PML leaves out as "itself" every pair i, i of a batch and references that share one label object."""
    x, labels = batch()
    views = x + 0.1
    want = F.ntxent_loss(x, labels, ref_embeddings=views, ref_labels=labels.clone())
    assert F.ntxent_loss(x, labels, ref_embeddings=views, ref_labels=labels).item() == want.item() > 0.1


def test_the_same_rows_as_batch_and_as_references_differ_by_the_pairs_with_themselves() -> None:
    x, labels = batch()
    alone, both = F.pair_sums(x, labels), F.pair_sums(x, labels, ref_embeddings=x, ref_labels=labels)
    assert torch.equal(both.positives, alone.positives + 1)
    assert torch.equal(both.negatives, alone.negatives)
    torch.testing.assert_close(both.negative_lse, alone.negative_lse)


@every_loss
@pytest.mark.filterwarnings("ignore")  # it speaks
@pytest.mark.parametrize(("classes", "codes"), [(8, set()), (64, {"NO_POSITIVES"})])
def test_health_reads_their_evidence(name: str, classes: int, codes: set[str]) -> None:
    torch.manual_seed(0)
    net, criterion, centres = nn.Linear(10, 16), LOSSES[name](), 2 * torch.randn(classes, 10)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    monitor = Monitor(net, criterion, optimizer)
    labels = torch.arange(64) % classes
    for _ in range(80):
        loss = criterion(net(centres[labels] + torch.randn(64, 10)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    assert codes == {finding.code for finding in monitor.check()}
    monitor.close()


@pytest.mark.usefixtures("native_ops")
def test_many_rows_against_a_few_anchors_of_them() -> None:
    """So many that a task of the kernel takes several slivers of anchors at once; float64 sees some anchors alone."""
    n = 12_500
    x, labels = batch(n, 2, n // 5)
    some = torch.randint(n, (16,), generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    loss = F.supcon_loss(x, labels, metric="sqeuclidean", temperature=2.0, reduction="none")[some].sum()
    (gradient,) = torch.autograd.grad(loss, x)
    leaf = x.detach().double().requires_grad_()
    t = -(leaf[some, None] - leaf).square().sum(dim=2) / 2.0
    t = t.masked_fill(some[:, None] == torch.arange(n), -torch.inf)
    positive = (labels[some, None] == labels) & (some[:, None] != torch.arange(n))
    want = (t.logsumexp(dim=1) - torch.where(positive, t, 0.0).sum(dim=1) / positive.sum(dim=1)).sum()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    (want_gradient,) = torch.autograd.grad(want, leaf)
    torch.testing.assert_close(
        gradient.double(), want_gradient, rtol=1e-3, atol=1e-5 * want_gradient.abs().max().item()
    )


@pytest.mark.usefixtures("native_ops")
def test_no_matrix_of_all_pairs_is_allocated() -> None:
    n, d = 3000, 8
    x, labels = batch(n, d, 300)
    x.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        F.supcon_loss(x, labels).backward()
    most = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert most < n * n * 4 / 2


@pytest.mark.parametrize(("name", "options", "words"), [
    ("supcon_loss", {"temperature": 0.0}, "temperature must be above 0; got 0.0"),
    ("ntxent_loss", {"temperature": -1.0}, "temperature must be finite and at least 0.0; got -1.0"),
    ("ntxent_loss", {"temperature": torch.ones(2)}, r"temperature, if a tensor, must hold one .* number; got .*\[2\]"),
    ("supcon_loss", {"metric": "l2"}, "metric must be one of 'euclidean', .*; got 'l2'"),
    ("circle_loss", {"metric": "euclidean"}, "metric must be one of 'cosine', 'dot'; got 'euclidean'"),
    ("circle_loss", {"gamma": 0.0}, "gamma must be above 0"),
    ("multi_similarity_loss", {"beta": 0.0}, "beta must be above 0"),
    ("contrastive_loss", {"on_empty": "push"}, "needs the log-sum-exp of the negatives"),
    ("contrastive_loss", {"negative_margin": math.nan}, "negative_margin must be finite; got nan"),
    ("supcon_loss", {"sample_weight": torch.ones(3)}, r"sample_weight must have shape \[24\]"),
])  # fmt: skip
def test_bad_options_are_refused(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        getattr(F, name)(*batch(), **options)
    if "sample_weight" not in options:
        with pytest.raises(ValueError, match=words):
            LOSSES[name](**options)


# --- the peer --------------------------------------------------------------------------------------------------------

PEER = importlib.util.find_spec("pytorch_metric_learning")


def peer(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The same loss by pytorch-metric-learning; its means over pairs are over anchors where all have as many."""
    from pytorch_metric_learning import distances, miners, reducers
    from pytorch_metric_learning import losses as theirs

    mean = reducers.MeanReducer()
    if name == "multi_similarity_loss":
        loss, miner = (
            theirs.MultiSimilarityLoss(alpha=2, beta=50, base=0.5, reducer=mean),
            miners.MultiSimilarityMiner(0.1),
        )
        return lambda x, labels: loss(x, labels, miner(x, labels))
    if name == "contrastive_loss":
        # Over all pairs, all of them active: its default reducer averages over active pairs of the batch.
        distance = distances.LpDistance(normalize_embeddings=False)
        return theirs.ContrastiveLoss(pos_margin=0, neg_margin=100, distance=distance, reducer=mean)
    built = {
        "supcon_loss": lambda: theirs.SupConLoss(0.1, reducer=mean),
        "ntxent_loss": lambda: theirs.NTXentLoss(0.1, reducer=mean),
        "circle_loss": lambda: theirs.CircleLoss(m=0.25, gamma=80, reducer=mean),
    }
    return built[name]()


@pytest.mark.skipif(PEER is None, reason="pytorch-metric-learning is not installed")
@every_loss
def test_values_and_gradients_are_the_peers(name: str) -> None:
    x, labels = batch(32, 16, 8, seed=3)
    x = x.double()
    options: dict[str, Any] = {"negative_margin": 100.0} if name == "contrastive_loss" else {}
    got, gradient, _ = step(name, x, labels, **options)
    leaf = x.clone().requires_grad_()
    want = peer(name)(leaf, labels)
    assert got.item() == pytest.approx(want.item(), rel=1e-9)
    torch.testing.assert_close(gradient, torch.autograd.grad(want, leaf)[0], rtol=1e-7, atol=1e-10)
