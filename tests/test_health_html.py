"""The report as a page: what it says of any run, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmine.health import History, Table
from fastmine.health._finding import finding
from fastmine.health._html import render
from fastmine.health._svg import RIGHT, WIDE, buckets, nice, short

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

BANDS = {"error": (0xA8, 0x26, 0x1C), "warning": (0x8A, 0x5A, 0x00), "healthy": (0x1E, 0x6B, 0x45)}
PAPER = {"light": (0xFB, 0xFA, 0xF8), "dark": (0x13, 0x14, 0x16)}


def table(name: str, kind: str, n: int, columns: dict[str, Any], **facts: Any) -> Table:
    values = {column: np.broadcast_to(np.asarray(v, dtype=float), (n,)).copy() for column, v in columns.items()}
    return Table(name, kind, np.arange(n), values, facts)


def run(n: int = 300) -> History:
    """A triplet run with its loss and its weights."""
    t = np.linspace(0, 1, n)
    mining = {
        "admitted": 32, "valid": 28, "active": 28 * (1 - t), "spread": 0.3 + 0.5 * t,
        "positive_distance_mean": 1 - 0.5 * t, "negative_distance_mean": 0.8 + t,
    }  # fmt: skip
    tables = {
        "loss": table("loss", "loss", n, {"value": np.exp(-5 * t), "updates": np.arange(n)}),
        "criterion": table("criterion", "mining", n, mining, type="TripletLoss"),
        "optimizer": table("optimizer", "updates", n, {"lr_max": 1e-3, "updates": np.arange(n)}, type="Adam"),
    }
    return History(n, tables)


def collapse(step: int = 40) -> list[Any]:
    return [finding("EMBEDDING_COLLAPSE", "criterion", step, {"spread": 0.0012})]


class Page(HTMLParser):
    """Tags balance, and every attribute that could fetch something is collected."""

    VOID = ("meta", "link", "br", "img", "line", "circle", "rect", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "srcset", "data"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def drawings(page: str) -> list[ET.Element]:
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)]


# --- the text --


def test_the_verdict_and_the_cause_come_first() -> None:
    page = render(run(), collapse())
    assert page.index("Not learning") < page.index("EMBEDDING_COLLAPSE") < page.index("<svg")
    assert 'class="verdict error"' in page
    assert "0.0012" in page


def test_a_healthy_run_says_so() -> None:
    page = render(run(), [])
    assert 'class="verdict healthy"' in page
    assert "<ol>" not in page


def test_a_note_is_no_alarm_and_comes_after_them() -> None:
    notes = [finding("CONVERGED", "criterion", 5, {}), *collapse()]
    page = render(run(), notes)
    assert page.index("EMBEDDING_COLLAPSE") < page.index("CONVERGED")
    assert 'class="verdict healthy"' in render(run(), notes[:1])


def test_a_page_needs_nothing_from_outside() -> None:
    page = render(run(), collapse())
    parsed = Page(page)
    assert parsed.links == ["data:,"]
    assert "script" not in parsed.tags
    assert "url(" not in page
    assert "@import" not in page
    assert re.findall(r"https?://", page) == []


def test_whatever_a_run_is_called_is_text() -> None:
    odd = '<b onload="x">&amp;'
    history = run()
    named = {
        odd: Table(odd, "mining", history.tables["criterion"].steps, history.tables["criterion"].columns, {"type": odd})
    }
    said = finding("EMBEDDING_COLLAPSE", odd, 0, {odd: odd}, title=odd)
    page = render(History(300, {**history.tables, **named}), [said], title=odd)
    Page(page)
    assert "<b " not in page


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 241, 5000])
def test_runs_of_any_length(n: int) -> None:
    page = render(run(n), collapse(0) if n else [])
    Page(page)
    assert "nan" not in re.sub(r"<style>.*</style>", "", page, flags=re.DOTALL).lower()
    for drawing in drawings(page):
        assert drawing.get("aria-label")


def test_a_long_run_is_thinned_and_keeps_its_peaks() -> None:
    history = run(100_000)
    history.tables["loss"].columns["value"][54_321] = 7.5
    page = render(history, collapse())
    assert len(page) < 400_000
    steps, mean, least, largest = buckets(history.tables["loss"].steps, history.tables["loss"]["value"])
    assert len(steps) <= 240
    assert largest.max() == 7.5
    assert (least <= mean).all()
    assert (mean <= largest).all()


def test_what_was_never_measured_has_no_chart() -> None:
    history = run()
    history.tables["criterion"].columns.pop("spread")
    history.tables["criterion"].columns["positive_distance_mean"][:] = np.nan
    page = render(history, [])
    assert "Spread of the embeddings" not in page
    assert "Distance to the mined pair" in page
    assert "<svg" not in render(History(0, {}), [])


def test_nan_is_a_gap_and_a_mark() -> None:
    history = run()
    history.tables["loss"].columns["value"][100:] = np.nan
    page = render(history, [])
    assert 'class="rug"' in page
    assert "not finite" in page


def test_a_series_that_stays_not_finite_seemed_to_recover() -> None:
    history = run(5000)
    history.tables["loss"].columns["value"][1000:] = np.nan
    history.tables["loss"].columns["value"][3000:3010] = 1.0
    loss, *_ = drawings(render(history, []))
    (rug,) = [path for path in loss.iter("path") if path.get("class") == "rug"]
    spans = [(float(start), float(width)) for start, width in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)", rug.get("d"))]
    (first, wide), (second, narrow) = spans
    assert first + wide == pytest.approx(second, abs=6)
    assert second + narrow == pytest.approx(WIDE - RIGHT, abs=2)


def test_a_finding_is_marked_where_it_began() -> None:
    loss, *_, last = drawings(render(run(), collapse(150)))
    mark = next(g for g in loss.iter("g") if "mark" in g.get("class", ""))
    line = mark.find("line")
    assert line is not None
    assert float(line.get("x1", "0")) == pytest.approx(46 + (1070 - 46 - 12) * 150 / 299, abs=0.1)
    assert not [g for g in last.iter("g") if "mark" in g.get("class", "")], "not of the optimizer"


def test_composites_segmentations_and_foreign_losses_have_charts() -> None:
    composite = {"a.value": 1.0, "a.weight": 0.5, "a.gradient_share": np.nan, "b.value": 2.0, "b.weight": 0.0}
    masks = {"groups": 8, "annotated": 6, "nonempty": 4, "target_share": 0.1, "prediction_share": 0.2}
    tables = [
        table("total", "composite", 50, composite),
        table("masks", "segmentation", 50, masks),
        table("other", "foreign", 50, {"prediction_min": 0, "prediction_max": 1, "target_min": 0, "target_max": 255}),
    ]
    page = render(History(50, {t.name: t for t in tables}), [])
    for title in ("Components", "Effective weights", "Area", "Masks", "Range"):
        assert f"<h3>{title}</h3>" in page
    assert "<h3>Share of the gradient</h3>" not in page


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.2, 0.21), (-3, 5), (0, 99_999), (1e-9, 3e-9)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = nice(low, high, 4)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-12 <= tick <= high * (1 + 1e-9) for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.2087, "0.209"), (-150.0, "-150"), (12_345.0, "12.3k"), (1e-7, "1e-7"), (2.5e9, "2.5e9")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


# --- in a browser --


@pytest.fixture
def browse(tmp_path: Path) -> Callable[[str, str], tuple[Any, list[str]]]:
    """Load a page; its pixels, and every address that was asked for."""
    if CHROMIUM is None:
        pytest.skip("no chromium")
    image = pytest.importorskip("PIL.Image")

    def visit(page: str, scheme: str) -> tuple[Any, list[str]]:
        source, shot, net = tmp_path / "page.html", tmp_path / "page.png", tmp_path / "net.json"
        source.write_text(page)
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --window-size=1240,2000"
        )
        dark = {"dark": 0, "light": 1}[scheme]
        command = [
            CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={net}",
            f"--blink-settings=preferredColorScheme={dark}", f"--screenshot={shot}", source.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not shot.exists():
            pytest.skip(f"chromium does not run here: {done.stderr.strip()[-300:]}")
        return np.asarray(image.open(shot).convert("RGB")), _addresses(net)

    return visit


def _addresses(net: Path) -> list[str]:
    """What the page itself asked for, by the browser's own record; what the browser wants has no origin."""
    events = [event.get("params", {}) for event in json.loads(net.read_text())["events"]]
    by_page = [p["url"] for p in events if "url" in p and p.get("initiator", "not an origin") != "not an origin"]
    return sorted({url for url in by_page if not url.startswith("data:")})


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("verdict", ["error", "warning", "healthy"])
def test_a_browser_shows_the_verdict(
    browse: Callable[[str, str], tuple[Any, list[str]]], verdict: str, scheme: str
) -> None:
    code = {"error": "EMBEDDING_COLLAPSE", "warning": "FEW_VALID", "healthy": "CONVERGED"}[verdict]
    pixels, addresses = browse(render(run(), [finding(code, "criterion", 40, {"spread": 0.01})]), scheme)
    band, paper = pixels[8], pixels[:, 4]
    assert (band == BANDS[verdict]).all(), "the band across the top has the verdict's colour"
    assert (pixels[30:140] > 240).all(axis=2).sum() > 1000, "with its words in white"
    assert (paper[400:] == PAPER[scheme]).all(), "the paper is that of the scheme"
    plots = pixels[500:]
    inked = np.abs(plots.astype(int) - np.array(PAPER[scheme])).sum(axis=2) > 120
    assert inked.mean() > 0.01, "and there are charts on it"
    assert addresses == [], "and nothing was fetched"


@pytest.mark.slow
def test_a_page_that_fetches_would_be_caught(browse: Callable[[str, str], tuple[Any, list[str]]]) -> None:
    _, addresses = browse('<img src="http://127.0.0.1:9/picture.png">', "light")
    assert addresses == ["http://127.0.0.1:9/picture.png"]
