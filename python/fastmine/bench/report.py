"""What the rows have to say, in words: tables for a terminal, and the README's section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..recipes.errors import UsageError
from .bars import Verdict, judge
from .cases import CASES, LIBRARIES
from .rows import Row, Run, newest

BEGIN, END = "<!-- fastmine bench: begin -->", "<!-- fastmine bench: end -->"

README_CASES: Mapping[str, str] = {
    "triplet/N32-D128": "triplet, N = 32",
    "triplet/N256-D128": "triplet, N = 256",
    "triplet/N4096-D128": "triplet, N = 4,096",
    "batch_all/N1024-D128": "every triplet (batch-all), N = 1,024",
    "supcon/N4096-D128": "SupCon, N = 4,096",
    "ntxent/N4096-D128": "NT-Xent, N = 4,096",
    "multi_similarity/N4096-D128": "multi-similarity, N = 4,096",
    "dice_focal_bce/8192": "Dice + focal + BCE, 8,192 logits",
    "dice_focal_bce/4x4x512x512": "Dice + focal + BCE, 4 x 4 x 512²",
    "dice_focal_bce/2x2x96x96x96": "Dice + focal + BCE, 2 x 2 x 96³",
    "dice_focal_bce/4x4x512x512-bf16": "the same in bfloat16, 4 x 4 x 512²",
    "dice_ce/4x4x512x512": "softmax Dice + CE, 4 x 4 x 512²",
    "dice_ce/2x14x96x96x96": "softmax Dice + CE, 2 x 14 x 96³",
}
SHORT = {
    "pytorch-metric-learning": "PML", "sentence-transformers": "sentence-transformers",
    "open-metric-learning": "OML", "monai": "MONAI", "segmentation-models-pytorch": "smp",
}  # fmt: skip


# --- the terminal ---------------------------------------------------------------------------------------------------


def case_table(rows: Sequence[Row]) -> str:
    """Every provider of one case and heap, the kernels first."""
    title = f"{rows[0].case}   " + (f"{rows[0].heap} heap" if rows[0].device == "cpu" else rows[0].device)
    if not any(row.p50_ms is not None for row in rows):
        return "\n".join([title, *_aligned([[row.provider, _outcome(row)] for row in rows])])
    ours = next((row.p50_ms for row in rows if row.provider == "native" and row.measured), None)
    lines = [["", "p50", "p20 .. p80", "processor", "memory", "x native", "ceiling", ""]]
    most = max(row.threads for row in rows)
    for row in rows:
        threads = ", 1 thread" if row.threads < most else ""
        if row.p50_ms is None or row.p20_ms is None or row.p80_ms is None or row.cpu_ms is None:
            lines.append([row.provider, "", "", "", "", "", "", _outcome(row)])
            continue
        lines.append([
            row.provider + threads, milliseconds(row.p50_ms),
            f"{milliseconds(row.p20_ms)} .. {milliseconds(row.p80_ms)}", milliseconds(row.cpu_ms),
            "" if row.extra_bytes is None else mebibytes(row.extra_bytes),
            "" if ours is None else f"{row.p50_ms / ours:.2f}", _ceiling(row), _outcome(row),
        ])  # fmt: skip
    return "\n".join([title, *_aligned(lines)])


def _ceiling(row: Row) -> str:
    if row.gemm_share is not None and row.gemm_share > 0.005:
        return f"{row.gemm_share:.0%} of GEMM"
    if row.copy_share is not None and row.copy_share > 0.005:
        return f"{row.copy_share:.0%} of copy"
    return ""


def _outcome(row: Row) -> str:
    wrongs = sum(value for name, value in row.errors.items() if name.startswith("wrong_"))
    error = row.errors.get("value_error")
    said = {
        "ok": "" if row.p50_ms is not None else ("right" if error is None else f"error {error:.1e}"),
        "wrong": "WRONG:",
        "absent": "absent:",
        "failed": "FAILED:",
        "unjudged": "",
    }[row.status]
    if row.status == "ok" and wrongs:
        said = f"{wrongs:.0f} near ties swapped"
    return " ".join(filter(None, (said, row.note, "(machine loaded)" if row.loaded else "")))


def bar_table(verdicts: Sequence[Verdict]) -> str:
    """Each bar that this selection of cases is about: met or missed, and by how much."""
    lines = [["bar", "heap", "limit", "measured", "", "worst case"]]
    for verdict in verdicts:
        if not verdict.begun:
            continue
        sign = "<=" if verdict.bar.most() else ">="
        if verdict.bar.quantity == "error":
            sign = "<"
        lines.append([
            verdict.bar.title, verdict.heap, f"{sign} {verdict.limit:g}",
            "" if verdict.value is None else f"{verdict.value:.3g}", _word(verdict),
            verdict.why if verdict.met is None else verdict.case,
        ])  # fmt: skip
    counts = [sum(verdict.met is met for verdict in verdicts) for met in (True, False, None)]
    summary = f"{counts[0]} bars met, {counts[1]} missed, {counts[2]} not measured, or in part"
    return "\n".join([*(_aligned(lines) if len(lines) > 1 else ()), summary])


def _word(verdict: Verdict) -> str:
    if verdict.met is None:
        return "not measured" if verdict.value is None else "in part"
    if verdict.met:
        return "met"
    return f"MISSED by {verdict.off_by:.2f}x" if verdict.limit else "MISSED"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first and the last to the left, those between to the right."""
    columns = list(zip(*lines, strict=True))
    for k, cells in enumerate(columns):
        width, side = max(map(len, cells)), "<" if k in (0, len(columns) - 1) else ">"
        columns[k] = tuple(f"{cell:{side}{width}}" for cell in cells)
    return [("  " + "  ".join(line)).rstrip() for line in zip(*columns, strict=True)]


def milliseconds(value: float) -> str:
    """Three digits, in the unit that suits."""
    if value < 1:
        return f"{value * 1e3:.3g} us"
    if value < 1000:
        return f"{value:.3g} ms"
    return f"{value / 1e3:.3g} s"


def mebibytes(value: float) -> str:
    """Three digits of MiB."""
    return f"{value / 2**20:.3g} MiB" if value >= 2**16 else "0 MiB"


def describe(run: Run) -> str:
    """The machine in two lines."""
    found = run.machine
    versions = found.get("versions", {})
    if "device" in found:
        shares = ", ".join(f"{name.partition('_')[0]} {value / 1e3:.0f} TFLOP/s" for name, value in run.ceilings.items()
                           if name.endswith("gflops"))  # fmt: skip
        return (
            f"{found['device']}; fastmine {versions.get('fastmine')}, torch {versions.get('torch')}; "
            f"{found.get('date')} UTC\n{shares}, copy {run.ceilings.get('copy_gbs', 0) / 1e3:.2f} TB/s"
        )
    return (
        f"{found.get('cpu')}, {found.get('cores')} cores, {found.get('threads')} threads, {found.get('memory_gb')} GB; "
        f"{found.get('kernels')}\n"
        f"fastmine {versions.get('fastmine')}, torch {versions.get('torch')}, {found.get('system')}; "
        f"{found.get('date')} UTC, load {found.get('load')}; "
        f"matrix product {run.ceilings.get('gemm_gflops', 0):.0f} GFLOP/s, "
        f"copy {run.ceilings.get('copy_gbs', 0):.1f} GB/s ({run.heap} heap)"
    )


# --- the README -----------------------------------------------------------------------------------------------------


_INTRODUCTION = (
    "Time of a module's call and its backward pass, and how many times as long others take: with the default heap, and "
    "in brackets with one kept warm, which spares everybody page faults. An answer that differs from the float64 truth "
    "counts as wrong, not as fast."
)


def readme_section(runs: Sequence[Run], rows: Sequence[Row], plots: str = "") -> str:
    """The Markdown between the markers: what it takes, beside what others take."""
    rows = [row for row in newest(rows) if row.device == "cpu"]
    run = [run for run in runs if "device" not in run.machine][-1]
    lines = [
        _INTRODUCTION,
        "",
        "| forward + backward | fastmine | best `torch.compile` | best eager PyTorch | libraries |",
        "|---|---|---|---|---|",
        *(_readme_row(name, title, rows) for name, title in README_CASES.items() if _times_of(rows, name, "default")),
        "",
        *_mining_lines(rows),
        *_accuracy_lines(rows),
        "",
    ]
    if plots:
        lines += [f"![Time against torch and the libraries, and growth with the size of the batch]({plots})", ""]
    lines.append(_conditions(run, judge(runs, rows)))
    return "\n".join(lines)


def _readme_row(name: str, title: str, rows: Sequence[Row]) -> str:
    default, warm = (_times_of(rows, name, heap) for heap in ("default", "warm"))
    ours = default.get("native")
    if ours is None:
        return f"| {title} | not measured | | | |"

    def ratio(provider: str) -> str:
        text = f"{default[provider] / ours:.1f}x"
        if provider in warm and "native" in warm:
            text += f" ({warm[provider] / warm['native']:.1f}x)"
        return text

    def best(providers: Sequence[str]) -> str:
        found = [provider for provider in providers if provider in default]
        return ratio(min(found, key=default.__getitem__)) if found else "-"

    peers = [
        f"{SHORT.get(row.provider, row.provider)} {ratio(row.provider) if row.provider in default else row.status}"
        for row in rows
        if row.case == name and row.heap == "default" and row.provider in LIBRARIES
    ]
    cells = [title, milliseconds(ours), best(["compiled"]), best(["eager", "eager-strong"]), ", ".join(peers) or "-"]
    return "| " + " | ".join(cells) + " |"


def _times_of(rows: Iterable[Row], case: str, heap: str) -> dict[str, float]:
    """Medians by provider, the most threads counting."""
    found: dict[str, tuple[int, float]] = {}
    for row in rows:
        if row.case == case and row.heap == heap and row.measured and row.p50_ms is not None:
            found[row.provider] = max(found.get(row.provider, (0, 0.0)), (row.threads, row.p50_ms))
    return {provider: time for provider, (_, time) in found.items()}


def _mining_lines(rows: Sequence[Row]) -> list[str]:
    """Batch-hard mining against the bare matrix product."""
    shares = [
        row.mm_ratio
        for row in rows
        if row.work == "batch_hard" and row.provider == "native" and row.mm_ratio is not None and row.threads > 1
    ]
    large = next((row for row in rows if row.case == "batch_hard/N100000-D64" and row.measured), None)
    found = []
    if shares:
        found.append(
            f"Mining the hardest pairs takes {min(shares):.2f} to {max(shares):.2f} of the time of the bare matrix "
            "product, `torch.mm(out=)` of the same N (1,024 to 8,192) and D (64 to 1,024)."
        )
    if large is not None and large.p50_ms is not None and large.extra_bytes is not None:
        found.append(
            f"100,000 embeddings of 64 features: {milliseconds(large.p50_ms)}, with {mebibytes(large.extra_bytes)} "
            "beside the embeddings' own 24.4 MiB."
        )
    return found


def _accuracy_lines(rows: Sequence[Row]) -> list[str]:
    """Wrong pairs of all who answered with pairs, over the whole sweep."""
    wrong: dict[str, float] = {}
    total = sum(case.work == "hardest_pairs" for case in CASES) * 1024
    for row in rows:
        if row.work == "hardest_pairs" and "wrong_negatives" in row.errors:
            wrong[row.provider] = wrong.get(row.provider, 0.0) + row.errors["wrong_negatives"]
    if "native" not in wrong:
        return []
    others = ", ".join(
        f"{SHORT.get(name, name)} {count / total:.0%}"
        for name, count in sorted(wrong.items(), key=lambda item: item[1])
        if name != "native"
    )
    return [
        f"Wrong hardest negatives over five stages of collapse, log-normal and Cauchy embeddings: fastmine "
        f"{wrong['native'] / total:.0%}" + (f"; {others}." if others else ".")
    ]


def _conditions(run: Run, verdicts: Sequence[Verdict]) -> str:
    met = sum(verdict.met is True for verdict in verdicts)
    machine = run.machine
    return (
        f"{machine.get('cpu')}, {machine.get('cores')} cores, torch {machine.get('versions', {}).get('torch')}, "
        f"{str(machine.get('date', ''))[:10]}; {met} of {len(verdicts)} bars met. Every row, with quantiles, processor "
        "time, memory and versions, is in [benchmarks/results](benchmarks/results); the floors, what was tried and "
        "what is missed in [benchmarks/NOTES.md](benchmarks/NOTES.md). `fastmine bench` measures your machine."
    )


def write_readme(path: Path, section: str) -> None:
    """Put the section between the markers."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UsageError(f"{path} needs the lines {BEGIN} and {END}, once each and in this order")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")


def committed_section(text: str) -> str:
    """What stands between the markers of a README."""
    return text.partition(BEGIN)[2].partition(END)[0].strip("\n")
