"""Other libraries' losses by their own names, arguments and defaults, on fastmine's one core.

Migrating is changing an import: ``from monai.losses import DiceCELoss`` becomes ``from fastmine.compat.monai import
DiceCELoss``; none of the libraries needs to be installed. Values and gradients are those of the library where it is
right; where it is wrong the difference is documented and tested; what is not supported raises.

For embeddings: :mod:`~fastmine.compat.pml`, :mod:`~fastmine.compat.oml` and
:mod:`~fastmine.compat.sentence_transformers`, see docs/compat-metric.md. For segmentation:
:mod:`~fastmine.compat.monai`, :mod:`~fastmine.compat.smp`, :mod:`~fastmine.compat.kornia` and
:mod:`~fastmine.compat.torchvision`, with every option in docs/compat-segmentation.md. What comes on top there:

* ``valid``, the last argument of every call, says what is annotated: [B], [B, C], [B, 1, *S] or [B, C, *S]. What is
  not annotated, or ignored by the library's own ``ignore_index``, has no place in any sum or denominator, and a group
  (sample, class) without anything annotated none in a mean.
* ``evidence`` of the last call, on classes.
* Sums in float64 and gradients that survive bfloat16; the loss is float32, or float64 for float64 inputs.

Each loss reads logits and targets once, whatever it is made of, and its formula works on the sums. The exceptions are
``reduction="none"`` where that means a value per pixel, probabilities instead of logits, and Lovász, which sorts.
"""
