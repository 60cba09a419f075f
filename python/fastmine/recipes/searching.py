"""A search for the weights of a loss: short runs with other factors on them, chosen by optuna, that can go on later.

Before anything is trained, every weight that will be searched is doubled once: one that does not change the total is
read by nobody, and a search over it would find nothing and say so with great precision.

The study is a SQLite file in the folder of the search; the same command with ``--resume`` goes on with it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..losses import CompositeLoss
from . import checkpoint, processes, report, runs, training
from .errors import CommandError, InterruptionError, UsageError, from_extra
from .screen import Column, Screen
from .settings import Settings
from .system import System, mean

if TYPE_CHECKING:
    import optuna

LOW, HIGH = 0.1, 10.0  # of a factor, drawn evenly in the logarithm
STUDY = "study.db"


def search(
    kind: type[System[Any, Any]],
    settings_kind: type[Settings],
    options: Mapping[str, Any],
    trials: int,
    *,
    out: Path | None = None,
    resume: Path | bool | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """``trials`` runs with factors on the weights of the loss, all 1 in the first; returns what ``search.json`` holds.

    Every system can be searched whose loss is a :class:`~fastmine.losses.CompositeLoss` and whose settings have
    ``search_weights``. What counts is the metric of the system in the best epoch of a run. With ``dry_run`` the weights
    are tried, and two steps of the first run, and no search is begun.
    """
    if processes.launched() > 1:
        raise UsageError("a search runs in one process: its trials follow one another; start it without torchrun")
    with from_extra("search", "optuna"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    screen, settings = Screen(), settings_kind(**options)
    named = out if resume is True else resume
    found = _to_go_on_with(kind.name, Path(named) if named else None) if resume else None
    if found is None:
        runs.check_folder(out, None)
    with training.reproducible(settings):
        system = kind(settings, screen)
        names = searched(system)
        if dry_run:
            before = _study(found, kind, settings, trials) if found else None
            return _try_out(system, names, trials, before, screen)
    folder = found or runs.folder_for(f"{kind.name}-search", out, None)
    study = _study(folder, kind, settings, trials)
    if all(trial.state == optuna.trial.TrialState.RUNNING for trial in study.trials):  # none, or cut off
        study.enqueue_trial(dict.fromkeys(names, 1.0))  # the weights as they are, to hold the others against
    metric = kind.metric
    columns = (Column(metric.key, metric.title, ".4f"), *(Column(name, name, ".3g") for name in names))
    screen.say(f"searching factors from {LOW:g} to {HIGH:g} on {len(names)} weights: every one changes the total")
    screen.say(f"{len(_finished(study))} of {trials} trials of {settings.epochs} epochs are done, in {folder}")
    screen.heading(columns)
    for number in range(1, trials + 1):
        if number > len(_finished(study)):
            _trial(study, kind, settings_kind, options, names, folder)
        trial = _finished(study)[number - 1]
        screen.row(columns, number, {metric.key: _value(trial), **trial.params, "seconds": trial.user_attrs["seconds"]})
    return _conclude(study, kind, settings, names, folder, screen)


def searched(system: System[Any, Any]) -> list[str]:
    """The components whose weights are searched; an error if one of them does not change the total."""
    loss = system.loss
    if not isinstance(loss, CompositeLoss):
        raise UsageError(f"the loss of {system.name} is {type(loss).__name__}; only a composite has weights to search")
    names = [name for name, weight in loss.weights().items() if weight > 0]
    batch = next(iter(system.batches(1)))
    before = _total(system, batch)
    unread = []
    for name in names:
        system.loss = copy.deepcopy(loss)
        system.loss.set_search(name, 2.0, writer="search")
        if _total(system, batch) == before:
            unread.append(name)
    system.loss = loss
    if unread:
        raise CommandError(
            f"doubling the weight of {', '.join(unread)} does not change the total, so a search would find nothing; "
            "nobody reads it, or the component is 0"
        )
    return names


def _total(system: System[Any, Any], batch: Any) -> float:
    """The loss of a batch, the schedules left where they are."""
    loss = system.loss
    system.loss = copy.deepcopy(loss)
    try:
        return float(system.learn(batch).loss.detach())
    finally:
        system.loss = loss


def _try_out(
    system: System[Any, Any], names: list[str], trials: int, study: optuna.Study | None, screen: Screen
) -> dict[str, Any]:
    """The first two steps of a run, and how long all that are left of a search would take."""
    left = max(0, trials - (len(_finished(study)) if study else 0))
    found = training.try_out(training.Run(system, Path(), screen))
    screen.say(
        f"a search of {', '.join(names)}, each of which changes the total: {left} of {trials} trials of "
        f"{system.settings.epochs} epochs, about {left * found['seconds']:.0f} s. No search was begun",
        style="bold",
    )
    return {**found, "trials": left, "searched": names}


def _to_go_on_with(name: str, named: Path | None) -> Path:
    """The folder of a study that is there: the one that was named, or the latest."""
    if named is not None:
        found = named.parent if named.name == STUDY else named
    else:
        latest = sorted(runs.RUNS.glob(f"{name}-search-*/{STUDY}"), key=lambda path: path.stat().st_mtime)
        found = latest[-1].parent if latest else runs.RUNS
    if not (found / STUDY).is_file():
        raise UsageError(
            f"there is no search to go on with in {found}: it has no {STUDY}; name its folder with --resume"
        )
    return found


def _study(folder: Path, kind: type[System[Any, Any]], settings: Settings, trials: int) -> optuna.Study:
    """The study in this folder, made if need be; an error if it is of other settings."""
    import optuna

    described = json.loads(json.dumps(training.plain(settings), default=str))
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).resolve()}",
        study_name=kind.name,
        direction="maximize",
        load_if_exists=True,
    )
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", described)
    elif before != described:
        changed = [name for name, value in described.items() if before.get(name) != value]
        raise UsageError(
            f"the search in {folder} had other settings: {', '.join(changed)}. Give the same, or start anew without "
            "--resume"
        )
    # Of the number of trials too, or a search that goes on would draw the same factors again.
    seed = settings.seed + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, trials // 3))
    return study


def _trial(
    study: optuna.Study,
    kind: type[System[Any, Any]],
    settings_kind: type[Settings],
    options: Mapping[str, Any],
    names: list[str],
    folder: Path,
) -> None:
    """One run, and its outcome in the study; one whose loss is not finite has failed, and says so there."""
    import optuna

    trial = study.ask()
    factors = {name: trial.suggest_float(name, LOW, HIGH, log=True) for name in names}
    written = ",".join(f"{name}={factor!r}" for name, factor in factors.items())
    settings = settings_kind(**{**options, "search_weights": written})
    quiet = Screen(quiet=True)
    try:
        with training.reproducible(settings):
            run = training.Run(kind(settings, quiet), runs.made(folder / f"trial-{trial.number + 1:02d}"), quiet)
            run.fit()
    except InterruptionError:
        raise InterruptionError(
            f"stopped in trial {trial.number + 1}, which will be done again; the others are saved. Go on with the same "
            f"command and --resume {folder}"
        ) from None
    except CommandError as error:
        trial.set_user_attr("failed", str(error))
        trial.set_user_attr("seconds", 0.0)
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return
    history, best = run.progress.history, run.progress.best_epoch
    trial.set_user_attr("seconds", sum(row["seconds"] for row in history))
    trial.set_user_attr("best_epoch", best)
    study.tell(trial, history[best - 1][kind.metric.key])


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that came to an end, well or not. One that was cut off is none, and is done again."""
    return [trial for trial in study.trials if trial.state.is_finished()]


def _value(trial: optuna.trial.FrozenTrial) -> float:
    return float("nan") if trial.value is None else trial.value


def _conclude(
    study: optuna.Study,
    kind: type[System[Any, Any]],
    settings: Settings,
    names: list[str],
    folder: Path,
    screen: Screen,
) -> dict[str, Any]:
    """What was found: the best factors, how far apart the trials are, a picture, and all of it as JSON."""
    good = [trial for trial in _finished(study) if trial.value is not None]
    if not good:
        raise CommandError(f"every trial failed, the first with: {_finished(study)[0].user_attrs.get('failed')}")
    values = [_value(trial) for trial in good]
    best = max(good, key=_value)
    average = mean(values)
    spread = (max(values) - min(values)) / average if average else float("nan")
    factors = ",".join(f"{name}={best.params[name]:.3g}" for name in names)
    contents = {
        "recipe": kind.name,
        "settings": training.plain(settings),
        "metric": kind.metric.title,
        "trials": [
            {"number": t.number + 1, "value": t.value, "factors": t.params, **t.user_attrs} for t in _finished(study)
        ],
        "best": {"number": best.number + 1, "value": best.value, "factors": best.params},
        "mean": average,
        "spread": spread,
    }
    report.write_json(folder / "search.json", contents)
    title = kind.metric.title
    as_they_are = [_value(t) for t in good if set(t.params.values()) == {1.0}]
    beside = f"; {as_they_are[0]:.4f} with the weights as they are" if as_they_are else ""
    screen.say(f"best: trial {best.number + 1}, {title} {_value(best):.4f}{beside}")
    screen.say(f"mean of {len(good)} trials {average:.4f}; from the worst to the best it is {spread:.1%} of that")
    if len(good) < len(_finished(study)):
        screen.say(f"{len(_finished(study)) - len(good)} trials failed: their loss did not stay finite", style="yellow")
    try:
        with from_extra("plot", "matplotlib"):
            from . import pictures
        tried = {name: [trial.params[name] for trial in good] for name in names}
        pictures.draw_trials(
            folder / "trials.png", f"{len(good)} trials of {settings.epochs} epochs", title, values, tried
        )
        screen.say(f"pictures: {folder / 'trials.png'}")
    except UsageError as missing:
        screen.say(f"no pictures: {missing}")
    kept = folder / f"trial-{best.number + 1:02d}" / checkpoint.BEST
    screen.say(f'model: fastmine.recipes.{kind.name}.load("{kept}")')
    screen.say(f"train with them: fastmine train {kind.name} --search-weights {factors}", style="bold")
    return contents
