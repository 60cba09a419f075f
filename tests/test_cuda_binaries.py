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

from fastmine import _ops
from support import PACKAGE, REPOSITORY, absent, succeeds

LIBRARY = "fastmine_torch_cuda.so"
DTYPES = {"float32": "f", "float64": "d", "bfloat16": "NS0_8BFloat16E", "float16": "NS0_4HalfE"}
SEGMENTATION = {  # by the type of the logits, for the fused loss and for the sums
    "sigmoid_sums": ("SegmentationGroup", "SegmentationGroupSums"),
    "softmax_sums": ("SegmentationGroup", "SegmentationGroupSums"),
    "sigmoid_gradient": ("SegmentationLossBackward", "SegmentationSumsBackward"),
    "softmax_gradient": ("SegmentationLossBackward", "SegmentationSumsBackward"),
}
FEW = ("few_softmax_sums", "few_softmax_gradient")  # by the type of the logits, but float64
ROWS = ("look_at_rows", "centre_rows", "fill_distances", "gather_pairs", "write_gradient")  # by the type of the rows
UNTYPED = ("add_runs", "segmentation_formula", "finish_groups", "find_centreIf", "find_centreId")
ERRORS = ("enter_errors", "sum_targets", "12write_shares")  # of the Lovász extension, by the type of the errors
UNTYPED += ("formula_on_sums", "mark_classes")
# Mining.
ROWS += ("pack_rows", "find_positives", "choose", "mine_few_pairs", "settle_anchors")
ROWS += ("find_norms", "find_edges", "6gather")
UNTYPED += ("sort_tiles", "merge_runs", "match_labels", "clear_nearest", "screen_negatives", "screen_positives")
UNTYPED += ("find_limits", "look_again", "look_at_anchors", "gather_evidence")
UNTYPED += ("screen_by_warpgroups", *(f"screen_tilesI{dtype}Lb{floored}E" for dtype in "fd" for floored in (0, 1)))
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
UNTYPED += tuple(
    f"{kernel}INS_{loss}E"
    for kernel in ("add_terms", "12write_slopes")
    for loss in ("11TripletLoss", "14SelectiveTerms")
)
SOFTMAX = ("add_row_weights", "look_at_logits", "settle_rows", "write_cosine_slopes")  # by the type of the logits
INSTRUCTIONS = {  # by a part of the mangled name: what must be there, and how often
    "12sigmoid_sumsIf": {"LDG.E.128": 16, "MUFU.EX2": 4 * 32},
    "12sigmoid_sumsINS0_8BFloat16E": {"LDG.E.128": 4, "LDG.E.64": 4, "MUFU.EX2": 4 * 32},
    "16sigmoid_gradientIf": {"LDG.E.128": 2, "STG.E.128": 2},
    "12softmax_sumsIf": {"LDG.E.128": 3, "SHFL.BFLY": 6},
    "16few_softmax_sumsIf": {"LDG.E.128": 2 * 4, "STS.128": 4, "LDS.128": 1, "MUFU.EX2": 16},
    "16few_softmax_sumsINS0_8BFloat16E": {"LDG.E.64": 2 * 4, "STS.128": 4, "LDS.128": 1, "MUFU.EX2": 16},
    "20few_softmax_gradientIf": {"LDG.E.128": 2 * 4, "STS.128": 4, "LDS.128": 1, "MUFU.EX2": 16, "STG.E.128": 1},
    "14fill_distancesIfE": {"FFMA": 64 * 8, "LDS.128": 4 * 8, "STG.E.128": 16},
    "14fill_distancesIdE": {"DFMA": 16 * 8, "LDS.128": 4 * 8},
    "12gather_pairsIfE": {"FFMA": 16 * 8, "LDS.128": 2 * 8},
    "screen_negativesINS1_4FullIfLi256EEELb0E": {"FFMA": 64 * 16, "LDS.128": 4 * 16},
    "screen_negativesINS1_4FullIdLi256EEELb0E": {"DFMA": 16 * 16, "LDS.128": 4 * 16},
    "screen_tilesIfLb0E": {"FFMA": 64 * 8, "LDS.128": 4 * 8},
    "screen_tilesIdLb0E": {"DFMA": 16 * 8, "LDS.128": 4 * 8},
    "screen_negativesINS1_7RoundedELb0E": {"HMMA.16816.F32.BF16": 32, "LDSM.16.M88.4": 12},
    "look_againINS1_7RoundedE": {"HMMA.16816.F32.BF16": 32, "LDSM.16.M88.4": 12},
    "9sum_pairsIfE": {"FFMA": 64 * 16, "LDS.128": 4 * 16, "MUFU.EX2": 2},
    "9sum_pairsIdE": {"DFMA": 16 * 16, "LDS.128": 4 * 16},
    "14look_at_logitsIfE": {"LDG.E.128": 16, "MUFU.EX2": 64},
    "19write_cosine_slopesIfE": {"LDG.E.128": 16, "MUFU.EX2": 64, "STG.E.128": 16},
    "19write_cosine_slopesIdE": {"LDG.E.128": 16, "STG.E.128": 16},
    "13gather_slopesIfLb1E": {"FFMA": 64 * 16 + 64 * 8, "LDS.128": 4 * 16 + 4 * 8, "MUFU.EX2": 2},
}
"""Loads and stores of 16 bytes, products out of shared memory in registers, one exponential for each element."""
STRAIGHT = {"12sigmoid_sumsIf": 25, "12sigmoid_sumsINS0_8BFloat16E": 25}
"""By a part of the mangled name: at most so many instructions for each exponential, where 30 and more follow without a
branch."""
HOPPER = "20screen_by_warpgroupsE"
HOPPER_INSTRUCTIONS = {
    "HGMMA.64x128x16.F32.BF16": 2,
    "UBLKCP": 3,
    "SYNCS.PHASECHK": 4,
    "BPT.TRAP": 2,
    "WARPGROUP.ARRIVE": 1,
}
"""Where sm_90a multiplies by warpgroups: products, bulk copies, waits for these, and one fence for each slice: a second
would have been put in by the compiler, between products that should follow each other."""


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
    # What has code of its own for "90a" has none for "90".
    architectures = {architecture.rstrip("a") for architecture, _ in usage}
    assert architectures
    patterns = [
        f"{kernel}I{dtype}NS_{len(variant)}{variant}E"
        for kernel, variants in SEGMENTATION.items()
        for variant in variants
        for dtype in DTYPES.values()
    ]
    patterns += [f"{kernel}I{dtype}E" for kernel in FEW for name, dtype in DTYPES.items() if name != "float64"]
    patterns += [f"{kernel}I{dtype}E" for kernel in ROWS for dtype in DTYPES.values()]
    patterns += [f"{kernel}I{dtype}E" for kernel in (*ERRORS, *SOFTMAX) for dtype in "fd"]
    for architecture in architectures:
        names = [name for found, name in usage if found.rstrip("a") == architecture]
        for pattern in (*patterns, *UNTYPED):
            assert any(pattern in name for name in names), f"{pattern} for {architecture}"


def test_no_kernel_spills(usage: dict[tuple[str, str], dict[str, int]]) -> None:
    for (architecture, name), numbers in usage.items():
        assert numbers["STACK"] == numbers["LOCAL"] == 0, f"{name} for {architecture} keeps registers in memory"
        alone = ("look_again", "sum_pairs", "sum_nce", "gather_slopes", "screen_tilesIfLb1E")  # few blocks at a time
        most = 255 if any(kernel in name for kernel in alone) else 168
        assert numbers["REG"] <= most, f"{name} for {architecture} takes {numbers['REG']} registers"


def disassembled(library: Path, architecture: str, names: list[str]) -> dict[str, str]:
    """The instructions of these kernels for an architecture."""
    command = [tool("cuobjdump"), "--dump-sass", "-arch", architecture, "--function", ",".join(names), library]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(text.split("\n", 1) for text in re.split(r"\n\s*Function : ", printed)[1:])


def test_kernels_use_the_instructions_that_they_are_written_for(
    library: Path, usage: dict[tuple[str, str], dict[str, int]]
) -> None:
    tool("nvdisasm")
    numbers = {int(re.sub(r"\D", "", architecture)) for architecture, _ in usage}
    first = {number // 10: number for number in sorted(numbers, reverse=True)}
    for number in first.values():  # 80, but not 86, which has its instructions
        written_for = {
            (architecture, name): least
            for architecture, name in usage
            for part, least in INSTRUCTIONS.items()
            if architecture in (f"sm_{number}", f"sm_{number}a")
            and part in name and "GroupSums" not in name and "SumsBackward" not in name
        }  # fmt: skip
        assert len(written_for) >= len(INSTRUCTIONS)
        for architecture in {architecture for architecture, _ in written_for}:
            names = [name for found, name in written_for if found == architecture]
            listings = disassembled(library, architecture, names)
            assert listings.keys() == set(names)
            for name in names:
                for instruction, count in written_for[architecture, name].items():
                    # As it is, or with more said after a dot. A regular expression takes a second for each kernel.
                    found = sum(listings[name].count(f" {instruction}{end}") for end in " .")
                    assert found >= count, f"{name} for {architecture} has {found} {instruction}, not {count}"


def test_hard_targets_take_few_instructions(library: Path, usage: dict[tuple[str, str], dict[str, int]]) -> None:
    tool("nvdisasm")
    for architecture in {architecture for architecture, _ in usage}:
        limits = {
            name: most
            for found, name in usage
            for part, most in STRAIGHT.items()
            if found == architecture and part in name and "GroupSums" not in name
        }
        for name, listing in disassembled(library, architecture, list(limits)).items():
            lines = [line for line in listing.splitlines() if re.search(r"/\*[0-9a-f]{4,}\*/ .*;", line)]
            stretches = re.split(r".*\b(?:BRA|BSYNC|BSSY|EXIT|CALL|RET)\b.*", "\n".join(lines))
            rounds = [(text.count("\n"), text.count("MUFU.EX2")) for text in stretches if text.count("MUFU.EX2") >= 30]
            assert len(rounds) >= 3, f"{name} for {architecture} has {len(rounds)} rounds"
            for instructions, elements in rounds:
                most = limits[name] * elements
                assert instructions <= most, f"{name} for {architecture}: {instructions} for {elements} elements"


def test_warpgroups_multiply_on_hopper_and_its_kernel_is_empty_elsewhere(
    library: Path, usage: dict[tuple[str, str], dict[str, int]]
) -> None:
    tool("nvdisasm")
    kernels = {architecture: name for architecture, name in usage if HOPPER in name}
    assert "sm_90a" in kernels
    for architecture, name in kernels.items():
        numbers = usage[architecture, name]
        if architecture != "sm_90a":
            assert numbers["REG"] < 16, f"{architecture} has code that needs sm_90a"
            continue
        assert numbers["REG"] <= 128, "two blocks of 256 threads no longer fit on a multiprocessor"
        listing = disassembled(library, architecture, [name])[name]
        for instruction, least in HOPPER_INSTRUCTIONS.items():
            found = len(re.findall(rf"\b{re.escape(instruction)}", listing))
            assert found >= least, f"{found} {instruction}, not {least}"
        assert len(re.findall("WARPGROUP.ARRIVE", listing)) == 1


def test_the_library_names_every_op(library: Path) -> None:
    """As its bindings register them; that each has one is for test_rooms.py to see."""
    content = library.read_bytes()
    assert not [op for op in _ops.OPS if op.encode() + b"\0" not in content]


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
