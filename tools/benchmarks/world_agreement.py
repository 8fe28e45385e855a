"""Labels from stereo reconstruction against exact truth, on clips of the synthetic world.

The reconstruction gets what a stereo camera in the field gives (left, right, calibration): depth by SGBM, the camera's
path by odometry, objects from masks and depth. The first table takes the objects' masks as given, the second finds
moving objects by geometry alone (``MotionFinder``).

Each relation is judged twice: unfiltered (no quality filter, no margins: every relation that was measured gets its
nearest answer) and kept (``Quality`` and the default margins, which know nothing of the truth). A distance agrees when
it would choose the right option of the ladder. A relation of an object that is not there, or of a still object that is
said to have moved, disagrees.

    python tools/benchmarks/world_agreement.py --clips 20 --out world_agreement.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from mllm4d.curate.depth import SGBM, Depth, DepthEstimator
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.motion import MotionFinder
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.quality import Quality
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.world import World
from mllm4d.geometry.pose import path_rms
from mllm4d.qa.agreement import LENIENT, Displacement, Outcome, compare, displacements, quantile, summarise
from mllm4d.qa.generate import anchor_pairs
from mllm4d.qa.judge import Margins
from mllm4d.schema import Clip, InputError, Mask, Scene, Track

PERCENTILE = 5.0
"""Of the distances to an object's points, that stands for the nearest one."""

SAME_PLACE = 1.0
"""A found object is the true one whose centre is at most so far from its own, in the median of the frames, metres."""


@dataclass
class Tally:
    """What is counted over all clips, for one way of reconstruction."""

    outcomes: list[Outcome] = field(default_factory=list)
    displacements: list[Displacement] = field(default_factory=list)
    path_rms: list[float] = field(default_factory=list)
    refused: int = 0


@dataclass(frozen=True)
class _Known(DepthEstimator):
    """Depth that was estimated before."""

    depth: Depth

    def __call__(self, clip: Clip) -> Depth:
        return self.depth


@dataclass(frozen=True)
class _Recorder(ObjectFinder):
    """A finder whose masks are kept."""

    finder: ObjectFinder
    found: list[Mask] = field(default_factory=list)

    def __call__(self, clip: Clip, depth: Depth, world_to_camera: Tensor) -> tuple[Mask, ...]:
        self.found[:] = self.finder(clip, depth, world_to_camera)
        return tuple(self.found)


def reconstruct(
    clip: Clip,
    depth: Depth,
    truth: Scene,
    pairs: Sequence[tuple[int, int]],
    filtered: bool,
    tally: Tally,
    finder: ObjectFinder | None = None,
) -> None:
    """Build one scene, with the filters and margins or without, and count how it compares."""
    margins = Margins(percentile=PERCENTILE) if filtered else replace(LENIENT, percentile=PERCENTILE)
    try:
        scene = build_scene(clip, _Known(depth), StereoOdometry(), finder, Quality() if filtered else None)
    except InputError as error:
        tqdm.write(str(error))
        tally.refused += 1
        return
    if finder:
        scene = replace(scene, objects=tuple(_renamed(track, truth) for track in scene.objects))
    tally.path_rms.append(path_rms(scene.camera.world_to_camera, truth.camera.world_to_camera))
    tally.outcomes += compare(scene, truth, pairs, margins)
    tally.displacements += displacements(scene, truth, pairs, margins)


def _renamed(track: Track, truth: Scene) -> Track:
    """The track under the id of the true object that is in its place, or one that the truth lacks."""
    away = {t.id: float((t.centers - track.centers).norm(dim=-1).nanmedian()) for t in truth.objects}
    near = min((d, id) for id, d in away.items())
    return replace(track, id=near[1] if near[0] <= SAME_PLACE else -1 - track.id)


def run(clips: int, seed: int = 0, find: bool = True) -> dict[str, Any]:
    """Reconstruct clips and compare; returns the tables as ``main`` writes them."""
    field_camera, oracle = World(seed=seed, truth=False), World(seed=seed, truth=True)
    names = ("given masks", "found by motion") if find else ("given masks",)
    tallies = {name: (Tally(), Tally()) for name in names}
    overlaps: list[tuple[float, bool]] = []
    found: list[float | None] = []
    generator = torch.Generator().manual_seed(seed)
    for key in tqdm(field_camera.keys(clips), "clips"):
        clip, truth = field_camera.load(key), build_scene(oracle.load(key), None, None)
        depth, pairs = SGBM()(clip), anchor_pairs(len(truth.times), 12, generator)
        for filtered in (False, True):
            reconstruct(clip, depth, truth, pairs, filtered, tallies["given masks"][filtered])
            if find:
                recorder = _Recorder(MotionFinder())
                bare = replace(clip, masks=())
                reconstruct(bare, depth, truth, pairs, filtered, tallies["found by motion"][filtered], recorder)
                if not filtered:
                    one, other = match_masks(recorder.found, clip.masks, truth)
                    overlaps, found = overlaps + one, found + other
    result: dict[str, Any] = {"clips": clips, "seed": seed}
    for name, (every, kept) in tallies.items():
        result[name] = {"unfiltered": _figures(every), "kept": _figures(kept)}
    if find:
        result["finder"] = finder_figures(overlaps, found)
    return result


def match_masks(
    found: Sequence[Mask], given: Sequence[Mask], truth: Scene
) -> tuple[list[tuple[float, bool]], list[float | None]]:
    """What a finder's masks lie on.

    Args:
        found: The finder's.
        given: The true ones, with the ids of the truth's tracks.
        truth: The exact scene.

    Returns:
        For each found mask the share of it that lies on its object, and whether that moves; for each object that goes
        farther than 0.5 m the mean intersection over union with the best mask on it (over the frames of that mask), or
        None where it is not found.
    """
    tracks = {track.id: track for track in truth.objects}
    rows, best = [], dict[int, float]()
    for mask in found:
        shares = {m.id: float((mask.pixels & m.pixels).sum() / mask.pixels.sum()) for m in given}
        on, share = max(shares.items(), key=lambda item: item[1])
        rows.append((share, bool(tracks[on].moving)))
        if share > 0.5:
            true = next(m for m in given if m.id == on).pixels
            frames = mask.pixels.any(-1).any(-1)
            both, either = ((f(mask.pixels, true)[frames]).sum((1, 2)) for f in (torch.logical_and, torch.logical_or))
            best[on] = max(best.get(on, 0.0), float((both / either).mean()))
    movers = []
    for track in truth.objects:
        seen = track.centers[track.centers.isfinite().all(-1)]
        if len(seen) and float((seen - seen[0]).norm(dim=-1).max()) > 0.5:
            movers.append(best.get(track.id))
    return rows, movers


def finder_figures(masks: Sequence[tuple[float, bool]], movers: Sequence[float | None]) -> dict[str, Any]:
    """Recall over moving objects, precision over masks (more than half on something that moves), overlap."""
    hits = [overlap for overlap in movers if overlap is not None]
    return {
        "movers": len(movers),
        "recall": len(hits) / max(1, len(movers)),
        "masks": len(masks),
        "precision": sum(share > 0.5 and moving for share, moving in masks) / max(1, len(masks)),
        "mean IoU": sum(hits) / max(1, len(hits)),
    }


def _figures(tally: Tally) -> dict[str, Any]:
    figures: dict[str, Any] = {"clips refused": tally.refused, "relations": summarise(tally.outcomes)}
    if tally.path_rms:
        figures["path rms, m"] = {"median": quantile(tally.path_rms, 0.5), "worst": max(tally.path_rms)}
    for name, rows in (("all", tally.displacements), ("asked", [d for d in tally.displacements if d.asked])):
        if rows:
            figures[f"displacement, {name}"] = {
                "n": len(rows),
                "error median, m": quantile([d.error for d in rows], 0.5),
                "error 90 %, m": quantile([d.error for d in rows], 0.9),
                "relative median": quantile([d.relative for d in rows], 0.5),
                "relative 90 %": quantile([d.relative for d in rows], 0.9),
            }
    return figures


def show(name: str, table: dict[str, Any]) -> None:
    """Print one table."""
    every, kept = table["unfiltered"], table["kept"]
    print(f"\nobjects: {name} (clips refused by the filters: {kept['clips refused']})")
    for label, part in (("unfiltered", every), ("kept", kept)):
        if rms := part.get("path rms, m"):
            print(f"  camera path, {label}: median {rms['median']:.3f} m RMS, worst {rms['worst']:.3f} m")
    for label, part, rows in (("unfiltered", every, "all"), ("kept", kept, "asked")):
        if row := part.get(f"displacement, {rows}"):
            print(
                f"  displacement of moving objects, {label} ({row['n']}): median {row['error median, m']:.3f} m "
                f"({row['relative median']:.1%}), 90 % {row['error 90 %, m']:.3f} m ({row['relative 90 %']:.1%})"
            )
    print(
        f"  {'relation':<34}{'all':>6}{'agree %':>9}{'opp.':>6}{'rel. %':>8} |{'kept':>6}{'%':>7}{'agree %':>9}", end=""
    )
    print(f"{'opp.':>6}{'rel. %':>8}")
    for task, row in every["relations"].items():
        other = kept["relations"].get(task, {"n": 0, "asked": 0})
        share = f"{other['asked']:>6}{100 * other['asked'] / row['n']:>7.1f}"
        print(f"  {task:<34}{row['n']:>6}{_columns(row)} |{share}{_columns(other)}")


def _columns(row: dict[str, float | int]) -> str:
    texts = [f"{100 * row['agreement']:.1f}" if "agreement" in row else "-", str(row.get("opposite", "-"))]
    texts.append(f"{100 * row['median relative error']:.1f}" if "median relative error" in row else "-")
    return f"{texts[0]:>9}{texts[1]:>6}{texts[2]:>8}"


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result = run(arguments.clips, arguments.seed)
    for name in ("given masks", "found by motion"):
        show(name, result[name])
    finder = result["finder"]
    print(
        f"\nMotionFinder: recall {finder['recall']:.1%} of {finder['movers']} objects that go farther than 0.5 m, "
        f"precision {finder['precision']:.1%} of {finder['masks']} masks, mean IoU {finder['mean IoU']:.2f}"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
