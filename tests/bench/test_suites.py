"""Suites: released entries to questions, prompts and official scores; every figure is worked by hand."""

import json
import sys
from pathlib import Path

import pytest

from mllm4d.bench.suites import NAMES, load_suite
from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.custom import CustomSuite
from mllm4d.bench.suites.dsi_bench import VARIANTS, DSIBench, read_options
from mllm4d.bench.suites.ost_bench import FORMATS, PARTS, OSTBench, answer_field, closest_option, type_name
from mllm4d.bench.suites.sti_bench import STIBench
from mllm4d.bench.suites.vlm4d import VLM4D
from mllm4d.bench.suites.vsi_bench import CHOICES, NUMBERS, VSIBench
from mllm4d.schema import InputError


def write(path: Path, entries, lines=False) -> Path:
    text = "\n".join(map(json.dumps, entries)) + "\n" if lines else json.dumps(entries, indent=1)
    path.write_text(text)
    return path


def vlm4d(id="validation_1", video="videos_real/davis/bear.mp4", **changes):
    return {
        "id": id,
        "video": video,
        "question_type": "multiple-choice",
        "question": "Which way does the bear turn?",
        "choices": {"A": "clockwise", "B": "counter-clockwise", "C": "left", "D": "no bear there"},
        "answer": "counter-clockwise",
        **changes,
    }


def score(suite: Suite, tmp_path: Path, entries, name="answers.json"):
    """Scored answers of a file."""
    answers = suite.answers(write(tmp_path / name, entries))
    return [suite.score(q, text) for q, text in zip(answers.questions, answers.texts, strict=True)]


@pytest.mark.parametrize("name", NAMES)
def test_every_short_name_is_a_suite_that_says_what_it_needs(name):
    suite = load_suite(name)
    with pytest.raises(InputError, match="name its released files"):
        suite.questions()


@pytest.mark.parametrize("name", ["nothing", "os.path", "mllm4d.bench.suites.base.Nothing", "no.such.module.Suite"])
def test_what_is_no_suite_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"suite: '{name}'"):
        load_suite(name)


# VLM4D


@pytest.mark.parametrize(("answer", "right"), [(0, {"D"}), (1, {"A"}), ("0", {"D"}), (" 3 ", {"C"})])
def test_vlm4d_answers_that_are_numbers_zero_among_them(answer, right):
    (question,) = [VLM4D().read(vlm4d(choices={"A": 1, "B": 2, "C": 3, "D": 0}, answer=answer))]
    assert question.right == right


def test_vlm4d_options_that_share_the_right_text_are_all_right(tmp_path):
    entry = vlm4d(choices={"A": "left", "B": "right", "C": " left", "D": "up"}, answer="left ")
    for response, points in [("A", 1.0), ("C", 1.0), ("B", 0.0)]:
        (scored,) = score(VLM4D(), tmp_path, [{**entry, "response": response}])
        assert (scored.score, scored.invalid) == (points, False)


def test_options_that_share_the_right_text_are_all_right_in_every_suite_that_names_a_letter(tmp_path):
    texts = {"A": "left", "B": "right", "C": "left "}
    listed = [f"{letter}. {text}" for letter, text in texts.items()]
    dsi = {"aug": "std", "row": 0, "cate": 0, "relative_path": "x.mp4", "question": "Q?", "GT": "C"}
    questions = [
        VLM4D().read(vlm4d(choices=texts, answer="C")),
        VSIBench().read(vsi("route_planning", "C", listed)),
        STIBench().read(sti(Candidates=texts, Answer="C")),
        DSIBench().read({**dsi, "options": "; ".join(listed)}),
        CustomSuite().read({"id": 1, "video": "a", "question": "Q?", "options": texts, "answer": "C"}),
        CustomSuite(zero_based=True).read({"id": 1, "video": "a", "question": "Q?", "options": texts, "answer": 2}),
    ]
    assert [set(question.right) for question in questions] == [{"A", "C"}] * 6


@pytest.mark.parametrize(
    ("response", "read"),
    [
        ("B", "B"),
        ("Answer: counter-clockwise", "B"),
        ("clockwise", "A"),
        ("Answer: clockwise", "A"),
        ("<answer>B</answer>", "B"),
        ("", None),
        (None, None),
        ("It is hard to see anything here.", None),
    ],
)
def test_vlm4d_option_texts_that_contain_one_another_and_answers_that_say_nothing(tmp_path, response, read):
    (scored,) = score(VLM4D(), tmp_path, [vlm4d(response=response)])
    assert scored.read == read
    assert scored.invalid == (read is None)
    assert scored.score == (read == "B")
    assert scored.text == (response or "")


@pytest.mark.parametrize(
    ("real", "synthetic"),
    [
        ("videos_real/davis/a.mp4", "videos_synthetic/b.mp4"),
        ("/home/someone/VLM4D_bench/videos_real/ego4d/a.mp4", "/data/x/videos_synthetic/b.mp4"),
        ("https://host/resolve/main/videos_real/davis/a.mp4", "https://host/resolve/main/videos_synthetic/b.mp4"),
        ("C:\\data\\videos_real\\davis\\a.mp4", "C:\\data\\videos_synthetic\\b.mp4"),
    ],
)
def test_vlm4d_ids_that_repeat_between_the_splits_stay_apart_whatever_the_folders(tmp_path, real, synthetic):
    files = [write(tmp_path / "r.json", [vlm4d(video=real)]), write(tmp_path / "s.json", [vlm4d(video=synthetic)])]
    questions = VLM4D(files=list(map(str, files))).questions()
    assert [q.id for q in questions] == ["real/validation_1", "synthetic/validation_1"]
    assert [q.task for q in questions] == ["real", "synthetic"]
    assert questions[1].video == "videos_synthetic/b.mp4"


def test_vlm4d_ids_that_repeat_stay_apart_where_the_path_says_nothing(tmp_path):
    same, other = vlm4d(video="a.mp4"), vlm4d(video="a.mp4", question="Another?")
    answers = VLM4D().answers(write(tmp_path / "a.json", [{**e, "response": "A"} for e in (same, other, same)]))
    assert len(answers.questions) == 2
    assert len({q.id for q in answers.questions}) == 2
    assert answers.repeated == 1
    again = VLM4D().answers(write(tmp_path / "b.json", [{**e, "response": "B"} for e in (other, same)]))
    assert {q.id for q in again.questions} == {q.id for q in answers.questions}


def test_repeated_rows_of_a_distributed_run_count_once_and_contradicting_ones_are_refused(tmp_path):
    rows = [vlm4d(response="B"), vlm4d("validation_2", response="A")]
    answers = VLM4D().answers(write(tmp_path / "a.json", [*rows, rows[0]]))
    assert (len(answers.questions), answers.repeated) == (2, 1)
    with pytest.raises(InputError, match=r"entry 3 \(id 'validation_1'\).*another answer here than in .*entry 1"):
        VLM4D().answers(write(tmp_path / "b.json", [*rows, vlm4d(response="A")]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": None}, "key 'question' is None"),
        ({"choices": ["left", "right"]}, "key 'choices' is a list"),
        ({"question_type": "open-ended"}, "key 'question_type' is 'open-ended'"),
        ({"response": {"text": "A"}}, "key 'response' is a dict"),
        ({"answer": "sideways"}, "has an answer that is none of its options"),
    ],
)
def test_vlm4d_a_bad_row_is_named_with_file_entry_and_key(tmp_path, change, words):
    path = write(tmp_path / "a.json", [vlm4d("v0", response="A"), {**vlm4d(response="A"), **change}])
    with pytest.raises(InputError) as error:
        VLM4D().answers(path)
    assert f"{path}: entry 2 (id 'validation_1')" in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize("key", ["id", "video", "question", "choices", "answer", "response"])
def test_vlm4d_a_missing_key_is_named(tmp_path, key):
    entry = {name: value for name, value in vlm4d(response="A").items() if name != key}
    with pytest.raises(InputError, match=f"entry 1.*lacks the key '{key}'"):
        VLM4D().answers(write(tmp_path / "a.json", [entry]))


def test_a_few_rows_without_a_truth_are_left_out_counted_and_named(tmp_path):
    rows = [vlm4d(f"v{k}", response="B") for k in range(39)] + [vlm4d("bad", response="B", answer="sideways")]
    answers = VLM4D().answers(write(tmp_path / "a.json", rows))
    assert len(answers.questions) == 39
    assert len(answers.unusable) == 1
    assert "entry 40 (id 'bad') has an answer that is none of its options" in answers.unusable[0]


def test_vlm4d_prompts_are_the_makers_and_ours():
    suite, own = VLM4D(), VLM4D(own_prompt=True)
    question = suite.read(vlm4d())
    assert suite.prompt(question) == (
        "\nQuestion: Which way does the bear turn?\nA: clockwise\nB: counter-clockwise\nC: left\nD: no bear there\n\n"
        "Do not generate any intermediate reasoning process. Answer directly with the option letter from the given "
        "choices.\n"
    )
    assert own.prompt(question).endswith("D. no bear there\nAnswer with the letter of the right option.")


def test_the_first_missing_video_is_named_with_how_many(tmp_path):
    names = ["videos_real/davis/a.mp4", "videos_real/davis/b.mp4", "videos_real/davis/c.mp4"]
    path = write(tmp_path / "r.json", [vlm4d(str(k), name) for k, name in enumerate(names)] + [vlm4d("9", names[1])])
    videos = tmp_path / "videos_real/davis"
    videos.mkdir(parents=True)
    (videos / "a.mp4").write_bytes(b"")
    suite = VLM4D(files=[str(path)], videos=str(tmp_path))
    with pytest.raises(InputError, match=r"videos_real/davis/b.mp4: not found; 2 of 3 files of VLM4D are missing"):
        suite.check()
    assert suite.media(suite.questions()[0]).video == videos / "a.mp4"
    with pytest.raises(InputError, match=r"davis/c.mp4: not found; fetch"):
        suite.media(suite.questions()[2])
    for name in "bc":
        (videos / f"{name}.mp4").write_bytes(b"")
    suite.check()
    with pytest.raises(InputError, match="name the folder of its videos"):
        VLM4D(files=[str(path)]).check()


def test_with_the_release_rows_need_only_an_id_and_its_truth_counts(tmp_path):
    release = write(tmp_path / "r.json", [vlm4d("1"), vlm4d("2"), vlm4d("3", question="Another?")])
    suite = VLM4D(files=[str(release)])
    rows = [{"id": "real/1", "response": "B"}, {"id": "2", "response": "B"}]
    answers = suite.answers(write(tmp_path / "a.jsonl", rows, lines=True))
    assert [q.id for q in answers.questions] == ["real/1", "real/2"]
    assert answers.missing == 1
    # A row that claims another truth is scored by the release's.
    (scored,) = score(suite, tmp_path, [vlm4d("1", response="A", answer="clockwise")])
    assert scored.score == 0
    with pytest.raises(InputError, match="the released files have no question '7'"):
        suite.answers(write(tmp_path / "b.json", [{"id": "7", "response": "B"}]))
    with pytest.raises(InputError, match="worded differently in the released files"):
        suite.answers(write(tmp_path / "c.json", [vlm4d("1", response="A", question="What?")]))


# VSI-Bench


def vsi(kind, truth, options=None, id=1):
    return {
        "id": id,
        "dataset": "scannet",
        "scene_name": "scene0_00",
        "question_type": kind,
        "question": "Q?",
        "options": options,
        "ground_truth": truth,
    }


def test_vsi_prompts_and_media_path_are_the_makers():
    suite = VSIBench()
    number = suite.read(vsi("room_size_estimation", "25.4"))
    assert (number.value, number.video) == (25.4, "scannet/scene0_00.mp4")
    ask = "Please answer the question using a single word or phrase."
    assert suite.prompt(number) == f"These are frames of a video.\nQ?\n{ask}"
    choice = suite.read(vsi("route_planning", "B", ["A. Left", "B. Right"]))
    assert (dict(choice.options), choice.right) == ({"A": "Left", "B": "Right"}, {"B"})
    assert suite.prompt(choice) == (
        "These are frames of a video.\nQ?\nOptions:\nA. Left\nB. Right\n"
        "Answer with the option's letter from the given choices directly."
    )


@pytest.mark.parametrize(
    ("text", "official", "ours"),
    [
        ("10", 1.0, 1.0),
        ("10.0.", 1.0, 1.0),
        ("5", 0.1, 0.0),  # error 0.5: at a threshold <= and < differ
        ("4.9", 0.0, 0.0),
        ("9.4", 0.9, 0.9),  # error 0.06: all but 0.95
        ("it is 10 m", 0.0, 1.0),  # the official reading takes the first word
        ("nan", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_vsi_mean_relative_accuracy_official_and_ours(text, official, ours):
    suite = VSIBench()
    scored = suite.score(suite.read(vsi("object_abs_distance", "10")), text)
    assert scored.official == pytest.approx(official)
    assert scored.score == pytest.approx(ours)


def test_vsi_official_agrees_with_numpy_at_every_threshold():
    """The makers' formula: (|x - y| / y <= 1 - linspace(.5, .95, 10)).mean()."""
    import numpy

    suite = VSIBench()
    question = suite.read(vsi("object_abs_distance", "1"))
    for value in [1 + k / 20 for k in range(12)] + [1 - k / 20 for k in range(12)]:
        expected = (abs(value - 1) / 1 <= 1 - numpy.linspace(0.5, 0.95, 10)).mean()
        assert suite.score(question, repr(value)).official == pytest.approx(expected)


def test_vsi_a_zero_truth_is_right_only_for_zero():
    suite = VSIBench()
    question = suite.read(vsi("object_counting", "0"))
    assert [suite.score(question, text).score for text in ("0", "1")] == [1.0, 0.0]
    assert [suite.score(question, text).official for text in ("0", "1")] == [1.0, 0.0]


def test_vsi_overall_takes_the_three_directions_as_one_type():
    suite = VSIBench()
    scored = []
    for k, kind in enumerate(CHOICES):
        options = ["A. x", "B. y"]
        scored.append(suite.score(suite.read(vsi(kind, "A", options, k)), "A" if k < 2 else "B"))
    for k, kind in enumerate(NUMBERS):
        scored.append(suite.score(suite.read(vsi(kind, "10", None, 10 + k)), "10" if k == 0 else "100"))
    table = suite.summary(scored)["official"]
    assert table["object_rel_direction"] == pytest.approx(2 / 3, abs=1e-6)
    assert table["overall"] == pytest.approx((2 / 3 + 1) / 8, abs=1e-6)
    assert "overall" not in suite.summary(scored[1:])["official"]


def test_vsi_parquet_is_read_and_without_pyarrow_the_message_says_so(tmp_path, monkeypatch):
    path = tmp_path / "test.parquet"
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [vsi("route_planning", "B", ["A. Left", "B. Right"]), vsi("object_counting", "3", None, 2)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    questions = VSIBench(files=[str(path)]).questions()
    assert [(q.id, q.right, q.value) for q in questions] == [("1", {"B"}, None), ("2", frozenset(), 3.0)]
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match=r"broken.parquet: is no Parquet file"):
        VSIBench(files=[str(broken)]).questions()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs the package pyarrow"):
        VSIBench(files=[str(path)]).questions()


# STI-Bench


def sti(**changes):
    return {
        "Video": "scene1.mp4",
        "ID": 3,
        "time_start": 1.0,
        "time_end": 4.5,
        "Question": "How fast?",
        "Candidates": json.dumps({"A": "1 m/s", "B": "2 m/s", "C": "3 m/s", "D": "4 m/s", "E": "5 m/s"}),
        "Answer": "A",
        "Task": "Speed & Acceleration",
        "Scene": "indoor",
        **changes,
    }


def test_sti_entry_prompt_and_span():
    suite = STIBench()
    question = suite.read(sti())
    assert (question.id, question.span, question.right) == ("scene1.mp4|3|1.0|4.5", (1.0, 4.5), {"A"})
    assert suite.prompt(question) == (
        "From 1.0 s to 4.5 s. How fast?\n(A) 1 m/s\n(B) 2 m/s\n(C) 3 m/s\n(D) 4 m/s\n(E) 5 m/s\n"
        "Please output only the option letter!"
    )
    assert suite.read(sti(Candidates={"A": "x", "B": "y", "E": None})).options == {"A": "x", "B": "y"}


@pytest.mark.parametrize(
    ("text", "official"),
    [("(A)", 1.0), ("A", 1.0), ("B", 0.0), ("Option a", 1.0), ("Answer: B (A)", 1.0), ("DATA", 1.0), ("", 0.0)],
)
def test_sti_official_reading_its_oddities_kept(text, official):
    suite = STIBench()
    assert suite.score(suite.read(sti()), text).official == official


def test_sti_credits_nonsense_officially_and_not_in_ours():
    suite = STIBench()
    scored = suite.score(suite.read(sti()), "I see a lot of DATA")
    assert (scored.official, scored.score, scored.invalid) == (1.0, 0.0, True)


def test_sti_summary_by_task_and_scene():
    suite = STIBench()
    scored = [
        suite.score(suite.read(sti()), "A"),
        suite.score(suite.read(sti(ID=4, Scene="outdoor")), "B"),
        suite.score(suite.read(sti(ID=5, Task="Pose")), "A"),
    ]
    assert suite.summary(scored)["official"] == {
        "overall": pytest.approx(2 / 3, abs=1e-6),
        "tasks": {"Speed & Acceleration": 0.5, "Pose": 1.0},
        "scenes": {"indoor": 1.0, "outdoor": 0.0},
    }


# DSI-Bench


def dsi_files(folder: Path, truths):
    """Four files of as many rows; ``truths`` is variant to the right letters."""
    folder.mkdir(exist_ok=True)
    for variant, letters in truths.items():
        rows = ["cate,relative_path,video_type,question,options,GT,others"]
        rows += [
            f'{k % 6},x/{k}.mp4,t,"Which way, then?",A. left; B. right; C. up; D. down,{g},'
            for k, g in enumerate(letters)
        ]
        (folder / f"{variant}.csv").write_text("\n".join(rows) + "\n")
    return [str(folder / f"{variant}.csv") for variant in truths]


@pytest.mark.parametrize(
    "text", ["A. left; B. turns right", "A. left B. turns right", "A: left\nB: turns right", "A. left;B. turns right;"]
)
def test_dsi_options_in_one_text(text):
    assert read_options(text) == {"A": "left", "B": "turns right"}


def test_dsi_groups_are_right_where_three_of_four_variants_are(tmp_path):
    files = dsi_files(tmp_path, {"std": "AB", "hflip": "BA", "reverse": "BA", "reverse_hflip": "AB"})
    suite = DSIBench(files=files, videos=str(tmp_path))
    questions = suite.questions()
    assert [q.id for q in questions[:3]] == ["std/0", "std/1", "hflip/0"]
    assert suite.path(questions[2]) == "hflip/x/0.mp4"
    # Always A: two of the four variants of both questions.
    table = suite.summary([suite.score(q, "<answer>A</answer>") for q in questions])["official"]
    assert (table["sample_wise_overall"], table["group_wise_overall"], table["groups"]) == (0.5, 0.0, 2)
    # Question 0 right in three variants, question 1 in all.
    said = [q for q in questions if q.id != "reverse/0"]
    scored = [suite.score(q, f"<answer>{min(q.right)}</answer>") for q in said]
    wrong = next(q for q in questions if q.id == "reverse/0")
    table = suite.summary([*scored, suite.score(wrong, "<answer>D</answer>")])["official"]
    assert (table["sample_wise_overall"], table["group_wise_overall"]) == (7 / 8, 1.0)
    # Without that row its group is not whole, and is not scored.
    table = suite.summary(scored)["official"]
    assert (table["groups"], table["groups_incomplete"], table["group_wise_overall"]) == (1, 1, 1.0)


def test_dsi_official_reads_tags_alone_and_the_prompt_keeps_the_released_options(tmp_path):
    suite = DSIBench(files=dsi_files(tmp_path, dict.fromkeys(VARIANTS, "A")))
    question = suite.questions()[0]
    scored = suite.score(question, "A")
    assert (scored.official, scored.score) == (0.0, 1.0)
    assert suite.prompt(question).endswith("\nQuestion:\nWhich way, then? A. left; B. right; C. up; D. down")
    assert suite.summary([scored])["groups"] == {
        "object, static camera": {"n": 1, "correct": 1, "accuracy": 1.0, "invalid": 0}
    }


def test_dsi_answer_file_of_all_variants_and_an_unknown_variant(tmp_path):
    suite = DSIBench(files=dsi_files(tmp_path / "meta", dict.fromkeys(VARIANTS, "A")))
    rows = [{**q.entry, "response": "<answer>A</answer>"} for q in suite.questions()]
    for reader in (suite, DSIBench()):
        scored = score(reader, tmp_path, rows)
        assert [s.question.id for s in scored] == [f"{variant}/0" for variant in VARIANTS]
        assert all(s.official == 1.0 for s in scored)
    with pytest.raises(InputError, match=r"its variant .* is 'answers'"):
        DSIBench().answers(write(tmp_path / "answers.json", [{k: v for k, v in rows[0].items() if k != "aug"}]))


# OST-Bench


def ost(kind, answer, option=None, scan="scene1", **changes):
    return {
        "scan_id": scan,
        "system_prompt": "You explore.",
        "new_observations": [f"{scan}/1.jpg", f"{scan}/2.jpg"],
        "user_message": "Now: Q?",
        "type": kind,
        "option": option,
        "answer": answer,
        **changes,
    }


def test_ost_turns_of_a_dialogue_keep_their_order_and_images(tmp_path):
    entries = [
        ost("Agent_state-position(Judgement)", "left", ["left", "right"]),
        ost("Agent_state-position(Judgement)", "left", ["left", "right"], scan="scene2"),
        ost("Agent_visible_info-quantity(Counting)", 3),
    ]
    suite = OSTBench(files=[str(write(tmp_path / "OST_bench.json", entries))], videos=str(tmp_path))
    questions = suite.questions()
    assert [(q.id, q.dialogue, q.turn) for q in questions] == [
        ("scene1/0", "scene1", 0),
        ("scene2/0", "scene2", 0),
        ("scene1/1", "scene1", 1),
    ]
    assert suite.prompt(questions[0]) == "You explore.\nNow: Q?"
    # Turns are asked one by one, so that each needs it.
    assert suite.prompt(questions[2]) == "You explore.\nNow: Q?"
    with pytest.raises(InputError, match=r"scene1/1.jpg: not found; 4 of 4 files of OST-Bench are missing"):
        suite.check()


def test_ost_turns_without_new_images_need_no_file(tmp_path):
    entries = [
        ost("Agent_state-position(Judgement)", "left", ["left", "right"], new_observations=["1.jpg"]),
        ost("Agent_visible_info-quantity(Counting)", 3, new_observations=[]),
    ]
    (tmp_path / "1.jpg").touch()
    suite = OSTBench(files=[str(write(tmp_path / "OST_bench.json", entries))], videos=str(tmp_path))
    suite.check()
    first, second = map(suite.media, suite.questions())
    assert (len(first.images), first.video) == (1, None)
    assert (second.images, second.video) == ((), None)


def test_ost_answers_are_matched_with_the_released_files(tmp_path):
    entries = [ost("Agent_state-position(Judgement)", "left", ["left", "right"])]
    released = str(write(tmp_path / "OST_bench.json", entries))
    answers = write(tmp_path / "answers.json", [{**entries[0], "response": "left"}])
    found = OSTBench(files=[released]).answers(answers)
    assert [(q.id, text) for q, text in zip(found.questions, found.texts, strict=True)] == [("scene1/0", "left")]
    other = write(tmp_path / "other.json", [{**entries[0], "option": ["left", "up"], "response": "left"}])
    with pytest.raises(InputError, match="other options"):
        OSTBench(files=[released]).answers(other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A_object-quantity(int)", "Agent_visible_info-quantity(Counting)"),
        ("A_object-existence(int1)", "Agent_visible_info-existence(Temporal-loc1)"),
        ("AO_spatial-direction(float)", "Agent_object_spatial-spatial-direction(Estimation)"),
        ("A_orientation(option)", "Agent_state-orientation(Judgement)"),
        ("Agent_state-orientation(Judgement)", "Agent_state-orientation(Judgement)"),
    ],
)
def test_ost_types_of_both_releases(old, new):
    assert type_name(old) == new


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"answer": "left", "reason": "r"}', "left"),
        ("{'answer': 'left', 'reason': 'r'}", "left"),
        ("answer: left\nreason: r", "left"),
        ("left", "left"),
        ("", ""),
    ],
)
def test_ost_answer_field(text, field):
    assert answer_field(text) == field


def test_ost_official_judge_credits_nonsense_and_ours_does_not():
    suite = OSTBench()
    question = suite.read({"turn": 0, **ost("Agent_state-position(Judgement)", "left", ["left", "right"])})
    scored = suite.score(question, "zzz")
    assert (scored.official, scored.score, scored.invalid) == (1.0, 0.0, True)
    empty = suite.score(question, "")
    assert (empty.official, empty.score, empty.invalid) == (None, 0.0, True)
    assert suite.score(question, '{"answer": "right", "reason": "left?"}').read == "#2"
    assert closest_option("to the right", question.options) == "#2"


def test_ost_options_have_no_letters_that_an_article_could_be():
    suite = OSTBench()
    question = suite.read({"turn": 0, **ost("Agent_state-position(Judgement)", "a car", ["a car", "a bus"])})
    assert suite.score(question, "A").invalid
    assert suite.score(question, "A bus.").read == "#2"


@pytest.mark.parametrize(
    ("text", "official", "ours"),
    [("3", 1.0, 1.0), ("three", 1.0, 1.0), ("none", 0.0, 0.0), ("3 chairs", 0.0, 1.0), ("4", 0.0, 0.0)],
)
def test_ost_counting(text, official, ours):
    suite = OSTBench()
    scored = suite.score(suite.read({"turn": 0, **ost("Agent_visible_info-quantity(Counting)", 3)}), text)
    assert (scored.official, scored.score) == (official, ours)


def test_ost_a_number_word_inside_another_word_counts_officially_only():
    suite = OSTBench()
    scored = suite.score(suite.read({"turn": 0, **ost("Agent_visible_info-quantity(Counting)", 1)}), "none")
    assert (scored.official, scored.score, scored.invalid) == (1.0, 0.0, True)


def test_ost_estimation_is_strict_at_a_threshold():
    suite = OSTBench()
    question = suite.read({"turn": 0, **ost("Agent_state-position(Estimation)", "2")})
    assert suite.score(question, "3").official == 0.0  # error 0.5 is not below 0.5
    assert suite.score(question, "2.9").official == pytest.approx(0.1)


def test_ost_room_size_is_asked_and_not_counted(tmp_path):
    suite = OSTBench()
    skipped = suite.read({"turn": 0, **ost("A_room-size(float)", 20.0)})
    counted = suite.read({"turn": 1, **ost("Agent_visible_info-quantity(Counting)", 3)})
    table = suite.summary([suite.score(skipped, "20"), suite.score(counted, "3")])
    assert (table["n"], table["correct"]) == (1, 1)


def test_ost_overall_is_the_mean_of_the_eight_parts():
    suite = OSTBench()
    numbered = {
        "Agent_object_spatial-direction(Judgement)": (1, 2, 3),
        "Agent_object_spatial-distance(Judgement)": (1, 2, 3),
        "Agent_visible_info-existence(Temporal-loc)": (1, 2),
    }
    kinds = [name for part in PARTS.values() for name in part]
    names = [f"{n[:-1]}{k})" for n in kinds for k in numbered.get(n, ())] + [n for n in kinds if n not in numbered]
    scored = []
    for k, name in enumerate(names):
        judged = "Judgement" in name
        question = suite.read({"turn": k, **ost(name, "left" if judged else 2, ["left", "right"] if judged else None)})
        # All right but the third direction judgement and the counting.
        wrong = name.endswith("direction(Judgement3)") or "Counting" in name
        scored.append(
            suite.score(question, "right" if judged and wrong else "left" if judged else "9" if wrong else "2")
        )
    table = suite.summary(scored)["official"]
    assert table["AO(Judge)"] == pytest.approx((2 / 3 + 1) / 2, abs=1e-6)
    assert table["Overall"] == pytest.approx((6 + (2 / 3 + 1) / 2 + 0) / 8, abs=1e-6)
    assert table["Judgement"] == pytest.approx((6 + 2 / 3) / 7, abs=1e-6)
    assert table["Counting"] == 0.0
    assert set(FORMATS) <= set(table)
    assert "Overall" not in suite.summary(scored[3:])["official"]


def test_ost_files_of_one_scene_each_as_the_makers_write_them(tmp_path):
    turn = ost("Agent_visible_info-quantity(Counting)", 3)
    turn = {k: v for k, v in turn.items() if k not in ("user_message", "new_observations", "scan_id")}
    turn |= {"prompt": "Q?", "image_paths": ["1.jpg"], "response": "3"}
    for scene in ("s1", "s2"):
        inner = [turn, {**turn, "prompt": "Again?", "response": ""}]
        write(tmp_path / f"{scene}.json", {"scan_id": scene, "system_prompt": "S", "user_message": inner})
    suite = OSTBench()
    answers = suite.answers(tmp_path)
    assert [q.id for q in answers.questions] == ["s1/0", "s1/1", "s2/0", "s2/1"]
    assert answers.texts == ("3", "", "3", "")


# A user's own


def test_custom_keys_named_in_yaml_numbers_and_options_in_several_forms(tmp_path):
    keys = {"id": "qid", "question": "prompt", "options": "choices", "answer": "gt", "task": "kind"}
    suite = CustomSuite(keys=keys, response="output")
    rows = [
        {"qid": 1, "video": "a.mp4", "prompt": "P?", "choices": ["left", "right"], "gt": "right", "kind": "way"},
        {"qid": 2, "video": "a.mp4", "prompt": "Q?", "choices": {"A": 0, "B": 1}, "gt": 0, "kind": "count"},
        {"qid": 3, "video": "b.mp4", "prompt": "R?", "gt": 10, "kind": "far"},
    ]
    said = ["B", "A", "about 9.4 m"]
    scored = score(suite, tmp_path, [{**row, "output": text} for row, text in zip(rows, said, strict=True)])
    assert [s.score for s in scored] == [1.0, 1.0, pytest.approx(0.9)]
    assert [s.question.task for s in scored] == ["way", "count", "far"]


def test_custom_answers_by_position_and_whole_numbers():
    row = {"id": 1, "video": "a", "question": "Q?", "options": ["1", "0"]}
    assert CustomSuite().read({**row, "answer": 1}).right == {"A"}
    assert CustomSuite(zero_based=True).read({**row, "answer": 1}).right == {"B"}
    number = CustomSuite(whole_numbers=True)
    question = number.read({"id": 1, "video": "a", "question": "Q?", "answer": 20})
    assert [number.score(question, text).score for text in ("20", "19")] == [1.0, 0.0]


def test_custom_unknown_key_names_are_refused():
    with pytest.raises(InputError, match="keys: 'prompt' is not one of id, video"):
        CustomSuite(keys={"prompt": "question"})
