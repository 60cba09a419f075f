"""What must hold for any batch: symmetries of mining and of the segmentation losses, tried on many."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastmine.functional as F
from cases import ALL_TERMS
from compare import assert_gradients_agree, assert_values_agree
from fastmine.reference.batch_hard import NEGATIVES, POSITIVES
from fastmine.reference.pairwise_distance import METRICS
from fastmine.reference.segmentation_sums import MODES

# --- mining --------------------------------------------------------------------------------------------------------

seeds = st.integers(0, 2**31)
metrics = st.sampled_from(METRICS)
garbage = st.sampled_from([0.0, torch.nan, torch.inf, 1e30])
shift_free = st.sampled_from(["euclidean", "sqeuclidean"])
selections = st.fixed_dictionaries({"positive": st.sampled_from(POSITIVES), "negative": st.sampled_from(NEGATIVES)})


def shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(n))


@st.composite
def batches(draw: st.DrawFn, most: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings without ties, labels, and a validity mask."""
    g = torch.Generator().manual_seed(draw(seeds))
    n, d = draw(st.integers(1, most)), draw(st.integers(2, 9))
    labels = torch.randint(draw(st.integers(1, 6)), (n,), generator=g)
    return torch.randn(n, d, generator=g), labels, torch.rand(n, generator=g) < draw(st.sampled_from([0.5, 0.9, 1.0]))


@given(batches(), metrics, selections)
def test_permuting_the_batch_permutes_what_is_mined(batch: Any, metric: Any, selection: Any) -> None:
    x, labels, valid = batch
    order = shuffled(len(x))
    mined = F.batch_hard(x, labels, valid=valid, metric=metric, **selection)
    moved = F.batch_hard(x[order], labels[order], valid=valid[order], metric=metric, **selection)
    assert torch.equal(moved.valid, mined.valid[order])
    for side in ("positive", "negative"):
        exists = getattr(moved, f"has_{side}")
        assert torch.equal(exists, getattr(mined, f"has_{side}")[order])
        index = getattr(moved, f"{side}_index")[exists]
        assert torch.equal(order[index], getattr(mined, f"{side}_index")[order][exists])
        want = getattr(mined, f"{side}_distance")[order].double()
        assert_values_agree(getattr(moved, f"{side}_distance"), want, "pointwise")


@given(batches(), metrics)
def test_permuting_the_batch_permutes_the_gradient(batch: Any, metric: Any) -> None:
    x, labels, valid = batch
    order = shuffled(len(x))

    def gradient(rows: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        rows = rows.double().requires_grad_()
        return torch.autograd.grad(F.triplet_loss(rows, labels, valid=valid, metric=metric, margin="soft"), rows)[0]

    assert_gradients_agree(gradient(x[order], labels[order], valid[order]), gradient(x, labels, valid)[order])


@given(batches(), shift_free, st.sampled_from([1.0, 16.0, 1024.0]))
def test_moving_all_points_together_changes_nothing(batch: Any, metric: Any, offset: float) -> None:
    x, labels, valid = batch
    x = (x * 2**8).round() / 2**8  # so that the sum with the offset is exact
    mined = F.batch_hard(x, labels, valid=valid, metric=metric)
    moved = F.batch_hard(x + offset, labels, valid=valid, metric=metric)
    assert_values_agree(moved.positive_distance, mined.positive_distance.double(), "pointwise")
    assert_values_agree(moved.negative_distance, mined.negative_distance.double(), "pointwise")
    apart = F.pairwise_distance(x, metric=metric)
    assert_values_agree(F.pairwise_distance(x + offset, metric=metric), apart.double(), "reduction")


@given(batches(), metrics, selections, st.integers(-5, 5))
def test_the_names_of_labels_do_not_matter(batch: Any, metric: Any, selection: Any, shift: int) -> None:
    x, labels, valid = batch
    names = shuffled(6) * 1_000_003 + shift
    mined = F.batch_hard(x, labels, valid=valid, metric=metric, **selection)
    renamed = F.batch_hard(x, names[labels], valid=valid, metric=metric, **selection)
    assert all(torch.equal(a, b) for a, b in zip(mined, renamed, strict=True))


@given(batches(), metrics, selections)
def test_a_mask_is_the_same_as_leaving_the_rows_out(batch: Any, metric: Any, selection: Any) -> None:
    x, labels, valid = batch
    kept = valid.nonzero().squeeze(1)
    masked = F.batch_hard(x, labels, valid=valid, metric=metric, **selection)
    removed = F.batch_hard(x[kept], labels[kept], metric=metric, **selection)
    assert not masked.valid[~valid].any()
    assert not masked.has_positive[~valid].any()
    assert not masked.has_negative[~valid].any()
    assert torch.equal(masked.valid[kept], removed.valid)
    for side in ("positive", "negative"):
        exists = getattr(removed, f"has_{side}")
        index = getattr(removed, f"{side}_index")[exists]
        assert torch.equal(getattr(masked, f"{side}_index")[kept][exists], kept[index])
        assert torch.equal(getattr(masked, f"{side}_distance")[kept], getattr(removed, f"{side}_distance"))


@given(batches(), metrics, garbage, st.sampled_from(["zero", "pull", "push"]))
def test_adding_invalid_rows_changes_no_loss_and_no_gradient(batch: Any, metric: Any, fill: float, policy: Any) -> None:
    x, labels, valid = batch
    more = torch.cat([x, torch.full((5, x.shape[1]), fill)])
    more_labels = torch.cat([labels, labels.new_tensor([0, 0, 1, 99, -1])])
    more_valid = torch.cat([valid, torch.zeros(5, dtype=torch.bool)])
    results = []
    for values, names, mask in ((x, labels, valid), (more, more_labels, more_valid)):
        rows = values.clone().requires_grad_()
        loss = F.triplet_loss(rows, names, valid=mask, metric=metric, margin=1.0, on_empty=policy)
        results.append((loss, torch.autograd.grad(loss, rows)[0]))
    (loss, gradient), (more_loss, more_gradient) = results
    assert_values_agree(more_loss, loss.double(), "reduction")
    assert_gradients_agree(more_gradient[: len(x)], gradient.double())
    assert not more_gradient[len(x) :].any()


@given(batches(), shift_free)
def test_scaling_all_points_scales_distances(batch: Any, metric: Any) -> None:
    x, labels, _ = batch
    factor = 4.0 if metric == "euclidean" else 16.0
    mined, scaled = F.batch_hard(x, labels, metric=metric), F.batch_hard(4 * x, labels, metric=metric)
    assert torch.equal(mined.negative_index, scaled.negative_index)
    assert_values_agree(scaled.negative_distance, factor * mined.negative_distance.double(), "pointwise")


@given(batches(12), st.sampled_from(["euclidean", "sqeuclidean", "cosine"]))
def test_a_duplicated_batch_has_positives_everywhere(batch: Any, metric: Any) -> None:
    """Every row twice: the twin, at distance 0, is a positive, and the nearest one; nothing collides."""
    x, labels, _ = batch
    n = len(x)
    mined = F.batch_hard(x.repeat(2, 1), labels.repeat(2), metric=metric, positive="easiest")
    assert mined.has_positive.all()
    assert torch.equal(mined.positive_index, torch.cat([torch.arange(n) + n, torch.arange(n)]))
    assert not mined.positive_distance.any()
    once = F.batch_hard(x, labels, metric=metric)
    assert torch.equal(mined.negative_index, once.negative_index.repeat(2))  # the lower of the two twins


@given(batches(), metrics)
def test_pairwise_distances_are_symmetric_to_the_bit(batch: Any, metric: Any) -> None:
    x, _, _ = batch
    distance = F.pairwise_distance(x, metric=metric)
    assert torch.equal(distance, distance.T)
    if metric != "dot":
        assert not distance.diagonal().any()
        assert (distance >= 0).all()


@given(batches(), metrics)
def test_mining_agrees_with_its_own_distance_matrix(batch: Any, metric: Any) -> None:
    x, labels, valid = batch
    mined = F.batch_hard(x.double(), labels, valid=valid, metric=metric)
    distance = F.pairwise_distance(x.double(), metric=metric)
    for side in ("positive", "negative"):
        chosen = distance.gather(1, getattr(mined, f"{side}_index")[:, None]).squeeze(1)
        exists = getattr(mined, f"has_{side}")
        assert_values_agree(getattr(mined, f"{side}_distance")[exists], chosen[exists], "reduction")


# --- segmentation --------------------------------------------------------------------------------------------------


@st.composite
def images(draw: st.DrawFn, modes: tuple[str, ...] = MODES) -> tuple[str, Tensor, Tensor, Tensor, dict[str, Any]]:
    """(mode, logits [B, C, S], target, valid by position, options)."""
    g = torch.Generator().manual_seed(draw(seeds))
    mode = draw(st.sampled_from(modes))
    b, s = draw(st.integers(1, 4)), draw(st.integers(1, 30))
    c = 1 if mode == "binary" else draw(st.integers(2, 5))
    logits = draw(st.sampled_from([1.0, 8.0])) * torch.randn(b, c, s, generator=g)
    if mode == "multiclass":
        target = torch.randint(c, (b, s), generator=g)
    else:
        target = (torch.rand(b, c, s, generator=g) < draw(st.sampled_from([0.0, 0.3, 0.9]))).to(torch.uint8)
    valid = torch.rand(b, 1, s, generator=g) < draw(st.sampled_from([0.5, 1.0]))
    empty = draw(st.sampled_from(["area", "skip", "smooth"]))
    smooth = 1.0 if empty == "smooth" else draw(st.sampled_from([0.0, 1.0]))
    return mode, logits, target, valid, {"terms": ALL_TERMS[mode], "empty": empty, "smooth": smooth}


def loss_and_gradient(mode: Any, x: Tensor, target: Tensor, valid: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    x = x.double().requires_grad_()
    loss = F.segmentation_loss(x, target, valid=valid, mode=mode, **options)
    return loss, torch.autograd.grad(loss.sum(), x)[0]


def assert_same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    assert_values_agree(got[0], want[0], "reduction", "loss")
    assert_gradients_agree(got[1], want[1])


@given(images())
def test_pixels_have_no_order(image: Any) -> None:
    mode, x, target, valid, options = image
    order = shuffled(x.shape[2])
    loss, gradient = loss_and_gradient(mode, x, target, valid, **options)
    moved = loss_and_gradient(mode, x[..., order], target[..., order], valid[..., order], **options)
    assert_same(moved, (loss, gradient[..., order]))


@given(images())
def test_flipping_an_image_flips_its_gradient(image: Any) -> None:
    mode, x, target, valid, options = image
    loss, gradient = loss_and_gradient(mode, x, target, valid, **options)
    assert_same(loss_and_gradient(mode, x.flip(2), target.flip(-1), valid.flip(2), **options), (loss, gradient.flip(2)))


@given(images())
def test_splitting_a_batch_splits_the_losses(image: Any) -> None:
    mode, x, target, valid, options = image
    whole = loss_and_gradient(mode, x, target, valid, reduction="none", **options)
    parts = [
        loss_and_gradient(mode, x[i : i + 1], target[i : i + 1], valid[i : i + 1], reduction="none", **options)
        for i in range(len(x))
    ]
    assert_same(whole, (torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])))
    summed, _ = loss_and_gradient(mode, x, target, valid, reduction="sum", **options)
    assert_values_agree(summed, whole[0].sum(), "reduction")


@given(images(), st.sampled_from([0.0, 1e4, torch.nan, -torch.inf]))
def test_adding_invalid_pixels_changes_nothing(image: Any, fill: float) -> None:
    mode, x, target, valid, options = image
    loss, gradient = loss_and_gradient(mode, x, target, valid, **options)
    more = torch.cat([x, torch.full_like(x[..., :1], fill)], dim=2)
    garbage = torch.cat([target, torch.full_like(target[..., :1], 200)], dim=-1)
    hidden = torch.cat([valid, torch.zeros_like(valid[..., :1])], dim=2)
    got = loss_and_gradient(mode, more, garbage, hidden, **options)
    assert_same((got[0], got[1][..., :-1]), (loss, gradient))
    assert not got[1][..., -1].any()


@given(images(), st.sampled_from([0.0, torch.nan, torch.inf]))
def test_adding_unannotated_samples_changes_nothing(image: Any, fill: float) -> None:
    mode, x, target, valid, options = image
    loss, gradient = loss_and_gradient(mode, x, target, valid, **options)
    more, garbage = torch.cat([x, torch.full_like(x, fill)]), torch.cat([target, torch.full_like(target, 255)])
    got = loss_and_gradient(mode, more, garbage, torch.cat([valid, torch.zeros_like(valid)]), **options)
    assert_same((got[0], got[1][: len(x)]), (loss, gradient))
    assert not got[1][len(x) :].any()


@given(images())
def test_classes_have_no_order(image: Any) -> None:
    mode, x, target, valid, options = image
    order = shuffled(x.shape[1])
    loss, gradient = loss_and_gradient(mode, x, target, valid, **options)
    renamed = order.argsort()[target] if mode == "multiclass" else target[:, order]
    assert_same(loss_and_gradient(mode, x[:, order], renamed, valid, **options), (loss, gradient[:, order]))


@given(images(modes=("binary",)))
def test_binary_is_multilabel_with_one_label(image: Any) -> None:
    _, x, target, valid, options = image
    binary = loss_and_gradient("binary", x, target, valid, **options)
    assert_same(loss_and_gradient("multilabel", x, target, valid, **options), binary)
