"""`loop.train` on the embedded data with a tiny network: what stops it, and what is left when it does."""

import json

import numpy as np
import pytest
import tensorflow as tf

from flags.config import parse_settings, validate
from flags.errors import UserError
from flags.presets import preset
from pdm_tf import data
from pdm_tf.training import loop
from pdm_tf.training.checkpoints import Checkpoints
from pdm_tf.training.ema import ExponentialMovingAverage
from pdm_tf.training.strategy import Workers
from tests.training.kill_and_resume import SETTINGS

TINY = {
    **SETTINGS, "training.batch_size": 4, "network.channel_multipliers": "1", "network.blocks_per_level": 1,
    "network.patch_size": 8, "training.checkpoint_every": 2, "training.ema_every": 2,
    "training.eval_batches": 1,
}  # fmt: skip


def train(run_dir, **changes):
    """Trains the tiny network; returns its config."""
    config = validate(
        preset("emoji64").replace(parse_settings([f"{k}={v}" for k, v in {**TINY, **changes}.items()]))
    )
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    config = loop.resolve(config, run_dir, strategy)
    loop.train(config, run_dir, data.find_dataset("emoji64", ""), strategy)
    return config


def tensors(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in name]
    return {name: reader.get_tensor(name) for name in names}


def test_gradients_that_stay_infinite_stop_the_run_at_a_good_checkpoint(tmp_path):
    """A rate of 1e30 gives one step of finite weights, and no finite gradient after it."""
    with pytest.raises(UserError) as error:
        train(tmp_path, **{
            "training.steps": 20, "training.eval_every": 100, "training.max_bad_steps": 5,
            "optimizer.learning_rate": 1e30, "optimizer.warmup_steps": 0,
        })  # fmt: skip
    message = str(error.value)
    assert "\n" not in message and "start from them with --warm_start in a new --run_dir" in message
    assert message.startswith(
        "5 steps in a row had a gradient that is not finite, from step 2 on, beginning at"
    )
    lines = [json.loads(line) for line in (tmp_path / "logs/metrics.jsonl").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines] == [0, 1, 2, 3, 4, 5]
    (last,) = sorted(tmp_path.glob("checkpoints/step_*"))[-1:]
    saved = tensors(last / "state")
    assert len(saved) > 50 and all(np.isfinite(value).all() for value in saved.values())
    with np.load(tmp_path / f"ema/{last.name}.npz") as averages:
        assert all(np.isfinite(averages[name]).all() for name in averages)


def test_a_warm_start_begins_with_the_averages_of_another_run(tmp_path, make_model, capsys):
    variables = make_model().network.trainable_variables
    other = ExponentialMovingAverage(variables, 0.99)
    other.averages = [average + 1 for average in other.averages]
    other.save(tmp_path / "low/ema/step_00000004.npz")
    ema = ExponentialMovingAverage(variables, 0.99)
    config = preset("imagenet256", split="high").replace({"training.warm_start": str(tmp_path / "low")})
    checkpoints = Checkpoints(tmp_path / "high", tf.train.Checkpoint(), ema)
    assert loop.first_step(config, checkpoints, ema) == 0
    assert capsys.readouterr().out == f"starting from {tmp_path / 'low/ema/step_00000004.npz'}\n"
    for variable, average, expected in zip(variables, ema.averages, other.averages):
        np.testing.assert_array_equal(variable, expected)
        np.testing.assert_array_equal(average, expected)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_does(tmp_path):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    config = preset("emoji64").replace({"training.batch_size": 33, "training.grad_accum": 3})
    with pytest.raises(UserError, match=r"does not divide by 2 replicas x training.grad_accum=3: .* is 36$"):
        loop.resolve(config, tmp_path, strategy)


def test_a_run_of_other_settings_is_not_resumed_and_what_may_change_may(tmp_path):
    strategy = tf.distribute.get_strategy()
    config = loop.resolve(preset("emoji64"), tmp_path, strategy)
    (tmp_path / "config.json").write_text(config.to_json())
    assert loop.resolve(config.replace({"training.steps": 7}), tmp_path, strategy).training.steps == 7
    with pytest.raises(
        UserError, match=r"holds a run with other settings: network.dropout \(0.0 there, 0.5 now\)"
    ):
        loop.resolve(config.replace({"network.dropout": 0.5}), tmp_path, strategy)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    with loop.sole_writer(tmp_path):
        with pytest.raises(UserError, match=f"another process trains in {tmp_path}: wait for it"):
            with loop.sole_writer(tmp_path):
                pass
    with loop.sole_writer(tmp_path):
        pass


def test_a_worker_that_is_not_where_the_others_are_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Workers, "same", lambda self, *numbers: numbers != (0,))
    with pytest.raises(UserError, match="this worker would go on from step 0 and another from elsewhere"):
        train(tmp_path)
    monkeypatch.setattr(Workers, "same", lambda self, *numbers: False)
    with pytest.raises(UserError, match="the workers have different settings"):
        train(tmp_path)
