"""What the policy says, and what it scores, as a table in TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mllm4d.train.experience import Experience


class CompletionTable(Callback):
    """Logs completions with their scores: of each shown question the best and the worst one.

    Args:
        every: Steps between two tables.
        questions: Questions shown.
        characters: Of a completion that are shown at most; the middle is left out.
    """

    def __init__(self, every: int = 50, questions: int = 4, characters: int = 1500) -> None:
        self.every, self.questions, self.characters = every, questions, characters

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the table of a step."""
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger) or batch_idx % self.every:
            return
        if not isinstance(outputs, Mapping) or not isinstance(outputs.get("experience"), Experience):
            return
        text = table(outputs["experience"], self.questions, self.characters)
        logger.experiment.add_text("completions", text, trainer.global_step)


def table(experience: Experience, questions: int, characters: int) -> str:
    """Completions as a Markdown table.

    Args:
        experience: Of a step.
        questions: How many of its questions.
        characters: As in ``CompletionTable``.

    Returns:
        A row for the best and one for the worst completion of each question.
    """
    names = list(experience.parts)
    lines = ["| question | truth | completion | reward | advantage | " + " | ".join(names) + " |"]
    lines.append("|---" * (5 + len(names)) + "|")
    first = 0
    for rollout, question in list(zip(experience.rollouts, experience.questions, strict=True))[:questions]:
        numbers = range(first, first + len(rollout.texts))
        scores = [float(experience.rewards[n]) for n in numbers]
        order = sorted(range(len(scores)), key=lambda n: -math.inf if math.isnan(scores[n]) else scores[n])
        for k in dict.fromkeys((order[-1], order[0])):
            cells = [question.question, question.answer, _shortened(rollout.texts[k], characters)]
            values = [scores[k], float(experience.advantages[first + k])]
            values += [float(experience.parts[name][first + k]) for name in names]
            lines.append("| " + " | ".join([*map(_cell, cells), *(f"{value:.3f}" for value in values)]) + " |")
        first += len(rollout.texts)
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that neither ends the cell nor is taken for tags."""
    for old, new in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("\n", "<br>")):
        text = text.replace(old, new)
    return text


def _shortened(text: str, characters: int) -> str:
    half = characters // 2
    return text if len(text) <= characters else f"{text[:half]} … {text[-half:]}"
