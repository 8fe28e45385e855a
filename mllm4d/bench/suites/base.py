"""What a benchmark suite is: released files to questions, prompts, and scores by the official rule and by ours."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mllm4d import prompts
from mllm4d.answers import read_option
from mllm4d.bench.suites.files import read_table, response_of
from mllm4d.bench.suites.numbers import exact_number, mean_relative_accuracy, read_number
from mllm4d.bench.suites.records import CHOICE, EXACT, RELATIVE, UNSCORED, Answers, BenchQuestion, Media, Scored
from mllm4d.bench.suites.rows import Row, asked, check_share, merge
from mllm4d.bench.suites.summary import summarize
from mllm4d.data.texts import BadRow
from mllm4d.schema import InputError

NUMBER_INSTRUCTION = "Answer with a number."


class Suite(ABC):
    """A benchmark. A new one is a class with ``read`` in the user's own file, named by its ``class_path``.

    Attributes:
        title: Its name in reports.
        needs: What has to be fetched, and from where, for the message when it is not there.

    Args:
        files: The released files of questions. None are needed to score answer files that hold the questions.
        videos: Folder of the videos, laid out as released.
        response: Key of the model's answer in answer files.
        own_prompt: Ask with our prompt in place of the benchmark's.
    """

    title: ClassVar[str]
    needs: ClassVar[str]

    def __init__(
        self,
        files: Sequence[str] = (),
        videos: str | None = None,
        response: str = "response",
        own_prompt: bool = False,
    ) -> None:
        self.files = (files,) if isinstance(files, str) else tuple(files)
        self.videos, self.response, self.own_prompt = videos, response, own_prompt
        self._questions: tuple[BenchQuestion, ...] | None = None

    # What a suite says

    @abstractmethod
    def read(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """One released entry.

        Args:
            entry: The parsed entry.

        Raises:
            InputError: A key is missing or holds something else; the message is put behind file and entry.
            BadRow: Its truth cannot be told; the row is left out and counted.
        """

    def official_prompt(self, question: BenchQuestion) -> str:
        """The text that the benchmark's makers ask with; the video goes before it."""
        return self.our_prompt(question)

    def official_score(self, question: BenchQuestion, text: str) -> float | None:
        """An answer by the makers' rule, 0-1; None where they leave it out or ask a judge model."""
        return None

    def official_summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """The makers' table, plain JSON values; a figure that a part of the questions cannot give is left out."""
        return {}

    @property
    def released(self) -> bool:
        """Whether the questions themselves are at hand, beside any answer file."""
        return bool(self.files)

    # What a runner asks for

    def questions(self) -> tuple[BenchQuestion, ...]:
        """All questions of the released files, in their order.

        Raises:
            InputError: No files were named, one is unusable, or too many of its rows are.
        """
        if self._questions is None:
            if not self.files:
                raise InputError(f"{self.title}: name its released files (key 'files'); {self.needs}")
            rows, unusable = self._rows(self.files, answers=False)
            self._questions = tuple(question for _, question, _ in merge(rows)[0])
            check_share(unusable, len(rows), str(self.files[0]))
        return self._questions

    def prompt(self, question: BenchQuestion) -> str:
        """What the user says after the video: the benchmark's own text, or ours where ``own_prompt`` says so."""
        return self.our_prompt(question) if self.own_prompt else self.official_prompt(question)

    def our_prompt(self, question: BenchQuestion) -> str:
        """The text that this project asks with."""
        if not question.options:
            return f"{question.question}\n{NUMBER_INSTRUCTION}"
        return prompts.with_options(question.question, dict(question.options), prompts.LETTER_INSTRUCTION)

    def path(self, question: BenchQuestion) -> str:
        """The question's video under the folder ``videos``, as far as the release tells."""
        return question.video

    def media(self, question: BenchQuestion) -> Media:
        """What is shown with a question.

        Raises:
            InputError: It is not there.
        """
        if missing := [name for name in self._names(question) if self._find(name) is None]:
            raise InputError(f"{Path(self.videos or '.') / missing[0]}: not found; {self.needs}")
        found = [path for path in map(self._find, self._names(question)) if path is not None]
        if question.images or question.dialogue is not None:
            return Media(images=tuple(found))
        return Media(video=found[0], span=question.span)

    def check(self) -> None:
        """See that every video is there, before anything slow begins.

        Raises:
            InputError: Some are not; the first is named, and how many there are.
        """
        names = list(dict.fromkeys(name for question in self.questions() for name in self._names(question)))
        missing = [name for name in names if self._find(name) is None]
        if missing:
            where = Path(self.videos) / missing[0] if self.videos is not None else missing[0]
            raise InputError(
                f"{where}: not found; {len(missing)} of {len(names)} files of {self.title} are missing under "
                f"'videos' ({self.videos}); {self.needs}"
            )

    def score(self, question: BenchQuestion, text: str) -> Scored:
        """Score one answer, by our rule and by the makers'.

        Args:
            question: The question.
            text: What the model said, or the key of the option that it finds likeliest.
        """
        read = self.read_answer(question, text)
        score = 0.0
        if read is not None:
            if question.scoring == CHOICE:
                score = float(read in question.right)
            elif question.scoring == RELATIVE:
                score = mean_relative_accuracy(float(read), question.value or 0.0)
            elif question.scoring == EXACT:
                score = exact_number(float(read), question.value or 0.0)
        official = None if question.scoring == UNSCORED else self.official_score(question, text)
        return Scored(question, text, read, score, official)

    def read_answer(self, question: BenchQuestion, text: str) -> str | float | None:
        """The option's key or the number that a text says, by our rules; None where it says neither."""
        return read_option(text, question.options) if question.options else read_number(text)

    def summary(self, scored: Sequence[Scored]) -> dict[str, Any]:
        """All figures of a run: ours (see ``summarize``) and, under ``official``, the makers'."""
        counted = [answer for answer in scored if answer.question.scoring != UNSCORED]
        return {**summarize(counted), "official": self.official_summary(counted)}

    # Answer files

    def answers(self, path: Path) -> Answers:
        """Read a finished answer file: released entries with the model's answer under the key ``response``.

        Where the suite was given its released files, rows may hold no more than ``id`` and the answer, and the truth
        is the release's whatever the row says. A row that is there twice, word for word, counts once.

        Args:
            path: JSON list, JSON lines, CSV or Parquet.

        Raises:
            InputError: The file is unusable, a row lacks a key, a question has two different answers, or the file is
                not about this benchmark's release.
        """
        rows, unusable = self._rows([path], answers=True)
        check_share(unusable, len(rows), str(path))
        if not rows:
            raise InputError(f"{path}: has no entry; expected released entries with the key {self.response!r}")
        kept, repeated = merge(rows)
        missing = len({q.id for q in self.questions()} - {q.id for _, q, _ in kept}) if self.released else 0
        questions, texts = tuple(row[1] for row in kept), tuple(row[2] for row in kept)
        return Answers(questions, texts, repeated, tuple(unusable), missing)

    def entries(self, path: Path) -> Iterable[Mapping[str, Any]]:
        """The entries of a released file or answer file; a suite with another layout says so here."""
        return read_table(path)

    def _rows(self, paths: Iterable[str | Path], answers: bool) -> tuple[list[Row], list[str]]:
        rows, unusable = [], []
        for path in map(Path, paths):
            for place, entry in enumerate(self.entries(path)):
                where = f"{path}: entry {place + 1}" + (f" (id {entry['id']!r})" if "id" in entry else "")
                try:
                    text = response_of(entry, self.response) if answers else ""
                    question = self._of_release(entry) if answers and self.released else self.read(entry)
                except BadRow as error:
                    unusable.append(f"{where} {error}")
                except InputError as error:
                    raise InputError(f"{where}: {error}") from error
                else:
                    rows.append((where, question, text))
        return rows, unusable

    def _of_release(self, entry: Mapping[str, Any]) -> BenchQuestion:
        """The release's question that a row of an answer file is about."""
        by_id, by_entry = self._lookup()
        whole = None if set(entry) <= {"id", self.response} else self._whole(entry)
        name = str(entry.get("id")) if whole is None else whole.id
        question = by_id.get(name) or by_entry.get(name)
        if question is None:
            raise InputError(f"key 'id': the released files have no question {name!r}, or several")
        if whole is not None and asked(whole) != asked(question):
            raise InputError(f"question {name!r} is worded differently in the released files, or has other options")
        return question

    def _whole(self, entry: Mapping[str, Any]) -> BenchQuestion | None:
        """A row as a released entry; None where it is less, but has an id to go by."""
        try:
            return self.read(entry)
        except InputError:
            if "id" in entry:
                return None
            raise

    def _lookup(self) -> tuple[dict[str, BenchQuestion], dict[str, BenchQuestion]]:
        """Our id to question, and the release's id to question where only one has it."""
        questions = self.questions()
        counts = Counter(str(q.entry.get("id")) for q in questions)
        ones = {str(q.entry["id"]): q for q in questions if counts[str(q.entry.get("id"))] == 1 and "id" in q.entry}
        return {q.id: q for q in questions}, ones

    # Videos

    def _names(self, question: BenchQuestion) -> tuple[str, ...]:
        # A turn of a dialogue may show nothing new.
        return question.images if question.images or question.dialogue is not None else (self.path(question),)

    def _find(self, name: str) -> Path | None:
        """A file of the release in the folder ``videos``, also under the shorter end of someone's absolute path."""
        from mllm4d.data.clips import find_video

        if self.videos is None:
            raise InputError(f"{self.title}: name the folder of its videos (key 'videos'); {self.needs}")
        return find_video(Path(self.videos), name)
