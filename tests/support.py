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


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code with this interpreter and the tests' modules on its path; every warning is printed."""
    path = os.pathsep.join([str(TESTS), *sys.path[1:]])
    found = {name: value for name, value in os.environ.items() if name not in ("FASTMINE_ISA", "FASTMINE_NATIVE")}
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code), *arguments],
        env={**found, "PYTHONPATH": path, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def succeeds(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same, for code that must not fail."""
    done = python(code, *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done
