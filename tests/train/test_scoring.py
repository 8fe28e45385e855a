"""Rewards with weights: None, numbers that are none, functions of users that are wrong, slow or wild."""

import math
import pickle
import threading
import time
import warnings

import pytest
import torch
from jsonargparse import ArgumentParser
from torch.testing import assert_close

from mllm4d.schema import InputError
from mllm4d.train import rewards
from mllm4d.train.rewards import paper_reward
from mllm4d.train.scoring import PAPER_REWARDS, Reward, failure_sums, score, weighted_sum
from mllm4d.train.time_limit import TimeLimited
from tests.data.test_formats import question
from tests.train import slow_rewards

NAN = math.nan


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_weighted_sum_by_hand():
    weights = values(0.6, 0.3, 0.1)
    parts = torch.stack([values(1, 0.5, 0), values(1, NAN, 0), values(NAN, NAN, 1), values(NAN, NAN, NAN)])
    # The second: (0.6 x 1 + 0.1 x 0) of a weight of 0.7, in place of 1.
    assert_close(weighted_sum(parts, weights), values(0.75, 0.6 / 0.7, 1, NAN), equal_nan=True)


def test_a_penalty_has_a_negative_weight():
    weights = values(1, -0.5)
    parts = torch.stack([values(1, 1), values(1, NAN), values(NAN, 1)])
    assert_close(weighted_sum(parts, weights), values(0.5, 1.5, -1.5))


def test_a_reward_without_weight_is_only_shown():
    weights = values(1, 0)
    parts = torch.stack([values(0.5, 9), values(0.5, NAN), values(NAN, 9)])
    assert_close(weighted_sum(parts, weights), values(0.5, 0.5, NAN), equal_nan=True)


def test_the_papers_rewards_add_up_to_its_score():
    asked = question(solution={"camera_center": [[0, 0, 0], [0, 0, 1]], "object_center": None})
    text = "<thinking>\n- Camera Center: [0, 0, 0]\n- Camera Center: [0, 3, 1]\n- Object Center: null\n</thinking>"
    texts = [text, f"{text}<answer>B</answer>", "<answer>B</answer>", ""]
    scores = score(PAPER_REWARDS, texts, [asked] * 4)
    whole = [paper_reward(text, {"answer": asked.answer, **asked.solution}) for text in texts]
    assert scores.total.tolist() == pytest.approx([entry["total"] for entry in whole])
    assert scores.parts.tolist() == [[entry[r.name] for r in PAPER_REWARDS] for entry in whole]
    assert scores.failures == {}


def test_none_does_not_apply_and_what_is_not_finite_is_skipped_and_counted():
    absent, length = Reward("absent", slow_rewards.absent, 0.5), Reward("length", slow_rewards.length, 0.5)
    with pytest.warns(UserWarning, match=r"'absent' is nan, for question 'street/004'"):
        scores = score([absent, length], ["none", "4", "nan", "-inf"], [question()] * 4)
    assert_close(
        scores.parts, torch.stack([values(NAN, 4), values(4, 1), values(NAN, 3), values(NAN, 4)]), equal_nan=True
    )
    assert_close(scores.total, values(4, 2.5, 3, 4))
    assert scores.failures == {"absent/not_finite": 2}
    sums = {name: pair.tolist() for name, pair in failure_sums(scores, [absent, length]).items()}
    kinds = {f"reward_{kind}/{name}": [0, 4] for kind in ("over_time", "not_finite") for name in ("absent", "length")}
    assert sums == {**kinds, "reward_not_finite/absent": [2, 4]}
    assert math.isnan(score([absent], ["none"], [question()]).total)


@pytest.mark.parametrize("seconds", [None, 60])
def test_what_is_wrong_with_a_users_function_is_said(seconds):
    for function, reason in ((slow_rewards.broken, "KeyError: 'colour'"), (slow_rewards.wordy, "returned 'good'")):
        with pytest.raises(InputError, match=f"reward 'mine': .*{reason}"):
            score([Reward("mine", function, seconds=seconds)], ["a"], [question()])


def test_one_clear_sentence_for_bad_settings():
    for settings, reason in (({"weight": NAN}, "'weight' is nan"), ({"seconds": 0}, "'seconds' is 0")):
        with pytest.raises(InputError, match=f"reward 'mine': {reason}"):
            Reward("mine", slow_rewards.length, **settings)
    mine = Reward("mine", slow_rewards.length, 0)
    with pytest.raises(InputError, match="no two the same"):
        score([mine, mine], ["a"], [question()])
    with pytest.raises(InputError, match="at least one"):
        score([mine], ["a"], [question()])


def test_over_time_does_not_apply_is_counted_and_the_next_is_scored():
    slow = Reward("slow", slow_rewards.sleepy, seconds=3)
    begun = time.monotonic()
    with pytest.warns(UserWarning, match=r"'slow' took longer than 3 s, for question 'street/004'"):
        scores = score([slow], ["quick", "slow", "quick"], [question()] * 3)
    assert_close(scores.parts[:, 0], values(1, NAN, 1), equal_nan=True)
    assert scores.failures == {"slow/over_time": 1}
    assert time.monotonic() - begun < 29  # it sleeps for 30 s


def test_a_wild_regular_expression_is_stopped_off_the_main_thread_too():
    found = {}

    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found["scores"] = score(
                [Reward("wild", slow_rewards.wild, seconds=3)], ["aaa", "a" * 60 + "b"], [question()] * 2
            )

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(240)
    assert not thread.is_alive()
    assert_close(found["scores"].parts[:, 0], values(1, NAN), equal_nan=True)
    assert found["scores"].failures == {"wild/over_time": 1}


def test_one_process_for_all_calls_and_another_after_its_end():
    limited = TimeLimited(slow_rewards.process, 60, "reward 'pid'")
    first = limited("", None)
    assert limited("", None) == first
    limited.close()
    again = pickle.loads(pickle.dumps(limited))
    assert len({first, limited("", None), again("", None)}) == 3


def test_a_process_that_dies_or_cannot_start_is_said():
    with pytest.raises(InputError, match="reward 'mine': its process died"):
        score([Reward("mine", slow_rewards.dying, seconds=60)], ["a"], [question()])
    with pytest.raises(InputError, match="expected a function at the top of a module"):
        score([Reward("mine", lambda completion, question: 1.0, seconds=60)], ["a"], [question()])


class Module:
    def __init__(self, rewards: list[Reward]) -> None:
        self.rewards = rewards


class Longer:
    """A reward with settings of its own."""

    def __init__(self, than: int = 2) -> None:
        self.than = than

    def __call__(self, completion: str, question: object) -> float:
        return float(len(completion) > self.than)


def test_yaml_names_functions_and_objects():
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_subclass_arguments(Module, "model")
    here = __name__
    text = f"""
    class_path: {here}.Module
    init_args:
      rewards:
        - {{name: accuracy, weight: 0.6, function: mllm4d.train.rewards.accuracy}}
        - {{name: slow, function: tests.train.slow_rewards.sleepy, seconds: 2}}
        - name: longer
          function:
            class_path: {here}.Longer
            init_args: {{than: 3}}
    """
    first, second, third = parser.instantiate(parser.parse_args([f"--model={text}"])).model.rewards
    assert first == Reward("accuracy", rewards.accuracy, 0.6)
    assert (second.function, second.weight, second.seconds) == (slow_rewards.sleepy, 1, 2)
    assert second._limited is not None
    assert (third("abc", question()), third("abcd", question())) == (0, 1)
