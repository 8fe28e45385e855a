"""Streaming as a data module does it: over HTTP, from several sets, past faults, filled by tokens."""

import logging
import os
import shutil
from collections import Counter

import pytest

from mllm4d.data.datamodule import ClipDataModule
from mllm4d.data.mixing import ShardSet
from mllm4d.schema import InputError
from mllm4d.shards import read_index, read_shard
from tests.data.servers import BreaksOffTwice, Garbage, serve
from tests.data.shard_sets import PlainInputs, write_set

COUNTS = [2, 3, 1, 2, 4, 2, 3, 1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("stream") / "shards", {"train": COUNTS, "val": [2, 1], "r1": [3]})


def module(shards, **settings):
    shards = shards if isinstance(shards, list) else str(shards)
    data = ClipDataModule(shards, **{"workers": 0, "batch_size": 4, "inputs": PlainInputs(), **settings})
    data.setup()
    return data


def ids(batches):
    return [[question.id for question in batch.questions] for batch in batches]


def everyone(shards, split="train"):
    return [q.id for s in read_index(shards).split(split) for x in read_shard(shards / s.path) for q in x.questions]


def spoil(shards, folder, clip):
    """A copy in which one clip's bytes are garbage."""
    shutil.copytree(shards, folder)
    shard = next(shard for shard in read_index(folder).shards if clip in shard.keys)
    start, end = shard.spans[shard.keys.index(clip)]
    content = bytearray((folder / shard.path).read_bytes())
    content[start:end] = os.urandom(end - start)
    (folder / shard.path).write_bytes(content)
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_over_http_the_batches_are_those_of_the_disk(shards, workers, tmp_path):
    expected = ids(module(shards).train_dataloader())
    with serve(shards, BreaksOffTwice) as (url, _):
        for cache in (None, str(tmp_path / "cache")):
            assert ids(module(url, workers=workers, cache=cache).train_dataloader()) == expected


def test_several_sets_and_splits(shards, tmp_path):
    other = write_set(tmp_path / "other", {"train": [1] * 10, "test": [2]}, name="other")
    sets = [ShardSet(str(shards)), ShardSet(str(other), weight=0.5)]
    data = module(sets, window=10)
    loader = data.train_dataloader()
    epochs = [Counter(id for batch in ids(loader) for id in batch) for _ in range(2)]
    for epoch in epochs:
        assert {id for id in epoch if not id.startswith("other")} == set(everyone(shards))
        assert sum(epoch.values()) == sum(COUNTS) + 5
    assert {id for epoch in epochs for id in epoch if id.startswith("other")} == set(everyone(other))
    # Evaluation asks every question of every set that has the split, once.
    assert [id for batch in ids(data.val_dataloader()) for id in batch] == everyone(shards, "val")
    assert [id for batch in ids(data.test_dataloader()) for id in batch] == everyone(other, "test")
    assert data.read("other-test-0").questions[1].id == "other-test-0/001"
    assert len(data.index.shards) == len(read_index(shards).shards) + len(read_index(other).shards)

    both = module(shards, train_split=["train", "r1"]).train_dataloader()
    assert sorted(id for batch in ids(both) for id in batch) == sorted(everyone(shards) + everyone(shards, "r1"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_clip_stops_the_run_or_is_left_out_and_named(shards, tmp_path, workers, caplog):
    broken = spoil(shards, tmp_path / "broken", "clip-train-3")
    with pytest.raises(InputError, match=r"^.*train-000000\.tar: the bytes of clip 'clip-train-3' are not those"):
        list(module(broken, workers=workers).train_dataloader())
    with pytest.raises(
        InputError, match=r"2 of 18 questions cannot be used, 'max_skipped' allows 0\.1 of them; the last"
    ):
        list(module(broken, workers=workers, max_skipped=0.1).train_dataloader())
    with caplog.at_level(logging.WARNING):
        data = module(broken, workers=workers, max_skipped=0.2)
        loader = data.train_dataloader()
        batches = ids(loader)
    assert len(batches) == len(loader) == 5
    assert sorted(id for batch in batches for id in batch) == [
        id for id in everyone(shards) if not id.startswith("clip-train-3/")
    ]
    assert data.skipped == {"train": 2}
    assert loader.faults[0].name == "clip-train-3"
    assert "left out 2 questions, 'clip-train-3'" in caplog.text


def test_a_broken_shard_on_a_server(shards):
    with serve(shards, Garbage) as (url, _):
        data = module(url, max_skipped=0.99, retries=0)
        with pytest.raises(InputError, match="18 of 18 questions cannot be used"):
            list(data.train_dataloader())


def test_an_empty_batch_takes_a_row_of_its_neighbour(shards, tmp_path):
    broken = spoil(shards, tmp_path / "broken", "clip-train-0")
    whole, left = ids(module(shards, batch_size=2, window=0).train_dataloader()), {"max_skipped": 0.2, "window": 0}
    batches = ids(module(broken, batch_size=2, **left).train_dataloader())
    assert whole[0] == ["clip-train-0/000", "clip-train-0/001"]
    assert batches == [[whole[1][1]], [whole[1][0]], *whole[2:]]
    # Where no neighbour has one to spare, one comes twice.
    single = ids(module(broken, batch_size=1, **left).train_dataloader())
    assert len(single) == sum(COUNTS)
    assert single[:3] == [["clip-train-1/000"]] * 3
    last = spoil(shards, tmp_path / "last", "clip-train-7")
    assert ids(module(last, batch_size=1, **left).train_dataloader())[-2:] == [["clip-train-6/002"]] * 2


def test_a_question_that_is_too_long_is_left_out_and_not_its_clip(tmp_path):
    folder = write_set(tmp_path / "long", {"train": [4, 4, 4]}, words=10)
    length = 8 + len(module(folder).read("clip-train-0").questions[2].question.split())
    inputs = PlainInputs(max_length=length + 20)
    all_lengths = {len(r.tokens["input_ids"]) for r in _records(folder)}
    assert max(all_lengths) > inputs.max_length
    with pytest.raises(InputError, match=r"question 'clip-train-\d/003' has \d+ tokens"):
        list(module(folder, inputs=inputs).train_dataloader())
    data = module(folder, inputs=inputs, max_skipped=0.5)
    seen = [id for batch in ids(data.train_dataloader()) for id in batch]
    assert data.skipped["train"] + len(seen) == 12
    assert all(not id.endswith("/003") for id in seen)
    assert {fault.name.rsplit("/", 1)[1] for fault in data._loaders["train"].faults} == {"003"}


def _records(folder):
    inputs = PlainInputs()
    data = module(folder, inputs=inputs)
    from mllm4d import prompts
    from mllm4d.data.encoding import encode_sample

    for n in range(3):
        pairs, _ = encode_sample(data.read(f"clip-train-{n}"), inputs, prompts.letter, range(4))
        yield from (record for _, _, record in pairs)


@pytest.mark.parametrize("known", [False, True])
def test_batches_filled_by_tokens(tmp_path, known):
    folder = write_set(tmp_path / "mixed", {"train": [4] * 12}, words=10)
    other = write_set(tmp_path / "longer", {"train": [3] * 6}, name="longer", frames=9, words=6)

    class Knowing(PlainInputs):
        def tokens_of(self, frames, height, width):
            return 4 * frames

    inputs = Knowing() if known else PlainInputs()
    data = module([ShardSet(str(folder)), ShardSet(str(other))], batch_tokens=300, window=20, inputs=inputs)
    loader = data.train_dataloader()
    assert len(inputs.clips) <= 4  # a clip of each size, to measure
    batches = list(loader)
    assert len(batches) == len(loader)
    assert Counter(id for batch in ids(batches) for id in batch) == Counter(everyone(folder) + everyone(other))
    shapes = [batch.inputs.tokens.shape for batch in batches]
    assert all(rows * length <= 300 for rows, length in shapes)
    assert len({rows for rows, _ in shapes}) > 1
    padding = sum(rows * length for rows, length in shapes)
    real = sum(int((batch.inputs.tokens > 0).sum()) + len(batch.questions) for batch in batches)
    assert real > 0.9 * padding
    # A resumed run plans with the lengths that were measured first, without reading.
    state = data.state_dict()
    again = module([ShardSet(str(folder)), ShardSet(str(other))], batch_tokens=300, window=20, inputs=PlainInputs())
    again.load_state_dict(state)
    resumed = again.train_dataloader()
    assert again.inputs.clips == []
    assert ids(resumed) == ids(batches)


def test_lengths_that_the_index_does_not_tell(shards, tmp_path):
    import json

    shutil.copytree(shards, tmp_path / "old")
    content = json.loads((tmp_path / "old" / "index.json").read_text())
    for shard in content["shards"]:
        del shard["characters"]
    (tmp_path / "old" / "index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"says no 'sizes' and 'characters' of train-000000\.tar, which"):
        module(tmp_path / "old", batch_tokens=300).train_dataloader()


def test_a_collate_of_ones_own(shards):
    data = module(shards, collate=lambda records: [record.id for record in records])
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs == [question.id for question in batch.questions]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_skipped": 1.0}, "data.max_skipped: 1.0 is no share"),
        ({"shards": []}, "data.shards: names no folder"),
        ({"train_split": "r2"}, "lists no shard of split 'r2'"),
    ],
)
def test_settings_that_are_refused(shards, settings, message):
    with pytest.raises(InputError, match=message):
        module(settings.pop("shards", shards), **settings).train_dataloader()


def test_settings_as_a_config_writes_them(tmp_path):
    from jsonargparse import ArgumentParser

    config = tmp_path / "data.yaml"
    config.write_text(
        "data:\n  shards:\n  - {path: https://host/a, weight: 0.5}\n  - {path: s3://b/c}\n"
        "  train_split: [train, r1]\n  batch_tokens: 16384\n  max_skipped: 0.01\n  cache: /tmp/c\n"
        "  storage: {anon: true}\n"
    )
    parser = ArgumentParser()
    parser.add_argument("-c", action="config")
    parser.add_class_arguments(ClipDataModule, "data")
    settings = parser.parse_args(["-c", str(config)]).data
    assert [vars(known) for known in settings.shards] == [
        {"path": "https://host/a", "weight": 0.5},
        {"path": "s3://b/c", "weight": 1.0},
    ]
    assert settings.train_split == ["train", "r1"]
    assert parser.parse_args(["--data.shards", "runs/world"]).data.shards == "runs/world"
    made = parser.instantiate_classes(parser.parse_args(["-c", str(config)])).data
    assert made.sets == (ShardSet("https://host/a", 0.5), ShardSet("s3://b/c"))


def test_the_first_batch_waits_for_its_own_clips_alone(shards):
    data = module(shards, window=18, batch_size=2)
    first = next(iter(data.train_dataloader()))
    assert data.inputs.clips == list(dict.fromkeys(q.id.rsplit("/", 1)[0] for q in first.questions))
