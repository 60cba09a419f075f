"""``fastmine bench``: how fast, how large and how right, beside what a user would otherwise pick.

:mod:`~fastmine.bench.cases`
    what is measured: one row per work, size and type
:mod:`~fastmine.bench.works`
    for each work its inputs, its float64 truth, and when an answer is wrong
:mod:`~fastmine.bench.providers`
    who can do it: the kernels, the reference, plain, strong and compiled PyTorch, and the libraries
:mod:`~fastmine.bench.measure`
    everything interleaved in one process: quantiles, processor time, waiting, peak memory, the machine's ceilings
:mod:`~fastmine.bench.run`
    a process per heap, rows written as they come
:mod:`~fastmine.bench.bars`, :mod:`~fastmine.bench.report`, :mod:`~fastmine.bench.plots`
    what the rows have to say: which bars are met, tables and pictures

All use the public functions of fastmine alone. A provider that is not installed is named as absent, and one whose
answer differs from the truth as wrong.
"""
