"""A ball whose place is known, seen by a still and by a moving camera; and solids of the synthetic world."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from mllm4d.curate.depth import SGBM, Depth
from mllm4d.curate.objects import MINIMUM_FOLLOWED, moves, track_from_mask
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.world import World
from mllm4d.geometry.relations import object_camera_absolute_distance
from mllm4d.schema import Camera, Mask
from tests.curate.balls import INTRINSICS, RADIUS, film, sideways

COUNT = 8


def locate(clip, depth, camera, mask):
    return track_from_mask(mask, clip, depth, camera)


def straight(way, count=COUNT, start=(-0.6, 0.1, 5.0)):
    return torch.tensor(start) + torch.linspace(0, 1, count)[:, None].double() * torch.tensor(way).double()


def blank(clip):
    """The same clip with nothing to follow in it."""
    return dataclasses.replace(clip, frames=torch.full_like(clip.frames, 128), right=None, baseline=None)


@pytest.mark.parametrize("right", [True, False])
def test_displacements_come_from_corresponding_points(right):
    balls = straight((1.0, 0.0, 1.0))
    track = locate(*film(balls, sideways(COUNT, 0.05), right=right))
    went = track.centers - track.centers[0]
    error = (went - (balls - balls[0])).norm(dim=-1)
    sigma = torch.hypot(track.motion_sigma, track.motion_sigma[0])
    assert bool((error < 3 * sigma).all()), (error, sigma)
    assert float(error.max()) < 0.04
    assert float(sigma.max()) < 0.06
    assert track.moving is True
    # Where in the ball its centre is remains unknown, but is found within two sigma.
    place = (track.centers - balls).norm(dim=-1)
    assert bool((place < 2 * track.center_sigma * math.sqrt(3)).all()), (place, track.center_sigma)
    assert bool((track.center_sigma >= 0.05 * RADIUS).all())


def test_a_ball_that_turns_on_the_spot_goes_nowhere():
    balls = straight((0.0, 0.0, 0.0), start=(0.0, 0.0, 4.0))
    track = locate(*film(balls, turns=np.linspace(0, 1.2, COUNT)))
    went = (track.centers - track.centers[0]).norm(dim=-1)
    # Its surface points went up to 0.68 m.
    assert float(went.max()) < 0.05, went
    assert track.moving is False


def test_without_anything_to_follow_the_centroid_is_taken_and_sigma_says_so():
    balls = straight((1.0, 0.0, 1.0))
    clip, depth, camera, mask = film(balls)
    followed, seen = locate(clip, depth, camera, mask), locate(blank(clip), depth, camera, mask)
    assert bool((seen.motion_sigma > 3 * followed.motion_sigma).all())
    assert torch.equal(seen.motion_sigma, seen.center_sigma)
    error = (seen.centers - balls).norm(dim=-1)
    assert bool((error < 2 * seen.center_sigma).all())
    # The visible surface alone would be wrong by two thirds of the radius.
    assert float(error.max()) < 0.35 * RADIUS


def test_the_nearest_points_are_the_balls():
    balls = straight((1.0, 0.0, 1.0))
    clip, depth, camera, mask = film(balls)
    track = locate(clip, depth, camera, mask)
    for t, points in enumerate(track.points):
        assert len(points) >= MINIMUM_FOLLOWED
        truth = float(balls[t].norm()) - RADIUS
        value = float(object_camera_absolute_distance(camera.world_to_camera[t], points, 5.0))
        assert abs(value - truth) < 2.5 * float(track.surface_sigma[t])
        # All of them are on the ball.
        assert float(((points - balls[t]).norm(dim=-1) - RADIUS).abs().median()) < 0.03


def test_a_still_ball_under_a_moving_camera_stands_still():
    track = locate(*film(straight((0.0, 0.0, 0.0)), sideways(COUNT, 0.1)))
    assert track.moving is False
    assert float((track.centers - track.centers[0]).norm(dim=-1).max()) < 0.02


def test_frames_with_too_few_pixels_are_not_seen():
    clip, depth, camera, mask = film(straight((0.2, 0.0, 0.0)))
    pixels = mask.pixels.clone()
    pixels[3] = False
    pixels[3, 70:73, 90:93] = True
    track = locate(clip, depth, camera, Mask(7, "red ball", pixels))
    others = [t for t in range(COUNT) if t != 3]
    assert bool(track.centers[3].isnan().all())
    assert len(track.points[3]) == 0
    assert bool(track.centers[others].isfinite().all())
    nothing = locate(clip, depth, camera, Mask(7, "red ball", torch.zeros_like(pixels)))
    assert bool(nothing.centers.isnan().all())
    assert nothing.moving is None


def test_hidden_parts_widen_sigma():
    clip, depth, camera, mask = film(straight((0.0, 0.0, 0.0), start=(0.0, 0.0, 5.0)))
    pixels = mask.pixels.clone()
    pixels[5:, :, :105] = False
    track = locate(blank(clip), depth, camera, Mask(7, "red ball", pixels))
    assert float(track.center_sigma[6]) > 1.5 * float(track.center_sigma[2])
    error = (track.centers - torch.tensor([0.0, 0.0, 5.0])).norm(dim=-1)
    assert bool((error < 3 * track.center_sigma).all()), (error, track.center_sigma)


def test_wild_depths_do_not_move_an_object():
    clip, depth, camera, mask = film(straight((0.0, 0.0, 0.0)))
    generator = torch.Generator().manual_seed(0)
    wild = torch.rand(depth.depth.shape, generator=generator) < 0.15
    track = locate(clip, Depth(torch.where(wild, 30.0, depth.depth), depth.sigma), camera, mask)
    assert track.moving is False
    assert float((track.centers - straight((0.0, 0.0, 0.0))).norm(dim=-1).max()) < 0.4 * RADIUS


def test_the_same_input_gives_the_same_track():
    inputs = film(straight((1.0, 0.0, 0.5)))
    tracks = [locate(*inputs) for _ in range(2)]
    for name in ("centers", "center_sigma", "motion_sigma", "surface_sigma"):
        assert getattr(tracks[0], name).numpy().tobytes() == getattr(tracks[1], name).numpy().tobytes()


def test_sigmas_fit_the_errors_on_the_world():
    """Displacements, places and nearest distances of every object of four clips, against exact truth."""
    source, oracle = World(seed=3, truth=False), World(seed=3, truth=True)
    ratios = {"displacement": [], "place": [], "surface": []}
    lengths, errors = [], []
    for key in source.keys(4):
        clip, truth = source.load(key), build_scene(oracle.load(key), None, None)
        depth = SGBM()(clip)
        for mask, known in zip(clip.masks, truth.objects, strict=True):
            track = locate(clip, depth, truth.camera, mask)
            off = track.centers - known.centers
            seen = torch.nonzero(off.isfinite().all(-1))[:, 0].tolist()
            for t in seen:
                ratios["place"].append(float(off[t].norm() / math.sqrt(3) / track.center_sigma[t]))
                if len(track.points[t]):
                    pose = truth.camera.world_to_camera[t]
                    near = object_camera_absolute_distance(pose, track.points[t], 5.0)
                    error = near - object_camera_absolute_distance(pose, known.points[t])
                    ratios["surface"].append(float(error.abs() / track.surface_sigma[t]))
            for i, j in [(i, j) for i in seen for j in seen if i < j]:
                sigma = float(torch.hypot(track.motion_sigma[i], track.motion_sigma[j]))
                ratios["displacement"].append(float((off[j] - off[i]).norm()) / math.sqrt(3) / sigma)
                lengths.append(float((known.centers[j] - known.centers[i]).norm()))
                errors.append(float((off[j] - off[i]).norm()))
    for name, values in ratios.items():
        rms = math.sqrt(sum(value**2 for value in values) / len(values))
        beyond = sum(value > 3 for value in values) / len(values)
        print(f"{name}: {len(values)} normalised errors, RMS {rms:.2f}, {beyond:.2%} beyond 3")
        assert 0.3 < rms < 1.2
        assert beyond <= 0.01
    far = [error / length for error, length in zip(errors, lengths, strict=True) if length > 0.3]
    assert np.median(errors) < 0.03
    assert np.median(far) < 0.05


def exact_camera(count):
    zeros = torch.zeros(count, dtype=torch.float64)
    return Camera(INTRINSICS, torch.eye(4, dtype=torch.float64).repeat(count, 1, 1), zeros, zeros)


@pytest.mark.parametrize(
    ("step", "sigma", "expected"), [(1.0, 0.05, True), (0.01, 0.05, False), (0.3, 0.1, None), (1.0, 0.5, None)]
)
def test_moves_by_hand(step, sigma, expected):
    centers = torch.tensor([[0.0, 0, 5], [step, 0, 5]], dtype=torch.float64)
    assert moves(centers, torch.full((2,), sigma, dtype=torch.float64), exact_camera(2)) is expected


def test_one_wrong_sighting_is_no_motion_and_no_rest():
    centers = torch.tensor([[0.0, 0, 5], [0, 0, 5], [1, 0, 5], [0, 0, 5]], dtype=torch.float64)
    sigmas = torch.full((4,), 0.05, dtype=torch.float64)
    assert moves(centers, sigmas, exact_camera(4)) is None
    centers[3, 0] = 1.0
    assert moves(centers, sigmas, exact_camera(4)) is True


def test_motion_is_measured_from_the_best_known_sighting():
    # From the first, which is hardly known, nothing is certain.
    centers = torch.tensor([[0.0, 0, 5], [0, 0, 5], [1, 0, 5], [1, 0, 5]], dtype=torch.float64)
    sigmas = torch.tensor([0.5, 0.05, 0.05, 0.05], dtype=torch.float64)
    assert moves(centers, sigmas, exact_camera(4)) is True


def test_what_the_cameras_drift_explains_is_no_motion():
    centers = torch.tensor([[0.0, 0, 5], [0.5, 0, 5], [1, 0, 5]], dtype=torch.float64)
    sigmas = torch.full((3,), 0.02, dtype=torch.float64)
    drifting = dataclasses.replace(exact_camera(3), center_sigma=torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64))
    turning = dataclasses.replace(exact_camera(3), rotation_sigma=torch.tensor([0.0, 0.04, 0.08], dtype=torch.float64))
    assert moves(centers, sigmas, exact_camera(3)) is True
    assert moves(centers, sigmas, drifting) is None
    assert moves(centers, sigmas, turning) is None


def test_one_sighting_tells_nothing():
    assert moves(torch.zeros(1, 3), torch.zeros(1), exact_camera(1)) is None
