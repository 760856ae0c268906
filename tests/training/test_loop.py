"""The loop in this process: what a run folder holds, exact resume, refusals."""

import errno
import fcntl
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from pdm_tf.training.monitor import Preview

from flags.config import parse_settings, validate
from flags.errors import UserError
from flags.presets import preset
from pdm_tf import data
from pdm_tf.denoiser import load_denoiser, read_config
from pdm_tf.plots import read_metrics
from pdm_tf.training import loop
from pdm_tf.training.strategy import Workers
from pdm_tf.weights import read_arrays

INFO = data.find_dataset("emoji64", "")
TINY = [
    "network.base_channels=32", "network.channel_multipliers=1", "network.attention_resolutions=",
    "network.head_channels=32", "network.dropout=0.1", "training.batch_size=8", "training.steps=12",
    "training.log_every=3", "training.eval_every=6", "training.ema_every=2", "training.sample_every=100",
    "training.sample_images=2", "training.sample_steps=2", "training.checkpoint_every=4",
    "training.precision=float32", "data.horizontal_flip=true",
]  # fmt: skip
CPU = tf.distribute.get_strategy()


def config(*settings):
    return validate(preset("emoji64").replace(parse_settings([*TINY, *settings])))


def train(folder, *settings):
    resolved = loop.resolve(config(*settings), folder, CPU)
    loop.train(resolved, folder, INFO, CPU)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of 12 steps."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text().splitlines()]


def test_run_folder_holds_what_the_design_says(whole):
    names = {str(p.relative_to(whole)) for p in whole.rglob("*")}
    assert names >= {
        "config.json", "samples/step_00000012.png", "ema/step_00000012.npz", "ema/step_00000008.npz",
        "checkpoints/step_00000012", "checkpoints/step_00000008", "logs/metrics.jsonl",
    }  # fmt: skip
    assert "checkpoints/step_00000004" not in names and not any("partial" in name for name in names)
    assert read_config(whole) == config()
    assert any(path.name.startswith("events.out") for path in (whole / "logs").iterdir())
    assert not list(whole.rglob("*.pkl"))


def test_log_holds_losses_rates_and_the_held_out_split(whole):
    by_step = {}
    for line in lines(whole):
        by_step.setdefault(line["step"], {}).update(line)
    assert sorted(by_step) == [3, 6, 9, 12]
    wanted = {"loss", "simple_loss", "vlb_loss", "mse_quarter1", "gradient_norm", "images_per_second"}
    assert set(by_step[3]) >= {*wanted, "learning_rate", "skipped_steps"}
    assert by_step[12]["validation/simple_loss"] > 0


def test_run_folder_is_all_that_sampling_needs(whole):
    loaded, denoiser = load_denoiser(whole)
    assert loaded == config() and denoiser.image_shape == (64, 64, 3)
    arrays = read_arrays(whole / "ema/step_00000012.npz")
    for variable in denoiser.network.trainable_variables:
        np.testing.assert_array_equal(variable, arrays[variable.name.split(":")[0]])


def test_a_resumed_run_ends_in_the_same_bits_and_logs_the_same_losses(whole, tmp_path):
    train(tmp_path, "training.steps=8", "training.sample_images=1")
    train(tmp_path)
    for name in ("ema/step_00000012.npz", "checkpoints/step_00000012/state.data-00000-of-00001"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes(), name
    last = [next(x for x in lines(folder) if x["step"] == 12)["loss"] for folder in (whole, tmp_path)]
    assert last[0] == last[1]


def test_a_finished_run_started_again_does_nothing(whole, capsys):
    before = {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")}
    train(whole)
    assert {p: p.stat().st_mtime_ns for p in (whole / "checkpoints").rglob("*")} == before
    assert "at step 12 of 12" in capsys.readouterr().out


def test_a_run_that_was_killed_before_its_last_picture_draws_it(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    picture = tmp_path / "samples/step_00000012.png"
    picture.unlink()
    train(tmp_path)
    assert picture.read_bytes() == (whole / "samples/step_00000012.png").read_bytes()


def test_fewer_steps_than_are_done_are_refused(whole):
    with pytest.raises(
        UserError, match=r"has trained for 12 steps already, and training.steps=6: ask for more"
    ):
        train(whole, "training.steps=6")
    assert read_config(whole) == config()


def test_what_watches_a_run_may_fail_after_the_checkpoint(tmp_path, monkeypatch):
    def fail(self):
        raise MemoryError

    with monkeypatch.context() as context, pytest.raises(MemoryError):
        context.setattr(Preview, "draw", fail)
        train(tmp_path, "training.sample_every=4")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]


def test_a_full_disk_in_the_log_is_one_line_and_the_half_line_is_passed_over(tmp_path, monkeypatch):
    def full(*_):
        (tmp_path / "logs/metrics.jsonl").write_text('{"step": 3, "lo')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as context,
        pytest.raises(UserError, match=r"no space left on the disk of .*logs"),
    ):
        context.setattr(tf.summary, "scalar", full)
        train(tmp_path)
    train(tmp_path)
    assert (tmp_path / "logs/metrics.jsonl").read_text().startswith('{"step": 3, "lo\n{"step": 3, "loss": ')
    assert read_metrics(tmp_path)["loss"][:, 0].tolist() == [3, 6, 9, 12]


def test_warm_start_begins_with_the_other_runs_averages(whole, tmp_path):
    settings = (f"training.warm_start={whole}", "training.steps=1", "optimizer.learning_rate=1e-30")
    train(tmp_path, *settings, "diffusion.t_start=396", "training.ema_every=1")
    ours, theirs = (
        read_arrays(f) for f in (tmp_path / "ema/step_00000001.npz", whole / "ema/step_00000012.npz")
    )
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-6, atol=1e-12)


def test_other_settings_are_refused_but_a_longer_run_is_not(whole):
    with pytest.raises(UserError, match=r"optimizer.beta_2 \(0.99 there, 0.9 now\): give the same ones"):
        loop.resolve(config("optimizer.beta_2=0.9"), whole, CPU)
    assert loop.resolve(config("training.steps=99"), whole, CPU).training.steps == 99


def test_a_folder_in_which_another_process_trains_is_refused(tmp_path):
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"another process trains in .*: wait for it"):
            train(tmp_path)


def test_a_batch_that_does_not_divide_is_refused_with_the_nearest():
    class Six:
        num_replicas_in_sync = 6

    with pytest.raises(UserError, match=r"batch_size=32 .* 6 replicas x .*: the nearest that does is 30"):
        loop.resolve(config("training.batch_size=32"), "nowhere", Six())


def test_missing_weights_and_missing_runs_say_what_to_do(whole, tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config.json\): train one with"):
        load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text((whole / "config.json").read_text())
    with pytest.raises(UserError, match="holds no weights yet"):
        load_denoiser(tmp_path)


def test_gradients_that_stay_infinite_stop_the_run_at_a_good_checkpoint(tmp_path):
    """A rate of 1e30 gives one step of finite weights, and no finite gradient after it."""
    with pytest.raises(UserError) as error:
        train(
            tmp_path, "training.log_every=1", "training.max_bad_steps=5", "training.checkpoint_every=2",
            "optimizer.learning_rate=1e30", "optimizer.warmup_steps=0", "training.eval_every=100",
        )  # fmt: skip
    message = str(error.value)
    assert "\n" not in message and "start from them with --warm_start in a new --run_dir" in message
    assert message.startswith(
        "5 steps in a row had a gradient that is not finite, from step 2 on, beginning at"
    )
    assert [line["skipped_steps"] for line in lines(tmp_path)] == [0, 1, 2, 3, 4, 5]
    last = sorted(tmp_path.glob("checkpoints/step_*"))[-1]
    reader = tf.train.load_checkpoint(str(last / "state"))
    saved = [reader.get_tensor(n) for n in reader.get_variable_to_shape_map() if "VARIABLE_VALUE" in n]
    averages = read_arrays(tmp_path / f"ema/{last.name}.npz").values()
    assert len(saved) > 50 and all(np.isfinite(value).all() for value in [*saved, *averages])


def test_a_worker_that_is_not_where_the_others_are_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Workers, "same", lambda self, *numbers: numbers != (0,))
    with pytest.raises(UserError, match="this worker would go on from step 0 and another from elsewhere"):
        train(tmp_path)
    monkeypatch.setattr(Workers, "same", lambda self, *numbers: False)
    with pytest.raises(UserError, match="the workers have different settings"):
        train(tmp_path)
