"""Labels from stereo reconstruction against exact truth, on clips of the synthetic world.

The reconstruction gets what a stereo camera in the field gives (left, right, calibration, object masks): depth by
SGBM, the camera's path by odometry, objects from mask and depth. Prints, per relation, how often a question is asked,
how often its label agrees with the truth, how often it names the opposite direction, and for distances the median
relative error. The margins decide which relations are asked, from the reconstruction alone.

    python tools/benchmarks/world_agreement.py --clips 20 --out world_agreement.json
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from mllm4d.curate.depth import SGBM
from mllm4d.curate.odometry import StereoOdometry
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.world import World
from mllm4d.geometry.pose import path_rms
from mllm4d.qa.generate import anchor_pairs, measure
from mllm4d.qa.judge import Margins, Relation, judge
from mllm4d.schema import TASKS, Scene

OPPOSITES = {frozenset(pair) for pair in (("left", "right"), ("forward", "backward"), ("closer", "farther"))}
LENIENT = Margins(distance=(0.0, 1e9), displacement=0.0, dominance=0.0, change=0.1, still=0.1)
"""For the truth: the nearest label, however narrow."""


@dataclass(frozen=True)
class Outcome:
    """One relation of one clip: measured and true answers, metres or words; None for what is not asked."""

    task: str
    measured: float | str | None
    truth: float | str | None


def compare(measured: Scene, truth: Scene, pairs: Sequence[tuple[int, int]], margins: Margins) -> list[Outcome]:
    """Every relation that both scenes hold.

    Args:
        measured: The reconstruction.
        truth: The exact scene, of the same clip.
        pairs: Anchors to look at.
        margins: When the reconstruction's answer is asked for.

    Returns:
        One outcome a relation.
    """
    outcomes = []
    for i, j in pairs:
        exact = {_identity(relation): relation for relation in measure(truth, i, j)}
        for relation in measure(measured, i, j, margins.percentile):
            if (known := exact.get(_identity(relation))) is not None:
                outcomes.append(Outcome(relation.task, _answer(relation, margins), _answer(known, LENIENT)))
    return outcomes


def _identity(relation: Relation) -> tuple[str, int | None]:
    return relation.task, relation.track.id if relation.track else None


def _answer(relation: Relation, margins: Margins) -> float | str | None:
    answer = judge(relation, margins)
    return None if isinstance(answer, str) else answer[0] if answer[1] is None else answer[1]


def summarise(outcomes: Sequence[Outcome]) -> dict[str, dict[str, float | int]]:
    """Count per task.

    Args:
        outcomes: From ``compare``.

    Returns:
        Task to ``n`` relations, how many are ``asked``, ``agreement`` (a distance agrees when it would choose the right
        option), for words how many name the ``opposite``, for distances the ``median relative error``.
    """
    by_task: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.task].append(outcome)
    table: dict[str, dict[str, float | int]] = {}
    for task in (task for task in TASKS if by_task[task]):
        asked = [o for o in by_task[task] if o.measured is not None and o.truth is not None]
        row: dict[str, float | int] = {"n": len(by_task[task]), "asked": len(asked)}
        words = [o for o in asked if isinstance(o.measured, str)]
        if words:
            row["agreement"] = sum(o.measured == o.truth for o in words) / len(words)
            row["opposite"] = sum(frozenset((o.measured, o.truth)) in OPPOSITES for o in words)
        numbers = [(o.measured, o.truth) for o in asked if isinstance(o.measured, float) and isinstance(o.truth, float)]
        if numbers:
            # An option is half a step of the ladder away from being confused with its neighbour.
            step = math.log(Margins().ladder) / 2
            row["agreement"] = sum(t > 0 and abs(math.log(m / t)) < step for m, t in numbers) / len(numbers)
            row["median relative error"] = statistics.median(abs(m - t) / t if t else math.inf for m, t in numbers)
        table[task] = row
    return table


def run(clips: int, seed: int = 0) -> dict[str, object]:
    """Reconstruct clips and compare; returns the table and the camera's path errors (metres, RMS per clip)."""
    field_camera, oracle = World(seed=seed, truth=False), World(seed=seed, truth=True)
    outcomes: list[Outcome] = []
    path_errors = []
    generator = torch.Generator().manual_seed(seed)
    for key in tqdm(field_camera.keys(clips), "clips"):
        measured = build_scene(field_camera.load(key), SGBM(), StereoOdometry())
        truth = build_scene(oracle.load(key), None, None)
        path_errors.append(path_rms(measured.camera.world_to_camera, truth.camera.world_to_camera))
        pairs = anchor_pairs(len(truth.times), 12, generator)
        outcomes += compare(measured, truth, pairs, Margins(percentile=5.0))
    return {"clips": clips, "seed": seed, "path_rms_m": path_errors, "relations": summarise(outcomes)}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    result = run(arguments.clips, arguments.seed)
    errors = result["path_rms_m"]
    print(f"camera path: median {statistics.median(errors):.3f} m RMS, worst {max(errors):.3f} m")  # type: ignore
    print(f"{'relation':<34}{'n':>7}{'asked':>8}{'agree %':>9}{'opposite':>10}{'median rel. error %':>21}")
    for task, row in result["relations"].items():  # type: ignore[attr-defined]
        words = f"{100 * row['agreement']:>9.1f}" if "agreement" in row else f"{'-':>9}"
        words += f"{row.get('opposite', '-'):>10}"
        error = f"{100 * row['median relative error']:>21.1f}" if "median relative error" in row else f"{'-':>21}"
        print(f"{task:<34}{row['n']:>7}{row['asked']:>8}{words}{error}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
