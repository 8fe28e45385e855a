import json
import math

import numpy as np
import pytest
import torch

from mllm4d.curate.sources.annotations import BOX_SIGMA, boxes_of, masks_of, read_objects
from mllm4d.curate.sources.regions import draw_polygons
from mllm4d.schema import InputError

SIZE = (6, 8)


def write(folder, *objects):
    path = folder / "objects.json"
    path.write_text(json.dumps({"objects": list(objects)}))
    return path


def one(frames, id=1, name="board"):
    return {"id": id, "name": name, "frames": frames}


def masks(path, frames, stored=SIZE):
    return masks_of(path, read_objects(path, 10), frames, SIZE, stored)


def test_a_polygon_covers_the_pixels_whose_centres_it_holds(tmp_path):
    path = write(tmp_path, one({"4": {"polygon": [[2, 1], [5, 1], [5, 3], [2, 3]]}}, name=" board "))
    (mask,) = masks(path, [3, 4])
    expected = np.zeros(SIZE, bool)
    expected[1:4, 2:6] = True
    assert (mask.id, mask.name, mask.pixels.dtype) == (1, "board", torch.bool)
    assert not mask.pixels[0].any()
    assert np.array_equal(mask.pixels[1], expected)


def test_a_polygon_between_pixel_centres_is_as_large_as_it_says(tmp_path):
    # Centres at x = 2, 3, 4 and y = 2, 3 lie inside; drawing the outline as well would make it 5 x 4.
    corners = [[1.5, 1.5], [4.5, 1.5], [4.5, 3.5], [1.5, 3.5]]
    expected = np.zeros(SIZE, bool)
    expected[2:4, 2:5] = True
    for polygon in (corners, corners[::-1], [corners, corners]):
        (mask,) = masks(write(tmp_path, one({"0": {"polygon": polygon}}, id=len(str(polygon)))), [0])
        assert np.array_equal(mask.pixels[0], expected)


def test_any_polygon_holds_the_pixels_on_the_inner_side_of_all_its_edges(tmp_path):
    size, random = (60, 80), np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    for _ in range(20):
        # A convex one: corners on an ellipse, partly outside of the image.
        angles = np.sort(random.uniform(0, 2 * np.pi, 9))
        corners = random.uniform([0, 0], [80, 60]) + random.uniform(5, 30, 2) * np.stack(
            [np.cos(angles), np.sin(angles)], axis=-1
        )
        expected = np.ones(size, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            expected &= (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
        assert np.array_equal(draw_polygons(corners.tolist(), size, "here"), expected)


def test_a_polygon_with_corners_on_pixel_centres_holds_its_outline(tmp_path):
    # A corner between two edges must not be crossed twice: rows through it would come out inverted.
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    (mask,) = masks(write(tmp_path, one({"0": {"polygon": [[4, 1], [6, 3], [4, 5], [2, 3]]}})), [0])
    assert np.array_equal(mask.pixels[0], abs(x - 4) + abs(y - 3) <= 2)


def test_a_polygon_far_outside_the_image_is_cut_off_at_its_border(tmp_path):
    far = [[4, -1e12], [1e12, -1e12], [1e12, 1e12], [4, 1e12]]
    (mask,) = masks(write(tmp_path, one({"0": {"polygon": far}})), [0])
    assert mask.pixels[0].tolist() == [[False] * 4 + [True] * 4] * 6


def test_several_polygons_are_one_region(tmp_path):
    two = [[[0, 0], [1, 0], [1, 1], [0, 1]], [[6, 4], [7, 4], [7, 5], [6, 5]]]
    (mask,) = masks(write(tmp_path, one({"0": {"polygon": two}})), [0])
    assert int(mask.pixels.sum()) == 8
    assert mask.pixels[0, 5, 7]


REGION = np.array(
    [[0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0], *[[0] * 8] * 2, [0] * 7 + [1]], bool
)
# Down the columns: column 0 and the top of 1 are empty (7), then 2, a gap of 4, 2, a gap of 4, 1, …
COUNTS = [7, 2, 4, 2, 5, 1, 26, 1]


def compress(counts):
    """COCO's string as its format says: signed numbers, five bits a letter from '0' on, differences from the third."""
    text = ""
    for k, count in enumerate(counts):
        value, more = count - (counts[k - 2] if k > 2 else 0), True
        while more:
            letter, value = value & 31, value >> 5
            more = value != (-1 if letter & 16 else 0)
            text += chr((letter | (32 if more else 0)) + 48)
    return text


@pytest.mark.parametrize("counts", [COUNTS, compress(COUNTS)], ids=["list", "string"])
def test_run_lengths_go_down_the_columns(tmp_path, counts):
    path = write(tmp_path, one({"0": {"rle": {"size": list(SIZE), "counts": counts}}}))
    assert np.array_equal(masks(path, [0])[0].pixels[0], REGION)


def test_a_known_compressed_string(tmp_path):
    # 31 needs two letters because bit 4 is the sign: 31 = 0b11111 -> 'o' '0'; 17 likewise -> 'a' '0'.
    path = write(tmp_path, one({"0": {"rle": {"size": list(SIZE), "counts": "o0a0"}}}))
    assert int(masks(path, [0])[0].pixels.sum()) == 17


def test_masks_are_scaled_with_the_frames_and_unseen_objects_left_out(tmp_path):
    frames = {"0": {"polygon": [[0, 0], [3, 0], [3, 5], [0, 5]]}}
    path = write(tmp_path, one(frames), one({"9": {"polygon": [[0, 0], [1, 0], [1, 1]]}}, id=2))
    (mask,) = masks(path, [0, 1], stored=(3, 4))
    assert mask.pixels.shape == (2, 3, 4)
    assert mask.pixels[0].tolist() == [[True, True, False, False]] * 3


def test_a_box_is_turned_about_the_downward_axis(tmp_path):
    box = {"center": [1, 2, 10], "size": [4, 1.5, 2], "rotation_y": math.pi / 2}
    path = write(tmp_path, one({"5": {"box3d": box}, "7": {"box3d": {**box, "sigma": 0.3}}}))
    (boxes,) = boxes_of(path, read_objects(path, 10), [5, 6, 7])
    assert boxes.centers[0].tolist() == [1, 2, 10]
    assert bool(boxes.centers[1].isnan().all())
    assert boxes.sizes[2].tolist() == [4, 1.5, 2]
    # The long axis (x) points away from the camera's right: KITTI's rotation_y takes +x to -z.
    assert torch.allclose(boxes.rotations[0] @ torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 0, -1.0]).double())
    assert boxes.sigma.nan_to_num(-1).tolist() == [BOX_SIGMA, -1, 0.3]
    assert masks(path, [5]) == ()
    matrix = {"center": [1, 2, 10], "size": [4, 1.5, 2], "rotation": boxes.rotations[0].tolist()}
    again = write(tmp_path, one({"5": {"box3d": matrix}}, id=3))
    (same,) = boxes_of(again, read_objects(again, 10), [5])
    assert same.id == 3
    assert torch.equal(same.rotations[0], boxes.rotations[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", 'key "objects"'),
        ('{"objects": [3]}', 'object 0: expected the keys "id"'),
        (one({}, id="x"), "'id' must be a whole number"),
        (one({}, name=" "), "'name'"),
        (one({"a": {"polygon": []}}), "named by their numbers"),
        (one({"0": {"circle": []}}), "object 1, frame 0: expected one of the keys polygon, rle, box3d"),
        (one({"0": {"polygon": []}, "00": {"polygon": []}}), "object 1, frame 00: stands there twice"),
        (one({"0": {"polygon": []}, "1": {"box3d": {}}}), "object 1: its frames mix box3d and polygon"),
    ],
)
def test_a_malformed_file_is_named(tmp_path, content, message):
    path = tmp_path / "objects.json"
    path.write_text(content if isinstance(content, str) else json.dumps({"objects": [content]}))
    with pytest.raises(InputError, match=message) as error:
        read_objects(path, 10)
    assert "objects.json" in str(error.value)


def test_two_objects_of_one_id_are_named(tmp_path):
    with pytest.raises(InputError, match="the id 1 is given to two objects"):
        read_objects(write(tmp_path, one({}), one({})), 10)


def test_a_frame_that_the_video_does_not_have_is_named(tmp_path):
    path = write(tmp_path, one({"9": {"polygon": []}}), one({"3": {"polygon": []}, "12": {"polygon": []}}, id=2))
    assert len(read_objects(path, 13)) == 2
    with pytest.raises(InputError, match="object 2, frame 12: the video's last frame is number 11"):
        read_objects(path, 12)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"polygon": 5}, r"shape \['n', 2\]"),
        ({"polygon": {"a": 1}}, r"shape \['n', 2\]"),
        ({"polygon": [["0", "0"], ["1", "0"], ["1", "1"]]}, r"shape \['n', 2\]"),
        ({"rle": {"size": [6, 8], "counts": [True] * 48}}, "whole numbers"),
        ({"box3d": 3}, '"center"'),
        ({"box3d": {"center": [0, 0, 1], "size": [1, 1, 1], "rotation_y": True}}, "'rotation_y': expected a number"),
        ({"box3d": {"center": [0, 0, 1], "size": [1, 1, 1], "rotation_y": 0, "rotation": []}}, "one of the keys"),
        ({"polygon": [[0, 0], [1, 1]]}, "three points"),
        ({"polygon": [[0, 0], [1, 1], [2, "x"]]}, r"shape \['n', 2\]"),
        ({"polygon": [[0, 0], [1, 1], [2, math.nan]]}, r"shape \['n', 2\]"),
        ({"rle": {"size": [8, 6], "counts": [48]}}, r"'size' must be the image's, \[6, 8\]"),
        ({"rle": {"size": [6, 8], "counts": [47]}}, "the runs cover 47 pixels, the image has 48"),
        ({"rle": {"size": [6, 8], "counts": [49, -1]}}, "whole numbers"),
        ({"rle": {"size": [6, 8], "counts": "o"}}, "breaks off"),
        ({"rle": {"size": [6, 8], "counts": "!"}}, "letter '!'"),
        ({"box3d": {"size": [1, 1, 1], "rotation_y": 0}}, "'center'"),
        ({"box3d": {"center": [0, 0, 1], "size": [1, 0, 1], "rotation_y": 0}}, "'size' must be positive"),
        ({"box3d": {"center": [0, 0, 1], "size": [1, 1, 1]}}, "'rotation_y'"),
        ({"box3d": {"center": [0, 0, 1], "size": [1, 1, 1], "rotation": [[2, 0, 0], [0, 1, 0], [0, 0, 1]]}}, "matrix"),
        ({"box3d": {"center": [0, 0, 1], "size": [1, 1, 1], "rotation_y": 0, "sigma": -1}}, "'sigma'"),
    ],
)
def test_a_malformed_frame_names_object_and_frame(tmp_path, entry, message):
    path = write(tmp_path, one({"3": entry}))
    with pytest.raises(InputError, match=message) as error:
        masks(path, [3]) + boxes_of(path, read_objects(path, 10), [3])
    assert "objects.json: object 1, frame 3" in str(error.value)
