"""Shards to a file in a released format of MLLM-4D or VLM4D, with the videos beside it.

python tools/write_released.py sft runs/world --split train --out runs/world_sft
"""

from __future__ import annotations

import argparse
import sys

from mllm4d.data.formats import FORMATS
from mllm4d.data.release import write_released
from mllm4d.schema import InputError


def main(argv: list[str] | None = None) -> None:
    """Write the file; exits with one line on bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("format", choices=list(FORMATS))
    parser.add_argument("shards", metavar="FOLDER", help="folder with index.json and the shards")
    parser.add_argument("--split", default="train")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder")
    arguments = parser.parse_args(argv)
    try:
        print(write_released(arguments.shards, arguments.split, arguments.format, arguments.out))
    except InputError as error:
        sys.exit(f"write_released: {error}")


if __name__ == "__main__":
    main()
