"""Notebooks run from a clean kernel and find what they say; those that train are in the next file."""

import nbformat
import pytest

from tests.notebooks import FOLDER, NAMES, execute, figures


def test_there_are_five():
    assert [name[:2] for name in NAMES] == ["1_", "2_", "3_", "4_", "5_"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_with_outputs_stripped(name):
    book = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
    assert set(book.metadata) == {"kernelspec", "language_info"}
    # Words before code, and no path of somebody's machine.
    assert book.cells[0].cell_type == "markdown"
    assert not any(word in nbformat.writes(book) for word in ("/home/", "/work/", "/tmp/", "C:\\\\"))


def test_1_a_clip_is_drawn_where_the_scene_says_and_an_answer_is_worked_out(tmp_path):
    question = (
        "{'by_hand': distance, 'answer': asked.answer_value, 'points': [len(cloud.points), len(figure.data[0].x)],"
        " 'camera': [figure.data[1].x[0], figure.data[1].z[0]], 'tasks': len({q.task for q in sample.questions})}"
    )
    found, book = execute("1_", tmp_path, question)
    assert found["by_hand"] == pytest.approx(found["answer"], abs=1e-3)
    assert found["points"][0] == found["points"][1] > 500
    assert found["camera"] == pytest.approx([0, 0], abs=1e-6)  # the world's axes are the first view's
    assert found["tasks"] >= 3
    assert len(figures(book)) == 2
    assert any("**" in output["data"].get("text/markdown", "") for c in book.cells for output in _shown(c))


def test_2_the_estimated_path_is_the_true_one(tmp_path):
    question = "{'error': error, 'length': length, 'counts': index.notes['counts']['train'], 'truth': truth.tolist()}"
    found, book = execute("2_", tmp_path, question)
    assert found["length"] > 0.3
    assert 0 < found["error"] < 0.02
    assert found["counts"]["camera_absolute_distance"] > 0
    (shown,) = figures(book)
    (line,) = (trace for trace in shown["data"] if trace["name"] == "true path")
    assert line["mode"] == "lines"


def test_5_the_paired_test_is_of_all_questions_and_guessing_is_seen_through(tmp_path):
    question = (
        "{'n': found.n, 'asked': sum(index.notes['counts']['test'].values()), 'a': found.score_a, 'b': found.score_b,"
        " 'better': [found.better_a, found.better_b], 'low': found.ci_low, 'page': report.read_text()[:15],"
        " 'chance': results['blind']['all']['chance'], 'interval': results['tasks']['all']}"
    )
    setup = "__import__('json').loads(open('runs/notebook_5/tuned/results.json').read())"
    index = "__import__('mllm4d.shards', fromlist=['x']).read_index(Path(shards))"
    found, _ = execute("5_", tmp_path, f"(lambda results, index: {question})({setup}, {index})")
    assert found["n"] == found["asked"] > 100
    assert found["b"] - found["a"] == pytest.approx((found["better"][1] - found["better"][0]) / found["n"], abs=1e-6)
    assert found["low"] > 0  # it has learned to say a letter,
    row = found["interval"]
    assert row["ci_low"] < found["chance"]["accuracy"] < row["ci_high"]  # and no more than that
    assert found["page"].lower() == "<!doctype html>"


def _shown(cell):
    return [output for output in cell.get("outputs", ()) if "data" in output]
