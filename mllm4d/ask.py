"""A question about a video file, answered on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm4d import prompts
from mllm4d.answers import Centers, read_option, read_states
from mllm4d.data.clips import frame_rate
from mllm4d.export import load_trained
from mllm4d.models.base import BaseModel
from mllm4d.models.families import family_of
from mllm4d.models.inputs import SETTINGS_FILE, VideoInputs, VideoSettings
from mllm4d.schema import InputError
from mllm4d.video import decode


@dataclass
class Ask:
    """Ask a model about a video: an exported one, any other of Hugging Face's, or a checkpoint of a training run.

    Attributes:
        question: The question.
        video: The video file.
        model: Folder or hub name of a Hugging Face model; or, from a configuration, the LightningModule.
        ckpt_path: A checkpoint of that LightningModule; None takes its base model.
        options: Letter to text; the model is then asked for a letter.
        reasoning: Ask for ST-CoT reasoning, and show it with the centres that it names.
        frames: At most so many frames; None takes what the model was trained with.
        max_new_tokens: Longest answer.
        dtype: As in ``mllm4d.models.base.BaseModel``, for ``model`` by folder or name.
        data: Of the configuration; not used, like all that follow.
        trainer: Of the configuration.
        seed_everything: Of the configuration.
        optimizer: Of the configuration.
        lr_scheduler: Of the configuration.
        weights_only: Of the configuration.
    """

    question: str
    video: str | None = None
    model: nn.Module | str | None = None
    ckpt_path: str | None = None
    options: dict[str, str] | None = None
    reasoning: bool = False
    frames: int | None = None
    max_new_tokens: int = 1024
    dtype: str = "auto"
    data: dict | None = None
    trainer: dict | None = None
    seed_everything: bool | int | None = None
    optimizer: dict | None = None
    lr_scheduler: dict | None = None
    weights_only: bool | None = None

    def run(self) -> str:
        """Print the answer.

        Returns:
            What the model said.

        Raises:
            InputError: There is no such video or model, or they do not go together.
        """
        if self.video is None or not Path(self.video).is_file():
            raise InputError(f"{self.video or 'video'}: not found; name a video file (--video FILE)")
        frames, times = decode(self.video)
        rate = frame_rate(times, self.video)
        model, inputs = self._load()
        if self.frames is not None:
            inputs = VideoInputs(inputs.processor, replace(inputs.settings, frames=self.frames), inputs.family)
        prompt = self._prompt()
        (record,) = inputs.encode(frames, times, rate, [prompt], None, ["question"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        batch = inputs.collate([record], side="left").to(device).model_inputs()
        with torch.inference_mode():
            # What is in 4 bits is on its GPU already, and must not be moved.
            model = model if getattr(model, "is_quantized", False) else model.to(device)
            tokens = model.generate(**batch, max_new_tokens=self.max_new_tokens, do_sample=False)
        said = inputs.tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        print(show(said, self.options, self.reasoning))
        return said

    def _prompt(self) -> str:
        if not self.options and not self.reasoning:
            return self.question
        instruction = prompts.REASONING_INSTRUCTION if self.reasoning else prompts.LETTER_INSTRUCTION
        return prompts.with_options(self.question, self.options or {}, instruction)

    def _load(self) -> tuple[Any, VideoInputs]:
        if self.model is None:
            raise InputError("model: name a Hugging Face folder (--model FOLDER), or a configuration (-c CONFIG)")
        if isinstance(self.model, nn.Module):
            return load_trained(self.model, self.ckpt_path)[:2]
        if self.ckpt_path is not None:
            raise InputError("ckpt_path: a checkpoint needs the configuration that it was trained with (-c CONFIG)")
        return load_model(self.model, self.dtype)


def load_model(path: str, dtype: str = "auto") -> tuple[Any, VideoInputs]:
    """Load a Hugging Face model with the preprocessing that was saved with it.

    Args:
        path: Folder or hub name; without saved preprocessing the default settings are taken, and a note says so.
        dtype: As in ``BaseModel``.

    Returns:
        The model in evaluation mode, and its preprocessing.

    Raises:
        InputError: There is no such model, or it takes no videos.
    """
    base = BaseModel(path, dtype=dtype)
    try:
        model, processor = base.load()
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be loaded as a Hugging Face model ({str(error).splitlines()[0]})") from error
    model.eval()
    if (Path(path) / SETTINGS_FILE).is_file():
        return model, VideoInputs.load(path, family_of(model.config))
    settings = VideoSettings()
    print(
        f"note: {path} has no {SETTINGS_FILE}; taking at most {settings.frames} frames in the size that the model's "
        "processor chooses",
        file=sys.stderr,
    )
    return model, base.inputs(model, processor, settings)


def show(said: str, options: Mapping[str, str] | None, reasoning: bool) -> str:
    """What is printed: the reasoning with a table of its centres, and the answer.

    Args:
        said: What the model said.
        options: The question's options, or None.
        reasoning: Whether reasoning was asked for.
    """
    parts = []
    states = read_states(said) if reasoning else None
    if states is not None:
        rows = [("camera", states.camera_center), ("object", states.object_center)]
        parts += [states.thinking, _centers(rows)]
    elif reasoning:
        parts.append("(no reasoning: there is not one block between <thinking> and </thinking>)")
    letter = read_option(said, options) if options else None
    if letter is not None and options is not None:
        parts.append(f"answer: {letter}. {options[letter]}")
    elif states is not None:
        rest = said[said.lower().rindex("</thinking>") + len("</thinking>") :].strip()
        parts.append(f"answer: {rest}")
    else:
        parts.append(said.strip())
    if options and letter is None:
        parts.append("(none of the options can be read from this)")
    return "\n\n".join(parts)


def _centers(rows: list[tuple[str, Centers | None]]) -> str:
    """A table of the centres at both anchors."""
    lines = [f"{'centre in m (x right, y down, z forward)':<42}{'first anchor':>24}{'last anchor':>24}"]
    for name, centers in rows:
        if centers is None:
            cells = ["not given as asked", ""]
        else:
            cells = ["null" if p is None else f"[{p[0]:.2f}, {p[1]:.2f}, {p[2]:.2f}]" for p in centers]
        lines.append(f"{name:<42}{cells[0]:>24}{cells[1]:>24}")
    return "\n".join(lines)
