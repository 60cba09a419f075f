"""The training systems as a user runs them: they learn, stop, go on to the same bits, and make nothing up."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from fastmine.cli import main
from fastmine.recipes import checkpoint, embeddings, folders, segmentation, training
from fastmine.recipes.errors import CommandError, UsageError
from fastmine.recipes.screen import Screen

SMALL = {
    "embeddings": ["--samples-per-class", "4", "--batch-size", "40"],
    "segmentation": ["--samples", "32", "--batch-size", "8", "--annotated", "0.5"],
}
SYSTEMS = list(SMALL)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than training does here; one test draws them."""
    if "pictures" in request.keywords:
        return
    for system in (embeddings.Embeddings, segmentation.Segmentation):
        monkeypatch.setattr(system, "pictures", lambda *_: [])


def train(name: str, *options: object) -> int:
    return main(["train", name, *SMALL[name], *map(str, options)])


def report(folder: str) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "report.json").read_text()))
