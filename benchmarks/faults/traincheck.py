"""TrainCheck itself (OSDI 2025) on these runs: ``python -m benchmarks.faults.traincheck --bin VENV/bin``.

It needs an environment of its own: ``pip install traincheck --no-deps`` beside astor, numba, orjson, pandas, polars,
pyyaml, tqdm, watchdog and this torch. TrainCheck learns invariants from runs that are known to be healthy and reports
those that another run violates. Each case is written as a flat script of a few steps, since a traced step is dear; two
healthy runs of each task give the invariants, and all others are checked.

It names no causes. A violation counts as naming a lost update or a cut graph where the invariant is about parameters,
gradients or the optimizer's step, and as naming nothing otherwise.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import fastmine

from .case import Case
from .runs import CASES

ROWS = Path(__file__).parent.parent / "results" / "traincheck.jsonl"
REFERENCES = {
    "Digits": ("labels_remapped", "bfloat16_autocast"),
    "Disks": ("soft_targets", "unannotated_and_declared"),
    "Bearings": ("hybrid", "small_regulariser"),
}
PATHS = [str(Path(__file__).parents[2]), *(str(Path(folder).parent) for folder in fastmine.__path__)]
ABOUT_UPDATES = re.compile(r"\.step|\.grad|Parameter|zero_grad|backward")
UPDATES = ["DETACHED_GRAPH", "NO_UPDATE"]


def flat(case: Case, steps: int) -> str:
    """The case as a script: its module's imports, a monitor that does nothing, its body."""
    module = inspect.getmodule(case.script)
    assert module is not None
    head = inspect.getsource(module).partition("cases = Suite")[0]
    body = inspect.getsource(case.script).partition("-> float:\n")[2]
    body = re.sub(r"^return (.*)", r"print('metric', \1)", textwrap.dedent(body), flags=re.MULTILINE)
    return "\n".join([
        f"import sys\nsys.path[:0] = {PATHS}",  # its runner starts from a clean environment
        head.replace("from .", "from benchmarks.faults.").replace("from __future__ import annotations\n", ""),
        "from itertools import islice",
        "from benchmarks.faults.tools import Watcher as Monitor",
        "for task in (Digits, Disks, Bearings):",
        f"    task.batches = lambda self, *a, _of=task.batches, **k: islice(_of(self, *a, **k), {steps})",
        "seed = 0",
        "torch.manual_seed(seed)",
        body,
    ])  # fmt: skip


def task(case: Case) -> str:
    """Which data it trains on."""
    return next((name for name in REFERENCES if f"{name}(seed" in inspect.getsource(case.script)), "Disks")


class TrainCheck:
    """The tool's three commands, in a folder."""

    def __init__(self, commands: Path, folder: Path, steps: int) -> None:
        self.commands, self.folder, self.steps = commands, folder, steps

    def call(self, command: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [self.commands / command, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=1800, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    def trace(self, case: Case, *options: str | Path) -> Path:
        script, trace = self.folder / f"{case.name}.py", self.folder / f"{case.name}-trace"
        script.write_text(flat(case, self.steps))
        self.call("traincheck-collect", "-p", script, "--models-to-track", "model", "--output-dir", trace, *options)
        return trace

    def learn(self, name: str) -> Path:
        """Invariants of a task, from its two healthy runs."""
        invariants = self.folder / f"{name}.json"
        if not invariants.exists():
            traces = [self.trace(CASES[case]) for case in REFERENCES[name]]
            self.call("traincheck-infer", "-f", *traces, "-o", invariants)
        return invariants

    def check(self, case: Case) -> dict[str, Any]:
        """What a run violates."""
        start = time.time()
        invariants = self.learn(task(case))
        trace = self.trace(case, "--invariants", invariants)
        results = self.folder / f"{case.name}-results"
        said = self.call("traincheck-check", "-f", trace, "-i", invariants, "-o", results, "--no-html-report")
        counts = re.findall(r"Total failed invariants: (\d+)/(\d+)", said) or [("-1", "-1")]
        failed = "".join(path.read_text() for path in results.rglob("failed.log"))
        violated = re.findall(r'"text_description": "(.*)"', failed)
        codes = UPDATES if any(map(ABOUT_UPDATES.search, violated)) else []
        return {
            "case": case.name, "suite": case.suite, "seed": 0, "tool": "TrainCheck", "steps": self.steps,
            "expected": sorted(case.codes),
            "violated": int(counts[-1][0]), "invariants": int(counts[-1][1]), "codes": codes, "words": violated[:20],
            "right": bool(set(codes) & case.codes), "wall": time.time() - start,
        }  # fmt: skip


def main() -> None:
    """Check the cases one after the other; each row is kept at once, and those that are there are not run again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, required=True, help="the folder of traincheck-collect")
    parser.add_argument("--folder", type=Path, default=Path("build/traincheck"))
    parser.add_argument("--steps", type=int, default=20, help="of every run (default 20)")
    parser.add_argument("--only", action="append", metavar="NAME")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    tool = TrainCheck(arguments.bin.resolve(), arguments.folder.resolve(), arguments.steps)
    done = {json.loads(line)["case"] for line in ROWS.read_text().splitlines()} if ROWS.exists() else set()
    learned = {name for pair in REFERENCES.values() for name in pair}
    for name, case in CASES.items():
        if name in done | learned or not any(part in name or part == case.suite for part in arguments.only or [""]):
            continue
        row = tool.check(case)
        print(
            f"{name:<36} {row['violated']} of {row['invariants']} violated {row['codes']}", file=sys.stderr, flush=True
        )
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
