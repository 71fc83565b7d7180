"""Selects the simulations that run, and reports the seed of a failure.

One seed reproduces a run. `SIM_SEEDS` is the number of seeds for each kind of simulation. Hypothesis tries twice as
many examples, at most 100.
"""

from __future__ import annotations

import os
from collections.abc import Callable

SEEDS = int(os.environ.get("SIM_SEEDS", "20"))

BATCH = 10
BATCHES = range(0, SEEDS, BATCH)
"""First seeds of the batches. Each batch is one test."""


def run_batch(simulate: Callable[[int], object], first: int) -> None:
    """Run the simulations of one batch; report the first seed that fails."""
    for seed in range(first, first + BATCH):
        try:
            simulate(seed)
        except BaseException:
            print(f"reproduce with simulate({seed})")
            raise
