"""Every code that a finding can have: its words, once, for the findings and for the documentation alike."""

from __future__ import annotations

from dataclasses import dataclass

STAGES = ("shape, range, domain", "data", "graph and weights", "updates", "numerics", "dynamics")


@dataclass(frozen=True)
class Code:
    """What a code means. ``stage`` is its place in the order of causes; ``hides`` names what follows from it."""

    severity: str
    stage: int
    title: str
    cause: str
    remedy: str
    refute: str
    rule: str
    hides: tuple[str, ...] = ()


_DYNAMICS = (
    "ALL_EASY_FROM_START", "CONVERGED", "EMBEDDING_COLLAPSE", "MARGIN_UNREACHABLE", "NO_SEPARATION",
    "PREDICTION_COLLAPSE", "SMOOTH_DOMINATES", "STARVED_COMPONENT", "CONFLICTING_COMPONENTS", "LOSS_FLOOR",
    "SATURATED_GRADIENT", "UNEXPLAINED_STALL",
)  # fmt: skip

CODES: dict[str, Code] = {
    # --- shape, range, domain ---------------------------------------------------------------------------------------
    "SHAPE_BROADCAST": Code(
        "error", 0,
        "predictions and targets have different shapes and are broadcast against each other",
        "A prediction of one shape meets a target of another, so that every prediction is compared with the targets "
        "of other samples too. The optimum of that is one constant prediction.",
        "Give both the same shape, such as prediction.squeeze(1) or target[:, None].",
        "The loss matches samples itself, for instance by an assignment over all pairs.",
        "Two floating-point tensors of different shapes whose broadcast is larger than either, where the loss is "
        "elementwise; or a loss of pairs that changes with its labels and not with who has which, or not with labels "
        "at all, or of numbers that does not change with its targets; or a loss of classes of pixels that is larger "
        "for the truth than for logits of 0; or a recurrence or attention of torch, where the loss has a row for each "
        "of what it takes for a place, and none for each of what it takes for a sample.",
        _DYNAMICS,
    ),
    "TARGET_RANGE": Code(
        "error", 0,
        "targets lie outside the range that the loss is defined on",
        "The targets are not probabilities or class indices: masks stored as 0 and 255 are the usual case.",
        "Convert once when loading: target = (mask > 0), or mask / 255.",
        "The targets are within the range before they reach the loss: print target.min() and target.max() there.",
        "Targets outside [0, 1] (or outside 0 .. C-1) where the loss takes probabilities (or class indices); or masks "
        "none of which ever reaches 1/2; or targets outside the range of the model's last operation; or class "
        "probabilities that do not add up to 1; or others than 1 and -1 where their sign is read; or angles beyond a "
        "full circle; or a binary cross entropy below 0, alone, in a sum of losses of torch or times a number that "
        "left it above 0 at first; or covariances of whose energy a tenth is in what differs from their conjugate "
        "transposes, or of that of their diagonals in powers below 0.",
        ("NONFINITE", *_DYNAMICS),
    ),
    "INPUT_DOMAIN": Code(
        "warning", 0,
        "the loss is given probabilities where it takes logits, or the reverse",
        "All values that the loss takes for logits lie in [0, 1]: the model ends in a sigmoid or softmax and the "
        "loss applies another one, so that no prediction can be firmer than 0.27 or 0.73.",
        "Remove the last sigmoid or softmax from the model, or use a loss that takes probabilities.",
        "The last layer has no activation, and these logits are in [0, 1] by chance: they will leave it soon.",
        "Every input of a loss on logits in [0, 1] over all steps, or none below 0 and the least exactly 0; logits "
        "that come out of a tanh, sigmoid or softmax; a positive input to a loss on log-probabilities; an input "
        "outside [0, 1] to one on probabilities, or to one of masks whose least value is at numbers 0 and 1; or "
        "probabilities to one that is 0 for logits of +-15 and not for 0 and 1; or a softmax over "
        "a dimension of one, or over that of the samples; or an nll_loss below 0; or predicted covariances that are "
        "equal to their transposes and not to their conjugate transposes; or a loss that falls below 0 with every "
        "measurement, all of it (within 5 %) by its gradient times the predictions.",
        ("DEAD_COMPONENT", *_DYNAMICS),
    ),
    # --- data -------------------------------------------------------------------------------------------------------
    "NO_POSITIVES": Code(
        "error", 1,
        "no anchor has a positive: no other row of its batch has its label",
        "Batches hold at most one sample of every class, so there is no pair to pull together, whatever the loss "
        "reports. Plain shuffling does this where classes are many and batches small.",
        "Draw batches with fastmine.data.PKBatchSampler(labels, P, K >= 2); "
        "`fastmine doctor labels` says which P and K the data allow.",
        "labels.unique() is shorter than labels in most batches.",
        "has_positive = 0 in at least 95 % of the steps.",
        ("FEW_VALID", "INVALID_PAIRS", "DEAD_COMPONENT", *_DYNAMICS),
    ),
    "NO_NEGATIVES": Code(
        "error", 1,
        "no anchor has a negative: every batch is of one class",
        "All rows of a batch share one label. Data sorted by class without shuffling do this, and so do labels that "
        "are constant by mistake.",
        "Shuffle, or draw batches with fastmine.data.PKBatchSampler(labels, P >= 2, K).",
        "labels.unique() has two values or more in most batches.",
        "has_negative = 0 in at least 95 % of the steps; or few anchors are valid, and it is negatives that they lack.",
        ("FEW_VALID", "DEAD_COMPONENT", *_DYNAMICS),
    ),
    "FEW_VALID": Code(
        "warning", 1,
        "only few anchors have both a positive and a negative",
        "Most rows of a batch are alone in their class, and teach nothing.",
        "Draw batches with fastmine.data.PKBatchSampler, with a larger K; or a larger batch.",
        "valid / admitted is above the threshold over a whole epoch.",
        "Fewer than a quarter of the admitted anchors are valid, on average.",
    ),
    "INVALID_PAIRS": Code(
        "warning", 1,
        "every mined positive is at distance exactly 0: samples are paired with themselves or with duplicates",
        "The candidates include the anchor itself, for instance because the batch was also given as references, or "
        "every sample is in the batch twice. Such a positive has no gradient.",
        "Leave ref_embeddings out to mine within the batch, or remove the copies.",
        "Positives at distance 0 are different samples that truly have one embedding.",
        "The distances to all mined positives are exactly 0 while the embeddings are spread out; or two sides of a "
        "loss from elsewhere are equal in every number while rows differ; or more than half of the rows of every batch "
        "are copies of others; or scores [N, N] with the targets 0 .. N - 1 that are products of rows with "
        "themselves: their own transpose, and none larger than those on the diagonal.",
        ("DEAD_COMPONENT", *_DYNAMICS),
    ),
    "LABEL_SENTINEL": Code(
        "warning", 1,
        "a negative label takes part as if it were a class",
        "Rows marked unlabelled, usually by -1, are mined as one class of their own: unrelated samples are pulled "
        "together.",
        "Mark them: loss(embeddings, labels, valid=labels >= 0).",
        "The negative label is a class like any other.",
        "Admitted rows with a label below 0, the same one in all batches whose labels were looked at: several negative "
        "values are identities. Where none was, and they are most of the rows, any two of them are a pair.",
        ("EMBEDDING_COLLAPSE", "NO_SEPARATION"),
    ),
    "ZERO_NORM_INPUT": Code(
        "warning", 1,
        "embeddings that are exactly zero reach the loss",
        "Some rows have no direction: dead rectifiers before the last layer, padding that takes part, or a failed "
        "look-up. Normalising them divides by zero.",
        "Mark padding with valid=; end the model in a linear layer instead of a rectifier.",
        "zero_rows is 0 when the padding is marked.",
        "At least 1 % of the admitted rows are exactly zero, in half of the steps.",
        ("LOSS_FLOOR", "EMBEDDING_COLLAPSE", "NO_SEPARATION"),
    ),
    "NOTHING_VALID": Code(
        "error", 1,
        "everything is marked invalid: the loss sees no annotated item",
        "The mask that says what is annotated is all false, usually because its meaning is inverted (True = ignore), "
        "or because the ignore index is the value of a class.",
        "valid must be True where the annotation is to be used; check valid.float().mean().",
        "valid has true items in most batches.",
        "annotated = 0 (or admitted = 0) in at least 95 % of the steps, or no source in any, or all class indices the "
        "one that is ignored; as information, "
        "annotated = 0 in more than half.",
        ("TARGETS_ALL_EMPTY", "TARGETS_SUSPECT_UNANNOTATED", "NO_POSITIVES", "NO_NEGATIVES", "FEW_VALID",
         "DEAD_COMPONENT", "NONFINITE", *_DYNAMICS),
    ),
    "TARGETS_ALL_EMPTY": Code(
        "error", 1,
        "every target is empty: there is no object in any mask",
        "All masks are zero: they were not found and replaced by zeros, were resized or cast to nothing, or the class "
        "of interest was mapped to background. Predicting nothing is then the right answer, and the loss falls.",
        "Look at a mask as the loss gets it. Mark samples without annotation with valid= instead of giving zeros.",
        "target.sum() > 0 for some batch.",
        "No non-empty group among at least 64 over at least 16 steps; or no target but 0 of a cross entropy of single "
        "classes; or none but 0 and what is ignored.",
        ("TARGETS_SUSPECT_UNANNOTATED", *_DYNAMICS),
    ),
    "TARGETS_SUSPECT_UNANNOTATED": Code(
        "warning", 1,
        "most masks are empty, and none is marked as not annotated",
        "Samples that nobody annotated were probably given empty masks. The model is taught that there is no object "
        "where nobody looked.",
        "Crops that miss the object: draw them around it. Else pass valid=has_annotation ([B], boolean); an annotated "
        "empty mask keeps valid=True, and giving `valid` says that you know and silences this, unless predictions show "
        "that it is wrong.",
        "The empty masks were annotated as empty.",
        "Fewer than 30 % of the masks of a binary loss have any target, `valid` is not given, and less than three "
        "quarters of what is predicted is target: it would lie on objects that nobody drew as it does on others. Or "
        "`valid` is given and leaves out nothing, in images with masks most of what is predicted lies on them, and in "
        "those with empty masks there is more than half as much.",
        ("PREDICTION_COLLAPSE",),
    ),
    # --- graph and weights ------------------------------------------------------------------------------------------
    "DETACHED_GRAPH": Code(
        "error", 2,
        "the loss is not connected to the model",
        "There is no way for a gradient from the loss to the weights: .detach(), .item(), torch.no_grad(), a new "
        "tensor made from values, or a constant returned as fallback.",
        "Follow the tensor from the model to the loss, and look where requires_grad becomes False.",
        "loss.grad_fn is not None and leads to the parameters; some parameter has a gradient after backward().",
        "The loss has no grad_fn, its inputs do not require a gradient, or its graph ends in none of the parameters; "
        "or modules ran in a reentrant checkpoint and are not in its graph; or nothing in the model requires a "
        "gradient, and the loss has parameters of its own.",
        ("NO_UPDATE", "DEAD_COMPONENT", *_DYNAMICS),
    ),
    "ZERO_WEIGHT": Code(
        "error", 2,
        "a component of the loss has weight 0",
        "The component is computed or declared, and multiplied by zero: it teaches nothing, and the total shows "
        "nothing of it.",
        "Set the weight; or remove the component.",
        "The schedule gives the component a weight later on.",
        "An effective weight of exactly 0 in all of the last steps, and none to come from the schedule; or of the "
        "finest of several scales; or a loss of 0 whose gradient by the criterion is exactly 0.",
        ("DEAD_COMPONENT", "STARVED_COMPONENT", "CONVERGED", "UNEXPLAINED_STALL", "LOSS_FLOOR", "NO_SEPARATION"),
    ),
    "UNUSED_WEIGHT": Code(
        "warning", 2,
        "changing a weight changes nothing",
        "The weight is accepted and never read, or multiplies something that is zero.",
        "Use it where the total is made, or delete the option.",
        "The total differs for two values of the weight on the same input.",
        "check_loss doubles each weight, and the total stays the same to the last bit.",
    ),
    "DEAD_COMPONENT": Code(
        "error", 2,
        "a component of the loss has no gradient at all",
        "The component is a constant for the model: made from detached tensors, from what an exception handler "
        "returned, from an argmax or a comparison, or clamped.",
        "Compute it from the tensor that the model returned, without .detach(), .item() or argmax; let exceptions "
        "pass.",
        "torch.autograd.grad(component, prediction) has non-zero entries.",
        "The component's value is not connected to the graph, or its gradient is exactly 0 wherever it was measured, "
        "while its value is not 0; or a criterion is called, and no backward() ever goes through it; or "
        "the loss changes, and its gradient is exactly 0; or it is a cross entropy over one score.",
        ("STARVED_COMPONENT", "CONFLICTING_COMPONENTS"),
    ),
    # --- updates ----------------------------------------------------------------------------------------------------
    "NO_UPDATE": Code(
        "error", 3,
        "the weights do not change",
        "Gradients exist, and nothing comes of them; the finding names the variant, and what to do about it.",
        "Call optimizer.step() after backward(), zero_grad() before it, and give the optimizer a learning rate and all "
        "parameters that the loss depends on.",
        "A parameter differs before and after optimizer.step().",
        "lr0: every learning rate is 0 · gated: the optimizer does not step · skipped: it does not because gradients "
        "are not finite (GradScaler) · not_in_optimizer: what the loss depends on is not what the optimizer updates, "
        "nor are layers that were thawed or lie in a plain list, nor any in a group that is empty · silent: the "
        "gradient of some layers is exactly 0 in every measurement · idle: layers run in every step, and no "
        "result of what called them depends on them, or of two results of one shape the first alone, while the second "
        "is learned from · anew: weights beside those of the model, others in every step · cleared: gradients are gone "
        "when it steps · "
        "no_backward: none was computed · overwritten: whenever the weights were written to between two steps, less "
        "than a tenth was left of their way since · rounded: steps are smaller than the resolution of the weights · "
        "scheduled: the top of a schedule is behind, and below a hundredth of the rate that the optimizer was given · "
        "spent: the learning rate fell to next to nothing in the first quarter of the steps · crawling: a step moves "
        "the weights by less than 1e-8 of their size, or all together by less than 3e-5, or by less than a hundredth "
        "and nothing was learned · clipped: less than a thousandth of the gradient is left when the optimizer steps, "
        "and the weights move by less than 1e-5 of their size · epsilon: every gradient is below a hundredth of "
        "the epsilon that an optimizer adds to its size, and a step below a hundredth of the learning rate.",
        _DYNAMICS,
    ),
    "GRADIENTS_ACCUMULATE": Code(
        "error", 3,
        "gradients are never cleared: every step goes along the sum of all of them so far",
        "zero_grad() is not called between two steps, so that backward() adds to what is there. Old gradients outweigh "
        "the new one, and the weights swing or run away.",
        "Call optimizer.zero_grad() once before backward() of every step; with accumulation, once after every step.",
        "p.grad is None or 0 before the first backward() after a step.",
        "In the first steps the gradient that the optimizer gets is that of the step before plus what backward() "
        "brought since, in direction to 1 part in 100,000, and not the latter alone.",
        _DYNAMICS,
    ),
    # --- numerics ---------------------------------------------------------------------------------------------------
    "NONFINITE": Code(
        "error", 4,
        "a value or gradient is NaN or infinite",
        "An operation left its domain: sqrt or norm at 0, log of 0, 0 / 0, an overflow in half precision, or steps "
        "so large that the weights diverged.",
        "Run one step under torch.autograd.detect_anomaly() from the step named here; guard the operation that it "
        "names (sqrt(x + eps), log1p, logsumexp) and do not replace the NaN afterwards.",
        "Loss, inputs and gradients are finite from that step on.",
        "A NaN or Inf in the loss, in what it was given, in the gradient that it sends back, or in the weights.",
        ("NO_UPDATE", "DEAD_COMPONENT", *_DYNAMICS),
    ),
    "REPORTED_LOSS_MISMATCH": Code(
        "warning", 4,
        "the loss that is logged is not the loss that is optimised",
        "The logged number is accumulated somewhere else: in a branch that is skipped, from another tensor, or never "
        "updated.",
        "Log the tensor that backward() is called on.",
        "The logged number is an average of the optimised loss, or a constant multiple of it.",
        "The logged value lies outside of all values that the loss has had, and is no constant multiple of it; or "
        "differs from it by 5 % in nearly every step, and jumps as an average would not.",
    ),
    # --- dynamics ---------------------------------------------------------------------------------------------------
    "SMOOTH_DOMINATES": Code(
        "warning", 5,
        "the smoothing constant is larger than what it smooths",
        "The smooth term exceeds prediction plus target, so that the score is near 1 and flat whatever is predicted.",
        'Use smooth=0 with empty="area", or a value far below the area of an object.',
        "P + T per mask is much larger than smooth.",
        "smooth > mean of P + T per mask.",
        ("PREDICTION_COLLAPSE", "UNEXPLAINED_STALL"),
    ),
    "EMBEDDING_COLLAPSE": Code(
        "error", 5,
        "all embeddings have moved to one point",
        "The model maps every input to nearly the same vector; distances carry nothing any more, and the loss sits at "
        "its margin (or ln 2). A learning rate that is too large for batch-hard mining is the usual cause, then a "
        "loss that only pulls together.",
        "Lower the learning rate or warm it up; put a BatchNorm before the embedding; mine semi-hard negatives "
        "until the spread recovers.",
        "The spread of a held-out batch is above the threshold, or negatives are clearly farther than positives.",
        "spread = 1 - ||mean z||^2 / mean ||z||^2 below .05 in the last steps, not recovering, negatives no farther "
        "than positives or all distances of a batch exactly 0, and distances below the margin of the loss; or, of a "
        "loss from elsewhere that compares rows, directions whose spread fell below .05 while the loss is no less than "
        "that of one single point; or, where no loss was seen, rows that a model returns of different inputs, whose "
        "differences or directions fell as far, and the gradient at them to a fiftieth, under a loss that never "
        "changed (within 1e-4) where all rows are moved, or all are turned; or a matrix of weights that moves and "
        "whose rows stay the same.",
        ("NO_SEPARATION", "LOSS_FLOOR", "SATURATED_GRADIENT", "UNEXPLAINED_STALL", "MARGIN_UNREACHABLE"),
    ),
    "ALL_EASY_FROM_START": Code(
        "warning", 5,
        "every anchor has met its margin from the first step on: the loss never taught anything",
        "The margin is small against the distances: embeddings that are not normalised, a model that already "
        "separates the classes, or labels that give themselves away.",
        'Normalise the embeddings or raise the margin; margin="soft" never stops teaching.',
        "active > 0 in some step.",
        "valid > 0 and active = 0 in every step since the first; or active = 0 where positive_margin > "
        "negative_margin; or a loss of triplets that is 0 where positive and negative are the same, and has become "
        "that of one point.",
        ("CONVERGED", "LOSS_FLOOR", "UNEXPLAINED_STALL", "SATURATED_GRADIENT"),
    ),
    "MARGIN_UNREACHABLE": Code(
        "warning", 5,
        "the margin is larger than any distance between these embeddings can be",
        "Unit vectors are at most 2 apart (squared: 4, cosine: 2). With a margin of that size no anchor can ever meet "
        "it, and the loss never goes to 0.",
        "Use a margin well below 1 for unit vectors.",
        "The embeddings are not unit vectors.",
        "margin >= the diameter of the unit sphere in the metric of the loss, or of TripletMarginLoss, and all "
        "embeddings have norm 1.",
    ),
    "NO_SEPARATION": Code(
        "warning", 5,
        "positives stay as far away as negatives",
        "After many steps the nearest negative is still closer than the farthest positive for most anchors, and that "
        "is not improving: labels that do not belong to the inputs, inputs that do not reach the embedding, or a "
        "learning rate far too small or large.",
        "Train on 64 samples until they are learned; if that fails, look at samples beside their labels.",
        "d_n - d_p grows over the next steps, or recall on held-out data rises.",
        "Mean d_n - d_p below 0, most anchors hard, and no significant gain over 200 steps; or 95 % of them hard, "
        "always, and a significant loss; or, of a loss over all pairs, mean distances that are the same within .05, "
        "known to 2 standard errors; or squared distances within classes that are those of all pairs within .05, known "
        "to 3 standard errors from the first step on, over 200 steps or until they are one point; or a loss of three "
        "that is larger where the positive is the anchor than where the negative is, or one of two views that is "
        "larger where they are the same than where they are of other rows; or classes that are numbered by their "
        "appearance in every batch, under more class vectors, and half of the anchors hard; or pairs of two rows that "
        "are nearer than others, and not so within either half of the batch.",
    ),
    "PREDICTION_COLLAPSE": Code(
        "error", 5,
        "the predictions have collapsed: the same answer everywhere",
        "The model says the same for object and background. An imbalance that the loss does not correct for, a dead "
        "network, or a learning rate that is too large.",
        "Add an overlap term (Dice, Tversky), lower the learning rate, start the last bias at log(p / (1 - p)) of the "
        "share p of target pixels.",
        "The mean probability on target pixels is clearly above that elsewhere.",
        "Mean probability on the target below .05 and no larger than elsewhere, not rising; or constant logits, up "
        "to rounding, while inputs differ; or the mirror image; or one class alone among the targets that count, "
        "the others being ignored; or targets that are all object; or predictions that do not correlate with their "
        "targets, the mean of the batch taken off both, and not more so over time (within .05, or within .1 where "
        "the share that they explain as they are is below .0025); or go with the targets transposed; or go against "
        "them; or no longer, while the loss fell further; or follow the mean of a row's targets, and not what sets "
        "them apart; or labels that are all the same before a learned bias; or a cross entropy twice that of even "
        "odds, and not falling; or weights of which less than a tenth is left, and predictions that say nothing; or "
        "a matrix of weights that moves and whose rows stay the same; or a pos_weight that is the odds of the "
        "class, or a hundred times one over them; or a loss of masks that is larger for the mask than for its "
        "opposite, or one of numbers that is larger for the truth than for that of other rows; or predictions that "
        "go with masks mirrored or turned, or with the area of a mask and not its place; or masks that fit their "
        "image, wherever that is best, by 4 standard errors better than that of another, and where they are less "
        "than half as well as there, chance taken off both; or that follow the targets by less than a fiftieth of "
        "the slope of the best line, or differ ten times as much as they, or follow them half as far as would be "
        "best where inputs are below .008; or an answer without a look at the image, nothing or everything, that "
        "costs no more than the truth, where predictions have gone there; or weights or a smoothing of labels that "
        "leave one class.",
        ("UNEXPLAINED_STALL", "LOSS_FLOOR", "SATURATED_GRADIENT"),
    ),
    "STARVED_COMPONENT": Code(
        "warning", 5,
        "a component has next to no share in the gradient",
        "Another component's gradient is thousands of times larger: weights were chosen for values of another scale.",
        "Choose weights by gradient share: multiply this component's weight until the shares are as meant.",
        "The component's own value improves all the same.",
        "A gradient share below 1e-3 at the inputs of the loss, in all measurements, while the component's value is "
        "not small and does not improve; only told, and no alarm, where nothing but a weight below .01 of all makes it "
        "so small. Or predictions that do not correlate with their targets, while a component of what they are made "
        "from, such as a code, has gone below .05 of its first value.",
    ),
    "CONFLICTING_COMPONENTS": Code(
        "warning", 5,
        "two parts of the loss pull in opposite directions from the start",
        "The gradient of one component is the negative of the rest: a sign is inverted, or one asks for the opposite "
        "of another.",
        "Check the sign of the component: a small step down its gradient must improve its own metric (check_loss "
        "tests that).",
        "The cosine is far from -1 at the start; near convergence opposite gradients are natural.",
        "A cosine below -.9 to the rest of the gradient in all measurements since the first step; or, of a loss that "
        "knows the array, true covariances (their fourth power, of which noise is next to nothing) of which less than "
        "half lies in the span of the true directions, and more than half in that of an array of another size, "
        "mirrored, with other axes or with angles in degrees, which was chosen in other steps: by 3 standard errors "
        "more than in the true directions, and than in those of other recordings.",
    ),
    "LOSS_FLOOR": Code(
        "warning", 5,
        "the loss sits on a constant above 0 and has no gradient",
        "The value is clamped, or replaced by a constant when it is small: max(loss, .05) has no gradient below its "
        "floor.",
        "Remove the clamp. A loss of zero is information, not a fault.",
        "The gradient at the inputs of the loss is not zero.",
        "The same non-zero value to the last bit over many steps, with a gradient of exactly 0 wherever measured.",
        ("UNEXPLAINED_STALL", "NO_SEPARATION"),
    ),
    "SATURATED_GRADIENT": Code(
        "warning", 5,
        "the gradient vanishes between the loss and the weights",
        "The loss sends a gradient back, and nothing arrives: a saturated sigmoid or softmax, dead rectifiers, or "
        "values rounded to 0 in half precision.",
        "Use a loss on logits instead of probabilities, lower the learning rate, normalise before the saturated "
        "layer, scale the loss in half precision.",
        "Some weights of every layer have a non-zero gradient.",
        "A gradient at the inputs of the loss, and exactly 0 at all sampled weights; or at two matrices that are 0 "
        "themselves, in every measurement; or logits beyond +-30 while the loss is high.",
        ("UNEXPLAINED_STALL", "NO_SEPARATION"),
    ),
    "UNEXPLAINED_STALL": Code(
        "warning", 5,
        "the loss has been the same to the last bit for many steps, and nothing here explains it",
        "Batches differ, the loss does not. Something upstream is constant: the inputs, the model's output, or the "
        "part of the loss that is reported.",
        "Print the inputs and outputs of the model for two batches, and compare.",
        "The loss changes from batch to batch.",
        "The same value to the last bit over many steps with none of the other findings.",
    ),
    "CONVERGED": Code(
        "info", 5,
        "the loss has reached its minimum: every margin is met",
        "Anchors were active once and none is any more.",
        "Stop here, or raise the margin to learn more. Judge by a task metric on held-out data.",
        "Recall on held-out data is poor: then the batches have become too easy.",
        "valid > 0 and active = 0 (or a loss of 0) in the last steps, after steps with active > 0.",
        ("UNEXPLAINED_STALL", "SATURATED_GRADIENT"),
    ),
}  # fmt: skip
