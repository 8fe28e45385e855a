"""Settings of a run beside its scores, on TensorBoard's page "HParams"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

METRICS = ("val/accuracy_macro", "val/accuracy", "val/invalid", "val/loss", "val/reward")
"""Tags of scalars that stand beside the settings; those that a run does not log stay empty."""

LEFT_OUT = (
    *("config", "ckpt_path", "data.cache", "data.curation", "model.metric"),
    # The module sets these itself, by groups of parameters.
    *("model.optimizer.lr", "model.optimizer.betas", "model.optimizer.weight_decay"),
    *("data.eval_batch_size", "data.retries", "data.storage", "data.workers"),
)
"""Keys that do not decide what a model learns, or that the shards themselves know."""

TRAINER = (
    "max_epochs",
    "max_steps",
    "precision",
    "devices",
    "num_nodes",
    "accumulate_grad_batches",
    "gradient_clip_val",
)
"""What decides a training of the trainer's many keys."""

CONTAINERS = ("init_args", "dict_kwargs")
"""Keys of a configuration that name nothing themselves."""


class HyperParameters(Callback):
    """Shows the settings of a run beside its latest scores, so that runs can be sorted and compared.

    The settings are the numbers, texts and flags of the resolved configuration (``config.yaml``) under ``model`` and
    ``data``, and those of the trainer's that decide a training. Without the command line they are the module's and the
    data module's own attributes.

    Args:
        metrics: Tags of scalars to show beside them. TensorBoard takes their latest values, so that a run that was
            stopped shows what it reached.
    """

    def __init__(self, metrics: Sequence[str] = METRICS) -> None:
        self.metrics = tuple(metrics)

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings."""
        self._write(trainer, settings(trainer, pl_module), ended=False)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that the run is finished."""
        self._write(trainer, {}, ended=True)

    def _write(self, trainer: Trainer, values: Mapping[str, Any], ended: bool) -> None:
        experiment, begin, end = hparams(dict(values), dict.fromkeys(self.metrics, 0.0))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                writer = logger.experiment._get_file_writer()
                for summary in (end,) if ended else (experiment, begin):
                    writer.add_summary(summary)


def settings(trainer: Trainer, pl_module: LightningModule) -> dict[str, bool | int | float | str]:
    """What a run was set to, under the names of the configuration.

    Args:
        trainer: It has the configuration where the command line built it.
        pl_module: Its own numbers, texts and flags stand in where there is none.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            config = callback.config.as_dict()
            return flat({**config, "trainer": {key: config["trainer"].get(key) for key in TRAINER}})
    data = trainer.datamodule  # type: ignore[attr-defined]
    return flat({"model": _own(pl_module, LightningModule), "data": _own(data, LightningDataModule) if data else {}})


def _own(part: Any, base: type) -> dict[str, Any]:
    """Public attributes that are not Lightning's."""
    theirs = vars(base())
    return {name: value for name, value in vars(part).items() if not name.startswith("_") and name not in theirs}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """The leaves of a configuration that are a number, a text or a flag, or a list of such, which becomes a text.

    Args:
        config: Nested dictionaries.
        prefix: Of the names, with its dot.
    """
    found: dict[str, bool | int | float | str] = {}
    for key, value in config.items():
        name = prefix.removesuffix(".") if key in CONTAINERS else f"{prefix}{key}"
        if name in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(v, (bool, int, float, str)) for v in value):
            found[name] = ", ".join(map(str, value))
    return found
