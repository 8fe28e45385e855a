"""A texture that is shifted by known fractions of a pixel."""

import numpy as np
import pytest
import torch

from mllm4d.curate.flow import FeatureTracker, grey_images, join_tracks, match_right
from mllm4d.schema import InputError

HEIGHT, WIDTH = 120, 160


def texture(seed, dx, dy):
    """A sum of waves, exact at every shift: what is at (x, y) without any is at (x + dx, y + dy)."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(WIDTH) - dx, np.arange(HEIGHT) - dy)
    image = np.zeros((HEIGHT, WIDTH))
    for _ in range(60):
        angle, length, phase = rng.uniform(0, np.pi), np.exp(rng.uniform(np.log(6), np.log(25))), rng.uniform(0, 6.3)
        image += np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length + phase)
    return 127.5 + 12 * image


def film(shifts, seed=0):
    frames = np.stack([texture(seed, dx, dy) for dx, dy in shifts]).round().clip(0, 255).astype(np.uint8)
    return torch.from_numpy(np.repeat(frames[..., None], 3, axis=-1))


SHIFTS = [(-2.6, 0.8), (-1.3, 0.4), (0.0, 0.0), (1.3, -0.4), (2.6, -0.8), (3.9, -1.2)]


def test_points_follow_the_texture_both_ways():
    tracks = FeatureTracker()(film(SHIFTS), start=2)
    assert bool(tracks.seen[:, 2].all())
    assert tracks.seen.shape == (len(tracks.pixels), len(SHIFTS))
    inside = ((tracks.pixels[:, 2] > 12) & (tracks.pixels[:, 2] < torch.tensor([WIDTH, HEIGHT]) - 12)).all(-1)
    assert int(inside.sum()) > 40
    assert float(tracks.seen[inside].double().mean()) > 0.98
    moved = tracks.pixels[inside] - tracks.pixels[inside][:, 2:3]
    error = (moved - torch.tensor(SHIFTS)).norm(dim=-1)[tracks.seen[inside]]
    assert float(error.median()) < 0.03
    assert float(error.max()) < 0.3
    assert bool(tracks.pixels[~tracks.seen].isnan().all())


def test_a_track_ends_where_its_texture_is_gone_and_does_not_come_back():
    frames = film([(0.0, 0.0)] * 5)
    frames[2, 30:90, 40:120] = 128
    tracks = FeatureTracker()(frames, start=0)
    x, y = tracks.pixels[:, 0].T
    covered = (x > 48) & (x < 112) & (y > 38) & (y < 82)
    outside = (x < 30) | (x > 130) | (y < 20) | (y > 100)
    assert int(covered.sum()) > 5
    assert int(outside.sum()) > 5
    assert not bool(tracks.seen[covered, 2:].any())
    assert bool(tracks.seen[outside].all())


def test_slow_changes_count_as_drift():
    # Each frame is close to the one before, so that going back always leads home; the first is not the last.
    one, other = (film([(0.0, 0.0)], seed)[0].float() for seed in (0, 1))
    steps = torch.linspace(0, 1, 25)
    frames = torch.stack([(one + (other - one) * step).round().to(torch.uint8) for step in steps])
    strict, loose = (FeatureTracker(drift=drift)(frames, start=0) for drift in (1.0, 1e6))
    assert loose.drifted < strict.drifted
    assert strict.drifted > 10
    assert int(strict.seen[:, -1].sum()) < 0.6 * int(loose.seen[:, -1].sum())


def test_a_point_that_leaves_the_image_is_lost():
    tracks = FeatureTracker()(film([(0.0, 0.0), (9.0, 0.0), (18.0, 0.0)]), start=0)
    leaving = tracks.pixels[:, 0, 0] > WIDTH - 12
    assert int(leaving.sum()) > 0
    assert not bool(tracks.seen[leaving, 2].any())


def test_what_is_seen_is_in_the_image():
    # Slowly over every edge, so that points are matched just inside and just outside.
    for way in ((0.7, 0.0), (-0.7, 0.0), (0.0, 0.7), (0.0, -0.7)):
        tracks = FeatureTracker(count=400)(film([(t * way[0], t * way[1]) for t in range(8)]), start=0)
        seen = tracks.pixels[tracks.seen]
        assert bool((seen >= 0).all())
        assert bool((seen <= torch.tensor([WIDTH - 1, HEIGHT - 1])).all())


def test_corners_are_looked_for_inside_the_mask_only():
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[40:60, 50:90] = True
    tracker, frames = FeatureTracker(), film(SHIFTS)
    column, row = tracker.corners(frames[2], mask).round().astype(int).T
    assert len(column) > 3
    assert bool(mask[row, column].all())
    assert tracker(frames, 2, torch.zeros_like(mask)).pixels.shape == (0, len(SHIFTS), 2)


def test_the_same_input_gives_the_same_tracks_and_parts_join():
    frames = film(SHIFTS)
    tracker = FeatureTracker()
    parts = [tracker(frames, start) for start in (0, 4)]
    again = tracker(frames, 4)
    assert parts[1].pixels.numpy().tobytes() == again.pixels.numpy().tobytes()
    joined = join_tracks(parts)
    assert len(joined.pixels) == len(joined.seen) == len(parts[0].pixels) + len(parts[1].pixels)
    assert joined.drifted == parts[0].drifted + parts[1].drifted


@pytest.mark.parametrize("disparity", [7.2, 7.5, 8.4])
def test_disparity_is_matched_to_a_fraction_of_a_pixel(disparity):
    left, right = grey_images(film([(0.0, 0.0), (-disparity, 0.0)]))
    points = FeatureTracker(count=30).corners(film([(0.0, 0.0)])[0])
    points = points[(points[:, 0] > 25) & (points[:, 0] < WIDTH - 15) & (np.abs(points[:, 1] - 60) < 45)]
    found = match_right(left, right, points, np.full(len(points), round(disparity)))
    assert np.isfinite(found).mean() > 0.9
    assert abs(np.nanmedian(found) - disparity) < 0.02
    assert np.nanmax(np.abs(found - disparity)) < 0.15


def test_disparity_without_a_guess_or_with_a_wrong_one_is_unknown():
    left, right = grey_images(film([(0.0, 0.0), (-7.0, 0.0)]))
    points = np.array([[80.0, 60.0], [60.0, 50.0], [90.0, 70.0]])
    assert np.isnan(match_right(left, right, points, np.array([np.nan, 0.0, 20.0]))).all()
    _, tilted = grey_images(film([(0.0, 0.0), (-7.0, 2.0)]))
    assert np.isnan(match_right(left, tilted, points, np.full(3, 7.0))).all()


@pytest.mark.parametrize(("key", "value"), [("window", 8), ("count", 0), ("levels", -1), ("drift", 0.0)])
def test_bad_settings_are_named(key, value):
    with pytest.raises(InputError, match=key):
        FeatureTracker(**{key: value})
