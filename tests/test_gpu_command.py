"""``make gpu``: what it would run, in which order, within which time, and that it says so where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import exercise, install

from cases import Calls
from fastmine import _ops
from support import REPOSITORY, environment

SAYS = [sys.executable, "-c"]


@pytest.fixture(autouse=True)
def _logs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "LOGS", tmp_path / "logs")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_stops_at_once_with_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=REPOSITORY, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("make gpu: torch ")
    assert line.endswith("; nothing was run")


def test_without_nvcc_it_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(gpu, "device_capability", lambda: 90)
    monkeypatch.setattr(gpu, "find_tool", lambda name: None)
    assert gpu.main([]) == 2
    assert "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda; nothing was run" in capsys.readouterr().err


def test_only_the_code_of_the_device_is_built() -> None:
    assert [gpu.architecture(capability) for capability in (80, 86, 90, 120)] == [
        "80-real", "86-real", "90a-real", "120a-real",
    ]  # fmt: skip


def test_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_tool", lambda name: f"/usr/local/cuda/bin/{name}")
    stages = {stage.name: stage for stage in gpu.plan(90, "/usr/local/cuda/bin/nvcc")}
    assert list(stages) == [
        "configure", "build", "install", "tests", "memcheck", "racecheck", "bench", "wgmma", "bench wgmma",
    ]  # fmt: skip
    assert [name for name, stage in stages.items() if stage.needed] == ["configure", "build", "install"]
    assert "-DFASTMINE_CUDA_ARCHITECTURES=90a-real" in stages["configure"].command
    assert stages["tests"].command[1:3] == ["-m", "pytest"]
    assert "cuda" in stages["tests"].command
    assert all((REPOSITORY / name).exists() for name in gpu.TESTS)
    assert stages["racecheck"].command[:3] == ["/usr/local/cuda/bin/compute-sanitizer", "--tool", "racecheck"]
    assert str(gpu.ROWS) in stages["bench"].command
    assert str(gpu.SITE) in stages["tests"].environment["PYTHONPATH"]
    assert (REPOSITORY / gpu.WARPGROUP_TESTS).exists()
    assert stages["bench wgmma"].environment["FASTMINE_CUDA_WGMMA"] == "1"
    assert sum(stage.kept for stage in stages.values()) < 60 * 9.5 - 120  # to build in


def test_without_compute_sanitizer_the_rest_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_tool", lambda name: None)
    assert [stage.name for stage in gpu.plan(80, "nvcc")] == ["configure", "build", "install", "tests", "bench"]


def test_a_failure_is_told_and_stops_what_needs_it() -> None:
    stages = [
        gpu.Stage("first", [*SAYS, "print('3 passed, 1 skipped'); print('bye')"], 60),
        gpu.Stage("second", [*SAYS, "raise SystemExit('no such thing')"], 60),
        gpu.Stage("third", [*SAYS, "raise SystemExit(3)"], 60, needed=True),
        gpu.Stage("fourth", [*SAYS, ""], 60),
    ]
    outcomes = gpu.carry_out(stages, time.monotonic() + 120)
    assert [(outcome.word, outcome.note) for outcome in outcomes] == [
        ("passed", "3 passed, 1 skipped"), ("failed", "no such thing"), ("failed", ""), ("left out", "third failed"),
    ]  # fmt: skip
    assert [line.split()[0] for line in gpu.table(outcomes).splitlines()] == ["first", "second", "third", "fourth"]


def test_no_stage_runs_past_its_limit_or_the_deadline() -> None:
    forever = [*SAYS, "import time; time.sleep(60)"]
    started = time.monotonic()
    (slow,) = gpu.carry_out([gpu.Stage("slow", forever, 0.5)], started + 60)
    assert slow.word == "out of time"
    (late,) = gpu.carry_out([gpu.Stage("late", forever, 60)], time.monotonic() + gpu.LEAST_SECONDS / 2)
    assert (late.word, late.note) == ("left out", "no time was left")
    assert time.monotonic() - started < 30


def test_time_is_kept_for_later_stages() -> None:
    greedy, modest, last = gpu.Stage("1", [], 300), gpu.Stage("2", [], 100, kept=60), gpu.Stage("3", [], 100, kept=30)
    assert gpu.allowance([greedy, modest, last], 500) == 300
    assert gpu.allowance([greedy, modest, last], 200) == 110
    assert gpu.allowance([modest, last], 90) == 60
    assert gpu.allowance([last], 90) == 90
    assert gpu.allowance([greedy, modest, last], 80) == 48  # too little for all: by their limits


def test_the_exit_code_says_whether_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device_capability", lambda: 90)
    monkeypatch.setattr(gpu, "find_nvcc", lambda: "nvcc")
    for code, expected in ((0, 0), (1, 1)):
        stage = gpu.Stage("tests", [*SAYS, f"raise SystemExit({code})"], 60)
        monkeypatch.setattr(gpu, "plan", lambda *_, stage=stage: [stage])
        assert gpu.main(["--minutes", "1"]) == expected
    assert gpu.main(["--only", "bench"]) == 0


def test_the_package_is_laid_out_like_an_installed_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(install.subprocess, "run", lambda command, **_: commands.append(command))
    install.main(tmp_path / "build", tmp_path / "site")
    assert (tmp_path / "site" / "fastmine" / "__init__.py").exists()
    assert not list((tmp_path / "site").rglob("*.so"))
    assert commands == [["cmake", "--install", str(tmp_path / "build"), "--prefix", str(tmp_path / "site")]]


def test_what_the_sanitizers_watch_is_every_op_and_finite_on_the_cpu(capsys: pytest.CaptureFixture) -> None:
    with Calls() as calls:
        assert exercise.main("cpu") == 0
    capsys.readouterr()
    assert not set(_ops.OPS) - {name for name, _ in calls}


def test_the_tests_for_a_gpu_are_collected_and_skipped_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests/test_cuda.py"],
        cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout
    if not torch.cuda.is_available():
        assert done.returncode == 0
        assert "no CUDA device" in done.stdout
        assert " passed" not in done.stdout


def test_what_a_stage_started_ends_with_it(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    starts = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path({str(told)!r}).write_text(str(child.pid))
time.sleep(60)
"""
    (outcome,) = gpu.carry_out([gpu.Stage("parent", [*SAYS, starts], 3)], time.monotonic() + 60)
    assert outcome.word == "out of time"
    state = Path(f"/proc/{told.read_text()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child of a stage that ran out of time goes on")
