"""Choose candidates and give them options so that no answer is likelier than another without the video.

Questions come in groups that offer the very same options, and in a group each option is right once: one question for
every label, or for distances four whose truths lie one step of the ladder apart, all with the same time between the
anchors where there are enough. So no function of the options and that time can beat chance, whatever it knows of the
data set. Groups are dealt to two folds, so that a solver can be fitted on one and scored on the other with both in
balance.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random

from mllm4d import prompts
from mllm4d.prompts import LABELS
from mllm4d.qa.bins import even_out, middle_cap
from mllm4d.qa.generate import Candidate
from mllm4d.qa.groups import ENOUGH, label_groups, ladder_groups
from mllm4d.qa.options import Balanced, OptionMaker
from mllm4d.qa.writing import Choice, collect, write
from mllm4d.schema import TASKS, InputError, Question

BIN_FACTOR = 1.5
"""Default of ``bin_factor``."""

TASK_FACTOR = 1.5
"""Default of ``task_factor``."""


@dataclass(frozen=True)
class LeakFree(OptionMaker):
    """Options that give nothing away (``balance``), evenly over tasks and distances.

    Attributes:
        bin_factor: No half octave of distances of a task may hold more questions than this many times the median half
            octave; None takes all there are.
        task_factor: No task may have more questions than this many times the median task; None takes all there are.
        enough: Groups share the exact time between their anchors. Where those make up less than this share of what the
            cap per clip allows, others that share it about, or not at all, are added.
        most: Task to the greatest number of its questions in a split, and again among each kind of its twins; others
            have no such limit.
    """

    bin_factor: float | None = BIN_FACTOR
    task_factor: float | None = TASK_FACTOR
    enough: float = ENOUGH
    most: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("bin_factor", "task_factor"):
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise InputError(f"LeakFree: {key} must be greater than 0, or null for no limit, not {value}")
        if not 0 <= self.enough <= 1:
            raise InputError(f"LeakFree: enough must be a share from 0 to 1, not {self.enough}")
        for task, count in self.most.items():
            if task not in TASKS or count < 0:
                raise InputError(f"LeakFree: most must give numbers to tasks ({', '.join(TASKS)}), not {task}: {count}")

    def __call__(self, found: Iterable[Candidate], per_clip: int, ratio: float, seed: int) -> Balanced:
        """See ``balance``."""
        return balance(found, per_clip, ratio, seed, self.bin_factor, self.task_factor, self.enough, self.most)


def balance(
    found: Iterable[Candidate],
    per_clip: int,
    ratio: float,
    seed: int,
    bin_factor: float | None = BIN_FACTOR,
    task_factor: float | None = TASK_FACTOR,
    enough: float = ENOUGH,
    most: Mapping[str, int] | None = None,
) -> Balanced:
    """Make the questions of one split.

    Args:
        found: Candidates of all clips of the split.
        per_clip: At most so many questions of one task about one clip.
        ratio: Ratio of neighbouring numeric options.
        seed: Decides everything that is drawn; the order of ``found`` does not matter.
        bin_factor: As in ``LeakFree``; a bin may always hold one group.
        task_factor: As in ``LeakFree``; a task may always hold what one clip may.
        enough: As in ``LeakFree``.
        most: As in ``LeakFree``; whole groups are left out, but a limit above 0 leaves one.

    Returns:
        The questions.
    """
    random, dropped = Random(seed), Counter[str]()
    chosen: dict[str, list[list[Choice]]] = {}
    for task, pool in sort_by_task(found).items():
        random.shuffle(pool)
        if task in LABELS:
            groups = label_groups(pool, task, per_clip, enough)
        else:
            groups = ladder_groups(pool, ratio, per_clip, enough)
        dropped[f"{task}: balance and {per_clip} a clip"] += len(pool) - sum(map(len, groups))
        random.shuffle(groups)
        chosen[task] = groups
        if task not in LABELS:
            kept = even_out([[choice.candidate.value or 0.0 for choice in group] for group in groups], bin_factor)
            chosen[task] = [groups[k] for k in kept]
            dropped[f"{task}: distance bin full"] += sum(map(len, groups)) - sum(map(len, chosen[task]))
    cap = middle_cap({task: sum(map(len, groups)) for task, groups in chosen.items()}, task_factor, per_clip)
    rows: list[tuple[Question, int]] = []
    for task, groups in chosen.items():
        size = len(groups[0]) if groups else 1
        room = min(cap, (most or {}).get(task, cap))
        kept_groups = groups if room >= size * len(groups) else groups[: max(int(room > 0), int(room // size))]
        dropped[f"{task}: task full"] += size * (len(groups) - len(kept_groups))
        for fold in (0, 1):
            choices = [choice for group in kept_groups[fold::2] for choice in group]
            rows += [(question, fold) for question in write(choices, random, prompts.WORDINGS)]
    return collect(rows, dropped)


def sort_by_task(found: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    """Candidates of each task, in an order that does not depend on the one they come in."""
    pools: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in sorted(found, key=lambda c: (c.clip, c.task, c.anchors, c.object or 0)):
        pools[candidate.task].append(candidate)
    return {task: pools[task] for task in TASKS}
