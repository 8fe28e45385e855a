"""What differs between families of multimodal LLMs, as one class; the class itself is the generic family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from mllm4d import prompts
from mllm4d.models.batch import Encoded
from mllm4d.models.patches import join
from mllm4d.schema import InputError

MILLISECONDS = 1000
"""Frame times are handed to processors as indices of a film of 1000 frames a second, so that uneven times stay true."""


class Family:
    """How one family of models wants its video, and what its parts are called.

    This class serves any family whose processor takes videos and has a chat template for them; frame times are then
    written out as text, since nothing is known of how else the model could get them. A family of its own is a subclass
    that says what is different: named in ``model_types`` it is found by itself, and ``base.family`` takes any.

    Attributes:
        model_types: The ``model_type`` of the configurations it is for.
        processors: Class names of the processors it is for, where there is a processor and no model.
        parts: Part to a pattern of its modules' names; the first that matches a name counts.
        as_images: The family has no video input: every frame is an image of the prompt.
        fixed_size: The processor scales every frame to one size, which nothing can change.
        patches: The processor scales a video, normalises it, cuts it into patches as Qwen2-VL's does, and writes its
            tokens with ``replace_video_token``, nothing else: clips may be prepared without it
            (``mllm4d.models.processing``).
        after_video: What the processor writes after the last special token of the video.
        template_options: Passed to the chat template.
    """

    model_types: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    parts: Mapping[str, str] = {
        "merger": r"merger|deepstack_merger_list|(?:multi_modal_)?projector|connector|aligner|embed_vision"
        r"|visual_embeddings_table|image_newline",
        "vision": r"visual|vision_tower|vision_model",
        "language": r"language_model|text_model|lm_head",
    }
    as_images: bool = False
    fixed_size: bool = False
    patches: bool = False
    after_video: str = ""
    template_options: Mapping[str, Any] = {}

    # Words

    def marker(self, processor: Any) -> str:
        """What stands for the video (or for one frame, with ``as_images``) in a rendered chat.

        Raises:
            InputError: The processor takes no videos.
        """
        name = "image_token" if self.as_images else "video_token"
        token = getattr(processor, name, None)
        if not token or not (self.as_images or getattr(processor, "video_processor", None)):
            raise InputError(
                f"{type(processor).__name__} takes no videos; name the model's family by class_path in 'base.family' "
                "(a subclass of mllm4d.models.families.Family, with as_images where frames go in as images)"
            )
        return token

    def content(self, times: Tensor) -> list[dict[str, Any]]:
        """What the user's turn holds before the question: the video, or every frame with its time and an image."""
        if not self.as_images:
            return [{"type": "video"}]
        items: list[dict[str, Any]] = []
        for number, time in enumerate(times.tolist(), 1):
            items += [{"type": "text", "text": f"Frame {number} at {prompts.seconds(time)}:"}, {"type": "image"}]
        return items

    def note(self, times: Tensor) -> str:
        """The times of the frames as text, for the line before the question; empty where the model gets them anyway."""
        frames = [f"frame {number} at {prompts.seconds(time)}" for number, time in enumerate(times.tolist(), 1)]
        return "" if self.as_images else f"{', '.join(frames).capitalize()}."

    def template(self, template: str) -> str:
        """The model's chat template as it is used, and saved with the processor."""
        return template

    def answer(self, prompt: str, whole: str, target: str) -> str:
        """What the model has to say after a rendered prompt.

        Args:
            prompt: The chat up to where the answer begins.
            whole: The same chat rendered with the answer.
            target: The answer by itself.

        Raises:
            InputError: The two are not rendered the same.
        """
        if not whole.startswith(prompt):
            raise InputError("the chat template renders a prompt differently when an answer follows it")
        return whole[len(prompt) :]

    # Pixels

    def process(
        self, processor: Any, text: str, frames: Tensor, times: Tensor, fps: float, options: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Run the processor on one rendered chat with its clip.

        Args:
            processor: The model's processor.
            text: The rendered chat.
            frames: [T, H, W, 3] uint8 RGB.
            times: [T] seconds.
            fps: Nominal frame rate, 1/s; only a single frame needs it.
            options: Passed on to the processor.
        """
        visuals = self.visuals(frames.permute(0, 3, 1, 2), metadata(times, fps))
        arguments: dict[str, Any] = {"text": [text], "return_tensors": "pt", **visuals, **options}
        # As in the processors' own ``apply_chat_template``: a template that writes the first token has written it.
        if (first := processor.tokenizer.bos_token) and text.startswith(first):
            arguments["add_special_tokens"] = False
        return processor(**arguments)

    def visuals(self, pixels: Tensor, about: VideoMetadata) -> dict[str, Any]:
        """A clip [T, 3, H, W] as arguments of the processor."""
        if self.as_images:
            return {"images": [list(pixels)]}
        return {"videos": [pixels], "video_metadata": [about], "do_sample_frames": False}

    def placeholder(self, processor: Any) -> int | None:
        """The token whose places the vision features take; None where that is not known."""
        return getattr(processor, "video_token_id", None)

    def features(self, processor: Any, vision: Mapping[str, Tensor]) -> int | None:
        """How many vision features the model makes of a clip; None leaves the check to the model's forward."""
        grid, merge = vision.get("video_grid_thw"), getattr(processor.video_processor, "merge_size", None)
        return None if grid is None or merge is None else int(grid.prod(-1).sum()) // merge**2

    def frame_size(self, processor: Any, vision: Mapping[str, Tensor]) -> tuple[int, int] | None:
        """Height and width of a processed frame in pixels; None where that cannot be told."""
        grid = vision.get("video_grid_thw")
        if grid is not None:
            patch = getattr(processor.video_processor, "patch_size", None)
            return None if patch is None else (int(grid[0, 1]) * patch, int(grid[0, 2]) * patch)
        pixels = vision.get("pixel_values_videos", vision.get("pixel_values"))
        return None if pixels is None or pixels.ndim < 4 else (pixels.shape[-2], pixels.shape[-1])

    def timing(self, processor: Any, about: VideoMetadata) -> dict[str, Tensor]:
        """What the model is told of a clip's times beside its tokens, where ``patches`` is set.

        Args:
            processor: The model's processor.
            about: The clip's metadata.
        """
        return {}

    def collate(self, visions: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """The clips' tensors of a batch, in the order of its rows."""
        return join(visions)

    # The model

    def check(self, config: Any, processor: Any) -> None:
        """See that model and processor belong together.

        Raises:
            InputError: They make different numbers of tokens of a frame.
        """
        video, vision = getattr(processor, "video_processor", None), getattr(config, "vision_config", None)
        names = {"patch_size": "patch_size", "temporal_patch_size": "temporal_patch_size"}
        for ours, theirs in {**names, "merge_size": "spatial_merge_size"}.items():
            expect_equal(ours, getattr(video, ours, None), f"vision_config.{theirs}", getattr(vision, theirs, None))

    def part_of(self, name: str) -> str:
        """The part that a parameter or module belongs to.

        Args:
            name: Its dotted name.

        Raises:
            InputError: No part's pattern matches.
        """
        for part, pattern in self.parts.items():
            if re.search(rf"(?:^|\.)(?:{pattern})\.", f"{name}."):
                return part
        raise InputError(f"{name!r} belongs to none of the known parts of a multimodal LLM ({', '.join(self.parts)})")

    def positions(self, model: Any, encoded: Encoded) -> Tensor:
        """Position ids of one sample without padding, from the model's own ``get_rope_index`` where it has one.

        Args:
            model: The model, with or without adapters.
            encoded: The sample.

        Returns:
            [4, L] for a rope of several dimensions: the place in the text, then time, height and width; else [L].
            ``unsqueeze(-2)`` makes it what the model's forward takes as ``position_ids``.
        """
        ids = encoded.tokens["input_ids"]
        places = torch.arange(len(ids), device=ids.device)  # [L]
        inner = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
        if inner is None:
            return places
        tokens = {name: tensor[None] for name, tensor in encoded.tokens.items()}
        names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
        grids = {name: encoded.vision[name] for name in names if name in encoded.vision}
        rope, _ = inner.get_rope_index(**tokens, **grids)  # [3, 1, L]
        return torch.cat([places[None], rope[:, 0]])


def metadata(times: Tensor, fps: float) -> VideoMetadata:
    """Metadata from which every processor computes the true times, also of uneven frames.

    Args:
        times: [T] seconds.
        fps: Nominal frame rate, 1/s; only a single frame needs it.
    """
    gap = float(times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    duration = gap * len(times)
    return VideoMetadata(
        total_num_frames=round(duration * MILLISECONDS),
        fps=float(MILLISECONDS),
        duration=duration,
        frames_indices=[round(MILLISECONDS * time) for time in times.tolist()],
    )


def alike(first: str, second: str) -> int:
    """Characters up to where two texts differ."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def expect_equal(name: str, value: Any, other: str, expected: Any) -> None:
    """See that a processor's figure is the model's; what one of them does not have is not compared.

    Raises:
        InputError: They differ.
    """
    if value is not None and expected is not None and value != expected:
        raise InputError(f"the processor's {name} is {value}, but the model's {other} {expected}: not of one model")


def subclasses(family: type[Family] = Family) -> Iterator[type[Family]]:
    """Every family that is imported, in the order of definition."""
    for child in family.__subclasses__():
        yield child
        yield from subclasses(child)


def family_of(config: Any) -> Family:
    """The family of a model, from its own configuration's ``model_type``; the generic one where none claims it.

    Args:
        config: The model's configuration.

    Raises:
        InputError: Several families claim it.
    """
    return _choose("model_types", getattr(config, "model_type", None))


def family_of_processor(processor: Any) -> Family:
    """The family of a processor by itself, from its class; the generic one where none claims it.

    Args:
        processor: A Hugging Face processor.

    Raises:
        InputError: Several families claim it.
    """
    return _choose("processors", type(processor).__name__)


def family_named(name: str) -> Family:
    """The family of a class name, as saved settings have it.

    Args:
        name: The class's name.

    Raises:
        InputError: No family of that name is imported.
    """
    known = {family.__name__: family for family in (*subclasses(), Family)}
    if name not in known:
        raise InputError(f"no family {name!r} among {', '.join(known)}; import its module, or name one")
    return known[name]()


def _choose(attribute: str, name: Any) -> Family:
    # A subclass inherits what its parent claims; only what it says itself counts.
    found = [family for family in subclasses() if name in vars(family).get(attribute, ())]
    if len(found) > 1:
        names = " and ".join(f"{family.__module__}.{family.__qualname__}" for family in found)
        raise InputError(f"{name!r} is claimed by {names}; name one in 'base.family'")
    return found[0]() if found else Family()
