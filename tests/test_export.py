"""Export: plain transformers loads it back with the same logits, and the model card says what it was made of."""

import json
import re
import sys

import lightning
import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from mllm4d import __main__ as main
from mllm4d.bench.metrics import MultipleChoiceAccuracy
from mllm4d.card import base_licence, find_logs
from mllm4d.data.datamodule import ClipDataModule
from mllm4d.export import Export, load_trained
from mllm4d.models.base import LoRA
from mllm4d.models.inputs import VideoInputs, VideoSettings
from mllm4d.models.tiny import TinyQwen3VL, build_tiny
from mllm4d.schema import InputError, Question, Sample
from mllm4d.shards import write_index, write_shards
from mllm4d.train.sft import SFT
from mllm4d.video import encode
from tests.conftest import ROOT

TIMES = torch.arange(8, dtype=torch.float64) / 4
SETTINGS = {
    "lora": {"train": (), "lora": LoRA(r=4, alpha=8)},
    "lora and merger": {"train": ("merger",), "lora": LoRA(r=4, alpha=8)},
    "dora": {"train": (), "lora": LoRA(r=4, alpha=8, dora=True)},
    "full": {"train": ("vision", "merger", "language")},
}


def film(seed):
    pixels = torch.randint(0, 255, (8, 8, 8, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return pixels.repeat_interleave(8, 1).repeat_interleave(8, 2)


def question(key, number):
    return Question(
        id=f"{key}/{number:03d}",
        task="camera_relative_direction",
        question="Which way did the camera go between 0 s and 1.75 s, in its own axes at 0 s?",
        options={"A": "left", "B": "right"},
        answer="AB"[number % 2],
        answer_value="left",
        unit=None,
        anchors=(0, 7),
        object=None,
        solution={"camera_center": None, "object_center": None},
        reasoning=None,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny model and shards of random pixels."""
    root = tmp_path_factory.mktemp("export")
    build_tiny(root / "tiny")
    shards, entries = root / "shards", []
    shards.mkdir()
    for split, count in (("train", 6), ("val", 2)):
        samples = (
            Sample(f"{split}-{n}", encode(film(n), TIMES), {"fps": 4.0, "times": TIMES.tolist()}, tuple(asked))
            for n in range(count)
            for asked in [[question(f"{split}-{n}", k) for k in range(2)]]
        )
        entries += write_shards(samples, shards, split, 8)
    notes = {
        "source": {"class_path": "some.Source", "init_args": {}},
        "counts": {"train": {"camera_relative_direction": 12}, "val": {"camera_relative_direction": 4}},
        "blind": {"camera_relative_direction": {"n": 16, "chance": 0.5, "option_prior": 0.625}},
    }
    write_index(shards, entries, notes)
    return root


def module(root, **settings):
    base = TinyQwen3VL(str(root / "tiny"), gradient_checkpointing=True, dtype="float32", **settings)
    return SFT(base, VideoSettings(frames=8, max_pixels=4096), MultipleChoiceAccuracy(), 0.03, max_new_tokens=2)


def logged(root):
    """What tells an export where the run logged, and on which shards it was trained."""
    data = {"class_path": "mllm4d.data.datamodule.ClipDataModule", "init_args": {"shards": str(root / "shards")}}
    return {"logs": str(root / "run" / "logs"), "data": data}


def fit(root, path, **settings):
    lightning.seed_everything(0, verbose=False)
    trained = module(root, **settings)
    logger = lightning.pytorch.loggers.TensorBoardLogger(str(root), name="run", version="logs")
    options = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    run = lightning.Trainer(
        accelerator="cpu", max_epochs=1, num_sanity_val_steps=0, logger=logger, log_every_n_steps=1, **options
    )
    run.fit(trained, ClipDataModule(str(root / "shards"), workers=0, batch_size=4, eval_batch_size=4))
    run.save_checkpoint(path)
    return trained


@torch.no_grad()
def logits(model, inputs):
    texts = [f"{question('a', 0).question}\nA. left\nB. right\n{k}" for k in range(2)]
    records = inputs.encode(film(99), TIMES, 4.0, texts, None, ["a", "b"])
    return model.eval()(**inputs.collate(records).model_inputs()).logits


@pytest.fixture(scope="module", params=SETTINGS)
def exported(root, request):
    """The module as trained, and the folder that its checkpoint was exported to."""
    name = request.param.replace(" ", "_")
    trained = fit(root, root / f"{name}.ckpt", **SETTINGS[request.param])
    folder = root / f"{name}-model"
    Export(module(root, **SETTINGS[request.param]), str(folder), str(root / f"{name}.ckpt"), **logged(root)).run()
    return trained, folder


def test_plain_transformers_gives_the_same_logits(root, exported):
    trained, folder = exported
    model = AutoModelForImageTextToText.from_pretrained(folder)
    expected = logits(trained.model, trained.inputs)
    found = logits(model, VideoInputs.load(folder))
    assert (found - expected).abs().max() < 1e-5 * max(1, float(expected.abs().max()))
    # Training must have changed something for this to say anything.
    base = AutoModelForImageTextToText.from_pretrained(root / "tiny")
    assert (logits(base, trained.inputs) - expected).abs().max() > 0.1


def test_the_folder_is_whole_and_says_how_videos_are_prepared(exported):
    trained, folder = exported
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "video_inputs.json", "README.md"} <= names
    assert not any("adapter" in name for name in names)
    assert json.loads((folder / "config.json").read_text())["use_cache"] is True
    assert GenerationConfig.from_pretrained(folder).eos_token_id == trained.inputs.tokenizer.eos_token_id
    assert AutoProcessor.from_pretrained(folder).chat_template == trained.inputs.processor.chat_template
    assert VideoInputs.load(folder).settings == trained.video


def test_the_model_card(exported):
    _, folder = exported
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "transformers"
    assert head["pipeline_tag"] == "video-text-to-text"
    assert "source `some.Source`: train 6 clips, 12 questions; val 2 clips, 4 questions" in text
    assert "| camera_relative_direction | 12 | 4 | 50.0 | 62.5 |" in text
    assert "after 3 optimiser steps (epoch" in text
    assert "the run's own was not at hand" in text
    assert "class_path: mllm4d.train.sft.SFT" in text
    assert "class_path: mllm4d.models.tiny.TinyQwen3VL" in text
    assert "max_pixels: 4096" in text
    assert "| val/accuracy | " in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "language" in text.split("## Training")[1]


def test_an_adapter_alone_works_on_its_base(root, tmp_path):
    from peft import PeftModel

    trained = fit(root, root / "adapter.ckpt", **SETTINGS["lora"])
    folder = tmp_path / "adapter"
    settings = {"adapter_only": True, **logged(root)}
    Export(module(root, **SETTINGS["lora"]), str(folder), str(root / "adapter.ckpt"), **settings).run()
    assert not (folder / "model.safetensors").exists()
    model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(root / "tiny"), folder)
    expected = logits(trained.model, trained.inputs)
    assert (logits(model, VideoInputs.load(folder)) - expected).abs().max() < 1e-5 * float(expected.abs().max())
    assert "PeftModel.from_pretrained" in (folder / "README.md").read_text()


def test_weights_can_be_saved_in_another_type(root, exported, tmp_path):
    checkpoint = root / f"{exported[1].name.removesuffix('-model')}.ckpt"
    settings = SETTINGS[checkpoint.stem.replace("_", " ")]
    Export(module(root, **settings), str(tmp_path / "half"), str(checkpoint), dtype="bfloat16").run()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "half", dtype="auto")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    full = AutoModelForImageTextToText.from_pretrained(exported[1]).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, full[name].bfloat16()), name


def fails(tmp_path, words, built, checkpoint, **settings):
    with pytest.raises(InputError, match=words):
        Export(built, str(tmp_path / "out"), checkpoint and str(checkpoint), **settings).run()
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_what_cannot_be_exported_says_so_and_leaves_nothing(root, tmp_path):
    lora, merger, full = (SETTINGS[name] for name in ("lora", "lora and merger", "full"))
    checkpoint = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}}, tmp_path / "empty.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    (tmp_path / "sharded.ckpt").mkdir()
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    trained = module(root, **merger)
    trained.configure_model()
    state = {name: p.detach() for name, p in trained.named_parameters() if p.requires_grad}
    torch.save({"state_dict": state}, checkpoint)
    fails(tmp_path, "name the checkpoint", module(root, **lora), None)
    fails(tmp_path, r"gone\.ckpt: not found", module(root, **lora), tmp_path / "gone.ckpt")
    fails(tmp_path, r"text\.ckpt: is no checkpoint", module(root, **lora), tmp_path / "text.ckpt")
    fails(tmp_path, r"other\.ckpt: .*'state_dict'", module(root, **lora), tmp_path / "other.ckpt")
    fails(tmp_path, r"sharded\.ckpt: is a folder", module(root, **lora), tmp_path / "sharded.ckpt")
    fails(tmp_path, "trained parameters differ", module(root, **lora), checkpoint)
    fails(tmp_path, "trained parameters differ", module(root, **merger), tmp_path / "empty.ckpt")
    fails(tmp_path, "'merger' trained in full", module(root, **merger), checkpoint, adapter_only=True)
    fails(tmp_path, "float33", module(root, **merger), checkpoint, dtype="float33")
    fails(tmp_path, "must have its model", torch.nn.Linear(1, 1), checkpoint)
    full_module = module(root, **full)
    full_module.configure_model()
    torch.save({"state_dict": dict(full_module.named_parameters())}, checkpoint)
    fails(tmp_path, "no adapters", module(root, **full), checkpoint, adapter_only=True)


def test_a_folder_that_is_there_is_left_alone(root, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(InputError, match="is there already"):
        Export(module(root, **SETTINGS["lora"]), str(tmp_path / "out"), "a.ckpt").run()
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_adapters_that_are_not_finite_are_not_merged(root, tmp_path):
    broken = module(root, **SETTINGS["lora"])
    broken.configure_model()
    state = {name: p.detach().clone() for name, p in broken.named_parameters() if p.requires_grad}
    state[next(name for name in state if "lora_B" in name)].fill_(float("nan"))
    torch.save({"state_dict": state}, tmp_path / "nan.ckpt")
    fails(tmp_path, "cannot be merged", module(root, **SETTINGS["lora"]), tmp_path / "nan.ckpt")


def test_without_a_checkpoint_the_base_model_is_loaded(root):
    model, inputs, step, _ = load_trained(module(root, train=()), None)
    base = AutoModelForImageTextToText.from_pretrained(root / "tiny")
    assert torch.equal(logits(model, inputs), logits(base, inputs))
    assert step is None


@pytest.mark.parametrize("name", ["sft", "quickstart", "cold_start"])
def test_a_training_configuration_is_taken_as_it_is(name, monkeypatch):
    monkeypatch.setitem(main.TASKS, "export", "mllm4d.export.Export")
    words = ["-c", str(ROOT / "configs" / f"{name}.yaml"), "--ckpt_path", "a.ckpt", "--out", "model"]
    task = main.build_task("export", [*words, "--data.shards", "elsewhere", "--model.base.dtype", "bfloat16"])
    assert isinstance(task.model, SFT)
    assert task.model.base.dtype == "bfloat16"
    assert task.data["shards"] == "elsewhere"
    assert task.trainer["max_epochs"] >= 1


def mllm4d(*words):
    main.main([str(word) for word in words])


def test_the_verbs_from_fit_to_export(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(main.TASKS, "export", "mllm4d.export.Export")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mllm4d"])
    config, run = ROOT / "configs/quickstart.yaml", tmp_path / "runs/quickstart"
    settings = ["--model.base.path", root / "tiny", "--data.shards", root / "shards", "--data.curation", "null"]
    options = ["--data.workers", "0", "--trainer.max_epochs", "1"]
    # In this process: another rank would begin this test run anew, and a port would stay taken.
    options += ["--trainer.devices", "1", "--trainer.strategy", "auto"]
    mllm4d("fit", "-c", config, *settings, *options)
    checkpoint = run / "checkpoints/last.ckpt"
    # By the run's own configuration: nothing need be repeated.
    mllm4d("export", "-c", run / "logs/config.yaml", "--ckpt_path", checkpoint, "--out", "model")
    assert "model: merged model" in capsys.readouterr().out
    text = (tmp_path / "model" / "README.md").read_text()
    assert "As the run saved it:" in text
    assert "train 6 clips, 12 questions" in text
    assert re.search(r"\| val/accuracy \| [\d.]+ \| 0 \|", text)
    assert "max_epochs: 1\n" in text
    mllm4d("export", "-c", config, *settings[:4], "--ckpt_path", checkpoint, "--out", "same")
    assert (tmp_path / "same" / "README.md").read_text() == text.replace("model --video", "same --video").replace(
        '"model"', '"same"'
    ).replace("# model", "# same")


def test_logs_are_those_of_the_run_that_wrote_the_checkpoint(tmp_path):
    def run(name, dirpath):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": dirpath}}] if dirpath else None
        (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks}}))
        return folder

    home = tmp_path / "runs" / "a" / "checkpoints"
    home.mkdir(parents=True)
    assert find_logs(home / "last.ckpt", None) is None
    other = run("runs/a/other", "runs/b/checkpoints")
    assert find_logs(home / "last.ckpt", None) is None
    mine = run("runs/a/logs", "runs/a/checkpoints")
    assert find_logs(home / "last.ckpt", None) == mine
    assert find_logs(home / "last.ckpt", str(other)) == other
    run("runs/a/again", "runs/a/checkpoints")
    assert find_logs(home / "last.ckpt", None) is None
    default = run("lightning_logs/version_3", None)
    (default / "checkpoints").mkdir()
    assert find_logs(default / "checkpoints" / "x.ckpt", None) == default
    with pytest.raises(InputError, match="gone: not found"):
        find_logs(home / "last.ckpt", "gone")


def test_the_base_models_licence_comes_from_its_card(tmp_path):
    assert base_licence(str(tmp_path)) is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    assert base_licence(str(tmp_path)) == "apache-2.0"
    (tmp_path / "README.md").write_text("# A model\n")
    assert base_licence(str(tmp_path)) is None
    assert base_licence("nobody/nothing") is None
