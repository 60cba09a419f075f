"""Options of a training system: one annotated field each, for Python and the command line alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from .errors import UsageError

SettingsT = TypeVar("SettingsT", bound="Settings")

MAY_CHANGE = ("epochs", "device", "threads", "monitor", "tensorboard", "pictures_every")
"""What a resumed run may be given anew; everything else would make it another run."""


def whole(text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"must be a whole number; got {text!r}") from None


def real(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"must be a number; got {text!r}") from None


def weights(text: str) -> str:
    """``name=weight,name=weight``, put in one form."""
    return ",".join(f"{name}={weight:g}" for name, weight in parsed(text).items())


def parsed(text: str) -> dict[str, float]:
    """Names and numbers of ``name=weight,name=weight``."""
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise UsageError(f"must be name=weight,name=weight; got {part!r}")
        if name in found:
            raise UsageError(f"must have each name once; got {name} twice in {text!r}")
        found[name] = real(number)
    return found


@dataclass(frozen=True)
class Option:
    """What an option is for, how its text is read, and which values it may have."""

    help: str
    parse: Callable[[str], Any] = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    multiple_of: int | None = None
    bare: str | None = None  # what the option stands for without a value

    def expected(self, value: Any) -> str:
        """What the value should have been; empty if it is that."""
        if self.choices is not None:
            return "" if value in self.choices else f"one of {', '.join(self.choices)}"
        if value is None or isinstance(value, (str, Path)) or self._within_bounds(value):
            return ""
        bounds = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "a multiple of": self.multiple_of,
        }
        return " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)

    def _within_bounds(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.multiple_of is None or value % self.multiple_of == 0)
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that all training systems have."""

    epochs: Annotated[int, Option("passes over the training images", whole, "N", at_least=1)]
    batch_size: Annotated[int, Option("images in a batch", whole, "N", at_least=1, at_most=65536)]
    lr: Annotated[float, Option("learning rate of AdamW", real, "X", above=0, at_most=1000)] = 3e-3
    seed: Annotated[int, Option("a run is a function of it", whole, "N", at_least=0, at_most=2**32 - 1)] = 0
    device: Annotated[str, Option("where to train", choices=("cpu", "cuda"))] = "cpu"
    threads: Annotated[
        int | None,
        Option(
            "CPU threads; unless given 1 for the bundled data, which is small, else those of torch",
            whole,
            "N",
            at_least=1,
            at_most=4096,
        ),
    ] = None

    amp: Annotated[
        str,
        Option(
            "bf16: the model computes in bfloat16 (autocast), weights and losses as before", choices=("off", "bf16")
        ),
    ] = "off"
    monitor: Annotated[
        str, Option("name what keeps the model from learning (fastmine.health)", choices=("on", "off"))
    ] = "on"
    tensorboard: Annotated[
        str,
        Option("write logs for TensorBoard into the folder of the run too", choices=("on", "off"), bare="on"),
    ] = "off"
    pictures_every: Annotated[
        int,
        Option(
            "epochs between pictures of what the model does on held-out data; 0: only the last", whole, "N", at_least=0
        ),
    ] = 0

    @property
    def own_data(self) -> bool:
        """Whether the data is the user's, and may be large."""
        return getattr(self, "data", None) is not None

    def __post_init__(self) -> None:
        for name, option in options_of(type(self)).items():
            value = getattr(self, name)
            expected = option.expected(value)
            if expected:
                raise UsageError(f"{flag(name)} must be {expected}; got {value}")


def options_of(kind: type[Settings]) -> dict[str, Option]:
    """The option of every field."""
    hints = get_type_hints(kind, include_extras=True)
    return {each.name: hints[each.name].__metadata__[0] for each in fields(kind)}


def defaults_of(kind: type[Settings]) -> dict[str, Any]:
    """The value that every field has unless it is given."""
    return {each.name: each.default for each in fields(kind)}


def settings_to_resume(kind: type[SettingsT], saved: Mapping[str, Any], given: Mapping[str, Any]) -> SettingsT:
    """The settings of an interrupted run, with what may change in it as given now."""
    paths = {"data": Path(saved["data"])} if saved.get("data") else {}
    before = kind(**{**saved, **paths})
    changes = {name: value for name, value in given.items() if _resolved(value) != _resolved(getattr(before, name))}
    for name, value in changes.items():
        if name not in MAY_CHANGE:
            raise UsageError(
                f"{flag(name)} was {getattr(before, name)} in the run to resume, and {value} would make it "
                f"another run; leave {flag(name)} out, or start anew without --resume"
            )
    return kind(**{**vars(before), **changes})


def flag(name: str) -> str:
    """A field's name on the command line."""
    return "--" + name.replace("_", "-")


def _resolved(value: Any) -> Any:
    return value.resolve() if isinstance(value, Path) else value
