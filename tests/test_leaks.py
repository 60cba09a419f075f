"""What a call leaves behind on the heap: nothing, however often a loss is called."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import pytest
import torch

from cases import CASES, Case, leaves
from fastmine.losses import ArcFaceLoss

CALLS = 100
A_STRING = 32  # bytes, the least that one takes on the heap

FIRST = {(case.op, case.answered_by): case for case in reversed(CASES)}


class _Heap(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


@pytest.fixture(scope="module")
def in_use() -> Callable[[], int]:
    """Bytes that malloc has handed out and not got back, by the C library's own count."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        pytest.skip("counts by glibc's mallinfo2")
    mallinfo.restype = _Heap

    def count() -> int:
        heap = mallinfo()
        return int(heap.uordblks + heap.hblkhd)

    return count


def left_behind(call: Callable[[], object], in_use: Callable[[], int]) -> float:
    """Bytes a call; the less of two times, since caches elsewhere grow now and then."""
    found = []
    call()
    gc.collect()
    for _ in range(2):
        before = in_use()
        for _ in range(CALLS):
            call()
        found.append((in_use() - before) / CALLS)
    return min(found)


@pytest.mark.usefixtures("native_ops")
@pytest.mark.parametrize("case", FIRST.values(), ids=str)
def test_every_string_argument_of_an_op_stayed_on_the_heap(case: Case, in_use: Callable[[], int]) -> None:
    inputs = case.inputs(torch.float32)
    by = leaves(inputs)

    def step() -> None:
        outputs = [y for y in case(inputs).values() if y.requires_grad]
        torch.autograd.grad([y.sum() for y in outputs], list(by.values()))

    assert left_behind(step, in_use) < A_STRING


@pytest.mark.usefixtures("native_ops")
def test_a_loss_against_class_vectors_leaves_nothing_either(in_use: Callable[[], int]) -> None:
    loss, x, labels = ArcFaceLoss(3, 4), torch.randn(8, 4), torch.arange(8) % 3
    assert left_behind(lambda: loss(x, labels).backward(), in_use) < A_STRING
