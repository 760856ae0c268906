"""Figures of predictions: a model that is x* is at distance 0 from it, other known models at known ones."""

import json

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.analysis import fig1a, fig1b, fig2, fig4
from pdm_tf.analysis.optimum import optimum_of
from pdm_tf.analysis.study import add_noise
from pdm_tf.diffusion.schedules import linear
from pdm_tf.errors import UserError
from tests.analysis.studies import COUNT, model_of, study_of
from tests.fakes import FakeDenoiser


def optimum(info, conditional=True, horizontal_flip=False):
    return optimum_of(info, linear(), (16, 16, 3), conditional=conditional, horizontal_flip=horizontal_flip)


@pytest.fixture(scope="module")
def best(info):
    return optimum(info)


def scaled(factor):
    """Predicts factor * z / signal: x + noise / signal for 1, and 0 for 0."""
    schedule = linear()
    return FakeDenoiser(lambda z, t, labels: factor * z / schedule.at(t).signal, num_classes=2)


def test_fig1a_of_the_optimum_itself(info, best, tmp_path):
    result = fig1a.measure(study_of(info, model_of(best, tmp_path / "run")))
    (title,) = result.numbers["energy"]
    assert title == "x, P=4"
    np.testing.assert_allclose(result.numbers["rmse_to_optimum"][title], 0, atol=1e-6)
    energy = result.numbers["energy_optimum"]
    np.testing.assert_allclose(result.numbers["energy"][title], energy, rtol=1e-5)
    assert energy[0] == pytest.approx(1, abs=1e-3) and energy[-1] < 0.8  # blur increases with t
    averaged = result.numbers["images_averaged"]
    assert averaged[0] == pytest.approx(1) and 1.5 < averaged[-1] <= 6.001  # of the images' own class alone
    assert len(result.images["x*"]) == 11
    result.draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("conditional, horizontal_flip", [(True, True), (False, False)])
def test_a_perfect_denoiser_is_at_distance_0_of_the_optimum(info, tmp_path, conditional, horizontal_flip):
    settings = {"data__horizontal_flip": horizontal_flip}
    if not conditional:
        settings["network__class_conditioning"] = "none"
    model = model_of(optimum(info, conditional, horizontal_flip), tmp_path / "run", **settings)
    result = fig4.measure(study_of(info, model))
    assert result.numbers["rmse_to_optimum"]["x, P=4"] < 1e-6
    assert ("of x* of the class “0”" if conditional else "of x* of all images") in result.sentence
    # The optimum of another distribution is not.
    model.__dict__["denoiser"] = optimum(info, conditional, not horizontal_flip)
    assert fig4.measure(study_of(info, model)).numbers["rmse_to_optimum"]["x, P=4"] > 0.01


def test_models_of_different_distributions_are_refused(info, best, tmp_path):
    plain = model_of(best, tmp_path / "a")
    mirrored = model_of(best, tmp_path / "b", data__horizontal_flip=True)
    with pytest.raises(UserError, match="analyze them one at a time"):
        study_of(info, plain, mirrored).optimum()


def test_fig4_measures_noise_in_predictions(info, best, tmp_path):
    def noisy(z, t, labels):
        return best(z, t, labels)[0] + 0.3 * tf.random.stateless_normal(tf.shape(z), (1, 2))

    clean = model_of(best, tmp_path / "clean")
    rough = model_of(FakeDenoiser(noisy, num_classes=2), tmp_path / "rough", diffusion__prediction="eps")
    result = fig4.measure(study_of(info, clean, rough, labels=[1]))
    assert result.numbers["t"] == 970 and result.numbers["label"] == 1
    assert result.numbers["rmse_to_optimum"] == pytest.approx({"x, P=4": 0, "eps, P=4": 0.3}, abs=0.01)
    assert result.numbers["energy_over_optimum"]["x, P=4"] == pytest.approx(1)
    assert result.numbers["energy_over_optimum"]["eps, P=4"] > 2
    assert "of the class “1”" in result.sentence and "give its run too" not in result.sentence
    result.draw(tmp_path / "b.png")


def test_fig2_ratios_of_known_distortions(info, best, tmp_path):
    exact = model_of(best, tmp_path / "exact", network__patch_size=2)
    wrong = model_of(scaled(1.0), tmp_path / "wrong", network__patch_size=8)
    result = fig2.measure(study_of(info, wrong, exact, count=COUNT))
    numbers = result.numbers
    train = numbers["splits"]["train"]
    assert list(numbers["splits"]) == ["train"] and train["images"] == COUNT  # nothing is held out
    # x + noise / signal is off by 1 / sqrt(SNR).
    t = np.array(numbers["t"])
    np.testing.assert_allclose(train["rmse"]["x, P=8"]["value"], linear().snr[t] ** -0.5, rtol=0.03)
    # In the mean over all training images nothing is below x*, and at little noise it is x itself.
    ratio = train["ratio_to_optimum"]["x, P=8"]
    assert ratio["value"][0] is None and min(value for value in ratio["value"] if value) > 1
    assert numbers["smallest"] == "x, P=2" and train["ratio_to_smallest"] == {"x, P=8": ratio}
    assert train["rmse"]["x*"]["value"][0] < 1e-4
    exact_ratio = [value for value in train["ratio_to_optimum"]["x, P=2"]["value"] if value is not None]
    assert exact_ratio and exact_ratio == pytest.approx([1.0] * len(exact_ratio))
    json.dumps(numbers, allow_nan=False)
    result.draw(tmp_path / "2.png")


def test_fig2_says_where_two_networks_are_equally_far(info, best, tmp_path):
    """One is off by 0.3 at all t, the other by 0.1 + 0.4 t / 1000: they meet at t = 500."""

    def off_by(distance):
        return FakeDenoiser(lambda z, t, labels: best(z, t, labels)[0] + distance(t), num_classes=2)

    def growing(t):
        return (0.1 + 0.4 * tf.cast(t, tf.float32) / 1000)[:, None, None, None]

    fine = model_of(off_by(growing), tmp_path / "fine", network__patch_size=2)
    coarse = model_of(off_by(lambda t: 0.3), tmp_path / "coarse", network__patch_size=8)
    result = fig2.measure(study_of(info, fine, coarse, count=COUNT))
    crossing = result.numbers["splits"]["train"]["crossing"]["x, P=8"]
    assert crossing == pytest.approx(500, abs=20) and f"1 at t = {crossing:.0f}," in result.sentence


def test_fig2_of_seeds_is_their_mean_and_deviation(info, tmp_path):
    base = model_of(scaled(1.0), tmp_path / "base", network__patch_size=2)
    seeds = [model_of(scaled(0.0), tmp_path / "a"), model_of(scaled(1.0), tmp_path / "b", seed=1)]
    numbers = fig2.measure(study_of(info, base, *seeds, count=COUNT)).numbers
    assert numbers["seeds"] == {"x, P=2": 1, "x, P=4": 2}
    train = numbers["splits"]["train"]
    one = np.array(train["rmse"]["x, P=2"]["value"])  # as the second seed's; the first is off by x itself
    both = train["rmse"]["x, P=4"]
    zero = 2 * both["value"][-1] - one[-1]
    np.testing.assert_allclose(both["value"], (one + zero) / 2)
    np.testing.assert_allclose(both["error"], np.abs(one - zero) / np.sqrt(2))
    ratio = train["ratio_to_smallest"]["x, P=4"]["value"]
    assert ratio[-1] == pytest.approx((1 + zero / one[-1]) / 2)


def test_the_power_that_a_mean_keeps():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(40, 32, 32, 3))
    np.testing.assert_allclose(fig1b.kept_power(noise), 0, atol=0.05)
    same = np.repeat(generator.normal(size=(1, 32, 32, 3)), 5, axis=0)
    np.testing.assert_allclose(fig1b.kept_power(same), 1, atol=1e-9)
    # Smooth waves that all have, and noise that none shares: low frequencies stay, high ones cancel.
    wave = np.sin(2 * np.pi * np.arange(32) / 32)[None, :, None, None]
    kept = fig1b.kept_power(10 * wave + noise)
    assert kept[0] > 0.9 and abs(kept[-1]) < 0.1


def test_samples_of_the_posterior_of_a_data_set_are_its_images_and_their_mean_is_x_star(best):
    (images,) = [np.array(images) for images, _ in best.images]
    z, label = add_noise(best, images[:1], 699, 0), 0
    samples = fig1b.sample_posterior(best, z[0], 699, label, 64, seed=0, batch_size=64)
    distances = np.sqrt(np.mean(np.square(samples[:, None] - images[None, ::2]), axis=(2, 3, 4)))
    assert distances.min(axis=1).max() < 0.02  # each is an image of the label's class
    _, shares = np.unique(distances.argmin(axis=1), return_counts=True)
    (mean,), (count,) = best.posterior(z, np.array([699]), np.array([label]))
    assert len(shares) > 1 and 1 < count < 6
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.25)
    assert np.sqrt(np.mean((samples.mean(axis=0) - mean) ** 2)) < 0.06


def test_fig1b(info, tmp_path):
    half = model_of(FakeDenoiser(lambda z, t, labels: 0.5 + 0 * z, num_classes=2), tmp_path / "run")
    result = fig1b.measure(study_of(info, half, count=3))
    assert result.numbers["samples"] == 3 and result.numbers["t"] == 699
    assert result.numbers["pixel_spread"] == result.numbers["rmse_of_mean_to_x_theta"] == 0
    result.draw(tmp_path / "1b.png")
    with pytest.raises(UserError, match="at least two"):
        fig1b.measure(study_of(info, half, count=1))
