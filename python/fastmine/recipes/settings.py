"""Options of a training system: one dataclass field each, for Python and the command line alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from .errors import UsageError

SettingsT = TypeVar("SettingsT", bound="Settings")

MAY_CHANGE = ("epochs", "device", "threads")
"""What a resumed run may be given anew; everything else would make it another run."""


def option(
    default: Any,
    description: str,
    *,
    parse: Callable[[str], Any] = str,
    metavar: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    multiple_of: int | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A field with its description, and how it is read and checked."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "multiple_of": multiple_of}
    shown = {"help": description, "parse": parse, "metavar": metavar, "choices": choices}
    return field(default=default, metadata={**bounds, **shown})


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options that all training systems have."""

    data: Path | None = option(None, "a folder of your own", parse=Path, metavar="DIR")
    epochs: int = option(10, "passes over the training data", parse=whole, metavar="N", at_least=1)
    batch_size: int = option(
        16, "images in a batch", parse=whole, metavar="N", at_least=1, at_most=65536
    )
    lr: float = option(
        1e-3, "learning rate of AdamW", parse=real, metavar="X", above=0, at_most=1e3
    )
    seed: int = option(
        0, "a run is a function of its seed", parse=whole, metavar="N", at_least=0, at_most=2**32 - 1
    )
    device: str = option("cpu", "where to train", choices=("cpu", "cuda"))
    threads: int | None = option(
        None, "CPU threads; all cores unless given", parse=whole, metavar="N", at_least=1, at_most=4096
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            _check(each.name, getattr(self, each.name), each.metadata)


def settings_to_resume(
    kind: type[SettingsT], saved: Mapping[str, Any], given: Mapping[str, Any]
) -> SettingsT:
    """The settings of an interrupted run, with what may change in it as given now."""
    asked = kind(**{**saved, **given})
    for name, value in given.items():
        if name not in MAY_CHANGE and getattr(asked, name) != kind(**saved).__getattribute__(name):
            raise UsageError(
                f"{flag(name)} was {saved[name]} in the run to resume, and {value} would make it "
                f"another run; leave {flag(name)} out, or start anew without --resume"
            )
    return asked


def flag(name: str) -> str:
    """A field's name on the command line."""
    return "--" + name.replace("_", "-")


def _check(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    if rules["choices"] is not None and value not in rules["choices"]:
        raise UsageError(f"{flag(name)} must be one of {', '.join(rules['choices'])}; got {value}")
    if value is None or isinstance(value, (str, Path, bool)):
        return
    expected = _broken_bounds(value, rules)
    if expected:
        raise UsageError(f"{flag(name)} must be {expected}; got {value}")


def _broken_bounds(value: float, rules: Mapping[str, Any]) -> str:
    """What is expected of the value, if it is something else."""
    low, above, high, step = (rules[k] for k in ("at_least", "above", "at_most", "multiple_of"))
    kept = (
        math.isfinite(value)
        and (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (step is None or value % step == 0)
    )
    if kept:
        return ""
    words = [
        f"at least {low}" if low is not None else "",
        f"above {above}" if above is not None else "",
        f"at most {high}" if high is not None else "",
        f"a multiple of {step}" if step is not None else "",
    ]
    return " and ".join(word for word in words if word) or "finite"
