"""Without the native libraries the package works on the reference, and says so once; with them every op is native."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fastmine
import fastmine.numpy
from fastmine import _ops
from fastmine._ops import libraries
from support import PACKAGE, TESTS, environment, succeeds

LIBRARY = "fastmine_torch_cpu.so"

USE = """
    import sys
    if sys.argv[1:]:  # the copy in that folder; an editable install would answer before sys.path does
        sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
        sys.path[:0] = sys.argv[1:]

    import torch
    import fastmine
    from fastmine import losses

    embeddings = torch.tensor([[0.0], [1.0], [3.0], [7.0]], requires_grad=True)
    for _ in range(2):
        loss = losses.TripletLoss(margin=1.5)(embeddings, torch.tensor([0, 0, 1, 1]))
        loss.backward()
    assert loss.item() == 1.0 and embeddings.grad.any()
    assert losses.DiceLoss()(torch.zeros(1, 4), torch.tensor([[1, 1, 0, 0]])).item() == 0.5
    fastmine.show_config()
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of the package without any native library."""
    for folder in PACKAGE:
        shutil.copytree(
            folder, tmp_path / "fastmine", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    return tmp_path


def warnings_in(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "Warning: " in line]


def test_switched_off_it_works_without_a_word() -> None:
    done = succeeds(USE, FASTMINE_NATIVE="0")
    assert warnings_in(done.stderr) == []
    assert "reference on CPU: switched off by FASTMINE_NATIVE=0" in done.stdout
    assert "native" not in done.stdout.split("reference on CPU")[0].split("op  ")[1]


def test_without_the_libraries_it_works_and_says_so_once(bare: Path) -> None:
    done = succeeds(USE, str(bare))
    (warning,) = warnings_in(done.stderr)
    assert LIBRARY in warning
    assert "FASTMINE_NATIVE=0" in warning
    assert f"reference on CPU: {LIBRARY} is not installed" in done.stdout
    assert "no native module" in done.stdout


def test_switching_off_what_is_not_there_needs_no_warning(bare: Path) -> None:
    assert warnings_in(succeeds(USE, str(bare), FASTMINE_NATIVE="0").stderr) == []


def test_a_library_that_does_not_load_is_said_and_not_swallowed(bare: Path) -> None:
    (bare / "fastmine" / LIBRARY).write_bytes(b"not a shared library")
    done = succeeds(USE, str(bare))
    (warning,) = warnings_in(done.stderr)
    assert f"{LIBRARY} does not load" in warning
    assert f"reference on CPU: {LIBRARY} does not load" in done.stdout


@pytest.mark.usefixtures("native_ops")
@pytest.mark.parametrize("op", _ops.OPS)
def test_a_kernel_answers_this_op(op: str) -> None:
    assert fastmine.config()["ops"][op]["CPU"] == "native"


@pytest.mark.usefixtures("native_ops", "native_module")
def test_with_the_libraries_nothing_is_warned_of() -> None:
    done = succeeds(USE)
    assert warnings_in(done.stderr) == []
    assert "reference on CPU" not in done.stdout


def test_reasons_of_the_loader(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FASTMINE_NATIVE", raising=False)
    assert libraries._load("nowhere.so") == "nowhere.so is not installed"
    (tmp_path / "broken.so").write_bytes(b"")
    monkeypatch.setattr(libraries, "_folders", [str(tmp_path)])
    assert libraries._load("broken.so").startswith("broken.so does not load: ")
    monkeypatch.setenv("FASTMINE_NATIVE", "0")
    assert libraries._load("nowhere.so") == "switched off by FASTMINE_NATIVE=0"


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastmine._native", None)
    monkeypatch.delattr(fastmine, "_native", raising=False)
    assert fastmine.config()["cpu"].startswith("no native module (")
    with pytest.raises(ImportError, match=r"fastmine.numpy needs the native module.*use fastmine.functional"):
        fastmine.numpy.pairwise_distance([[0.0]])


def test_config_says_who_answers() -> None:
    found = fastmine.config()
    assert set(found["ops"]) == set(_ops.OPS)
    assert found["versions"]["fastmine"] == fastmine.__version__
    for op, answer in found["ops"].items():
        for device in ("CPU", "CUDA"):
            assert answer[device] == ("native" if _ops.answers(op, device) else "reference")
    native = any(answer["CPU"] == "native" for answer in found["ops"].values())
    assert native == (found["reasons"]["CPU"] is None)


def test_show_config_prints_what_config_holds() -> None:
    out = io.StringIO()
    fastmine.show_config(out)
    for op in _ops.OPS:
        assert re.search(rf"^{op} +(native|reference) +(native|reference)$", out.getvalue(), flags=re.MULTILINE)
    assert f"fastmine {fastmine.__version__}" in out.getvalue()


@pytest.mark.parametrize("required", ["0", "1"])
def test_a_test_of_kernels_is_skipped_in_words_or_fails_where_they_are_required(required: str) -> None:
    test = f"{TESTS / 'test_threads.py'}::test_bits_do_not_depend_on_threads"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "pairwise", test],
        env=environment(FASTMINE_NATIVE="0", FASTMINE_REQUIRE_NATIVE=required),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    reason = "no native CPU ops: switched off by FASTMINE_NATIVE=0"
    assert reason in done.stdout
    if required == "1":
        assert done.returncode == pytest.ExitCode.TESTS_FAILED
        assert "FASTMINE_REQUIRE_NATIVE=1" in done.stdout
    else:
        assert done.returncode == pytest.ExitCode.OK
        assert f"skipped: 2\n      2  {reason}" in done.stdout


# --- CUDA, without a GPU: a stub says what the library would ------------------------------------------------------


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A folder with a library that loads and serves as it is told to when compiled."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler to build a stub with")
    source = tmp_path / "stub.cpp"
    source.write_text('extern "C" const char* fastmine_cuda_unserved() { return UNSERVED; }\n')
    for name, unserved in (("serves", ""), ("old", "the driver is of CUDA 12.4"), ("other", "device 0 has 7.5")):
        (tmp_path / name).mkdir()
        out = tmp_path / name / libraries.CUDA_LIBRARY
        subprocess.run(
            [compiler, "-shared", "-fPIC", f'-DUNSERVED="{unserved}"', source, "-o", out], check=True
        )  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("serves", None),
        ("old", "the driver is of CUDA 12.4"),
        ("other", "device 0 has 7.5"),
        ("nowhere", f"{libraries.CUDA_LIBRARY} is not installed"),
    ],
)
def test_why_the_reference_answers_on_cuda_is_said_once(
    monkeypatch: pytest.MonkeyPatch, stub: Path, folder: str, reason: str | None
) -> None:
    monkeypatch.delenv("FASTMINE_NATIVE", raising=False)
    monkeypatch.setattr(libraries, "_folders", [str(stub / folder)])
    monkeypatch.setitem(_ops.reasons, "CUDA", "CUDA has not been used yet")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        libraries._start_cuda()
    assert _ops.reasons["CUDA"] == reason
    assert len(caught) == (reason is not None)
    shown = io.StringIO()
    fastmine.show_config(shown)
    assert ("reference on CUDA" in shown.getvalue()) == (reason is not None)
    if reason is not None:
        assert f"on CUDA, exact but slow: {reason}. " in str(caught[0].message)
        assert f"reference on CUDA: {reason}" in shown.getvalue()


def test_cuda_is_asked_when_it_is_first_used_and_not_at_import(bare: Path) -> None:
    done = succeeds(
        """
        import sys
        sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
        sys.path[:0] = sys.argv[1:]
        import torch
        torch.version.cuda = "13.0"
        queued = len(torch.cuda._queued_calls)
        import fastmine
        from fastmine import _ops
        print(_ops.reasons["CUDA"])
        for call, _ in torch.cuda._queued_calls[queued:]:
            call()
        print(_ops.reasons["CUDA"])
        """,
        str(bare),
    )
    assert done.stdout.split("\n")[:2] == ["CUDA has not been used yet", f"{libraries.CUDA_LIBRARY} is not installed"]
    assert sum("on CUDA, exact but slow" in line for line in warnings_in(done.stderr)) == 1
