"""The rooms import leftwards only, heavy packages stay where they belong, and help comes quickly."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mllm4d"
LEVELS = [
    {"schema", "prompts", "answers", "reading"},
    {"video", "shards"},
    {"geometry", "viz"},
    {"curate", "qa"},
    {"data"},
    {"models"},
    {"train"},
    {"bench"},
    {"export", "card", "ask", "score"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
LIGHTNING = {"data", "train", "bench", "cli"}
VISION = {"curate", "geometry", "viz"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_left(path):
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "mllm4d" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= LEVEL[here], f"{path} imports {name}"
            assert not (here == "train" and parts[1] == "bench")
        if parts[0] in ("lightning", "pytorch_lightning"):
            assert here in LIGHTNING, f"{path} imports {name}"
        if parts[0] in ("open3d", "cv2"):
            assert here in VISION, f"{path} imports {name}"


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_training_imports_without_open3d_and_opencv():
    code = "import sys; sys.modules['open3d'] = sys.modules['cv2'] = None; import mllm4d.train.sft, mllm4d.train.rft"
    result = run_python(code + ", mllm4d.train.callbacks, mllm4d.data.datamodule, mllm4d.cli")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["fit", "--help"],
        ["test", "-h"],
        ["curate", "--help"],
        ["ask", "--help"],
        ["export", "-h"],
        ["score", "--help"],
    ],
)
def test_help_needs_nothing_heavy(arguments):
    code = f"import sys; from mllm4d.__main__ import main; main({arguments!r}); print('torch' in sys.modules)"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m mllm4d" in result.stdout
    assert result.stdout.strip().endswith("False")
