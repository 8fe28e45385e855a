"""The verbs: ``python -m mllm4d VERB -c CONFIG``. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

TASKS = {
    "curate": "mllm4d.curate.run.Curation",
    "score": "mllm4d.score.Score",
    "export": "mllm4d.export.Export",
    "ask": "mllm4d.ask.Ask",
}
"""Verbs that are a class with settings and a method ``run``; they start without Lightning."""

TRAINER_VERBS = ("fit", "validate", "test", "predict")

HELP = """\
mllm4d: spatial-temporal intelligence for multimodal LLMs

usage: python -m mllm4d VERB -c CONFIG [-c CONFIG ...] [--KEY VALUE ...]

verbs:
  curate    stereo video to shards of questions with known answers
  fit       train a model (and curate first where the config says how and there are no shards)
  validate  score a model on the validation split
  test      score a model on the test split
  score     score finished answer files of a benchmark
  export    merge a checkpoint into its base: a Hugging Face folder with a model card
  ask       ask a model about a video file

-c merges: a later file, and then --KEY VALUE, wins. Every key can be overridden:
  python -m mllm4d fit -c configs/quickstart.yaml
  python -m mllm4d fit -c configs/quickstart.yaml --data.batch_size 16 --trainer.max_epochs 2
  python -m mllm4d test -c configs/quickstart.yaml --ckpt_path runs/quickstart/checkpoints/last.ckpt
  python -m mllm4d test -c configs/bench/quickstart.yaml --ckpt_path runs/quickstart/checkpoints/last.ckpt
  python -m mllm4d curate -c configs/curate/world.yaml --clips 200 --out runs/world
  python -m mllm4d score --suite vlm4d answers_a.json answers_b.json
  python -m mllm4d export -c runs/sft/logs/config.yaml --ckpt_path runs/sft/checkpoints/last.ckpt --out runs/sft/model
  python -m mllm4d ask --model runs/sft/model --video FILE.mp4 "Which way did the camera go?"

python -m mllm4d VERB --help says what a verb takes; --help-all lists every key, which takes some seconds.
"""

TRAINER_HELP = """\
usage: python -m mllm4d {verb} -c CONFIG [-c CONFIG ...] [--ckpt_path FILE] [--KEY VALUE ...]

  -c CONFIG         YAML file; may be repeated, later files win
  --ckpt_path FILE  {checkpoint}
  --print_config    print the resolved configuration and stop
  --help-all        list every key with its type and default (takes some seconds)

the keys of a config:
  seed_everything   seed of everything random
  model             class_path and init_args of the LightningModule, for example mllm4d.train.sft.SFT
  data              class_path and init_args of the data module, for example mllm4d.data.datamodule.ClipDataModule
  trainer           arguments of lightning.Trainer: devices, precision, max_epochs, logger, callbacks, ...

  --model.help CLASS, --data.help CLASS and --trainer.callbacks.help CLASS list a class's keys.
"""

CURATE_HELP = """\
usage: python -m mllm4d curate -c CONFIG [-c CONFIG ...] [--KEY VALUE ...]

  -c CONFIG         YAML file; may be repeated, later files win
  --out FOLDER      where the shards go; an interrupted run goes on, a finished one is left alone
  --clips N         take only so many clips
  --help-all        list every key with its type and default (takes some seconds)

the keys of a config:
  source            class_path and init_args, for example mllm4d.curate.sources.stereo.StereoFolder
  depth, odometry   class_path and init_args of the estimators, where the source has no depth or poses
  finder            class_path and init_args of what finds objects, where the source has none
  quality           filters of pixels, tracks and clips; null trusts all
  margins           when an answer is clear enough to be asked for
  executor          local (processes of this machine), ray (a Ray cluster), or a class_path
  pairs, per_clip, splits, clips_per_shard, video_quality, workers, max_failed, seed

  --source.help CLASS lists a class's keys.
"""


EXPORT_HELP = """\
usage: python -m mllm4d export -c CONFIG --ckpt_path FILE --out FOLDER [--KEY VALUE ...]

  -c CONFIG             the configuration of the run: its saved config.yaml
  --ckpt_path FILE      the checkpoint
  --out FOLDER          where the model goes; it must be new
  --adapter_only true   write the LoRA adapter alone, in peft's format
  --dtype NAME          of the weights, for example bfloat16
  --logs FOLDER         where the run logged its scores, for the model card
  --help-all            list every key with its type and default (takes some seconds)
"""

ASK_HELP = """\
usage: python -m mllm4d ask --model FOLDER --video FILE [--KEY VALUE ...] QUESTION

  --model FOLDER        an exported or any other Hugging Face folder, or a hub name
  -c CONFIG --ckpt_path FILE    in its place, a run's configuration and checkpoint
  --video FILE          the video
  --options.A TEXT      an option; so are --options.B, ...
  --reasoning true      let it reason first; shows the thinking and the centres that it names
  --frames N            frames of the video that it sees
  --max_new_tokens N    longest answer
  --help-all            list every key with its type and default (takes some seconds)
"""

SCORE_HELP = """\
usage: python -m mllm4d score [--suite NAME] [-c CONFIG] [--KEY VALUE ...] FILE [FILE ...]

  FILE                  answers in the benchmark's released form, the model's under "response"; a JSON list or JSON
                        lines
  --suite NAME          vlm4d (unless told otherwise), vsi_bench, sti_bench, dsi_bench, ost_bench, mllm4d, custom, or a
                        class_path
  --text_only FILE      answers of a model that was not shown the videos, as one more blind baseline
  --suite.KEY VALUE     a setting of the suite, after --suite CLASS_PATH: files, videos, response, ...
  -c CONFIG             YAML file with class_path and init_args under "suite"
  --help-all            list every key with its type and default

prints one JSON object a file: n, correct, accuracy, invalid, ci_low, ci_high, groups, the benchmark's official figures,
blind (what is scored without the video) and warnings (where that is more than chance); with two files or more also
{"paired": [...]}: exact McNemar test and bootstrap over videos, questions matched by id.
"""

TASK_HELP = {"curate": CURATE_HELP, "score": SCORE_HELP, "export": EXPORT_HELP, "ask": ASK_HELP}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb; exits with 1 and one line on bad input, with 2 on a bad command line or configuration."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP)
        return
    verb, rest = argv[0], argv[1:]
    if verb not in TASKS and verb not in TRAINER_VERBS:
        known = ", ".join([*TASKS, *TRAINER_VERBS])
        sys.exit(f"mllm4d: no verb {verb!r}; there are {known}")
    if rest in (["-h"], ["--help"]):
        resume = "checkpoint to go on from" if verb == "fit" else "checkpoint to score; without it the base model"
        print(TASK_HELP[verb] if verb in TASKS else TRAINER_HELP.format(verb=verb, checkpoint=resume))
        return
    rest = ["--help" if word == "--help-all" else word for word in rest]
    from mllm4d.schema import InputError

    try:
        if verb in TASKS:
            build_task(verb, rest).run()
        else:
            from mllm4d.cli import run_trainer

            run_trainer([verb, *rest])
    except KeyboardInterrupt:
        print(f"mllm4d {verb}: interrupted", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        # What a data worker raises arrives with the worker's traceback in front of it.
        message = str(error).strip().rsplit("InputError: ", 1)[-1]
        sys.exit(f"mllm4d {verb}: {message}")


def build_task(verb: str, argv: Sequence[str]) -> Any:
    """Build the object behind a verb from its command line, without running it.

    Args:
        verb: One of ``TASKS``.
        argv: Its arguments.
    """
    from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

    from mllm4d.schema import InputError

    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    module, name = TASKS[verb].rsplit(".", 1)
    task = getattr(importlib.import_module(module), name)
    parser = ArgumentParser(
        prog=f"mllm4d {verb}",
        usage=f"python -m mllm4d {verb} -c CONFIG [--KEY VALUE ...]",
        parser_mode="omegaconf+",
        description=task.__doc__.split("\n")[0],
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file; may be repeated, later files win")
    if verb == "score":
        argv = _full_suite_name(argv)
        parser.add_argument("files", nargs="+", type=str, metavar="FILE", help="answer files")
    skip = {"files"} if verb == "score" else set()
    parser.add_class_arguments(task, as_group=False, as_positional=verb == "ask", skip=skip)
    try:
        settings = parser.instantiate(parser.parse_args(list(argv)))
    except ValueError as error:
        # What a class says about its arguments comes wrapped in the parser's own words.
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        raise
    settings.pop("config", None)
    return task(**settings)


def _full_suite_name(argv: Sequence[str]) -> list[str]:
    """The command line with a suite's short name as its class path: only a class takes settings (``--suite.KEY``)."""
    from mllm4d.bench.suites import NAMES

    words = [word for part in argv for word in (part.split("=", 1) if part.startswith("--suite=") else [part])]
    named = [before == "--suite" for before in ("", *words)]
    return [NAMES.get(word, word) if after else word for word, after in zip(words, named[: len(words)], strict=True)]


if __name__ == "__main__":
    main()
