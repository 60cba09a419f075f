"""How an op is defined, differentiated and called.

The dispatcher is the fallback: every op is defined with its reference for every device, a native library adds the CPU
or CUDA implementation, and from then on answers there. Nothing else asks who answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

LIBRARY: Any = torch.library.Library("fastmine", "DEF")  # type: ignore[no-untyped-call]


OPS: list[str] = []
"""The names of all that is defined."""


def define(name: str, schema: str, reference_op: Callable[..., Any]) -> None:
    """Define the op ``fastmine::name``, answered by its reference wherever no kernel is registered."""
    LIBRARY.define(name + " ".join(schema.split()), tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference_op, "CompositeExplicitAutograd")
    OPS.append(name)


_F = TypeVar("_F", bound=Callable[..., Any])


def differentiable(name: str, reference_op: _F, setup: Callable[..., None], backward: Callable[..., Any]) -> _F:
    """The op with its backward pass, typed as its reference; the reference under forward-mode AD and ``torch.func``.

    There the backward pass would be ignored, and the tangent silently zero.
    """
    op = getattr(torch.ops.fastmine, name).default

    def below_autograd(*args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def forward(ctx: Any, *args: Any) -> Any:
        output = below_autograd(*args)
        setup(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"fastmine_{name}", (torch.autograd.Function,), members)
    apply = super(torch.autograd.Function, function).apply  # does not look again at what `call` has looked at

    def dispatched(*args: Any) -> Any:
        # Under a transform a Function whose forward takes `ctx` is an error, and not a wrong gradient.
        return function.apply(*args) if transformed() or has_gradient(args) else below_autograd(*args)

    LIBRARY.impl(name, dispatched, "Autograd")

    def call(*args: Any) -> Any:
        if transformed():
            return reference_op(*args)
        # A compiler shall see the op, and whoever overrides torch functions be asked about it.
        if torch.compiler.is_compiling() or has_torch_function(args):
            return op(*args)
        # What the dispatcher would do; but its way to Python and back costs more than a small batch.
        return apply(*args) if has_gradient(args) else below_autograd(*args)

    call.__doc__ = reference_op.__doc__
    call.__name__ = call.__qualname__ = name
    return cast("_F", call)


def again(
    run: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor | None], grads: Tensor | Sequence[Tensor]
) -> list[Any]:
    """Vector-Jacobian products through the reference, themselves differentiable; None where there is no gradient."""
    # Aliases, so that inputs that are one tensor, or computed from one another, keep their gradients apart.
    aliases = [x.view_as(x) if x is not None and x.requires_grad else x for x in inputs]
    wanted = [x for x in aliases if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(run(*aliases), wanted, grads, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


def has_gradient(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)


def transformed() -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def traced(*inputs: Tensor | None) -> bool:
    """Whether a compiler, a transform or a type of tensor of its own looks on, who must see the formula itself."""
    return torch.compiler.is_compiling() or transformed() or has_torch_function(inputs)


def readable(x: Tensor) -> bool:
    """Whether a value can be looked at here and now at no cost: on the CPU, and not while tracing."""
    return x.is_cpu and type(x) is Tensor and not torch.compiler.is_compiling() and not transformed()
