"""A tiny Qwen3-VL, an ordinary Hugging Face folder, to try things without a download.

Model class, processor and tokenizer are the real ones; only the sizes are small (2.4 M parameters). Its tokenizer is
trained on the wordings of our own questions. One comes with the package, pretrained on what a general MLLM knows and
4-D does not need; others are made with random weights.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from mllm4d import prompts
from mllm4d.models.base import BaseModel
from mllm4d.schema import InputError

VOCABULARY = 900
"""Most tokens; our few sentences need about 640."""
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<thinking>", "</thinking>", "<answer>", "</answer>")

# Qwen3-VL's processor writes the vision's start and end itself, frame by frame: a template that wrote them too would
# double them.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- "<|im_start|>" + message.role + "\\n" -}}
{%- if message.content is string -%}{{- message.content -}}{%- else -%}
{%- for item in message.content -%}
{%- if item.type == "video" -%}{{- "<|video_pad|>" -}}
{%- elif item.type == "image" -%}{{- "<|vision_start|><|image_pad|><|vision_end|>" -}}
{%- else -%}{{- item.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\\n" -}}{%- endif -%}
"""

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "cyan", "pink", "white", "black", "grey", "brown")
SOLIDS = ("cube", "ball", "cylinder", "cone", "capsule", "ring", "pyramid", "box")


PRETRAINED = Path(__file__).with_name("mllm4d_tiny")
"""The model folder that comes with the package; its README.md is the model card."""


class PretrainedTiny(BaseModel):
    """The tiny base MLLM that comes with the package, for eight frames of 64x64 pixels.

    It names, locates and counts coloured solids and answers by option text and letter. It was never asked one of the
    seven relations.

    Args:
        path: Its folder.
        settings: As in ``BaseModel``.
    """

    def __init__(self, path: str = str(PRETRAINED), **settings: Any) -> None:
        super().__init__(path, **settings)


class TinyQwen3VL(BaseModel):
    """The tiny model with random weights; its folder is made at ``path`` when there is none.

    Args:
        path: Its folder.
        seed: Of the random weights.
        temporal_patch: Frames that the vision tower takes together. A large one is the main lever of speed on a CPU:
            8 frames become one step of 16 tokens.
        settings: As in ``BaseModel``.
    """

    def __init__(self, path: str, seed: int = 0, temporal_patch: int = 8, **settings: Any) -> None:
        super().__init__(path, **settings)
        self.seed, self.temporal_patch = seed, temporal_patch

    def prepare(self) -> None:
        """Make the folder where there is none.

        Raises:
            InputError: The folder has a model of another seed or temporal patch, or other files and no model.
        """
        file = Path(self.path) / "config.json"
        if not file.is_file():
            build_tiny(self.path, self.seed, self.temporal_patch)
        config = json.loads(file.read_text())
        found = {"seed": config.get("seed"), "temporal_patch": config["vision_config"].get("temporal_patch_size")}
        wanted = {"seed": self.seed, "temporal_patch": self.temporal_patch}
        if found != wanted:
            raise InputError(
                f"{file}: this model was made with {found}, but {wanted} is asked for; name another 'path'"
            )

    def load(self) -> tuple[Any, Any]:
        """Make the folder where there is none, and read it."""
        self.prepare()
        return super().load()


def build_tiny(path: str | Path, seed: int = 0, temporal_patch: int = 8) -> Path:
    """Write a tiny Qwen3-VL with random weights; the same seed gives the same weights.

    Args:
        path: Folder to write; it appears at once, when it is whole.
        seed: Of the weights.
        temporal_patch: Frames that the vision tower takes together.

    Returns:
        The folder.

    Raises:
        InputError: The folder is there and not empty.
    """
    folder = Path(path)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"{folder}: is there already; expected a new folder for the tiny model")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer = build_tokenizer()
        build_processor(tokenizer, temporal_patch).save_pretrained(beside)
        build_model(tokenizer, seed, temporal_patch).save_pretrained(beside)
        beside.chmod(0o755)
        os.replace(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return folder


def sentences() -> Iterator[str]:
    """What the tokenizer is trained on: our questions, options, answers and reasoning with many names and numbers."""
    names = [f"{colour} {solid}" for colour, solid in itertools.product(COLOURS, SOLIDS)]
    for k, (task, wordings) in itertools.product(range(24), prompts.WORDINGS.items()):
        for n, wording in enumerate(wordings):
            number = 1 + (37 * k + 11 * n) % 97
            scale = 1 if n % 2 else 0.05
            times = {"i": prompts.seconds(number / 16), "j": prompts.seconds(number / 4)}
            yield wording.format(**times, name=names[(7 * k + n) % len(names)])
            options = prompts.LABELS.get(task) or prompts.distances([scale * number / d for d in (4, 6, 9, 13.5)])
            yield "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False))
            yield " " + " ".join(options)
    yield from (prompts.LETTER_INSTRUCTION, prompts.TEXT_INSTRUCTION, prompts.REASONING_INSTRUCTION, prompts.REASONING)
    yield "user\nassistant\nsystem\n<0.4 seconds><1.2 seconds>"
    yield from itertools.chain.from_iterable(prompts.REASONING_STEPS.values())
    yield from prompts.EVIDENCE.values()
    yield from (f" {name}" for name in names)
    yield from (f"the {name}" for name in names)


def build_tokenizer(more: Iterable[str] = ()) -> Any:
    """A small byte-level BPE: any text comes back as it was, numbers are read digit by digit.

    Args:
        more: Sentences that it learns its words from, beside ``sentences``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    # Words with their leading blank, single digits and single marks: "-" never melts with "[", nor "." with a number.
    pieces = Regex(r" ?\p{L}+| ?\p{N}|\n| ?[^\s\p{L}\p{N}]|\s")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(TAGS),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(sentences(), more), trainer)
    # One token each, but not special ones: the tags are the model's to say and must survive decoding.
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[3:]),
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def build_processor(tokenizer: Any, temporal_patch: int = 8) -> Any:
    """A real Qwen3-VL processor for frames of about 64x64 pixels, which it does not scale up."""
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes: dict[str, Any] = {"patch_size": 8, "temporal_patch_size": temporal_patch, "merge_size": 2}
    limits = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64 * 512}
    mean: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    video = Qwen3VLVideoProcessor(**sizes, **mean, size=limits, do_sample_frames=False, cap_pixels_per_frame=False)
    image = Qwen2VLImageProcessor(**sizes, **mean, size=limits)
    return Qwen3VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=CHAT_TEMPLATE
    )


def build_model(tokenizer: Any, seed: int = 0, temporal_patch: int = 8, rope_theta: float = 100.0) -> Any:
    """A Qwen3-VL of 2.4 M parameters with random weights, float32.

    Args:
        tokenizer: Its tokenizer.
        seed: Of the weights.
        temporal_patch: Frames that the vision tower takes together.
        rope_theta: Base of the language model's rotary angles; a larger one lets it look farther back.
    """
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    ids = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "initializer_range": 0.08,
            "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta, "mrope_section": [6, 5, 5]},
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": temporal_patch,
            "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1, 2],
            "initializer_range": 0.08,
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )
    config.update({"seed": seed})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        # Larger than the usual 0.02: so small a model does not find out otherwise where a patch is, and where to look.
        torch.nn.init.normal_(model.model.visual.pos_embed.weight, std=0.2)
        for layer in model.model.language_model.layers:
            torch.nn.init.constant_(layer.self_attn.q_norm.weight, 2.0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
