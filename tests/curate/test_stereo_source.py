import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.geometry.pose import center, invert
from mllm4d.schema import InputError
from mllm4d.video import encode

HEIGHT, WIDTH = 48, 64
CALIBRATION = {"fx": 50.0, "fy": 51.0, "cx": 31.0, "cy": 24.0, "baseline": 0.2, "fps": 8.0}


def picture(number, side):
    """Tells frame and side by its colour; smooth, so that it survives video coding."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[...] = (10 * number + 5, 200 if side == "left" else 60, 90)
    return image


def make_folder(folder, count=7, names=("left", "right"), calibration=CALIBRATION):
    for side, name in zip(("left", "right"), names, strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(number, side)).save(folder / name / f"{number:06d}.png")
    if calibration is not None:
        (folder / "calib.json").write_text(json.dumps(calibration))
    return folder


def write_kitti(folder, rows, labels=True):
    lines = [" ".join(f"{x:.12e}" for x in np.ravel(row)) for row in rows]
    lines = [f"P{i}: {line}" for i, line in enumerate(lines)] if labels else lines
    (folder / "calib.txt").write_text("\n".join([*lines, "Tr: " + " ".join(["0"] * 12)] if labels else lines))


def projection(fx, cx, shift):
    return [[fx, 0, cx, shift], [0, fx, 20.0, 0], [0, 0, 1, 0]]


def write_poses(folder, count, change=None):
    """A camera that looks 0.1 rad to the right from the start and moves 0.5 m a frame along its own z axis."""
    cos, sin = np.cos(0.1), np.sin(0.1)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    rows = [np.column_stack([rotation, rotation @ [0, 0, 0.5 * t] + [3, 2, 1]]).ravel() for t in range(count)]
    lines = [" ".join(map(str, row)) for row in rows]
    (folder / "poses.txt").write_text("\n".join(change(lines) if change else lines))


def test_a_folder_is_cut_into_even_clips(tmp_path):
    source = StereoFolder(str(make_folder(tmp_path / "street")), clip_frames=3)
    assert list(source.keys()) == ["street-0000", "street-0001", "street-0002"]
    assert list(source.keys(2)) == ["street-0000", "street-0001"]
    keys = source.keys()
    clips = [source.load(key) for key in keys]
    assert [clip.provenance["frames"] for clip in clips] == [[0, 1, 2], [3, 4], [5, 6]]
    second = clips[1]
    assert second.frames.dtype == torch.uint8
    for side, frames in (("left", second.frames), ("right", second.right)):
        assert np.array_equal(frames.numpy(), np.stack([picture(3, side), picture(4, side)]))
    assert second.times.tolist() == [0.0, 0.125]
    assert second.fps == 8.0
    assert second.baseline == 0.2
    assert second.intrinsics.tolist() == [[50, 0, 31], [0, 51, 24], [0, 0, 1]]
    assert second.world_to_camera is None
    assert second.video == "street"
    assert second.provenance["poses"] == "estimated"
    assert str(tmp_path) not in json.dumps(second.provenance)


def test_stride_takes_every_second_frame(tmp_path):
    source = StereoFolder(str(make_folder(tmp_path / "street")), clip_frames=3, stride=2)
    keys = source.keys()
    clips = [source.load(key) for key in keys]
    assert [clip.provenance["frames"] for clip in clips] == [[0, 2], [4, 6]]
    assert clips[0].fps == 4.0
    assert clips[1].times.tolist() == [0.0, 0.25]


def test_sub_folders_are_videos_and_keys_are_safe(tmp_path):
    for name in ("b.2", "a"):
        make_folder(tmp_path / name, count=2)
    (tmp_path / "notes").mkdir()
    source = pickle.loads(pickle.dumps(StereoFolder(str(tmp_path))))
    assert list(source.keys()) == ["a-0000", "b_2-0000"]
    assert source.load("b_2-0000").video == "b.2"
    make_folder(tmp_path / "b_2", count=2)
    with pytest.raises(InputError, match="same keys"):
        source.keys()


def test_given_poses_start_at_the_clips_first_frame(tmp_path):
    folder = make_folder(tmp_path / "street")
    write_poses(folder, 7)
    source = StereoFolder(str(folder), clip_frames=3)
    clip = source.load("street-0001")
    assert torch.equal(clip.world_to_camera[0], torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(center(clip.world_to_camera), torch.tensor([[0, 0, 0], [0, 0, 0.5]]).double())
    assert clip.provenance["poses"] == "folder"
    assert StereoFolder(str(folder), poses="estimate").load("street-0000").world_to_camera is None
    (folder / "poses.txt").unlink()
    with pytest.raises(InputError, match=r"poses\.txt"):
        StereoFolder(str(folder), poses="folder").keys()


def test_kitti_with_four_labelled_projections(tmp_path):
    # In KITTI the colour cameras stand beside the grey ones: offsets 0.06 m and -0.47 m at fx = 50.
    rows = [projection(50, 30, s) for s in (0.0, -25.0, 3.0, -23.5)]
    colour = make_folder(tmp_path / "colour", names=("image_2", "image_3"), calibration=None)
    grey = make_folder(tmp_path / "grey", names=("image_0", "image_1"), calibration=None)
    for folder in (colour, grey):
        write_kitti(folder, rows)
        # the grey camera turns by 0.2 rad about its own centre
        poses = torch.eye(4, dtype=torch.float64).repeat(7, 1, 1)
        cos, sin = np.cos(0.2), np.sin(0.2)
        poses[1:, :3, :3] = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
        np.savetxt(folder / "poses.txt", poses[:, :3].reshape(7, 12).numpy(), fmt="%.15g")
    clip = StereoFolder(str(grey), fps=10).load("grey-0000")
    assert clip.baseline == pytest.approx(0.5)
    assert center(clip.world_to_camera).abs().max() < 1e-9
    clip = StereoFolder(str(colour), fps=10).load("colour-0000")
    assert clip.baseline == pytest.approx(0.53)
    assert clip.intrinsics[0].tolist() == [50, 0, 30]
    # The colour camera is at x = -0.06 from the grey one, and swings round it.
    turned = torch.tensor([-0.06 * cos + 0.06, 0, 0.06 * sin], dtype=torch.float64)
    torch.testing.assert_close(center(clip.world_to_camera)[1], turned)


def test_kitti_with_two_bare_projections_needs_a_frame_rate(tmp_path):
    folder = make_folder(tmp_path / "street", names=("image_l", "image_r"), calibration=None)
    write_kitti(folder, [projection(50, 30, 0.0), projection(50, 30, -25.0)], labels=False)
    with pytest.raises(InputError, match="no frame rate"):
        StereoFolder(str(folder)).keys()
    assert StereoFolder(str(folder), fps=10).load("street-0000").fps == 10
    times = [0.0, 0.104, 0.2, 0.31, 0.4, 0.5, 0.6]
    (folder / "times.txt").write_text("\n".join(map(str, times)))
    clip = StereoFolder(str(folder)).load("street-0000")
    assert clip.times.tolist() == pytest.approx(times)
    assert clip.fps == pytest.approx(10)
    with pytest.raises(InputError, match="contradictory"):
        StereoFolder(str(folder), fps=30).keys()


def test_grey_images_become_rgb(tmp_path):
    folder = make_folder(tmp_path / "street", count=2)
    grey = np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH).astype(np.uint8)
    Image.fromarray(grey).save(folder / "left" / "000001.png")
    frames = StereoFolder(str(folder)).load("street-0000").frames
    assert np.array_equal(frames[1].numpy(), np.stack([grey] * 3, axis=-1))


def test_frames_and_intrinsics_are_scaled_together(tmp_path):
    folder = make_folder(tmp_path / "street", count=2)
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(image).save(folder / "left" / "000000.png")
    clip = StereoFolder(str(folder), max_width=32).load("street-0000")
    assert clip.frames.shape == clip.right.shape == (2, 24, 32, 3)
    blocks = image.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(clip.frames[0].numpy() - blocks).max() <= 0.75
    # Half the size: the corner (-0.5, -0.5) stays, so that x becomes (x + 0.5) / 2 - 0.5.
    assert clip.intrinsics.tolist() == [[25, 0, 15.25], [0, 25.5, 11.75], [0, 0, 1]]
    assert StereoFolder(str(folder), max_width=43).load("street-0000").frames.shape == (2, 32, 42, 3)
    assert StereoFolder(str(folder), max_width=64).load("street-0000").frames.shape == (2, HEIGHT, WIDTH, 3)


def write_videos(folder, count=7, right_count=None, rate=8.0):
    folder.mkdir()
    (folder / "calib.json").write_text(json.dumps({k: v for k, v in CALIBRATION.items() if k != "fps"}))
    for side, frames in (("left", count), ("right", right_count or count)):
        stack = torch.from_numpy(np.stack([picture(number, side) for number in range(frames)]))
        (folder / f"{side}.mp4").write_bytes(encode(stack, torch.arange(frames, dtype=torch.float64) / rate))
    return folder


def test_two_video_files(tmp_path):
    source = StereoFolder(str(write_videos(tmp_path / "film")), clip_frames=4)
    assert list(source.keys()) == ["film-0000", "film-0001"]
    clip = source.load("film-0001")
    assert clip.provenance["frames"] == [4, 5, 6]
    assert clip.fps == pytest.approx(8, abs=0.01)
    assert clip.times.tolist() == pytest.approx([0, 0.125, 0.25], abs=1e-4)
    for side, frames in (("left", clip.frames), ("right", clip.right)):
        expected = np.stack([picture(number, side) for number in (4, 5, 6)]).astype(int)
        assert np.abs(frames.numpy() - expected).max() <= 6


def test_videos_of_different_length_or_cut_off(tmp_path):
    with pytest.raises(InputError, match=r"7 frames.*6"):
        StereoFolder(str(write_videos(tmp_path / "film", right_count=6))).keys()
    folder = write_videos(tmp_path / "cut")
    whole = (folder / "right.mp4").read_bytes()
    (folder / "right.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"right\.mp4"):
        StereoFolder(str(folder)).load("cut-0000")
    (folder / "right.mp4").unlink()
    with pytest.raises(InputError, match=r"right\.\*"):
        StereoFolder(str(folder)).keys()


def without(key):
    return {name: value for name, value in CALIBRATION.items() if name != key}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "calib.json").unlink(), "calibration is missing"),
        (lambda f: (f / "calib.json").write_text("{"), r"calib\.json.*JSON"),
        (lambda f: (f / "calib.json").write_text("[1]"), r"calib\.json.*keys"),
        (lambda f: (f / "calib.json").write_text(json.dumps(without("cx"))), r"calib\.json.*'cx'"),
        (lambda f: (f / "calib.json").write_text(json.dumps({**CALIBRATION, "fx": "wide"})), r"calib\.json.*'fx'"),
        (
            lambda f: (f / "calib.json").write_text(json.dumps({**CALIBRATION, "baseline": 0})),
            r"calib\.json.*'baseline'",
        ),
        (lambda f: (f / "calib.json").write_text(json.dumps({**CALIBRATION, "baseline": -1})), "'baseline'.*positive"),
        (lambda f: (f / "calib.json").write_text(json.dumps(without("fps"))), "no frame rate"),
        (lambda f: (f / "right" / "000003.png").unlink(), "7 frames.*6"),
        (lambda f: (f / "right" / "000003.png").rename(f / "right" / "000009.png"), r"000003\.png.*000004\.png"),
        (lambda f: shutil.rmtree(f / "right"), r"right.*missing"),
        (lambda f: [file.unlink() for file in (f / "left").iterdir()], r"left.*no images"),
        (lambda f: shutil.rmtree(f / "left"), "holds no stereo video"),
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: write_poses(f, 6), r"poses\.txt.*expected 7 poses.*found 6"),
        (lambda f: (f / "times.txt").write_text("0 \n0.1\n0.1\n0.3\n0.4\n0.5\n0.6"), r"times\.txt.*increase"),
        (lambda f: (f / "times.txt").write_text("0\n1"), r"times\.txt.*expected 7"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_decoded(tmp_path, spoil, message):
    folder = make_folder(tmp_path / "street")
    assert StereoFolder(str(folder)).keys() == ["street-0000"]
    spoil(folder)
    with pytest.raises(InputError, match=message):
        StereoFolder(str(folder)).keys()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: Image.new("RGB", (60, 48)).save(f / "right" / "000003.png"), r"000003\.png.*60x48.*64x48"),
        (lambda f: Image.new("I;16", (64, 48)).save(f / "right" / "000003.png"), r"000003\.png.*8-bit"),
        (lambda f: (f / "right" / "000003.png").write_text("no image"), r"000003\.png.*image"),
        (
            lambda f: write_poses(f, 7, lambda lines: [*lines[:3], "nan " * 12, *lines[4:]]),
            r"poses\.txt, line 4.*finite",
        ),
        (lambda f: write_poses(f, 7, lambda lines: [*lines[:3], "1 2 3", *lines[4:]]), r"poses\.txt, line 4.*12"),
        (
            lambda f: write_poses(f, 7, lambda lines: [*lines[:3], "2 0 0 0 0 2 0 0 0 0 2 0", *lines[4:]]),
            r"line 4.*rotation",
        ),
    ],
)
def test_what_is_wrong_with_one_frame_is_its_clips_trouble_alone(tmp_path, spoil, message):
    folder = make_folder(tmp_path / "street")
    spoil(folder)
    source = StereoFolder(str(folder), clip_frames=3)
    assert source.keys() == ["street-0000", "street-0001", "street-0002"]
    assert len(source.load("street-0000").frames) == 3
    assert len(source.load("street-0002").frames) == 2
    with pytest.raises(InputError, match=message):
        source.load("street-0001")


def test_a_calibration_of_another_resolution_is_named(tmp_path):
    folder = make_folder(tmp_path / "street")
    (folder / "calib.json").write_text(json.dumps({**CALIBRATION, "cx": 90.0}))
    with pytest.raises(InputError, match="another resolution"):
        StereoFolder(str(folder)).load("street-0000")


def test_an_unusable_video_among_others_is_one_bad_clip(tmp_path):
    for name in ("a", "b", "c"):
        make_folder(tmp_path / name)
    (tmp_path / "b" / "calib.json").write_text(json.dumps({**CALIBRATION, "baseline": 0}))
    source = StereoFolder(str(tmp_path), clip_frames=4)
    assert source.keys() == ["a-0000", "a-0001", "b-0000", "c-0000", "c-0001"]
    assert source.video("c-0001") == "c"
    assert source.load("c-0001").video == "c"
    with pytest.raises(InputError, match=r"calib\.json.*'baseline' must be a positive number \(metres\), not 0"):
        source.load("b-0000")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([projection(50, 30, 0.0)], "2 or 4"),
        ([projection(50, 30, 0.0), projection(50, 30, 25.0)], "baseline must be positive"),
        ([projection(50, 30, 0.0), projection(50, 30, 0.0)], "baseline must be positive"),
        ([projection(50, 30, 0.0), projection(50, 31, -25.0)], "one camera matrix"),
        ([[[50, 0, 30, 0], [0, 50, 20, 0]], projection(50, 30, -25.0)], "line 1.*12"),
    ],
)
def test_a_malformed_kitti_calibration_is_named(tmp_path, rows, message):
    folder = make_folder(tmp_path / "street", names=("image_l", "image_r"), calibration=None)
    write_kitti(folder, rows)
    with pytest.raises(InputError, match=rf"calib\.txt.*{message}"):
        StereoFolder(str(folder), fps=10).keys()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_truncated_png_is_named(tmp_path, side):
    folder = make_folder(tmp_path / "street")
    file = folder / side / "000002.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)).save(file)
    whole = file.read_bytes()
    source = StereoFolder(str(folder))
    source.load("street-0000")
    for share in (0.3, 0.9):
        file.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InputError, match=rf"{side}.000002\.png.*cut off"):
            source.load("street-0000")


@pytest.mark.parametrize("key", ["street-0001", "street", "other-0000", "street-x"])
def test_an_unknown_key_is_named(tmp_path, key):
    source = StereoFolder(str(make_folder(tmp_path / "street")))
    with pytest.raises(InputError, match=f"no clip '{key}'"):
        source.load(key)


@pytest.mark.parametrize(
    "arguments", [{"poses": "guess"}, {"clip_frames": 1}, {"stride": 0}, {"fps": 0.0}, {"max_width": 3}]
)
def test_bad_settings_are_named(arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        StereoFolder("x", **arguments)


def test_kitti_as_it_is(real_data):
    source = StereoFolder(str(real_data / "kitti_stereo"), fps=10, max_width=620)
    keys = source.keys()
    assert list(keys) == [f"kitti_stereo-{index:04d}" for index in range(4)]
    clips = [source.load(key) for key in keys]
    assert [len(clip.frames) for clip in clips] == [13, 13, 13, 12]
    clip = clips[3]
    assert clip.frames.shape == clip.right.shape == (12, 188, 620, 3)
    assert clip.baseline == pytest.approx(379.8145 / 707.0912)
    assert float(clip.intrinsics[0, 0]) == pytest.approx(707.0912 * 620 / 1226)
    # Poses against the file, read by hand: frame 39 is the clip's first, frame 50 its last.
    lines = np.loadtxt(real_data / "kitti_stereo" / "poses.txt").reshape(-1, 3, 4)
    there = lines[39][:, :3].T @ (lines[50][:, 3] - lines[39][:, 3])
    assert invert(clip.world_to_camera)[-1, :3, 3].tolist() == pytest.approx(there.tolist(), abs=1e-4)
