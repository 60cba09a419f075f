"""What nvcc made of the CUDA kernels, read from the library: no GPU is needed, and none of this says that they run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from support import PACKAGE, REPOSITORY, absent, succeeds

LIBRARY = "fastmine_torch_cuda.so"
DTYPES = {"float32": "f", "float64": "d", "bfloat16": "NS0_8BFloat16E", "float16": "NS0_4HalfE"}
SEGMENTATION = {  # by the type of the logits, for the fused loss and for the sums
    "sigmoid_sums": ("SegmentationGroup", "SegmentationGroupSums"),
    "softmax_sums": ("SegmentationGroup", "SegmentationGroupSums"),
    "sigmoid_gradient": ("SegmentationLossBackward", "SegmentationSumsBackward"),
    "softmax_gradient": ("SegmentationLossBackward", "SegmentationSumsBackward"),
}
ROWS = ("look_at_rows", "centre_rows", "fill_distances", "gather_pairs", "write_gradient")  # by the type of the rows
UNTYPED = ("add_runs", "segmentation_formula", "finish_groups", "find_centreIf", "find_centreId")
ERRORS = ("enter_errors", "sum_targets", "12write_shares")  # of the Lovász extension, by the type of the errors
UNTYPED += ("formula_on_sums", "mark_classes")
# Mining.
ROWS += ("pack_rows", "find_positives", "choose", "mine_few_pairs", "find_norms", "find_edges", "6gather")
UNTYPED += ("sort_tiles", "merge_runs", "match_labels", "clear_nearest", "screen_negatives", "screen_positives")
UNTYPED += ("find_limits", "look_again", "look_at_anchors", "gather_evidence", "add_terms", "write_slopes")
# Losses over many pairs.
ROWS += ("12write_slopes", "mine_ranks", "sum_triplets", "weigh_triplets", "write_triplets")
UNTYPED += tuple(f"gather_slopesI{dtype}Lb{anchors}E" for dtype in "fd" for anchors in (0, 1))
UNTYPED += ("sum_pairsIf", "sum_pairsId", "sum_nceIf", "collect_sums", "collect_nce", "tell_extra", "order_slopes")
UNTYPED += tuple(f"gather_waveI{dtype}Lb{anchors}E" for dtype in DTYPES.values() for anchors in (0, 1))
UNTYPED += ("9pack_sets", "count_labels", "tell_mined", "count_triplets", "find_spoiled")
UNTYPED += ("8mark_use", "add_anchors", "apply_formula", "weigh_all")
# Formulas on what was compared before.
ROWS += ("measure_rows", "compare_pairs", "look_at_batch")
UNTYPED += ("list_gaps", "add_triplets", "settle_triplets", "clear_classes", "count_batch", "write_batch")
INSTRUCTIONS = {  # by a part of the mangled name: what must be there, and how often
    "12sigmoid_sumsIf": {"LDG.E.128": 2, "MUFU.EX2": 8},
    "16sigmoid_gradientIf": {"LDG.E.128": 2, "STG.E.128": 2},
    "12softmax_sumsIf": {"LDG.E.128": 3, "SHFL.BFLY": 6},
    "14fill_distancesIfE": {"FFMA": 64 * 8, "LDS.128": 4 * 8, "STG.E.128": 16},
    "14fill_distancesIdE": {"DFMA": 16 * 8, "LDS.128": 4 * 8},
    "12gather_pairsIfE": {"FFMA": 16 * 8, "LDS.128": 2 * 8},
    "screen_negativesINS1_4FullIfEELb0E": {"FFMA": 64 * 16, "LDS.128": 4 * 16},
    "screen_negativesINS1_4FullIdEELb0E": {"DFMA": 16 * 16, "LDS.128": 4 * 16},
    "screen_negativesINS1_7RoundedELb0E": {"HMMA.16816.F32.BF16": 32, "LDSM.16.M88.4": 12},
    "look_againINS1_7RoundedE": {"HMMA.16816.F32.BF16": 32, "LDSM.16.M88.4": 12},
    "9sum_pairsIfE": {"FFMA": 64 * 16, "LDS.128": 4 * 16, "MUFU.EX2": 2},
    "9sum_pairsIdE": {"DFMA": 16 * 16, "LDS.128": 4 * 16},
    "13gather_slopesIfLb1E": {"FFMA": 64 * 16 + 64 * 8, "LDS.128": 4 * 16 + 4 * 8, "MUFU.EX2": 2},
}
"""Loads and stores of 16 bytes, products out of shared memory in registers, one exponential for each element."""


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
        absent(f"no {name}: it comes with the CUDA toolkit, or with pip install nvidia-cuda-{name}")
    return found


@pytest.fixture(scope="module")
def library() -> Path:
    folders = [REPOSITORY / "build" / "cuda", *PACKAGE, *sorted((REPOSITORY / "build").glob("*"))]
    built = [path for folder in folders if (path := folder / LIBRARY).exists()]
    if not built:
        absent(f"no {LIBRARY}: make cuda (no GPU needed)")
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
    patterns = [
        f"{kernel}I{dtype}NS_{len(variant)}{variant}E"
        for kernel, variants in SEGMENTATION.items()
        for variant in variants
        for dtype in DTYPES.values()
    ]
    patterns += [f"{kernel}I{dtype}E" for kernel in ROWS for dtype in DTYPES.values()]
    patterns += [f"{kernel}I{dtype}E" for kernel in ERRORS for dtype in "fd"]
    for architecture in architectures:
        names = [name for found, name in usage if found == architecture]
        for pattern in (*patterns, *UNTYPED):
            assert any(pattern in name for name in names), f"{pattern} for {architecture}"


def test_no_kernel_spills(usage: dict[tuple[str, str], dict[str, int]]) -> None:
    for (architecture, name), numbers in usage.items():
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name} for {architecture} keeps registers in memory"
        alone = ("look_again", "sum_pairs", "sum_nce", "gather_slopes")  # two blocks at a time would be too many
        most = 255 if any(kernel in name for kernel in alone) else 168
        assert numbers["REG"] <= most, f"{name} for {architecture} takes {numbers['REG']} registers"


def test_kernels_use_the_instructions_that_they_are_written_for(
    library: Path, usage: dict[tuple[str, str], dict[str, int]]
) -> None:
    tool("nvdisasm")
    generations = {architecture[:-1]: architecture for architecture, _ in sorted(usage, reverse=True)}
    for architecture in generations.values():  # sm_80, but not 86 and 89, which have its instructions
        written_for = {
            name: least
            for compiled_for, name in usage
            for part, least in INSTRUCTIONS.items()
            if compiled_for == architecture and part in name and "GroupSums" not in name and "SumsBackward" not in name
        }
        assert len(written_for) >= len(INSTRUCTIONS)
        only = ["-arch", architecture, "--function", ",".join(written_for)]
        command = [tool("cuobjdump"), "--dump-sass", *only, library]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        listings = dict(text.split("\n", 1) for text in re.split(r"\n\s*Function : ", printed)[1:])
        assert listings.keys() == written_for.keys()
        for name, least in written_for.items():
            for instruction, count in least.items():
                found = len(re.findall(rf"\b{re.escape(instruction)}\b", listings[name]))
                assert found >= count, f"{name} for {architecture} has {found} {instruction}, not {count}"


def test_the_library_brings_the_cuda_runtime_and_needs_torch(library: Path) -> None:
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    assert re.search(r"NEEDED.*libtorch\.so", needed)
    assert not re.search(r"NEEDED.*(cudart|libcuda|libpython)", needed)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_driver_it_registers_nothing_and_says_why(library: Path, tmp_path: Path) -> None:
    """What libtorch_cuda has and a CPU build of torch lacks comes from a stub."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler to build a stub with")
    stub = tmp_path / "stub.so"
    source = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c++", "-", "-o", stub], input=source, text=True, check=True)
    code = """
        import sys
        from fastmine import _ops
        _ops.libraries._folders = [sys.argv[1]]
        _ops.libraries._start_cuda()
        print(_ops.reasons["CUDA"])
        print([op for op in _ops.OPS if _ops.answers(op, "CUDA")])
    """
    done = succeeds(code, str(library.parent), LD_PRELOAD=str(stub))
    assert done.stdout.splitlines() == ["there is no NVIDIA driver", "[]"]
    assert "fastmine runs on its PyTorch reference on CUDA, exact but slow: there is no NVIDIA driver" in done.stderr
