"""Small benchmarks that are really run: shards, the tiny model, and ways of answering that note, or die."""

import json
import os
import signal
from pathlib import Path

import lightning

from mllm4d.bench.answering import Generation
from mllm4d.bench.data import SuiteData
from mllm4d.bench.likelihood import LetterLikelihood
from mllm4d.bench.module import Bench
from mllm4d.bench.suites.own import MLLM4DBench
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.tiny import TinyQwen3VL
from tests.data.shard_sets import write_set

COUNTS = [3, 1, 2, 4, 1]
"""Questions of each clip: 11 of 5 clips, neither a multiple of 2."""


class Noted(LetterLikelihood):
    """Writes down what it is asked, and dies before a batch, as the kernel would have it."""

    def __init__(self, notes: str, dies_before: int | None = None, batch_size: int = 2):
        super().__init__(batch_size)
        self.notes, self.dies_before, self.batch = Path(notes), dies_before, 0

    def decide(self, model, inputs, rows, heads):
        if self.batch == self.dies_before:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batch += 1
        with self.notes.open("a") as file:
            file.writelines(json.dumps([row.number, bool(row.prompt.vision)]) + "\n" for _, row in rows)
        return super().decide(model, inputs, rows, heads)


def make(root):
    """The shards, with questions of different lengths; the tiny model is made when it is first run."""
    write_set(root / "shards", {"test": COUNTS}, frames=8, size=64, words=3)
    return root


def run(root, out, answering=None, suite=None, trainer=None, model=None, checkpoint=None, **data):
    """Run a benchmark; returns what ``results.json`` holds."""
    suite = suite or MLLM4DBench(shards=str(root / "shards"))
    settings = {"video": VideoSettings(frames=8, max_pixels=4096), **(model or {})}
    base = settings.pop("base", None) or TinyQwen3VL(str(root / "tiny"))
    bench = Bench(base, str(out), answering or Generation(4, batch_size=2), **settings)
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    more = {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": str(out)}
    fit = lightning.Trainer(**{**defaults, **more, **(trainer or {})})
    fit.test(bench, SuiteData(suite, **{"workers": 0, "pool": 3, **data}), ckpt_path=checkpoint, verbose=False)
    return json.loads((Path(out) / "results.json").read_text())


def same_results(one, other):
    """The files of two runs, without what may differ: seconds and paths."""
    found = []
    for folder in (one, other):
        results = json.loads((Path(folder) / "results.json").read_text())
        del results["seconds"], results["settings"]
        samples = (Path(folder) / "samples.jsonl").read_text()
        found.append((results, samples, (Path(folder) / "results.md").read_text()))
    return found[0] == found[1]
