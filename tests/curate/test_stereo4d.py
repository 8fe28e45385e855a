import json
import pickle
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest
import torch

from mllm4d.curate.depth import SGBM
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.equirect import covers, equirect_positions, sampling_map, take_view, view_intrinsics
from mllm4d.curate.sources.stereo4d import Stereo4D
from mllm4d.curate.sources.stereo4d_npz import decode_tracks
from mllm4d.curate.sources.stereo4d_video import read_frames
from mllm4d.geometry.camera import project
from mllm4d.geometry.pose import center, invert, path_rms, transform
from mllm4d.schema import InputError
from mllm4d.video import encode

# A room of painted walls, x within 2.2 m, y within 1.6 m, z from -1 to 2.5 m; the eyes see a part of the half sphere.
ROOM = np.array([[-2.2, -1.6, -1.0], [2.2, 1.6, 2.5]])
BOUNDS = (-50.0, 60.0, -45.0, 55.0)  # yaw and tilt, degrees
HEIGHT, WIDTH = 600, 660  # of an eye's picture: 6 pixels a degree
SIZE, BASELINE = 256, 0.063
FOCAL = SIZE / 2 / np.tan(np.radians(30))
STRIDE, USED, BEFORE = 3, 4, 5  # frames used: 4, three apart, the first after 5 frames that nobody annotated
COUNT = STRIDE * (USED - 1) + 2


def turn(x, y, z):
    """Rotation by the angles about x, y and z, degrees; written out, z first."""
    a, b, c = np.radians([x, y, z])
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_y @ about_x @ about_z


RIG = np.stack([turn(1.5, -2.0, 1.0), turn(-1.0, 1.5, -0.8)])
POSES = np.stack(
    [np.column_stack([turn(0.3 * t, 0.8 * t, 0.1 * t), [0.03 * t, -0.01 * t, 0.04 * t]]) for t in range(COUNT)]
)
DOTS = np.array(
    [[x, y, 2.5] for x in (-0.8, -0.1, 0.6) for y in (-0.55, 0.1, 0.7)] + [[-2.2, 0.2, 2.0], [0.3, 1.6, 2.2]]
)


def hit(origin, rays):
    """Where rays [..., 3] leave the room."""
    with np.errstate(divide="ignore"):
        reach = (np.where(rays > 0, ROOM[1], ROOM[0]) - origin) / rays
    return origin + rays * reach.min(-1, keepdims=True)


def dots(points):
    """Bright spots on dark walls."""
    light = sum(np.exp(-((points - dot) ** 2).sum(-1) / (2 * 0.02**2)) for dot in DOTS)
    return 40 + 200 * light


def paint(points):
    """Waves of 6 to 40 cm through space, of random directions."""
    rng = np.random.default_rng(3)
    light = np.zeros(points.shape[:-1], np.float32)
    for _ in range(24):
        way = rng.normal(size=3)
        way *= 2 * np.pi / rng.uniform(0.06, 0.4) / np.linalg.norm(way)
        light += np.sin((points @ way + rng.uniform(0, 6)).astype(np.float32))
    return 128 + 22 * light


def eye_pictures(pose, rig, colour):
    """[HEIGHT, 2 * WIDTH] grey: what both eyes see, by the definition of yaw and tilt."""
    yaw, tilt = np.radians(np.linspace(*BOUNDS[:2], WIDTH)), np.radians(np.linspace(*BOUNDS[2:], HEIGHT))[:, None]
    rays = np.stack([np.cos(tilt) * np.sin(yaw), np.sin(tilt) + 0 * yaw, np.cos(tilt) * np.cos(yaw)], axis=-1)
    halves = []
    for side in range(2):
        rotation = pose[:, :3] @ rig[side].T  # eye axes to rectified axes to world
        origin = pose[:, 3] + pose[:, 0] * BASELINE * side
        halves.append(colour(hit(origin, rays @ rotation.T)))
    return np.concatenate(halves, axis=1)


def write_video(path, colour, rig=RIG):
    """Thirty frames a second; frames that no clip uses are grey."""
    pictures = np.full((BEFORE + COUNT, HEIGHT, 2 * WIDTH), 90, np.uint8)
    for t in range(0, COUNT, STRIDE):
        pictures[BEFORE + t] = np.clip(np.rint(eye_pictures(POSES[t], rig, colour)), 0, 255)
    frames = torch.from_numpy(pictures)[..., None].expand(-1, -1, -1, 3).contiguous()
    path.write_bytes(encode(frames, torch.arange(len(frames), dtype=torch.float64) / 30, quality=6))


def annotation(**changes):
    """The arrays of an npz; times are cut to whole microseconds, tracks are the dots."""
    count = len(DOTS)
    arrays = {
        "name": "abc_DEF-123_166666",
        "video_id": "abc_DEF-123",
        "timestamps": np.floor((BEFORE + np.arange(COUNT)) / 30 * 1e6).astype(np.int64),
        "camera2world": POSES.astype(np.float32),
        "rectified2rig": RIG,
        "fov_bounds": np.array(BOUNDS),
        "track_lengths": np.full(count, COUNT),
        "track_indices": np.tile(np.arange(COUNT), count),
        "track_coordinates": np.repeat(DOTS, COUNT, axis=0).astype(np.float32),
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def write_npz(folder, stem="abc_DEF-123_166666", **changes):
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{stem}.npz", **annotation(**changes))


def make(folder, colour):
    (folder / "raw").mkdir()
    write_video(folder / "raw" / "abc_DEF-123.mp4", colour)
    write_npz(folder / "npz")
    return folder


@pytest.fixture(scope="module")
def dotted(tmp_path_factory):
    return make(tmp_path_factory.mktemp("dotted"), dots)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    return make(tmp_path_factory.mktemp("painted"), paint)


def source(folder, annotations="npz", **arguments):
    settings = {"stride": STRIDE, "size": SIZE, "min_height": HEIGHT, **arguments}
    return Stereo4D(str(folder / annotations), str(folder / "raw"), **settings)


KEY = "abc_DEF-123_166666-0000"


def spot(view, where):
    """Centre of brightness within 6 pixels."""
    x, y = np.rint(where).astype(int)
    patch = view[y - 6 : y + 7, x - 6 : x + 7, 1].astype(float)
    weight = np.maximum(patch - 60, 0)
    down, across = np.mgrid[-6:7, -6:7]
    return np.array([x + (weight * across).sum() / weight.sum(), y + (weight * down).sum() / weight.sum()])


def test_a_clip_says_what_it_is(dotted):
    made = pickle.loads(pickle.dumps(source(dotted)))
    assert made.keys() == [KEY]
    assert made.video(KEY) == "abc_DEF-123"
    clip = made.load(KEY)
    assert clip.video == "abc_DEF-123"
    assert clip.frames.shape == clip.right.shape == (USED, SIZE, SIZE, 3)
    assert clip.frames.dtype == clip.right.dtype == torch.uint8
    assert clip.times.tolist() == pytest.approx([0, 0.1, 0.2, 0.3], abs=2e-6)
    assert clip.times[0] == 0
    assert clip.fps == pytest.approx(10, rel=1e-4)
    assert clip.baseline == BASELINE
    assert clip.provenance == {
        "source": "stereo4d",
        "video": "abc_DEF-123",
        "name": "abc_DEF-123_166666",
        "frames": [0, 3, 6, 9],
        "timestamps": [166666, 466666],
        "poses": "released",
    }
    json.dumps(clip.provenance)
    # The second clip of two begins anew: other times, other world, the same frames.
    second = source(dotted, clip_frames=2).load(KEY[:-1] + "1")
    assert second.provenance["frames"] == [6, 9]
    assert second.provenance["timestamps"] == [366666, 466666]
    assert second.times.tolist() == pytest.approx([0, 0.1], abs=2e-6)
    assert torch.equal(second.world_to_camera[0], torch.eye(4, dtype=torch.float64))
    assert torch.equal(second.frames, clip.frames[2:])
    assert torch.equal(second.right, clip.right[2:])


def test_the_papers_camera_with_pixel_centres_at_integers():
    intrinsics = view_intrinsics(512, 60)
    assert float(intrinsics[0, 0]) == float(intrinsics[1, 1]) == pytest.approx(443.405, abs=5e-4)
    # The outer edges of the first and the last pixel are 30 degrees off.
    for edge in (-0.5, 511.5):
        assert abs(np.degrees(np.arctan((edge - float(intrinsics[0, 2])) / float(intrinsics[0, 0])))) == pytest.approx(
            30
        )
    assert Stereo4D("a", "b").baseline * float(intrinsics[0, 0]) == pytest.approx(27.9, abs=0.05)


def test_known_points_are_where_intrinsics_poses_and_baseline_say(dotted):
    made = source(dotted)
    clip, tracks = made.load(KEY), made.tracks(KEY)
    assert tracks.shape == (len(DOTS), USED, 3)
    errors, seen = [], 0
    for t in range(USED):
        # From the scene by hand, and from the source's own poses and tracks.
        pose = POSES[STRIDE * t].astype(np.float32).astype(float)
        by_hand = (DOTS - pose[:, 3]) @ pose[:, :3]
        points = transform(clip.world_to_camera[t], tracks[:, t])
        assert np.abs(points.numpy() - by_hand).max() < 1e-5
        pixels = project(points, clip.intrinsics).numpy()
        inside = ((pixels > 25) & (pixels < SIZE - 10)).all(-1)
        for pixel, point in zip(pixels[inside], by_hand[inside], strict=True):
            left = spot(clip.frames[t].numpy(), pixel)
            right = spot(clip.right[t].numpy(), pixel - [FOCAL * BASELINE / point[2], 0])
            errors.append([*(left - pixel), *(left - right - [FOCAL * BASELINE / point[2], 0])])
        seen += inside.sum()
    assert seen >= 30
    errors = np.abs(errors)
    print(f"{seen} points: left x, y {errors[:, :2].max():.3f} px; disparity, rows {errors[:, 2:].max(0)}")
    assert errors.max() < 0.15  # pixels; a principal point of 128 instead of 127.5 would be off by 0.5


def rows_apart(clip, t=0):
    """How far the right view lies below the left, in pixels, by phase correlation of its middle."""
    left, right = (views[t, 40:-40, 40:-40, 1].numpy().astype(np.float64) for views in (clip.frames, clip.right))
    return cv2.phaseCorrelate(left, right, cv2.createHanningWindow(left.shape[::-1], cv2.CV_64F))[0][1]


def test_no_vertical_disparity_but_where_the_rotations_are_ignored(painted):
    clip = source(painted).load(KEY)
    assert max(abs(rows_apart(clip, t)) for t in range(USED)) < 0.05
    write_npz(painted / "unturned", rectified2rig=np.stack([np.eye(3)] * 2))
    write_npz(painted / "inverted", rectified2rig=RIG.transpose(0, 2, 1))
    write_npz(painted / "exchanged", rectified2rig=RIG[::-1])
    for name in ("unturned", "inverted", "exchanged"):
        assert abs(rows_apart(source(painted, name).load(KEY))) > 2


def test_views_are_what_a_perspective_camera_would_see(painted):
    clip = source(painted).load(KEY)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    rays = np.stack([(x - 127.5) / FOCAL, (y - 127.5) / FOCAL, np.ones_like(x)], axis=-1)
    pose = POSES[STRIDE]
    for shift, view in ((0, clip.frames[1]), (BASELINE, clip.right[1])):
        ideal = paint(hit(pose[:, 3] + pose[:, 0] * shift, rays @ pose[:, :3].T))
        off = np.abs(view[..., 1].numpy() - np.clip(ideal, 0, 255))
        assert off.mean() < 4  # grey levels; the walls' contrast is 65
        assert np.abs(view[..., 1].numpy() - np.roll(np.clip(ideal, 0, 255), 1, axis=0)).mean() > 3 * off.mean()


def test_depth_and_path_of_the_clip_are_the_rooms(painted):
    clip = source(painted).load(KEY)
    depth = SGBM()(clip)
    x, y = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    rays = np.stack([(x - 127.5) / FOCAL, (y - 127.5) / FOCAL, np.ones_like(x)], axis=-1)
    truth = np.stack([(hit(p[:, 3], rays @ p[:, :3].T) - p[:, 3]) @ p[:, 2] for p in POSES[::STRIDE]])
    known = (depth.depth > 0).numpy()
    off = np.abs(FOCAL * BASELINE / depth.depth.numpy()[known] - FOCAL * BASELINE / truth[known])
    assert known.mean() > 0.7
    assert np.median(off) < 0.25  # pixels of disparity
    # Odometry that knows no poses finds the released ones: their direction and axes are understood.
    blind = replace(clip, world_to_camera=None, center_sigma=None, rotation_sigma=None)
    path = StereoOdometry(max_relative_sigma=0.1, refine=False)(blind, depth)
    way = float(center(clip.world_to_camera)[-1].norm())
    assert way == pytest.approx(0.09 * np.sqrt(0.03**2 + 0.01**2 + 0.04**2) * 100, rel=1e-4)
    assert path_rms(path.world_to_camera, clip.world_to_camera) < 0.1 * way
    turned = path.world_to_camera[-1, :3, :3] @ clip.world_to_camera[-1, :3, :3].mT
    assert float(torch.arccos(((turned.trace() - 1) / 2).clamp(max=1))) < np.radians(1)


def test_a_scene_is_built(painted):
    made = source(painted, center_sigma=0.01, rotation_sigma=0.002, scale_sigma=0.03)
    scene = build_scene(made.load(KEY), SGBM(), None)
    assert torch.equal(scene.camera.world_to_camera[0], torch.eye(4, dtype=torch.float64))
    # First-camera-to-camera by hand.
    first, last = (np.vstack([POSES[t], [0, 0, 0, 1]]) for t in (0, 9))
    assert np.abs(invert(scene.camera.world_to_camera)[-1].numpy() - np.linalg.inv(first) @ last).max() < 1e-6
    # After 0.3 s and 9 equal steps: a random walk, and 3 % of the way.
    walk, scale = 0.01 * np.sqrt(0.3), 0.03 * 9 * np.sqrt(0.03**2 + 0.01**2 + 0.04**2)
    assert float(scene.camera.center_sigma[-1]) == pytest.approx(np.hypot(walk, scale), rel=1e-4)
    assert float(scene.camera.rotation_sigma[-1]) == pytest.approx(0.002 * np.sqrt(0.3), rel=1e-4)
    assert scene.camera.center_sigma[0] == scene.camera.rotation_sigma[0] == 0


def test_rays_to_pixels_by_hand():
    def at(*ray):
        return equirect_positions(torch.tensor(ray, dtype=torch.float64), (-90, 90, -60, 60), (121, 181)).tolist()

    assert at(0, 0, 2) == pytest.approx([90, 60])  # straight ahead
    assert at(1, 0, 1) == pytest.approx([135, 60])  # 45 degrees right
    assert at(0, 1, np.sqrt(3)) == pytest.approx([90, 90])  # 30 degrees down
    assert at(-1, -np.sqrt(2), 1) == pytest.approx([45, 15])  # 45 left, 45 up
    assert at(3, 0, 0) == pytest.approx([180, 60])  # the last pixel's centre


def test_a_view_smaller_than_the_picture_shows_no_moire():
    # Stripes of two pixels, where a pixel of the view covers 5.2: the mean over 5.2 of stripes of period 4 keeps
    # |sinc(5.2 / 4)| = 0.2 of their contrast, a single sample keeps nearly all.
    picture = np.zeros((721, 721, 3), np.uint8)
    picture[:, ::4] = picture[:, 1::4] = 200
    positions = sampling_map(view_intrinsics(32, 40), 32, torch.eye(3), (-90, 90, -90, 90), picture.shape[:2])
    assert positions.shape == (192, 192, 2)
    assert covers(positions, picture.shape[:2])
    view = take_view(picture, positions, 32).numpy()
    single = take_view(picture, positions[3::6, 3::6].contiguous(), 32).numpy()
    assert view.mean() == pytest.approx(100, abs=2)
    assert view.std() < 0.3 * single.std()


def small_video(path, times, sizes=(32, 64)):
    """Frames told apart by their grey, with key frames between."""
    greys = torch.arange(len(times)) % 50 * 5
    frames = greys.to(torch.uint8)[:, None, None, None].expand(-1, *sizes, 3).contiguous()
    path.write_bytes(encode(frames, torch.tensor(times, dtype=torch.float64), quality=4))


def greys(path, times, tolerance=0.5 / 30):
    return [round(frame.mean() / 5) for frame in read_frames(path, times, tolerance)]


@pytest.mark.parametrize("start", [0.0, 0.5])
def test_the_frames_nearest_to_the_times_are_read(tmp_path, start):
    path = tmp_path / "v.mp4"
    small_video(path, [start + t / 30 for t in range(50)])
    for first in (0, 1, 11, 12, 13, 36, 47):
        wanted = [first, first + 1, first + 2]
        for shift in (-1e-6, 0, 0.0004, -0.015, 0.015):  # cut to microseconds, to milliseconds, nearly half a frame
            assert greys(path, [max(0, t / 30 + shift) for t in wanted]) == wanted
    with pytest.raises(InputError, match=r"v\.mp4: has no frame at 1\.667 s"):
        greys(path, [48 / 30, 49 / 30, 50 / 30])


def test_gaps_and_other_rates(tmp_path):
    path = tmp_path / "v.mp4"
    small_video(path, [t / 30 for t in range(20)] + [t / 30 for t in range(23, 30)])
    with pytest.raises(InputError, match=r"no frame at 0\.700 s"):
        greys(path, [0.5, 0.7])
    assert greys(path, [0.5, 0.8]) == [15, 21]
    small_video(path, [t / 60 for t in range(48)])
    assert greys(path, [t / 30 for t in (3, 10, 17)]) == [6, 20, 34]


def test_matroska_rounds_times_to_milliseconds(tmp_path):
    mp4, mkv = tmp_path / "v.mp4", tmp_path / "v.mkv"
    small_video(mp4, [t / 29.97 for t in range(50)])
    with av.open(str(mp4)) as one, av.open(str(mkv), "w") as other:
        stream = other.add_stream_from_template(one.streams.video[0])
        for packet in one.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                other.mux(packet)
    assert greys(mkv, [np.floor(t / 29.97 * 1e6) / 1e6 for t in range(7, 40)]) == list(range(7, 40))


def test_what_lies_before_a_clip_is_not_decoded(tmp_path):
    path = tmp_path / "v.mp4"
    small_video(path, [t / 30 for t in range(100)], sizes=(64, 128))
    whole = bytearray(path.read_bytes())
    expected = greys(path, [2.5, 3.0])
    begin = whole.index(b"mdat") + 4
    with av.open(str(path)) as video:
        sizes = [packet.size for packet in video.demux(video=0)]
    end = begin + sum(sizes[:30])
    whole[begin:end] = bytes(end - begin)
    path.write_bytes(whole)
    assert greys(path, [2.5, 3.0]) == expected
    with pytest.raises(InputError, match=r"v\.mp4"):
        greys(path, [0.2, 0.5])


@pytest.mark.parametrize(
    ("count", "stride", "sizes"),
    [(200, 6, [12, 11, 11]), (96, 6, [16]), (97, 6, [9, 8]), (7, 6, [2]), (33, 1, [11, 11, 11])],
)
def test_clips_are_even_and_lose_no_frame(tmp_path, count, stride, sizes):
    (tmp_path / "raw").mkdir()
    stamps = np.arange(count) * 33333
    write_npz(tmp_path / "npz", timestamps=stamps, camera2world=np.repeat(POSES[:1], count, axis=0))
    made = source(tmp_path, stride=stride)
    keys = made.keys()
    assert keys == [f"abc_DEF-123_166666-{n:04d}" for n in range(len(sizes))]
    assert made.keys(1) == [KEY]
    frames = [made._open(key)[1] for key in keys]
    assert [len(part) for part in frames] == sizes
    assert [frame for part in frames for frame in part] == list(range(0, count, stride))


def test_tracks_by_hand():
    tracks = decode_tracks(
        np.array([2, 0, 1]), np.array([0, 2, 1]), np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32), 3
    )
    none = [np.nan] * 3
    expected = [[[1, 2, 3], none, [4, 5, 6]], [none] * 3, [none, [7, 8, 9], none]]
    np.testing.assert_array_equal(tracks.numpy(), np.array(expected))
    assert decode_tracks(np.array([], int), np.array([], int), np.zeros((0, 3)), 3).shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([2, 2], [0, 1, 2], 3), "'track_lengths' adds up to 4"),
        (([4, -1], [0, 1, 2], 3), "'track_lengths'"),
        (([2, 1], [0, 1, 2], 2), "'track_coordinates' 2"),
        (([2, 1], [0, 1, 3], 3), "'track_indices' must lie in 0 to 2"),
        (([2, 1], [0, -1, 2], 3), "'track_indices' must lie in 0 to 2"),
        (([2, 1], [0.0, 1.5, 2.0], 3), "'track_indices' must hold whole numbers"),
    ],
)
def test_tracks_that_do_not_fit_together(arrays, message):
    lengths, indices, coordinates = arrays
    with pytest.raises(InputError, match=message):
        decode_tracks(np.array(lengths), np.array(indices), np.zeros((coordinates, 3)), 3)


def test_a_clip_has_the_tracks_that_it_sees(tmp_path):
    (tmp_path / "raw").mkdir()
    # The first track is seen in frames 0 and 1, the second in none that is used, the third in frame 9.
    write_npz(
        tmp_path / "npz",
        track_lengths=np.array([2, 1, 1]),
        track_indices=np.array([0, 1, 4, 9]),
        track_coordinates=np.array([[1, 2, 3], [9, 9, 9], [9, 9, 9], [0.5, 0, 2]]),
    )
    tracks = source(tmp_path).tracks(KEY)
    assert tracks.shape == (2, USED, 3)
    assert tracks[0, 0].tolist() == pytest.approx([1, 2, 3])  # the first pose is the identity
    assert tracks[1, 3].tolist() == pytest.approx([0.5, 0, 2])
    assert int(tracks.isfinite().all(-1).sum()) == 2
    # The second clip of two has frames 6 and 9; its axes are those of frame 6.
    second = source(tmp_path, clip_frames=2).tracks(KEY[:-1] + "1")
    assert second.shape == (1, 2, 3)
    assert second[0, 1].tolist() == pytest.approx(((np.array([0.5, 0, 2]) - POSES[6][:, 3]) @ POSES[6][:, :3]).tolist())


def spoil(key, change):
    def changed():
        array = np.array(annotation()[key])
        change(array)
        return {key: array}

    return changed


def put(index, value):
    def change(array):
        array[index] = value

    return change


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[
            (lambda key=key: {key: None}, f"lacks the key '{key}'")
            for key in ("name", "video_id", "timestamps", "camera2world", "rectified2rig", "fov_bounds")
        ],
        (spoil("camera2world", put((3, 0, 3), np.nan)), "key 'camera2world', frame 3: .*not finite"),
        (spoil("camera2world", put((6, 1), 0)), "key 'camera2world', frame 6: must be a rotation"),
        (spoil("timestamps", put(4, 0)), "key 'timestamps'.*increasing"),
        (lambda: {"timestamps": np.zeros((2, 3))}, r"key 'timestamps' must be \[N\]"),
        (lambda: {"timestamps": np.arange(2) * 33333, "camera2world": POSES[:2]}, "'timestamps' holds 2 frames"),
        (lambda: {"camera2world": POSES[:-1]}, r"key 'camera2world' must be \[11, 3, 4\] numbers, not \[10, 3, 4\]"),
        (lambda: {"camera2world": np.full((COUNT, 3, 4), "x")}, "key 'camera2world' must be"),
        (lambda: {"camera2world": np.full((COUNT, 3, 4), None)}, "cannot be read as an npz"),
        (lambda: {"rectified2rig": RIG[0]}, r"key 'rectified2rig' must be \[2, 3, 3\]"),
        (spoil("rectified2rig", put((1, 0), 0)), "key 'rectified2rig', right: must be a rotation"),
        (lambda: {"fov_bounds": np.array([50.0, -50, -40, 40])}, "key 'fov_bounds' must be start and end"),
        (lambda: {"fov_bounds": np.array([-50, 50, -40, np.nan])}, "key 'fov_bounds' must be start and end"),
        (lambda: {"fov_bounds": np.array([-25.0, 60, -40, 40])}, "key 'fov_bounds': the left view of 60 degrees"),
        (lambda: {"video_id": np.array(["a", "b"])}, "key 'video_id' must be one text"),
        (lambda: {"video_id": "other"}, r"expected one video other .*found none \(key 'videos'\)"),
    ],
)
def test_one_bad_annotation_fails_when_it_is_loaded(dotted, tmp_path, changes, message):
    write_npz(tmp_path / "npz", **changes())
    write_npz(tmp_path / "npz", "zzz_1")
    (tmp_path / "raw").symlink_to(dotted / "raw")
    made = source(tmp_path)
    assert made.keys() == [KEY, "zzz_1-0000"]
    assert made.video(KEY) in ("abc_DEF-123", "abc_DEF-123_166666", "other")
    assert made.video("zzz_1-0000") == "abc_DEF-123"
    with pytest.raises(InputError, match=message):
        made.load(KEY)


@pytest.mark.parametrize("content", [b"", b"no npz", b"\x93NUMPY\x01\x00", None])
def test_a_damaged_npz_is_named(tmp_path, content):
    (tmp_path / "raw").mkdir()
    write_npz(tmp_path / "npz")
    file = next((tmp_path / "npz").iterdir())
    file.write_bytes(file.read_bytes()[:-200] if content is None else content)
    made = source(tmp_path)
    assert made.keys() == [KEY]
    assert made.video(KEY) == "abc_DEF-123_166666"
    with pytest.raises(InputError, match=r"abc_DEF-123_166666\.npz: (cannot be read|is no) "):
        made.load(KEY)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda raw: (raw / "abc_DEF-123.mp4").unlink(), "expected one video abc_DEF-123 .*found none"),
        (
            lambda raw: (raw / "abc_DEF-123.webm").write_bytes(b"x"),
            r"expected one video .*found abc_DEF-123\.mp4 and abc_DEF-123\.webm",
        ),
        (lambda raw: (raw / "abc_DEF-123.mp4").write_bytes(b"no video"), r"abc_DEF-123\.mp4: cannot be decoded"),
        (lambda raw: small_video(raw / "abc_DEF-123.mp4", [t / 30 for t in range(20)]), "64x32 pixels; .*600 rows"),
        (
            lambda raw: small_video(raw / "abc_DEF-123.mp4", [t / 30 for t in range(12)], (600, 64)),
            r"abc_DEF-123\.mp4: has no frame at 0\.467 s",
        ),
    ],
)
def test_a_bad_video_is_named(tmp_path, break_it, message):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "abc_DEF-123.mp4").write_bytes(b"")
    write_npz(tmp_path / "npz", rectified2rig=np.stack([np.eye(3)] * 2))
    break_it(tmp_path / "raw")
    made = source(tmp_path)
    assert made.keys() == [KEY]
    with pytest.raises(InputError, match=message):
        made.load(KEY)


def test_missing_folders_fail_at_once(tmp_path):
    made = source(tmp_path)
    with pytest.raises(InputError, match=r"npz: there is no such folder \(key 'annotations'\)"):
        made.keys()
    (tmp_path / "npz").mkdir()
    with pytest.raises(InputError, match=r"raw: there is no such folder \(key 'videos'\)"):
        made.keys()
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match="holds no npz file"):
        made.keys()


@pytest.mark.parametrize("key", ["abc_DEF-123_166666-0001", "abc_DEF-123_166666", "other-0000", "abc_DEF-123_166666-x"])
def test_an_unknown_key_is_named(dotted, key):
    with pytest.raises(InputError, match=f"no clip '{key}'"):
        source(dotted).load(key)


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip_frames": 1},
        {"stride": 0},
        {"size": 255},
        {"fov": 180.0},
        {"baseline": 0.0},
        {"center_sigma": -1.0},
        {"rotation_sigma": float("nan")},
        {"scale_sigma": -0.1},
    ],
)
def test_bad_settings_are_named(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        Stereo4D("a", "b", **arguments)
