"""KITTI tracking: hand-made files with values worked by hand, real ones against plain numpy."""

import json
import math
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.curate.boxes import track_from_boxes
from mllm4d.curate.quality import Quality
from mllm4d.curate.sources.box_drawing import SolidBox, draw_frame
from mllm4d.curate.sources.kitti_files import read_imu_poses
from mllm4d.curate.sources.kitti_tracking import KittiTracking
from mllm4d.curate.worker import ClipJob
from mllm4d.geometry import relations
from mllm4d.geometry.pose import center
from mllm4d.qa.judge import Margins
from mllm4d.schema import Camera, InputError
from mllm4d.video import decode

OPTICS = {"fx": 721.5377, "cx": 609.5593, "cy": 172.854}
IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 {z}"


def line(frame, track=0, kind="Car", x=2.0, y=1.7, z=10.0, yaw=0.0, truncated=0, occluded=0, size="1.5 1.6 4"):
    """The box is 1.5 m high, 1.6 m wide, 4 m long; its bottom's middle is at (x, y, z)."""
    return f"{frame} {track} {kind} {truncated} {occluded} -1.5 10 20 30 40 {size} {x} {y} {z} {yaw}"


DONT_CARE = "0 -1 DontCare -1 -1 -10 10 20 30 40 -1000 -1000 -1000 -10 -1 -1 -1"


def write(folder, labels, poses=None, name="0003"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.label.txt").write_text("\n".join(labels) + "\n")
    poses = [IDENTITY.format(z=t) for t in range(3)] if poses is None else poses
    (folder / f"{name}.poses.txt").write_text("\n".join(poses) + "\n")
    return KittiTracking(str(folder), max_width=320, **OPTICS)


def scene_camera(clip):
    return Camera(clip.intrinsics, clip.world_to_camera, clip.center_sigma, clip.rotation_sigma)


def test_a_file_by_hand(tmp_path):
    labels = [DONT_CARE, line(0), line(1, z=9.0), line(2, z=8.0, yaw=math.pi / 2), line(2, 5, "Pedestrian", 0, 1.7, 5)]
    clip = write(tmp_path / "flat", labels).load("0003-0000")
    assert (clip.key, clip.video, clip.fps, clip.times.tolist()) == ("0003-0000", "0003", 10.0, [0.0, 0.1, 0.2])
    car, walker = clip.boxes
    assert (car.id, car.name, walker.id, walker.name) == (0, "car", 5, "pedestrian")
    # Half a height above the bottom, and up is -y.
    torch.testing.assert_close(car.centers, torch.tensor([[2, 0.95, 10], [2, 0.95, 9], [2, 0.95, 8]]).double())
    assert car.sizes[0].tolist() == [4.0, 1.5, 1.6]
    assert walker.centers.isfinite().all(-1).tolist() == [False, False, True]
    # Two hundredths of a metre, and two thousandths of the 10.2 m that it is away.
    distance = math.sqrt(2**2 + 0.95**2 + 10**2)
    assert float(car.sigma[0]) == pytest.approx(math.hypot(0.02, 0.002 * distance))
    assert clip.center_sigma.tolist() == pytest.approx([0, 0.035, 0.07])
    assert clip.rotation_sigma.tolist() == pytest.approx([0, 0.0004, 0.0008])
    track = track_from_boxes(car, scene_camera(clip))
    # The camera goes 1 m a frame, the car comes 1 m a frame closer to it: it stands.
    torch.testing.assert_close(track.centers, torch.tensor([[2, 0.95, 10]] * 3).double())
    # Along the camera's x from 0 to 4, y from 0.2, z from 9.2; turned by a quarter x from 1.2, z from 6.
    for t, nearest in ((0, (0, 0.2, 9.2)), (2, (1.2, 0.2, 6.0))):
        pose = clip.world_to_camera[t]
        value = relations.object_camera_absolute_distance(pose, track.points[t])
        assert float(value) == pytest.approx(math.dist((0, 0, 0), nearest), abs=0.005)


def test_a_box_turns_about_the_axis_that_points_down(tmp_path):
    clip = write(tmp_path / "flat", [line(0, yaw=0.5), line(2)]).load("0003-0000")
    # KITTI: at yaw 0 the car heads along +x, at -pi/2 away from the camera along +z.
    ahead = clip.boxes[0].rotations[0] @ torch.tensor([1.0, 0, 0]).double()
    torch.testing.assert_close(ahead, torch.tensor([math.cos(0.5), 0, -math.sin(0.5)]).double())


def test_hidden_cut_off_and_far_boxes_are_not_seen(tmp_path):
    labels = [
        *(line(t, 0, occluded=t) for t in range(3)),
        *(line(t, 1, truncated=t) for t in range(3)),
        *(line(t, 2, z=38 + t, x=0) for t in range(3)),
        *(line(t, 3, "Misc") for t in range(3)),
        *(line(t, 4, occluded=3) for t in range(3)),
    ]
    source = write(tmp_path / "flat", labels)
    seen = {box.id: box.centers.isfinite().all(-1).tolist() for box in source.load("0003-0000").boxes}
    # Track 2 is 39.01 m away at frame 1 and 40.01 m at frame 2.
    assert seen == {0: [True, True, False], 1: [True, True, False], 2: [True, True, False]}
    lenient = KittiTracking(source.root, max_occluded=3, max_truncated=2, max_distance=90, **OPTICS)
    assert [bool(box.centers.isfinite().all()) for box in lenient.load("0003-0000").boxes] == [True] * 4


def test_keys_cuts_and_videos(tmp_path):
    poses = [IDENTITY.format(z=t) for t in range(7)]
    source = write(tmp_path / "flat", [line(t) for t in range(7)], poses)
    write(tmp_path / "flat", [line(t) for t in range(3)], name="0011")
    source = KittiTracking(source.root, clip_frames=3, stride=2, max_width=320, **OPTICS)
    keys = source.keys()
    assert list(keys) == ["0003-0000", "0003-0001", "0011-0000"]
    assert list(source.keys(2)) == ["0003-0000", "0003-0001"]
    assert [source.video(key) for key in keys] == ["0003", "0003", "0011"]
    again = pickle.loads(pickle.dumps(source))
    clips = [again.load(key) for key in keys]
    assert [clip.provenance["frames"] for clip in clips] == [[0, 2], [4, 6], [0, 2]]
    assert clips[1].times.tolist() == [0.0, 0.2]
    assert clips[1].fps == 5.0
    assert torch.equal(clips[1].world_to_camera[0], torch.eye(4, dtype=torch.float64))
    assert center(clips[1].world_to_camera)[1].tolist() == [0, 0, 2]
    assert clips[0].provenance["view"] == "drawn"
    assert str(tmp_path) not in json.dumps(clips[0].provenance)
    assert tuple(clips[0].frames.shape) == (2, 96, 320, 3)


FAULTS = {
    "a pose is missing": ([line(0), line(2)], [IDENTITY.format(z=t) for t in range(2)], "poses.txt: line 3 (frame 2)"),
    "a pose is NaN": ([line(0)], [IDENTITY.format(z=0), IDENTITY.format(z="nan")], "poses.txt, line 2"),
    "a pose is no rotation": ([line(0)], ["2 0 0 0 0 1 0 0 0 0 1 0", IDENTITY.format(z=1)], "poses.txt, line 1"),
    "16 columns": ([line(0), line(1).rpartition(" ")[0]], None, "label.txt, line 2: expected 17 columns"),
    "a track twice": ([line(0, 4), line(1, 4), line(1, 4)], None, "label.txt, line 3: track 4 is in frame 1 twice"),
    "a word": ([line(0, z="far")], None, "label.txt, line 1: expected 12 numbers"),
    "no place": ([line(0, x="nan")], None, "label.txt, line 1: expected 12 finite numbers"),
    "no height": ([line(0, size="0 1.6 4")], None, "label.txt, line 1: height, width and length must be positive"),
    "a frame number": (["first" + line(0)], None, "label.txt, line 1: the frame number must be a whole number"),
    "an unknown class": ([line(0, kind="Cat")], None, "class 'Cat' is not one of Car, Van"),
    "two classes": ([line(0), line(1, kind="Van")], None, "frame 1: track 0 is a Van, before it was a Car"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_file_and_line(tmp_path, fault):
    labels, poses, message = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        write(tmp_path / "flat", labels, poses).load("0003-0000")
    assert message in str(caught.value)
    assert "0003." in str(caught.value)


def test_a_bad_line_fails_its_own_clip_only(tmp_path):
    labels = [line(0), line(1), line(2).replace("Car", "Car oops"), line(3)]
    poses = [IDENTITY.format(z=0), IDENTITY.format(z=1), IDENTITY.format(z="nan"), IDENTITY.format(z=3)]
    source = write(tmp_path / "flat", labels, poses)
    source = KittiTracking(source.root, clip_frames=2, max_width=320, **OPTICS)
    assert list(source.keys()) == ["0003-0000", "0003-0001"]
    assert len(source.load("0003-0000").boxes) == 1
    with pytest.raises(InputError, match=r"label.txt, line 3"):
        source.load("0003-0001")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fx": None, "cx": None, "cy": None}, "give 'fx', 'cx' and 'cy'"),
        ({"fx": None}, "must be given together"),
        ({"fx": -1.0}, "'fx' must be positive"),
        ({"clip_frames": 1}, "'clip_frames' must be at least 2"),
        ({"drift": -0.1}, "'drift' must not be negative"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    root = write(tmp_path / "flat", [line(0)]).root
    with pytest.raises(InputError, match=message):
        KittiTracking(root, **{**OPTICS, **arguments}).keys()


def test_there_must_be_such_a_clip(tmp_path):
    source = write(tmp_path / "flat", [line(0)])
    for key in ("0003-0001", "0004-0000", "0003-x", "nothing"):
        with pytest.raises(InputError, match="has no clip"):
            source.load(key)
    with pytest.raises(InputError, match="holds no sequence"):
        KittiTracking(str(tmp_path)).keys()


# Drawn frames


def test_a_drawn_box_is_where_the_projection_says(tmp_path):
    """The image of a box alone in view is the convex hull of its projected corners."""
    from scipy.spatial import ConvexHull, Delaunay

    intrinsics = np.array([[300.0, 0, 160], [0, 300, 60], [0, 0, 1]])
    angle = 0.4
    turned = np.array([[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]])
    middle, size = np.array([1.5, 0.2, 12.0]), np.array([4.0, 1.5, 1.6])
    empty = draw_frame((120, 320), intrinsics, np.eye(4), [])
    image = draw_frame((120, 320), intrinsics, np.eye(4), [SolidBox(middle, turned, size, (250, 0, 0))])
    corners = np.array([[x, y, z] for x in (-2, 2) for y in (-0.75, 0.75) for z in (-0.8, 0.8)]) @ turned.T + middle
    pixels = (corners @ intrinsics.T)[:, :2] / corners[:, 2:]
    hull = Delaunay(pixels[ConvexHull(pixels).vertices])
    rows, columns = np.indices((120, 320))
    inside = hull.find_simplex(np.stack([columns, rows], -1).astype(float)) >= 0
    changed = (image != empty).any(-1)
    # The rim is a line of one pixel, smoothed over its neighbours.
    assert inside.sum() > 3000
    assert (inside & ~changed).sum() == 0
    grown = np.array([np.roll(inside, shift, axis) for axis in (0, 1) for shift in (-2, -1, 1, 2)]).any(0)
    assert (changed & ~inside & ~grown).sum() <= 8
    red = (image[..., 0] > 80) & (image[..., 1] < 10)
    assert red[inside].all()


def test_what_is_nearer_hides_what_is_farther():
    intrinsics = np.array([[300.0, 0, 160], [0, 300, 60], [0, 0, 1]])
    near = SolidBox(np.array([0, 0, 8.0]), np.eye(3), np.array([1.0, 1, 1]), (250, 0, 0))
    far = SolidBox(np.array([0, 0, 16.0]), np.eye(3), np.array([5.0, 1, 1]), (0, 0, 250))
    for order in ([near, far], [far, near]):
        image = draw_frame((120, 320), intrinsics, np.eye(4), order)
        assert image[60, 160, 0] > 100 > image[60, 160, 2]
        assert image[60, 190, 2] > 100 > image[60, 190, 0]


def test_a_box_beside_the_camera_is_cut_off_not_turned_inside_out():
    intrinsics = np.array([[300.0, 0, 160], [0, 300, 60], [0, 0, 1]])
    long = SolidBox(np.array([3.0, 0, 0]), np.eye(3), np.array([2.0, 1.5, 20.0]), (250, 0, 0))
    image = draw_frame((120, 320), intrinsics, np.eye(4), [long]).astype(int)
    red = image[..., 0] > image[..., 2] + 60
    # Its near side lies at x = 2 and ends at z = 10: from column 220 to the right edge.
    assert red[60, 222:].all()
    assert not red[:, :218].any()


def test_the_grid_is_fixed_in_the_world():
    intrinsics = np.array([[300.0, 0, 160], [0, 300, 60], [0, 0, 1]])
    start, one, cell = np.eye(4), np.eye(4), np.eye(4)
    one[2, 3], cell[2, 3] = 1.0, 5.0
    first, second, third = (draw_frame((120, 320), intrinsics, pose, []) for pose in (start, one, cell))
    assert np.array_equal(first, third)
    assert (first[62:] != second[62:]).any(-1).mean() > 0.05
    assert np.array_equal(first[:60], second[:60])


# KITTI's own layout


def official(root, count=4, own=True):
    for folder in ("image_02/0000", "image_03/0000", "label_02", "calib", "poses", "oxts"):
        (root / folder).mkdir(parents=True)
    for frame in range(count):
        for side, value in (("image_02", 100), ("image_03", 200)):
            Image.new("RGB", (64, 40), (value, 10 * frame, 0)).save(root / side / "0000" / f"{frame:06d}.png")
    (root / "label_02/0000.txt").write_text("\n".join(line(frame) for frame in range(count)))
    # The left colour camera's centre lies 0.06 m left of the reference camera's, the right one's 0.48 m right of it.
    rows = ["P0: 50 0 32 0 0 50 20 0 0 0 1 0", "P1: 50 0 32 -27 0 50 20 0 0 0 1 0"]
    rows += ["P2: 50 0 32 3 0 50 20 0 0 0 1 0", "P3: 50 0 32 -24 0 50 20 0 0 0 1 0"]
    rows += [
        "R_rect 1 0 0 0 1 0 0 0 1",
        "Tr_velo_cam 0 -1 0 0 0 0 -1 0 1 0 0 0",
        "Tr_imu_velo 1 0 0 -0.8 0 1 0 0 0 0 1 0",
    ]
    (root / "calib/0000.txt").write_text("\n".join(rows) + "\n\n")
    if own:
        (root / "poses/0000.txt").write_text("\n".join(IDENTITY.format(z=t) for t in range(count)))
    else:
        north = [f"49.{t:05d} 8.4 110 0 0 {math.pi / 2}" + " 0" * 24 for t in range(count)]
        (root / "oxts/0000.txt").write_text("\n".join(north))
    return KittiTracking(str(root))


def test_the_official_layout(tmp_path):
    source = official(tmp_path)
    assert list(source.keys()) == ["0000-0000"]
    clip = source.load("0000-0000")
    assert clip.frames[:, 0, 0].tolist() == [[100, 10 * t, 0] for t in range(4)]
    assert clip.right[:, 0, 0].tolist() == [[200, 10 * t, 0] for t in range(4)]
    assert clip.intrinsics.tolist() == [[50, 0, 32], [0, 50, 20], [0, 0, 1]]
    assert clip.baseline == pytest.approx(0.54)
    # Labels are given for the reference camera: from the camera 0.06 m left of it all is 0.06 m farther right.
    torch.testing.assert_close(clip.boxes[0].centers[0], torch.tensor([2.06, 0.95, 10]).double())
    torch.testing.assert_close(center(clip.world_to_camera), torch.tensor([[0, 0, t] for t in range(4)]).double())
    assert (clip.provenance["view"], clip.provenance["poses"]) == ("image_02", "poses")


def test_poses_from_gps(tmp_path):
    clip = official(tmp_path, own=False).load("0000-0000")
    # A hundred-thousandth of a degree is 1.1132 m on a sphere of 6378.137 km; heading north, that is forwards.
    step = math.radians(1e-5) * 6378137
    went = center(clip.world_to_camera)
    torch.testing.assert_close(went, torch.tensor([[0, 0, step * t] for t in range(4)]).double(), atol=1e-4, rtol=0)
    assert clip.provenance["poses"] == "oxts"


def test_gps_axes(tmp_path):
    """Yaw counts from east to north; with the nose up pitch is negative, with the left side up roll is positive."""
    rows = ["49 8 100 0 0 0", "49 8.00001 107 0 0 0", "49 8 100 0 0 0.3", "49 8 100 0 0.3 0", "49 8 100 0.3 0 0"]
    (tmp_path / "oxts.txt").write_text("\n".join(rows))
    poses = read_imu_poses(tmp_path / "oxts.txt", range(5)).numpy()
    east = math.radians(1e-5) * 6378137 * math.cos(math.radians(49))
    assert poses[1, :3, 3] == pytest.approx([east, 0, 7], abs=1e-6)
    forward, left = poses[:, :3, 0], poses[:, :3, 1]
    assert forward[0].tolist() == [1, 0, 0]
    assert left[0].tolist() == [0, 1, 0]
    assert forward[2] == pytest.approx([math.cos(0.3), math.sin(0.3), 0])
    assert forward[3] == pytest.approx([math.cos(0.3), 0, -math.sin(0.3)])
    assert left[4] == pytest.approx([0, math.cos(0.3), math.sin(0.3)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "calib/0000.txt").write_text("P2: 1 2 3"),
            r"0000.txt, line 1 \(P2\): expected 12 finite",
        ),
        (lambda root: (root / "calib/0000.txt").write_text(""), "the entry 'P2' is missing"),
        (lambda root: (root / "poses/0000.txt").unlink(), "one of them must tell the camera's path"),
        (lambda root: (root / "image_02/0000/000001.png").unlink(), "expected frame 1"),
        (lambda root: shutil.rmtree(root / "image_02"), "there is no such folder"),
        (lambda root: (root / "image_03/0000/000003.png").unlink(), "must hold as many images"),
        (lambda root: (root / "poses/0000.txt").write_text(IDENTITY.format(z=0)), r"line 2 \(frame 1\) is missing"),
    ],
)
def test_faults_of_the_official_layout(tmp_path, change, message):
    source = official(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        source.load("0000-0000")


def test_intrinsics_are_not_told_twice(tmp_path):
    root = official(tmp_path).root
    with pytest.raises(InputError, match="leave 'fx', 'cx' and 'cy' out"):
        KittiTracking(root, **OPTICS).keys()


# Real data


def real(real_data, **arguments):
    return KittiTracking(str(real_data / "kitti_tracking"), max_width=64, **OPTICS, **arguments)


def test_real_keys(real_data):
    keys = real(real_data).keys()
    # 154, 233, 314, 270, 390 and 339 frames in clips of at most 16
    assert len(keys) == 10 + 15 + 20 + 17 + 25 + 22
    assert (keys[0], keys[-1]) == ("0000-0000", "0018-0021")


@pytest.mark.parametrize("key", ["0000-0005", "0002-0004", "0004-0001", "0018-0005"])
def test_real_relations_against_plain_numpy(real_data, key):
    """Independent: the raw text, camera-to-world matrices as they are, exact distances to boxes."""
    clip = real(real_data).load(key)
    root, name = real_data / "kitti_tracking", key[:4]
    poses = np.loadtxt(root / f"{name}.poses.txt").reshape(-1, 3, 4)
    rows = [text.split() for text in (root / f"{name}.label.txt").read_text().splitlines()]
    known = {(int(row[0]), int(row[1])): np.array(row[10:17], dtype=float) for row in rows if row[2] != "DontCare"}
    frames, compared = clip.provenance["frames"], 0
    for box in clip.boxes:
        track = track_from_boxes(box, scene_camera(clip))
        seen = torch.nonzero(box.centers.isfinite().all(-1))[:, 0].tolist()
        for i, j in [(a, b) for a in seen for b in seen if b - a in (1, 7, 14)]:
            turn_i, place_i = poses[frames[i], :, :3], poses[frames[i], :, 3]
            turn_j, place_j = poses[frames[j], :, :3], poses[frames[j], :, 3]
            row_i, row_j = known[frames[i], box.id], known[frames[j], box.id]
            local_i, local_j = (row[3:6] - [0, row[0] / 2, 0] for row in (row_i, row_j))
            moved = turn_j @ local_j + place_j - turn_i @ local_i - place_i
            own = (clip.world_to_camera[i], track.points[i], clip.world_to_camera[j], track.points[j])
            centers = (own[0], track.centers[i][None], own[2], track.centers[j][None])
            near_i, near_j = (_distance(np.zeros(3), row) for row in (row_i, row_j))
            far = _distance(turn_j.T @ (place_i - place_j), row_j)
            pairs = [
                (relations.object_absolute_distance(centers[1], centers[3]), np.linalg.norm(moved), 1e-4),
                (relations.object_relative_direction(*centers[:2], centers[3]), turn_i.T @ moved, 1e-4),
                (relations.object_camera_absolute_distance(own[0], own[3]), far, 0.01),
                (relations.object_camera_relative_distance(*own), near_j - near_i, 0.01),
                (relations.object_camera_relative_direction(*centers), local_j - local_i, 1e-4),
            ]
            for value, expected, tolerance in pairs:
                assert value.numpy() == pytest.approx(expected, abs=tolerance)
            compared += 1
    assert compared >= 30


def _distance(point, row):
    """From a point in camera axes to the box of a label's row [7]; the point is outside."""
    height, width, length, x, y, z, yaw = row
    away = point - [x, y - height / 2, z]
    forward, side = np.array([math.cos(yaw), 0, -math.sin(yaw)]), np.array([math.sin(yaw), 0, math.cos(yaw)])
    local = np.abs([away @ forward, away[1], away @ side])
    return np.linalg.norm((local - np.array([length, height, width]) / 2).clip(0))


PARKED = {"0000": (3, 5, 6, 7, 8, 9, 10, 11, 13, 14), "0002": (1, 11, 12), "0004": (20,), "0008": (2, 7, 15)}
"""Seen to keep their place, up to about 3 % of the camera's path, over all frames in which they are labelled."""

DRIVING = {"0000": (0,), "0004": (2,), "0008": (8, 13)}
"""Driving ahead of the camera for tens of seconds."""


def verdicts(source, names, tracks):
    keys, found = source.keys(), []
    for clip in (source.load(key) for key in keys if source.video(key) in names):
        for box in (box for box in clip.boxes if box.id in tracks[clip.video]):
            track = track_from_boxes(box, scene_camera(clip))
            seen = track.centers[track.centers.isfinite().all(-1)]
            found.append((track.moving, float((seen - seen[0]).norm(dim=-1).max())))
    return found


def test_parked_cars_are_never_called_moving(real_data):
    judged = verdicts(real(real_data), PARKED, PARKED)
    assert len(judged) > 30
    assert not any(moving for moving, _ in judged)
    # It is the poses' drift that explains them: were the poses exact, several would be called moving.
    exact = verdicts(real(real_data, drift=0.0, turn_drift=0.0), PARKED, PARKED)
    assert sum(bool(moving) for moving, _ in exact) >= 2


def test_driving_cars_are_never_called_still(real_data):
    judged = [moving for moving, went in verdicts(real(real_data), ["0000", "0004"], DRIVING) if went > 5]
    assert len(judged) > 5
    assert all(judged)


def test_a_clip_becomes_a_staged_scene(real_data, tmp_path):
    job = ClipJob(
        source=KittiTracking(str(real_data / "kitti_tracking"), max_width=320, **OPTICS),
        depth=None,
        odometry=None,
        finder=None,
        quality=Quality(),
        margins=Margins(),
        pairs=12,
        twins=(),
        video_quality=30,
        seed=0,
        staging=tmp_path,
    )
    assert job("0000-0004") == ("0000-0004", None)
    frames, times = decode(tmp_path / "0000-0004.mp4")
    assert tuple(frames.shape) == (15, 96, 320, 3)
    assert times.tolist() == pytest.approx([t / 10 for t in range(15)])
    content = json.loads((tmp_path / "0000-0004.json").read_text())
    # The van ahead, the cyclist, and the van that is parked.
    assert {track["id"]: track["moving"] for track in content["scene"]["objects"]} == {0: True, 1: True, 3: None}
    tasks = {candidate["task"] for candidate in content["candidates"]}
    assert {"camera_absolute_distance", "object_absolute_distance", "object_camera_absolute_distance"} <= tasks
