"""What would train, how much memory that takes on each GPU, and how much is computed: without weights, in seconds.

    python tools/memory.py
    python tools/memory.py -c configs/sft.yaml -c configs/trainer/fsdp_8gpu.yaml --frames 16
    python tools/memory.py FOLDER-OR-HUB-NAME --frames 8 32 --clips 1

Alone it takes the paper's LoRA on Qwen3-VL-8B-Instruct, whose configuration is written below, so that nothing is
downloaded. A folder or hub name gives another model with the same LoRA (its configuration and processor are read, not
its weights). With -c model, adapters, precision, optimiser, packing and batch are those of a training's configuration,
merged as ``python -m mllm4d fit`` merges them. What is not counted is said in ``mllm4d/models/memory.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from mllm4d.models.base import BaseModel, LoRA, format_table, trained_table
from mllm4d.models.dry_run import Step, dry_step
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.logprobs import CHUNK
from mllm4d.models.memory import adapter_rows, estimate, example_batch, format_memory, meta_model
from mllm4d.models.packing import PackedInputs
from mllm4d.schema import InputError

QWEN3_VL_8B = "Qwen/Qwen3-VL-8B-Instruct"
CONFIG: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262_144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000, "mrope_section": [24, 20, 20]},
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "tie_word_embeddings": False,
}
"""Of the released model, 8.77 billion parameters."""

VIDEO_SIZE = {"shortest_edge": 4096, "longest_edge": 25_165_824}
"""Fewest and most pixels of a clip, all its frames together, as in its ``video_preprocessor_config.json``."""

PAPER = BaseModel(QWEN3_VL_8B, lora=LoRA(), gradient_checkpointing=True)
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "32-true": None, "32": None, None: None}


@dataclass(frozen=True)
class Plan:
    """What a training would do.

    Attributes:
        base: The model and what of it trains.
        video: How frames become inputs.
        packed: Whether a batch is one row.
        clips: Questions of a batch of one GPU, each with its clip.
        tokens: Of a batch; None counts by ``clips``.
        chunk: Answer tokens whose logits are there at once.
        precision: The trainer's.
        state_bytes: Of the optimiser for a trained parameter; None is AdamW's.
    """

    base: BaseModel = PAPER
    video: VideoSettings = field(default_factory=lambda: VideoSettings(max_pixels=50_176))
    packed: bool = True
    clips: int = 8
    tokens: int | None = None
    chunk: int = CHUNK
    precision: Any = "bf16-mixed"
    state_bytes: float | None = None


def read_plan(files: Sequence[str]) -> Plan:
    """The plan of a training's configuration, merged and checked by the trainer's own parser.

    Args:
        files: As many as ``fit`` would get with -c; and keys, such as ``--data.batch_size 4``.

    Raises:
        InputError: It is not one of supervised fine-tuning.
    """
    from jsonargparse import ArgumentParser

    from mllm4d.cli import run_trainer

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run_trainer(["fit", *files, "--print_config"])
    config = yaml.safe_load(text.getvalue())
    if config is None:
        raise InputError("the configuration cannot be read; see above")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    if not {"base", "video"} <= set(model):
        raise InputError(f"model.class_path: {config['model']['class_path']} has no 'base' and 'video'")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--base", type=BaseModel)
    parser.add_argument("--video", type=VideoSettings)
    settings = parser.instantiate(parser.parse_object({"base": model["base"], "video": model["video"]}))
    optimizer = (model.get("optimizer") or {}).get("class_path", "")
    return Plan(
        base=settings.base,
        video=settings.video,
        packed=model.get("packing") is not None,
        clips=data.get("batch_size", 1),
        tokens=data.get("batch_tokens"),
        chunk=model.get("chunk", CHUNK),
        precision=config["trainer"]["precision"],
        state_bytes=2.0 if "8bit" in optimizer.lower() else None,
    )


def read_model(base: BaseModel) -> tuple[Any, Any]:
    """Configuration and processor of a model.

    Args:
        base: Its settings.

    Raises:
        InputError: A local folder has no model, or a hub name cannot be read.
    """
    from transformers import AutoConfig, AutoProcessor

    if base.path == QWEN3_VL_8B:
        return qwen3_vl_8b()
    base.prepare()
    folder = Path(base.path)
    named_folder = folder.is_dir() or folder.is_absolute() or base.path.startswith(".") or len(folder.parts) != 2
    if named_folder and not (folder / "config.json").is_file():
        raise InputError(f"{folder / 'config.json'}: not found; expected the folder of a Hugging Face model")
    try:
        return AutoConfig.from_pretrained(base.path), AutoProcessor.from_pretrained(base.path)
    except OSError as error:
        raise InputError(f"{base.path}: its configuration cannot be read ({str(error).splitlines()[0]})") from error


def qwen3_vl_8b() -> tuple[Any, Any]:
    """Configuration and processor of Qwen3-VL-8B-Instruct; the words are those of our tiny model's tokenizer.

    Its tokenizer reads digits one by one too, so that the times of the frames take as many tokens.
    """
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

    from mllm4d.models.tiny import CHAT_TEMPLATE, build_tokenizer

    tokenizer = build_tokenizer()
    marks = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    marks |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    sizes: dict[str, Any] = {"patch_size": 16, "merge_size": 2}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes, size=VIDEO_SIZE, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in marks.items()}
    return Qwen3VLConfig(**CONFIG, **ids), processor


def autocast_of(precision: Any) -> torch.dtype | None:
    """The type that a trainer's precision computes matrices in, beside the weights' own.

    Raises:
        InputError: It is another precision.
    """
    if precision not in AUTOCAST and precision not in TRUE:
        raise InputError(f"trainer.precision: {precision!r} cannot be counted; expected one of {[*AUTOCAST, *TRUE]}")
    return AUTOCAST.get(precision)


def describe_step(step: Step, frames: int) -> str:
    """A step's work as text."""
    work = ", ".join(f"{part} {count / 1e9:.3g}" for part, count in step.flops_per_token().items())
    again = sum(step.again.values()) / step.flops
    return (
        f"{frames} frames: {step.tokens:,} tokens a step, {step.flops / 1e12:.3g} TFLOP (and {again:.0%} of it again); "
        f"GFLOP a token: {work}"
    )


def report(
    plan: Plan, frames: Sequence[int], gpus: Sequence[int], size: tuple[int, int], words: tuple[int, int]
) -> str:
    """Everything as text.

    Args:
        plan: What is trained.
        frames: Numbers of frames of a clip.
        gpus: Numbers of GPUs.
        size: Height and width of the clips' frames, pixels.
        words: Tokens of a question's own text and of its answer.

    Raises:
        InputError: The plan cannot be.
    """
    autocast = autocast_of(plan.precision)
    config, processor = read_model(plan.base)
    family = plan.base.family_for(config)
    model = meta_model(config, plan.base)
    if (dtype := TRUE.get(plan.precision)) is not None:
        model = model.to(dtype)
    lines = [f"{plan.base.path}: {config.model_type}, {plan.precision}", "", format_table(trained_table(model, family))]
    if rows := adapter_rows(model, family):
        lines += ["", f"{'adapters on':<10}{'layer':>14}{'number':>8}{'inputs':>8}{'outputs':>9}{'parameters':>15}"]
        lines += [
            f"{r.part:<11}{r.name:>14}{r.layers:>8}{r.shape[0]:>8}{r.shape[1]:>9}{r.parameters:>15,}" for r in rows
        ]
    columns, work = {}, []
    for count in frames:
        inputs: VideoInputs = plan.base.inputs(model, processor, replace(plan.video, frames=count))
        if plan.packed:
            inputs = PackedInputs(inputs, model)
        clips = plan.clips
        if plan.tokens is not None:
            clips = max(1, plan.tokens // example_batch(inputs, count, *size, *words).labels.numel())
        batch = example_batch(inputs, count, *size, *words, clips=clips)
        step = dry_step(model, batch, family, plan.chunk, autocast)
        four_bits = plan.base.quantization == "4bit"
        for number in gpus:
            for name, sharded in [("DDP", False), ("FSDP", True)] if number > 1 else [("", False)]:
                if sharded and four_bits:
                    continue
                key = f"{count} frames, {number}{name and f' {name}'}"
                columns[key] = estimate(
                    model, batch, step, number, sharded, autocast, plan.state_bytes, four_bits=four_bits
                )
        work.append(f"{clips} clips: {describe_step(step, count)}")
    return "\n".join([*lines, "", format_memory(columns), "", *work])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables; exits with one line on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="folder or hub name; its configuration and processor are read")
    parser.add_argument(
        "-c", "--config", action="append", default=[], metavar="FILE", help="as of fit; may be repeated"
    )
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--clips", type=int, help="questions of a batch of one GPU, each with its clip")
    parser.add_argument("--size", type=int, nargs=2, default=[360, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--question", type=int, default=64, help="tokens of a question's own text")
    parser.add_argument("--answer", type=int, default=8, help="tokens of an answer")
    arguments = parser.parse_args(argv)
    try:
        plan = read_plan([word for file in arguments.config for word in ("-c", file)]) if arguments.config else Plan()
        if arguments.model:
            plan = replace(plan, base=_renamed(plan.base, arguments.model))
        if arguments.clips:
            plan = replace(plan, clips=arguments.clips, tokens=None)
        words = (arguments.question, arguments.answer)
        print(report(plan, arguments.frames, arguments.gpus, tuple(arguments.size), words))
    except InputError as error:
        sys.exit(f"memory: {error}")


def _renamed(base: BaseModel, path: str) -> BaseModel:
    settings: Mapping[str, Any] = {**vars(base), "path": path}
    return BaseModel(**{name: value for name, value in settings.items() if name not in ("seed", "temporal_patch")})


if __name__ == "__main__":
    main()
