"""Exercises of the tiny model's pretraining: naming, locating and counting solids, reading options. Pure and seeded.

Every answer follows from what single frames show (``films.View``) or from the options themselves. Nothing is asked
about motion, distance or direction in space: those are for fine-tuning to teach.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from random import Random
from typing import NamedTuple

from mllm4d import prompts
from mllm4d.curate.sources.world_layout import COLOURS, SHAPES
from mllm4d.prompts import Dialogue
from mllm4d.schema import Question
from tools.tiny.films import NAMES, Film, Seen, View, draw_film
from tools.tiny.scenes import Scene

LETTERS = "ABCDE"
SIDES = ("left", "middle", "right")
ROWS = ("top", "middle", "bottom")
BORDERS = (0.35, 0.42, 0.58, 0.65)
"""Shares of the image's width (or height): up to the first is left, between the middle two is the middle, from the last
on is right; in between nothing is asked."""

GAP = 0.15
"""Two solids are beside each other when their middles are so far apart, as a share of the width."""

NOTHING = "nothing"
"""What is said of a part of the image where no solid is."""

NUMBERS = ("1", "2", "3", "4", "5", "6")

OPEN_INSTRUCTION = "Answer in a few words."

WORDINGS: dict[str, tuple[str, ...]] = {
    "colour": ("What colour is the {shape}?", "Name the colour of the {shape}."),
    "shape": ("What shape is the {colour} solid?", "What kind of solid is {colour}?"),
    "name": ("Which of these can be seen in the video?", "What does the video show?"),
    "absent": ("Which of these cannot be seen in the video?", "What does the video not show?"),
    "count": ("How many coloured solids are in the image?", "Count the coloured solids in the image."),
    "side": ("In which part of the image is the {name}{at}?", "Where in the image can the {name} be seen{at}?"),
    "row": ("How high up in the image is the {name}?", "At what height of the image is the {name} seen?"),
    "beside": (
        "On which side of the {other} is the {name} in the image{at}?",
        "In the image{at}, where is the {name} beside the {other}?",
    ),
    "outermost": ("Which of these is on the very {side} of the image{at}?", "What stands most to the {side}{at}?"),
    "shown": ("What can be seen at {t}?", "Which of these does the frame at {t} show?"),
    "when": ("When can the {name} be seen?", "At which time does the video show the {name}?"),
}
"""Wordings of what is asked about films."""

DRILL_WORDINGS: dict[str, tuple[str, ...]] = {
    "letter_of": ("Which option says{text}?", "Find the option{text}.", "Copy{text} from the options."),
    "text_of": ("What does option {letter} say?", "Copy the text of option {letter}."),
}
"""Wordings of what is asked about options alone; a text has its leading blank."""


LIST_WORDINGS = (
    "What is in the image{at}, from left to right?",
    "Name the solids in the image{at}, from left to right.",
)
"""Wordings of what is asked for a list: many words about one picture, from which a model learns to see soonest."""


class Exercise(NamedTuple):
    """A question with its options, the right one first.

    Attributes:
        task: A key of ``WORDINGS`` or ``DRILL_WORDINGS``.
        question: The wording, without options.
        options: Texts, all different; the first is right.
        open: Whether it can be asked without the options.
    """

    task: str
    question: str
    options: tuple[str, ...]
    open: bool = True


def sentences() -> Iterator[str]:
    """What a tokenizer must have read to know the words of the exercises."""
    words = {"shape": "cube", "colour": "red", "name": "red cube", "other": "blue ball", "at": " at 0.5 s"}
    for wordings in (*WORDINGS.values(), *DRILL_WORDINGS.values(), LIST_WORDINGS):
        for wording in wordings:
            for side, letter in product(("left", "right"), LETTERS):
                yield wording.format(**words, side=side, t="0.5 s", text=" left", letter=letter)
    yield OPEN_INSTRUCTION
    yield " red cube, blue ball"
    for word in (*COLOURS, *SHAPES, *SIDES, *ROWS, *NUMBERS, NOTHING):
        yield f" {word} the {word}\nA. {word}"


def draw_exercise(scenes: Sequence[Scene], random: Random) -> tuple[Film, Exercise]:
    """A film and an exercise about it; every kind of exercise is equally likely."""
    make = random.choice(MAKERS)
    while True:
        film = draw_film(scenes, random)
        if exercise := make(film, random):
            return film, exercise


def draw_list(scenes: Sequence[Scene], random: Random) -> tuple[Film, Dialogue]:
    """A film, and what to say when all that a frame shows is to be named."""
    while True:
        film = draw_film(scenes, random)
        view, at = _moment(film, random)
        if view.clear and view.solids:
            names = [solid.name for solid in sorted(view.solids, key=lambda solid: solid.x)]
            question = random.choice(LIST_WORDINGS).format(at=at)
            return film, Dialogue(f"{question}\n{OPEN_INSTRUCTION}", f" {', '.join(names)}")


def draw_drill(random: Random) -> Exercise:
    """An exercise about options alone."""
    texts = _texts(random)
    if random.random() < 0.75:
        return _asked(random, "letter_of", texts, {"text": f" {texts[0]}"}, open=False)
    # The letter is filled in when the options are in their order.
    return _asked(random, "text_of", texts, {"letter": "{letter}"}, open=False)


def pose(exercise: Exercise, id: str, random: Random) -> Question:
    """Shuffle the options and letter them."""
    texts = list(exercise.options)
    random.shuffle(texts)
    options = dict(zip(LETTERS, texts, strict=False))
    answer = next(letter for letter, text in options.items() if text == exercise.options[0])
    question = exercise.question.replace("{letter}", answer)
    return Question(
        id=id,
        task=exercise.task,
        question=question,
        options=options,
        answer=answer,
        answer_value=exercise.options[0],
        unit=None,
        anchors=(0, 0),
        object=None,
        solution={},
        reasoning=None,
    )


def in_words(question: Question) -> Dialogue:
    """Ask without options; the target is the right option's text."""
    return Dialogue(f"{question.question}\n{OPEN_INSTRUCTION}", f" {question.options[question.answer]}")


def draw_dialogue(question: Question, random: Random) -> Dialogue:
    """Ask with options: mostly for words and letter, sometimes for the letter or the text alone."""
    if question.task == "text_of":
        return prompts.text(question)
    style = random.choices((prompts.text_and_letter, prompts.letter, prompts.text), (0.7, 0.15, 0.15))[0]
    return style(question)


def _asked(
    random: Random, task: str, options: Sequence[str], words: dict[str, str] | None = None, open: bool = True
) -> Exercise:
    wordings = {**WORDINGS, **DRILL_WORDINGS}[task]
    return Exercise(task, random.choice(wordings).format(**(words or {})), tuple(options), open)


def _texts(random: Random) -> list[str]:
    """Two to five texts of one kind, such as options have; the labels of the relations only as words to be read."""
    count, kind = random.randint(2, 5), random.random()
    if kind < 0.2:
        middle, ratio = 10 ** random.uniform(-1, 1.2), random.choice((1.3, 1.5, 1.8))
        first = random.randrange(count)
        texts = list(prompts.distances([middle * ratio ** (k - first) for k in range(count)]))
        random.shuffle(texts)
        return texts
    if kind < 0.3:
        return [prompts.seconds(k / 8) for k in random.sample(range(32), count)]
    pools: tuple[tuple[str, ...], ...] = (NAMES, tuple(COLOURS), SHAPES, NUMBERS, SIDES, ROWS, *_LABELS)
    pool = random.choice(pools)
    return random.sample(pool, min(count, len(pool)))


_LABELS = tuple(dict.fromkeys([*prompts.LABELS.values(), tuple(dict.fromkeys(sum(prompts.LABELS.values(), ())))]))


def _all_names(film: Film) -> set[str]:
    return set().union(*(view.names for view in film.views))


def _moment(film: Film, random: Random) -> tuple[View, str]:
    """A frame, mostly the first or the last, and the words for its time; none are needed where nothing changes."""
    if film.still:
        return film.views[0], ""
    last = len(film.views) - 1
    frame = random.choice((0, last, random.randint(0, last)))
    return film.views[frame], f" at {prompts.seconds(frame / film.fps)}"


def _unique(film: Film, part: int) -> list[str]:
    """Names of which the word (0 colour, 1 shape) is no other's, of all that may be seen."""
    words = [name.split()[part] for name in film.near]
    return [name for name in sorted(_all_names(film)) if words.count(name.split()[part]) == 1]


def _others(random: Random, pool: Sequence[str], right: str, most: int = 3) -> list[str]:
    return random.sample([text for text in pool if text != right], min(random.randint(2, most), len(pool) - 1))


def _colour(film: Film, random: Random) -> Exercise | None:
    if not (found := _unique(film, 1)):
        return None
    colour, shape = random.choice(found).split()
    return _asked(random, "colour", [colour, *_others(random, tuple(COLOURS), colour)], {"shape": shape})


def _shape(film: Film, random: Random) -> Exercise | None:
    if not (found := _unique(film, 0)):
        return None
    colour, shape = random.choice(found).split()
    return _asked(random, "shape", [shape, *_others(random, SHAPES, shape)], {"colour": colour})


def _strangers(film: Film, random: Random, count: int) -> list[str]:
    """Names of what is not there; half of them with a colour that is."""
    seen = {name.split()[0] for name in film.near}
    alike = [name for name in NAMES if name not in film.near and name.split()[0] in seen]
    unlike = [name for name in NAMES if name.split()[0] not in seen]
    pools = [pool for pool in (alike, unlike) if pool]
    picked = [random.choice(random.choice(pools)) for _ in range(4 * count)]
    return list(dict.fromkeys(picked))[:count]


def _name(film: Film, random: Random) -> Exercise | None:
    if not (seen := sorted(_all_names(film))):
        return None
    options = [random.choice(seen), *_strangers(film, random, random.randint(2, 3))]
    return _asked(random, "name", options, open=len(film.near) == 1)


def _absent(film: Film, random: Random) -> Exercise | None:
    seen = sorted(_all_names(film))
    if len(seen) < 2:
        return None
    random.shuffle(seen)
    return _asked(random, "absent", [*_strangers(film, random, 1), *seen[:3]], open=False)


def _count(film: Film, random: Random) -> Exercise | None:
    view = film.views[0]
    if not film.still or not view.clear or not view.solids:
        return None
    number = str(len(view.solids))
    return _asked(random, "count", [number, *_others(random, NUMBERS, number)])


def _side(film: Film, random: Random) -> Exercise | None:
    view, at = _moment(film, random)
    return _part(view, at, random, "side", SIDES, lambda solid: solid.x)


def _row(film: Film, random: Random) -> Exercise | None:
    # In a clip the height in the image tells how far away things are on the ground; stills are shifted.
    if not film.still:
        return None
    return _part(film.views[0], "", random, "row", ROWS, lambda solid: solid.y)


def _part(
    view: View, at: str, random: Random, task: str, words: Sequence[str], place: Callable[[Seen], float]
) -> Exercise | None:
    if not view.solids:
        return None
    solid = random.choice(view.solids)
    share = place(solid)
    k = 0 if share <= BORDERS[0] else 2 if share >= BORDERS[3] else 1 if BORDERS[1] <= share <= BORDERS[2] else None
    if k is None:
        return None
    return _asked(random, task, [words[k], *(w for w in words if w != words[k])], {"name": solid.name, "at": at})


def _beside(film: Film, random: Random) -> Exercise | None:
    view, at = _moment(film, random)
    if len(view.solids) < 2:
        return None
    one, other = random.sample(view.solids, 2)
    if abs(one.x - other.x) < GAP:
        return None
    options = ["left", "right"] if one.x < other.x else ["right", "left"]
    return _asked(random, "beside", options, {"name": one.name, "other": other.name, "at": at})


def _outermost(film: Film, random: Random) -> Exercise | None:
    view, at = _moment(film, random)
    solids = sorted(view.solids, key=lambda solid: solid.x)
    side = random.choice(("left", "right"))
    solids = solids if side == "left" else solids[::-1]
    if len(solids) < 2 or abs(solids[0].x - solids[1].x) < GAP / 2 or not view.clear:
        return None
    names = [solid.name for solid in solids[:4]]
    return _asked(random, "outermost", names, {"side": side, "at": at})


def _cuts(film: Film) -> bool:
    return not film.still and len({view.names == film.views[0].names for view in film.views}) == 2


def _shown(film: Film, random: Random) -> Exercise | None:
    if not _cuts(film):
        return None
    frame = random.randrange(len(film.views))
    here = film.views[frame]
    elsewhere = sorted(_all_names(film) - here.names)
    if not here.clear or not here.solids or not elsewhere:
        return None
    random.shuffle(elsewhere)
    options = [random.choice(here.solids).name, *elsewhere[:2], *_strangers(film, random, 1)]
    return _asked(random, "shown", options, {"t": prompts.seconds(frame / film.fps)}, open=False)


def _when(film: Film, random: Random) -> Exercise | None:
    if not _cuts(film) or not all(view.clear for view in film.views):
        return None
    name = random.choice(sorted(_all_names(film)))
    there = [frame for frame, view in enumerate(film.views) if name in view.names]
    gone = [frame for frame in range(len(film.views)) if frame not in there]
    if not gone:
        return None
    frames = [random.choice(there), *random.sample(gone, min(len(gone), random.randint(1, 2)))]
    options = [prompts.seconds(frame / film.fps) for frame in frames]
    return _asked(random, "when", options, {"name": name}, open=False)


MAKERS: tuple[Callable[[Film, Random], Exercise | None], ...] = (
    _colour,
    _shape,
    _name,
    _absent,
    _count,
    _side,
    _row,
    _beside,
    _outermost,
    _shown,
    _when,
)
"""One for each key of ``WORDINGS``, in that order."""
