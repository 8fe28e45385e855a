"""Points of a body that moves in a known way, projected exactly or with known noise."""

import cv2
import numpy as np
import pytest

from mllm4d.curate.bundle import Body, Sightings, adjust
from mllm4d.curate.rigid import fit_motion

INTRINSICS = np.array([[280.0, 0, 160], [0, 280, 96], [0, 0, 1]])
FRAMES, POINTS = 10, 60


def turned(*degrees):
    return np.stack([cv2.Rodrigues(np.radians([0.0, angle, 0.0]))[0] for angle in degrees])


def truth(body_turn=0.0, camera_turn=0.0, distance=6.0):
    """A ball's front, 1 m across, that goes to the right and away; and the camera's rotations."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(POINTS, 3))
    points *= 0.5 / np.linalg.norm(points, axis=1, keepdims=True)
    points[:, 2] = -np.abs(points[:, 2])
    camera = turned(*np.linspace(0, camera_turn, FRAMES))
    body = turned(*np.linspace(0, body_turn, FRAMES))
    way = np.stack([np.linspace(-0.8, 0.8, FRAMES), np.zeros(FRAMES), distance + np.linspace(0, 1, FRAMES)], -1)
    return Body(camera @ body, np.einsum("tij,tj->ti", camera, way), points), camera


def look(body, pixel_noise=0.0, inverse_noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    local = body.in_camera()
    image = local @ INTRINSICS.T
    pixels = image[..., :2] / image[..., 2:] + pixel_noise * rng.normal(size=(*local.shape[:2], 2))
    inverse = 1 / local[..., 2] + inverse_noise * rng.normal(size=local.shape[:2])
    sigma = np.full(inverse.shape, max(inverse_noise, 1e-4))
    return Sightings(pixels, inverse, sigma, 0.1 * sigma, INTRINSICS, max(pixel_noise, 0.05))


@pytest.mark.parametrize(("body_turn", "camera_turn"), [(0, 0), (0, 20), (70, 0), (70, -20)])
def test_an_exact_motion_is_recovered(body_turn, camera_turn):
    body, camera = truth(body_turn, camera_turn)
    motion = fit_motion(look(body), camera)
    assert motion.frames.tolist() == list(range(FRAMES))
    assert motion.turns is (body_turn != 0)
    assert motion.rival is None
    assert motion.used.all()
    # Body axes are the estimate's own: compare what does not depend on them.
    np.testing.assert_allclose(motion.body.in_camera(), body.in_camera(), atol=2e-3)
    relative = motion.body.rotations @ motion.body.rotations[0].T
    np.testing.assert_allclose(relative, body.rotations @ body.rotations[0].T, atol=2e-3)


def test_wrong_tracks_are_left_out():
    body, camera = truth(0, 10)
    sight = look(body, 0.1, 3e-4)
    sight.pixels[:12] += np.random.default_rng(1).uniform(-15, 15, (12, FRAMES, 2))
    motion = fit_motion(sight, camera)
    good = np.linalg.norm(motion.body.in_camera()[12:] - body.in_camera()[12:], axis=-1)
    assert np.median(good) < 0.02
    assert motion.used[:12].mean() < 0.2
    assert motion.used[12:].mean() > 0.95


@pytest.mark.parametrize("turning", [False, True])
def test_the_covariance_is_that_of_the_errors(turning):
    # Of a rigid shift between the first and the last frame, over independent draws of the noise.
    body, _ = truth(40 if turning else 0)
    squares = []
    for seed in range(30):
        result = adjust(look(body, 0.2, 4e-4, seed), body, 4, turning)
        centers = [b.in_camera().mean(0) for b in (result.body, body)]
        error = (centers[0][-1] - centers[0][0]) - (centers[1][-1] - centers[1][0])
        middle = result.body.points.mean(0)
        jacobian = np.zeros((2, 3, 6))
        for k, t in enumerate((0, -1)):
            x, y, z = result.body.rotations[t] @ middle
            jacobian[k] = np.concatenate([[[0, z, -y], [-z, 0, x], [y, -x, 0]], np.eye(3)], 1)
        parts = result.covariance[np.ix_([0, FRAMES - 1], range(6), [0, FRAMES - 1], range(6))]
        full = np.einsum("iab,ibjc,jdc->iajd", jacobian, parts, jacobian)
        covariance = full[0, :, 0] + full[1, :, 1] - full[0, :, 1] - full[1, :, 0]
        squares.append(error @ np.linalg.solve(covariance, error) / 3)
    # Mean of chi squared over its degrees of freedom; the robust loss widens it a little.
    assert 0.6 < np.mean(squares) < 1.6


def test_noise_is_not_taken_for_a_turn_and_half_a_turn_is_not_hidden_by_it():
    assert fit_motion(look(truth(0, 15)[0], 0.2, 4e-4), truth(0, 15)[1]).turns is False
    assert fit_motion(look(truth(90, 15)[0], 0.2, 4e-4), truth(90, 15)[1]).turns is True


def test_the_longest_run_of_linked_frames_is_taken():
    body, camera = truth()
    sight = look(body)
    # Nothing is followed from frame 2 to frame 3: two sets of points.
    sight.pixels[:30, 3:] = np.nan
    sight.inverse[:30, 3:] = np.nan
    sight.pixels[30:, :3] = np.nan
    sight.inverse[30:, :3] = np.nan
    motion = fit_motion(sight, camera)
    assert motion.frames.tolist() == list(range(3, FRAMES))
    assert len(motion.body.points) == 30
    np.testing.assert_allclose(motion.body.in_camera(), body.in_camera()[30:, 3:], atol=2e-3)


def test_a_link_needs_most_of_the_points_to_survive():
    body, camera = truth()
    sight = look(body)
    # Six of sixty survive, as where a body has turned its other side to the camera.
    for part, frames in ((slice(0, 30), slice(5, FRAMES)), (slice(36, None), slice(0, 5))):
        sight.pixels[part, frames] = np.nan
        sight.inverse[part, frames] = np.nan
    assert len(fit_motion(sight, camera).frames) == 5


def test_no_two_frames_with_common_points_give_no_motion():
    sight = look(truth()[0])
    sight.inverse[4:] = np.nan
    assert fit_motion(sight, truth()[1]) is None


def test_the_same_input_gives_the_same_motion():
    body, camera = truth(60, 10)
    motions = [fit_motion(look(body, 0.2, 4e-4), camera) for _ in range(2)]
    assert motions[0].body.translations.tobytes() == motions[1].body.translations.tobytes()
    assert motions[0].covariance.tobytes() == motions[1].covariance.tobytes()
