"""On Hopper: FASTMINE_CUDA_WGMMA=1 screens by warpgroups, and no answer changes. A module of its own, since what it
tries for the first time on a device may hang: ``make gpu`` runs it apart, within a time."""

from __future__ import annotations

import pytest
import torch

import fastmine.functional as F

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
        reason="no device of compute capability 9.0",
    ),
]

SHAPES = [
    (2432, 32), (2500, 33), (2432, 64), (3001, 100), (4096, 128), (2477, 256), (2432, 736), (2432, 737), (20000, 128),
]  # fmt: skip
"""Rows and elements: whole tiles and not, one slice and many, two blocks on a multiprocessor and one, and too wide; and
more than 2,048 references, below which nothing is screened in bfloat16."""


@pytest.mark.parametrize(("n", "d"), SHAPES)
@pytest.mark.parametrize("kind", ["normal", "clusters", "collapsed", "poisoned"])
@pytest.mark.parametrize("references", [False, True], ids=["one set", "two sets"])
def test_warpgroups_change_no_answer(
    n: int, d: int, kind: str, references: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(n + d)
    x = torch.randn(n, d, generator=generator)
    labels = torch.randint(n // 4, (n,), generator=generator)
    if kind == "clusters":
        x = torch.randn(n // 4, d, generator=generator)[labels] + 0.3 * x
    elif kind == "collapsed":
        x = 1 + 1e-3 * x
    elif kind == "poisoned":
        x[5, 3] = torch.nan
    valid = torch.rand(n, generator=generator) < 0.9
    on_device = [t.cuda() for t in (x, labels, valid)]
    others = {"ref_embeddings": on_device[0][300:], "ref_labels": on_device[1][300:]} if references else {}
    found = []
    for switch in ("0", "1", "1"):
        monkeypatch.setenv("FASTMINE_CUDA_WGMMA", switch)
        found.append(F.batch_hard(*on_device[:2], valid=on_device[2], **others))
    for again in found[1:]:
        for field, want, got in zip(found[0]._fields, found[0], again, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=field)


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMINE_CUDA_WGMMA", "yes")
    with pytest.raises(RuntimeError, match="FASTMINE_CUDA_WGMMA is 0 or 1, not 'yes'"):
        F.batch_hard(torch.randn(8, 4, device="cuda"), torch.arange(8, device="cuda") // 2)
