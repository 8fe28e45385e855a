"""Files in the released formats of MLLM-4D and VLM4D, with a folder of their videos, to shards.

    python tools/import_released.py sft mllm4d_2m.json --videos FOLDER --out runs/mllm4d_2m --splits train=0.99 val=0.01
    python tools/import_released.py cold_start cold_start.json --videos FOLDER --out runs/cold_start --tasks tasks.yaml
    python tools/import_released.py r1 mllm4d_r1_30k.jsonl --videos FOLDER --out runs/r1 --splits r1=1

Every question needs one of the seven tasks. Our own wordings are known; for others ``--tasks`` names a YAML file that
maps a task to a list of regular expressions, and ``--other`` the task of all that is left. What is left out is counted
by reason, on the terminal and in ``index.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from mllm4d.data.formats import FORMATS
from mllm4d.data.released import ReleasedImport
from mllm4d.schema import TASKS, InputError


def main(argv: list[str] | None = None) -> None:
    """Run the import; exits with one line on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("format", choices=list(FORMATS))
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--videos", required=True, metavar="FOLDER", help="where the videos lie")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder for the shards")
    parser.add_argument("--tasks", metavar="FILE", help="YAML: task to regular expressions in its wordings")
    parser.add_argument("--other", choices=TASKS, help="task of questions whose wording says nothing")
    parser.add_argument("--splits", nargs="+", default=["train=1"], metavar="SPLIT=SHARE")
    parser.add_argument("--frames", type=int, help="keep at most so many frames of a video, encoded anew")
    parser.add_argument("--clips-per-shard", type=int, default=64)
    parser.add_argument("--max-failed", type=float, default=0.05, help="share of videos that may be unusable")
    parser.add_argument("--workers", type=int, default=2, help="threads that read videos")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    settings = vars(arguments)
    try:
        settings["tasks"] = read_tasks(Path(arguments.tasks)) if arguments.tasks else {}
        settings["splits"] = dict(map(read_share, arguments.splits))
        ReleasedImport(**settings).run()
    except InputError as error:
        sys.exit(f"import_released: {error}")


def read_share(text: str) -> tuple[str, float]:
    """``val=0.1`` as ``("val", 0.1)``.

    Raises:
        InputError: It has another form.
    """
    split, _, share = text.partition("=")
    try:
        return split, float(share)
    except ValueError as error:
        raise InputError(f"--splits: {text!r} is not of the form SPLIT=SHARE, such as train=0.9") from error


def read_tasks(path: Path) -> dict[str, list[str]]:
    """A YAML file of tasks and regular expressions.

    Raises:
        InputError: There is none, or it says something else.
    """
    if not path.is_file():
        raise InputError(f"{path}: not found; expected YAML that maps a task to regular expressions")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(texts, list) for texts in content.values()):
        raise InputError(f"{path}: expected a mapping of a task to a list of regular expressions")
    return {str(task): [str(text) for text in texts] for task, texts in content.items()}


if __name__ == "__main__":
    main()
