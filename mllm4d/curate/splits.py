"""Which clip goes to which split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random


def assign_splits(keys: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Give every clip to one split.

    Args:
        keys: The clips.
        shares: Split to share; shares need not sum to one.
        seed: Decides which clip goes where.

    Returns:
        Split to its keys in random order. Sizes are the shares rounded (largest remainder), but a split with a positive
        share gets at least one clip as long as there are clips, in the order in which the splits are named.
    """
    order = sorted(keys)
    Random(f"splits/{seed}").shuffle(order)
    names = [name for name, share in shares.items() if share > 0]
    total = sum(shares[name] for name in names)
    exact = {name: len(order) * shares[name] / total for name in names}
    sizes = {name: int(exact[name]) for name in names}
    for name in sorted(names, key=lambda n: sizes[n] - exact[n])[: len(order) - sum(sizes.values())]:
        sizes[name] += 1
    for name in names[: len(order)]:
        if not sizes[name]:
            sizes[max(sizes, key=sizes.__getitem__)] -= 1
            sizes[name] = 1
    result, start = {}, 0
    for name in names:
        result[name] = order[start : start + sizes[name]]
        start += sizes[name]
    return result
