"""Solvers against questions made so that one of them sees through."""

from dataclasses import replace

from mllm4d.qa import blind
from mllm4d.schema import Question


def numeric(values, answer, letters="ABCD", anchors=(0, 3)):
    options = {letter: f"{value} m" for letter, value in zip(letters, values, strict=True)}
    truth = float(values[letters.index(answer)])
    return Question("q/0", "camera_absolute_distance", "?", options, answer, truth, "m", anchors, None, {}, None)


def words(answer):
    options = {"A": "left", "B": "right", "C": "forward", "D": "backward"}
    return Question(
        "q/0", "camera_relative_direction", "?", options, answer, options[answer], None, (0, 3), None, {}, None
    )


def test_median_option_takes_the_lower_median():
    assert blind.median_option([])(numeric([9, 1, 4, 2], "A")) == "D"
    assert blind.median_option([])(words("A")) is None


def test_smallest_plausible_keeps_the_others_in_range():
    # 2 keeps 0.5 (25 %), 3 and 3.5 (175 %) in range; 0.5 does not.
    assert blind.smallest_plausible([])(numeric([0.5, 2, 3, 3.5], "B")) == "B"


def test_most_frequent_letter_learns_the_letter():
    assert blind.most_frequent_letter([words("C"), words("C"), words("A")])(words("A")) == "C"


def test_option_prior_learns_the_common_text_and_size():
    assert blind.option_prior([words("D")] * 5)(words("A")) == "D"
    assert blind.option_prior([numeric([1, 2, 4, 8], "B")] * 5)(numeric([2, 16, 32, 64], "C")) == "A"


def test_time_gap_learns_the_usual_speed():
    fit = [numeric([1, 2, 4, 8], "A", anchors=(0, 1)), numeric([1, 2, 4, 8], "D", anchors=(0, 7))]
    solve = blind.time_gap(fit)
    assert solve(numeric([1, 2, 4, 8], "B", anchors=(1, 2))) == "A"
    assert solve(numeric([1, 2, 4, 8], "B", anchors=(0, 7))) == "D"
    assert solve(numeric([1, 2, 4, 8], "B", anchors=(0, 5))) is None


def test_time_gap_learns_the_usual_word():
    solve = blind.time_gap([words("C"), words("C"), words("A")])
    assert solve(words("A")) == "C"


def test_table_by_hand():
    # Fold 0 says C, C; fold 1 says C, A. Fitted on the other fold, the letter votes for C; for fold 0 the texts are a
    # tie, and the first option is taken.
    table = blind.score_blind([words("C"), words("C"), words("C"), words("A")], [0, 0, 1, 1])
    assert table["camera_relative_direction"] == {
        "n": 4,
        "chance": 0.25,
        "most_frequent_letter": 0.75,
        "option_prior": 0.25,
        "time_gap": 0.25,
        # No words: of texts in a tie the last of the alphabet is taken, which is "right".
        "wording_prior": 0.0,
    }


def test_centimetres_are_metres():
    options = {"A": "53 cm", "B": "80 cm", "C": "120 cm", "D": "1.8 m"}
    question = replace(words("A"), options=options, unit="m", answer_value=0.53)
    assert blind.numeric_options(question) == {"A": 0.53, "B": 0.8, "C": 1.2, "D": 1.8}


def test_wording_prior_learns_from_names():
    def about(name, answer):
        return replace(words(answer), question=f"Where did the {name} go?")

    solve = blind.wording_prior([about("car", "A"), about("dog", "B")] * 5)
    assert solve(about("car", "D")) == "A"
    assert solve(about("dog", "D")) == "B"


def test_ties_are_broken_by_what_an_option_says_and_not_by_its_letter():
    swapped = {"A": "backward", "B": "forward", "C": "right", "D": "left"}
    fit = [words(letter) for letter in "ABCD"]
    for build in (blind.option_prior, blind.time_gap, blind.wording_prior):
        solve = build(fit)
        one, other = words("A"), replace(words("A"), options=swapped)
        assert one.options[solve(one)] == other.options[solve(other)]
