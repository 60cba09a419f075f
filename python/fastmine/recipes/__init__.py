"""Three training systems, short enough to be read as a tutorial.

:mod:`~fastmine.recipes.embeddings`
    an embedding model with :class:`~fastmine.losses.TripletLoss`, whose batches always hold triplets
:mod:`~fastmine.recipes.segmentation`
    a small U-Net whose loss knows an image without annotation from an image without objects
:mod:`~fastmine.recipes.doa`
    directions of arrival from simulated recordings, with a loss of many parts whose weights can be searched

Start with these: each shows its data, its model, what it learns from a batch and how it is judged.
:mod:`~fastmine.recipes.training` is the loop that all share, with checkpoints that a run can go on
from bit for bit; :mod:`~fastmine.recipes.system` says what a system is, :mod:`~fastmine.recipes.processes`
lets several processes share every batch. All use the public functions of fastmine and need
``pip install 'fastmine[train]'``.
"""
