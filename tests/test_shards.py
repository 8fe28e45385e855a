import io
import json
import tarfile
import zlib
from dataclasses import replace

import pytest
import torch

from mllm4d.schema import InputError, Question, Sample
from mllm4d.shards import BrokenShard, parse_clip, read_index, read_shard, write_index, write_shards
from mllm4d.video import encode


def question(number, **changes):
    fields = {
        "id": f"clip/{number:03d}",
        "task": "camera_absolute_distance",
        "question": "How far?",
        "options": {"A": "1 m", "B": "2 m"},
        "answer": "B",
        "answer_value": 2.04,
        "unit": "m",
        "anchors": (0, 3),
        "object": None,
        "solution": {"camera_center": [[0, 0, 0], [0, 0, 2.04]], "object_center": None},
        "reasoning": None,
    }
    return Question(**{**fields, **changes})


def sample(number, **changes):
    return Sample(f"clip-{number}", b"mp4 bytes", {"units": "m"}, tuple(question(k, **changes) for k in range(number)))


def test_round_trip(tmp_path):
    samples = [sample(n) for n in (1, 2, 3)]
    shards = write_shards(samples, tmp_path, "train", clips_per_shard=2)
    write_index(tmp_path, shards, {"source": "test"})
    index = read_index(tmp_path)
    assert [shard.questions for shard in index.split("train")] == [(1, 2), (3,)]
    assert index.notes == {"source": "test"}
    assert [s for shard in index.shards for s in read_shard(tmp_path / shard.path)] == samples
    assert [s.key for s in read_shard(tmp_path / index.shards[0].path, {"clip-2"})] == ["clip-2"]


def test_members_are_named_as_fixed(tmp_path):
    write_shards([sample(1)], tmp_path, "val", 8)
    with tarfile.open(tmp_path / "val-000000.tar") as tar:
        assert sorted(tar.getnames()) == ["clip-1.mp4", "clip-1.qa.json", "clip-1.scene.json"]
        entry = json.load(tar.extractfile("clip-1.qa.json"))[0]
    assert set(entry) == set(
        [
            "id",
            "task",
            "question",
            "options",
            "answer",
            "answer_value",
            "unit",
            "anchors",
            "object",
            "solution",
            "reasoning",
        ]
    )


def test_same_samples_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (write_shards([sample(2)], tmp_path / name, "train", 8) for name in ("a", "b"))
    assert first == second


def test_an_answer_outside_the_options_names_file_and_question(tmp_path):
    write_shards([sample(1, answer="E")], tmp_path, "train", 8)
    with pytest.raises(ValueError, match=r"train-000000\.tar: clip-1\.qa\.json: question 'clip/000': answer 'E'"):
        list(read_shard(tmp_path / "train-000000.tar"))


def test_a_missing_index_and_a_missing_shard_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"index\.json: not found"):
        read_index(tmp_path)
    write_index(tmp_path, write_shards([sample(1)], tmp_path, "train", 8), {})
    (tmp_path / "train-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"train-000000\.tar: not found"):
        read_index(tmp_path)


def test_spans_are_where_the_clips_lie(tmp_path):
    samples = [sample(n) for n in (1, 2, 3)]
    samples.append(replace(samples[0], key="clip-" + "x" * 120))  # a name that takes a header of its own
    (shard,) = write_shards(samples, tmp_path, "train", clips_per_shard=8)
    content = (tmp_path / shard.path).read_bytes()
    assert [parse_clip(content[a:b], k, "t") for k, (a, b) in zip(shard.keys, shard.spans, strict=True)] == samples
    assert [b for _, b in shard.spans[:-1]] == [a for a, _ in shard.spans[1:]]
    assert shard.crc32 == tuple(zlib.crc32(content[a:b]) for a, b in shard.spans)
    assert content[shard.spans[-1][1] :].strip(b"\0") == b""
    # "How far?" with "1 m" and "2 m", and no reasoning; the bytes are no video
    assert shard.characters[1] == ((14, 0), (14, 0))
    assert shard.sizes == (None,) * 4
    write_index(tmp_path, [shard], {})
    assert read_index(tmp_path).shards == (shard,)


def test_the_size_of_a_real_video_is_noted(tmp_path):
    times = torch.arange(3, dtype=torch.float64)
    video = encode(torch.zeros(3, 32, 48, 3, dtype=torch.uint8), times)
    (shard,) = write_shards([replace(sample(1), video=video)], tmp_path, "train", 8)
    assert shard.sizes == ((3, 32, 48),)


def test_an_index_of_the_first_kind_still_works(tmp_path):
    write_index(tmp_path, write_shards([sample(1)], tmp_path, "train", 8), {})
    content = json.loads((tmp_path / "index.json").read_text())
    for name in ("spans", "crc32", "sizes", "characters"):
        del content["shards"][0][name]
    (tmp_path / "index.json").write_text(json.dumps(content))
    (shard,) = read_index(tmp_path).shards
    assert (shard.spans, shard.sizes, shard.keys) == (None, None, ("clip-1",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spans": [[0, 1], [1, 2]]}, "key 'spans' has 2 entries for 1 clips"),
        ({"spans": [[5, 5]]}, r"key 'spans' has \[5, 5\]"),
        ({"questions": []}, "key 'questions' has 0 entries"),
        ({"path": "/etc/passwd"}, "which would leave the folder"),
    ],
)
def test_an_index_that_does_not_fit_itself(tmp_path, change, message):
    write_index(tmp_path, write_shards([sample(1)], tmp_path, "train", 8), {})
    content = json.loads((tmp_path / "index.json").read_text())
    content["shards"][0].update(change)
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"index.json: shard 0.*{message}"):
        read_index(tmp_path)


def members(**changes):
    dump = json.dumps([question(0).to_dict()]).encode()
    return {"clip-1.mp4": b"mp4", "clip-1.qa.json": dump, "clip-1.scene.json": b'{"units": "m"}', **changes}


def write_tar(path, entries, **info):
    with tarfile.open(path, "w") as tar:
        for name, content in entries:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            for key, value in (info if name == "bad.mp4" else {}).items():
                setattr(header, key, value)
            tar.addfile(header, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "info", "message"),
    [
        ("/tmp/a.mp4", {}, "'/tmp/a.mp4' would leave the folder"),
        ("../a.mp4", {}, r"'\.\./a\.mp4' would leave the folder"),
        ("a/../../a.mp4", {}, "would leave the folder"),
        ("a\\..\\b.mp4", {}, "would leave the folder"),
        ("C:a.mp4", {}, "would leave the folder"),
        ("bad.mp4", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "is a link or a device"),
        ("bad.mp4", {"type": tarfile.LNKTYPE, "linkname": "clip-1.mp4"}, "is a link or a device"),
        ("bad.mp4", {"type": tarfile.CHRTYPE}, "is a link or a device"),
        ("clip-1.mp4", {}, "'clip-1.mp4' is there twice"),
    ],
)
def test_members_that_are_refused(tmp_path, name, info, message):
    path = write_tar(tmp_path / "t.tar", [*members().items(), (name, b"")], **info)
    with pytest.raises(InputError, match=rf"t\.tar: member .*{message}"):
        list(read_shard(path))


def test_a_clip_that_is_there_twice(tmp_path):
    entries = [*members().items(), ("clip-2.mp4", b""), ("clip-1.json", b"")]
    with pytest.raises(InputError, match="sample 'clip-1' is there twice"):
        list(read_shard(write_tar(tmp_path / "t.tar", entries), {"none"}))


def test_a_huge_member_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "t.tar"
    header = tarfile.TarInfo("clip-1.mp4")
    header.size = 2**40
    path.write_bytes(header.tobuf())
    with pytest.raises(InputError, match=r"t\.tar: member 'clip-1\.mp4' has 1099511627776 bytes, more than"):
        list(read_shard(path))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(tmp_path, number):
    entries = members(**{"clip-1.scene.json": f'{{"fps": {number}}}'.encode()}).items()
    with pytest.raises(InputError, match=rf"t\.tar: clip-1\.scene\.json: holds the number {number}"):
        list(read_shard(write_tar(tmp_path / "t.tar", entries)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[1]", "expected an object in scene.json"), (b"{", "is not JSON"), (b"\xff\xfe{}", "is not JSON")],
)
def test_metadata_that_is_none(tmp_path, content, message):
    entries = members(**{"clip-1.scene.json": content}).items()
    with pytest.raises(InputError, match=rf"t\.tar: clip-1.*{message}"):
        list(read_shard(write_tar(tmp_path / "t.tar", entries)))


def test_broken_files(tmp_path):
    (shard,) = write_shards([sample(n) for n in (1, 2, 3)], tmp_path, "train", 8)
    path = tmp_path / shard.path
    whole = path.read_bytes()
    start = shard.spans[1][0]
    for content, message in (
        (whole[: start + 700], "cut off"),
        (whole[:start] + b"garbage" * 1000, f"garbled after byte {start}"),
        (b"garbage" * 1000, "is no tar file"),
        (b"", "is no tar file"),
    ):
        path.write_bytes(content)
        with pytest.raises(BrokenShard, match=rf"train-000000\.tar: .*{message}"):
            list(read_shard(path))
    with pytest.raises(BrokenShard, match=r"'clip-1' where index\.json has clip 'clip-2'"):
        parse_clip(whole[slice(*shard.spans[0])], "clip-2", "t.tar")
