"""Running means of losses, and the log of a run."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.errors import UserError
from pdm_tf.progress import bar
from pdm_tf.run import RunFolder
from pdm_tf.stack import GuardedAdam, keras
from pdm_tf.training.metrics import LossMeans, MetricsLog, update_mean
from pdm_tf.training.optimizer import BadSteps, WarmupCooldown

HIDDEN = bar(disable=True)


def losses(values, t):
    values = tf.constant(values)
    multiples = {"loss": values, "simple_loss": 2 * values, "vlb_loss": 3 * values, "mse": 4 * values}
    return {**multiples, "t": tf.constant(t)}


def test_means_are_of_all_images_since_the_last_reset_and_the_error_is_by_quarter_of_the_range_of_t():
    means = LossMeans(100, 500)
    means.update(losses([1.0, 2.0], [100, 199]))
    values = means.update(losses([3.0, 6.0], [200, 499]))
    assert {name: float(value) for name, value in values.items()} == {
        "loss": 3.0, "simple_loss": 6.0, "vlb_loss": 9.0,
        "mse_quarter1": 6.0, "mse_quarter2": 12.0, "mse_quarter3": 0.0, "mse_quarter4": 24.0,
    }  # fmt: skip
    assert [mean.name for mean in means.all] == list(values)


def test_what_is_not_finite_is_in_no_mean():
    means = LossMeans(0, 4)
    values = means.update(losses([1.0, float("nan"), float("inf")], [0, 0, 1]))
    assert [float(values[name]) for name in ("loss", "mse_quarter1", "mse_quarter2")] == [1.0, 4.0, 0.0]
    mean = keras.metrics.Mean()
    update_mean(mean, tf.constant(float("inf")))
    update_mean(mean, tf.constant(5.0))
    assert float(mean.result()) == 5.0


@pytest.fixture
def model():
    """What the log asks of a model: its metrics and its optimizer."""
    mean = keras.metrics.Mean("loss")
    optimizer = GuardedAdam(WarmupCooldown(1.0, 24))
    return SimpleNamespace(metrics=[mean], mean=mean, optimizer=optimizer, reset_metrics=mean.reset_state)


def lines(run):
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_a_line_has_the_means_since_the_last_one_and_the_speed_of_the_steps_between(tmp_path, model):
    run, bad = RunFolder(tmp_path), BadSteps()
    log = MetricsLog(run, start=10, batch_size=4)
    for step, value in ((12, 3.0), (13, 7.0)):
        model.mean.update_state(value)
        log._since = time.monotonic() - 2.0
        log.write(step, model, bad, 20, HIDDEN)
    one, two = lines(run)
    assert (one["step"], one["loss"]) == (12, 3.0) and (two["step"], two["loss"]) == (13, 7.0)
    assert one["images_per_second"] == pytest.approx(4.0, rel=0.1)  # 2 steps of 4 images in 2 seconds
    assert two["images_per_second"] == pytest.approx(2.0, rel=0.1)
    assert one["learning_rate"] == pytest.approx(0.5)  # of the last step, the 12th of 24
    assert one["skipped_steps"] == 0
    assert set(one) == {"step", "loss", "images_per_second", "learning_rate", "skipped_steps"}


def test_a_mean_of_nothing_is_in_no_line(tmp_path, model):
    """A law of t may leave a quarter of t without an image, and all losses may be infinite."""
    run, means = RunFolder(tmp_path), LossMeans(0, 4)
    model.metrics = means.all
    log = MetricsLog(run, 0, 2)
    means.update(losses([1.0, 3.0], [0, 2]))
    log.write(1, model, BadSteps(), 20, HIDDEN)
    for mean in means.all:
        mean.reset_state()
    means.update(losses([float("inf"), float("nan")], [1, 1]))
    log.write(2, model, BadSteps(), 20, HIDDEN)
    one, two = ({name for name in line if "loss" in name or "mse" in name} for line in lines(run))
    assert one == {"loss", "simple_loss", "vlb_loss", "mse_quarter1", "mse_quarter3"} and not two


def test_the_line_of_too_many_bad_steps_is_written_before_the_run_ends(tmp_path, model):
    run, bad = RunFolder(tmp_path), BadSteps()
    bad.variable.assign([5, 3, 40, 777])
    log = MetricsLog(run, 0, 4)
    log.write(43, model, bad, 4, HIDDEN)
    with pytest.raises(UserError, match=r"^3 steps in a row .* from step 41 on, beginning at t = 777; "):
        log.write(44, model, bad, 3, HIDDEN)
    assert [line["skipped_steps"] for line in lines(run)] == [5, 5]
    bad.variable.assign([5, 3, 40, -1])
    with pytest.raises(UserError, match="beginning at a finite loss"):
        bad.check(3)
    assert bad.check(4) == 5


def test_half_a_line_of_a_killed_process_is_ended_and_a_whole_one_is_left(tmp_path):
    run = RunFolder(tmp_path)
    MetricsLog(run, 0, 4).scalars(1, {"loss": 2.0}, prefix="validation/")
    with open(run.metrics_file, "a") as file:
        file.write('{"step": 2, "lo')
    for step in (3, 4):
        MetricsLog(run, 0, 4).scalars(step, {"loss": 1.0})
    assert run.metrics_file.read_text().splitlines() == [
        '{"step": 1, "validation/loss": 2.0}', '{"step": 2, "lo', '{"step": 3, "loss": 1.0}',
        '{"step": 4, "loss": 1.0}',
    ]  # fmt: skip
    assert run.metrics()["loss"].tolist() == [[3, 1], [4, 1]]


def test_tensorboard_gets_the_scalars_and_pictures(tmp_path):
    run = RunFolder(tmp_path)
    log = MetricsLog(run, 0, 4)
    log.scalars(3, {"loss": 2.0}, prefix="validation/")
    log.image(3, np.zeros((4, 6, 3), np.uint8))
    (file,) = run.logs.glob("events*")
    events = [event for event in tf.compat.v1.train.summary_iterator(str(file)) if event.summary.value]
    assert [(event.step, event.summary.value[0].tag) for event in events] == [
        (3, "validation/loss"), (3, "samples"),
    ]  # fmt: skip
