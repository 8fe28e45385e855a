"""The ST-CoT text of a question, written from its measured states."""

from __future__ import annotations

from mllm4d import prompts
from mllm4d.qa.generate import Candidate

_EVIDENCE = {
    "camera_absolute_distance": "the camera's centres at {i} and {j} are {text} apart",
    "camera_relative_direction": "in the axes of the camera at {i}, its centre moved mostly {text}",
    "object_absolute_distance": "the centres of the {name} at {i} and {j} are {text} apart",
    "object_relative_direction": "in the axes of the camera at {i}, the {name} moved mostly {text}",
    "object_camera_absolute_distance": "the nearest point of the {name} at {j} is {text} from the camera at {i}",
    "object_camera_relative_distance": "compared with {i}, the {name} is {text} at {j}",
    "object_camera_relative_direction": "as seen from the camera, the {name} went mostly {text} from {i} to {j}",
}


def reason(candidate: Candidate, objective: str, text: str, letter: str) -> str:
    """Write the five steps with both states, and the answer.

    Args:
        candidate: What was measured.
        objective: The question's wording.
        text: The right option's text.
        letter: Its letter.

    Returns:
        The ST-CoT text: a thinking block and an answer block.
    """
    i, j = (prompts.seconds(time) for time in candidate.times)
    camera = candidate.solution["camera_center"] or (None, None)
    target = candidate.solution["object_center"] or (None, None)
    motion = f"the camera {_motion(*camera)}" + (f"; the {candidate.name} {_motion(*target)}" if candidate.name else "")
    evidence = _EVIDENCE[candidate.task].format(i=i, j=j, name=candidate.name, text=text)
    return prompts.REASONING.format(
        objective=objective,
        i=i,
        j=j,
        camera_i=_point(camera[0]),
        camera_j=_point(camera[1]),
        object_i=_point(target[0]),
        object_j=_point(target[1]),
        motion=f"{motion}.",
        conclusion=f"{evidence}, so the answer is {text}.",
        letter=letter,
    )


def _point(point: list[float] | None) -> str:
    return "null" if point is None else "[" + ", ".join(f"{value:.2f}" for value in point) + "]"


def _motion(first: list[float] | None, last: list[float] | None) -> str:
    if first is None or last is None:
        return "is not seen at both anchors"
    change = [b - a for a, b in zip(first, last, strict=True)]
    return "stays where it is" if max(map(abs, change)) < 0.05 else f"moves by {_point(change)}"
