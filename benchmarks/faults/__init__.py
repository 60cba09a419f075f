"""The fault benchmark: training runs that are sick or healthy, and who names the cause.

``python -m benchmarks.faults`` runs them and prints the table; ``benchmarks/faults/README.md`` holds the last one.
"""
