"""What a training leaves in TensorBoard's files, read back from them."""

from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.curate.run import Curation
from mllm4d.curate.scene import build_scene
from mllm4d.curate.sources.world import World
from mllm4d.data.datamodule import ClipDataModule
from mllm4d.data.mixing import ShardSet
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.tiny import TinyQwen3VL
from mllm4d.shards import read_index
from mllm4d.train.callbacks import HyperParameters, SampleClips, ScoreTable
from mllm4d.train.hyperparameters import flat
from mllm4d.train.sample_clips import _read
from mllm4d.train.score_table import baseline_scalars, best_blind, chart_layout
from mllm4d.train.sft import SFT
from mllm4d.video import decode
from mllm4d.viz import write_ply
from tests.data.shard_sets import sample, write_set
from tests.train.lessons import trainer

FAR = (0.4, 0.0, 0.7)


class Reasons(SFT):
    """Says centres, as a model does that has learned to reason; the tiny one has not."""

    def answer(self, batch):
        super().answer(batch)
        line = "- Camera Center: [{}, {}, {}]\n".format(*FAR)
        return [f"<thinking>\n{line}{line}</thinking><answer>A</answer>"] * len(batch.questions)


def train(root):
    """Two validations with all that goes into TensorBoard; returns index, the first clip's points, and the log."""
    world = World(width=64, height=64, frames=8, fps=4.0)
    shards = Curation(world, str(root / "shards"), clips=20, pairs=12, workers=0, splits={"train": 0.5, "val": 0.5})
    index = read_index(shards.run())
    key = index.split("val")[0].keys[0]
    cloud = build_scene(world.load(key), None, None).cloud
    points = {"points": cloud.points.tolist(), "colors": cloud.colors.tolist()}
    write_ply(root / "shards" / "clouds" / f"{key}.ply", points)
    base = TinyQwen3VL(str(root / "tiny"), train=("merger",))
    module = Reasons(base, VideoSettings(frames=8), MultipleChoiceAccuracy(), learning_rate=1e-3, max_new_tokens=4)
    logger = TensorBoardLogger(str(root), name="logs", version="a")
    callbacks = [SampleClips(2), ScoreTable(), HyperParameters()]
    data = ClipDataModule(str(root / "shards"), workers=0, batch_size=4, eval_batch_size=16)
    run = trainer(
        root, max_steps=4, max_epochs=2, limit_train_batches=2, logger=logger, callbacks=callbacks, log_every_n_steps=1
    )
    lightning.seed_everything(0, verbose=False)
    run.fit(module, data)
    return index, points, root / "logs"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    index, points, folder = train(tmp_path_factory.mktemp("tensorboard"))
    events = EventAccumulator(str(folder / "a"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    events.Reload()
    return index, points, events


def test_every_score_has_its_chance_and_blind_lines_at_the_same_steps(log):
    index, _, events = log
    tags = set(events.Tags()["scalars"])
    tasks = [tag.removeprefix("val/accuracy/") for tag in tags if tag.startswith("val/accuracy/")]
    assert tasks
    for task in tasks:
        known = index.notes["blind"][task]
        for name, value in (("chance", known["chance"]), ("blind", best_blind(known))):
            line = events.Scalars(f"val/{name}/{task}")
            assert [event.value for event in line] == pytest.approx([value] * 2, rel=1e-6)
            assert [event.step for event in line] == [event.step for event in events.Scalars(f"val/accuracy/{task}")]
    chances = [row["chance"] for row in index.notes["blind"].values()]
    assert events.Scalars("val/chance_macro")[0].value == pytest.approx(np.mean(chances), rel=1e-6)


def test_the_lines_of_a_task_stand_in_one_chart(log):
    *_, events = log
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("val/accuracy/")]
    for tag in tags:
        task = tag.removeprefix("val/accuracy/")
        assert charts[task] == [f"val/{name}/{task}$" for name in ("accuracy", "chance", "blind")]
    assert "val/accuracy_macro$" in charts["mean of the tasks"]


def test_sample_clips_come_with_their_paths_and_every_answer_with_its_centres(log):
    *_, events = log
    images = set(events.Tags()["images"])
    assert {f"samples/{n}{view}" for n in (0, 1) for view in ("", "/paths", "/centres")} == images
    assert len(events.Images("samples/0")) == len(events.Images("samples/0/paths")) == 1
    assert events.Images("samples/0/paths")[0].encoded_image_string.startswith(b"GIF89a")
    centres = events.Images("samples/0/centres")
    assert len({event.step for event in centres}) == 2
    text = events.Tensors("samples/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "truth: **" in text
    assert "camera centres: off by " in text


def test_scenes_are_there_in_3d_with_their_clouds(log):
    _, cloud, events = log
    shown = []
    for n in (0, 1):
        (vertices,), (colors,) = events.Tensors(f"samples/{n}/scene_VERTEX"), events.Tensors(f"samples/{n}/scene_COLOR")
        shown.append((make_ndarray(vertices.tensor_proto)[0], make_ndarray(colors.tensor_proto)[0]))
        assert shown[n][0].shape == shown[n][1].shape
        assert shown[n][0][0] == pytest.approx([0, 0, 0], abs=1e-6)  # the camera's path begins here
        assert shown[n][1][0].tolist() == [0, 0, 0]
    points, paint = shown[0]
    count = len(cloud["points"])
    assert count > 100
    # Down in the scene is down in the viewer, ahead is away.
    expected = np.array(cloud["points"]) * [1, -1, -1]
    assert np.abs(points[-count:] - expected).max() < 1e-3
    assert paint[-count:].tolist() == cloud["colors"]
    assert len(shown[1][0]) < count  # no points are kept of this clip: paths alone


def test_settings_stand_beside_scores_that_the_run_logs(log):
    *_, events = log
    content = {tag: HParamsPluginData.FromString(c) for tag, c in events.PluginTagToContent("hparams").items()}
    begun = content["_hparams_/session_start_info"].session_start_info.hparams
    assert begun["model.learning_rate"].number_value == 1e-3
    assert begun["data.batch_size"].number_value == 4
    assert not {name for name in begun if "._" in name or name.endswith("prepare_data_per_node")}
    metrics = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    scalars = set(events.Tags()["scalars"])
    assert {"val/accuracy_macro", "val/accuracy", "val/loss"} <= set(metrics) & scalars
    assert content["_hparams_/session_end_info"].session_end_info.status == 1  # success


def test_clips_are_shown_from_whichever_set_they_lie_in(tmp_path):
    sets = [ShardSet(str(write_set(tmp_path / name, {"val": [1]}, name=name, frames=3))) for name in ("a", "b")]
    data = ClipDataModule(sets)
    for name in ("a", "b"):
        frames, times = decode(_read(SimpleNamespace(datamodule=data), f"{name}-val-0").video)
        expected, _ = decode(sample(f"{name}-val-0", 1, frames=3).video)
        assert torch.equal(frames, expected)
        assert times.tolist() == [0, 0.25, 0.5]


def test_baselines_by_hand():
    known = {"a": {"n": 8, "chance": 0.25, "prior": 0.5, "letter": 0.375}, "b": {"n": 4, "chance": 0.5}}
    assert baseline_scalars(known) == {
        "chance/a": 0.25,
        "chance/b": 0.5,
        "blind/a": 0.5,
        "chance_macro": 0.375,
        "blind_macro": 0.5,
    }
    assert baseline_scalars({}) == chart_layout({}) == {}


def test_a_configuration_becomes_a_flat_table_of_what_can_be_compared():
    config = {
        "model": {
            "class_path": "SFT",
            "init_args": {
                "learning_rate": 0.1,
                "base": {"init_args": {"train": ["vision", "merger"], "lora": None}},
                "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.001}},  # not the rate that counts
            },
        },
        "data": {"init_args": {"curation": {"clips": 3}, "shards": "runs/world", "sets": [{"path": "x"}]}},
        "ckpt_path": "x",
    }
    assert flat(config) == {
        "model.class_path": "SFT",
        "model.learning_rate": 0.1,
        "model.base.train": "vision, merger",
        "model.optimizer.class_path": "AdamW",
        "data.shards": "runs/world",
    }
