"""The journal of answers: nothing of it is lost, nothing torn is read, and no two configurations meet in it."""

import json

import pytest

from mllm4d.bench.journal import Journal, check_configuration, keep_configuration
from mllm4d.schema import InputError


def line(id, text="A", **more):
    return {"id": 7, "response": text, "bench": {"id": id, **more}}


def test_answers_of_all_ranks_by_id_the_last_of_each_counts(tmp_path):
    first, second = Journal(tmp_path, rank=0), Journal(tmp_path, rank=1)
    first.write([line("a"), line("b", "", error="no video")])
    second.write([line("c", "ü\u2028")])
    first.write([line("b", "B")])
    found = Journal(tmp_path, rank=5).read()
    assert {id: entry["response"] for id, entry in found.items()} == {"a": "A", "b": "B", "c": "ü\u2028"}
    assert Journal(tmp_path, "text_only").read() == {}


def test_an_answer_is_in_the_file_when_write_returns(tmp_path):
    journal = Journal(tmp_path)
    journal.write([line("a")])
    assert json.loads(journal.path.read_text())["bench"]["id"] == "a"


@pytest.mark.parametrize("torn", [b'{"bench": {"id": "b"', '{"response": "é'.encode()[:-1], b'{"bench": {"id": "b"}}'])
def test_a_line_that_a_kill_has_cut_off_is_dropped_and_written_over(tmp_path, torn):
    """Also one that lacks nothing but its end: who wrote on behind it would spoil both."""
    Journal(tmp_path).write([line("a")])
    path = tmp_path / "answers-rank0.jsonl"
    with path.open("ab") as file:
        file.write(torn)
    assert list(Journal(tmp_path).read()) == ["a"]
    journal = Journal(tmp_path)
    journal.write([line("c")])
    assert list(journal.read()) == ["a", "c"]
    assert len(path.read_text().splitlines()) == 2


def test_a_bad_line_elsewhere_is_refused_by_file_and_line(tmp_path):
    path = tmp_path / "answers-rank0.jsonl"
    path.write_text(f"{json.dumps(line('a'))}\nno JSON\n{json.dumps(line('b'))}\n")
    with pytest.raises(InputError, match=r"answers-rank0\.jsonl: line 2 is no answer of a journal"):
        Journal(tmp_path).read()


def test_the_time_is_that_of_the_rank_that_took_longest(tmp_path):
    Journal(tmp_path, rank=0).write([line("a", seconds=1.0), line("b", seconds=0.5)])
    Journal(tmp_path, rank=1).write([line("c", seconds=1.2)])
    assert Journal(tmp_path).seconds() == 1.5
    assert Journal(tmp_path, "text_only").seconds() == 0


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    path = tmp_path / "configuration.json"
    check_configuration(path, {"a": 1})
    keep_configuration(path, {"a": {"b": 1, "c": [1, 2]}, "d": "x"})
    check_configuration(path, {"a": {"b": 1, "c": (1, 2)}, "d": "x"})
    check_configuration(path, {"d": "x"})  # what is known before the model is there
    with pytest.raises(InputError, match=r"another configuration: a\.c was \[1, 2\] and is \[1\] here"):
        check_configuration(path, {"a": {"b": 1, "c": [1]}})
    with pytest.raises(InputError, match=r"a\.e was None and is 5 here"):
        check_configuration(path, {"a": {"b": 1, "c": [1, 2], "e": 5}})
    with pytest.raises(InputError, match=r"a\.c was \[1, 2\] and is None here"):
        check_configuration(path, {"a": {"b": 1}})
    Journal(tmp_path / "other").write([line("a")])
    with pytest.raises(InputError, match=r"answers-rank0\.jsonl: holds answers, but nothing says of what"):
        check_configuration(tmp_path / "other" / "configuration.json", {"a": 1})
    path.write_text("{")
    with pytest.raises(InputError, match=r"configuration\.json: is no configuration"):
        check_configuration(path, {})
