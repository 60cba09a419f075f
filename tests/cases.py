"""The one case table: a row per situation an op must get right. Every check takes its inputs from here.

A row builds seeded inputs on the CPU; the tensors named in ``differentiable`` are float64 there, and are rounded to
the type under test. Masks, labels and targets stay as built.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastmine.functional as F
from fastmine import _ops, reference
from fastmine.reference.batch_hard import NEGATIVES, POSITIVES
from fastmine.reference.pair_sums import FORMS
from fastmine.reference.pairwise_distance import METRICS, result_dtype
from fastmine.reference.segmentation_loss import TERMS as FUSED_TERMS
from fastmine.reference.segmentation_sums import SUMS

Inputs = dict[str, Tensor]
Build = Callable[[torch.Generator], Inputs]

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DIFFERENTIABLE = ("x", "y", "embeddings", "ref_embeddings", "logits")
INDICES = ("positive_index", "negative_index")
COSINE_OPS = (  # unless another metric is named
    "supcon_loss", "ntxent_loss", "multi_similarity_loss", "circle_loss", "selectively_contrastive_loss",
)  # fmt: skip
PAIR_OPS = ("pair_sums", "contrastive_loss", *COSINE_OPS)
ADJUSTMENTS = ("swap", "hardness", "active_fraction")
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.cuda)] if torch.cuda.is_available() else [])]


@dataclass(frozen=True)
class Case:
    """One row: an op, its inputs and options, the types it takes, and how exact it must be."""

    op: str
    name: str
    build: Build
    options: Mapping[str, Any] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = FLOATS
    family: str = "reduction"
    curved: bool = True  # twice differentiable at its inputs, so that finite differences mean something

    def __str__(self) -> str:
        return f"{self.op}-{self.name}"

    def inputs(self, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Inputs:
        """The row's inputs, always the same ones."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        return {
            name: (x.to(dtype) if name in DIFFERENTIABLE else x).to(device) for name, x in self.build(generator).items()
        }

    def __call__(self, inputs: Inputs) -> Inputs:
        """Every output of the op by name; evidence is one of them."""
        if self.op == "pairwise_distance":
            return {"distance": F.pairwise_distance(**inputs, **self.options)}
        function = getattr(F, self.op)
        found, evidence = function(**inputs, **self.options, return_evidence=True)
        if self.op == "pair_sums":  # float64, but no more exact than the distances
            dtype = result_dtype(inputs["embeddings"])
            return {name: x.to(dtype) for name, x in found._asdict().items()} | {"evidence": evidence.tensor}
        named = {"loss": found} if isinstance(found, Tensor) else found._asdict()
        if self.op == "segmentation_sums":  # float64 for sums of what is computed in the type of a loss
            named = {name: x.to(result_dtype(inputs["logits"])) for name, x in named.items()}
        return {**named, "evidence": evidence.tensor}

    @property
    def answered_by(self) -> str:
        """The op that answers, where one function asks several."""
        if self.op == "selectively_contrastive_loss" or any(name in self.options for name in ADJUSTMENTS):
            return "batch_hard"
        if self.op == "segmentation_loss":
            return "segmentation_loss" if self.options["terms"].keys() <= set(FUSED_TERMS) else "segmentation_terms"
        return "batch_all" if self.options.get("mining") == "batch_all" else self.op

    @property
    def seen_by(self) -> str:
        """Whose evidence it is."""
        if any(name in self.options for name in ADJUSTMENTS):
            return "adjusted_triplet_loss"
        return self.op if self.op == "selectively_contrastive_loss" else self.answered_by

    @property
    def size(self) -> int:
        """How many numbers a gradient has."""
        return sum(x.numel() for name, x in self.inputs().items() if name in DIFFERENTIABLE)


@contextmanager
def on_reference() -> Iterator[None]:
    """Inside, the functions answer with the reference itself: no op, no kernel, no registered backward pass."""
    every = {name: getattr(reference, name) for name in reference.__all__}
    with mock.patch.multiple(_ops, **every, traced=lambda *_: True):  # then formulas are PyTorch, too
        yield


class Calls(TorchDispatchMode):
    """Every op that runs inside, with its arguments: what PyTorch itself would be asked for, autograd left out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._seen.append((func.overloadpacket.__name__, args))
        return func(*args, **(kwargs or {}))

    def __iter__(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        return iter(self._seen)


def widened(inputs: Inputs) -> Inputs:
    """The same values for the reference: contiguous, on their own, float64 where differentiable."""
    compact = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in inputs.items()}
    return {name: x.double() if name in DIFFERENTIABLE else x for name, x in compact.items()}


def truth(case: Case, inputs: Inputs) -> Inputs:
    """The reference's outputs, with the reference's own graph."""
    with on_reference():
        return case(inputs)


def leaves(inputs: Inputs) -> Inputs:
    """Mark what is differentiable; returns those leaves."""
    return {name: x.requires_grad_() for name, x in inputs.items() if name in DIFFERENTIABLE}


def upstream(outputs: Inputs) -> Inputs:
    """A random gradient for every differentiable output, large enough that half precision does not underflow."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: 256 * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device)
        for name, y in outputs.items()
        if y.requires_grad
    }


def gradients(outputs: Inputs, weights: Inputs, by: Inputs, **options: Any) -> Inputs:
    """Gradients of the weighted sum of the outputs."""
    kept = [name for name in outputs if name in weights]
    found = torch.autograd.grad(
        [outputs[name] for name in kept], list(by.values()),
        [weights[name].to(outputs[name].dtype) for name in kept], **options,
    )  # fmt: skip
    return dict(zip(by, found, strict=True))


# --- layouts -------------------------------------------------------------------------------------------------------


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x


def _sliced(x: Tensor) -> Tensor:
    """Every other element of a larger buffer, whose gaps hold what a kernel must not read."""
    if x.dim() == 0:
        return x
    fill = torch.nan if x.is_floating_point() else True if x.dtype == torch.bool else 111
    big = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), fill)
    big[..., 1::2] = x
    return big[..., 1::2]


def _expanded(x: Tensor) -> Tensor:
    if x.dim() < 2:
        return _sliced(x)
    if not x.is_floating_point():
        return x[:1].expand_as(x)
    # Rows that are the same tie exactly: of numbers of few bits every product and sum is exact, in any order. A matrix
    # product of the processor's library may else give two equal rows two values.
    return ((64 * x[:1]).round() / 64).expand_as(x)


def _expanded_last(x: Tensor) -> Tensor:
    return x[..., :1].expand_as(x) if x.dim() > 1 else _sliced(x)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": _transposed,
    "sliced": _sliced,
    "expanded": _expanded,
    "expanded_last": _expanded_last,
}


def lay_out(inputs: Inputs, layout: str) -> Inputs:
    """The inputs in another layout; what is expanded changes its values."""
    # References stay distinct: where both sides are expanded, gradients cancel and only rounding is left to compare.
    expanded = layout.startswith("expanded")
    return {
        name: _sliced(x) if expanded and name in ("y", "ref_embeddings") else LAYOUTS[layout](x)
        for name, x in inputs.items()
    }


def _laid_out() -> Iterator[tuple[Case, str]]:
    for case in CASES:
        for layout in LAYOUTS:
            # Parallel vectors: every cosine gradient is exactly 0. Over all pairs of them, which mean is the larger is
            # up to rounding, but for distances, which are 0.
            metric = case.options.get("metric", "cosine" if case.op in COSINE_OPS else "euclidean")
            flat = metric == "cosine" or (metric == "dot" and case.op in PAIR_OPS)
            if not (layout.startswith("expanded") and flat):
                yield case, layout


# --- pairwise_distance ---------------------------------------------------------------------------------------------


def points(n: int, d: int, m: int | None = None) -> Build:
    def build(g: torch.Generator) -> Inputs:
        x = torch.randn(n, d, generator=g, dtype=torch.float64)
        return {"x": x} if m is None else {"x": x, "y": torch.randn(m, d, generator=g, dtype=torch.float64)}

    return build


def _pairwise() -> Iterator[Case]:
    shapes = {
        "self": points(7, 5), "other": points(6, 4, 3), "one_row": points(1, 3), "one_feature": points(6, 1),
        "no_rows": points(0, 3), "no_others": points(3, 2, 0), "none_to_others": points(0, 2, 3),
        "ragged": points(67, 37), "ragged_other": points(35, 19, 131), "wide": points(9, 301, 5),
    }  # fmt: skip
    for metric in METRICS:
        for name, build in shapes.items():
            if (metric, name) == ("cosine", "one_feature"):
                continue  # every gradient is exactly 0 there: nothing but rounding to compare
            yield Case("pairwise_distance", f"{metric}-{name}", build, {"metric": metric})


# --- mining --------------------------------------------------------------------------------------------------------


def labelled(
    n: int, d: int, labels: list[int] | int, m: int | None = None, *, masked: bool = False,
    label_dtype: torch.dtype = torch.int64,
) -> Build:  # fmt: skip
    """``labels``: one per row, or the number of classes to draw from; references (m of them) share the classes."""

    def draw(g: torch.Generator, count: int) -> Tensor:
        if isinstance(labels, int):
            return torch.randint(labels, (count,), generator=g).to(label_dtype)
        return torch.tensor(labels, dtype=label_dtype)

    def build(g: torch.Generator) -> Inputs:
        found = {"embeddings": torch.randn(n, d, generator=g, dtype=torch.float64), "labels": draw(g, n)}
        if m is not None:
            found["ref_embeddings"] = torch.randn(m, d, generator=g, dtype=torch.float64)
            found["ref_labels"] = torch.randint(4, (m,), generator=g).to(label_dtype)
        if masked:
            found["valid"] = torch.rand(n, generator=g) < 0.7
            if m is not None:
                found["ref_valid"] = torch.rand(m, generator=g) < 0.7
        return found

    return build


def among_references(n: int, d: int, classes: int, others: int) -> Build:
    """References that hold the batch itself, but for its last row, shuffled among others: a memory of embeddings."""

    def build(g: torch.Generator) -> Inputs:
        x = torch.randn(n, d, generator=g, dtype=torch.float64)
        labels = torch.randint(classes, (n,), generator=g)
        place = torch.randperm(n - 1 + others, generator=g)[: n - 1]
        refs = torch.randn(n - 1 + others, d, generator=g, dtype=torch.float64)
        ref_labels = torch.randint(classes, (n - 1 + others,), generator=g)
        refs[place], ref_labels[place] = x[:-1] + 1e-3, labels[:-1]
        none = torch.tensor([-1])
        return {
            "embeddings": x, "labels": labels, "ref_embeddings": refs, "ref_labels": ref_labels,
            "ref_valid": torch.rand(n - 1 + others, generator=g) < 0.9, "self_index": torch.cat([place, none]),
        }  # fmt: skip

    return build


def weighted(build: Build) -> Build:
    """The batch with a weight for each anchor, some of them 0."""

    def weighted_build(g: torch.Generator) -> Inputs:
        found = build(g)
        return {**found, "sample_weight": (2.0 * torch.rand(len(found["labels"]), generator=g) - 0.5).clamp(min=0.0)}

    return weighted_build


def changed(build: Build, change: Callable[[Tensor], Tensor]) -> Build:
    """The batch with other embeddings."""

    def changed_build(g: torch.Generator) -> Inputs:
        found = build(g)
        return {**found, "embeddings": change(found["embeddings"])}

    return changed_build


BATCHES: dict[str, Build] = {
    "plain": labelled(11, 3, 4),
    "masked": labelled(13, 3, 3, masked=True),
    "references": labelled(9, 3, 4, 7),
    "references_masked": labelled(9, 3, 3, 14, masked=True),
    "singletons": labelled(8, 3, [0, 0, 1, 2, 3, 4, 5, 5]),
    "all_unique": labelled(5, 3, [0, 1, 2, 3, 4]),
    "one_class": labelled(5, 3, [7] * 5),
    "one_row": labelled(1, 3, [0]),
    "one_row_to_references": labelled(1, 3, [0], 6),
    "no_rows": labelled(0, 3, 4),
    "no_references": labelled(4, 3, 2, 0),
    "no_rows_to_references": labelled(0, 3, 2, 5),
    "negative_labels": labelled(8, 3, [-1, -1, 5, 5, -7, -7, 0, 2**62]),
    "int32_labels": labelled(9, 3, 3, label_dtype=torch.int32),
    "uint8_labels": labelled(9, 3, [0, 255, 255, 0, 7, 7, 0, 7, 255], label_dtype=torch.uint8),
    "one_feature": labelled(9, 1, 3),
}
# Where the distance has a kink or a jump: the gradient is what the op says, not what a difference quotient sees.
KINKED: dict[str, Build] = {
    "zero_rows": changed(labelled(10, 3, 3), lambda x: x.index_fill(0, torch.tensor([1, 4]), 0.0)),
    "duplicates": changed(labelled(12, 3, 3), lambda x: x[torch.arange(12) // 2]),
    "collapsed": changed(labelled(6, 3, 2), lambda x: x[:1].repeat(6, 1)),
}
RAGGED: dict[str, Build] = {
    "ragged": labelled(131, 37, 20),
    "ragged_masked": labelled(97, 16, 9, masked=True),
    "ragged_references": labelled(67, 33, 4, 129, masked=True),
    "wide": labelled(20, 517, 5),
}


def apart(build: Build) -> Build:
    """The batch with its classes apart, so that some triplets are easy and some are hard."""

    def apart_build(g: torch.Generator) -> Inputs:
        found = build(g)
        centres = torch.randn(int(found["labels"].max()) + 1, found["embeddings"].shape[1], generator=g).double()
        return {**found, "embeddings": 0.6 * found["embeddings"] + 2.0 * centres[found["labels"]]}

    return apart_build


def _selections() -> Iterator[dict[str, str]]:
    for metric in METRICS:
        for positive in POSITIVES:
            for negative in NEGATIVES:
                yield {"metric": metric, "positive": positive, "negative": negative}


def _mining() -> Iterator[Case]:
    for options in _selections():
        for name in ("plain", "masked", "references_masked", "ragged"):
            build = {**BATCHES, **RAGGED}[name]
            yield Case("batch_hard", "-".join([name, *options.values()]), build, options)
    for name, build in {**BATCHES, **RAGGED}.items():
        if name not in ("plain", "masked", "references_masked", "ragged"):
            for metric in METRICS if name in RAGGED else ("euclidean", "dot"):
                # In one dimension a batch holds exact ties whose rounding differs.
                dtypes = FLOATS if name != "one_feature" else (torch.float64, torch.float32)
                yield Case("batch_hard", f"{name}-{metric}", build, {"metric": metric}, dtypes)
    for name, build in KINKED.items():
        for metric in METRICS:
            yield Case("batch_hard", f"{name}-{metric}", build, {"metric": metric}, curved=False)
            yield Case("triplet_loss", f"{name}-{metric}", build, {"metric": metric, "margin": "soft"}, curved=False)


def _remembered() -> Iterator[Case]:
    """Anchors that are among their references; batches small, ragged, and of large classes."""
    batches = {
        "itself": among_references(9, 3, 3, 5), "itself_alone": among_references(6, 3, 6, 0),
        "itself_ragged": among_references(67, 16, 9, 64), "itself_ragged_classes": among_references(101, 7, 2, 60),
    }  # fmt: skip
    for name, build in batches.items():
        for positive in POSITIVES:
            for metric in ("euclidean", "dot"):
                options = {"metric": metric, "positive": positive}
                yield Case("batch_hard", f"{name}-{positive}-{metric}", build, options)
        yield Case("triplet_loss", f"batch_all-{name}", build, {"mining": "batch_all", "margin": 1.0})
        yield Case("triplet_loss", f"batch_hard-{name}", build, {"margin": 1.0})


def _weighted() -> Iterator[Case]:
    for mining, margin in (("batch_hard", "soft"), ("batch_hard", 1.0), ("batch_all", 1.0), ("batch_all", "leaky")):
        for reduction in ("mean", "sum", "none"):
            options = {"mining": mining, "margin": margin, "reduction": reduction}
            yield Case("triplet_loss", f"{mining}-weighted-{margin}-{reduction}", weighted(BATCHES["masked"]), options)
        yield Case(
            "triplet_loss", f"{mining}-weighted-{margin}-references", weighted(BATCHES["references_masked"]),
            {"mining": mining, "margin": margin},
        )  # fmt: skip
    for mining in ("batch_hard", "batch_all"):
        for policy, name in (("pull", "one_class"), ("push", "all_unique")):
            options = {"mining": mining, "on_empty": policy}
            yield Case("triplet_loss", f"{mining}-weighted-{policy}", weighted(BATCHES[name]), options)


def _triplet() -> Iterator[Case]:
    shapes: dict[str, dict[str, Any]] = {
        "hinge": {"margin": 0.2}, "no_margin": {"margin": 0.0}, "wide_margin": {"margin": 5.0},
        "hinge_leak": {"margin": 0.5, "leak": 0.1}, "soft": {"margin": "soft"}, "leaky": {"margin": "leaky"},
    }  # fmt: skip
    for name, shape in shapes.items():
        for metric in METRICS:
            yield Case("triplet_loss", f"{name}-{metric}", BATCHES["plain"], {**shape, "metric": metric})
        for reduction in ("sum", "none"):
            options = {**shape, "reduction": reduction}
            yield Case("triplet_loss", f"{name}-{reduction}", BATCHES["masked"], options)
    for policy in ("zero", "pull", "push"):
        for name in ("plain", "all_unique", "one_class", "one_row", "no_rows", "no_references", "singletons"):
            for metric in ("euclidean", "dot"):
                options = {"on_empty": policy, "metric": metric, "margin": 1.5}
                yield Case("triplet_loss", f"{policy}-{name}-{metric}", BATCHES[name], options)
        for reduction in ("sum", "none"):
            for name in ("all_unique", "one_class"):
                options = {"on_empty": policy, "reduction": reduction, "margin": "soft"}
                yield Case("triplet_loss", f"{policy}-{name}-{reduction}", BATCHES[name], options)
    easiest, semi_hard = {"positive": "easiest"}, {"negative": "semi_hard"}
    for selection in (easiest, semi_hard, easiest | semi_hard):
        yield Case("triplet_loss", "-".join(selection.values()), BATCHES["plain"], {**selection, "margin": 1.0})
    for name in ("references", "references_masked", "one_row_to_references", "int32_labels"):
        yield Case("triplet_loss", name, BATCHES[name], {"margin": 1.0})
    for name, build in RAGGED.items():
        yield Case("triplet_loss", name, build, {"margin": 1.0})


def _batch_all() -> Iterator[Case]:
    def case(name: str, build: Build, **options: Any) -> Case:
        dtypes = FLOATS if name != "one_feature" else (torch.float64, torch.float32)  # exact ties, as above
        options = {"mining": "batch_all", "margin": 1.0, **options}
        smooth = not name.endswith(tuple(KINKED))
        return Case("triplet_loss", f"batch_all-{name}", build, options, dtypes, curved=smooth)

    for name in ("plain", "masked", "references_masked", *RAGGED):
        for metric in METRICS:
            yield case(f"{name}-{metric}", {**BATCHES, **RAGGED}[name], metric=metric)
    for leak in (0.0, 0.2):
        for average in ("active", "valid"):
            for reduction in ("mean", "sum", "none"):
                options = {"leak": leak, "average": average, "reduction": reduction, "metric": "cosine"}
                yield case(f"{leak:g}-{average}-{reduction}", BATCHES["masked"], **options)
    yield case("leaky", BATCHES["references"], margin="leaky", metric="dot")
    yield case("no_margin", BATCHES["plain"], margin=0.0)
    for kind in ("hard", "semi_hard"):
        for name in ("plain", "references_masked", "collapsed", "ragged"):
            yield case(f"{kind}-{name}", {**BATCHES, **KINKED, **RAGGED}[name], triplets=kind)
        yield case(f"{kind}-valid", BATCHES["masked"], triplets=kind, average="valid", metric="dot")
        yield case(f"{kind}-ragged_classes", labelled(130, 5, 2), triplets=kind)
    for name, build in {**BATCHES, **KINKED}.items():
        yield case(name, build)
    for policy in ("pull", "push"):
        for name in ("all_unique", "one_class", "no_references", "plain"):
            yield case(f"{policy}-{name}", BATCHES[name], on_empty=policy)
    # Classes of more than 40, whose thresholds are bisected; more references than one tile.
    yield case("ragged_classes", labelled(150, 5, 2, masked=True), leak=0.1)
    yield case("ragged_tiles", labelled(101, 7, 3, 403), metric="sqeuclidean")


def _adjusted() -> Iterator[Case]:
    """Triplets that are changed after mining, and the selectively contrastive loss: formulas on the mined pairs."""
    adjustments: dict[str, dict[str, Any]] = {
        "swap": {"swap": True, "margin": 2.0}, "hardness": {"hardness": 0.7, "margin": 0.5},
        "active_fraction": {"active_fraction": 0.4, "margin": 0.0},
        "all": {"swap": True, "hardness": 0.5, "active_fraction": 0.8, "margin": 0.1, "leak": 0.1},
    }  # fmt: skip
    batches = {name: BATCHES[name] for name in ("masked", "references_masked", "singletons", "no_references")}
    batches |= {"apart": apart(labelled(12, 3, 4)), "ragged": RAGGED["ragged"], "no_rows": BATCHES["no_rows"]}
    batches["itself"] = among_references(9, 3, 3, 5)
    for kind, options in adjustments.items():
        # That margin follows the embeddings, and is a constant of the gradient all the same.
        curved = "active_fraction" not in options
        for name, build in batches.items():
            yield Case("triplet_loss", f"{kind}-{name}", build, options, curved=curved)
        for metric in METRICS:
            case = f"{kind}-apart-{metric}"
            yield Case("triplet_loss", case, batches["apart"], {**options, "metric": metric}, curved=curved)
        for reduction in ("sum", "none"):
            case, build = f"{kind}-weighted-{reduction}", weighted(batches["apart"])
            yield Case("triplet_loss", case, build, {**options, "reduction": reduction}, curved=curved)
        for policy, name in (("pull", "one_class"), ("push", "all_unique")):
            yield Case("triplet_loss", f"{kind}-{policy}", BATCHES[name], {**options, "on_empty": policy})
    for kind in ("swap", "hardness"):
        options = {**adjustments[kind], "margin": "soft"}
        yield Case("triplet_loss", f"{kind}-soft", batches["apart"], options)
    for name, build in {**batches, **BATCHES}.items():
        if name != "one_feature":  # every cosine is 1 or -1
            yield Case("selectively_contrastive_loss", name, build, {"temperature": 0.5})
    for metric in ("cosine", "dot"):
        for positive in POSITIVES:
            options = {"metric": metric, "positive": positive, "hard_weight": 0.5}
            yield Case("selectively_contrastive_loss", f"{metric}-{positive}", batches["apart"], options)
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "temperature": 0.3}
        yield Case("selectively_contrastive_loss", f"weighted-{reduction}", weighted(batches["masked"]), options)
    for policy in ("pull", "push"):
        for name in ("one_class", "all_unique", "one_row", "plain"):
            options = {"on_empty": policy, "metric": "dot" if name == "plain" else "cosine"}
            yield Case("selectively_contrastive_loss", f"{policy}-{name}", BATCHES[name], options)


def grouped(build: Build) -> Build:
    """The batch with a few groups on both sides."""

    def grouped_build(g: torch.Generator) -> Inputs:
        found = build(g)
        sides = [(prefix, len(found[f"{prefix}labels"])) for prefix in ("", "ref_") if f"{prefix}labels" in found]
        return {**found, **{f"{prefix}groups": torch.randint(-2, 2, (n,), generator=g) * 2**40 for prefix, n in sides}}

    return grouped_build


def label_sets(build: Build, count: int, share: float) -> Build:
    """The batch with sets of labels, some of them empty."""

    def sets_build(g: torch.Generator) -> Inputs:
        found = build(g)
        names = [name for name in ("labels", "ref_labels") if name in found]
        return {**found, **{name: torch.rand(len(found[name]), count, generator=g) < share for name in names}}

    return sets_build


def _mined() -> Iterator[Case]:
    """Mining by rank and by chance."""

    def case(name: str, build: Build, op: str = "mined_pairs", **options: Any) -> Case:
        options = {"metric": "euclidean", "positives": 2, "negatives": (1, 4), "seed": 3, **options}
        dtypes = FLOATS if name != "one_feature" else (torch.float64, torch.float32)  # exact ties, as above
        return Case(op, name, build, options, dtypes, curved=not name.startswith(tuple(KINKED)))

    every = {**BATCHES, **KINKED, **RAGGED}
    for metric in METRICS:
        for order in ("hardest", "easiest", "random"):
            for name in ("masked", "references_masked", "ragged_masked"):
                options = {"metric": metric, "positive": order, "negative": order}
                yield case(f"{name}-{order}-{order}-{metric}", every[name], **options)
        if metric != "dot":
            for name in ("references_masked", "ragged", *(("zero_rows",) if metric == "cosine" else ())):
                options = {"metric": metric, "negative": "distance_weighted", "nonzero_loss_cutoff": 1.9}
                yield case(f"{name}-distance_weighted-{metric}", changed(every[name], _unit), **options)
    for name, build in every.items():
        yield case(name, build)
    for window in (0.5, 1.0, float("inf")):
        yield case(f"window-{window:g}", every["masked"], window=window, positive="easiest", metric="cosine")
        yield case(f"window-{window:g}-random-ragged", every["ragged"], window=window, negative="random")
    yield case("window-dot", every["references_masked"], window=1.0, metric="dot", negatives=(0, 2))
    yield case("window-distance_weighted", every["ragged"], window=0.3, metric="cosine", negative="distance_weighted")
    for name in ("plain", "references_masked", "ragged_references"):
        for together in (True, False):
            yield case(f"grouped-{name}-{together}", grouped(every[name]), group_positives=together)
    for name, count, share in (("plain", 5, 0.3), ("references", 3, 0.4), ("ragged", 70, 0.04), ("no_rows", 3, 0.5)):
        options = {"metric": "cosine"} if name == "ragged" else {}
        yield case(f"sets_{name}", label_sets(every[name], count, share), **options)
    yield case("sets_grouped", grouped(label_sets(every["masked"], 4, 0.3)), negative="random", group_positives=False)
    yield case("itself", among_references(9, 3, 3, 5), positives=(1, 3))
    for margin in (0.2, 1.0, "soft", "leaky"):
        yield case(f"margin-{margin}", every["masked"], "mined_triplet_loss", margin=margin)
    yield case("margin-dot", every["references_masked"], "mined_triplet_loss", margin=1.0, metric="dot", leak=0.1)
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, "margin": 1.0}
        yield case(f"weighted-{reduction}", weighted(every["masked"]), "mined_triplet_loss", **options)
    for policy, name in (("pull", "one_class"), ("push", "all_unique"), ("zero", "no_rows"), ("push", "no_references")):
        yield case(f"{policy}-{name}", every[name], "mined_triplet_loss", on_empty=policy, negatives=2)
    yield case("grouped", grouped(every["plain"]), "mined_triplet_loss", margin=1.0, window=1.0, negatives=3)
    yield case("ragged", every["ragged"], "mined_triplet_loss", margin=1.0, negative="random", negatives=5)


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x, dim=1)


# --- losses over all pairs -------------------------------------------------------------------------------------------

PAIRED: dict[str, Build] = {  # every anchor has a positive and a negative
    "plain": labelled(11, 3, [0, 0, 1, 1, 1, 2, 2, 0, 3, 3, 2]),
    "references": labelled(6, 3, [0, 1, 2, 3, 3, 0], 40),
    "ragged": labelled(131, 37, [k % 13 for k in range(131)]),
    "ragged_references": labelled(67, 17, [k % 4 for k in range(67)], 401),
    "one_panel_and_more": labelled(450, 5, [k % 90 for k in range(450)]),
}
_WIDE_RANGE = (torch.float64, torch.float32, torch.bfloat16)  # sums of distances have gradients beyond float16


def curves(metric: str) -> dict[str, Any]:
    """Moderate for values of the metric: e^curve amplifies rounding by the curve's height."""
    scale = 0.15 if metric in ("sqeuclidean", "dot") else 1.5
    return {"positive_curve": (-scale, 0.7, 2.0), "negative_curve": (0.8 * scale, 0.4, -1.0)}


def bounded(build: Build, low: float, high: float) -> Build:
    """The batch with bounds drawn from an interval."""

    def bounded_build(g: torch.Generator) -> Inputs:
        found = build(g)
        draw = [low + (high - low) * torch.rand(len(found["labels"]), generator=g, dtype=torch.float64) for _ in "pn"]
        return {**found, "positive_bound": draw[0], "negative_bound": draw[1]}

    return bounded_build


def _pairs() -> Iterator[Case]:
    for metric in METRICS:
        for form in FORMS:
            options = {"metric": metric, "form": form, **curves(metric)}
            for name in ("plain", "references"):
                row = f"{name}-{metric}-{form}"
                yield Case("pair_sums", row, PAIRED[name], options, _WIDE_RANGE, curved=form != "circle")
        for name in ("ragged", "ragged_references", "one_panel_and_more"):
            options = {"metric": metric, "form": "nce", **curves(metric)}
            yield Case("pair_sums", f"{name}-{metric}", PAIRED[name], options, _WIDE_RANGE)
    options = {"metric": "cosine", "form": "sum"}
    yield Case("pair_sums", "bounded", bounded(PAIRED["ragged"], 0.6, 0.9), options, _WIDE_RANGE)
    losses: dict[str, dict[str, Any]] = {
        "supcon_loss": {"temperature": 0.5}, "ntxent_loss": {"temperature": 0.5},
        "multi_similarity_loss": {"beta": 5.0}, "circle_loss": {"gamma": 4.0},
        "contrastive_loss": {"positive_margin": 0.5},
    }  # fmt: skip
    for op, options in losses.items():
        curved = op != "circle_loss"
        for name, build in {**BATCHES, **RAGGED}.items():
            if name != "one_feature":  # parallel vectors: every cosine gradient is exactly 0
                yield Case(op, name, build, options, curved=curved)
        for policy in ("pull",) if op == "contrastive_loss" else ("pull", "push"):
            for name in ("plain", "all_unique", "one_class", "one_row", "no_rows", "no_references"):
                yield Case(op, f"{policy}-{name}", BATCHES[name], {**options, "on_empty": policy}, curved=curved)
        for reduction in ("sum", "none"):
            yield Case(op, f"masked-{reduction}", BATCHES["masked"], {**options, "reduction": reduction}, curved=curved)
        yield Case(op, "dot", BATCHES["plain"], {**options, "metric": "dot"}, curved=curved)


# --- segmentation --------------------------------------------------------------------------------------------------

ALL_TERMS: dict[str, dict[str, float]] = {
    "binary": {"bce": 0.3, "dice": 0.5, "iou": 0.25, "tversky": 0.7, "focal": 2.0},
    "multilabel": {"bce": 0.3, "dice": 0.5, "iou": 0.25, "tversky": 0.7, "focal": 2.0},
    "multiclass": {"ce": 0.3, "dice": 0.5, "iou": 0.25, "tversky": 0.7, "focal": 2.0},
}
IGNORED = {
    torch.bool: 1, torch.uint8: 255, torch.int8: -1, torch.int16: -100, torch.int32: 255, torch.int64: -100,
    torch.float64: -100, torch.float32: 255, torch.float16: -1, torch.bfloat16: 255,
}  # fmt: skip
SHAPES: dict[str, tuple[int, ...]] = {"binary": (3, 7), "multilabel": (2, 3, 4), "multiclass": (2, 4, 5)}


def maps(
    mode: str, shape: tuple[int, ...], target: torch.dtype = torch.uint8, *,
    valid: tuple[int, ...] | None = None, ignored: int | None = None, empty_samples: int = 0, scale: float = 2.0,
) -> Build:  # fmt: skip
    """Logits of ``shape`` and a target of this type; the target of the first ``empty_samples`` has no foreground.

    ``ignored`` is the value of some of its elements.
    """

    def build(g: torch.Generator) -> Inputs:
        logits = scale * torch.randn(shape, generator=g, dtype=torch.float64)
        if mode == "multiclass":
            t = torch.randint(shape[1], (shape[0], *shape[2:]), generator=g).to(target)
        elif target.is_floating_point:
            t = torch.rand(shape, generator=g, dtype=torch.float64).to(target)
        else:
            t = (torch.rand(shape, generator=g) < 0.4).to(target)
        t[:empty_samples] = 0
        found = {"logits": logits, "target": t}
        if valid is not None:
            found["valid"] = torch.rand(valid, generator=g) < 0.6
        if ignored is not None:
            t[torch.rand(t.shape, generator=g) < 0.3] = ignored
        return found

    return build


def _segmentation() -> Iterator[Case]:
    def case(name: str, mode: str, build: Build, **options: Any) -> Case:
        options = {"terms": ALL_TERMS[mode], **options}
        return Case("segmentation_loss", f"{mode}-{name}", build, {"mode": mode, **options})

    for mode, shape in SHAPES.items():
        plain = maps(mode, shape)
        for term in ALL_TERMS[mode]:
            yield case(term, mode, plain, terms={term: 1.0})
        for reduction in ("mean", "sum", "none"):
            yield case(f"all-{reduction}", mode, maps(mode, shape, valid=shape[:1]), reduction=reduction)
        for gamma in (0.0, 0.5, 1.0, 3.5):
            yield case(f"gamma{gamma}", mode, plain, terms={"focal": 1.0}, focal_gamma=gamma)
        for empty, smooth in (("area", 0.0), ("area", 1.0), ("skip", 0.0), ("skip", 0.5), ("smooth", 1.0)):
            yield case(
                f"empty_{empty}_{smooth:g}", mode, maps(mode, shape, empty_samples=1), empty=empty, smooth=smooth
            )
        yield case("tversky_0.9_0.2", mode, plain, terms={"tversky": 1.0}, tversky_alpha=0.9, tversky_beta=0.2)
        yield case("confident", mode, maps(mode, shape, scale=15.0))
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
            yield case(f"target_{str(dtype).removeprefix('torch.')}", mode, maps(mode, shape, dtype))
        for name, size in {"none": (0, *shape[1:]), "no_pixels": (*shape[:-1], 0), "one": (1, *shape[1:])}.items():
            yield case(f"batch_{name}", mode, maps(mode, size))
    for mode in ("binary", "multilabel"):
        for alpha in (0.0, 0.25, 1.0):
            yield case(f"alpha{alpha}", mode, maps(mode, SHAPES[mode]), terms={"focal": 1.0}, focal_alpha=alpha)
        for dtype in (torch.bool, torch.float64, torch.float32, torch.float16, torch.bfloat16):
            yield case(f"target_{str(dtype).removeprefix('torch.')}", mode, maps(mode, SHAPES[mode], dtype))
    masks = {
        "binary": {"sample": (3,), "sample_class": (3, 1), "element": (3, 7)},
        "multilabel": {"sample": (2,), "class": (2, 3), "position": (2, 1, 4), "element": (2, 3, 4)},
        "multiclass": {"sample": (2,), "sample_1": (2, 1), "position": (2, 5), "position_1": (2, 1, 5)},
    }
    for mode, forms in masks.items():
        for name, form in forms.items():
            yield case(f"valid_{name}", mode, maps(mode, SHAPES[mode], valid=form))
            build = maps(mode, SHAPES[mode], valid=form, ignored=255)
            yield case(f"ignore_index_{name}", mode, build, ignore_index=255)
        for dtype, index in IGNORED.items():
            if mode == "multiclass" and dtype.is_floating_point:
                continue
            build = maps(mode, SHAPES[mode], dtype, ignored=index)
            yield case(f"ignore_index_{str(dtype).removeprefix('torch.')}", mode, build, ignore_index=index)
    spaces: dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]] = {
        "0d": ("binary", (5,), (5,)), "2d": ("binary", (2, 3, 4), (2, 3, 4)),
        "channel": ("binary", (2, 1, 3, 4), (2, 3, 4)), "3d": ("binary", (2, 1, 3, 2, 2), (2, 1, 3, 2, 2)),
        "0d_": ("multilabel", (4, 3), (4, 3)), "3d_": ("multilabel", (2, 2, 2, 3, 2), (2, 2)),
        "one_label": ("multilabel", (2, 1, 6), (2, 1)),
        "0d__": ("multiclass", (6, 3), (6,)), "2d_": ("multiclass", (2, 3, 3, 2), (2, 3, 2)),
        "two_classes": ("multiclass", (2, 2, 6), (2,)),
    }  # fmt: skip
    for name, (mode, shape, form) in spaces.items():
        yield case(f"space_{name.rstrip('_')}", mode, maps(mode, shape, valid=form))
    for name, (mode, shape, form) in {
        "ragged": ("binary", (3, 37, 43), (3, 37, 43)),
        "ragged_long": ("binary", (1, 50_003), (1, 50_003)),
        "ragged_": ("multilabel", (2, 3, 29, 31), (2, 3)),
        "ragged__": ("multiclass", (2, 19, 23, 17), (2, 23, 17)),
    }.items():
        yield case(name.rstrip("_"), mode, maps(mode, shape, valid=form))
        yield case(f"{name.rstrip('_')}_unmasked", mode, maps(mode, shape))
        yield case(f"{name.rstrip('_')}_ignored", mode, maps(mode, shape, valid=form, ignored=255), ignore_index=255)


FORMULA_TERMS: dict[str, dict[str, float]] = {
    mode: {**terms, "log_dice": 0.2, "generalized_dice": 0.5, "focal_tversky": 0.4, "mcc": 0.6}
    for mode, terms in ALL_TERMS.items()
}


def _formulas() -> Iterator[Case]:
    """What the fused op does not have: more terms and options, formulas on the sums."""

    def case(name: str, mode: str, build: Build, **options: Any) -> Case:
        options = {"terms": FORMULA_TERMS[mode], **options}
        return Case("segmentation_loss", f"{mode}-formula_{name}", build, {"mode": mode, **options})

    def lovasz(name: str, mode: str, build: Build, **options: Any) -> Case:
        options = {"terms": {"lovasz": 1.0, "mcc": 0.5}, **options}
        # Rounding of a narrow type makes ties of which float64 knows the order; and an order has kinks.
        dtypes = (torch.float64, torch.float32)
        return Case(
            "segmentation_loss", f"{mode}-formula_{name}", build, {"mode": mode, **options}, dtypes, curved=False
        )

    for mode, shape in SHAPES.items():
        plain = maps(mode, shape)
        yield case("all", mode, plain)
        for term in ("log_dice", "generalized_dice", "focal_tversky", "mcc"):
            yield case(term, mode, plain, terms={term: 1.0})
        for reduction in ("sum", "none"):
            yield case(reduction, mode, maps(mode, shape, valid=shape[:1]), reduction=reduction)
            yield case(f"batch_{reduction}", mode, plain, reduction=reduction, batch=True)
        for empty in ("area", "skip", "smooth"):
            build = maps(mode, shape, empty_samples=1)
            yield case(f"empty_{empty}", mode, build, empty=empty, smooth_nr=0.5, smooth_dr=1.0, squared=True)
        yield case("smoothed", mode, plain, label_smoothing=0.2)
        yield lovasz("lovasz", mode, maps(mode, shape, valid=shape[:1]), empty="skip")
        yield lovasz("lovasz_batch", mode, maps(mode, shape), batch=True)
        yield lovasz("lovasz_ignored", mode, maps(mode, shape, ignored=255), ignore_index=255)
        yield case("ignored", mode, maps(mode, shape, valid=shape[:1], ignored=255), ignore_index=255)
        yield case("confident", mode, maps(mode, shape, scale=15.0))
        for name, size in {"none": (0, *shape[1:]), "no_pixels": (*shape[:-1], 0)}.items():
            yield case(name, mode, maps(mode, size))
    for mode in ("multilabel", "multiclass"):
        weights = {"class_weights": [0.5, 2.0, 1.5, 0.25][: SHAPES[mode][1]], "generalized_weights": "simple"}
        yield case("weights", mode, maps(mode, SHAPES[mode]), **weights, label_smoothing=0.1)
        yield case(
            "weights_count", mode, maps(mode, SHAPES[mode]), **weights, class_weight_norm="count", classes=[2, 0]
        )
    yield case("pos_weight", "multilabel", maps("multilabel", (2, 3, 4)), pos_weight=[3.0, 0.5, 1.0], focal_alpha=0.25)
    yield case("label_sets", "multiclass", maps("multiclass", (3, 5, 4), valid=(3, 5)), label_smoothing=0.1)


SMOOTH_SUMS = tuple(name for name in SUMS if name not in ("g1", "g0"))
"""Without those that are constant by definition, and not as a difference quotient sees it."""


def _sums() -> Iterator[Case]:
    def case(name: str, mode: str, build: Build, *, curved: bool = True, **options: Any) -> Case:
        options = {"wanted": SMOOTH_SUMS, **options}
        return Case("segmentation_sums", f"{mode}-{name}", build, {"mode": mode, **options}, curved=curved)

    for mode, shape in SHAPES.items():
        plain = maps(mode, shape)
        yield case("all", mode, plain, wanted=SUMS, curved=False)
        # Sums that have a gradient; all p of a softmax add to 1, and of their sum only rounding is left.
        softmax = mode == "multiclass"
        for name in ("a", "pp", "e1", "f1", "x", *(() if softmax else ("p", "e0", "f0", "tx"))):
            yield case(f"only_{name}", mode, plain, wanted=(name,))
        for gamma in (0.0, 0.5, 1.0, 3.5):
            yield case(f"gamma{gamma}", mode, plain, wanted=("f1", "f0"), focal_gamma=gamma)
        yield case("confident", mode, maps(mode, shape, scale=15.0))
        yield case("confident_all", mode, maps(mode, shape, scale=15.0), wanted=SUMS, curved=False)
        yield case("ignore_index", mode, maps(mode, shape, torch.int16), ignore_index=1)
        for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
            yield case(f"target_{str(dtype).removeprefix('torch.')}", mode, maps(mode, shape, dtype))
        for name, size in {"none": (0, *shape[1:]), "no_pixels": (*shape[:-1], 0), "one": (1, *shape[1:])}.items():
            yield case(f"batch_{name}", mode, maps(mode, size))
    for mode in ("binary", "multilabel"):
        for dtype in (torch.bool, torch.float64, torch.float32, torch.float16, torch.bfloat16):
            yield case(f"target_{str(dtype).removeprefix('torch.')}", mode, maps(mode, SHAPES[mode], dtype))
    masks = {
        "binary": {"sample": (3,), "element": (3, 7)},
        "multilabel": {"sample": (2,), "class": (2, 3), "position": (2, 1, 4), "element": (2, 3, 4)},
        "multiclass": {"sample": (2,), "position": (2, 1, 5), "label_sets": (2, 4), "label_sets_1": (2, 4, 1)},
    }
    for mode, forms in masks.items():
        for name, form in forms.items():
            yield case(f"valid_{name}", mode, maps(mode, SHAPES[mode], valid=form))
            yield case(f"valid_{name}_all", mode, maps(mode, SHAPES[mode], valid=form), wanted=SUMS, curved=False)
    yield case("label_sets_ignored", "multiclass", maps("multiclass", (3, 5, 4), valid=(3, 5)), ignore_index=2)
    yield case("label_sets_0d", "multiclass", maps("multiclass", (7, 4), valid=(7, 4)))
    for name, (mode, shape, form) in {
        "ragged": ("binary", (3, 37, 43), (3, 37, 43)),
        "ragged_long": ("binary", (1, 50_003), (1, 50_003)),
        "ragged_": ("multilabel", (2, 3, 29, 31), (2, 3)),
        "ragged__": ("multiclass", (2, 19, 23, 17), (2, 23, 17)),
        "ragged_label_sets": ("multiclass", (3, 6, 21, 19), (3, 6)),
    }.items():
        yield case(name.rstrip("_"), mode, maps(mode, shape, valid=form), wanted=SUMS, curved=False)
        yield case(f"{name.rstrip('_')}_unmasked", mode, maps(mode, shape), wanted=SUMS, curved=False)


CASES: tuple[Case, ...] = (
    *_pairwise(), *_mining(), *_mined(), *_triplet(), *_batch_all(), *_remembered(), *_weighted(), *_adjusted(),
    *_pairs(), *_segmentation(), *_sums(), *_formulas(),
)  # fmt: skip
LAID_OUT: tuple[tuple[Case, str], ...] = tuple(_laid_out())
SMALL: tuple[Case, ...] = tuple(case for case in CASES if case.size <= 64)
DIFFERENTIATED: tuple[Case, ...] = tuple(case for case in SMALL if case.curved and case.size)


def named(name: str) -> Case:
    """The row of this name."""
    (found,) = [case for case in CASES if str(case) == name]
    return found
