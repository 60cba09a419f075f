"""What every test shares: seeds, threads, the native libraries, and an account of what did not run."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from types import ModuleType

import hypothesis
import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a missing native library is said below, and tested in test_fallback.py
    import fastmine
    from fastmine import _ops
    from fastmine.health._guard import Guard
    from support import absent

# The same examples on every machine and in every worker, and nothing written to disk.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None, max_examples=30)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Every test starts from one seed, one thread and nothing compiled, whatever ran before it.

    ``torch.compile`` keeps eight graphs of one function and then refuses ``fullgraph=True``: the ninth test to compile
    a loss would fail, and which one that is depends on how the tests were dealt out.
    """
    torch.manual_seed(0)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _nothing_fails_inside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails in a monitor is kept from the training, and from no test but those of that."""

    def fail(_: Guard, part: str, problem: Exception) -> None:
        raise AssertionError(f"{part} failed") from problem

    if request.node.get_closest_marker("failures") is None:
        monkeypatch.setattr(Guard, "failed", fail)


@pytest.fixture
def native_ops() -> None:
    """Only where the library of CPU kernels is loaded."""
    if _ops.reasons["CPU"]:
        absent(f"no native CPU ops: {_ops.reasons['CPU']}")


@pytest.fixture
def native_module() -> ModuleType:
    """``fastmine._native``, the kernels without torch; only where it is built."""
    try:
        from fastmine import _native
    except ImportError as error:
        absent(f"no native module: {error}")
    return _native


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: else one process ends with a minute's training while the other has nothing to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Who answered, and how many tests were skipped for which reason."""
    answers = {op: "native" if _ops.answers(op, "CPU") else "reference" for op in _ops.OPS}
    answered = Counter(answers.values())
    terminalreporter.section("fastmine")
    who = " and ".join(f"{kind} for {count} of {len(answers)} ops" for kind, count in answered.items())
    terminalreporter.line(f"answered on the CPU: {who}; {fastmine.config()['cpu']}")
    if not torch.cuda.is_available():
        terminalreporter.line("no CUDA device: the case table ran on the CPU alone")
    skipped = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.line(f"skipped: {skipped.total()}")
    for reason, count in skipped.most_common():
        terminalreporter.line(f"  {count:5d}  {reason}")


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
