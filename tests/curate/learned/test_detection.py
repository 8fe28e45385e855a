import pytest
import torch

from mllm4d.curate.learned.detection import Detections, class_tokens, detect, suppress, token_scores, uncovered
from mllm4d.schema import InputError
from tests.curate.learned.tiny_vision import CLASSES, blots, save_grounding_dino, save_owlv2

HEIGHT, WIDTH = 48, 66


def frames(count):
    return blots(count, HEIGHT, WIDTH)


def detections(*rows):
    """Rows of left, top, right, bottom, score, label."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    def load(save):
        folder = tmp_path_factory.mktemp(save.__name__)
        save(folder)
        return AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)

    return load


def test_the_tokens_of_each_class_are_found():
    # [CLS] red ball . skate ##board . cat . [SEP] [PAD]
    ids = [101, 1, 3, 1012, 4, 5, 1012, 6, 1012, 102, 0]
    assert class_tokens(ids, 1012, 3) == [[1, 2], [4, 5], [7]]
    with pytest.raises(InputError, match="kept 2 of 3"):
        class_tokens(ids[:8], 1012, 3)


def test_a_shared_word_decides_nothing_and_the_score_is_the_best_word():
    # "red ball" and "blue ball": both have "ball" at 0.9; "blue" is at 0.6 and "red" at 0.2.
    probabilities = torch.tensor([[0.99, 0.2, 0.9, 0.99, 0.6, 0.9, 0.99], [0.0, 0.7, 0.1, 0.0, 0.1, 0.1, 0.0]])
    scores, labels = token_scores(probabilities.logit(), [[1, 2], [4, 5]])
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.7]))


def test_suppression_is_over_all_classes():
    # Boxes 10x10; the second is moved by 2: IoU 80 / 120 = 0.67. The third is elsewhere.
    found = detections([0, 0, 10, 10, 0.9, 0], [2, 0, 12, 10, 0.8, 1], [40, 0, 50, 10, 0.7, 1])
    assert suppress(found, 0.6).scores.tolist() == pytest.approx([0.9, 0.7])
    assert suppress(found, 0.7).scores.tolist() == pytest.approx([0.9, 0.8, 0.7])


def test_what_a_mask_covers_is_known_already():
    masks = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.bool)
    masks[0, 10:20, 20:30] = True  # its box is 20, 10, 30, 20; the second is not seen here
    found = detections([20, 10, 30, 20, 0.9, 0], [25, 10, 35, 20, 0.8, 0], [0, 0, 8, 8, 0.7, 0])
    assert uncovered(found, masks, 1.0).scores.tolist() == pytest.approx([0.8, 0.7])
    # The second's IoU is 50 / 150
    assert uncovered(found, masks, 0.34).scores.tolist() == pytest.approx([0.8, 0.7])
    assert uncovered(found, masks, 0.33).scores.tolist() == pytest.approx([0.7])
    assert uncovered(found, masks[1:], 0.33) is found
    assert len(uncovered(detections(), masks, 0.5).scores) == 0


@pytest.mark.parametrize("save", [save_grounding_dino, save_owlv2])
def test_detections_are_inside_the_frames_sorted_and_the_same_one_by_one(load, save):
    model, processor = load(save)
    found = detect(model, processor, frames(3), CLASSES, 0.4, 3)
    assert len(found) == 3
    assert all(len(each.scores) for each in found)
    for each in found:
        assert each.boxes.shape == (len(each.scores), 4)
        assert bool((each.boxes >= 0).all())
        assert bool((each.boxes[:, 2] <= WIDTH).all())
        assert bool((each.boxes[:, 3] <= HEIGHT).all())
        assert bool((each.boxes[:, 2:] - each.boxes[:, :2] >= 1).all())
        assert bool((each.scores >= 0.4).all())
        assert bool((each.scores.diff() <= 0).all())
        assert set(each.labels.tolist()) <= {0, 1, 2}
    for size in (1, 2):
        for each, other in zip(found, detect(model, processor, frames(3), CLASSES, 0.4, size), strict=True):
            torch.testing.assert_close(each.boxes, other.boxes, rtol=1e-4, atol=1e-2)
            torch.testing.assert_close(each.scores, other.scores, rtol=1e-4, atol=1e-4)
            assert torch.equal(each.labels, other.labels)


def test_boxes_are_those_of_transformers_own_post_processing(load):
    model, processor = load(save_grounding_dino)
    picture = frames(1)
    found = detect(model, processor, picture, CLASSES, 0.0, 1)[0]
    inputs = processor(images=[picture[0].permute(2, 0, 1)], text=[list(CLASSES)], return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    oracle = processor.post_process_grounded_object_detection(outputs, threshold=0.0, target_sizes=[(HEIGHT, WIDTH)])
    boxes = oracle[0]["boxes"]
    boxes = torch.stack([boxes[:, 0::2].clamp(0, WIDTH), boxes[:, 1::2].clamp(0, HEIGHT)], -1).flatten(1)
    boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(-1)]
    assert len(boxes) > 3
    assert len(found.boxes) == len(boxes)
    near = (found.boxes[:, None] - boxes).abs().amax(-1)
    assert float(near.amin(0).max()) < 1e-3
    assert float(near.amin(1).max()) < 1e-3


@pytest.mark.parametrize(
    ("save", "classes", "length"),
    [
        (save_grounding_dino, ["red ball", "blue ball", "red cat", "blue cat", "red skate", "blue skate"], 20),
        (save_owlv2, ["a cat of the longer sort", "dog"], 21),
    ],
)
def test_classes_too_long_for_the_detector_are_refused(load, save, classes, length):
    # Both tiny detectors take 16 tokens. OWLv2's has a token for each letter, and two at the ends.
    model, processor = load(save)
    with pytest.raises(InputError, match=f"take {length} tokens, the detector takes 16"):
        detect(model, processor, frames(1), classes, 0.1, 1)
