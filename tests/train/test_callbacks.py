import io

import lightning
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torchvision.transforms.functional import pil_to_tensor

from mllm4d.models.packing import PackedInputs
from mllm4d.models.tiny import build_tiny
from mllm4d.train import throughput
from mllm4d.train.callbacks import Throughput, add_clip, add_points, computed_tokens
from mllm4d.train.sample_clips import center_error, describe
from tests.data.shard_sets import question
from tests.train.lessons import Lessons, sft, trainer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("callbacks")
    build_tiny(folder / "tiny")
    return folder


class Metrics(lightning.Callback):
    def __init__(self):
        self.steps, self.lengths = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})
        self.lengths.append((int(computed_tokens(batch.inputs)), batch.inputs.tokens["input_ids"].numel()))


class Clock:
    """Time that goes on by one second whenever it is asked for, and by 100 in validation."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


class Wait(lightning.Callback):
    def __init__(self, clock):
        self.clock = clock

    def on_validation_start(self, trainer, pl_module):
        self.clock.now += 100


class Counting(Lessons):
    @property
    def skipped(self):
        return {"train": 2, "val": 1}


@pytest.mark.parametrize("packing", [None, PackedInputs])
def test_tokens_without_padding_and_questions_a_second(root, monkeypatch, packing):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    record = Metrics()
    run = trainer(
        root,
        max_steps=4,
        val_check_interval=2,
        log_every_n_steps=2,
        callbacks=[Wait(clock), Throughput(), record],
        accumulate_grad_batches=1,
    )
    run.fit(sft(root, packing, train=("merger",), learning_rate=1e-4), Counting(2, evaluate=True))
    # Two batches of two in a second, and none of the 100 of validation.
    assert [step.get("train/questions_per_second") for step in record.steps] == [None, 4.0, 4.0, 4.0]
    for place in (1, 3):
        tokens = sum(length for length, _ in record.lengths[place - 1 : place + 1])
        assert record.steps[place]["train/tokens_per_second"] == tokens
        assert record.steps[place]["train/skipped"] == 3
    assert all(length == room if packing else length < room for length, room in record.lengths)
    assert "train/gpu_memory" not in record.steps[-1]


def test_computed_tokens_by_hand(root):
    module = sft(root)
    module.configure_model()
    module.trainer = trainer(root)
    data = Lessons(2)
    data.trainer = module.trainer
    data.trainer.strategy._lightning_module = module
    records = [record for record, _ in data.rows(module.inputs)[:2]]
    lengths = [len(record.tokens["input_ids"]) for record in records]
    assert lengths[0] != lengths[1]
    assert int(computed_tokens(module.inputs.collate(records))) == sum(lengths)
    packed = PackedInputs(module.inputs, module.model, share_prefix=False)
    assert computed_tokens(packed.collate(records)) == sum(lengths)
    # The clip's tokens are computed once for both.
    both = PackedInputs(module.inputs, module.model).collate(records)
    same = torch.stack([record.tokens["input_ids"][: min(lengths)] for record in records])
    prefix = int((same[0] == same[1]).long().cumprod(0).sum())
    assert computed_tokens(both) == sum(lengths) - prefix


def events_of(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return events


def test_a_clip_in_tensorboard_is_there_without_a_video_encoder_and_keeps_its_frames_and_times(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    frames = torch.zeros(3, 12, 16, 3, dtype=torch.uint8)
    for number, frame in enumerate(frames):
        frame[:, : 4 * (number + 1)] = 255  # a GIF keeps black and white as they are
    add_clip(logger, "samples/0", frames, torch.tensor([0.0, 0.25, 0.75]), 7)
    logger.finalize("success")
    (event,) = events_of(tmp_path).Images("samples/0")
    assert (event.step, event.width, event.height) == (7, 16, 12)
    film = Image.open(io.BytesIO(event.encoded_image_string))
    shown = [(frame.convert("RGB").copy(), frame.info["duration"]) for frame in ImageSequence.Iterator(film)]
    assert [gap for _, gap in shown] == [250, 500, 500]
    assert torch.equal(torch.stack([pil_to_tensor(frame).permute(1, 2, 0) for frame, _ in shown]), frames)


def test_points_stand_upright_in_the_viewer(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    points = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]], dtype=torch.float64)  # y is down
    colors = torch.tensor([[255, 0, 0], [0, 0, 255]], dtype=torch.uint8)
    add_points(logger, "scene", points, colors, 3)
    logger.finalize("success")
    events = events_of(tmp_path)
    (vertices,), (paint,) = events.Tensors("scene_VERTEX"), events.Tensors("scene_COLOR")
    assert vertices.step == 3
    assert make_ndarray(vertices.tensor_proto).ravel().tolist() == [1, -2, -3, 0, 1, -4]
    assert make_ndarray(paint.tensor_proto).ravel().tolist() == [255, 0, 0, 0, 0, 255]


def test_the_error_of_centres_is_theirs_anchor_by_anchor():
    true = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    assert center_error([(0.0, 3.0, 4.0), (1.0, 0.0, 1.0)], true) == 3.0
    for said in ([None, (1.0, 0.0, 1.0)], [(1.0, 0.0, 0.0)], ["x", (1.0, 0.0, 0.0)], []):
        assert center_error(said, true) is None
    assert center_error([(1.0, 0.0, 0.0)] * 2, None) is None


def test_a_sample_says_truth_answer_and_error():
    asked = question("c", 0, solution={"camera_center": [[0, 0, 0], [1, 0, 0]], "object_center": None})
    said = "- Camera Center: [0, 0, 0]\n- Camera Center: [1, 0, 0.5]\n<answer>A</answer>"
    text = describe(asked, said)
    assert "truth: **B**" in text
    assert "camera centres: off by 0.25 m" in text
    assert "object centres" not in text
