"""The benchmarks: who does the same work, what counts as wrong, what is written down, and what is typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmine import _ops
from fastmine.bench import bars, command, measure, plots, report, worker
from fastmine.bench import run as running
from fastmine.bench.cases import CASES, CUDA_CASES, LIBRARIES, Case, cases_on, matching
from fastmine.bench.combinations import COMBINATIONS
from fastmine.bench.providers import BY_NAME, OPS, PROVIDERS, Provider, reason
from fastmine.bench.rows import Row, Run, append, newest, read
from fastmine.bench.torch_forms import Fastest
from fastmine.bench.works import WORKS, Pairs, hardest_pairs, judge_pairs, likely_hardest_pairs
from fastmine.cli import main
from support import REPOSITORY, succeeds

NAMES = [case.name for case in CASES]
TINY = {
    "batch_hard": (64, 16), "hardest_pairs": (64, 16), "triplet": (48, 16), "supcon": (48, 16), "ntxent": (48, 16),
    "batch_all": (48, 16), "semi_hard": (48, 16), "multi_similarity": (48, 16),
    "pairwise_distance": (48, 16), "distance_error": (48, 16),
    "dice_focal_bce": (2, 3, 8, 8), "dice_ce": (2, 3, 8, 8), "focal": (2, 3, 8, 8),
    **dict.fromkeys(COMBINATIONS, (2, 4, 8, 8)),
}  # fmt: skip
SLOW = {"compiled", "pykeops", "triton"}  # they call a compiler, or need a GPU


def tiny(work: str, **changes: Any) -> Case:
    """The first case of a work, small."""
    case = next(case for case in CASES if case.work == work)
    return replace(case, shape=TINY[work], **changes)


def row(case: str, provider: str, milliseconds: float | None = None, **fields: Any) -> Row:
    found = next(each for each in CASES if each.name == case)
    values: dict[str, Any] = {
        "status": "ok", "heap": "default", "threads": 2, "work": found.work, "shape": found.shape,
        "dtype": found.dtype, "p20_ms": milliseconds, "p50_ms": milliseconds, "p80_ms": milliseconds,
        "cpu_ms": milliseconds,
    }  # fmt: skip
    return Row("1", case, provider, **{**values, **fields})


RUN = Run("1", "default", {"cpu": "a processor", "cores": 2, "threads": 2, "date": "2026-01-01"}, {"gemm_gflops": 1.0})


# --- the tables -----------------------------------------------------------------------------------------------------


def test_cases_have_names_of_their_own_and_providers_that_do_their_work() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for case in CASES:
        assert case.name.split("/")[0] in (case.work, "scaling")
        for provider in case.providers:
            assert case.work in BY_NAME[provider].works, f"{provider} does no {case.work}"


def test_every_library_takes_part_somewhere() -> None:
    assert {provider for case in CASES for provider in case.providers} == set(BY_NAME)
    assert {provider.name for provider in PROVIDERS if provider.kind == "library"} == set(LIBRARIES)


@pytest.mark.parametrize("bar", bars.BARS, ids=lambda bar: bar.title)
def test_every_bar_is_about_cases_in_which_its_providers_take_part(bar: bars.Bar) -> None:
    names = bars.cases_of(bar)
    assert names
    for pattern in bar.cases:
        assert matching([pattern], names), f"{pattern} fits no case that has what the bar needs"
    for case in (case for case in CASES if case.name in names):
        assert set(case.providers) & set(bar.against) or not bar.against
        if bar.quantity == "threads":
            assert set(case.threads) == {0, 1}


def test_the_grid_of_the_first_bar_is_complete() -> None:
    sizes = {(N, D) for N in (1024, 2048, 4096, 8192) for D in (64, 128, 256, 512, 1024)}
    assert {case.shape for case in CASES if case.name in bars.cases_of(bars.BARS[0])} == sizes


def test_readme_cases_are_cases() -> None:
    assert set(report.README_CASES) <= set(NAMES)


# --- providers and truths -------------------------------------------------------------------------------------------


def answer(provider: Provider, case: Case) -> tuple[Any, Any]:
    """(inputs, answer) as the measuring process gets them."""
    inputs = WORKS[case.work].inputs(case)
    leaf = inputs[0].clone().requires_grad_(WORKS[case.work].backward)
    found = provider.works[case.work](case)(leaf, *inputs[1:])
    if WORKS[case.work].backward:
        found.backward()
        found = (found.detach(), leaf.grad)
    return inputs, found


@pytest.mark.parametrize(
    ("name", "work"),
    [
        (each.name, work)
        for each in PROVIDERS
        for work in each.works
        if each.kind != "yardstick" and each.name not in SLOW
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_who_is_installed_answers_like_the_truth(name: str, work: str) -> None:
    provider = BY_NAME[name]
    if absence := provider.absence():
        pytest.skip(f"{name} is absent: {absence}")
    data = "unit" if work in ("hardest_pairs", "distance_error") else tiny(work).data
    case = tiny(work, data=data)
    inputs, found = answer(provider, case)
    _, wrong = WORKS[work].judge(case, inputs, WORKS[work].truth(*inputs), found)
    assert not wrong


@pytest.mark.parametrize("work", ["dice_focal_bce", "focal"])
def test_bfloat16_is_judged_on_the_values_that_the_providers_get(work: str) -> None:
    case = tiny(work, dtype="bfloat16")
    inputs, found = answer(BY_NAME["native"], case)
    errors, wrong = WORKS[work].judge(case, inputs, WORKS[work].truth(*inputs), found)
    assert not wrong
    assert errors["value_error"] < 1e-5


@pytest.mark.parametrize("data", ["unit", "collapse-1e-3", "lognormal"])
def test_both_truths_of_mining_agree(data: str) -> None:
    x, labels = WORKS["batch_hard"].inputs(tiny("batch_hard", data=data))
    exact, likely = hardest_pairs(x, labels), likely_hardest_pairs(x, labels)
    assert torch.equal(exact.positive_index, likely.positive_index)
    assert torch.equal(exact.negative_index, likely.negative_index)


def test_truth_of_mining_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = hardest_pairs(x, torch.tensor([0, 1, 0, 1]))
    assert found.positive_index.tolist() == [2, 3, 0, 1]
    assert found.negative_index.tolist() == [1, 0, 1, 2]
    assert found.positive.tolist() == [3, 6, 3, 6]
    assert found.negative.tolist() == [1, 1, 2, 4]


def test_wrong_pairs_are_counted_and_never_only_timed() -> None:
    x, labels = torch.tensor([[0.0], [1.0], [3.0], [7.0]]), torch.tensor([0, 1, 0, 1])
    truth = hardest_pairs(x, labels)
    right = (truth.positive_index, truth.negative_index)
    case = replace(tiny("hardest_pairs"), shape=(4, 1))
    assert judge_pairs(case, (x, labels), truth, right)[1] == ""
    errors, wrong = judge_pairs(case, (x, labels), truth, (right[0], torch.tensor([1, 2, 1, 2])))
    assert errors["wrong_negatives"] == 1
    assert wrong == "1 of 8 pairs are not the hardest"
    timed = replace(tiny("batch_hard"), shape=(4, 1))
    assert "misses the hardest" in judge_pairs(timed, (x, labels), truth, (None, torch.tensor([1, 2, 1, 2])))[1]
    assert "wrong label" in judge_pairs(timed, (x, labels), truth, (torch.tensor([0, 3, 0, 1]), right[1]))[1]


def test_beyond_a_size_the_first_anchors_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmine.bench.works.SAMPLED", 600)
    case = replace(tiny("batch_hard"), shape=(1024, 8))
    inputs, found = answer(BY_NAME["native"], case)
    truth: Pairs = likely_hardest_pairs(*inputs)
    assert len(truth.positive) == 512
    assert not judge_pairs(case, inputs, truth, found)[1]


@pytest.mark.parametrize("work", ["triplet", "dice_ce"])
def test_a_missing_share_of_the_gradient_is_wrong(work: str) -> None:
    case = tiny(work)
    inputs, (loss, gradient) = answer(BY_NAME["native"], case)
    truth = WORKS[work].truth(*inputs)
    assert not WORKS[work].judge(case, inputs, truth, (loss, gradient))[1]
    for spoiled in (0.9 * gradient, torch.zeros_like(gradient), gradient * torch.nan):
        assert "gradient error" in WORKS[work].judge(case, inputs, truth, (loss, spoiled))[1]
    assert "value error" in WORKS[work].judge(case, inputs, truth, (1.01 * loss, gradient))[1]


def test_the_strong_form_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastmine.bench.torch_forms._ROWS", 24)  # 64 rows: two blocks and a part of one
    case = tiny("batch_hard")
    inputs, found = answer(BY_NAME["eager-strong"], case)
    assert not judge_pairs(case, inputs, hardest_pairs(*inputs), found)[1]
    case = tiny("semi_hard")
    inputs, found = answer(BY_NAME["eager-strong"], case)
    assert not WORKS["semi_hard"].judge(case, inputs, WORKS["semi_hard"].truth(*inputs), found)[1]


# --- who is absent --------------------------------------------------------------------------------------------------


def test_an_absent_library_is_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.losses", None)
    assert "monai.losses" in BY_NAME["monai"].absence()


def test_a_library_whose_import_breaks_is_absent_in_one_line_without_folders(tmp_path: Path) -> None:
    (tmp_path / "broken_peer.py").write_text('raise OSError("/some/where/lib/libx.so.13: cannot open\\nmore")')
    done = succeeds(
        """
        import sys; sys.path.insert(0, sys.argv[1])
        from fastmine.bench.providers import Provider
        print(Provider("peer", "library", {}, "peer", ("broken_peer",)).absence())
        """,
        str(tmp_path),
    )  # fmt: skip
    assert done.stdout == "OSError: libx.so.13: cannot open\n"


def test_an_error_without_words_still_has_a_name() -> None:
    assert reason(RuntimeError()) == "RuntimeError:"


# --- measuring ------------------------------------------------------------------------------------------------------


def test_contenders_take_turns_in_rotating_order() -> None:
    order: list[str] = []
    contenders = [measure.Contender(lambda name=name: order.append(name), 1) for name in "abc"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "LEAST_SECONDS", 0.0)
        patch.setattr(measure, "LEAST_ROUNDS", 3)
        rounds = measure.take_turns(contenders, seconds=0.0)
    assert rounds == 3
    assert "".join(order[-9:]) == "abcbcacab"
    assert all(len(each.wall) == 3 for each in contenders)


def test_peak_memory_is_that_of_the_call() -> None:
    contender = measure.Contender(lambda: torch.ones(1 << 22).mul(2).sum(), 1)
    contender.call()
    found = measure.extra_memory(contender)
    if found is None:
        pytest.skip("this system does not tell")
    assert found + (1 << 20) >= 2 * (1 << 24)
    assert found < 2.5 * (1 << 24)


def failing(_: Case) -> Any:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory: tried to allocate everything")

    return fail


def test_one_case_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the measuring process says, of a provider that is right, one that fails, one that is absent, one wrong."""
    monkeypatch.setattr(measure, "ceilings", lambda _: {"gemm_gflops": 100.0, "copy_gbs": 10.0})
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 2)
    broken = replace(BY_NAME["eager"], name="broken", works={"triplet": failing})
    absent = replace(BY_NAME["monai"], name="absent", modules=("no_such_library",))
    other = replace(BY_NAME["eager"], name="other", works={"triplet": lambda _: lambda x, labels: x.square().mean()})
    monkeypatch.setattr(worker, "BY_NAME", {**BY_NAME, "broken": broken, "absent": absent, "other": other})
    case = replace(tiny("triplet", memory=True, threads=(0, 1)), name="tiny")
    monkeypatch.setattr(worker, "cases_on", lambda _: [case])
    events: list[dict[str, Any]] = []
    names = ["native", "broken", "absent", "other", "torch.mm"]
    worker.carry_out(worker.Plan("1", "default", 2, 0.0, [("tiny", names)]), events.append)
    assert events[0] == {"ceilings": {"gemm_gflops": 100.0, "copy_gbs": 10.0}}
    assert events[-1] == {"end": "tiny"}
    rows = [Row(**event["row"]) for event in events if "row" in event]
    assert [(r.provider, r.threads, r.status) for r in rows] == [
        ("native", 2, "ok"), ("native", 1, "ok"), ("other", 2, "wrong"), ("torch.mm", 2, "unjudged"),
        ("broken", 2, "failed"), ("absent", 2, "absent"),
    ]  # fmt: skip
    assert rows[0].extra_bytes is not None
    assert rows[0].gemm_share is not None
    assert rows[3].mm_ratio == 1.0
    assert "gradient error" in rows[2].note
    assert rows[5].note == "ModuleNotFoundError: No module named 'no_such_library'"
    assert rows[4].note == "RuntimeError: out of memory: tried to allocate everything"


def test_the_fastest_of_several_forms_takes_part() -> None:
    import time

    def slow(x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return x.sum()

    forms = Fastest({"slow": slow, "quick": torch.sum}, backward=True)
    leaf = torch.ones(3, requires_grad=True)
    assert forms(leaf) == 3
    assert forms.chosen == "quick"
    assert leaf.grad is None  # the trials had leaves of their own


class Recorder(running.Listener):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def end(self, rows: Any, done: int, total: int) -> None:
        self.seen.append(f"{done}/{total}")


@pytest.fixture
def two_heaps(tmp_path: Path) -> tuple[Path, list[Row], Recorder]:
    """One real measurement of small cases at both heaps."""
    cases = [case for case in CASES if case.name in ("triplet/N32-D128", "distance_error/collapse-1e-3")]
    recorder = Recorder()
    out = tmp_path / "rows" / "of.jsonl"
    work = running.plan(cases, ["native", "torch.cdist", "reference"])
    rows = running.carry_out(work, heaps=running.HEAPS, threads=1, pace=0.01, out=out, listener=recorder)
    return out, rows, recorder


def test_measuring_writes_a_row_per_case_provider_and_heap(two_heaps: tuple[Path, list[Row], Recorder]) -> None:
    out, rows, recorder = two_heaps
    runs, written = read(out)
    assert [(r.case, r.provider, r.heap, r.status) for r in written] == [
        ("triplet/N32-D128", "native", "default", "ok"),
        ("triplet/N32-D128", "reference", "default", "ok"),
        ("distance_error/collapse-1e-3", "native", "default", "ok"),
        ("distance_error/collapse-1e-3", "torch.cdist", "default", "wrong"),
        ("triplet/N32-D128", "native", "warm", "ok"),
        ("triplet/N32-D128", "reference", "warm", "ok"),
    ]
    assert len(rows) == len(written)
    assert recorder.seen == ["1/3", "2/3", "3/3"]
    assert [run.heap for run in runs] == ["default", "warm"]
    assert all(run.ceilings["gemm_gflops"] > 0 for run in runs)
    timed = written[0]
    assert timed.p20_ms is not None
    assert timed.p50_ms is not None
    assert timed.p80_ms is not None
    assert 0 < timed.p20_ms <= timed.p50_ms <= timed.p80_ms
    assert timed.rounds >= 5
    assert timed.threads == 1


def test_a_provider_that_kills_its_process_has_failed_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that measures is replaced by one that dies at its second provider."""
    monkeypatch.setattr(running._Worker, "_start", dying_process)
    case = next(case for case in CASES if case.name == "triplet/N32-D128")
    rows = running.carry_out(
        [(case, ["native", "eager"])], heaps=["default"], threads=1, pace=1.0, out=tmp_path / "rows.jsonl",
        listener=running.Listener(),
    )  # fmt: skip
    assert [(r.provider, r.status) for r in rows] == [("eager", "failed"), ("native", "ok")]
    assert "SIGKILL" in rows[0].note


def dying_process(self: Any, plan: str, complaints: Any) -> Any:
    import subprocess

    code = f"""
import json, os, signal
plan = json.loads({plan!r})
case, names = plan["work"][0]
for name in names:
    print(json.dumps({{"begin": [case, name]}}), flush=True)
    if name == "eager":
        os.kill(os.getpid(), signal.SIGKILL)
print(json.dumps({{"row": {{"run": "1", "case": case, "provider": "native", "status": "ok", "heap": "default",
                            "threads": 1}}}}), flush=True)
print(json.dumps({{"end": case}}), flush=True)
"""
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=complaints, text=True)


# --- rows and bars --------------------------------------------------------------------------------------------------


def test_rows_survive_being_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first = row("triplet/N32-D128", "native", 1.5, errors={"value_error": 1e-8}, loaded=False, extra_bytes=7)
    second = row("triplet/N32-D128", "monai", status="absent", note="ModuleNotFoundError: No module named 'monai'")
    for entry in (RUN, first, second):
        append(path, entry)
    assert read(path) == ([RUN], [first, second])


@pytest.mark.parametrize("text", ["{", '{"case": "x"}', '{"case": "x", "speed": 1}', "[]"])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text + "\n")
    with pytest.raises(command.UsageError, match="line 1, is no row"):
        read(path)


def test_ratios_never_mix_runs() -> None:
    old = [row("triplet/N32-D128", name, 1.0) for name in ("native", "eager")]
    new = [replace(row("triplet/N32-D128", "native", 2.0), run="2")]
    other = [row("triplet/N256-D128", "native", 1.0)]
    assert newest([*old, *other, *new]) == [*new, *other]


def verdict(title: str, rows: list[Row], heap: str = "default") -> bars.Verdict:
    (found,) = [each for each in bars.judge([RUN], rows) if each.bar.title == title and each.heap == heap]
    return found


def test_a_bar_is_as_good_as_its_worst_case() -> None:
    names = [name for name in NAMES if name.startswith("batch_hard/N") and "100000" not in name]
    rows = [row(name, "native", 5.0) for name in names] + [row(name, "torch.mm", 10.0) for name in names]
    title = "batch-hard forward / torch.mm(out=)"
    assert verdict(title, rows).met is True
    rows[3] = row(names[3], "native", 9.0)
    missed = verdict(title, rows)
    assert (missed.met, missed.case, missed.value) == (False, names[3], 0.9)
    assert missed.off_by == pytest.approx(1.5)
    assert verdict(title, rows[4:]).met is None  # a case is missing


def test_bars_on_mining_against_libraries_are_half_as_high_with_a_warm_heap() -> None:
    def rows(heap: str) -> list[Row]:
        times = {"native": 1.0, "pytorch-metric-learning": 25.0, "compiled": 7.0}
        return [row("triplet/N4096-D128", name, time, heap=heap) for name, time in times.items()]

    found = [*rows("default"), *rows("warm")]
    assert verdict("triplet N=4096 / PML", found).met is False
    assert verdict("triplet N=4096 / PML", found, "warm").met is True
    assert verdict("triplet N=4096 / best torch.compile", found, "warm").met is False


def test_bars_that_no_row_is_about_are_counted_and_not_listed() -> None:
    text = report.bar_table(bars.judge([RUN], [row("triplet/N256-D128", "native", 1.0)]))
    assert "triplet N=256 / PML" in text
    assert "triplet N=4096" not in text
    others = sum(bar.device == "cpu" and not bar.needs for bar in bars.BARS)
    assert text.endswith(f"0 bars met, 0 missed, {others} not measured, or in part")


def test_a_wrong_or_absent_peer_meets_no_bar() -> None:
    title = "triplet N=256 / PML"
    ours = row("triplet/N256-D128", "native", 1.0)
    for status in ("wrong", "absent", "failed"):
        peer = row("triplet/N256-D128", "pytorch-metric-learning", 100.0, status=status)
        found = verdict(title, [ours, peer])
        assert found.met is None
        assert status in found.why
    assert verdict(title, [ours]).met is None


def test_the_bar_for_screening_is_for_processors_that_can() -> None:
    title = "triplet N=4096 / strongest eager, screened in bf16"
    rows = [row("triplet/N4096-D128", "native", 1.0), row("triplet/N4096-D128", "eager", 9.0)]
    assert not [each for each in bars.judge([RUN], rows) if each.bar.title == title]
    able = replace(RUN, machine={**RUN.machine, "features": ["avx512_bf16"]})
    (found,) = [each for each in bars.judge([able], rows) if each.bar.title == title]
    assert found.met is False


def test_threads_memory_wrong_pairs_and_errors_are_bars_too() -> None:
    case = "dice_focal_bce/4x4x512x512"
    gradient = 4 * 4 * 512 * 512 * 4
    one_and_two = [row(case, "native", 10.0), row(case, "native", 17.0, threads=1)]
    assert bars._VALUES["threads"](bars.BARS[0], one_and_two) == pytest.approx(1.7)
    held = [row(case, "native", 1.0, extra_bytes=gradient)]
    assert bars._VALUES["bytes"](bars.BARS[0], held) == pytest.approx(1.0, rel=0.02)
    pairs = [row("hardest_pairs/cauchy", "native", errors={"wrong_positives": 1.0, "wrong_negatives": 2.0})]
    assert bars._VALUES["wrong"](bars.BARS[0], pairs) == 3.0


# --- what is shown --------------------------------------------------------------------------------------------------


def measured() -> list[Row]:
    times = {"native": 2.0, "eager": 9.0, "eager-strong": 8.0, "compiled": 6.0, "pytorch-metric-learning": 50.0}
    rows = [row("triplet/N256-D128", name, time) for name, time in times.items()]
    rows += [row("triplet/N256-D128", name, time / 2, heap="warm") for name, time in times.items()]
    rows += [row("triplet/N256-D128", "open-metric-learning", status="absent", note="No module named 'oml'")]
    return rows


def test_the_table_of_a_case_names_the_absent_and_the_wrong() -> None:
    rows = [*measured()[:2], row("triplet/N256-D128", "kornia", 1.0, status="wrong", note="value error 1e-2 > 1e-4")]
    rows.append(row("triplet/N256-D128", "monai", status="absent", note="No module named 'monai'"))
    text = report.case_table(rows)
    assert "WRONG: value error 1e-2 > 1e-4" in text
    assert "absent: No module named 'monai'" in text
    assert "4.50" in text


def test_the_readme_section_holds_times_ratios_and_who_is_absent() -> None:
    text = report.readme_section([RUN], measured(), "plots/peers.svg")
    assert "| triplet, N = 256 | 2 ms | 3.0x (3.0x) | 4.0x (4.0x) | PML 25.0x (25.0x), OML absent |" in text
    assert "](plots/peers.svg)" in text
    assert "a processor" in text


def test_the_readme_is_written_between_its_markers_only(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.write_readme(path, "new")
    assert path.read_text() == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    assert report.committed_section(path.read_text()) == "new"
    path.write_text("no markers\n")
    with pytest.raises(command.UsageError, match="needs the lines"):
        report.write_readme(path, "new")


def test_the_readme_says_what_the_committed_rows_say() -> None:
    path = REPOSITORY / "benchmarks" / "results" / "cpu.jsonl"
    section = report.committed_section((REPOSITORY / "README.md").read_text())
    if not path.exists():
        assert section == ""
        return
    link = "benchmarks/plots/" + plots.PEERS
    assert section == report.readme_section(*read(path), link if (REPOSITORY / link).exists() else "")


def test_the_picture_ended_in_empty_panels(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (drawn,) = plots.draw(tmp_path, measured())
    cases = {found.case for found in measured()} & set(plots.README_CASES)
    assert len(cases) % 3
    assert drawn.read_text().count('id="axes_') == len(cases)


def test_pictures_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grown = [
        row(case.name, "native", float(case.shape[0]), extra_bytes=case.shape[0] << 10)
        for case in CASES
        if case.scaling
    ]
    for folder in ("a", "b"):
        drawn = plots.draw(tmp_path / folder, [*measured(), *grown])
    assert [path.name for path in drawn] == [plots.PEERS, plots.SCALING]
    for path in drawn:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
        assert path.stat().st_size < 300_000


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "--help"])
    text = capsys.readouterr().out
    for word in ("--quick", "--check-bars", "exit codes:", "fastmine bench --peers", "WRONG"):
        assert word in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--cases nothing/*", "--cases: nothing is called nothing/*"),
        ("--providers fairy", "--providers: nothing is called fairy"),
        ("--providers native --cases triplet/* --threads 0", "--threads: must be a whole number from 1 to 4096"),
        ("--cases triplet/* --providers kornia", "none of these providers takes part"),
        ("--rows nowhere.jsonl", "there is no file of rows nowhere.jsonl"),
        ("--heap hot", "invalid choice: 'hot'"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(argv: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv.split()]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_list_measures_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Provider, "absence", lambda self: "not here" if self.name == "monai" else "")
    monkeypatch.setattr(Provider, "version", lambda _: "1.0")
    assert main(["bench", "--list", "--cases", "triplet/*"]) == 0
    text = capsys.readouterr().out
    assert "triplet/N4096-D128" in text
    assert "batch_hard" not in text
    assert "absent: not here" in text
    assert not Path("runs").exists()


def test_a_quick_look_at_one_case(capsys: pytest.CaptureFixture[str]) -> None:
    argv = "bench --quick --cases triplet/N32-D128 --providers native,eager --threads 1"
    assert main(argv.split()) == 0
    text = capsys.readouterr().out
    assert "triplet/N32-D128   default heap" in text
    assert "rows in runs/bench-1.jsonl" in text
    assert "not measured" in text
    assert len(read(Path("runs/bench-1.jsonl"))[1]) == 2


def stored(rows: list[Row], path: str = "rows.jsonl") -> Path:
    for entry in (RUN, *rows):
        append(Path(path), entry)
    return Path(path)


def test_rows_are_shown_again_and_written_to_a_readme(capsys: pytest.CaptureFixture[str]) -> None:
    stored(measured())
    Path("README.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    assert main(["bench", "--rows", "rows.jsonl", "--readme", "README.md"]) == 0
    text = capsys.readouterr().out
    assert "absent: open-metric-learning: No module named 'oml'" in text
    assert "triplet N=256 / PML" in text
    assert "PML 25.0x" in Path("README.md").read_text()


def test_json_is_all_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    stored(measured())
    assert main(["bench", "--rows", "rows.jsonl", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == len(measured())
    assert {"bar", "heap", "limit", "met", "value", "case", "why"} == set(found["bars"][0])


def test_a_missed_bar_fails_only_where_it_is_asked_for() -> None:
    stored([row("triplet/N256-D128", "native", 1.0), row("triplet/N256-D128", "compiled", 2.0)])
    assert main(["bench", "--rows", "rows.jsonl"]) == 0
    assert main(["bench", "--rows", "rows.jsonl", "--check-bars"]) == 1


def test_a_wrong_answer_of_ours_fails(capsys: pytest.CaptureFixture[str]) -> None:
    stored([row("triplet/N256-D128", "native", 1.0, status="wrong", note="value error 1e-2 > 1e-4")])
    assert main(["bench", "--rows", "rows.jsonl"]) == 1
    assert "triplet/N256-D128: wrong: value error" in capsys.readouterr().err


def test_what_was_measured_before_an_interruption_is_kept(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, out: Path, **__: Any) -> None:
        append(out, RUN)
        append(out, measured()[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "carry_out", interrupted)
    assert main(["bench", "--cases", "triplet/N256-D128", "--out", "kept.jsonl"]) == 130
    assert "what was measured is in kept.jsonl" in capsys.readouterr().err
    assert len(read(Path("kept.jsonl"))[1]) == 1


def test_libraries_and_compilation_only_where_they_are_asked_for() -> None:
    def providers(argv: str) -> set[str]:
        from fastmine.cli import parser

        return set(command.chosen_providers(parser().parse_args(["bench", *argv.split()])))

    assert not providers("") & set(LIBRARIES)
    assert "compiled" in providers("")
    assert "compiled" not in providers("--quick --peers")
    assert set(LIBRARIES) <= providers("--peers")
    assert providers("--quick --providers comp*") == {"compiled"}


# --- on a GPU, as far as none is needed ------------------------------------------------------------------------------


def test_a_gpu_measures_the_same_cases_and_larger_ones() -> None:
    table = cases_on("cuda")
    assert [case.name for case in table] == [*NAMES, *(case.name for case in CUDA_CASES)]
    assert {case.device for case in table} == {"cuda"}
    assert cases_on("cpu") == CASES
    for case in CUDA_CASES:
        assert case.name not in NAMES
        for provider in case.providers:
            assert case.work in BY_NAME[provider].works
            assert "cuda" in BY_NAME[provider].devices


def test_who_runs_where() -> None:
    from fastmine.cli import parser

    chosen = {
        device: set(command.chosen_providers(parser().parse_args(["bench", "--peers", "--device", device])))
        for device in ("cpu", "cuda")
    }
    assert chosen["cpu"] - chosen["cuda"] == {"faiss", "scikit-learn", "pykeops"}
    assert chosen["cuda"] - chosen["cpu"] == {"triton"}
    assert command._heaps(parser().parse_args(["bench", "--device", "cuda"])) == ("default",)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--device", "cuda", "--cases", "triplet/*"]) == 2
    error = capsys.readouterr().err
    assert "--device cuda: torch " in error
    assert error.endswith("finds no CUDA device\n")
    assert not Path("runs").exists()
    assert main(["bench", "--device", "cuda", "--list", "--cases", "dice_focal_bce/16x*"]) == 0
    assert "dice_focal_bce/16x4x1024x1024-bf16-uint8" in capsys.readouterr().out


class Event:
    """Of a device whose turns all take six milliseconds."""

    log: list[str]

    def __init__(self, **_: Any) -> None: ...

    def record(self) -> None:
        self.log.append("record")

    def synchronize(self) -> None:
        self.log.append("wait")

    def elapsed_time(self, _: Any) -> float:
        return 6.0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A GPU that is none: what is asked of it is written down, and its allocator handed out 250 bytes."""
    log: list[str] = []
    monkeypatch.setattr(Event, "log", log, raising=False)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 350)
    return log


def test_a_turn_is_timed_by_the_clock_of_the_device(device: list[str]) -> None:
    contender = measure.DeviceContender(lambda: device.append("call"), 1, calls=3)
    contender.turn()
    assert device == ["synchronize", "record", "call", "call", "call", "record", "wait"]
    assert contender.wall == [pytest.approx(2e-3)]
    assert contender.waited == [0.0]


@pytest.fixture
def graphs(device: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Streams and graphs of that GPU."""

    class Stream:
        def wait_stream(self, _: Any) -> None:
            device.append("wait for a stream")

    class Graph:
        def replay(self) -> None:
            device.append("replay")

    @contextmanager
    def within(word: str) -> Iterator[None]:
        device.append(word)
        yield
        device.append(f"end {word}")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: within("aside"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: within("capture"))
    return device


def test_a_captured_call_is_warmed_up_elsewhere_and_then_only_replayed(graphs: list[str]) -> None:
    def call() -> str:
        graphs.append("call")
        return "the answer"

    replay = measure.captured(call, lambda: graphs.append("prepare"))
    aside = ["wait for a stream", "aside", *["prepare", "call"] * measure.WARMING, "end aside", "wait for a stream"]
    assert graphs == [*aside, "prepare", "capture", "call", "end capture"]
    graphs.clear()
    assert [replay(), replay()] == ["the answer"] * 2
    assert graphs == ["replay"] * 2


def test_a_captured_case_is_judged_and_timed_by_its_replays(graphs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "device_ceilings", lambda: {"gemm_gflops": 100.0, "copy_gbs": 10.0})
    case = replace(tiny("triplet"), name="tiny", device="cpu:0", captured=True)
    monkeypatch.setattr(worker, "cases_on", lambda _: [case])
    events: list[dict[str, Any]] = []
    worker.carry_out(worker.Plan("1", "default", 1, 0.0, [("tiny", ["eager"])], device="cpu:0"), events.append)
    (found,) = (Row(**event["row"]) for event in events if "row" in event)
    assert found.status == "ok"
    assert set(found.errors) == {"value_error", "gradient_error"}
    replays = graphs[graphs.index("end capture") :]
    assert replays[1] == "replay"
    assert set(replays) == {"end capture", "replay", "synchronize", "record", "wait"}


def test_memory_on_a_gpu_is_what_its_allocator_handed_out(device: list[str]) -> None:
    assert measure.extra_device_memory(measure.DeviceContender(lambda: None, 1)) == 250
    assert device == ["synchronize", "synchronize"]


def test_one_case_on_a_device(device: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second name of the CPU stands for the GPU."""
    case = replace(tiny("triplet", memory=True), name="tiny", device="cpu:0")
    monkeypatch.setattr(measure, "device_ceilings", lambda: {"gemm_gflops": 100.0, "copy_gbs": 10.0})
    monkeypatch.setattr(worker, "cases_on", lambda _: [case])
    events: list[dict[str, Any]] = []
    plan = worker.Plan("1", "default", 1, 0.0, [("tiny", ["eager", "eager-strong", "torch.mm"])], device="cpu:0")
    worker.carry_out(plan, events.append)
    rows = [Row(**event["row"]) for event in events if "row" in event]
    assert [(r.provider, r.status, r.device, r.extra_bytes) for r in rows] == [
        ("eager", "ok", "cpu:0", 250), ("eager-strong", "ok", "cpu:0", 250), ("torch.mm", "unjudged", "cpu:0", 250),
    ]  # fmt: skip
    assert all(r.p50_ms is not None and r.p50_ms <= 6.0 for r in rows)
    assert "record" in device


def test_a_kernel_that_breaks_the_device_ends_the_process_in_its_own_name(
    device: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After such an error every call of the process fails: the next provider would be blamed, and every later case."""

    def raises() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    broken = replace(BY_NAME["eager"], name="broken", works={"triplet": failing})
    monkeypatch.setattr(worker, "BY_NAME", {**BY_NAME, "broken": broken})
    monkeypatch.setattr(worker, "cases_on", lambda _: [replace(tiny("triplet"), name="tiny", device="cpu:0")])
    monkeypatch.setattr(measure, "device_ceilings", dict)
    monkeypatch.setattr(torch.cuda, "synchronize", raises)
    events: list[dict[str, Any]] = []
    plan = worker.Plan("1", "default", 1, 0.0, [("tiny", ["eager", "broken", "eager-strong"])], device="cpu:0")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        worker.carry_out(plan, events.append)
    assert events[-1] == {"begin": ["tiny", "broken"]}


def test_of_every_work_it_is_known_which_op_answers() -> None:
    assert set(OPS) == set(WORKS)
    assert set(OPS.values()) <= set(_ops.OPS)


def test_what_the_reference_answers_on_a_gpu_is_noted() -> None:
    case = tiny("dice_ce", device="cuda")
    note = BY_NAME["native"].note(case)
    assert note.startswith("answered by the reference: ") != _ops.answers("segmentation_loss", "CUDA")
    assert BY_NAME["native"].note(tiny("dice_ce")) == "" or _ops.reasons["CPU"]
    assert BY_NAME["eager"].note(case) == ""


def test_masks_of_bytes_cost_a_byte() -> None:
    case = tiny("dice_focal_bce", dtype="bfloat16", data="pixels-uint8")
    work = WORKS[case.work]
    logits, target = work.inputs(case)
    assert (logits.dtype, target.dtype) == (torch.bfloat16, torch.uint8)
    assert work.traffic is not None
    assert work.traffic(case) == logits.numel() * (3 * 2 + 2 * 1)


def test_rows_of_two_devices_stay_apart() -> None:
    case = "dice_focal_bce/4x4x512x512"
    both = [row(case, "native", 4.0), replace(row(case, "native", 0.2, device="cuda"), run="2")]
    assert newest(both) == both
    assert {each.bar.device for each in bars.judge([RUN], both[:1])} == {"cpu"}
    assert {each.bar.device for each in bars.judge([RUN], both)} == {"cpu", "cuda"}
    section = report.readme_section([RUN, replace(RUN, machine={"device": "a GPU"})], both)
    assert "4 ms" in section
    assert report.case_table(both[1:]).startswith(f"{case}   cuda\n")


def test_the_readme_is_not_written_from_rows_of_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    stored([row("triplet/N256-D128", "native", 1.0, device="cuda")])
    Path("README.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    assert main(["bench", "--rows", "rows.jsonl", "--readme", "README.md"]) == 2
    assert "rows of a GPU alone" in capsys.readouterr().err


def test_bars_on_a_gpu_are_about_bandwidth_and_other_forms() -> None:
    found = next(case for case in CUDA_CASES if case.name == "dice_focal_bce/16x4x1024x1024")
    title = "64 M float32 logits / copy"
    for share, met in ((0.9, True), (0.5, False)):
        rows = [Row("1", found.name, "native", "ok", "default", 2, p50_ms=1.0, copy_share=share, device="cuda")]
        assert verdict(title, rows).met is met
    rows = [Row("1", found.name, "native", "ok", "default", 2, p50_ms=1.0, device="cuda")]
    assert verdict(title, rows).met is None


def test_times_on_a_gpu_are_held_to_milliseconds() -> None:
    found = next(case for case in CUDA_CASES if case.name == "batch_hard/N65536-D128")
    for milliseconds, met in ((1.4, True), (1.6, False)):
        rows = [Row("1", found.name, "native", "ok", "default", 2, p50_ms=milliseconds, device="cuda")]
        assert verdict("batch-hard N=65,536, milliseconds", rows).met is met


def test_the_machine_of_a_gpu_is_described_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "device_name", lambda: "a GPU, 139 GiB")
    machine = measure.machine(2, "cuda")
    assert machine["device"] == "a GPU, 139 GiB"
    assert "device" not in measure.machine(2)
    text = report.describe(Run("1", "default", machine, {"copy_gbs": 4300.0, "bf16_gflops": 780e3}))
    assert text.startswith("a GPU, 139 GiB; fastmine ")
    assert text.endswith("bf16 780 TFLOP/s, copy 4.30 TB/s")


def test_the_triton_form_is_right_in_its_interpreter() -> None:
    pytest.importorskip("triton")
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import torch
        from test_bench import WORKS, replace, tiny
        from fastmine.bench.triton_forms import dice_focal_bce
        for dtype, data in (("float32", "pixels"), ("bfloat16", "pixels-uint8")):
            case = replace(tiny("dice_focal_bce"), dtype=dtype, data=data, shape=(2, 3, 37, 41))
            x, t = WORKS[case.work].inputs(case)
            truth = WORKS[case.work].truth(x, t)
            loss = dice_focal_bce(case)(x.requires_grad_(), t)
            gradient = torch.autograd.grad(loss, x)[0]
            assert not WORKS[case.work].judge(case, (x, t), truth, (loss.detach(), gradient))[1]
    """
    succeeds(code, str(REPOSITORY / "tests"), TRITON_INTERPRET="1")
