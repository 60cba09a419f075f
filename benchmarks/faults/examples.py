"""The example reports of the documentation and their pictures: ``python -m benchmarks.faults.examples``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from fastmine.health import Monitor

from .runs import CASES

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = {"sick": "all_pairs_proxy", "healthy": "converges_to_zero"}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --force-device-scale-factor=1.25"
)


def main() -> None:
    """Train, write both reports, take their pictures in light and dark."""
    (DOCS / "health").mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for name, case in EXAMPLES.items():
        made: list[Monitor] = []

        def monitored(*arguments: Any, _made: list[Monitor] = made) -> Monitor:
            _made.append(Monitor(*arguments, speak=False))
            return _made[-1]

        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CASES[case].script(0, monitored)
        page = DOCS / "health" / f"example-{name}.html"
        made[0].report(page)
        picture(page, DOCS / "images" / f"health-{name}.png", dark=name == "healthy")


def picture(page: Path, image: Path, *, dark: bool) -> None:
    """The top of a page, as a browser shows it."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no chromium: no pictures")
        return
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium, *FLAGS.split(), f"--user-data-dir={profile}", "--window-size=1180,1440",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--screenshot={image}", page.as_uri(),
        ]  # fmt: skip
        subprocess.run(command, capture_output=True, timeout=120, check=True)


if __name__ == "__main__":
    main()
