"""Calling a loss aside from the training: once more, on other inputs, and without a trace."""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

_CONTAINERS = (list, dict, set, deque)
_DRAWING = (np.random.Generator, np.random.RandomState, random.Random)


def aside(loss: Any, args: Any, kwargs: Any, others: Mapping[Tensor, Tensor]) -> Any:
    """What the loss is with ``others`` in the place of some of its inputs.

    A loss may count its calls, keep what it saw, draw random numbers, or write to what it is given. So a copy of it
    is called, with copies of its inputs, and random numbers are put back. Raises where that cannot be.
    """
    again = copied(loss)
    call = again.forward if isinstance(again, nn.Module) else again
    fresh: dict[int, Tensor] = {}
    with random_numbers_kept({x.get_device() for x in others if x.is_cuda}), _no_memory():
        return call(*instead(args, others, fresh), **instead(kwargs, others, fresh))


def instead(value: Any, others: Mapping[Tensor, Tensor], fresh: dict[int, Tensor]) -> Any:
    """The same with other tensors, each of its own memory; what is one tensor in two places stays one."""
    if isinstance(value, Tensor):
        x = others.get(value, value)  # tensors are found by identity
        if id(x) not in fresh:
            fresh[id(x)] = x.detach().clone()
        return fresh[id(x)]
    if type(value) in (list, tuple):
        return type(value)(instead(item, others, fresh) for item in value)
    if type(value) is dict:
        return {name: instead(item, others, fresh) for name, item in value.items()}
    return value


@contextlib.contextmanager
def random_numbers_kept(devices: Collection[int]) -> Iterator[None]:
    python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - those of everybody
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(of_numpy)  # noqa: NPY002


@contextlib.contextmanager
def _no_memory() -> Iterator[None]:
    """Refuse to run modules that remember their calls in buffers, as a batch norm does, wherever they are."""
    here = threading.get_ident()

    def refuse(module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == here and next(module.buffers(recurse=False), None) is not None:
            raise RuntimeError(f"{type(module).__name__} has buffers")

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def copied(loss: Any) -> Any:
    """A copy whose attributes may be set and whose state may be written to; parameters and what is large are shared.

    Of what is compiled, the function behind it: every question would be compiled anew, and that is done eight times.
    """
    loss = getattr(loss, "_torchdynamo_orig_callable", loss)
    if isinstance(loss, nn.Module):
        return _copy_of_module(loss)
    if isinstance(loss, MethodType):
        owner = loss.__self__
        return loss if isinstance(owner, type) else MethodType(loss.__func__, _copy_of_owner(owner))
    return loss if isinstance(loss, FunctionType) else _copy_of_owner(loss)


def _copy_of_owner(owner: Any) -> Any:
    if isinstance(owner, nn.Module):
        return _copy_of_module(owner)
    new = _shallow(owner)
    if new is not owner:
        vars(new).update({name: _copy_of_value(value) for name, value in vars(new).items()})
    return new


def _copy_of_module(module: nn.Module) -> nn.Module:
    new: nn.Module = type(module).__new__(type(module))
    state = {name: _copy_of_value(value) for name, value in vars(module).items()}
    parts = state["_modules"].items()
    state["_modules"] = {name: None if part is None else _copy_of_module(part) for name, part in parts}
    state["_buffers"] = {name: _copy_of_value(value) for name, value in state["_buffers"].items()}
    state.update({name: type(value)() for name, value in state.items() if name.endswith("_hooks")})
    if "_listeners" in state:
        state["_listeners"] = ()  # whoever hears one of our losses does not hear this
    vars(new).update(state)
    return new


def _copy_of_value(value: Any) -> Any:
    if isinstance(value, nn.Parameter | nn.Module):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, _DRAWING):
        return copy.deepcopy(value)
    return copy.copy(value) if isinstance(value, (*_CONTAINERS, np.ndarray)) else _shallow(value)


def _shallow(value: Any) -> Any:
    """A copy of an object with attributes, such as a meter; itself where copies are not its way, or free something."""
    whole = isinstance(value, type | FunctionType | MethodType | ModuleType) or hasattr(value, "__del__")
    if whole or not hasattr(value, "__dict__"):
        return value
    try:
        return copy.copy(value)
    except Exception:  # noqa: BLE001 - a lock, a file
        return value
