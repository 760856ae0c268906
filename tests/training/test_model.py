"""`PatchedDiffusion` as a plain Keras user has it, and what its steps promise.

Most steps run eagerly: to trace one takes seconds, and to do one on a tiny network does not.
"""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.stack import GuardedAdam, keras
from pdm_tf.training.model import PatchedDiffusion
from pdm_tf.training.objective import Examples
from pdm_tf.training.optimizer import WarmupCooldown
from tests.training.conftest import (
    TINY,
    assert_accumulation_equals_the_whole_batch,
    assert_two_devices_equal_one,
    batch_of,
    largest_difference,
    weights,
)

KEY = tf.constant([1, 2])
CLASSES = {"class_conditioning": "gate", "num_classes": 3}


def sgd(rate=1e-4):
    return keras.optimizers.legacy.SGD(rate)


def test_fit_learns_with_an_optimizer_of_keras(make_model, images):
    """A single image can be learnt by heart: the loss falls to a fraction."""
    model = make_model(optimizer="adam", loss_weighting="constant", t_start=200, t_stop=400)
    model.optimizer.learning_rate = 3e-3
    data = tf.data.Dataset.from_tensors(np.repeat(images[:1], 16, 0)).repeat()
    history = model.fit(data, steps_per_epoch=30, epochs=5, verbose=0).history
    assert history["simple_loss"][-1] < 0.3 * history["simple_loss"][0]
    assert set(history) >= {"loss", "vlb_loss", "mse_quarter1", "mse_quarter4", "gradient_norm"}


def test_evaluate_is_repeatable_and_changes_nothing(make_model, batches):
    model = make_model()
    before = weights(model)
    first, second = (model.evaluate(batches, steps=2, verbose=0, return_dict=True) for _ in range(2))
    assert first == second and first["loss"] > 0
    assert largest_difference(before, weights(model)) == 0


def test_steps_are_a_function_of_seed_and_step(make_model, images):
    def gradients(seed, step):
        model = make_model(seed=seed, network={"dropout": 0.2}, optimizer=sgd(1.0))
        model.optimizer.iterations.assign(step)
        before = weights(model)
        model.train_step(images[:4])
        return [a - b for a, b in zip(before, weights(model))]

    first = gradients(1, 0)
    assert largest_difference(first, gradients(1, 0)) == 0
    for other in (gradients(2, 0), gradients(1, 1)):
        assert largest_difference(first, other) > 1e-2


@pytest.mark.slow
def test_several_steps_for_each_host_call_are_the_same_steps(make_model, batches):
    """To rounding: the loop's graph is optimised on its own. SGD, as Adam turns rounding into whole steps."""
    runs = [weights(make_model())]
    for together in (1, 4):
        model = make_model(optimizer=sgd(), compiled={"steps_per_execution": together})
        model.fit(batches, steps_per_epoch=8, verbose=0)
        runs.append(weights(model))
    assert largest_difference(*runs[1:]) < 1e-3 * largest_difference(*runs[:2])


@pytest.mark.slow
def test_xla_gives_the_same_losses_and_gradients(make_model, images):
    """At the same noise: XLA draws other random numbers of the same distribution for the same key."""
    model = make_model(network=CLASSES)
    eps = tf.constant(np.random.default_rng(3).normal(size=(4, 8, 8, 3)), tf.float32)
    t, labels = tf.constant([1, 30, 400, 999]), tf.constant([0, 1, 2, 3])

    def gradients(x):
        with tf.GradientTape() as tape:
            losses = model.objective.losses(Examples(model.denoiser, x, labels, t, eps))
        variables = model.network.trainable_variables
        return [tf.convert_to_tensor(g) for g in tape.gradient(losses["loss"], variables)], losses

    plain = tf.function(gradients)(tf.constant(images[:4]))
    compiled = tf.function(gradients, jit_compile=True)(tf.constant(images[:4]))
    for name, values in plain[1].items():
        np.testing.assert_allclose(compiled[1][name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    norm = tf.linalg.global_norm(plain[0])
    assert tf.linalg.global_norm([a - b for a, b in zip(plain[0], compiled[0])]) < 1e-3 * norm


@pytest.mark.slow
def test_fit_compiled_by_xla(make_model, batches):
    model = make_model(compiled={"jit_compile": True}, network={"dropout": 0.1}, grad_accum=2, clip_norm=1.0)
    history = model.fit(batches, steps_per_epoch=3, verbose=0).history
    assert np.isfinite(history["loss"][0]) and model.bad_steps.variable.numpy()[0] == 0


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_loss_is_gamma_times_the_squared_error_of_x(make_model, images, prediction):
    model = make_model(prediction=prediction)
    t, eps, labels = tf.constant([5, 900]), tf.random.normal((2, 8, 8, 3), seed=0), tf.zeros(2, tf.int32)
    losses = model.objective.losses(Examples(model.denoiser, tf.constant(images[:2]), labels, t, eps))
    alpha = model.denoiser.schedule.alpha[t.numpy()]
    signal, noise = (np.sqrt(part).reshape(2, 1, 1, 1) for part in (alpha, 1 - alpha))
    pred_x, _ = model((tf.cast(signal * images[:2] + noise * eps, tf.float32), t, labels))
    error = np.sum((pred_x - images[:2]) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(losses["simple_loss"], np.sqrt(alpha / (1 - alpha)) * error, rtol=1e-3)
    np.testing.assert_allclose(losses["loss"], losses["simple_loss"] + losses["vlb_loss"], rtol=1e-6)


def test_l_vlb_reaches_the_variance_head_alone(make_model, images):
    model = make_model(network=CLASSES)
    t, eps, labels = tf.constant([50, 500]), tf.random.normal((2, 8, 8, 3), seed=0), tf.constant([0, 1])
    with tf.GradientTape() as tape:
        examples = Examples(model.denoiser, tf.constant(images[:2]), labels, t, eps)
        loss = model.objective.losses(examples)["vlb_loss"]
    variables = model.network.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        reached = gradient is not None and float(tf.reduce_max(tf.abs(gradient))) > 0
        assert reached == ("/variance_" in variable.name), variable.name


def draws(model, count=2000, training=True):
    """Examples of blank images of class 2."""

    @tf.function
    def draw():
        batch = batch_of(tf.zeros((count, 1, 1, 1)), tf.fill([count], 2))
        if training:
            return model.objective.training_examples(KEY, batch)[0][1:5]
        return model.objective.held_out_examples(KEY, batch)[1:5]

    return [value.numpy() for value in draw()]


def test_draws_have_the_networks_timesteps_dropped_labels_and_noise_of_each_images_own(make_model):
    model = make_model(network=CLASSES, label_dropout=0.1, t_start=396, t_stop=400)
    _, labels, t, eps = draws(model)
    assert np.bincount(t, minlength=400)[396:].min() > 400 and t.min() == 396 and t.max() == 399
    assert set(labels) == {2, 3} and np.mean(labels == 3) == pytest.approx(0.1, abs=0.03)
    assert abs(eps.mean()) < 0.06 and eps.std() == pytest.approx(1, abs=0.04)
    np.testing.assert_array_equal(draws(model, count=10)[3], eps[:10])
    assert set(draws(model, training=False)[1]) == {2}


def test_accumulation_equals_the_whole_batch(make_model, images):
    assert_accumulation_equals_the_whole_batch(make_model(), images[:8], 2)


def test_clipping_bounds_the_step(make_model, images):
    model = make_model(optimizer=sgd(1.0), clip_norm=0.01)
    before = weights(model)
    model.train_step(images[:8])
    length = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, weights(model))))
    assert length == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_is_not_finite_is_skipped_and_counted(make_model, images):
    model = make_model()
    model.train_step(images[:8])
    before, slots = weights(model), [v.numpy() for v in model.optimizer.weights[1:]]
    bad = images[:8].copy()
    bad[3, 0, 0, 0] = np.nan
    model.train_step(bad)
    assert largest_difference(before, weights(model)) == 0
    assert all(np.array_equal(a, b) for a, b in zip(slots, [v.numpy() for v in model.optimizer.weights[1:]]))
    skipped, row, first_step, first_t = model.bad_steps.variable.numpy()
    assert (skipped, row, first_step) == (1, 1, 1) and 0 <= first_t < 1000
    assert all(np.isfinite(metric.result()) for metric in model.metrics)
    model.train_step(bad)
    assert model.bad_steps.variable.numpy().tolist() == [2, 2, 1, first_t]
    model.train_step(images[:8])
    assert largest_difference(before, weights(model)) > 0
    assert model.bad_steps.variable.numpy()[:2].tolist() == [2, 0]


def test_guarded_adam_is_adam_for_finite_gradients():
    variables = [tf.Variable([1.0, -2.0]) for _ in range(2)]
    optimizers = [GuardedAdam(0.1, 0.9, 0.98), keras.optimizers.legacy.Adam(0.1, 0.9, 0.98)]
    for step in range(5):
        for variable, optimizer in zip(variables, optimizers):
            optimizer.apply_gradients([(tf.constant([0.5 * step, -1.0]), variable)])
    np.testing.assert_array_equal(variables[0], variables[1])


def test_cooldown_is_linear_over_the_last_steps_and_the_last_still_learns():
    rate = WarmupCooldown(1e-3, 10, steps=100, cooldown_steps=20)
    found = [float(rate(step)) for step in (0, 9, 80, 81, 90, 99, 100, 150)]
    assert found == pytest.approx([1e-4, 1e-3, 1e-3, 9.5e-4, 5e-4, 5e-5, 0, 0])
    # They meet below the peak where a run is short, and nothing is lost on the way through Keras.
    short = WarmupCooldown.from_config(WarmupCooldown(1.0, 10, steps=10, cooldown_steps=10).get_config())
    assert max(float(short(step)) for step in range(10)) == pytest.approx(0.6, abs=0.1)


def test_config_round_trip(make_model):
    model = make_model(prediction="v", t_stop=396, label_dropout=0.3)
    again = PatchedDiffusion.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert (again.denoiser.t_start, again.denoiser.t_stop) == (0, 396)


def test_sample_from_the_model(make_model):
    model = make_model(network=CLASSES)
    first, again, other = (
        model.sample(3, steps=4, seed=s, guidance=1.5, labels=[0, 1, 2]) for s in (5, 5, 6)
    )
    assert first.shape == (3, 8, 8, 3) and np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    for unguided in (make_model(), make_model(network=CLASSES, label_dropout=0.0)):
        with pytest.raises(ValueError, match="images of no class, which this model never learnt"):
            unguided.sample(1, steps=2, guidance=2.0)


@pytest.mark.slow
def test_two_devices_equal_one(images):
    assert_two_devices_equal_one(TINY, sgd, images, steps=5)


@pytest.mark.parametrize("step", [1, 2**33])
def test_places_of_any_step_mean_the_index_in_the_batch(make_model, images, step):
    """They are offset by the global batch from step to step, and the noise of a step is its key's affair."""
    model, labels = make_model(), tf.zeros(8, tf.int32)
    places = tf.range(8 * step, 8 * (step + 1), dtype=tf.int64)
    for batch in ({"image": images[:8], "place": places}, (images[:8], labels), images[:8]):
        found = model._batch(batch)
        for name, values in batch_of(images[:8]).items():
            np.testing.assert_array_equal(found[name], values)
