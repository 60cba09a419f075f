"""The mask check against hand-made sets, and the command on every place where people keep masks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastmine.cli import main
from fastmine.data import UnreadableMask, check_masks
from fastmine.losses import DiceLoss


def disc(value: float = 1, at: int = 3, dtype: Any = np.uint8) -> np.ndarray[Any, Any]:
    """An 8 x 8 mask with 4 object pixels."""
    mask = np.zeros((8, 8), dtype=dtype)
    mask[at : at + 2, 2:4] = value
    return mask


# --- check_masks ------------------------------------------------------------------------------------------------------


def test_samples_are_counted_by_what_their_mask_says() -> None:
    found = check_masks([disc(), disc(at=5), np.zeros((8, 8)), np.ones((8, 8)), None, None, UnreadableMask("x.png")])
    assert (found.total, found.annotated, found.unannotated, found.unreadable) == (7, 4, 2, ("x.png",))
    assert (found.empty, found.nonempty, found.full, found.distinct) == (1, 3, 1, 3)
    assert found.object_share == (4 + 4 + 0 + 64) / 256
    assert [(v.value, v.masks, v.pixels) for v in found.values or ()] == [(0, 3, 184), (1, 3, 72)]
    assert found.dtypes == {"uint8": 2, "float64": 2}
    assert found.shapes == {(8, 8): 4}


def test_a_placeholder_is_not_looked_at() -> None:
    nonsense = np.full((8, 8), -9)
    found = check_masks([disc(), nonsense, disc(at=1)], annotated=[True, False, True])
    assert (found.annotated, found.unannotated, found.lowest, found.verdict) == (2, 1, 0, "good")


@pytest.mark.parametrize(
    ("masks", "kind", "verdict", "words"),
    [
        ([disc(), disc(at=1)], "binary", "good", "ready for the modes binary"),
        ([disc(dtype=bool), disc(at=1, dtype=bool)], "binary", "good", "ready"),
        ([disc(255), disc(255, at=1)], "binary 0/255", "good", "target = mask > 0"),
        ([disc(3), disc(2, at=1)], "classes", "good", 'mode="multiclass" with at least 4 classes'),
        ([disc(15), np.where(disc(at=6), 255, disc(5))], "classes", "good", "valid=(target != 255)"),
        ([disc(0.25, dtype=np.float32), disc()], "soft", "good", "soft targets"),
        ([disc(254), disc(255, at=1)], "greys", "poor", "target = mask > 127"),
        ([disc(0.5, dtype=float), disc(2.0)], "unusable", "hopeless", "neither 0 and 1, class indices nor"),
        ([disc(-1, dtype=int)], "unusable", "hopeless", "values of -1 .. 0"),
        ([disc(np.nan, dtype=float), disc()], "unusable", "hopeless", "1 mask holds a NaN"),
        ([np.zeros((4, 4))] * 3, "binary", "hopeless", "every annotated mask is empty"),
        ([np.ones((4, 4))] * 3, "binary", "hopeless", "every annotated mask is full"),
        ([None, None], "none", "hopeless", "no sample is annotated"),
        ([np.zeros((0, 4))], "none", "hopeless", "no pixels"),
        ([disc()] + [np.zeros((8, 8))] * 9, "binary", "poor", "only 10.0% of the annotated masks have an object"),
        ([disc()] * 4, "binary", "poor", "all 4 masks with an object are the same"),
        ([disc(), disc(at=1), UnreadableMask("a.png")], "binary", "poor", "1 mask cannot be read, a.png"),
        ([UnreadableMask("a.png"), UnreadableMask("b.png")], "none", "hopeless", "no mask can be read: a.png, b.png"),
        ([disc(0.1, dtype=float) + 0.05, disc(0.9, dtype=float) + 0.05], "soft", "good", "soft targets"),
    ],
)
def test_verdict(masks: list[Any], kind: str, verdict: str, words: str) -> None:
    found = check_masks(masks)
    assert (found.kind, found.verdict) == (kind, verdict)
    assert words in str(found)
    assert repr(found).startswith(f"MaskCheck({verdict}: {len(masks)} samples")


def test_where_the_check_says_hopeless_the_loss_says_nothing_or_refuses() -> None:
    """What the verdict claims, held against the loss: empty masks teach 'no object', values outside are an error."""
    logits = torch.zeros(3, 4, 4, requires_grad=True)
    DiceLoss()(logits, torch.zeros(3, 4, 4)).backward()
    assert (logits.grad > 0).all()  # every pixel is pushed towards 0
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        DiceLoss()(logits, torch.as_tensor(disc(255))[None, :4, :4].expand(3, 4, 4))


def test_a_stack_of_tensors_and_a_generator_do_as_well() -> None:
    stack = torch.stack([torch.as_tensor(disc(at=k)) for k in range(3)])
    assert repr(check_masks(stack)) == repr(check_masks(mask for mask in stack.numpy()))


def test_many_values_are_not_counted_one_by_one() -> None:
    random = np.random.default_rng(0)
    found = check_masks(np.maximum(random.random((2, 40, 40)) - 0.5, 0))
    assert found.values is None
    assert (found.kind, found.verdict) == ("soft", "good")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        check_masks([])
    with pytest.raises(ValueError, match="one flag for each mask"):
        check_masks([disc()], annotated=[True, False])
    with pytest.raises(TypeError, match="numbers or booleans; got <U3"):
        check_masks([np.array(["cat"])])


# --- fastmine doctor masks --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def png(mask: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "png")
    return file.getvalue()


def as_folder() -> None:
    Path("found").mkdir()
    for name, mask in (("a", disc(255)), ("b", disc(255, at=1))):
        Path(f"found/{name}.png").write_bytes(png(mask))
    np.save("found/c.npy", np.zeros((8, 8), np.uint8))


def as_pairs() -> None:
    for kind in ("images", "masks"):
        Path("found", kind).mkdir(parents=True)
    for name in "abcd":
        Path(f"found/images/{name}.png").write_bytes(png(disc(9)))
    for name, mask in (("a", disc(255)), ("b", disc(255, at=1)), ("c", disc(0))):
        Path(f"found/masks/{name}.png").write_bytes(png(mask))


def as_stack() -> None:
    np.save("found.npy", np.stack([disc(255), disc(255, at=1), disc(0)]))


def as_csv() -> None:
    as_folder()
    Path("found.csv").write_text(
        "id,has_segmentation,mask\n1,1,found/a.png\n2,true,found/b.png\n3,1,found/c.npy\n4,0,\n"
    )


def as_parquet(cell: Callable[[np.ndarray[Any, Any]], Any]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table(
        {
            "has_segmentation": [True, True, True, False],
            "mask": [cell(disc(255)), cell(disc(255, at=1)), cell(disc(0)), None],
        }
    )
    parquet.write_table(table, "found.parquet")


@pytest.mark.parametrize(
    ("place", "make", "unannotated"),
    [
        ("found", as_folder, 0),
        ("found", as_pairs, 1),
        ("found.npy", as_stack, 0),
        ("found.csv", as_csv, 1),
        ("found.parquet", lambda: as_parquet(png), 1),
        ("found.parquet", lambda: as_parquet(lambda mask: {"bytes": png(mask), "path": None}), 1),
        ("found.parquet", lambda: as_parquet(lambda mask: mask.tolist()), 1),
    ],
)
def test_masks_are_found_wherever_they_are(
    place: str, make: Callable[[], None], unannotated: int, capsys: pytest.CaptureFixture[str]
) -> None:
    make()
    assert main(["doctor", "masks", place]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert f"samples {3 + unannotated} " in words
    assert f"not annotated {unannotated} " in words
    assert "with an object 2 (66.7%) empty 1 (33.3%)" in words
    assert "0 .. 255: binary 0/255" in words


def test_empty_masks_exit_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("found.npy", np.zeros((5, 8, 8)))
    assert main(["doctor", "masks", "found.npy"]) == 1
    assert "hopeless: every annotated mask is empty" in capsys.readouterr().out


def test_masks_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    np.save("found.npy", np.zeros((5, 8, 8)))
    assert main(["doctor", "masks", "found.npy", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["annotated"]) == ("hopeless", 5)


@pytest.mark.parametrize(("flags", "exit_code"), [("1\n0\nyes\n", 0), ("0\nfalse\nno\n", 1)])
def test_a_table_of_flags_alone_is_counted(flags: str, exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("found.csv").write_text("annotated\n" + flags)
    assert main(["doctor", "masks", "found.csv"]) == exit_code
    assert f"3 samples, {0 if exit_code else 2} annotated" in capsys.readouterr().out


def test_a_broken_mask_is_named_and_the_others_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    as_folder()
    Path("found/d.png").write_bytes(b"not an image")
    assert main(["doctor", "masks", "found"]) == 0
    assert "poor: 1 mask cannot be read, found/d.png" in capsys.readouterr().out


def test_what_cannot_be_used_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("nothing").mkdir()
    Path("x.json").write_text("[]")
    Path("x.csv").write_text("a,b\n1,2\n")
    Path("empty.csv").write_text("")
    Path("flags.csv").write_text("annotated\nperhaps\n")
    Path("broken.npy").write_bytes(b"\x93NUMPY")
    np.save("numbers.npy", np.zeros(4))
    for argv, words in {
        "nowhere": "nowhere does not exist",
        "nothing": "holds no files",
        "x.json": "got x.json",
        "x.csv": "name one of a, b with --column",
        "empty.csv": "empty.csv is empty; it must name its columns",
        "x.csv --column c": "no column c to hold the flags; name one of a, b",
        "x.csv --mask-column c": "no column c to hold the masks",
        "flags.csv": "must hold flags such as 0 and 1 or true and false; got 'perhaps'",
        "numbers.npy --column a": "columns are of .parquet and .csv tables",
        "broken.npy": "cannot be read",
        "numbers.npy": "a stack of masks [B, ...]; got shape [4]",
    }.items():
        assert main(["doctor", "masks", *argv.split()]) == 2, argv
        line = capsys.readouterr().err
        assert line.startswith("fastmine: error: ")
        assert line.count("\n") == 1
        assert words in line


def test_a_broken_parquet_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    Path("x.parquet").write_bytes(b"PAR1 but no table")
    assert main(["doctor", "masks", "x.parquet"]) == 2
    assert "x.parquet cannot be read" in capsys.readouterr().err
