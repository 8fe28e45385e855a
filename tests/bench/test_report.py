"""The page says what the runs say, needs nothing else, and cannot be broken by what a model says."""

import base64
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mllm4d.bench.journal import DETAILS
from mllm4d.bench.report import write_report
from mllm4d.bench.report.__main__ import main
from mllm4d.bench.report.blind import best_blind, blind_row
from mllm4d.bench.report.comparison import pairs
from mllm4d.bench.report.frames import MAX_BYTES, SHOWN, Album, evenly, jpeg
from mllm4d.bench.report.records import read_runs
from mllm4d.bench.report.samples import choose, kind_of
from mllm4d.bench.report.tables import task_table
from mllm4d.bench.report.write import by_suite
from mllm4d.bench.results import Outcome, write_results
from mllm4d.bench.statistics import compare, interval
from mllm4d.bench.suites.custom import CustomSuite
from mllm4d.bench.suites.own import MLLM4DBench
from mllm4d.schema import InputError, Sample
from mllm4d.shards import write_index, write_shards
from tests.data.shard_sets import question, sample

TASKS = ("camera_absolute_distance", "object_relative_direction")
NASTY = "</pre></table><script>alert('x')</script><img src=http://a.example/x onerror=alert(1)>\u2028\"'&"


def make_suite(folder, letter):
    """Six clips of ten questions of two tasks; the right letter of question k of clip n is ``letter(n, k)``."""
    samples = []
    for n in range(6):
        clip = sample(f"clip-{n}", 0, frames=6, size=64)
        asked = tuple(
            question(clip.key, k, task=TASKS[k % 2], question=f"Question {n} {k}?", answer=letter(n, k))
            for k in range(10)
        )
        samples.append(Sample(clip.key, clip.video, clip.scene, asked))
    write_index(folder, write_shards(samples, folder, "test", 3), {})
    return MLLM4DBench(shards=str(folder))


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Letters that nothing gives away."""
    return make_suite(tmp_path_factory.mktemp("shards"), lambda n, k: "AB"[(k // 2 + n) % 2])


def finish(folder, suite, texts, **changes):
    """Write a run as the bench does; ``texts`` are the answers in the order of the questions."""
    lines = zip(suite.questions(), texts, strict=True)
    answers = {asked.id: {suite.response: text, DETAILS: {"id": asked.id}} for asked, text in lines}
    outcome = Outcome(
        suite=suite,
        questions=suite.questions(),
        prompts=tuple(suite.prompt(asked) for asked in suite.questions()),
        answers=answers,
        unseen=None,
        answering="generation (greedy)",
        model="tiny",
        checkpoint=None,
        settings={"answering": {"kind": "generation", "max_new_tokens": 32}},
        data_hash="0123456789abcdef",
        notes=(),
        seconds=12.0,
    )
    write_results(folder, replace(outcome, **changes))
    return folder


def answers(suite, every):
    """Right ones, but for every n-th question, which gets something else in turn: wrong or unreadable."""
    texts = []
    for k, asked in enumerate(suite.questions()):
        right = min(asked.right)
        texts.append(right if k % every else ("no idea" if k % (2 * every) else {"A": "B", "B": "A"}[right]))
    return texts


@pytest.fixture(scope="module")
def runs(suite, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return finish(folder / "weak", suite, answers(suite, 2)), finish(folder / "strong", suite, answers(suite, 6))


@pytest.fixture(scope="module")
def made(runs, suite, tmp_path_factory):
    return write_report(runs, tmp_path_factory.mktemp("page") / "report.html", [suite]).read_text()


class Page(HTMLParser):
    """What a page loads, which tags it has, whether all are closed, and its text."""

    def __init__(self, text):
        super().__init__()
        self.loaded, self.open, self.tags, self.handlers, self.words = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loaded += [v for name, v in attributes if name in ("src", "href", "srcset") and v]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" not in self.open:
            self.words.append(text)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_page_is_whole_and_loads_nothing_from_elsewhere(made):
    page = Page(made)
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.loaded)
    assert page.loaded
    assert "script" not in page.tags
    assert "http" not in made
    assert "url(" not in made
    assert "@import" not in made


def test_the_board_has_accuracy_interval_invalid_rate_and_official_figure_of_each_run(made, runs):
    text = Page(made).text
    for run in read_runs(runs):
        scores = run.scores
        # Of 60 questions every 2nd (6th) is not right, of these every other one is unreadable.
        wrong = 30 if run.name == "weak" else 10
        assert scores["accuracy"] == pytest.approx(1 - wrong / 60, abs=1e-6)
        assert f"{run.name} tiny generation (greedy) {100 * (1 - wrong / 60):.1f} %" in text
        assert f"{100 * scores['ci_low']:.1f}–{100 * scores['ci_high']:.1f} {100 * wrong / 120:.1f} %" in text
    assert text.index("strong tiny") < text.index("weak tiny")
    assert "chance 50.0 %" in text


def test_official_figures_stand_beside_ours(suite, tmp_path):
    folder = finish(tmp_path / "run", suite, answers(suite, 3))
    results = json.loads((folder / "results.json").read_text())
    results["scores"]["official"] = {"overall": 0.4321, "groups": 17, "judge": None, "tasks": {"hidden": 0.9}}
    (folder / "results.json").write_text(json.dumps(results))
    text = Page(write_report([folder], tmp_path / "report.html").read_text()).text
    assert "overall 43.2 % groups 17" in text
    assert "judge" not in text.split("Settings and versions")[0]


def test_bars_reach_as_far_as_the_tasks_score_and_their_error_bars_are_the_intervals(made, runs):
    strong = read_runs(runs)[1]
    for task in TASKS:
        mine = [one for one in strong.samples if one.task == task]
        value = sum(one.score for one in mine) / len(mine)
        low, high, _ = interval([one.score for one in mine], [one.video for one in mine])
        group = made.split(f'<div class="name">{task.replace("_", " ")} ')[1].split('<div class="task')[0]
        assert f"width:{100 * value:.2f}%" in group
        assert f'class="error" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%' in group
        assert f"{100 * value:.1f} % <small>{100 * low:.1f}–{100 * high:.1f}" in group


def test_chance_and_the_best_blind_solver_are_lines(made, runs):
    run = read_runs(runs)[0]
    for task, row in run.blind.items():
        best = best_blind(row)
        name = "all tasks" if task == "all" else task.replace("_", " ")
        group = made.split(f'<div class="name">{name} ')[1].split('<div class="task')[0]
        assert f'class="base chance" style="left:{100 * row["chance"]["accuracy"]:.2f}%"' in group
        assert f'class="base blind" style="left:{100 * best.accuracy:.2f}%"' in group


def test_the_best_blind_solver_is_one_that_has_an_answer_to_the_most_questions():
    cell = {"chance": 0.25, "ci_low": 0.0, "ci_high": 1.0, "leaks": False}
    row = {
        "chance": {**cell, "n": 40, "accuracy": 0.25},
        "median": {**cell, "n": 4, "accuracy": 0.9},
        "letter": {**cell, "n": 40, "accuracy": 0.3},
        "prior": {**cell, "n": 40, "accuracy": 0.35},
    }
    assert best_blind(row) == ("prior", 0.35, False)
    assert best_blind({"chance": row["chance"]}) is None


def test_the_model_by_text_alone_is_a_blind_solver_of_each_run_by_itself(suite, tmp_path):
    def asked(letter):
        return {q.id: {suite.response: letter(q), DETAILS: {"id": q.id}} for q in suite.questions()}

    good = finish(tmp_path / "good", suite, answers(suite, 3), unseen=asked(lambda q: min(q.right)))
    poor = finish(tmp_path / "poor", suite, answers(suite, 3), unseen=asked(lambda q: "A"))
    row = blind_row(read_runs([good, poor]), "all")
    assert (row["text_only (good)"]["accuracy"], row["text_only (poor)"]["accuracy"]) == (1.0, 0.5)
    assert best_blind(row) == ("text_only (good)", 1.0, True)
    assert "chance" in row
    assert "most_frequent_letter" in row
    text = write_report([good, poor], tmp_path / "report.html").read_text()
    assert 'class="base blind" style="left:100.00%"' in text
    assert "blind: text only (good) 100.0 %" in text


def test_leaks_are_shown_above_the_scores_and_at_the_task(tmp_path):
    # The task says the letter.
    (tmp_path / "shards").mkdir()
    suite = make_suite(tmp_path / "shards", lambda n, k: "AB"[k % 2])
    folder = finish(tmp_path / "run", suite, answers(suite, 3))
    (run,) = read_runs([folder])
    assert run.warnings
    text = write_report([folder], tmp_path / "report.html").read_text()
    for warning in run.warnings:
        assert f"<li>{warning}</li>" in text
        assert text.index(warning) < text.index("<table>")
    assert text.count("can be guessed") == sum(any(c["leaks"] for c in row.values()) for row in run.blind.values()) > 1
    assert "1 run on 1 suite, 60 answers. 1 of them with warnings" in Page(text).text


def test_without_warnings_no_box_is_drawn(suite, tmp_path):
    page = write_report([finish(tmp_path / "run", suite, answers(suite, 3))], tmp_path / "a.html")
    assert 'class="warning"' not in page.read_text()
    assert "can be guessed" not in page.read_text()


def test_two_runs_are_compared_question_by_question_matched_by_id(suite, runs, tmp_path):
    # The lines of one file in another order, and one question less.
    lines = (runs[1] / "samples.jsonl").read_text().splitlines()[::-1][1:]
    other = tmp_path / "other"
    other.mkdir()
    results = json.loads((runs[1] / "results.json").read_text())
    scores = [json.loads(line)["score"] for line in lines]
    results["scores"] |= {"n": len(lines), "accuracy": sum(scores) / len(scores)}
    (other / "results.json").write_text(json.dumps(results))
    (other / "samples.jsonl").write_text("\n".join(lines) + "\n")
    (pair,) = pairs(read_runs([runs[0], other]))
    first = [json.loads(line) for line in (runs[0] / "samples.jsonl").read_text().splitlines()][:-1]
    second = [json.loads(line)["score"] for line in lines[::-1]]
    wanted = compare([one["score"] for one in first], second, [one["video"] for one in first])
    assert pair.found == wanted
    assert (pair.only_a, pair.only_b, pair.found.n) == (1, 0, 59)
    text = Page(write_report([runs[0], other], tmp_path / "report.html").read_text()).text
    assert f"{100 * wanted.difference:+.1f}" in text or f"{-100 * wanted.difference:+.1f}" in text


def test_runs_that_ask_different_things_under_one_id_are_not_compared(runs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_bytes((runs[0] / "results.json").read_bytes())
    (other / "samples.jsonl").write_text((runs[0] / "samples.jsonl").read_text().replace("Question 0 0?", "Another?"))
    first, second, third = read_runs([*runs, other])
    assert [members for _, members in by_suite([first, second, third])] == [[first, second], [third]]
    assert [title for title, _ in by_suite([first, third])] == ["MLLM4D-Bench (data 0123456789ab)"] * 2
    with pytest.raises(InputError, match="'clip-0/000' is 'Another"):
        pairs([first, third])


def test_other_data_under_the_same_name_is_said_loudly(suite, runs, tmp_path):
    other = finish(tmp_path / "other", suite, answers(suite, 4), data_hash="fedcba9876543210")
    page = write_report([runs[0], other], tmp_path / "report.html").read_text()
    assert page.count("These runs are not of the same questions") == 1
    assert "These runs are not of the same questions" not in write_report(runs, tmp_path / "same.html").read_text()


def test_samples_of_every_kind_of_every_task_are_shown_and_drawn_alike_for_every_run(runs):
    weak, strong = read_runs(runs)
    found = choose([weak])
    assert set(found) == set(TASKS)
    counts = {task: sorted(kind_of(one) for one in samples) for task, samples in found.items()}
    there = {task: {kind_of(one) for one in weak.samples if one.task == task} for task in TASKS}
    for task in TASKS:
        assert counts[task] == sorted(kind for kind in there[task] for _ in range(2))
    # Both runs have the same questions right in part: those that come first by checksum are the same.
    both = {one.id for one in weak.samples if one.score == 1} & {one.id for one in strong.samples if one.score == 1}
    mine, others = (
        [one.id for samples in choose([run], each=60).values() for one in samples if one.id in both]
        for run in (weak, strong)
    )
    assert mine == others


def test_what_is_shown_of_a_sample_is_what_the_file_says(made, runs):
    (weak, strong) = read_runs(runs)
    page = Page(made)
    for samples in choose([strong, weak]).values():
        for one in samples:
            assert one.id in page.text
            other = {**{s.id: s for s in weak.samples}}[one.id]
            assert other.response in page.text
    assert page.text.count("✓") == sum(len(samples) for samples in choose([strong, weak]).values())


def test_frames_are_the_decoded_ones_with_their_times(suite):
    album = Album(suite)
    pictures = album.pictures("clip-0/000", "Question 0 0?")
    assert [picture.label for picture in pictures] == ["0.00 s", "0.50 s", "0.75 s", "1.25 s"]
    from mllm4d.video import decode

    frames = decode(suite.media(suite.questions()[0]).video)[0]
    for picture, number in zip(pictures, (0, 2, 3, 5), strict=True):
        shown = Image.open(io.BytesIO(base64.b64decode(picture.source.split(",")[1])))
        # Noise suffers from JPEG, yet another frame of noise is farther away by far.
        distances = [np.abs(np.asarray(shown, float) - frame.numpy()).mean() for frame in frames]
        assert int(np.argmin(distances)) == number


class Listed(CustomSuite):
    """Questions about lists of images."""

    def read(self, entry):
        return replace(super().read(entry), images=tuple(entry["images"]))


def test_images_of_a_list_have_places_and_no_times_and_numbers_a_true_value(tmp_path):
    for k in range(7):
        Image.fromarray(np.full((8, 8, 3), 30 * k, np.uint8)).save(tmp_path / f"{k}.png")
    entry = {
        "id": "q",
        "video": "scene",
        "question": "How far?",
        "answer": 2.5,
        "images": [f"{k}.png" for k in range(7)],
    }
    (tmp_path / "q.json").write_text(json.dumps([entry]))
    suite = Listed([str(tmp_path / "q.json")], str(tmp_path))
    pictures = Album(suite).pictures("q", "How far?")
    assert [picture.label for picture in pictures] == ["image 1", "image 3", "image 5", "image 7"]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one.source.split(",")[1])))).mean() for one in pictures]
    assert shown == pytest.approx([0, 60, 120, 180], abs=2)
    # A relative error of 20 % keeps the thresholds 0.5 to 0.75: six of ten.
    text = Page(write_report([finish(tmp_path / "run", suite, ["3.0"])], tmp_path / "a.html", [suite]).read_text()).text
    assert "True: 2.5" in text
    assert "score 0.60 3.0" in text


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 30, 1000])
def test_frames_are_spread_evenly_with_the_first_and_the_last(count):
    chosen = list(evenly(count))
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    assert len(chosen) == len(set(chosen)) == min(count, SHOWN)
    steps = np.diff(chosen) if count > 1 else np.zeros(1)
    assert steps.max() - steps.min() <= 1


def test_large_frames_become_small_files():
    wide = np.random.default_rng(0).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
    shown = Image.open(io.BytesIO(base64.b64decode(jpeg(wide).split(",")[1])))
    assert shown.size == (208, 117)
    assert len(jpeg(wide)) < 40_000


def test_pictures_stop_where_the_page_has_no_room_for_them_and_it_says_so(suite):
    album = Album(suite, left=1)
    size = sum(len(picture.source) for picture in album.pictures("clip-0/000", "Question 0 0?"))
    assert album.left == 1 - size
    with pytest.raises(InputError, match="at most 2 MB"):
        album.pictures("clip-0/001", "Question 0 1?")
    assert MAX_BYTES == 2_000_000


def test_where_the_videos_are_not_there_the_page_says_so(suite, runs, tmp_path):
    gone = MLLM4DBench(shards=str(tmp_path / "gone"))
    for suites, why in (([gone], "gone.*index.json"), ([], r"name the configuration of a run \(-c CONFIG\)")):
        page = Page(write_report(runs, tmp_path / "report.html", suites).read_text())
        assert page.loaded == []
        assert re.search(rf"(\d+) of \1 have no frames here. The first: .*{why}", page.text)


def test_frames_of_another_question_are_never_shown(suite):
    with pytest.raises(InputError, match="has no such question 'clip-0/000'"):
        Album(suite).pictures("clip-0/000", "Another wording?")


def poisoned(value, keep=()):
    """Every text in a JSON value, keys of tables too, with something nasty behind it."""
    if isinstance(value, str):
        return value + NASTY
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {key if key in keep else key + NASTY: poisoned(item, keep) for key, item in value.items()}
    return value


def test_nothing_that_stands_in_the_files_can_break_the_page(runs, tmp_path):
    results = json.loads((runs[0] / "results.json").read_text())
    names = {*results, *results["scores"], "n", "chance", "accuracy", "ci_low", "ci_high", "leaks", "all", "invalid"}
    results = {**poisoned(results, names), "warnings": [NASTY]}
    results["scores"]["official"] = {NASTY: 0.5}
    results["settings"] = {NASTY: {NASTY: NASTY}}
    lines = [json.loads(line) for line in (runs[0] / "samples.jsonl").read_text().splitlines()]
    nasty = tmp_path / "<script>alert(2)"
    nasty.mkdir()
    (nasty / "results.json").write_text(json.dumps(results))
    poison = [poisoned(line, set(line)) for line in lines]
    (nasty / "samples.jsonl").write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in poison))
    text = write_report([nasty], tmp_path / "report.html").read_text()
    page = Page(text)
    assert "script" not in page.tags
    assert page.handlers == []
    assert page.loaded == []
    assert "alert('x')" in page.text  # it is there, as text
    assert not re.search(r"<script", text, re.I)


def test_the_same_runs_give_the_same_bytes(runs, suite, made, tmp_path):
    assert write_report(runs, tmp_path / "again.html", [suite]).read_text() == made


@pytest.mark.parametrize("key", ["suite", "scores", "blind", "warnings", "data_hash", "settings", "seconds"])
def test_a_missing_key_is_named_with_its_file(runs, tmp_path, key):
    results = json.loads((runs[0] / "results.json").read_text())
    del results[key]
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "samples.jsonl").write_bytes((runs[0] / "samples.jsonl").read_bytes())
    with pytest.raises(InputError, match=rf"results.json: lacks the key '{key}'"):
        read_runs([tmp_path])


def test_a_key_that_holds_something_else_is_named_with_what_was_expected(runs, tmp_path):
    results = json.loads((runs[0] / "results.json").read_text())
    (tmp_path / "samples.jsonl").write_bytes((runs[0] / "samples.jsonl").read_bytes())
    for change, why in (
        ({"seconds": "12"}, "key 'seconds' is '12', expected int or float"),
        ({"n": True}, "key 'n' is True, expected int"),
        ({"tasks": {"all": {**results["tasks"]["all"], "ci_low": None}}}, "'tasks' of 'all': key 'ci_low' is None"),
        ({"blind": {"all": {"chance": 0.25}}}, "'blind' of 'chance' on 'all': is a float, expected a JSON object"),
        ({"blind": {"all": 0.25}}, "'blind' of 'all': is a float"),
        ({"scores": {**results["scores"], "slices": {"real": {"n": 3}}}}, "of 'real': lacks the key 'accuracy'"),
    ):
        (tmp_path / "results.json").write_text(json.dumps({**results, **change}))
        with pytest.raises(InputError, match=rf"results.json: .*{re.escape(why)}"):
            read_runs([tmp_path])


def test_a_bad_line_of_samples_is_named(runs, tmp_path):
    (tmp_path / "results.json").write_bytes((runs[0] / "results.json").read_bytes())
    path = tmp_path / "samples.jsonl"
    lines = (runs[0] / "samples.jsonl").read_text().splitlines()
    path.write_text("\n".join([lines[0], "{", *lines[2:]]))
    with pytest.raises(InputError, match=r"samples.jsonl: line 2: is no JSON"):
        read_runs([tmp_path])
    path.write_text("\n".join([lines[0], lines[1].replace('"score": ', '"point": '), *lines[2:]]))
    with pytest.raises(InputError, match=r"samples.jsonl: line 2: lacks the key 'score'"):
        read_runs([tmp_path])
    path.write_text("\n".join([lines[0], *lines]))
    with pytest.raises(InputError, match=r"line 2: question 'clip-0/000' is there twice"):
        read_runs([tmp_path])
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"59 questions .* they are not of one run"):
        read_runs([tmp_path])


def test_runs_whose_folders_have_one_name_are_told_apart(suite, runs, tmp_path):
    other = finish(tmp_path / "weak", suite, answers(suite, 2))
    assert [run.name for run in read_runs([runs[0], other])] == [runs[0].as_posix(), other.as_posix()]
    with pytest.raises(InputError, match="named twice"):
        read_runs([runs[0], runs[0]])


def test_the_command_writes_the_page_or_says_in_one_line_what_is_wrong(runs, tmp_path, capsys):
    out = tmp_path / "new" / "page.html"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert sorted(path.name for path in out.parent.iterdir()) == ["page.html"]
    assert main([str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/nowhere/results.json: not found")


def test_a_configuration_of_a_run_says_where_the_videos_are(suite, runs, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "folder: " + str(suite.shards) + "\ndata:\n  class_path: mllm4d.bench.data.SuiteData\n  init_args:\n"
        "    suite:\n      class_path: mllm4d.bench.suites.own.MLLM4DBench\n"
        '      init_args: {shards: "${folder}", split: test}\n'
    )
    out = tmp_path / "page.html"
    assert main([*map(str, runs), "-c", str(config), "--out", str(out)]) == 0
    assert Page(out.read_text()).loaded
    assert out.read_text() == write_report(runs, tmp_path / "other.html", [suite]).read_text()
    capsys.readouterr()
    for text, why in (
        ("data: {}", "names no suite (key 'data.init_args.suite')"),
        ("data: {init_args: {suite: {class_path: mllm4d.schema.Camera}}}", "is unusable"),
        ("data: [", "is unusable"),
    ):
        config.write_text(text)
        assert main([*map(str, runs), "-c", str(config), "--out", str(out)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {config}: ")
        assert main([*map(str, runs), "-c", str(config), "--out", str(out)]) == 2
        assert why in capsys.readouterr().err
    assert main([*map(str, runs), "-c", str(tmp_path / "none.yaml"), "--out", str(out)]) == 2
    assert "none.yaml: not found" in capsys.readouterr().err


def test_every_task_has_a_row_for_every_run(runs):
    table = Page(task_table(read_runs(runs))).text
    assert math.prod((len(TASKS), 2)) == table.count(" 30 ")
