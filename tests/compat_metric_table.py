"""The tables of docs/compat-metric.md, from the installed libraries and ours: running this file writes them."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from fastmine.bench.peers import import_torchvision

PAGE = Path(__file__).parent.parent / "docs" / "compat-metric.md"
BEGIN, END = "<!-- written by python tests/compat_metric_table.py -->", "<!-- end -->"

# Per module of ours: the package that pip knows, and the modules whose classes are compared.
PEERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "pml": ("pytorch-metric-learning", ("pytorch_metric_learning.losses", "pytorch_metric_learning.miners")),
    "sentence_transformers": ("sentence-transformers", ("sentence_transformers.sentence_transformer.losses",)),
    "oml": (
        "open-metric-learning",
        (
            "oml.losses.triplet",
            "oml.losses.arcface",
            "oml.miners.inbatch_hard_tri",
            "oml.miners.inbatch_all_tri",
            "oml.miners.inbatch_nhard_tri",
        ),
    ),
}

_NAN = "a NaN row makes the loss NaN and is counted, where theirs drops it and returns a number with a NaN gradient"
_ARC = (
    "no arc cosine: the gradient is finite where an embedding meets its class vector; beyond pi - m the margin goes on "
    "without a jump (lower by m sin m - (1 - cos m), the same gradient)"
)
_EMPTY = (
    "the mean is over anchors with a positive and a negative; a batch without any is worth 0, where theirs is worth "
    "the margin (the soft one ln 2), without a gradient"
)
DIFFERS: dict[tuple[str, str], str] = {
    ("pml", "TripletMarginLoss"): f"{_NAN}; references that share a label tensor with the batch are not taken for it; "
    "swap with references compares references, where theirs looks them up in the wrong matrix; float32 results",
    ("pml", "ArcFaceLoss"): f"{_ARC}; a label of no class says so",
    ("pml", "SubCenterArcFaceLoss"): "as ArcFaceLoss; get_outliers is not here",
    ("pml", "CosFaceLoss"): "a label of no class says so",
    ("pml", "SupConLoss"): f"{_NAN}; anchors without a negative do not count",
    ("pml", "NTXentLoss"): "no floor under the probability; anchors without a negative do not count",
    ("pml", "MultiSimilarityLoss"): "anchors without a positive or a negative have no loss",
    ("pml", "CircleLoss"): _NAN,
    ("pml", "ContrastiveLoss"): _NAN,
    ("pml", "MultiSimilarityMiner"): "pairs in the order of rows, not of distance",
    ("pml", "DistanceWeightedMiner"): "each positive once, with different negatives while they last, where theirs "
    "draws both with replacement; each anchor's weights by themselves, where theirs are divided by the largest of the "
    "batch and vanish in float32: with one close pair in 256 dimensions theirs keeps 2 anchors of 60",
    ("pml", "BatchHardMiner"): "exact float64 choices, ties to the lowest index",
    ("pml", "BatchEasyHardMiner"): "exact float64 choices, ties to the lowest index",
    ("sentence_transformers", "BatchHardTripletLoss"): _EMPTY,
    ("sentence_transformers", "BatchHardSoftMarginTripletLoss"): _EMPTY,
    ("sentence_transformers", "BatchSemiHardTripletLoss"): "positive pairs of anchors without a negative do not count",
    ("oml", "TripletLossWithMiner"): "a class of one row is no error; "
    'reduction="none" is per anchor with the miners here',
    ("oml", "TripletLoss"): "the soft margin does not overflow",
    ("oml", "NHardTripletsMiner"): "an anchor without a positive or a negative of these ranks is left out, where "
    "theirs raises",
    ("oml", "HardTripletsMiner"): "an anchor without a positive or a negative is left out",
    ("oml", "ArcFaceLoss"): f"{_ARC}; theirs is NaN there",
}
# Offered beside losses and miners: bases, mixins, and wrappers, which take ours.
NO_LOSS = ("GenericPairLoss", "MultipleLosses", "EmbeddingRegularizerMixin", "WeightRegularizerMixin")
WRAPPERS = ("CrossBatchMemory", "SelfSupervisedLoss")
# What a class hands to its base by itself.
FIXED = {("BatchHardMiner", "pos_strategy"), ("BatchHardMiner", "neg_strategy")}
# Options that we take, but not every value of.
PARTLY: dict[tuple[str, str], str] = {
    (
        "pml",
        "distance",
    ): "equal for LpDistance (p = 2, power 1 or 2), CosineSimilarity, DotProductSimilarity; others raise",
    ("pml", "reducer"): "equal for MeanReducer, SumReducer, AvgNonZeroReducer; others raise",
    ("pml", "triplets_per_anchor"): 'equal for "all"; others raise',
    ("pml", "pos_strategy"): "equal for hard and easy; others raise",
    ("pml", "neg_strategy"): "equal for hard and semihard; others raise",
    ("pml", "allowed_pos_range"): "raises",
    ("pml", "allowed_neg_range"): "raises",
    ("sentence_transformers", "distance_metric"): "equal for euclidean_distance and cosine_distance; others raise",
    ("oml", "smoothing_epsilon"): "equal for 0; others raise",
    ("oml", "label2category"): "raises",
}
OVERRIDDEN: dict[tuple[str, str, str], str] = {
    ("pml", "NTXentLoss", "reducer"): "equal for MeanReducer and SumReducer; others raise",
    (
        "pml",
        "DistanceWeightedMiner",
        "distance",
    ): "equal for LpDistance (p = 2, power 1) on normalised rows; others raise",
    ("pml", "CircleLoss", "distance"): "equal for CosineSimilarity; others raise",
    ("pml", "MultiSimilarityLoss", "distance"): "equal for CosineSimilarity and DotProductSimilarity; others raise",
    ("pml", "ArcFaceLoss", "distance"): "equal for CosineSimilarity; others raise",
    ("pml", "CosFaceLoss", "distance"): "equal for CosineSimilarity; others raise",
    ("pml", "SubCenterArcFaceLoss", "distance"): "equal for CosineSimilarity; others raise",
    ("pml", "ProxyAnchorLoss", "distance"): "equal for CosineSimilarity; others raise",
    ("pml", "ProxyAnchorLoss", "reducer"): "equal for DivisorReducer; others raise",
}


def theirs(peer: str) -> dict[str, type]:
    """The classes that a library offers in the modules compared, its abstract ones left out."""
    found: dict[str, type] = {}
    for name in PEERS[peer][1]:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", None) or vars(module):
            kind = getattr(module, public, None)
            offered = not public.startswith(("_", "Base", "I")) and public not in NO_LOSS
            if inspect.isclass(kind) and offered and kind.__module__.startswith(name.split(".")[0]):
                found[public] = kind
    return dict(sorted(found.items()))


def ours(peer: str) -> Any:
    """Our module of that name."""
    return importlib.import_module(f"fastmine.compat.{peer}")


def options_of(kind: type) -> dict[str, inspect.Parameter]:
    """Every option of a class, those that it hands on to its bases included."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base) or base.__module__.startswith("torch"):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in list(parameters)[1:]:
            named = parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            given = base is not kind and parameter.default is parameter.empty
            if named and not given and (kind.__name__, parameter.name) not in FIXED:
                found.setdefault(parameter.name, parameter)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    return found


def verdict(peer: str, name: str, option: str) -> str:
    """What an option is here."""
    kind = getattr(ours(peer), name)
    if (peer, name, option) in OVERRIDDEN:
        return OVERRIDDEN[peer, name, option]
    if option not in inspect.signature(kind.__init__).parameters:
        return "raises"
    return PARTLY.get((peer, option), "equal")


def tables() -> Iterator[str]:
    """A table of versions and classes, and for each class that is here a line per option."""
    yield "| module | library | version | has | of |"
    yield "|---|---|---|---|---|"
    for peer, (package, _) in PEERS.items():
        kinds = theirs(peer)
        has = [name for name in kinds if name in ours(peer).__all__]
        yield f"| `fastmine.compat.{peer}` | {package} | {metadata.version(package)} | {len(has)} | {len(kinds)} |"
    for peer, (package, _) in PEERS.items():
        kinds = theirs(peer)
        yield from ("", f"## {package}", "", "| theirs | here |", "|---|---|")
        absent = []
        for name in kinds:
            if name not in ours(peer).__all__:
                absent.append(name)
                continue
            why = DIFFERS.get((peer, name))
            yield f"| `{name}` | equal{'; differs: ' + why if why else ''} |"
        absent, wrappers = ([f"`{name}`" for name in absent if (name in WRAPPERS) == kept] for kept in (False, True))
        yield from ("", f"Not here: {', '.join(absent)}." if absent else "Everything is here.")
        if wrappers:
            yield from ("", f"Wrappers, which take the classes here: {', '.join(wrappers)}.")
        for name, kind in kinds.items():
            if name in ours(peer).__all__ and options_of(kind):
                yield from ("", f"### `{name}`", "", "| option | default | here |", "|---|---|---|")
                for option, parameter in options_of(kind).items():
                    yield f"| `{option}` | {_default(parameter)} | {verdict(peer, name, option)} |"
    yield ""


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return ""
    if inspect.isfunction(parameter.default):
        return f"`{parameter.default.__name__}`"
    return f"`{re.sub(r' object at 0x[0-9a-f]+', '', repr(parameter.default))}`"


def page() -> str:
    """The page as it should be: what is written by hand, and the tables."""
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n" + "\n".join(tables()) + f"\n{END}{after}"


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for package, _ in PEERS.values():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def documented_versions() -> dict[str, str]:
    """Of those that the page was written with."""
    return dict(
        re.findall(r"^\| `fastmine\.compat\.\w+` \| ([\w-]+) \| ([\w.+]+) \|", PAGE.read_text(), flags=re.MULTILINE)
    )


if __name__ == "__main__":
    with contextlib.suppress(ImportError):
        import_torchvision()
    PAGE.write_text(page())
