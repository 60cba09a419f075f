"""Every number that a rule compares with, in one place, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Give some to :class:`~fastmine.health.Monitor` to override them: ``Thresholds(collapse_spread=0.01)``.

    Shares are of the rows that a rule looks at. Rules that follow from a count or an exact zero need none.
    """

    rows: int = 10
    """Rows before a rule about counts speaks: a whole window would hide the first fault of a short run."""
    share: float = 0.95
    """Share of the rows that "always" means."""
    valid_share: float = 0.25
    """FEW_VALID: below this share of the anchors. 30 % singletons leave 70 %."""
    zero_rows: float = 0.01
    """ZERO_NORM_INPUT: share of the rows of a batch that are exactly 0."""
    nonempty_share: float = 0.3
    """TARGETS_SUSPECT_UNANNOTATED: share of non-empty masks. Two thirds of legitimately empty masks are quiet."""
    idle_share: float = 0.5
    """NOTHING_VALID: share of the batches without annotation that is told, as information, where they are declared."""
    as_well: float = 0.02
    """EMBEDDING_COLLAPSE: relative difference of a loss to that of one point, that is no difference."""
    groups: int = 64
    """TARGETS_ALL_EMPTY, TARGETS_SUSPECT_UNANNOTATED: masks seen before these speak."""
    collapse_spread: float = 0.05
    """EMBEDDING_COLLAPSE: of the directions' spread. Digits train between .3 and .9; collapse ends below .001."""
    collapse_rows: int = 20
    """EMBEDDING_COLLAPSE, PREDICTION_COLLAPSE: rows in a row."""
    cosine: float = 2.0**-24
    """EMBEDDING_COLLAPSE: spread at which the cosine of any two directions is 1 to the last bit of float32."""
    separation_rows: int = 200
    """NO_SEPARATION: rows before the lack of progress counts; a learning rate of 2e-5 is slow, not broken."""
    on_target: float = 0.05
    """PREDICTION_COLLAPSE: mean probability on the target."""
    discrimination: float = 1.25
    """PREDICTION_COLLAPSE: probability on the target over that elsewhere. Tiny objects start low and stand out."""
    prediction_rows: int = 60
    """PREDICTION_COLLAPSE: rows before a low probability counts; small objects take time."""
    explained: float = 0.05
    """PREDICTION_COLLAPSE: correlation of predictions and targets; the square of it is the share that is explained."""
    explained_steps: int = 96
    """PREDICTION_COLLAPSE: steps before a correlation of 0 counts."""
    inverse: float = 1.5
    """PREDICTION_COLLAPSE: factor within which a weight of the rarer class is the odds of that class."""
    shrunk: float = 0.1
    """PREDICTION_COLLAPSE: share of their first size that is left of weights that were driven to 0."""
    worse: float = 2.0
    """PREDICTION_COLLAPSE: times the loss of a model that says the same of everything."""
    differences: float = 0.25
    """PREDICTION_COLLAPSE: share that is within the rows of targets. Of up to 4 noisy readings of one value, whose mean
    is known to 90 %, it is less."""
    unreachable: float = 0.1
    """TARGET_RANGE: share of the targets outside the range of the model's last operation; a few may be outliers."""
    gradient_share: float = 1e-3
    """STARVED_COMPONENT: share of the norm of the gradient."""
    heard: float = 0.01
    """STARVED_COMPONENT: share of the gradient, relative to the share of the weights that the component was given."""
    rounding: float = 1e-6
    """DEAD_COMPONENT: a share of the gradient that float32 cannot tell from 0, from the first measurement on."""
    resolution: float = 2.0**-20
    """PREDICTION_COLLAPSE: relative difference of predictions that is rounding, 8 units in the last place."""
    conflict_cosine: float = -0.9
    """CONFLICTING_COMPONENTS: cosine to the rest, in every measurement."""
    probes: int = 4
    """Measurements of gradients before a rule about them speaks."""
    stuck_rows: int = 50
    """LOSS_FLOOR, UNEXPLAINED_STALL: rows with the same value to the last bit."""
    idle_steps: int = 64
    """NO_UPDATE: steps without a step of the optimizer; at least 4 times its longest pause so far."""
    updates: int = 20
    """NO_UPDATE: updates with a learning rate of 0 before that is no warm-up."""
    crawl: float = 1e-8
    """NO_UPDATE: share of its size that a weight moves by in a step: at this rate 1 % takes a million steps."""
    magnified: float = 0.01
    """NO_UPDATE: share of its learning rate that an optimizer makes of gradients next to its epsilon."""
    epsilon: float = 1e-6
    """NO_UPDATE: an epsilon above that is chosen, to slow down small gradients: then the weights must creep too."""
    creep: float = 1e-5
    """NO_UPDATE: the same, where a gradient was clipped to next to nothing before: 1 % takes a thousand steps."""
    inertia: float = 100.0
    """NO_UPDATE: the way that a gradient goes with momentum, over that without: 1 / (1 - momentum), for .99."""
    left: float = 1e-3
    """NO_UPDATE: share of a gradient that clipping leaves. A norm of 1 where gradients have one of 1,000 is rare."""
    spent: float = 0.99
    """NO_UPDATE: share of all learning rates so far, added up, that came in the first quarter of the steps. A rate
    that is divided by 10 after half of them and again after three quarters has spent .9 in its first half."""
    nonfinite_share: float = 0.05
    """NONFINITE: share of recent rows, where training has recovered since."""
    saturation: float = 30.0
    """SATURATED_GRADIENT: logits of this size have a sigmoid within 1e-13 of its end."""
    logged_rows: int = 20
    """REPORTED_LOSS_MISMATCH: rows with a logged value."""
