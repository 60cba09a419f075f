"""What nvcc made of the CUDA kernels, read from the library: no GPU is needed, and none of this says that they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import PACKAGE, REPOSITORY

LIBRARY = "fastmine_torch_cuda.so"
LOGITS = {"float32": "IfE", "float64": "IdE", "bfloat16": "BFloat16E", "float16": "4HalfE"}
TYPED = ("sigmoid_sums", "sigmoid_gradient", "softmax_sums", "softmax_gradient")
UNTYPED = ("add_runs", "segmentation_formula")

# Mining.
TYPED += ("look_at_rows", "pack_rows", "find_positives", "choose", "mine_few_pairs")
TYPED += ("find_norms", "find_edges", "6gather")
UNTYPED += (
    "sort_tiles",
    "merge_runs",
    "match_labels",
    "find_centre",
    "clear_nearest",
    "screen_negatives",
    "look_again",
)
UNTYPED += ("screen_positives", "find_limits", "look_at_anchors", "gather_evidence", "add_terms", "write_slopes")
SCREENS = {"FullIfE": "FFMA", "FullIdE": "DFMA", "Rounded": "HMMA.16816.F32.BF16"}


def toolkit() -> Iterator[Path]:
    """Where tools of CUDA may lie: the toolkit, or the packages nvidia-cuda-* of this interpreter."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if name in os.environ:
            yield Path(os.environ[name]) / "bin"
    yield Path("/usr/local/cuda/bin")
    yield from sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin"))


def tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, toolkit())))
    if found is None:
        pytest.skip(f"no {name}: it comes with the CUDA toolkit, or with pip install nvidia-cuda-{name}")
    return found


@pytest.fixture(scope="module")
def library() -> Path:
    folders = [REPOSITORY / "build" / "cuda", *PACKAGE, *sorted((REPOSITORY / "build").glob("*"))]
    built = [path for folder in folders if (path := folder / LIBRARY).exists()]
    if not built:
        pytest.skip(f"no {LIBRARY}: cmake --preset cuda && cmake --build --preset cuda (needs nvcc, no GPU)")
    return built[0]


@pytest.fixture(scope="module")
def usage(library: Path) -> dict[tuple[str, str], dict[str, int]]:
    """Registers, stack and so on by (architecture, mangled name)."""
    command = [tool("cuobjdump"), "--dump-resource-usage", library]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture = function = ""
    for line in printed.splitlines():
        if match := re.match(r"\s*arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\w+):", line):
            function = match[1]
        elif function and (numbers := re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", line)):
            found[architecture, function] = {name: int(number) for name, number in numbers}
            function = ""
    return found


def test_every_kernel_is_there_for_every_architecture(usage: dict[tuple[str, str], dict[str, int]]) -> None:
    architectures = {architecture for architecture, _ in usage}
    assert architectures
    for architecture in architectures:
        names = [name for found, name in usage if found == architecture]
        for kernel in TYPED:
            for dtype, mangled in LOGITS.items():
                assert any(kernel in name and mangled in name for name in names), f"{kernel} {dtype} {architecture}"
        for kernel in UNTYPED:
            assert any(kernel in name for name in names), f"{kernel} {architecture}"


def test_no_kernel_spills(usage: dict[tuple[str, str], dict[str, int]]) -> None:
    for (architecture, name), numbers in usage.items():
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name} for {architecture} keeps registers in memory"
        most = 255 if "look_again" in name else 168  # two blocks at a time would be too many for it
        assert numbers["REG"] <= most, f"{name} for {architecture} takes {numbers['REG']} registers"


@pytest.fixture(scope="module")
def instructions(library: Path) -> dict[tuple[str, str], Counter[str]]:
    """How often each instruction of the kernels that screen occurs, by (architecture, mangled name)."""
    command = [tool("cuobjdump"), "--dump-sass", library]
    found: dict[tuple[str, str], Counter[str]] = {}
    architecture, counts = "", Counter[str]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if match := re.match(r"\s*arch = (\w+)", line):
                architecture = match[1]
            elif match := re.match(r"\s*Function : (\w+)", line):
                counts = Counter()
                if "screen_negatives" in match[1] or "look_again" in match[1]:
                    found[architecture, match[1]] = counts
            elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
                counts[match[1]] += 1
    assert process.returncode == 0
    return found


def test_the_screens_multiply_with_the_intended_unit(instructions: dict[tuple[str, str], Counter[str]]) -> None:
    assert instructions
    for (architecture, name), counts in instructions.items():
        (intended,) = (unit for way, unit in SCREENS.items() if way in name)
        assert counts[intended] >= 64, f"{name} for {architecture} has {counts[intended]} x {intended}"
        for other in SCREENS.values():
            # Bounds and exact comparisons are in float64 everywhere; the screen itself, in one unit.
            assert other in (intended, "DFMA") or counts[other] < 64, (
                f"{name} for {architecture}: {counts[other]} {other}"
            )


def test_the_library_brings_the_cuda_runtime_and_needs_torch(library: Path) -> None:
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert re.search(r"NEEDED.*libtorch\.so", needed)
    assert not re.search(r"NEEDED.*(cudart|libcuda|libpython)", needed)
