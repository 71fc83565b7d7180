"""The parts of relay one by one, both twins, beside what others do the same job with: `python -m bench.micro`."""
