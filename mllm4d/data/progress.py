"""Where a trainer stands in its epoch, so that a resumed run goes on with the batch after the last one it trained.

The order of an epoch follows from the settings, so Lightning's own count of batches is all that has to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning import Trainer

from mllm4d.schema import InputError


def position(trainer: Trainer) -> tuple[int, int] | None:
    """Number of the epoch, and how many of its batches are done, when the next batch is fetched.

    Args:
        trainer: None is the answer unless it is training.
    """
    if not trainer.training:
        return None
    # Not the count that Lightning gives to samplers: with max_steps, it is one ahead after the checkpoint of an epoch's
    # end.
    return trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_progress.current.ready


def forget_unfinished_step(trainer: Trainer) -> None:
    """Set the progress of a loaded checkpoint back to its last optimiser step.

    A checkpoint between two optimiser steps (``accumulate_grad_batches``) does not hold the gradients gathered so far:
    those batches are not trained, and have to come again.

    Args:
        trainer: In ``fit``, with its progress loaded and nothing fetched.
    """
    loop: Any = trainer.fit_loop
    if not loop.restarting or trainer.accumulate_grad_batches == 1:
        return
    progress = loop.epoch_loop.batch_progress
    current = progress.current
    # Lightning saves before it counts a batch as completed where that happens at the batch's end.
    done = current.processed if current.processed == current.started == current.ready else current.completed
    lost = 0 if progress.is_last_batch else done % trainer.accumulate_grad_batches
    if not lost:
        return
    for count, kept in ((progress.total, progress.total.ready - (current.ready - done) - lost), (current, done - lost)):
        count.ready = count.started = count.processed = count.completed = kept


def check_order(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that the order of questions is the one that a checkpoint was made with.

    Args:
        saved: What decided the order then.
        now: What decides it now.

    Raises:
        InputError: They differ; the message names the first key that does.
    """
    for name, value in now.items():
        if saved.get(name) != value:
            raise InputError(
                f"data.{name}: the checkpoint was made in the middle of an epoch with {saved.get(name)!r}, now it is "
                f"{value!r}; resume with the same, or from the end of an epoch"
            )
