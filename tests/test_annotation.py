"""The annotation experiment: what it trains on, and that its page is of its rows."""

from __future__ import annotations

import sys

import pytest
import torch

from support import REPOSITORY

sys.path.insert(0, str(REPOSITORY))
pytest.importorskip("skimage")
from benchmarks.annotation import __main__ as command
from benchmarks.annotation import experiment, report
from benchmarks.annotation.methods import COMPLETE, VALIDITY, ZEROS, Method


def test_the_page_is_of_the_committed_rows() -> None:
    text = report.README.read_text()
    assert text.split(report.BEGIN)[1].split(report.END)[0].strip() == report.tables(command.rows())
    assert report.PICTURE.exists()


def test_a_larger_share_has_the_masks_of_a_smaller_and_as_many_of_each_class() -> None:
    smaller, larger = (experiment.annotated(1, share) for share in (0.1, 0.2))
    assert (larger >= smaller).all()
    assert larger.sum(dim=0).tolist() == [0.2 * experiment.TRAINING] * 2
    assert experiment.annotated(1, 1.0).all()


def test_who_learns_from_which_images() -> None:
    drawn = experiment.annotated(0, 0.5)
    policies = (VALIDITY, COMPLETE, ZEROS)
    some, every, all_of_them = (len(experiment.Run(Method("fastmine Dice", p), 0.5, 0).usable()) for p in policies)
    assert every < drawn[:, 0].sum() < some < all_of_them == experiment.TRAINING


def test_every_run_is_asked_for_once() -> None:
    keys = [run.key() for run in command.runs(3)]
    assert len(set(keys)) == len(keys)
    assert {command.key(row) for row in command.rows()} <= set(keys)


def test_a_run_is_a_function_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 4, "TRAINING": 32, "HELD_OUT": 16}.items():
        monkeypatch.setattr(experiment, name, value)
    experiment.images.cache_clear()
    run = experiment.Run(Method("fastmine combined", VALIDITY), 0.5, 3)
    first, again = (experiment.train(run) for _ in range(2))
    experiment.images.cache_clear()
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert first["masks"] == 32
    assert 0 <= first["dice"] <= 1 or torch.tensor(first["dice"]).isnan()
