"""The centre of a ball from its visible surface, and sigmas that add up."""

import math

import numpy as np
import pytest

from mllm4d.curate.body_center import Surface, center_path, motion_sigmas, place_center, scale_sigma
from mllm4d.curate.bundle import Body, Sightings
from mllm4d.curate.rigid import RigidMotion

FRAMES = 9
OFFSET = 0.55
"""How far the middle of the surface is before the centre here, in radii; not what is assumed."""


def motion(turn, covariance=None, shift=(0.0, 0.0, 0.0)):
    """A body that turns about the vertical by ``turn`` radians in all, 5 m before a still camera."""
    angles = np.linspace(0, turn, FRAMES)
    rotations = np.stack([[[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]] for a in angles])
    way = np.linspace(0, 1, FRAMES)[:, None] * np.asarray(shift)
    body = Body(rotations, np.array([0.0, 0, 5]) + way, np.zeros((1, 3)))
    inverse = np.full((1, FRAMES), 0.2)
    sight = Sightings(np.zeros((1, FRAMES, 2)), inverse, inverse * 0.01, inverse * 0.004, np.diag([300.0, 300, 1]), 0.2)
    covariance = np.zeros((FRAMES, 6, FRAMES, 6)) if covariance is None else covariance
    used = np.ones((1, FRAMES), bool)
    return RigidMotion(np.arange(FRAMES), body, covariance, sight, used, turn != 0, None)


def surface(moved, center, radius=0.6, offset=OFFSET):
    """Its middle lies before the centre, as seen from the camera."""
    places = center_path(moved, np.asarray(center))
    rays = places / np.linalg.norm(places, axis=1, keepdims=True)
    return Surface(places - offset * radius * rays, np.full(FRAMES, radius))


def test_seen_from_several_sides_the_centre_is_found_wherever_the_surface_is():
    center = np.array([0.1, -0.05, 0.2])
    moved = motion(math.pi)
    found, sigma, radius = place_center(moved, surface(moved, center))
    assert radius == pytest.approx(0.6)
    np.testing.assert_allclose(found, center, atol=0.02)
    _, sigma_before, _ = place_center(motion(0), surface(motion(0), center))
    assert sigma < 0.6 * sigma_before


def test_seen_from_one_side_the_offset_is_the_one_assumed():
    center = np.zeros(3)
    found, sigma, _ = place_center(motion(0), surface(motion(0), center))
    # 0.7 is assumed and it is 0.55: too far back by 0.09 m, which is one sigma along the ray.
    np.testing.assert_allclose(found, [0, 0, 0.09], atol=2e-3)
    assert sigma == pytest.approx(0.6 * math.sqrt((0.15**2 + 3 * 0.04**2) / 3), rel=0.2)


def test_a_frame_in_which_half_is_hidden_pulls_little():
    center = np.zeros(3)
    seen = surface(motion(0), center, offset=0.7)
    seen.middles[4] += [0.4, 0, 0]
    found, _, _ = place_center(motion(0), seen)
    assert np.linalg.norm(found - center) < 0.02


def test_no_surface_gives_no_centre():
    nothing = Surface(np.full((FRAMES, 3), np.nan), np.full(FRAMES, np.nan))
    assert place_center(motion(0), nothing) is None


def test_scale_is_the_shared_error_of_all_depths():
    assert scale_sigma(motion(0)) == pytest.approx(0.004)


def test_independent_shifts_add_up_exactly():
    covariance = np.zeros((FRAMES, 6, FRAMES, 6))
    variances = np.linspace(0.01, 0.03, FRAMES)
    for t in range(FRAMES):
        covariance[t, 3:, t, 3:] = variances[t] * np.eye(3)
    found = motion_sigmas(motion(0, covariance), np.zeros(3), 0.1, 0.0, np.tile(np.eye(3), (FRAMES, 1, 1)))
    # Beside the adjustment's (times 1.3) stands the pixels' bias, 0.2 px at 5 m and 300 px.
    np.testing.assert_allclose(found**2, 1.3 * variances + (0.2 * 5 / 300) ** 2, rtol=2e-4)


def test_the_scale_counts_for_what_moves_before_the_camera_only():
    still, away = (
        motion_sigmas(motion(0, shift=shift), np.zeros(3), 0.1, 0.02, np.tile(np.eye(3), (FRAMES, 1, 1)))
        for shift in ((0.0, 0, 0), (0.0, 0, 4))
    )
    assert float(still.max()) < 0.004
    assert float(np.hypot(away[0], away[-1])) == pytest.approx(0.02 * 4, rel=0.35)


def test_a_wrong_centre_counts_for_a_body_that_turns():
    still, turning = (
        motion_sigmas(motion(turn), np.zeros(3), 0.1, 0.0, np.tile(np.eye(3), (FRAMES, 1, 1))) for turn in (0, math.pi)
    )
    assert float(still.max()) < 0.004
    # Half a turn moves a point 0.1 m off the axis by 0.2 m.
    assert float(np.hypot(turning[0], turning[-1])) == pytest.approx(0.2, rel=0.2)
