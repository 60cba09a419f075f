"""Draws docs/images/array-spectra.png: three classic spectra of recordings whose sources are known."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmine import array
from fastmine.recipes.pictures import Directions, draw_spectra

SENSORS, SNAPSHOTS, NOISE = 8, 100, 0.1  # the last a power; sources have power 1
SCENES = (
    ("two sources, 35° apart", (-20.0, 15.0), 0.0),
    ("8° apart: less than a beam", (-4.0, 4.0), 0.0),
    ("coherent: an echo", (-20.0, 15.0), 1.0),
)


def main() -> None:
    positions = array.uniform_linear(SENSORS, dtype=torch.float64)
    degrees = torch.linspace(-90, 90, 1441, dtype=torch.float64)
    grid = array.steering(positions, torch.deg2rad(degrees))
    torch.manual_seed(0)
    examples = []
    for caption, places, correlation in SCENES:
        true = torch.tensor(places, dtype=torch.float64)
        common, own = (torch.randn(n, SNAPSHOTS, dtype=torch.complex128) for n in (1, 2))
        waves = correlation**0.5 * common + (1 - correlation) ** 0.5 * own
        noise = NOISE**0.5 * torch.randn(SENSORS, SNAPSHOTS, dtype=torch.complex128)
        R = array.sample_covariance(array.steering(positions, torch.deg2rad(true)) @ waves + noise)
        spectra = {
            "Bartlett": array.bartlett(R, grid),
            "MVDR": array.mvdr(R, grid),
            "MUSIC": array.music(R, grid, torch.tensor(len(places))),
        }
        decibels = {name: 10 * (power / power.max()).log10() for name, power in spectra.items()}
        examples.append(Directions(decibels, true, torch.empty(0), caption))
    title = f"{SENSORS} sensors half a wavelength apart, sources 10 dB over the noise, {SNAPSHOTS} snapshots"
    draw_spectra(Path(__file__).parent / "images" / "array-spectra.png", title, degrees, examples)


if __name__ == "__main__":
    main()
