"""Benchmarks: their released files, prompts and official metrics, with ours beside them.

A suite is a class (``mllm4d.bench.suites.base.Suite``) in a file of its own. ``NAMES`` are short names for those that
come with the package; wherever one of them is taken, a ``class_path`` is taken as well.
"""

from __future__ import annotations

from mllm4d.bench.suites.base import Suite
from mllm4d.schema import InputError

NAMES: dict[str, str] = {
    "mllm4d": "mllm4d.bench.suites.own.MLLM4DBench",
    "vlm4d": "mllm4d.bench.suites.vlm4d.VLM4D",
    "vsi_bench": "mllm4d.bench.suites.vsi_bench.VSIBench",
    "sti_bench": "mllm4d.bench.suites.sti_bench.STIBench",
    "dsi_bench": "mllm4d.bench.suites.dsi_bench.DSIBench",
    "ost_bench": "mllm4d.bench.suites.ost_bench.OSTBench",
    "custom": "mllm4d.bench.suites.custom.CustomSuite",
}
"""Short name to class path."""


def load_suite(name: str) -> Suite:
    """A suite by its short name or class path, without its released files: enough to score answer files.

    Args:
        name: One of ``NAMES``, or the class path of a ``Suite``.

    Raises:
        InputError: There is no such suite.
    """
    import importlib

    path = NAMES.get(name, name)
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except (ImportError, AttributeError) as error:
        raise InputError(f"suite: {name!r} cannot be imported ({error})") from error
    if found is None:
        raise InputError(f"suite: {name!r} is neither one of {', '.join(NAMES)} nor a class path")
    if not (isinstance(found, type) and issubclass(found, Suite)):
        raise InputError(f"suite: {name!r} is no mllm4d.bench.suites.base.Suite")
    return found()
