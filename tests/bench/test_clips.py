"""What is shown with a question: the frames of its clip, at the decoder's times."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mllm4d.bench.clips import Clip, clips_of, packet_times, read_frames
from mllm4d.bench.suites.custom import CustomSuite
from mllm4d.bench.suites.dsi_bench import DSIBench
from mllm4d.bench.suites.ost_bench import OSTBench
from mllm4d.bench.suites.sti_bench import STIBench
from mllm4d.schema import InputError
from mllm4d.video import decode, encode
from tests.bench.test_suites import dsi_files, ost, sti

UNEVEN = [0.0, 0.1, 0.25, 0.6, 1.0, 1.05, 2.0, 2.5]


def video(path, times=UNEVEN):
    """Frame k is grey of 20 + 25 k."""
    frames = torch.stack([torch.full((32, 32, 3), 20 + 25 * k, dtype=torch.uint8) for k in range(len(times))])
    path.write_bytes(encode(frames, torch.tensor(times, dtype=torch.float64)))
    return path


def greys(frames):
    return ((frames.pixels.float().mean((1, 2, 3)) - 20) / 25).round().long().tolist()


def write(path, entries):
    path.write_text(json.dumps(entries))
    return str(path)


def evenly(count):
    return lambda n: torch.linspace(0, n - 1, min(n, count)).round().long().tolist()


def custom(tmp_path, videos):
    entries = [
        {"id": n, "video": name, "question": "Q?", "options": ["left", "right"], "answer": "A"}
        for n, name in enumerate(videos)
    ]
    return CustomSuite(files=[write(tmp_path / "q.json", entries)], videos=str(tmp_path))


def test_questions_about_one_video_are_one_clip_in_the_order_of_the_first(tmp_path):
    suite = custom(tmp_path, ["b.mp4", "a.mp4", "b.mp4", "b.mp4"])
    assert clips_of(suite, suite.questions()) == [Clip((0, 2, 3), (0,)), Clip((1,), (1,))]


def test_only_the_frames_that_are_used_come_with_the_decoders_times(tmp_path):
    video(tmp_path / "a.mp4")
    suite = custom(tmp_path, ["a.mp4"])
    frames = read_frames(suite, suite.questions(), Clip((0,), (0,)), evenly(3), 1.0)
    assert greys(frames) == [0, 4, 7]
    assert frames.times.tolist() == pytest.approx([0.0, 1.0, 2.5])
    assert frames.fps == pytest.approx(7 / 2.5)
    assert frames.times.dtype == torch.float64


def test_the_times_that_a_container_lists_are_those_of_its_decoder(tmp_path, real_data):
    path = video(tmp_path / "a.mp4")
    assert torch.equal(packet_times(path), decode(path)[1])
    assert torch.equal(packet_times(path.read_bytes()), decode(path)[1])
    assert packet_times(tmp_path / "none.mp4").tolist() == []


def test_where_a_container_lists_other_times_the_decoders_count(tmp_path, monkeypatch):
    video(tmp_path / "a.mp4")
    suite = custom(tmp_path, ["a.mp4"])
    for listed in ([], [0.0, 5.0], [float(k) for k in range(20)]):
        monkeypatch.setattr(
            "mllm4d.bench.clips.packet_times", lambda source, listed=listed: torch.tensor(listed, dtype=torch.float64)
        )
        frames = read_frames(suite, suite.questions(), Clip((0,), (0,)), evenly(3), 1.0)
        assert greys(frames) == [0, 4, 7]
        assert frames.times.tolist() == pytest.approx([0.0, 1.0, 2.5])


def test_a_stretch_of_a_video_is_a_clip_of_its_own_and_keeps_its_times(tmp_path):
    video(tmp_path / "scene1.mp4")
    spans = [(0.25, 1.05), (1.0, 2.0), (0.25, 1.05)]
    entries = [sti(ID=n, time_start=a, time_end=b) for n, (a, b) in enumerate(spans)]
    suite = STIBench(files=[write(tmp_path / "qa.json", entries)], videos=str(tmp_path))
    questions = suite.questions()
    clips = clips_of(suite, questions)
    assert [clip.questions for clip in clips] == [(0, 2), (1,)]
    first, second = (read_frames(suite, questions, clip, evenly(8), 1.0) for clip in clips)
    assert (greys(first), greys(second)) == ([2, 3, 4, 5], [4, 5, 6])
    assert first.times.tolist() == pytest.approx([0.25, 0.6, 1.0, 1.05])
    assert greys(read_frames(suite, questions, clips[0], evenly(2), 1.0)) == [2, 5]


def test_a_stretch_without_a_frame_is_refused(tmp_path):
    video(tmp_path / "scene1.mp4")
    entries = [sti(time_start=1.2, time_end=1.9)]
    suite = STIBench(files=[write(tmp_path / "qa.json", entries)], videos=str(tmp_path))
    with pytest.raises(InputError, match=r"scene1\.mp4: no frame between 1\.2 s and 1\.9 s"):
        read_frames(suite, suite.questions(), Clip((0,), (0,)), evenly(8), 1.0)


def test_variants_of_one_video_are_clips_of_their_own(tmp_path):
    files = dsi_files(tmp_path, {"std": ["A"], "hflip": ["B"], "reverse": ["A"], "reverse_hflip": ["B"]})
    suite = DSIBench(files=files, videos=str(tmp_path))
    clips = clips_of(suite, suite.questions())
    assert [len(clip.questions) for clip in clips] == [1, 1, 1, 1]


def images(folder, scene, count, size=(32, 24)):
    (folder / scene).mkdir()
    for k in range(1, count + 1):
        pixels = np.full((size[1], size[0], 3), 20 + 25 * (k - 1), np.uint8)
        Image.fromarray(pixels).save(folder / scene / f"{k}.png")


def test_a_turn_is_shown_the_images_of_all_turns_so_far_and_room_sizes_are_not_asked(tmp_path):
    images(tmp_path, "scene1", 5)
    names = [[f"scene1/{k}.png" for k in some] for some in ([1, 2], [3], [4, 5], [])]
    kinds = ["Agent_state-position(Judgement)", "A_room-size(float)", *["Agent_state-position(Judgement)"] * 2]
    entries = [
        ost(kind, "left", ["left", "right"], new_observations=new) for kind, new in zip(kinds, names, strict=True)
    ]
    suite = OSTBench(files=[write(tmp_path / "OST_bench.json", entries)], videos=str(tmp_path))
    questions = suite.questions()
    clips = clips_of(suite, questions)
    assert clips == [Clip((0,), (0,)), Clip((2, 3), (0, 1, 2))]  # the last turn has no image of its own
    shown = [read_frames(suite, questions, clip, evenly(8), 0.5) for clip in clips]
    assert [greys(frames) for frames in shown] == [[0, 1], [0, 1, 2, 3, 4]]
    assert shown[1].times.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert shown[1].fps == 2.0
    few = read_frames(suite, questions, clips[1], evenly(3), 0.5)
    assert (greys(few), few.times.tolist()) == ([0, 2, 4], [0.0, 1.0, 2.0])
    # A model that takes four frames together is shown the last image again.
    longer = read_frames(suite, questions, clips[0], evenly(8), 0.5, fewest=4)
    assert (greys(longer), longer.times.tolist()) == ([0, 1, 1, 1], [0.0, 0.5, 1.0, 1.5])


def test_images_of_several_sizes_take_that_of_the_first_and_a_broken_one_is_named(tmp_path):
    images(tmp_path, "scene1", 2)
    Image.fromarray(np.full((50, 40, 3), 45, np.uint8)).save(tmp_path / "scene1" / "2.png")
    entries = [ost("Agent_state-position(Judgement)", "left", ["left", "right"])]
    entries[0]["new_observations"] = ["scene1/1.png", "scene1/2.png"]
    suite = OSTBench(files=[write(tmp_path / "OST_bench.json", entries)], videos=str(tmp_path))
    frames = read_frames(suite, suite.questions(), Clip((0,), (0,)), evenly(8), 1.0)
    assert frames.pixels.shape == (2, 24, 32, 3)
    assert greys(frames) == [0, 1]
    (tmp_path / "scene1" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.png: cannot be read as an image"):
        read_frames(suite, suite.questions(), Clip((0,), (0,)), evenly(8), 1.0)
