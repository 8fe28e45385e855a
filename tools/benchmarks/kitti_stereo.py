"""Depth and camera path of real stereo video against what is known about it: KITTI's street and Middlebury's Aloe.

KITTI (51 pairs as one clip): error of the camera's path against the poses, without alignment; the camera's height over
the road, from the depth alone; how many objects are called moving, where nothing moves. Aloe: share of pixels whose
disparity is off by more than one, and density.

    python tools/benchmarks/kitti_stereo.py ../shared/data --out kitti_stereo.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mllm4d.curate.depth import SGBM, Depth
from mllm4d.curate.objects import track_from_mask
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.geometry.camera import unproject
from mllm4d.geometry.pointcloud import one_thread
from mllm4d.geometry.pose import center, path_rms, rebase
from mllm4d.schema import Camera, Clip, InputError

ROOT = Path(__file__).resolve().parents[2]

MOUNTED = 1.65
"""Height of the cameras over the road, metres, as published (Geiger et al., CVPR 2012)."""

GOALS = {
    "path_rms_m": (0.0, 0.28),
    "end_drift_percent": (0.0, 0.75),
    "camera_height_m": (MOUNTED - 0.05, MOUNTED + 0.05),
    "objects_called_moving": (0, 0),
    "aloe_bad_percent": (0.0, 7.0),
    "aloe_density_percent": (70.0, 100.0),
}
"""Least and greatest value that will do."""


def measure_path(clip: Clip, depth: Depth) -> tuple[dict[str, Any], Camera]:
    """The path's errors and how they compare with its sigmas; and the camera that was found."""
    assert clip.world_to_camera is not None
    path = StereoOdometry()(clip, depth)
    found, truth = path.world_to_camera, clip.world_to_camera
    length = float(center(truth).diff(dim=0).norm(dim=-1).sum())
    error = center(found) - center(truth)
    camera = Camera(clip.intrinsics.double(), found, path.center_sigma, path.rotation_sigma)
    return {
        "path_rms_m": path_rms(found, truth),
        "end_drift_percent": 100 * float(error[-1].norm()) / length,
        "path_length_m": length,
        "center_error_over_sigma_rms": _rms(error[1:] / path.center_sigma[1:, None]),
        "rotation_error_over_sigma_rms": _rms(_rotation_error(found, truth)[1:] / path.rotation_sigma[1:, None]),
        "pieces": pieces(found, truth),
        "odometry": dict(path.quality),
    }, camera


def pieces(found: Tensor, truth: Tensor, steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50)) -> dict[str, dict[str, float]]:
    """Errors over pieces of the path: per axis, root mean square, of the centre (share of length) and the rotation."""
    table = {}
    for step in (step for step in steps if step < len(truth)):
        shares, turns = [], []
        for first in range(0, len(truth) - step):
            piece = [rebase(poses[first : first + step + 1]) for poses in (found, truth)]
            length = float(center(piece[1]).diff(dim=0).norm(dim=-1).sum())
            shares.append((center(piece[0]) - center(piece[1]))[-1] / length)
            turns.append(_rotation_error(*piece)[-1])
        table[f"{step} frames"] = {
            "center_percent": 100 * _rms(torch.stack(shares)),
            "rotation_mrad": 1000 * _rms(torch.stack(turns)),
        }
    return table


def road_height(depth: Tensor, intrinsics: Tensor) -> float | None:
    """Height of the camera over the road in one frame.

    The road is the largest plane (RANSAC, within 3 cm) among the points below the horizon, at most 3 m to the side and
    10 m ahead, if it is level within 15 degrees.

    Args:
        depth: [H, W], metres, 0 unknown.
        intrinsics: [3, 3], pixels.

    Returns:
        Metres, or None where no road is seen.
    """
    points = unproject(depth.double(), intrinsics.double())
    rows = torch.arange(len(depth))[:, None].expand(depth.shape)
    road = (depth > 0) & (depth < 10) & (points[..., 0].abs() < 3) & (rows > intrinsics[1, 2] + 20)
    seen = points[road]
    if len(seen) < 1000:
        return None
    with one_thread() as open3d:
        open3d.utility.random.seed(0)
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(seen[:: len(seen) // 5000 + 1].numpy()))
        plane, _ = cloud.segment_plane(distance_threshold=0.03, ransac_n=3, num_iterations=1000)
    normal = np.linalg.norm(plane[:3])
    return abs(plane[3]) / normal if abs(plane[1]) / normal > math.cos(math.radians(15)) else None


def measure_height(depth: Tensor, intrinsics: Tensor, every: int = 3) -> dict[str, Any]:
    """Median and spread over the frames."""
    heights = [road_height(depth[t], intrinsics) for t in range(0, len(depth), every)]
    known = [height for height in heights if height is not None]
    if not known:
        raise InputError("the camera's height: no frame shows a road")
    return {
        "camera_height_m": statistics.median(known),
        "camera_height_spread_m": statistics.pstdev(known),
        "camera_height_frames": f"{len(known)} of {len(heights)}",
    }


def count_moving(clip: Clip, depth: Depth, camera: Camera) -> dict[str, Any]:
    """Objects that the finder finds in a street where nothing moves."""
    from mllm4d.curate.motion import MotionFinder

    masks = MotionFinder()(clip, depth, camera.world_to_camera)
    tracks = [track_from_mask(mask, clip, depth, camera) for mask in masks]
    return {"objects_found": len(masks), "objects_called_moving": sum(track.moving is True for track in tracks)}


def measure_aloe(folder: Path) -> dict[str, float]:
    """Bad pixels among the measured ones whose truth is known, and the share that is measured."""

    def read(name: str, mode: str) -> Tensor:
        return torch.from_numpy(np.array(Image.open(folder / name).convert(mode)))

    truth = read("aloeGT.png", "L").float()
    found = SGBM().disparity(read("aloeL.jpg", "RGB"), read("aloeR.jpg", "RGB"))
    known = truth > 0
    both = known & (found > 0)
    return {
        "aloe_bad_percent": 100 * float(((found - truth)[both].abs() > 1).float().mean()),
        "aloe_density_percent": 100 * float(both.sum() / known.sum()),
    }


def run(data: Path, frames: int = 51) -> dict[str, Any]:
    """All figures.

    Args:
        data: Holds ``kitti_stereo`` and ``aloe``.
        frames: Of KITTI, from the first on; all by default.
    """
    source = StereoFolder(str(data / "kitti_stereo"), poses="folder", fps=10, clip_frames=frames)
    clip = source.load(source.keys()[0])
    depth = SGBM()(clip)
    path, camera = measure_path(clip, depth)
    height = measure_height(depth.depth, clip.intrinsics)
    return {
        "frames": len(clip.frames),
        **path,
        **height,
        **count_moving(clip, depth, camera),
        **measure_aloe(data / "aloe"),
    }


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _rotation_error(found: Tensor, truth: Tensor) -> Tensor:
    """[T, 3], axis times angle, radians."""
    import cv2

    errors = found[:, :3, :3] @ truth[:, :3, :3].mT
    return torch.from_numpy(np.stack([cv2.Rodrigues(error)[0][:, 0] for error in errors.numpy()]))


def main() -> None:
    """Print the table and write it as JSON; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("MLLM4D_TEST_DATA") or ROOT.parent / "shared" / "data")
    parser.add_argument("data", type=Path, nargs="?", default=default, help="holds kitti_stereo and aloe")
    parser.add_argument("--frames", type=int, default=51, help="of KITTI; the goals are for all 51")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result = run(arguments.data, arguments.frames)
    missed = []
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name}: {json.dumps(value)}")
            continue
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        line = f"{name:<32}{text:>12}"
        if name in GOALS:
            least, greatest = GOALS[name]
            good = least <= value <= greatest
            line += f"   goal {least:g} to {greatest:g}: {'met' if good else 'MISSED'}"
            missed += [] if good else [name]
        print(line)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
