"""Symmetric twins of clips: mirrored, or reversed in time. What they look like is known, and so are their answers.

A twin shows nothing that its original does not show, but the right answers differ: whoever answers both has looked. The
relations are measured anew in the twin's scene and judged anew; no answer is turned round by rule.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from mllm4d.geometry.pose import rebase, transform
from mllm4d.prompts import seconds
from mllm4d.qa.balance import LeakFree
from mllm4d.qa.bins import count_bins
from mllm4d.qa.generate import Candidate, make_candidate, measure
from mllm4d.qa.judge import Margins, judge
from mllm4d.qa.options import Balanced, OptionMaker
from mllm4d.schema import Camera, Cloud, Question, Scene, Track

Kind = Literal["mirror", "reverse"]

KINDS: tuple[Kind, ...] = ("mirror", "reverse")
"""Left and right swapped; time run backwards."""

_SIDE = re.compile(r"\b(left|right)(?=(?:most|ward|wards|hand)?\b)")
_MOMENT = re.compile(r"\bat (\d+(?:\.\d+)?) s\b")


def twin_key(kind: Kind, key: str) -> str:
    """The key of a clip's twin, ``KEY-mirror`` or ``KEY-reverse``."""
    return f"{key}-{kind}"


def twin_frames(kind: Kind, frames: Tensor) -> Tensor:
    """The twin's frames.

    Args:
        kind: Which twin.
        frames: [T, H, W, 3].

    Returns:
        [T, H, W, 3].
    """
    return frames.flip(2 if kind == "mirror" else 0)


def twin_scene(kind: Kind, scene: Scene, width: int) -> Scene:
    """The twin's scene, ``mirror`` or ``reverse``; ``width`` as in ``mirror``."""
    return mirror(scene, width) if kind == "mirror" else reverse(scene)


def mirror(scene: Scene, width: int) -> Scene:
    """What a mirror shows: left and right swapped.

    With ``M = diag(-1, 1, 1)`` points become ``M X``, poses ``M R M`` and ``M t`` (proper rotations again), and pixels
    ``width - 1 - x``. The sides in objects' names are swapped as well.

    Args:
        scene: In any world.
        width: Of the stored frames, pixels.

    Returns:
        The scene in the mirrored world. Mirrored twice it is the original.
    """
    flip = torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    flips = torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)
    intrinsics = scene.camera.intrinsics.double().clone()
    intrinsics[0, 1] = 0.0 - intrinsics[0, 1]
    intrinsics[0, 2] = width - 1 - intrinsics[0, 2]
    # + 0.0 turns -0.0 into 0.0.
    poses = flips[:, None] * scene.camera.world_to_camera * flips + 0.0

    def swap(track: Track) -> Track:
        name = _SIDE.sub(lambda match: "left" if match[1] == "right" else "right", track.name)
        points = tuple(flip.to(rows) * rows for rows in track.points)
        return replace(track, name=name, centers=flip.to(track.centers) * track.centers, points=points)

    return replace(
        scene,
        camera=replace(scene.camera, intrinsics=intrinsics, world_to_camera=poses),
        objects=tuple(swap(track) for track in scene.objects),
        cloud=scene.cloud and Cloud(flip.to(scene.cloud.points) * scene.cloud.points, scene.cloud.colors),
    )


def reverse(scene: Scene) -> Scene:
    """The clip run backwards: frame k is the original's frame T-1-k.

    The world becomes the camera axes of the new first frame. Sigmas of the path are relative to the first frame and
    grow along it, so that what lies between two frames is the difference of their variances: the new ones are
    ``|var[T-1] - var[T-1-k]|``. Moments in objects' names ("at 0.5 s") become what they are in the new time.

    Args:
        scene: In the camera axes of its first frame, or in any other world.

    Returns:
        The scene in the camera axes of the original's last frame. Reversed twice it is the original, rebased.
    """
    poses, times = scene.camera.world_to_camera, scene.times
    last = poses[-1]
    turned = times[-1] - times.flip(0)

    def moment(match: re.Match[str]) -> str:
        frame = int((times - float(match[1])).abs().argmin())
        return f"at {seconds(float(turned[len(times) - 1 - frame]))}"

    def run_back(track: Track) -> Track:
        return replace(
            track,
            name=_MOMENT.sub(moment, track.name),
            centers=transform(last.to(track.centers), track.centers).flip(0),
            center_sigma=track.center_sigma.flip(0),
            motion_sigma=track.motion_sigma.flip(0),
            surface_sigma=track.surface_sigma.flip(0),
            points=tuple(transform(last.to(rows), rows) for rows in reversed(track.points)),
        )

    camera = Camera(
        scene.camera.intrinsics,
        rebase(poses.flip(0)),
        _from_the_end(scene.camera.center_sigma),
        _from_the_end(scene.camera.rotation_sigma),
    )
    cloud = scene.cloud and Cloud(transform(last.to(scene.cloud.points), scene.cloud.points), scene.cloud.colors)
    return replace(scene, times=turned, camera=camera, objects=tuple(map(run_back, scene.objects)), cloud=cloud)


def _from_the_end(sigma: Tensor) -> Tensor:
    variance = sigma.square()
    return (variance[-1] - variance.flip(0)).abs().sqrt()


def twin_candidates(
    kind: Kind, key: str, scene: Scene, found: Iterable[Candidate], margins: Margins, width: int
) -> tuple[list[Candidate], Counter[str]]:
    """What can be asked about a clip's twin, of all that can be asked about the clip.

    Args:
        kind: Which twin.
        key: The original clip's key.
        scene: Its scene.
        found: Its candidates; others of other clips are left alone.
        margins: What is clear enough.
        width: As in ``mirror``.

    Returns:
        Candidates about ``twin_key(kind, key)``, each with the anchors of its original, and how many relations of the
        twin were dropped for which reason (``KIND TASK: reason``).
    """
    twin, last = twin_scene(kind, scene, width), len(scene.times) - 1
    wanted = {(c.anchors, c.task, c.object) for c in found if c.clip == key}
    made, dropped = [], Counter[str]()
    for original in sorted({anchors for anchors, _, _ in wanted}):
        i, j = original if kind == "mirror" else (last - original[1], last - original[0])
        for relation in measure(twin, i, j, margins.percentile):
            if (original, relation.task, relation.track.id if relation.track else None) not in wanted:
                continue
            answer = judge(relation, margins)
            if isinstance(answer, str):
                dropped[f"{kind} {relation.task}: {answer}"] += 1
            else:
                made.append(make_candidate(twin_key(kind, key), twin, relation, answer, (i, j), original))
    return made, dropped


def balance_twins(
    chosen: Sequence[Question],
    found: Iterable[Candidate],
    per_clip: int,
    ratio: float,
    seed: int,
    options: OptionMaker | None = None,
) -> Balanced:
    """Make the twins of questions that were chosen, balanced among themselves.

    Args:
        chosen: Questions about originals.
        found: Candidates about their twins, from ``twin_candidates``.
        per_clip: As in ``OptionMaker``.
        ratio: As in ``OptionMaker``.
        seed: As in ``OptionMaker``.
        options: Makes the questions; by default ``LeakFree`` without a cap on tasks and distances, which the originals
            have been through, and taking all that find partners.

    Returns:
        The twins; ``KEY-mirror/007`` is the twin of ``KEY/007``. Those that find no partners are counted as dropped.
    """
    numbers = {
        (question.id.rsplit("/", 1)[0], question.task, question.anchors, question.object): question.id.rsplit("/", 1)[1]
        for question in chosen
    }
    twins: dict[tuple[str, str, tuple[int, int], int | None], str] = {}
    kept = []
    for candidate in found:
        source, _ = candidate.clip.rsplit("-", 1)
        number = numbers.get((source, candidate.task, candidate.original or (-1, -1), candidate.object))
        if number is not None:
            twins[candidate.clip, candidate.task, candidate.anchors, candidate.object] = number
            kept.append(candidate)
    made = (options or LeakFree(None, None, enough=1.0))(kept, per_clip, ratio, seed)
    rows = []
    for question, fold in zip(made.questions, made.folds, strict=True):
        clip = question.id.rsplit("/", 1)[0]
        number = twins[clip, question.task, question.anchors, question.object]
        rows.append((replace(question, id=f"{clip}/{number}"), fold))
    rows.sort(key=lambda row: row[0].id)
    questions = tuple(question for question, _ in rows)
    dropped = Counter({f"twin {reason}": count for reason, count in made.dropped.items()})
    return Balanced(questions, tuple(fold for _, fold in rows), dropped, count_bins(questions))
