"""Objects of the user's own modules, named on the command line as ``module:object``, and models among them."""

from __future__ import annotations

import copy
import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UsageError

_NOT_THEIRS = ("<frozen", *(str(Path(file).parent) for file in (importlib.__file__, torch.__file__, __file__)))
"""How the names of files begin whose lines are no answer to where a user's code went wrong."""


def imported(name: str, example: str) -> Any:
    """The object behind ``module:object``; modules are found in the working folder too, as ``python -m`` does."""
    module_name, _, attribute = name.partition(":")
    if not (module_name and attribute):
        raise UsageError(f"name it as module:object, such as {example}; got {name}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise UsageError(f"{name} cannot be loaded: {raised(error)}") from error
    finally:
        sys.path.pop(0)
    return found


def raised(error: Exception) -> str:
    """What the user's code raised, and in which line of it."""
    lines = traceback.extract_tb(error.__traceback__)
    at = [f" ({line.filename}, line {line.lineno})" for line in lines if not line.filename.startswith(_NOT_THEIRS)]
    return f"{type(error).__name__}: {error}{at[-1] if at else ''}"


def model(name: str, offered: Mapping[str, int]) -> nn.Module:
    """The model behind ``module:object``: a copy of a module, or what a class or a function of modules makes.

    It is called with those of the ``offered`` arguments that it has parameters for. Its images are -1 .. 1.
    """
    with torch.random.fork_rng(devices=[]):  # what a module draws when it is first imported is no part of the run
        found = imported(name, "my_models:Net")
    if isinstance(found, nn.Module):
        return nn.Sequential(Centred(), copy.deepcopy(found))
    try:
        known = inspect.signature(found)
        arguments = {key: value for key, value in offered.items() if key in known.parameters}
        known.bind(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--model {name} must be a module, or a class or function that makes one of some of {', '.join(offered)} "
            f"({error}); name a function of yours that does"
        ) from error
    try:
        made = found(**arguments)
    except Exception as error:
        raise UsageError(f"--model {name} cannot be made: {raised(error)}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"--model {name} must make an nn.Module; it made a {type(made).__name__}")
    return nn.Sequential(Centred(), made)


class Centred(nn.Module):
    """Images in 0 .. 255 as numbers in -1 .. 1, which is what networks are made for."""

    def forward(self, images: Tensor) -> Tensor:
        """Floats."""
        return images.float() / 128 - 1


@torch.no_grad()
def tried(name: str, network: nn.Module, images: Tensor, expected: str) -> Tensor:
    """What the user's model makes of a few images; an error that says what it should have been if it makes nothing."""
    asked = f"--model {name} must make {expected} of images {list(images.shape)} in -1 .. 1"
    try:
        made = network.eval()(images)
    except Exception as error:
        raise UsageError(f"{asked}; it raised {raised(error)}") from error
    if not isinstance(made, Tensor):
        raise UsageError(f"{asked}; it made a {type(made).__name__}. Wrap it in a module that returns the tensor")
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UsageError(f"--model {name} has no weight that is trained")
    return made
