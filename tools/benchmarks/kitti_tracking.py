"""Object relations from KITTI's boxes and poses against plain numpy, and whether parked cars are told from moving ones.

Reads the flat layout (NNNN.label.txt, NNNN.poses.txt). Three things are printed:

1. All seven relations of every object, measured by mllm4d on the source's clips, against values worked out here from
   the raw files: own parsing, camera-to-world matrices as they are, and for the nearest point the exact distance to the
   box (mllm4d takes the nearest of points on its faces, which are up to 0.3 m apart on a car).
2. What ``Track.moving`` says of vehicles that are parked and of those that clearly move. Neither is taken from mllm4d's
   sigmas. Parked: over the vehicle's whole life within 40 m its place in the world, less a multiple of the camera's
   displacement (at most 0.1: poses that are too long or too short make standing things follow the camera), stays within
   0.5 m of its middle, and the camera moved 5 m or the life lasted 2 s. Clearly moving: 5 m between two sightings in
   the clip. The last column is a control: how many would be called moving if the poses were taken as exact.
3. What the source's default sigmas rest on: how much parked vehicles follow the camera, per metre of its path, how much
   they swing sideways, and how much boxes wander about a straight line within a second and a half.

    python tools/benchmarks/kitti_tracking.py --root ../shared/data/kitti_tracking --out kitti_tracking.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mllm4d.curate.objects import moves
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.kitti_tracking import KittiTracking
from mllm4d.qa.generate import anchor_pairs, measure
from mllm4d.schema import TASKS, Scene

Array = NDArray[np.float64]

FX, CX, CY = 721.5377, 609.5593, 172.854
VEHICLES = ("Car", "Van", "Truck")
FAR = 40.0
FOLLOWS, STAYS = 0.1, 0.5
MOVES = 5.0
PATH_BINS = (0.5, 1, 2, 4, 8, 16, 32)
DISTANCE_BINS = (0, 10, 20, 30, 40)
COLUMNS = {"moving": 8, "still": 8, "undecided": 12, "moving if poses were exact": 24}


@dataclass(frozen=True)
class RawTrack:
    """One object of the label file: numbers of its frames [N], rows [N, 7] of height, width, length, x, y, z, yaw."""

    kind: str
    frames: NDArray[np.int64]
    rows: Array

    def middle(self) -> Array:
        """The box's middle in camera axes, [N, 3]."""
        return self.rows[:, 3:6] - np.outer(self.rows[:, 0] / 2, [0, 1, 0])


@dataclass(frozen=True)
class RawSequence:
    """A sequence's camera-to-world rotations [F, 3, 3] and places [F, 3], and its objects by number."""

    rotations: Array
    places: Array
    tracks: dict[int, RawTrack]

    def path(self) -> Array:
        """Length of the camera's path up to each frame, [F]."""
        return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(self.places, axis=0), axis=1))])

    def world(self, track: RawTrack) -> Array:
        """The middle of an object's box in the world, [N, 3]."""
        return np.einsum("nij,nj->ni", self.rotations[track.frames], track.middle()) + self.places[track.frames]


def read_raw(root: Path, name: str) -> RawSequence:
    """Parse a sequence without mllm4d."""
    poses = np.loadtxt(root / f"{name}.poses.txt").reshape(-1, 3, 4)
    lines: dict[int, list[list[str]]] = defaultdict(list)
    for line in (root / f"{name}.label.txt").read_text().splitlines():
        if (words := line.split())[2] != "DontCare":
            lines[int(words[1])].append(words)
    tracks = {
        number: RawTrack(
            rows[0][2], np.array([int(r[0]) for r in rows]), np.array([[float(v) for v in r[10:17]] for r in rows])
        )
        for number, rows in lines.items()
    }
    return RawSequence(poses[:, :, :3], poses[:, :, 3], tracks)


def box_distance(point: Array, row: Array) -> float:
    """Distance of a point in camera axes to the faces of a box [7], exact; inside as well."""
    height, width, length, x, y, z, yaw = row
    away = point - np.array([x, y - height / 2, z])
    cos, sin = np.cos(yaw), np.sin(yaw)
    # The box's own x axis points to (cos, 0, -sin) in camera axes, its z axis to (sin, 0, cos).
    local = np.array([cos * away[0] - sin * away[2], away[1], sin * away[0] + cos * away[2]])
    beyond = np.abs(local) - np.array([length, height, width]) / 2
    return float(-beyond.max() if (beyond <= 0).all() else np.linalg.norm(beyond.clip(0)))


def raw_relations(raw: RawSequence, track: RawTrack | None, i: int, j: int) -> dict[str, Array]:
    """The relations between two frames, from camera-to-world matrices; the camera's two where ``track`` is None."""
    turn_i, place_i, turn_j, place_j = raw.rotations[i], raw.places[i], raw.rotations[j], raw.places[j]
    if track is None:
        went = place_j - place_i
        return {TASKS[0]: np.linalg.norm(went), TASKS[1]: turn_i.T @ went}
    row_i, row_j = (track.rows[track.frames == frame][0] for frame in (i, j))
    middle_i, middle_j = (row[3:6] - [0, row[0] / 2, 0] for row in (row_i, row_j))
    moved = (turn_j @ middle_j + place_j) - (turn_i @ middle_i + place_i)
    eye_i_at_j = turn_j.T @ (place_i - place_j)
    origin = np.zeros(3)
    return {
        TASKS[2]: np.linalg.norm(moved),
        TASKS[3]: turn_i.T @ moved,
        TASKS[4]: np.array(box_distance(eye_i_at_j, row_j)),
        TASKS[5]: np.array(box_distance(origin, row_j) - box_distance(origin, row_i)),
        TASKS[6]: middle_j - middle_i,
    }


def is_parked(raw: RawSequence, track: RawTrack) -> bool:
    """As the module says."""
    near = np.linalg.norm(track.middle(), axis=1) <= FAR
    if track.kind not in VEHICLES or near.sum() < 2:
        return False
    frames, places = track.frames[near], raw.world(track)[near]
    camera = raw.places[frames] - raw.places[frames].mean(0)
    went = float(np.ptp(raw.path()[frames]))
    if went < 5 and frames[-1] - frames[0] < 20:
        return False
    spread = places - places.mean(0)
    follows = float((camera * spread).sum() / max((camera**2).sum(), 1e-9)) if went > 1 else 0.0
    left = spread - np.clip(follows, -FOLLOWS, FOLLOWS) * camera
    return bool(np.linalg.norm(left - np.median(left, axis=0), axis=1).max() <= STAYS)


def scenes(source: KittiTracking) -> Iterator[tuple[str, list[int], Scene]]:
    """Sequence, frame numbers and scene of every clip."""
    for key in tqdm(source.keys(), "clips"):
        clip = source.load(key)
        yield clip.video, list(clip.provenance["frames"]), build_scene(clip, None, None)


def compare(raw: RawSequence, frames: list[int], scene: Scene, pairs: int, worst: dict[str, list[float]]) -> None:
    """Add each relation's differences between mllm4d and plain numpy, metres."""
    for i, j in anchor_pairs(len(frames), pairs, torch.Generator().manual_seed(frames[0])):
        for relation in measure(scene, i, j):
            track = None if relation.track is None else raw.tracks[relation.track.id]
            known = (
                raw_relations(raw, track, frames[i], frames[j]) if track is None or _both(track, frames, i, j) else {}
            )
            if relation.task in known:
                worst[relation.task].append(float(np.abs(relation.value.numpy() - known[relation.task]).max()))


def _both(track: RawTrack, frames: list[int], i: int, j: int) -> bool:
    return bool(np.isin([frames[i], frames[j]], track.frames).all())


def judge_motion(
    raw: RawSequence, frames: list[int], scene: Scene, parked: set[int], verdicts: dict[str, Counter[str]]
) -> list[dict[str, Any]]:
    """Count what is said of each vehicle; returns the verdicts that are wrong."""
    wrong = []
    exact = replace(
        scene.camera,
        center_sigma=torch.zeros_like(scene.camera.center_sigma),
        rotation_sigma=torch.zeros_like(scene.camera.rotation_sigma),
    )
    for track in scene.objects:
        if raw.tracks[track.id].kind not in VEHICLES or int(track.centers.isfinite().all(-1).sum()) < 2:
            continue
        seen = [frames[t] for t in torch.nonzero(track.centers.isfinite().all(-1))[:, 0].tolist()]
        whole = raw.tracks[track.id]
        places = raw.world(whole)[np.isin(whole.frames, seen)]
        went = float(np.linalg.norm(places - places[0], axis=1).max())
        group = "parked" if track.id in parked else "clearly moving" if went > MOVES else "neither"
        verdict = {True: "moving", False: "still", None: "undecided"}[track.moving]
        verdicts[group][verdict] += 1
        verdicts[group]["moving if poses were exact"] += bool(moves(track.centers, track.motion_sigma, exact))
        if (group, verdict) in (("parked", "moving"), ("clearly moving", "still")):
            wrong.append({"track": track.id, "frames": [seen[0], seen[-1]], "group": group, "metres": round(went, 2)})
    return wrong


def follow(raw: RawSequence, parked: set[int], gap: int = 15) -> Array:
    """Apparent motion of parked vehicles between any two frames at most ``gap`` apart.

    Returns:
        [N, 4]: path of the camera in between, motion along its displacement, across it (level), distance at the end;
        metres.
    """
    path, rows = raw.path(), []
    for track in (raw.tracks[number] for number in sorted(parked)):
        places, far = raw.world(track), np.linalg.norm(track.middle(), axis=1)
        for a in np.flatnonzero(far <= FAR):
            for b in np.flatnonzero(
                (far <= FAR) & (track.frames > track.frames[a]) & (track.frames <= track.frames[a] + gap)
            ):
                i, j = track.frames[a], track.frames[b]
                ahead = raw.places[j] - raw.places[i]
                if path[j] - path[i] >= PATH_BINS[0]:
                    ahead /= np.linalg.norm(ahead)
                    moved = places[b] - places[a]
                    across = np.array([-ahead[2], 0, ahead[0]])
                    rows.append([path[j] - path[i], moved @ ahead, moved @ across, far[b]])
    return np.array(rows).reshape(-1, 4)


def wander(raw: RawSequence, parked: set[int], length: int = 16) -> tuple[Array, Array]:
    """How boxes of parked vehicles leave a straight line in the camera's path, and jitter from frame to frame.

    Returns:
        [N, 2] distance and root mean square residual per axis over ``length`` frames; [M, 2] distance and the absolute
        second difference over sqrt(6) (which is one box's sigma if all err by themselves), per axis; metres.
    """
    residuals, jitter = [], []
    for track in (raw.tracks[number] for number in sorted(parked)):
        far = np.linalg.norm(track.middle(), axis=1)
        places, path = raw.world(track)[far <= FAR], raw.path()[track.frames[far <= FAR]]
        far = far[far <= FAR]
        for start in range(0, len(far) - length // 2, length):
            part = slice(start, start + length)
            design = np.stack([np.ones(len(far[part])), path[part] - path[start]], axis=1)[
                :, : 1 + (np.ptp(path[part]) > 0.5)
            ]
            left = places[part] - design @ np.linalg.lstsq(design, places[part], rcond=None)[0]
            residuals.append([far[part].mean(), np.sqrt((left**2).sum() / (3 * (len(left) - design.shape[1])))])
        for k, second in enumerate(np.diff(places, 2, axis=0)):
            jitter += [[far[k + 1], abs(value) / np.sqrt(6)] for value in second]
    return np.array(residuals).reshape(-1, 2), np.array(jitter).reshape(-1, 2)


def calibration(raws: dict[str, RawSequence], parked: dict[str, set[int]]) -> dict[str, Any]:
    """What the source's default sigmas rest on."""
    by_sequence = {name: follow(raw, parked[name]) for name, raw in raws.items()}
    pairs = np.concatenate(list(by_sequence.values()))
    both = [wander(raw, parked[name]) for name, raw in raws.items()]
    residuals, jitter = (np.concatenate([each[part] for each in both]) for part in (0, 1))
    bins = list(pairwise(PATH_BINS))
    along, swing = pairs[:, 1] / pairs[:, 0], pairs[:, 2] / pairs[:, 0] / pairs[:, 3]

    def rms(values: Array) -> float:
        return float(np.sqrt((values**2).mean())) if len(values) else float("nan")

    return {
        "follows_per_metre": {
            name: {"pairs": len(each), "median": float(np.median(each[:, 1] / each[:, 0]))}
            for name, each in by_sequence.items()
            if len(each)
        },
        "follows_by_path": [
            {
                "path": [low, high],
                "median": float(np.median(along[here])),
                "rms": rms(along[here]),
                "swing": rms(swing[here]),
            }
            for low, high in bins
            if (here := (pairs[:, 0] >= low) & (pairs[:, 0] < high)).any()
        ],
        "boxes_by_distance": [
            {
                "distance": [low, high],
                "wander": rms(residuals[(residuals[:, 0] >= low) & (residuals[:, 0] < high), 1]),
                "jitter": rms(jitter[(jitter[:, 0] >= low) & (jitter[:, 0] < high), 1]),
            }
            for low, high in pairwise(DISTANCE_BINS)
        ],
    }


def run(root: Path, clip_frames: int = 16, pairs: int = 20) -> dict[str, Any]:
    """Compare, judge and calibrate.

    Args:
        root: Folder in the flat layout.
        clip_frames: Frames in a clip.
        pairs: Anchors looked at in a clip.
    """
    # Relations do not depend on the size at which frames are drawn.
    source = KittiTracking(str(root), clip_frames=clip_frames, max_width=64, fx=FX, cx=CX, cy=CY)
    raws = {
        path.name.split(".")[0]: read_raw(root, path.name.split(".")[0]) for path in sorted(root.glob("*.label.txt"))
    }
    parked = {name: {n for n, track in raw.tracks.items() if is_parked(raw, track)} for name, raw in raws.items()}
    worst: dict[str, list[float]] = defaultdict(list)
    verdicts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for name, frames, scene in scenes(source):
        compare(raws[name], frames, scene, pairs, worst)
        for each in judge_motion(raws[name], frames, scene, parked[name], verdicts):
            wrong.append({"sequence": name, **each})
    return {
        "clip_frames": clip_frames,
        "relations": {task: {"n": len(worst[task]), "largest_m": max(worst[task])} for task in TASKS if worst[task]},
        "parked_tracks": {name: sorted(each) for name, each in parked.items()},
        "verdicts": {group: dict(counts) for group, counts in sorted(verdicts.items())},
        "wrong": wrong,
        "calibration": calibration(raws, parked),
    }


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--clip-frames", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=20, help="anchors looked at in a clip")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result = run(arguments.root, arguments.clip_frames, arguments.pairs)
    print(f"{'relation':<36}{'n':>7}{'largest difference, m':>24}")
    for task, row in result["relations"].items():
        print(f"{task:<36}{row['n']:>7}{row['largest_m']:>24.2e}")
    print(f"\n{'vehicles in clips':<36}{'moving':>8}{'still':>8}{'undecided':>12}{'moving if poses exact':>24}")
    for group, counts in result["verdicts"].items():
        row = "".join(f"{counts.get(name, 0):>{width}}" for name, width in COLUMNS.items())
        print(f"{group:<36}{row}")
    print("wrong:", result["wrong"] or "none")
    figures = result["calibration"]
    print(f"\n{'parked vehicles follow the camera':<36}{'median':>8}{'rms':>8}{'swing, rad/m':>15}")
    for name, row in figures["follows_per_metre"].items():
        print(f"  sequence {name:<25}{row['median']:>8.4f}")
    for row in figures["follows_by_path"]:
        low, high = row["path"]
        print(f"  path {f'{low:g} to {high:g} m':<29}{row['median']:>8.4f}{row['rms']:>8.4f}{row['swing']:>15.5f}")
    print(f"\n{'parked boxes, sigma per axis, m':<36}{'wander':>8}{'jitter':>8}")
    for row in figures["boxes_by_distance"]:
        low, high = row["distance"]
        print(f"  {f'{low:g} to {high:g} m':<34}{row['wander']:>8.3f}{row['jitter']:>8.3f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
