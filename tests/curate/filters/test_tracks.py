import pytest
import torch

from mllm4d.curate.filters.tracks import TrackFilters, leave_out, longest_chain
from mllm4d.schema import Camera, InputError, Track

NAN = float("nan")


def track_along(*along, sigma=0.05, moving=None, id=0):
    """Seen 10 m ahead at these places across, metres; None where it is not seen."""
    seen = [x is not None for x in along]
    centers = torch.tensor([[x, 0.0, 10.0] if x is not None else [NAN] * 3 for x in along], dtype=torch.float64)
    sigmas = torch.tensor([sigma if s else NAN for s in seen], dtype=torch.float64)
    points = tuple(torch.zeros(4 * s, 3, dtype=torch.float64) for s in seen)
    return Track(id, "crate", centers, sigmas, sigmas.clone(), sigmas.clone(), points, moving)


def filtered(*tracks, **settings):
    count = len(tracks[0].centers)
    still = torch.zeros(count, dtype=torch.float64)
    camera = Camera(torch.eye(3), torch.eye(4, dtype=torch.float64).repeat(count, 1, 1), still, still)
    return TrackFilters(**settings)(tracks, camera, torch.arange(count, dtype=torch.float64) / 10)


def chain(along, sigmas=0.0, speed=10.0):
    centers = torch.tensor([[x, 0.0, 0.0] for x in along], dtype=torch.float64)
    sigmas = torch.full((len(along),), sigmas, dtype=torch.float64)
    return longest_chain(centers, sigmas, torch.arange(len(along)) / 10, speed, 5.0).tolist()


def test_chains_by_hand():
    # at most 1 m in a step of 0.1 s
    assert chain([0, 1, 2, 3]) == [True] * 4
    assert chain([0, 0, 9, 0]) == [True, True, False, True]
    assert chain([9, 0, 0, 0]) == [False, True, True, True]
    assert chain([0, 0, 5, 5, 5]) == [False, False, True, True, True]
    assert chain([0, 9, 0, 9]) == [True, False, True, False]  # of two equal sets the one that ends first
    assert chain([0, 0, 9, 2.5]) == [True, True, False, False]  # 2.5 m in 0.2 s is too fast, in 0.3 s it is not
    assert chain([]) == []


def test_a_chain_forgives_sigmas():
    # 5 standard deviations of a difference, 5 * sqrt(2) * 0.2 = 1.41 m, on top of 1 m
    assert chain([0, 2.4, 0], sigmas=0.2) == [True] * 3
    assert chain([0, 2.5, 0], sigmas=0.2) == [True, False, True]


def test_a_jump_becomes_unseen():
    kept, dropped = filtered(track_along(0, 0, 20, 0, None, 0, moving=True))
    assert dropped == {"track_jump": 1, "track_sightings": 0, "track_uncertain": 0}
    (track,) = kept
    assert track.centers.isfinite().all(-1).tolist() == [True, True, False, True, False, True]
    for sigmas in (track.center_sigma, track.motion_sigma, track.surface_sigma):
        assert sigmas.isfinite().tolist() == [True, True, False, True, False, True]
    assert [len(points) for points in track.points] == [4, 4, 0, 4, 0, 4]
    assert track.moving is False  # it was the jump that moved


def test_a_fast_object_is_believed():
    # 30 m/s
    original = track_along(0, 3, 6, 9, moving=True)
    (track,), dropped = filtered(original)
    assert track is original
    assert not sum(dropped.values())
    assert filtered(original, max_speed=20.0)[1]["track_sightings"] == 1


def test_tracks_that_are_hardly_known_go():
    few, vague, good = track_along(0, None, None), track_along(0, 0, 0, sigma=2.5, id=1), track_along(0, 0, 0, id=2)
    kept, dropped = filtered(few, vague, good)
    assert kept == (good,)
    assert dropped == {"track_jump": 0, "track_sightings": 1, "track_uncertain": 1}
    # 2.5 m at 10 m is a quarter
    assert filtered(vague, max_relative_sigma=0.3)[0] == (vague,)
    assert filtered(few, min_sightings=1)[0] == (few,)
    assert filtered(track_along(None, None))[1]["track_sightings"] == 1


def test_one_good_sighting_is_enough():
    track = track_along(0, 0, 0, sigma=2.5)
    track.center_sigma[1] = 1.0
    assert filtered(track)[0] == (track,)


def test_leaving_out_nothing_changes_nothing():
    track = track_along(0, 1, 2)
    same = leave_out(track, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(same.centers, track.centers)
    assert [len(points) for points in same.points] == [4, 4, 4]


@pytest.mark.parametrize("settings", [{"max_speed": 0.0}, {"min_sightings": 0}, {"max_relative_sigma": -0.1}])
def test_bad_settings_are_named(settings):
    with pytest.raises(InputError, match=f"TrackFilters: {next(iter(settings))} must be a positive number"):
        TrackFilters(**settings)
