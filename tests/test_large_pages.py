"""Tensors so large that malloc maps each of them anew are written on large pages, where the system has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import fastmine.functional as F

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.usefixtures("native_ops")
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_gradient_of_64_mib_cost_sixteen_thousand_page_faults() -> None:
    if not SWITCH.exists() or "[never]" in SWITCH.read_text():
        pytest.skip("large pages are switched off here")
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    logits = torch.zeros(1, 1 << 24, requires_grad=True)
    loss = F.dice_loss(logits, torch.ones(1, 1 << 24, dtype=torch.bool))
    before = faults()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.numel() * gradient.element_size() == 1 << 26
    assert faults() - before < 4096
