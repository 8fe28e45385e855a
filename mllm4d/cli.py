"""LightningCLI, nothing else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

from mllm4d.schema import InputError

VERBS = ("fit", "validate", "test", "predict")
USAGE = "python -m mllm4d {verb} -c CONFIG [--KEY VALUE ...]"
"""In place of the list of all keys, under which an error message would drown."""


class TrainerCLI(LightningCLI):
    """The verbs fit, validate, test and predict over any module and data module named by ``class_path``."""

    def _parse_ckpt_path(self) -> None:
        # Lightning 2.6 lets a checkpoint's hyper-parameters override the configuration. Here the configuration is what
        # the files and the command line say, and a checkpoint holds weights and state.
        pass

    def before_instantiate_classes(self) -> None:
        """See that the checkpoint is there, before anything slow begins.

        Raises:
            InputError: It is not.
        """
        path = self.config[self.config.subcommand].get("ckpt_path")
        # Lightning's own words ("best", "last", ...) have no file name's ending, other places have a scheme.
        if path and "://" not in str(path) and Path(path).suffix and not Path(path).exists():
            raise InputError(f"{path}: there is no such checkpoint (--ckpt_path)")


def run_trainer(argv: Sequence[str]) -> TrainerCLI:
    """Run a verb of Lightning's.

    Args:
        argv: The verb and its arguments.

    Returns:
        The CLI with the model, data module and trainer that it built and ran.
    """
    # LightningCLI warns about arguments given to it beside those of the command line: these are the command line.
    sys.argv[1:] = argv
    # Interpolations then work across several files, and an override reaches every place that refers to it.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    return TrainerCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "omegaconf+"} | {verb: {"usage": USAGE.format(verb=verb)} for verb in VERBS},
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )
