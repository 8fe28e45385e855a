"""MLLM4D-Bench from shards: its questions, their videos, and answer files with and without the shards."""

import json

import pytest

from mllm4d.bench.suites.own import MismatchedVideos, MLLM4DBench
from mllm4d.schema import TASKS, InputError
from mllm4d.shards import read_shard, write_index, write_shards
from tests.data.shard_sets import question, sample, write_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("bench") / "shards", {"train": [1], "test": [2, 3]}, clips_per_shard=1)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_questions_of_the_test_split_alone_with_our_prompt(shards):
    suite = MLLM4DBench(shards=str(shards))
    questions = suite.questions()
    assert [q.id for q in questions] == [
        *(f"clip-test-0/{n:03d}" for n in range(2)),
        *(f"clip-test-1/{n:03d}" for n in range(3)),
    ]
    assert {q.video for q in questions} == {"clip-test-0", "clip-test-1"}
    assert suite.prompt(questions[0]) == (
        "How far did the camera move?\nA. 1 m\nB. 2 m\nAnswer with the letter of the right option."
    )
    assert questions[0].right == {"B"}
    with pytest.raises(InputError, match="the split 'val' has no questions"):
        MLLM4DBench(shards=str(shards), split="val").questions()


def test_a_question_shows_its_own_clip_from_the_shards(shards):
    suite = MLLM4DBench(shards=str(shards))
    suite.check()
    clips = {s.key: s.video for path in shards.glob("test-*.tar") for s in read_shard(path)}
    for asked in suite.questions():
        assert suite.media(asked).video == clips[asked.video]


def test_the_control_shows_the_other_clip_and_asks_the_same(shards, tmp_path):
    suite, control = MLLM4DBench(shards=str(shards)), MismatchedVideos(shards=str(shards))
    assert control.questions() == suite.questions()
    first, last = suite.questions()[0], suite.questions()[-1]
    assert control.media(first) == suite.media(last) != suite.media(first)
    assert control.media(last) == suite.media(first)
    lonely = write_set(tmp_path / "lonely", {"test": [2]}, clips_per_shard=1)
    alone = MismatchedVideos(shards=str(lonely))
    with pytest.raises(InputError, match="the split 'test' has one clip"):
        alone.media(alone.questions()[0])
    with pytest.raises(InputError, match="name the folder of shards"):
        MismatchedVideos().media(first)


def test_answers_by_id_need_the_shards_and_whole_entries_do_not(shards, tmp_path):
    suite = MLLM4DBench(shards=str(shards))
    short = [{"id": q.id, "response": "B"} for q in suite.questions()[:4]]
    whole = [{**q.entry, "response": "B"} for q in suite.questions()[:4]]
    by_id = suite.answers(write(tmp_path / "short.jsonl", short))
    assert (len(by_id.questions), by_id.missing) == (4, 1)
    alone = MLLM4DBench().answers(write(tmp_path / "whole.jsonl", whole))
    assert [q.id for q in alone.questions] == [q.id for q in by_id.questions]
    assert {q.task for q in alone.questions} == {"camera_absolute_distance"}
    assert {MLLM4DBench().score(q, "B").score for q in alone.questions} == {1.0}
    with pytest.raises(InputError, match=r"entry 1 \(id 'clip-test-0/000'\): lacks the key"):
        MLLM4DBench().answers(tmp_path / "short.jsonl")


def test_means_over_the_papers_six_tasks_and_over_all_seven(tmp_path):
    clip = sample("clip", 0)
    questions = tuple(question("clip", n, task=task) for n, task in enumerate(TASKS))
    folder = tmp_path / "shards"
    folder.mkdir()
    written = write_shards([type(clip)(clip.key, clip.video, clip.scene, questions)], folder, "test", 4)
    write_index(folder, written, {})
    suite = MLLM4DBench(shards=str(folder))
    # Right in the first task and in the seventh relation, which the paper has not.
    said = {"camera_absolute_distance": "B", "object_relative_direction": "2 m"}
    scored = [suite.score(q, said.get(q.task, "A")) for q in suite.questions()]
    assert suite.summary(scored)["official"] == {
        "mean_of_six": pytest.approx(1 / 6, abs=1e-6),
        "mean_of_seven": pytest.approx(2 / 7, abs=1e-6),
        "mean_in_words": 0.25,
    }
    assert "mean_of_six" not in suite.summary(scored[1:])["official"]


def test_shards_and_files_are_not_both_named():
    with pytest.raises(InputError, match="'shards' or 'files', not both"):
        MLLM4DBench(files=["a.json"], shards="b")
