"""Values against hand-computed numbers and the brute force of oracle.py, which shares nothing with the package."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastmine.functional as F
import oracle
from cases import DIFFERENTIATED, SMALL, Case, Inputs, gradients, leaves, upstream
from compare import assert_choice_agrees, assert_values_agree

MINING_OPTIONS = ("metric", "positive", "negative")
RANKED_OPTIONS = ("positives", "negatives", "window", "group_positives", "seed", "cutoff")
PAIRS = ("positive_index", "negative_index", "positive_distance", "negative_distance")


MANY_OUTPUTS = ("batch_hard", "mined_pairs", "pair_sums", "segmentation_sums")
ELSEWHERE = "segmentation_terms"  # test_segmentation_terms.py has loops for these


def tensor(value: Any) -> Tensor:
    """Nested lists in float64, with 0 for what does not exist."""
    if isinstance(value, list):
        return torch.stack([tensor(v) for v in value]) if value else torch.zeros(0, dtype=torch.float64)
    return torch.as_tensor(0.0 if value is None else value, dtype=torch.float64)


def brute_force(case: Case, inputs: Inputs) -> dict[str, Any]:
    """The outputs of one row from the loops, as lists with None for what does not exist."""
    options = dict(case.options)
    if case.op == "segmentation_loss":
        arrays = {name: (x.double() if x.is_floating_point() else x).detach().numpy() for name, x in inputs.items()}
        return {"loss": oracle.segmentation_loss(**arrays, **options)}
    if case.op == "segmentation_sums":
        arrays = {name: (x.double() if x.is_floating_point() else x).detach().numpy() for name, x in inputs.items()}
        wanted = options.pop("wanted")
        sums = oracle.segmentation_sums(**arrays, **options)
        return {name: value if name in wanted else 0 * np.asarray(value) for name, value in sums.items()}
    lists = {name: x.detach().tolist() for name, x in inputs.items()}
    if case.op == "pairwise_distance":
        return {"distance": oracle.pairwise_distance(lists["x"], lists.get("y"), **options)}
    if case.op in oracle.PAIR_LOSSES:
        return {"loss": oracle.pair_loss(case.op, **lists, **options)}
    if case.answered_by == "batch_all":
        return {"loss": oracle.batch_all(**lists, **{name: x for name, x in options.items() if name != "mining"})}
    if case.op == "mined_pairs":
        pairs = oracle.mined_pairs(**lists, **options)
        return {name: [pair[name] for pair in pairs] for name in PAIRS}
    options.pop("mining", None)
    weight = {"sample_weight": lists.pop("sample_weight")} if "sample_weight" in lists else {}
    mining = {name: options.pop(name) for name in MINING_OPTIONS if name in options}
    if case.op == "selectively_contrastive_loss":
        mining = {"metric": "cosine", "positive": "easiest", **mining}
        return {"loss": oracle.selectively_contrastive(
            oracle.batch_hard(**lists, **mining), metric=mining["metric"], **weight, **options
        )}  # fmt: skip
    metric = mining.get("metric", "euclidean")
    if case.op == "mined_triplet_loss":
        ranked = {name: options.pop(name) for name in RANKED_OPTIONS if name in options}
        pairs = oracle.mined_pairs(**lists, **mining, **ranked)
        return {"loss": oracle.mined_triplet_loss(pairs, metric=metric, **weight, **options)}
    pairs = oracle.batch_hard(**lists, **mining)
    if case.op == "triplet_loss":
        if options.pop("swap", False):
            pairs = oracle.swap(pairs, lists.get("ref_embeddings", lists["embeddings"]), metric)
        pairs = oracle.harden(pairs, options.pop("hardness", 0.0), metric)
        return {"loss": oracle.triplet_loss(pairs, metric=metric, **weight, **options)}
    return {name: [pair[name] for pair in pairs] for name in PAIRS}


OF_ONE_VALUE = [case for case in SMALL if case.op not in MANY_OUTPUTS and case.answered_by != ELSEWHERE]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", OF_ONE_VALUE, ids=str)
def test_values_are_those_of_the_loops(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    ((name, want),) = brute_force(case, inputs).items()
    got = case(inputs)[name]
    assert_values_agree(got, tensor(want).reshape(got.shape), case.family, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [case for case in SMALL if case.op == "segmentation_sums"], ids=str)
def test_sums_are_those_of_the_loops(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    got = case(inputs)
    for name, want in brute_force(case, inputs).items():
        assert_values_agree(got[name], tensor(want).reshape(got[name].shape), case.family, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [case for case in SMALL if case.op == "batch_hard"], ids=str)
def test_mined_pairs_are_those_of_the_loops(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    got, want = case(inputs), brute_force(case, inputs)
    others = inputs["ref_embeddings"].tolist() if "ref_embeddings" in inputs else None
    table = tensor(oracle.pairwise_distance(inputs["embeddings"].tolist(), others, case.options["metric"]))
    for side in ("positive", "negative"):
        exists = torch.tensor([j is not None for j in want[f"{side}_index"]], dtype=torch.bool)
        assert_values_agree(got[f"has_{side}"], exists, "exact", f"has_{side}")
        assert_choice_agrees(got[f"{side}_index"], tensor(want[f"{side}_index"]).long(), table, exists, side)
        assert_values_agree(got[f"{side}_distance"], tensor(want[f"{side}_distance"]), case.family, side)
    assert torch.equal(got["valid"], got["has_positive"] & got["has_negative"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [case for case in SMALL if case.op == "mined_pairs"], ids=str)
def test_ranked_pairs_are_those_of_the_loops(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    got, want = case(inputs), brute_force(case, inputs)
    others = inputs["ref_embeddings"].tolist() if "ref_embeddings" in inputs else None
    table = tensor(oracle.pairwise_distance(inputs["embeddings"].tolist(), others, case.options["metric"]))
    for side in ("positive", "negative"):
        shape = got[f"{side}_index"].shape
        exists = torch.tensor([[j is not None for j in row] for row in want[f"{side}_index"]]).view(shape).bool()
        assert_values_agree(got[f"has_{side}"], exists, "exact", f"has_{side}")
        index = tensor(want[f"{side}_index"]).view(shape).long()
        assert_choice_agrees(got[f"{side}_index"], index, table, exists, side)
        assert_values_agree(got[f"{side}_distance"], tensor(want[f"{side}_distance"]).view(shape), case.family, side)
    assert torch.equal(got["valid"], got["has_positive"].any(dim=1) & got["has_negative"].any(dim=1))


ORACLE_GRADIENTS = [
    case for case in DIFFERENTIATED if case.size <= 40 and case.op != "pair_sums" and case.answered_by != ELSEWHERE
]


@pytest.mark.parametrize("case", ORACLE_GRADIENTS, ids=str)
def test_gradients_are_those_of_the_loops(case: Case) -> None:
    """Central differences of the brute force: a truth with which neither op nor reference can share a slip."""
    inputs = case.inputs()
    by = leaves(inputs)
    outputs = case(inputs)
    weights = upstream(outputs)
    got = gradients(outputs, weights, by)
    plain = {name: x.detach() for name, x in inputs.items()}

    def weighted(name: str, x: Tensor) -> Tensor:
        found = brute_force(case, {**plain, name: x})
        return sum((w * tensor(found[key]).reshape(w.shape)).sum() for key, w in weights.items())

    h = 1e-5
    for name in by:
        size, shape = plain[name].numel(), plain[name].shape
        steps = h * torch.eye(size, dtype=torch.float64).reshape(size, *shape)
        slopes = [(weighted(name, plain[name] + e) - weighted(name, plain[name] - e)).item() / (2 * h) for e in steps]
        numeric = tensor(slopes).reshape(shape)
        scale = max([1.0, *map(abs, slopes)])
        assert torch.allclose(got[name], numeric, rtol=1e-6, atol=1e-7 * scale), f"{name}: {got[name]} not {numeric}"


# --- numbers that one can check by hand ----------------------------------------------------------------------------


def test_the_3_4_5_triangle() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert F.pairwise_distance(x).tolist() == [[0, 5], [5, 0]]
    assert F.pairwise_distance(x, metric="sqeuclidean").tolist() == [[0, 25], [25, 0]]
    assert F.pairwise_distance(x, metric="dot").tolist() == [[0, 0], [0, 25]]
    assert F.pairwise_distance(x, metric="cosine").tolist() == [[0, 1], [1, 0]]


def test_cosine_of_right_and_straight_angles() -> None:
    x = torch.tensor([[2.0, 0.0]])
    y = torch.tensor([[0.5, 0.0], [0.0, 9.0], [-1.0, 0.0]])
    assert F.pairwise_distance(x, y, metric="cosine").tolist() == [[0, 1, 2]]


LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # two classes on a line
PAIRED = torch.tensor([0, 0, 1, 1])


def test_batch_hard_on_a_line() -> None:
    mined = F.batch_hard(LINE, PAIRED)
    assert mined.positive_index.tolist() == [1, 0, 3, 2]
    assert mined.negative_index.tolist() == [2, 2, 1, 1]
    assert mined.positive_distance.tolist() == [1, 1, 4, 4]
    assert mined.negative_distance.tolist() == [3, 2, 2, 6]
    assert mined.valid.all()


def test_triplet_loss_on_a_line() -> None:
    # d_p - d_n: -2, -1, 2, -2; with margin 1.5: -0.5, 0.5, 3.5, -0.5
    x = LINE.clone().requires_grad_()
    loss = F.triplet_loss(x, PAIRED, margin=1.5)
    loss.backward()
    assert loss.item() == 1.0
    # Anchor 1 moves away from 0 and towards 2; anchor 2 towards 3 and away from 1: each +-1, over 4 valid anchors.
    assert (4 * x.grad).flatten().tolist() == [-1, 3, -3, 1]
    per_anchor = F.triplet_loss(LINE, PAIRED, margin=1.5, reduction="none")
    assert per_anchor.tolist() == [0, 0.5, 3.5, 0]
    leaking = F.triplet_loss(LINE, PAIRED, margin=1.5, leak=0.5, reduction="none")
    assert leaking.tolist() == [-0.25, 0.5, 3.5, -0.25]
    soft = F.triplet_loss(LINE, PAIRED, margin="soft", reduction="none")
    assert soft.tolist() == pytest.approx([math.log1p(math.exp(v)) for v in (-2, -1, 2, -2)], rel=1e-6)


def test_batch_all_on_a_line() -> None:
    # Anchor 0: d_p 1 against 3, 7; anchor 1: 1 against 2, 6; anchor 2: 4 against 3, 2; anchor 3: 4 against 7, 6.
    # With margin 1.5: -0.5, -4.5; 0.5, -3.5; 2.5, 3.5; -1.5, -0.5.
    x = LINE.clone().requires_grad_()
    loss, evidence = F.triplet_loss(x, PAIRED, margin=1.5, mining="batch_all", return_evidence=True)
    loss.backward()
    assert loss.item() == pytest.approx(6.5 / 3)
    assert (evidence.triplets, evidence.active_triplets, evidence.active, evidence.hard) == (8, 3, 2, 1)
    assert evidence.easy_share == 5 / 8
    # (1: 0, 2): 1 moves to 0 and away from 2; (2: 3, 0) and (2: 3, 1): 2 moves to 3, away from 0 and 1.
    assert (3 * x.grad).flatten().tolist() == pytest.approx([-1 + 1, 1 + 1 + 1, -1 - 2 - 2, 2], abs=1e-6)
    options = {"margin": 1.5, "mining": "batch_all"}
    assert F.triplet_loss(LINE, PAIRED, average="valid", **options).item() == pytest.approx(6.5 / 8)
    assert F.triplet_loss(LINE, PAIRED, reduction="none", **options).tolist() == [0, 0.5, 6, 0]
    leaking = F.triplet_loss(LINE, PAIRED, reduction="none", leak=0.5, **options)
    assert leaking.tolist() == pytest.approx([-2.5, 0.5 - 1.75, 6, -1])


def test_semi_hard_takes_the_nearest_negative_beyond_the_positive() -> None:
    x = torch.tensor([[0.0], [2.0], [1.0], [3.0], [9.0]])
    labels = torch.tensor([0, 0, 1, 2, 3])
    mined = F.batch_hard(x, labels, negative="semi_hard")
    assert mined.negative_index[0] == 3  # 1 is nearer than the positive at 2
    x[3:] = torch.tensor([[2.0], [2.5]])  # as far as the positive is not farther
    assert F.batch_hard(x, labels, negative="semi_hard").negative_index[0] == 4
    x[3:] = torch.tensor([[0.5], [1.5]])  # no negative is beyond 2 any more: the farthest
    assert F.batch_hard(x, labels, negative="semi_hard").negative_index[0] == 4


def test_easiest_positive_is_the_nearest() -> None:
    x = torch.tensor([[0.0], [5.0], [2.0], [9.0]])
    labels = torch.tensor([0, 0, 0, 1])
    assert F.batch_hard(x, labels, positive="easiest").positive_index[0] == 2
    assert F.batch_hard(x, labels).positive_index[0] == 1


def test_dot_is_a_similarity_whose_hardest_positive_is_the_smallest() -> None:
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [5.0, 0.0], [-4.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    mined = F.batch_hard(x, labels, metric="dot")
    assert (mined.positive_index[0], mined.positive_distance[0]) == (2, 2.0)
    assert (mined.negative_index[0], mined.negative_distance[0]) == (3, 5.0)
    assert F.triplet_loss(x, labels, metric="dot", margin=1.0, reduction="none")[0] == 5.0 - 2.0 + 1.0


# sigmoid(0) = 1/2 everywhere, target 1 1 0 0: A = 1, P = 2, T = 2 over 4 pixels
HALF, MASK = torch.zeros(1, 4), torch.tensor([[1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("term", "options", "value"),
    [
        ("dice", {}, 1 - 2 / 4),
        ("dice", {"smooth": 1.0}, 1 - 3 / 5),
        ("iou", {}, 1 - 1 / 3),
        ("iou", {"smooth": 1.0}, 1 - 2 / 4),
        ("tversky", {"tversky_alpha": 0.3, "tversky_beta": 0.7}, 1 - 1 / 2),
        ("tversky", {"tversky_alpha": 1.0, "tversky_beta": 1.0}, 1 - 1 / 3),
        ("tversky", {"tversky_alpha": 0.0, "tversky_beta": 0.0}, 0.0),
        ("bce", {}, math.log(2)),
        ("focal", {"focal_gamma": 0.0}, math.log(2)),
        ("focal", {"focal_gamma": 2.0}, math.log(2) / 4),
        ("focal", {"focal_alpha": 0.25}, math.log(2) / 4 * (0.25 + 0.75) / 2),
    ],
)
def test_terms_at_probability_one_half(term: str, options: dict[str, float], value: float) -> None:
    loss = F.segmentation_loss(HALF, MASK, terms={term: 1.0}, **options)
    assert loss.item() == pytest.approx(value, rel=1e-6)


def test_tversky_alpha_weighs_false_positives() -> None:
    sure = 50.0
    alarm = torch.tensor([[sure, sure, -sure, -sure]])  # target: only the first, so one false positive
    miss = torch.tensor([[sure, -sure, -sure, -sure]])  # target: the first two, so one false negative
    one, two = torch.tensor([[1, 0, 0, 0]]), torch.tensor([[1, 1, 0, 0]])
    assert F.tversky_loss(alarm, one, alpha=0.3, beta=0.7).item() == pytest.approx(1 - 1 / 1.3)
    assert F.tversky_loss(miss, two, alpha=0.3, beta=0.7).item() == pytest.approx(1 - 1 / 1.7)


def test_dice_gradient_by_hand() -> None:
    x = HALF.clone().requires_grad_()
    F.dice_loss(x, MASK).backward()
    # D = P + T = 4, A = 1: d/dp = -2/D + 2A/D^2 = -3/8 on target, 2A/D^2 = 1/8 elsewhere; times p q = 1/4
    assert x.grad.tolist() == [[-3 / 32, -3 / 32, 1 / 32, 1 / 32]]


def test_multiclass_at_equal_logits() -> None:
    logits = torch.zeros(1, 4, 2)
    target = torch.tensor([[0, 3]])

    def value(**terms: float) -> float:
        return F.segmentation_loss(logits, target, mode="multiclass", terms=terms).item()

    assert value(ce=1.0) == pytest.approx(math.log(4))
    assert value(focal=1.0) == pytest.approx((3 / 4) ** 2 * math.log(4))
    # Classes 0 and 3: A = 1/4, P = 1/2, T = 1; classes 1 and 2 are empty and take their area, 1/4.
    assert value(dice=1.0) == pytest.approx((2 * (1 - 0.5 / 1.5) + 2 / 4) / 4)
    assert value(iou=1.0) == pytest.approx((2 * (1 - 0.25 / 1.25) + 2 / 4) / 4)


def test_terms_add_with_their_weights() -> None:
    terms = {"dice": 0.5, "bce": 2.0, "focal": 4.0}
    assert F.segmentation_loss(HALF, MASK, terms=terms).item() == pytest.approx(0.25 + 2 * math.log(2) + math.log(2))


@pytest.mark.parametrize(("reduction", "value"), [("mean", 0.75), ("none", [0.5, 1.0]), ("sum", 1.5)])
def test_reductions_of_dice(reduction: str, value: float | list[float]) -> None:
    logits = torch.cat([HALF, torch.full((1, 4), -200.0)])  # the second sample misses everything
    found = F.dice_loss(logits, MASK.expand(2, 4), reduction=reduction)
    assert found.tolist() == pytest.approx(value)


def test_mean_over_groups_is_not_the_mean_of_samples_where_classes_are_missing() -> None:
    logits = torch.zeros(2, 2, 4)
    target = torch.tensor([[[1, 1, 0, 0], [1, 1, 1, 1]], [[1, 1, 0, 0], [1, 0, 0, 0]]])
    valid = torch.tensor([[True, False], [True, True]])
    dice = [1 - 2 / 4, 1 - 2 / 4, 1 - 1 / 3]  # A = 1/2, P = 2, T = 1 for the last
    assert F.dice_loss(logits, target, mode="multilabel", valid=valid).item() == pytest.approx(sum(dice) / 3)
    by_sample = F.dice_loss(logits, target, mode="multilabel", valid=valid, reduction="none")
    assert by_sample.tolist() == pytest.approx([dice[0], (dice[1] + dice[2]) / 2])
