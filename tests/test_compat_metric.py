"""fastmine.compat for metric learning: the peers' values and gradients where they are right, and where they are not."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import compat_metric_table
from fastmine.bench.peers import import_torchvision
from fastmine.compat import oml as our_oml
from fastmine.compat import pml as our_pml
from fastmine.compat import sentence_transformers as our_st
from support import succeeds

D, CLASSES = 8, 6


def batch(n: int = 24, classes: int = CLASSES, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Every class at least twice, so that every anchor is valid."""
    g = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % classes
    return scale * torch.randn(n, D, generator=g), labels[torch.randperm(n, generator=g)]


def peer(name: str) -> Any:
    """The installed library, or a skip that names it."""
    with contextlib.suppress(ImportError):
        import_torchvision()
    try:
        return pytest.importorskip(name)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"{name} is installed and does not import: {error}")


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Value, and gradient by every floating-point input."""
    results = []
    for function in (ours, theirs):
        given = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
        value = function(*given)
        leaves = [x for x in given if x.is_floating_point()]
        results.append((value.detach(), *torch.autograd.grad(value.sum(), leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)


# --- pytorch-metric-learning ---------------------------------------------------------------------------------------

DISTANCES = {
    "default": lambda d: None,
    "plain": lambda d: d.LpDistance(normalize_embeddings=False),
    "squared": lambda d: d.LpDistance(power=2),
    "cosine": lambda d: d.CosineSimilarity(),
    "dot": lambda d: d.DotProductSimilarity(normalize_embeddings=False),
}
REDUCERS = ("MeanReducer", "SumReducer", "AvgNonZeroReducer")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reducer", [None, *REDUCERS])
def test_pml_all_triplets(distance: str, reducer: str | None) -> None:
    pml = peer("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, reducers

    assert pml
    options = {
        "margin": 0.3, "distance": DISTANCES[distance](distances), "reducer": reducer and getattr(reducers, reducer)()
    }  # fmt: skip
    x, labels = batch()
    ours, theirs = our_pml.TripletMarginLoss(**options), losses.TripletMarginLoss(**options)
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    refs, ref_labels = batch(30)
    assert_same(
        lambda x, r: ours(x, labels, ref_emb=r, ref_labels=ref_labels),
        lambda x, r: theirs(x, labels, ref_emb=r, ref_labels=ref_labels), x, refs,
    )  # fmt: skip


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reducer", [None, *REDUCERS])
@pytest.mark.parametrize("option", ["swap", "smooth_loss"])
def test_pml_all_triplets_one_by_one(distance: str, reducer: str | None, option: str) -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, reducers

    options = {
        option: True, "distance": DISTANCES[distance](distances), "reducer": reducer and getattr(reducers, reducer)()
    }  # fmt: skip
    x, labels = batch()
    ours, theirs = our_pml.TripletMarginLoss(0.3, **options), losses.TripletMarginLoss(0.3, **options)
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    if option == "smooth_loss":  # theirs looks up what it swaps for in the wrong matrix
        refs, ref_labels = batch(30)
        assert_same(
            lambda x, r: ours(x, labels, ref_emb=r, ref_labels=ref_labels),
            lambda x, r: theirs(x, labels, ref_emb=r, ref_labels=ref_labels), x, refs,
        )  # fmt: skip


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("options", [{}, {"swap": True}, {"smooth_loss": True}], ids=str)
def test_pml_triplets_of_a_miner(distance: str, options: dict[str, bool]) -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import distances, losses, miners

    measure = DISTANCES[distance](distances)
    x, labels = batch()
    refs, ref_labels = batch(30)
    ours = our_pml.TripletMarginLoss(0.3, **options, distance=measure)
    theirs = losses.TripletMarginLoss(0.3, **options, distance=measure)
    triplets = miners.TripletMarginMiner(margin=0.4, distance=measure)
    pairs = miners.MultiSimilarityMiner(epsilon=0.2)
    for miner in (triplets, pairs):
        mined = miner(x, labels)
        assert_same(lambda x, m=mined: ours(x, labels, m), lambda x, m=mined: theirs(x, labels, m), x)
    if not options.get("swap"):
        mined = triplets(x, labels, refs, ref_labels)
        assert_same(
            lambda x, r: ours(x, labels, mined, r, ref_labels),
            lambda x, r: theirs(x, labels, mined, r, ref_labels), x, refs,
        )  # fmt: skip


@pytest.mark.parametrize("distance", DISTANCES)
def test_pml_miners(distance: str) -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import distances, miners

    options = {"distance": DISTANCES[distance](distances)}
    x, labels = batch()
    labels[0] = 99  # without a positive: left out
    for references in ((), batch(30)):
        got, want = (m.BatchHardMiner(**options)(x, labels, *references) for m in (our_pml, miners))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        for positive in ("hard", "easy"):
            for negative in ("hard", "semihard"):
                got, want = (
                    m.BatchEasyHardMiner(positive, negative, **options)(x, labels, *references)
                    for m in (our_pml, miners)
                )
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_pml_distance_weighted_miner_draws_as_theirs() -> None:
    """One anchor against 7 negatives, 3,000 times each: the same shares, and each positive once."""
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import miners

    g = torch.Generator().manual_seed(0)
    x = torch.randn(10, 4, generator=g)
    labels = torch.tensor([0, 0, 0, *range(1, 8)])
    mine, their = our_pml.DistanceWeightedMiner(), miners.DistanceWeightedMiner()
    torch.manual_seed(0)
    counts = torch.zeros(2, 10)
    for side, miner in enumerate((mine, their)):
        for _ in range(1500):
            anchor, positive, negative = miner(x, labels)
            assert (labels[anchor] == labels[positive]).all()
            assert (labels[anchor] != labels[negative]).all()
            # Of ours the first draw alone: the second is without what it took.
            first = negative[anchor == 0][:1] if side == 0 else negative[anchor == 0]
            counts[side] += torch.bincount(first, minlength=10)
    shares = counts / counts.sum(dim=1, keepdim=True)
    assert (shares[0] - shares[1]).abs().max() < 5 * math.sqrt(0.25 / 1500)
    anchor, positive, _ = mine(x, labels)
    assert sorted(zip(anchor.tolist(), positive.tolist(), strict=True)) == [
        (a, p) for a in range(3) for p in range(3) if a != p
    ]


def test_pml_distance_weighted_miner_drops_anchors_whose_weights_underflow() -> None:
    """One close pair among 60 rows in 256 dimensions: its weight is e^180 times all others, which are then 0."""
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import miners

    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(60, 256, generator=g), dim=1)
    x[1] = x[0] + 0.02 * torch.randn(256, generator=g)
    labels = torch.tensor([0, 1, 0, 1, *(torch.arange(56) // 2 + 2).tolist()])
    assert len(miners.DistanceWeightedMiner()(x, labels)[0].unique()) == 2
    assert len(our_pml.DistanceWeightedMiner()(x, labels)[0].unique()) == 60


PAIR_LOSSES: dict[str, tuple[tuple[str, ...], tuple[str | None, ...]]] = {
    "SupConLoss": (("default", "cosine", "plain", "squared", "dot"), (None, *REDUCERS)),
    "NTXentLoss": (("default", "cosine", "plain", "dot"), (None, "MeanReducer", "SumReducer")),
    "MultiSimilarityLoss": (("default", "cosine", "dot"), (None, *REDUCERS)),
    "CircleLoss": (("default", "cosine"), (None, *REDUCERS)),
    "ContrastiveLoss": (("default", "cosine", "plain", "squared", "dot"), (None, *REDUCERS)),
}
PAIR_ROWS = [
    (name, distance, reducer)
    for name, (measures, reducers) in PAIR_LOSSES.items()
    for distance in measures
    for reducer in (reducers if distance == "default" else (None,))
]


def pair_losses(name: str, distance: str, reducer: str | None) -> tuple[Any, Any]:
    """Ours and the library's."""
    from pytorch_metric_learning import distances, losses, reducers

    options: dict[str, Any] = {
        "distance": DISTANCES[distance](distances), "reducer": reducer and getattr(reducers, reducer)()
    }  # fmt: skip
    if name in ("SupConLoss", "NTXentLoss"):
        options["temperature"] = 0.5
    if name == "MultiSimilarityLoss":
        options["beta"] = 5
    if name == "CircleLoss":
        options["gamma"] = 8
    if name == "ContrastiveLoss" and distance in ("cosine", "dot"):
        options |= {"pos_margin": 0.9, "neg_margin": 0.1}
    return getattr(our_pml, name)(**options), getattr(losses, name)(**options)


@pytest.mark.parametrize(("name", "distance", "reducer"), PAIR_ROWS)
def test_pml_all_pairs(name: str, distance: str, reducer: str | None) -> None:
    peer("pytorch_metric_learning")
    ours, theirs = pair_losses(name, distance, reducer)
    x, labels = batch()
    labels[labels == 5] = 4  # classes of different sizes
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    refs, ref_labels = batch(30)
    ref_labels[:3] = 4
    assert_same(
        lambda x, r: ours(x, labels, ref_emb=r, ref_labels=ref_labels),
        lambda x, r: theirs(x, labels, ref_emb=r, ref_labels=ref_labels), x, refs,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "distance", "reducer"), PAIR_ROWS)
def test_pml_pairs_of_a_miner(name: str, distance: str, reducer: str | None) -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import miners

    ours, theirs = pair_losses(name, distance, reducer)
    x, labels = batch()
    refs, ref_labels = batch(30)
    for miner in (miners.MultiSimilarityMiner(epsilon=0.1), miners.TripletMarginMiner(margin=0.2)):
        mined = miner(x, labels)
        assert_same(lambda x, m=mined: ours(x, labels, m), lambda x, m=mined: theirs(x, labels, m), x)
        mined = miner(x, labels, refs, ref_labels)
        assert_same(
            lambda x, r, m=mined: ours(x, labels, m, r, ref_labels),
            lambda x, r, m=mined: theirs(x, labels, m, r, ref_labels), x, refs,
        )  # fmt: skip


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "easy"])
def test_pml_triplet_margin_miner(distance: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import distances, miners

    monkeypatch.setattr(our_pml.TripletMarginMiner, "_most", 5000)  # several blocks
    options = {"margin": 0.3, "type_of_triplets": kind, "distance": DISTANCES[distance](distances)}
    x, labels = batch()
    labels[0] = 99
    for references in ((), batch(30)):
        got, want = (m.TripletMarginMiner(**options)(x, labels, *references) for m in (our_pml, miners))
        assert len(got[0])
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    empty = our_pml.TripletMarginMiner(**options)(torch.ones(0, D), torch.ones(0).long())
    assert [len(index) for index in empty] == [0, 0, 0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_pml_multi_similarity_miner(distance: str) -> None:
    """The same pairs; theirs come in the order of distance."""
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import distances, miners

    x, labels = batch()
    labels[0] = 99
    for references in ((), batch(30)):
        for epsilon in (0.1, -0.3):
            options = {"epsilon": epsilon, "distance": DISTANCES[distance](distances)}
            found = [m.MultiSimilarityMiner(**options)(x, labels, *references) for m in (our_pml, miners)]
            pairs = [[set(zip(a.tolist(), b.tolist(), strict=True)) for a, b in (t[:2], t[2:])] for t in found]
            assert pairs[0] == pairs[1]


CLASS_LOSSES: dict[str, dict[str, Any]] = {
    "ArcFaceLoss": {}, "CosFaceLoss": {}, "SubCenterArcFaceLoss": {"sub_centers": 2}, "ProxyAnchorLoss": {}
}  # fmt: skip


def class_losses(name: str, **options: Any) -> tuple[Any, Any]:
    """Ours with the library's state loaded, and the library's."""
    from pytorch_metric_learning import losses

    given = {"num_classes": CLASSES, "embedding_size": D, **CLASS_LOSSES[name], **options}
    theirs = getattr(losses, name)(**given)
    ours = getattr(our_pml, name)(**given)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_pml_class_vectors(name: str) -> None:
    peer("pytorch_metric_learning")
    ours, theirs = class_losses(name)
    x, labels = batch()
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    for loss in (ours, theirs):
        loss(x, labels).backward()
    for got, want in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(ours.get_logits(x), theirs.get_logits(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss"])
@pytest.mark.parametrize("reducer", REDUCERS)
def test_pml_class_vectors_weighted_by_a_miner(name: str, reducer: str) -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import miners, reducers

    ours, theirs = class_losses(name, reducer=getattr(reducers, reducer)())
    x, labels = batch()
    mined = miners.TripletMarginMiner(margin=0.1)(x, labels)
    assert_same(lambda x: ours(x, labels, mined), lambda x: theirs(x, labels, mined), x)


def test_pml_wrappers_take_them() -> None:
    peer("pytorch_metric_learning")
    from pytorch_metric_learning import losses, miners
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper, DistributedMinerWrapper

    x, labels = batch()
    views = batch(24)[0].flip(0)
    for symmetric in (True, False):
        ours, theirs = (
            losses.SelfSupervisedLoss(loss, symmetric=symmetric)
            for loss in (our_pml.TripletMarginLoss(0.3), losses.TripletMarginLoss(0.3))
        )
        assert_same(ours, theirs, x, views)
    for ours_miner, their_miner in ((None, None), (our_pml.BatchHardMiner(), miners.BatchHardMiner())):
        ours = losses.CrossBatchMemory(our_pml.TripletMarginLoss(0.3), D, memory_size=40, miner=ours_miner)
        theirs = losses.CrossBatchMemory(losses.TripletMarginLoss(0.3), D, memory_size=40, miner=their_miner)
        for n in (24, 12, 24):
            rows, classes = batch(n)
            torch.testing.assert_close(ours(rows, classes), theirs(rows, classes), rtol=1e-4, atol=1e-5)
    for name in PAIR_LOSSES:
        mine, library = pair_losses(name, "default", None)
        ours, theirs = losses.SelfSupervisedLoss(mine), losses.SelfSupervisedLoss(library)
        assert_same(ours, theirs, x, views)
        ours, theirs = (losses.CrossBatchMemory(loss, D, memory_size=40) for loss in (mine, library))
        for n in (24, 12, 23):  # no row twice: theirs takes a rounding for a distance, and counts the pair
            torch.testing.assert_close(ours(*batch(n)), theirs(*batch(n)), rtol=1e-4, atol=1e-5)
    DistributedMinerWrapper(our_pml.BatchHardMiner())
    wrapped = DistributedLossWrapper(our_pml.TripletMarginLoss(0.3))
    with pytest.warns(UserWarning, match="non-distributed"):
        torch.testing.assert_close(wrapped(x, labels), losses.TripletMarginLoss(0.3)(x, labels), rtol=1e-4, atol=1e-5)


class TestWherePmlDiffers:
    """Each of these is in docs/compat-metric.md."""

    def test_one_nan_row_is_said_and_not_dropped(self) -> None:
        """Theirs: a finite loss, from the triplets whose loss is a number, and a NaN gradient everywhere."""
        peer("pytorch_metric_learning")
        from pytorch_metric_learning import losses

        x, labels = batch()
        x[3] = torch.nan
        assert losses.TripletMarginLoss(0.3)(x, labels).isfinite()
        ours = our_pml.TripletMarginLoss(0.3)
        assert ours(x, labels).isnan()
        assert ours.evidence.nonfinite_rows == 1

    @pytest.mark.parametrize("name", PAIR_LOSSES)
    def test_nor_is_it_by_a_loss_of_pairs(self, name: str) -> None:
        peer("pytorch_metric_learning")
        x, labels = batch()
        x[3] = torch.nan
        for distance in PAIR_LOSSES[name][0]:
            ours, _ = pair_losses(name, distance, None)
            assert ours(x, labels).isnan()
            assert ours.evidence.nonfinite_rows == 1

    def test_two_views_may_share_one_label_tensor(self) -> None:
        """Theirs takes that for the batch itself, and leaves each row's own other view out of its positives."""
        peer("pytorch_metric_learning")
        from pytorch_metric_learning import losses

        x, labels = torch.randn(6, D), torch.arange(6)
        views = torch.randn(6, D)
        ours, theirs = our_pml.TripletMarginLoss(0.3), losses.TripletMarginLoss(0.3)
        assert theirs(x, labels, ref_emb=views, ref_labels=labels) == 0
        want = theirs(x, labels, ref_emb=views, ref_labels=labels.clone())
        torch.testing.assert_close(ours(x, labels, ref_emb=views, ref_labels=labels), want, rtol=1e-4, atol=1e-5)

    def test_swap_with_references_compares_references(self) -> None:
        """Theirs looks up positive and negative, both references, in the matrix of anchors and references."""
        peer("pytorch_metric_learning")
        from pytorch_metric_learning import losses

        x, refs = torch.tensor([[0.0]]), torch.tensor([[1.0], [5.0], [1.5]])
        triplet = (torch.tensor([0]), torch.tensor([0]), torch.tensor([2]))
        plain = {"margin": 2.0, "swap": True}
        with pytest.raises(IndexError):
            losses.TripletMarginLoss(**plain)(x, None, (triplet[0], triplet[0] + 1, triplet[2]), refs)
        from pytorch_metric_learning.distances import LpDistance

        ours = our_pml.TripletMarginLoss(**plain, distance=LpDistance(normalize_embeddings=False))
        assert ours(x, None, triplet, refs).item() == pytest.approx(1.0 - 0.5 + 2.0)

    def test_the_angular_margin_does_not_jump(self) -> None:
        """Beyond pi - m: theirs is lower by m sin m - (1 - cos m); the gradient is the same."""
        peer("pytorch_metric_learning")
        ours, theirs = class_losses("ArcFaceLoss", scale=1.0)
        m = math.radians(28.6)
        x = -ours.W.detach().T.clone() + 0.01 * torch.randn(CLASSES, D)
        labels = torch.arange(CLASSES)
        got, want = ours(x, labels), theirs(x, labels)
        assert 0 < want - got < m * math.sin(m) - (1 - math.cos(m)) + 1e-6
        for loss in (ours, theirs):
            loss.W.grad = None

    def test_an_embedding_on_its_class_vector_keeps_a_finite_gradient(self) -> None:
        peer("pytorch_metric_learning")
        ours, theirs = class_losses("ArcFaceLoss")
        labels = torch.arange(CLASSES)
        found = []
        for loss in (ours, theirs):
            x = loss.W.detach().T.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x, labels), x)
            found.append(gradient)
        assert found[0].isfinite().all()
        assert found[0].norm(dim=1).max() < 64
        assert not found[1].isfinite().all() or found[1].norm(dim=1).max() > 10 * 64

    def test_a_label_of_no_class_says_so(self) -> None:
        loss = our_pml.ArcFaceLoss(CLASSES, D)
        with pytest.raises(ValueError, match=r"labels must be 0 \.\. 5 where valid"):
            loss(*batch(12, CLASSES + 1))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: our_pml.TripletMarginLoss(triplets_per_anchor=3), 'triplets_per_anchor must be "all"'),
        (lambda: our_pml.TripletMarginLoss(embedding_regularizer=object()), "does not support embedding_regularizer"),
        (lambda: our_pml.TripletMarginLoss(reducer=torch.nn.Identity()), "reducer must be MeanReducer.*got Identity"),
        (lambda: our_pml.TripletMarginLoss(distance=torch.nn.Identity()), "distance must be LpDistance.*got Identity"),
        (lambda: our_pml.TripletMarginLoss()(batch()[0]), "give labels or indices_tuple"),
        (lambda: our_pml.ArcFaceLoss(3, D, weight_regularizer=object()), "does not support weight_regularizer"),
        (lambda: our_pml.ArcFaceLoss(3, D, distance=torch.nn.Identity()), "distance must be CosineSimilarity"),
        (lambda: our_pml.ArcFaceLoss(6, D)(*batch(), ref_emb=torch.ones(2, D)), "leave ref_emb out"),
        (lambda: our_pml.ProxyAnchorLoss(6, D)(*batch(), (torch.tensor([0]),) * 3), "leave indices_tuple"),
        (lambda: our_pml.ProxyAnchorLoss(6, D, reducer=torch.nn.Identity()), "reducer must be DivisorReducer"),
        (lambda: our_pml.BatchEasyHardMiner("semihard", "hard"), "pos_strategy must be one of 'hard', 'easy'"),
        (lambda: our_pml.BatchEasyHardMiner("hard", "all"), "neg_strategy must be one of 'hard', 'semihard'"),
        (lambda: our_pml.BatchEasyHardMiner(allowed_pos_range=(0, 1)), "does not support allowed_pos_range"),
        (lambda: our_pml.TripletMarginLoss().evidence, "no evidence yet"),
    ],
)
def test_pml_says_what_it_does_not_support(build: Callable[[], Any], words: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=words):
        build()


def test_pml_need_not_be_installed() -> None:
    succeeds("""
        import sys
        sys.modules["pytorch_metric_learning"] = None
        import torch
        from fastmine.compat.pml import ArcFaceLoss, BatchHardMiner, TripletMarginLoss
        x, labels = torch.randn(6, 3), torch.arange(6) % 2
        loss = TripletMarginLoss()
        assert not any("pytorch_metric_learning" in kind.__module__ for kind in type(loss).__mro__)
        assert loss(x, labels, BatchHardMiner()(x, labels)).isfinite() and loss(x, labels).isfinite()
        assert ArcFaceLoss(2, 3)(x, labels).isfinite()
    """)


# --- sentence-transformers -----------------------------------------------------------------------------------------

ST = ("BatchHardTripletLoss", "BatchHardSoftMarginTripletLoss", "BatchSemiHardTripletLoss", "BatchAllTripletLoss")


@pytest.mark.parametrize("name", ST)
@pytest.mark.parametrize("metric", ["euclidean_distance", "cosine_distance"])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_sentence_transformers(name: str, metric: str, margin: float | None) -> None:
    peer("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    if margin is not None and "Soft" in name:
        pytest.skip("it has no margin")
    options = {} if margin is None else {"margin": margin}
    measure = getattr(losses.BatchHardTripletLossDistanceFunction, metric)
    x, labels = batch()
    ours, theirs = (getattr(module, name)(None, measure, **options) for module in (our_st, losses))
    assert_same(
        lambda x: ours.compute_loss_from_embeddings([x], labels),
        lambda x: theirs.compute_loss_from_embeddings([x], labels), x,
    )  # fmt: skip
    assert ours.get_config_dict() == theirs.get_config_dict()
    default = getattr(our_st, name)(None, **options).compute_loss_from_embeddings([x], labels)
    if metric == "euclidean_distance":
        assert default == ours.compute_loss_from_embeddings([x], labels)


def test_sentence_transformers_return_their_margin_where_there_is_nothing_to_learn() -> None:
    """Theirs: 5 for a batch of one class, and for collapsed embeddings too; ours: 0, and the evidence says which."""
    peer("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    x, labels = batch()[0], torch.zeros(24).long()
    assert losses.BatchHardTripletLoss(None).compute_loss_from_embeddings([x], labels) >= 5
    for name in ST:
        ours = getattr(our_st, name)(None)
        x.requires_grad_()
        value = ours.compute_loss_from_embeddings([x], labels)
        assert value == 0
        assert not torch.autograd.grad(value, x)[0].any()
    assert our_st.BatchHardTripletLoss(None)._metric == "euclidean"


def test_sentence_transformers_average_over_anchors_without_a_positive() -> None:
    peer("sentence_transformers")
    from sentence_transformers.sentence_transformer import losses

    x, labels = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 0, 1])
    theirs = losses.BatchHardTripletLoss(None, margin=12.0).compute_loss_from_embeddings([x], labels)
    ours = our_st.BatchHardTripletLoss(None, margin=12.0).compute_loss_from_embeddings([x], labels)
    assert ours.item() == pytest.approx(((1 - 10 + 12) + (1 - 9 + 12)) / 2)
    assert theirs.item() == pytest.approx(((1 - 10 + 12) + (1 - 9 + 12) + (0 - 9 + 12)) / 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries beneath the trainer
def test_trained_by_the_trainer_of_sentence_transformers(tmp_path: Any) -> None:
    peer("sentence_transformers")
    datasets, tokenizers = pytest.importorskip("datasets"), pytest.importorskip("tokenizers")
    pytest.importorskip("accelerate")
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import modules
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["goal", "match", "team", "stock", "bank", "market", "vote", "party", "law"]
    sentences = [
        f"{a} {b}"
        for topic in range(3)
        for a in words[3 * topic : 3 * topic + 3]
        for b in words[3 * topic : 3 * topic + 3]
    ]
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *words])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).save_pretrained(folder)
    transformer = modules.Transformer(str(folder))
    model = SentenceTransformer(modules=[transformer, modules.Pooling(16)], device="cpu")
    data = datasets.Dataset.from_dict({"sentence": sentences, "label": [i // 9 for i in range(27)]})
    loss = our_st.BatchHardTripletLoss(model, margin=1.0)
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=10, per_device_train_batch_size=12, learning_rate=1e-2,
        batch_sampler="group_by_label", report_to=[], save_strategy="no", logging_steps=1, use_cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.train()
    seen = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert seen[-1] < 0.5 * seen[0]
    assert loss.evidence.valid == loss.evidence.anchors > 0


def test_sentence_transformers_know_two_distances() -> None:
    with pytest.raises(ValueError, match="distance_metric must be one of euclidean_distance, cosine_distance"):
        our_st.BatchHardTripletLoss(None, torch.cdist)
    with pytest.raises(ValueError, match="no model"):
        our_st.BatchHardTripletLoss(None)([{}], torch.tensor([0]))
    functions = our_st.BatchHardTripletLossDistanceFunction
    x, _ = batch()
    assert torch.equal(functions.euclidean_distance(x, squared=True).diagonal(), torch.zeros(24))
    assert functions.cosine_distance(x).shape == (24, 24)


# --- open-metric-learning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("miner", ["AllTripletsMiner", "HardTripletsMiner", None])
@pytest.mark.parametrize("margin", [0.3, 4.0, None])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_oml_triplets_of_a_miner(miner: str | None, margin: float | None, reduction: str) -> None:
    peer("oml.losses.triplet")
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_all_tri import AllTripletsMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    x, labels = batch(18)
    kinds = {"AllTripletsMiner": AllTripletsMiner, "HardTripletsMiner": HardTripletsMiner}
    theirs = TripletLossWithMiner(margin, *([kinds[miner]()] if miner else []), reduction=reduction, need_logs=True)
    ours = our_oml.TripletLossWithMiner(
        margin, *([getattr(our_oml, miner)()] if miner else []), reduction=reduction, need_logs=True
    )
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels.tolist()), x)
    assert ours(x, labels.tolist()) == ours(x, labels)
    if miner == "HardTripletsMiner":
        assert ours.last_logs == pytest.approx({k: theirs.last_logs[k] for k in ours.last_logs}, rel=1e-4)


def test_oml_miners_and_given_triplets() -> None:
    peer("oml.losses.triplet")
    from oml.losses.triplet import TripletLoss, TripletLossPlain
    from oml.miners.inbatch_all_tri import AllTripletsMiner
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    x, labels = batch(12, 4)
    got, want = (miner.sample(x, labels) for miner in (our_oml.HardTripletsMiner(), HardTripletsMiner()))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    every = our_oml.AllTripletsMiner().sample(x, labels)
    assert len(every[0]) == len(AllTripletsMiner().sample(x, labels)[0])
    for margin in (0.5, None):
        ours, theirs = our_oml.TripletLoss(margin, need_logs=True), TripletLoss(margin, need_logs=True)
        assert_same(ours, theirs, *got)
        assert ours.last_logs == pytest.approx(theirs.last_logs, rel=1e-4)
        assert_same(our_oml.TripletLossPlain(margin, "none"), TripletLossPlain(margin, "none"), x)
    with pytest.raises(ValueError, match="a multiple of 3; got 4"):
        our_oml.TripletLossPlain(0.1)(x[:4])
    mixed = our_oml.TripletLossWithMiner(0.5, HardTripletsMiner())  # any object that samples
    torch.testing.assert_close(
        mixed(x, labels), our_oml.TripletLossWithMiner(0.5, our_oml.HardTripletsMiner())(x, labels)
    )


@pytest.mark.parametrize("ranks", [(1, 1), (2, 3), ((2, 3), (3, 5)), (9, 9)], ids=str)
def test_oml_n_hard_triplets(ranks: tuple[Any, Any]) -> None:
    peer("oml.losses.triplet")
    from oml.losses.triplet import TripletLossWithMiner
    from oml.miners.inbatch_nhard_tri import NHardTripletsMiner

    x, labels = batch(24, 6)
    miners = our_oml.NHardTripletsMiner(*ranks), NHardTripletsMiner(*ranks)
    for got, want in zip(*(miner.sample(x, labels.tolist()) for miner in miners), strict=True):
        assert torch.equal(got, want)
    ours, theirs = our_oml.TripletLossWithMiner(0.5, miners[0]), TripletLossWithMiner(0.5, miners[1])
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    beyond = {"n_positive": (9, 9)}  # ranks that no anchor has
    assert len(our_oml.NHardTripletsMiner(**beyond).sample(x, labels)[0]) == 0
    with pytest.raises(ValueError, match="unpack"):
        NHardTripletsMiner(**beyond).sample(x, labels.tolist())


def test_oml_arcface() -> None:
    peer("oml.losses.arcface")
    from oml.losses.arcface import ArcFaceLoss

    x, labels = batch()
    theirs, ours = ArcFaceLoss(D, CLASSES), our_oml.ArcFaceLoss(D, CLASSES)
    ours.load_state_dict(theirs.state_dict())
    assert_same(lambda x: ours(x, labels), lambda x: theirs(x, labels), x)
    assert ours.last_logs["accuracy"] == pytest.approx(float(theirs.last_logs["accuracy"]))
    at_its_vector = theirs.weight.detach().clone().requires_grad_()
    theirs(at_its_vector, torch.arange(CLASSES)).backward()
    assert not at_its_vector.grad.isfinite().all(), "sqrt(1 - cos^2) at or beyond 1"
    again = ours.weight.detach().clone().requires_grad_()
    ours(again, torch.arange(CLASSES)).backward()
    assert again.grad.isfinite().all()
    with pytest.raises(ValueError, match="does not support smoothing_epsilon"):
        our_oml.ArcFaceLoss(D, CLASSES, smoothing_epsilon=0.1)


def test_oml_a_class_of_one_row_is_no_error() -> None:
    """Theirs asserts that every class has two rows."""
    peer("oml.losses.triplet")
    from oml.miners.inbatch_hard_tri import HardTripletsMiner

    x, labels = torch.randn(5, D), torch.tensor([0, 0, 1, 1, 2])
    with pytest.raises(AssertionError):
        HardTripletsMiner().sample(x, labels)
    assert len(our_oml.HardTripletsMiner().sample(x, labels)[0]) == 4


@pytest.mark.parametrize(("options", "words"), [({"margin": 0.0}, "above 0"), ({"reduction": "max"}, "reduction must")])
def test_oml_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        our_oml.TripletLoss(**({"margin": 1.0} | options))


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_installed_libraries_offer() -> None:
    for module in ("oml.losses.triplet", "sentence_transformers", "pytorch_metric_learning"):
        peer(module)
    installed, documented = compat_metric_table.versions(), compat_metric_table.documented_versions()
    if installed != documented:
        pytest.skip(f"the page is of {documented}, installed are {installed}")
    assert compat_metric_table.PAGE.read_text() == compat_metric_table.page(), "run tests/compat_metric_table.py"


def test_every_difference_and_every_option_named_is_of_a_class_that_is_here() -> None:
    for name, kind in [*compat_metric_table.DIFFERS, *((key[0], key[1]) for key in compat_metric_table.OVERRIDDEN)]:
        assert kind in compat_metric_table.ours(name).__all__


def test_swapped_arguments_and_half_a_tuple_are_refused_in_words() -> None:
    embeddings, labels = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
    with pytest.raises(TypeError, match="embeddings come first, labels second"):
        our_pml.TripletMarginLoss()(labels, embeddings)
    with pytest.raises(ValueError, match=r"indices_tuple must be \(anchor, positive, negative\).*got 2 entries"):
        our_pml.TripletMarginLoss()(embeddings, labels, (labels, labels))


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (our_pml.TripletMarginLoss(0.1, swap=True), "margin=0.1, swap=True, smooth_loss=False"),
        (our_pml.ArcFaceLoss(10, 4), "margin=28.6, scale=64"),
        (our_pml.BatchEasyHardMiner(), "pos_strategy='easy', neg_strategy='semihard'"),
        (our_oml.TripletLossWithMiner(None), "margin=None, miner=AllTripletsMiner(), reduction='mean'"),
        (our_oml.NHardTripletsMiner((1, 3), 2), "NHardTripletsMiner(n_positive=(1, 3), n_negative=2)"),
        (our_oml.ArcFaceLoss(3, 4), "in_features=3, num_classes=4, s=64, m=0.5"),
        (our_st.BatchHardTripletLoss(None), "distance_metric='euclidean_distance', margin=5"),
    ],
    ids=lambda x: None if isinstance(x, str) else type(x).__name__,
)
def test_options_print(made: object, shown: str) -> None:
    assert shown in repr(made)
