"""OST-Bench (Lin et al., NeurIPS 2025, arXiv 2507.07984): a dialogue while a scene is explored, image by image.

Source: ``evaluation/OST_evaluator.py`` and ``models/QwenVL_basline.py`` of the makers' repository rbler1234/OST-Bench,
and their port in VLMEvalKit. The release is ``OST_bench.json`` of the data set ``rbler/OST-Bench``, one entry a turn
(``scan_id``, ``system_prompt``, ``new_observations`` (images), ``user_message`` (the text that is asked), ``type``,
``option``, ``answer``), turns of a scene in their order, with a folder ``images``. The keys are known from that code;
the file itself was not at hand, so that its wording and its other keys could not be seen.

The official rules, kept as they are in ``official``: for a judgement, the option with the longest common subsequence
(an answer of nonsense gets the first option); for counting and temporal location, a number word found anywhere
("none" holds "one") or a bare number; for estimation, mean relative accuracy with ``<``. An empty answer is left out
of the official figures and is invalid, with score 0, in ours.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mllm4d.bench.suites.base import Suite
from mllm4d.bench.suites.files import number_of, read_table, text_of
from mllm4d.bench.suites.numbers import mean_relative_accuracy
from mllm4d.bench.suites.records import CHOICE, EXACT, RELATIVE, UNSCORED, BenchQuestion, Scored
from mllm4d.bench.suites.summary import average, mean_by
from mllm4d.data.texts import BadRow, plain
from mllm4d.schema import InputError

OLD_NAMES = {
    "option": "Judgement",
    "float": "Estimation",
    "A_object-": "Agent_visible_info-",
    "AO_": "Agent_object_spatial-",
    "A_": "Agent_state-",
}
"""How VLMEvalKit's file writes the types; ``int`` is Counting for quantities, else Temporal-loc."""

NOT_ASKED = ("None", "A_room-size(float)")
"""Types that the makers show and do not score."""

SCORINGS = {"Judgement": CHOICE, "Estimation": RELATIVE, "Counting": EXACT, "Temporal-loc": EXACT}
"""By the word in a type's name."""

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_STATE, _INFO, _OBJECT = "Agent_state", "Agent_visible_info", "Agent_object_spatial"
MERGED = {
    f"{_OBJECT}-direction(Judgement)": [f"{_OBJECT}-direction(Judgement{k})" for k in (1, 2, 3)],
    f"{_OBJECT}-distance(Judgement)": [f"{_OBJECT}-distance(Judgement{k})" for k in (1, 2, 3)],
    f"{_INFO}-existence(Temporal-loc)": [f"{_INFO}-existence(Temporal-loc{k})" for k in (1, 2)],
}
"""Types that are averaged into one."""

PARTS = {
    "A_state(Judge)": [f"{_STATE}-{name}(Judgement)" for name in ("orientation", "position")],
    "A_state(Esti)": [f"{_STATE}-{name}(Estimation)" for name in ("orientation", "position")],
    "A_info(Judge)": [f"{_INFO}-{name}(Judgement)" for name in ("existence", "order", "diversity")],
    "A_info(Temp)": [f"{_INFO}-existence(Temporal-loc)"],
    "A_info(Count)": [f"{_INFO}-quantity(Counting)"],
    "AO(Judge)": [f"{_OBJECT}-{name}(Judgement)" for name in ("direction", "distance")],
    "AO(Esti)": [f"{_OBJECT}-{name}(Estimation)" for name in ("direction", "distance")],
    "AO(Temp)": [f"{_OBJECT}-{name}(Temporal-loc)" for name in ("direction", "distance")],
}
"""The eight parts; ``Overall`` is their mean."""

FORMATS = {
    "Judgement": ["AO(Judge)", "A_info(Judge)", "A_state(Judge)"],
    "Estimation": ["AO(Esti)", "A_state(Esti)"],
    "Temporal-loc": ["A_info(Temp)", "AO(Temp)"],
    "Counting": ["A_info(Count)"],
}
"""The parts whose types are averaged for a question format."""


class OSTBench(Suite):
    """OST-Bench: turns of a dialogue, each with the images that are new."""

    title = "OST-Bench"
    needs = "fetch OST_bench.json and unpack the folder images of the data set rbler/OST-Bench"

    def entries(self, path: Path) -> Iterable[Mapping[str, Any]]:
        """Turns with their place in the dialogue (key ``turn``), also from the makers' files of one scene each."""
        turns: dict[str, int] = defaultdict(int)
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: has no file *.json; expected one of each scene")
        for entry in (turn for file in files for turn in _turns(file)):
            scene = str(entry.get("scan_id"))
            yield {"turn": turns[scene], **entry}
            turns[scene] += 1

    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One released turn."""
        scene, kind = text_of(entry, "scan_id"), type_name(text_of(entry, "type"))
        scoring = scoring_of(kind)
        options = _options(entry) if scoring == CHOICE else {}
        right = frozenset(_right(entry, options))
        images = entry.get("new_observations", entry.get("image_paths"))
        if not isinstance(images, (list, tuple)) or not all(isinstance(image, str) for image in images):
            raise InputError(f"key 'new_observations' is {images!r}, expected a list of image files")
        return BenchQuestion(
            id=f"{scene}/{text_of(entry, 'turn')}",
            video=scene,
            question=text_of(entry, "user_message" if "user_message" in entry else "prompt"),
            options=options,
            right=right,
            value=number_of(entry, "answer") if scoring in (RELATIVE, EXACT) else None,
            scoring=scoring,
            task=kind,
            slices=tuple(name for name in FORMATS if name in kind),
            images=tuple(images),
            dialogue=scene,
            turn=int(number_of(entry, "turn")),
            entry=entry,
        )

    def official_prompt(self, question: BenchQuestion) -> str:
        """The released text, after the system prompt: the turns are asked one by one."""
        system = question.entry.get("system_prompt")
        return f"{system}\n{question.question}" if system else question.question

    def our_prompt(self, question: BenchQuestion) -> str:
        """The released text as well: it says what form the answer takes."""
        return self.official_prompt(question)

    def read_answer(self, question: BenchQuestion, text: str) -> str | float | None:
        """Our rules, on what the asked-for record ``{"answer": …, "reason": …}`` says."""
        return super().read_answer(question, answer_field(text))

    def official_score(self, question: BenchQuestion, text: str) -> float | None:
        """The makers' rules; an empty answer is left out."""
        if not text:
            return None
        said = answer_field(text)
        if question.scoring == CHOICE:
            return float(closest_option(said, question.options) in question.right)
        truth = question.value or 0.0
        try:
            if question.scoring == RELATIVE:
                return mean_relative_accuracy(float(said), truth)
            word = next((number for number, word in enumerate(WORDS) if word in said.lower()), None)
            return float((int(said) if word is None else word) == int(truth))
        except ValueError:
            return 0.0

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """Means by type, the eight parts, the four formats and ``Overall``; what lacks a type is left out."""
        types = mean_by(scored, lambda question: question.task)
        for name, parts in MERGED.items():
            if (value := average(types, parts)) is not None:
                types = {key: old for key, old in types.items() if key not in parts} | {name: value}
        table = {name: average(types, kinds) for name, kinds in PARTS.items()}
        for name, parts in FORMATS.items():
            table[name] = average(types, [kind for part in parts for kind in PARTS[part]])
        known = {name: value for name, value in table.items() if value is not None}
        if (overall := average(known, list(PARTS))) is not None:
            known["Overall"] = overall
        return {"types": types, **known}


def type_name(name: str) -> str:
    """A type as the makers' evaluator writes it."""
    if name in NOT_ASKED or name.startswith("Agent_"):
        return name
    new = name.replace("int", "Counting" if "quantity" in name else "Temporal-loc")
    for old, word in OLD_NAMES.items():
        new = new.replace(old, word)
    return new


def scoring_of(kind: str) -> str:
    """How the answers to a type are scored.

    Raises:
        InputError: There is no such type.
    """
    if kind in NOT_ASKED:
        return UNSCORED
    for word, scoring in SCORINGS.items():
        if word in kind:
            return scoring
    raise InputError(f"key 'type' is {kind!r}, which names none of {', '.join(SCORINGS)}")


def answer_field(text: str) -> str:
    """What follows ``answer`` in ``{"answer": …, "reason": …}`` or in its loose forms; else the whole text."""
    text = text.replace("'", '"')
    if "reason" not in text or "answer" not in text:
        return text.strip('"')
    for key, end in (('"answer":', '"reason"'), ("answer:", "reason")):
        if key in text:
            said = text.split(key)[1].split(end)[0].split("\n")[0]
            return said.strip().strip(",").strip().strip('"')
    return ""


def closest_option(text: str, options: Mapping[str, str]) -> str:
    """The first of the options with the longest common subsequence, as the makers judge."""
    said = text.strip().lower()
    return max(options, key=lambda key: _common(said, options[key].strip().lower()))


def _common(first: str, second: str) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for a in first:
        before = 0
        for k, b in enumerate(second, 1):
            before, row[k] = row[k], before + 1 if a == b else max(row[k], row[k - 1])
    return row[-1]


def _options(entry: Mapping[str, Any]) -> dict[str, str]:
    """Options by number: they are shown without letters, and a text that begins with "A" means none of them."""
    texts = entry.get("option")
    if isinstance(texts, str):
        try:
            texts = json.loads(texts.replace("'", '"'))
        except ValueError:
            texts = None
    if not isinstance(texts, (list, tuple)) or len(texts) < 2:
        raise InputError(f"key 'option' is {entry.get('option')!r}, expected a list of at least two texts")
    return {f"#{number}": plain(text) for number, text in enumerate(texts, 1)}


def _right(entry: Mapping[str, Any], options: Mapping[str, str]) -> set[str]:
    if not options:
        return set()
    truth = plain(entry.get("answer")).replace('"', "")
    right = {key for key, text in options.items() if text == truth}
    if not right:
        raise BadRow("has an answer that is none of its options")
    return right


def _turns(file: Path) -> Iterable[Mapping[str, Any]]:
    """Turns of a file: a list of them, or a scene as the makers' code writes it, with its turns inside."""
    entries: Iterable[Any] = ()
    if file.is_file() and file.suffix == ".json":
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: is not JSON ({error})") from error
        entries = [whole] if isinstance(whole, Mapping) else whole if isinstance(whole, list) else ()
        if not all(isinstance(entry, Mapping) for entry in entries):
            raise InputError(f"{file}: expected records (JSON objects)")
    else:
        entries = read_table(file)
    for entry in entries:
        inner = entry.get("user_message")
        if isinstance(inner, list):
            shared = {name: entry[name] for name in ("scan_id", "system_prompt") if name in entry}
            yield from ({**shared, **turn} for turn in inner)
        else:
            yield entry
