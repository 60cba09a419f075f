"""Training in several processes, as ``torchrun`` starts them, that learn what one would.

A batch is still a batch: each process computes the model on its share of the rows, the outputs of all are gathered, and
every process knows the loss and the evidence of the whole. Sums over a batch are then added in another order, and
nothing else is different: batch normalisation takes its statistics over all processes too. The first process
judges, speaks and writes. Alone, every function here does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from ..distributed import gather_rows
from .errors import UsageError

T = TypeVar("T")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """The processes that ``torchrun`` started know each other meanwhile."""
    if launched() == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # What only the hosts say to each other, such as "stop", goes by gloo, so that no device is waited for.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def launched() -> int:
    """How many processes ``torchrun`` started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else 1


def count() -> int:
    """How many there are."""
    return dist.get_world_size() if _are_several() else 1


def is_first() -> bool:
    """Whether this is the one that speaks and writes."""
    return not _are_several() or dist.get_rank() == 0


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized()


# --- what only one of them does ---------------------------------------------------------------------------------------


def first_then_others(make: Callable[[], T]) -> T:
    """Made by the first process before the others, which then find its cache."""
    if not _are_several():
        return make()
    made = [make()] if is_first() else []
    dist.barrier()
    return made[0] if made else make()


def by_the_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them."""
    if not _are_several():
        return make()
    made: list[Any] = [make() if is_first() else None]
    dist.broadcast_object_list(made)
    found: T = made[0]
    return found


def any_of_them(asked: bool) -> bool:
    """Whether it is true in any process."""
    if not _are_several():
        return asked
    flag = torch.tensor(int(asked))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


# --- a batch and its gradient -----------------------------------------------------------------------------------------


def sizes(rows: int) -> list[int]:
    """How many rows of a batch each process has: as even as can be."""
    each, more = divmod(rows, count())
    return [each + (rank < more) for rank in range(count())]


def own(rows: int) -> slice:
    """Which rows of a batch are this process's."""
    if not _are_several():
        return slice(rows)
    rank, shares = dist.get_rank(), sizes(rows)
    if min(shares) == 0:
        raise UsageError(f"a batch of {rows} has no row for each of {count()} processes; take a larger --batch-size")
    return slice(sum(shares[:rank]), sum(shares[: rank + 1]))


def together(x: Tensor, rows: int) -> Tensor:
    """The ``rows`` rows of all processes, from the own ones. The gradient is made for :func:`average_gradients`."""
    return gather_rows(x, sizes(rows)) if _are_several() else x


def average_gradients(weights: Iterable[nn.Parameter]) -> None:
    """The mean over the processes, in one transfer: the gradient of one process on the whole batch."""
    if not _are_several():
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, parts, strict=True):
        gradient.copy_(mean.view_as(gradient))


# --- the model --------------------------------------------------------------------------------------------------------


def alike(*modules: nn.Module) -> None:
    """Give all processes the weights of the first."""
    if _are_several():
        for tensor in chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules):
            dist.broadcast(tensor.detach(), 0)


def with_whole_batches(module: nn.Module) -> nn.Module:
    """The module, its batch normalisations over the batches of all processes; weights keep their names."""
    if not _are_several():
        return module
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return WholeBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, with_whole_batches(child))
    return module


class WholeBatchNorm(nn.Module):
    """Batch normalisation with the mean and variance of the batches of all processes, on any device.

    One transfer of 2 C + 1 numbers each way. (``torch.nn.SyncBatchNorm`` is the same, for CUDA alone.)
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised over everything but the channels, which are the second dimension."""
        if not self.training:
            own_statistics = self.running_mean is None
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, own_statistics, eps=self.eps
            )
        wide = x if x.dtype == torch.float64 else x.float()
        count, mean, variance = _statistics(wide)
        self._follow(count.detach(), mean.detach(), variance.detach())
        columns = (-1, *[1] * (x.dim() - 2))
        y = (wide - mean.to(wide).view(columns)) * (variance + self.eps).rsqrt().to(wide).view(columns)
        if self.weight is not None:
            y = y * self.weight.view(columns)
        if self.bias is not None:
            y = y + self.bias.view(columns)
        return y.to(x.dtype)

    def _follow(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, of which the variance is without bias."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), share)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many values per channel, their mean and variance [C], over all processes, in double precision."""
    variance, mean = (part.double() for part in torch.var_mean(x, [d for d in range(x.dim()) if d != 1], correction=0))
    count = mean.new_tensor([x.numel() / x.shape[1]])
    sums = _Total.apply(torch.cat([count, count * mean, count * (variance + mean.square())]))  # type: ignore[no-untyped-call]
    count, mean, square = sums.split([1, len(mean), len(mean)])
    mean, square = mean / count, square / count
    return count, mean, square - mean.square()


class _Total(torch.autograd.Function):
    """The sum over the processes, each of which goes on with it in its own way."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return _summed(x)

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        return _summed(grad)


def _summed(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
