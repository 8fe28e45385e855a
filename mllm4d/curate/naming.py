"""Names that single one object out: the same name twice in a clip gets a description, or is not asked about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mllm4d.geometry.camera import project
from mllm4d.geometry.pose import transform
from mllm4d.prompts import seconds
from mllm4d.schema import Camera, Track

SIDE_MARGIN = 0.1
"""Two objects are side by side when their centres are this share of the image's width apart."""

DEPTH_MARGIN, DEPTH_RATIO = 0.5, 1.25
"""One object is nearer than another when it is by so many metres and by this ratio of their distances."""

SIGMAS = 3.0
"""An order must also be clear of so many standard deviations."""

RIM = 0.25
"""A centre outside the image, but by less than this share of its size, may belong to an object that is still seen in
part: where that is so of one of several namesakes, no order among them is read off the frame."""

NTH = ("first", "second", "third", "fourth", "fifth", "sixth")

NOT_UNIQUE = "name not unique"
"""Why a track is dropped."""


@dataclass(frozen=True)
class _View:
    """Where one object is in every frame: pixels, metres, and whether it is in the image, or half in it."""

    column: Tensor  # [T]
    column_sigma: Tensor  # [T]
    distance: Tensor  # [T]
    sigma: Tensor  # [T]
    inside: Tensor  # [T] bool
    doubtful: Tensor  # [T] bool


def tell_apart(
    tracks: Sequence[Track], camera: Camera, size: tuple[int, int], times: Tensor | None = None
) -> tuple[tuple[Track, ...], Counter[str]]:
    """Give every object a name that fits no other object of the clip.

    Names become lower case without article. Objects of one name, and those whose name ends a longer one ("car" beside
    "red car"), are told apart in the first frame in which all of them are seen, or else where the object is first seen:
    by their order from left to right ("car on the left", "second car from the left") or by their distance ("nearest
    car"), where it is clear. A description that holds whenever one of them is seen stands alone; any other says when it
    holds ("car that is on the left at 0.5 s").

    Give all objects that were found, before any is filtered out: a description is only as good as the list of those
    that it might be mistaken for. An object counts as seen where its track has a centre inside the image.

    Args:
        tracks: Objects, world, metres.
        camera: The camera that saw them.
        size: (height, width) of the stored frames, pixels.
        times: [T], seconds; without them no description can say when it holds, and what would need it is dropped.

    Returns:
        The tracks with their new names, in the same order, without those that cannot be told apart; and how many these
        were, as ``NOT_UNIQUE``.
    """
    named = [replace(track, name=plain_name(track.name)) for track in tracks]
    views = [_view(track, camera, size) for track in named]
    kept: list[Track] = []
    for k, track in enumerate(named):
        rivals = [n for n, other in enumerate(named) if f" {other.name}".endswith(f" {track.name}")]
        name: str | None = track.name
        if len(rivals) > 1:
            name = _describe(track.name, rivals.index(k), [views[n] for n in rivals], size[1], times)
        if name is not None:
            kept.append(replace(track, name=name))
    # A finder may hand over a description of its own that equals one of ours.
    counts = Counter(track.name for track in kept)
    unique = tuple(track for track in kept if counts[track.name] == 1)
    return unique, +Counter({NOT_UNIQUE: len(tracks) - len(unique)})


def plain_name(name: str) -> str:
    """A name in lower case, with single blanks and no article."""
    return re.sub(r"^(?:an?|the) ", "", " ".join(name.lower().split()))


def _view(track: Track, camera: Camera, size: tuple[int, int]) -> _View:
    local = transform(camera.world_to_camera, track.centers[:, None].to(camera.world_to_camera))[:, 0]
    known = local.isfinite().all(-1) & (local[:, 2] > 0)
    pixels = project(torch.where(known[:, None], local, torch.ones(3, dtype=local.dtype)), camera.intrinsics)
    extent = torch.tensor([size[1], size[0]], dtype=pixels.dtype)
    outside = torch.maximum(-0.5 - pixels, pixels - extent + 0.5) / extent
    beyond = outside.amax(-1)
    distance = local.norm(dim=-1)
    sigma = track.center_sigma.to(distance)
    return _View(
        column=pixels[:, 0],
        column_sigma=camera.intrinsics[0, 0].to(distance) * sigma / local[:, 2],
        distance=distance,
        sigma=sigma,
        inside=known & (beyond <= 0),
        doubtful=known & (beyond > 0) & (beyond < RIM),
    )


def _describe(name: str, which: int, views: Sequence[_View], width: int, times: Tensor | None) -> str | None:
    """What sets one of several namesakes apart, or None."""
    inside = torch.stack([view.inside for view in views])
    clean = ~torch.stack([view.doubtful for view in views]).any(0)
    together = torch.nonzero(inside.all(0) & clean)[:, 0].tolist()
    alone = torch.nonzero(inside[which] & clean)[:, 0].tolist()
    if not (frames := together or alone):
        return None
    frame = frames[0]
    if (trait := _trait(name, which, views, frame, width)) is None:
        return None
    seen = torch.nonzero(inside.any(0))[:, 0].tolist()
    if seen == together and all(_trait(name, which, views, t, width) == trait for t in seen):
        return trait[0]
    return None if times is None else trait[1].format(time=seconds(float(times[frame])))


def _trait(name: str, which: int, views: Sequence[_View], frame: int, width: int) -> tuple[str, str] | None:
    """What sets one of those in a frame apart: the description, and the same with a time to fill in."""
    present = [k for k, view in enumerate(views) if bool(view.inside[frame])]
    if len(present) == 1:
        return name, f"{name} in view at {{time}}"
    rank = _rank(which, present, [view.column[frame] for view in views], _side_margins(views, frame, width))
    if rank is not None:
        return _side(name, rank, len(present))
    near = _rank(which, present, [view.distance[frame] for view in views], _depth_margins(views, frame))
    if near == 0:
        return f"nearest {name}", f"{name} that is nearest to the camera at {{time}}"
    if near == len(present) - 1:
        return f"farthest {name}", f"{name} that is farthest from the camera at {{time}}"
    return None


def _side(name: str, rank: int, count: int) -> tuple[str, str] | None:
    if count <= 3:
        place = {0: "on the left", count - 1: "on the right"}.get(rank, "in the middle")
        return f"{name} {place}", f"{name} that is {place} at {{time}}"
    if rank >= len(NTH):
        return None
    place = f"{NTH[rank]} {name} from the left"
    return place, f"{place} at {{time}}"


def _rank(which: int, present: Sequence[int], values: Sequence[Tensor], margins: Tensor) -> int | None:
    """How many of those present come before one, or None where one of them comes neither clearly before nor after."""
    before = 0
    for other in present:
        if other == which:
            continue
        gap = float(values[which] - values[other])
        if not abs(gap) > float(margins[which, other]):
            return None
        before += gap > 0
    return before


def _side_margins(views: Sequence[_View], frame: int, width: int) -> Tensor:
    """[N, N], pixels."""
    sigmas = torch.stack([view.column_sigma[frame] for view in views])
    return torch.hypot(sigmas[:, None], sigmas[None]).mul(SIGMAS).clamp(min=SIDE_MARGIN * width)


def _depth_margins(views: Sequence[_View], frame: int) -> Tensor:
    """[N, N], metres."""
    distances = torch.stack([view.distance[frame] for view in views])
    sigmas = torch.stack([view.sigma[frame] for view in views])
    least = torch.minimum(distances[:, None], distances[None]) * (DEPTH_RATIO - 1)
    return torch.maximum(least.clamp(min=DEPTH_MARGIN), SIGMAS * torch.hypot(sigmas[:, None], sigmas[None]))
