from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.curate.depth import SGBM, Depth
from mllm4d.curate.filters.pixels import PixelFilters, edge_pixels, rim_pixels, sky_pixels
from mllm4d.curate.sources.world import World
from mllm4d.geometry.stereo import depth_sigma, disparity_to_depth
from mllm4d.schema import Clip, InputError, Mask


def step(sigma=0.0):
    """5x5: two columns at 2 m, three at 4 m. Second differences of 1/Z: columns 1 and 2, relative to 1/Z 0.5 and 1."""
    depth = np.full((5, 5), 4, np.float32)
    depth[:, :2] = 2
    return depth, sigma * depth


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def clip_of(depth, **more):
    frames = torch.from_numpy(np.stack([noise(*depth.shape[1:])] * len(depth)))
    times = torch.arange(len(depth), dtype=torch.float64)
    intrinsics = torch.tensor([[10.0, 0, 2], [0, 10.0, 2], [0, 0, 1]], dtype=torch.float64)
    return Clip("five-0000", "five", frames, times, 1.0, intrinsics, **more)


@pytest.mark.parametrize(("radius", "columns"), [(0, []), (1, [1, 2]), (2, [0, 1, 2, 3])])
def test_a_jump_by_hand(radius, columns):
    expected = np.zeros((5, 5), bool)
    expected[:, columns] = True
    assert (edge_pixels(*step(), 0.1, 2.0, radius) == expected).all()
    turned = step()[0].T.copy()
    assert (edge_pixels(turned, 0 * turned, 0.1, 2.0, radius) == expected.T).all()


def test_a_jump_must_exceed_the_noise():
    # A relative sigma of 0.3: two of them are 0.6, more than column 1's 0.5 and less than column 2's 1.
    found = edge_pixels(*step(0.3), 0.1, 2.0, 1)
    assert found.any(0).tolist() == [False, False, True, False, False]
    assert not edge_pixels(*step(), 1.01, 2.0, 1).any()


def test_nothing_is_said_beside_the_unknown():
    depth, sigma = step()
    depth[:, 2] = 0
    assert not edge_pixels(depth, sigma, 0.1, 2.0, 2).any()


def test_slanted_ground_is_no_jump():
    # Level ground 1.65 m under a camera with the horizon at row 0: Z = f h / v, from 1 row under the horizon.
    row = np.arange(1, 101, dtype=np.float32)[:, None]
    depth = np.broadcast_to(700 * 1.65 / row, (100, 40)).copy()
    assert (np.abs(np.diff(depth, axis=0)) / depth[1:] > 0.03).mean() > 0.3  # what Stereo4D's filter would take
    assert not edge_pixels(depth, 0 * depth, 0.01, 0.0, 2).any()


def test_a_rim_by_hand():
    mask = np.zeros((7, 7), bool)
    mask[1:6, 1:6] = True
    inner = np.zeros((7, 7), bool)
    inner[2:5, 2:5] = True
    assert (rim_pixels(mask, 1) == mask & ~inner).all()
    assert rim_pixels(mask, 2).sum() == 24  # all but the one in the middle
    assert not rim_pixels(mask, 0).any()
    assert not rim_pixels(np.ones((7, 7), bool), 2).any()  # a region that goes on beyond the image has no rim there


@pytest.mark.parametrize(("known", "value", "is_sky"), [(0, 0, True), (40, 5, True), (60, 5, False), (60, 50, True)])
def test_sky_is_smooth_at_the_top_and_not_near(known, value, is_sky):
    """``known`` percent of the columns have a depth of ``value`` metres."""
    image = noise(100, 100)
    image[:40] = 200
    image[70:] = 90  # smooth too, but not at the top
    depth = np.zeros((100, 100), np.float32)
    depth[:, :known] = value
    found = sky_pixels(image, depth, 20.0, 1.5, 0.01)
    assert not found[41:].any()
    assert found[:37].all() if is_sky else not found.any()


def test_small_smooth_spots_are_no_sky():
    image = noise(100, 100)
    image[:9, :9] = 200
    depth = np.zeros((100, 100), np.float32)
    assert not sky_pixels(image, depth, 20.0, 1.5, 0.01).any()
    assert sky_pixels(image, depth, 20.0, 1.5, 0.001).any()


def test_every_pixel_counts_once():
    depth = torch.full((2, 5, 5), 10.0)
    sigma = torch.full((2, 5, 5), 0.1)
    depth[0, 0, 0] = 0.0
    sigma[0, 0, 1] = torch.inf  # as good as unknown
    depth[0, 0, 2], depth[0, 0, 3] = 0.1, 100.0
    sigma[0, 0, 4] = 4.0
    pixels = torch.zeros(2, 5, 5, dtype=torch.bool)
    pixels[0, 2:, 1:4] = True  # 3x3 at the lower edge: the rim is row 2 and both sides, 7 pixels
    depth[0, 2, 1] = 200.0  # out of range first
    before = depth.clone()
    cleaned, dropped = PixelFilters(edge=0, boundary=1)(clip_of(depth), Depth(depth, sigma), [Mask(0, "box", pixels)])
    assert dropped == Counter(unknown=2, sky=0, depth_range=3, uncertain=1, depth_edge=0, mask_boundary=6)
    assert torch.equal(depth, before)
    kept = cleaned.depth > 0
    assert int(kept.sum()) == 50 - 12
    assert bool(kept[1].all())
    assert torch.equal(kept[0], torch.tensor([[0] * 5, [1] * 5, [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 1, 0, 1]]) > 0)
    assert bool((cleaned.depth[kept] == depth[kept]).all())
    assert bool(cleaned.sigma[~kept].isinf().all())


def test_the_far_has_no_disparity():
    depth = torch.full((1, 5, 5), 4.0)
    depth[0, :, 4] = 6.0  # f B = 5: disparities 1.25 and 0.83 px
    result = Depth(depth, torch.zeros_like(depth))
    filters = PixelFilters(edge=0)
    assert filters(clip_of(depth, baseline=0.5), result, ())[1]["sky"] == 5
    assert filters(clip_of(depth), result, ())[1]["sky"] == 0
    assert PixelFilters(edge=0, min_disparity=0.0)(clip_of(depth, baseline=0.5), result, ())[1]["sky"] == 0


def test_edges_are_dropped_and_counted():
    depth, sigma = (torch.from_numpy(values)[None] for values in step())
    cleaned, dropped = PixelFilters(edge=1)(clip_of(depth), Depth(depth, sigma), ())
    assert dropped["depth_edge"] == 10
    assert (cleaned.depth[0, 0] > 0).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize(
    "settings", [{"max_depth": 0.0}, {"edge": -1}, {"sky_area": 0.0}, {"min_depth": 5.0, "max_depth": 4.0}]
)
def test_bad_settings_are_named(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        PixelFilters(**settings)


def test_gross_errors_go_and_little_else():
    world = World(frames=4, truth=False)
    off, density = {}, {}
    wrong, total, known = Counter(), Counter(), Counter()
    for key in ("world-00000", "world-00007"):
        clip, truth = world.load(key), world.render(key).depth
        depth = SGBM()(clip)
        objects = torch.stack([mask.pixels for mask in clip.masks]).any(0)
        for name, result in (("before", depth), ("after", PixelFilters()(clip, depth, clip.masks)[0])):
            kept = objects & (result.depth > 0)
            wrong[name] += int(((result.depth - truth).abs() > 3 * result.sigma)[kept].sum())
            total[name] += int(kept.sum())
            known[name] += int((result.depth > 0).sum())
    for name in ("before", "after"):
        off[name], density[name] = wrong[name] / total[name], known[name] / (2 * truth.numel())
    print(f"objects' pixels off by more than three sigma: {off}, density {density}")
    assert off["before"] > 0.002
    assert off["after"] < off["before"] / 5
    assert density["after"] > density["before"] - 0.04


def test_middlebury_aloe(real_data):
    def read(name, mode):
        return torch.from_numpy(np.array(Image.open(real_data / "aloe" / name).convert(mode)))

    left, truth = read("aloeL.jpg", "RGB"), read("aloeGT.png", "L").float()
    found = SGBM().disparity(left, read("aloeR.jpg", "RGB"))
    focal, baseline = 1247.0, 0.16  # about what Middlebury's 2006 rig has at this size
    depth = disparity_to_depth(found, focal, baseline)[None]
    intrinsics = torch.tensor([[focal, 0, 640.5], [0, focal, 554.5], [0, 0, 1]], dtype=torch.float64)
    clip = Clip("aloe", "aloe", left[None], torch.zeros(1), 1.0, intrinsics, baseline=baseline)
    cleaned, dropped = PixelFilters()(clip, Depth(depth, depth_sigma(depth, focal, baseline, 0.5)), ())
    bad, density = [], []
    for result in (depth, cleaned.depth):
        both = (truth > 0) & (result[0] > 0)
        bad.append(float(((found - truth)[both].abs() > 1).float().mean()))
        density.append(float(both.sum() / (truth > 0).sum()))
    print(f"aloe: off by more than 1 px {bad[0]:.2%} -> {bad[1]:.2%}, density {density[0]:.1%} -> {density[1]:.1%}")
    assert bad[1] < bad[0]
    assert density[1] > density[0] - 0.02
    assert dropped["sky"] == 0
