"""The page in a real, headless Chromium: clicks, uploads, brushes, downloads, screenshots.

It needs chromium and chromedriver, and gradio: in the interpreter that PDM_TF_PAGE_PYTHON names, or in this
one. PDM_TF_SCREENSHOTS names a folder to leave the screenshots in.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pdm_tf.images import write_png
from tests.data import fixtures
from tests.page.browser import CHROMEDRIVER, CHROMIUM, Browser, chromedriver
from tests.page.studios import write_runs

ROOT = Path(__file__).parent.parent.parent
PYTHON = os.environ.get("PDM_TF_PAGE_PYTHON") or (importlib.util.find_spec("gradio") and sys.executable)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="no gradio here, and PDM_TF_PAGE_PYTHON names no Python with it"),
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="no chromium and chromedriver here"),
]
PHOTO = fixtures.natural_image(20, 40, 50)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What people upload."""
    folder = tmp_path_factory.mktemp("uploads")
    write_png(folder / "photo.png", PHOTO)
    write_png(folder / "exact.png", fixtures.natural_image(21, 16, 16))
    (folder / "text.png").write_text("hello")
    (folder / "empty.png").touch()
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs, and the data of all but the grey one."""
    data = tmp_path_factory.mktemp("data")
    records = [fixtures.example(fixtures.encode(fixtures.natural_image(n, 16, 16)), n % 3) for n in range(6)]
    fixtures.write_shards(data, [records], shape=(16, 16, 3), classes=3)
    settings = {"data__dataset": f"folder:{data}", "sampling__steps": (6,)}
    return write_runs(tmp_path_factory.mktemp("runs"), **settings)


@pytest.fixture(scope="module")
def address(runs):
    """A page that is served by a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ",".join(str(runs / name) for name in ("whole", "low", "high", "grey"))
    process = subprocess.Popen(
        [PYTHON, "main.py", "--mode=page", f"--run_dir={names}", f"--port={port}"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("page: "):
            break
    assert lines and lines[-1] == f"page: http://127.0.0.1:{port}/\n", lines
    yield lines[-1].split()[1]
    process.send_signal(signal.SIGINT)
    more = process.communicate(timeout=60)[0].splitlines()
    assert [line for line in more if not line.startswith("note: samples.npz")] == ["the page is closed"]
    assert process.returncode == 0


@pytest.fixture(scope="module")
def driver():
    with chromedriver() as found:
        yield found


class Visitor(Browser):
    """Somebody on the page."""

    def __init__(self, driver, address, folder, phone=False):
        size = (390, 844) if phone else (1280, 900)
        super().__init__(driver, *size, phone=phone)
        self.phone, self.folder = phone, folder
        self.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.go(address)
        self.wait(lambda: self.all("button.primary", "Draw"), "the page")

    def tab(self, name):
        self.click("button[role=tab]", name)
        time.sleep(0.5)

    def status(self):
        """The status line in sight."""
        return " | ".join(text for text in self.texts("[role=tabpanel] .status span") if text)

    def hears(self, pattern):
        return self.wait(lambda: re.search(pattern, self.status()), f"/{pattern}/")[0]

    def field(self, label):
        """The input under a label in sight."""
        script = """return [...document.querySelectorAll('[data-testid=block-info]')]
            .filter(e => e.getClientRects().length && e.textContent.trim() == arguments[0])
            .map(e => e.closest('.block').querySelector('input:not([type=range]), textarea'))[0]"""
        return self.wait(lambda: self.script(script, label), label)

    def set(self, label, value):
        element = self.field(label)
        self.script("arguments[0].select()", element)
        self.type(element, f"{value}\ue004")  # tab

    def choose(self, label, choice):
        """One of a list."""
        element = self.field(label)
        self.script("arguments[0].select()", element)
        self.type(element, choice)
        self.click("[role=option]")
        self.script("arguments[0].blur()", element)

    def upload(self, path):
        script = """return [...document.querySelectorAll('input[type=file]')]
            .filter(e => e.closest('.column')?.getClientRects().length)[0]"""
        self.type(self.script(script), str(path))

    def pictures(self):
        """The pictures in sight."""
        return self.script(
            """return [...document.querySelectorAll('.pixels img')].filter(e => e.getClientRects().length)
            .map(e => e.src)"""
        )

    def saved(self):
        """What the three buttons save, as files of this machine."""
        found = []
        names = {"Save grid": "grid.png", "Save PNGs": "pngs.zip", "Save npz": "samples.npz"}
        for button, name in names.items():
            path = self.folder / name
            path.unlink(missing_ok=True)
            self.click("button", button)
            self.wait(path.exists, name)
            found.append(path.read_bytes())
        return found

    def check(self, name):
        """Takes a screenshot; nothing sticks out, nobody else was asked, the console is quiet."""
        time.sleep(0.5)
        place = Path(os.environ.get("PDM_TF_SCREENSHOTS", self.folder))
        self.screenshot(place / f"{name}-{'phone' if self.phone else 'desk'}.png")
        assert self.script("return document.documentElement.scrollWidth") <= self.width
        assert {host.split(":")[0] for host in self.hosts()} == {"127.0.0.1"}
        assert not [entry for entry in self.log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.parametrize("phone", [False, True], ids=["desk", "phone"])
def test_every_tab(driver, address, runs, files, tmp_path, phone):
    me = Visitor(driver, address, tmp_path, phone)
    try:
        draws(me, runs)
        edits(me, files)
        inpaints(me, files)
        looks_inside(me, files)
        compares(me)
        changes_the_model(me)
    finally:
        me.close()


def draws(me, runs):
    me.hears("Press Draw")
    me.click("button.label-wrap")
    me.set("Steps", 5000)
    me.click("button.primary", "Draw")
    me.hears("^Steps: 1 to 1000$")
    me.set("Steps", 6)
    me.set("Seed", 1.5)
    me.click("button.primary", "Draw")
    me.hears("Seed: a whole number")
    me.set("Seed", 5)
    me.choose("Pictures", "4")
    me.choose("Classes", "dog")
    me.click("button.primary", "Draw")
    me.hears(r"4 pictures in \d+\.\d s: 6 steps")
    me.check("draw")
    grid, pngs, samples = me.saved()
    assert Image.open(io.BytesIO(grid)).size == (38, 38) and pngs[:2] == b"PK"
    if not me.phone:
        command = [PYTHON, "main.py", "--mode=sample", f"--run_dir={runs / 'whole'}", "--num_samples=4"]
        command += ["--seed=5", "--labels=dog", "--strategy=cpu", f"--out={me.folder / 'command'}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        assert samples == (me.folder / "command" / "samples.npz").read_bytes()
        assert grid == (me.folder / "command" / "grid.png").read_bytes()


def edits(me, files):
    for name in ("text.png", "empty.png"):
        me.upload(files / name)
        me.hears(rf"{name} cannot be read as an image \(its bytes are of no known image format\)")
    me.upload(files / "photo.png")
    me.wait(lambda: me.all("canvas"), "a canvas")
    me.set("Strength", 0.8)
    me.click("button.primary", "Draw")
    me.hears(r"4 pictures in \d+\.\d s: the last 5 of 6 steps")
    me.check("edit")
    me.click("button", "Remove the picture")
    me.wait(lambda: not me.all("canvas"), "no canvas")


def inpaints(me, files):
    me.upload(files / "exact.png")
    me.wait(lambda: me.all("canvas"), "a canvas")
    time.sleep(1.5)  # it grows into its place
    x, y = me.place(me.all("canvas")[0])
    (me.touch if me.phone else me.drag)(x, y, -20, 10)
    time.sleep(0.5)
    me.click("button.primary", "Draw")
    me.hears(r"sections of 10 steps \(jump_length\) cannot be repeated in 6 steps")
    me.set("Jump length", 2)
    me.click("button.primary", "Draw")
    me.hears(r"4 pictures in \d+\.\d s: 6 ancestral steps in 10 passes")
    me.check("inpaint")
    with np.load(io.BytesIO(me.saved()[2])) as file:
        inpainted = file["arr_0"]
    changed = (inpainted != np.asarray(Image.open(files / "exact.png"))).any(axis=(0, 3))
    assert 1 <= changed.sum() <= 100 and not changed[0].any() and not changed[:, -1].any()


def looks_inside(me, files):
    me.tab("Look inside")
    me.hears("t = 500: z_t = .* x_theta is off by .* off by .* patches of 4 x 4 pixels")
    before = me.wait(lambda: len(me.pictures()) == 4 and me.pictures(), "four pictures")
    me.set("Noise level t", 0)
    me.hears("t = 0: z_t = 1.00 x picture .* is one of them")
    me.wait(lambda: me.pictures()[1] != before[1] and me.pictures()[2] != before[2], "other pictures")
    me.upload(files / "photo.png")
    me.wait(lambda: me.pictures()[0] != before[0], "my picture")
    me.check("inside")


def compares(me):
    me.tab("Models")
    me.click("button.primary", "Draw")
    status = me.hears("whole: 4 pictures in .*; low \\+ high: .*; high alone, to t = 400: 4 pictures in .*")
    assert status.count("4 pictures in") == 4
    assert len(me.wait(lambda: len(me.pictures()) == 4 and me.pictures(), "four grids")) == 4
    me.check("models")


def changes_the_model(me):
    me.tab("Draw")
    me.choose("Model", "grey")
    me.wait(lambda: not me.all("button", "Save grid"), "no files of another model")
    me.wait(lambda: not me.script(CLASSES), "no classes to choose")
    me.choose("Pictures", "1")
    me.click("button.primary", "Draw")
    me.hears(r"1 picture in \d+\.\d s: 6 steps")
    assert Image.open(io.BytesIO(me.saved()[0])).mode == "L"
    me.check("grey")
    me.tab("Look inside")
    me.choose("Model", "low")
    me.hears("t = 500: .* patches of 8 x 8 pixels")


CLASSES = """return [...document.querySelectorAll('[data-testid=block-info]')]
    .filter(e => e.getClientRects().length && e.textContent.trim() == 'Classes').length"""


def test_two_people_are_served_in_turn_and_who_leaves_is_not_waited_for(driver, address, tmp_path):
    first, second = (Visitor(driver, address, tmp_path) for _ in range(2))
    try:
        first.click("button.label-wrap")
        first.set("Steps", 1000)
        first.choose("Pictures", "64")
        first.click("button.primary", "Draw")
        first.hears("step")
        second.choose("Pictures", "1")
        second.click("button.primary", "Draw")
        time.sleep(2)
        assert "queue" in " ".join(second.texts(".status")) and "picture in" not in second.status()
        assert first.status().startswith("pictures 1 to 16 of 64, step ")
    finally:
        first.close()
    left = time.monotonic()
    try:
        second.hears(r"1 picture in \d+\.\d s")
        # Four batches of 1000 steps would have taken longer than a minute.
        assert time.monotonic() - left < 30
    finally:
        second.close()
