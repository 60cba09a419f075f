"""What is raised in somebody's code, and caught there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

HARMLESS = (StopIteration, StopAsyncIteration, GeneratorExit, AttributeError, KeyError, ImportError)


@contextmanager
def caught_exceptions() -> Iterator[list[str]]:
    """What is raised meanwhile in code that is not torch's nor ours, and does not come through."""
    found: list[str] = []
    library = (str(torch.__path__[0]), str(sys.prefix), str(sys.base_prefix))

    def trace(frame: Any, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name.startswith(library) or "fastmine" in name.replace("\\", "/").split("/") or name.startswith("<frozen"):
            return None
        if event == "exception" and not issubclass(argument[0], HARMLESS):
            text = f"{argument[0].__name__} in {frame.f_code.co_name}, line {frame.f_lineno}: {argument[1]}"
            if text not in found:
                found.append(text)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield found
    finally:
        sys.settrace(before)
