"""The model card of an exported model: how to load it, and what it was made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mllm4d.models.base import PartRow, format_table
from mllm4d.schema import InputError
from mllm4d.shards import Index, read_index

PACKAGES = ("mllm4d", "torch", "transformers", "peft", "lightning", "av")

LOAD = """\
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{name}", dtype="auto")
processor = AutoProcessor.from_pretrained("{name}")
"""

LOAD_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "{name}")
processor = AutoProcessor.from_pretrained("{name}")
"""

USE = """\
Multiple-choice questions about 3-D space and time in a short video: how far and where the camera and objects moved.
Research use. Answers are guesses from one camera's view, not measurements; nothing that can hurt someone should hang on
them. The frames must be prepared as in training: `video_inputs.json` has the settings, and this command keeps to them.
"""


class Card(NamedTuple):
    """What a model card is written from.

    Attributes:
        name: The model's name.
        base: Folder or hub name of the base model.
        adapter_only: Whether the folder holds adapters alone.
        module: The LightningModule, whose settings are noted.
        data: ``data`` of the configuration of the export, for where there are no logs.
        step: Optimiser steps, or None.
        epoch: Epochs, or None.
        table: What trained.
        logs: Folder with the run's ``config.yaml`` and TensorBoard's files, or None.
    """

    name: str
    base: str
    adapter_only: bool
    module: Any
    data: Mapping[str, Any]
    step: int | None
    epoch: int | None
    table: Sequence[PartRow]
    logs: Path | None


def write_card(card: Card, folder: Path) -> None:
    """Write ``README.md``.

    Args:
        card: What is known.
        folder: An existing folder.
    """
    from huggingface_hub import ModelCardData

    licence = base_licence(card.base)
    is_path = Path(card.base).is_dir()
    head = ModelCardData(
        license=licence,
        base_model=None if is_path else card.base or None,
        library_name="peft" if card.adapter_only else "transformers",
        pipeline_tag="video-text-to-text",
        tags=["mllm4d", "spatial-reasoning", "video"],
    )
    # A folder of whoever trained says nothing to others.
    base = Path(card.base).name if is_path else card.base
    load = (LOAD_ADAPTER if card.adapter_only else LOAD).format(name=card.name, base=base)
    ask = f'python -m mllm4d ask --model {card.name} --video FILE.mp4 "Which way did the camera move?"\n'
    run, metrics = read_run(card.logs), read_scores(card.logs)
    parts = [
        f"---\n{head.to_yaml()}\n---\n\n# {card.name}\n\n`{base or 'A base model'}` trained with mllm4d on questions "
        "about 3-D space and time in video.\n",
        f"## Use\n\n{USE}\n{_block('python', load)}\n" + ("" if card.adapter_only else _block("bash", ask)),
        f"## Data\n\n{''.join(_data(run.get('data') or card.data))}",
        f"## Training\n\n{_training(card, run)}",
        f"## Scores\n\n{_scores(metrics)}",
        f"## Versions\n\n{', '.join(f'{name} {number}' for name, number in versions().items())}\n",
        f"## Licence\n\n{f'That of the base model: {licence}.' if licence else 'See that of the base model.'}\n",
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def versions() -> dict[str, str]:
    """Installed versions of what the model was made with."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def base_licence(base: str) -> str | None:
    """The licence in a base model's own card, where that lies on this machine; nothing is fetched.

    Args:
        base: Folder or hub name.
    """
    from huggingface_hub import ModelCard, try_to_load_from_cache

    path: Any = Path(base) / "README.md"
    if not path.is_file() and base.count("/") == 1:
        path = try_to_load_from_cache(base, "README.md")
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        return None
    try:
        return ModelCard.load(path, ignore_metadata_errors=True).data.get("license")
    except (ValueError, yaml.YAMLError):
        return None


def find_logs(checkpoint: Path, given: str | None) -> Path | None:
    """The folder where the run that wrote a checkpoint logged.

    Args:
        checkpoint: The checkpoint; looked at are its folder, the one above, and the folders in both.
        given: The folder, where a person has named it.

    Returns:
        The folder, or None where none or several are that of this run: whose ``config.yaml`` sends checkpoints to that
        folder, or which has them inside it, as is Lightning's default.

    Raises:
        InputError: There is no such folder as ``given``.
    """
    if given is not None:
        if not Path(given).is_dir():
            raise InputError(f"{given}: not found; expected the folder of the run's logs")
        return Path(given)
    home = checkpoint.resolve().parent
    near = [folder for root in (home, home.parent) for folder in (root, *sorted(root.iterdir())) if root.is_dir()]
    found = [folder for folder in dict.fromkeys(near) if folder.is_dir() and _logged(folder, home)]
    return found[0] if len(found) == 1 else None


def _logged(folder: Path, home: Path) -> bool:
    trainer = read_run(folder).get("trainer")
    if not isinstance(trainer, Mapping):
        return False
    callbacks = trainer.get("callbacks") or ()
    settings = [c.get("init_args") or {} for c in callbacks if isinstance(c, Mapping)]
    named = [Path(s["dirpath"]).parts for s in settings if s.get("dirpath")]
    if named:
        return any(home.parts[-len(parts) :] == parts for parts in named)
    return folder == home.parent


def read_run(folder: Path | None) -> dict[str, Any]:
    """The configuration that a run saved in the folder of its logs; empty where there is none."""
    path = None if folder is None else folder / "config.yaml"
    if path is None or not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        # Some other program's file of that name.
        return {}
    return content if isinstance(content, dict) else {}


def read_scores(folder: Path | None) -> dict[str, tuple[float, int]]:
    """The last validation and test scores in TensorBoard's files.

    Args:
        folder: Where they are.

    Returns:
        Name to value and step; empty where there are none.
    """
    if folder is None:
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith(("val/", "test/"))]
    last = {name: events.Scalars(name)[-1] for name in names}
    return {name: (event.value, event.step) for name, event in last.items()}


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    found = False
    shards = data.get("shards", data.get("init_args", {}).get("shards"))
    for folder in [shards] if isinstance(shards, str) else list(shards or ()):
        name = folder if isinstance(folder, str) else getattr(folder, "path", "")
        if Path(name, "index.json").is_file():
            found = True
            yield _describe_index(Path(name).name, read_index(Path(name)))
    if not found:
        yield "Not known: the shards of the training configuration were not at hand at the export.\n"


def _describe_index(name: str, index: Index) -> str:
    notes = index.notes
    source, counts, blind = notes.get("source"), notes.get("counts", {}), notes.get("blind", {})
    kind = source.get("class_path", source.get("format")) if isinstance(source, Mapping) else source
    clips = {
        split: sum(len(s.keys) for s in index.split(split)) for split in dict.fromkeys(s.split for s in index.shards)
    }
    asked = {split: sum(sum(s.questions) for s in index.split(split)) for split in clips}
    text = f"`{name}`, source `{kind or 'not noted'}`: " + "; ".join(
        f"{split} {clips[split]} clips, {asked[split]} questions" for split in clips
    )
    solvers = list(dict.fromkeys(key for row in blind.values() for key in row if key not in ("n", "chance")))
    rows = []
    for task in dict.fromkeys(task for split in counts.values() for task in split):
        scores = blind.get(task, {})
        figures = [_percent(scores.get(solver)) for solver in ("chance", *solvers)]
        rows.append([task, *(str(counts[split].get(task, 0)) for split in counts), *figures])
    header = ["task", *counts, "chance", *solvers]
    note = "Questions per split; then, in %, what solvers score that never see the video.\n\n" if rows else ""
    return f"{text}.\n\n{note}{_table(header, rows)}\n"


def _training(card: Card, run: Mapping[str, Any]) -> str:
    steps = "" if card.step is None else f"Checkpoint after {card.step} optimiser steps (epoch {card.epoch}).\n\n"
    # Without the run's own configuration, only what decides the weights' shapes is known for certain.
    settings = run or {"model": settings_of(card.module)}
    known = {name: value for name, value in settings.items() if value is not None}
    dumped = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=120)
    source = "As the run saved it:" if run else "As it was exported with; the run's own was not at hand:"
    return f"{steps}{_block('', format_table(card.table))}\n{source}\n\n{_block('yaml', dumped)}"


def settings_of(value: Any) -> Any:
    """An object's settings as plain values, as far as it keeps its arguments in attributes of the same names.

    Args:
        value: Any value; what is neither plain nor keeps an argument is named by its class alone.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): settings_of(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [settings_of(item) for item in value]
    if inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    starts = [vars(kind)["__init__"] for kind in type(value).__mro__[:-1] if "__init__" in vars(kind)]
    names = dict.fromkeys(name for start in starts for name in list(inspect.signature(start).parameters)[1:])
    kept = {name: settings_of(getattr(value, name)) for name in names if hasattr(value, name)}
    return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": kept}


def _scores(metrics: Mapping[str, tuple[float, int]]) -> str:
    if not metrics:
        return "The run logged none.\n"
    rows = [[name, f"{value:.4g}", str(step)] for name, (value, step) in sorted(metrics.items())]
    return f"The last that the run logged, and the training step of each.\n\n{_table(['score', 'value', 'step'], rows)}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
