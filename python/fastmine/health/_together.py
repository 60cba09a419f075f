"""How predictions go with their targets: row by row, place by place, and with targets that are turned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def together(x: Tensor, target: Tensor, *, logits: bool) -> list[Tensor]:
    """How predictions go with the targets of their own row, and not with those of all rows: correlation and slope.

    What every row has in common, such as where objects mostly are, is taken off: the mean of the batch in each place.
    """
    x, t = _places(x).double(), _places(target).double()
    a, b, p = (y - y.mean(dim=0) for y in (x, t, x.sigmoid() if logits else x))
    return _relation((a * b).sum(), a.square().sum(), b.square().sum(), (p * b).sum())


SYMMETRIES: dict[str, Callable[[Tensor], Tensor]] = {
    "as_it_is": lambda t: t,
    "rows_reversed": lambda t: t.flip(-2),
    "columns_reversed": lambda t: t.flip(-1),
    "both_reversed": lambda t: t.flip(-2, -1),
    "rows_and_columns_exchanged": lambda t: t.mT,
    "exchanged_and_reversed": lambda t: t.mT.flip(-2, -1),
    "turned_left": lambda t: t.rot90(1, (-2, -1)),
    "turned_right": lambda t: t.rot90(-1, (-2, -1)),
}
"""What may be done to a mask and not to its image. The last four are of squares."""


def symmetries(x: Tensor, target: Tensor) -> Tensor:
    """How predictions of places go with the targets of their own image, mirrored and turned: correlations.

    What images have in common in a place, and what an image has in all places, is taken off both.
    """
    if x.dim() < 3:
        return torch.full((len(SYMMETRIES),), torch.nan, dtype=torch.float64, device=x.device)
    a, b = _apart(x), _apart(target)
    size = (a.square().sum() * b.square().sum()).sqrt()
    nothing = torch.full_like(size, torch.nan)
    turned = [change(b) for change in SYMMETRIES.values()]
    return torch.stack([(a * t).sum() / size if t.shape == a.shape else nothing for t in turned])


@torch.no_grad()
def of_pixels(logits: Tensor, target: Tensor, ignored: int | None) -> Tensor:
    """The same of maps of classes, [B, C, H, W] and [B, H, W]; and how probabilities go with them altogether."""
    x, t = (_thinned(y.detach()) for y in (logits, target.view(len(target), *logits.shape[2:])))
    used = (t >= 0) & (t < x.shape[1]) & (t != (-1 if ignored is None else ignored))
    p = x.double().softmax(dim=1) * used[:, None]
    one = torch.zeros_like(p).scatter_(1, t.long().where(used, 0)[:, None], used[:, None].double())
    return torch.cat([torch.stack(together(p, one, logits=False)), symmetries(p, one)])


def _thinned(x: Tensor) -> Tensor:
    """Up to 32 rows and columns, where both are alike."""
    stride = 1 + (min(x.shape[-2:]) - 1) // 32
    return x[..., stride // 2 :: stride, stride // 2 :: stride]


def _apart(x: Tensor) -> Tensor:
    """Some places, without the mean of the batch in each, and then without that of each image."""
    x = _thinned(x).double()
    x = x - x.mean(dim=0)
    return x - x.mean(dim=(-2, -1), keepdim=True)


def _relation(product: Tensor, size: Tensor, of_targets: Tensor, followed: Tensor) -> list[Tensor]:
    """Correlation and slope; 0 of predictions that are all the same, and NaN of targets that are."""
    apart = torch.where(of_targets > 0, of_targets, torch.nan)
    return [torch.where(size > 0, product / (size * apart).sqrt(), 0 * apart), followed / apart]


def _places(x: Tensor) -> Tensor:
    """At most 4,096 places of a row, of masks and the like."""
    flat = x.flatten(1) if x.dim() > 1 else x[:, None]
    return flat[:, :: max(1, -(-flat.shape[1] // 4096))]


def of_indices(x: Tensor, target: Tensor, *, logits: bool) -> list[Tensor]:
    """The same of scores and of what is 1 for the class and 0 for the others, without making the latter."""
    t = target.long()
    used = (t >= 0) & (t < x.shape[1])
    place, weight = t.where(used, 0)[:, None], used.double()
    n = weight.sum()
    centred, probable = (
        (y - (y * weight[:, None]).sum(dim=0) / n) * weight[:, None]
        for y in (x.double(), x.double().softmax(dim=1) if logits else x.double())
    )
    counts = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, place[:, 0], weight)
    spread = n - counts.square().sum() / n
    product, followed = (y.gather(1, place).sum() for y in (centred, probable))
    return _relation(product, centred.square().sum(), spread, followed)
