"""What the autograd graph says without being run: which leaves a loss reaches."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import combinations
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

Mark: TypeAlias = tuple[str, int]

LIMIT = 20_000  # nodes; a larger graph is not walked to its end


def reached(loss: Tensor) -> tuple[dict[int, Tensor], set[Any], bool]:
    """The leaf tensors that ``loss`` depends on, by id, the nodes in between, and whether these are surely all.

    Not certain where the graph is very large, or has nodes that run a graph of their own (reentrant checkpoints,
    user-defined functions): what those reach cannot be seen.
    """
    root = loss.grad_fn
    if root is None:
        return ({id(loss): loss} if loss.requires_grad else {}), set(), True
    found: dict[int, Tensor] = {}
    seen: set[Any] = {root}
    stack: list[Any] = [root]
    certain = True
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        elif _is_opaque(node):
            certain = False
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
        if len(seen) > LIMIT:
            return found, seen, False
    return found, seen, certain


def mark(node: Any) -> Mark:
    """What tells a node from all others that this thread has made, and keeps it no longer.

    A node that is held holds all that its graph saved: after an error in backward, memory that the next batch needs.
    A leaf has no node, and what no node has.
    """
    return ("", 0) if node is None else (node.name(), node._sequence_nr())


# The nodes of a weighted sum: what is above its terms.
_LINEAR = frozenset(
    f"{name}Backward0" for name in ("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "Stack", "Clone", "ToCopy")
)


def constant_factors(loss: Tensor) -> list[tuple[Tensor, Any]]:
    """The constants that terms of a weighted sum are multiplied by, unread, each with the node of its term.

    None where ``backward()`` has been called, which frees them.
    """
    found: list[tuple[Tensor, Any]] = []
    stack: list[Any] = [loss.grad_fn]
    for _ in range(256):
        if not stack:
            break
        node = stack.pop()
        if node is None or type(node).__name__ not in _LINEAR:
            continue
        following = [after for after, _ in node.next_functions]
        if type(node).__name__ == "MulBackward0":
            try:
                constants = [saved for saved in (node._saved_self, node._saved_other) if saved is not None]
            except RuntimeError:  # the graph is freed
                return []
            if len(constants) == 1 and constants[0].dim() == 0:
                found += [(constants[0], after) for after in following if after is not None]
        stack += following
    return found


# What of ours compares rows; and what picks some of them.
_COMPARING = ("batch_hard", "batch_all", "triplet", "selective", "mined", "pair_sums")
_PICKING = frozenset(
    f"{name}Backward0" for name in ("Index", "IndexSelect", "Select", "Slice", "Split", "Unbind", "Roll", "Flip")
)


def compares_rows(loss: Tensor, rows: Tensor) -> bool | None:
    """Whether a loss holds rows of [N, D] against each other; None where the graph does not tell.

    Then rows come together in one operation by two ways: in a matrix of N x N, or as differently chosen rows.
    """
    start = rows.grad_fn
    leaf = rows if start is None else None
    order = _between(loss.grad_fn, start, leaf)
    if order is None:
        return None
    picks: dict[Any, frozenset[Any]] = {}  # of the nodes that lead to the rows: what picked rows on the way
    opaque = False
    for node in order:
        if node is start or _is_leaf(node, leaf):
            picks[node] = frozenset()
            continue
        ways = [picks[after] for after, _ in node.next_functions if after in picks]
        if not ways:
            continue
        name, shape = type(node).__name__, shape_of(node)
        if name.startswith("fastmine_") and any(part in name for part in _COMPARING):
            return True
        square = shape[-2:] == (len(rows),) * 2 or (len(shape) == 3 and shape[:2] == (len(rows),) * 2)
        if len(ways) > 1 and ((square and (len(shape) == 3 or name[:2] in _PRODUCTS)) or _differ(ways)):
            return True
        opaque |= _is_opaque(node) or name.startswith("CompiledFunction")
        picked = frozenset([node]) if name in _PICKING and len(shape) > 1 else frozenset()
        picks[node] = frozenset().union(*ways, picked)
    return None if opaque or not picks else False


_PRODUCTS = ("Mm", "Bm", "Ba", "Cd", "Eu")  # matrix products, and distances of all to all


def _differ(ways: list[frozenset[Any]]) -> bool:
    """Whether two ways went by rows that were picked, and not by the same."""
    return any(a and b and not (a <= b or b <= a) for a, b in combinations(ways, 2))


def _between(root: Any, start: Any, leaf: Tensor | None) -> list[Any] | None:
    """The nodes from a loss down to its input, what comes first in the computation first; None of far too many."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(root, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node is not start and not _is_leaf(node, leaf):
                stack += [(after, False) for after, _ in node.next_functions]
        if len(seen) > LIMIT // 10:
            return None
    return order


def _is_leaf(node: Any, leaf: Tensor | None) -> bool:
    return leaf is not None and getattr(node, "variable", None) is leaf


def shape_of(node: Any) -> tuple[int, ...]:
    """Of what the operation returned."""
    known = getattr(node, "_input_metadata", ())
    return tuple(known[0].shape) if known else ()


_KINKS = ("Relu", "Clamp", "Max", "Min", "Where", "Threshold", "fastmine_")


def may_be_flat(loss: Tensor, inputs: Iterable[Tensor]) -> bool:
    """Whether a loss may rightly be 0 and so its gradient, for now: a hinge or a choice lies before it."""
    outside = {x.grad_fn for x in inputs}
    stack: list[Any] = [loss.grad_fn]
    for _ in range(256):
        if not stack:
            break
        node = stack.pop()
        if node is None or node in outside:
            continue
        if any(kink in type(node).__name__ for kink in _KINKS):
            return True
        stack += [after for after, _ in node.next_functions]
    return False


_SOFTMAX = ("SoftmaxBackward0", "LogSoftmaxBackward0")

# The last operations that keep what they return in a range, and those that only move it about.
_RANGES = {
    "SigmoidBackward0": (0.0, 1.0), "SoftmaxBackward0": (0.0, 1.0), "TanhBackward0": (-1.0, 1.0),
    "ReluBackward0": (0.0, math.inf), "SoftplusBackward0": (0.0, math.inf),
}  # fmt: skip
_MOVES = frozenset(
    f"{name}Backward0"
    for name in ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Permute", "Transpose", "T", "Clone")
)


def bounds(x: Tensor) -> tuple[float, float]:
    """The range that the operation which made ``x`` keeps it in, whatever its inputs are; all numbers if unknown.

    A constant that the range is multiplied by is followed: ``pi / 2 * angle.sigmoid()`` never leaves a quarter circle.
    """
    node, factor = x.grad_fn, 1.0
    while node is not None and type(node).__name__ not in _RANGES:
        if _is_cosine(node):
            return -abs(factor), abs(factor)
        times = _multiplied_by(node)
        if not times:
            return -math.inf, math.inf
        factor *= times
        node = next((after for after, _ in node.next_functions if after is not None), None)
    low, high = sorted(factor * end for end in _RANGES.get(type(node).__name__, (-math.inf, math.inf)))
    return low, high


def _is_cosine(node: Any) -> bool:
    """Whether it is a product of rows that were divided by their norms."""
    return type(node).__name__ == "MmBackward0" and all(_is_unit(side) for side, _ in node.next_functions)


def _is_unit(node: Any) -> bool:
    while node is not None and type(node).__name__ in _MOVES:
        node = node.next_functions[0][0]
    if type(node).__name__ != "DivBackward0":
        return False
    over = node.next_functions[1][0]
    while type(over).__name__ in ("ExpandBackward0", "ClampMinBackward0", "UnsqueezeBackward0", "ClampBackward1"):
        over = over.next_functions[0][0]
    return type(over).__name__ in ("LinalgVectorNormBackward0", "NormBackward1")


def _multiplied_by(node: Any) -> float:
    """What an operation multiplies its input by: 1 where it only moves it about, 0 where that is unknown."""
    kind = type(node).__name__
    if kind in _MOVES:
        return 1.0
    if kind == "NegBackward0":
        return -1.0
    number = _constant(node) if kind in ("MulBackward0", "DivBackward0") else 0.0
    divided = kind == "DivBackward0" and number != 0
    return 1 / number if divided else number


def _constant(node: Any) -> float:
    """The number that a product has for its other factor, or a quotient below; 0 where there is none to be read."""
    try:
        saved = [node._saved_other, *([node._saved_self] if type(node).__name__ == "MulBackward0" else [])]
    except RuntimeError:  # the graph is freed
        return 0.0
    numbers = [x for x in saved if x is not None]
    alone = sum(after is not None for after, _ in node.next_functions) == 1 and len(numbers) == 1
    plain = alone and numbers[0].dim() == 0 and numbers[0].device.type == "cpu" and not numbers[0].is_complex()
    return float(numbers[0]) if plain else 0.0


def softmax_over_batch(x: Tensor) -> bool:
    """Whether the operation that made ``x`` is a softmax over its first dimension, that of the samples."""
    node: Any = x.grad_fn
    if x.dim() < 2 or type(node).__name__ not in _SOFTMAX:
        return False
    return bool(node._saved_dim in (0, 2**64 - x.dim()))


def softmax_of_one(output: Tensor, inputs: Iterable[Tensor]) -> bool:
    """Whether a softmax between a loss and what made its inputs runs over a dimension of one: its result is 1."""
    ends = {x.grad_fn for x in inputs}
    seen: set[Any] = {output.grad_fn, *ends} - {None}
    stack = list(seen)
    while stack and len(seen) < 256:
        node = stack.pop()
        if type(node).__name__ in _SOFTMAX:
            shape = node._input_metadata[0].shape
            dim = node._saved_dim
            if shape[dim - 2**64 if dim >= 2**63 else dim] == 1:
                return True
        if node not in ends:
            following = {after for after, _ in node.next_functions if after is not None} - seen
            seen |= following
            stack += following
    return False


def ends_in_bias(x: Tensor) -> bool:
    """Whether the operation that made ``x`` adds a learned bias to it, so that any constant is within its reach."""
    node: Any = x.grad_fn
    while node is not None and (type(node).__name__ in _MOVES or type(node).__name__ == "LogSoftmaxBackward0"):
        node = node.next_functions[0][0]
    if type(node).__name__ not in ("AddmmBackward0", "ConvolutionBackward0", "AddBackward0"):
        return False
    leaves = (getattr(after, "variable", None) for after, _ in node.next_functions)
    return any(leaf is not None and leaf.dim() == 1 for leaf in leaves)


def _is_opaque(node: Any) -> bool:
    """A node written in Python may hide a graph of its own; ours and those that torch generates do not."""
    kind = type(node)
    generated = kind.__name__.startswith(("fastmine_", "GeneratedBackwardFor_", "CompiledFunction"))
    ours = getattr(getattr(kind, "_forward_cls", None), "__module__", "").startswith("fastmine._ops.")
    return kind.__module__ == "torch.autograd.function" and not (generated or ours)


def unregistered(model: nn.Module) -> list[nn.Parameter]:
    """The parameters in plain lists and mappings of a module, where ``parameters()`` does not look."""
    known = {id(p) for p in model.parameters()}
    found = [
        p
        for part in model.modules()
        for name, value in vars(part).items()
        if name not in ("_modules", "_parameters", "_buffers")
        for p in _in_container(value)
    ]
    return list({id(p): p for p in found if id(p) not in known}.values())


def _in_container(value: Any) -> Iterator[nn.Parameter]:
    """Those of its items, where they are no more than a list of layers has; a table of data is not looked through."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        if isinstance(item, nn.Parameter):
            yield item
        elif isinstance(item, nn.Module):
            yield from item.parameters()
        else:
            return


def in_reentrant_checkpoint() -> bool:
    """Whether the caller runs inside one: what it computes has no graph unless an input of the checkpoint has one."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is CheckpointFunction.forward.__code__:
            return True
    return False


def tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, in order, looking into lists, tuples, mappings and dataclasses."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(tensors(value))
        elif isinstance(value, dict):
            found.extend(tensors(value.values()))
        elif is_dataclass(value) and not isinstance(value, type):
            found.extend(tensors(vars(value).values()))
    return found


TOTALS = ("loss", "total_loss", "total")


def terms(output: Any) -> list[int]:
    """Which of the tensors that a criterion returns are the loss: what is called so, the terms of a mapping, or the
    first of several that a gradient can come from."""
    found = _returned(output)
    for name in TOTALS:
        named = output.get(name) if isinstance(output, dict) else getattr(output, name, None)
        if isinstance(named, Tensor) and not isinstance(output, Tensor):
            return [place for place, value in enumerate(found) if value is named]
    usable = [place for place, value in enumerate(found) if value.requires_grad and value.dim() == 0]
    several = isinstance(output, dict) and len({found[place].device for place in usable}) == 1
    return (usable if several else usable[:1]) or list(range(len(found)))[:1]


def _returned(output: Any) -> list[Tensor]:
    """The tensors among what a criterion returns, a dataclass of them among others."""
    if is_dataclass(output) and not isinstance(output, type | Mapping):
        return tensors(vars(output).values())
    return tensors([output])


def total(output: Any, places: Sequence[int]) -> Tensor | None:
    """The loss among what a criterion returns, of these of its tensors; None where there are fewer."""
    found = _returned(output)
    if not places or len(found) <= max(places):
        return None
    return found[places[0]] if len(places) == 1 else torch.stack([found[place] for place in places]).sum()
