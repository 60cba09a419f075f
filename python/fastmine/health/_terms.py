"""Losses of torch in the graph of a number, before ``backward()`` has freed it: which they are, and what they got."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn

from ._graph import shape_of

NODES = 128  # that are walked from a number on

# What leaves numbers on their side of 0, a division being one by how many there are; and what may turn all of them.
_ADDING = frozenset(
    f"{name}Backward{number}"
    for name in ("Add", "Div", "Sum", "Mean", "Stack", "Cat", "Clone", "ToCopy", "View", "Reshape", "Squeeze", "Select")
    for number in ("", 0, 1)
)
_SCALING = frozenset(("MulBackward0",))

Edge: TypeAlias = tuple[Any, int]  # a node of the graph, and which of its results


@dataclass(frozen=True)
class Term:
    """A call of a loss of torch, as the graph remembers it.

    ``name`` is that of the function, ``node`` the one of the value, and ``scores`` the one that sends the gradient at
    the prediction on.
    """

    name: str
    kind: type[nn.Module]
    options: Mapping[str, Any]
    prediction: Tensor
    target: Tensor
    node: Any
    scores: Any


def terms_of(number: Tensor, outputs: Iterable[Tensor]) -> list[Term]:
    """The losses of torch that a number is a sum of. ``outputs``: tensors that a prediction may be among.

    None of those whose inputs are not there: freed, changed in place, or packed away by hooks, as a checkpoint does,
    which would compute them anew.
    """
    known = {(x.grad_fn, x.output_nr): x for x in outputs if x.grad_fn is not None}
    found = []
    for node in loss_nodes(number):
        with contextlib.suppress(RuntimeError, AttributeError, LookupError):
            read, _ = _KINDS[_kind(node)]
            found.append(read(node, known))
    return found


def names_of(number: Tensor) -> list[str]:
    """How torch calls the losses that a number is a sum of, each once; also where their inputs are gone."""
    return list(dict.fromkeys(_name(node) for node in loss_nodes(number)))


def only_cross_entropy(number: Tensor) -> dict[str, Any] | None:
    """The options of the cross entropy that is all of torch's losses in a number, its weights aside."""
    nodes = loss_nodes(number)
    if len(nodes) != 1 or _name(nodes[0]) != "cross_entropy":
        return None
    return _options(nodes[0])


def lowest(number: Tensor) -> str | None:
    """How a number that is made with losses of torch alone follows from them, none of which is ever below 0: as their
    "sum", then neither is it; or as a "multiple" of one, then it is never on both sides of 0. None where there is more
    to it. The graph may be freed: which factors there are is not asked."""
    seen: set[Any] = {number.grad_fn}
    waiting = deque(seen)
    found, scaled = 0, False
    while waiting:
        node = waiting.popleft()
        kind = _kind(node)
        if kind in _KINDS:
            found += 1
            continue
        if len(seen) > NODES or kind not in _ADDING | _SCALING or getattr(node, "_saved_alpha", 1) < 0:
            return None
        scaled |= kind in _SCALING
        following = {after for after, _ in node.next_functions if after is not None} - seen
        seen |= following
        waiting.extend(following)
    return None if not found or (scaled and found > 1) else "multiple" if scaled else "sum"


_Reader: TypeAlias = Callable[[Any, Mapping[Edge, Tensor]], Term]

# What lies between a total and its terms: weighted sums, means, and what picks some of the values.
_BETWEEN = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Add", "Sub", "Rsub", "Neg", "Mul", "Div", "Sum", "Mean", "Stack", "Cat", "Clone", "ToCopy", "View", "Reshape",
        "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Index", "Slice", "MaskedSelect", "MaskedFill", "Where", "Exp",
        "Pow", "Topk", "Sort", "_DDPSink",
    )
    for number in ("", 0, 1)
)  # fmt: skip


def loss_nodes(number: Tensor) -> list[Any]:
    """The nodes of losses, in the order of their calls."""
    found: list[Any] = []
    seen: set[Any] = {number.grad_fn} - {None}
    waiting = deque(seen)
    while waiting and len(seen) < NODES:
        node = waiting.popleft()
        if _kind(node) in _KINDS:
            found.append(node)
        elif _kind(node) in _BETWEEN:
            following = [after for after, _ in node.next_functions if after is not None and after not in seen]
            seen.update(following)
            waiting.extend(dict.fromkeys(following))
    return sorted(found, key=lambda node: node._sequence_nr())  # noqa: SLF001


def _kind(node: Any) -> str:
    return type(node).__name__


def _saved(node: Any, name: str) -> Tensor | None:
    """What a node keeps for the way back, where that is no more than a look."""
    if getattr(node, f"_raw_saved_{name}").unpack_hook is not None:
        raise LookupError(name)
    saved: Tensor | None = getattr(node, f"_saved_{name}")
    return saved


def _given(node: Any, *names: str) -> dict[str, Tensor | None]:
    """Options that are tensors, without a graph of their own."""
    saved = {name: _saved(node, name) for name in names}
    return {name: None if x is None else x.detach() for name, x in saved.items()}


def _number(node: Any, name: str) -> int:
    """A number that a node keeps."""
    return _signed(getattr(node, f"_saved_{name}"))


def _signed(number: int) -> int:
    """Numbers below 0 are told as if they had no sign."""
    return number - 2**64 if number >= 2**63 else number


_REDUCTIONS = ("none", "mean", "sum")


def _pair(kind: type[nn.Module], *tensors: str, **numbers: str) -> _Reader:
    """How to read the node of a loss of predictions and targets, with these options."""

    def read(node: Any, _: Mapping[Edge, Tensor]) -> Term:
        prediction, target = _unexpanded(*(_present(node, name) for name in ("self", "target")))
        options: dict[str, Any] = {name: getattr(node, f"_saved_{saved}") for name, saved in numbers.items()}
        options.update(_given(node, *tensors), reduction=_REDUCTIONS[_number(node, "reduction")])
        return Term(_name(node), kind, options, prediction, target, node, node)

    return read


def _present(node: Any, name: str) -> Tensor:
    saved = _saved(node, name)
    if saved is None:
        raise LookupError(name)
    return saved


def _unexpanded(*both: Tensor) -> tuple[Tensor, ...]:
    """As they were before they were broadcast, each against the other."""
    repeated = [[dim for dim in range(x.dim()) if x.stride(dim) == 0 and x.shape[dim] > 1] for x in both]
    return tuple(map(_once, both, repeated)) if all(repeated) else both


def _once(x: Tensor, repeated: Sequence[int]) -> Tensor:
    """Without what is there again and again: dimensions in front are left out, as broadcasting adds them there."""
    for dim in repeated:
        x = x.narrow(dim, 0, 1)
    leading = next((dim for dim in range(x.dim()) if dim not in repeated), x.dim())
    return x.reshape(x.shape[leading:])


def _of_classes(node: Any, known: Mapping[Edge, Tensor]) -> Term:
    """A cross entropy, by its logits where they can be had: their log-probabilities have the same softmax."""
    options = {**_options(node), **_given(node, "weight")}
    prediction, target = _present(node, "self"), _present(node, "target")
    scores = _log_softmax(node)
    if scores is None:
        return Term(_name(node), nn.NLLLoss, options, prediction, target, node, node)
    log_probabilities = _present(scores, "result")
    logits = log_probabilities
    with contextlib.suppress(RuntimeError, LookupError):
        logits = _value(scores.next_functions[0], known)
    if logits.dim() < prediction.dim():  # [N, C, L], of which torch makes [N, C, 1, L]
        target = target.view(len(target), *logits.shape[2:])
    return Term(_name(node), nn.CrossEntropyLoss, options, logits, target, node, scores)


def _options(node: Any) -> dict[str, Any]:
    return {"reduction": _REDUCTIONS[_number(node, "reduction")], "ignore_index": _number(node, "ignore_index")}


def _log_softmax(node: Any) -> Any:
    """The node of the log-softmax over the classes that a loss of log-probabilities is given, if it is one."""
    before = node.next_functions[0][0]
    if _kind(before) in _VIEWS:
        before = before.next_functions[0][0]
    classes = 0 if _kind(before) == "LogSoftmaxBackward0" and len(shape_of(before)) == 1 else 1
    of_scores = _kind(before) == "LogSoftmaxBackward0" and _is_dimension(before, classes)
    return before if of_scores else None


def _is_dimension(node: Any, dim: int) -> bool:
    return _number(node, "dim") in (dim, dim - len(shape_of(node)))


_VIEWS = frozenset(("ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ReshapeBackward0"))
_COPIES = frozenset(("CloneBackward0", "ToCopyBackward0"))


def _value(edge: Edge, known: Mapping[Edge, Tensor]) -> Tensor:
    """What an operation returned: it may be known, be kept for the way back, or be a view of what is."""
    node, kind = edge[0], _kind(edge[0])
    if edge in known:
        return known[edge]
    if hasattr(node, "variable"):  # a leaf
        leaf: Tensor = node.variable
        return leaf
    if hasattr(node, "_saved_result"):
        return _present(node, "result")
    if kind in _COPIES:
        return _value(node.next_functions[0], known)
    if kind in _VIEWS:
        return _value(node.next_functions[0], known).reshape(shape_of(node))
    return _TURNS[kind](_value(node.next_functions[0], known), node)


def _sliced(x: Tensor, node: Any) -> Tensor:
    where: list[Any] = [slice(None)] * x.dim()
    start, end = _number(node, "start"), _number(node, "end")
    where[_number(node, "dim")] = slice(start, end, _number(node, "step"))
    return x[tuple(where)]


def _permuted(x: Tensor, node: Any) -> Tensor:
    return x.permute([_signed(dim) for dim in node._saved_dims])  # noqa: SLF001 - as all that a node keeps


_TURNS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "PermuteBackward0": _permuted,
    "TransposeBackward0": lambda x, node: x.transpose(_number(node, "dim0"), _number(node, "dim1")),
    "SqueezeBackward1": lambda x, node: x.squeeze(_number(node, "dim")),
    "SliceBackward0": _sliced,
}


# The node of each loss, how its inputs are read, and the name of its function.
_KINDS: dict[str, tuple[_Reader, str]] = {
    "NllLossBackward0": (_of_classes, "cross_entropy"),
    "NllLoss2DBackward0": (_of_classes, "cross_entropy"),
    "BinaryCrossEntropyWithLogitsBackward0": (
        _pair(nn.BCEWithLogitsLoss, "weight", "pos_weight"), "binary_cross_entropy_with_logits",
    ),
    "BinaryCrossEntropyBackward0": (_pair(nn.BCELoss, "weight"), "binary_cross_entropy"),
    "MseLossBackward0": (_pair(nn.MSELoss), "mse_loss"),
    "SmoothL1LossBackward0": (_pair(nn.SmoothL1Loss, beta="beta"), "smooth_l1_loss"),
    "HuberLossBackward0": (_pair(nn.HuberLoss, delta="delta"), "huber_loss"),
    "SoftMarginLossBackward0": (_pair(nn.SoftMarginLoss), "soft_margin_loss"),
    "MultiMarginLossBackward0": (_pair(nn.MultiMarginLoss, "weight", p="p", margin="margin"), "multi_margin_loss"),
}  # fmt: skip


def _name(node: Any) -> str:
    of_classes, name = _KINDS[_kind(node)]
    return "nll_loss" if of_classes is _of_classes and _log_softmax(node) is None else name
