"""What the kernels are held to: a row per bar, and what the measured rows say to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .cases import DEVICES, DISTRIBUTIONS, LIBRARIES, SPREADS, cases_on, matching
from .combinations import COMBINATIONS
from .rows import Row, Run

Quantity = Literal["times", "share", "ms", "copy", "threads", "bytes", "wrong", "error", "finishes"]
PAGES = float(1 << 18)
"""Bytes to which allocator and kernel may round the peak of a call."""
_TABLES = {device: {case.name: case for case in cases_on(device)} for device in DEVICES}


@dataclass(frozen=True)
class Bar:
    """One thing that must hold in every one of its cases.

    ============ ========================================================================================
    quantity     what is compared with ``limit``
    ============ ========================================================================================
    ``times``    time of the fastest of ``against`` over ours: at least the limit, times ``warm`` at the warm heap
    ``share``    our time over that of ``against``: at most the limit
    ``ms``       our time in milliseconds: at most the limit
    ``copy``     our share of the bandwidth of a copy, counting what must be read and written: at least the limit
    ``threads``  our time at one thread over that at two: at least the limit
    ``bytes``    our peak beyond the inputs over ``allowance(case)``: at most the limit
    ``wrong``    our wrong pairs: at most the limit
    ``error``    our error over that of ``against``: below the limit
    ``finishes`` 1 if there is a time: at least the limit
    ============ ========================================================================================
    """

    title: str
    cases: tuple[str, ...]
    quantity: Quantity
    limit: float
    against: tuple[str, ...] = ()
    warm: float = 1.0
    needs: str = ""  # a feature of the processor
    device: str = "cpu"

    def most(self) -> bool:
        """Whether smaller is better."""
        return self.quantity in ("share", "ms", "bytes", "wrong", "error")


@dataclass(frozen=True)
class Verdict:
    """A bar at one heap: the worst case and its value.

    ``met`` is None where cases that could still miss it were not measured, and ``begun`` False where no row is
    about it.
    """

    bar: Bar
    heap: str
    limit: float
    met: bool | None
    value: float | None = None
    case: str = ""
    why: str = ""
    begun: bool = True

    @property
    def off_by(self) -> float:
        """By which factor the limit is missed (above 1) or met."""
        if self.value is None or not self.limit or not self.value:
            return 1.0
        return self.value / self.limit if self.bar.most() else self.limit / self.value


def _times(
    title: str, case: str | tuple[str, ...], limit: float, against: str | tuple[str, ...], warm: float = 1.0,
    needs: str = "",
) -> Bar:  # fmt: skip
    cases = (case,) if isinstance(case, str) else case
    others = (against,) if isinstance(against, str) else against
    return Bar(title, cases, "times", limit, others, warm, needs)


PML, OML, SMP = "pytorch-metric-learning", "open-metric-learning", "segmentation-models-pytorch"
_TRIPLE = ("dice_focal_bce/4x4x512x512*", "dice_focal_bce/2x2x96x96x96*")
_SOFTMAX = ("dice_ce/4x4x512x512", "dice_ce/2x14x96x96x96")
_SCALED = (
    *(f"batch_hard/N{N}-D128" for N in (2048, 4096, 8192)), "triplet/N4096-D128", "dice_focal_bce/4x4x512x512",
    "dice_focal_bce/2x2x96x96x96", *_SOFTMAX,
)  # fmt: skip


def _cuda() -> Iterator[Bar]:
    """On a GPU: against the bandwidth of its memory, and PyTorch; times are for one of Hopper."""
    many = "batch_hard/N65536-D128"
    yield Bar("batch-hard N=65,536, milliseconds", (many,), "ms", 1.5, device="cuda")
    strongest = ("eager", "eager-strong")
    yield Bar("batch-hard N=65,536 / strongest eager", (many,), "times", 20.0, strongest, device="cuda")
    yield Bar("batch-hard N=65,536 / torch.compile", (many,), "times", 5.0, ("compiled",), device="cuda")
    yield Bar("batch-hard N=1,048,576, milliseconds", ("batch_hard/N1048576-D128",), "ms", 500.0, device="cuda")
    yield Bar("mining memory / (2 x embeddings + 128 bytes a row)", ("batch_hard/N*-D*",), "bytes", 1.0, device="cuda")
    yield Bar("triplet N=256 in a CUDA graph, milliseconds", ("triplet/N256-D128-graph",), "ms", 0.03, device="cuda")
    image, short = "dice_focal_bce/16x4x1024x1024", "dice_focal_bce/16x4x1024x1024-bf16-uint8"
    yield Bar("64 M float32 logits / copy", (image,), "copy", 0.85, device="cuda")
    yield Bar("64 M bfloat16 logits, uint8 targets / copy", (short,), "copy", 0.7, device="cuda")
    for against, limit in (("compiled", 1.3), ("eager", 8.0), ("triton", 1.0)):
        yield Bar(f"64 M logits / {against}", (image, short), "times", limit, (against,), device="cuda")
    yield Bar(
        "pairwise_distance N=8,192 / torch.cdist", ("pairwise_distance/N8192-D128",), "times", 1.0, ("torch.cdist",),
        device="cuda",
    )  # fmt: skip
    yield Bar(
        "wrong hardest pairs", tuple(f"hardest_pairs/{data}" for data in DISTRIBUTIONS), "wrong", 0.0, device="cuda"
    )


BARS: tuple[Bar, ...] = (
    Bar("batch-hard forward / torch.mm(out=)", ("batch_hard/N[1248]*-D*",), "share", 0.6, ("torch.mm",)),
    _times("triplet N=4096 / PML", "triplet/N4096-D128", 40, PML, 0.5),
    _times("triplet N=4096 / OML", "triplet/N4096-D128", 10, OML, 0.5),
    _times("triplet N=4096 / best torch.compile", "triplet/N4096-D128", 8, "compiled"),
    _times("triplet N=4096 / strongest eager", "triplet/N4096-D128", 6, ("eager", "eager-strong"), 0.5),
    _times(
        "triplet N=4096 / strongest eager, screened in bf16", "triplet/N4096-D128", 10, ("eager", "eager-strong"),
        0.5, needs="avx512_bf16",
    ),
    _times("triplet N=256 / PML", "triplet/N256-D128", 6, PML, 0.5),
    _times("triplet N=256 / best torch.compile", "triplet/N256-D128", 3, "compiled"),
    _times("triplet N=32 / PML", "triplet/N32-D128", 6, PML, 0.5),
    _times("triplet N=32 / best torch.compile", "triplet/N32-D128", 2.5, "compiled"),
    _times("SupCon N=4096 / PML", "supcon/N4096-D128", 8, PML, 0.5),
    _times("SupCon N=4096 / eager", "supcon/N4096-D128", 8, "eager", 0.5),
    _times("NT-Xent N=4096 / eager", "ntxent/N4096-D128", 8, "eager", 0.5),
    _times("NT-Xent N=256 / PML", "ntxent/N256-D128", 8, PML, 0.5),
    _times("multi-similarity N=4096 / PML", "multi_similarity/N4096-D128", 10, PML, 0.5),
    Bar(
        "losses over all pairs, N=4096 / torch.mm(out=), of which they need three",
        ("supcon/N4096-D128", "ntxent/N4096-D128"), "share", 4.5, ("torch.mm",),
    ),
    _times("batch-all N=1024 / PML", "batch_all/N1024-D128", 60, PML, 0.5),
    _times("batch-all N=1024 / strongest eager", "batch_all/N1024-D128", 3, "eager", 0.5),
    _times("semi-hard / strongest eager", "semi_hard/N*-D128", 3, ("eager", "eager-strong"), 0.5),
    Bar("mining memory / (2 x embeddings + 128 bytes a row)", ("batch_hard/N*-D*", "triplet/N4096-D128"), "bytes", 1.0),
    Bar("N = 100,000, D = 64 finishes", ("batch_hard/N100000-D64",), "finishes", 1.0),
    Bar("2 threads / 1", _SCALED, "threads", 1.8),
    Bar("wrong hardest pairs", tuple(f"hardest_pairs/{data}" for data in DISTRIBUTIONS), "wrong", 0.0),
    _times("Dice+Focal+BCE / MONAI", _TRIPLE, 12, "monai"),
    _times("Dice+Focal+BCE / smp", _TRIPLE, 12, SMP),
    _times("Dice+Focal+BCE / best torch.compile", _TRIPLE, 2.5, "compiled"),
    _times("Dice+Focal+BCE / BCEWithLogitsLoss alone", _TRIPLE, 1.0, "torch.bce"),
    Bar("Dice+Focal+BCE memory / the gradient", _TRIPLE, "bytes", 1.05),
    _times("softmax Dice+CE / best library", _SOFTMAX, 4, LIBRARIES),
    _times("softmax Dice+CE / best torch.compile", _SOFTMAX, 2.5, "compiled"),
    Bar(
        "any other term or option / the fused loss of its mode",
        tuple(f"{name}/*" for name in COMBINATIONS), "share", 1.6, ("fused",),
    ),
    _times("8,192 logits / best torch.compile", "dice_focal_bce/8192", 2.5, "compiled"),
    _times("pairwise_distance / torch.cdist", "pairwise_distance/N4096-D128", 1.0, "torch.cdist"),
    Bar(
        "error of pairwise_distance / torch.cdist, collapsing",
        tuple(f"distance_error/collapse-{spread}" for spread in SPREADS), "error", 1.0, ("torch.cdist",),
    ),
    *_cuda(),
)  # fmt: skip


def cases_of(bar: Bar) -> list[str]:
    """The names of its cases; those without the quantity it is about are left out."""
    table = _TABLES[bar.device]
    names = matching(bar.cases, [name for name, case in table.items() if not case.scaling])
    if bar.quantity == "bytes":
        return [name for name in names if table[name].memory]
    return [name for name in names if set(bar.against) <= set(table[name].providers) or bar.against == LIBRARIES]


def judge(runs: Sequence[Run], rows: Sequence[Row]) -> list[Verdict]:
    """Every bar at every heap that was measured and matters to it."""
    features = {feature for run in runs[-1:] for feature in run.machine.get("features", ())}
    heaps = [heap for heap in ("default", "warm") if any(row.heap == heap for row in rows)]
    found = []
    for bar in BARS:
        here = [row for row in rows if row.device == bar.device]
        if not here or (bar.needs and bar.needs not in features):
            continue
        once = bar.device != "cpu" or bar.quantity in ("bytes", "wrong", "error", "finishes")
        found += [_judged(bar, heap, here) for heap in (heaps[:1] if once else heaps)]
    return found


def _judged(bar: Bar, heap: str, rows: Sequence[Row]) -> Verdict:
    limit = bar.limit * (bar.warm if heap == "warm" else 1.0)
    worst: Verdict | None = None
    missing = ""
    names = cases_of(bar)
    for name in names:
        here = [row for row in rows if row.case == name and row.heap == heap]
        try:
            value = _VALUES[bar.quantity](bar, here)
        except _UnmeasuredError as reason:
            missing = missing or f"{name}: {reason}"
            continue
        met = value <= limit if bar.most() else value >= limit
        if bar.quantity == "error":
            met = value < limit
        verdict = Verdict(bar, heap, limit, met, value, name)
        if worst is None or (verdict.value or 0.0) * _sign(bar) > (worst.value or 0.0) * _sign(bar):
            worst = verdict
    if worst is None:
        begun = any(row.case in names and row.heap == heap for row in rows)
        return Verdict(bar, heap, limit, None, why=missing, begun=begun)
    return replace(worst, met=None, why=missing) if missing and worst.met else worst


def _sign(bar: Bar) -> int:
    return 1 if bar.most() else -1


class _UnmeasuredError(Exception):
    """The rows do not have what a bar needs."""


def _time(rows: Sequence[Row], provider: str, threads: int = 0) -> float:
    for row in sorted(rows, key=lambda row: -row.threads):
        if row.provider == provider and (not threads or row.threads == threads):
            if not row.measured or row.p50_ms is None:
                raise _UnmeasuredError(f"{provider} is {row.status}")
            return row.p50_ms
    raise _UnmeasuredError(f"{provider} was not measured" + (f" at {threads} thread" if threads else ""))


def fastest(rows: Sequence[Row], providers: Sequence[str]) -> tuple[str, float]:
    """The fastest of several providers whose answer is right."""
    times = {}
    reasons = []
    for provider in providers:
        try:
            times[provider] = _time(rows, provider)
        except _UnmeasuredError as reason:
            reasons.append(str(reason))
    if not times:
        raise _UnmeasuredError(reasons[0] if len(reasons) == 1 else "none of the others was measured")
    best = min(times, key=times.__getitem__)
    return best, times[best]


def _times_value(bar: Bar, rows: Sequence[Row]) -> float:
    return fastest(rows, bar.against)[1] / _time(rows, "native")


def _share_value(bar: Bar, rows: Sequence[Row]) -> float:
    return _time(rows, "native") / fastest(rows, bar.against)[1]


def _ms_value(_: Bar, rows: Sequence[Row]) -> float:
    return _time(rows, "native")


def _copy_value(_: Bar, rows: Sequence[Row]) -> float:
    _time(rows, "native")
    share = next(row.copy_share for row in rows if row.provider == "native")
    if share is None:
        raise _UnmeasuredError("native has no share of the bandwidth")
    return share


def _threads_value(_: Bar, rows: Sequence[Row]) -> float:
    return _time(rows, "native", 1) / _time(rows, "native", 2)


def _bytes_value(_: Bar, rows: Sequence[Row]) -> float:
    for row in rows:
        if row.provider == "native" and row.extra_bytes is not None:
            return row.extra_bytes / _allowance(row)
    raise _UnmeasuredError("the memory of native was not measured")


def _allowance(row: Row) -> float:
    """Bytes beyond the inputs: for mining twice the embeddings and 128 a row, for segmentation the gradient."""
    size = 2 if row.dtype in ("bfloat16", "float16") else 4
    items = 1
    for length in row.shape:
        items *= length
    if row.work in ("batch_hard", "triplet"):
        return 2.0 * items * size + 128.0 * row.shape[0] + PAGES
    return float(items * size) + PAGES


def _wrong_value(_: Bar, rows: Sequence[Row]) -> float:
    for row in rows:
        if row.provider == "native" and row.errors:
            return sum(value for name, value in row.errors.items() if name.startswith("wrong_"))
    raise _UnmeasuredError("native was not measured")


def _error_value(bar: Bar, rows: Sequence[Row]) -> float:
    errors = {row.provider: row.errors["value_error"] for row in rows if "value_error" in row.errors}
    for name in ("native", *bar.against):
        if name not in errors:
            raise _UnmeasuredError(f"{name} was not measured")
    return errors["native"] / errors[bar.against[0]]


def _finishes_value(_: Bar, rows: Sequence[Row]) -> float:
    return 1.0 if _time(rows, "native") > 0 else 0.0


_VALUES: dict[Quantity, Callable[[Bar, Sequence[Row]], float]] = {
    "times": _times_value, "share": _share_value, "ms": _ms_value, "copy": _copy_value, "threads": _threads_value,
    "bytes": _bytes_value, "wrong": _wrong_value, "error": _error_value, "finishes": _finishes_value,
}  # fmt: skip
