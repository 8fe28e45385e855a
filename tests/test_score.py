"""The verb ``score`` as people use it: files in, one JSON object a file out."""

import json
import subprocess
import sys

import pytest
from scipy import stats

from mllm4d.__main__ import build_task, main
from mllm4d.bench.power import questions_needed
from mllm4d.bench.suites.base import Suite
from mllm4d.data.formats import write_vlm4d
from mllm4d.qa.balance import balance
from mllm4d.qa.paper import PaperOptions
from mllm4d.score import Score
from tests.conftest import ROOT
from tests.qa.test_paper import distances

KEYS = ("file", "n", "correct", "accuracy", "invalid", "ci_low", "ci_high", "groups", "blind", "warnings")


def entry(number, response, video="videos_real/davis/a.mp4", **changes):
    return {
        "id": f"validation_{number}",
        "video": f"/home/someone/{video}",
        "question_type": "multiple-choice",
        "question": f"Question {number}?",
        "choices": {"A": "left", "B": "right", "C": "up", "D": "down"},
        "answer": "left",
        "response": response,
        **changes,
    }


def write(path, rows, lines=False):
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return str(path)


def score(capsys, *words):
    main(["score", *words])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def fails(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["score", *words])
    message = str(stop.value.code)
    assert "\n" not in message
    assert capsys.readouterr().out == ""
    return message


def test_one_object_a_file_with_counts_that_add_up(tmp_path, capsys):
    rows = [
        entry(1, "A"),
        entry(2, "The thing moves to the left, so the answer is A."),
        entry(3, "B"),
        entry(4, ""),
        entry(1, None, "videos_synthetic/b.mp4"),
        entry(2, "left", "videos_synthetic/b.mp4"),
    ]
    (table,) = score(capsys, "--suite", "vlm4d", write(tmp_path / "a.json", rows))
    assert set(KEYS) <= set(table)
    assert (table["n"], table["correct"], table["accuracy"], table["invalid"]) == (6, 3, 0.5, 2)
    assert table["groups"] == {
        "real": {"n": 4, "correct": 2, "accuracy": 0.5, "invalid": 1},
        "synthetic": {"n": 2, "correct": 1, "accuracy": 0.5, "invalid": 1},
    }
    assert table["file"].endswith("a.json")
    assert table["ci_low"] < 0.5 < table["ci_high"]


def test_list_and_lines_give_the_same(tmp_path, capsys):
    rows = [entry(k, "AB"[k % 2]) for k in range(7)]
    (first,) = score(capsys, write(tmp_path / "a.json", rows))
    (second,) = score(capsys, write(tmp_path / "a.jsonl", rows, lines=True))
    assert {k: v for k, v in first.items() if k != "file"} == {k: v for k, v in second.items() if k != "file"}


def test_the_interval_over_many_videos_is_wider_where_their_questions_go_together(tmp_path, capsys):
    """100 videos of 4 questions: all four alike, or each video half right."""
    together = [
        entry(4 * v + q, "A" if v % 2 else "B", f"videos_real/davis/{v}.mp4") for v in range(100) for q in range(4)
    ]
    apart = [
        entry(4 * v + q, "A" if q % 2 else "B", f"videos_real/davis/{v}.mp4") for v in range(100) for q in range(4)
    ]
    a, b = (score(capsys, write(tmp_path / f"{k}.json", rows))[0] for k, rows in enumerate((together, apart)))
    assert a["ci_method"] == "bootstrap over videos"
    assert a["accuracy"] == b["accuracy"] == 0.5
    # 100 independent halves: 0.5 -+ 1.96 * 0.5 / 10.
    assert a["ci_high"] - a["ci_low"] == pytest.approx(0.196, abs=0.015)
    assert b["ci_high"] - b["ci_low"] == 0


def test_all_right_is_no_certainty(tmp_path, capsys):
    (table,) = score(capsys, write(tmp_path / "a.json", [entry(k, "A", f"videos_real/{k}.mp4") for k in range(30)]))
    assert table["accuracy"] == 1
    # Wilson's lower bound of 30 of 30.
    assert table["ci_low"] == pytest.approx(stats.binomtest(30, 30).proportion_ci(method="wilson").low, abs=1e-6)
    assert table["ci_high"] == 1


def test_blind_baselines_stand_beside_the_score_and_the_papers_options_are_warned_of(tmp_path, capsys):
    """Questions about 400 clips; a model that never looks and takes the smallest plausible option seems to see."""
    made = {"paper": PaperOptions()(distances(400), 4, 1.5, 0), "ours": balance(distances(400), 4, 1.5, 0)}
    tables = {}
    for name, questions in made.items():
        rows = [{**write_vlm4d(f"{q.id.split('/')[0]}.mp4", q), "response": "A"} for q in questions.questions]
        main(["score", "--suite", "mllm4d", write(tmp_path / f"{name}.json", rows)])
        output = capsys.readouterr()
        tables[name] = json.loads(output.out)
        told = [line for line in output.err.splitlines() if line.startswith("warning: ")]
        assert told == [f"warning: {tables[name]['file']}: {text}" for text in tables[name]["warnings"][:5]]
    cell = tables["paper"]["blind"]["all"]["smallest_plausible"]
    assert cell["n"] == 400
    # 63.9 % as published for this scheme, and 25 % is chance; two sigma are 4.8 %.
    assert cell["accuracy"] == pytest.approx(0.639, abs=0.05)
    assert (cell["chance"], cell["leaks"]) == (0.25, True)
    assert "smallest_plausible never sees the video and scores" in tables["paper"]["warnings"][0]
    assert len(tables["ours"]["blind"]["all"]) == 6
    assert tables["ours"]["warnings"] == []
    assert tables["ours"]["blind"]["all"]["smallest_plausible"]["accuracy"] == pytest.approx(0.25)


def test_answers_given_without_a_video_are_a_baseline_too(tmp_path, capsys):
    seen = write(tmp_path / "seen.json", [entry(k, "A", f"videos_real/{k}.mp4") for k in range(4)])
    rows = [entry(k, "AAB?"[k], f"videos_real/{k}.mp4") for k in range(4)]
    unseen = write(tmp_path / "unseen.json", rows[::-1])
    (table,) = score(capsys, seen, "--text_only", unseen)
    assert (table["accuracy"], table["blind"]["all"]["text_only"]["accuracy"]) == (1, 0.5)
    short = write(tmp_path / "short.json", rows[:3])
    message = fails(capsys, seen, "--text_only", short)
    assert f"{short}: has no answer to question 'real/validation_3'; 1 of 4 questions of {seen}" in message
    assert "text_only" not in score(capsys, seen)[0]["blind"]["all"]


def test_a_text_that_is_always_right_is_warned_of(tmp_path, capsys):
    rows = [entry(k, "A", f"videos_real/{k}.mp4", answer="up" if k % 4 else "left") for k in range(80)]
    (table,) = score(capsys, write(tmp_path / "a.json", rows))
    cell = table["blind"]["real"]["option_prior"]
    assert (cell["n"], cell["accuracy"], cell["chance"]) == (80, 0.75, 0.25)
    assert table["blind"]["real"]["chance"]["accuracy"] == 0.25
    assert any("real: option_prior never sees the video and scores 75.0 % of 80" in text for text in table["warnings"])


def test_two_files_get_a_paired_test_matched_by_id(tmp_path, capsys):
    said_a = ["A"] * 12 + ["B"] * 8
    said_b = ["A"] * 4 + ["B"] * 8 + ["A"] + ["B"] * 7
    rows = [[entry(k, text, f"videos_real/{k // 2}.mp4") for k, text in enumerate(said)] for said in (said_a, said_b)]
    a = write(tmp_path / "a.json", rows[0])
    # In another order, from another folder, with one question less.
    b = write(
        tmp_path / "b.json", [{**row, "video": row["video"].replace("someone", "else")} for row in rows[1][:0:-1]]
    )
    *tables, last = score(capsys, a, b)
    assert [table["n"] for table in tables] == [20, 19]
    (pair,) = last["paired"]
    assert (pair["a"], pair["b"], pair["n"], pair["only_a"], pair["only_b"]) == (a, b, 19, 1, 0)
    assert (pair["better_a"], pair["better_b"]) == (8, 1)
    assert pair["p_mcnemar"] == pytest.approx(stats.binomtest(1, 9, 0.5).pvalue)
    assert pair["difference"] == pytest.approx(-7 / 19, abs=1e-6)
    # Deviations from the mean gain of -7/19, summed by video: 7, four of 14, four of -24 and 33, in nineteenths.
    robust = 10 / 9 * (7**2 + 4 * 14**2 + 4 * 24**2 + 33**2) / 19**2 / 19**2
    effect = robust / ((9 - 49 / 19) / 18 / 19)
    assert pair["questions_needed"] == questions_needed(11 / 19, 4 / 19, discordant=9 / 19, effect=effect)
    # The same bootstrap over videos by scipy: the first video lost one of its two questions.
    gains, counts = [0, 0, -2, -2, -2, -2, 1, 0, 0, 0], [1] + [2] * 9
    drawn = stats.bootstrap(
        (gains, counts), lambda g, c: sum(g) / sum(c), paired=True, vectorized=False, method="percentile", rng=1
    )
    assert pair["ci_low"] == pytest.approx(drawn.confidence_interval.low, abs=0.03)
    assert pair["ci_high"] == pytest.approx(drawn.confidence_interval.high, abs=0.03)
    assert pair["p_bootstrap"] == pytest.approx(2 * (drawn.bootstrap_distribution >= 0).mean(), abs=0.02)


def test_the_same_answers_twice_are_no_difference(tmp_path, capsys):
    rows = [entry(k, "AB"[k % 3 == 0], f"videos_real/{k}.mp4") for k in range(30)]
    files = [write(tmp_path / f"{k}.json", rows) for k in range(3)]
    *_, last = score(capsys, *files)
    assert [(pair["a"], pair["b"]) for pair in last["paired"]] == [
        tuple(files[:2]),
        (files[0], files[2]),
        tuple(files[1:]),
    ]
    for pair in last["paired"]:
        assert (pair["difference"], pair["p_mcnemar"], pair["p_bootstrap"]) == (0, 1, 1)
        assert pair["questions_needed"] is None


def test_ids_that_repeat_between_the_splits_are_not_paired(tmp_path, capsys):
    a = write(tmp_path / "real.json", [entry(1, "A")])
    b = write(tmp_path / "synthetic.json", [entry(1, "B", "videos_synthetic/b.mp4")])
    main(["score", a, b])
    output = capsys.readouterr()
    (pair,) = json.loads(output.out.splitlines()[-1])["paired"]
    assert pair["n"] == 0
    assert "have no question in common" in output.err


def test_files_that_ask_different_things_under_one_id_are_refused(tmp_path, capsys):
    a, b = write(tmp_path / "a.json", [entry(1, "A")]), write(tmp_path / "b.json", [entry(1, "A", question="Other?")])
    assert "they are not answers to the same questions" in fails(capsys, a, b)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no entry"),
        ("[]", "has no entry"),
        ("{", "line 1 is not JSON"),
        ('[{"id": 1]', "entry 0 of the list is not JSON"),
        ("[1, 2]", "entry 1 is no record"),
        ('{"id": "1"}', "entry 1 (id '1'): lacks the key 'response'"),
        ('{"id": "1", "response": "A"}', "entry 1 (id '1'): lacks the key 'video'"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, capsys, content, words):
    path = tmp_path / "bad.json"
    path.write_text(content)
    message = fails(capsys, str(path))
    assert message.startswith(f"mllm4d score: {path}")
    assert words in message


def test_nothing_is_printed_where_the_last_file_is_bad(tmp_path, capsys):
    good = write(tmp_path / "a.json", [entry(1, "A")])
    assert "nothing.json: not found" in fails(capsys, good, str(tmp_path / "nothing.json"))
    assert "named twice" in fails(capsys, good, good)


def test_short_names_and_class_paths_take_settings(tmp_path, capsys):
    rows = [{"qid": 1, "video": "a.mp4", "question": "Q?", "options": ["x", "y"], "answer": "y", "said": "B"}]
    path = write(tmp_path / "a.json", rows)
    for name in ("custom", "mllm4d.bench.suites.custom.CustomSuite"):
        words = ["--suite.keys", '{"id": "qid"}', "--suite.response", "said", path]
        (table,) = score(capsys, "--suite", name, *words)
        assert (table["n"], table["correct"]) == (1, 1)
    (table,) = score(capsys, "--suite=custom", *words)
    assert table["n"] == 1
    config = tmp_path / "suite.yaml"
    config.write_text(
        "suite:\n  class_path: mllm4d.bench.suites.custom.CustomSuite\n"
        "  init_args:\n    response: said\n    keys:\n      id: qid\n"
    )
    (table,) = score(capsys, "-c", str(config), path)
    assert table["correct"] == 1


def test_no_such_suite_is_said(capsys):
    assert "'vlm5d' is neither one of mllm4d, vlm4d" in fails(capsys, "--suite", "vlm5d", "a.json")


def test_the_task_is_built_with_its_files_and_a_suite():
    task = build_task("score", ["--suite", "vsi_bench", "a.json", "b.json"])
    assert isinstance(task, Score)
    assert task.files == ["a.json", "b.json"]
    assert isinstance(task.suite, Suite)
    assert task.suite.title == "VSI-Bench"


def test_scoring_starts_without_torch_and_lightning(tmp_path):
    path = write(tmp_path / "a.json", [entry(k, "A", f"videos_real/{k}.mp4") for k in range(3)])
    code = (
        f"import sys; from mllm4d.__main__ import main; main(['score', {path!r}]);"
        "print(sorted({'torch', 'lightning', 'webdataset', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
