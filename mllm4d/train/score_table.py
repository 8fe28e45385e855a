"""Scores per task beside what is scored without the video: a table on the terminal, charts in TensorBoard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from mllm4d.schema import TASKS

MEAN = "mean of the tasks"
"""What the chart over all tasks is called."""


class ScoreTable(Callback):
    """Prints a table per task after validation and test, and at the end where everything lies.

    Where the shards say what is scored without the video, ``val/chance/TASK`` and ``val/blind/TASK`` (the best blind
    solver) are logged beside ``val/accuracy/TASK``, and TensorBoard's page "Custom Scalars" has a chart of the three
    for every task.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say in TensorBoard which lines stand in one chart."""
        if layout := chart_layout(baselines(trainer)):
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_custom_scalars(layout)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the baselines, at the steps of the scores."""
        pl_module.log_dict({f"val/{name}": value for name, value in baseline_scalars(baselines(trainer)).items()})

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the validation scores."""
        if not trainer.sanity_checking:
            print_table(trainer, "val")

    @rank_zero_only
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the test scores."""
        print_table(trainer, "test")

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where TensorBoard's files and the checkpoint lie."""
        checkpoint = getattr(trainer.checkpoint_callback, "last_model_path", "") or getattr(
            trainer.checkpoint_callback, "best_model_path", ""
        )
        # Not ``trainer.log_dir``, which all ranks would have to ask for together.
        logs = getattr(trainer.logger, "log_dir", None) or trainer.default_root_dir
        print(f"\nTensorBoard: tensorboard --logdir {logs}")
        print(f"checkpoint:  {os.path.relpath(checkpoint) if checkpoint else 'none was written'}")


def baselines(trainer: Trainer) -> Mapping[str, Mapping[str, float]]:
    """What is scored without the video: task to chance and solvers' accuracies, empty where the shards do not say."""
    index = getattr(trainer.datamodule, "index", None)  # type: ignore[attr-defined]
    known: Any = index.notes.get("blind", {}) if index else {}
    return {task: known[task] for task in TASKS if task in known}


def best_blind(row: Mapping[str, float]) -> float | None:
    """Accuracy of the best solver that never sees the video, of one task; None where there is none."""
    return max((value for name, value in row.items() if name not in ("n", "chance")), default=None)


def baseline_scalars(known: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """``chance/TASK`` and ``blind/TASK``, and the means over the tasks that have them.

    Args:
        known: Of ``baselines``.
    """
    lines = {"chance": {task: row["chance"] for task, row in known.items() if "chance" in row}}
    lines["blind"] = {task: best for task, row in known.items() if (best := best_blind(row)) is not None}
    scalars = {f"{kind}/{task}": value for kind, values in lines.items() for task, value in values.items()}
    return scalars | {f"{kind}_macro": fmean(values.values()) for kind, values in lines.items() if values}


def chart_layout(known: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Charts for ``SummaryWriter.add_custom_scalars``: accuracy, chance and the best blind solver of each task.

    Args:
        known: Of ``baselines``; empty gives no charts.
    """
    if not known:
        return {}
    names = ("accuracy", "chance", "blind")
    # Tags are regular expressions that match from the start on.
    charts = {MEAN: ["Multiline", [f"val/{name}_macro$" for name in names]]}
    charts |= {task: ["Multiline", [f"val/{name}/{task}$" for name in names]] for task in known}
    return {"accuracy against blind baselines": charts}


def print_table(trainer: Trainer, split: str) -> None:
    """Print accuracy and invalid rate per task, beside chance and the best blind solver where the shards say them.

    Args:
        trainer: Its ``callback_metrics`` hold the scores, its data module the index.
        split: "val" or "test".
    """
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    blind = baselines(trainer)
    print(f"\n{split:<34}{'n':>6}{'accuracy':>9}{'invalid':>9}{'chance':>9}{'blind':>9}   in %")
    for task in (task for task in TASKS if f"{split}/accuracy/{task}" in scores):
        known = blind.get(task, {})
        measured = scores[f"{split}/accuracy/{task}"], scores[f"{split}/invalid/{task}"]
        cells = (*measured, known.get("chance"), best_blind(known))
        count = scores.get(f"{split}/count/{task}", float("nan"))
        print(f"{task:<34}{count:>6.0f}" + "".join("        -" if c is None else f"{100 * c:>9.1f}" for c in cells))
    for name in ("accuracy_macro", "accuracy"):
        if f"{split}/{name}" in scores:
            print(f"{name:<34}{'':>6}{100 * scores[f'{split}/{name}']:>9.1f}{100 * scores[f'{split}/invalid']:>9.1f}")
