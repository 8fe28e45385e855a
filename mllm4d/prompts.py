"""Every prompt, wording and template, once."""

from __future__ import annotations

import hashlib
import math
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
        "Between {i} and {j}, how far did the camera's position shift, in a straight line?",
        "In a straight line, how far apart are the places where the camera was at {i} and at {j}?",
        "Whatever path it took, how far is the camera at {j} from where it was at {i}?",
        "If a straight line joined the camera's positions at {i} and at {j}, how long would it be?",
    ),
    "camera_relative_direction": (
        "From {i} to {j}, in which direction did the camera move? Forward is where it looked at {i}.",
        "Seen from the camera at {i}, where is it at {j}? Forward is where it looked at {i}.",
        "Which way did the camera go between {i} and {j}, in its own axes at {i}?",
        "With the camera's view at {i} as the reference, which way had the camera moved by {j}?",
        "Where does the camera's position at {j} lie from the one at {i}? Directions are those of its view at {i}.",
        "For someone who looks the way the camera looked at {i}, in which direction did the camera travel until {j}?",
    ),
    "object_absolute_distance": (
        "From {i} to {j}, how far did the {name} move through space, in a straight line?",
        "What is the straight-line distance between where the {name} was at {i} and where it was at {j}?",
        "Between {i} and {j}, how far was the {name} displaced in space, whatever path it took?",
        "In a straight line, how far apart are the places where the {name} was at {i} and at {j}?",
        "Apart from the camera's own motion, how far did the {name} get from its place at {i} by {j}?",
        "If a straight line joined where the {name} was at {i} to where it was at {j}, how long would it be?",
    ),
    "object_relative_direction": (
        "From {i} to {j}, in which direction did the {name} itself move? Forward is where the camera looked at {i}.",
        "In the camera's axes at {i}, which way did the {name} travel through space until {j}?",
        "Apart from the camera's own motion, which way did the {name} go from {i} to {j}, in the camera's axes at {i}?",
        "With the camera's view at {i} as the reference, which way had the {name} itself moved through space by {j}?",
        "In space, where did the {name} go between {i} and {j}? Forward is where the camera looked at {i}.",
        "For someone who stays where the camera was at {i} and looks the same way, where did the {name} go until {j}?",
    ),
    "object_camera_absolute_distance": (
        "How far is the nearest point of the {name}, as it stands at {j}, from the camera's position at {i}?",
        "From where the camera was at {i}, how far away is the {name}, at its nearest point, at {j}?",
        "What is the smallest distance from the camera's position at {i} to the {name} as it stands at {j}?",
        "Measured from the camera's place at {i}, how far off is the closest part of the {name} when the time is {j}?",
        "Take the camera where it was at {i} and the {name} where it is at {j}: how far apart are they at the nearest?",
        "How long is the shortest line from the camera's position at {i} to the surface of the {name} as it is at {j}?",
    ),
    "object_camera_relative_distance": (
        "Compared with {i}, is the {name} closer to the camera at {j}, farther from it, or unchanged?",
        "From {i} to {j}, how did the distance between the camera and the {name} change?",
        "At {j}, how does the distance from the camera to the {name} compare with the one at {i}?",
        "Between {i} and {j}, did the {name} get closer to the camera, farther from it, or is the distance unchanged?",
        "In its distance to the camera, what happened to the {name} between {i} and {j}?",
        "Whichever of the two moved, how has the distance of the {name} to the camera changed by {j}, since {i}?",
    ),
    "object_camera_relative_direction": (
        "As seen from the camera, how did the place of the {name} change from {i} to {j}?",
        "In the camera's own view, which way did the {name} shift between {i} and {j}?",
        "Relative to the camera and where it looks, where did the {name} go from {i} to {j}?",
        "As the camera sees it, its own moves and turns included, which way did the {name} go from {i} to {j}?",
        "In the camera's axes of each moment, {i} and {j}, which way did the place of the {name} shift most?",
        "For a viewer who moves and turns with the camera, which way did the {name} move from {i} to {j}?",
    ),
}
"""Wordings of a task; ``{i}`` and ``{j}`` are times, ``{name}`` the object. A name may itself end in a time ("car that
is on the left at 0 s"), so that no wording goes on with "at" after it."""

PAPER_WORDINGS: dict[str, str] = {
    "camera_absolute_distance": "How far did the camera move from {i} to {j}?",
    "camera_relative_direction": "In which direction did the camera move from {i} to {j}, relative to its view at {i}?",
    "object_absolute_distance": "How far did the {name} move from {i} to {j}?",
    "object_camera_absolute_distance": "How far is the {name} as it is at {j} from the camera's position at {i}?",
    "object_camera_relative_distance": "From {i} to {j}, did the {name} get closer to the camera or farther from it?",
    "object_camera_relative_direction": "As seen from the camera, which way did the {name} move from {i} to {j}?",
}
"""Plain wordings of the six tasks of the paper (arXiv 2603.00515), whose own templates are not public."""

PAPER_LABELS: dict[str, str] = {"unchanged": "not moving"}
"""What the paper calls a label of ours."""

LETTER_INSTRUCTION = "Answer with the letter of the right option."
TEXT_INSTRUCTION = "Answer with the text of the right option."
REASONING_INSTRUCTION = (
    "First reason between <thinking> and </thinking>; give the states at the first and the last frame that matter as "
    "lines '- Camera Center: [x, y, z]' and '- Object Center: [x, y, z]' in metres, in the camera axes of the video's "
    "first frame (x right, y down, z forward), or null. Then give the letter of the right option between <answer> and "
    "</answer>."
)

REASONING = """<thinking>
{align}
{first}
- Camera Center: {camera_i}
- Object Center: {object_i}
{follow}
{last}
- Camera Center: {camera_j}
- Object Center: {object_j}
{conclude}
</thinking>
<answer>{letter}</answer>"""
"""The five steps of ST-CoT (arXiv 2603.00515): align, parse the first state, follow, verify the last, conclude."""

REASONING_STEPS: dict[str, tuple[str, ...]] = {
    "align": (
        "Objective: {objective} The two time anchors are {i} and {j}.",
        "The question is: {objective} Two moments settle it, first {i} and then {j}.",
        "To find out: {objective} I look at {i} and at {j}.",
    ),
    "first": (
        "State at {i}:",
        "First, where everything is at {i}:",
        "At the first anchor, {i}, I read:",
    ),
    "follow": (
        "Motion: {motion}.",
        "Following the frames from {i} to {j}: {motion}.",
        "On the way to {j}: {motion}.",
    ),
    "last": (
        "State at {j}:",
        "Now I check where everything is at {j}:",
        "At the last anchor, {j}, this holds:",
    ),
    "conclude": (
        "Conclusion: {evidence}. So the answer is {text}.",
        "Putting it together: {evidence}. Of the options, {text} fits.",
        "Evidence: {evidence}. This makes it {text}.",
    ),
}
"""Wordings of each step; any goes with any."""

EVIDENCE: dict[str, str] = {
    "camera_absolute_distance": "the camera's centres at {i} and {j} are {distance} apart",
    "camera_relative_direction": "in the axes of the camera at {i}, its centre moved by {vector}",
    "object_absolute_distance": "at {j} the centre of the {name} is {distance} away from where it was at {i}",
    "object_relative_direction": "in the axes of the camera at {i}, the {name} moved by {vector}",
    "object_camera_absolute_distance": "from the camera at {i}, the {name} in its place of {j} begins {distance} away",
    "object_camera_relative_distance": "the camera's distance to the nearest point of the {name} changed by {change}",
    "object_camera_relative_direction": "from the camera's axes at {i} to those at {j}, the {name} moved by {vector}",
}
"""What a conclusion rests on, in the numbers of the states."""


class Dialogue(NamedTuple):
    """What the user says after the video, and what the model should say."""

    prompt: str
    target: str


def seconds(time: float) -> str:
    """A time as questions write it: up to two decimals, for example ``0.5 s``."""
    return f"{time:.2f}".rstrip("0").rstrip(".") + " s"


def metres(distance: float, digits: int = 2) -> str:
    """A distance in metres: so many significant digits, for example ``0.53 m``, ``1.3 m`` or ``12 m``."""
    return f"{_significant(distance, digits)} m"


def distances(values: Sequence[float]) -> tuple[str, ...]:
    """Distances as the options of one question: all in centimetres or all in metres, and no two alike.

    The unit follows from the geometric middle of all the options, so that it tells nothing about which one is right:
    under 1 m it is centimetres. Two significant digits, more only where options would read the same.

    Args:
        values: Metres, greater than 0, no two the same.

    Returns:
        Texts in the order of ``values``, for example ``53 cm`` or ``1.3 m``.

    Raises:
        ValueError: Two distances are the same or one is not positive: they cannot be options of one question.
    """
    if len(set(values)) < len(values) or min(values) <= 0:
        raise ValueError(f"distances {values} cannot be options of one question")
    middle = math.exp(sum(math.log(value) for value in values) / len(values))
    scale, unit = (100, "cm") if middle < 1 else (1, "m")
    for digits in range(2, 18):
        texts = tuple(f"{_significant(scale * value, digits)} {unit}" for value in values)
        if len(set(texts)) == len(texts):
            return texts
    raise ValueError(f"distances {values} cannot be told apart in writing")


def read_distance(text: str) -> float:
    """Metres of what ``distances`` has written.

    Raises:
        ValueError: It is not a number and ``m`` or ``cm``.
    """
    number, unit = text.split()
    if unit not in ("m", "cm"):
        raise ValueError(f"{text!r} is no distance: expected a number and 'm' or 'cm'")
    return float(number) if unit == "m" else float(number) / 100


def _significant(value: float, digits: int) -> str:
    text = f"{value:.{digits}g}"
    return f"{float(text):.0f}" if "e" in text else text


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


def open_answer(question: Question) -> Dialogue:
    """Ask without options; the target is the right option's text. Small models learn so what is to be seen."""
    return Dialogue(question.question, f" {question.options[question.answer]}")


OPEN_SHARE = 0.4
"""Share of the questions that ``open_or_choice`` asks without options."""


def open_or_choice(question: Question) -> Dialogue:
    """Ask some questions without options (``open_answer``) and the others with (``text_and_letter``).

    Which ones follows from the question's id alone.
    """
    drawn = int.from_bytes(hashlib.sha256(question.id.encode()).digest()[:4], "big") / 2**32
    return open_answer(question) if drawn < OPEN_SHARE else text_and_letter(question)


def reasoned(question: Question) -> Dialogue:
    """Ask for ST-CoT reasoning; the target is the question's own.

    Raises:
        InputError: The question has no reasoning.
    """
    if question.reasoning is None:
        raise InputError(f"question {question.id!r} has no reasoning (key 'reasoning'), which this style needs")
    prompt = with_options(question.question, dict(question.options), REASONING_INSTRUCTION)
    return Dialogue(prompt, question.reasoning)
