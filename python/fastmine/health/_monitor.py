"""The monitor: two lines in a training loop, and findings when somebody asks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import __version__
from ..losses import EvidentLoss
from . import _given, _report
from ._clock import Clock
from ._evident import HeardWatch
from ._finding import Finding
from ._foreign import ForeignWatch, OutputWatch
from ._given import Criteria, Optimizers
from ._graph import terms, total
from ._history import History, Table
from ._hooks import Hook, Told
from ._inputs import Inputs
from ._inside import inside_of_models, watches
from ._optimizers import FollowedOptimizers
from ._reach import Reach, is_compiled, is_compiled_in_place
from ._ring import AT_ONCE, Ring
from ._thresholds import Thresholds
from ._updates import Updates
from ._voice import Voice
from ._watch import Watch, is_training_call, merged, original
from ._within import Within
from .rules import examine

LossT = TypeVar("LossT", bound=Callable[..., Any])


class Monitor:
    """Watches a training loop and names what keeps it from learning.

    >>> monitor = Monitor(model, criterion, optimizer)
    >>> for images, labels in loader:
    ...     loss = criterion(model(images), labels)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    ...     monitor.step(loss)
    >>> for finding in monitor.check():
    ...     print(finding)

    ``model``: a module or several. ``criterion``: any ``nn.Module``, or several, in a list or by name; losses of
    fastmine leave their full evidence, of others the inputs are read on some steps; losses inside of one are watched
    too; a plain function goes through :meth:`watch`. Without one, losses inside the model are watched, or else what it
    returns. ``optimizer``: one or several; without it those are noticed that step parameters of the model. Everything
    is optional: what is not given is not judged.

    Nothing waits for the device until :meth:`check`, :meth:`history` or :meth:`report` is called: rows are copied into
    a ring of the device's memory. With ``speak``, the monitor also looks by itself at steps 32, 64, 128, 256 and
    every 256 from then on, without waiting either, and passes every new cause once to :mod:`warnings` (errors and
    warnings, as :class:`HealthWarning`) or to the logger ``fastmine.health`` (information). ``writer``, an object
    with ``add_scalar(tag, value, step)`` such as TensorBoard's ``SummaryWriter``, gets the numbers of every look and
    of the end: ``health/alarms``, how many errors and warnings there are, ``health/found/CODE``, how sure each of
    them is, and every column of :meth:`history`, ``health/criterion/valid`` and the like.

    Of the first model, unless it is compiled, the size of its inputs is read on some steps too.

    Under ``torch.compile``, of the loss or of a function that calls it, losses of fastmine leave all their evidence;
    others are read where they are called uncompiled.

    No value, gradient or random number of the training is changed. A loss of others that takes (embeddings [N, D],
    labels [N]), pairs and labels, images and masks, or broadcasts is called a few times more, without gradient, at its
    first step: with classes renamed, targets exchanged or made equal, the target or a constant as prediction, or one
    side of a pair as the other, which tells who is compared with whom and what costs nothing. One with buffers is not.
    Losses of masks of ours are asked the same, in the first three close steps, and leave no evidence of it.
    """

    def __init__(
        self,
        model: nn.Module | Iterable[nn.Module] | None = None,
        criterion: Criteria = None,
        optimizer: Optimizers = None,
        *,
        thresholds: Thresholds | None = None,
        writer: Any = None,
        speak: bool = True,
    ) -> None:
        self.thresholds, self.speak = _given.thresholds(thresholds), speak
        self._voice = Voice(_given.writer(writer))
        self._clock = Clock()
        self._learning: list[EvidentLoss[Any]] = []  # losses that may have parameters, as a classifier has
        self._models = _given.several("model", model, nn.Module)
        self._watches: list[Watch] = []
        self._polled: list[HeardWatch] = []  # losses that were called inside a compiled function
        self._hooks: list[tuple[nn.Module, Told]] = []
        self._armed: list[RemovableHandle] = []
        self._endings: list[Callable[[], None]] = []
        self._loss = Ring(
            ("value",),
            torch.device("cpu"),
            ("connected", "updates", "logged", "model", "optimizer", "criterion", "sure"),
        )
        self._started = False
        self._open = True
        self._plain = False  # nothing is measured in this step
        self._scalar = True  # the loss was a single number when that was looked at last
        self._logged: Ring | None = None
        self._pending = False
        self._steps_itself = False
        self._unwatched: list[str] = []  # plain functions
        self._within = Within(self._clock, self._watches)
        self._inputs: list[Inputs] = []  # of the first model
        given = _given.several("optimizer", optimizer, torch.optim.Optimizer)
        self._optimizers = FollowedOptimizers(given, self._models, self._learning, self._clock)
        self._reach = Reach(self._models, self._optimizers)
        self._observe_all(criterion)

    @property
    def writer(self) -> Any:
        """What gets the scalars."""
        return self._voice.writer

    # --- what is watched --------------------------------------------------------------------------------------------

    def watch(self, loss: LossT, name: str = "criterion") -> LossT:
        """Observe another loss. A plain function comes back wrapped: call that instead.

        >>> criterion = monitor.watch(my_triplet_loss)
        """
        if isinstance(loss, nn.Module):
            self._observe(loss, name)
            return loss
        watch = ForeignWatch(name, loss, self._clock)
        self._watches.append(watch)
        self._within.stop()
        self._unwatched = [other for other in self._unwatched if other != _name(loss)]

        @functools.wraps(loss)
        def observed(*args: Any, **kwargs: Any) -> Any:
            output = loss(*args, **kwargs)
            if is_training_call():
                watch.called(args, kwargs, output)
                self._called(output)
            return output

        return observed  # type: ignore[return-value]

    @classmethod
    def attach(cls, model: nn.Module, criterion: Criteria, optimizer: Optimizers = None, **options: Any) -> Monitor:
        """One line and no :meth:`step`: every call of the criterion that can be learned from counts as a step."""
        if not any(isinstance(one, nn.Module) for _, one in _given.criteria(criterion)):
            raise TypeError(
                "attach counts the calls of a loss that is an nn.Module; of a plain function nobody is told: write "
                "monitor = Monitor(model, None, optimizer), criterion = monitor.watch(function), and monitor.step(loss)"
            )
        monitor = cls(model, criterion, optimizer, **options)
        monitor._steps_itself = True
        monitor._arm()
        return monitor

    def _observe_all(self, criterion: Criteria) -> None:
        """The criteria that were given; or the losses of the models, or what these return."""
        for name, one in _given.criteria(criterion):
            self._observe(one, name)
        if not self._watches and not self._unwatched:
            for name, loss in inside_of_models(self._models):
                self._observe(loss, name)
        for module in self._models[:1]:
            self._observe_inputs(module)
        if not self._watches:
            for number, module in enumerate(self._models):
                self._observe_outputs(module, "model" if number == 0 else f"model.{number}")

    def _observe(self, criterion: Callable[..., Any], name: str) -> None:
        """Hook a module; a plain function cannot be, and is only known by the loss that :meth:`step` gets."""
        if not isinstance(criterion, nn.Module):
            self._unwatched.append(_name(criterion))
            return
        found = watches(criterion, self._clock, name)
        self._within.stop()
        self._learning += [part for part in criterion.modules() if isinstance(part, EvidentLoss)]
        self._watches += found
        compiled = original(criterion) is not criterion
        for watch in found:
            if compiled and isinstance(watch, HeardWatch):
                self._polled.append(watch)  # what is inside is compiled as it is
            elif isinstance(watch, HeardWatch):
                self._endings.append(watch.loss.listen(watch.hear))
            if watch is found[0] or not compiled:
                self._hook(watch, whole=watch is found[0])

    def _hook(self, watch: Watch, *, whole: bool) -> None:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not is_training_call():
                return
            if watch.composite is not None:
                watch.composite.component_called(watch.part, args, kwargs, output)
            watch.called(args, kwargs, output)
            if whole:
                self._called(output)

        if watch.module is not None:
            self._hooks.append((watch.module, Hook(hook)))
            self._arm()

    def _observe_outputs(self, module: nn.Module, name: str) -> None:
        """Without a loss that can be hooked, what the model returns is what there is to see, and what it made it of."""
        if is_compiled_in_place(module):  # and its hooks with it, anew whenever there are others
            return
        watch = OutputWatch(name, module, self._clock)
        self._watches.append(watch)
        self._within.instead.append(watch)

        def hook(_: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            if not is_training_call() or self._within.returned(output):
                return
            if isinstance(output, Tensor) and watch in self._watches:
                watch.called((output,), {}, output)

        self._hooks.append((module, Hook(hook)))
        self._arm()

    def _observe_inputs(self, module: nn.Module) -> None:
        """Of a model that is not compiled: what it is called with to be learned from."""
        if is_compiled(module):
            return
        inputs = Inputs("model.inputs", self._clock)
        self._inputs.append(inputs)

        def hook(_: nn.Module, args: Any, _kwargs: Any, _output: Any) -> None:
            if is_training_call():
                inputs.called(args)

        self._hooks.append((module, Hook(hook)))
        self._arm()

    def _arm(self) -> None:
        """Hook the losses in close steps only: a module with hooks is called a slower way."""
        wanted = self._hooks if self._clock.close or self._steps_itself else []
        if len(wanted) == len(self._armed):
            return
        for handle in self._armed:
            handle.remove()
        self._armed = [module.register_forward_hook(hook, with_kwargs=True) for module, hook in wanted]

    def _called(self, output: Any) -> None:
        if self._steps_itself and (value := total(output, terms(output))) is not None:
            self.step(value)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def step(
        self,
        loss: Tensor | float,
        *,
        logged: Tensor | float | None = None,
        inputs: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """One step of training, before or after ``backward()`` and ``optimizer.step()``; never waits for the device.

        ``loss``: the tensor that ``backward()`` is called on. ``logged``: the number that goes to the log, to be held
        against it. ``inputs``: (predictions, targets) of a loss that is a plain function.
        """
        # Most steps: the value of the loss, and nothing else. Each name looked up here is paid for in cold caches.
        if self._plain and logged is None and inputs is None and type(loss) is Tensor:
            clock, ring = self._clock, self._loss
            step = clock.step
            ring.waiting.append((step, loss.detach(), (not loss.is_leaf, clock.updates), ring.version))
            clock.step = step = step + 1
            if step == clock.next:
                clock.decide()
                self._turn()
            return
        self._look_closely(loss, logged, inputs)
        self._clock.advance()
        self._turn()

    def _turn(self) -> None:
        """A close step begins, or ends."""
        self._loss.settle_if_many()
        self._arm()
        if self.speak or self.writer is not None:
            self._maybe_speak()
        busy = self._clock.close or self._pending or self._polled or self._loss.together == AT_ONCE
        self._plain = self._scalar and not busy

    def _look_closely(
        self, loss: Tensor | float, logged: Tensor | float | None, inputs: tuple[Tensor, Tensor] | None
    ) -> None:
        if inputs is not None:
            self._take_inputs(inputs, loss)
        self._within.learned_from(loss)
        self._record(loss, logged)
        if self._clock.gradient:
            self._reach.find_factors(loss, self._watches)
        if self._clock.sample:
            self._optimizers.sample()
        for watch in self._polled if not self._clock.close else self._watches:
            if isinstance(watch, HeardWatch) and watch.overlooked() and watch not in self._polled:
                self._polled.append(watch)

    def _take_inputs(self, inputs: tuple[Tensor, Tensor], loss: Tensor | float) -> None:
        watch = next((watch for watch in self._watches if watch.name == "inputs"), None)
        if watch is None:
            watch = ForeignWatch("inputs", None, self._clock)
            self._watches.append(watch)
            self._within.stop()
        if isinstance(loss, Tensor):
            watch.called(inputs, {}, loss)

    def _record(self, loss: Tensor | float, logged: Tensor | float | None) -> None:
        step, updates = self._clock.step, self._clock.updates
        told = float("nan") if logged is None or isinstance(logged, Tensor) else float(logged)
        if not isinstance(loss, Tensor):
            self._write_loss(torch.tensor(_given.number(loss)), (np.nan, updates, told))
            return
        value = loss.detach()
        self._scalar = value.dim() == 0
        depends = self._reach.depends(loss, self._watches) if self._clock.gradient else ()
        host = (loss.grad_fn is not None, updates, told, *depends)
        self._write_loss(value if self._scalar else value.mean(), host)
        if isinstance(logged, Tensor):
            if self._logged is None:
                self._logged = Ring(("logged",), logged.device)
            self._logged.write(step, logged.detach())

    def _write_loss(self, value: Tensor, host: tuple[float, ...]) -> None:
        if not self._started:
            self._started = True
            self._loss = Ring(self._loss.columns, value.device, self._loss.host)
        self._loss.write(self._clock.step, value, host)

    # --- what is found ----------------------------------------------------------------------------------------------

    def history(self) -> History:
        """Everything recorded, on the host. Waits for the device once."""
        return self._history(staged=False)

    def _history(self, *, staged: bool) -> History:
        tables: dict[str, Table] = {}
        if self._started:
            steps, columns = self._loss.read(staged=staged)
            if self._logged is not None:
                merged(steps, columns, *self._logged.read(staged=staged))
            tables["loss"] = Table("loss", "loss", steps, columns, self._facts())
        for part in self._parts():
            table = part.table(staged=staged)
            if table is not None:
                tables[_free(table.name, tables)] = table
            if table is not None and "loss" in tables and table.kind == "updates":
                _take_back(tables["loss"], table)
        return History(self._clock.step, tables)

    def _facts(self) -> dict[str, Any]:
        ours = [p for module in self._models for p in module.parameters()]
        frozen = bool(ours) and bool(self._learning) and not any(p.requires_grad for p in ours)
        return {
            "checkpointed": self._reach.checkpointed,
            "unwatched": [*self._unwatched, *(name for name in self._within.unseen if name not in self._unwatched)],
            "bounded": dict(self._within.bounded),
            "uncalled": self._uncalled(),
            "frozen": frozen,
        }

    def _uncalled(self) -> list[str]:
        """The criteria that were given, and of which no call was seen, nor of what is inside."""
        heard = {name for watch in self._watches if not watch.silent for name in (watch.name, watch.facts.get("of"))}
        whole = [watch.name for watch in self._watches if watch.module is not None and "of" not in watch.facts]
        return [name for name in whole if name not in heard]

    def check(self) -> list[Finding]:
        """What is wrong, causes before their consequences; and information, marked as such."""
        return examine(self.history(), self.thresholds)

    @property
    def verdict(self) -> str:
        """ "error", "warning", "healthy", or "unknown" where there are too few steps to tell."""
        return _report.verdict(self.check(), self._clock.step)

    def report(self, path: str | Path | None = None) -> str:
        """The findings as text. With ``path``, also written there as .txt, .json or .html."""
        history = self.history()
        findings = examine(history, self.thresholds)
        text = _report.text(history, findings)
        if path is not None:
            target = Path(path)
            match target.suffix.lower():
                case ".json":
                    found = json.dumps(_report.as_dict(history, findings, __version__), indent=1, allow_nan=False)
                    target.write_text(found, encoding="utf-8")
                case ".html":
                    from . import _html

                    target.write_text(_html.render(history, findings), encoding="utf-8")
                case ".txt":
                    target.write_text(text + "\n", encoding="utf-8")
                case _:
                    raise ValueError(f"a report is written as .txt, .json or .html; got {target.name}")
        return text

    def _maybe_speak(self) -> None:
        step = self._clock.step
        if step % 256 == 0 or step in (32, 64, 128):
            for ring in self._rings():
                ring.stage()
            self._pending = True
        if self._pending and all(ring.staged() for ring in self._rings()):
            self._pending = False
            history = self._history(staged=True)
            findings = examine(history, self.thresholds)
            if self.speak:
                self._voice.tell(findings)
            self._voice.write(history, findings)

    def _parts(self) -> list[Watch | Updates | Inputs]:
        watches = [each for watch in self._watches for each in (watch, *watch.others)]
        return [*watches, *self._optimizers.records, *self._inputs]

    def _rings(self) -> list[Ring]:
        parts = [ring for part in self._parts() for ring in part.rings]
        return [self._loss, *parts, *([] if self._logged is None else [self._logged])]

    def __repr__(self) -> str:
        watched = [*(watch.name for watch in self._watches), *self._optimizers.names]
        return f"Monitor({', '.join(watched) or 'nothing'}: {self._clock.step} steps)"

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove every hook, and write the last scalars. What was recorded stays readable."""
        if self.writer is not None and self._open and self._started:
            history = self.history()
            self._voice.write(history, examine(history, self.thresholds))
        self._hooks.clear()
        self._arm()
        for end in self._endings:
            end()
        self._endings.clear()
        self._optimizers.close()
        self._reach.close()
        self._polled.clear()
        self._open = False

    def __enter__(self) -> Monitor:  # noqa: PYI034 (Self is of Python 3.11)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()
        if kind is None and self.speak:
            self._voice.tell(self.check())


def _take_back(loss: Table, updates: Table) -> None:
    """Updates that a fused optimizer refused were none, from the row on where that was seen; the last has them all."""
    known = updates.measured("refused")
    if len(known):
        places = np.searchsorted(known.steps, loss.steps, side="right") - 1
        refused = np.where(places >= 0, known["refused"][places], 0)
        refused[-1:] = updates.facts.get("refused", refused[-1:])
        loss["updates"][:] -= refused


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _free(name: str, taken: Iterable[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found
