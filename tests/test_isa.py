"""Every instruction set of this machine agrees with the reference; a wrong name is an error listing the right ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch

from cases import CASES, Case, lay_out
from fastmine import _ops
from support import python, succeeds
from test_equivalence import assert_case_is_true

ISAS = ("baseline", "avx2", "avx512", "amx")


def is_long(case: Case) -> bool:
    """More than a few registers of work, with a remainder."""
    return "ragged" in case.name or "wide" in case.name


def is_run(case: Case, dtype: torch.dtype) -> bool:
    return is_long(case) or dtype == torch.float32


def check_rows(isa: str) -> None:
    """For a process of its own, started with FASTMINE_ISA=isa, or for "reference" with FASTMINE_NATIVE=0."""
    if isa == "reference":
        assert not any(_ops.answers(op, "CPU") for op in _ops.OPS)
    else:
        from fastmine import _native

        assert _native.isa() == isa
    torch.set_num_threads(1)
    failures = []
    rows = [(case, case.inputs(dtype), dtype) for case in CASES for dtype in case.dtypes if is_run(case, dtype)]
    rows += [(case, lay_out(case.inputs(torch.float32), "sliced"), "sliced") for case in CASES if is_long(case)]
    for case, inputs, variant in rows:
        with collected(failures, f"{case} {variant}"):
            assert_case_is_true(case, inputs)
    print(f"{isa}: {len(rows)} rows")
    sys.exit("\n".join(failures) or 0)


@contextmanager
def collected(failures: list[str], what: str) -> Iterator[None]:
    """Go on after a failed row, and remember it."""
    try:
        yield
    except AssertionError as error:
        failures.append(f"{what}: {error}")


def test_every_row_on_the_reference_ops() -> None:
    """What answers where there is no kernel: the reference with its explicit backward passes."""
    done = succeeds("import test_isa; test_isa.check_rows('reference')", FASTMINE_NATIVE="0")
    assert done.stdout.startswith("reference: ")


@pytest.mark.usefixtures("native_ops")
@pytest.mark.parametrize("isa", ISAS)
def test_every_row_on_this_instruction_set(isa: str, native_module: ModuleType) -> None:
    for kind, names in (("build", native_module.compiled_isas()), ("machine", native_module.available_isas())):
        if isa not in names:
            pytest.skip(f"{isa}: not an instruction set of this {kind}")
    if isa == native_module.isa():
        pytest.skip(f"{isa}: what test_equivalence.py runs on")
    done = succeeds(f"import test_isa; test_isa.check_rows({isa!r})", FASTMINE_ISA=isa)
    assert done.stdout.startswith(f"{isa}: ")


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
