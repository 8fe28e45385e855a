"""What RFT does to a model: the reward of what it samples over the steps, and its accuracy on clips that it never saw.

Each configuration is trained with each seed from the same model for so many minutes, then asked the test split, with
the likeliest answer. The model itself is asked first. A gain is paired by question; its interval and p-value draw clips
as wholes. Several runs at a time (``--jobs``) have one thread each and share the cores.

    python -m mllm4d fit -c configs/quickstart.yaml
    python -m mllm4d export -c runs/quickstart/logs/config.yaml --ckpt_path runs/quickstart/checkpoints/last.ckpt \
--out runs/quickstart/model
    python -m tools.benchmarks.rft_learning --model runs/quickstart/model --shards runs/quickstart/shards

TensorBoard shows the curves: ``tensorboard --logdir runs/rft_learning``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 50
"""Steps at the beginning and at the end over which rewards are averaged."""


def mllm4d(folder: Path, log: str, *words: Any) -> None:
    """Run a verb in a folder; its output goes to a file there.

    Raises:
        SystemExit: It failed; the message has the end of its output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mllm4d", *map(str, words)]
    with open(folder / log, "w") as output:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        raise SystemExit(f"{folder / log}: {' '.join(command)} failed:\n" + (folder / log).read_text()[-2000:])


def ask(folder: Path, settings: argparse.Namespace, *words: Any) -> Path:
    """Ask the test split; returns the folder of the results."""
    bench = ["test", "-c", ROOT / "configs/bench/quickstart.yaml", "--model.base.path", settings.model.resolve()]
    shards = settings.shards.resolve()
    mllm4d(folder, "test.log", *bench, "--data.suite.shards", shards, "--model.out", "bench", *words)
    return folder / "bench"


def train(config: Path, seed: int, settings: argparse.Namespace) -> dict[str, Any]:
    """One run: trained, asked, and its rewards read from TensorBoard's file."""
    folder = settings.runs / f"{config.stem}-{seed}"
    words = ["--seed_everything", seed, "--model.base.path", settings.model.resolve()]
    words += ["--data.shards", settings.shards.resolve(), "--data.seed", seed]
    words += ["--trainer.max_epochs", 1000]
    if settings.jobs > 1:
        words += ["--trainer.devices", 1, "--data.batch_size", settings.prompts]
    words += ["--trainer.max_time", f"00:00:{settings.minutes:02d}:00", *settings.more]
    mllm4d(folder, "fit.log", "fit", "-c", config.resolve(), *words)
    (checkpoint,) = folder.glob("runs/*/checkpoints/last.ckpt")
    results = ask(folder, settings, "--ckpt_path", checkpoint.resolve())
    rewards = curve(next(folder.glob("runs/*/logs")))
    return {"config": config.stem, "seed": seed, "results": str(results), **rewards}


def curve(logs: Path) -> dict[str, Any]:
    """Mean rewards of the first and of the last steps, and how many steps there were."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs)).Reload()
    rewards = [event.value for event in events.Scalars("train/reward/mean")]
    if len(rewards) < 2 * STEPS:
        raise SystemExit(f"{logs}: {len(rewards)} steps; expected at least {2 * STEPS}: give it more --minutes")
    first, last = statistics.fmean(rewards[:STEPS]), statistics.fmean(rewards[-STEPS:])
    return {"steps": len(rewards), "first": first, "last": last}


def gain(before: Path, after: Path) -> dict[str, Any]:
    """What a run has gained on the test split."""
    from mllm4d.bench.report.records import read_run
    from mllm4d.bench.statistics import compare

    old, new = read_run(before, "before"), read_run(after, "after")
    scores = {sample.id: sample.score for sample in new.samples}
    pairs = [(sample.score, scores[sample.id]) for sample in old.samples]
    first, second = ([pair[k] for pair in pairs] for k in (0, 1))
    found = compare(first, second, [sample.video for sample in old.samples])
    return {
        "before": found.score_a,
        "after": found.score_b,
        "low": found.ci_low,
        "high": found.ci_high,
        "p": found.p_bootstrap,
        "words": words_of(after) - words_of(before),
    }


def words_of(folder: Path) -> float:
    """Mean accuracy of the tasks that are answered in words; NaN where one of them was not asked."""
    official = json.loads((folder / "results.json").read_text())["scores"]["official"]
    return float(official.get("mean_in_words", "nan"))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a line a run, and mean and spread (standard deviation over the seeds) of each configuration."""
    print(
        f"{'configuration':<20}{'seed':>5}{'steps':>6}{'reward: first':>15}{'last':>7}{'before':>8}{'after':>7}", end=""
    )
    print(f"{'gain':>8}{'95 % interval':>18}{'p':>7}{'gain in words':>15}")
    for row in rows:
        print(f"{row['config']:<20}{row['seed']:>5}{row['steps']:>6}{row['first']:>15.3f}{row['last']:>7.3f}", end="")
        change = row["after"] - row["before"]
        print(f"{row['before']:>8.3f}{row['after']:>7.3f}{change:>+8.3f}", end="")
        print(f"{row['low']:>+9.3f} to {row['high']:<+6.3f}{row['p']:>6.3f}{row['words']:>+15.3f}")
    for config in dict.fromkeys(row["config"] for row in rows):
        own = [row for row in rows if row["config"] == config]
        for name, values in (
            ("reward", [row["last"] - row["first"] for row in own]),
            ("accuracy", [row["after"] - row["before"] for row in own]),
            ("accuracy in words", [row["words"] for row in own]),
        ):
            spread = f"{statistics.stdev(values):.3f}" if len(values) > 1 else "unknown"
            print(f"{config}: {name} {statistics.fmean(values):+.3f}, spread {spread}, {len(values)} seeds")


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model to begin with")
    parser.add_argument("--shards", type=Path, required=True, help="with splits r1 and test")
    parser.add_argument("--configs", type=Path, nargs="+", default=[ROOT / "configs/rft_quickstart.yaml"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=int, default=15, help="of each run, at most 59")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--prompts", type=int, default=32, help="of a step, where runs share the machine")
    parser.add_argument("--runs", type=Path, default=Path("runs/rft_learning"), help="folder of the runs")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="further words for `fit`")
    settings = parser.parse_args()
    before = ask(settings.runs / "before", settings)
    with ThreadPoolExecutor(settings.jobs) as pool:
        configs, seeds = zip(*product(settings.configs, settings.seeds), strict=True)
        rows = list(pool.map(partial(train, settings=settings), configs, seeds))
    rows = [{**row, **gain(before, Path(row["results"]))} for row in rows]
    show(rows)
    if settings.out:
        settings.out.write_text(
            json.dumps({"minutes": settings.minutes, "jobs": settings.jobs, "runs": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
