"""Running Python in a process of its own, for what is decided once per process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fastmine

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
PACKAGE = [Path(folder) for folder in fastmine.__path__]


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the tests' modules on the path, and no choice of implementation but ours."""
    ours = ("FASTMINE_ISA", "FASTMINE_NATIVE", "FASTMINE_REQUIRE_NATIVE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    # Not sys.path: a test that put a folder there would change where the new process finds the package.
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, **changes}


def python(code: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run code with this interpreter in a changed environment; every warning is printed."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code), *arguments],
        env=environment(**changes), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def succeeds(code: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """The same, for code that must not fail."""
    done = python(code, *arguments, **changes)
    assert done.returncode == 0, done.stderr
    return done
