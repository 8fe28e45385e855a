"""Objects by name: an open-vocabulary detector finds them, SAM 2 follows them through the clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mllm4d.curate.depth import Depth
from mllm4d.curate.finder import ObjectFinder
from mllm4d.curate.learned.detection import Detections, detect, suppress, uncovered
from mllm4d.curate.learned.pretrained import check_model, choose_device, choose_dtype, read_pretrained
from mllm4d.schema import Clip, InputError, Mask

DETECTORS = ("grounding-dino", "mm-grounding-dino", "owlv2", "owlvit")
"""Model types whose output ``detect`` reads."""


@dataclass(frozen=True)
class Found:
    """An object followed through the clip.

    Attributes:
        label: Index of its class.
        score: The detector's, 0 to 1.
        pixels: [T, H, W] bool.
    """

    label: int
    score: float
    pixels: Tensor


class _Loaded(NamedTuple):
    """A model on its device with its processor."""

    model: Any
    processor: Any


@dataclass(frozen=True)
class OpenVocabulary(ObjectFinder):
    """Finds what is named, with a detector on every few frames and SAM 2 in between.

    Boxes of a detection frame that no known object covers are prompts for SAM 2, which follows them to both ends of the
    clip. Objects that came from different detection frames and share their pixels are one.

    Attributes:
        detector: Local folder or hub name of Grounding DINO, MM Grounding DINO, OWL-ViT or OWLv2.
        tracker: Local folder or hub name of SAM 2 (or 2.1) with its video classes.
        classes: What to look for; also the objects' names.
        threshold: Detections with a lower score are dropped. Grounding DINO's authors take 0.35; OWLv2's scores are
            lower, about 0.2.
        detect_every: Frames from one detection to the next.
        nms_iou: Of two boxes in a frame that overlap more, whatever their classes, the better one stays.
        merge_iou: Masks (or a box and a mask's box) that overlap at least so much are one object.
        max_objects: At most so many objects, those of the first detection frames and the highest scores.
        min_pixels: In frames where it has fewer pixels an object is not seen; seen in fewer than two, it is dropped.
        batch_size: Frames in a forward pass of the detector.
        device: "auto" is the GPU where there is one.
        dtype: Of both models.
    """

    detector: str
    tracker: str
    classes: tuple[str, ...]
    threshold: float = 0.35
    detect_every: int = 8
    nms_iou: float = 0.7
    merge_iou: float = 0.5
    max_objects: int = 20
    min_pixels: int = 64
    batch_size: int = 4
    device: str = "auto"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_model("detector", self.detector)
        check_model("tracker", self.tracker)
        choose_dtype("dtype", self.dtype)
        _check_classes(self.classes)
        for name in ("threshold", "nms_iou", "merge_iou"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("detect_every", "max_objects", "min_pixels", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __call__(self, clip: Clip, depth: Depth, world_to_camera: Tensor) -> tuple[Mask, ...]:
        """Find and follow; depth and path are not looked at.

        Raises:
            InputError: A model is not there or of another kind, or the classes are too long for the detector.
        """
        device = str(choose_device("device", self.device))
        seen = self.detect(clip.frames[:: self.detect_every])
        if not any(len(each.scores) for each in seen):
            return ()
        model, processor = _load_tracker(self.tracker, device, self.dtype)
        session = processor.init_video_session(
            video=clip.frames.permute(0, 3, 1, 2),
            inference_device=device,
            video_storage_device="cpu",
            dtype=model.dtype,
        )
        found: list[Found] = []
        for number, each in enumerate(seen):
            frame = number * self.detect_every
            if found:
                each = uncovered(each, torch.stack([one.pixels[frame] for one in found]), self.merge_iou)
            each = each.take(torch.arange(min(len(each.scores), self.max_objects - len(found))))
            if not len(each.scores):
                continue
            followed = follow(model, processor, session, each.boxes, frame)
            for label, score, pixels in zip(each.labels.tolist(), each.scores.tolist(), followed, strict=True):
                pixels = drop_specks(pixels, self.min_pixels)
                if int(pixels.any(-1).any(-1).sum()) >= 2:
                    found = merge(found, Found(label, score, pixels), self.merge_iou)
        return tuple(Mask(k, self.classes[one.label], one.pixels) for k, one in enumerate(found))

    def detect(self, frames: Tensor) -> list[Detections]:
        """What the detector finds in single frames, after non-maximum suppression.

        Args:
            frames: [T, H, W, 3] uint8 RGB.

        Raises:
            InputError: The detector is not there or of another kind, or the classes are too long for it.
        """
        device = str(choose_device("device", self.device))
        model, processor = _load_detector(self.detector, device, self.dtype)
        found = detect(model, processor, frames, self.classes, self.threshold, self.batch_size)
        return [suppress(each, self.nms_iou) for each in found]


@torch.inference_mode()
def follow(model: Any, processor: Any, session: Any, boxes: Tensor, frame: int) -> Tensor:
    """Follow boxes of one frame to both ends of the clip.

    Args:
        model: ``Sam2VideoModel``.
        processor: ``Sam2VideoProcessor``.
        session: Its session with the clip's frames; what was followed before is forgotten.
        boxes: [N, 4], as in ``Detections``.
        frame: Index of their frame.

    Returns:
        [N, T, H, W] bool.
    """
    size = (session.video_height, session.video_width)
    masks = torch.zeros(len(boxes), session.num_frames, *size, dtype=torch.bool)
    session.reset_tracking_data()
    processor.add_inputs_to_inference_session(
        session, frame_idx=frame, obj_ids=list(range(len(boxes))), input_boxes=[boxes.tolist()]
    )
    for reverse in (False, True):
        for output in model.propagate_in_video_iterator(session, start_frame_idx=frame, reverse=reverse):
            scaled = processor.post_process_masks([output.pred_masks.float()], original_sizes=[size])[0]
            masks[:, output.frame_idx] = scaled[:, 0].cpu()
    return masks


def drop_specks(pixels: Tensor, min_pixels: int) -> Tensor:
    """Empty the frames of a mask [T, H, W] that have fewer pixels."""
    return pixels & (pixels.sum(dim=(1, 2)) >= min_pixels)[:, None, None]


def shared(one: Tensor, other: Tensor) -> float:
    """Intersection over union of two masks [T, H, W], over the frames where both are seen; 0 where there is none."""
    both = one.any(-1).any(-1) & other.any(-1).any(-1)
    union = int((one[both] | other[both]).sum())
    return int((one[both] & other[both]).sum()) / union if union else 0.0


def merge(found: Sequence[Found], new: Found, iou: float) -> list[Found]:
    """Add an object, or where it is a known one under another detection, its pixels to that.

    Args:
        found: Known objects.
        new: Another.
        iou: Two objects that share at least so much (see ``shared``) are one.

    Returns:
        The objects in order of discovery; one that was found twice keeps the class of the higher score.
    """
    overlaps = [shared(known.pixels, new.pixels) for known in found]
    best = max(range(len(found)), key=overlaps.__getitem__, default=None)
    if best is None or overlaps[best] < iou:
        return [*found, new]
    better = max(found[best], new, key=lambda one: one.score)
    merged = replace(better, pixels=found[best].pixels | new.pixels)
    return [merged if k == best else known for k, known in enumerate(found)]


def _check_classes(classes: Sequence[str]) -> None:
    if isinstance(classes, str) or not classes:
        raise InputError(f"classes: expected a list of names to look for, got {classes!r}")
    for name in classes:
        # Grounding DINO takes both marks for the end of a phrase.
        if not name.strip() or "." in name or "?" in name:
            raise InputError(f"classes: {name!r} must be a name without '.' and '?'")
    if len({name.strip().lower() for name in classes}) != len(classes):
        raise InputError(f"classes: a name occurs twice in {', '.join(classes)}")


@lru_cache(maxsize=1)
def _load_detector(name: str, device: str, dtype: str) -> _Loaded:
    """One detector per process, read at the first clip."""
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    kind = read_pretrained(AutoConfig, "detector", name).model_type
    if kind not in DETECTORS:
        raise InputError(f"detector: {name!r} is of type {kind!r}, expected one of {', '.join(DETECTORS)}")
    processor = read_pretrained(AutoProcessor, "detector", name)
    model = read_pretrained(AutoModelForZeroShotObjectDetection, "detector", name, dtype=choose_dtype("dtype", dtype))
    return _Loaded(model.to(device).eval(), processor)


@lru_cache(maxsize=1)
def _load_tracker(name: str, device: str, dtype: str) -> _Loaded:
    """One tracker per process, read at the first clip with a detection."""
    from transformers import AutoConfig, Sam2VideoModel, Sam2VideoProcessor

    # Another model's weights would be taken with a mere warning, and the rest left at random.
    kind = read_pretrained(AutoConfig, "tracker", name).model_type
    if kind != "sam2_video":
        raise InputError(f"tracker: {name!r} is of type {kind!r}, expected 'sam2_video'")
    processor = read_pretrained(Sam2VideoProcessor, "tracker", name)
    model = read_pretrained(Sam2VideoModel, "tracker", name, dtype=choose_dtype("dtype", dtype))
    return _Loaded(model.to(device).eval(), processor)
