import json
import tarfile

import pytest

from mllm4d.schema import Question, Sample
from mllm4d.shards import read_index, read_shard, write_index, write_shards


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
