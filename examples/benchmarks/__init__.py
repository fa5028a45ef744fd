"""A script a question; each prints its tables, and with ``--record`` keeps its figures for docs/benchmarks.md."""
