"""What solvers answer that never see the video; ``mllm4d.bench.blind`` scores them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random
from statistics import median

from mllm4d.answers import read_option
from mllm4d.bench.suites.numbers import read_number
from mllm4d.bench.suites.records import CHOICE, BenchQuestion
from mllm4d.prompts import LETTER_INSTRUCTION, with_options
from mllm4d.qa import blind
from mllm4d.reading.marks import normal
from mllm4d.reading.quantity import quantity
from mllm4d.schema import Question

Guess = str | float | None
"""An option's letter or a number; None where a solver has nothing to say."""

Say = Callable[[Sequence[str]], Sequence[str]]
"""From prompts to what a model answers. It is given no video."""

TEXT_ONLY, USUAL_NUMBER = "text_only", "usual_number"

SOLVERS: Mapping[str, Callable[[Sequence[Question]], blind.Solver]] = {
    "most_frequent_letter": blind.most_frequent_letter,
    "option_prior": blind.option_prior,
    "wording_prior": blind.wording_prior,
    "median_option": blind.median_option,
    "smallest_plausible": blind.smallest_plausible,
}
"""Of multiple-choice questions, fitted on the questions of other videos; see ``mllm4d.qa.blind``."""


def folds_by_video(questions: Sequence[BenchQuestion], count: int = 5, seed: int = 0) -> list[int]:
    """A fold for each question; the questions about one video share it.

    Args:
        questions: At least one.
        count: Folds; at most one for every video.
        seed: Of the order in which videos are dealt.
    """
    videos = sorted({question.video for question in questions})
    Random(seed).shuffle(videos)
    fold = {video: k % max(1, min(count, len(videos))) for k, video in enumerate(videos)}
    return [fold[question.video] for question in questions]


def guesses(
    questions: Sequence[BenchQuestion],
    folds: Sequence[int] | None = None,
    fit: Sequence[BenchQuestion] = (),
    say: Say | None = None,
) -> dict[str, list[Guess]]:
    """What every blind solver answers; each question by a solver that has not seen the questions of its video.

    Where a benchmark is balanced as a whole, what is rare in one fold is frequent in the rest: solvers fitted on other
    folds then score below chance. Those fitted on ``fit`` do not.

    Args:
        questions: Of one benchmark.
        folds: A number for each question; it is answered by solvers fitted on the other folds. None is
            ``folds_by_video``.
        fit: Questions of other videos to fit on in place of the other folds, such as those of the train split.
        say: A model that answers prompts without a video; None leaves the text-only baseline out. It is asked once,
            about all questions in their order.

    Returns:
        Solver to its guesses, in the order of the questions.
    """
    if fit:
        folds = [0] * len(questions)
    folds = folds_by_video(questions) if folds is None else folds
    asked = [_as_question(q) if q.scoring == CHOICE else None for q in questions]
    prior = [_as_question(q) for q in fit if q.scoring == CHOICE]
    found: dict[str, list[Guess]] = {name: [None] * len(questions) for name in (*SOLVERS, USUAL_NUMBER)}
    for fold in sorted(set(folds)):
        others = [k for k, f in enumerate(folds) if f != fold]
        seen = prior if fit else [q for k in others if (q := asked[k]) is not None]
        usual = _usual_numbers(fit or [questions[k] for k in others])
        solvers = {name: build(seen) for name, build in SOLVERS.items()}
        for k in (k for k, f in enumerate(folds) if f == fold):
            if (question := asked[k]) is None:
                found[USUAL_NUMBER][k] = usual.get(questions[k].task)
            else:
                for name, solve in solvers.items():
                    found[name][k] = solve(question)
    if say is not None:
        found[TEXT_ONLY] = text_only(questions, say)
    return found


def text_only(questions: Sequence[BenchQuestion], say: Say) -> list[Guess]:
    """What a model answers that is given the words alone; what cannot be read is ``""``, which is never right.

    Args:
        questions: Of one benchmark.
        say: From prompts to texts.
    """
    prompts = [
        with_options(q.question, dict(q.options), LETTER_INSTRUCTION)
        if q.options
        else f"{q.question}\nAnswer with a number."
        for q in questions
    ]
    read: list[Guess] = []
    for question, text in zip(questions, say(prompts), strict=True):
        guess: Guess = read_option(text, question.options) if question.options else read_number(text)
        read.append("" if guess is None else guess)
    return read


def _as_question(question: BenchQuestion) -> Question:
    """As the solvers of ``mllm4d.qa.blind`` take it: numbers of one unit as metres, whatever the unit."""
    texts = {letter: normal(text) for letter, text in question.options.items()}
    values = {letter: value for letter, text in texts.items() if (value := quantity(text)) and value[0] > 0}
    numeric = len(values) == len(texts) and len({unit for _, unit in values.values()}) == 1
    answer = min(question.right)
    return Question(
        id=question.id,
        task=question.task,
        question=question.question,
        options={letter: f"{values[letter][0]} m" for letter in texts} if numeric else texts,
        answer=answer,
        answer_value=values[answer][0] if numeric else texts[answer],
        unit="m" if numeric else None,
        anchors=(0, 0),
        object=None,
        solution={},
        reasoning=None,
    )


def _usual_numbers(fit: Sequence[BenchQuestion]) -> dict[str, float]:
    """The median truth of every task that asks for numbers."""
    values: dict[str, list[float]] = defaultdict(list)
    for question in fit:
        if question.value is not None:
            values[question.task].append(question.value)
    return {task: median(found) for task, found in values.items()}
