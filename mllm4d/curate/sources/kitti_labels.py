"""KITTI tracking's label files: one object in one frame a line."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm4d.curate.sources.kitti_files import read_lines, read_numbers, read_whole
from mllm4d.schema import InputError

COLUMNS = (17, 18)
"""Words in a line of a label file: without and with a score."""


@dataclass(frozen=True)
class Label:
    """One object in one frame, as the label file has it.

    Attributes:
        frame: Number of the frame.
        track: Number of the object in the sequence.
        kind: KITTI's name of its class.
        truncated: 0 (wholly in the image), 1 or 2.
        occluded: 0 (wholly visible), 1 (partly), 2 (largely hidden) or 3 (unknown).
        center: The box's middle, rectified camera axes, metres.
        size: Length, height and width: the edges along the box's x, y and z axes, metres.
        yaw: Turn of the box about the camera's y axis (down), radians; at 0 the box's axes are the camera's.
    """

    frame: int
    track: int
    kind: str
    truncated: int
    occluded: int
    center: tuple[float, float, float]
    size: tuple[float, float, float]
    yaw: float


def read_labels(path: Path, frames: Collection[int]) -> list[Label]:
    """Read the objects in some frames of a label file; ``DontCare`` regions are left out.

    A line holds: frame, track, class, truncated, occluded, alpha, 2-D box (left, top, right, bottom, pixels), height,
    width, length (metres), middle of the box's bottom (x, y, z, metres), yaw, and in results a score. The middle of the
    box lies half a height above the bottom, towards smaller y.

    Raises:
        InputError: The file cannot be read, a line of these frames has another form, or names a track twice in a frame.
    """
    found: dict[tuple[int, int], Label] = {}
    for number, line in enumerate(read_lines(path), start=1):
        where, words = f"{path}, line {number}", line.split()
        if not words:
            continue
        if read_whole(words[0], f"{where}: the frame number") not in frames:
            continue
        if len(words) not in COLUMNS:
            raise InputError(f"{where}: expected 17 columns (or 18 with a score), found {len(words)}")
        if words[2] == "DontCare":
            continue
        label = _label(words, where)
        if (label.frame, label.track) in found:
            raise InputError(f"{where}: track {label.track} is in frame {label.frame} twice")
        found[label.frame, label.track] = label
    return list(found.values())


def last_frame(path: Path) -> int:
    """Number of the last frame that a label file speaks of, -1 where it is empty; only its last line is looked at.

    Raises:
        InputError: The file cannot be read, or that line does not begin with a frame number.
    """
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    if not lines:
        return -1
    number, line = lines[-1]
    return read_whole(line.split()[0], f"{path}, line {number}: the frame number")


def _label(words: Sequence[str], where: str) -> Label:
    frame, track, truncated, occluded = (
        read_whole(words[column], f"{where}: {what}")
        for column, what in ((0, "the frame number"), (1, "the track"), (3, "truncated"), (4, "occluded"))
    )
    # Before them stand alpha and the 2-D box, which follow from the 3-D box and the camera.
    height, width, length, x, bottom, z, yaw = read_numbers(words[5:17], 12, where).tolist()[5:]
    if min(height, width, length) <= 0:
        raise InputError(f"{where}: height, width and length must be positive, not {height}, {width}, {length} m")
    center = (x, bottom - height / 2, z)
    return Label(frame, track, words[2], truncated, occluded, center, (length, height, width), yaw)
