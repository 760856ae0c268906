"""--mode=analyze through the command line."""

import json
from pathlib import Path

import pytest

from pdm_tf.analysis.kinds import KINDS
from pdm_tf.config.fields import ANALYSES
from pdm_tf.data import find_dataset
from pdm_tf.images import read_file
from tests.in_process import run_mode
from tests.tiny_runs import tiny_config, write_run


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    names = find_dataset("emoji64", "").label_names
    data = {"data__image_shape": (64, 64, 3), "data__num_classes": 9, "data__label_names": names}
    return str(write_run(tmp_path_factory.mktemp("runs") / "a", tiny_config(**data)))


def analyze(capsys, run_dir, **flags):
    # Without a batch size, as most will: it has a default of its own.
    return run_mode(capsys, mode="analyze", run_dir=run_dir, num_samples=2, **flags)


def test_every_word_of_the_flag_is_a_kind():
    assert tuple(sorted(KINDS)) == tuple(sorted(ANALYSES))


def test_one_writes_numbers_and_a_picture_into_the_run_and_says_a_sentence(run_dir, capsys):
    status, out = analyze(capsys, run_dir, what="fig4", labels=["Flags"])
    assert status == 0
    sentence, numbers, picture = out.strip().splitlines()
    assert numbers == f"numbers: {run_dir}/analysis/fig4.json" and "“Flags”" in sentence
    found = json.loads(Path(numbers.removeprefix("numbers: ")).read_text())
    assert found["sentence"] == sentence and (found["label"], found["count"], found["t"]) == (2, 2, 970)
    assert read_file(picture.removeprefix("picture: ")).size > (300, 300)


@pytest.mark.parametrize(
    "flags, said",
    [
        ({"what": "table2"}, "has not been evaluated with the weights that it has"),
        ({"what": "fig3"}, "needs runs that were trained here, of x, eps and v"),
        (
            {"what": "fig1a", "steps": "3"},
            "--steps is for --what=table1 and grids, and does nothing",
        ),
        ({"what": "fig1b", "memory_gib": 1.0}, "--memory_gib is for --what=memory, and does nothing"),
    ],
)
def test_what_cannot_be_made_says_so_in_one_line(run_dir, capsys, flags, said):
    status, error = analyze(capsys, run_dir, **flags)
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and said in line
