"""Every prompt, wording and template, once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mllm4d.schema import InputError, Question

LABELS: dict[str, tuple[str, ...]] = {
    "camera_relative_direction": ("left", "right", "forward", "backward"),
    "object_relative_direction": ("left", "right", "forward", "backward"),
    "object_camera_relative_distance": ("closer", "farther", "unchanged"),
    "object_camera_relative_direction": ("left", "right", "closer", "farther"),
}
"""The option texts of the tasks that are answered in words; all of them are offered in every question."""

WORDINGS: dict[str, tuple[str, ...]] = {
    "camera_absolute_distance": (
        "How far from its position at {i} is the camera at {j}, in a straight line?",
        "What is the straight-line distance between the camera's positions at {i} and at {j}?",
        "Between {i} and {j}, by how many metres did the camera's position change?",
    ),
    "camera_relative_direction": (
        "From {i} to {j}, in which direction did the camera move? Forward is where it looked at {i}.",
        "Seen from the camera at {i}, where is it at {j}? Forward is where it looked at {i}.",
        "Which way did the camera go between {i} and {j}, in its own axes at {i}?",
    ),
    "object_absolute_distance": (
        "How far from its place at {i} is the {name} at {j}, in a straight line?",
        "What is the straight-line distance between the places of the {name} at {i} and at {j}?",
        "Between {i} and {j}, by how many metres did the {name} move in space?",
    ),
    "object_relative_direction": (
        "From {i} to {j}, in which direction did the {name} itself move? Forward is where the camera looked at {i}.",
        "In the camera's axes at {i}, which way did the {name} travel through space until {j}?",
        "Apart from the camera's own motion, which way did the {name} go from {i} to {j}, in the camera's axes at {i}?",
    ),
    "object_camera_absolute_distance": (
        "How far is the nearest point of the {name} at {j} from the camera's position at {i}?",
        "From where the camera was at {i}, how far away is the {name}, at its nearest point, at {j}?",
        "What is the smallest distance from the camera's position at {i} to the {name} as it stands at {j}?",
    ),
    "object_camera_relative_distance": (
        "Compared with {i}, is the {name} closer to the camera at {j}, farther from it, or unchanged?",
        "From {i} to {j}, how did the distance between the camera and the {name} change?",
        "At {j}, how does the distance of the {name} to the camera compare with the one at {i}?",
    ),
    "object_camera_relative_direction": (
        "As seen from the camera, how did the place of the {name} change from {i} to {j}?",
        "In the camera's own view, which way did the {name} shift between {i} and {j}?",
        "Relative to the camera and where it looks, where did the {name} go from {i} to {j}?",
    ),
}
"""Wordings of a task; ``{i}`` and ``{j}`` are times, ``{name}`` the object."""

LETTER_INSTRUCTION = "Answer with the letter of the right option."
TEXT_INSTRUCTION = "Answer with the text of the right option."
REASONING_INSTRUCTION = (
    "First reason between <thinking> and </thinking>; give the states at the first and the last frame that matter as "
    "lines '- Camera Center: [x, y, z]' and '- Object Center: [x, y, z]' in metres, or null. Then give the letter of "
    "the right option between <answer> and </answer>."
)

REASONING = """<thinking>
Objective: {objective} The two time anchors are {i} and {j}.
State at {i}:
- Camera Center: {camera_i}
- Object Center: {object_i}
Motion: {motion}
State at {j}:
- Camera Center: {camera_j}
- Object Center: {object_j}
Conclusion: {conclusion}
</thinking>
<answer>{letter}</answer>"""
"""The five steps of ST-CoT (arXiv 2603.00515): align, parse the first state, follow, verify the last, conclude."""


class Dialogue(NamedTuple):
    """What the user says after the video, and what the model should say."""

    prompt: str
    target: str


def seconds(time: float) -> str:
    """A time as questions write it: up to two decimals, for example ``0.5 s``."""
    return f"{time:.2f}".rstrip("0").rstrip(".") + " s"


def metres(distance: float) -> str:
    """A distance as options write it: two significant digits, for example ``0.53 m``, ``1.3 m`` or ``12 m``."""
    text = f"{distance:.2g}"
    return f"{float(text):.0f} m" if "e" in text else f"{text} m"


def with_options(question: str, options: dict[str, str] | Sequence[tuple[str, str]], instruction: str) -> str:
    """The user's text: the question, one option a line, and what form the answer should take."""
    pairs = options.items() if isinstance(options, dict) else options
    return "\n".join([question, *(f"{letter}. {text}" for letter, text in pairs), instruction])


def letter(question: Question) -> Dialogue:
    """Ask for the letter; the target is the letter."""
    return Dialogue(with_options(question.question, dict(question.options), LETTER_INSTRUCTION), question.answer)


def text(question: Question) -> Dialogue:
    """Ask for the option's text; the target is that text, which a small model learns sooner than letters."""
    prompt = with_options(question.question, dict(question.options), TEXT_INSTRUCTION)
    # The blank before the text makes it the same token as in the list of options.
    return Dialogue(prompt, f" {question.options[question.answer]}")


def text_and_letter(question: Question) -> Dialogue:
    """Ask for the letter; the target is the option's text and then its letter, which small models bind sooner."""
    prompt = with_options(question.question, dict(question.options), LETTER_INSTRUCTION)
    return Dialogue(prompt, f" {question.options[question.answer]}<answer>{question.answer}</answer>")


def reasoned(question: Question) -> Dialogue:
    """Ask for ST-CoT reasoning; the target is the question's own.

    Raises:
        InputError: The question has no reasoning.
    """
    if question.reasoning is None:
        raise InputError(f"question {question.id!r} has no reasoning (key 'reasoning'), which this style needs")
    prompt = with_options(question.question, dict(question.options), REASONING_INSTRUCTION)
    return Dialogue(prompt, question.reasoning)
