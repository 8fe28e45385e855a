"""TensorBoard itself, in a browser: what is logged is what people see."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from mllm4d.train.scene_views import PREDICTED
from mllm4d.viz import COLORS
from tests.train.test_tensorboard import train

pytestmark = pytest.mark.slow

PAGES = ("custom_scalars", "images", "text", "hparams", "mesh")
SIDE = 330  # pixels of the page's left column


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """Address of a running TensorBoard over a small training."""
    *_, folder = train(tmp_path_factory.mktemp("board"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port)]
    server = subprocess.Popen([*command, "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                if json.load(urllib.request.urlopen(f"{address}/data/runs", timeout=5)):
                    break
            except OSError:
                pass
            assert server.poll() is None, "TensorBoard ended"
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def pages(board, tmp_path_factory):
    """Every page as a picture, [H, W, 3]."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome to look at TensorBoard with")
    folder = tmp_path_factory.mktemp("screenshots")
    taken = {}
    for page in PAGES:
        path = folder / f"{page}.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--hide-scrollbars"]
        options += ["--window-size=1400,1000", "--virtual-time-budget=20000", f"--user-data-dir={folder / 'profile'}"]
        command = [browser, *options, f"--screenshot={path}", f"{board}/?#{page}"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        taken[page] = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return taken


def count(image, color, within=12):
    """Pixels of a colour, nearly."""
    wanted = [int(color[k : k + 2], 16) for k in (1, 3, 5)]
    return int((np.abs(image - wanted).max(-1) <= within).sum())


def test_all_pages_are_there(board):
    listing = json.load(urllib.request.urlopen(f"{board}/data/plugins_listing", timeout=20))
    assert {page for page in PAGES if listing[page]["enabled"]} == set(PAGES)


def test_scores_stand_in_a_chart_with_their_baselines(pages):
    chart = pages["custom_scalars"][150:340, SIDE + 100 : 720]  # the first one
    line = [255, 112, 67]
    column = (np.abs(chart - line).max(-1) <= 40)[:, chart.shape[1] // 2]
    lines = int((np.diff(column.astype(int)) == 1).sum())
    assert lines == 3  # accuracy, chance, the best blind solver


def test_clips_paths_and_predictions_are_seen(pages):
    image = pages["images"][:, SIDE:]
    assert count(image, PREDICTED) > 50
    assert count(image, COLORS[0]) > 20
    assert len(np.unique(image[300:550, 50:350].reshape(-1, 3), axis=0)) > 100  # a film's frame, no flat colour


def test_texts_and_settings_are_written(pages):
    for page in ("text", "hparams"):
        assert (pages[page][150:, SIDE:].max(-1) < 110).sum() > 1000


def test_points_are_seen_in_3d(pages):
    mesh = pages["mesh"][220:680, SIDE:]
    assert (mesh.min(-1) < 200).sum() > 300
