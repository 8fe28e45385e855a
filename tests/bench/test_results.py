"""What comes of a run, worked by hand."""

import json
from dataclasses import replace

import pytest
import torch

from mllm4d.bench.configuration import describe_suite, weights_sum
from mllm4d.bench.results import Outcome, write_results
from mllm4d.bench.statistics import wilson
from mllm4d.bench.suites.custom import CustomSuite
from mllm4d.models.tiny import build_model, build_tokenizer

OPTIONS = ["left", "right"]
# Task, video, right, said: 2 of 3 and 1 of 1; one answer says nothing.
ROWS = [
    ("turn", "a", "A", "A"),
    ("turn", "a", "B", "<answer>B</answer>"),
    ("turn", "b", "A", "hm"),
    ("go", "b", "B", "B"),
]


def outcome(tmp_path, unseen=("A", "A", "A", "A"), **changes):
    entries = [
        {
            "id": f"q{n}",
            "video": f"{video}.mp4",
            "question": f"Q{n}?",
            "options": OPTIONS,
            "answer": right,
            "task": task,
        }
        for n, (task, video, right, _) in enumerate(ROWS)
    ]
    (tmp_path / "q.json").write_text(json.dumps(entries))
    suite = CustomSuite(files=[str(tmp_path / "q.json")], response="output")
    questions = suite.questions()

    def lines(said):
        return {
            q.id: {**q.entry, "output": text, "bench": {"id": q.id, "tokens": 3, "seconds": 1.0}}
            for q, text in zip(questions, said, strict=True)
        }

    settings = {
        "suite": suite,
        "questions": questions,
        "prompts": tuple(map(suite.prompt, questions)),
        "answers": lines([said for *_, said in ROWS]),
        "unseen": None if unseen is None else lines(unseen),
        "answering": "generation (greedy)",
        "model": "org/model",
        "checkpoint": None,
        "settings": {"precision": "32-true"},
        "data_hash": "0",
        "notes": ("a note",),
        "seconds": 4.0,
    }
    return Outcome(**{**settings, **changes})


def test_scores_by_task_and_flat(tmp_path):
    results, _ = write_results(tmp_path / "out", outcome(tmp_path))
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert results["n"] == results["scores"]["n"] == 4
    tasks = results["tasks"]
    assert {name: (row["n"], row["correct"], row["invalid"]) for name, row in tasks.items()} == {
        "turn": (3, 2, 1),
        "go": (1, 1, 0),
        "all": (4, 3, 1),
    }
    low, high = wilson(1, 1)
    assert (tasks["go"]["ci_low"], tasks["go"]["ci_high"]) == pytest.approx((low, high), abs=1e-6)
    flat = results["flat"]
    assert flat["accuracy"] == 0.75
    assert flat["accuracy_macro"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-6)
    assert flat["accuracy/turn"] == pytest.approx(2 / 3, abs=1e-6)
    assert flat["invalid/turn"] == pytest.approx(1 / 3, abs=1e-6)
    assert flat["count/turn"] == 3
    assert all(isinstance(value, float) for value in flat.values())


def test_samples_hold_the_question_the_raw_answer_and_what_it_is_worth(tmp_path):
    write_results(tmp_path / "out", outcome(tmp_path))
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(s["id"], s["task"], s["video"]) for s in samples] == [
        ("q0", "turn", "a.mp4"),
        ("q1", "turn", "a.mp4"),
        ("q2", "turn", "b.mp4"),
        ("q3", "go", "b.mp4"),
    ]
    assert [(s["response"], s["read"], s["score"], s["invalid"]) for s in samples] == [
        ("A", "A", 1.0, False),
        ("<answer>B</answer>", "B", 1.0, False),
        ("hm", None, 0.0, True),
        ("B", "B", 1.0, False),
    ]
    assert samples[0]["right"] == ["A"]
    assert samples[0]["options"] == {"A": "left", "B": "right"}
    assert samples[0]["prompt"] == "Q0?\nA. left\nB. right\nAnswer with the letter of the right option."
    assert samples[0]["tokens"] == 3


def test_blind_baselines_stand_beside_the_score_the_text_only_model_among_them(tmp_path):
    results, table = write_results(tmp_path / "out", outcome(tmp_path))
    row = results["blind"]["all"]
    assert (row["chance"]["accuracy"], row["text_only"]["accuracy"]) == (0.5, 0.5)
    header = next(line for line in table.splitlines() if line.startswith("| task"))
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells[:5] == ["task", "n", "accuracy", "95 % interval", "invalid"]
    whole = next(line for line in table.splitlines() if line.startswith("| **all**"))
    found = dict(zip(cells, (cell.strip() for cell in whole.strip("|").split("|")), strict=True))
    assert (found["n"], found["accuracy"], found["invalid"], found["text only"]) == ("4", "75.0", "25.0", "50.0")
    assert (tmp_path / "out" / "results.md").read_text() == table


def test_what_was_not_asked_or_could_not_be_is_said(tmp_path):
    run = outcome(tmp_path, unseen=None)
    lines = {id: line for id, line in run.answers.items() if id != "q1"}
    lines["q0"] = {**lines["q0"], "output": "", "bench": {"id": "q0", "error": "a.mp4: broken"}}
    results, table = write_results(tmp_path / "out", replace(run, answers=lines))
    assert results["n"] == 3
    assert results["warnings"][:3] == [
        "only 3 of 4 questions have an answer",
        "1 questions could not be asked and count as invalid, first a.mp4: broken",
        "a note",
    ]
    assert "text_only" not in results["blind"]["all"]
    assert "- a note" in table


def test_weights_that_differ_in_one_tensor_have_another_sum():
    model = build_model(build_tokenizer())
    before = weights_sum(model)
    assert weights_sum(build_model(build_tokenizer())) == before
    with torch.no_grad():
        model.model.visual.patch_embed.proj.bias.add_(1e-4)
    assert weights_sum(model) != before
    assert weights_sum(model.bfloat16()) != weights_sum(model.float())


def test_a_suite_is_known_by_what_it_asks_not_by_its_folders(tmp_path):
    def described(name, **change):
        folder = tmp_path / name
        folder.mkdir()
        entry = {"id": 1, "video": "a.mp4", "question": "Q?", "options": OPTIONS, "answer": "A"}
        (folder / "q.json").write_text(json.dumps([{**entry, **change}]))
        (folder / "a.mp4").write_bytes(b"x" * (2 if name == "larger" else 1))
        suite = CustomSuite(files=[str(folder / "q.json")], videos=str(folder))
        return describe_suite(suite, suite.questions(), [suite.prompt(q) for q in suite.questions()])

    first = described("first")
    assert described("second") == first
    assert {k for k, v in described("larger").items() if v != first[k]} == {"videos"}
    assert {k for k, v in described("answer", answer="B").items() if v != first[k]} == {"questions"}
    assert {k for k, v in described("wording", question="R?").items() if v != first[k]} == {"questions", "prompts"}
