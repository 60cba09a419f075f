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
    """EMBEDDING_COLLAPSE, NO_SEPARATION, NONFINITE: relative difference of a loss to that of one point, or of other
    inputs, or in float32, that is no difference."""
    equal: float = 1e-5
    """PREDICTION_COLLAPSE: relative difference of the losses of a constant answer and the truth, that is rounding."""
    firm: float = 0.01
    """INPUT_DOMAIN: loss of firm logits for the truth, over that of the truth as probabilities."""
    groups: int = 64
    """TARGETS_ALL_EMPTY, TARGETS_SUSPECT_UNANNOTATED: masks seen before these speak."""
    collapse_spread: float = 0.05
    """EMBEDDING_COLLAPSE: of the directions' spread. Digits train between .3 and .9; collapse ends below .001."""
    one_point: float = 1e-3
    """EMBEDDING_COLLAPSE: relative difference of a loss to that of one point, whatever the directions of rows."""
    collapse_rows: int = 20
    """EMBEDDING_COLLAPSE, PREDICTION_COLLAPSE: rows in a row."""
    relative: float = 1e-4
    """EMBEDDING_COLLAPSE: change of a loss, of the most that there could be, that is rounding where rows are moved or
    turned all alike."""
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
    of_labels: int = 8
    """NO_SEPARATION: measurements of distances within classes, from which their mean is known well enough."""
    labels_spread: float = 0.25
    """NO_SEPARATION: spread over the largest so far, where the embeddings are on their way to one point."""
    of_halves: float = 0.25
    """NO_SEPARATION: how much nearer pairs are than others within halves of the batch, over how much in all of it."""
    explained: float = 0.05
    """PREDICTION_COLLAPSE: correlation of predictions and targets; the square of it is the share that is explained."""
    explained_steps: int = 96
    """PREDICTION_COLLAPSE: steps before a correlation of 0 counts."""
    inverse: float = 1.5
    """PREDICTION_COLLAPSE: factor within which a weight of the rarer class is the odds of that class."""
    outweighed: float = 100.0
    """PREDICTION_COLLAPSE: times that a weight of the rarer class is one over its odds."""
    shrunk: float = 0.1
    """PREDICTION_COLLAPSE: share of their first size that is left of weights that were driven to 0."""
    worse: float = 2.0
    """PREDICTION_COLLAPSE: times the loss of a model that says the same of everything."""
    far: float = 10.0
    """PREDICTION_COLLAPSE: the same, where it falls, and still is that high in the last quarter of the steps; and times
    that predictions differ more than targets."""
    faint: float = 0.02
    """PREDICTION_COLLAPSE: slope of predictions over targets, as a share of that of the best line, the square of their
    correlation. Of nets that learn it was .2 and more, of inputs or outputs in millionths 1e-5."""
    small: float = 2.0**-7
    """PREDICTION_COLLAPSE: size of inputs, where predictions lag behind. That of images divided by 255 twice is
    below .004."""
    units: float = 1e3
    """TARGET_RANGE: targets larger than that, where predictions are smaller than they by orders of magnitude."""
    differences: float = 0.25
    """PREDICTION_COLLAPSE: share that is within the rows of targets. Of up to 4 noisy readings of one value, whose mean
    is known to 90 %, it is less."""
    unreachable: float = 0.1
    """TARGET_RANGE: share of the targets outside the range of the model's last operation; a few may be outliers. Also
    INPUT_DOMAIN: share of the energy of matrices that no covariance has."""
    gradient_share: float = 1e-3
    """STARVED_COMPONENT: share of the norm of the gradient."""
    heard: float = 0.01
    """STARVED_COMPONENT: share of the gradient, relative to the share of the weights that the component was given."""
    as_loud: float = 0.1
    """STARVED_COMPONENT: the same share, of a weight below .01 of all, that nothing but the weight makes small."""
    erased: float = 0.05
    """STARVED_COMPONENT: share of its first value to which a divergence has gone, and the code of its input with it."""
    rounding: float = 1e-6
    """DEAD_COMPONENT: a share of the gradient that float32 cannot tell from 0, from the first measurement on."""
    resolution: float = 2.0**-20
    """PREDICTION_COLLAPSE: relative difference of predictions that is rounding, 8 units in the last place."""
    half_power: float = 0.5
    """CONFLICTING_COMPONENTS: share of a covariance, up to which a direction is within the beam of an array.
    PREDICTION_COLLAPSE: share of the best correlation of an image with its mask that is left where the mask is."""
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
    still: float = 3e-5
    """NO_UPDATE: share of their size that weights moved by in all of at least 144 steps. A warm-up of 100,000 steps
    makes a hundred times as much, a net that is tuned by plain descent at 1e-4 ten times."""
    moved: float = 0.01
    """NO_UPDATE: the same, where predictions go with their targets no more than they did at first."""
    magnified: float = 0.01
    """NO_UPDATE: share of its learning rate that an optimizer makes of gradients next to its epsilon."""
    epsilon: float = 1e-6
    """NO_UPDATE: an epsilon above that is chosen, to slow down small gradients: then the weights must creep too."""
    creep: float = 1e-5
    """NO_UPDATE: the same, where a gradient was clipped to next to nothing before: 1 % takes a thousand steps."""
    inertia: float = 100.0
    """NO_UPDATE: the way that a gradient goes with momentum, over that without: 1 / (1 - momentum), for .99."""
    undone: float = 0.1
    """NO_UPDATE: share of the way of the weights that is left when somebody has written to them. An average over 1,000
    steps that is loaded every 10 leaves .005, one of two sets of weights .5."""
    left: float = 1e-3
    """NO_UPDATE: share of a gradient that clipping leaves. A norm of 1 where gradients have one of 1,000 is rare."""
    scheduled: float = 0.01
    """NO_UPDATE: share of the rate of an optimizer that its schedule has at its top. Schedules that end at 1e-3 of the
    rate began with all of it."""
    spent: float = 0.99
    """NO_UPDATE: share of all learning rates so far, added up, that came in the first quarter of the steps. A rate
    that is divided by 10 after half of them and again after three quarters has spent .9 in its first half."""
    nonfinite_share: float = 0.05
    """NONFINITE: share of recent rows, where training has recovered since."""
    saturation: float = 30.0
    """SATURATED_GRADIENT: logits of this size have a sigmoid within 1e-13 of its end."""
    another: float = 0.05
    """REPORTED_LOSS_MISMATCH: relative difference, of a logged number that jumps as much as the loss does."""
    jumps: float = 0.4
    """REPORTED_LOSS_MISMATCH: share of the difference of two steps that an average of three or more does not show."""
    logged_rows: int = 20
    """REPORTED_LOSS_MISMATCH: rows with a logged value."""
