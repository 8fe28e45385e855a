import pytest
import torch

from mllm4d.models.base import LoRA
from mllm4d.models.families import Qwen3VL
from mllm4d.models.tiny import build_tiny
from mllm4d.schema import InputError
from mllm4d.train.optimizers import format_groups, parameter_groups
from tests.train.lessons import Lessons, sft, trained_weights, trainer

ALL = ("vision", "merger", "language")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    build_tiny(folder / "tiny")
    return folder


def module_of(root, **settings):
    module = sft(root, **settings)
    module.configure_model()
    return module


def test_each_part_has_its_rate_and_matrices_alone_decay(root):
    model = module_of(root, train=("merger",), lora=LoRA(r=4, alpha=8)).model
    groups = parameter_groups(model, Qwen3VL(), 2e-5, {"merger": 1e-6}, weight_decay=0.1)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("lora", 2e-5, 0.1),
        ("merger", 1e-6, 0.1),
        ("merger_vectors", 1e-6, 0.0),
    ]
    # Four layers of four projections with two factors each; three mergers of two linear layers, and their norms.
    assert [len(group["params"]) for group in groups] == [32, 6, 12]
    assert all(p.ndim == 2 for group in groups[:2] for p in group["params"])
    assert all(p.ndim == 1 for p in groups[2]["params"])
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(trained)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"vision": 1e-5}, "'vision' does not train; what trains is lora, merger"),
        ({"tower": 1e-5}, "'tower' does not train"),
        ({"lora": -1.0}, "that of 'lora' is -1; expected at least 0"),
    ],
)
def test_rates_that_are_refused(root, rates, message):
    model = module_of(root, train=("merger",), lora=LoRA(r=4, alpha=8)).model
    with pytest.raises(InputError, match=f"model.learning_rates: {message}"):
        parameter_groups(model, Qwen3VL(), 1e-5, rates)


def test_with_nothing_to_train_there_are_no_groups(root):
    with pytest.raises(InputError, match="nothing would train"):
        parameter_groups(module_of(root).model, Qwen3VL(), 1e-5)


def test_a_rate_of_zero_leaves_a_part_and_the_others_move_by_theirs(root):
    weights = []
    for rates in (None, {"vision": 0.0, "merger": 3.0}):
        module = sft(root, train=ALL, learning_rates=rates, learning_rate=0.5)
        trainer(root).fit(module, Lessons(8))
        weights.append(trained_weights(module))
    before = trained_weights(module_of(root, train=ALL))
    # Plain gradient descent: the steps are in proportion to the rates.
    for name, start in before.items():
        steps = [after[name] - start for after in weights]
        factor = 0.0 if "visual" in name else 1.0
        factor = 6.0 if "merger" in name else factor
        torch.testing.assert_close(steps[1], factor * steps[0], rtol=1e-4, atol=1e-6, msg=name)
        assert steps[0].abs().max() > 1e-5, name


def test_the_table_and_the_groups_are_printed_once_and_logged(root, tmp_path, caplog):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"train": ("merger",), "lora": LoRA(r=4, alpha=8), "learning_rates": {"merger": 1e-6}}
    module = sft(root, **settings, learning_rate=2e-5, warmup=0.5, weight_decay=0.1)
    with caplog.at_level("INFO"):
        logger = TensorBoardLogger(str(tmp_path), name="logs", version="a")
        trainer(root, max_steps=4, logger=logger).fit(module, Lessons(4))
    row = ["merger", "6", "983,040", "1e-06", "0.1"]
    assert [line.split() for line in caplog.text.splitlines()].count(row) == 1
    events = EventAccumulator(str(tmp_path / "logs" / "a"), size_guidance={"tensors": 0})
    events.Reload()
    logged = {
        tag: events.Tensors(f"trained/{tag}/text_summary")[0].tensor_proto.string_val[0].decode()
        for tag in ("parts", "groups")
    }
    assert row in [line.split() for line in logged["groups"].splitlines()]
    assert ["merger", "987,264", "987,264"] in [line.split() for line in logged["parts"].splitlines()]
    assert format_groups(module.trainer.optimizers[0].param_groups).splitlines()[0].split()[0] == "group"


def test_betas_reach_the_optimiser(root):
    module = sft(root, train=ALL, optimizer=torch.optim.AdamW, betas=(0.8, 0.9), learning_rate=1e-5)
    run = trainer(root)
    run.fit(module, Lessons(8))
    assert {group["betas"] for group in run.optimizers[0].param_groups} == {(0.8, 0.9)}
