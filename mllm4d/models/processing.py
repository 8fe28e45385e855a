"""A clip and what stands before its questions, as tensors: by the model's own processor, or quicker with equal result.

The Hugging Face processor takes as long as decoding the video. Of families that only scale, normalise and cut
(``Family.patches``) it is asked for the first clip of each size; the same is made of that clip without it, in a
fraction of the time, and where every tensor is equal the processor is not asked for that size again. Pixels stay bytes
then.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mllm4d.models.chat import Chat, Texts
from mllm4d.models.families import Family
from mllm4d.models.families.family import metadata
from mllm4d.models.patches import PIXELS, Patches, patchify
from mllm4d.schema import InputError

if TYPE_CHECKING:
    from mllm4d.models.inputs import VideoSettings

log = logging.getLogger(__name__)

HARMLESS = {"size", "cap_pixels_per_frame"}
"""Options of a video processor that change nothing but how frames are scaled."""

VIDEO = 2
"""A placeholder of a video feature among transformers' ``mm_token_type_ids``."""


KNOWN = 256
"""Different starts of clips whose tokens are kept."""


class Start(NamedTuple):
    """What all questions about a clip have in common.

    Attributes:
        tokens: Per-token tensors [P] of what stands before a question's own text.
        vision: The clip's tensors.
    """

    tokens: Mapping[str, Tensor]
    vision: Mapping[str, Tensor]


class ClipProcessing:
    """Makes the start of a clip's questions.

    Args:
        chat: Of the model, with its processor and family.
        settings: How frames become inputs.
    """

    def __init__(self, chat: Chat, settings: VideoSettings) -> None:
        self.chat, self.settings = chat, settings
        self.processor: Any = chat.processor
        self.family: Family = chat.family
        # Frames, height and width of a clip to the grid [3] of its patches; None where the two ways differ.
        self._grids: dict[tuple[int, int, int], Tensor | None] = {}
        # Words before the questions, grid and times to their tokens: clips of even frames have the same.
        self._known: dict[tuple[Any, ...], Mapping[str, Tensor]] = {}
        self._scale: tuple[Tensor, Tensor] | None = None

    def start(self, text: Texts, frames: Tensor, times: Tensor, fps: float) -> Start:
        """The start of a clip's questions.

        Args:
            text: Any of the questions.
            frames: [T, H, W, 3] uint8 RGB, those that are used.
            times: [T] seconds.
            fps: Nominal frame rate, 1/s; only a single frame needs it.

        Raises:
            InputError: Frames are larger than the limit, or the processor tokenises a question differently after a
                video than by itself.
        """
        frames = self._resize(frames)
        count, height, width = frames.shape[:3]
        size = (count, height, width)
        if (grid := self._grids.get(size)) is not None:
            start = self._quick(text, frames, times, fps, grid)
        else:
            start = self._plain(text, frames, times, fps)
            if size not in self._grids and self._allowed():
                start = self._compare(start, self._quick(text, frames, times, fps, start.vision["video_grid_thw"][0]))
                same = isinstance(start.vision, Patches)
                self._grids[size] = start.vision["video_grid_thw"][0] if same else None
        self._check_pixels(start.vision)
        return start

    def _allowed(self) -> bool:
        video = getattr(self.processor, "video_processor", None)
        usual = all(getattr(video, name, False) for name in ("do_rescale", "do_normalize"))
        return self.family.patches and usual and set(self.settings.options) <= HARMLESS

    def _plain(self, text: Texts, frames: Tensor, times: Tensor, fps: float) -> Start:
        """By the processor."""
        output = self.family.process(self.processor, text.rendered, frames, times, fps, self.settings.options)
        tokens, vision = {}, {}
        length = output["input_ids"].shape[1]
        own = self.chat.tokens(text.prompt)
        before = length - len(own)
        if output["input_ids"][0, before:].tolist() != own:
            raise InputError("the processor tokenises a question differently after a video than by itself")
        for name, tensor in output.items():
            if name == "attention_mask":
                continue
            if tensor.shape == (1, length) and not name.startswith("pixel_"):
                tokens[name] = tensor[0, :before]
            else:
                vision[name] = tensor
        return Start(tokens, vision)

    def _quick(self, text: Texts, frames: Tensor, times: Tensor, fps: float, grid: Tensor) -> Start:
        """Without the processor, but for its words, and for scaling where its frames have other sizes than ours."""
        about, video = metadata(times, fps), self.processor.video_processor
        steps, height, width = grid.tolist()
        if tuple(frames.shape[1:3]) == (height * video.patch_size, width * video.patch_size):
            clip = patchify(frames, video.patch_size, video.merge_size, video.temporal_patch_size)
        else:
            visuals = self.family.visuals(frames.permute(0, 3, 1, 2), about)
            raw = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            clip = video(**visuals, **self.settings.options, **raw)[PIXELS]
        mean, std = self._normalisation()
        rest = {"video_grid_thw": grid[None], **self.family.timing(self.processor, about)}
        tokens = self._tokens(text, about, steps, height * width // video.merge_size**2)
        return Start(tokens, Patches((clip,), (0,), rest, mean, std))

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [3] of pixels from 0 to 255, rounded as the processor rounds them."""
        if self._scale is None:
            video = self.processor.video_processor
            mean, std = (
                torch.tensor(values) * (1.0 / video.rescale_factor) for values in (video.image_mean, video.image_std)
            )
            self._scale = mean, std
        return self._scale

    def _tokens(self, text: Texts, about: Any, steps: int, features: int) -> Mapping[str, Tensor]:
        """Tokens before the question, as of a video with one feature a step; its placeholder comes so often then."""
        before = text.rendered[: len(text.rendered) - len(text.prompt)]
        key = (before, steps, features, *about.frames_indices)
        if key not in self._known:
            merge = self.processor.video_processor.merge_size
            single = {"video_grid_thw": torch.tensor([[steps, merge, merge]]), "video_metadata": [about]}
            words = self.processor.replace_video_token(single, video_idx=0)
            ids = torch.tensor(self.chat.tokens(before.replace(self.chat.marker, words)))
            placeholder = self.processor.video_token_id
            ids = ids.repeat_interleave(torch.where(ids.eq(placeholder), features, 1))
            if len(self._known) == KNOWN:
                self._known.clear()
            self._known[key] = {"input_ids": ids, "mm_token_type_ids": ids.eq(placeholder) * VIDEO}
        return self._known[key]

    def _compare(self, plain: Start, quick: Start) -> Start:
        """The quick one where every tensor is equal."""
        theirs, ours = {**plain.tokens, **plain.vision}, {**quick.tokens, **quick.vision}
        if theirs.keys() == ours.keys() and all(
            ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor) for name, tensor in theirs.items()
        ):
            return quick
        log.warning("%s: clips go through the processor, which is slow", type(self.processor).__name__)
        return plain

    def _resize(self, frames: Tensor) -> Tensor:
        """Scale frames down to the limit, to sides that the processor then leaves as they are."""
        limit, sides = self.settings.max_pixels, frames.shape[1:3]
        if self.family.fixed_size:
            return frames
        video = getattr(self.processor, "video_processor", None)
        unit = getattr(video, "patch_size", 1) * getattr(video, "merge_size", 1)
        height, width = (max(unit, round(side / unit) * unit) for side in sides)
        if limit is None or height * width <= limit:
            return frames
        scale = (limit / (sides[0] * sides[1])) ** 0.5
        size = [max(unit, int(side * scale / unit) * unit) for side in sides]
        resized = interpolate(frames.permute(0, 3, 1, 2).float(), size, mode="bilinear", antialias=True)
        return resized.round().clamp(0, 255).byte().permute(0, 2, 3, 1)

    def _check_pixels(self, vision: Mapping[str, Tensor]) -> None:
        """The limit holds after the processor's own scaling, which may go up."""
        limit, size = self.settings.max_pixels, self.family.frame_size(self.processor, vision)
        if limit is None or size is None or size[0] * size[1] <= limit:
            return
        remedy = "set it to null" if self.family.fixed_size else "set its 'size' in video.options"
        raise InputError(
            f"video.max_pixels: {limit} a frame, but the model's processor scales frames to {size[0] * size[1]}; "
            f"{remedy}"
        )
