"""Who reads which question when: an epoch's order as a pure function of counts and seed.

The plan is made before anything is read, from the counts in ``index.json``. So the order does not depend on the number
of reading processes, every rank has the same number of steps, each question comes exactly once an epoch, and a clip is
decoded once for all of its questions (twice when the border between two ranks runs through it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from mllm4d.schema import InputError
from mllm4d.shards import Shard


@dataclass(frozen=True)
class Plan:
    """One rank's epoch.

    Attributes:
        clips: (shard's file name, clip key) in the order of reading.
        batches: For each step the (index into ``clips``, index of the question) pairs of its batch.
    """

    clips: tuple[tuple[str, str], ...]
    batches: tuple[tuple[tuple[int, int], ...], ...]


def plan_epoch(
    shards: Sequence[Shard],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world_size: int = 1,
    window: int = 0,
) -> Plan:
    """Plan one rank's epoch.

    Args:
        shards: All shards of the split, as the index lists them.
        batch_size: Questions in a step on one rank. Steps are of even size, so that some may have fewer, never none;
            where ranks cannot share evenly, one step of some ranks has one more.
        seed: Decides the order, together with ``epoch``.
        epoch: Number of the epoch.
        rank: This process among those that train together.
        world_size: How many they are.
        window: Questions that are mixed with each other; 0 keeps the order of the shards.

    Returns:
        The plan; all ranks have the same number of batches.

    Raises:
        InputError: There are fewer questions than ranks.
    """
    random = Random(f"{seed}/{epoch}")
    order = list(shards)
    if window:
        random.shuffle(order)
    stream = [
        (shard.path, key, question)
        for shard in order
        for key, count in zip(shard.keys, shard.questions, strict=True)
        for question in range(count)
    ]
    if len(stream) < world_size:
        raise InputError(f"{len(stream)} questions are too few for {world_size} ranks")
    start, stop = (len(stream) * r // world_size for r in (rank, rank + 1))
    # From the shortest rank: were it from the longest, a rank could be left with a step and no question for it.
    steps = -(-(len(stream) // world_size) // batch_size)

    clips: dict[tuple[str, str], int] = {}
    items = [(clips.setdefault((path, key), len(clips)), question) for path, key, question in stream[start:stop]]
    if window:
        items = _mix(items, window, Random(f"{seed}/{epoch}/{rank}"))
    cuts = [len(items) * step // steps for step in range(steps + 1)]
    return Plan(tuple(clips), tuple(tuple(items[a:b]) for a, b in pairwise(cuts)))


def _mix(items: Sequence[tuple[int, int]], window: int, random: Random) -> list[tuple[int, int]]:
    """Draw from a buffer of ``window`` items that is refilled in order, as a shuffle buffer does."""
    buffer: list[tuple[int, int]] = []
    mixed = []
    for item in items:
        buffer.append(item)
        if len(buffer) > window:
            place = random.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            mixed.append(buffer.pop())
    random.shuffle(buffer)
    return mixed + buffer
