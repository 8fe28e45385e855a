"""Tiny models of every family, with their real processors."""

import pytest

from mllm4d.models.tiny import build_tiny
from tests.models import tiny_families


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The tiny model as it is used: eight frames make one step."""
    return build_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """The folder of a family's tiny model, made once."""
    made = {}

    def folder_of(name):
        if name == "smolvlm":
            pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
        if name not in made:
            # The folder's name says nothing: the family comes from the model's own configuration.
            made[name] = tiny_families.build(name, tmp_path_factory.mktemp("models") / "qwen3_vl_gemma")
        return made[name]

    return folder_of


@pytest.fixture(scope="session")
def qwen3_folder(folder_of):
    """Two frames a step, as in the large models."""
    return folder_of("qwen3")


@pytest.fixture(scope="session")
def qwen25_folder(folder_of):
    """A tiny Qwen2.5-VL."""
    return folder_of("qwen25")
