"""How fast clips reach the trainer, against the least that anyone has to do: decoding them.

    python tools/benchmarks/streaming.py --out streaming.json

Makes a set of shards, and reads it in turns, each way ``--repeats`` times:

- decode only: two processes that read each clip's bytes and decode them, nothing else (the floor);
- decode and preprocess: the same, and the model's preprocessing of all the clip's questions; what a DataModule adds to
  this is its own doing;
- ours: the DataModule with two workers, the tiny model's preprocessing, batches put together; pixels are bytes, which
  the model's device makes floats of;
- ours, as floats: the same, and the floats made here, each clip as often as the padded batch has questions about it;
- one sample a question: the same, but every question is a clip of its own, as in the original's JSON files;
- Hugging Face datasets, where installed: its WebDataset reader over the same tars in a DataLoader of two workers, the
  same decoder and preprocessing, one sample a question.

A sample is a question. A figure is wall-clock, the median over the repeats: run it on a machine that does nothing else.
Beside it the processor time of all processes together, which says less of waiting, and more where others compute too.
Then: memory of this process and its workers over many samples, time to the first batch, time to go on at 90 % of an
epoch.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mllm4d import prompts
from mllm4d.curate.sources.world import World
from mllm4d.data.access import ShardFolder
from mllm4d.data.datamodule import ClipDataModule
from mllm4d.data.encoding import encode_sample
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.tiny import build_processor, build_tokenizer
from mllm4d.schema import Question, Sample
from mllm4d.shards import Index, read_index, write_index, write_shards
from mllm4d.video import decode, encode

WORKERS = 2


@dataclass(frozen=True)
class Setting:
    """What is read: clips, questions of each, frames of a clip and their side in pixels, questions in a batch."""

    clips: int
    per_clip: int
    frames: int
    side: int
    batch_size: int


def make_shards(folder: Path, setting: Setting, single: bool) -> Path:
    """Write clips of the synthetic world, again and again under new names; ``single`` gives each question its own."""
    folder.mkdir(parents=True)
    world = World(width=setting.side, height=setting.side, frames=setting.frames, fps=4.0)
    loaded = [world.load(key) for key in world.keys(min(8, setting.clips))]
    films = [(encode(clip.frames, clip.times), clip.times.tolist()) for clip in loaded]

    def samples() -> Iterator[Sample]:
        for number in range(setting.clips):
            film, times = films[number % len(films)]
            questions = tuple(_question(f"clip-{number:06d}", n) for n in range(setting.per_clip))
            sample = Sample(f"clip-{number:06d}", film, {"fps": 4.0, "times": times}, questions)
            if not single:
                yield sample
            for n, question in enumerate(questions if single else ()):
                yield replace(sample, key=f"{sample.key}-{n}", questions=(question,))

    write_index(folder, write_shards(samples(), folder, "train", 64), {})
    return folder


def _question(clip: str, number: int) -> Question:
    return Question(
        id=f"{clip}/{number:03d}",
        task="camera_absolute_distance",
        question="How far did the camera move from 0.0 s to 1.5 s?",
        options={"A": "0.5 m", "B": "1.3 m", "C": "2.1 m", "D": "5.0 m"},
        answer="ABCD"[number % 4],
        answer_value=1.3,
        unit="m",
        anchors=(0, 1),
        object=None,
        solution={"camera_center": None, "object_center": None},
        reasoning=None,
    )


class _Decoded(IterableDataset):
    """The floor: each clip's bytes are read and decoded, and encoded where there are ``inputs``."""

    def __init__(self, folder: Path, inputs: VideoInputs | None = None) -> None:
        self.folder, self.index, self.inputs = ShardFolder(str(folder)), read_index(folder), inputs

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        places = [(shard, clip) for shard in self.index.shards for clip in range(len(shard.keys))]
        for shard, clip in places[worker.id :: worker.num_workers] if worker else places:
            sample = self.folder.read(shard, clip)
            if self.inputs is None:
                decode(sample.video)
            else:
                encode_sample(sample, self.inputs, prompts.letter, range(len(sample.questions)))
            yield len(sample.questions)


class _HuggingFace(IterableDataset):
    """The same tars by Hugging Face datasets, with our decoder and preprocessing."""

    def __init__(self, folder: Path, inputs: VideoInputs) -> None:
        self.files, self.inputs = sorted(map(str, folder.glob("*.tar"))), inputs

    def __iter__(self) -> Iterator[Any]:
        from datasets import Video, load_dataset

        # It divides the tars among the workers by itself.
        rows = load_dataset("webdataset", data_files={"train": self.files}, split="train", streaming=True)
        for row in rows.cast_column("mp4", Video(decode=False)):
            frames, times = decode(row["mp4"]["bytes"])
            for entry in row["qa.json"]:
                dialogue = prompts.letter(Question.from_dict(entry, ""))
                yield self.inputs.encode(frames, times, 4.0, [dialogue.prompt], [dialogue.target], [entry["id"]])[0]


def decode_only(folder: Path, setting: Setting, inputs: VideoInputs) -> int:
    """Samples that came."""
    return sum(DataLoader(_Decoded(folder), batch_size=None, num_workers=WORKERS, collate_fn=_same))


def preprocess_only(folder: Path, setting: Setting, inputs: VideoInputs) -> int:
    """Samples that came."""
    return sum(DataLoader(_Decoded(folder, inputs), batch_size=None, num_workers=WORKERS, collate_fn=_same))


def through_module(folder: Path, setting: Setting, inputs: VideoInputs) -> int:
    """Samples that came."""
    return sum(len(batch.questions) for batch in _module(folder, setting, inputs).train_dataloader())


def as_floats(folder: Path, setting: Setting, inputs: VideoInputs) -> int:
    """Samples that came."""
    count = 0
    for batch in _module(folder, setting, inputs).train_dataloader():
        batch.inputs.model_inputs()
        count += len(batch.questions)
    return count


def through_datasets(folder: Path, setting: Setting, inputs: VideoInputs) -> int:
    """Samples that came."""
    loader = DataLoader(
        _HuggingFace(folder, inputs), batch_size=setting.batch_size, num_workers=WORKERS, collate_fn=inputs.collate
    )
    return sum(len(batch.ids) for batch in loader)


def _same(item: Any) -> Any:
    return item


def _module(folder: Path, setting: Setting, inputs: VideoInputs) -> ClipDataModule:
    data = ClipDataModule(str(folder), batch_size=setting.batch_size, workers=WORKERS, inputs=inputs)
    data.setup()
    return data


def _timed(work: Callable[[], int]) -> tuple[int, float, float]:
    """Samples, seconds, and seconds of processor time of this process and those that it started and that ended."""
    start, used = time.perf_counter(), _processor_time()
    count = work()
    gc.collect()  # ends the workers
    return count, time.perf_counter() - start, _processor_time() - used


def _processor_time() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in usage)


def memory() -> float:
    """Memory of this process and those it started, MiB; what they share counts once (PSS)."""
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in [me, *me.children(recursive=True)]) / 2**20


def memory_over(folder: Path, setting: Setting, inputs: VideoInputs, samples: int) -> dict[str, float]:
    """Memory in the first and the second half of the samples, epoch after epoch, once the buffers have been filled.

    It rises and falls with what is under way, so that single readings say little: medians of fifty.
    """
    loader = _module(folder, setting, inputs).train_dataloader()
    seen, readings = 0, list[float]()
    while seen < samples:
        for batch in loader:
            seen += len(batch.questions)
            # From a tenth on.
            if seen >= samples * (0.1 + 0.9 * len(readings) / 100):
                readings.append(memory())
            if seen >= samples:
                break
    halves = readings[: len(readings) // 2], readings[len(readings) // 2 :]
    first, second = map(statistics.median, halves)
    return {"first half, MiB": first, "second half, MiB": second, "most, MiB": max(readings)}


def starts(folder: Path, setting: Setting, inputs: VideoInputs) -> dict[str, float]:
    """Seconds from the folder to the first batch of an epoch, and to the first after 90 % of it."""
    found = {}
    for name, share in (("first batch", 0.0), ("first batch at 90 %", 0.9)):
        start = time.perf_counter()
        loader = _module(folder, setting, inputs).train_dataloader()
        steps = len(loader)
        loader._position = lambda steps=steps, share=share: (0, int(share * steps))
        iterator = iter(loader)
        next(iterator)
        found[f"{name}, s"] = time.perf_counter() - start
        iterator.close()  # type: ignore[attr-defined]
    return found


def run(setting: Setting, repeats: int, samples: int, folder: Path) -> dict[str, Any]:
    """All figures; ``folder`` is a new one for the shards."""
    torch.set_num_threads(1)
    inputs = VideoInputs(build_processor(build_tokenizer()), VideoSettings(frames=setting.frames))
    shared = make_shards(folder / "shared", setting, single=False)
    single = make_shards(folder / "single", setting, single=True)
    ways: dict[str, Callable[[], int]] = {
        "decode only": lambda: decode_only(shared, setting, inputs),
        "decode and preprocess": lambda: preprocess_only(shared, setting, inputs),
        "ours": lambda: through_module(shared, setting, inputs),
        "ours, as floats": lambda: as_floats(shared, setting, inputs),
        "one sample a question": lambda: through_module(single, setting, inputs),
    }
    if find_spec("datasets"):
        ways["Hugging Face datasets"] = lambda: through_datasets(shared, setting, inputs)
    else:
        print("Hugging Face datasets is not installed: left out")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    costs: dict[str, list[float]] = {name: [] for name in ways}
    launches: list[dict[str, float]] = []
    loads: list[float] = []
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            count, seconds, processor = _timed(ways[name])
            assert count == setting.clips * setting.per_clip, (name, count)
            rates[name].append(count / seconds)
            costs[name].append(1000 * processor / count)
        launches.append(starts(shared, setting, inputs))
        loads.append(psutil.getloadavg()[0])
    return {
        "setting": asdict(setting),
        "load average": loads,
        "index": _describe(read_index(shared)),
        "samples a second": {
            name: {
                "median": statistics.median(row),
                "all": row,
                # Of each repeat by itself: what others do on the machine changes from one to the next.
                "over decode only": statistics.median(a / b for a, b in zip(row, rates["decode only"], strict=True)),
                "processor time, ms a sample": statistics.median(costs[name]),
            }
            for name, row in rates.items()
        },
        "start": {name: statistics.median(launch[name] for launch in launches) for name in launches[0]},
        "memory": memory_over(shared, setting, inputs, samples),
    }


def _describe(index: Index) -> dict[str, int]:
    clips: Sequence[int] = [len(shard.keys) for shard in index.shards]
    return {"shards": len(clips), "clips": sum(clips)}


def show(result: dict[str, Any]) -> None:
    """Print the tables."""
    setting = result["setting"]
    print(
        f"\n{setting['clips']} clips of {setting['frames']} frames of {setting['side']}x{setting['side']}, "
        f"{setting['per_clip']} questions each, two workers; load average {min(result['load average']):.1f} to "
        f"{max(result['load average']):.1f}\n\n{'':<26}{'samples/s':>11}{'over decode only':>19}{'processor ms':>15}"
    )
    for name, row in result["samples a second"].items():
        figures = row["median"], row["over decode only"], row["processor time, ms a sample"]
        print("{:<26}{:>11.1f}{:>19.2f}{:>15.2f}".format(name, *figures))
    print()
    for part in ("start", "memory"):
        for name, value in result[part].items():
            print(f"{name:<32}{value:>11.2f}")


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=512)
    parser.add_argument("--per-clip", type=int, default=4)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=10_000, help="over which memory is watched")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    setting = Setting(given.clips, given.per_clip, given.frames, given.side, given.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        result = run(setting, given.repeats, given.samples, Path(folder))
    show(result)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
