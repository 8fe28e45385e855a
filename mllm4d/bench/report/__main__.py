"""``python -m mllm4d.bench.report RUN_FOLDER... -c CONFIG --out report.html``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mllm4d.schema import InputError

if TYPE_CHECKING:
    from mllm4d.bench.suites.base import Suite


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page of some runs.

    Args:
        arguments: Of the command line; None takes the process's.

    Returns:
        0, or 2 where the input is unusable.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mllm4d.bench.report", description="Finished runs of the bench side by side, in one HTML file."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_FOLDER", help="with results.json, samples.jsonl")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (%(default)s)")
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        action="append",
        default=[],
        metavar="CONFIG",
        help="the configuration of a run, whose suite knows where the videos are: frames are shown then; one a suite",
    )
    given = parser.parse_args(arguments)
    from mllm4d.bench.report.write import write_report

    try:
        suites = [read_suite(path) for path in given.config]
        print(write_report(given.folders, given.out, suites))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_suite(path: Path) -> Suite:
    """The suite of a configuration of ``python -m mllm4d test``.

    Args:
        path: YAML file.

    Raises:
        InputError: There is no such file, or it names no usable suite.
    """
    from jsonargparse import ArgumentParser
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from mllm4d.bench.suites.base import Suite

    if not path.is_file():
        raise InputError(f"{path}: not found; expected the configuration of a run")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--suite", type=Suite, required=True)
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        suite = config["data"]["init_args"]["suite"]  # type: ignore[index,call-overload]
        return parser.instantiate(parser.parse_object({"suite": suite})).suite
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: names no suite (key 'data.init_args.suite')") from error
    except (OmegaConfBaseException, YAMLError, argparse.ArgumentError) as error:
        raise InputError(f"{path}: key 'data.init_args.suite' is unusable ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
