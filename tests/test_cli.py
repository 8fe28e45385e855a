import sys

import pytest
from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from mllm4d.cli import run_trainer
from mllm4d.schema import InputError


class Rated(BoringModel):
    """A user's module that saves its hyper-parameters, as Lightning's own documentation does."""

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "max_steps": 1,
    "limit_val_batches": 1,
}


def words(verb, rate, folder):
    settings = [word for key, value in QUIET.items() for word in (f"--trainer.{key}", str(value))]
    data = ["--data", "lightning.pytorch.demos.boring_classes.BoringDataModule"]
    model = ["--model", f"{__name__}.Rated", "--model.rate", str(rate)]
    return [verb, *model, *data, *settings, "--trainer.default_root_dir", str(folder)]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A command line that validates a checkpoint of a run at rate 7, at rate 0.25."""
    monkeypatch.setattr(sys, "argv", ["mllm4d"])
    run_trainer(words("fit", 7.0, tmp_path)).trainer.save_checkpoint(tmp_path / "seven.ckpt")
    return [*words("validate", 0.25, tmp_path), "--ckpt_path", str(tmp_path / "seven.ckpt")]


def test_a_checkpoint_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mllm4d"])
    with pytest.raises(InputError, match=r"absent.ckpt: there is no such checkpoint"):
        run_trainer([*words("validate", 0.25, tmp_path), "--ckpt_path", str(tmp_path / "absent.ckpt")])


def test_a_checkpoints_hyper_parameters_do_not_override_the_configuration(command):
    assert run_trainer(command).model.rate == 0.25


def test_the_same_with_lightnings_own_command_line_takes_the_checkpoints(command, monkeypatch):
    # Why ours differs; when this fails, ``TrainerCLI._parse_ckpt_path`` can go.
    monkeypatch.setattr(sys, "argv", ["lightning", *command])
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    cli = LightningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "omegaconf+"},
        save_config_callback=None,
    )
    assert cli.model.rate == 7.0
