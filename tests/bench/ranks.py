"""Answers for metrics, and a program that scores them on as many ranks as it is started on."""

import json
import sys
from pathlib import Path

from mllm4d.bench.metrics import CenterError, GroupedAccuracy, MeanRelativeAccuracy, MultipleChoiceAccuracy
from mllm4d.bench.suites.records import RELATIVE, BenchQuestion
from mllm4d.schema import Question

CAMERA, OBJECT = "camera_relative_direction", "object_relative_direction"
OPTIONS = {"A": "left", "B": "right", "C": "forward", "D": "backward"}
SAID = ["A", "B", "no idea", "<answer>D</answer>", "forward", "A", "C"]
TRUTH = "ABADCBC"


def choice(number, task, answer):
    solution = {"camera_center": [[0, 0, 0], [0, 0, 1]], "object_center": None}
    return Question(f"q/{number}", task, "?", OPTIONS, answer, OPTIONS[answer], None, (0, 1), None, solution, None)


def number(name, value):
    return BenchQuestion(f"n/{name}", "video", "How large?", {}, frozenset(), value, RELATIVE, "size")


def scores_of(numbers):
    """The scores of some of the answers, one in each update."""
    metrics = {
        "choice": MultipleChoiceAccuracy(),
        "groups": GroupedAccuracy(needed=2),
        "numbers": MeanRelativeAccuracy(["size"]),
        "centers": CenterError(),
    }
    for k in numbers:
        question = choice(k, (CAMERA, OBJECT)[k % 2], TRUTH[k])
        metrics["choice"].update([SAID[k]], [question])
        metrics["groups"].update([SAID[k]], [question], [f"group {k // 3}"])
        metrics["numbers"].update([f"{k} m"], [number(k, 5.0)])
        lines = f"- Camera Center: [0, 0, {k}]\n- Object Center: null\n" * 2
        metrics["centers"].update([f"<thinking>\n{lines}</thinking>"], [question])
    return {name: {k: float(v) for k, v in metric.compute().items()} for name, metric in metrics.items()}


def main():
    import torch

    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    # As DistributedSampler deals seven rows: the last batch is filled with the first row.
    found = {
        "in turns": scores_of([0, 2, 4, 6] if rank == 0 else [1, 3, 5, 0]),
        "all on one rank": scores_of(range(7) if rank == 0 else ()),
    }
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
