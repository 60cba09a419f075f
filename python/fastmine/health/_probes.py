"""Questions to a loss: what is it for an answer that needs no model, and for pairs that could not be nearer?"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Again: TypeAlias = Callable[[Mapping[Tensor, Tensor]], Any]
"""Calls the loss once more, with other tensors in the place of some of its inputs."""

TRIVIAL = ("at_truth", "at_nothing", "at_everything")
FIRM = 15.0  # a logit whose probability is below 1 in float32 too: a logarithm of what is left is finite
ROWS = 4  # of a square of scores: fewer are alike by chance
PAIRED = 128  # rows that are compared with each other at most


def as_predicted(x: Tensor, share: Tensor, again: Again, *, logits: bool = False) -> Tensor:
    """The loss where these are the probabilities: as they are where predictions are such, else as logits of +-15."""
    firm = FIRM * (2 * share - 1)
    inside = ((x >= 0) & (x <= 1)).all()  # probabilities, as far as can be seen
    return _value(again({x: firm if logits else torch.where(inside, share, firm)}))


def trivial_answers(x: Tensor, target: Tensor, again: Again, *, logits: bool = False) -> list[Tensor]:
    """The loss of the mask itself; and where nothing is object, or all is, of masks of 0 and 1 that hold both."""
    truth = target.to(x.dtype).view_as(x)
    both = ((truth == 0) | (truth == 1)).all() & (truth.amin() != truth.amax())
    values = [
        as_predicted(x, share, again, logits=logits) for share in (truth, torch.zeros_like(x), torch.ones_like(x))
    ]
    return [values[0], *(torch.where(both, value, torch.nan) for value in values[1:])]


def positive_first(loss: Any) -> bool | None:
    """Of a loss of three: whether positives come before negatives, by the names of its arguments; None if unknown."""
    call = loss.forward if isinstance(loss, nn.Module) else loss
    try:
        names = [name.lower()[:1] for name in inspect.signature(call).parameters]
    except (TypeError, ValueError):
        return None
    return {"pn": True, "np": False}.get("".join(names[1:3])) if len(names) > 2 else None


def at_equal(sides: Sequence[Tensor], first: bool | None, again: Again) -> list[Tensor]:
    """The loss where the anchor is its own positive, where it is its own negative, and where both are one stranger; or
    of two sides, where the second is the first, and where it is that of other rows."""
    anchor = sides[0].detach().clone()
    stranger = anchor.roll(1, 0)
    if len(sides) == 2:
        pairs = [{sides[0]: anchor, sides[1]: other} for other in (anchor.clone(), stranger)]
    elif len(sides) == 3 and first is not None:
        near, far = sides[1:] if first else reversed(sides[1:])
        ways = (anchor.clone(), stranger), (stranger, anchor.clone()), (stranger, stranger.clone())
        pairs = [{sides[0]: anchor, near: p, far: n} for p, n in ways]
    else:
        pairs = []
    found = [_value(again(pair)) for pair in pairs]
    return found + [torch.full((), torch.nan, dtype=torch.float64, device=anchor.device)] * (3 - len(found))


def own_views(x: Tensor, target: Tensor | None) -> Tensor:
    """Whether scores [N, N] with the targets 0 .. N - 1 are those of every row against itself.

    Then they are the same when transposed; and no product exceeds those of its two rows with themselves, or these are
    all the same and the largest of their rows, as of distances. Of two views neither holds. NaN of what is no square.
    """
    nothing = torch.full((), torch.nan, dtype=torch.float64, device=x.device)
    if target is None or x.dim() != 2 or x.shape[0] != x.shape[1] or len(x) < ROWS:
        return nothing
    if target.shape != x.shape[:1] or target.is_floating_point() or target.is_complex():
        return nothing
    rounding = max(1e-5, 8 * torch.finfo(x.dtype).eps)
    x = x.double()
    low, high = x.aminmax()
    slack, own = (high - low) * rounding, x.diagonal()
    same = ((x - x.mT).abs().amax() <= slack) & (slack > rounding**2 * x.abs().amax())  # and not all of one point
    near = 100 * slack  # distances to oneself that are computed from products are not 0
    level = (own.amax() - own.amin() <= near) & (own >= x.amax(dim=1) - near).all()
    product = (own >= 0).all() & (x.square() <= (1 + 4 * rounding) * own * own[:, None]).all()
    placed = (target.to(x.device) == torch.arange(len(x), device=x.device)).all()
    return (same & (level | product) & placed).double()


@torch.no_grad()
def labels_apart(z: Tensor, labels: Tensor, refs: Mapping[str, Tensor] | None = None) -> Tensor:
    """1 - (mean squared distance of the pairs of one class) / (that of all pairs); NaN where there is no pair.

    Were labels given to rows by lot, it would be 0 on average, wherever the rows are and whatever the loss mines.
    """
    x, own = z[:PAIRED].double(), labels[:PAIRED].to(z.device)
    refs = {"ref_embeddings": x, "ref_labels": own} if refs is None else {n: _thinned(y) for n, y in refs.items()}
    y, theirs = refs["ref_embeddings"].double(), refs["ref_labels"]
    centre = x.nan_to_num().mean(dim=0)  # so that products tell even rows apart that are nearly one point
    x, y = x - centre, y - centre
    squared = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1) - 2 * x @ y.mT
    pairs = squared.isfinite() & refs.get("ref_valid", torch.ones_like(theirs, dtype=torch.bool))
    if theirs is own:
        pairs &= ~torch.eye(len(own), dtype=torch.bool, device=z.device)
    same = pairs & (own[:, None] == theirs)
    of_class, of_all = (squared.where(chosen, 0.0).sum() / chosen.sum() for chosen in (same, pairs))
    return torch.where(of_all > 0, 1 - of_class / of_all, torch.nan)


def by_appearance(labels: Tensor) -> Tensor:
    """How many classes there are, where they are numbered 0, 1, 2 ... in the order in which rows bring them; else 0."""
    numbers = labels.long()
    largest = numbers.cummax(0).values
    before = torch.cat([torch.full_like(largest[:1], -1), largest[:-1]])
    return torch.where((numbers >= 0).all() & (numbers <= before + 1).all(), largest[-1] + 1, 0)


def below_zero(labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """The least and the largest of the negative labels that take part; infinite where there is none."""
    chosen = labels < 0 if valid is None else (labels < 0) & valid.to(labels.device, torch.bool)
    x = labels.double()
    return torch.stack([x.where(chosen, torch.inf).amin(), x.where(chosen, -torch.inf).amax()])


def _thinned(x: Tensor) -> Tensor:
    """At most eight times as many references as rows, from all over the memory."""
    return x[:: max(1, -(-len(x) // (8 * PAIRED)))]


def _value(output: Any) -> Tensor:
    return torch.as_tensor(output).detach().double().mean()
