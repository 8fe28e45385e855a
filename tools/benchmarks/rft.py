"""One GRPO step: the prompt shared by its group, repeated for every completion, and TRL's GRPOTrainer.

All train the same random Qwen3-VL with LoRA in float32, one prompt a step, and draw completions that may not end early,
so that all are equally long. A step is: draw a group (rollout), log-probabilities of the reference (log-probs), one
update with GRPO's loss and a KL term (update). Ours, frames prepared beforehand, by phases:

- shared: ``SharedRollout`` and ``SharedPrefix``.
- plain: ``GenerateRollout`` (transformers' ``generate``) and ``Plain``: each completion with its own prompt and video.
- floor: what no way can do without: the prompt once by itself, and the completions by themselves, as if they had no
  prompt; for the update, forward and backward.

TRL takes no videos: it is compared on one image, which is two frames of a clip to ours, so that prompts have as many
tokens within a few. Its steps prepare the image each time, and score by a reward that looks at nothing.

Each run is a process of its own, and the ways take turns. Seconds are processor seconds of the median step, which
other programs on the machine lengthen less than those of the clock.

    python tools/benchmarks/rft.py --repeats 3 --out rft.json
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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FRAMES = (8, 16, 32)
SHORT = 2
"""Frames that make as many tokens as an image."""
PHASES = ("rollout", "log-probs", "update")
QUESTION = "Which way did the camera go between 0.25 s and 0.75 s?\nA. left\nB. right\nAnswer with the letter."
BETA = 0.001
RATE = 1e-4


class Clock:
    """Processor seconds of each phase, a list of steps each."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {phase: [] for phase in PHASES}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time a phase."""
        start = now()
        yield
        self.phases[phase].append(now() - start)

    def figures(self, warm: int) -> dict[str, float]:
        """Median seconds a phase after the first steps, and their sum."""
        found = {phase: statistics.median(seconds[warm:]) for phase, seconds in self.phases.items()}
        return {**found, "step": sum(found.values())}


def now() -> float:
    """Processor seconds; seconds of the clock where a GPU does the work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def memory(peak: bool) -> float:
    """Memory of the GPU, or of this process, MiB, now or at its peak."""
    import torch

    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    match = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def forget_peak() -> None:
    """Begin to look for a peak anew."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size


def load(settings: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Model, processor and preprocessing."""
    import torch

    from mllm4d.models.base import LoRA
    from mllm4d.models.inputs import VideoSettings
    from mllm4d.models.tiny import TinyQwen3VL

    torch.manual_seed(settings.seed)
    # Two frames a step, as in the large models.
    base = TinyQwen3VL(settings.model, temporal_patch=2, dtype="float32", lora=LoRA(r=16, alpha=32))
    base.prepare()
    model, processor = base.load()
    if torch.cuda.is_available():
        model.cuda()
    return model.train(), processor, base.inputs(model, processor, VideoSettings(frames=64))


def prompts(inputs: Any, frames: int, count: int, seed: int) -> list[Any]:
    """A prompt for each step; pixels are noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        clip = torch.randint(0, 256, (frames, 64, 64, 3), generator=generator, dtype=torch.uint8)
        found += inputs.encode(clip, torch.arange(frames) / 4, 4.0, [QUESTION], None, [str(number)])
    return found


def endless(model: Any, inputs: Any) -> Any:
    """A policy that may not say its end tokens."""
    from dataclasses import replace

    from mllm4d.models.completions import policy_of

    policy = policy_of(model, inputs)
    return replace(policy, banned=tuple(sorted({*policy.banned, *policy.ends})))


def run_ours(settings: argparse.Namespace) -> dict[str, float]:
    """Steps of ours, shared or plain."""
    import torch

    from mllm4d.models.base import reference
    from mllm4d.models.sharing import Plain, SharedPrefix, score_all
    from mllm4d.train.rollout import GenerateRollout, SharedRollout, hf, stack

    model, _, inputs = load(settings)
    policy = endless(model, inputs)
    hf.policy_of = lambda *_: policy
    shared = settings.way == "shared"
    engine = (SharedRollout if shared else GenerateRollout)(settings.tokens)
    scorer = (SharedPrefix if shared else Plain)(settings.budget)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE, weight_decay=0.0)
    advantages = torch.linspace(-1, 1, settings.group, device=next(model.parameters()).device)
    clock, before = Clock(), memory(peak=False)
    forget_peak()
    for prompt in prompts(inputs, settings.frames, settings.warm + settings.steps, settings.seed):
        with clock("rollout"):
            rollouts = engine.generate(model, inputs, [prompt], settings.group, settings.seed)
        mask = stack(rollouts).mask
        assert int(mask.sum()) == settings.group * settings.tokens
        with clock("log-probs"), reference(model) as base:
            known = score_all(scorer, base, inputs, rollouts).log_probs
        with clock("update"):
            for numbers in scorer.split(rollouts):
                found = scorer.score(model, inputs, rollouts, numbers).log_probs
                grpo(found, known[numbers], advantages[numbers]).div(mask.sum()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    tokens = len(prompt.tokens["input_ids"])
    return {**clock.figures(settings.warm), "prompt": tokens, "peak": memory(peak=True), "over": memory(True) - before}


def grpo(log_probs: Any, known: Any, advantages: Any) -> Any:
    """Sum of the loss at the first update, where the ratio is 1, with a KL term (k3)."""
    ratio = (log_probs - log_probs.detach()).exp()
    log_ratio = known - log_probs
    return (BETA * (log_ratio.exp() - log_ratio - 1) - ratio * advantages[:, None]).sum()


def run_floor(settings: argparse.Namespace) -> dict[str, float]:
    """The prompt by itself, and the completions by themselves."""
    import torch

    from mllm4d.models.base import reference
    from mllm4d.models.logprobs import hidden_at, token_log_probs
    from mllm4d.train.rollout.engine import answering

    model, _, inputs = load(settings)
    device = next(model.parameters()).device
    words = torch.randint(20, 600, (settings.group, settings.tokens), device=device)
    text = {"input_ids": words, "attention_mask": torch.ones_like(words), "use_cache": False}

    def forward(prompt: Any) -> Any:
        batch = {**inputs.collate([prompt]).to(device).model_inputs(), "use_cache": False}
        last = torch.zeros(batch["input_ids"].shape, dtype=torch.bool, device=device)
        last[:, -1] = True
        states, head = hidden_at(model, text, torch.ones_like(words, dtype=torch.bool))
        return token_log_probs(states, head, words.flatten()).sum() + hidden_at(model, batch, last).states.sum()

    def steps(prompt: Any) -> None:
        batch = inputs.collate([prompt]).to(device).model_inputs()
        with answering(model):
            model(**batch, use_cache=True, logits_to_keep=1)
            cache = None
            for step in range(settings.tokens - 1):
                output = model(input_ids=words[:, step : step + 1], past_key_values=cache, use_cache=True)
                cache = output.past_key_values

    clock = Clock()
    for prompt in prompts(inputs, settings.frames, settings.warm + settings.steps, settings.seed):
        with clock("rollout"):
            steps(prompt)
        with clock("log-probs"), reference(model):
            forward(prompt)
        with clock("update"):
            forward(prompt).backward()
            model.zero_grad()
    return {**clock.figures(settings.warm), "prompt": len(prompt.tokens["input_ids"]), "peak": 0.0, "over": 0.0}


def run_trl(settings: argparse.Namespace) -> dict[str, float]:
    """Steps of TRL's GRPOTrainer."""
    import torch
    from datasets import Dataset
    from PIL import Image
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    model, processor, _ = load(settings)
    clock, sizes = Clock(), []

    class Timed(GRPOTrainer):
        def _generate(self, *arguments: Any, **more: Any) -> Any:
            start = now()
            found = super()._generate(*arguments, **more)
            self.drawn = now() - start
            return found

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = now()
            found = super()._generate_and_score_completions(inputs)
            clock.phases["rollout"].append(self.drawn)
            clock.phases["log-probs"].append(now() - start - self.drawn)
            sizes.append((found["prompt_ids"].shape[1], found["completion_ids"].shape))
            return found

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **more: Any) -> None:
            self.start = now()

        def on_step_end(self, *_: Any, **more: Any) -> None:
            clock.phases["update"].append(
                now() - self.start - clock.phases["rollout"][-1] - clock.phases["log-probs"][-1]
            )

    def reward(completions: list[Any], **more: Any) -> list[float | None]:
        return [float(k % 3) for k in range(len(completions))]

    pixels = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    count = settings.warm + settings.steps
    chat = [{"role": "user", "content": QUESTION}]
    data = Dataset.from_list([{"prompt": chat, "image": Image.fromarray(pixels)} for _ in range(count)])
    before = memory(peak=False)
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            folder,
            per_device_train_batch_size=settings.group,
            num_generations=settings.group,
            max_completion_length=settings.tokens,
            generation_kwargs={"min_new_tokens": settings.tokens},
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=BETA,
            learning_rate=RATE,
            max_steps=count,
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            seed=settings.seed,
        )
        trainer = Timed(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=data,
            processing_class=processor,
            callbacks=[Steps()],
        )
        forget_peak()
        trainer.train()
    assert {tuple(shape) for _, shape in sizes} == {(settings.group, settings.tokens)}, sizes
    over = memory(True) - before
    return {**clock.figures(settings.warm), "prompt": sizes[0][0], "peak": memory(True), "over": over}


WAYS: dict[str, Callable[[argparse.Namespace], dict[str, float]]] = {
    "shared": run_ours,
    "plain": run_ours,
    "floor": run_floor,
    "TRL": run_trl,
}


def run_apart(settings: argparse.Namespace, way: str, frames: int, repeat: int, model: str) -> dict[str, float]:
    """One way, once, in a process of its own."""
    options = {"--way": way, "--frames": str(frames), "--model": model, "--seed": str(settings.seed + repeat)}
    names = ("group", "tokens", "steps", "warm", "budget", "threads")
    options |= {f"--{name}": str(getattr(settings, name)) for name in names}
    command = [sys.executable, __file__, *(word for pair in options.items() for word in pair)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{way}, {frames} frames, failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(title: str, rows: dict[str, list[dict[str, float]]], against: str) -> dict[str, Any]:
    """Print one table; returns its figures, with the ratios of the repeats, run by run."""
    medians = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]} for way, runs in rows.items()
    }
    print(f"\n{title}; processor seconds a step, and {against} / shared, run by run")
    print(
        f"{'':<9}{'prompt':>8}{''.join(f'{name:>12}' for name in (*PHASES, 'step'))}{'peak MiB':>10}{'over model':>12}"
    )
    for way, row in medians.items():
        seconds = "".join(f"{row[name]:>12.3f}" for name in (*PHASES, "step"))
        peak = f"{row['peak']:>10.0f}{row['over']:>12.0f}" if row["peak"] else ""
        print(f"{way:<9}{row['prompt']:>8.0f}{seconds}{peak}")
    ratios = {
        name: [theirs[name] / ours[name] for theirs, ours in zip(rows[against], rows["shared"], strict=True)]
        for name in (*PHASES, "step")
    }
    print(f"{'ratio':<17}" + "".join(f"{statistics.median(values):>12.2f}" for values in ratios.values()))
    print(f"{'  least, most':<17}" + "".join(f"{f'{min(v):.2f}-{max(v):.2f}':>12}" for v in ratios.values()))
    return {"medians": medians, "ratios": ratios}


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=12, help="completions of the prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of each completion")
    parser.add_argument("--steps", type=int, default=5, help="timed, of each run")
    parser.add_argument("--warm", type=int, default=2, help="steps before")
    parser.add_argument("--budget", type=int, default=16384, help="tokens of a micro-batch")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    # What the processes of single runs get.
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        import torch

        torch.set_num_threads(settings.threads)
        print(json.dumps(WAYS[settings.way](settings)))
        return
    plans: list[tuple[int, Sequence[str], str]] = [(frames, ("shared", "plain", "floor"), "plain") for frames in FRAMES]
    plans.append((SHORT, ("shared", "TRL", "floor"), "TRL"))
    result: dict[str, Any] = {
        name: getattr(settings, name) for name in ("group", "tokens", "steps", "repeats", "threads")
    }
    for frames, ways, against in plans:
        rows: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        with tempfile.TemporaryDirectory() as folder:
            for repeat in range(settings.repeats):
                for way in ways:
                    rows[way].append(run_apart(settings, way, frames, repeat, f"{folder}/tiny"))
        result[str(frames)] = show(f"{frames} frames, {settings.group} x {settings.tokens} tokens", rows, against)
    if settings.out:
        settings.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
