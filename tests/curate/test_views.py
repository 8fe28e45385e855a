"""Frames by index are the same however they are reached, and what a folder holds is found."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.curate.sources.stereo import StereoFolder
from mllm4d.curate.sources.video_files import FileView, HalfView
from mllm4d.schema import InputError
from mllm4d.video import decode, encode

CALIBRATION = {"fx": 50.0, "fy": 50.0, "cx": 31.5, "cy": 23.5, "baseline": 0.2, "fps": 8.0}


def moving_noise(count, height=48, width=64):
    random = np.random.default_rng(0)
    # Grey, because video codecs halve the colour's resolution.
    texture = random.integers(0, 255, (height, width + count, 1), dtype=np.uint8).repeat(3, axis=2)
    return np.stack([texture[:, t : t + width] for t in range(count)])


def write_film(path, frames, options, codec="libx264"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


B_FRAMES = {"bf": "3", "g": "40", "keyint_min": "40", "sc_threshold": "0"}
OPEN = {"x264-params": "open-gop=1:keyint=40:min-keyint=40:scenecut=0:bframes=3:b-adapt=0"}
FILMS = {
    "ours": ("film.mp4", None),
    "b-frames": ("film.mp4", B_FRAMES),
    "frames before their key frame": ("film.mp4", OPEN),
    "matroska": ("film.mkv", B_FRAMES),
    "transport stream": ("film.ts", B_FRAMES),
}


@pytest.fixture(scope="module", params=FILMS)
def film(request, tmp_path_factory):
    name, options = FILMS[request.param]
    path, frames = tmp_path_factory.mktemp("film") / name, moving_noise(300)
    if options is None:
        path.write_bytes(encode(torch.from_numpy(frames), torch.arange(300).double() / 25))
    else:
        write_film(path, frames, options)
    return path, *decode(path)


@pytest.mark.parametrize("indices", [[0, 1, 2], [37, 38, 45], [120], [79, 80, 81], [10, 290], [297, 298, 299]])
def test_a_seek_finds_what_decoding_from_the_start_finds(film, indices):
    path, whole, times = film
    view = FileView(path)
    assert len(view) == len(whole) == 300
    assert torch.equal(view.times(), times)
    assert torch.equal(view.read(indices), whole[indices])


@pytest.mark.parametrize("first", [78, 80, 158, 290])
def test_a_late_clip_is_not_decoded_from_the_start(film, first, monkeypatch):
    starts = []
    view = FileView(film[0])
    collect = view._collect
    monkeypatch.setattr(
        view, "_collect", lambda wanted, start, key: starts.append(start) or collect(wanted, start, key)
    )
    view.read([first, first + 1])
    assert starts
    assert None not in starts


def test_a_trimmed_film_holds_what_it_shows(tmp_path):
    """A film cut without coding anew keeps frames that are not shown: they are decoded and thrown away."""
    write_film(tmp_path / "whole.mp4", moving_noise(60), B_FRAMES)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = cut.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                shift = round(0.4 / packet.time_base)
                packet.stream, packet.pts, packet.dts = stream, packet.pts - shift, packet.dts - shift
                cut.mux(packet)
    shown, times = decode(tmp_path / "cut.mp4")
    view = FileView(tmp_path / "cut.mp4")
    assert len(view) == len(shown) == 50
    assert torch.equal(view.times(), times)
    for index in (0, 20, 29, 30, 49):
        assert torch.equal(view.read([index])[0], shown[index])


def test_a_damaged_place_spoils_only_what_is_coded_from_it(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(encode(torch.from_numpy(moving_noise(120)), torch.arange(120).double() / 25))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pts is not None]
    content, (place, length) = bytearray(path.read_bytes()), packets[40]
    for byte in range(place + length // 4, place + length, 7):
        content[byte] ^= 0xFF
    path.write_bytes(content)
    view = FileView(path)
    # Every 32nd frame is a key frame.
    for index in (30, 39, 64, 119):
        view.read([index])
    for index in (40, 41, 63):
        with pytest.raises(InputError, match=r"film\.mp4.*damaged"):
            view.read([index])


def test_an_avi_whose_times_cannot_be_known_is_refused(tmp_path):
    write_film(tmp_path / "film.avi", moving_noise(30), B_FRAMES)
    with pytest.raises(InputError, match=r"film\.avi: AVI does not say when"):
        FileView(tmp_path / "film.avi")
    write_film(tmp_path / "plain.avi", moving_noise(30), {"bf": "0", "g": "10"})
    view = FileView(tmp_path / "plain.avi")
    assert torch.equal(view.read([5, 17]), decode(tmp_path / "plain.avi")[0][[5, 17]])


def test_a_film_that_changes_its_size_is_named(tmp_path):
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        other = av.CodecContext.create("mjpeg", "w")
        other.height, other.width, other.pix_fmt, other.time_base = 32, 64, "yuvj420p", Fraction(1, 25)
        for number, encoder in enumerate([stream, stream, stream, other]):
            image = av.VideoFrame(64, encoder.height, "yuvj420p")
            image.pts, image.time_base = number, Fraction(1, 25)
            for packet in encoder.encode(image):
                packet.stream = stream
                container.mux(packet)
    view = FileView(path)
    assert view.read([0, 2]).shape == (2, 48, 64, 3)
    with pytest.raises(InputError, match=r"film\.mkv, 0\.120 s: is 64x32 pixels, expected 64x48"):
        view.read([2, 3])


def make_stereo(folder, stacked=False, count=5):
    folder.mkdir()
    left, right = moving_noise(count), 255 - moving_noise(count)
    both = np.concatenate([left, right], axis=1 if stacked else 2)
    film = encode(torch.from_numpy(both), torch.arange(count).double() / 8, quality=1)
    (folder / "stereo.mp4").write_bytes(film)
    layout = {"layout": "top_bottom"} if stacked else {}
    (folder / "calib.json").write_text(json.dumps({**CALIBRATION, **layout}))
    return left, right


@pytest.mark.parametrize("stacked", [False, True])
def test_one_film_with_both_views(tmp_path, stacked):
    left, right = make_stereo(tmp_path / "film", stacked)
    clip = StereoFolder(str(tmp_path / "film")).load("film-0000")
    assert clip.frames.shape == clip.right.shape == (5, 48, 64, 3)
    assert np.abs(clip.frames.numpy().astype(int) - left).mean() < 12
    assert np.abs(clip.right.numpy().astype(int) - right).mean() < 12
    assert clip.baseline == 0.2


def test_the_halves_share_one_decoding(tmp_path, monkeypatch):
    make_stereo(tmp_path / "film")
    view = FileView(tmp_path / "film" / "stereo.mp4")
    calls = []
    inner = view._decode
    monkeypatch.setattr(view, "_decode", lambda indices: calls.append(indices) or inner(indices))
    for side in (0, 1):
        HalfView(view, side, stacked=False).read([1, 2])
    assert calls == [(1, 2)]


def test_an_odd_width_cannot_hold_two_views(tmp_path):
    path = tmp_path / "stereo.mp4"
    path.write_bytes(encode(torch.zeros(2, 16, 31, 3, dtype=torch.uint8), torch.arange(2).double()))
    with pytest.raises(InputError, match="two views need an even width, not 31"):
        HalfView(FileView(path), 0, stacked=False)


def make_depth(folder, baseline=0.2, **more):
    (folder / "left").mkdir(parents=True)
    (folder / "depth").mkdir()
    for t in range(3):
        Image.fromarray(np.full((48, 64, 3), 40 * t, np.uint8)).save(folder / "left" / f"{t}.png")
        depth = np.full((48, 64), 512 * (t + 1), np.uint16)
        depth[:, :10] = 0
        Image.fromarray(depth).save(folder / "depth" / f"{t}.png")
    calibration = {k: v for k, v in {**CALIBRATION, "baseline": baseline, **more}.items() if v is not None}
    (folder / "calib.json").write_text(json.dumps(calibration))


def test_stored_depth_and_no_right_view(tmp_path):
    make_depth(tmp_path / "rgbd")
    clip = StereoFolder(str(tmp_path / "rgbd"), max_width=32).load("rgbd-0000")
    assert clip.right is None
    assert clip.baseline is None
    assert clip.depth.shape == (3, 24, 32)
    assert clip.depth[:, 5, 20].tolist() == [2, 4, 6]
    assert clip.depth_sigma[:, 5, 20].tolist() == pytest.approx([0.04, 0.08, 0.12])
    assert clip.depth[0, :, :5].abs().max() == 0
    assert clip.depth_sigma[0, 0, 0] == float("inf")
    make_depth(tmp_path / "millimetres", depth_scale=1000, depth_sigma=0.1)
    clip = StereoFolder(str(tmp_path / "millimetres")).load("millimetres-0000")
    assert clip.depth[0, 5, 40] == pytest.approx(0.512)
    assert clip.depth_sigma[0, 5, 40] == pytest.approx(0.0512)


def test_what_is_wrong_with_depth_is_named(tmp_path):
    make_depth(tmp_path / "a")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "a" / "depth" / "1.png")
    with pytest.raises(InputError, match=r"1\.png: expected a 16-bit grey image"):
        StereoFolder(str(tmp_path / "a")).load("a-0000")
    Image.fromarray(np.zeros((48, 60), np.uint16)).save(tmp_path / "a" / "depth" / "1.png")
    with pytest.raises(InputError, match=r"1\.png: is 60x48 pixels, the view 64x48"):
        StereoFolder(str(tmp_path / "a")).load("a-0000")
    (tmp_path / "a" / "depth" / "1.png").unlink()
    with pytest.raises(InputError, match="holds 2 depth images for 3 frames"):
        StereoFolder(str(tmp_path / "a")).load("a-0000")


def test_depth_belongs_to_the_image_of_its_number(tmp_path):
    make_depth(tmp_path / "a")
    (tmp_path / "a" / "depth" / "2.png").rename(tmp_path / "a" / "depth" / "7.png")
    with pytest.raises(InputError, match=r"2\.png would be paired with 7\.png"):
        StereoFolder(str(tmp_path / "a")).keys()
    (tmp_path / "a" / "depth" / "7.png").unlink()
    with pytest.raises(InputError, match="holds 2 depth images for 3 frames"):
        StereoFolder(str(tmp_path / "a")).keys()


def test_what_else_lies_in_the_root_is_no_video(tmp_path):
    make_stereo(tmp_path / "film")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "left.txt").write_text("no video")
    (tmp_path / "notes").mkdir()
    (tmp_path / "again").symlink_to(tmp_path / "film")
    source = StereoFolder(str(tmp_path))
    assert source.keys() == ["again-0000", "film-0000"]
    assert source.load("again-0000").video == source.video("again-0000") == "again"


def test_a_single_camera_needs_no_right_view_and_a_pair_needs_a_baseline(tmp_path):
    make_depth(tmp_path / "mono", baseline=None)
    for file in (tmp_path / "mono" / "depth").iterdir():
        file.unlink()
    (tmp_path / "mono" / "depth").rmdir()
    clip = StereoFolder(str(tmp_path / "mono")).load("mono-0000")
    assert clip.right is None
    assert clip.depth is None
    make_stereo(tmp_path / "film")
    (tmp_path / "film" / "calib.json").write_text(json.dumps({k: v for k, v in CALIBRATION.items() if k != "baseline"}))
    with pytest.raises(InputError, match=r"calib\.json: key 'baseline' is missing"):
        StereoFolder(str(tmp_path / "film")).keys()
    (tmp_path / "film" / "calib.json").write_text(json.dumps({**CALIBRATION, "layout": "diagonal"}))
    with pytest.raises(InputError, match="'layout' must be side_by_side or top_bottom"):
        StereoFolder(str(tmp_path / "film")).keys()


def test_objects_come_with_the_clip(tmp_path):
    make_stereo(tmp_path / "film")
    square = [[10, 10], [20, 10], [20, 20], [10, 20]]
    entry = {"id": 4, "name": "board", "frames": {"3": {"polygon": square}}}
    (tmp_path / "film" / "objects.json").write_text(json.dumps({"objects": [entry]}))
    source = StereoFolder(str(tmp_path / "film"), clip_frames=3)
    first, second = source.load("film-0000"), source.load("film-0001")
    assert first.masks == ()
    assert [mask.name for mask in second.masks] == ["board"]
    assert second.masks[0].pixels.sum((1, 2)).tolist() == [121, 0]
    # At half the size a pixel is the object's where two of its four are: 10-20 become 5-10, but for the corner 10, 10.
    scaled = StereoFolder(str(tmp_path / "film"), clip_frames=3, max_width=32).load("film-0001").masks[0].pixels
    expected = torch.zeros(24, 32, dtype=torch.bool)
    expected[5:11, 5:11] = True
    expected[10, 10] = False
    assert torch.equal(scaled[0], expected)


def test_objects_that_do_not_fit_the_video_are_found_at_once(tmp_path):
    make_stereo(tmp_path / "film")
    path = tmp_path / "film" / "objects.json"
    path.write_text(json.dumps({"objects": [{"id": 4, "name": "board", "frames": {"5": {"polygon": []}}}]}))
    with pytest.raises(InputError, match=r"objects\.json: object 4, frame 5: the video's last frame is number 4"):
        StereoFolder(str(tmp_path / "film")).keys()
    path.write_text("{")
    with pytest.raises(InputError, match=r"objects\.json: cannot be read as JSON"):
        StereoFolder(str(tmp_path / "film")).keys()


def test_times_are_the_containers(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(encode(torch.zeros(4, 16, 16, 3, dtype=torch.uint8), torch.tensor([0, 0.1, 0.3, 0.35]).double()))
    assert FileView(path).times().tolist() == pytest.approx([0, 0.1, 0.3, 0.35], abs=1e-4)
