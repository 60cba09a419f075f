"""The monitor: two lines in a training loop, and findings when somebody asks."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optim
from torch.utils.hooks import RemovableHandle

from .. import __version__
from ..losses import EvidentLoss
from . import _report
from ._clock import Clock
from ._finding import Finding, HealthWarning
from ._graph import constant_factors, in_reentrant_checkpoint, reached, unregistered
from ._history import History, Table
from ._ring import AT_ONCE, Ring
from ._thresholds import Thresholds
from ._updates import Updates
from ._watch import (
    CompositeWatch,
    EvidentWatch,
    ForeignWatch,
    HeardWatch,
    Watch,
    is_training_call,
    merged,
    original,
    watches,
)
from .rules import examine

LossT = TypeVar("LossT", bound=Callable[..., Any])
Hook = Callable[[nn.Module, Any, Any, Any], None]
Criteria = Callable[..., Any] | Sequence[Callable[..., Any]] | None
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
OPTIMIZERS = 16  # that are followed at most

_log = logging.getLogger("fastmine.health")


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

    ``model``: a module or several. ``criterion``: any ``nn.Module``, or several; losses of fastmine leave their full
    evidence, of others the inputs are read on some steps; a plain function goes through :meth:`watch`. ``optimizer``:
    one or several; without it those are noticed that step parameters of the model. Everything is optional: what is
    not given is not judged.

    Nothing waits for the device until :meth:`check`, :meth:`history` or :meth:`report` is called: rows are copied into
    a ring of the device's memory. With ``speak``, the monitor also looks by itself at steps 32, 64, 128, 256 and
    every 256 from then on, without waiting either, and passes every new cause once to :mod:`warnings` (errors and
    warnings, as :class:`HealthWarning`) or to the logger ``fastmine.health`` (information). ``writer``, an object
    with ``add_scalar(tag, value, step)`` such as TensorBoard's ``SummaryWriter``, gets the numbers of every look.

    No value, gradient or random number of the training is changed. A loss of others that takes (embeddings [N, D],
    labels [N]), pairs and labels, images and masks, or broadcasts is called up to three times more, without gradient,
    at its first step: with classes renamed, targets exchanged or made equal, or the target as prediction, which tells
    who is compared with whom. One with buffers is not.
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
        self.thresholds = Thresholds() if thresholds is None else thresholds
        self.writer, self.speak = writer, speak
        self._clock = Clock()
        self._learning: list[EvidentLoss[Any]] = []  # losses that may have parameters, as a classifier has
        self._models = _several("model", model, nn.Module)
        self._watches: list[Watch] = []
        self._polled: list[EvidentWatch] = []
        self._hooks: list[tuple[nn.Module, Hook]] = []
        self._armed: list[RemovableHandle] = []
        self._endings: list[Callable[[], None]] = []
        self._loss = Ring(
            ("value",),
            torch.device("cpu"),
            ("connected", "updates", "logged", "model", "optimizer", "criterion", "sure"),
        )
        self._started = False
        self._plain = False  # nothing is measured in this step
        self._scalar = True  # the loss was a single number when that was looked at last
        self._logged: Ring | None = None
        self._told: set[tuple[str, str]] = set()
        self._pending = False
        self._steps_itself = False
        self._updates: list[Updates] = []
        self._foreign_optimizers: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._frozen = {id(p) for module in self._models for p in module.parameters() if not p.requires_grad}
        self._unregistered: list[nn.Parameter] = []  # that the loss depends on
        self._cut: dict[nn.Module, bool] = {}  # modules that it does not reach: did they run in a checkpoint?
        self._follow_optimizers(optimizer)
        for number, one in enumerate(_criteria(criterion)):
            self._observe(one, "criterion" if number == 0 else f"criterion.{number}")
        if not self._watches:
            for number, module in enumerate(self._models):
                self._observe_outputs(module, "model" if number == 0 else f"model.{number}")

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
        monitor = cls(model, criterion, optimizer, **options)
        monitor._steps_itself = True
        monitor._arm()
        return monitor

    def _observe(self, criterion: Callable[..., Any], name: str) -> None:
        """Hook a module; a plain function cannot be, and is only known by the loss that :meth:`step` gets."""
        if not isinstance(criterion, nn.Module):
            return
        found = watches(criterion, self._clock, name)
        self._learning += [part for part in criterion.modules() if isinstance(part, EvidentLoss)]
        self._watches += found
        compiled = original(criterion) is not criterion
        for watch in found:
            if compiled and isinstance(watch, EvidentWatch):
                self._polled.append(watch)  # what is inside is compiled as it is
            elif isinstance(watch, HeardWatch):
                self._endings.append(watch.loss.listen(watch.hear))
            if watch is found[0] or not compiled:
                module = criterion if watch is found[0] else _module_of(watch, found[0])
                self._hook(module, watch, found[0])

    def _hook(self, module: nn.Module, watch: Watch, outer: Watch) -> None:
        composite = outer if isinstance(outer, CompositeWatch) and watch is not outer else None

        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not is_training_call():
                return
            if composite is not None:
                composite.component_called(watch.name, args, kwargs, output)
            watch.called(args, kwargs, output)
            if watch is outer:
                self._called(output)

        self._hooks.append((module, _Hook(hook)))
        self._arm()

    def _observe_outputs(self, module: nn.Module, name: str) -> None:
        """Without a loss that can be hooked, what the model returns is what there is to see."""
        watch = ForeignWatch(name, module, self._clock)
        self._watches.append(watch)

        def hook(_: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            if is_training_call() and isinstance(output, Tensor):
                watch.called((output,), {}, output)

        self._hooks.append((module, _Hook(hook)))
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
        if self._steps_itself and isinstance(output, Tensor):
            self.step(output)

    def _follow_optimizers(self, optimizer: Optimizers) -> None:
        for one in _several("optimizer", optimizer, torch.optim.Optimizer):
            self._follow(one)
        self._endings.append(optim.register_optimizer_step_pre_hook(self._before_step).remove)
        self._endings.append(optim.register_optimizer_step_post_hook(self._after_step).remove)
        self._rest = Updates("model", self._clock)
        self._hold_rest()

    def _follow(self, optimizer: torch.optim.Optimizer) -> Updates:
        number = len(self._updates)
        self._updates.append(Updates("optimizer" if number == 0 else f"optimizer.{number}", self._clock, optimizer))
        return self._updates[-1]

    def _hold_rest(self) -> None:
        """Sample those parameters of the model and of our losses, too, that no optimizer holds."""
        held = frozenset[int]().union(*(updates.ids for updates in self._updates))
        ours = [p for module in self._models for p in module.parameters()] + self._unregistered
        ours += [p for loss in self._learning for p in loss.parameters(recurse=False)]
        rest = [p for p in ours if p.requires_grad and id(p) not in held]
        if {id(p) for p in rest} != self._rest.ids:
            self._rest.hold(rest)
            self._rest.facts["last_layer"] = self._last_layer() if held else None
            self._rest.facts["thawed"] = len(self._rest.ids & self._frozen) if held else 0
            self._rest.facts["unregistered"] = len(self._rest.ids.intersection(map(id, self._unregistered)))

    def _last_layer(self) -> str | None:
        """The last module that has parameters of its own, if all of them are in no optimizer; losses come last."""
        parts = [named for module in self._models for named in module.named_modules()]
        parts += [(type(loss).__name__, loss) for loss in self._learning]
        own = [
            (name, list(part.parameters(recurse=False)))
            for name, part in parts
            if any(p.requires_grad for p in part.parameters(recurse=False))
        ]
        return own[-1][0] if own and all(id(p) in self._rest.ids for p in own[-1][1]) else None

    def _of(self, optimizer: torch.optim.Optimizer) -> Updates | None:
        """The record of an optimizer; one that was not given is taken up if it steps parameters of the model."""
        for updates in self._updates:
            if updates.optimizer is optimizer:
                return updates
        if optimizer in self._foreign_optimizers or len(self._updates) == OPTIMIZERS:
            return None
        theirs = {id(p) for group in optimizer.param_groups for p in group["params"]}
        ours = {id(p) for module in self._models for p in module.parameters()}
        if theirs & ours or not (ours or self._updates):
            found = self._follow(optimizer)
            self._hold_rest()
            return found
        self._foreign_optimizers.add(optimizer)
        return None

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if (updates := self._of(optimizer)) is not None:
            updates.before_step()

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if (updates := self._of(optimizer)) is not None:
            updates.after_step()
            self._clock.updates += 1

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
        if self.speak:
            self._maybe_speak()
        busy = self._clock.close or self._pending or self._polled or self._loss.together == AT_ONCE
        self._plain = self._scalar and not busy

    def _look_closely(
        self, loss: Tensor | float, logged: Tensor | float | None, inputs: tuple[Tensor, Tensor] | None
    ) -> None:
        if inputs is not None:
            self._given(inputs, loss)
        self._record(loss, logged)
        if self._clock.gradient and isinstance(loss, Tensor):
            self._find_factors(loss)
        if self._clock.sample:
            self._sample()
        for watch in self._polled:
            watch.poll()

    def _given(self, inputs: tuple[Tensor, Tensor], loss: Tensor | float) -> None:
        watch = next((watch for watch in self._watches if watch.name == "inputs"), None)
        if watch is None:
            watch = ForeignWatch("inputs", None, self._clock)
            self._watches.append(watch)
        if isinstance(loss, Tensor):
            watch.called(inputs, {}, loss)

    def _record(self, loss: Tensor | float, logged: Tensor | float | None) -> None:
        step, updates = self._clock.step, self._clock.updates
        told = float("nan") if logged is None or isinstance(logged, Tensor) else float(logged)
        if not isinstance(loss, Tensor):
            self._write_loss(torch.tensor(float(loss)), (np.nan, updates, told))
            return
        value = loss.detach()
        self._scalar = value.dim() == 0
        depends = self._depends(loss) if self._clock.gradient else ()
        host = (loss.grad_fn is not None, updates, told, *depends)
        self._write_loss(value if self._scalar else value.mean(), host)
        if isinstance(logged, Tensor):
            if self._logged is None:
                self._logged = Ring(("logged",), logged.device)
            self._logged.write(step, logged.detach())

    def _find_factors(self, loss: Tensor) -> None:
        """Whether the total multiplies a loss that is watched by a constant; only where backward() is still to come."""
        nodes = {node: watch for watch in self._watches for node in watch.nodes[-1:]}
        if nodes and loss.grad_fn not in nodes:
            with contextlib.suppress(RuntimeError):  # the graph is freed
                for factor, node in constant_factors(loss):
                    if node in nodes:
                        nodes[node].multiplied([factor])
        for watch in self._watches:
            watch.nodes.clear()

    def _write_loss(self, value: Tensor, host: tuple[float, ...]) -> None:
        if not self._started:
            self._started = True
            self._loss = Ring(self._loss.columns, value.device, self._loss.host)
        self._loss.write(self._clock.step, value, host)

    def _depends(self, loss: Tensor) -> tuple[float, float, float, float]:
        """How many parameters of the model and of the optimizers the loss depends on, whether on a criterion that was
        called, and whether that is sure."""
        found, nodes, sure = reached(loss)
        trainable = [id(p) for module in self._models for p in module.parameters() if p.requires_grad]
        model = sum(number in found for number in trainable)
        hidden = (p for module in self._models for p in unregistered(module))
        self._unregistered = [p for p in hidden if id(p) in found]
        self._find_cut(found if sure else set(trainable))
        held = sum(len(updates.ids & found) for updates in self._updates)
        called = [node for watch in self._watches for node in watch.nodes]
        part = any(node in nodes for node in called)
        return (
            model if trainable else np.nan, held if self._updates else np.nan, part if called else np.nan, sure,
        )  # fmt: skip

    def _find_cut(self, found: set[int]) -> None:
        """Ask the modules whose weights an optimizer holds and the loss does not reach where they run, once each."""
        held = frozenset[int]().union(*(updates.ids for updates in self._updates))
        parts = [part for module in self._models if not _is_compiled(module) for part in module.modules()]
        own = [(part, {id(p) for p in part.parameters(recurse=False) if p.requires_grad} & held) for part in parts]
        cut = [part for part, ids in own if ids and not ids & found]
        self._cut = {part: self._cut[part] for part in cut if part in self._cut}
        for part in cut:
            if part not in self._cut:
                self._cut[part] = False
                self._ask_where(part)

    def _ask_where(self, part: nn.Module) -> None:
        def asked(_part: nn.Module, _args: Any) -> None:
            handle.remove()
            if part in self._cut:
                self._cut[part] = in_reentrant_checkpoint()

        handle = part.register_forward_pre_hook(asked)
        self._endings.append(handle.remove)

    def _sample(self) -> None:
        self._hold_rest()
        for updates in (*self._updates, self._rest):
            updates.sample(self._clock.step)

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
            tables["loss"] = Table("loss", "loss", steps, columns, {"checkpointed": sum(self._cut.values())})
        for part in self._parts():
            table = part.table(staged=staged)
            if table is not None:
                tables[_free(table.name, tables)] = table
        return History(self._clock.step, tables)

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
            match target.suffix:
                case ".json":
                    target.write_text(json.dumps(_report.as_dict(history, findings, __version__), indent=1))
                case ".html":
                    from . import _html

                    target.write_text(_html.render(history, findings))
                case ".txt":
                    target.write_text(text + "\n")
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
            self._tell(examine(history, self.thresholds))
            self._write_scalars(history)

    def _parts(self) -> list[Watch | Updates]:
        return [*self._watches, *self._updates, self._rest]

    def _rings(self) -> list[Ring]:
        parts = [ring for part in self._parts() for ring in part.rings]
        return [self._loss, *parts, *([] if self._logged is None else [self._logged])]

    def _tell(self, findings: Sequence[Finding]) -> None:
        """Each cause once."""
        for finding in findings:
            key = (finding.code, finding.component)
            if key in self._told:
                continue
            self._told.add(key)
            if finding.is_alarm:
                warnings.warn(f"\n{finding}", HealthWarning, stacklevel=_frames_to_the_loop())
            else:
                _log.info("%s", finding)

    def _write_scalars(self, history: History) -> None:
        if self.writer is None:
            return
        for name, table in history.tables.items():
            for column, values in table.columns.items():
                known = np.flatnonzero(np.isfinite(values))
                if len(known):
                    self.writer.add_scalar(f"health/{name}/{column}", values[known[-1]], int(table.steps[known[-1]]))

    def __repr__(self) -> str:
        watched = [*(watch.name for watch in self._watches), *(updates.name for updates in self._updates)]
        return f"Monitor({', '.join(watched) or 'nothing'}: {self._clock.step} steps)"

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Remove every hook. What was recorded stays readable."""
        self._hooks.clear()
        self._arm()
        for end in self._endings:
            end()
        self._endings.clear()
        for updates in (*self._updates, self._rest):
            updates.close()
        self._polled.clear()

    def __enter__(self) -> Monitor:  # noqa: PYI034 (Self is of Python 3.11)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()
        if kind is None and self.speak:
            self._tell(self.check())


class _Hook:
    """A forward hook that stays behind: a copy or a pickle of the module that has it is watched by nobody."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._hook(module, args, kwargs, output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[Hook]]:
        return _Hook, (_unwatched,)


def _unwatched(_module: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
    """What a copied hook does."""


GivenT = TypeVar("GivenT")


def _several(name: str, given: GivenT | Iterable[GivenT] | None, kind: type[GivenT]) -> list[GivenT]:
    """What was given alone, as several or not at all, all of this kind."""
    if given is None:
        return []
    found = [given] if isinstance(given, kind) or not isinstance(given, Iterable) else list(given)
    for one in found:
        if not isinstance(one, kind):
            raise TypeError(
                f"{name} must be one {kind.__name__}, or several; got {type(one).__name__}; the order is "
                "Monitor(model, criterion, optimizer)"
            )
    return found


def _criteria(given: Criteria) -> list[Callable[..., Any]]:
    """The losses to watch; what could not be called is refused, and a class is no loss yet."""
    if given is None:
        return []
    found: list[Any] = list(given) if isinstance(given, (Sequence, nn.ModuleList)) else [given]
    for one in found:
        if isinstance(one, type):
            raise TypeError(f"criterion must be a loss, not a class; got {one.__name__}; use {one.__name__}()")
        if not callable(one):
            raise TypeError(
                f"criterion must be a loss that can be called, or several; got {type(one).__name__}; the order is "
                "Monitor(model, criterion, optimizer)"
            )
    return found


def _frames_to_the_loop() -> int:
    """How many frames up the training loop is, so that a warning names its line: past this package and torch."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in {"fastmine", "torch"}:
        frame, level = frame.f_back, level + 1
    return level


def _is_compiled(module: nn.Module) -> bool:
    """Whether a hook on what is inside would have it compiled again."""
    return original(module) is not module or getattr(module, "_compiled_call_impl", None) is not None


def _module_of(watch: Watch, outer: Watch) -> nn.Module:
    """The module to hook: a component's wrapper where the component is a plain function."""
    if isinstance(outer, CompositeWatch):
        module: nn.Module = outer.loss.components[watch.name]
        return module
    inner: nn.Module = watch.loss
    return inner


def _free(name: str, taken: Iterable[str]) -> str:
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}.{number}"
    return found
