"""The documentation does what it says: every snippet of Python runs as printed, every link leads somewhere."""

from __future__ import annotations

import ast
import doctest
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastmine
from fastmine import losses
from fastmine.health._codes import CODES
from fastmine.losses.array import ArrayLoss
from support import REPOSITORY

PAGES = sorted(
    page
    for folder in ("", "docs", "docs/health", "benchmarks", "benchmarks/annotation", "benchmarks/faults")
    for page in (REPOSITORY / folder).glob("*.md")
)
CHOOSING = REPOSITORY / "docs" / "choosing.md"
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_SNIPPETS = [page for page in PAGES if page.parent.name != "health" and PYTHON.search(page.read_text())]
LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def shown(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def stand_ins(page: Path) -> dict[str, Any]:
    """What the reader of a page is told to have: a model, an optimizer, a few batches; all of them tiny."""
    rows, labels = torch.randn(64, 8), torch.arange(64) % 16
    model = nn.Linear(8, 4)
    pixels = (4, 3, 8, 8) if page.name == "segmentation.md" else (4, 1, 8, 8)
    classes = torch.randint(0, 3, (4, 8, 8)) if page.name == "segmentation.md" else torch.rand(pixels).round()
    dataset = TensorDataset(rows, labels)
    yes = torch.tensor([True, True, False, True])
    covariance = torch.diag_embed(torch.rand(4, 8) + 1.0).to(torch.complex64)
    sources = torch.rand(4, 2)
    array = {
        "covariance": covariance, "unblended": covariance, "true_covariance": covariance, "azimuth": sources,
        "factors": torch.randn(4, 8, 2, dtype=torch.complex64), "true_azimuth": sources,
        "present": torch.ones(4, 2, dtype=torch.bool),
        "logits": torch.randn(4, 3),
    }  # fmt: skip
    given: dict[str, Any] = {
        "torch": torch, "fastmine": fastmine, "dataset": dataset, "labels": labels, "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), 0.1), "loader": DataLoader(dataset, 32),
        "embeddings": rows[:, :4].clone().requires_grad_(), "valid": torch.ones(64, dtype=torch.bool),
        "label_sets": nn.functional.one_hot(labels).bool(), "photograph": torch.arange(64) // 2,
        "bank": torch.randn(32, 4), "bank_labels": torch.arange(32) % 16, "weight": torch.rand(64),
        "bank_sets": nn.functional.one_hot(torch.arange(32) % 16).bool(), "bank_photograph": torch.arange(32) + 100,
        "logits": torch.randn(pixels, requires_grad=True), "target": classes, "masks": classes,
        "has_mask": yes, "annotated": yes,
        "SentenceTransformerTrainer": dict, "data": dataset,
    }  # fmt: skip
    if page.name == "array-processing.md":
        given |= array
    if page.name == "compat-segmentation.md":
        given |= {"logits": torch.randn(4, 3, 8, 8), "labels": torch.randint(0, 3, (4, 1, 8, 8))}
    return given


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=shown)
def test_every_snippet_runs_as_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as one reads; the snippets of docs/health are scripts, which test_health.py runs."""
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names = stand_ins(page)
    for found in PYTHON.finditer(text):
        line = text[: found.start()].count("\n") + 1
        source = ast.parse(found[1])
        ast.increment_lineno(source, line)
        exec(compile(source, str(page), "exec"), names)


def docstrings() -> dict[str, list[doctest.Example]]:
    """The examples of every docstring, by module and name."""
    package, found = REPOSITORY / "python" / "fastmine", {}
    for path in sorted(package.rglob("*.py")):
        module = ".".join(["fastmine", *path.relative_to(package).with_suffix("").parts]).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                examples = doctest.DocTestParser().get_examples(ast.get_docstring(node) or "")
                if examples:
                    found[f"{module}:{getattr(node, 'name', '')}"] = examples
    return found


EXAMPLES = docstrings()


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_a_docstring_runs(name: str) -> None:
    """With what its reader has; ``images`` are vectors, and their model is linear."""
    images, labels, logits = torch.randn(60, 8), torch.arange(60) % 10, torch.randn(4, 1, 8, 8)
    model, criterion = nn.Linear(8, 128), losses.TripletLoss()
    covariance = torch.diag_embed(torch.rand(4, 8) + 1.0).to(torch.complex64)
    given: dict[str, Any] = {
        "torch": torch, "DataLoader": DataLoader, "DistributedDataParallel": lambda module: module,
        "images": images, "labels": labels, "dataset": TensorDataset(images, labels), "model": model,
        "criterion": criterion, "loss": model(images).sum(),
        "loader": [(images, labels)], "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "embeddings": torch.randn(60, 128), "photograph": torch.arange(60) // 2, "logits": logits,
        "first": torch.randn(8, 4), "second": torch.randn(8, 4), "centre_loss": losses.SupConLoss(),
        "logits_half": logits[..., ::2, ::2], "logits_quarter": logits[..., ::4, ::4], "target": logits > 0,
        "has_mask": torch.arange(4) < 3, "my_triplet_loss": lambda x, y: x.sum(),
        "prediction": losses.ArrayPrediction(covariance, azimuth=torch.rand(4, 2)),
        "TripletLoss": losses.TripletLoss, "CombinedSegmentationLoss": losses.CombinedSegmentationLoss,
        "uniform_linear": fastmine.array.uniform_linear,
    }  # fmt: skip
    if name.endswith("HybridCovarianceLoss"):
        given["target"] = losses.ArrayTarget(covariance, torch.rand(4, 2), torch.ones(4, 2, dtype=torch.bool))
    module, _, _ = name.partition(":")
    names = {**vars(import_module(module)), "monitor": fastmine.health.Monitor(model, criterion), **given}
    for example in EXAMPLES[name]:
        exec(compile(example.source, name, "exec"), names)


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{shown(page)} links to {link}"
        assert not anchor or anchor in anchors(target), f"{shown(page)} links to {link}, a heading that is not there"


def test_every_page_is_in_the_index() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text()
    linked = {link.partition("#")[0] for link in LINK.findall(index)}
    missing = {page.name for page in (REPOSITORY / "docs").glob("*.md")} - {"README.md"} - linked
    assert not missing, f"docs/README.md does not name {missing}"


def test_every_loss_is_in_the_readme_and_on_the_page_that_helps_to_choose() -> None:
    found = {name: getattr(losses, name) for name in losses.__all__ if name.endswith(("Loss", "Memory"))}
    public = {name for name, loss in found.items() if not issubclass(loss, ArrayLoss)} - {"EvidentLoss"}
    for page in (REPOSITORY / "README.md", CHOOSING):
        text = page.read_text()
        assert not {name for name in public if f"`{name}" not in text}, shown(page)


def test_what_the_page_that_helps_to_choose_writes_can_be_written() -> None:
    names = {**vars(losses), "num_classes": 10, "embedding_dim": 128, "positions": torch.zeros(4, 3),
             "weights": {"cov": 1.0}}  # fmt: skip
    spans = re.findall(r"`((\w+)\([^`]*\))`", CHOOSING.read_text())
    written = [call for call, name in spans if name in losses.__all__ and "..." not in call]
    assert len(written) > 30
    for call in written:
        assert isinstance(eval(call, names), losses.EvidentLoss), call


def test_the_readme_counts_the_causes_right() -> None:
    assert f"[{len(CODES)} causes]" in (REPOSITORY / "README.md").read_text()
