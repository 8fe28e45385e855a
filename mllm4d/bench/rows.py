"""Questions that are ready to be asked, in batches, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from mllm4d.bench.prefix import groups_of
from mllm4d.models.batch import Encoded


class Option(NamedTuple):
    """Something that may be said.

    Attributes:
        key: Of the option.
        tokens: [n] of what is said, without what ends an answer.
        characters: Of the option's text, at least 1.
    """

    key: str
    tokens: Tensor
    characters: int


@dataclass(frozen=True)
class Row:
    """A question that is ready to be asked.

    Attributes:
        number: In the suite.
        prompt: With its clip, without an answer.
        options: Everything that may be said, where the options are compared.
    """

    number: int
    prompt: Encoded
    options: tuple[Option, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What came of a question.

    Attributes:
        number: In the suite.
        text: What the model said, or the key of the option that it finds likeliest.
        details: What else is worth keeping, plain JSON values.
    """

    number: int
    text: str
    details: Mapping[str, Any] = field(default_factory=dict)


def batches(rows: Sequence[Row], size: int) -> Iterator[list[list[Row]]]:
    """Rows by clip, clips of like length together, at most so many rows in a batch.

    Args:
        rows: The questions.
        size: Most rows; a clip with more of them is a batch of its own.

    Yields:
        The clips of a batch, each with its rows, longest first: what does not fit into memory shows at once.
    """
    groups = [[rows[place] for place in group] for group in groups_of([row.prompt for row in rows])]
    # Python's sort is stable: equal lengths stay in the order of the suite.
    groups.sort(key=lambda group: -max(len(row.prompt.tokens["input_ids"]) for row in group))
    batch: list[list[Row]] = []
    for group in groups:
        if batch and sum(map(len, batch)) + len(group) > size:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch
