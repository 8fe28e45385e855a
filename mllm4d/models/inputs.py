"""The one preprocessing: frames, times and words to what a model takes, in training, rollout, evaluation and export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mllm4d.models.batch import Batch, Encoded
from mllm4d.models.chat import Chat
from mllm4d.models.families import Family, family_named, family_of_processor
from mllm4d.models.fingerprint import check_same, describe_processor
from mllm4d.models.processing import ClipProcessing
from mllm4d.schema import InputError

SETTINGS_FILE = "video_inputs.json"


class TooLong(InputError):
    """A question has more tokens than ``max_length`` allows. Nothing is ever cut."""


@dataclass(frozen=True)
class VideoSettings:
    """How a clip's frames become inputs.

    Attributes:
        frames: At most so many frames of a clip, evenly spaced, the first and the last among them.
        max_pixels: Frames are scaled down to at most so many pixels each; None leaves them to the processor.
        max_length: Most tokens of a question with its video and answer; None sets no limit.
        system: What the system says before the video; None leaves that to the chat template.
        options: Passed on to the model's video processor, for example ``size``.

    Raises:
        InputError: A limit is below 1.
    """

    frames: int = 8
    max_pixels: int | None = None
    max_length: int | None = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("frames", "max_pixels", "max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"video.{name}: {value} is below 1")


class VideoInputs:
    """Turns clips and questions into inputs of one model, with its own processor.

    Args:
        processor: The model's Hugging Face processor; its chat template becomes the one that the family uses.
        settings: How frames become inputs.
        family: The model's family (``BaseModel.inputs`` gives it); None takes the one that the processor's class
            belongs to.

    Raises:
        InputError: The processor takes no videos.
    """

    def __init__(self, processor: Any, settings: VideoSettings, family: Family | None = None) -> None:
        self.processor, self.settings = processor, settings
        self.family = family or family_of_processor(processor)
        self.tokenizer = processor.tokenizer
        if isinstance(processor.chat_template, str):
            processor.chat_template = self.family.template(processor.chat_template)
        self.chat = Chat(processor, self.family, settings.system)
        self.clips = ClipProcessing(self.chat, settings)
        self._lengths: dict[tuple[int, int, int], int] = {}

    def sample(self, count: int) -> list[int]:
        """Which of ``count`` frames are used: evenly spaced, the first and the last among them."""
        used = min(self.settings.frames, count)
        return torch.linspace(0, count - 1, used).round().long().tolist()

    def encode(
        self,
        frames: Tensor,
        times: Tensor,
        fps: float,
        prompts: Sequence[str],
        targets: Sequence[str] | None,
        ids: Sequence[str],
    ) -> list[Encoded]:
        """Encode a clip with its questions; the pixels are processed once.

        The processor sees the clip with the first question. What stands before the question is then the same for all,
        and every question's own text is tokenised by itself. That is exact because the two meet at a special token,
        where tokenisers split anyway; prompt and answer are tokenised apart, as they are in generation.

        Args:
            frames: [T, H, W, 3] uint8 RGB.
            times: [T] seconds, from the decoder.
            fps: Nominal frame rate, 1/s; only a clip of a single frame needs it.
            prompts: What the user says after the video.
            targets: What the model should say; None encodes prompts alone.
            ids: The questions' ids.

        Returns:
            One record a question.

        Raises:
            TooLong: A question exceeds ``max_length``.
            InputError: Frames and times do not fit each other or the model, a text holds a control token such as
                ``<|im_end|>``, there is no chat template or it does not put the video before the question, or the
                processor does not keep to what is described above.
        """
        self._check(frames, times)
        if not prompts:
            return []
        if len(chosen := self.sample(len(frames))) < len(frames):
            frames, times = frames[chosen], times[chosen]
        texts = self.chat.texts(prompts, targets, ids, times)
        start = self.clips.start(texts[0], frames, times, fps)
        pieces = self.chat.tokens_of([piece for text in texts for piece in (text.prompt, text.answer)])
        records = []
        for id, prompt, answer in zip(ids, pieces[::2], pieces[1::2], strict=True):
            own = torch.tensor(prompt if targets is None else prompt + self.chat.until_end(answer))
            row = {
                name: torch.cat([tensor, own if name == "input_ids" else own.new_zeros(len(own))])
                for name, tensor in start.tokens.items()
            }
            length = len(start.tokens["input_ids"]) + len(prompt)
            records.append(Encoded(id, row, length, start.vision))
            limit = self.settings.max_length
            if limit is not None and len(row["input_ids"]) > limit:
                raise TooLong(f"question {id!r} has {len(row['input_ids'])} tokens, 'max_length' allows {limit}")
        return records

    def prompt_only(self, encoded: Encoded) -> Encoded:
        """The record without its answer, for generation."""
        tokens = {name: tensor[: encoded.prompt_length] for name, tensor in encoded.tokens.items()}
        return replace(encoded, tokens=tokens)

    def collate(self, encoded: Sequence[Encoded], side: str = "right") -> Batch:
        """Pad records to a batch.

        Args:
            encoded: The records.
            side: "right" for training, "left" for generation.

        Raises:
            InputError: A row's video placeholders are not as many as its clip's features.
        """
        if side not in ("left", "right"):
            raise ValueError(f"side must be 'left' or 'right', not {side!r}")
        for record in encoded:
            self.check_features(record)
        length = max(len(record.tokens["input_ids"]) for record in encoded)
        pad = self.tokenizer.pad_token_id
        fills = {name: pad if name == "input_ids" else 0 for name in encoded[0].tokens} | {"attention_mask": 0}
        rows: dict[str, list[Tensor]] = {name: [] for name in fills}
        labels = []
        for record in encoded:
            ids = record.tokens["input_ids"]
            label = ids.clone()
            label[: record.prompt_length] = -100
            labels.append(_pad(label, length, -100, side))
            for name, fill in fills.items():
                row = record.tokens.get(name, torch.ones_like(ids))
                rows[name].append(_pad(row, length, fill, side))
        vision = self.family.collate([record.vision for record in encoded])
        tokens = {name: torch.stack(tensors) for name, tensors in rows.items()}
        return Batch(tuple(record.id for record in encoded), tokens, torch.stack(labels), vision)

    def save(self, folder: str | Path) -> None:
        """Save processor and settings, so that whoever loads the model prepares its inputs the same way."""
        self.processor.save_pretrained(folder)
        entries = {**asdict(self.settings), "family": type(self.family).__name__}
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(entries, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path, family: Family | None = None) -> VideoInputs:
        """Read what ``save`` wrote.

        Args:
            folder: Folder with the processor and the settings.
            family: The model's family; None takes the one that was saved.

        Raises:
            InputError: The settings are missing, have an unknown key, or name a family that is not imported.
        """
        from transformers import AutoProcessor

        path = Path(folder) / SETTINGS_FILE
        if not path.is_file():
            raise InputError(f"{path}: not found; expected the settings of the preprocessing beside the processor")
        entries = json.loads(path.read_text())
        name = entries.pop("family", None)
        family = family or (family_named(name) if name else None)
        if unknown := sorted(set(entries) - set(VideoSettings.__dataclass_fields__)):
            raise InputError(f"{path}: unknown key {unknown[0]!r}")
        return cls(AutoProcessor.from_pretrained(folder), VideoSettings(**entries), family)

    def describe(self) -> dict[str, Any]:
        """All that decides what a model is shown, as plain JSON values: settings, family and processor."""
        return {
            "settings": json.loads(json.dumps(asdict(self.settings))),
            "family": type(self.family).__name__,
            "processor": describe_processor(self.processor, self.family.as_images),
        }

    def check_same(self, saved: Mapping[str, Any], where: str) -> None:
        """See that this preprocessing is the one that ``describe`` told of.

        Args:
            saved: What ``describe`` said then.
            where: Whose it is, for the message, such as a checkpoint's file.

        Raises:
            InputError: They differ; the message names the first key that does.
        """
        check_same(saved, self.describe(), where)

    def _check(self, frames: Tensor, times: Tensor) -> None:
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or len(times) != len(frames):
            raise InputError(
                f"frames must be [T, H, W, 3] uint8 with T times, got {tuple(frames.shape)} {frames.dtype} and "
                f"{len(times)} times"
            )
        needed = getattr(getattr(self.processor, "video_processor", None), "temporal_patch_size", 1)
        if min(self.settings.frames, len(frames)) < needed:
            raise InputError(
                f"the model takes {needed} frames together, but the clip has {len(frames)} and 'video.frames' is "
                f"{self.settings.frames}"
            )

    def tokens_of(self, frames: int, height: int, width: int) -> int:
        """Tokens that a stored clip's questions have before their own text, as of times of 0 s, 0.25 s and so on.

        Args:
            frames: All of the clip.
            height: Of a frame, pixels.
            width: Of a frame, pixels.

        Raises:
            InputError: The model cannot take such a clip.
        """
        size = (len(self.sample(frames)), height, width)
        if size not in self._lengths:
            noise = torch.randint(256, (*size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
            times = torch.arange(len(noise), dtype=torch.float64) / 4
            self._check(noise, times)
            text = self.chat.texts(["?"], None, ["?"], times)[0]
            self._lengths[size] = len(self.clips.start(text, noise, times, 4.0).tokens["input_ids"])
        return self._lengths[size]

    def check_features(self, record: Encoded) -> None:
        """See that every vision feature has its placeholder; families that cannot tell leave that to the model.

        Args:
            record: Of one question.

        Raises:
            InputError: A record's video placeholders are not as many as its clip's features.
        """
        features = self.family.features(self.processor, record.vision)
        placeholder = self.family.placeholder(self.processor)
        if placeholder is not None and not record.vision and (record.tokens["input_ids"] == placeholder).any():
            # A forward without pixels would take the placeholders for words, and score the answer blind.
            raise InputError(f"question {record.id!r} has video placeholders, but no clip")
        if features is None or placeholder is None:
            return
        placeholders = int((record.tokens["input_ids"] == placeholder).sum())
        if placeholders != features:
            raise InputError(
                f"question {record.id!r} has {placeholders} video placeholders, but its clip {features} features"
            )


def _pad(row: Tensor, length: int, fill: int, side: str) -> Tensor:
    padding = row.new_full((length - len(row),), fill)
    return torch.cat([padding, row] if side == "left" else [row, padding])
