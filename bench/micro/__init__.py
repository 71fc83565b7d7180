"""Micro-benchmarks of relay's parts, compiled and in Python, beside other libraries: `python -m bench.micro`."""
