"""What the autograd graph says without being run: which leaves a loss reaches."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

LIMIT = 20_000  # nodes; a larger graph is not walked to its end


def reached(loss: Tensor) -> tuple[set[int], set[Any], bool]:
    """The ids of the leaf tensors that ``loss`` depends on, the nodes in between, and whether these are surely all.

    Not certain where the graph is very large, or has nodes that run a graph of their own (reentrant checkpoints,
    user-defined functions): what those reach cannot be seen.
    """
    root = loss.grad_fn
    if root is None:
        return ({id(loss)} if loss.requires_grad else set()), set(), True
    found: set[int] = set()
    seen: set[Any] = {root}
    stack: list[Any] = [root]
    certain = True
    while stack:
        node = stack.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        elif _is_opaque(node):
            certain = False
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)
        if len(seen) > LIMIT:
            return found, seen, False
    return found, seen, certain


# The nodes of a weighted sum: what is above its terms.
_LINEAR = frozenset(
    f"{name}Backward0" for name in ("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "Stack", "Clone", "ToCopy")
)


def constant_factors(loss: Tensor) -> list[tuple[Tensor, Any]]:
    """The constants that terms of a weighted sum are multiplied by, unread, each with the node of its term.

    Only before ``backward()``, which frees them.
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
            constants = [saved for saved in (node._saved_self, node._saved_other) if saved is not None]
            if len(constants) == 1 and constants[0].dim() == 0:
                found += [(constants[0], after) for after in following if after is not None]
        stack += following
    return found


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
    """The range that the operation which made ``x`` keeps it in, whatever its inputs are; all numbers if unknown."""
    node = x.grad_fn
    while node is not None and type(node).__name__ in _MOVES:
        node = node.next_functions[0][0]
    return _RANGES.get(type(node).__name__, (-math.inf, math.inf))


def ends_in_bias(x: Tensor) -> bool:
    """Whether the operation that made ``x`` adds a learned bias to it, so that any constant is within its reach."""
    node: Any = x.grad_fn
    while node is not None and type(node).__name__ in _MOVES:
        node = node.next_functions[0][0]
    if type(node).__name__ not in ("AddmmBackward0", "ConvolutionBackward0", "AddBackward0"):
        return False
    leaves = (getattr(after, "variable", None) for after, _ in node.next_functions)
    return any(leaf is not None and leaf.dim() == 1 for leaf in leaves)


def _is_opaque(node: Any) -> bool:
    """A node written in Python may hide a graph of its own; ours and those that torch generates do not."""
    kind = type(node)
    generated = kind.__name__.startswith(("fastmine_", "GeneratedBackwardFor_", "CompiledFunction"))
    return kind.__module__ == "torch.autograd.function" and not generated


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
    """The tensors among arguments, in order, looking into lists, tuples and mappings."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(tensors(value))
        elif isinstance(value, dict):
            found.extend(tensors(value.values()))
    return found
