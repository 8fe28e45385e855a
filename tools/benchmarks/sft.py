"""Supervised fine-tuning against TRL's SFTTrainer and the plain Hugging Face Trainer: tokens per second, peak memory.

All train the same random Qwen3-VL with LoRA in float32 on the same questions: every question of every clip once, from
memory, already tokenised and with its pixels prepared, so that decoding counts for nobody. Each run is a process of its
own, and the ways take turns. Tokens are counted as each question has them by itself with its video, without padding:
the same number whichever way they are trained, also where a video is computed once for several of its questions.

- TRL: ``SFTTrainer`` with its defaults, but float32, no gradient checkpointing (as all here) and our padded batches:
  its own collator takes no videos, and it refuses packing for vision data.
- HF: the plain ``Trainer`` with padded batches in random order. The original's scripts do that too where they have no
  flash attention, which there is none of in float32.
- padded: ours, in batches of similar length.
- packed: ours, the questions of a random batch in one row.
- shared: ours, a row of whole clips, the video once for all its questions. A step then has fewer different clips.

    python tools/benchmarks/sft.py --clips 24 --repeats 3 --out sft.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

FRAMES = {"mixed": (4, 8, 16, 32), "equal": (16,)}
"""Frames of the clips, in equal shares."""
WARM = 2
"""Steps before the clock starts."""
STATUS = Path("/proc/self/status")


@dataclass
class Meter:
    """When each step ended, and how many tokens it had."""

    tokens: list[int] = field(default_factory=list)
    ends: list[tuple[float, float]] = field(default_factory=list)
    before: float = 0.0

    def start(self) -> None:
        """Forget the peak of memory so far."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size
        self.before = memory("now")

    def end_step(self) -> None:
        """Note the time."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append((time.process_time(), time.perf_counter()))

    def figures(self) -> dict[str, float]:
        """Tokens a second after the warm-up, and memory in MiB."""
        counted = sum(self.tokens[WARM : len(self.ends)])
        cpu, wall = (last - first for first, last in zip(self.ends[WARM - 1], self.ends[-1], strict=True))
        peak = memory("peak")
        return {
            "tokens of all questions": sum(self.tokens[: len(self.ends)]),
            "steps": len(self.ends),
            "tokens per CPU second": counted / cpu,
            "tokens per second": counted / wall,
            "peak MiB": peak,
            "peak MiB over the loaded model": peak - self.before,
        }


def memory(when: str) -> float:
    """Memory of the GPU, or the resident memory of this process, in MiB; ``when`` is "now" or "peak"."""
    import torch

    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if when == "peak" else torch.cuda.memory_allocated()) / 2**20
    name = {"now": "VmRSS", "peak": "VmHWM"}[when]
    match = re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())
    assert match is not None
    return int(match[1]) / 1024


def dialogues(count: int, random: Random) -> Iterator[tuple[str, str]]:
    """Prompts as our shards have them, with answers."""
    from mllm4d import prompts

    tasks = sorted(prompts.WORDINGS)
    for number in range(count):
        task = tasks[number % len(tasks)]
        times = {"i": prompts.seconds(0.25), "j": prompts.seconds(0.75)}
        wording = random.choice(prompts.WORDINGS[task]).format(**times, name="red cube")
        texts = prompts.LABELS.get(task) or prompts.distances([0.4, 0.8, 1.7, 2.6])
        options = dict(zip("ABCD", texts, strict=False))
        yield prompts.with_options(wording, options, prompts.LETTER_INSTRUCTION), random.choice(list(options))


def encode_clips(inputs: Any, lengths: Sequence[int], clips: int, questions: int, seed: int) -> list[list[Any]]:
    """The encoded questions, clip by clip; pixels are noise."""
    import torch

    encoded, random, generator = [], Random(seed), torch.Generator().manual_seed(seed)
    for clip in range(clips):
        count = lengths[clip % len(lengths)]
        frames = torch.randint(0, 256, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
        asked, answers = zip(*dialogues(questions, random), strict=True)
        ids = [f"{clip}/{number}" for number in range(questions)]
        encoded.append(inputs.encode(frames, torch.arange(count) / 4, 4.0, asked, answers, ids))
    return encoded


def batches(items: Sequence[Any], size: int) -> list[list[Any]]:
    """Cut into batches."""
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def at_random(clips: Sequence[Sequence[Any]], batch: int, random: Random) -> list[list[Any]]:
    """Batches of questions in random order."""
    records = [record for clip in clips for record in clip]
    random.shuffle(records)
    return batches(records, batch)


def by_length(clips: Sequence[Sequence[Any]], batch: int, random: Random) -> list[list[Any]]:
    """Batches of questions of similar length, in random order."""
    records = [record for clip in clips for record in clip]
    random.shuffle(records)
    steps = batches(sorted(records, key=lambda record: len(record.tokens["input_ids"])), batch)
    random.shuffle(steps)
    return steps


def by_clip(clips: Sequence[Sequence[Any]], batch: int, random: Random) -> list[list[Any]]:
    """Batches of whole clips, in random order."""
    order = list(clips)
    random.shuffle(order)
    return batches([record for clip in order for record in clip], batch)


def count(records: Sequence[Any]) -> int:
    """Tokens of questions, each by itself."""
    return sum(len(record.tokens["input_ids"]) for record in records)


@dataclass
class Steps:
    """Steps as a loader; batches are put together when they are asked for."""

    steps: list[list[Any]]
    collate: Callable[[list[Any]], Any]
    meter: Meter

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Any]:
        from mllm4d.data.stream import QuestionBatch

        for records in self.steps:
            self.meter.tokens.append(count(records))
            yield QuestionBatch(self.collate(records), None, ())


def run_ours(base: Any, settings: argparse.Namespace, plan: Callable[..., Any], pack: bool, share: bool) -> Meter:
    """Train with ``mllm4d.train.sft.SFT`` in Lightning."""
    import lightning

    from mllm4d.bench.metrics import MultipleChoiceAccuracy
    from mllm4d.models.inputs import VideoSettings
    from mllm4d.models.packing import PackedInputs
    from mllm4d.train.sft import SFT

    meter = Meter()

    class Clock(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            meter.start()

        def on_train_batch_end(self, *_: Any) -> None:
            meter.end_step()

    module = SFT(base, VideoSettings(frames=32), MultipleChoiceAccuracy(), learning_rate=1e-4)
    module.prepare_data()
    module.configure_model()
    inputs = PackedInputs(module.inputs, module.model, share) if pack else module.inputs
    clips = encode_clips(inputs, FRAMES[settings.lengths], settings.clips, settings.questions, settings.seed)
    steps = Steps(plan(clips, settings.batch, Random(settings.seed)), inputs.collate, meter)
    trainer = lightning.Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
        gradient_clip_val=1.0,  # Hugging Face's default
    )
    trainer.fit(module, train_dataloaders=steps)
    return meter


def run_hugging_face(base: Any, settings: argparse.Namespace, trl: bool) -> Meter:
    """Train with TRL's SFTTrainer or the plain Trainer."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from mllm4d.models.inputs import VideoSettings

    meter = Meter()

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **more: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **more: Any) -> None:
            meter.end_step()

    base.prepare()
    model, processor = base.load()
    inputs = base.inputs(model, processor, VideoSettings(frames=32))
    clips = encode_clips(inputs, FRAMES[settings.lengths], settings.clips, settings.questions, settings.seed)
    records = [record for clip in clips for record in clip]
    # The trainers shuffle by themselves.
    numbers = list(range(len(records)))

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        chosen = [records[item["number"]] for item in items]
        meter.tokens.append(count(chosen))
        batch = inputs.collate(chosen)
        return {**batch.model_inputs(), "labels": batch.labels}

    options: dict[str, Any] = {
        "per_device_train_batch_size": settings.batch,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "bf16": False,
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": settings.seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {"model": model, "data_collator": collate}
        trainer: Any
        if trl:
            from datasets import Dataset
            from trl import SFTConfig, SFTTrainer

            arguments = SFTConfig(folder, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, **options)
            trainer = SFTTrainer(
                args=arguments,
                processing_class=processor,
                train_dataset=Dataset.from_dict({"number": numbers}),
                **common,
            )
        else:
            data = [{"number": number} for number in numbers]
            trainer = Trainer(args=TrainingArguments(folder, **options), train_dataset=data, **common)
        trainer.add_callback(Clock())
        trainer.train()
    return meter


WAYS: dict[str, Callable[[Any, argparse.Namespace], Meter]] = {
    "TRL": lambda base, settings: run_hugging_face(base, settings, trl=True),
    "HF": lambda base, settings: run_hugging_face(base, settings, trl=False),
    "padded": lambda base, settings: run_ours(base, settings, by_length, False, False),
    "packed": lambda base, settings: run_ours(base, settings, at_random, True, False),
    "shared": lambda base, settings: run_ours(base, settings, by_clip, True, True),
}


def run_one(settings: argparse.Namespace) -> dict[str, float]:
    """One way, once, in this process."""
    import torch

    from mllm4d.models.base import LoRA
    from mllm4d.models.tiny import TinyQwen3VL

    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    # Two frames a step, as in the large models.
    base = TinyQwen3VL(settings.model, temporal_patch=2, dtype="float32", lora=LoRA(r=16, alpha=32))
    return WAYS[settings.way](base, settings).figures()


def run_apart(settings: argparse.Namespace, lengths: str, way: str, repeat: int, model: str) -> dict[str, float]:
    """One way, once, in a process of its own."""
    options = {"--lengths": lengths, "--way": way, "--model": model, "--seed": str(settings.seed + repeat)}
    options |= {f"--{name}": str(getattr(settings, name)) for name in ("clips", "questions", "batch", "threads")}
    command = [sys.executable, __file__, *(word for pair in options.items() for word in pair)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{way}, {lengths} length, failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summarise(runs: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over the repeats, and all of the tokens a second."""
    table: dict[str, Any] = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {**table, "all": [run["tokens per CPU second"] for run in runs]}


def show(lengths: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print one table."""
    best = max(rows[way]["tokens per CPU second"] for way in ("TRL", "HF"))
    print(f"\nclips of {lengths} length, frames {FRAMES[lengths]}; tokens as each question has them by itself")
    print(
        f"{'':<8}{'tokens':>9}{'steps':>7}{'tok/CPU s':>11}{'tok/s':>9}{'x best':>8}{'peak MiB':>10}{'over model':>12}"
    )
    for way, row in rows.items():
        speed = row["tokens per CPU second"]
        print(
            f"{way:<8}{row['tokens of all questions']:>9.0f}{row['steps']:>7.0f}{speed:>11.0f}"
            f"{row['tokens per second']:>9.0f}"
            f"{speed / best:>8.2f}{row['peak MiB']:>10.0f}{row['peak MiB over the loaded model']:>12.0f}"
        )


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--questions", type=int, default=8, help="of each clip")
    parser.add_argument("--batch", type=int, default=8, help="questions a step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    # What the processes of single runs get.
    for name in ("--way", "--lengths", "--model"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        print(json.dumps(run_one(settings)))
        return
    names = ("clips", "questions", "batch", "repeats", "threads", "seed")
    result: dict[str, Any] = {name: getattr(settings, name) for name in names}
    for lengths in FRAMES:
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        with tempfile.TemporaryDirectory() as folder:
            for repeat in range(settings.repeats):
                for way in WAYS:
                    runs[way].append(run_apart(settings, lengths, way, repeat, f"{folder}/tiny"))
        totals = {way: [run["tokens of all questions"] for run in done] for way, done in runs.items()}
        assert len({tuple(tokens) for tokens in totals.values()}) == 1, f"unequal tokens: {totals}"
        result[lengths] = {way: summarise(done) for way, done in runs.items()}
        show(lengths, result[lengths])
    if settings.out:
        settings.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
