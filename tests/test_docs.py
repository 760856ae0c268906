"""README and docs: each command is checked, and run small (heavy); flags, settings, links, figures.

A new command of main.py, make or pytest needs nothing here. One of a module needs a row of `SMALL`, any other
one of `ELSEWHERE` that says why it does not run here.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import main
from pdm_tf import devices
from pdm_tf.commands import describe
from pdm_tf.commands.options import class_numbers, sampled_as_asked
from pdm_tf.commands.train import plan
from pdm_tf.config.fields import Config, parse_settings
from pdm_tf.config.presets import DEFAULT_DATASET, preset
from pdm_tf.config.words import leaves
from pdm_tf.data import find_dataset
from pdm_tf.data.info import SOURCES
from pdm_tf.images import write_png
from pdm_tf.run import RunFolder
from tests.data import fixtures
from tests.documents import (
    LANGUAGES,
    PAGES,
    ROOT,
    Item,
    anchors,
    blocks_and_prose,
    items,
    links,
    name_of,
    spans,
)
from tests.evaluation.inception_graph import write_graph
from tests.tiny_runs import tiny_config, write_run, write_snapshots

FLAGS = {name for mode in main.MODES for name in leaves(main.options_of(mode))}
FLAG_OF_A_TOOL = r"\b(?:add|add_argument|tool_parser)\([^()]*?\"--(\w+)\""
ITEMS = [item for page in PAGES for item in items(page)]
COMMANDS = [item for item in ITEMS if item.words]
BLOCKS = [item for item in ITEMS if item.python]
MAKING = re.compile(r"--mode=train|data_tools")  # others on the page may need the result
# Each command once, wherever it is shown.
RUNS = [
    item
    for number, item in enumerate(ITEMS)
    if item.python
    or MAKING.search(" ".join(item.words))
    or item.words not in [earlier.words for earlier in ITEMS[:number]]
]
# The beginning of a command -> why it does not run here, nor can be checked beyond the files that it names.
ELSEWHERE = {
    r"\. \.venv/bin/activate": "the shell's own",
    r"python3[\d.]* -m venv ": "minutes and gigabytes; tests/test_serving.py makes one",
    r"\S+/pip install -r ": "as above",
    r"\.venv-serve/bin/python examples/": "tests/test_serving.py runs them, in an environment of their own",
    r"\.venv-page/bin/python main.py --mode=page": "serves; tests/page/test_browser.py clicks through it",
    r"docker ": "no docker here",
    r"tfds build ": "downloads; tests read data sets that TFDS has written",
    r"tensorboard ": "serves until it is stopped",
    r"apt install ": "changes the machine",
    r"pip install \. ": "tests/test_install.py runs it, in an environment of its own",
    r"gcloud ": "tells Google who one is",
}
# Module -> the flags that make it small, or a reason why it does not run here.
SMALL = {
    "data_tools.image_folder": "--workers=1",
    "data_tools.lsun": "--workers=1 --resolution=16",
    "data_tools.imagenet": "--workers=1 --resolution=16 --classes=2",
    "data_tools.ffhq": "--workers=1 --resolution=32",
    "data_tools.verify": "",
    "data_tools.avatars": "not here: needs Node.js; tests/data_tools/test_avatars.py",
    "data_tools.fashion_mnist": "not here: needs a Debian package; tests/data_tools/test_tools.py",
    "benchmarks.unet": "--batch=1 --repeats=1",
    "benchmarks.data_pipeline": "--sizes 64 --seconds=0.2 --repeats=1 --workers=1",
    "benchmarks.memory": "--networks emoji64 --repeats=1",
    "benchmarks.training_loop": "--steps=10 --repeats=1",
    "benchmarks.samplers": "--steps=2 --num_images=4 --batch_size=4 --seeds=2",
    "benchmarks.distances": "--count=200 --dimension=16",
    "benchmarks.peers": "not here: needs torch, in an environment of its own",
    "benchmarks.serving": "not here: needs the servers; tests/test_serving.py",
    "experiments.patch_sizes": "--seeds=1 --steps=4 --num_images=4 --held_out=4 --batch_size=4 --turns=1 "
    "--set=training.batch_size=4 --set=sampling.steps=4 --set=network.channel_multipliers=1,1",
    "experiments.recipes": "not here: trains for minutes; tests/experiments/test_recipes.py",
    "experiments.ladder": "--rungs 1 --seeds=1 --steps=2",
    "experiments.reproduction": "not here: hours; tests/experiments/test_reproduction.py",
    "tests.training.kill_and_resume": "not here: tests/training/test_kill.py",
}
SMALL_MODES = {
    "train": "--train_steps=12 --batch_size=4 --set=training.ema_every=1 --set=training.sample_images=2 "
    "--set=training.sample_steps=2 --set=training.score_every=0 --set=training.eval_batches=1",
    "sample": "--num_samples=2 --sample_batch_size=2",
    "evaluate": "--num_samples=8 --sample_batch_size=8",
    "analyze": "--num_samples=2 --sample_batch_size=2",
    "export": "",
    "describe": "",
}
SMALL_NETWORK = ["--set=network.base_channels=32", "--set=network.head_channels=32"]


# --- The surroundings of a command -----------------------------------------------------------------


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory):
    """A checkout for each page, with runs, data and exports of its own."""
    made = {}

    def checkout(page: str) -> Path:
        if page not in made:
            made[page] = tmp_path_factory.mktemp("checkout")
            for path in ROOT.iterdir():
                if path.name not in ("runs", "data", "exports", "evaluations", "shared"):
                    (made[page] / path.name).symlink_to(path)
        return made[page]

    return checkout


@pytest.fixture
def beside(checkouts, monkeypatch):
    """Goes to the checkout of an item's page, with the files and runs that the item needs."""

    def go(item: Item, runs: bool = True) -> None:
        monkeypatch.chdir(checkouts(item.where.split(":")[0]))
        for name, value in item.environment.items():
            monkeypatch.setenv(name, value)
        text = item.python or " ".join(item.words)
        for pattern, make in STAND_INS.items():
            for found in map(Path, re.findall(pattern, text)):
                if not found.exists():
                    found.parent.mkdir(parents=True, exist_ok=True)
                    make(found)
        read = r"--warm_start=(runs/\w+)" if "--mode=train" in item.words else r"(?:\b[\w.-]+/)*\bruns/\w+"
        for found in re.findall(read, text) if runs else ():
            stand_in_run(Path(found))

    return go


def pictures(count: int, size: int = 64) -> list[np.ndarray]:
    return [fixtures.natural_image(n, size, size) for n in range(count)]


def folder_of_pictures(folder: Path) -> None:
    fixtures.make_folder(folder, {f"{n}.png": fixtures.encode(image) for n, image in enumerate(pictures(8))})


def data_set(folder: Path) -> None:
    records = [fixtures.example(fixtures.encode(image)) for image in pictures(8, 16)]
    fixtures.write_shards(folder, [records], shape=(16, 16, 3))


def samples(path: Path) -> None:
    file = path if path.suffix == ".npz" else path / "samples.npz"
    file.parent.mkdir(exist_ok=True)
    np.savez(file, np.stack(pictures(8)))


STAND_INS = {
    r"--input (photos)": folder_of_pictures,
    r"folder:(?:gs://)?([\w./-]+)": data_set,
    r"tfds:(\w+)": lambda name: data_set(Path("data") / name / "1.0.0"),
    r"church_outdoor_train_lmdb": lambda path: fixtures.make_lsun(path, 6),
    r"ILSVRC2012_img_train.tar": lambda path: fixtures.make_imagenet(path, fixtures.imagenet_images(2, 3)),
    r"images1024x1024": lambda path: fixtures.make_ffhq_folder(path, 4, 32),
    r"=(\w+\.png)": lambda path: write_png(path, pictures(1)[0]),
    r"=(runs/a/samples|[\w/]+\.npz)": samples,
    r"=(\w+\.pb)": write_graph,
    r"\"(exports/\w+)\"": lambda folder: main.run(["--mode=export", f"--out={folder}", "--steps=2"]),
}


def stand_in_run(path: Path) -> None:
    """A run with a tiny network for the default data set or emoji64, or an expert of it, as its name says."""
    if RunFolder(path).has_config():
        return
    dataset = "emoji64" if path.name.startswith("emoji64") else DEFAULT_DATASET
    config = tiny_config(
        data__dataset=dataset,
        data__image_shape=(64, 64, 3),
        data__num_classes=9,
        data__label_names=find_dataset(dataset, "").label_names,
        diffusion__t_stop=400 if path.name.endswith("low") else 1000,
        diffusion__t_start=400 if path.name.endswith("high") else 0,
        sampling__steps=(8,),
    )
    write_run(path, config)
    write_snapshots(path, range(10, 321, 10))


# --- Commands and Python, checked ------------------------------------------------------------------


def kind_of(item: Item) -> tuple[str, list[str]]:
    """How a command is handled, and its arguments: buckets are folders, "--seed=..." stands for any."""
    words = [re.sub(r"\bgs://", "", word) for word in item.words if not word.endswith("=...")]
    for kind, begin in {"make": 1, "pytest": 1, "python main.py": 2, "python -m": 2}.items():
        if " ".join(words[:begin]) == kind:
            return kind, words[begin:]
    if any(re.match(pattern, " ".join(words) + " ") for pattern in ELSEWHERE):
        return "elsewhere", words
    pytest.fail(f"{item.where}: nothing here knows how to check {' '.join(words)!r}")


@pytest.mark.parametrize("item", COMMANDS, ids=lambda item: item.where)
def test_a_command_passes_all_checks_before_compute(item, beside, monkeypatch):
    kind, arguments = kind_of(item)
    if kind == "python main.py" and arguments != ["--help"]:
        beside(item, runs="--mode=train" in arguments)
        check_main(arguments)
    elif kind == "python -m":
        check_module(arguments, monkeypatch)
    elif kind == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
    assert set(item.environment) <= {"TF_CONFIG", "TPU_NAME", "CUDA_VISIBLE_DEVICES"}
    for word in item.words:
        if re.fullmatch(r"(examples/|tests/|requirements)[\w/.-]+\.(py|txt)", word):
            assert (ROOT / word).is_file(), f"{item.where}: there is no {word}"


class Parsed(Exception):
    """The arguments are right."""


def check_module(arguments, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *given):
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delitem(sys.modules, arguments[0], raising=False)
    with pytest.raises(Parsed):
        runpy.run_module(arguments[0], run_name="__main__")


def check_main(arguments):
    """All that the mode refuses before it computes."""
    mode, options = main.parse(arguments)
    if "TF_CONFIG" in os.environ:
        assert devices.choose("auto")[0] == "multi_worker"
    if mode in ("train", "describe"):
        plan(options, describe.dataset_at_hand(options))
    elif mode != "page":
        names = find_dataset(DEFAULT_DATASET, "").label_names
        run = preset(DEFAULT_DATASET).replace({"data.label_names": names})
        class_numbers(getattr(options, "labels", ()), sampled_as_asked(run, options))


@pytest.mark.parametrize("item", BLOCKS, ids=lambda item: item.where)
def test_the_imports_of_python_are_there(item):
    for node in ast.walk(ast.parse(item.python)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert hasattr(importlib.import_module(node.module), alias.name)


# --- Commands and Python, run ----------------------------------------------------------------------


def small(arguments: list[str]) -> list[str]:
    """The same command for two cores; where it needs another machine or an archive, it is described."""
    mode, options = main.parse(arguments)
    dataset = getattr(options, "dataset", None)
    elsewhere = getattr(options, "strategy", None) in ("tpu", "multi_worker")
    if mode == "page":
        pytest.skip("serves until it is stopped")
    if mode == "train" and (elsewhere or dataset in SOURCES):
        kept = [word for word in arguments if not word.startswith(("--mode", "--strategy", "--run_dir"))]
        return ["--mode=describe", *kept]
    if elsewhere:
        pytest.skip("needs several machines")
    new_network = mode == "train" and dataset and not options.warm_start
    draws = mode != "evaluate" or options.run_dir or not options.samples
    numbers = SMALL_MODES[mode].split() if draws else ()
    return [*arguments, *numbers, *(SMALL_NETWORK if new_network else ())]


@pytest.mark.heavy
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("item", RUNS, ids=lambda item: item.where)
def test_it_runs(item, beside):
    """In the order of the page: some need the results of others."""
    if "urlopen" in item.python:
        pytest.skip("needs a server; tests/test_serving.py")
    if item.python:
        beside(item)
        exec(compile(item.python, item.where, "exec"), {"__name__": "__main__"})
        return
    kind, arguments = kind_of(item)
    if kind == "python main.py" and arguments != ["--help"]:
        beside(item)
        main.run(small(arguments))
    elif kind == "python -m":
        module, *own = arguments
        if SMALL[module].startswith("not here"):
            pytest.skip(SMALL[module])
        beside(item)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, "-m", module, *own, *SMALL[module].split()]
        subprocess.run(command, check=True, env=environment)


@pytest.mark.heavy
def test_the_presets_cost_what_the_table_says(capsys):
    row = r"^\| `(--dataset=[^`]+)`.*?\| ([\d,]{9,}) \| ([\d.]+) \|"
    rows = re.findall(row, PAGES[0].read_text(), re.MULTILINE)
    assert len(rows) == 11
    for flags, parameters, gigaflops in rows:
        main.run(["--mode=describe", *flags.split()])
        output = capsys.readouterr().out
        assert f"trainable parameters: {parameters}" in output
        found = re.search(r"forward: ([\d.e+]+) GFLOP", output)[1]
        assert float(found) == pytest.approx(float(gigaflops), rel=5e-3)


# --- The text beside commands ------------------------------------------------------------------------


def flags_of_tools(*folders: str) -> set[str]:
    files = [path for folder in folders for path in (ROOT / folder).glob("*.py")]
    return {name for path in files for name in re.findall(FLAG_OF_A_TOOL, path.read_text())}


def test_every_block_has_a_language_and_every_row_a_command():
    for page in PAGES:
        for block in blocks_and_prose(page)[0]:
            assert block.language in LANGUAGES, f"{name_of(page)}:{block.line}: name its language"
    commands = [" ".join(item.words) + " " for item in COMMANDS]
    for pattern in ELSEWHERE:
        assert any(re.match(pattern, command) for command in commands), f"nothing begins with {pattern!r}"
    assert {item.words[2] for item in COMMANDS if item.words[:2] == ("python", "-m")} == set(SMALL)


def test_flags_and_settings_exist_and_every_flag_is_documented():
    tools = flags_of_tools("data_tools", "benchmarks", "experiments", "examples", "tests/training")
    known = FLAGS | tools | {"mode", "help", "logdir"}
    sections = "|".join(sorted({key.partition(".")[0] for key in leaves(Config) if "." in key}))
    for page in PAGES:
        for name in re.findall(r"(?<![\w-])--(\w+)", page.read_text()):
            assert name in known, f"{name_of(page)}: there is no flag --{name}"
        for line, text in spans(page):
            for key in re.findall(rf"(?:^|=)((?:{sections})\.\w+)", text):
                assert key in leaves(Config), f"{name_of(page)}:{line}: there is no setting {key}"
            for assignment in re.findall(rf"--set=((?:{sections})\.\w+=[^\s.]*)(?:\s|$)", text):
                parse_settings([assignment])
    text = " ".join(page.read_text() for page in PAGES)
    names = sorted(FLAGS | flags_of_tools("data_tools"))
    missing = [name for name in names if not re.search(rf"--{name}\b", text)]
    assert not missing, f"no page explains these: {missing}"


def test_links_and_files_are_there_and_the_readme_leads_to_every_page():
    assert len(PAGES[0].read_text().splitlines()) <= 120
    cards = [path for room in ("pdm_tf", "examples") for path in (ROOT / room).rglob("*.md")]
    for page in (*PAGES, *cards):
        for link in links(page):
            file, _, anchor = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.exists(), f"{page}: {link} is not there"
            assert not anchor or anchor in anchors(target), f"{page}: {link} is no heading of that page"
    tops = "flags|pdm_tf|data_tools|benchmarks|experiments|examples|tests|docs"
    for page in PAGES:
        for line, text in spans(page):
            for path in re.findall(rf"(?:^|[ =])((?:{tops})/[\w./]+)", text):
                assert (ROOT / path).exists(), f"{name_of(page)}:{line}: there is no {path}"
    linked = {(PAGES[0].parent / link.partition("#")[0]).resolve() for link in links(PAGES[0])}
    assert set(PAGES[1:]) <= linked


def test_the_readme_s_figures_are_those_of_the_pages_that_it_names():
    rows = [line for line in PAGES[0].read_text().splitlines() if line.startswith("|") and "**" in line]
    assert rows
    for row in rows:
        (target,) = re.findall(r"\]\(((?:docs|pdm_tf/pretrained)/[\w/]+\.md)", row)
        for figure in re.findall(r"\*\*(.+?)\*\*", row):
            assert figure in (ROOT / target).read_text(), f"{target} does not say {figure}"


def test_the_messages_that_troubleshooting_quotes_exist():
    """Each part of a quotation is in one literal of the sources, or in setup.sh."""
    literals = [(ROOT / "setup.sh").read_text()]
    for path in (path for room in ("flags", "pdm_tf", "data_tools") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                literals.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.append(node.value)
    rows = [
        line for line in (ROOT / "docs/troubleshooting.md").read_text().splitlines() if line.startswith("|")
    ]
    quoted = [text for row in rows for text in re.findall(r"[`\"]([^`\"]+ [^`\"]+)[`\"]", row.split("|")[1])]
    quoted = [text for text in quoted if not text.startswith(("make ", "--"))]
    assert quoted
    for text in quoted:
        for part in re.split(r" ?\.\.\. ?", text):
            assert any(part in literal for literal in literals), f"nothing says {part!r}"
