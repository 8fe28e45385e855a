"""Released files and real MP4 files to shards and back, what is missing or broken counted and named."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mllm4d.data import entries
from mllm4d.data.clips import find_video, frame_rate, keys_of
from mllm4d.data.entries import read_entries
from mllm4d.data.formats import FORMATS
from mllm4d.data.release import write_released
from mllm4d.data.released import ReleasedImport
from mllm4d.schema import InputError, Sample
from mllm4d.shards import read_index, read_shard, write_index, write_shards
from mllm4d.video import decode, encode
from tests.conftest import ROOT
from tests.data.test_formats import question

WORDING = "From 0 s to 1 s, how far did the car move through space, in a straight line?"


def film(number=0, count=6, step=0.25):
    ramp = torch.arange(64, dtype=torch.uint8)[None, None, :, None].expand(count, 48, 64, 3)
    return encode(
        ramp + number * torch.arange(count, dtype=torch.uint8)[:, None, None, None], torch.arange(count) * step
    )


def scene(count=6):
    return {"units": "m", "fps": 4.0, "times": [0.25 * k for k in range(count)], "provenance": {"from": "a test"}}


def samples():
    for n, key in enumerate(("street-000", "room-1")):
        asked = [
            question(
                id=f"{key}/{k:03d}",
                anchors=(k, 5),
                answer="ABCD"[k],
                reasoning=f"<thinking>Ä</thinking>\n<answer>{'ABCD'[k]}</answer>",
            )
            for k in range(2 + n)
        ]
        yield Sample(key, film(n), scene(), tuple(asked))


def read_all(folder):
    index = read_index(folder)
    return {sample.key: sample for shard in index.shards for sample in read_shard(folder / shard.path)}


def settings(folder, name="sft", **changes):
    file = folder / f"train.{'jsonl' if FORMATS[name].lines else 'json'}"
    return ReleasedImport(
        **{"files": [str(file)], "format": name, "videos": str(folder), "out": str(folder / "out")} | changes
    )


def write(folder, rows, name="sft"):
    entries.write_entries(rows, folder / f"train.{'jsonl' if FORMATS[name].lines else 'json'}", FORMATS[name].lines)


@pytest.fixture
def folder(tmp_path):
    """Two videos in a subfolder, as others lay them out."""
    (tmp_path / "davis").mkdir()
    for n in range(2):
        (tmp_path / "davis" / f"clip.{n}.mp4").write_bytes(film(n))
    return tmp_path


def row(video="davis/clip.0.mp4", wording=WORDING, answer="B"):
    text = f"<video>\n{wording}\nA. 50 cm\nB. 1.3 m\nAnswer."
    return {"video": video, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]}


@pytest.mark.parametrize("name", FORMATS)
def test_shards_come_back_as_they_were(tmp_path, name):
    shards = tmp_path / "shards"
    shards.mkdir()
    originals = {sample.key: sample for sample in samples()}
    write_index(shards, write_shards(originals.values(), shards, "train", 1), {})
    file = write_released(shards, "train", name, tmp_path / "released")
    assert json.loads(file.read_text().split("\n")[0 if FORMATS[name].lines else 1].rstrip(","))
    settings(tmp_path / "released", name, out=str(tmp_path / "again")).run()
    assert read_all(tmp_path / "again") == originals


def test_a_question_that_a_format_cannot_say_is_refused_and_nothing_is_left(tmp_path):
    for changes, reason in (({"reasoning": None}, "no reasoning"), ({"question": " How far?"}, "another question")):
        shards = tmp_path / reason.split()[0]
        shards.mkdir()
        bad = replace(next(samples()), questions=(question(anchors=(0, 5), **changes),))
        write_index(shards, write_shards([bad], shards, "train", 1), {})
        with pytest.raises(InputError, match=reason):
            write_released(shards, "train", "cold_start", tmp_path / "released")
        assert not list(tmp_path.glob("released*"))


def test_others_files_give_samples_with_what_is_known(folder):
    write(folder, [row(), row("davis/clip.1.mp4"), row(answer="A. 50 cm")])
    settings(folder).run()
    found = read_all(folder / "out")
    (first,) = [sample for sample in found.values() if sample.scene["provenance"]["video"] == "clip.0.mp4"]
    assert first.video == film(0)
    assert first.scene["times"] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 1.25])
    assert first.scene["fps"] == pytest.approx(4)
    assert first.scene["camera"] is None
    assert [q.id for q in first.questions] == [f"{first.key}/000", f"{first.key}/001"]
    assert [(q.answer, q.answer_value, q.unit, q.anchors) for q in first.questions] == [
        ("B", 1.3, "m", (0, 5)),
        ("A", 0.5, "m", (0, 5)),
    ]
    notes = read_index(folder / "out").notes
    assert notes["counts"] == {"train": {"object_absolute_distance": 3}}
    assert notes["source"] == {"format": "sft", "files": ["train.json"]}
    assert notes["blind"]["object_absolute_distance"]["n"] == 3


def test_a_video_is_found_by_the_end_of_someones_path_and_nowhere_else(folder):
    found = folder / "davis" / "clip.1.mp4"
    assert find_video(folder, "/home/someone/VLM4D/davis/clip.1.mp4") == found
    assert find_video(folder / "davis", "elsewhere/clip.1.mp4") == found
    assert find_video(folder / "davis", str(found)) == found
    assert find_video(folder, "clip.1.mp4") is None
    outside = folder / "outside.mp4"
    outside.write_bytes(film())
    assert find_video(folder / "davis", str(outside)) is None
    assert find_video(folder / "davis", "../outside.mp4") is None


def test_keys_are_safe_and_no_two_alike():
    names = ["street-000.mp4", "videos/x.mp4", "a.mp4", "a.mov", "b/a.mp4", "a b.mp4", "a.b.mp4", "é.mp4", "..mp4"]
    keys = keys_of([Path(name) for name in names])
    assert keys[:2] == ["street-000", "x"]
    assert len(set(keys)) == len(keys)
    assert all(key and key.isascii() and not set(key) & set("./ ") for key in keys)


def test_two_names_of_one_video_are_one_clip(folder):
    write(folder, [row("/home/a/davis/clip.0.mp4"), row("/data/b/davis/clip.0.mp4", answer="A")])
    settings(folder).run()
    (sample,) = read_all(folder / "out").values()
    assert [q.answer for q in sample.questions] == ["B", "A"]


def test_missing_and_broken_videos_are_named_within_a_limit(folder, capsys):
    (folder / "broken.mp4").write_bytes(film()[:400])
    (folder / "still.mp4").write_bytes(film(count=1))
    write(folder, [row(), row("gone.mp4"), row("broken.mp4"), row("still.mp4"), row("davis/clip.1.mp4")])
    with pytest.raises(InputError, match=r"gone\.mp4: no such video.*1 of 5 videos"):
        settings(folder).run()
    assert not list(folder.glob("out*"))
    settings(folder, max_failed=0.6).run()
    failed = read_index(folder / "out").notes["clips"]["failed"]
    assert set(failed) == {"gone.mp4", "broken.mp4", "still.mp4"}
    assert "rate" in failed["still.mp4"]
    assert len(read_all(folder / "out")) == 2
    assert "gone.mp4" in capsys.readouterr().out


def test_unusable_rows_are_counted_by_reason_and_named(folder, capsys):
    other = "How many bears are there?"
    write(folder, [row(), row(wording=other), row(answer="Z"), {"video": "x"}, row(wording=other)])
    settings(folder).run()
    notes = read_index(folder / "out").notes
    assert notes["filters"] == {
        "has an answer that is none of its options": 1,
        "has a wording that says nothing of its task": 2,
        "lacks the key 'conversations'": 1,
    }
    assert any("entry 2 has an answer" in line for line in notes["left_out"])
    assert any("bears" in line for line in notes["left_out"])
    assert "left out 2: has a wording" in capsys.readouterr().out
    settings(folder, out=str(folder / "b"), other="object_relative_direction").run()
    tasks = read_index(folder / "b").notes["counts"]["train"]
    assert tasks == {"object_absolute_distance": 1, "object_relative_direction": 2}
    settings(folder, out=str(folder / "c"), tasks={"camera_relative_direction": ["bears"]}).run()
    assert read_index(folder / "c").notes["counts"]["train"]["camera_relative_direction"] == 2


def test_nothing_usable_and_bad_settings_are_one_sentence(folder):
    write(folder, [row(wording="Describe it.")])
    with pytest.raises(InputError, match="no question is left; 1 has a wording"):
        settings(folder).run()
    write(folder, [])
    with pytest.raises(InputError, match="no entry"):
        settings(folder).run()
    for changes, words in (
        ({"format": "coco"}, "'coco' is not one of sft"),
        ({"other": "counting"}, "'counting' is not one of"),
        ({"tasks": {"camera_relative_direction": ["("]}}, "no regular expression"),
        ({"videos": "nowhere"}, "nowhere: not found"),
        ({"files": ["nothing.json"]}, r"nothing\.json: not found"),
        ({"out": str(folder / "davis")}, "is there already"),
    ):
        with pytest.raises(InputError, match=words):
            settings(folder, **changes).run()


def test_long_videos_can_be_thinned_out(folder):
    (folder / "long.mp4").write_bytes(film(count=21))
    write(folder, [row("long.mp4")])
    settings(folder, frames=5).run()
    (sample,) = read_all(folder / "out").values()
    assert decode(sample.video)[1].tolist() == pytest.approx([0, 1.25, 2.5, 3.75, 5])
    assert sample.scene["times"] == pytest.approx([0, 1.25, 2.5, 3.75, 5])
    assert sample.scene["fps"] == pytest.approx(0.8)
    assert sample.questions[0].anchors == (0, 4)


def test_splits_keep_videos_apart_and_are_seeded(folder):
    for n in range(8):
        (folder / f"v{n}.mp4").write_bytes(film(n))
    write(folder, [row(f"v{n}.mp4", answer=a) for n in range(8) for a in "AB"])
    for out in ("a", "b"):
        settings(folder, out=str(folder / out), splits={"train": 0.75, "val": 0.25}, workers=3).run()
    index = read_index(folder / "a")
    members = {split: {key for shard in index.split(split) for key in shard.keys} for split in ("train", "val")}
    assert [len(keys) for keys in members.values()] == [6, 2]
    assert not members["train"] & members["val"]
    assert index == read_index(folder / "b")


def test_a_list_is_read_piece_by_piece(tmp_path, monkeypatch):
    rows = [{"k": k, "text": 'é "]," \\ ' * k} for k in range(40)]
    path = tmp_path / "list.json"
    for indent, size in ((None, 7), (2, 64), (None, 1 << 20)):
        monkeypatch.setattr(entries, "CHUNK", size)
        path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False))
        assert list(read_entries(path)) == rows
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert list(read_entries(path)) == rows


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}, {"a": 2', "entry 1 of the list is not JSON"),
        ('[{"a": 1}', "entry 1 of the list is not JSON"),
        ('[{"a": 1}, {a: 2}]', "entry 1 of the list is not JSON"),
        ('{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("no", "line 1 is not JSON"),
    ],
)
def test_broken_files_say_where(tmp_path, text, words):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        list(read_entries(path))


def test_memory_does_not_grow_with_the_file(tmp_path):
    """The peak of reading 40 MB of rows stays under a few chunks."""
    import tracemalloc

    path = tmp_path / "big.json"
    entries.write_entries((row() | {"note": "x" * 1000, "n": n} for n in range(30_000)), path, lines=False)
    tracemalloc.start()
    count = sum(1 for _ in read_entries(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert path.stat().st_size > 36e6
    assert peak < 12e6


def test_a_rate_needs_time_that_passes():
    assert frame_rate(torch.tensor([0.0, 0.1, 0.4]), "a") == pytest.approx(5)
    for times in ([0.0], [0.0, 0.0], [1.0, 0.5]):
        with pytest.raises(InputError, match=r"a\.mp4: its . frames"):
            frame_rate(torch.tensor(times), "a.mp4")


def test_the_tools_run(folder):
    (folder / "tasks.yaml").write_text('object_relative_direction: ["how far did the car"]\n')
    write(folder, [row(), row("davis/clip.1.mp4")])
    out = folder / "shards"
    options = ["--videos", folder, "--out", out, "--tasks", folder / "tasks.yaml", "--splits", "train=0.5", "val=0.5"]
    result = tool("import_released", "sft", folder / "train.json", *options)
    assert "2 clips of 2, 2 questions of 2 entries" in result.stdout, result.stderr
    assert read_index(out).notes["counts"] == {s: {"object_relative_direction": 1} for s in ("train", "val")}
    result = tool("write_released", "vlm4d", out, "--out", folder / "vlm4d")
    assert len(json.loads((folder / "vlm4d" / "train.json").read_text())) == 1
    result = tool("import_released", "sft", folder / "train.json", "--videos", folder, "--out", out)
    assert result.returncode == 1
    assert result.stderr.strip().endswith("name a new folder under 'out'")
    assert "Traceback" not in result.stderr


def tool(name, *arguments):
    command = [sys.executable, ROOT / "tools" / f"{name}.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
