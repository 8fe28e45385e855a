"""Released files and their videos to shards."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from random import Random
from typing import Any, NamedTuple

from tqdm import tqdm

from mllm4d import __version__
from mllm4d.curate.splits import assign_splits
from mllm4d.data.clips import find_video, keys_of, load_clip
from mllm4d.data.entries import Spool, read_entries
from mllm4d.data.formats import FORMATS
from mllm4d.data.rows import Row, question_of
from mllm4d.data.texts import BadRow, task_of
from mllm4d.qa.blind import score_blind
from mllm4d.schema import TASKS, InputError, Question, Sample
from mllm4d.shards import read_index, write_index, write_shards

BLIND_SAMPLE = 20_000
"""Questions that the blind solvers are scored on, drawn at random; all of 2 M would not fit in memory."""

NAMED = 5
"""Unusable rows that are named for each reason."""


@dataclass
class ReleasedImport:
    """Files of one of the released formats, with a folder of their videos, to shards.

    A video's name is looked for in the folder; of an absolute or longer path, ever shorter ends are tried, so that the
    folders of whoever made the file do not matter. Nothing outside the folder is opened. A clip's ``scene.json`` holds
    what is known: the frames' times, no camera and no objects; where a file ``NAME.scene.json`` lies beside a video
    ``NAME.mp4`` (as ``write_released`` puts it there), that is its scene. Centres in solutions and reasoning are kept
    as released; the makers do not say in which axes they are.

    Attributes:
        files: The files.
        format: One of ``sft``, ``cold_start``, ``r1`` and ``vlm4d``.
        videos: Folder of the videos.
        out: Folder of the shards; new or empty.
        tasks: Task to regular expressions in wordings that ask for it, looked at before our own wordings.
        other: Task of the questions whose wording says nothing; None leaves them out, counted.
        splits: Split to its share of the videos.
        frames: Keep at most so many frames of a video, evenly spaced, the first and the last among them, encoded anew;
            None stores MP4 files as they are. Clips with a scene of their own are always stored as they are.
        clips_per_shard: Clips in a shard.
        max_failed: Share of the videos that may be missing or unreadable; each is named in ``index.json``.
        workers: Threads that read videos.
        seed: Decides which video goes to which split, and the order in it.
    """

    files: Sequence[str]
    format: str
    videos: str
    out: str
    tasks: Mapping[str, Sequence[str]] = field(default_factory=dict)
    other: str | None = None
    splits: Mapping[str, float] = field(default_factory=lambda: {"train": 1.0})
    frames: int | None = None
    clips_per_shard: int = 64
    max_failed: float = 0.05
    workers: int = 2
    seed: int = 0

    def run(self) -> Path:
        """Write the shards and their index; print what was left out.

        Returns:
            The folder of the shards.

        Raises:
            InputError: A file is unusable, too many videos are, no question is left, or ``out`` is not empty. Nothing
                is left behind then.
        """
        out = Path(self.out)
        self._check(out)
        staging = out.with_name(out.name + ".partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        try:
            folder = staging / "shards"
            folder.mkdir()
            job = _Job(self, Spool(staging / "rows.db"))
            job.write(folder)
            os.replace(folder, out)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        job.report(out)
        return out

    def _check(self, out: Path) -> None:
        if self.format not in FORMATS:
            raise InputError(f"format: {self.format!r} is not one of {', '.join(FORMATS)}")
        if unknown := [task for task in (*self.tasks, *filter(None, [self.other])) if task not in TASKS]:
            raise InputError(f"tasks: {unknown[0]!r} is not one of {', '.join(TASKS)}")
        for text in (text for texts in self.tasks.values() for text in texts):
            try:
                re.compile(text)
            except re.error as error:
                raise InputError(f"tasks: {text!r} is no regular expression ({error})") from error
        if not Path(self.videos).is_dir():
            raise InputError(f"{self.videos}: not found; expected the folder of the videos")
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise InputError(f"{out}: is there already; name a new folder under 'out'")


class _Video(NamedTuple):
    """A video in the folder, and the names that the files have for it."""

    key: str
    path: Path
    names: list[str]


class _Job:
    """One import while it runs: what it has counted and named."""

    def __init__(self, settings: ReleasedImport, spool: Spool) -> None:
        self.settings, self.spool = settings, spool
        self.read = 0
        self.filters, self.bad = Counter[str](), list[str]()
        self.failed: dict[str, str] = {}
        self.found: list[str] = []
        self.counts: dict[str, Counter[str]] = {}
        self.blind: list[tuple[Question, int]] = []
        self.asked = 0
        self.random = Random(f"blind/{settings.seed}")

    def write(self, folder: Path) -> None:
        """Write the shards and the index."""
        settings = self.settings
        self.spool.fill(tqdm(self._rows(), "reading", unit="row"))
        self.found = self.spool.videos()
        if not self.found:
            raise InputError(f"{settings.files[0]}: no usable question; {self._reasons()}")
        clips = self._find(self.found)
        splits = assign_splits({key: key for key in clips}, settings.splits, settings.seed)
        shards = []
        with tqdm(total=len(clips), desc="videos", unit="clip") as bar:
            for split, members in splits.members.items():
                self.counts[split] = Counter()
                samples = self._samples([clips[key] for key in members], split, bar)
                shards += write_shards(samples, folder, split, settings.clips_per_shard)
        if not shards:
            raise InputError(f"{settings.files[0]}: no question is left; {self._reasons()}")
        write_index(folder, shards, self._notes(splits.by))
        self.spool.close()

    def _find(self, names: Sequence[str]) -> dict[str, _Video]:
        """Key to video; several names may be one video, where several people wrote of their own folders."""
        root = Path(self.settings.videos)
        named: dict[Path, list[str]] = {}
        for name in names:
            path = find_video(root, name)
            if path is None:
                self._fail(name, "no such video in the folder")
            else:
                named.setdefault(path, []).append(name)
        keys = keys_of([path.relative_to(root) for path in named])
        return {key: _Video(key, path, found) for key, (path, found) in zip(keys, named.items(), strict=True)}

    def _rows(self) -> Iterator[Row]:
        form = FORMATS[self.settings.format]
        for file in self.settings.files:
            for number, entry in enumerate(read_entries(Path(file))):
                self.read += 1
                try:
                    yield from form.read(entry)
                except BadRow as error:
                    self._drop(str(error), f"{file}: entry {number}")

    def _samples(self, videos: Sequence[_Video], split: str, bar: Any) -> Iterator[Sample]:
        """Read videos ahead in threads, and put each together with its questions."""
        with ThreadPoolExecutor(max(1, self.settings.workers)) as pool:
            waiting: deque[tuple[_Video, Future[tuple[bytes, dict[str, Any]]]]] = deque()
            todo = iter(videos)
            while True:
                # A few ahead, no more: their bytes wait in memory.
                for video in islice(todo, 2 * max(1, self.settings.workers) + 1 - len(waiting)):
                    waiting.append((video, pool.submit(load_clip, video.path, self.settings.frames)))
                if not waiting:
                    return
                video, future = waiting.popleft()
                bar.update()
                try:
                    content, scene = future.result()
                except InputError as error:
                    self._fail(video.names[0], str(error))
                    continue
                if questions := self._questions(video, len(scene["times"])):
                    self._count(questions, split)
                    if not scene["provenance"]:
                        scene["provenance"] = {"format": self.settings.format, "video": video.path.name}
                    yield Sample(video.key, content, scene, questions)

    def _questions(self, video: _Video, frames: int) -> tuple[Question, ...]:
        questions: list[Question] = []
        for row in chain.from_iterable(map(self.spool.rows, video.names)):
            try:
                questions.append(question_of(row, f"{video.key}/{len(questions):03d}", frames, self._task))
            except BadRow as error:
                self._drop(str(error), f"{video.path.name}: {row.question!r}")
        return tuple(questions)

    def _task(self, wording: str) -> str | None:
        return task_of(wording, self.settings.tasks) or self.settings.other

    def _count(self, questions: Iterable[Question], split: str) -> None:
        for question in questions:
            self.counts[split][question.task] += 1
            self.asked += 1
            place = len(self.blind) if len(self.blind) < BLIND_SAMPLE else self.random.randrange(self.asked)
            # Both folds by clip: what is asked about one clip must not help to guess about the same clip.
            clip = question.id.rsplit("/", 1)[0]
            entry = question, hashlib.sha256(clip.encode()).digest()[0] % 2
            if place == len(self.blind):
                self.blind.append(entry)
            elif place < BLIND_SAMPLE:
                self.blind[place] = entry

    def _drop(self, reason: str, where: str) -> None:
        self.filters[reason] += 1
        if self.filters[reason] <= NAMED:
            self.bad.append(f"{where} {reason}")

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        allowed = self.settings.max_failed * len(self.found)
        if len(self.failed) > allowed or len(self.failed) == len(self.found):
            raise InputError(
                f"{self.settings.videos}: {name}: {reason} ({len(self.failed)} of {len(self.found)} videos unusable so "
                f"far, 'max_failed' allows {self.settings.max_failed:.0%} and one must be left)"
            )

    def _notes(self, split_by: str) -> dict[str, Any]:
        settings = self.settings
        names = [name for name in settings.__dataclass_fields__ if name not in ("out", "videos", "workers")]
        files = [PurePosixPath(file).name for file in settings.files]
        questions, folds = [q for q, _ in self.blind], [fold for _, fold in self.blind]
        return {
            "source": {"format": settings.format, "files": files},
            "config": {name: getattr(settings, name) for name in names} | {"files": files},
            "versions": {"mllm4d": __version__} | {name: version(name) for name in ("torch", "av", "webdataset")},
            "clips": {"usable": len(self.found) - len(self.failed), "failed": dict(sorted(self.failed.items()))},
            "split_by": split_by,
            "counts": {split: dict(count) for split, count in self.counts.items()},
            "filters": dict(sorted(self.filters.items())),
            "left_out": self.bad,
            "blind": score_blind(questions, folds),
        }

    def _reasons(self) -> str:
        return "; ".join(f"{count} {reason}" for reason, count in self.filters.most_common()) or "it has no entry"

    def report(self, out: Path) -> None:
        """Print what is there and what was left out."""
        index = read_index(out)
        clips = sum(len(shard.keys) for shard in index.shards)
        print(f"{out}: {clips} clips of {len(self.found)}, {self.asked} questions of {self.read} entries")
        for reason, count in self.filters.most_common():
            print(f"  left out {count}: {reason}")
        for name, reason in list(self.failed.items())[:NAMED]:
            print(f"  video left out: {name}: {reason}")
        if len(self.failed) > NAMED:
            print(f"  and {len(self.failed) - NAMED} videos more; see index.json, key 'clips'")
