"""Which option a text chooses, by rules alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mllm4d.reading.marks import answer_part, normal
from mllm4d.reading.quantity import places, quantity

Texts = Mapping[str, str]
"""Letter to option text, in the form of ``normal``."""

LONGEST = 20_000
"""Characters of an answer that are read: the first half of them and the last."""

SPAN = 400
"""Characters after a cue that are looked at."""

MOST = 400
"""Cues of one kind that are looked at, the last ones: more of them is a text that repeats itself."""


def read_option(text: str, options: Mapping[str, Any]) -> str | None:
    """Which option a text chooses.

    Reasoning between thinking tags is passed over. Then, in this order: the text inside the last pair of answer tags
    (or a box, or a JSON answer), and nothing else where there is one; a declaration ("the answer is B", "B is correct",
    "I choose B"), a final one before others; a line that is a letter, with or without its text; the one option whose
    text occurs and is not denied. What contradicts itself or cannot be read is no answer.

    Args:
        text: What the model said.
        options: Letter to option text. Where options share a text, any of their letters is returned
            (``mllm4d.answers.right_letters``).

    Returns:
        The letter, or None where the text cannot be read.
    """
    said = answer_part(text)
    if len(said) > LONGEST:
        said = f"{said[: LONGEST // 2]}\n{said[-LONGEST // 2 :]}"
    texts = {letter: normal(option) for letter, option in options.items()}
    for read in (_declared, _on_a_line, _mentioned):
        if found := read(said, texts):
            return found.pop() if len(found) == 1 else None
    return None


# Letters

# Not the first of a word, not before an apostrophe or a hyphen, in brackets or quotes or not.
_LETTER = r"[\"'(\[{<]{0,3}([A-Za-z])(?![\w-]|'\w)[\"')\]}>]{0,3}"
_LEAD = re.compile(rf" ?(?:(?:option|choice|letter|answer):? )?{_LETTER}", re.IGNORECASE)
_SECOND = re.compile(rf",? ?(?:/|&|\+|,|\bor\b|\band\b) ?(?:option )?{_LETTER}(?= ?(?:[,./)]|or\b|and\b|$))")
_ENDS = re.compile(r" ?(?:[.,:;)!\n]|$)")
_AFTER_A = re.compile(r" ?[-.,:;)!\n]| ?$| (?:because|since|as|due|given|based|for|and|or|A)\b")
_NOT_IT = re.compile(
    r"\)? ?(?:is|was|can be|seems|are|cannot|can't|isn't)\b[^.,;\n]{0,20}"
    r"\b(?:not|\w{1,8}n't|wrong|incorrect|false|out|excluded)\b"
)


def _letters_at(text: str, texts: Texts) -> set[str]:
    """The letter that a text begins with, and another one where it names or spells out another option as well."""
    match = _LEAD.match(text)
    if match is None or match[1].upper() not in texts:
        return set()
    letter, rest = match[1].upper(), text[match.end() : match.end() + SPAN]
    if rest.lstrip().startswith("?") or _NOT_IT.match(rest):
        return set()
    spelled = _OTHER_SENSE.sub("", normal(rest.split("\n")[0].lstrip(" .:,)-")))
    # "A car and a bus" is no A, whatever A is.
    article = letter == "A" and re.match(r" \w", rest) is not None
    own = bool(texts[letter]) and (spelled == texts[letter] if article else spelled.startswith(texts[letter]))
    # "A car" is no A, "b right" is no b.
    if not own and not (_ENDS.match(rest) if match[1].islower() else match[1] != "A" or _AFTER_A.match(rest)):
        return set()
    others = {key for key, option in texts.items() if not own and option == spelled}
    # A list of options.
    others |= {
        key for key in texts if re.search(rf"\b{re.escape(key.lower())}\W{{1,3}}{re.escape(texts[key])}\b", spelled)
    }
    if (second := _SECOND.match(rest)) and second[1].upper() in texts:
        others.add(second[1].upper())
    return {letter} | {key for key in others if texts[key] != texts[letter]}


# Declarations

_VERB = r"(?: (?:is|was|would be|should be|must be|will be|has to be|seems to be|appears to be))?(?:\s?[:=]| -)?"
_FILLER = (
    r"(?:\s?(?:therefore|thus|clearly|likely|probably|definitely|simply|most likely|that|indeed|,|:|the"
    r"|not \(?[A-Z]\)?,? but))?"
)
_ANSWER = re.compile(
    rf"(?<!if the )(?<!whether the )\b(?P<final>final )?(?P<noun>answer|ans|choice|option|solution)\b"
    rf"(?: here| (?:to|for) (?:this|the|your) question)?(?P<verb>{_VERB}){_FILLER}{_FILLER}\s?(?=\W|(?<=\W)\w)"
    r"|(?P<chinese>答案(?:是|为|:)|(?<!不)选择?(?!项)[:]?)",
    re.IGNORECASE,
)
_PICK = re.compile(
    r"\b(?:choose|chose|select|selected|pick|picked|going with|go with|opt for|guess|guess it's|think it's|say it's"
    r"|believe it's|would be|must be|should be|it's|it is|this is|that's|that leaves|matches|corresponds to|say"
    r"|conclude)"
    r"(?: that)?(?: the)?(?: answer)?(?: is)?[:,]?(?= )",
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    r"(?<![\w'-])\(?([A-Z])\)?(?:[.:)] ?[^.\n]{0,80}?)? (?:is|seems|appears|must be|would be|looks)(?: to be)?"
    r"(?: clearly| therefore| thus| likely| probably)?(?: the)?(?: most \w+| only| single)?"
    r" (?:correct|right|best|answer|accurate|true)\b"
)
_CONCLUDES = re.compile(
    r"(?:^|[.,;!?]\s|\n)(?:so|therefore|thus|hence|in conclusion|overall|in summary|to conclude)\b(?! far| that| on)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.;!?](?:\s|$)|\n")


def _declared(said: str, texts: Texts) -> set[str]:
    """Letters that sentences declare to be the answer, or options that they do; final ones before others."""
    final, found = set[str](), set[str]()
    for cue in list(_ANSWER.finditer(said))[-MOST:]:
        rest = said[cue.end() : cue.end() + SPAN]
        explicit = bool(cue["chinese"] or cue["verb"].strip())
        # "Option A says …" is about an option; "answer B" is an answer.
        letters = _letters_at(rest, texts) if explicit or cue["noun"].lower().startswith("ans") else set()
        if not letters and explicit:
            letters = _mentioned(_SENTENCE_END.split(rest.strip(), maxsplit=1)[0], texts)
        found |= letters
        if cue["final"]:
            final |= letters
    for cue in list(_PICK.finditer(said))[-MOST:]:
        lead = _LEAD.match(said, cue.end())
        if lead is not None and lead[1].isupper():
            found |= _letters_at(said[cue.end() : cue.end() + SPAN], texts)
    found |= {match[1] for match in _IS_RIGHT.finditer(said) if match[1] in texts}
    if not found and (cues := list(_CONCLUDES.finditer(said))):
        conclusion = _mentioned(_SENTENCE_END.split(said[cues[-1].end() :], maxsplit=1)[0], texts)
        found = conclusion if len(conclusion) == 1 else set()
    return final or found


# Lines

_LINE_MARKS = re.compile(r"^(?:[^\w(\[\"'{<]+|\d{1,2}[.)] (?=\W?[A-Za-z]\b))+")


def _on_a_line(said: str, texts: Texts) -> set[str]:
    """Letters that the first and the last line begin with; those of all lines where they list options."""
    lines = [bare for line in said.split("\n") if (bare := _LINE_MARKS.sub("", line))]
    if not lines:
        return set()
    first, last = _letters_at(lines[0], texts), _letters_at(lines[-1], texts)
    if len(lines) > 1 and last and _is_option(lines[-1], texts):
        return first | last
    if len(normal(lines[0])) == 1:
        return first
    return first.union(*(_letters_at(line, texts) for line in lines[1:])) if first else first


def _is_option(line: str, texts: Texts) -> bool:
    """Whether a line is a letter alone, or with its own text."""
    match = _LEAD.match(line)
    return match is not None and normal(line[match.end() :].lstrip(" .:,)-")) in ("", texts.get(match[1].upper(), ""))


# Texts

_DENIAL = re.compile(
    r"\b(?:not|\w{1,8}n't|never|neither|nor|no longer|instead of|rather than|without|opposed to|unlike|cannot"
    r"|(?:less|more|greater|shorter|longer) than)\b"
)
_CLAUSE = re.compile(r"[.,;:!?]\s|\bbut\b")
_UNSURE = re.compile(
    r"\b(?:cannot|can't|can not|could not|couldn't|unable to|impossible to|not possible to|hard to|difficult to)"
    r" (?:be )?(?:reliably |really |clearly )?(?:determine|tell|say|see|answer|know|identif|judge|assess|infer|provide"
    r"|view|watch|confirm)|\bunclear\b|\bnot (?:sure|clear|certain|enough)\b|\bsorry\b|\binsufficient\b|n't know\b"
)
_OTHER_SENSE = re.compile(
    r"\b(?:right (?:answer|option|choice|one|after|before|now|away|here|there)|(?:all|that's) right"
    r"|(?:may|might|could|can) be right|closer look)\b"
)
_LITTLE = frozenset(["a", "an", "the", "it", "is", "to", "of", "in", "on", "at", "and", "or", "no", "not", "yes"])
PART = 8
"""Words of the longest answer that may be a part of an option."""


def _mentioned(said: str, texts: Texts) -> set[str]:
    """Letters of the options whose text occurs undenied; longer texts hide shorter ones inside them."""
    first: dict[str, str] = {}
    for letter, option in texts.items():
        first.setdefault(option, letter)
    words = normal(said)
    if words in first:
        return {first[words]}
    if _UNSURE.search(words) and not any(_UNSURE.search(option) for option in first):
        return set()
    words = _OTHER_SENSE.sub(" ", words)
    if all(quantity(option) for option in first):
        found = places(words, first)
    else:
        longest = sorted(filter(None, first), key=len, reverse=True)
        pattern = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest))})(?![\w-]|\.\d)")
        found = [(match.start(), first[match[0]]) for match in pattern.finditer(words) if match[0]]
    return {letter for start, letter in found if not _denied(words, start)} if found else _part(words, first)


def _denied(words: str, start: int) -> bool:
    """Whether one of the last words before a place, in its clause, says that it is not so."""
    clause = _CLAUSE.split(words[max(0, start - 60) : start])[-1]
    return bool(_DENIAL.search(" ".join(clause.split()[-5:])))


def _part(words: str, first: Mapping[str, str]) -> set[str]:
    """The only option that a short answer is a part of: "left" for "to the left", but not "moving" for "not moving"."""
    content = set(words.split()) - _LITTLE
    if not content or len(words.split()) > PART or quantity(words):
        return set()
    whole = re.compile(rf"(?<![\w-]){re.escape(words)}(?![\w-])")
    options = [option for option in first if whole.search(option)]
    shared = {word for option in first if option not in options for word in option.split()}
    if len(options) != 1 or content <= shared or _DENIAL.search(options[0]) or " no " in f" {options[0]} ":
        return set()
    return {first[options[0]]}
