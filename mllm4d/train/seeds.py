"""Randomness as a function of the place in the training, so that a resumed run is the run that was not stopped."""

from __future__ import annotations

import hashlib
import os


def global_seed() -> int:
    """What ``seed_everything`` was last given in this process or the one that started it; 0 where it was not."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def step_seed(seed: int, epoch: int, batch: int, rank: int) -> int:
    """The seed of one rank's batch: of its dropout, whatever was drawn before.

    Args:
        seed: Of the run.
        epoch: Number of the epoch.
        batch: Number of the batch in it.
        rank: Of the process.
    """
    digest = hashlib.sha256(f"{seed}/{epoch}/{batch}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
