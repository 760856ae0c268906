"""A run folder: names, what is read back, and who may write."""

import json
import os

import numpy as np
import pytest

from pdm_tf.config.fields import Config
from pdm_tf.config.presets import DEFAULT_DATASET
from pdm_tf.errors import UserError
from pdm_tf.run import PRETRAINED, RunFolder


def test_checkpoints_and_what_kills_left_of_them_are_told_apart(tmp_path):
    run = RunFolder(tmp_path)
    assert run.checkpoint_steps() == run.partial_steps() == []
    for step in (200, 30):
        run.checkpoint(step).mkdir(parents=True)
    run.partial_checkpoint(400).mkdir()
    (tmp_path / "checkpoints" / "step_of_mine").mkdir()
    assert run.checkpoint_steps() == [30, 200] and run.partial_steps() == [400]


def test_the_newest_weights(tmp_path):
    run = RunFolder(tmp_path)
    with pytest.raises(UserError, match="holds no weights yet"):
        run.newest_weights()
    run.weights(9).parent.mkdir()
    for step in (9, 100, 20):
        run.weights(step).touch()
    assert run.newest_weights() == run.weights(100)


def test_snapshots_of_a_length_are_not_the_run_s_own_average(tmp_path):
    run = RunFolder(tmp_path)
    assert run.snapshot_steps(0.1) == []
    run.snapshot(0.1, 3).parent.mkdir(parents=True)
    for step in (30, 4):
        run.snapshot(0.1, step).touch()
    (run.snapshot(0.1, 3).parent / ".step_00000050.npz.partial-host-1").touch()
    assert run.snapshot_steps(0.1) == [4, 30] and run.snapshot_steps(0.05) == []
    with pytest.raises(UserError, match="holds no weights yet"):
        run.newest_weights()


def test_the_config_comes_back_and_what_is_none_is_refused(tmp_path):
    run, config = RunFolder(tmp_path / "new"), Config(seed=4)
    with pytest.raises(UserError, match="holds no run"):
        run.config()
    run.write_config(config)
    assert run.has_config() and run.config() == config
    # A folder of the project's first form.
    values = json.loads(config.to_json())
    del values["sampling"]
    values["training"]["sampling_steps"] = 250
    run.config_file.write_text(json.dumps(values))
    with pytest.raises(
        UserError, match="unknown key sampling_steps: another version of pdm_tf wrote it; use"
    ) as error:
        run.config()
    assert "\n" not in str(error.value)


def test_metrics_of_a_run_that_was_killed_and_went_over_steps_again(tmp_path):
    run = RunFolder(tmp_path)
    run.logs.mkdir()
    lines = [{"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0}, {"step": 10, "loss": 4.0, "rate": 1.0}]
    run.metrics_file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 30, "lo')
    metrics = run.metrics()
    np.testing.assert_array_equal(metrics["loss"], [[10, 4], [20, 2]])
    np.testing.assert_array_equal(metrics["rate"], [[10, 1]])


@pytest.mark.parametrize("name", sorted({DEFAULT_DATASET, *os.listdir(PRETRAINED)}))
def test_weights_that_ship_are_a_run_of_their_data_set_with_a_card(name):
    run = RunFolder(PRETRAINED / name)
    config = run.config()
    steps = f"_{config.distillation.steps}" if config.is_student else ""
    assert config.data.dataset + steps == name and run.newest_weights().exists()
    assert {"README.md", "grid.png"} <= set(os.listdir(run.path))


def test_damaged_files_of_a_run_are_refused_or_passed_over(tmp_path):
    run = RunFolder(tmp_path)
    for damage in (b"\xff", b"[" * 100_000, b"{"):
        run.config_file.write_bytes(damage)
        with pytest.raises(UserError, match=r"config.json is not valid JSON \("):
            run.config()
    run.logs.mkdir()
    lines = [
        b'{"step": 1, "loss": 2}', b"\xff", b"[]", b"3", b'{"loss": 1}', b'{"step": 2, "loss": "x"}',
        b'{"step": 3, "loss": 1' + b"0" * 400 + b"}", b'{"step": 4, "loss": 3.5, "a": null}',
    ]  # fmt: skip
    run.metrics_file.write_bytes(b"\n".join(lines))
    metrics = run.metrics()
    assert list(metrics) == ["loss"] and metrics["loss"].tolist() == [[1, 2], [4, 3.5]]
