"""Fig. 1b: samples of q(x | z_t), and the frequencies that cancel in their mean."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from pdm_tf import plots
from pdm_tf.analysis.study import Predictor, Result, Study, add_noise, rmse
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.schedules import strided_timesteps
from pdm_tf.errors import UserError
from pdm_tf.progress import bar
from pdm_tf.randomness import normal_each
from pdm_tf.sampling.ancestral import ancestral
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.loop import sampling_loop

TIME = 0.7  # t / T of z_t
STEPS = 50
COLUMNS = 6
BANDS = 8  # of frequency, up to that of neighbouring pixels


def sample_posterior(
    denoiser: Denoiser, z: np.ndarray, t: int, label: int, count: int, seed: int, batch_size: int
) -> np.ndarray:
    """Samples of the model's q(x | z_t), by ancestral steps from one z_t (H, W, C): (count, H, W, C)."""
    schedule = denoiser.schedule.respaced(strided_timesteps(t + 1, (min(STEPS, t + 1),)))

    @tf.function(reduce_retracing=True)
    def sample(indices):
        def noise(i):
            return normal_each(seed, "reconstruction", indices, denoiser.image_shape, i)

        labels = tf.fill(tf.shape(indices), label)
        start = tf.repeat(tf.constant(z)[None], tf.shape(indices)[0], axis=0)
        step_function = ancestral(guided(denoiser, labels, 1.0), schedule)
        loop = sampling_loop(step_function, schedule, noise)
        return loop.run(loop.begin(start), 0, loop.num_steps)[0]

    batches = [
        sample(tf.range(start, min(start + batch_size, count))).numpy()
        for start in bar(range(0, count, batch_size), desc="fig1b", unit="batch")
    ]
    return np.concatenate(batches)


def kept_power(samples: np.ndarray) -> np.ndarray:
    """The share of the power of float (N, H, W, C), N > 1, that is in their mean, by frequency: (BANDS,).

    The power of the mean of N holds 1/N of what has no common phase; that is subtracted, so that independent
    noise gives 0 and equal images 1. The constant is left out; the last band is that of neighbouring pixels.
    """
    count, height, width, _ = samples.shape
    spectrum = np.fft.fft2(samples, axes=(1, 2))
    power = np.mean(np.abs(spectrum) ** 2, axis=(0, 3))
    of_mean = np.mean(np.abs(spectrum.mean(axis=0)) ** 2, axis=2)
    common = (count * of_mean - power) / (count - 1)
    down, right = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius = np.hypot(down, right)
    band = np.minimum((radius / 0.5 * BANDS).astype(int), BANDS)  # the corners are left out
    band[0, 0] = BANDS
    sums = [np.bincount(band.ravel(), values.ravel(), BANDS + 1)[:BANDS] for values in (common, power)]
    return sums[0] / np.maximum(sums[1], 1e-12)


def measure(study: Study) -> Result:
    """Samples of q(x | z_t) of one training image, their spread, and the spectrum of their mean."""
    if study.count < 2:
        raise UserError("a mean of one sample shows nothing: draw at least two")
    denoiser = study.models[0].denoiser
    images, labels = study.examples(label=study.labels[0] if study.labels else None)
    t = round(TIME * (len(denoiser.schedule) - 1))
    z = add_noise(denoiser, images[:1], t, study.seed)
    label = int(labels[0]) if denoiser.conditional else 0
    samples = sample_posterior(denoiser, z[0], t, label, study.count, study.seed, study.batch_size)
    mean = samples.mean(axis=0)
    spread = samples.std(axis=0, ddof=1)
    predicted = Predictor(denoiser, 1)(z, t, labels[:1])
    kept = kept_power(samples)
    numbers = {
        "t": t,
        "samples": len(samples),
        "pixel_spread": float(np.sqrt(np.mean(spread**2))),
        "kept_power_by_band": [float(value) for value in kept],
        "rmse_of_mean_to_x_theta": rmse(mean, predicted[0]),
    }
    sentence = (
        f"The mean of {len(samples)} samples of q(x | z_t), t = {t}, keeps {kept[0]:.0%} of their power in "
        f"the lowest eighth of the frequencies and {kept[-1]:.0%} in the highest: the rest cancels; a "
        f"pixel's standard deviation is {numbers['pixel_spread']:.2f}."
    )
    rows = {
        "z_t, x, x_theta": np.stack([z[0], images[0], predicted[0]]),
        "samples": samples[:COLUMNS],
        "mean, spread": np.stack([mean, 2 * spread / max(spread.max(), 1e-6) - 1]),
    }
    panel = plots.Panel(
        "share of the samples' power in their mean",
        "frequency over that of neighbouring pixels",
        {"mean": ((np.arange(BANDS) + 0.5) / BANDS, kept, None)},
    )
    return Result(numbers, sentence, rows, panels=[panel])
