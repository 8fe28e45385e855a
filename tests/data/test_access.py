"""Shards from disks and real local servers; every fault is named."""

import json
import logging
import multiprocessing
from dataclasses import replace

import fsspec
import pytest

from mllm4d.data.access import ShardFolder
from mllm4d.schema import InputError
from mllm4d.shards import read_index, read_shard
from tests.data.servers import BreaksOffTwice, Garbage, Plain, Ranges, Slow, serve
from tests.data.shard_sets import write_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("access") / "shards", {"train": [2, 1, 3, 2, 1, 1]})


def everything(folder):
    return [folder.read(shard, clip) for shard in folder.index().shards for clip in range(len(shard.keys))]


def expected(shards):
    return [sample for shard in read_index(shards).shards for sample in read_shard(shards / shard.path)]


def test_a_local_folder(shards):
    assert everything(ShardFolder(str(shards))) == expected(shards)


def test_a_clip_is_one_read_of_its_bytes(shards):
    with serve(shards, Ranges) as (url, server):
        folder = ShardFolder(url)
        shard = folder.index().shards[0]
        folder.read(shard, 2)
    start, end = shard.spans[2]
    assert server.requests[f"/{shard.path}"] == 1
    assert server.sent[f"/{shard.path}"] == end - start < (shards / shard.path).stat().st_size / 3


@pytest.mark.parametrize("handler", [Plain, Ranges, BreaksOffTwice, Slow])
def test_servers(shards, handler):
    with serve(shards, handler) as (url, _):
        assert everything(ShardFolder(url, pause=0.01)) == expected(shards)


def test_a_server_without_ranges_sends_each_shard_once_and_we_say_so_once(shards, caplog):
    with serve(shards, Plain) as (url, server), caplog.at_level(logging.WARNING):
        everything(ShardFolder(url))
    assert [count for path, count in server.requests.items() if path.endswith(".tar")] == [1, 1]
    assert [record.message for record in caplog.records] == [
        f"{url}: the server sends whole files only: every reading process reads each shard"
    ]


@pytest.mark.parametrize("known", [("crc32",), ("crc32", "spans")], ids=str)
def test_an_index_that_says_less_still_works(shards, known):
    def less(folder):
        index = folder.index()
        return [
            folder.read(replace(shard, **dict.fromkeys(known)), clip)
            for shard in index.shards
            for clip in range(len(shard.keys))
        ]

    assert less(ShardFolder(str(shards))) == expected(shards)
    with serve(shards, Ranges) as (url, server):
        assert less(ShardFolder(url)) == expected(shards)
    if "spans" in known:  # read whole, once
        assert [count for path, count in server.requests.items() if path.endswith(".tar")] == [1, 1]


def test_what_breaks_more_often_than_we_try_is_named(shards):
    with serve(shards, BreaksOffTwice) as (url, server):
        folder = ShardFolder(url, retries=1, pause=0.01)
        shard = folder.index().shards[0]
        with pytest.raises(InputError, match=rf"{url}/train-000000\.tar: cannot be read"):
            folder.read(shard, 0)
        assert server.requests["/train-000000.tar"] == 2


@pytest.mark.parametrize("cache", [False, True])
def test_garbage_is_seen(shards, tmp_path, cache):
    with serve(shards, Garbage) as (url, server):
        folder = ShardFolder(url, cache=str(tmp_path) if cache else None, retries=2, pause=0.01)
        shard = folder.index().shards[0]
        said = "another checksum than index.json says" if cache else "not those that index.json tells of"
        with pytest.raises(InputError, match=rf"train-000000\.tar: .*{said}"):
            folder.read(shard, 0)
        assert server.requests["/train-000000.tar"] == 3
    assert not list(tmp_path.glob("*.tar"))


def test_what_is_not_there_is_asked_for_once(shards, tmp_path):
    with serve(tmp_path, Ranges) as (url, server):
        with pytest.raises(InputError, match=rf"{url}/index\.json: cannot be read"):
            ShardFolder(url, pause=0.01).index()
        assert server.requests["/index.json"] == 1


def test_urls_that_nothing_opens():
    with pytest.raises(InputError, match=r"gs://bucket/a: needs a package that is not installed: .*gcsfs"):
        ShardFolder("gs://bucket/a")
    with pytest.raises(InputError, match="nothing://a: fsspec cannot open it"):
        ShardFolder("nothing://a")


def test_an_object_store(shards):
    store = fsspec.filesystem("memory")
    store.put(str(shards), "/bucket/shards", recursive=True)
    assert everything(ShardFolder("memory://bucket/shards")) == expected(shards)


def test_the_cache_downloads_a_shard_once(shards, tmp_path):
    with serve(shards, BreaksOffTwice) as (url, server):
        for _ in range(2):
            assert everything(ShardFolder(url, cache=str(tmp_path), pause=0.01)) == expected(shards)
        assert server.requests["/train-000000.tar"] == 3
    index = read_index(shards)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == sorted(f"{s.sha256}.tar" for s in index.shards)
    assert not list(tmp_path.glob("*.part"))


def test_a_cached_shard_that_was_spoilt_is_downloaded_again(shards, tmp_path):
    with serve(shards, Ranges) as (url, server):
        folder = ShardFolder(url, cache=str(tmp_path), pause=0.01)
        shard = folder.index().shards[0]
        first = folder.read(shard, 0)
        path = tmp_path / f"{shard.sha256}.tar"
        path.write_bytes(path.read_bytes()[:700])
        assert folder.read(shard, 0) == first
        assert server.requests["/train-000000.tar"] == 2


def _read_all(url, cache, queue):
    queue.put([sample.key for sample in everything(ShardFolder(url, cache=cache))])


def test_many_processes_share_a_cache(shards, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with serve(shards, Slow) as (url, server):
        processes = [context.Process(target=_read_all, args=(url, str(tmp_path), queue)) for _ in range(4)]
        for process in processes:
            process.start()
        found = [queue.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
    assert found == [[sample.key for sample in expected(shards)]] * 4
    assert server.requests["/train-000000.tar"] == server.requests["/train-000001.tar"] == 1


def test_a_local_shard_that_is_cut_off_is_named(shards, tmp_path):
    folder = write_set(tmp_path / "cut", {"train": [1, 1]})
    path = folder / "train-000000.tar"
    index = read_index(folder)
    path.write_bytes(path.read_bytes()[: index.shards[0].spans[1][0] + 100])
    reader = ShardFolder(str(folder))
    assert reader.read(index.shards[0], 0).key == "clip-train-0"
    with pytest.raises(InputError, match=r"train-000000\.tar: cut off: 100 of \d+ bytes"):
        reader.read(index.shards[0], 1)


def test_an_index_whose_paths_leave_the_folder(shards, tmp_path):
    content = json.loads((shards / "index.json").read_text())
    content["shards"][0]["path"] = "../train-000000.tar"
    (tmp_path / "index.json").write_text(json.dumps(content))
    with serve(tmp_path, Ranges) as (url, _), pytest.raises(InputError, match="which would leave the folder"):
        ShardFolder(url).index()
