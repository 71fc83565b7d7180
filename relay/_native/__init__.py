"""Readable Python counterparts of `relay._speedups`, with the same interfaces, for machines without a C compiler."""
