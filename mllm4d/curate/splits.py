"""Which clip goes to which split. Clips of one source video stay together: their neighbours show the same place."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal


@dataclass(frozen=True)
class Splits:
    """Where every clip goes.

    Attributes:
        members: Split to its clips' keys, in random order.
        by: "video" where each source video is in one split; "time" where there are fewer videos than splits, so that
            videos had to be cut in pieces, one after the other in time.
    """

    members: Mapping[str, list[str]]
    by: Literal["video", "time"]


def assign_splits(videos: Mapping[str, str], shares: Mapping[str, float], seed: int) -> Splits:
    """Give every clip to one split.

    Args:
        videos: Each clip's key to its source video; a video's clips in order of time.
        shares: Split to share; shares need not sum to one.
        seed: Decides which video goes where.

    Returns:
        The splits. Sizes follow the shares as nearly as whole videos allow (rounded by largest remainder where every
        clip is a video of its own); a split with a positive share gets at least one video, or in pieces one clip, as
        long as there are any, in the order in which the splits are named.
    """
    names = [name for name, share in shares.items() if share > 0]
    sizes = _sizes(len(videos), {name: shares[name] for name in names})
    groups: dict[str, list[str]] = defaultdict(list)
    for key in videos:
        groups[videos[key]].append(key)
    random = Random(f"splits/{seed}")
    if len(groups) < len(names) and len(groups) < len(videos):
        return Splits(_pieces(groups, sizes, random), "time")
    order = sorted(groups)
    random.shuffle(order)
    order.sort(key=lambda video: -len(groups[video]))
    taken: dict[str, list[str]] = {name: [] for name in names}
    room = dict(sizes)
    for video in order:
        name = max(names, key=room.__getitem__)
        taken[name].append(video)
        room[name] -= len(groups[video])
    for name in names:
        rich = max(names, key=lambda other: len(taken[other]))
        if not taken[name] and len(taken[rich]) > 1:
            taken[name].append(taken[rich].pop())
    members = {name: [key for video in taken[name] for key in groups[video]] for name in names}
    for keys in members.values():
        random.shuffle(keys)
    return Splits(members, "video")


def _sizes(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Shares of ``count`` rounded by largest remainder, at least one each while there are any."""
    total = sum(shares.values())
    exact = {name: count * share / total for name, share in shares.items()}
    sizes = {name: int(size) for name, size in exact.items()}
    for name in sorted(sizes, key=lambda n: sizes[n] - exact[n])[: count - sum(sizes.values())]:
        sizes[name] += 1
    for name in list(sizes)[:count]:
        if not sizes[name]:
            sizes[max(sizes, key=sizes.__getitem__)] -= 1
            sizes[name] = 1
    return sizes


def _pieces(groups: Mapping[str, list[str]], sizes: Mapping[str, int], random: Random) -> dict[str, list[str]]:
    """Consecutive clips to one split after the other."""
    line = [key for video in sorted(groups) for key in groups[video]]
    members, start = {}, 0
    for name, size in sizes.items():
        members[name] = line[start : start + size]
        random.shuffle(members[name])
        start += size
    return members
