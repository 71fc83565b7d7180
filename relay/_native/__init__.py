"""The Python twins of `relay._speedups`: the same interfaces, readable, for machines without a C compiler."""
