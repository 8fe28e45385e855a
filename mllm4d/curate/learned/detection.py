"""Named boxes in single frames by an open-vocabulary detector of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image, masks_to_boxes, nms, remove_small_boxes

from mllm4d.schema import InputError


@dataclass(frozen=True)
class Detections:
    """What a detector found in one frame, best first.

    Attributes:
        boxes: [N, 4], left, top, right, bottom, pixels; pixel i goes from i to i + 1.
        scores: [N], 0 to 1.
        labels: [N] int64, index of the class.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Detections:
        """Some of them, by index or [N] bool."""
        return Detections(self.boxes[index], self.scores[index], self.labels[index])


@torch.inference_mode()
def detect(
    model: Any, processor: Any, frames: Tensor, classes: Sequence[str], threshold: float, batch_size: int
) -> list[Detections]:
    """Look for classes in frames.

    Args:
        model: Grounding DINO, MM Grounding DINO, OWL-ViT or OWLv2.
        processor: Its processor.
        frames: [T, H, W, 3] uint8 RGB.
        classes: What to look for.
        threshold: Boxes with a lower score are dropped.
        batch_size: Frames in a forward pass.

    Returns:
        Per frame every box above the threshold, inside the frame and at least a pixel wide and high.

    Raises:
        InputError: The classes together are longer than the detector's text may be.
    """
    _check_length(model.config, processor.tokenizer, classes)
    height, width = frames.shape[1:3]
    found = []
    for part in frames.permute(0, 3, 1, 2).split(batch_size):
        texts = [list(classes)] * len(part)
        inputs = processor(images=list(part), text=texts, return_tensors="pt").to(model.device, model.dtype)
        outputs = model(**inputs)
        # Grounding DINO scores tokens, OWL-ViT whole phrases.
        if hasattr(outputs, "input_ids"):
            spans = class_tokens(inputs["input_ids"][0].tolist(), _full_stop(processor), len(classes))
            raw = _from_tokens(outputs.logits.float(), outputs.pred_boxes.float(), spans, height, width)
        else:
            sizes = [(height, width)] * len(part)
            outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
            results = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=sizes)
            raw = [Detections(result["boxes"], result["scores"], result["labels"]) for result in results]
        for each in raw:
            best = each.take(each.scores.argsort(descending=True, stable=True))
            best = best.take(best.scores >= threshold)
            boxes = clip_boxes_to_image(best.boxes.cpu(), (height, width))
            best = Detections(boxes, best.scores.cpu(), best.labels.cpu())
            found.append(best.take(remove_small_boxes(boxes, min_size=1.0)))
    return found


def class_tokens(ids: Sequence[int], separator: int, count: int) -> list[list[int]]:
    """Where the tokens of each class are in Grounding DINO's text ``[CLS] a cat . a dog . [SEP]``.

    Args:
        ids: The text's token ids.
        separator: Id of the full stop.
        count: Number of classes.

    Returns:
        Positions per class.

    Raises:
        InputError: The text has another number of classes: the tokenizer has cut it.
    """
    spans: list[list[int]] = []
    current: list[int] = []
    for position, token in enumerate(ids[1:], 1):
        if token == separator:
            spans.append(current)
            current = []
        else:
            current.append(position)
    if len(spans) != count:
        raise InputError(f"classes: the detector's tokenizer kept {len(spans)} of {count}; name fewer or shorter ones")
    return spans


def token_scores(logits: Tensor, spans: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Class and score of every query from Grounding DINO's logits per token.

    The class is the one with the highest mean over its tokens (as in the authors' evaluation on COCO), so that a word
    that two classes share decides nothing; the score is the highest of that class's tokens, to which the usual
    threshold belongs.

    Args:
        logits: [N, L].
        spans: Positions of each class's tokens.

    Returns:
        Scores [N] and classes [N] int64.
    """
    tokens = logits.sigmoid()
    mean = torch.stack([tokens[:, list(span)].mean(-1) for span in spans], -1)
    high = torch.stack([tokens[:, list(span)].amax(-1) for span in spans], -1)
    labels = mean.argmax(-1)
    return high.gather(-1, labels[:, None])[:, 0], labels


def suppress(detections: Detections, iou: float) -> Detections:
    """Non-maximum suppression over all classes: what is found as a "person" and as a "man" is one object.

    Args:
        detections: Of one frame.
        iou: Of two boxes that overlap more, the better one stays.
    """
    return detections.take(nms(detections.boxes, detections.scores, iou))


def uncovered(detections: Detections, masks: Tensor, iou: float) -> Detections:
    """Detections of objects that are not known yet.

    Args:
        detections: Of one frame.
        masks: [M, H, W] bool, the known objects in that frame; empty ones are not seen there.
        iou: A detection that overlaps the box of a mask by at least so much is that object.
    """
    masks = masks[masks.flatten(1).any(-1)]
    if not len(masks) or not len(detections.scores):
        return detections
    known = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # it gives the last pixel, not its far edge
    return detections.take((box_iou(detections.boxes, known) < iou).all(-1))


def _from_tokens(
    logits: Tensor, boxes: Tensor, spans: Sequence[Sequence[int]], height: int, width: int
) -> list[Detections]:
    """Detections from logits [B, N, L] and boxes [B, N, 4] (centre and size, relative to the frame)."""
    corners = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
    return [Detections(box, *token_scores(logit, spans)) for box, logit in zip(corners, logits, strict=True)]


def _check_length(config: Any, tokenizer: Any, classes: Sequence[str]) -> None:
    """Grounding DINO takes all classes as one text, OWL-ViT one text each."""
    joint = hasattr(config, "max_text_len")
    limit = config.max_text_len if joint else config.text_config.max_position_embeddings
    texts = [". ".join(classes) + "."] if joint else list(classes)
    length = max(len(ids) for ids in tokenizer(texts)["input_ids"])
    if length > limit:
        raise InputError(f"classes: they take {length} tokens, the detector takes {limit}; name fewer or shorter ones")


def _full_stop(processor: Any) -> int:
    return int(processor.tokenizer.convert_tokens_to_ids("."))
