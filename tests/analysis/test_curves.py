"""Distortion against t, loss curves over seeds, and the power that a mean keeps."""

import json

import numpy as np
import pytest

from pdm_tf.analysis import distortion, losses, reconstructions
from pdm_tf.analysis.optimum import optimum_of
from pdm_tf.analysis.subject import noisy
from pdm_tf.diffusion.schedules import linear
from pdm_tf.errors import UserError
from tests.analysis.subjects import COUNT, model_of, small_data, subject_of
from tests.fakes import FakeDenoiser


def off_by(optimum, factor):
    """A denoiser whose distances from x are `factor` times those of z / signal: closed-form distortions."""

    def answer(z, t, labels):
        return (factor * z) / optimum.schedule.at(t).signal

    return FakeDenoiser(answer, num_classes=2)


def test_distortion_and_its_ratios(tmp_path):
    info = small_data(tmp_path / "data")
    optimum = optimum_of(info, linear(), (16, 16, 3))
    exact = model_of(optimum, tmp_path / "exact", network__patch_size=2)
    wrong = model_of(off_by(optimum, 1.0), tmp_path / "wrong", network__patch_size=8)
    found = distortion.distortion(subject_of(info, wrong, exact, count=COUNT))
    train, t = found.numbers["splits"]["train"], np.array(found.numbers["t"])
    assert list(found.numbers["splits"]) == ["train"] and train["images"] == COUNT  # nothing is held out
    # x + noise / signal is off by 1 / sqrt(SNR).
    np.testing.assert_allclose(train["rmse"]["x, P=8"], linear().snr[t] ** -0.5, rtol=0.03)
    # Of all training images x* is the best: nothing lies below it, and at little noise it is x itself.
    ratio = train["ratio"]["x, P=8 over x*"]
    assert ratio[0] is None and min(value for value in ratio if value) > 1
    assert train["ratio"]["x, P=8 over x, P=2"] == ratio and train["rmse"]["x*"][0] < 1e-4
    own = [value for value in train["ratio"]["x, P=2 over x*"] if value is not None]
    assert own and own == pytest.approx([1.0] * len(own))
    json.dumps(found.numbers, allow_nan=False)
    distortion.draw_distortion(found, tmp_path / "2.png")


def test_distortion_of_seeds_is_their_mean_and_deviation(tmp_path):
    info = small_data(tmp_path / "data")
    optimum = optimum_of(info, linear(), (16, 16, 3))
    base = model_of(off_by(optimum, 1.0), tmp_path / "base", network__patch_size=2)
    zero = FakeDenoiser(lambda z, t, labels: 0 * z, num_classes=2)
    seeds = [model_of(zero, tmp_path / "a"), model_of(off_by(optimum, 1.0), tmp_path / "b", seed=1)]
    found = distortion.distortion(subject_of(info, base, *seeds, count=COUNT)).numbers
    assert found["seeds"] == {"x, P=2": 1, "x, P=4": 2}
    train = found["splits"]["train"]
    one = train["rmse"]["x, P=2"]  # as the second seed's; the first is off by the image itself, at every t
    itself = 2 * train["rmse"]["x, P=4"][-1] - one[-1]
    np.testing.assert_allclose(train["rmse"]["x, P=4"], (np.array(one) + itself) / 2)
    np.testing.assert_allclose(train["rmse error"]["x, P=4"], np.abs(np.array(one) - itself) / np.sqrt(2))
    ratio = train["ratio"]["x, P=4 over x, P=2"]
    assert ratio[-1] == pytest.approx((1 + itself / one[-1]) / 2)


def write_log(model, value, steps=range(10, 310, 10), without=()):
    """A training's log whose losses are `value` at the first step and fall as 1 / step.

    `without`: steps at which the last quarter of t had no image.
    """
    file = model.runs[0].folder.metrics_file
    file.parent.mkdir(parents=True)
    lines = []
    for step in steps:
        quarters = {
            f"mse_quarter{q + 1}": value * 10 / step * (q + 0.5) / 2 for q in range(4 - (step in without))
        }
        lines.append(json.dumps({"step": step, "simple_loss": 3 * value * 10 / step, **quarters}))
    file.write_text("\n".join(lines))


def test_loss_curves_are_means_over_seeds_on_one_weighting(tmp_path):
    info = small_data(tmp_path / "data")
    runs = {("x", 0): 1.0, ("x", 1): 3.0, ("v", 0): 4.0}
    models = []
    for (prediction, seed), value in runs.items():
        settings = {"diffusion__prediction": prediction, "seed": seed}
        models.append(model_of(None, tmp_path / f"{prediction}{seed}", **settings))
        write_log(models[-1], value)
    found = losses.losses(subject_of(info, *models))
    curves = found.numbers["curves"]
    assert {name: curve["seeds"] for name, curve in curves.items()} == {"x, P=4": [0, 1], "v, P=4": [0]}
    x = curves["x, P=4"]["mse"]
    last = np.mean([10 / step for step in range(210, 310, 10)])  # a running mean of ten lines
    assert x["step"][-1] == 300 and x["mean"][-1] == pytest.approx(2 * last)
    assert x["spread"][-1] == pytest.approx(np.sqrt(2) * last) and curves["v, P=4"]["mse"]["spread"] is None
    assert curves["v, P=4"]["simple_loss"]["mean"][-1] == pytest.approx(12 * last)
    assert "x, P=4" in found.sentence.split("v, P=4")[0]  # the lowest first
    losses.draw_losses(found, tmp_path / "3.png")
    other = model_of(None, tmp_path / "other", diffusion__loss_weighting="constant")
    write_log(other, 2.0)
    mixed = losses.losses(subject_of(info, *models, other)).numbers["curves"]
    assert len(mixed) == 3 and not any("simple_loss" in curve for curve in mixed.values())


def test_a_line_without_all_quarters_of_t_is_no_point_of_the_curve_over_all_t(tmp_path):
    info, steps = small_data(tmp_path / "data"), range(10, 310, 10)
    models = [model_of(None, tmp_path / name) for name in ("rare", "never")]
    write_log(models[0], 1.0, without=steps[1::2])
    curve = losses.losses(subject_of(info, models[0])).numbers["curves"]["x, P=4"]
    assert curve["mse"]["step"] == list(steps[0::2])[9:] and len(curve["simple_loss"]["step"]) == 21
    last = np.mean([10 / step for step in steps[0::2][-10:]])
    assert curve["mse"]["mean"][-1] == pytest.approx(last)
    write_log(models[1], 1.0, without=steps[:-1])
    file = models[1].runs[0].folder.metrics_file
    file.write_text("\n".join([*file.read_text().splitlines()[:-1], '{"step": 301, "mse_quarter4": 1.0}']))
    with pytest.raises(UserError, match=r"never has no line of its log with all quarters of t"):
        losses.losses(subject_of(info, models[1]))


def test_a_run_without_a_log_is_named(tmp_path):
    info = small_data(tmp_path / "data")
    with pytest.raises(UserError, match="needs runs that were trained here, of x, eps and v"):
        losses.losses(subject_of(info, model_of(None, tmp_path / "run")))


def test_the_power_that_a_mean_keeps():
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(40, 32, 32, 3))
    np.testing.assert_allclose(reconstructions.kept_power(noise), 0, atol=0.05)
    same = np.repeat(generator.normal(size=(1, 32, 32, 3)), 5, axis=0)
    np.testing.assert_allclose(reconstructions.kept_power(same), 1, atol=1e-9)
    # Smooth waves that all have, and noise that none shares: low frequencies stay, high ones cancel.
    wave = np.sin(2 * np.pi * np.arange(32) / 32)[None, :, None, None]
    share = reconstructions.kept_power(10 * wave + noise)
    assert share[0] > 0.9 and abs(share[-1]) < 0.1


def test_samples_of_the_posterior_of_a_data_set_are_its_images_and_their_mean_is_x_star(tmp_path):
    info = small_data(tmp_path / "data")
    optimum = optimum_of(info, linear(), (16, 16, 3))
    (images,) = [np.array(images) for images, _ in optimum.images]
    z, label = noisy(optimum, images[:1], 699, 0), 0
    drawn = reconstructions.reconstruct(optimum, z[0], 699, label, 64, seed=0, batch_size=64)
    distances = np.sqrt(np.mean(np.square(drawn[:, None] - images[None, ::2]), axis=(2, 3, 4)))
    assert distances.min(axis=1).max() < 0.02  # each is an image of the label's class
    _, shares = np.unique(distances.argmin(axis=1), return_counts=True)
    (best,), (count,) = optimum.posterior(z, np.array([699]), np.array([label]))
    assert len(shares) > 1 and 1 < count < 6
    np.testing.assert_allclose(drawn.mean(axis=0), best, atol=0.25)
    assert np.sqrt(np.mean((drawn.mean(axis=0) - best) ** 2)) < 0.06


def test_a_figure_of_reconstructions(tmp_path):
    info = small_data(tmp_path / "data")
    half = model_of(FakeDenoiser(lambda z, t, labels: 0.5 + 0 * z, num_classes=2), tmp_path / "run")
    found = reconstructions.reconstructions(subject_of(info, half, count=3))
    assert found.numbers["samples"] == 3 and found.numbers["t"] == 699
    assert found.numbers["pixel_spread"] == found.numbers["rmse_of_mean_to_x_theta"] == 0
    reconstructions.draw_reconstructions(found, tmp_path / "1b.png")
    with pytest.raises(UserError, match="at least two"):
        reconstructions.reconstructions(subject_of(info, half, count=1))
