"""Real data for tests, and nothing downloaded."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The tests share the cores already; threads of each on top of that would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


def _real_data() -> Path:
    return Path(os.environ.get("MLLM4D_TEST_DATA") or ROOT.parent / "shared" / "data")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data; skips, and says so, where it is not there."""
    folder = _real_data()
    if not folder.is_dir():
        pytest.skip(f"real data: no folder {folder} (set MLLM4D_TEST_DATA)")
    return folder
