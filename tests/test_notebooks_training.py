"""Notebooks that train run from a clean kernel and find what they say."""

from statistics import fmean

from tests.notebooks import execute, figures


def test_3_both_families_learn_the_form_of_an_answer(tmp_path):
    found, book = execute("3_", tmp_path, "runs")
    assert set(found) == {"Qwen3-VL", "SmolVLM2"}
    for losses, answer in found.values():
        assert len(losses) == 30
        assert fmean(losses[-3:]) < 0.5 * fmean(losses[:3])
        assert "<answer>" in answer
    (shown,) = figures(book)
    assert [trace["name"] for trace in shown["data"]] == list(found)


def test_4_each_reward_rises_and_the_second_gives_answers_that_can_be_read(tmp_path):
    found, book = execute("4_", tmp_path, "{name: curve(name) for name in runs}")
    assert list(found) == ["letters", "lone_letters"]
    for values in found.values():
        assert len(values) > 20
        assert fmean(values[-5:]) > fmean(values[:3]) + 0.2
    assert len(figures(book)) == 2
