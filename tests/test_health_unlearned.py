"""What runs in training and does not learn is named; what only looks like it is not."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint

from fastmine.health import Finding, Monitor
from fastmine.losses import ArcFaceLoss

ROWS, CLASSES = 48, 4
CENTRES = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(1))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (ROWS,), generator=generator)
    return CENTRES[labels] + 0.5 * torch.randn(ROWS, 8, generator=generator), labels


def train(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    after: Callable[[], object] = lambda: None,
    steps: int = 20,
) -> Monitor:
    """A loop in which nobody says what the loss is."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-3)
    monitor = Monitor(model, None, optimizer, speak=False)
    for step in range(steps):
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()
        monitor.step(loss)
    return monitor


def said(monitor: Monitor, variant: str) -> list[Finding]:
    return [f for f in monitor.check() if f.evidence.get("variant") == variant]


def parts(monitor: Monitor) -> list[Any]:
    return [f.evidence["layers"] for f in said(monitor, "idle")]


# --- parts that run and lead nowhere ----------------------------------------------------------------------------------


class Codes(nn.Module):
    """An encoder, a table of codes, and a decoder of the nearest code."""

    def __init__(self, passed: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.codes = nn.Parameter(torch.randn(16, 4))
        self.decoder = nn.Linear(4, CLASSES)
        self.passed = passed

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        codes = self.codes[torch.cdist(z, self.codes).argmin(dim=1)]
        logits: Tensor = self.decoder(self.passed(z, codes))
        return logits


class Routed(nn.Module):
    """Each row goes to one of two experts, chosen by a router that is in the middle of the net."""

    def __init__(self, *, factor: bool) -> None:
        super().__init__()
        self.body, self.router = nn.Linear(8, 16), nn.Linear(16, 2)
        self.experts = nn.ModuleList(nn.Linear(16, CLASSES) for _ in range(2))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        share, choice = self.router(h).softmax(dim=1).max(dim=1)
        both = torch.stack([expert(h) for expert in self.experts], dim=1)
        chosen = both[torch.arange(len(x)), choice]
        return share[:, None] * chosen if self.factor else chosen


class Frozen(nn.Module):
    """Features that are detached before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).detach())
        return logits


def classified(model: nn.Module, of: Callable[[Any], Tensor] = lambda out: out) -> Callable[[int], Tensor]:
    def loss_of(step: int) -> Tensor:
        x, labels = batch(step)
        return F.cross_entropy(of(model(x)), labels)

    return loss_of


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (lambda: Codes(lambda _, codes: codes), ["encoder"]),
        (lambda: Codes(lambda z, codes: z + (codes - z).detach()), []),
        (lambda: Routed(factor=False), ["router"]),
        (lambda: Routed(factor=True), []),
        (Frozen, ["body"]),
        (lambda: nn.Sequential(Frozen()), ["0.body"]),
    ],
)
def test_a_part_that_is_cut_off_is_named(model: Callable[[], nn.Module], layers: list[str]) -> None:
    made = model()
    assert parts(train(made, classified(made))) == layers


def test_a_part_that_a_loop_cuts_off_is_named() -> None:
    body, head = nn.Linear(8, 16), nn.Linear(16, CLASSES)
    model = nn.ModuleDict({"body": body, "head": head})
    found = train(model, classified(nn.Sequential(body, nn.ReLU(), _Detach(), head)))
    assert parts(found) == ["body"]


class _Detach(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Heads(nn.Module):
    """A net with several answers; ``sizes``: of each."""

    def __init__(self, returned: Callable[..., Any], sizes: tuple[int, ...] = (CLASSES, CLASSES)) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.heads = nn.ModuleList(nn.Linear(16, size) for size in sizes)
        self.returned = returned

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        return self.returned(*(head(h) for head in self.heads))


def as_mapping(out: Tensor, aux: Tensor) -> dict[str, Tensor]:
    return {"out": out, "aux": aux}


@pytest.mark.parametrize(
    ("model", "of", "layers"),
    [
        (lambda: Heads(as_mapping), lambda out: out["aux"], ["heads.0"]),
        (lambda: Heads(lambda *both: both), lambda out: out[1], ["heads.0"]),
        (lambda: Heads(as_mapping), lambda out: out["out"], []),
        (lambda: Heads(as_mapping), lambda out: out["out"] + out["aux"], []),
        (lambda: Heads(lambda *both: list(both)), lambda out: out[1], []),  # stages, of which the last counts
        (lambda: Heads(lambda *all_: all_, (CLASSES,) * 3), lambda out: out[2], []),  # tasks
        (lambda: Heads(lambda *both: both, (16, CLASSES)), lambda out: out[1], []),  # features that nobody uses
    ],
)
def test_the_first_of_two_like_answers_that_never_learns_is_named(
    model: Callable[[], nn.Module], of: Callable[[Any], Tensor], layers: list[str]
) -> None:
    made = model()
    assert parts(train(made, classified(made, of))) == layers


def test_a_result_of_a_part_that_nobody_uses_is_none_of_a_fault() -> None:
    """As the pooled token of a language model whose tokens are averaged."""
    inner = Heads(lambda *both: both, (16, CLASSES))
    model = nn.Sequential(inner)
    assert not parts(train(model, classified(model, lambda out: out[1])))


def test_weights_that_somebody_else_moves_are_no_fault() -> None:
    """A teacher in the same model, held by the same optimizer, that is an average of the student."""
    student = nn.Linear(8, CLASSES)
    model = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student)})

    def loss_of(step: int) -> Tensor:
        x, _ = batch(step)
        return F.mse_loss(student(x), model["teacher"](x).detach() + 1)

    def average() -> None:
        with torch.no_grad():
            for p, q in zip(model["teacher"].parameters(), student.parameters(), strict=True):
                p.lerp_(q, 0.01)

    assert not parts(train(model, loss_of, after=average))
    assert parts(train(model, loss_of)) == ["teacher"]  # and if it is forgotten?


@pytest.mark.parametrize("period", [2, 3, 7])
def test_parts_that_learn_now_and_then_are_no_fault(period: int) -> None:
    """Two losses in turns, of which one leaves a part out that runs all the same."""
    body, one, other = nn.Linear(8, 16), nn.Linear(16, CLASSES), nn.Linear(16, CLASSES)
    model = nn.ModuleList([body, one, other])

    def loss_of(step: int) -> Tensor:
        x, labels = batch(step)
        h = body(x).relu()
        a, b = one(h), other(h)
        return F.cross_entropy(b if step % period == period - 1 else a, labels)

    assert not parts(train(model, loss_of, steps=70))


def test_hooks_hang_on_a_part_in_the_steps_alone_that_are_measured() -> None:
    model = Frozen()
    hung = []
    monitor = train(model, classified(model), after=lambda: hung.append(bool(model.body._forward_hooks)), steps=20)
    assert [step for step, hooks in enumerate(hung) if hooks] == [1, 2, 4, 8, 16]
    monitor.close()
    assert not model.body._forward_hooks
    assert not model._forward_hooks


def test_a_model_with_such_a_part_goes_with_its_monitor() -> None:
    model = Frozen()
    monitor = train(model, classified(model))
    gone = weakref.ref(model)
    del monitor, model
    gc.collect()
    assert gone() is None


class Straight(torch.autograd.Function):
    """Codes on the way there, and nothing on the way back."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def test_parts_behind_functions_of_the_user_are_judged_by_their_gradients() -> None:
    body = nn.Linear(8, 16)

    def behind(model: nn.Module) -> nn.Module:
        return nn.Sequential(model, _Twice())

    for passed, layers in ((lambda _, codes: codes, ["0.encoder"]), (Straight.apply, [])):
        model = behind(Codes(passed))
        assert parts(train(model, classified(model))) == layers
    model = nn.Sequential(body, _Twice(), nn.Linear(16, CLASSES))
    assert not parts(train(model, classified(model)))


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        doubled: Tensor = _Double.apply(x)
        return doubled


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


@pytest.mark.parametrize("reentrant", [False, True])
def test_parts_in_a_checkpoint_are_no_fault(reentrant: bool) -> None:
    class Checkpointed(Heads):
        def forward(self, x: Tensor) -> Any:
            return checkpoint(super().forward, x.requires_grad_(), use_reentrant=reentrant)

    model = Checkpointed(lambda *both: both, (16, CLASSES))
    assert not parts(train(model, classified(model, lambda out: out[1])))


def test_a_criterion_inside_of_the_model_ends_a_step_before_the_model_returns() -> None:
    class Whole(Heads):
        def __init__(self) -> None:
            super().__init__(lambda *both: both, (16, CLASSES))
            self.criterion = nn.CrossEntropyLoss()

        def forward(self, x: Tensor, labels: Tensor) -> Any:
            features, logits = super().forward(x)
            return self.criterion(logits, labels), features

    model = Whole()
    optimizer = torch.optim.Adam(model.parameters())
    monitor = Monitor.attach(model, model.criterion, optimizer, speak=False)
    for step in range(20):
        optimizer.zero_grad()
        model(*batch(step))[0].backward()
        optimizer.step()
    assert not parts(monitor)


def test_nothing_hangs_on_a_part_that_learns_again() -> None:
    late = Routed(factor=False)

    def thawed(step: int) -> Tensor:
        late.factor = step > 8
        return classified(late)(step)

    again = train(late, thawed, steps=40)
    assert not parts(again)
    assert not late.router._forward_hooks


# --- weights that are made anew ---------------------------------------------------------------------------------------


def test_class_vectors_made_in_every_step_are_named() -> None:
    model, head = nn.Linear(8, 16), ArcFaceLoss(CLASSES, 16)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()])

    def loss_of(step: int, *, anew: bool) -> Tensor:
        x, labels = batch(step)
        criterion = ArcFaceLoss(CLASSES, 16) if anew else head
        return criterion(model(x), labels)

    assert said(train(model, lambda step: loss_of(step, anew=True), optimizer=optimizer), "anew")
    assert not said(train(model, lambda step: loss_of(step, anew=False), optimizer=optimizer), "anew")


def test_a_layer_made_in_forward_is_named() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = nn.Linear(16, CLASSES)(self.body(x).relu())
            return logits

    model = Inside()
    (found,) = said(train(model, classified(model)), "anew")
    assert (found.code, found.severity) == ("NO_UPDATE", "error")


def test_weights_of_somebody_else_are_no_fault() -> None:
    """A net that compares, which nobody froze; changes of the input that are learned; those of an inner loop."""
    model, other = nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def compared(step: int) -> Tensor:
        x, labels = batch(step)
        return F.cross_entropy(other(model(x)), labels)

    def attacked(step: int) -> Tensor:
        x, labels = batch(step)
        return F.cross_entropy(model(x + nn.Parameter(0.1 * torch.randn(x.shape)))[:, :CLASSES], labels)

    def inner(step: int) -> Tensor:
        x, labels = batch(step)
        shift = nn.Parameter(torch.zeros(8))
        optimizer = torch.optim.SGD([shift], lr=0.1)
        F.cross_entropy(other(model(x).detach() + shift), labels).backward()
        optimizer.step()
        inner.last = optimizer  # type: ignore[attr-defined]
        return F.cross_entropy(other(model(x) + shift), labels)

    for loss_of in (compared, attacked, inner):
        assert not said(train(model, loss_of), "anew"), loss_of.__name__


# --- two zeros in a row -----------------------------------------------------------------------------------------------


class Adapter(nn.Module):
    """A fixed layer and a low-rank correction; ``head``: whether something else learns."""

    def __init__(self, *zeros: str, head: bool = False) -> None:
        super().__init__()
        self.fixed = nn.Linear(8, CLASSES).requires_grad_(requires_grad=False)
        self.down, self.up = nn.Linear(8, 3, bias=False), nn.Linear(3, CLASSES, bias=False)
        self.head = nn.Linear(CLASSES, CLASSES) if head else nn.Identity()
        for name in zeros:
            nn.init.zeros_(getattr(self, name).weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.fixed(x) + self.up(self.down(x)))
        return logits


class Attending(nn.Module):
    """Attention over the eight numbers of a row, as places with three features each."""

    def __init__(self, *zeros: str) -> None:
        super().__init__()
        self.rise = nn.Linear(1, 3)
        self.query, self.key, self.value = (nn.Linear(3, 3, bias=False) for _ in range(3))
        self.head = nn.Linear(24, CLASSES)
        for name in zeros:
            nn.init.zeros_(getattr(self, name).weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rise(x[:, :, None]).tanh()
        mixed = (self.query(h) @ self.key(h).mT).softmax(dim=2) @ self.value(h)
        logits: Tensor = self.head(mixed.flatten(1))
        return logits


def stuck(monitor: Monitor) -> list[Any]:
    key = "matrices of zeros whose gradient is all 0"
    return [f.evidence[key] for f in monitor.check() if key in f.evidence]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (lambda: Adapter("down", "up"), True),
        (lambda: Adapter("down", "up", head=True), True),
        (lambda: Adapter("up"), False),
        (lambda: Adapter("down", head=True), False),
        (lambda: Attending("query", "key"), True),
        (lambda: Attending("query"), False),
    ],
)
def test_two_factors_that_start_at_zero_are_named(model: Callable[[], nn.Module], named: bool) -> None:
    made = model()
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=3e-3)
    assert stuck(train(made, classified(made), optimizer=optimizer, steps=130)) == [2.0] * named


def test_a_net_of_zeros_whose_last_bias_alone_learns_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    for p in model.parameters():
        nn.init.zeros_(p)
    monitor = train(model, classified(model), steps=130)
    assert stuck(monitor) == [2.0]
    assert [f.code for f in monitor.check() if f.is_alarm] == ["SATURATED_GRADIENT"]


@pytest.mark.parametrize(("share", "named"), [(0.0, True), (0.1, False)])
def test_layers_without_a_gradient_where_a_bias_alone_has_one_are_named(share: float, named: bool) -> None:
    class Gated(Heads):
        def forward(self, x: Tensor) -> Any:
            return self.heads[0](share * self.body(x).relu())

    model = Gated(lambda out: out, (CLASSES,))
    assert bool(said(train(model, classified(model)), "silent")) == named


# --- rates that are taken for factors ---------------------------------------------------------------------------------


def warmed(step: int) -> float:
    return min(1.0, (step + 1) / 10)


@pytest.mark.parametrize(
    ("rate", "factor", "named"),
    [
        (1e-3, lambda step: 1e-3 * warmed(step), True),
        (3e-4, lambda step: 1e-3 * 0.98**step, True),
        (1e-3, lambda step: 512**-0.5 * min((step + 1) ** -0.5, (step + 1) * 20**-1.5) / 10, True),
        (1e-3, warmed, False),
        (1.0, lambda step: 1e-3 * warmed(step), False),  # the rate, where it belongs
        (1e-3, lambda step: (step + 1) / 100_000, False),  # a long way up
        (1e-3, lambda step: 1e-3 * (1 + step // 1000), False),  # or one that goes up at every epoch
    ],
)
def test_a_schedule_that_returns_a_rate_is_named(rate: float, factor: Callable[[int], float], named: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = LambdaLR(optimizer, factor)
    found = said(train(model, classified(model), optimizer=optimizer, after=schedule.step, steps=130), "scheduled")
    assert bool(found) == named


def test_the_end_of_a_schedule_that_goes_on_after_a_break_is_no_fault() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = LambdaLR(optimizer, lambda step: 0.95**step)
    train(model, classified(model), optimizer=optimizer, after=schedule.step, steps=120)
    again = train(model, classified(model), optimizer=optimizer, after=schedule.step, steps=130)
    assert not said(again, "scheduled")


# --- samples that are taken for places --------------------------------------------------------------------------------


class Ordered(nn.Module):
    """A recurrence or an attention over [samples, places, 4], from whose last place a class is told."""

    def __init__(self, body: nn.Module, places_first: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.places_first = body, nn.Linear(4, CLASSES), places_first

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.places_first else x
        h = self.body(x, x, x) if isinstance(self.body, nn.MultiheadAttention) else self.body(x)
        h = h[0] if isinstance(h, tuple) else h
        logits: Tensor = self.head(h[-1] if self.places_first else h[:, -1])
        return logits


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, **options)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


BODIES: dict[str, Callable[..., nn.Module]] = {
    "GRU": lambda **options: nn.GRU(4, 4, **options),
    "LSTM": lambda **options: nn.LSTM(4, 4, **options),
    "attention": lambda **options: nn.MultiheadAttention(4, 2, **options),
    "transformer": encoder,
}


def exchanged(model: nn.Module, *, places: int = 7, before: bool = False, criterion: Any = None) -> list[str]:
    """What a monitor says of sequences of that many places; ``before``: it is told of the loss before backward()."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for step in range(20):
        generator = torch.Generator().manual_seed(step)
        x, labels = torch.randn(24, places, 4, generator=generator), torch.randint(CLASSES, (24,), generator=generator)
        loss = (criterion or F.cross_entropy)(model(x), labels)
        if before:
            monitor.step(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not before:
            monitor.step(loss)
    return [str(f.evidence["modules"]) for f in monitor.check() if f.code == "SHAPE_BROADCAST"]


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("way", ["after", "before", "criterion"])
def test_a_batch_that_is_taken_for_a_sequence_is_named(body: str, way: str) -> None:
    options: dict[str, Any] = {
        "before": way == "before",
        "criterion": nn.CrossEntropyLoss() if way == "criterion" else None,
    }
    (name,) = exchanged(Ordered(BODIES[body]()), **options)
    assert name.startswith("body")
    assert len(exchanged(Ordered(BODIES[body](batch_first=True), places_first=True), **options)) == 1
    assert not exchanged(Ordered(BODIES[body](batch_first=True)), **options)
    assert not exchanged(Ordered(BODIES[body](), places_first=True), **options)


@pytest.mark.parametrize("places", [24, 48, 1, CLASSES])
def test_as_many_places_as_samples_or_classes_tell_nothing(places: int) -> None:
    """Nor a multiple of them, as where samples were folded into places."""
    assert not exchanged(Ordered(BODIES["GRU"]()), places=places)


def test_predictions_of_every_place_tell_nothing() -> None:
    """A loss of [places, samples, features] has as many rows as there are places."""
    model = nn.GRU(4, 4)
    optimizer, criterion = torch.optim.Adam(model.parameters()), nn.MSELoss()
    monitor = Monitor(model, criterion, optimizer, speak=False)
    for _ in range(20):
        x = torch.randn(7, 24, 4)
        loss = criterion(model(x)[0], x.roll(1, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    assert not [f for f in monitor.check() if f.code == "SHAPE_BROADCAST"]
