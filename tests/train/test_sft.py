"""Training for real: the tiny model, real shards, Lightning, on the CPU and on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.curate.run import Curation
from mllm4d.curate.sources.world import World
from mllm4d.data.datamodule import ClipDataModule
from mllm4d.data.stream import QuestionBatch
from mllm4d.models.base import LoRA, trained_table
from mllm4d.models.inputs import VideoSettings
from mllm4d.models.tiny import TinyQwen3VL
from mllm4d.schema import InputError
from mllm4d.train.callbacks import SampleClips, ScoreTable
from mllm4d.train.sft import SFT
from tests.data.shard_sets import question

ALL = ("vision", "merger", "language")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sft")
    source = World(width=64, height=64, frames=8, fps=4.0)
    Curation(source, str(root / "shards"), clips=20, pairs=12, workers=0, splits={"train": 0.5, "val": 0.5}).run()
    return root


def module(folder, **settings):
    base = TinyQwen3VL(str(folder / "tiny"), **{"train": ALL, **settings})
    return SFT(base, VideoSettings(frames=8), MultipleChoiceAccuracy(), learning_rate=1e-3, max_new_tokens=4)


def trainer(folder, **settings):
    defaults = {
        "accelerator": "cpu",
        "max_steps": 4,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": str(folder),
        "log_every_n_steps": 1,
    }
    return lightning.Trainer(**{**defaults, **settings})


def data(folder, workers=0):
    return ClipDataModule(str(folder / "shards"), workers=workers, batch_size=4, eval_batch_size=16)


class Losses(lightning.Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def losses(folder, workers):
    lightning.seed_everything(0, verbose=False)
    record = Losses()
    trainer(folder, callbacks=[record], limit_val_batches=0).fit(module(folder), data(folder, workers))
    return record.values


def test_the_same_seed_gives_the_same_losses_whatever_the_number_of_workers(folder):
    first = losses(folder, 0)
    assert len(first) == 4
    assert first == losses(folder, 0) == losses(folder, 2)


def test_fit_logs_scores_samples_and_says_where_things_lie(folder, capsys):
    lightning.seed_everything(0, verbose=False)
    logger = lightning.pytorch.loggers.TensorBoardLogger(str(folder), name="logs", version="a")
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(str(folder / "checkpoints"), save_last=True, save_top_k=0)
    callbacks = [checkpoint, SampleClips(2), ScoreTable()]
    trainer(folder, max_steps=-1, max_epochs=1, logger=logger, enable_checkpointing=True, callbacks=callbacks).fit(
        module(folder), data(folder)
    )
    printed = capsys.readouterr().out
    assert "object_camera_relative_direction" in printed
    assert "tensorboard --logdir" in printed
    assert "last.ckpt" in printed
    events = EventAccumulator(str(folder / "logs" / "a"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "val/loss", "val/accuracy", "val/accuracy/object_camera_relative_direction"} <= scalars
    assert {"samples/0", "samples/1"} <= set(events.Tags()["images"])
    gif = events.Images("samples/0")[0]
    assert gif.encoded_image_string.startswith(b"GIF89a")
    assert (gif.width, gif.height) == (64, 64)
    assert any(tag.startswith("samples/0") for tag in events.Tags()["tensors"])


def test_a_checkpoint_holds_what_was_trained_and_comes_back(folder, tmp_path):
    lightning.seed_everything(0, verbose=False)
    settings = {"train": ("merger",), "lora": LoRA(r=4, alpha=8)}
    model = module(folder, **settings)
    run = trainer(folder, limit_val_batches=0)
    run.fit(model, data(folder))
    run.save_checkpoint(tmp_path / "a.ckpt")
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert content
    assert all("lora_" in name or "merger" in name for name in content)
    again = module(folder, **settings)
    trainer(folder).validate(again, data(folder), ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    with pytest.raises(InputError, match="trained parameters differ"):
        trainer(folder).validate(module(folder), data(folder), ckpt_path=str(tmp_path / "a.ckpt"), verbose=False)


def lesson(folder, prompts, targets):
    """A module with its model in evaluation mode, its records, and the sum of the losses of them all."""
    model = module(folder)
    model.configure_model()
    model.model.eval()
    frames = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = [f"clip/{number}" for number in range(len(prompts))]
    records = model.inputs.encode(frames, torch.arange(8) / 4, 4.0, prompts, targets, ids)
    return model, records


@torch.no_grad()
def test_loss_is_on_the_answer_and_its_end_alone_whatever_the_texts_say(folder):
    prompts = ["assistant", "What did the assistant say?\nassistant\nA. 0.5 m", "And then?"]
    targets = ["B", "assistant\nassistant", " left assistant"]
    model, records = lesson(folder, prompts, targets)
    expected, count = 0.0, 0
    for record, prompt, target in zip(records, prompts, targets, strict=True):
        answer = model.inputs.tokenizer(f"{target}<|im_end|>")["input_ids"]
        row = record.tokens["input_ids"]
        assert row[-len(answer) :].tolist() == answer
        assert model.inputs.tokenizer.decode(row[: -len(answer)]).endswith(
            f"{prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
        logits = model.model(**model.inputs.collate([record]).model_inputs()).logits[0]  # [L, V], plain transformers
        log_probs = logits[-len(answer) - 1 : -1].log_softmax(-1)
        expected -= float(log_probs[range(len(answer)), answer].sum())
        count += len(answer)
    total, tokens = model._loss(QuestionBatch(model.inputs.collate(records), None, ()))
    assert tokens == count
    torch.testing.assert_close(float(total), expected, rtol=1e-5, atol=0)


@torch.no_grad()
def test_what_generation_leaves_behind_changes_no_loss(folder):
    model, records = lesson(folder, ["Where?", "Which way did it go, and how far was that?"], ["A", " left"])
    prompts = model.inputs.collate([model.inputs.prompt_only(record) for record in records], side="left")
    batch = QuestionBatch(model.inputs.collate(records), prompts, tuple(question("clip", n) for n in (0, 1)))
    before = model._loss(batch)[0]
    assert len(model.answer(batch)) == 2
    assert torch.equal(model._loss(batch)[0], before)


def test_adapters_leave_a_merger_that_trains_beside_them(folder):
    # In the original, LoRA froze the merger that the flags had asked for.
    lightning.seed_everything(0, verbose=False)
    model = module(folder, train=("merger",), lora=LoRA(r=4, alpha=8))
    run = trainer(folder, limit_val_batches=0, max_steps=1)
    run.fit(model, data(folder))
    rows = {row.part: row for row in trained_table(model.model, model.inputs.family)}
    assert {part for part, row in rows.items() if row.trained} == {"merger", "lora"}
    assert rows["merger"].trained == rows["merger"].total == 987_264
    base = TinyQwen3VL(str(folder / "tiny")).load()[0].state_dict()
    moved = [n for n, p in model.model.named_parameters() if "merger" in n and not torch.equal(p, base[plain(n)])]
    assert len(moved) == 18  # three mergers of two linear layers and a norm, each with a bias


def plain(name):
    return name.removeprefix("base_model.model.")


def test_frozen_parts_stay_and_trained_parts_move(folder):
    lightning.seed_everything(0, verbose=False)
    model = module(folder, train=("merger",))
    before = {}

    class Remember(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            before.update({k: v.clone() for k, v in pl_module.state_dict().items()})

    trainer(folder, callbacks=[Remember()], limit_val_batches=0).fit(model, data(folder))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("merger" in name for name in moved)


TWO_RANKS = """
import json, sys
import lightning, torch
from tests.train.test_sft import Losses, data, module, trainer
from pathlib import Path
folder, out, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
lightning.seed_everything(0, verbose=False)
seen = []
class Seen(lightning.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        seen.extend(question.id for question in batch.questions)
run = trainer(folder, max_steps=-1, max_epochs=1, devices=devices, strategy="ddp", callbacks=[Seen()])
run.fit(module(folder), data(folder))
scores = {name: float(value) for name, value in run.callback_metrics.items() if name.startswith("val/count")}
out.joinpath(f"rank{run.global_rank}.json").write_text(json.dumps({"seen": seen, "counts": scores}))
"""


def test_two_ranks_take_equal_steps_and_see_every_question_once(folder, tmp_path):
    module(folder).prepare_data()
    script = tmp_path / "two.py"
    script.write_text(TWO_RANKS)
    root = Path(__file__).resolve().parents[2]
    options = ["--nproc-per-node=2", "--master-port=29411"]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(script), str(folder), str(tmp_path), "2"],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1)]
    wanted = sum(sum(s.questions) for s in data_index(folder).split("train"))
    assert abs(len(ranks[0]["seen"]) - len(ranks[1]["seen"])) <= 1
    assert len(set(ranks[0]["seen"] + ranks[1]["seen"])) == wanted == sum(len(rank["seen"]) for rank in ranks)
    asked = sum(sum(s.questions) for s in data_index(folder).split("val"))
    assert sum(ranks[0]["counts"].values()) == asked
    assert ranks[0]["counts"] == ranks[1]["counts"]


def data_index(folder):
    from mllm4d.shards import read_index

    return read_index(folder / "shards")


def test_a_base_model_that_does_not_train_can_be_scored_but_not_fitted(folder):
    scores = trainer(folder).validate(module(folder, train=()), data(folder), verbose=False)[0]
    assert 0 <= scores["val/accuracy"] <= 1
    with pytest.raises(InputError, match="nothing would train"):
        trainer(folder).fit(module(folder, train=()), data(folder))
