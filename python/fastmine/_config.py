"""Who answers: versions, instruction set, and for each op and device the kernel or the reference."""

from __future__ import annotations

import platform
import sys
from importlib import import_module
from typing import Any, TextIO

import numpy as np
import torch

from . import _ops
from ._version import __version__

DEVICES = ("CPU", "CUDA")


def config() -> dict[str, Any]:
    """What :func:`show_config` prints, as data."""
    return {
        "versions": {
            "fastmine": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "cpu": _cpu(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "ops": {op: {device: _answer(op, device) for device in DEVICES} for op in sorted(_ops.OPS)},
        "reasons": {device: _reason(device) for device in DEVICES},
    }


def show_config(file: TextIO | None = None) -> None:
    """Print versions, the instruction set, the devices, and who answers each op: a native kernel or the reference.

    ``FASTMINE_CUDA_WGMMA=1`` in the environment has large mining calls on a device of compute capability 9.0 multiply
    by warpgroups, which has not yet run on a GPU. It changes no answer, and nothing of what is printed here.
    """
    found = config()
    out = sys.stdout if file is None else file
    print("  ".join(f"{name} {number}" for name, number in found["versions"].items()), file=out)
    print(f"CPU   {found['cpu']}", file=out)
    print(f"CUDA  {found['cuda'] or 'no device'}", file=out)
    width = max(map(len, _ops.OPS))
    print(f"\n{'op':<{width}}  {'CPU':<10} CUDA", file=out)
    for op, answer in found["ops"].items():
        print(f"{op:<{width}}  {answer['CPU']:<10} {answer['CUDA']}", file=out)
    for device, reason in found["reasons"].items():
        if reason:
            print(f"\nreference on {device}: {reason}", file=out)


def _cpu() -> str:
    try:
        native = import_module("fastmine._native")
    except ImportError as error:
        return f"no native module ({error})"
    available = ", ".join(native.available_isas())
    return f"{native.isa()} kernels (this machine can run {available}), {torch.get_num_threads()} threads"


def _answer(op: str, device: str) -> str:
    return "native" if _ops.answers(op, device) else "reference"


def _reason(device: str) -> str | None:
    return _ops.reasons[device]
