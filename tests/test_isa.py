"""Every instruction set of this machine agrees with the reference; a wrong name is an error listing the right ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import NamedTuple

import pytest
import torch

from cases import CASES, Case, Inputs, lay_out
from fastmine import _ops
from support import python, succeeds
from test_equivalence import Answers, assert_answers_agree, true_answers


def is_long(case: Case) -> bool:
    """More than a few registers of work, with a remainder."""
    return "ragged" in case.name or "wide" in case.name


def is_run(case: Case, dtype: torch.dtype) -> bool:
    return is_long(case) or dtype == torch.float32


class Row(NamedTuple):
    name: str
    case: Case
    inputs: Inputs
    answers: Answers


def all_rows() -> Iterator[Row]:
    for case in CASES:
        variants = {str(dtype): case.inputs(dtype) for dtype in case.dtypes if is_run(case, dtype)}
        if is_long(case):
            variants["sliced"] = lay_out(case.inputs(torch.float32), "sliced")
        for variant, inputs in variants.items():
            yield Row(f"{case} {variant}", case, inputs, true_answers(case, inputs))


def check_rows(*isas: str) -> None:
    """The reference ops, and then the kernels of each instruction set, against answers that are computed once.

    For a process of its own, started with FASTMINE_NATIVE=0. It forks before it loads kernels: which ones is decided
    once per process.
    """
    torch.set_num_threads(1)
    rows = list(all_rows())
    assert not any(_ops.answers(op, "CPU") for op in _ops.OPS)
    failed = check("reference", rows)
    for isa in isas:
        child = os.fork()
        if child == 0:
            os._exit(check_on(isa, rows))
        failed = bool(os.waitpid(child, 0)[1]) or failed
    sys.exit(failed)


def check_on(isa: str, rows: list[Row]) -> bool:
    del os.environ["FASTMINE_NATIVE"]
    os.environ["FASTMINE_ISA"] = isa
    _ops.libraries.load()
    from fastmine import _native

    assert _native.isa() == isa
    assert all(_ops.answers(op, "CPU") for op in _ops.OPS)
    return check(isa, rows)


def check(who: str, rows: list[Row]) -> bool:
    """Whether any row failed; all of these are printed."""
    failures: list[str] = []
    for row in rows:
        with collected(failures, f"{who} {row.name}"):
            assert_answers_agree(row.case, row.inputs, row.answers)
    print(f"{who}: {len(rows)} rows", *failures, sep="\n", flush=True)
    return bool(failures)


@contextmanager
def collected(failures: list[str], what: str) -> Iterator[None]:
    """Go on after a failed row, and remember it."""
    try:
        yield
    except AssertionError as error:
        failures.append(f"{what}: {error}")


def others() -> list[str]:
    """The instruction sets of this machine but the one that test_equivalence.py runs on."""
    try:
        from fastmine import _native
    except ImportError:
        return []
    return [isa for isa in _native.available_isas() if isa != _native.isa()]


def test_every_row_on_the_reference_ops_and_on_every_other_instruction_set() -> None:
    """The reference ops, with their explicit backward passes, are what answers where there is no kernel."""
    # With a device, autograd would have threads, which do not survive the fork.
    done = python(
        "import sys, test_isa; test_isa.check_rows(*sys.argv[1:])", *others(),
        FASTMINE_NATIVE="0", CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["reference", *others()]


def test_the_best_one_is_used_when_none_is_named(native_module: ModuleType) -> None:
    show = "import fastmine._native as n; print(n.isa())"
    best = native_module.available_isas()[0]
    assert succeeds(show).stdout.strip() == best
    assert succeeds(show, FASTMINE_ISA="").stdout.strip() == best


@pytest.mark.usefixtures("native_ops")
@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx"])
def test_an_unknown_name_is_an_error_that_lists_the_names(name: str, native_module: ModuleType) -> None:
    done = python("import fastmine", FASTMINE_ISA=name)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: FASTMINE_ISA={name}")
    for isa in native_module.available_isas():
        assert isa in last


@pytest.mark.usefixtures("native_ops")
def test_show_config_names_the_forced_one(native_module: ModuleType) -> None:
    isa = native_module.available_isas()[-1]
    shown = succeeds("import fastmine; fastmine.show_config()", FASTMINE_ISA=isa).stdout
    assert f"{isa} kernels" in shown
