"""Fig. 1b: samples of q(x | z_t), and the frequencies that cancel in their mean."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from pdm_tf import plots
from pdm_tf.analysis.subject import Answers, Findings, Subject, noisy
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.schedules import strided_timesteps
from pdm_tf.errors import UserError
from pdm_tf.images import to_uint8
from pdm_tf.progress import bar
from pdm_tf.randomness import normal_each, stream
from pdm_tf.sampling.guidance import guided
from pdm_tf.sampling.loop import descend
from pdm_tf.sampling.sampler import SAMPLERS

TIME = 0.7  # part of the process at which z_t is
STEPS = 50
SHOWN = 6
BANDS = 8  # of frequency, up to that of neighbouring pixels


def reconstruct(
    denoiser: Denoiser, z: np.ndarray, t: int, label: int, count: int, seed: int, batch_size: int
) -> np.ndarray:
    """Runs the reverse process from one z_t (H, W, C) many times, by ancestral steps.

    Returns:
      float32 (count, H, W, C): samples of the model's q(x | z_t).
    """
    own = denoiser.schedule.keep(range(t + 1))
    schedule = own.keep(strided_timesteps(t + 1, (min(STEPS, t + 1),)))

    @tf.function(reduce_retracing=True)
    def draw(indices):
        def noise(i):
            return normal_each(stream(seed, "reconstruction", i), indices, denoiser.image_shape)

        labels = tf.fill(tf.shape(indices), label)
        start = tf.repeat(tf.constant(z)[None], tf.shape(indices)[0], axis=0)
        steps = SAMPLERS["ancestral"](guided(denoiser, labels, 1.0), schedule)
        return descend(steps, schedule, start, noise).run()[0]

    parts = range(0, count, batch_size)
    return np.concatenate(
        [
            draw(tf.range(start, min(start + batch_size, count))).numpy()
            for start in bar(parts, desc="fig1b", unit="batch")
        ]
    )


def reconstructions(subject: Subject) -> Findings:
    """Samples of q(x | z_t) of one training image, their spread, and their mean's spectrum beside theirs."""
    if subject.count < 2:
        raise UserError("a mean of one sample shows nothing: draw at least two")
    model = subject.models[0]
    denoiser = model.denoiser
    images, labels = subject.examples(label=subject.labels[0] if subject.labels else None)
    t = round(TIME * (len(denoiser.schedule) - 1))
    z = noisy(denoiser, images[:1], t, subject.seed)
    label = int(labels[0]) if denoiser.conditional else 0
    drawn = reconstruct(denoiser, z[0], t, label, subject.count, subject.seed, subject.batch_size)
    predicted = Answers(denoiser, 1)(z, t, labels[:1])
    share = kept_power(drawn)
    spread = drawn.std(axis=0, ddof=1)
    numbers = {
        "t": t, "samples": len(drawn), "pixel_spread": float(np.sqrt(np.mean(spread**2))),
        "kept_power_by_band": [float(value) for value in share],
        "rmse_of_mean_to_x_theta": float(np.sqrt(np.mean((drawn.mean(axis=0) - predicted[0]) ** 2))),
    }  # fmt: skip
    sentence = (
        f"The mean of {len(drawn)} samples of q(x | z_t), t = {t}, keeps {share[0]:.0%} of their power in "
        f"the lowest eighth of the frequencies and {share[-1]:.0%} in the highest: the rest cancels; a "
        f"pixel's standard deviation is {numbers['pixel_spread']:.2f}."
    )
    wide = to_uint8(2 * spread / max(spread.max(), 1e-6) - 1)
    shown = {
        "z_t, x, x_theta": to_uint8(np.stack([z[0], images[0], predicted[0]])),
        "samples": to_uint8(drawn[:SHOWN]),
        "mean, spread": np.stack([to_uint8(drawn.mean(axis=0)), wide]),
    }
    return Findings(numbers, sentence, shown)


def kept_power(samples: np.ndarray) -> np.ndarray:
    """The share of samples' power that is that of their true mean, in `BANDS` of frequency.

    |mean of N|^2 holds 1/N of what has no common phase; it is taken out, so that of independent noise 0 is
    expected, and of equal images 1. The constant is left out.

    Args:
      samples: float (N, H, W, C), N > 1.
    Returns:
      (BANDS,), from low frequencies to those of neighbouring pixels.
    """
    count, height, width, _ = samples.shape
    spectrum = np.fft.fft2(samples, axes=(1, 2))
    power = np.mean(np.abs(spectrum) ** 2, axis=(0, 3))
    common = (count * np.mean(np.abs(spectrum.mean(axis=0)) ** 2, axis=2) - power) / (count - 1)
    down, right = np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij")
    radius = np.hypot(down, right)
    band = np.minimum((radius / 0.5 * BANDS).astype(int), BANDS)  # what lies in the corners is left out
    band[0, 0] = BANDS
    sums = [np.bincount(band.ravel(), values.ravel(), BANDS + 1)[:BANDS] for values in (common, power)]
    return sums[0] / np.maximum(sums[1], 1e-12)


def draw_reconstructions(found: Findings, path: str | os.PathLike) -> None:
    """The image, z_t, samples, their mean and spread, and the share of power that the mean keeps."""
    share = np.array(found.numbers["kept_power_by_band"])
    middle = (np.arange(BANDS) + 0.5) / BANDS
    panel = plots.Panel(
        "share of the samples' power in their mean", "frequency over that of neighbouring pixels",
        {"mean": (middle, share, None)},
    )  # fmt: skip
    plots.draw(path, found.shown, panels=[panel])
