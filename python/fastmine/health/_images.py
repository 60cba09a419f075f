"""Masks against the images that the model was given: are they where the image shows them?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ._together import SYMMETRIES

PLACED_FIELDS = ("own_fit", "other_fit", "in_place", "fits", "gain_squared")
"""How well masks fit their images, wherever that is best; how well those of other images do; and how well they fit
where they are, 0 of anywhere and 1 of where that is best. Of how many; and the mean square of the difference of the
first two."""
IMAGES = 8  # of a batch
SIDE = 32  # of what is compared: larger images are averaged,
DENSE = 4  # over so many lines each way, or all there are


@torch.no_grad()
def placed(image: Tensor, mask: Tensor) -> Tensor | None:
    """One row, of PLACED_FIELDS; None of tensors that are no images [B, C, H, W] with their masks [B, 1, H, W].

    A fit is the size of a correlation: an object may be darker than what is around it.
    """
    if image.dim() != 4 or mask.dim() != 4 or mask.shape[1] != 1 or len(image) < 2:
        return None
    if image.shape[0] != mask.shape[0] or image.shape[2:] != mask.shape[2:]:
        return None
    x, t = (_of_size_one(_some(y.detach()).to(image.device).double().mean(dim=1)) for y in (image, mask))
    own, other = _fits(x, t), _fits(x, t.roll(1, 0))
    known = (t.flatten(1).any(dim=1) & x.flatten(1).any(dim=1)).double()
    known = known * known.roll(1, 0)
    best, of_others = own.amax(dim=1), other.amax(dim=1)
    anywhere, here = own.mean(dim=1), own[:, 0]
    above = ((here - anywhere) * known).sum() / ((best - anywhere) * known).sum()
    n = known.sum()
    means = [(x * known).sum() / n for x in (best, of_others, (best - of_others).square())]
    return torch.stack([*means[:2], above, n, means[2]])


def _some(x: Tensor) -> Tensor:
    """Some images, and of large ones some lines: all of them would be as slow as the loss."""
    stride = max(1, min(x.shape[-2:]) // (SIDE * DENSE))
    return x[:IMAGES, :, ::stride, ::stride]


def _of_size_one(x: Tensor) -> Tensor:
    """Centred, and of norm 1; 0 of what is the same everywhere."""
    size = min(x.shape[-2], SIDE), min(x.shape[-1], SIDE)
    x = F.adaptive_avg_pool2d(x[:, None], size)[:, 0]
    x = x - x.mean(dim=(-2, -1), keepdim=True)
    return F.normalize(x.flatten(1), dim=1).view_as(x)


def _fits(x: Tensor, t: Tensor) -> Tensor:
    """Sizes of the correlations of images and masks, these mirrored, turned and moved in every way, in a row; first of
    all as they are."""
    spectrum = torch.fft.rfft2(x)
    turned = [change(t) for change in SYMMETRIES.values()]
    moved = [
        torch.fft.irfft2(spectrum * torch.fft.rfft2(y).conj(), s=x.shape[-2:]) for y in turned if y.shape == x.shape
    ]
    return torch.cat([y.flatten(1) for y in moved], dim=1).abs()
