"""`PatchedDiffusion` as a plain Keras user has it, and what its steps promise."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import data
from pdm_tf.stack import keras
from pdm_tf.training.gradients import mean_gradients
from pdm_tf.training.model import PatchedDiffusion
from pdm_tf.training.objective import Examples
from pdm_tf.training.optimizer import GuardedAdam, WarmupCooldown
from tests.training.conftest import TINY, assert_two_devices_equal_one, largest_difference, weights


def sgd(rate=1e-4):
    return keras.optimizers.legacy.SGD(rate)


def one_step(model, data):
    """Trains one step on one batch and returns the weights."""
    model.fit(tf.data.Dataset.from_tensors(data), verbose=0)
    return weights(model)


def test_fit_learns(make_model, images):
    """A single image can be learnt by heart: the loss falls to a fraction."""
    model = make_model(optimizer=GuardedAdam(3e-3), loss_weighting="constant", t_start=200, t_stop=400)
    data = tf.data.Dataset.from_tensors(np.repeat(images[:1], 16, 0)).repeat()
    history = model.fit(data, steps_per_epoch=30, epochs=5, verbose=0).history
    assert history["simple_loss"][-1] < 0.3 * history["simple_loss"][0]
    assert set(history) >= {"loss", "vlb_loss", "mse_quarter1", "mse_quarter4", "gradient_norm"}


@pytest.mark.parametrize("optimizer", ["adam", sgd()])
def test_any_keras_optimizer_works(make_model, batches, optimizer):
    model = make_model(optimizer=optimizer)
    before = weights(model)
    history = model.fit(batches, steps_per_epoch=3, verbose=0).history
    assert np.isfinite(history["loss"][0]) and largest_difference(before, weights(model)) > 0


def test_evaluate_is_repeatable_and_changes_nothing(make_model, batches):
    model = make_model()
    before = weights(model)
    first, second = (model.evaluate(batches, steps=2, verbose=0, return_dict=True) for _ in range(2))
    assert first == second and first["loss"] > 0
    assert largest_difference(before, weights(model)) == 0


def test_steps_are_a_function_of_seed_and_step(make_model, batches):
    def run(seed):
        model = make_model(seed=seed, network={"dropout": 0.2})
        model.fit(batches, steps_per_epoch=4, verbose=0)
        return weights(model)

    assert largest_difference(run(1), run(1)) == 0
    assert largest_difference(run(1), run(2)) > 1e-4


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
    model = make_model(network={"class_conditioning": "gate", "num_classes": 3})
    rng = np.random.default_rng(3)
    eps = tf.constant(rng.normal(size=(4, 8, 8, 3)), tf.float32)
    batch = Examples(tf.constant(images[:4]), tf.constant([0, 1, 2, 3]), tf.constant([1, 30, 400, 999]), eps)

    def gradients(batch):
        return mean_gradients(model.objective, model.network.trainable_variables, batch, None)

    plain = tf.function(gradients)(batch)
    compiled = tf.function(gradients, jit_compile=True)(batch)
    for name, values in plain[1].items():
        np.testing.assert_allclose(compiled[1][name], values, rtol=1e-3, atol=1e-5, err_msg=name)
    norm = tf.linalg.global_norm(plain[0])
    assert tf.linalg.global_norm([a - b for a, b in zip(plain[0], compiled[0])]) < 1e-3 * norm


@pytest.mark.slow
def test_fit_compiled_by_xla(make_model, batches):
    model = make_model(compiled={"jit_compile": True}, network={"dropout": 0.1}, grad_accum=2, clip_norm=1.0)
    history = model.fit(batches, steps_per_epoch=3, verbose=0).history
    assert np.isfinite(history["loss"][0]) and model.bad_steps.variable.numpy()[0] == 0


def test_loss_is_gamma_times_the_squared_error_of_x(make_model, images):
    for prediction in ("x", "eps", "v"):
        model = make_model(prediction=prediction)
        t, eps = tf.constant([5, 900]), tf.random.normal((2, 8, 8, 3), seed=0)
        losses = model.objective(Examples(tf.constant(images[:2]), tf.zeros(2, tf.int32), t, eps))
        alpha = model.denoiser.schedule.alpha[t.numpy()]
        signal, noise = (np.sqrt(part).reshape(2, 1, 1, 1) for part in (alpha, 1 - alpha))
        z = signal * images[:2] + noise * eps
        pred_x, _ = model((tf.cast(z, tf.float32), t, tf.zeros(2, tf.int32)))
        error = np.sum((pred_x - images[:2]) ** 2, axis=(1, 2, 3))
        expected = np.sqrt(alpha / (1 - alpha)) * error
        np.testing.assert_allclose(losses["simple_loss"], expected, rtol=1e-3)
        np.testing.assert_allclose(losses["loss"], losses["simple_loss"] + losses["vlb_loss"], rtol=1e-6)


def test_l_vlb_reaches_the_variance_head_alone(make_model, images):
    model = make_model(network={"class_conditioning": "gate", "num_classes": 3})
    t, eps = tf.constant([50, 500]), tf.random.normal((2, 8, 8, 3), seed=0)
    with tf.GradientTape() as tape:
        loss = model.objective(Examples(tf.constant(images[:2]), tf.constant([0, 1]), t, eps))["vlb_loss"]
    variables = model.network.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(loss, variables)):
        reached = gradient is not None and float(tf.reduce_max(tf.abs(gradient))) > 0
        assert reached == ("/variance_" in variable.name), variable.name


@tf.function
def draws(model, count=2000, **how):
    x, labels = tf.zeros((count, 1, 1, 1)), tf.fill([count], 7)
    return model._examples(tf.constant([1, 2]), (x, labels), **how)


def test_timesteps_stay_in_the_networks_range_and_fill_it(make_model):
    t = draws(make_model(t_start=396, t_stop=400)).t.numpy()
    assert np.bincount(t, minlength=400)[396:].min() > 400 and t.min() == 396 and t.max() == 399


def test_labels_are_dropped_at_the_given_rate(make_model):
    network = {"num_classes": 9, "class_conditioning": "gate"}
    model = make_model(network=network, label_dropout=0.1)
    labels = draws(model).labels.numpy()
    assert set(labels) == {7, 9} and np.mean(labels == 9) == pytest.approx(0.1, abs=0.03)
    assert set(draws(make_model(network=network, label_dropout=0.0)).labels.numpy()) == {7}
    assert set(draws(model, drop_labels=False).labels.numpy()) == {7}


def test_noise_is_standard_normal_and_of_each_images_own(make_model):
    eps = draws(make_model()).eps.numpy().ravel()
    assert abs(eps.mean()) < 0.06 and eps.std() == pytest.approx(1, abs=0.04)
    np.testing.assert_array_equal(draws(make_model(), count=10).eps.numpy().ravel(), eps[:10])


@pytest.mark.parametrize("parts", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_accumulation_equals_the_whole_batch(make_model, images, parts):
    whole, cut = (make_model(optimizer=sgd(), grad_accum=n) for n in (1, parts))
    histories = [m.fit(tf.data.Dataset.from_tensors(images[:8]), verbose=0).history for m in (whole, cut)]
    for name, (value,) in histories[0].items():
        assert histories[1][name][0] == pytest.approx(value, rel=1e-4), name
    moved = largest_difference(weights(make_model()), weights(whole))
    assert largest_difference(weights(whole), weights(cut)) < 1e-4 * moved


def test_clipping_bounds_the_step(make_model, images):
    def step_length(clip_norm):
        model = make_model(optimizer=sgd(1.0), clip_norm=clip_norm)
        before = weights(model)
        return np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, one_step(model, images[:8]))))

    assert step_length(0.01) == pytest.approx(0.01, rel=1e-3)


def test_a_step_that_is_not_finite_is_skipped_and_counted(make_model, images):
    model = make_model()
    one_step(model, images[:8])
    before, slots = weights(model), [v.numpy() for v in model.optimizer.weights[1:]]
    bad = images[:8].copy()
    bad[3, 0, 0, 0] = np.nan
    after = one_step(model, bad)
    assert largest_difference(before, after) == 0
    assert all(np.array_equal(a, b) for a, b in zip(slots, [v.numpy() for v in model.optimizer.weights[1:]]))
    skipped, row, first_step, first_t = model.bad_steps.variable.numpy()
    assert (skipped, row, first_step) == (1, 1, 1) and 0 <= first_t < 1000
    assert all(np.isfinite(metric.result()) for metric in model.metrics)
    one_step(model, bad)
    assert model.bad_steps.variable.numpy().tolist() == [2, 2, 1, first_t]
    assert largest_difference(one_step(model, images[:8]), after) > 0
    assert model.bad_steps.variable.numpy()[:2].tolist() == [2, 0]


def test_guarded_adam_is_adam_for_finite_gradients():
    variables = [tf.Variable([1.0, -2.0]) for _ in range(2)]
    optimizers = [GuardedAdam(0.1, 0.9, 0.98), keras.optimizers.legacy.Adam(0.1, 0.9, 0.98)]
    for step in range(5):
        for variable, optimizer in zip(variables, optimizers):
            optimizer.apply_gradients([(tf.constant([0.5 * step, -1.0]), variable)])
    np.testing.assert_array_equal(variables[0], variables[1])


def test_warmup_is_linear_then_constant():
    rate = WarmupCooldown(1e-4, 5000)
    assert [float(rate(s)) for s in (0, 2499, 4999, 10**6)] == pytest.approx([2e-8, 5e-5, 1e-4, 1e-4])
    assert float(WarmupCooldown(1e-4, 0)(0)) == pytest.approx(1e-4)


def test_cooldown_is_linear_over_the_last_steps_and_the_last_still_learns():
    rate = WarmupCooldown(1e-3, 10, steps=100, cooldown_steps=20)
    found = [float(rate(step)) for step in (0, 9, 80, 81, 90, 99, 100, 150)]
    assert found == pytest.approx([1e-4, 1e-3, 1e-3, 9.5e-4, 5e-4, 5e-5, 0, 0])
    # They meet below the peak where a run is short, and nothing is lost on the way through Keras.
    short = WarmupCooldown.from_config(WarmupCooldown(1.0, 10, steps=10, cooldown_steps=10).get_config())
    assert max(float(short(step)) for step in range(10)) == pytest.approx(0.6, abs=0.1)


@pytest.mark.slow
def test_mixed_bfloat16_trains_on_cpu(make_model, batches):
    model = make_model(network={"precision": "mixed_bfloat16"})
    history = model.fit(batches, steps_per_epoch=3, verbose=0).history
    assert np.isfinite(history["loss"][0])
    assert {v.dtype for v in model.network.trainable_variables} == {tf.float32}


def test_config_round_trip(make_model):
    model = make_model(prediction="v", t_stop=396, label_dropout=0.3)
    again = PatchedDiffusion.from_config(model.get_config())
    assert again.get_config() == model.get_config()
    assert (again.denoiser.t_start, again.denoiser.t_stop) == (0, 396)


def test_sample_from_the_model(make_model):
    model = make_model(network={"num_classes": 3, "class_conditioning": "gate"})
    first = model.sample(3, steps=4, seed=5, guidance=1.5, labels=[0, 1, 2])
    assert first.shape == (3, 8, 8, 3) and np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, model.sample(3, steps=4, seed=5, guidance=1.5, labels=[0, 1, 2]))
    assert np.abs(first - model.sample(3, steps=4, seed=6, guidance=1.5, labels=[0, 1, 2])).max() > 1e-3


def test_a_part_of_the_process_is_sampled_from_images(make_model, images):
    model = make_model(t_stop=3)
    with pytest.raises(ValueError, match="t < 3 cannot begin from pure noise"):
        model.sample(2)
    assert model.sample(2, init_image=images[:2]).shape == (2, 8, 8, 3)


def test_two_devices_equal_one(images):
    assert_two_devices_equal_one(TINY, sgd, images, steps=5)


KEY = tf.constant([1, 2])
INFO = data.find_dataset("emoji64", "")


def places_of(start_batch=0, pipelines=1, number=0):
    """The places of one batch of 8 images of the training stream, or a pipeline's share of it."""
    batches = data.load_batches(
        INFO, split="train", batch_size=8 // pipelines, seed=3, start_batch=start_batch,
        input_pipelines=pipelines, input_pipeline_id=number,
    )  # fmt: skip
    return next(batches.as_numpy_iterator())[2]


def assert_same(examples, expected):
    for one, other in zip(examples, expected):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("step", [0, 1, 2**33])
def test_places_of_any_step_mean_the_index_in_the_batch(make_model, images, step):
    """They are offset by the global batch from step to step, and the noise of a step is its key's affair."""
    model, labels = make_model(), tf.zeros(8, tf.int32)
    places = tf.range(8 * step, 8 * (step + 1), dtype=tf.int64)
    examples = model._examples(KEY, (images[:8], labels, places))
    assert_same(examples, model._examples(KEY, (images[:8], labels)))
    assert_same(examples, model._examples(KEY, images[:8]))


@pytest.mark.slow
def test_training_with_places_is_training_without(make_model, images):
    """Bit for bit, over steps whose places go on and on."""
    labels, runs = np.zeros(16, np.int32), []
    for places in ((), (np.arange(16),)):
        model = make_model(network={"dropout": 0.1})
        batches = tf.data.Dataset.from_tensor_slices((images, labels, *places)).batch(8, drop_remainder=True)
        history = model.fit(batches, epochs=2, verbose=0).history
        runs.append((history, weights(model)))
    assert runs[0][0] == runs[1][0] and largest_difference(runs[0][1], runs[1][1]) == 0
    assert largest_difference(runs[0][1], weights(make_model())) > 0


def test_the_loader_numbers_the_second_batch_on_from_the_first():
    np.testing.assert_array_equal(places_of(), np.arange(8))
    np.testing.assert_array_equal(places_of(start_batch=1), np.arange(8, 16))


@pytest.mark.parametrize("start_batch", [0, 1])
def test_images_of_interleaved_pipelines_have_the_noise_and_losses_of_one(make_model, images, start_batch):
    """Two replicas, each fed by a pipeline of its own that has every other image."""
    if len(tf.config.list_logical_devices("CPU")) < 2:
        pytest.skip("conftest made no second logical CPU: TensorFlow was initialised too early")
    strategy, labels = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.zeros(8, tf.int32)
    with strategy.scope():
        model = make_model(optimizer=sgd())
    shares = [places_of(start_batch, 2, number) for number in range(2)]
    assert not set(shares[0]) & set(shares[1])

    def batch_of(context):
        places = shares[context.replica_id_in_sync_group]
        return images[places % 16], labels[:4], tf.constant(places)

    @tf.function
    def examples_and_losses(*batch):
        examples = model._examples(KEY, batch)
        parts = (examples.x, examples.labels, examples.t, examples.eps)
        return batch[2], *parts, model.objective(examples)["loss"]

    arguments = (strategy.experimental_distribute_values_from_function(
        lambda context, part=part: tf.convert_to_tensor(batch_of(context)[part])
    ) for part in range(3))  # fmt: skip
    results = strategy.run(examples_and_losses, args=tuple(arguments))
    places, x, _, t, eps, loss = (
        np.concatenate(strategy.experimental_local_results(result)) for result in results
    )
    order = np.argsort(places)
    whole = places_of(start_batch)
    np.testing.assert_array_equal(places[order], whole)
    _, *one, one_loss = examples_and_losses(images[whole % 16], labels, tf.constant(whole))
    assert_same((x[order], labels, t[order], eps[order]), one)
    np.testing.assert_allclose(loss[order], one_loss, rtol=1e-4)


def test_sample_weights_are_refused(make_model, images):
    data = tf.data.Dataset.from_tensors((images[:8], np.zeros(8, np.int32), np.ones(8, np.float32)))
    for do in (make_model().fit, make_model().evaluate):
        with pytest.raises(ValueError, match="sample weights are not supported"):
            do(data, verbose=0)
