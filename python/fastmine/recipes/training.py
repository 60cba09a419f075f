"""The training loop that all systems share, and the run around it: seeds, checkpoints, Ctrl-C, report.

A system says what a batch is, what is learned from it and how the model is judged (:class:`~.system.System`).
:func:`train` does the rest. Whatever is random is a function of the seed, the epoch and the batch, so
that a run which was stopped anywhere goes on to the same bits as one that was not.
"""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Generic

import torch
from torch import nn

from .. import config
from ..health import Monitor
from . import board, checkpoint, processes, report, runs
from .errors import CommandError, InterruptionError, UsageError
from .screen import Screen, written
from .settings import Settings, settings_to_resume
from .system import BatchT, EvidenceT, Numbers, Step, System, mean

LOOK_EVERY = {"cpu": 5, "cuda": 50}  # steps between two looks at the loss: each waits for the device
AVERAGING = 0.98  # of the running average of the weights: the last 50 steps or so


class Average:
    """A running average of a model's weights: what is judged and kept.

    It removes the noise of the last few steps without a schedule for the learning rate, and so
    without having to know how long the run will be.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of ``model``: all the way at first, then by ever smaller shares."""
        self.updates += 1
        share = max(1 - AVERAGING, 10 / (9 + self.updates))
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        for mine, theirs in pairs:
            if mine.is_floating_point():
                mine.lerp_(theirs, share)
            else:
                mine.copy_(theirs)


@dataclass
class Progress:
    """How far a run has come: whole epochs, and batches of the one that was interrupted."""

    epochs: int = 0
    steps: int = 0  # of the next epoch
    seconds: float = 0.0  # spent on the unfinished epoch so far
    records: list[Numbers] = field(default_factory=list)
    history: list[Numbers] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    best_epoch: int = 0  # counted from 1; 0 for none


class Run(Generic[BatchT, EvidenceT]):
    """A system in training: optimizer, average, progress, and the folder that it is saved in."""

    def __init__(self, system: System[BatchT, EvidenceT], folder: Path, screen: Screen) -> None:
        self.system, self.folder, self.screen = system, folder, screen
        system.model = processes.with_whole_batches(system.model)
        self.weights = [*system.model.parameters(), *system.loss.parameters()]
        self.optimizer = torch.optim.AdamW(self.weights, lr=system.settings.lr, weight_decay=1e-4)
        self.average = Average(system.model)
        self.progress = Progress()
        watched = system.settings.monitor == "on" and processes.is_first()
        self.monitor = Monitor(system.model, system.loss, self.optimizer, speak=False) if watched else None
        self.board: board.Board | None = None
        self._unread: list[tuple[Step[EvidenceT], bool]] = []
        self._draws = system.settings.pictures_every > 0
        self._stop = False

    def fit(self) -> None:
        """Train until the last epoch is done, or until Ctrl-C."""
        with self._stopped_by_interrupts(), self._logged():
            while self.progress.epochs < self.system.settings.epochs:
                if processes.any_of_them(self._stop):
                    self._stop_here()
                self._epoch()

    @contextmanager
    def _logged(self) -> Iterator[None]:
        """With TensorBoard's logs, where they are asked for."""
        if self.system.settings.tensorboard == "on" and processes.is_first():
            self.board = board.Board(self.folder, self._steps_done())
        try:
            yield
        finally:
            if self.board is not None:
                self.board.close()

    def _steps_done(self) -> int:
        return self.progress.epochs * self.system.steps() + self.progress.steps

    def _epoch(self) -> None:
        progress, system = self.progress, self.system
        number, total, start = progress.epochs + 1, system.steps(), time.perf_counter()
        with self.screen.bar():
            for batch in islice(system.batches(number), progress.steps, None):
                self._step(batch)
                progress.steps += 1
                if len(self._unread) >= LOOK_EVERY[system.settings.device]:
                    self._read()
                self.screen.progress(f"epoch {number}{self._glance()}", progress.steps, total)
                if processes.any_of_them(self._stop):
                    progress.seconds += time.perf_counter() - start
                    self._stop_here()
        self._read()
        judged = processes.by_the_first(lambda: system.judge(self.average.model))
        self._finish(judged, progress.seconds + time.perf_counter() - start)

    def _step(self, batch: BatchT) -> None:
        """The heart of it: one step down the gradient, unless there is nothing to learn from."""
        self.system.model.train()
        with in_low_precision(self.system.settings):
            step = self.system.learn(batch)
        if batch.teaches:
            self.optimizer.zero_grad()
            step.loss.backward()  # type: ignore[no-untyped-call]
            processes.average_gradients(self.weights)
            self.optimizer.step()
            self.average.update(self.system.model)
        if self.monitor is not None:
            self.monitor.step(step.loss)
        self._unread.append((Step(step.loss.detach(), step.evidence), batch.teaches))

    def _read(self) -> None:
        """Copy losses and evidence of the last steps to the host, and stop if one is not finite."""
        records = self.progress.records
        before = len(records)
        for step, taught in self._unread:
            loss = float(step.loss)
            if not math.isfinite(loss):
                raise self._spoiled(f"the loss became {loss} in epoch {self.progress.epochs + 1} ({step.evidence})")
            numbers = self.system.record(step.evidence)
            records.append({**numbers, "loss": loss if taught else math.nan})
        self._unread.clear()
        if self.board is not None:
            self.board.steps(records[before:], self._steps_done() - len(records) + before + 1)

    def _glance(self) -> str:
        """The last that was read, for the progress bar."""
        if not self.progress.records:
            return ""
        return "".join(f"  {each.title} {written(each, self.progress.records[-1])}" for each in self.system.glance)

    def _spoiled(self, what: str) -> CommandError:
        return CommandError(
            f"{what}. Nothing of this was saved: {self.folder} holds what there was before. Start again with a "
            f"smaller --lr than {self.system.settings.lr:g}"
        )

    def _finish(self, judged: Numbers, seconds: float) -> None:
        """Close an epoch: its line, its remarks, the checkpoint, and whether it is the best."""
        progress, system = self.progress, self.system
        records = progress.records
        row = {
            "loss": mean(record["loss"] for record in records),
            **system.summarise(records),
            **judged,
            "seconds": seconds,
        }
        remarks = [f"epoch {progress.epochs + 1}: {remark}" for remark in system.remarks(records)]
        self.progress = Progress(
            epochs=progress.epochs + 1,
            history=[*progress.history, row],
            remarks=[*progress.remarks, *remarks],
            best_epoch=best_epoch([*progress.history, row], system.metric.key),
        )
        self.screen.row(system.columns, self.progress.epochs, row)
        for remark in remarks:
            self.screen.say(f"       {remark}", style="yellow")
        if self.progress.best_epoch == self.progress.epochs:
            self.save(checkpoint.BEST)
        self.save(checkpoint.LAST)
        if self.board is not None:
            self.board.epoch(row, self._steps_done())
        if processes.is_first():
            self._draw()

    def _draw(self) -> None:
        """What the model does on held-out data, in a file of this epoch, every few epochs; the report has the last."""
        epochs, settings = self.progress.epochs, self.system.settings
        if not self._draws or epochs == settings.epochs or epochs % settings.pictures_every != 0:
            return
        try:
            self.system.show(self.average.model, epochs, self.folder / f"{self.system.shown}-{epochs:03d}.png")
        except UsageError as missing:
            self.screen.say(f"no pictures: {missing}")
            self._draws = False

    def _stop_here(self) -> None:
        self._read()
        self.save(checkpoint.LAST)
        done, steps = self.progress.epochs, self.progress.steps
        raise InterruptionError(
            f"stopped after {done} epochs and {steps} steps; everything is saved. Go on with: "
            f"fastmine train {self.system.name} --resume {self.folder}"
        )

    @contextmanager
    def _stopped_by_interrupts(self) -> Iterator[None]:
        """Ctrl-C ends the step in hand, saves and stops; a second one stops at once."""

        def request(number: int, frame: FrameType | None) -> None:
            if self._stop:
                signal.default_int_handler(number, frame)
            self._stop = True

        handled = threading.current_thread() is threading.main_thread()
        previous = signal.getsignal(signal.SIGINT)
        if not handled or previous is signal.SIG_IGN:
            yield
            return
        signal.signal(signal.SIGINT, request)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def save(self, name: str) -> None:
        """Write everything that the next step depends on; weights that are not finite never."""
        system = self.system
        broken = [name for name, tensor in system.model.state_dict().items() if not tensor.isfinite().all()]
        if broken:
            raise self._spoiled(f"{len(broken)} of the weights, such as {broken[0]}, are no longer finite")
        if not processes.is_first():
            return
        checkpoint.save(
            self.folder / name,
            {
                "recipe": system.name,
                "settings": plain(system.settings),
                "model_options": system.model_options,
                "data": {"fingerprint": system.fingerprint, "summary": system.data_summary},
                "progress": asdict(self.progress),
                "model": system.model.state_dict(),
                "average": {"model": self.average.model.state_dict(), "updates": self.average.updates},
                "optimizer": self.optimizer.state_dict(),
                "loss": system.loss.state_dict(),
                "rng": {
                    "cpu": torch.get_rng_state(),
                    "cuda": torch.cuda.get_rng_state_all() if system.settings.device == "cuda" else [],
                },
            },
        )

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go back to where :meth:`save` was called."""
        if saved["data"]["fingerprint"] != self.system.fingerprint:
            raise UsageError(
                f"the data is not that of the run to resume. Then: {'; '.join(saved['data']['summary'])}. "
                f"Now: {'; '.join(self.system.data_summary)}. Put it back, or start anew without --resume"
            )
        self.system.model.load_state_dict(saved["model"])
        self.average.model.load_state_dict(saved["average"]["model"])
        self.average.updates = saved["average"]["updates"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.system.loss.load_state_dict(saved["loss"])
        self.progress = Progress(**saved["progress"])
        torch.set_rng_state(saved["rng"]["cpu"])
        if self.system.settings.device == "cuda" and saved["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(saved["rng"]["cuda"])


def train(
    kind: type[System[Any, Any]],
    settings_kind: type[Settings],
    given: Mapping[str, Any],
    *,
    out: Path | None = None,
    resume: Path | bool | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train a system and report; returns what ``report.json`` holds.

    ``given`` are the options that differ from the defaults or, with ``resume``, from the saved run.
    ``out`` is a new or empty folder, by default the next free ``runs/NAME-1``, ``-2``, ...
    ``resume`` names a run's folder or a checkpoint; True stands for ``out``, or else the latest run.
    With ``dry_run`` everything is loaded and two steps are tried, and no run is begun: what would stop the real
    one, such as other data than that of the run to resume, stops this one too.
    """
    source = None
    if resume:
        source = runs.checkpoint_to_resume(kind.name, out, None if resume is True else Path(resume))
    saved = checkpoint.load(source, kind.name) if source else None
    settings = settings_to_resume(settings_kind, saved["settings"], given) if saved else settings_kind(**given)
    if settings.tensorboard == "on":
        board.require()
    with reproducible(settings), processes.joined(settings.device):
        screen = Screen(quiet=not processes.is_first())
        runs.check_folder(out, source)
        system = processes.first_then_others(lambda: kind(settings, screen))
        folder = Path() if dry_run else processes.by_the_first(lambda: runs.folder_for(kind.name, out, source))
        run = Run(system, folder, screen)
        if saved:
            run.restore(saved)
        processes.alike(system.model, system.loss)
        if dry_run:
            return try_out(run)
        _introduce(run)
        run.fit()
        return processes.by_the_first(lambda: _report(run))


def load_average(path: Path, name: str, build: Callable[..., nn.Module]) -> nn.Module:
    """The model that a run kept in a checkpoint, ready for use."""
    saved = checkpoint.load(path, name)
    model = build(**saved["model_options"])
    model.load_state_dict(saved["average"]["model"])
    return model.eval()


def best_epoch(history: Sequence[Numbers], metric: str) -> int:
    """The first epoch, from 1, with the largest metric. One that learned nothing is none; 0 if all are."""
    best, largest = 0, -math.inf
    for number, row in enumerate(history, start=1):
        if math.isfinite(row["loss"]) and row[metric] > largest:
            best, largest = number, row[metric]
    return best


def in_low_precision(settings: Settings) -> torch.autocast:
    """Around a step: autocast to bfloat16 where it is asked for. It needs no loss scaling."""
    return torch.autocast(settings.device, dtype=torch.bfloat16, enabled=settings.amp == "bf16")


@contextmanager
def reproducible(settings: Settings) -> Iterator[None]:
    """Seeded, deterministic, on so many threads; afterwards everything is as it was."""
    if settings.device == "cuda":
        if not torch.cuda.is_available():
            raise UsageError("--device cuda: torch finds no CUDA device here; use --device cpu")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not deterministic
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        torch.set_num_threads(settings.threads or (threads if settings.own_data else 1))
        torch.use_deterministic_algorithms(mode=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as a checkpoint and a report hold them; a folder by its full path."""
    found = asdict(settings)
    return {name: str(v.resolve()) if isinstance(v, Path) else v for name, v in found.items()}


def try_out(run: Run[Any, Any]) -> dict[str, Any]:
    """What is left of a run, from two steps of its next epoch; raises where they could not teach."""
    system, progress, screen = run.system, run.progress, run.screen
    _describe(system, screen)
    steps = system.settings.epochs * system.steps() - progress.epochs * system.steps() - progress.steps
    if steps <= 0:
        screen.say(f"dry run: all {progress.epochs} epochs are done; --epochs {progress.epochs + 1} would go on")
        return {"steps": 0}
    batches = islice(system.batches(progress.epochs + 1), progress.steps, None)
    teaching = list(islice((batch for batch in batches if batch.teaches), 2))
    if not teaching:
        raise CommandError(f"no batch of epoch {progress.epochs + 1} could teach anything; no run was begun")
    parameters = dict(system.model.named_parameters())
    system.model.train()
    for number, batch in enumerate(teaching, start=1):
        start = time.perf_counter()
        system.model.zero_grad()
        with in_low_precision(system.settings):
            loss = system.learn(batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        seconds = steps * (time.perf_counter() - start)  # by the last: the first finds nothing in the caches
        reached = [name for name, p in parameters.items() if p.grad is not None and bool(p.grad.any())]
        if not math.isfinite(value) or not reached:
            what = f"the loss is {value}" if reached else "no weight of the model has a gradient"
            raise CommandError(f"in step {number} of {len(teaching)} {what}; no run was begun")
    screen.say(
        f"dry run: loss {value:.4g}, a gradient at {len(reached)} of {len(parameters)} weight tensors; {steps} steps "
        f"to epoch {system.settings.epochs} would take about {seconds:.0f} s of training. No run was begun",
        style="bold",
    )
    return {
        "loss": value,
        "weights_reached": len(reached),
        "weights": len(parameters),
        "steps": steps,
        "seconds": seconds,
    }


def _describe(system: System[Any, Any], screen: Screen) -> None:
    """What is trained, on what, by whom."""
    for line in system.data_summary:
        screen.say(line)
    weights = sum(parameter.numel() for parameter in system.model.parameters())
    loss = f"{type(system.loss).__name__}({system.loss.extra_repr()})"
    name = getattr(system.settings, "model", "") or type(system.model).__name__
    screen.say(f"model: {name} with {weights:,} weights; loss: {loss}")
    screen.say(report.implementation(system.ops, system.settings.device))
    if processes.count() > 1:
        screen.say(f"{processes.count()} processes share every batch")


def _introduce(run: Run[Any, Any]) -> None:
    """The system, and where the run is."""
    system, screen = run.system, run.screen
    _describe(system, screen)
    progress, last = run.progress, system.settings.epochs
    if progress.epochs >= last:
        screen.say(f"all {progress.epochs} epochs are done; --epochs {progress.epochs + last} would go on")
    elif progress.epochs or progress.steps:
        screen.say(f"going on after {progress.epochs} of {last} epochs and {progress.steps} steps, in {run.folder}")
    if progress.epochs < last:
        screen.heading(system.columns)


def _report(run: Run[Any, Any]) -> dict[str, Any]:
    """Table, pictures and ``report.json`` of a finished run; returns what the last holds."""
    system, progress, screen = run.system, run.progress, run.screen
    history, best, last = progress.history, progress.best_epoch, progress.epochs
    implementation = report.implementation(system.ops, system.settings.device)
    seconds = sum(row["seconds"] for row in history)
    parts = report.components(run.monitor) if run.monitor else {}
    contents = {
        "recipe": system.name,
        "settings": plain(system.settings),
        "data": system.data_summary,
        "implementation": implementation,
        "versions": config()["versions"],
        "epochs": last,
        "best_epoch": best or None,
        "baselines": system.baselines,
        "last": history[-1],
        "best": history[best - 1] if best else None,
        "seconds": seconds,
        "remarks": progress.remarks,
        "components": parts,
        "health": _health(run),
        "history": history,
    }
    report.write_json(run.folder / "report.json", contents)
    report.table(screen, f"{system.name}, on held-out data", system.judged, system.baselines, history, best)
    if parts:
        screen.table("components of the loss, as last measured", report.COMPONENT_HEADS, report.component_rows(parts))
    if best:
        screen.say(f"The best epoch was chosen by {system.metric.title} on this same held-out data.")
    try:
        drawn = system.pictures(run.average.model, history, best, run.folder)
    except UsageError as missing:
        screen.say(f"no pictures: {missing}")
    else:
        screen.say(f"pictures: {', '.join(map(str, drawn))}")
    if system.settings.tensorboard == "on":
        screen.say(f"logs: tensorboard --logdir {run.folder}")
    _say_health(run)
    kept = run.folder / (checkpoint.BEST if best else checkpoint.LAST)
    screen.say(f'model: fastmine.recipes.{system.name}.load("{kept}")')
    screen.say(f"{last} epoch{'' if last == 1 else 's'} in {seconds:.1f} s of training. {implementation}", style="bold")
    return contents


def _health(run: Run[Any, Any]) -> dict[str, Any] | None:
    """What the monitor found in this session; None where there was none."""
    if run.monitor is None:
        return None
    return {"verdict": run.monitor.verdict, "findings": [finding.as_dict() for finding in run.monitor.check()]}


def _say_health(run: Run[Any, Any]) -> None:
    """The verdict, and the first words of every finding."""
    if run.monitor is None:
        return
    run.screen.say(f"health: {run.monitor.verdict}")
    for finding in run.monitor.check():
        run.screen.say(str(finding), style="yellow" if finding.is_alarm else None)
