"""Checks of what a user hands over: each error says what was expected, what came, and what to do."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def _kind(value: object) -> str:
    return f"a {value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__


def _shape(x: Tensor) -> str:
    return str(list(x.shape))


def tensor(name: str, value: object, dtypes: Collection[torch.dtype], advice: str = "") -> Tensor:
    """``value``, a tensor of one of these types."""
    if isinstance(value, Tensor) and value.dtype in dtypes and value.layout is torch.strided:
        return value
    if isinstance(value, Tensor) and value.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor; got one of layout {value.layout}; use {name}.to_dense()")
    wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if isinstance(value, Sequence) or (hasattr(value, "__array__") and not isinstance(value, Tensor)):
        advice = f"use torch.as_tensor({name})"
    raise TypeError(f"{name} must be a tensor of type {wanted}; got {_kind(value)}{advice and '; ' + advice}")


def same_device(first_name: str, first: Tensor, name: str, other: Tensor) -> None:
    if first.device != other.device:
        raise ValueError(
            f"{name} must be on the device of {first_name}, {first.device}; got {other.device}; "
            f"move it with {name}.to({first_name}.device)"
        )


def option(name: str, value: object, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}; got {value!r}")


def number(
    name: str, value: object, *, minimum: float = -math.inf, maximum: float = math.inf, advice: str = ""
) -> None:
    """A finite number in [minimum, maximum]."""
    if type(value) is float and minimum <= value <= maximum and -math.inf < value < math.inf:
        return  # nearly every value, at a tenth of the cost of the questions below, and traceable
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not (math.isfinite(value) and minimum <= float(value) <= maximum):
        bounds = f"at least {minimum}" if maximum == math.inf else f"between {minimum} and {maximum}"
        expected = "finite" if minimum == -math.inf else f"finite and {bounds}"
        raise ValueError(f"{name} must be {expected}; got {value}{advice and '; ' + advice}")


def integer(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer; got {type(value).__name__}")


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")


def matrix(name: str, value: object, advice: str = "") -> Tensor:
    """Embeddings: [N, D], floating point."""
    x = tensor(name, value, FLOATING, advice)
    if x.dim() != 2:
        raise ValueError(
            f"{name} must have shape [N, D], one row per sample; got {_shape(x)}; "
            f"flatten or pool what follows the batch dimension, such as {name}.flatten(1)"
        )
    if x.shape[1] == 0:
        raise ValueError(f"{name} must have at least one feature; got shape {_shape(x)}")
    return x


def per_row(name: str, value: Tensor, rows_of: str, rows: Tensor, advice: str = "") -> None:
    """One entry per row of ``rows``."""
    if value.dim() == 1 and value.shape[0] == rows.shape[0]:
        return
    fix = f"; use {name}.squeeze(1)" if value.dim() == 2 and value.shape[1] == 1 else advice and "; " + advice
    raise ValueError(
        f"{name} must have shape [{rows.shape[0]}], one entry per row of {rows_of}; got {_shape(value)}{fix}"
    )


def labels(name: str, value: object, rows_of: str, rows: Tensor) -> None:
    found = tensor(name, value, INTEGERS, "class labels are integers, so use .long(), or .argmax(1) of one-hot rows")
    per_row(name, found, rows_of, rows, "of one-hot rows use .argmax(1)")
    same_device(rows_of, rows, name, found)


def mask(name: str, value: object, rows_of: str, rows: Tensor) -> None:
    """A boolean mask with one entry per row."""
    found = tensor(name, value, (torch.bool,), f"make it boolean, such as {name} > 0")
    per_row(name, found, rows_of, rows)
    same_device(rows_of, rows, name, found)


def alike(first_name: str, first: Tensor, name: str, other: Tensor) -> None:
    """Two sets of embeddings that can be compared."""
    if first.shape[1] != other.shape[1]:
        raise ValueError(f"{name} must have as many features as {first_name}, {first.shape[1]}; got {other.shape[1]}")
    if first.dtype != other.dtype:
        raise TypeError(
            f"{name} must have the type of {first_name}, {first.dtype}; got {other.dtype}; "
            f"use {name}.to({first_name}.dtype)"
        )
    same_device(first_name, first, name, other)


def mined_batch(
    embeddings: object,
    labels_: object,
    valid: object,
    ref_embeddings: object,
    ref_labels: object,
    ref_valid: object,
    self_index: object = None,
) -> None:
    """A labelled batch, with or without a labelled set of references."""
    x = matrix("embeddings", embeddings, "embeddings come first, labels second; of embeddings use .float()")
    labels("labels", labels_, "embeddings", x)
    if valid is not None:
        mask("valid", valid, "embeddings", x)
    if (ref_embeddings is None) != (ref_labels is None):
        raise ValueError("ref_embeddings and ref_labels go together; got one without the other")
    if ref_embeddings is None:
        if ref_valid is not None:
            raise ValueError("ref_valid needs ref_embeddings and ref_labels; got it alone")
        if self_index is not None:
            raise ValueError("self_index needs ref_embeddings: without references no row is its own positive anyway")
        return
    refs = matrix("ref_embeddings", ref_embeddings)
    alike("embeddings", x, "ref_embeddings", refs)
    labels("ref_labels", ref_labels, "ref_embeddings", refs)
    if ref_valid is not None:
        mask("ref_valid", ref_valid, "ref_embeddings", refs)
    if self_index is not None:
        found = tensor("self_index", self_index, INTEGERS)
        per_row("self_index", found, "embeddings", x)
        same_device("embeddings", x, "self_index", found)


def segmentation(logits_: object, target_: object, mode: str) -> None:
    """Logits and targets whose shapes and types fit the mode."""
    logits = tensor("logits", logits_, FLOATING, "logits come first, target second; of logits use .float()")
    target = tensor("target", target_, (torch.bool, *INTEGERS, *FLOATING))
    same_device("logits", logits, "target", target)
    if target.requires_grad:
        raise ValueError("target is a constant of this loss; pass target.detach()")
    if mode == "multiclass":
        _class_targets(logits, target)
        return
    least = 1 if mode == "binary" else 2
    if logits.dim() < least:
        shape = "[B, ...]" if mode == "binary" else "[B, C, ...]"
        raise ValueError(f"{mode} logits must have shape {shape}; got {_shape(logits)}")
    if logits.shape != target.shape:
        raise ValueError(
            f"target must have the shape of logits, {_shape(logits)}; got {_shape(target)}; nothing is "
            "broadcast here, since that would silently compare every pixel with every other"
            + _shape_advice(logits, target)
        )


def _shape_advice(logits: Tensor, target: Tensor) -> str:
    if logits.dim() == target.dim() + 1:
        if logits.shape[1] == 1:
            return "; add the channel with target.unsqueeze(1)"
        return '; if target holds class indices, use mode="multiclass"'
    if target.dim() == logits.dim() + 1 and target.shape[1] == 1:
        return "; add the channel with logits.unsqueeze(1)"
    if target.dim() == logits.dim() > 1 and target.shape[1] == 1:
        return '; if target holds class indices, use mode="multiclass" and target.squeeze(1)'
    return ""


def _class_targets(logits: Tensor, target: Tensor) -> None:
    if target.is_floating_point():
        indices = "target.argmax(1) of a one-hot target" if target.shape == logits.shape else "target.long()"
        raise TypeError(
            f"multiclass target must hold integer class indices; got {_kind(target)}; use {indices}, or "
            'mode="multilabel" if each class has a mask of its own'
        )
    if logits.dim() < 2 or logits.shape[1] < 2:
        raise ValueError(f"multiclass logits must have shape [B, C, ...] with at least 2 classes; got {_shape(logits)}")
    expected = [logits.shape[0], *logits.shape[2:]]
    if list(target.shape) != expected:
        raise ValueError(
            f"multiclass target must have shape {expected}, the shape of logits without the classes; "
            f"got {_shape(target)}{_class_shape_advice(logits, target)}"
        )


def _class_shape_advice(logits: Tensor, target: Tensor) -> str:
    if logits.shape[:-1] == target.shape:
        return "; the classes are the second dimension of logits, so use logits.movedim(-1, 1)"
    if target.dim() != logits.dim():
        return ""
    if target.shape[1] == 1:
        return "; use target.squeeze(1)"
    if target.shape == logits.shape:
        return "; use target.argmax(1) of a one-hot target"
    if target.shape == logits.movedim(1, -1).shape:
        return "; use target.argmax(-1) of a one-hot target"
    return ""


def label_sets(valid: object, logits: Tensor, mode: str) -> bool:
    """Whether ``valid`` says for each class of a softmax [B, C] or [B, C, 1, ...] if it is annotated."""
    if mode != "multiclass" or not isinstance(valid, Tensor) or valid.dim() < 2:
        return False
    if valid.shape[:2] != logits.shape[:2] or valid.dim() not in (2, logits.dim()) or set(valid.shape[2:]) - {1}:
        return False
    tensor("valid", valid, (torch.bool,), "make it boolean, such as valid > 0")
    same_device("logits", logits, "valid", valid)
    if valid.dim() == 2 and list(valid.shape) == [logits.shape[0], *logits.shape[2:]]:
        raise ValueError(
            f"valid of shape {_shape(valid)} could hold one flag per class or one per position of {_shape(logits)}; "
            "use valid.unsqueeze(2) for classes, or valid.unsqueeze(1) for positions"
        )
    return True


def segmentation_mask(valid_: object, logits: Tensor, mode: str) -> Tensor:
    """``valid`` broadcast, as a view, to the shape of logits (multiclass: with one class)."""
    valid = tensor("valid", valid_, (torch.bool,), "make it boolean, such as valid > 0")
    same_device("logits", logits, "valid", valid)
    batch, *rest = logits.shape
    shape = [batch, 1, *rest[1:]] if mode == "multiclass" else [batch, *rest]
    view = _aligned(valid, shape, mode)
    broadcasts = view.dim() == len(shape) and all(v in (1, s) for v, s in zip(view.shape, shape, strict=True))
    if not broadcasts or view.shape[0] != batch:
        raise ValueError(
            f"valid must say for each sample [B], each class [B, C] or each element {shape} whether it is "
            f"annotated; got shape {_shape(valid)} for {mode} logits {_shape(logits)}"
        )
    return view.expand(shape)


def _aligned(valid: Tensor, shape: list[int], mode: str) -> Tensor:
    """``valid`` with as many dimensions as ``shape``, if one of the documented forms fits."""
    missing = len(shape) - valid.dim()
    per_class = valid.dim() == 2 and (valid.shape[1] == 1 or (mode == "multilabel" and valid.shape[1] == shape[1]))
    if missing > 0 and (valid.dim() == 1 or per_class):
        return valid.reshape(*valid.shape, *[1] * missing)
    if missing == 1 and (shape[1] == 1 or mode == "multilabel"):  # [B, *S]: the same for all classes
        return valid.unsqueeze(1)
    return valid


def positive(name: str, value: object) -> None:
    """A finite number above 0."""
    number(name, value, minimum=0.0)
    if value == 0:
        raise ValueError(f"{name} must be above 0; got {value}")


def one_number(name: str, value: Tensor) -> None:
    """A tensor that stands for a number."""
    if not value.is_floating_point() or value.numel() != 1:
        raise ValueError(
            f"{name}, if a tensor, must hold one floating-point number; got {_kind(value)} {_shape(value)}"
        )


def per_anchor(name: str, value: object, rows: Tensor) -> None:
    """A floating-point number for each row of the embeddings."""
    found = tensor(name, value, FLOATING)
    per_row(name, found, "embeddings", rows)
    same_device("embeddings", rows, name, found)


def weights(name: str, value: Mapping[str, float], known: Collection[str]) -> None:
    """Named weights: known names, positive finite numbers, at least one."""
    if not isinstance(value, Mapping):
        raise TypeError(f'{name} must map names to weights, such as {{"dice": 1.0}}; got {type(value).__name__}')
    if not value:
        raise ValueError(f"{name} must name at least one of {', '.join(map(repr, known))}; got none")
    for key, weight in value.items():
        if key in known and type(weight) is float and 0.0 < weight < math.inf:
            continue
        option(f"each of {name}", key, known)
        number(f"{name}[{key!r}]", weight, minimum=0.0)
        if weight == 0:
            raise ValueError(f"{name}[{key!r}] is 0, which would silently switch it off; leave it out instead")


def class_vectors(embeddings: Tensor, value: object) -> None:
    """Learned vectors of classes: [C, D], or [C, K, D] with several for each, of the embeddings' length and device."""
    weight = tensor("weight", value, FLOATING)
    if weight.dim() not in (2, 3) or weight.shape[0] < 2 or (weight.dim() == 3 and weight.shape[1] == 0):
        raise ValueError(
            "weight must have shape [C, D], one vector for each of at least 2 classes, or [C, K, D]; got "
            f"{_shape(weight)}"
        )
    if weight.shape[-1] != embeddings.shape[1]:
        raise ValueError(
            f"weight must have as many features as embeddings, {embeddings.shape[1]}; got shape {_shape(weight)}; "
            f"a loss takes it as embedding_dim={embeddings.shape[1]}"
        )
    same_device("embeddings", embeddings, "weight", weight)


def factors(name: str, value: object, rows_of: str, rows: Tensor) -> None:
    """Floating-point factors, one per row."""
    found = tensor(name, value, FLOATING, f"use {name}.float()")
    per_row(name, found, rows_of, rows)
    same_device(rows_of, rows, name, found)


def whole(name: str, value: object, minimum: int) -> int:
    """A whole number, at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number; got {_kind(value)}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return value


def per_class(name: str, value: object, *, minimum: float = 0.0, maximum: float = math.inf) -> None:
    """One number, or one per class as a sequence or a tensor, whose values stay unread."""
    if isinstance(value, Tensor):
        tensor(name, value, (*FLOATING, *INTEGERS))
        if value.dim() > 1:
            raise ValueError(f"{name} must have shape [C], one entry per class; got {_shape(value)}")
        return
    if isinstance(value, Sequence) and not isinstance(value, str):
        for k, entry in enumerate(value):
            number(f"{name}[{k}]", entry, minimum=minimum, maximum=maximum)
        return
    number(name, value, minimum=minimum, maximum=maximum)


def one_label(name: str, value: object) -> object:
    """Labels as :func:`mined_batch` looks at them: of sets of labels, boolean [N, L], the first."""
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.dim() == 2:
        if value.shape[1] == 0:
            raise ValueError(f"{name} must be sets of at least one label, boolean [N, L]; got {_shape(value)}")
        return value[:, 0].long()
    return value


def ranks(name: str, value: object) -> None:
    """How many, or a range [first, last) of ranks from 0."""
    if isinstance(value, tuple) and len(value) == 2:
        first, last = (whole(f"{name}[{k}]", rank, 0) for k, rank in enumerate(value))
        if first >= last:
            raise ValueError(f"{name} must be a range of ranks (first, last) with first < last; got {value}")
    else:
        whole(name, value, 1)


def no_class(name: str, value: object) -> None:
    """A loss, and not the class of one, which would be called as if it were."""
    if isinstance(value, type):
        raise TypeError(f"{name} must be a loss, not a class; got {value.__name__}; use {value.__name__}()")
