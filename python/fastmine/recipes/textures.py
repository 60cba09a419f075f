"""Pictures with objects of known outline: pieces of a brick wall among other textures and photographs.

The material is real and ships inside scikit-image. A sample is a cut from one picture, on which blobs of
others are laid: the object is whatever is cut from the brick wall, so that neither an edge nor a
brightness gives it away, only the texture. Illumination and noise vary. One sample in seven has no object.

Training and held-out samples come from different regions: the left and the right half of every picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import from_extra

Floats = NDArray[np.float64]
Masks = NDArray[np.bool_]

SIZE = 64  # pixels
OBJECT = "brick"
OTHERS = (
    "astronaut", "camera", "cat", "cell", "clock", "coffee", "coins", "grass", "gravel",
    "immunohistochemistry", "moon", "page", "rocket", "text",
)  # fmt: skip
_LUMINANCE = (0.2125, 0.7154, 0.0721)


class Samples(NamedTuple):
    """Images [N, 1, 64, 64] in uint8 and boolean masks [N, objects, 64, 64], which do not overlap."""

    images: Tensor
    masks: Tensor


def compose(count: int, seed: int, *, held_out: bool, objects: Sequence[str] = (OBJECT,)) -> Samples:
    """``count`` samples; the n-th is a function of the seed, of n and of what are objects, with a mask for each."""
    halves = {name: _half(picture, right=held_out) for name, picture in _pictures().items()}
    sought = [halves[name] for name in objects]
    others = [halves[name] for name in OTHERS if name not in objects]
    samples = [_sample(np.random.default_rng([seed, held_out, number]), sought, others) for number in range(count)]
    images, masks = (np.stack(part) for part in zip(*samples, strict=True))
    return Samples(torch.from_numpy(images[:, None]), torch.from_numpy(masks))


def _pictures() -> dict[str, Floats]:
    """Every picture in shades of grey, 0 to 1."""
    with from_extra("train", "scikit-image"):
        import skimage.data
    found = {name: np.asarray(getattr(skimage.data, name)()) / 255 for name in (OBJECT, *OTHERS)}
    return {name: p @ _LUMINANCE if p.ndim == 3 else p for name, p in found.items()}


def _half(picture: Floats, *, right: bool) -> Floats:
    middle = picture.shape[1] // 2
    return picture[:, middle:] if right else picture[:, :middle]


def _sample(random: np.random.Generator, sought: list[Floats], others: list[Floats]) -> tuple[Any, Masks]:
    image = _cut(random, _any_of(random, others))
    masks = np.zeros((len(sought), SIZE, SIZE), dtype=bool)
    objects = 0 if random.random() < 1 / 7 else random.integers(1, 3)
    layers = random.permutation([True] * objects + [False] * random.integers(0, 2))
    for is_object in layers:
        shape = _blob(random)
        which = random.integers(len(sought)) if is_object else None
        source = _any_of(random, others) if which is None else sought[which]
        image = np.where(shape, _cut(random, source), image)
        masks &= ~shape
        if which is not None:
            masks[which] |= shape
    down, right = (np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - 0.5) * random.normal(0, 0.25, (2, 1, 1))
    image = image * (1 + down + right) + random.normal(0, 0.03, image.shape)
    return np.round(image.clip(0, 1) * 255).astype(np.uint8), masks


def _any_of(random: np.random.Generator, pictures: list[Floats]) -> Floats:
    return pictures[random.integers(len(pictures))]


def _cut(random: np.random.Generator, picture: Floats) -> Floats:
    """A square from anywhere in the picture, two or three times reduced, turned, brighter or darker."""
    reduced = min(int(random.integers(2, 4)), min(picture.shape) // SIZE)
    side = SIZE * reduced
    top, left = (int(random.integers(length - side + 1)) for length in picture.shape)
    square = picture[top : top + side, left : left + side]
    square = square.reshape(SIZE, reduced, SIZE, reduced).mean(axis=(1, 3))
    contrast, brightness = random.uniform(0.8, 1.2), random.normal(0, 0.06)
    turned: Floats = np.rot90(square, int(random.integers(4)))
    return np.asarray((0.5 + (turned - 0.5) * contrast + brightness).clip(0, 1))


def _blob(random: np.random.Generator) -> Masks:
    """A smooth closed shape: a circle whose radius is waved by five harmonics."""
    centre, radius = random.uniform(0.15, 0.85, 2) * SIZE, random.uniform(0.2, 0.4) * SIZE
    waves = np.arange(1, 6)
    amplitude, phase = random.normal(0, 0.25, 5) / waves, random.uniform(0, 2 * np.pi, 5)
    down, right = np.mgrid[:SIZE, :SIZE] - centre[:, None, None]
    angle = np.arctan2(down, right)[..., None]
    waved = 1 + (amplitude * np.cos(waves * angle + phase)).sum(axis=-1)
    return np.asarray(np.hypot(down, right) < radius * waved.clip(0.3, 2))
