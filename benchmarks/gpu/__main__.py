"""``python -m benchmarks.gpu``: build for this machine's device, test, look for bad memory and races, measure.

One command for a machine with a GPU, CUDA's nvcc, torch with CUDA, cmake, ninja and pytest, and no network.
What is built goes into build/gpu; the measured rows go into benchmarks/results/cuda.jsonl. A short table comes last.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
BUILD = REPOSITORY / "build" / "gpu"
SITE = BUILD / "site"
ROWS = REPOSITORY / "benchmarks" / "results" / "cuda.jsonl"
LOGS = BUILD / "logs"
CASES = "dice_*,focal/*,pairwise_distance/*,triplet/*,batch_hard/N*-D128,supcon/*,hardest_pairs/collapse-1e-3"
"""What is measured in the time that is left; ``fastmine bench --device cuda`` measures everything."""
TESTS = ("tests/test_cuda.py", "tests/test_equivalence.py")
"""Where tests marked ``cuda`` are: no other module is imported, which may need what such a machine does not have."""
WARPGROUP_TESTS = "tests/test_cuda_warpgroups.py"
WARPGROUP_ROWS = REPOSITORY / "benchmarks" / "results" / "cuda-wgmma.jsonl"
WARPGROUP_CASES = "batch_hard/N*-D128"
"""What FASTMINE_CUDA_WGMMA=1 changes: apart from all else and briefly, since the failure to fear is one that hangs."""
LEAST_SECONDS = 10.0
"""A stage with less time than this is not begun."""


class AbsenceError(Exception):
    """Something without which nothing can be run."""


@dataclass(frozen=True)
class Stage:
    """One command, of so many seconds at most, of which some are ``kept`` for it while those before it run; where it is
    ``needed``, nothing makes sense after its failure."""

    name: str
    command: Sequence[str]
    limit: float
    kept: float = 0.0
    needed: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: ``passed``, ``failed``, ``out of time`` or ``left out``, and what its last words were."""

    stage: str
    word: str
    seconds: float = 0.0
    note: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if everything passed, 1 if anything failed, 2 if there is nothing to run it on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.5, help="stop after this long (default: 9.5)")
    parser.add_argument("--only", metavar="STAGE", action="append", help="only these stages, and the build")
    chosen = parser.parse_args(arguments)
    try:
        capability = device_capability()
        nvcc = find_nvcc()
    except AbsenceError as error:
        print(f"make gpu: {error}; nothing was run", file=sys.stderr)
        return 2
    stages = [
        stage for stage in plan(capability, nvcc) if stage.needed or not chosen.only or stage.name in chosen.only
    ]  # fmt: skip
    outcomes = carry_out(stages, time.monotonic() + 60 * chosen.minutes)
    print("\n" + table(outcomes))
    return 0 if all(outcome.word in ("passed", "left out") for outcome in outcomes) else 1


# --- the machine ---------------------------------------------------------------------------------------------------


def device_capability() -> int:
    """The compute capability of the first device, 90 for 9.0."""
    try:
        import torch
    except ImportError as error:
        raise AbsenceError(f"no torch for {sys.executable} ({error})") from error
    if torch.version.cuda is None:
        raise AbsenceError(f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise AbsenceError(f"torch {torch.__version__} finds no CUDA device")
    major, minor = torch.cuda.get_device_capability(0)
    return 10 * major + minor


def find_nvcc() -> str:
    """The CUDA compiler."""
    found = find_tool("nvcc")
    if found is None:
        raise AbsenceError("no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda")
    return found


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(f"{home}/bin" for home in homes if home))


def architecture(capability: int) -> str:
    """What nvcc compiles for: the device's own code, from Hopper on with what only that device has."""
    return f"{capability}{'a' if capability >= 90 else ''}-real"


# --- what is run ---------------------------------------------------------------------------------------------------


def plan(capability: int, nvcc: str) -> list[Stage]:
    """All stages, in order."""
    package = {"PYTHONPATH": os.pathsep.join([str(SITE), str(REPOSITORY)]), "PYTHONDONTWRITEBYTECODE": "1"}
    python = sys.executable
    exercise = [python, "-m", "benchmarks.gpu.exercise"]
    return [
        Stage(
            "configure",
            [
                "cmake", "-S", str(REPOSITORY), "-B", str(BUILD), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
                "-DFASTMINE_CUDA=ON", f"-DFASTMINE_CUDA_ARCHITECTURES={architecture(capability)}",
                "-DFASTMINE_PYBIND=OFF", f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DPython_EXECUTABLE={python}",
                "--log-level=WARNING",
            ],
            60, needed=True,
        ),
        Stage("build", ["cmake", "--build", str(BUILD)], 300, needed=True),
        Stage("install", [python, "-m", "benchmarks.gpu.install", str(BUILD), str(SITE)], 30, needed=True),
        Stage(
            "tests",
            [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", *_workers(), *TESTS],
            240, kept=60, environment=package,
        ),
        *(
            Stage(
                tool,
                [sanitizer, "--tool", tool, "--error-exitcode", "1", "--print-limit", "5", *exercise],
                90, kept=30, environment={**package, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
            for sanitizer in [find_tool("compute-sanitizer")]
            if sanitizer is not None
            for tool in ("memcheck", "racecheck")
        ),
        Stage(
            "bench",
            [
                python, "-c", "import sys; from fastmine.cli import main; sys.exit(main())", "bench",
                "--device", "cuda", "--peers", "--cases", CASES, "--out", str(ROWS),
            ],
            300, kept=120, environment=package,
        ),
        *(_warpgroup_stages(package) if capability == 90 else ()),
    ]  # fmt: skip


def _warpgroup_stages(package: Mapping[str, str]) -> list[Stage]:
    """The screen by warpgroups on Hopper: the same answers, then its rows beside those without it. They come last: what
    could leave the device in a bad state spoils nothing else."""
    environment = {**package, "FASTMINE_CUDA_WGMMA": "1"}
    bench = ["-c", "import sys; from fastmine.cli import main; sys.exit(main())", "bench", "--device", "cuda"]
    return [
        Stage(
            "wgmma",
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", WARPGROUP_TESTS],
            90, kept=30, environment=package,
        ),
        Stage(
            "bench wgmma",
            [sys.executable, *bench, "--cases", WARPGROUP_CASES, "--providers", "native", "--out", str(WARPGROUP_ROWS)],
            60, kept=30, environment=environment,
        ),
    ]  # fmt: skip


def _workers() -> list[str]:
    """Several test processes where pytest-xdist is installed; the device is shared."""
    try:
        import xdist  # noqa: F401
    except ImportError:
        return []
    return ["-n", str(min(4, os.cpu_count() or 1))]


def carry_out(stages: Sequence[Stage], deadline: float) -> list[Outcome]:
    """Run the stages until the deadline, none so long that later ones have less than is kept for them; after a needed
    one that failed, none."""
    LOGS.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    blocked = ""
    for place, stage in enumerate(stages):
        left = deadline - time.monotonic()
        if blocked or left < LEAST_SECONDS:
            outcomes.append(Outcome(stage.name, "left out", note=blocked or "no time was left"))
            continue
        print(f"--- {stage.name}", flush=True)
        outcome = run(stage, allowance(stages[place:], left))
        outcomes.append(outcome)
        if stage.needed and outcome.word != "passed":
            blocked = f"{stage.name} {outcome.word}"
    return outcomes


def allowance(stages: Sequence[Stage], left: float) -> float:
    """Seconds for the first of the stages that are left: what the others do not keep or, where too little is left for
    what all of them keep, its share by their limits."""
    first = stages[0]
    spare = left - sum(stage.kept for stage in stages)
    share = left * first.limit / sum(stage.limit for stage in stages)
    return min(first.limit, first.kept + spare if spare >= 0 else share)


def run(stage: Stage, seconds: float) -> Outcome:
    """Run one stage; its output goes to the screen and to its log."""
    log, started = LOGS / f"{stage.name}.log", time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            stage.command, cwd=REPOSITORY, env={**os.environ, **stage.environment}, stdout=file,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    text = log.read_text(errors="replace")
    print(text[-4000:], flush=True)
    word = "out of time" if code is None else "passed" if code == 0 else "failed"
    return Outcome(stage.name, word, time.monotonic() - started, last_words(text))


def end(process: subprocess.Popen[str]) -> None:
    """End a stage and all that it started: what measures and what is measured are processes of their own, and one that
    stays would keep the device. A process that waits for a device that hangs may not end; it is not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def last_words(text: str) -> str:
    """The line that says most: pytest's or compute-sanitizer's summary, or else the last."""
    lines = [line.strip(" =") for line in text.splitlines() if line.strip(" =")]
    telling = [
        line for line in lines if re.search(r"\d+ (passed|failed)|ERROR SUMMARY|RACECHECK SUMMARY|bars met", line)
    ]  # fmt: skip
    return (telling or lines or [""])[-1][:100]


def table(outcomes: Sequence[Outcome]) -> str:
    """What a reader sees last."""
    width = max((len(outcome.stage) for outcome in outcomes), default=0)
    return "\n".join(
        f"{outcome.stage:<{width}}  {outcome.word:<11}  {outcome.seconds:6.1f} s  {outcome.note}"
        for outcome in outcomes
    )


if __name__ == "__main__":
    sys.exit(main())
