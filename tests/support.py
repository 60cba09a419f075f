"""Running Python in a process of its own, for what is decided once per process; tests of what may not be built."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NoReturn

import pytest

import fastmine

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
PACKAGE = [Path(folder) for folder in fastmine.__path__]
REQUIRED = "FASTMINE_REQUIRE_NATIVE"
"""Set to 1, this environment variable turns a missing native library into failures instead of skips."""


def absent(reason: str) -> NoReturn:
    """End a test of what is not there."""
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{REQUIRED}=1, but {reason}")
    pytest.skip(reason)


def environment(**changes: str) -> dict[str, str]:
    """This process's environment with the tests' modules on the path, and no choice of implementation but ours."""
    ours = ("FASTMINE_ISA", "FASTMINE_NATIVE", REQUIRED)
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
