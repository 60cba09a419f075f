"""Finding and loading the native libraries, and saying why where that was not possible."""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from importlib import import_module
from pathlib import Path
from typing import cast

import torch

from .. import __path__ as _folders

CPU_LIBRARY = "fastmine_torch_cpu.so"
CUDA_LIBRARY = "fastmine_torch_cuda.so"

SWITCH = "FASTMINE_NATIVE"
"""Set this environment variable to 0 to run on the reference alone."""

reasons: dict[str, str | None] = {"CPU": "not loaded yet", "CUDA": "this torch is built without CUDA"}
"""Why there are no native ops on a device; None where there are."""


def load() -> None:
    """Load what is there for the ops that are defined, and see to CUDA when it is first used."""
    reasons["CPU"] = _load(CPU_LIBRARY)
    _warn("CPU")
    if torch.version.cuda is not None:
        reasons["CUDA"] = "CUDA has not been used yet"
        torch.cuda._lazy_call(_start_cuda)  # type: ignore[no-untyped-call]


def answers(op: str, device: str) -> bool:
    """Whether a kernel (and not the reference) answers this op on this device ("CPU", "CUDA")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastmine::{op}", device)


def _start_cuda() -> None:
    """Called when CUDA is first used: before that, asking a device would start CUDA for a process that forks later."""
    reasons["CUDA"] = _load_cuda()
    _warn("CUDA")


def _find(library: str) -> str | None:
    """Where a native library is. An editable install spreads the package over two folders: sources and libraries."""
    return next((str(path) for folder in _folders if (path := Path(folder) / library).exists()), None)


def _load(library: str) -> str | None:
    """Load a native library; the reason where that was not possible."""
    if os.environ.get(SWITCH, "1") == "0":
        return f"switched off by {SWITCH}=0"
    with contextlib.suppress(ImportError):
        # Imported first: in an editable install that is what brings the libraries up to date.
        import_module("fastmine._native").isa()
    path = _find(library)
    if path is None:
        return f"{library} is not installed"
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        return f"{library} does not load: {error.__cause__ or error}"
    return None


def _load_cuda() -> str | None:
    """The same for CUDA. The library registers nothing where the driver is too old or a device has no code in it."""
    if reason := _load(CUDA_LIBRARY):
        return reason
    unserved = ctypes.CDLL(_find(CUDA_LIBRARY)).fastmine_cuda_unserved
    unserved.restype = ctypes.c_char_p
    return cast(bytes, unserved()).decode() or None


_ADVICE = {
    "CPU": f"Install a build with the native library, or set {SWITCH}=0 to say that this is meant",
    "CUDA": "fastmine.show_config() tells who answers each op",
}


def _warn(device: str) -> None:
    """Say once that the reference answers on a device, unless that is what was asked for."""
    if reasons[device] and os.environ.get(SWITCH) != "0":
        where = "" if device == "CPU" else f" on {device}"
        warnings.warn(
            f"fastmine runs on its PyTorch reference{where}, exact but slow: {reasons[device]}. {_ADVICE[device]}",
            RuntimeWarning,
            stacklevel=2,
        )
