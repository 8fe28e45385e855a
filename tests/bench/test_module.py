"""A benchmark as it is run: one rank and two, killed and resumed, and what is refused before anything slow begins."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mllm4d.__main__ import main
from mllm4d.bench.answering import Generation
from mllm4d.bench.likelihood import LetterLikelihood, TextLikelihood
from mllm4d.bench.report.records import read_run
from mllm4d.bench.suites.custom import CustomSuite
from mllm4d.bench.suites.dsi_bench import DSIBench
from mllm4d.bench.suites.ost_bench import OSTBench
from mllm4d.bench.suites.own import MLLM4DBench
from mllm4d.bench.suites.sti_bench import STIBench
from mllm4d.bench.suites.vlm4d import VLM4D
from mllm4d.bench.suites.vsi_bench import VSIBench
from mllm4d.models.base import BaseModel, LoRA
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.tiny import TinyQwen3VL, build_tiny
from mllm4d.schema import InputError
from tests.bench.runs import COUNTS, Noted, make, run, same_results
from tests.bench.test_suites import dsi_files, ost, sti, vlm4d, vsi
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def whole(root):
    """A run that nothing disturbed."""
    out = root / "whole"
    return out, run(root, out, Noted(str(root / "whole.jsonl")))


def noted(path):
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()]


def test_every_question_is_asked_once_with_its_clip_and_once_without(root, whole):
    out, results = whole
    asked = noted(root / "whole.jsonl")
    assert sorted(asked) == sorted((number, seen) for number in range(sum(COUNTS)) for seen in (True, False))
    assert (results["n"], results["scores"]["n"], results["scores"]["videos"]) == (11, 11, 5)
    assert results["suite"] == "MLLM4D-Bench"
    assert results["answering"] == "likelihood of letters"
    assert results["settings"]["precision"] == "32-true"
    assert "text_only" in results["blind"]["all"]
    # What the report reads is what is written.
    assert len(read_run(out, "run").samples) == 11
    # The answers are a finished answer file.
    suite = MLLM4DBench()
    answers = suite.answers(out / "answers.jsonl")
    scored = [suite.score(q, text) for q, text in zip(answers.questions, answers.texts, strict=True)]
    assert suite.summary(scored)["accuracy"] == results["scores"]["accuracy"]
    assert {text for text in answers.texts} <= {"A", "B"}


SCRIPT = """
import sys
from pathlib import Path
from tests.bench.runs import Noted, run
root, out, notes, dies = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
trainer = {"devices": int(sys.argv[5]), "strategy": sys.argv[6]}
run(root, out, Noted(notes, int(dies) if dies else None), trainer=trainer)
"""


def python(*arguments, ranks=1):
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--master-port=29677"] if ranks > 1 else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launch, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def script(root):
    path = root / "script.py"
    path.write_text(SCRIPT)
    return path


def test_killed_and_resumed_it_gives_the_same_table_and_asks_nothing_twice(root, whole, script, tmp_path):
    out, notes = tmp_path / "killed", tmp_path / "notes.jsonl"
    # The third batch is in the middle of the second pool.
    killed = python(script, root, out, notes, 3, 1, "auto")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    first = noted(notes)
    kept = (out / "answers-rank0.jsonl").read_text().splitlines()
    assert len(kept) == len(first) > 0
    assert not (out / "results.json").exists()
    # As a kill in the middle of a write leaves it, in the middle of a character.
    with (out / "answers-rank0.jsonl").open("ab") as file:
        file.write('{"response": "é'.encode()[:-1])
    run(root, out, Noted(str(notes)))
    asked = noted(notes)
    assert asked[: len(first)] == first
    assert len(asked) == len(set(asked)) == 2 * sum(COUNTS)
    assert same_results(out, whole[0])


def test_two_ranks_give_the_table_of_one_with_a_number_of_questions_that_is_odd(root, whole, script, tmp_path):
    """Also where a rank has nothing to do, since all questions are one pool."""
    out, notes = tmp_path / "two", tmp_path / "notes.jsonl"
    other = script.with_name("two_runs.py")
    other.write_text(f"{SCRIPT}run(root, Path(sys.argv[2] + '-idle'), pool=100, trainer=trainer)\n")
    result = python(other, root, out, notes, "", 2, "ddp", ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    files = [len((out / f"answers-rank{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert sum(files) == 11
    assert min(files) > 0
    assert len(set(noted(notes))) == len(noted(notes)) == 22
    assert same_results(out, whole[0])
    assert not (tmp_path / "two-idle" / "answers-rank1.jsonl").exists()
    run(root, tmp_path / "one", pool=100)
    assert same_results(tmp_path / "two-idle", tmp_path / "one")


def test_a_finished_run_once_more_asks_nothing_and_writes_the_same(root, whole, tmp_path):
    out, notes = tmp_path / "again", tmp_path / "notes.jsonl"
    shutil.copytree(whole[0], out)
    (out / "results.json").unlink()
    run(root, out, Noted(str(notes)))
    assert not notes.exists()
    assert same_results(out, whole[0])


def change(name, tmp_path):
    """Settings of a run that differ in one thing from those of ``whole``, and what the message says of it."""
    if name == "answering":
        return {"answering": TextLikelihood()}, "answering.kind was 'likelihood of letters' and is"
    if name == "frames":
        video = VideoSettings(frames=8, max_pixels=1024)
        return {"model": {"video": video}}, "preprocessing.settings.max_pixels was 4096 and is 1024"
    if name == "weights":
        return {"model": {"base": TinyQwen3VL(str(tmp_path / "tiny"), seed=1)}}, "model.weights was"
    return {"trainer": {"precision": "bf16-mixed"}}, "precision was '32-true' and is 'bf16-mixed'"


@pytest.mark.parametrize("name", ["answering", "frames", "weights", "precision"])
def test_a_journal_is_not_continued_with_another_configuration(name, root, whole, tmp_path):
    out = whole[0]
    before = (out / "answers-rank0.jsonl").read_bytes()
    settings, words = change(name, tmp_path)
    answering = settings.pop("answering", LetterLikelihood())
    with pytest.raises(InputError, match="holds answers of another configuration: " + words.replace(".", r"\.")):
        run(root, out, answering, **settings)
    assert (out / "answers-rank0.jsonl").read_bytes() == before


def test_other_questions_or_prompts_are_refused_and_moved_shards_are_not(root, whole, tmp_path):
    out = whole[0]
    (root / "shards").rename(root / "moved")
    try:
        run(root, out, LetterLikelihood(), suite=MLLM4DBench(shards=str(root / "moved")))
    finally:
        (root / "moved").rename(root / "shards")
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    for line in lines:
        (tmp_path / line["video"]).touch()

    def changed(entries):
        (tmp_path / "entries.json").write_text(json.dumps(entries))
        return MLLM4DBench(files=[str(tmp_path / "entries.json")], videos=str(tmp_path))

    with pytest.raises(InputError, match=r"another configuration: suite\.count was 11 and is 5"):
        run(root, out, LetterLikelihood(), suite=changed(lines[:5]))
    reworded = [{**lines[0], "question": "How far?"}, *lines[1:]]
    with pytest.raises(InputError, match=r"another configuration: suite\.questions was"):
        run(root, out, LetterLikelihood(), suite=changed(reworded))


def test_worker_processes_change_nothing(root, tmp_path):
    plain = run(root, tmp_path / "plain", Generation(4, batch_size=2))
    workers = run(root, tmp_path / "workers", Generation(4, batch_size=2), workers=2)
    assert same_results(tmp_path / "plain", tmp_path / "workers")
    assert plain["settings"]["answering"] == workers["settings"]["answering"]


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_bf16_on_request_rounds_what_the_model_computes_and_nothing_else(root, tmp_path, precision):
    sums = {}
    for name in ("32-true", precision):
        results = run(root, tmp_path / name, TextLikelihood(" "), trainer={"precision": name})
        assert (results["n"], results["settings"]["precision"]) == (11, name)
        lines = (tmp_path / name / "samples.jsonl").read_text().splitlines()
        found = [list(json.loads(line)["log_likelihood"].values()) for line in lines]
        sums[name] = torch.tensor(found, dtype=torch.float64)
    gap = (sums["32-true"] - sums[precision]).abs()
    assert 1e-3 < float(gap.max()) < 1.5
    run(root, tmp_path / "words", Generation(4), trainer={"precision": precision})


def test_a_part_of_a_benchmark_says_so(root, tmp_path):
    results = run(root, tmp_path / "part", trainer={"limit_test_batches": 2})
    assert results["n"] < 11
    assert f"only {results['n']} of 11 questions have an answer" in results["warnings"]
    assert "text_only" not in results["blind"]["all"]


def test_a_dialogue_over_images_is_asked_turn_by_turn_and_says_so(root, tmp_path):
    (tmp_path / "scene1").mkdir()
    for k in range(1, 5):
        Image.new("RGB", (64, 64), (50 * k, 0, 0)).save(tmp_path / "scene1" / f"{k}.png")
    new = [["scene1/1.png", "scene1/2.png"], ["scene1/3.png"], ["scene1/4.png"]]
    kinds = ["Agent_state-position(Judgement)", "A_room-size(float)", "Agent_visible_info-quantity(Counting)"]
    answers = [("left", ["left", "right"]), (20.0, None), (3, None)]
    entries = [
        ost(kind, answer, options, new_observations=images)
        for kind, (answer, options), images in zip(kinds, answers, new, strict=True)
    ]
    (tmp_path / "OST_bench.json").write_text(json.dumps(entries))
    suite = OSTBench(files=[str(tmp_path / "OST_bench.json")], videos=str(tmp_path))
    results = run(root, tmp_path / "out", suite=suite)
    assert results["n"] == 2  # the size of the room is not scored
    assert any(warning.startswith("turns of dialogues are asked one by one") for warning in results["warnings"])
    samples = read_run(tmp_path / "out", "run").samples
    assert samples[0].prompt == "You explore.\nNow: Q?"
    assert [sample.right for sample in samples] == [["#1"], [3.0]]


def released(name, tmp_path):
    """A suite with two questions or more."""
    if name == "dsi":
        files = dsi_files(tmp_path, {"std": ["A"], "hflip": ["B"], "reverse": ["A"], "reverse_hflip": ["B"]})
        return DSIBench(files=files)
    entries, suite = {
        "vlm4d": ([vlm4d(), vlm4d(video="videos_synthetic/bear.mp4")], VLM4D),
        "vsi": ([vsi("room_size_estimation", "25.4"), vsi("route_planning", "B", ["A. a", "B. b"], id=2)], VSIBench),
        "sti": ([sti(), sti(time_start=2.0)], STIBench),
        "ost": (
            [ost("Agent_visible_info-quantity(Counting)", 3), ost("Agent_visible_info-quantity(Counting)", 4)],
            OSTBench,
        ),
    }[name]
    (tmp_path / "released.json").write_text(json.dumps(entries))
    return suite(files=[str(tmp_path / "released.json")])


@pytest.mark.parametrize("name", ["vlm4d", "vsi", "sti", "dsi", "ost"])
def test_the_answers_of_every_suite_can_be_scored_again_from_their_file_alone(name, tmp_path):
    suite = released(name, tmp_path)
    lines = [{**q.entry, "response": "3", "bench": {"id": q.id, "tokens": 1}} for q in suite.questions()]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line, default=str) + "\n" for line in lines))
    found = type(suite)().answers(tmp_path / "answers.jsonl")
    assert [q.id for q in found.questions] == [q.id for q in suite.questions()]
    assert set(found.texts) == {"3"}


# What is wrong


def fails(root, out, match, **settings):
    with pytest.raises(InputError, match=match):
        run(root, out, **settings)
    assert not (out / "answers-rank0.jsonl").exists()


def custom(tmp_path, entries, **settings):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(entries))
    return CustomSuite(files=[str(path)], **settings)


ENTRY = {"id": 1, "video": "a.mp4", "question": "Q?", "options": ["left", "right"], "answer": "A"}


def test_missing_videos_unknown_files_and_empty_suites_are_told_before_the_model_is_made(root, tmp_path):
    base = {"base": BaseModel(str(tmp_path / "no model"))}  # would fail as well, later
    out = tmp_path / "out"
    suite = custom(tmp_path, [ENTRY], videos=str(tmp_path))
    fails(root, out, r"a\.mp4: not found; 1 of 1 files of the user's suite are missing", suite=suite, model=base)
    suite = CustomSuite(files=[str(tmp_path / "nothing.json")], videos=str(tmp_path))
    fails(root, out, r"nothing\.json: not found", suite=suite, model=base)
    fails(root, out, "hold no question that is scored", suite=custom(tmp_path, [], videos=str(tmp_path)), model=base)
    suite = MLLM4DBench(shards=str(tmp_path / "shards"))
    fails(root, out, r"shards.*index\.json", suite=suite, model=base)
    suite = custom(tmp_path, [{**ENTRY, "options": None, "answer": 3}], videos=str(tmp_path))
    (tmp_path / "a.mp4").write_bytes(b"")
    fails(root, out, "have no options to compare", suite=suite, model=base, answering=LetterLikelihood())


def test_a_checkpoint_of_another_model_is_refused(root, tmp_path):
    run_out = tmp_path / "out"
    settings = {"base": TinyQwen3VL(str(root / "tiny"), lora=LoRA(r=2, alpha=4)), "video": VideoSettings(frames=8)}
    base = settings["base"]
    model, processor = base.load()
    weights = {f"model.{name}": value for name, value in model.state_dict().items() if "lora_" in name}
    inputs = base.inputs(model, processor, settings["video"]).describe()
    path = tmp_path / "lora.ckpt"

    def save(**content):
        version = {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 1}
        torch.save({**version, "state_dict": weights, "inputs": inputs, **content}, path)

    save()
    fails(root, run_out, r"holds 'model\.base_model.*', which this model has not", checkpoint=str(path))
    other = {"model": {**settings, "base": TinyQwen3VL(str(root / "tiny"), lora=LoRA(r=4, alpha=4))}}
    fails(root, run_out, r"is \(2, 128\), in this model \(4, 128\)", checkpoint=str(path), **other)
    save(state_dict={})
    fails(root, run_out, "holds no weights", checkpoint=str(path))
    save(inputs={**inputs, "settings": {**inputs["settings"], "frames": 4}})
    fails(root, run_out, r"made with settings\.frames 4, but here it is 8", checkpoint=str(path), model=dict(settings))
    save()
    results = run(root, tmp_path / "good", model=dict(settings), checkpoint=str(path))
    assert results["checkpoint"] == str(path)


def test_settings_that_were_saved_with_a_model_are_taken_and_missing_ones_are_noted(root, tmp_path):
    build_tiny(tmp_path / "tiny")
    base = BaseModel(str(tmp_path / "tiny"))
    results = run(root, tmp_path / "bare", model={"base": base, "video": None})
    assert "has no video_inputs.json and 'model.video' is null: at most 8 frames" in results["warnings"][0]
    model, processor = base.load()
    base.inputs(model, processor, VideoSettings(frames=8, max_pixels=1024)).save(tmp_path / "tiny")
    results = run(root, tmp_path / "saved", model={"base": base, "video": None})
    assert results["settings"]["preprocessing"]["settings"]["max_pixels"] == 1024
    assert not any("video_inputs.json" in warning for warning in results["warnings"])


def test_videos_that_cannot_be_read_stop_the_run_or_are_counted_named_and_tried_again(root, tmp_path):
    from tests.data.shard_sets import sample

    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a", "b"):
        (videos / f"{name}.mp4").write_bytes(sample(name, 1, frames=8, size=64).video)
    good = (videos / "b.mp4").read_bytes()
    (videos / "b.mp4").write_bytes(bytes(len(good)))
    entries = [{**ENTRY, "id": f"{v}{n}", "video": f"{v}.mp4", "question": f"Q{n}?"} for v in "ab" for n in (0, 1)]
    suite = custom(tmp_path, entries, videos=str(videos))
    with pytest.raises(InputError, match=r"b\.mp4: cannot be decoded.*question 'b0'; 'data\.max_failed'"):
        run(root, tmp_path / "strict", LetterLikelihood(), suite=suite, pool=2)
    out = tmp_path / "lenient"
    results = run(root, out, LetterLikelihood(), suite=suite, pool=2, max_failed=0.5)
    assert (results["n"], results["scores"]["invalid"]) == (4, 2)
    assert results["warnings"][0].startswith("2 questions could not be asked and count as invalid, first ")
    assert [s.response == "" for s in read_run(out, "run").samples] == [False, False, True, True]
    # A video that is there again is asked about; one of another size is another video.
    (videos / "b.mp4").write_bytes(good)
    notes = tmp_path / "notes.jsonl"
    results = run(root, out, Noted(str(notes)), suite=suite, pool=2, model={"text_only": False})
    assert noted(notes) == [(2, True), (3, True)]
    assert (results["n"], results["scores"]["invalid"]) == (4, 0)
    (videos / "b.mp4").write_bytes(good + b"more")
    with pytest.raises(InputError, match=r"another configuration: suite\.videos was"):
        run(root, out, LetterLikelihood(), suite=suite, pool=2)


# The command


@pytest.fixture
def command(root, tmp_path, monkeypatch):
    """``python -m mllm4d test`` with the shipped configuration, in a folder of its own."""
    monkeypatch.setattr(sys, "argv", ["mllm4d"])
    monkeypatch.chdir(tmp_path)
    config = ["-c", str(ROOT / "configs/bench/quickstart.yaml"), "--trainer.enable_progress_bar", "false"]

    def command(*words):
        main(["test", *config, "--model.base.path", str(root / "tiny"), "--data.workers", "0", *words])

    return command


def test_the_quickstarts_command_writes_results_and_tensorboard(root, command, capsys):
    command("--data.suite.shards", str(root / "shards"), "--model.answering.max_new_tokens", "2")
    out = Path("runs/bench/quickstart")
    results = json.loads((out / "results.json").read_text())
    assert results["n"] == 11
    shown = capsys.readouterr().out
    assert (out / "results.md").read_text() in shown
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/jpeg" in page  # frames of the samples, read from the shards
    assert "runs/bench/quickstart/results.json" in shown
    events = EventAccumulator(str(out / "logs")).Reload()
    logged = {tag.removeprefix("test/"): events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    assert logged == pytest.approx(results["flat"], abs=1e-6)
    assert "accuracy/camera_absolute_distance" in logged


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.suite.shards", "nowhere"], r"mllm4d test: nowhere/index\.json"),
        (["--data.suite.shards", "SHARDS", "--data.suite.split", "val"], "split 'val' has no questions"),
    ],
)
def test_what_is_wrong_is_one_sentence_on_the_command_line(root, command, words, message):
    with pytest.raises((SystemExit, InputError), match=message):
        command(*[str(root / "shards") if word == "SHARDS" else word for word in words])
    assert not Path("runs/bench/quickstart/answers-rank0.jsonl").exists()
