"""The one preprocessing: frames, times and words to what a model takes, in training, rollout, evaluation and export."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers.video_utils import VideoMetadata

from mllm4d.schema import InputError

MILLISECONDS = 1000
"""Frame times are handed to processors as indices of a film of 1000 frames a second, so that uneven times stay true."""

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
        options: Passed on to the model's video processor, for example ``size``.
    """

    frames: int = 8
    max_pixels: int | None = None
    max_length: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """One question about one clip.

    Attributes:
        id: The question's id.
        tokens: Per-token tensors [L], ``input_ids`` and what else the processor makes (``mm_token_type_ids``, …).
        prompt_length: How many of the tokens are the prompt; the rest is the answer with its end token.
        vision: The clip's tensors (``pixel_values_videos``, ``video_grid_thw``, …), shared by all its questions.
    """

    id: str
    tokens: Mapping[str, Tensor]
    prompt_length: int
    vision: Mapping[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Padded questions.

    Attributes:
        ids: The questions' ids.
        tokens: Per-token tensors [B, L], with ``attention_mask``.
        labels: [B, L], token ids of the answers, -100 elsewhere.
        vision: The clips' tensors, concatenated in the order of the rows.
    """

    ids: tuple[str, ...]
    tokens: Mapping[str, Tensor]
    labels: Tensor
    vision: Mapping[str, Tensor]

    def model_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward and ``generate``."""
        return {**self.tokens, **self.vision}

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        tokens = {name: tensor.to(device) for name, tensor in self.tokens.items()}
        vision = {name: tensor.to(device) for name, tensor in self.vision.items()}
        return replace(self, tokens=tokens, labels=self.labels.to(device), vision=vision)


class VideoInputs:
    """Turns clips and questions into inputs of one model, with its own processor.

    Args:
        processor: The model's Hugging Face processor, with a chat template that knows videos.
        settings: How frames become inputs.
    """

    def __init__(self, processor: Any, settings: VideoSettings) -> None:
        self.processor, self.settings = processor, settings
        self.tokenizer = processor.tokenizer
        self.video_token_id = getattr(processor, "video_token_id", None)

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
            fps: Nominal frame rate; only a clip of a single frame needs it.
            prompts: What the user says after the video.
            targets: What the model should say; None encodes prompts alone.
            ids: The questions' ids.

        Returns:
            One record a question.

        Raises:
            TooLong: A question exceeds ``max_length``.
            InputError: The chat template does not put the video before the question, or the processor does not keep to
                what is described above.
        """
        chosen = self.sample(len(frames))
        heads, prompt_tails, answer_tails = [], [], []
        for number, prompt in enumerate(prompts):
            text = self._render(prompt, None)
            cut = self._cut(text, prompt)
            full = text if targets is None else self._render(prompt, targets[number])
            if not full.startswith(text):
                raise InputError("the chat template renders a prompt differently when an answer follows it")
            heads.append(text[:cut])
            prompt_tails.append(text[cut:])
            answer_tails.append(full[len(text) :])
        if len(set(heads)) > 1:
            raise InputError("the chat template puts something of the question before the video")
        tokens, vision = self._process(
            heads[0] + prompt_tails[0], self._resize(frames[chosen]), _metadata(times[chosen], fps)
        )
        first = self._tokenize(prompt_tails[0])
        head = len(tokens["input_ids"]) - len(first)
        if tokens["input_ids"][head:].tolist() != first:
            raise InputError("the processor tokenises a question differently after a video than by itself")
        records = []
        for id, prompt_tail, answer_tail in zip(ids, prompt_tails, answer_tails, strict=True):
            prompt_ids = self._tokenize(prompt_tail)
            own = torch.tensor(prompt_ids + self._answer(answer_tail))
            row = {
                name: torch.cat([tensor[:head], own if name == "input_ids" else torch.zeros_like(own)])
                for name, tensor in tokens.items()
            }
            records.append(Encoded(id, row, head + len(prompt_ids), vision))
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
        vision = {name: torch.cat([record.vision[name] for record in encoded]) for name in encoded[0].vision}
        tokens = {name: torch.stack(tensors) for name, tensors in rows.items()}
        return Batch(tuple(record.id for record in encoded), tokens, torch.stack(labels), vision)

    def save(self, folder: str | Path) -> None:
        """Save processor and settings, so that whoever loads the model prepares its inputs the same way."""
        self.processor.save_pretrained(folder)
        (Path(folder) / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> VideoInputs:
        """Load what ``save`` saved.

        Raises:
            InputError: The folder has no settings.
        """
        from transformers import AutoProcessor

        path = Path(folder) / SETTINGS_FILE
        if not path.is_file():
            raise InputError(f"{path}: not found; expected the folder of a model saved by mllm4d")
        return cls(AutoProcessor.from_pretrained(folder), VideoSettings(**json.loads(path.read_text())))

    def _render(self, prompt: str, target: str | None) -> str:
        content = [{"type": "video"}, {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if target is not None:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": target}]})
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=target is None)

    def _cut(self, text: str, prompt: str) -> int:
        """Where the question's own text begins: after the last special token before it."""
        start = text.rfind(prompt)
        specials = sorted({str(token) for token in self.tokenizer.added_tokens_decoder.values()}, key=len)
        ends = [text.rfind(token, 0, start) + len(token) for token in specials if text.rfind(token, 0, start) >= 0]
        video = text.find(self.processor.video_token)
        if start < 0 or video < 0 or not ends or max(ends) <= video:
            raise InputError("the chat template must put the video, and after it the question as it is")
        return max(ends)

    def _tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _answer(self, text: str) -> list[int]:
        """Tokens of an answer up to its end token; what a template writes after it is not the model's to say."""
        ids = self._tokenize(text)
        end = self.tokenizer.eos_token_id
        return ids[: ids.index(end) + 1] if end in ids else ids

    def _process(
        self, text: str, frames: Tensor, metadata: VideoMetadata
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Run the processor on one text with its video; per-token tensors [L] and the clip's tensors."""
        output = self.processor(
            text=[text],
            videos=[frames.permute(0, 3, 1, 2)],
            video_metadata=[metadata],
            do_sample_frames=False,
            return_tensors="pt",
            **self.settings.options,
        )
        length = output["input_ids"].shape[1]
        tokens, vision = {}, {}
        for name, tensor in output.items():
            if name == "attention_mask":
                continue
            if tensor.shape[:2] == (1, length) and not name.startswith("pixel_values"):
                tokens[name] = tensor[0]
            else:
                vision[name] = tensor
        return tokens, vision

    def _resize(self, frames: Tensor) -> Tensor:
        limit, (height, width) = self.settings.max_pixels, frames.shape[1:3]
        if limit is None or height * width <= limit:
            return frames
        scale = (limit / (height * width)) ** 0.5
        size = max(1, int(height * scale)), max(1, int(width * scale))
        resized = interpolate(frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def _metadata(times: Tensor, fps: float) -> VideoMetadata:
    """Metadata from which every processor computes the true times, also of uneven frames."""
    gap = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    indices = [round(MILLISECONDS * (time - float(times[0]))) for time in times.tolist()]
    duration = gap * len(times)
    return VideoMetadata(
        total_num_frames=round(duration * MILLISECONDS),
        fps=float(MILLISECONDS),
        duration=duration,
        frames_indices=indices,
    )


def _pad(row: Tensor, length: int, fill: int, side: str) -> Tensor:
    padding = row.new_full((length - len(row),), fill)
    return torch.cat([padding, row] if side == "left" else [row, padding])
