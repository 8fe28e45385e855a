"""Whether a camera's path is one that a camera can have taken."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm4d.curate.filters.clip import SIGMAS, frames_text, require_positive
from mllm4d.curate.filters.continuity import Travel, find_jumps, find_spikes, travel_of_headings, travel_of_places
from mllm4d.geometry.pose import center
from mllm4d.schema import Camera, Clip, InputError

JUMP_RATIO = 3.0
"""A step may be so many times as long as the longer of its neighbours. On real paths no step is longer than this allows
by more than a millimetre."""

SHAKY_SHARE = 0.5
"""A path jitters when its typical bend is more than this share of its typical step. Moving cars have up to 0.04 and the
synthetic world 0.09, white noise alone has 1.7."""

TYPICAL_ACCELERATION = 5.0
"""Nor does a camera, fast as it may be, typically accelerate more than this, metres per second squared: people who walk
have 3, cars that brake hard 8 for a moment."""


@dataclass(frozen=True)
class PathChecks:
    """Looks for poses that no camera can have had. What the path's own sigma explains is forgiven.

    A path that is wrong alike in all frames is not found: it is a path, too.

    "Measured" means on the camera of ``kitti_stereo``, six of KITTI tracking's and 60 of the synthetic world's.

    Attributes:
        max_speed: Metres per second. Measured: 18.
        max_acceleration: Metres per second squared; with the time between frames it says how far a pose may lie off its
            neighbours. Measured: 8, at one SLAM pose 21, and 31 where the world's cameras stop at once.
        floor: Jumps up to this are forgiven, metres.
        turn_floor: Jumps of the heading up to this are forgiven, degrees. Measured: 0.34.
        max_jitter: A typical bend of a path may be larger by so much than ``SHAKY_SHARE`` and ``TYPICAL_ACCELERATION``
            allow, metres. Measured in windows of 16 frames: 0.003.
        max_shake: The same of the heading (by ``SHAKY_SHARE`` alone), degrees. Measured: 0.17.
    """

    max_speed: float = 60.0
    max_acceleration: float = 20.0
    floor: float = 0.05
    turn_floor: float = 10.0
    max_jitter: float = 0.05
    max_shake: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self)

    def __call__(self, clip: Clip, camera: Camera) -> dict[str, float]:
        """Check a path.

        Args:
            clip: The clip; poses that it was given are looked at as well.
            camera: The camera.

        Returns:
            ``speed_max`` (m/s), ``jitter`` (median bend, metres) and ``shake`` (the same of the heading, degrees).

        Raises:
            InputError: A pose is no rigid transform, or the path jumps, races or jitters.
        """
        for poses in (clip.world_to_camera, camera.world_to_camera):
            if poses is not None:
                _check_rigid(clip.key, poses)
        places = travel_of_places(center(camera.world_to_camera.double()))
        headings = travel_of_headings(camera.world_to_camera[:, :3, :3].double())
        if not len(places.steps):
            return {"speed_max": 0.0, "jitter": 0.0, "shake": 0.0}
        gaps = clip.times.double().diff()
        spread, turn_spread = _step_sigma(camera.center_sigma), _step_sigma(camera.rotation_sigma)
        limit = self.floor + self.max_acceleration * gaps.square() + SIGMAS * spread
        _check_jumps(clip.key, "path", "m", places, limit)
        _check_jumps(clip.key, "heading", "degrees", headings, math.radians(self.turn_floor) + SIGMAS * turn_spread)
        speeds = (places.steps - SIGMAS * spread).clamp(min=0.0) / gaps
        fastest = int(speeds.argmax())
        if speeds[fastest] > self.max_speed:
            raise InputError(
                f"clip {clip.key!r}: the camera moves at {float(speeds[fastest]):.0f} m/s between frames {fastest} and "
                f"{fastest + 1}, at most {self.max_speed:g} is possible"
            )
        # Medians: a single start or stop is no jitter, but would decide a mean square.
        jitter, shake = (float(way.bends.median()) if len(way.bends) else 0.0 for way in (places, headings))
        allowed = min(SHAKY_SHARE * float(places.steps.median()), TYPICAL_ACCELERATION * float(gaps.median()) ** 2)
        allowed += self.max_jitter + SIGMAS * float(spread.median())
        allowed_turn = SHAKY_SHARE * float(headings.steps.median()) + math.radians(self.max_shake)
        allowed_turn += SIGMAS * float(turn_spread.median())
        if len(places.bends) >= 3 and (jitter > allowed or shake > allowed_turn):
            raise InputError(
                f"clip {clip.key!r}: the camera's path jitters: neighbouring steps typically differ by {jitter:.3f} m "
                f"and {math.degrees(shake):.2f} degrees"
            )
        speed = float((places.steps / gaps).max())
        return {"speed_max": round(speed, 3), "jitter": round(jitter, 4), "shake": round(math.degrees(shake), 3)}


def _check_jumps(key: str, what: str, unit: str, travel: Travel, limit: Tensor) -> None:
    """Raise where a frame lies off the path, or a step is longer than those around it; ``limit`` is [T - 1]."""
    scale = math.degrees(1) if unit == "degrees" else 1.0
    if spikes := find_spikes(travel, torch.maximum(limit[:-1], limit[1:])):
        detour = float(travel.detours[spikes[0] - 1]) * scale
        raise InputError(
            f"clip {key!r}: the camera's {what} jumps back and forth around {frames_text(spikes)} (a detour of "
            f"{detour:.2f} {unit} by way of frame {spikes[0]}): wrong poses, or poses of two conventions"
        )
    if jumps := find_jumps(travel, JUMP_RATIO, limit):
        t, step = jumps[0], float(travel.steps[jumps[0]]) * scale
        raise InputError(
            f"clip {key!r}: the camera's {what} jumps by {step:.2f} {unit} between frames {t} and {t + 1}, far more "
            "than before and after: wrong poses, or poses of two conventions"
        )


def _check_rigid(key: str, poses: Tensor) -> None:
    """Raise where a pose of [T, 4, 4] is not finite or no rigid transform."""
    if bad := torch.nonzero(~poses.isfinite().flatten(1).all(-1))[:, 0].tolist():
        raise InputError(f"clip {key!r}: the pose of {frames_text(bad)} holds numbers that are not finite")
    rotations = poses[:, :3, :3].double()
    off = (rotations @ rotations.mT - torch.eye(3, dtype=rotations.dtype)).abs().amax(dim=(-1, -2))
    if bad := torch.nonzero((off > 1e-3) | (torch.linalg.det(rotations) < 0))[:, 0].tolist():
        raise InputError(f"clip {key!r}: the pose of {frames_text(bad)} is no rigid transform")


def _step_sigma(sigma: Tensor) -> Tensor:
    """What a path's error adds in each step, [T - 1], from its standard deviation relative to the first frame, [T]."""
    return sigma.double().square().diff().abs().sqrt()
