"""Evaluation of a benchmark: our runner against the released way, questions per second.

Both answer the questions of the same clips (``mllm4d curate`` of the synthetic world) with the same random Qwen3-VL in
float32, greedily, with the same prompts and all frames of each clip.

- one by one: as released evaluation scripts do: for every question open the video file, decode it, run the model's own
  processor, and ``generate`` with a batch of one.
- ours: what ``python -m mllm4d test`` runs: each clip decoded and encoded once for all its questions, read once by the
  model, the questions answered in batches. In one process, and with processes of their own that decode and encode.

Once with one question a clip, where there is nothing to share, and once with all that curation has asked. Each run is a
process of its own, and the ways take turns. The clock runs from the loaded model until all answers are there; for ours
"written" is when scores, intervals, blind baselines and files are there as well. Processor time is that of all
processes together, until then. A random model seldom ends its answer, so that all answers are ``--tokens`` long.
What both said is compared word by word, and what differs is printed.

    python tools/benchmarks/bench.py --clips 200 --repeats 3 --out bench.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

GOAL = 3.0
"""Times the questions a second of the released way."""

ONE_BY_ONE = "one by one"
WORKERS = {"ours, one process": 0, "ours, two readers": 2}
"""Our ways: processes that decode and encode."""
WAYS = (ONE_BY_ONE, *WORKERS)

SETS = ("one question a clip", "all questions of a clip")


def make_sets(folder: Path, settings: argparse.Namespace) -> dict[str, Path]:
    """Shards of one question a clip and of all, and the videos as files, as benchmarks are released."""
    from mllm4d.curate.run import Curation
    from mllm4d.curate.sources.world import World
    from mllm4d.shards import read_index, read_shard, write_index, write_shards

    world = World(width=settings.side, height=settings.side, frames=settings.frames, fps=8.0, seed=settings.seed)
    one, whole = (folder / name.split()[0] for name in SETS)
    made: dict[str, Any] = {
        "clips": settings.clips,
        "per_clip": settings.per_task,
        "splits": {"test": 1.0},
        "workers": 2,
    }
    Curation(world, str(whole), **made).run()
    samples = [s for shard in read_index(whole).split("test") for s in read_shard(whole / shard.path)]
    one.mkdir()
    # Questions stand task by task: another task for each clip.
    single = (replace(s, questions=(s.questions[k % len(s.questions)],)) for k, s in enumerate(samples) if s.questions)
    write_index(one, write_shards(single, one, "test", 64), {})
    (folder / "videos").mkdir()
    for sample in samples:
        (folder / "videos" / f"{sample.key}.mp4").write_bytes(sample.video)
    return {SETS[0]: one, SETS[1]: whole}


def one_by_one(settings: argparse.Namespace, answers: dict[str, str]) -> dict[str, float]:
    """Answer question by question, as released scripts do.

    Args:
        settings: Of the command line.
        answers: Gets what the model said, by the questions' ids.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.video_utils import VideoMetadata

    from mllm4d.bench.suites.own import MLLM4DBench
    from mllm4d.video import decode

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForImageTextToText.from_pretrained(settings.model, dtype="float32")
    model = model.to(device).eval()
    processor = AutoProcessor.from_pretrained(settings.model)
    suite = MLLM4DBench(shards=settings.shards)
    questions = suite.questions()
    start, used = time.perf_counter(), processor_time()
    for question in questions:
        frames, times = decode(Path(settings.videos) / f"{question.video}.mp4")
        rate = (len(times) - 1) / float(times[-1] - times[0])
        places = list(range(len(times)))
        about = VideoMetadata(len(times), fps=rate, duration=len(times) / rate, frames_indices=places)
        content = [{"type": "video"}, {"type": "text", "text": suite.prompt(question)}]
        turns = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        video = {"videos": [frames.permute(0, 3, 1, 2)], "video_metadata": [about], "do_sample_frames": False}
        inputs = processor(text=[text], **video, return_tensors="pt").to(device)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=settings.tokens, do_sample=False)
        said = tokens[0, inputs["input_ids"].shape[1] :]
        answers[question.id] = processor.tokenizer.decode(said, skip_special_tokens=True)
    seconds = time.perf_counter() - start
    return {"answered": seconds, "written": seconds, "processor": processor_time() - used}


def ours(settings: argparse.Namespace, answers: dict[str, str]) -> dict[str, float]:
    """Answer with our runner.

    Args:
        settings: Of the command line.
        answers: Gets what the model said, by the questions' ids.
    """
    import lightning

    from mllm4d.bench.answering import Generation
    from mllm4d.bench.data import SuiteData
    from mllm4d.bench.module import Bench
    from mllm4d.bench.suites.own import MLLM4DBench
    from mllm4d.models.base import BaseModel
    from mllm4d.models.inputs import VideoSettings

    marks: dict[str, float] = {}

    class Timed(Bench):
        def begin(self) -> Any:
            # The model is there, the readers are not.
            marks.update(start=time.perf_counter(), used=processor_time())
            return super().begin()

        def on_test_epoch_end(self) -> None:
            marks["answered"] = time.perf_counter()
            super().on_test_epoch_end()
            marks["written"] = time.perf_counter()

    with tempfile.TemporaryDirectory() as out:
        answering = Generation(max_new_tokens=settings.tokens, batch_size=settings.batch)
        video = VideoSettings(frames=settings.frames)
        module = Timed(BaseModel(settings.model, dtype="float32"), f"{out}/run", answering, video, text_only=False)
        data = SuiteData(MLLM4DBench(shards=settings.shards), workers=WORKERS[settings.way])
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        lightning.Trainer(devices=1, **quiet).test(module, data, verbose=False)
        used = processor_time() - marks["used"]
        lines = (Path(out) / "run" / "samples.jsonl").read_text().removesuffix("\n").split("\n")
        answers.update({line["id"]: line["response"] for line in map(json.loads, lines)})
    seconds = {name: marks[name] - marks["start"] for name in ("answered", "written")}
    return {**seconds, "processor": used}


def processor_time() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in usage)


def run_one(settings: argparse.Namespace) -> dict[str, Any]:
    """One way, once, in this process."""
    import torch

    torch.set_num_threads(settings.threads)
    answers: dict[str, str] = {}
    figures = (one_by_one if settings.way == ONE_BY_ONE else ours)(settings, answers)
    return {**figures, "answers": answers}


def run_apart(settings: argparse.Namespace, folder: Path, shards: Path, way: str) -> dict[str, Any]:
    """One way, once, in a process of its own."""
    result = folder / "result.json"
    names = ("frames", "tokens", "batch", "threads")
    options = {f"--{name}": str(getattr(settings, name)) for name in names}
    options |= {"--way": way, "--shards": str(shards), "--model": str(folder / "tiny"), "--out": str(result)}
    options["--videos"] = str(folder / "videos")
    command = [sys.executable, __file__, *(word for pair in options.items() for word in pair)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    return json.loads(result.read_text())


def disagreements(first: Mapping[str, str], second: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Id and both texts of every question that is answered differently, or by one way alone."""
    ids = dict.fromkeys([*first, *second])
    pairs = [(id, first.get(id, "(no answer)"), second.get(id, "(no answer)")) for id in ids]
    return [pair for pair in pairs if pair[1] != pair[2]]


def summarise(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Medians over the repeats, ratios within each repeat, and where answers differ."""
    base = runs[ONE_BY_ONE]
    count = len(base[0]["answers"])
    table: dict[str, Any] = {"questions": count}
    for way, done in runs.items():
        row: dict[str, Any] = {}
        for name in ("answered", "written", "processor"):
            row[f"questions a second, {name}"] = statistics.median(count / run[name] for run in done)
            # Within a repeat: what others do on the machine changes from one to the next.
            row[f"ratio, {name}"] = statistics.median(a[name] / b[name] for a, b in zip(base, done, strict=True))
        row["all"] = [{k: v for k, v in run.items() if k != "answers"} for run in done]
        row["disagreements"] = disagreements(base[0]["answers"], done[0]["answers"])
        row["changed between repeats"] = sum(run["answers"] != done[0]["answers"] for run in done)
        table[way] = row
    return table


def show(name: str, table: Mapping[str, Any], clips: int) -> None:
    """Print one table."""
    count = table["questions"]
    print(f"\n{name}: {count} questions about the {clips} clips that have any ({count / clips:.1f} each)")
    print(f"{'':<20}{'q/s':>9}{'ratio':>8}{'q/s, written':>14}{'ratio':>8}{'q/CPU s':>10}{'ratio':>8}{'differ':>8}")
    for way in WAYS:
        row = table[way]
        cells = [
            f"{row[f'questions a second, {part}']:>{width}.2f}{row[f'ratio, {part}']:>8.2f}"
            for part, width in (("answered", 9), ("written", 14), ("processor", 10))
        ]
        print(f"{way:<20}{''.join(cells)}{len(row['disagreements']):>8}")
    for way in WORKERS:
        reached = table[way]["ratio, written"]
        print(f"{way}: {reached:.2f} times the released way; goal {GOAL:.0f}: {'met' if reached >= GOAL else 'MISSED'}")
        for id, first, second in table[way]["disagreements"]:
            print(f"  {id}: {ONE_BY_ONE} said {first!r}, {way} {second!r}")


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = partial(parser.add_argument, type=int)
    number("--clips", default=200)
    number("--repeats", default=3)
    number("--per-task", default=3, help="most questions of one task about a clip; configs/curate/world.yaml has 3")
    number("--frames", default=16)
    number("--side", default=128, help="of a frame, pixels")
    number("--tokens", default=8, help="of an answer")
    number("--batch", default=16, help="questions that ours answers together")
    number("--threads", default=1)
    number("--seed", default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    # What the processes of single runs get.
    for name in ("--way", "--shards", "--videos", "--model"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        settings.out.write_text(json.dumps(run_one(settings)))
        return
    from mllm4d.models.tiny import build_tiny

    names = ("clips", "repeats", "per_task", "frames", "side", "tokens", "batch", "threads", "seed")
    result: dict[str, Any] = {name: getattr(settings, name) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Two frames a step, as in the large models.
        build_tiny(folder / "tiny", settings.seed, temporal_patch=2)
        for name, shards in make_sets(folder, settings).items():
            runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
            for repeat in range(settings.repeats):
                for way in WAYS[:: 1 if repeat % 2 == 0 else -1]:
                    runs[way].append(run_apart(settings, folder, shards, way))
            result[name] = summarise(runs)
            # Of one question a clip there are as many as clips that have any.
            show(name, result[name], result[SETS[0]]["questions"])
    if settings.out:
        settings.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
