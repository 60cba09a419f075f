"""The monitor: two lines in a training loop, and findings when somebody asks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..losses import EvidentLoss
from . import _given, _report
from ._axes import Axes
from ._clock import Clock
from ._evident import HeardWatch
from ._finding import Finding
from ._foreign import ForeignWatch, OutputWatch
from ._given import Criteria, Optimizers
from ._graph import terms, total
from ._guard import compiler, is_traced, uncompiled
from ._history import History, Table, free_name, take_back
from ._hooks import Calls
from ._inputs import Inputs
from ._inside import inside_of_models, watches
from ._optimizers import FollowedOptimizers
from ._reach import Reach
from ._ring import AT_ONCE, Ring
from ._thresholds import Thresholds
from ._unlearned import is_compiled, is_compiled_in_place
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
    too; a plain function goes through :meth:`watch`. Without one, losses inside the model are watched, or else those of
    torch that are found in the graph of the loss that it returns, or of what :meth:`step` gets before ``backward()``;
    after it, labels of a cross entropy are told from its gradient. ``optimizer``: one or several; without it those are
    noticed that step parameters of the model. Everything is optional: what is not given is not judged.

    Nothing waits for the device until :meth:`check`, :meth:`history` or :meth:`report` is called: rows are copied into
    a ring of the device's memory. With ``speak``, the monitor also looks by itself at steps 32, 64, 128, 256 and
    every 256 from then on, without waiting either, and passes every new cause once to :mod:`warnings` (errors and
    warnings, as :class:`HealthWarning`) or to the logger ``fastmine.health`` (information). ``writer``, an object
    with ``add_scalar(tag, value, step)`` such as TensorBoard's ``SummaryWriter``, gets the numbers of every look and
    of the end: ``health/alarms``, how many errors and warnings there are, ``health/found/CODE``, how sure each of
    them is, and every column of :meth:`history`, ``health/criterion/valid`` and the like.

    Of the first model, unless it is compiled, the size of its inputs is read on some steps too, and whether they show
    the objects of masks where these are; no input is kept.

    Under ``torch.compile``, of the loss or of a function that calls it, losses of fastmine leave all their evidence;
    others are read where they are called uncompiled.

    What fails in the monitor, or in a writer, does not end the training: it is told as a warning once, and is in every
    report, as what is not judged for it. Only findings that :mod:`warnings` makes errors come out of :meth:`step`.

    No value, gradient or random number of the training is changed. A loss of others that takes (embeddings [N, D],
    labels [N]), pairs and labels, images and masks, or broadcasts is called a few times more, without gradient, at its
    first step: with classes renamed, targets exchanged or made equal, the target or a constant as prediction, or one
    side of a pair as the other, which tells who is compared with whom and what costs nothing: a copy of it, on copies
    of its inputs. One with buffers is not, nor what runs a module that has some; a function has no copy, and if it
    counts its calls, it counts these.
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
        self._clock = Clock()
        self._guard = self._clock.guard
        self._voice = Voice(_given.writer(writer), self._guard)
        self._learning: list[EvidentLoss[Any]] = []  # losses that may have parameters, as a classifier has
        self._models = _given.several("model", model, nn.Module)
        self._watches: list[Watch] = []
        self._polled: list[HeardWatch] = []  # losses that were called inside a compiled function
        self._calls = Calls(self._guard)
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
        self._reach = Reach(self._models, self._optimizers, self._clock)
        self._axes = Axes(self._models, self._clock)
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

        part = f"calls of {name}"

        @functools.wraps(loss)
        def observed(*args: Any, **kwargs: Any) -> Any:
            output = loss(*args, **kwargs)
            if self._open and is_training_call():
                self._guard.call(part, watch.called, args, kwargs, output)
                self._guard.call(part, self._called, output)
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
        self._axes.hang_on(self._calls)
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
                self._endings.append(watch.loss.listen(self._guard.over(f"the evidence of {watch.name}", watch.hear)))
            if watch is found[0] or not compiled:
                self._hook(watch, whole=watch is found[0])

    def _hook(self, watch: Watch, *, whole: bool) -> None:
        part = f"calls of {watch.name}"

        def hook(args: Any, kwargs: Any, output: Any) -> None:
            if watch.composite is not None:
                self._guard.call(part, watch.composite.component_called, watch.part, args, kwargs, output)
            self._guard.call(part, watch.called, args, kwargs, output)
            if whole:
                self._called(output)

        if watch.module is not None:
            self._calls.of(watch.module, part, hook)
            self._arm()

    def _observe_outputs(self, module: nn.Module, name: str) -> None:
        """Without a loss that can be hooked, what the model returns is what there is to see, and what it made it of."""
        if is_compiled_in_place(module):  # and its hooks with it, anew whenever there are others
            self._clock.look_too()  # at what step() gets
            return
        watch = OutputWatch(name, module, self._clock)
        self._watches.append(watch)
        self._within.instead.append(watch)

        def hook(_args: Any, _kwargs: Any, output: Any) -> None:
            found = self._guard.call("losses inside of the model", self._within.returned, output)
            if not found and isinstance(output, Tensor):
                watch.called((output,), {}, output)

        self._calls.of(module, f"what {name} returns", hook)
        self._arm()

    def _observe_inputs(self, module: nn.Module) -> None:
        """Of a model that is not compiled: what it is called with to be learned from."""
        if is_compiled(module):
            return
        inputs = Inputs("model.inputs", self._clock)
        self._inputs.append(inputs)

        self._calls.of(module, "the inputs of the model", lambda args, _kwargs, _output: inputs.called(args))
        self._arm()

    def _arm(self) -> None:
        """Hook the losses in close steps only, unless their calls are the steps."""
        self._calls.arm(wanted=self._clock.close or self._steps_itself)

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
        if is_traced() or compiler():
            uncompiled(self.step, loss, logged=logged, inputs=inputs)
            return
        # Most steps: the value of the loss, and nothing else. Each name looked up here is paid for in cold caches.
        if self._plain and logged is None and inputs is None and type(loss) is Tensor:
            clock, ring = self._clock, self._loss
            step = clock.step
            ring.waiting.append((step, loss.detach(), (not loss.is_leaf, clock.updates), ring.version))
            clock.step = step = step + 1
            if step >= clock.next:
                clock.decide()
                self._turn()
            return
        if not self._open:
            self._guard.failed("further steps", RuntimeError("the monitor is closed, or a copy: make a new one"))
            return
        if self._clock.step == 0:
            _given.loss(loss, logged)  # later, what cannot be read must not end what has run for hours
        self._look_closely(loss, logged, inputs)
        self._clock.advance()
        self._turn()

    def _turn(self) -> None:
        """A close step begins, or ends."""
        try:
            self._guard.call("the loss", self._loss.settle_if_many)
            self._arm()
            self._guard.call("parts that lead nowhere", self._reach.turn)
            if self.speak or self.writer is not None:
                self._guard.call("what is said meanwhile", self._maybe_speak)
        finally:  # a finding may be an error, if the user wants that
            busy = self._clock.close or self._pending or self._polled or self._loss.together == AT_ONCE
            self._plain = self._scalar and not busy

    def _look_closely(
        self, loss: Tensor | float, logged: Tensor | float | None, inputs: tuple[Tensor, Tensor] | None
    ) -> None:
        call = self._guard.call
        if inputs is not None:
            call("the inputs that step() gets", self._take_inputs, inputs, loss)
        call("losses inside of the loss", self._within.learned_from, loss)
        call("the loss", self._record, loss, logged)
        if self._clock.gradient:
            watches = [watch for watch in self._watches if watch not in self._within.instead]
            call("how sequences lie", self._axes.settle, loss, watches)
        if self._clock.gradient and isinstance(loss, Tensor):
            call("what the loss is multiplied by", self._reach.find_factors, loss, self._watches)
        if self._clock.sample:
            self._optimizers.sample()
        for watch in self._polled if not self._clock.close else self._watches:
            if isinstance(watch, HeardWatch):
                overlooked = call(f"the evidence of {watch.name}", watch.overlooked)
                if overlooked and watch not in self._polled:
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
            self._write_loss(torch.tensor(_given.number(loss), device="cpu"), (np.nan, updates, told))
            return
        value = loss.detach()
        self._scalar = value.dim() == 0
        depends = None
        if self._clock.gradient:
            depends = self._guard.call("what the loss depends on", self._reach.depends, loss, self._watches)
        host = (loss.grad_fn is not None, updates, told, *(depends or ()))
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
        facts: dict[str, Any] = {}
        loss = self._guard.call("the loss", self._loss_table, facts, staged=staged)
        if loss is not None:
            tables["loss"] = loss
        for part in self._parts():
            table = self._guard.call(part.name, part.table, staged=staged)
            if table is not None:
                tables[free_name(table.name, tables)] = table
            if table is not None and loss is not None and table.kind == "updates":
                take_back(loss, table)
        facts.update(self._facts(self._within.leave_out(tables)))
        for name, ring in self._rings():
            if ring.problem is not None:
                self._guard.failed(f"a row of {name}", ring.problem)
                ring.problem = None
        return History(self._clock.step, tables, self._guard.failures)

    def _loss_table(self, facts: dict[str, Any], *, staged: bool) -> Table | None:
        if not self._started:
            return None
        steps, columns = self._loss.read(staged=staged)
        if not len(steps):
            return None
        if self._logged is not None:
            merged(steps, columns, *self._logged.read(staged=staged))
        return Table("loss", "loss", steps, columns, facts)

    def _examined(self, *, staged: bool = False) -> tuple[History, list[Finding]]:
        history = self._history(staged=staged)
        findings = examine(history, self.thresholds, self._guard.failed)
        return replace(history, failures=self._guard.failures), findings

    def _facts(self, unseen: Iterable[str]) -> dict[str, Any]:
        ours = [p for module in self._models for p in module.parameters()]
        frozen = bool(ours) and bool(self._learning) and not any(p.requires_grad for p in ours)
        return {
            **self._reach.facts(),
            "exchanged": self._axes.facts(),
            "unwatched": [*self._unwatched, *(name for name in unseen if name not in self._unwatched)],
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
        return self._examined()[1]

    @property
    def verdict(self) -> str:
        """ "error", "warning", "healthy", or "unknown" where there are too few steps to tell."""
        return _report.verdict(self.check(), self._clock.step)

    def report(self, path: str | Path | None = None) -> str:
        """The findings as text. With ``path``, also written there as .txt, .json or .html."""
        target = None if path is None else _given.report(path)
        history, findings = self._examined()
        if target is not None:
            _report.write(target, history, findings)
        return _report.text(history, findings)

    def _maybe_speak(self) -> None:
        step = self._clock.step
        if step % 256 == 0 or step in (32, 64, 128):
            for _, ring in self._rings():
                ring.stage()
            self._pending = True
        if self._pending and all(ring.staged() for _, ring in self._rings()):
            self._pending = False
            history, findings = self._examined(staged=True)
            self._voice.write(history, findings)
            if self.speak:
                self._voice.tell(findings)

    def _parts(self) -> list[Watch | Updates | Inputs]:
        watches = [each for watch in self._watches for each in (watch, *watch.others)]
        return [*watches, *self._optimizers.records, *self._inputs]

    def _rings(self) -> list[tuple[str, Ring]]:
        of_loss = [("the loss", ring) for ring in (self._loss, self._logged) if ring is not None]
        return [*of_loss, *((part.name, ring) for part in self._parts() for ring in part.rings)]

    def __reduce__(self) -> tuple[Callable[[], Monitor], tuple[()]]:
        """A copy, or what is loaded from a file, watches nothing, and says so when it is used."""
        return _closed, ()

    def __repr__(self) -> str:
        watched = [*(watch.name for watch in self._watches), *self._optimizers.names]
        return f"Monitor({', '.join(watched) or 'nothing'}: {self._clock.step} steps)"

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove every hook, and write the last scalars. What was recorded stays readable; further steps are not."""
        if self.writer is not None and self._open and self._started:
            self._voice.write(*self._examined())
        self._calls.close()
        for end in self._endings:
            end()
        self._endings.clear()
        self._optimizers.close()
        self._reach.close()
        self._polled.clear()
        self._open = self._plain = False

    def __enter__(self) -> Monitor:  # noqa: PYI034 (Self is of Python 3.11)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()
        if kind is None and self.speak:
            self._voice.tell(self.check())


def _closed() -> Monitor:
    monitor = Monitor(speak=False)
    monitor.close()
    return monitor


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
