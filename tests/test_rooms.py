"""The walls between the rooms, the nouns that go through all of them, and the public names."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest

import fastmine
from fastmine import _ops, array, functional, losses, reference
from fastmine.reference.batch_hard import MINING_FIELDS
from fastmine.reference.mined_pairs import MINED_FIELDS
from fastmine.reference.pair_sums import PAIR_FIELDS
from fastmine.reference.proxies import PROXY_FIELDS
from fastmine.reference.segmentation_loss import SEGMENTATION_FIELDS
from fastmine.reference.triplet_loss import TRIPLET_FIELDS
from fastmine.reference.triplet_terms import TERM_FIELDS
from support import REPOSITORY

PYTHON = REPOSITORY / "python" / "fastmine"
CSRC = REPOSITORY / "csrc"

# Which modules of the package each room may import, and which packages from outside beside the standard library.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "reference": ({"reference"}, {"torch"}),
    "_ops": ({"", "_ops", "reference"}, {"torch"}),
    "_check.py": (set(), {"torch"}),
    "_evidence.py": ({"reference"}, {"torch"}),
    "functional": ({"functional", "_ops", "_check", "_evidence", "reference"}, {"torch"}),
    "array": ({"array", "_check", "_evidence"}, {"torch"}),
    "losses": ({"losses", "functional", "array", "_check", "_evidence"}, {"torch"}),
    "numpy.py": ({"_native", "functional", "reference"}, {"numpy"}),
    "health": ({"", "health", "_evidence", "_version", "losses", "functional", "reference"}, {"torch", "numpy"}),
    "data": ({"data"}, {"torch", "numpy"}),
    "distributed": ({"distributed", "losses", "functional", "_ops", "_check", "_evidence", "reference"}, {"torch"}),
}
PROGRAMS = ("recipes", "bench", "cli.py", "compat")


def modules_of(room: str) -> list[Path]:
    path = PYTHON / room
    return sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []


def imports(path: Path) -> list[tuple[str, str]]:
    """(kind, name) of every import: kind is "package" for modules of fastmine, else "outside"."""
    package = ["fastmine", *path.relative_to(PYTHON).parent.parts]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "fastmine":
                # A dunder, such as __version__, belongs to the package itself.
                found.append(("package", "" if not rest or rest[0].startswith("__") else rest[0]))
            elif first not in sys.stdlib_module_names:
                found.append(("outside", first))
    return found


@pytest.mark.parametrize("room", [room for room in MAY_IMPORT if modules_of(room)])
def test_python_imports_stay_within_the_walls(room: str) -> None:
    inside, outside = MAY_IMPORT[room]
    for path in modules_of(room):
        for kind, name in imports(path):
            allowed = inside if kind == "package" else outside
            assert name in allowed, f"{path.name} imports {name or 'fastmine'}; {room} may use {sorted(allowed)}"


def test_programs_use_the_public_api_only() -> None:
    for path in (path for room in PROGRAMS for path in modules_of(room)):
        private = [name for kind, name in imports(path) if kind == "package" and name.startswith("_")]
        assert not private, f"{path.name} imports {private}"


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def sources(room: str) -> list[Path]:
    return [path for path in (CSRC / room).rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh", ".inc"}]


FORBIDDEN_INCLUDES = {
    "kernels": r"torch/|ATen/|c10/|Python\.h|pybind11/|thread|future|mutex|atomic|iostream|cstdio|fstream",
    "threads": r"torch/|ATen/|c10/|Python\.h|pybind11/",
    "torch": r"Python\.h|pybind11/|ATen/|c10/|torch/extension|torch/torch\.h|torch/csrc/(?!stable/|inductor/)",
    "pybind": r"torch/|ATen/|c10/",
}
FORBIDDEN_WORDS = {
    # Arithmetic only: no allocation, no exceptions, no environment, no printing.
    "kernels": r"\b(malloc|calloc|realloc|new|throw|try|getenv|printf|std::vector|std::string|std::cout|std::thread)\b",
}


@pytest.mark.parametrize("room", [room for room in FORBIDDEN_INCLUDES if (CSRC / room).is_dir()])
def test_cpp_includes_stay_within_the_walls(room: str) -> None:
    assert sources(room)
    for path in sources(room):
        crossing = [name for name in includes(path) if re.match(FORBIDDEN_INCLUDES[room], name)]
        assert not crossing, f"{path.relative_to(REPOSITORY)} includes {crossing}"


def test_kernels_do_arithmetic_and_nothing_else() -> None:
    for path in sources("kernels"):
        code = re.sub(r"//[^\n]*|/\*.*?\*/|\"[^\"\n]*\"", "", path.read_text(), flags=re.DOTALL)
        found = re.findall(FORBIDDEN_WORDS["kernels"], code)
        assert not found, f"{path.relative_to(REPOSITORY)} uses {sorted(set(found))}"


def build_folder() -> Path | None:
    named = os.environ.get("FASTMINE_BUILD_DIR")
    candidates = [Path(named)] if named else sorted((REPOSITORY / "build").glob("*"))
    return next((path for path in candidates if list(path.rglob("*fastmine_kernels*/**/*.o"))), None)


def test_kernel_objects_name_no_torch_and_no_python_symbol() -> None:
    folder = build_folder()
    if folder is None:
        pytest.skip("no build folder with kernel objects (FASTMINE_BUILD_DIR names one)")
    for path in folder.rglob("*fastmine_kernels*/**/*.o"):
        symbols = subprocess.run(["nm", "-C", "--undefined-only", path], capture_output=True, text=True, check=True)
        crossing = re.findall(r"\b(?:aoti_\w+|torch::\S+|at::\S+|c10::\S+|Py[A-Z_]\w+|_Py\w+)", symbols.stdout)
        assert not crossing, f"{path.name} needs {crossing[:5]}"


def undefined_symbols(library: Path) -> str:
    return subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout


def needed(library: Path) -> str:
    return subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("native_ops")
def test_the_torch_library_needs_torch_and_no_python() -> None:
    (library,) = [path for folder in fastmine.__path__ for path in Path(folder).glob("fastmine_torch_cpu.so")]
    assert re.search(r"NEEDED.*libtorch\.so", needed(library))
    assert "libpython" not in needed(library)
    assert not re.findall(r"\b_?Py[A-Z_]\w+", undefined_symbols(library))


def test_the_numpy_module_needs_no_torch(native_module: ModuleType) -> None:
    assert native_module.__file__
    assert "libtorch" not in needed(Path(native_module.__file__))
    assert not re.findall(r"\b(?:aoti_\w+|torch::|at::|c10::)", undefined_symbols(Path(native_module.__file__)))


@pytest.mark.parametrize("name", reference.__all__)
def test_one_noun_in_every_room(name: str) -> None:
    assert name in _ops.OPS
    assert name in functional.__all__
    assert callable(getattr(reference, name))
    assert callable(getattr(_ops, name))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_op_has_a_kernel_on_every_device(device: str) -> None:
    """Without one the reference answers, right and slowly, and nothing else would tell."""
    bindings = "".join(path.read_text() for path in sources(f"torch/{device}"))
    assert sorted(re.findall(r'm\.impl\("(\w+)"', bindings)) == sorted(_ops.OPS)


FUNCTIONS = (
    "pairwise_distance", "batch_hard", "triplet_loss", "segmentation_loss", "dice_loss", "focal_loss", "bce_loss",
    "iou_loss", "tversky_loss", "mined_pairs", "mined_triplet_loss", "pair_sums", "supcon_loss", "ntxent_loss",
    "multi_similarity_loss", "circle_loss", "contrastive_loss", "arcface_loss", "cosface_loss", "proxy_anchor_loss",
    "selectively_contrastive_loss", "retrieval",
)  # fmt: skip
LOSSES = (
    "TripletLoss", "MinedTripletLoss", "SelectivelyContrastiveLoss", "DiceLoss", "FocalLoss", "BCELoss", "IoULoss",
    "TverskyLoss", "CombinedSegmentationLoss", "CompositeLoss", "SupConLoss", "NTXentLoss", "MultiSimilarityLoss",
    "CircleLoss", "ContrastiveLoss",
    "HybridCovarianceLoss", "ArcFaceLoss", "CosFaceLoss", "ProxyAnchorLoss", "CrossBatchMemory", "get_loss_function",
)  # fmt: skip


def test_public_functions_exist() -> None:
    assert set(FUNCTIONS) <= set(functional.__all__)
    assert {"batch_hard", "pairwise_distance", "segmentation_loss", "triplet_loss"} <= set(reference.__all__)


def test_public_losses_exist() -> None:
    assert set(LOSSES) <= set(losses.__all__)


@pytest.mark.parametrize("module", [fastmine, array, functional, losses, reference])
def test_every_public_name_is_there_and_described(module: ModuleType) -> None:
    for name in module.__all__:
        found = getattr(module, name)
        # The types of options have no docstring.
        described = name.startswith("__") or get_origin(found) is not None or found.__doc__
        assert described, f"{module.__name__}.{name} has no docstring"


FIELDS = {
    "Mining": MINING_FIELDS, "Segmentation": SEGMENTATION_FIELDS, "PairExtra": PAIR_FIELDS[len(MINING_FIELDS) :],
    "MinedExtra": MINED_FIELDS[len(MINING_FIELDS) :],
}  # fmt: skip
ENUMERATED = {"TripletTerm": TERM_FIELDS, "Proxy": PROXY_FIELDS}


def test_evidence_fits_and_names_each_place_once() -> None:
    assert TRIPLET_FIELDS[: len(MINING_FIELDS)] == MINING_FIELDS
    assert PAIR_FIELDS[: len(MINING_FIELDS)] == MINING_FIELDS
    for fields in (*FIELDS.values(), TRIPLET_FIELDS, PAIR_FIELDS, PROXY_FIELDS, (*MINED_FIELDS, *TERM_FIELDS)):
        assert len(set(fields)) == len(fields) <= 32


@pytest.mark.parametrize("name", FIELDS)
def test_evidence_has_the_same_order_in_both_languages(name: str) -> None:
    headers = "".join(path.read_text() for path in sorted((CSRC / "kernels").glob("*.h")))
    (listed,) = re.findall(rf"k{name}Fields\[\] = \{{([^}}]*)\}}", headers)
    assert tuple(re.findall(r'"(\w+)"', listed)) == FIELDS[name]


@pytest.mark.parametrize("name", ENUMERATED)
def test_evidence_is_enumerated_in_the_same_order(name: str) -> None:
    headers = "".join(path.read_text() for path in sorted((CSRC / "kernels").glob("*.h")))
    (listed,) = re.findall(rf"enum class {name} : int {{([^}}]*)}};", headers)
    assert (*re.findall(r"^\s*(\w+),", listed, flags=re.MULTILINE),) == (*ENUMERATED[name], "count")


def test_evidence_has_the_same_order_in_the_built_module(native_module: ModuleType) -> None:
    assert tuple(native_module.MINING_FIELDS) == MINING_FIELDS
    assert tuple(native_module.SEGMENTATION_FIELDS) == SEGMENTATION_FIELDS


def test_no_test_or_source_names_a_machine() -> None:
    """No home folder, no path of the machine it was written on."""
    pattern = re.compile(r"/(?:home|root|Users|work|tmp)/\w")
    for folder in (PYTHON, CSRC, REPOSITORY / "tests"):
        for path in folder.rglob("*"):
            if path.suffix in {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh"}:
                found = pattern.findall(path.read_text())
                assert not found, f"{path.relative_to(REPOSITORY)}: {found}"
