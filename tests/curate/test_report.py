"""A report needs nothing else, says what the index says, and cannot be broken by a name."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from mllm4d.curate.report import sample_keys, write_report
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.world import World
from mllm4d.shards import Index, read_index


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    world = World(width=64, height=64, frames=8, fps=4.0)
    return Curation(world, str(tmp_path_factory.mktemp("made") / "shards"), clips=12, workers=0).run()


class Tags(HTMLParser):
    """Collects what a page loads from elsewhere, and its open tags."""

    def __init__(self):
        super().__init__()
        self.loaded, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.loaded += [
            value for name, value in attributes if name in ("src", "href") and not value.startswith("data:")
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing(made):
    tags = Tags()
    tags.feed((made / "report.html").read_text())
    assert tags.loaded == []
    assert tags.open == []


def test_it_shows_clips_of_every_split_with_points_and_video(made):
    index, page = read_index(made), (made / "report.html").read_text()
    keys = sample_keys(index)
    assert {shard.split for shard in index.shards for key in keys if key in shard.keys} == set(index.notes["counts"])
    for key in keys:
        assert f'id="scene-{key}"' in page
    assert page.count("data:video/mp4;base64,") == len(keys)
    assert page.count('"name":"points"') == len(keys)


def test_it_counts_what_the_index_counts(made):
    index, page = read_index(made), (made / "report.html").read_text()
    for task, answers in index.notes["answers"].items():
        figure = re.search(rf'"answers-{task}",\s*(\[.*?\]),\s*\{{"template"', page, re.S)
        bar = json.loads(figure[1])[0]
        assert dict(zip(bar["y"], bar["x"], strict=True)) == answers
        assert sum(answers.values()) == sum(row.get(task, 0) for row in index.notes["counts"].values())


def test_names_cannot_break_the_page(made, tmp_path):
    index = read_index(made)
    notes = {**index.notes, "clips": {"usable": 1, "failed": {"<b>key": "</table><script>alert(1)</script>"}}}
    for path in made.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    page = write_report(tmp_path, Index(tuple(replace(shard) for shard in index.shards), notes), {}).read_text()
    assert "&lt;b&gt;key" in page
    assert "<script>alert" not in page
