"""Which simulations run, and how a seed that fails is reported.

One seed reproduces a run. `SIM_SEEDS` says how many seeds each kind of simulation gets.
"""

from __future__ import annotations

import os
from collections.abc import Callable

SEEDS = int(os.environ.get("SIM_SEEDS", "300"))

BATCH = 50
BATCHES = range(0, SEEDS, BATCH)
"""First seeds of the batches; each batch is one test."""


def run_batch(simulate: Callable[[int], object], first: int) -> None:
    """Run the simulations of one batch; name the seed of the first that fails."""
    for seed in range(first, first + BATCH):
        try:
            simulate(seed)
        except BaseException:
            print(f"reproduce with simulate({seed})")
            raise
