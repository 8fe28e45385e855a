import cv2
import numpy as np

from mllm4d.curate.tracking import CornerTracker, FeatureMatcher


def textured(height=160, width=240):
    noise = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.uint8(255 * (smooth - smooth.min()) / np.ptp(smooth))


def warped(image, matrix):
    return cv2.warpAffine(image, np.float32(matrix), image.shape[::-1], flags=cv2.INTER_CUBIC)


def test_corners_keep_apart_and_inside():
    where = np.zeros((160, 240), np.uint8)
    where[:, 100:] = 1
    found = CornerTracker(50).corners(textured(), where)
    assert 20 < len(found) <= 50
    assert (found[:, 0] >= 100).all()
    np.testing.assert_array_equal(found, found.round())
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1) + 1e9 * np.eye(len(found))
    assert apart.min() >= 4


def test_nothing_to_follow():
    blank = np.full((160, 240), 90, np.uint8)
    tracker = CornerTracker()
    found = tracker.corners(blank, np.ones_like(blank))
    assert found.shape == (0, 2)
    there, good = tracker.follow(blank, blank, found, found)
    assert there.shape == (0, 2)
    assert good.shape == (0,)


def test_corners_are_followed_to_parts_of_a_pixel():
    first = textured()
    second = warped(first, [[1, 0, 7.3], [0, 1, -4.6]])
    tracker = CornerTracker()
    start = tracker.corners(first, np.ones_like(first))
    # Those near the right and the upper border leave the image.
    start = start[(start[:, 0] < 220) & (start[:, 1] > 15)]
    there, good = tracker.follow(first, second, start, start)
    error = np.linalg.norm(there - start - (7.3, -4.6), axis=1)
    assert good.mean() > 0.8
    assert np.median(error[good]) < 0.05
    assert np.quantile(error[good], 0.95) < 0.3


def test_what_has_gone_is_not_believed():
    first = textured()
    second = warped(first, [[1, 0, 3], [0, 1, 0]])
    second[:, 120:] = textured(160, 120)[::-1]
    tracker = CornerTracker()
    start = tracker.corners(first, np.ones_like(first))
    _, good = tracker.follow(first, second, start, start)
    assert good[start[:, 0] < 100].mean() > 0.9
    assert good[start[:, 0] > 130].mean() < 0.15


def test_features_bear_a_change_of_scale():
    first = textured()
    second = warped(first, [[1.4, 0, -30], [0, 1.4, -20]])
    start, end = FeatureMatcher().match(first, second)
    error = np.linalg.norm(start * 1.4 - (30, 20) - end, axis=1)
    assert len(start) > 50
    assert np.median(error) < 0.3
    assert FeatureMatcher().match(first, np.full_like(first, 90))[0].shape == (0, 2)
