"""The ``fastmine`` command: train on real data, examine an environment or a data set, measure the losses."""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from . import __version__, config, show_config
from .bench import command as bench
from .data import check_labels, check_masks
from .recipes import doa, embeddings, folders, loss_check, mask_files, overfit, segmentation, tables
from .recipes.errors import CommandError, InterruptionError, UsageError, listed
from .recipes.screen import Screen
from .recipes.settings import Option, Settings, flag, options_of, whole

RECIPES: dict[str, tuple[Any, type[Settings]]] = {
    "embeddings": (embeddings, embeddings.EmbeddingSettings),
    "segmentation": (segmentation, segmentation.SegmentationSettings),
    "doa": (doa, doa.DoaSettings),
}

EXAMPLES = """\
examples:
  fastmine train embeddings                       handwritten digits, in well under a minute
  fastmine train segmentation --annotated 0.1     with nine masks of ten marked as not annotated
  fastmine train embeddings --data photos --epochs 50 --batch-size 16
  fastmine train doa                              directions of arrival, beside MUSIC and the least possible error
  fastmine train embeddings --resume              go on with the latest run
  fastmine train doa --dry-run                    does everything load, and how long would it take?
  torchrun --nproc-per-node 2 -m fastmine train embeddings     two processes share every batch
  fastmine doctor env                             who computes the losses here: kernels or reference
  fastmine doctor labels photos --batch-size 16   can a shuffled batch of 16 teach anything?
  fastmine doctor masks scans                     are these masks annotations, and of what values?
  fastmine doctor loss my_losses:Hybrid           is this loss able to teach anything?
  fastmine doctor overfit segmentation            can this system learn 512 samples by heart?
  fastmine bench --quick                          how fast is it here, beside what else there is?

exit codes: 0 done, 1 the answer is no or training cannot go on, 2 wrong use, 130 Ctrl-C, with everything saved
"""

EMBEDDING_EXAMPLES = """\
The data folder has one sub-folder of images per class: photos/cat/1.png, photos/dog/1.jpg. Images may have
any size and are resized. A quarter of every class is held out and never trained on.

examples:
  fastmine train embeddings
  fastmine train embeddings --data photos --batch-size 16 --embedding-dim 64 --out runs/photos
  fastmine train embeddings --margin soft --unseen-classes 3
  fastmine train embeddings --use-combined-loss --model my_models:Net --tensorboard
  fastmine train embeddings --resume runs/photos --epochs 50
"""

SEGMENTATION_EXAMPLES = """\
The data folder has images/ and masks/ whose files have the same names: images/7.jpg, masks/7.png. A pixel of a
mask is object where its value is above 0, so that 0/1 and 0/255 both work. A mask of zeros says that there is
no object; an image that nobody looked at has no mask file (--missing-masks unannotated). Or it is a .parquet or
.csv table with columns for image and mask, and one that says of each row whether it is annotated.

examples:
  fastmine train segmentation
  fastmine train segmentation --annotated 0.1
  fastmine train segmentation --data scans --loss tversky --epochs 50 --out runs/scans
  fastmine train segmentation --data scans --weights bce=0.3,tversky=0.7 --model my_models:Net
  fastmine train segmentation --data scans.parquet --column has_segmentation
  fastmine train segmentation --resume runs/scans
"""

DOA_EXAMPLES = """\
Recordings of an array are simulated, new ones in every epoch. --search tries other weights in as many short runs; the
study is kept in the folder of the search, and --resume goes on with it.

examples:
  fastmine train doa
  fastmine train doa --snr 0 --snr-spread 10 --sources 3 --sensors 12
  fastmine train doa --correlation 1 --out runs/coherent
  fastmine train doa --search 24 --samples 1024
  fastmine train doa --search 24 --samples 1024 --resume
"""

LABELS_HELP = """\
Counts how many anchors of a shuffled batch would have a positive and a negative: exactly, before anything is
trained. PATH is a folder with one sub-folder per class, or a file of labels: .npy, .txt (one a line) or .csv.
Exit code 1 if it is hopeless.

examples:
  fastmine doctor labels photos --batch-size 16
  fastmine doctor labels train.csv --column label
"""

MASKS_HELP = """\
Looks at every mask once: how many samples are annotated, how many masks are empty, their types, shapes and values.
PATH is a folder of masks (images or .npy); a folder with images/ and masks/, where an image without a mask counts
as not annotated; a .npy stack; or a .parquet or .csv table. Exit code 1 if nothing can be learned from them.

examples:
  fastmine doctor masks scans
  fastmine doctor masks train.parquet --column has_segmentation --mask-column mask
"""

LOSS_HELP = """\
Examines a loss, yours or fastmine's, before anything is trained: is it connected, least at a perfect prediction,
finite in float32, bfloat16 and float16, does every weight and component count? Exit code 1 if not.

examples:
  fastmine doctor loss fastmine.losses:TripletLoss
  fastmine doctor loss my_losses:hybrid --inputs values
"""

OVERFIT_HELP = """\
Trains on 512 samples for 30 epochs and judges by the same samples: whatever cannot learn them by heart is broken.
READY, MARGINAL or FAIL, with the reason; exit code 1 for FAIL.

examples:
  fastmine doctor overfit
  fastmine doctor overfit segmentation --json
  fastmine doctor overfit doa
"""

COLUMNS = ("label", "labels", "class", "target")


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to read more, and leave with 2."""
        raise UsageError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        arguments = parser().parse_args(argv)
        code = int(arguments.run(arguments))
        sys.stdout.flush()
    except InterruptionError as stop:
        print(f"fastmine: {stop}", file=sys.stderr)
        return stop.exit_code
    except CommandError as error:
        print(f"fastmine: error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("fastmine: interrupted", file=sys.stderr)
        return 130
    except OSError:
        code = _without_output()
        if code == 0:
            raise
    return code


def _without_output() -> int:
    """The exit code where standard output takes no more, as when ``head`` has seen enough; 0 where it does.

    What is left in its buffer goes nowhere; an empty line asks where there is none (PYTHONUNBUFFERED).
    """
    try:
        print(flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141  # as of a program that the signal ends
        print(f"fastmine: error: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def parser() -> Parser:
    """All that can be typed."""
    top = _described(Parser(prog="fastmine"), "Losses that say why training is not learning.", EXAMPLES)
    top.add_argument("--version", action="version", version=f"fastmine {__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train on real data, your own or the bundled", prog="fastmine train")
    systems = _described(train, "Train on real data, your own or the bundled.", EXAMPLES).add_subparsers(
        title="systems", required=True, metavar="SYSTEM"
    )
    embedding = _add_system(systems, "embeddings", "images of one class close together", EMBEDDING_EXAMPLES)
    embedding.add_argument(
        "--use-combined-loss", action="store_const", dest="loss", const="combined", default=argparse.SUPPRESS,
        help="the same as --loss combined",
    )  # fmt: skip
    _add_system(systems, "segmentation", "the pixels that belong to an object", SEGMENTATION_EXAMPLES)
    _add_search(_add_system(systems, "doa", "directions of arrival at an array", DOA_EXAMPLES))
    doctor = commands.add_parser("doctor", help="examine an environment or a data set")
    checks = _described(doctor, "Examine an environment or a data set.", EXAMPLES).add_subparsers(
        title="checks", required=True, metavar="CHECK"
    )
    environment = checks.add_parser("env", help="versions, instruction set, and who answers each op")
    environment.set_defaults(run=_doctor_env)
    loss = _described(checks.add_parser("loss", help="is this loss able to teach anything?"), LOSS_HELP)
    loss.add_argument("name", metavar="MODULE:OBJECT", help="an nn.Module, a class of them, or a function")
    loss.add_argument("--inputs", choices=tuple(loss_check.INPUTS), help="what it takes (default: what fits)")
    loss.set_defaults(run=_doctor_loss)
    overfitting = _described(checks.add_parser("overfit", help="can this system learn a few samples?"), OVERFIT_HELP)
    overfitting.add_argument("system", nargs="?", choices=tuple(RECIPES), default="embeddings")
    for title, default, what in (
        ("samples", overfit.SAMPLES, "samples to learn, in whole batches"),
        ("epochs", overfit.EPOCHS, "passes over them"),
        ("batch-size", overfit.BATCH, "samples in a batch"),
    ):
        option = Option(f"{what} (default: {default})", whole, "N", at_least=1)
        overfitting.add_argument(f"--{title}", type=_parsed(option), default=default, metavar="N", help=option.help)
    overfitting.set_defaults(run=_doctor_overfit)
    labels = _described(checks.add_parser("labels", help="can batches of these labels teach anything?"), LABELS_HELP)
    labels.add_argument("path", type=Path, metavar="PATH", help="a folder of class folders, or a file of labels")
    size = Option("rows in a batch (default: 64)", whole, "N", at_least=1)
    labels.add_argument("--batch-size", type=_parsed(size), default=64, metavar=size.metavar, help=size.help)
    labels.add_argument("--column", metavar="NAME", help=f"of a .csv file; else {', '.join(COLUMNS)}, or the only one")
    labels.set_defaults(run=_doctor_labels)
    masks = _described(checks.add_parser("masks", help="are these masks annotations, of usable values?"), MASKS_HELP)
    masks.add_argument("path", type=Path, metavar="PATH", help="a folder, a .npy stack, or a .parquet or .csv table")
    masks.add_argument(
        "--column", metavar="NAME", help=f"of a table: is it annotated? (default: {tables.FLAG_COLUMNS[0]}, ...)"
    )
    masks.add_argument(
        "--mask-column", metavar="NAME", help="of a table: paths, encoded images or numbers (default: mask, ...)"
    )
    masks.set_defaults(run=_doctor_masks)
    for check in checks.choices.values():
        check.add_argument("--json", action="store_true", help="print the result as JSON")
    bench.add_arguments(
        _described(commands.add_parser("bench", help="measure the losses here"), bench.DESCRIPTION, bench.EXAMPLES)
    )
    return top


def _described(found: Parser, description: str, examples: str = "") -> Parser:
    found.description, found.epilog = description, examples
    found.formatter_class = argparse.RawDescriptionHelpFormatter
    return found


def _add_system(systems: Any, name: str, summary: str, examples: str) -> Parser:
    """``fastmine train NAME``, with an argument per field of its settings."""
    _, kind = RECIPES[name]
    found = _described(systems.add_parser(name, help=summary), f"Train a model: {summary}.", examples)
    for field, option in options_of(kind).items():
        default = getattr(kind, field)
        shown = "" if default in {None, ""} else f" (default: {default})"
        bare: dict[str, Any] = {"nargs": "?", "const": option.bare} if option.bare else {}
        found.add_argument(
            flag(field),
            type=_parsed(option),
            default=argparse.SUPPRESS,
            metavar=option.metavar or "{" + ",".join(option.choices or ()) + "}",
            **bare,
            help=(option.help + shown).replace("%", "%%"),
        )
    found.add_argument(
        "--out", type=Path, metavar="DIR", help=f"a new or empty folder for the run (default: the next runs/{name}-N)"
    )
    found.add_argument(
        "--resume",
        nargs="?",
        const=True,
        type=Path,
        metavar="PATH",
        help="go on with the run in this folder, or from this checkpoint; without PATH, with the latest run",
    )
    found.add_argument("--dry-run", action="store_true", help="load everything, try two steps, and begin no run")
    found.set_defaults(run=_train, recipe=name)
    return found


def _add_search(system: Parser) -> None:
    """``--search N``: runs with other weights instead of one."""
    option = Option("try other weights in so many runs (optuna), each of --epochs", whole, "N", at_least=1)
    system.add_argument(
        "--search", type=_parsed(option), default=argparse.SUPPRESS, metavar=option.metavar, help=option.help
    )


def _parsed(option: Option) -> Any:
    """How argparse reads an option: an error keeps its words."""

    def parse(text: str) -> Any:
        try:
            value = option.parse(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        expected = option.expected(value)
        if expected:
            raise argparse.ArgumentTypeError(f"must be {expected}; got {text}")
        return value

    return parse


def _train(arguments: argparse.Namespace) -> int:
    recipe, kind = RECIPES[arguments.recipe]
    given = {field: value for field, value in vars(arguments).items() if field in options_of(kind)}
    if "search" in arguments:
        given["search"] = arguments.search
    recipe.train(out=arguments.out, resume=arguments.resume, dry_run=arguments.dry_run, **given)
    return 0


def _doctor_env(arguments: argparse.Namespace) -> int:
    if arguments.json:
        _print_json(config())
    else:
        show_config()
    return 0


def _doctor_loss(arguments: argparse.Namespace) -> int:
    found = loss_check.examine(arguments.name, arguments.inputs)
    _say(found, arguments.json)
    return 0 if found.passed else 1


def _doctor_overfit(arguments: argparse.Namespace) -> int:
    recipe, kind = RECIPES[arguments.system]
    settings = kind(batch_size=arguments.batch_size, epochs=arguments.epochs)
    found = overfit.overfit(recipe.SYSTEM, settings, Screen(), arguments.samples)
    _say(found, arguments.json)
    return 1 if found.verdict == "FAIL" else 0


def _say(found: Any, as_json: bool) -> None:
    """The result of a check, in words or as JSON: its fields and what follows from them."""
    if not as_json:
        print(found)
    elif hasattr(found, "as_dict"):
        _print_json(found.as_dict())
    else:
        derived = [name for name, value in vars(type(found)).items() if isinstance(value, property)]
        _print_json({**asdict(found), **{name: getattr(found, name) for name in derived}})


def _print_json(found: dict[str, Any]) -> None:
    print(json.dumps(_named_by_text(found), indent=2, default=str))


def _named_by_text(found: Any) -> Any:
    """With text for every name: JSON has no others."""
    if isinstance(found, dict):
        return {str(name): _named_by_text(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [_named_by_text(value) for value in found]
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _doctor_labels(arguments: argparse.Namespace) -> int:
    found = check_labels(_labels(arguments.path, arguments.column), arguments.batch_size)
    _say(found, arguments.json)
    return 1 if found.verdict == "hopeless" else 0


def _doctor_masks(arguments: argparse.Namespace) -> int:
    source = mask_files.MaskSource(arguments.path, arguments.column, arguments.mask_column)
    flags = source.flags()
    if flags is not None:
        annotated = sum(flags)
        if arguments.json:
            _print_json({"total": len(source), "annotated": annotated})
        else:
            print(f"{len(source)} samples, {annotated} annotated; --mask-column NAME would look at their masks too")
        return 1 if annotated == 0 else 0
    found = check_masks(Screen().track(source, "looking at masks"))
    _say(found, arguments.json)
    return 1 if found.verdict == "hopeless" else 0


def _labels(path: Path, column: str | None) -> list[str] | np.ndarray[Any, Any]:
    """Labels from a folder of class folders or from a file."""
    if not path.exists():
        raise UsageError(f"{path} does not exist; name a folder with one sub-folder per class, or a file of labels")
    if column and path.suffix != ".csv":
        raise UsageError(f"--column is of a .csv file; {path} is none")
    if path.is_dir():
        return [name for name, files in folders.class_folders(path).items() for _ in files]
    try:
        labels = _labels_from_file(path, column)
    except (OSError, ValueError, EOFError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if len(labels) == 0:
        raise UsageError(f"{path} holds no labels; one per row is expected")
    return labels


def _labels_from_file(path: Path, column: str | None) -> list[str] | np.ndarray[Any, Any]:
    match path.suffix:
        case ".npy":
            return _npy_labels(path)
        case ".txt":
            return [line.strip() for line in path.read_text().splitlines() if line.strip()]
        case ".csv":
            return _csv_labels(path, column)
        case _:
            raise UsageError(f"labels come from a folder or a .npy, .txt or .csv file; got {path.name}")


def _npy_labels(path: Path) -> np.ndarray[Any, Any]:
    labels = np.load(path, allow_pickle=False)
    if labels.ndim != 1 or labels.dtype.kind not in "iuU":
        raise UsageError(
            f"{path} must hold a one-dimensional array of integers or strings; got {labels.dtype} of shape "
            f"{list(labels.shape)}"
        )
    return np.asarray(labels)


def _csv_labels(path: Path, column: str | None) -> list[str]:
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        names = list(rows.fieldnames or ())
        usual = [name for name in names if name.lower() in COLUMNS] or (names if len(names) == 1 else [])
        chosen = column or (usual[0] if usual else None)
        if not names:
            raise UsageError(f"{path} is empty; its first line names the columns, one of which holds the labels")
        if chosen is None or chosen not in names:
            asked = f"has no column {column}" if column else "does not say which column holds the labels"
            raise UsageError(f"{path} {asked}; name one of {listed(names, 10)} with --column")
        return [row[chosen] for row in rows]
