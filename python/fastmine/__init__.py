"""fastmine: the loss layer that is as fast as the hardware, cannot die silently, and says why training is not learning.

``fastmine.losses`` holds the ``nn.Module`` losses, ``fastmine.functional`` the same as functions,
``fastmine.reference`` the pure-PyTorch specification of each, ``fastmine.array`` steering vectors, spectra and the
parts of array-processing losses, ``fastmine.data`` samplers and checks of labels; imported by their names,
``fastmine.numpy`` the kernels on NumPy arrays, ``fastmine.distributed`` losses over all processes, ``fastmine.compat``
other libraries' losses by their own names. :func:`show_config` says which implementation answers on this machine.
"""

from __future__ import annotations

from . import array, data, functional, losses, reference
from ._config import config, show_config
from ._evidence import Evidence, MiningEvidence, SegmentationEvidence
from ._version import __version__

__all__ = [
    "Evidence",
    "MiningEvidence",
    "SegmentationEvidence",
    "__version__",
    "array",
    "config",
    "data",
    "functional",
    "losses",
    "reference",
    "show_config",
]
