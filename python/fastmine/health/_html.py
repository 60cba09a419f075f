"""A run as one page: the verdict, each finding with its numbers, and the evidence over time. No script, no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from string import Template
from typing import NamedTuple

import numpy as np

from .._version import __version__
from ._finding import Finding
from ._history import Floats, History, Table
from ._report import reservations, verdict
from ._style import STYLE
from ._svg import Mark, Series, chart, short

TONES = ("blue", "orange", "green", "violet", "teal", "rose", "ochre", "grey")

HEADLINES = {
    "error": "Not learning",
    "warning": "In doubt",
    "healthy": "Healthy",
    "unknown": "Too early to tell",
}

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title: $head</title>
<style>$style</style>
</head>
<body>
<header class="verdict $verdict" role="status">
<div class="inner"><p class="over">$title</p><h1>$head</h1><p class="lead">$lead</p></div>
</header>
<main>
<dl class="facts">$facts</dl>
$findings
$sections
</main>
<footer>fastmine $version. Charts show means over equal spans of steps, with the range from least to largest behind;
hover for numbers. Everything on this page is in this file.</footer>
</body>
</html>
""")


class Figure(NamedTuple):
    """A chart before it is drawn: its lines, what they mean, whether its axis starts at 0 and it fills the page."""

    title: str
    note: str
    series: list[Series]
    zero: bool = False
    wide: bool = False


def render(history: History, findings: Sequence[Finding], *, title: str = "Training health") -> str:
    """One self-contained page. Alarms come before notes, in the order given; missing evidence leaves its chart out."""
    ordered = sorted(findings, key=lambda finding: not finding.is_alarm)
    found = verdict(findings, history.steps)
    return PAGE.substitute(
        title=escape(title), verdict=found, head=escape(HEADLINES[found]), lead=_lead(history, ordered, found),
        facts=_facts(history), findings=_findings(ordered), sections="\n".join(_sections(history, ordered)),
        style=STYLE, version=escape(__version__),
    )  # fmt: skip


# --- words ------------------------------------------------------------------------------------------------------------


def _lead(history: History, findings: Sequence[Finding], found: str) -> str:
    alarms = [finding for finding in findings if finding.is_alarm]
    failed = "".join(f" {escape(_sentence(f'not judged: {failure}'))}" for failure in history.failures)
    if alarms:
        more = len(alarms) - 1
        rest = f" And {more} more {'cause' if more == 1 else 'causes'}, below." if more else ""
        return f"{escape(_sentence(alarms[0].title))}{rest}{failed}"
    if found == "unknown":
        return f"{_count(history.steps, 'step')} recorded; the first verdict takes a few more.{failed}"
    said = [f"Nothing that keeps this run from learning was found in {_count(history.steps, 'step')}."]
    return " ".join([*said, *(escape(_sentence(reservation)) for reservation in reservations(history, findings))])


def _facts(history: History) -> str:
    facts = [("steps", _grouped(history.steps))]
    loss = history.tables.get("loss")
    if loss is not None and len(loss):
        facts.append(("loss, first and last", f"{short(loss['value'][0])} \u2192 {short(loss['value'][-1])}"))
        updates = _known(loss["updates"])
        facts += [("weight updates", _grouped(int(updates[-1])))] if len(updates) and history.of_kind("updates") else []
    for table in history.of_kind("updates"):
        rates = _known(table["lr_max"])
        facts += [("learning rate", short(rates[-1]))] if len(rates) else []
    for table in history.of_kind("mining", "segmentation", "composite", "foreign"):
        if not table.facts.get("component"):
            facts.append((table.name, _type(table) or table.kind))
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts[:8])


def _type(table: Table) -> str:
    """The class or function of a loss, without the scopes that it was made in."""
    return str(table.facts.get("type", "")).rsplit(".", 1)[-1]


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\u2009")


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    cards = "".join(_card(number, finding) for number, finding in enumerate(findings, start=1))
    return f'<section class="findings" aria-label="Findings"><ol>{cards}</ol></section>'


def _card(number: int, finding: Finding) -> str:
    evidence = "".join(
        f"<div><dt>{escape(_words(name))}</dt><dd>{escape(_value(value))}</dd></div>"
        for name, value in finding.evidence.items()
    )
    paragraphs = (("Cause", finding.cause), ("Do", finding.remedy), ("Wrong if", finding.refute))
    told = "".join(f"<dt>{name}</dt><dd>{_prose(text)}</dd>" for name, text in paragraphs if text)
    where = f"in {escape(finding.component)}, since step {finding.first_step}, {finding.confidence:.0%} sure"
    return (
        f'<li class="card {escape(finding.severity)}"><div class="number" aria-hidden="true">{number}</div><div>'
        f'<p class="code"><strong>{escape(finding.severity)}</strong> <code>{escape(finding.code)}</code> '
        f"<span>{where}</span></p><h2>{escape(_sentence(finding.title))}</h2>"
        f'<dl class="evidence">{evidence}</dl><dl class="told">{told}</dl></div></li>'
    )


def _prose(text: str) -> str:
    """Escaped, with `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return _grouped(int(value)) if abs(value) < 1e15 and value == int(value) else short(value)


def _count(number: int, noun: str) -> str:
    return f"{_grouped(number)} {noun}{'' if number == 1 else 's'}"


# --- charts -----------------------------------------------------------------------------------------------------------


def _sections(history: History, findings: Sequence[Finding]) -> Iterator[str]:
    last = max([0, history.steps - 1, *(int(table.steps[-1]) for table in history.tables.values() if len(table))])
    spoken = {finding.component for finding in findings}
    for table in history.tables.values():
        if table.kind == "foreign" and table.facts.get("component") and table.name not in spoken:
            continue  # its value and its share are in the composite's charts
        figures = [figure for figure in FIGURES.get(table.kind, _nothing)(table) if _is_shown(figure)]
        if not figures:
            continue
        marks = _marks(table, findings, history)
        drawn = "".join(_figure(figure, last, marks) for figure in figures)
        kind = _type(table)
        aside = f" <span>{escape(kind)}</span>" if kind and kind != table.name else ""
        head = f'<h2 class="table">{escape(_heading(table))}{aside}</h2>'
        yield f'<section>{head}<div class="grid2">{drawn}</div></section>'


def _heading(table: Table) -> str:
    return {"loss": "The loss", "updates": "The weights"}.get(table.kind, table.name)


def _is_shown(figure: Figure) -> bool:
    return any(len(series.known) for series in figure.series)


def _marks(table: Table, findings: Sequence[Finding], history: History) -> list[Mark]:
    """The findings of this loss; those of no table of their own stand at the loss and the weights."""
    chosen = []
    for number, finding in enumerate(findings, start=1):
        own = finding.component.split(".")[0]
        if table.kind == "loss" or own == table.name or (table.kind == "updates" and own not in history.tables):
            words = f"{number}: {finding.code}, since step {finding.first_step}"
            chosen.append(Mark(number, finding.first_step, finding.severity, words))
    return chosen


def _figure(figure: Figure, last: int, marks: Sequence[Mark]) -> str:
    shown = [series for series in figure.series if len(series.known)]
    legend = "".join(map(_key, shown))
    summary = "; ".join(
        f"{s.name} from {short(float(s.known[0]))} to {short(float(s.known[-1]))}, "
        f"between {short(float(s.known.min()))} and {short(float(s.known.max()))}"
        for s in shown
    )
    began = "".join(f"; finding {mark.number} begins at step {mark.step}" for mark in marks)
    label = f"{figure.title} over {last + 1} steps: {summary}{began}."
    drawn = chart(shown, last, marks, label, zero=figure.zero, wide=figure.wide)
    return (
        f"<figure{' class=wide' if figure.wide else ''}><figcaption><h3>{escape(figure.title)}</h3>"
        f"<p>{escape(figure.note)}</p></figcaption>"
        f'<ul class="legend">{legend}</ul>{drawn}</figure>'
    )


def _key(s: Series) -> str:
    """A series in the legend, with its last value."""
    look = "block" if s.base is not None else "dashed" if s.dashed else ""
    return f'<li><i class="{s.tone} {look}"></i>{escape(s.name)} <b>{short(float(s.known[-1]))}</b></li>'


def _series(table: Table, *lines: tuple[str, str, str], sparse: bool = False, dashed: bool = False) -> list[Series]:
    """(column, name, tone) of a table, as lines."""
    return [Series(name, table.steps, table[column], tone, sparse, dashed) for column, name, tone in lines]


def _stack(table: Table, *layers: tuple[str, Floats, str]) -> list[Series]:
    """(name, values, tone) from the bottom up, as bands."""
    floors = np.cumsum([np.zeros(len(table)), *(values for _, values, _ in layers)], axis=0)
    return [
        Series(name, table.steps, values, tone, base=floor)
        for (name, values, tone), floor in zip(layers, floors[:-1], strict=True)
    ]


def _known(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _nothing(table: Table) -> list[Figure]:  # noqa: ARG001
    return []


def _loss(table: Table) -> list[Figure]:
    lines = _series(table, ("value", "optimised", "blue"))
    logged = _series(table, ("logged", "logged", "orange"), sparse=True, dashed=True)
    return [Figure("Loss", "What backward() is called on, and what the log was told.", [*lines, *logged], wide=True)]


def _mining(table: Table) -> list[Figure]:
    active, valid, admitted = table["active"], table["valid"], table["admitted"]
    active = np.where(np.isfinite(active), active, valid)
    anchors = _stack(
        table,
        ("still teach", active, "orange"),
        ("easy", valid - active, "blue"),
        ("without a pair", admitted - valid, "grey"),
    )
    distances = _series(
        table, ("negative_distance_mean", "negative", "green"), ("positive_distance_mean", "positive", "violet")
    )
    spread = _series(table, ("spread", "spread", "teal"))
    meaning = "1 \u2212 |mean|\u00b2 / mean |z|\u00b2: 0 when all point to one place."
    return [
        Figure("Anchors of a batch", "Only anchors with a positive and a negative can teach.", anchors, zero=True),
        Figure("Distance to the mined pair", "Learning pulls the two apart.", distances, zero=True),
        Figure("Spread of the embeddings", meaning, spread, zero=True),
        *_gradient(table),
    ]


def _segmentation(table: Table) -> list[Figure]:
    area = _series(table, ("target_share", "annotated", "green"), ("prediction_share", "predicted", "blue"))
    where = _series(
        table, ("probability_on_target", "on the target", "violet"), ("probability_elsewhere", "elsewhere", "grey")
    )
    groups, annotated, nonempty = table["groups"], table["annotated"], table["nonempty"]
    masks = _stack(
        table,
        ("with an object", nonempty, "green"),
        ("empty", annotated - nonempty, "ochre"),
        ("not annotated", groups - annotated, "grey"),
    )
    return [
        Figure("Area", "Mean annotation beside mean predicted probability.", area, zero=True),
        Figure("Probability", "What the model says where the target is, and elsewhere.", where, zero=True),
        Figure("Masks", "What the loss was given, by sample and class.", masks, zero=True),
        *_gradient(table),
    ]


def _composite(table: Table) -> list[Figure]:
    names = list(dict.fromkeys(column.rsplit(".", 1)[0] for column in table.columns if "." in column))
    tones = {name: TONES[i % len(TONES)] for i, name in enumerate(names)}

    def lines(what: str, *, sparse: bool) -> list[Series]:
        return [Series(n, table.steps, table[f"{n}.{what}"], tones[n], sparse=sparse) for n in names]

    return [
        Figure("Components", "Values before their weights.", lines("value", sparse=False)),
        Figure("Effective weights", "base \u00d7 schedule \u00d7 search.", lines("weight", sparse=False), zero=True),
        Figure(
            "Share of the gradient",
            "How much of it each component carries.",
            lines("gradient_share", sparse=True),
            zero=True,
        ),
        Figure(
            "Agreement", "Cosine of each gradient to the rest; \u22121 is against it.", lines("cosine", sparse=True)
        ),
        *_gradient(table),
    ]


def _foreign(table: Table) -> list[Figure]:
    predicted = _series(
        table, ("prediction_max", "largest prediction", "blue"), ("prediction_min", "least", "blue"), sparse=True
    )
    wanted = _series(
        table, ("target_max", "largest target", "green"), ("target_min", "least", "green"), sparse=True, dashed=True
    )
    return [Figure("Range", "Of predictions and targets.", [*predicted, *wanted]), *_gradient(table)]


def _gradient(table: Table) -> list[Figure]:
    lines = _series(table, ("gradient_l1", "sum of magnitudes", "ochre"), sparse=True)
    return [Figure("Gradient at the inputs", "What reaches the model from this loss.", lines)]


def _updates(table: Table) -> list[Figure]:
    rates = _series(table, ("lr_max", "learning rate", "violet"), sparse=True)
    steps = _series(table, ("updates", "updates", "green"), sparse=True)
    moved = _series(table, ("drift_l1", "change since the last look", "blue"), sparse=True)
    grad = _series(table, ("gradient_l1", "gradient", "ochre"), sparse=True)
    return [
        Figure("Learning rate", "The largest of all groups.", rates, zero=True),
        Figure("Accepted updates", "Steps that the optimizer took.", steps, zero=True),
        Figure("Movement", "Of a sample of the weights.", moved),
        Figure("Gradient of the weights", "Of the same sample.", grad),
    ]


FIGURES: dict[str, Callable[[Table], list[Figure]]] = {
    "loss": _loss,
    "mining": _mining,
    "segmentation": _segmentation,
    "composite": _composite,
    "foreign": _foreign,
    "updates": _updates,
}
