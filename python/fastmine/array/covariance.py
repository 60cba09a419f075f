"""Covariance matrices, and what they are made of."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def as_complex(name: str, x: object) -> Tensor:
    """complex64 or complex128 as it is; a real tensor [..., 2] as pairs of real and imaginary part.

    Halves are widened to float32 first. Raises ``TypeError`` for anything else.
    """
    if isinstance(x, Tensor) and x.is_complex():
        return x
    if isinstance(x, Tensor) and x.dtype in FLOATING and x.dim() and x.shape[-1] == 2:
        wide = x if x.dtype == torch.float64 else x.float()
        return torch.view_as_complex(wide.contiguous())
    found = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise TypeError(
        f"{name} must be complex, or real with real and imaginary part in a last dimension of 2; got {found}; "
        f"of a real one use {name}.to(torch.complex64)"
    )


def hermitian(name: str, x: object) -> Tensor:
    """A batch of square complex matrices [..., M, M]."""
    found = as_complex(name, x)
    if found.dim() < 2 or found.shape[-1] != found.shape[-2]:
        raise ValueError(f"{name} must hold square matrices [..., M, M]; got {list(found.shape)}")
    return found


def widened(*tensors: Tensor) -> list[Tensor]:
    """All in the widest of their types."""
    widest = tensors[0].dtype
    for x in tensors[1:]:
        widest = torch.promote_types(widest, x.dtype)
    return [x.to(widest) for x in tensors]


def sample_covariance(snapshots: Tensor) -> Tensor:
    r""":math:`\frac{1}{N} Y Y^H` of snapshots [..., M, N] -> [..., M, M]."""
    y = as_complex("snapshots", snapshots)
    return y @ y.mH / y.shape[-1]


def low_rank(factors: Tensor, noise: Tensor | None = None) -> Tensor:
    r""":math:`F F^H + \sigma^2 I` of factors [..., M, K], with noise powers :math:`\sigma^2` [...] if given."""
    f = as_complex("factors", factors)
    signal = f @ f.mH
    if noise is None:
        return signal
    return signal + noise[..., None, None] * torch.eye(f.shape[-2], dtype=f.dtype, device=f.device)
