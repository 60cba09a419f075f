"""The pre-flight: is this loss able to teach anything? Seconds, and no training."""

from __future__ import annotations

import inspect
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..losses import CompositeLoss, EvidentLoss
from ._aside import copied, instead, random_numbers_kept
from ._caught import caught_exceptions
from ._finding import Finding, Number, finding
from ._given import number
from ._graph import terms, total
from ._perfect import opposites, oracles

LARGE = 1e4
WEIGHTS = re.compile(r"weight|lambda|coef|scale|alpha|beta")
SEED = 0x5EED_F00D
HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Check:
    """One question and its answer: ``passed`` is None where it could not be asked."""

    name: str
    passed: bool | None
    detail: str


@dataclass
class LossReport:
    """What :func:`check_loss` saw. ``findings`` as those of a monitor; ``checks`` all that was asked."""

    name: str
    checks: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed and nothing is an error or a warning."""
        return all(check.passed is not False for check in self.checks) and not any(f.is_alarm for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return {
            "loss": self.name,
            "passed": self.passed,
            "checks": [vars(check) for check in self.checks],
            "findings": [found.as_dict() for found in self.findings],
        }

    def __str__(self) -> str:
        marks = {True: "ok", False: "FAIL", None: "-"}
        lines = [f"{self.name}: {'passed' if self.passed else 'FAILED'}"]
        lines += [f"  {marks[check.passed]:<5}{check.name}: {check.detail}" for check in self.checks]
        return "\n".join([*lines, *(f"\n{found}" for found in self.findings)])


def check_loss(
    loss: Callable[..., Any],
    make_prediction: Callable[[], Tensor] | Tensor,
    target: Any,
    *,
    oracle: Tensor | None = None,
    seed: int = 0,
) -> LossReport:
    """Examine a loss, ours or anybody's, before training with it.

    ``make_prediction()`` returns a random prediction as an untrained model would give it (or is one); ``target``
    is what the loss takes beside it, a tuple for several arguments. ``oracle``, a perfect prediction, is guessed from
    the target where it is not given: the target itself, firm logits of it, or one point per class.

    Asked are: is the value finite and connected to the prediction, has it a gradient · is it least, and near 0, at a
    perfect prediction, and less than at the opposite · is every component of a composite connected, with a gradient,
    and better at the perfect prediction than at a random one · does a small step down the gradient lower the value ·
    are value and gradient finite at random, perfect, zero, collapsed and +-1e4 inputs, in float32, bfloat16 and
    float16 · does the order of the samples matter, does giving all of them twice · does every weight change the total
    · is an exception caught on the way.

    A bad loss does not raise: it has findings. What the loss raises at a random prediction goes through to you. A
    copy of it is called, with copies of the target, whatever it keeps or writes to; and the random numbers are those
    of ``seed`` and of nobody else.
    """
    with random_numbers_kept(()), torch.inference_mode(mode=False), torch.enable_grad():
        # Or a target drawn after manual_seed(0) would be the "random" prediction.
        torch.manual_seed(seed ^ SEED)
        random.seed(seed ^ SEED)
        np.random.seed((seed ^ SEED) % 2**32)  # noqa: NPY002 - that of everybody
        examined = _Examination(loss, make_prediction, target if isinstance(target, tuple) else (target,))
        examined.value()
        examined.ask("samples meet their own targets", examined.broadcast)
        examined.ask("least at a perfect prediction", examined.oracle, oracle)
        examined.ask("agreeing with the target is better than the opposite", examined.opposite)
        examined.ask("components", examined.components)
        examined.ask("a step down the gradient lowers it", examined.descent)
        examined.ask("finite", examined.finiteness)
        examined.ask("the order of the samples does not matter", examined.order)
        examined.ask("weights change the value", examined.weights)
        return examined.report


def _prediction(found: object) -> Tensor:
    if isinstance(found, Tensor) and (found.is_floating_point() or found.is_complex()):
        return found.detach()
    came = f"a {found.dtype} tensor" if isinstance(found, Tensor) else type(found).__name__
    raise TypeError(
        f"make_prediction must return, or be, a floating-point tensor; got {came}; the order is check_loss(loss, "
        "make_prediction, target)"
    )


class _Examination:
    """A loss, a random prediction, and the report so far."""

    def __init__(self, loss: Callable[..., Any], make: Callable[[], Tensor] | Tensor, target: tuple[Any, ...]) -> None:
        self.loss, self.target = loss, target
        self.first = target[0] if target else None
        self.random = [_prediction(make() if callable(make) else make) for _ in range(3)]
        self.name = type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", repr(loss))
        self.report = LossReport(self.name)
        self.perfect: Tensor | None = None

    def value(self) -> None:
        """At a random prediction, unguarded: what the loss raises here is for the caller."""
        with caught_exceptions() as caught:
            value, gradient = evaluate(self.loss, self.random[0], self.target)
        self._check("no exception is caught inside", not caught, "; ".join(caught) or "none")
        if caught:
            self._found(
                "DEAD_COMPONENT", {"caught": caught[0]}, severity="warning",
                title="an exception is raised inside the loss and caught there",
                cause="What the failing part should have given is replaced by something else, and nobody is told.",
                remedy="Let the exception through, and repair what it names.",
            )  # fmt: skip
        connected = gradient is not None
        self._check("connected to the prediction", connected, f"value {value:.4g} at a random prediction")
        if gradient is None:
            self._found("DETACHED_GRAPH", {"value": value, "grad_fn": "None"})
            return
        points = [evaluate(self.loss, x, self.target) for x in self.random]
        alive = any(g is not None and bool((g != 0).any()) for _, g in points)
        self._check("has a gradient", alive, f"L1 norm {float(gradient.abs().sum()):.4g}")
        if not alive:
            self._found("LOSS_FLOOR", {"value": value, "gradient": 0, "random predictions": len(points)})

    def ask(self, name: str, question: Callable[..., None], *args: Any) -> None:
        """A question that cannot be asked, of whatever is given, has no answer, and the others have theirs."""
        try:
            question(*args)
        except Exception as problem:  # noqa: BLE001 - such as that of a prediction without samples
            self._check(name, None, f"could not be asked: {type(problem).__name__}: {problem}"[:200])

    def broadcast(self) -> None:
        """Is the loss the same whichever sample has which target?"""
        prediction, target = self.random[0], self.first
        if not (isinstance(target, Tensor) and target.is_floating_point()) or prediction.shape == target.shape:
            return
        try:
            size = torch.broadcast_shapes(prediction.shape, target.shape).numel()  # type: ignore[no-untyped-call]
        except RuntimeError:
            return
        if size > max(prediction.numel(), target.numel()):
            value, other = (self._known(prediction, (t, *self.target[1:]))[0] for t in (target, target.roll(1, 0)))
            same = math.isclose(value, other, rel_tol=1e-5)
            self._check("samples meet their own targets", not same, "the value with targets exchanged is the same")
            if same:
                shapes: dict[str, Number] = {
                    "prediction": str(list(prediction.shape)),
                    "target": str(list(target.shape)),
                }
                self._found("SHAPE_BROADCAST", shapes)

    def oracle(self, given: Tensor | None) -> None:
        """Is a perfect prediction the best one?"""
        candidates = [given] if given is not None else list(oracles(self.random[0], self.first))
        values = [(self._guarded(x), place) for place, x in enumerate(candidates)]
        known = [(value, place) for value, place in values if value is not None and math.isfinite(value)]
        if not known:
            self._check("least at a perfect prediction", None, "no perfect prediction is known; give one as oracle=")
            return
        least, place = min(known)
        self.perfect = candidates[place]
        at_random = min(self._known(x)[0] for x in self.random)
        scale = max(abs(at_random), 1e-12)
        detail = f"{least:.4g} at a perfect prediction, {at_random:.4g} at random"
        self._check("least at a perfect prediction", least <= at_random + 1e-6 * scale, detail)
        near = abs(least) <= max(0.05 * scale, 1e-6)
        self._check("near 0 at a perfect prediction", near if given is not None or near else None, detail)
        if least > at_random + 1e-6 * scale:
            self._found(
                "LOSS_FLOOR", {"at a perfect prediction": least, "at random": at_random},
                title="a perfect prediction is worse than a random one",
                cause="A sign is inverted, prediction and target are scaled differently, or the loss takes something "
                "else than it is given.",
                remedy="Evaluate the loss by hand at a perfect prediction.",
                refute="The prediction that was taken for perfect is not: give it as oracle=.",
                confidence=0.9 if given is not None else 0.6,
            )  # fmt: skip
        elif given is not None and not near:
            self._found(
                "LOSS_FLOOR", {"at a perfect prediction": least, "at random": at_random},
                title="a perfect prediction does not reach 0",
                cause="The two sides are scaled differently, or a constant is added.",
                remedy="Normalise prediction and target alike.",
                refute="The least possible value of this loss is not 0.",
            )  # fmt: skip

    def opposite(self) -> None:
        """Is a prediction better than its opposite, whether it is taken for a probability or for a logit?"""
        learned = isinstance(self.loss, nn.Module) and any(True for _ in self.loss.parameters())
        pair = None if learned else opposites(self.random[0], self.first)
        if pair is None:  # with class vectors of its own, which are random yet, any direction may be right
            return
        right, wrong = (self._guarded(x) for x in pair)
        if right is None or wrong is None or not (math.isfinite(right) and math.isfinite(wrong)):
            return
        better = right <= wrong + 1e-6 * max(abs(wrong), 1e-12)
        detail = f"{right:.4g} where it agrees with the target, {wrong:.4g} where it is the opposite"
        self._check("agreeing with the target is better than the opposite", better, detail)
        if not better and not any(found.code == "LOSS_FLOOR" for found in self.report.findings):
            self._found(
                "LOSS_FLOOR", {"agreeing with the target": right, "the opposite": wrong},
                title="the opposite of the target is better than the target",
                cause="A score is minimised, such as an overlap without 1 - in front of it, or a sign is inverted.",
                remedy="Minimise 1 - score, or the negative of what it is now.",
                refute="The loss is meant to fall as predictions leave their targets.",
            )  # fmt: skip

    def components(self) -> None:
        """Each component of a composite by itself."""
        if not isinstance(self.loss, CompositeLoss):
            return
        for name, weight in self.loss.weights().items():
            component = self.loss.components[name]
            if weight == 0:
                self._check(f"{name} has a weight", False, f"0, last written by {self.loss.last_writer(name)}")
                self._found("ZERO_WEIGHT", {"weight": 0, "last writer": self.loss.last_writer(name)}, name)
                continue
            points = [self._known(x, loss=component) for x in self.random]
            alive = any(g is not None and bool((g != 0).any()) for _, g in points)
            self._check(f"{name} has a gradient", alive, f"value {points[0][0]:.4g}")
            if not alive:
                connected = points[0][1] is not None
                self._found("DEAD_COMPONENT", {"value": points[0][0], "connected": str(connected)}, name)
            elif self.perfect is not None:
                self._sign(name, component, min(value for value, _ in points))

    def _sign(self, name: str, component: Callable[..., Any], at_random: float) -> None:
        at_perfect = self._guarded(self.perfect, component)
        if at_perfect is None or self.perfect is None:
            return
        better = at_perfect <= at_random + 1e-6 * abs(at_random)
        detail = f"{at_perfect:.4g} at a perfect prediction, {at_random:.4g} at random"
        self._check(f"{name} is better at a perfect prediction", better, detail)
        if not better:
            self._found(
                "CONFLICTING_COMPONENTS", {"at a perfect prediction": at_perfect, "at random": at_random}, name,
                title="the component prefers a random prediction to a perfect one", confidence=0.7,
            )  # fmt: skip

    def descent(self) -> None:
        """A small enough step down the gradient lowers the value."""
        x = self.random[0].double()
        value, gradient = self._guarded_gradient(x)
        if value is None or gradient is None or not gradient.isfinite().all() or not (gradient != 0).any():
            self._check("a step down the gradient lowers it", None, "there is no gradient to follow in float64")
            return
        for size in (1e-2, 1e-4, 1e-6):
            step = gradient * (size * max(float(x.norm()), 1e-3) / float(gradient.norm()))
            after = self._guarded(x - step)
            if after is not None and after < value:
                self._check("a step down the gradient lowers it", True, f"{value:.6g} to {after:.6g}")
                return
        self._check("a step down the gradient lowers it", False, f"{value:.6g} is not lowered by any step")
        self._found(
            "CONFLICTING_COMPONENTS", {"value": value}, title="a step down the gradient does not lower the loss",
            cause="The backward pass does not belong to the forward pass: a custom gradient with a wrong sign, or a "
            "value that jumps.",
            remedy="Compare with torch.autograd.gradcheck in float64.",
            refute="The random prediction is a minimum already.",
        )  # fmt: skip

    def finiteness(self) -> None:
        """At inputs that training meets sooner or later, in the types that it meets them in."""
        x = self.random[0]
        inputs = {"random": x, "zero": torch.zeros_like(x), "collapsed": x[:1].expand_as(x).clone()}
        if self.perfect is not None:
            inputs["perfect"] = self.perfect
        inputs.update({"+1e4": x.sign() * LARGE, "-1e4": -x.sign() * LARGE})
        for dtype in (torch.float32, *HALVES):
            spoiled = [name for name, value in inputs.items() if self._is_spoiled(value.to(dtype))]
            where = f"finite in {str(dtype).removeprefix('torch.')}"
            moderate = dtype == torch.float32 or bool(set(spoiled) - {"+1e4", "-1e4"})
            detail = f"not at {', '.join(spoiled)} inputs" if spoiled else "value and gradient"
            self._check(where, None if spoiled and not moderate else not spoiled, detail)
            if spoiled:
                severity = "error" if dtype == torch.float32 else "warning" if moderate else "info"
                evidence: dict[str, Number] = {"type": str(dtype), "inputs": ", ".join(spoiled)}
                self._found(
                    "NONFINITE", evidence, severity=severity, title=f"not {where} at {', '.join(spoiled)} inputs"
                )

    def _is_spoiled(self, x: Tensor) -> bool:
        value, gradient = self._guarded_gradient(x)
        return value is not None and not (
            math.isfinite(value) and (gradient is None or bool(gradient.isfinite().all()))
        )

    def order(self) -> None:
        """Samples have no order; and no number, if the loss is a mean."""
        x, n = self.random[0], len(self.random[0])
        value, again = (self._known(x)[0] for _ in range(2))
        if value != again and not math.isnan(value):
            self._check(
                "the order of the samples does not matter", None, f"{value:.6g}, then {again:.6g}: it is random"
            )
            return
        places = torch.randperm(n)
        moved = self._guarded(x[places], target=_each(self.target, n, lambda t: t[places.to(t.device)]))
        same = moved is not None and math.isclose(value, moved, rel_tol=1e-4, abs_tol=1e-6)
        self._check(
            "the order of the samples does not matter",
            same,
            f"{value:.6g} and {moved if moved is None else f'{moved:.6g}'}",
        )
        twice = self._guarded(torch.cat([x, x]), target=_each(self.target, n, lambda t: torch.cat([t, t])))
        ratio = float("nan") if twice is None or value == 0 else twice / value
        known = any(math.isclose(ratio, factor, rel_tol=1e-3) for factor in (1, 2)) or (value == 0 and twice == 0)
        self._check("all samples twice", True if known else None, f"{ratio:.4g} times the value")

    def weights(self) -> None:
        """Every weight, doubled on a copy, changes the total."""
        for name, changed in _reweighted(self.loss):
            before = self._guarded(self.random[0])
            after = self._guarded(self.random[0], changed)
            if before is None or after is None:
                continue
            self._check(f"{name} changes the value", after != before, f"{before:.6g} to {after:.6g}")
            if after == before:
                self._found(
                    "UNUSED_WEIGHT", {"weight": name, "value": before, "value with another weight": after}, name
                )

    def _known(
        self, x: Tensor, target: Sequence[Any] | None = None, loss: Callable[..., Any] | None = None
    ) -> tuple[float, Tensor | None]:
        """Value and gradient where a loss has had them before: it fails if it raises now."""
        try:
            return evaluate(loss or self.loss, x, self.target if target is None else target)
        except Exception as problem:
            self._check("has a value whenever it is asked", False, f"{type(problem).__name__}: {problem}"[:200])
            raise

    def _guarded(self, x: Tensor | None, loss: Callable[..., Any] | None = None, target: Any = None) -> float | None:
        """The value, or None where the loss refuses the input: an error is not silent."""
        if x is None:
            return None
        try:
            return evaluate(loss or self.loss, x, self.target if target is None else target)[0]
        except Exception:  # noqa: BLE001 - whatever it raises, it says so
            return None

    def _guarded_gradient(self, x: Tensor) -> tuple[float | None, Tensor | None]:
        """The same with the gradient; where the types do not go together, floating-point targets follow the input."""
        following = _each(self.target, -1, lambda t: t.to(x.dtype) if t.is_floating_point() else t)
        for target in (self.target, following):
            with suppress(Exception):
                return evaluate(self.loss, x, target)
        return None, None

    def _check(self, name: str, passed: bool | None, detail: str) -> None:
        self.report.checks.append(Check(name, passed, detail))

    def _found(self, code: str, evidence: Mapping[str, Number], component: str = "", **words: Any) -> None:
        self.report.findings.append(finding(code, component or self.name, 0, evidence, **words))


def evaluate(loss: Callable[..., Any], x: Tensor, target: Sequence[Any]) -> tuple[float, Tensor | None]:
    """Value and gradient at ``x``; the gradient is None where the value is not connected to ``x``."""
    x = x.detach().clone().requires_grad_()
    output = copied(loss)(x.clone(), *instead(target, {}, {}))  # no leaf, as what a model returns is none
    value = total(output, terms(output))
    if value is None:
        return number(output), None
    if value.is_complex():
        raise TypeError("the loss is complex, and backward() takes a real number; use its magnitude, or a part of it")
    if value.dim():
        value = value.mean()
    if not value.requires_grad:
        return float(value), None
    (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
    return float(value.detach()), gradient


def _each(target: Sequence[Any], n: int, change: Callable[[Tensor], Tensor]) -> tuple[Any, ...]:
    """The tensors of ``n`` samples among the targets, changed; all of them for n = -1."""
    chosen = (isinstance(t, Tensor) and (n < 0 or (t.dim() > 0 and len(t) == n)) for t in target)
    return tuple(change(t) if pick else t for t, pick in zip(target, chosen, strict=True))


def _reweighted(loss: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The loss with one weight changed, for each of its weights."""
    if isinstance(loss, CompositeLoss):
        for name, weight in loss.weights().items():
            doubled: CompositeLoss = copied(loss)
            doubled.set_weight(name, 2 * weight or 1.0, writer="check_loss")
            yield name, doubled
    elif isinstance(loss, nn.Module):
        if isinstance(loss, EvidentLoss):
            return
        for name, value in vars(loss).items():
            if _is_weight(name, value):
                other_module = copied(loss)
                setattr(other_module, name, 2 * value or 1.0)
                yield name, other_module
    else:
        yield from _with_other_defaults(loss)


def _is_weight(name: str, value: object) -> bool:
    return bool(WEIGHTS.search(name)) and isinstance(value, int | float) and not isinstance(value, bool)


def _with_other_defaults(function: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin has none
        return
    for name, parameter in parameters.items():
        value = parameter.default
        if _is_weight(name, value):

            def other(*args: Any, changed: dict[str, float] = {name: 2 * value or 1.0}) -> Any:  # noqa: B006
                return function(*args, **changed)

            yield name, other
