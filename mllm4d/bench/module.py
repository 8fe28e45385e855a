"""``python -m mllm4d test``: a model is asked a suite's questions."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info

from mllm4d.bench.answering import Answering, Generation
from mllm4d.bench.configuration import check_checkpoint, describe_suite, weights_sum
from mllm4d.bench.data import Package, SuiteData
from mllm4d.bench.encoding import TextInputs
from mllm4d.bench.journal import DETAILS, Journal, check_configuration, keep_configuration
from mllm4d.bench.report import write_report
from mllm4d.bench.results import Outcome, write_results
from mllm4d.bench.rows import Answer
from mllm4d.models.base import BaseModel
from mllm4d.models.inputs import SETTINGS_FILE, VideoInputs, VideoSettings
from mllm4d.schema import InputError

CONFIGURATION, REPORT = "configuration.json", "report.html"

JOURNALS = ("answers", "text_only")
"""With the clips and without."""

ONE_BY_ONE = (
    "turns of dialogues are asked one by one, each with all images so far and without what was said before; the makers "
    "ask them in one conversation"
)


class Bench(LightningModule):
    """Asks a model the questions of ``mllm4d.bench.data.SuiteData`` and writes down what comes of it.

    ``out`` gets ``answers-rankR.jsonl`` as answers come, and at the end ``results.json``, ``results.md``,
    ``report.html``, ``samples.jsonl`` and ``answers.jsonl``, which ``python -m mllm4d score`` reads. A run that was
    stopped goes on where it was, on any number of ranks that see the folder, and refuses another configuration. The
    model has to fit on each device.

    Args:
        base: The model; for a checkpoint (``--ckpt_path``) with the ``lora`` that it was trained with.
        out: Folder of the answers and results.
        answering: How the questions are answered.
        video: How frames become inputs; None takes what was saved with the model by training or export.
        text_only: Ask all questions without their videos too, as a blind baseline.
        packing: Only null, which some of ``configs/model`` say for training.
    """

    def __init__(
        self,
        base: BaseModel,
        out: str,
        answering: Answering | None = None,
        video: VideoSettings | None = None,
        text_only: bool = True,
        packing: None = None,
    ) -> None:
        super().__init__()
        self.base, self.out, self.video, self.text_only = base, Path(out), video, text_only
        self.answering = answering or Generation()
        self.strict_loading = False
        self.model: Any = None
        self.inputs: VideoInputs
        self.notes: list[str] = []
        self._done: tuple[set[int], set[int]] = (set(), set())
        self._journals: list[Journal] = []
        self._settings: dict[str, Any] = {}
        self._since = 0.0
        self._table = ""

    # Before anything is asked

    def prepare_data(self) -> None:
        """Make the base model where it has to be made, on one process of the machine."""
        self.base.prepare()

    def setup(self, stage: str) -> None:
        """See that all that can be known before the model is loaded fits.

        Raises:
            InputError: It does not.
        """
        data = self._data()
        self.answering.check(data.suite, [data.questions[number] for number in data.asked])
        check_configuration(self.out / CONFIGURATION, self._asked())

    def configure_model(self) -> None:
        """Load the model."""
        if self.model is not None:
            return
        if self.device_mesh is not None:
            raise InputError("trainer.strategy: the bench does not divide a model; take 'auto' or 'ddp'")
        # New adapters begin the same on all ranks.
        torch.manual_seed(0)
        model, processor = self.base.load()
        saved = Path(self.base.path) / SETTINGS_FILE
        if self.video is not None:
            self.inputs = self.base.inputs(model, processor, self.video)
        elif saved.is_file():
            self.inputs = VideoInputs.load(self.base.path, self.base.family_for(model.config))
        else:
            self.inputs = self.base.inputs(model, processor, VideoSettings())
            self.notes.append(
                f"{self.base.path} has no {SETTINGS_FILE} and 'model.video' is null: at most "
                f"{self.inputs.settings.frames} frames, in the size that the model's processor chooses"
            )
        self.model = model.eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint is one of this model.

        Raises:
            InputError: It is of another base, other adapters or other inputs.
        """
        if self.answering.own_weights:
            raise InputError(f"{self.trainer.ckpt_path}: {self.answering.name} runs an exported model; export it first")
        check_checkpoint(self, checkpoint, str(self.trainer.ckpt_path))
        if "inputs" in checkpoint:
            self.inputs.check_same(checkpoint["inputs"], str(self.trainer.ckpt_path))

    def begin(self) -> tuple[Collection[int], Collection[int]]:
        """Open the journal; called when the weights are there.

        Returns:
            Numbers of the questions that were answered before, with their clips and without.

        Raises:
            InputError: The journal holds answers of another configuration.
        """
        found: Any = None
        if self.global_rank == 0:
            try:
                file = self.out / CONFIGURATION
                self._settings = self._configuration()
                check_configuration(file, self._settings)
                keep_configuration(file, self._settings)
                found = [self._numbers(name) for name in JOURNALS]
            except InputError as error:
                found = str(error)
        # One rank reads before any writes, so that all deal the same pools.
        found = self.trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise InputError(found)
        self._done = found[0], found[1]
        self._journals = [Journal(self.out, name, self.global_rank) for name in JOURNALS]
        answered = sum(map(len, self._done))
        if answered:
            rank_zero_info(f"{self.out}: goes on after {answered} answers")
        self._since = time.perf_counter()
        return self._done

    # Questions

    def test_step(self, batch: Package, batch_index: int) -> None:
        """Answer a pool, and write the answers down batch by batch."""
        pool = batch.pool
        self._write([Answer(number, "", {"error": reason}) for number, reason in pool.faults], pool.blind)
        inputs = TextInputs(self.inputs) if pool.blind else self.inputs
        for answers in self.answering.answer(self.model, inputs, pool.rows, self._done[pool.blind]):
            self._write(answers, pool.blind)

    def _write(self, answers: list[Answer], blind: bool) -> None:
        if not answers:
            return
        data, now = self._data(), time.perf_counter()
        each, self._since = round((now - self._since) / len(answers), 6), now
        lines = []
        for answer in answers:
            question = data.questions[answer.number]
            details = {"id": question.id, **answer.details, "seconds": each}
            lines.append({**question.entry, data.suite.response: answer.text, DETAILS: details})
        self._journals[blind].write(lines)

    # Afterwards

    def on_test_epoch_end(self) -> None:
        """Put the ranks' answers together, write and log the results."""
        for journal in self._journals:
            journal.close()
        self.trainer.strategy.barrier("answers")
        if self.global_rank == 0:
            results, self._table = write_results(self.out, self._outcome())
            write_report([self.out], self.out / REPORT, [self._data().suite])
            for logger in self.loggers:
                logger.log_metrics({f"test/{name}": value for name, value in results["flat"].items()}, step=0)
                logger.save()
        self.trainer.strategy.barrier("results")

    def teardown(self, stage: str) -> None:
        """Show the table, now that the progress bar is gone."""
        if self._table:
            print(f"\n{self._table}\n{self.out / 'results.json'}\n{self.out / REPORT}")

    def _outcome(self) -> Outcome:
        data, path = self._data(), self.trainer.ckpt_path
        questions = tuple(data.questions[number] for number in data.asked)
        answers, unseen = (journal.read() for journal in self._journals)
        suite = {"files": data.suite.files, "videos": data.suite.videos, "own_prompt": data.suite.own_prompt}
        return Outcome(
            suite=data.suite,
            questions=questions,
            prompts=tuple(self.answering.prompt(data.suite, question) for question in questions),
            answers=answers,
            unseen=unseen if self.text_only else None,
            answering=self.answering.name,
            model=self.base.path,
            checkpoint=None if path is None else str(path),
            settings={**self._settings, "batch_size": self.answering.batch_size, "pool": data.pool, "paths": suite},
            data_hash=self._settings["suite"]["questions"],
            notes=(*self.notes, *([ONE_BY_ONE] if any(question.turn for question in questions) else [])),
            seconds=self._journals[0].seconds(),
        )

    # What decides the answers

    def _data(self) -> SuiteData:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SuiteData):
            raise InputError(f"data: is a {type(data).__name__}; the bench takes mllm4d.bench.data.SuiteData")
        return data

    def _asked(self) -> dict[str, Any]:
        """What is known before the model is there."""
        data = self._data()
        questions = [data.questions[number] for number in data.asked]
        prompts = [self.answering.prompt(data.suite, question) for question in questions]
        return {
            "answering": self.answering.describe(),
            "precision": str(self.trainer.precision),
            "suite": describe_suite(data.suite, questions, prompts),
        }

    def _numbers(self, name: str) -> set[int]:
        """Questions that a journal has answers to; those whose clip could not be read are tried again."""
        data, lines = self._data(), Journal(self.out, name).read()
        good = {id for id, line in lines.items() if "error" not in line[DETAILS]}
        return {number for number in data.asked if data.questions[number].id in good}

    def _configuration(self) -> dict[str, Any]:
        return {
            **self._asked(),
            "model": {"class": type(self.model).__name__, "weights": weights_sum(self.model)},
            "preprocessing": {**self.inputs.describe(), "seconds_per_image": self._data().seconds_per_image},
        }
