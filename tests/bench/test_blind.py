"""Blind baselines: by hand, on benchmarks that leak and on ours that does not."""

import json
from random import Random

import pytest
import torch

from mllm4d.bench.blind import ALL, CHANCE, blind_summary, blind_table, leak_warnings
from mllm4d.bench.guesses import SOLVERS, TEXT_ONLY, USUAL_NUMBER, folds_by_video, guesses
from mllm4d.bench.suites.own import MLLM4DBench
from mllm4d.bench.suites.records import CHOICE, RELATIVE, UNSCORED, BenchQuestion
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.world import World
from mllm4d.qa.balance import balance
from mllm4d.qa.generate import candidates
from mllm4d.qa.judge import Margins
from mllm4d.qa.paper import PaperOptions
from tests.qa.scenes import random_scene

WORDS = {"A": "left", "B": "right", "C": "forward", "D": "backward"}


def words(number, right, video=None, options=None, task="direction", question="Where to?"):
    options = options or WORDS
    return BenchQuestion(f"q{number}", video or f"v{number}", question, options, frozenset(right), None, CHOICE, task)


def numeric(number, values, right, unit="m", video=None):
    options = {letter: f"{value} {unit}" for letter, value in zip("ABCD", values, strict=True)}
    return BenchQuestion(
        f"n{number}", video or f"v{number}", "How far?", options, frozenset(right), None, CHOICE, "distance"
    )


def size(number, value, video=None):
    return BenchQuestion(f"s{number}", video or f"v{number}", "How large?", {}, frozenset(), value, RELATIVE, "size")


def test_folds_keep_a_video_together_and_are_even():
    questions = [words(k, "A", f"v{k // 3}") for k in range(60)]
    folds = folds_by_video(questions)
    assert sorted(folds.count(fold) for fold in range(5)) == [12] * 5
    assert all(len({folds[3 * v + k] for k in range(3)}) == 1 for v in range(20))
    assert set(folds_by_video(questions[:6])) == {0, 1}


def test_no_solver_is_fitted_on_the_video_that_it_answers():
    """The truth of each video is its own: who has seen another question of the video knows the answer."""
    random = Random(0)
    questions = []
    for video in range(40):
        right = random.choice("ABCD")
        options = {letter: f"{letter.lower()}{video}" for letter in "ABCD"}
        questions += [words(f"{video}-{k}", right, f"v{video}", options, question=f"Film {video}?") for k in range(5)]
    table = blind_table(questions)["direction"]
    assert table["option_prior"].accuracy < 0.45
    assert table["wording_prior"].accuracy < 0.45
    # In folds that part videos it would be seen.
    assert blind_table(questions, folds=[k % 5 for k in range(200)])["direction"]["option_prior"].accuracy == 1


def test_solvers_by_hand():
    questions = [numeric(0, [9, 1, 4, 2], "D"), numeric(1, [50, 200, 300, 350], "A", "cm"), words(2, "C"), size(3, 8.0)]
    fit = [words(k, "C") for k in range(9)] + [numeric(9, [1, 2, 4, 8], "B"), size(10, 4.0), size(11, 9.0), size(12, 7)]
    found = guesses(questions, fit=fit)
    assert found["median_option"] == ["D", "B", None, None]
    # 200 keeps 50 (25 %) and 350 (175 %), as 300 does; 50 keeps none.
    assert found["smallest_plausible"][1] == "B"
    assert found["most_frequent_letter"][2] == "C"
    assert found["option_prior"][2] == "C"
    assert found[USUAL_NUMBER] == [None, None, None, 7.0]
    table = blind_table(questions, fit=fit)
    # 7 of 8 is off by 12.5 %: 0.5 to 0.85 are kept.
    assert table["size"][USUAL_NUMBER].accuracy == pytest.approx(0.8)
    assert table["size"][USUAL_NUMBER].chance is None
    assert CHANCE not in table["size"]
    assert table["distance"]["median_option"].n == 2
    assert table["distance"]["median_option"].accuracy == 0.5
    assert "median_option" not in table["direction"]
    assert set(table) == {"distance", "direction", "size", ALL}


def test_chance_of_questions_with_several_right_letters_and_other_counts_of_options():
    questions = [words(0, "AC"), words(1, "A", options={"A": "yes", "B": "no"}), words(2, "B")]
    assert blind_table(questions)[ALL][CHANCE].accuracy == pytest.approx((0.5 + 0.5 + 0.25) / 3)


def test_what_is_not_scored_does_not_count():
    unscored = BenchQuestion("u", "v", "?", {}, frozenset(), None, UNSCORED, "dialogue")
    assert set(blind_table([words(0, "A"), unscored])) == {"direction", ALL}


def test_a_text_only_model_gets_words_and_no_video():
    questions = [words(0, "B"), words(1, "A"), words(2, "A"), size(3, 4.0)]
    seen = []

    def say(prompts):
        seen.extend(prompts)
        return ["The answer is B", "right", "I cannot see a video.", "4"]

    table = blind_table(questions, say=say)
    assert all(isinstance(prompt, str) and "v0" not in prompt for prompt in seen)
    assert "A. left\nB. right" in seen[0]
    # What cannot be read counts as wrong.
    assert (table["direction"][TEXT_ONLY].n, table["direction"][TEXT_ONLY].accuracy) == (3, pytest.approx(1 / 3))
    assert table["size"][TEXT_ONLY].accuracy == 1
    assert TEXT_ONLY not in blind_table(questions)["direction"]


def test_it_rarely_warns_where_there_is_nothing_to_warn_of():
    """Some 15 cells in each of 60 benchmarks; without a correction a third of the benchmarks would warn."""
    warned = 0
    for seed in range(60):
        random = Random(seed)
        questions = [words(k, random.choice("ABCD"), f"v{k // 4}", task=f"t{k % 4}") for k in range(240)]
        warned += bool(leak_warnings(blind_table(questions)))
    assert warned <= 8


def test_a_letter_that_is_right_too_often_is_warned_of():
    random = Random(0)
    questions = [words(k, random.choice("AAABCD"), f"v{k // 2}") for k in range(300)]
    (warning, *_) = leak_warnings(blind_table(questions))
    assert "most_frequent_letter never sees the video" in warning
    assert "chance is 25.0 %" in warning


def test_the_table_as_json():
    random = Random(0)
    questions = [words(k, random.choice("AAABCD"), f"v{k // 2}") for k in range(90)] + [size(0, 2.0), size(1, 3.0)]
    table = blind_table(questions)
    plain = json.loads(json.dumps(blind_summary(table), allow_nan=False))
    assert plain["warnings"] == list(leak_warnings(table)) != []
    assert plain["blind"]["direction"][CHANCE] == {
        "n": 90,
        "chance": 0.25,
        "accuracy": 0.25,
        "ci_low": 0.25,
        "ci_high": 0.25,
        "leaks": False,
    }
    cell = table["direction"]["most_frequent_letter"]
    assert plain["blind"]["direction"]["most_frequent_letter"]["accuracy"] == round(cell.accuracy, 6)
    assert plain["blind"]["size"][USUAL_NUMBER]["chance"] is None


def world(folder, **options):
    """Shards of the synthetic world, half of the videos for fitting."""
    source = World(width=64, height=64, frames=8, fps=4.0, seed=0)
    splits = {"train": 0.5, "test": 0.5}
    curation = Curation(source, str(folder), clips=24, workers=0, pairs=12, splits=splits, **options)
    out = str(curation.run())
    return [MLLM4DBench(shards=out, split=split).questions() for split in ("test", "train")]


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    return world(tmp_path_factory.mktemp("paper") / "shards", options=PaperOptions())


def test_the_papers_options_leak_and_the_table_warns(leaky):
    test, train = leaky
    for table in (blind_table(test), blind_table(test, fit=train)):
        cell = table[ALL]["smallest_plausible"]
        assert cell.accuracy > 0.5
        assert cell.leaks
        assert cell.ci_low > cell.chance == pytest.approx(0.25)
        assert "smallest_plausible never sees the video" in leak_warnings(table)[0]


def test_our_own_options_give_nothing_away(tmp_path):
    test, train = world(tmp_path / "shards")
    for table in (blind_table(test), blind_table(test, fit=train)):
        assert leak_warnings(table) == ()
        for name in ("median_option", "smallest_plausible"):
            assert table[ALL][name].accuracy == pytest.approx(0.25)


@pytest.fixture(scope="module")
def many():
    """Questions about 800 scenes, made of candidates alone; the scenes of one half never meet those of the other."""
    found = {"test": [], "train": []}
    for seed in range(500):
        made = candidates(
            f"clip-{seed:04d}", random_scene(seed, objects=2), Margins(), 6, torch.Generator().manual_seed(seed)
        )
        found["test" if seed % 2 else "train"] += made[0]
    return found


def bench(found, maker, seed=0):
    made = maker(found, per_clip=4, ratio=1.5, seed=seed)
    return [
        BenchQuestion(q.id, q.id.split("/")[0], q.question, dict(q.options), frozenset(q.answer), None, CHOICE, q.task)
        for q in made.questions
    ]


def test_in_thousands_of_questions_our_own_are_at_chance_and_the_papers_are_not(many):
    # Not of one seed: with that, both halves have the same wordings in the same order beside the same answers.
    ours = blind_table(bench(many["test"], balance), fit=bench(many["train"], balance, seed=1))
    assert ours[ALL][CHANCE].n > 1500
    assert leak_warnings(ours) == ()
    for task, row in ours.items():
        for name, cell in row.items():
            if name != CHANCE:
                # Two points, or four standard deviations of a guess where a task has few questions.
                luck = 4 * (cell.chance * (1 - cell.chance) / cell.n) ** 0.5
                assert abs(cell.accuracy - cell.chance) < max(0.02, luck), (task, name, cell)
    papers = blind_table(bench(many["test"], PaperOptions()), fit=bench(many["train"], PaperOptions(), seed=1))
    for task in ("camera_absolute_distance", "object_absolute_distance", "object_camera_absolute_distance"):
        assert papers[task]["smallest_plausible"].leaks
        assert papers[task]["median_option"].leaks


def test_every_solver_of_the_issue_is_there():
    table = blind_table([numeric(k, [1, 2, 4, 8], "A") for k in range(8)], say=lambda prompts: ["A"] * len(prompts))
    expected = {CHANCE, "most_frequent_letter", "option_prior", "median_option", "smallest_plausible", TEXT_ONLY}
    assert expected <= set(table["distance"])
    assert set(SOLVERS) | {TEXT_ONLY, CHANCE} == set(table["distance"])
