"""Run a notebook from a clean kernel, and ask what it found."""

import json
import os

import nbformat
import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def execute(name, folder, question):
    """Run all cells in a folder of its own, and then an expression, whose value comes back as JSON.

    Args:
        name: What the notebook's name begins with.
        folder: Where it runs, and writes.
        question: A Python expression in the notebook's variables.
    """
    client = pytest.importorskip("nbclient", reason='notebooks: pip install "mllm4d[notebooks]"')
    (path,) = (FOLDER / known for known in NAMES if known.startswith(name))
    book = nbformat.read(path, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(f"import json; print('ANSWER', json.dumps({question}))"))
    with pytest.MonkeyPatch.context() as patch:
        # The kernel's: nothing downloaded, the package of this checkout, one thread beside the other tests'.
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        client.NotebookClient(
            book, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
    # Everything lands in one folder.
    assert [entry.name for entry in folder.iterdir()] == ["runs"]
    printed = "".join(output.text for output in book.cells[-1].outputs if output.output_type == "stream")
    return json.loads(printed.split("ANSWER", 1)[1]), book


def figures(book):
    """The Plotly figures that are shown, as their cells show them."""
    kind = "application/vnd.plotly.v1+json"
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]
