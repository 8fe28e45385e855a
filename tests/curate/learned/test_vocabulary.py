"""Finding and following with tiny models of the real classes, read from folders."""

import pickle

import pytest
import torch

from mllm4d.curate.depth import Depth
from mllm4d.curate.describe import describe
from mllm4d.curate.learned.detection import suppress
from mllm4d.curate.learned.vocabulary import Found, OpenVocabulary, drop_specks, follow, merge, shared
from mllm4d.schema import InputError
from tests.curate.learned.tiny_vision import CLASSES, SIDE, blots_clip, save_grounding_dino, save_owlv2, save_sam2_video

HEIGHT, WIDTH, COUNT = 48, 66, 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_grounding_dino(root / "dino")
    save_owlv2(root / "owl")
    save_sam2_video(root / "sam")
    return root


@pytest.fixture(scope="module")
def clip():
    return blots_clip(COUNT, HEIGHT, WIDTH)


def finder(folders, detector="dino", **settings):
    settings = {"threshold": 0.4, "detect_every": 3, "merge_iou": 0.9, "min_pixels": 10, "device": "cpu", **settings}
    return OpenVocabulary(str(folders / detector), str(folders / "sam"), CLASSES, **settings)


def find(finder, clip):
    """Neither depth nor path are looked at."""
    nothing = torch.zeros(clip.frames.shape[:3])
    return finder(clip, Depth(nothing, nothing), torch.eye(4).repeat(len(nothing), 1, 1))


def block(*spans):
    """A mask of four frames, 10x10: in each frame the columns from..to of the upper half, or None for not seen."""
    pixels = torch.zeros(len(spans), 10, 10, dtype=torch.bool)
    for t, span in enumerate(spans):
        if span is not None:
            pixels[t, :5, span[0] : span[1]] = True
    return pixels


@pytest.mark.parametrize("detector", ["dino", "owl"])
def test_objects_are_found_followed_and_named(folders, clip, detector):
    masks = find(finder(folders, detector), clip)
    assert len(masks) >= 2
    assert [mask.id for mask in masks] == list(range(len(masks)))
    for mask in masks:
        assert mask.name in CLASSES
        assert mask.pixels.shape == (COUNT, HEIGHT, WIDTH)
        assert mask.pixels.dtype == torch.bool
        sizes = mask.pixels.sum(dim=(1, 2))
        assert int((sizes > 0).sum()) >= 2
        assert bool(((sizes == 0) | (sizes >= 10)).all())
    again = find(finder(folders, detector, batch_size=1), clip)
    assert [mask.name for mask in again] == [mask.name for mask in masks]
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(masks, again, strict=True))


def test_no_more_objects_than_asked_for_and_the_best_ones(folders, clip):
    every = finder(folders, nms_iou=0.99)
    seen = every.detect(clip.frames[:1])[0]
    assert len(seen.scores) >= 3
    masks = find(finder(folders, nms_iou=0.99, max_objects=2, merge_iou=0.999), clip)
    assert len(masks) == 2
    assert [mask.name for mask in masks] == [CLASSES[label] for label in seen.labels[:2].tolist()]


def test_nothing_above_the_threshold_is_no_object(folders, clip):
    assert find(finder(folders, threshold=0.9999999), clip) == ()


def test_detections_are_suppressed(folders, clip):
    loose, strict = finder(folders, "owl", nms_iou=0.999), finder(folders, "owl", nms_iou=0.3)
    many, few = loose.detect(clip.frames[:1])[0], strict.detect(clip.frames[:1])[0]
    assert len(few.scores) < len(many.scores)
    torch.testing.assert_close(suppress(many, 0.3).boxes, few.boxes)


@pytest.fixture(scope="module")
def sam(folders):
    from transformers import Sam2VideoModel, Sam2VideoProcessor

    return Sam2VideoModel.from_pretrained(folders / "sam").eval(), Sam2VideoProcessor.from_pretrained(folders / "sam")


def session_of(processor, clip):
    return processor.init_video_session(video=clip.frames.permute(0, 3, 1, 2), inference_device="cpu")


def test_boxes_reach_sam_in_the_right_pixels_of_the_right_frame(sam, clip):
    model, processor = sam
    session = session_of(processor, clip)
    boxes = torch.tensor([[33.0, 12.0, 66.0, 48.0], [11.0, 6.0, 22.0, 30.0]])
    masks = follow(model, processor, session, boxes, 2)
    assert masks.shape == (2, COUNT, HEIGHT, WIDTH)
    assert bool(masks.flatten(2).any(-1).all())  # forwards and backwards
    for number, box in enumerate(boxes):
        prompts = session.point_inputs_per_obj[number]
        assert list(prompts) == [2]
        expected = box.reshape(2, 2) * torch.tensor([SIDE / WIDTH, SIDE / HEIGHT])
        torch.testing.assert_close(prompts[2]["point_coords"][0, 0], expected)
        assert prompts[2]["point_labels"].flatten().tolist() == [2, 3]  # corners of a box


def test_the_mask_in_the_prompts_frame_is_that_of_sam_for_images(sam, folders, clip):
    from transformers import Sam2ImageProcessor, Sam2Model, Sam2Processor

    model, processor = sam
    boxes = torch.tensor([[33.0, 12.0, 66.0, 48.0], [11.0, 6.0, 22.0, 30.0]])
    masks = follow(model, processor, session_of(processor, clip), boxes, 3)[:, 3]
    single = Sam2Model.from_pretrained(folders / "sam").eval()
    image = Sam2Processor(Sam2ImageProcessor.from_pretrained(folders / "sam"))
    inputs = image(images=clip.frames[3].permute(2, 0, 1), input_boxes=[boxes.tolist()], return_tensors="pt")
    with torch.inference_mode():
        outputs = single(**inputs, multimask_output=False)
    expected = image.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0][:, 0]
    assert 0.02 < float(expected.float().mean()) < 0.98
    assert float((expected == masks).float().mean()) > 0.99


def test_objects_do_not_hang_on_one_another_nor_on_what_was_followed_before(sam, clip):
    model, processor = sam
    boxes = torch.tensor([[33.0, 12.0, 66.0, 48.0], [11.0, 6.0, 22.0, 30.0]])
    session = session_of(processor, clip)
    both = follow(model, processor, session, boxes, 2)
    assert not torch.equal(both[0], both[1])
    alone = follow(model, processor, session, boxes[1:], 2)
    assert torch.equal(alone[0], both[1])


def test_specks_are_emptied():
    pixels = block((0, 2), (0, 4), None, (0, 1))
    assert drop_specks(pixels, 10).sum(dim=(1, 2)).tolist() == [10, 20, 0, 0]


def test_sharing_counts_only_frames_where_both_are_seen():
    # Frame 0: 10 of 30 pixels shared; frame 1: 20 of 20; frames 2 and 3: one of them is not there.
    one, other = block((0, 4), (0, 4), (0, 4), None), block((2, 6), (0, 4), None, (0, 4))
    assert shared(one, other) == pytest.approx(30 / 50)
    assert shared(block((0, 4), None), block(None, (0, 4))) == 0.0


def test_one_object_under_two_detections_is_merged():
    first = Found(0, 0.5, block((0, 4), (0, 4), None, None))
    apart = Found(1, 0.6, block((8, 10), (8, 10), None, None))
    twin = Found(2, 0.9, block(None, (0, 4), (1, 5), (2, 6)))
    found = merge(merge([first], apart, 0.5), twin, 0.5)
    assert [one.label for one in found] == [2, 1]  # the better detection's class, in the first one's place
    assert found[0].score == 0.9
    assert torch.equal(found[0].pixels, block((0, 4), (0, 4), (1, 5), (2, 6)))
    worse = merge([first], Found(2, 0.4, twin.pixels), 0.5)
    assert [(one.label, one.score) for one in worse] == [(0, 0.5)]
    # In frame 1 all pixels are shared, but here not enough.
    assert len(merge([first], Found(2, 0.9, block((2, 6), None, None, None)), 0.5)) == 2


def test_what_is_no_model_is_named(folders, clip, tmp_path):
    with pytest.raises(InputError, match=r"^detector: .*nothing/config.json not found"):
        OpenVocabulary(str(tmp_path / "nothing"), str(folders / "sam"), CLASSES)
    with pytest.raises(InputError, match=r"^tracker: .*nothing/config.json not found"):
        OpenVocabulary(str(folders / "dino"), str(tmp_path / "nothing"), CLASSES)
    with pytest.raises(InputError, match=r"^detector: .* is of type 'sam2_video'"):
        find(finder(folders, "sam"), clip)
    with pytest.raises(InputError, match=r"^tracker: .* is of type 'owlv2', expected 'sam2_video'"):
        find(OpenVocabulary(str(folders / "dino"), str(folders / "owl"), CLASSES, 0.4, device="cpu"), clip)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ()),
        ("classes", "cat"),
        ("classes", ("cat", "Cat ")),
        ("classes", ("a. b",)),
        ("classes", (" ",)),
        ("threshold", 0.0),
        ("merge_iou", 1.5),
        ("detect_every", 0),
        ("max_objects", 0),
        ("dtype", "int8"),
    ],
)
def test_settings_are_checked(key, value):
    with pytest.raises(InputError, match=f"^{key}"):
        OpenVocabulary("owner/detector", "owner/tracker", **{"classes": CLASSES, key: value})


def test_it_travels_to_workers_and_into_the_index():
    finder = OpenVocabulary("owner/detector", "owner/tracker", CLASSES)
    assert pickle.loads(pickle.dumps(finder)) == finder
    assert describe(finder)["init_args"]["classes"] == list(CLASSES)
