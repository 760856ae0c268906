"""Likelihood in bits per dimension, by the variational bound of a whole process (Ho et al. 2020, eq. 5).

The mean over H * W * C of  L_T + sum_{0 < t < T} L_t + L_0, in bits:

    L_T = KL(q(z_T | x) || N(0, I)),  L_t = KL(q(z_s | z_t, x) || p_theta(z_s | z_t)),
    L_0 = -log p_theta(x | z_0)

It is an upper bound of -log2 p(x); the probability-flow ODE's is another quantity, and usually smaller. Data
are of 8 bits: the decoder is a Gaussian rounded to the 256 levels. As in the DDPM family it gives no number
less than a probability of 1e-12, and x_theta is clipped to [-1, 1]. Patching is a permutation of an image's
numbers: there is no Jacobian. Of split experts, each t asks its owner (Section 4.1). x-prediction with
gamma_t = sqrt(SNR) is not trained on the bound, whose weight is (SNR_s - SNR_t) / 2: expect more bits than of
a model that is, at the smallest t above all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.data import DatasetInfo, naming_shards, split_in_order
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.likelihood import bound_term, prior_kl
from pdm_tf.diffusion.process import VARIANCES, diffuse
from pdm_tf.errors import UserError
from pdm_tf.evaluation.metrics import Measurement
from pdm_tf.ledger import Ledger
from pdm_tf.progress import bar, skip
from pdm_tf.randomness import draw_each, stream
from pdm_tf.sampling.sampler import on_replicas

# Images float32 (B, H, W, C) in [-1, 1] on the levels of 8 bits, labels int32 (B,), and places int (B,), the
# numbers that the images' noise belongs to; as `pdm_tf.data.load_batches` makes them.
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
# The least probability that the decoder gives a number, in the DDPM family.
FLOOR = 1e-12


class Interval(NamedTuple):
    """The bits per dimension of t_start <= t < t_stop, a mean over images."""

    title: str
    t_start: int
    t_stop: int
    bits: Measurement


class Bits(NamedTuple):
    """Bits per dimension of some images; errors are standard errors over images, their noise and their t.

    Attributes:
      bits_per_dim: the bound; of a denoiser of a part of the process, the terms of its t alone.
      intervals: L_T, L_1..T-1 and L_0, as far as the denoiser's t go, which add up to the whole; and each of
        the denoiser's parts, if there are several.
      count: images.
    """

    bits_per_dim: Measurement
    intervals: list[Interval]
    count: int

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "bits_per_dim": self.bits_per_dim.to_json(),
            "intervals": [{**one._asdict(), "bits": one.bits.to_json()} for one in self.intervals],
            "count": self.count,
        }

    def table(self) -> str:
        """A table in Markdown, the bound first."""
        rows = [(interval.title, interval.bits) for interval in self.intervals]
        lines = ["| | bits/dim | standard error |", "|---|---|---|"]
        for title, (value, error, _) in [("bits/dim", self.bits_per_dim), *rows]:
            lines.append(f"| {title} | {value:.4f} | {'' if error is None else f'{error:.4f}'} |")
        return "\n".join(lines)


class Likelihood:
    """The bound of one denoiser, compiled once; weights may change between calls.

    One made inside a strategy's scope shares each batch among the replicas.
    """

    def __init__(self, denoiser: Denoiser, variance: str = "learned"):
        """`variance`: the name of sigma^2 in `VARIANCES`."""
        self.denoiser = denoiser
        self.variance = VARIANCES[variance]
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        images = tf.TensorSpec((None, *denoiser.image_shape), tf.float32)
        each = tf.TensorSpec((None,), tf.int32)
        scalar = tf.TensorSpec((), tf.int32)
        key = tf.TensorSpec((2,), tf.int32)
        self._terms = tf.function(self._terms_on_replicas, [images, each, each, key, scalar, scalar])

    def __call__(
        self,
        batches: Iterable[Batch],
        *,
        seed: int = 0,
        strata: int | None = None,
        ledger: Ledger | None = None,
        count: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Bits:
        """Measures images given their labels (the null label for those without).

        Noise is a function of (seed, an image's place, t), whatever the batch.

        Args:
          strata: None evaluates all terms. n estimates those of t > 0 without bias by one uniform t of each
            of the n intervals of `intervals_of`; t = 0 is always evaluated.
          ledger: keeps finished batches. Its identity tells weights, images and all arguments apart.
          count: the number of images, for a progress bar; None: without one.
          check: called after each term of a batch; what it raises ends the measurement.
        Raises:
          UserError: images that are not of 8 bits, more strata than terms, a full disk.
        """
        intervals = intervals_of(self.denoiser.t_start, self.denoiser.t_stop, strata)
        key = stream(seed, "likelihood", 0)
        finished = ledger.names() if ledger else ()
        measured = []
        with bar(
            total=count and count * len(intervals),
            desc=f"likelihood, {len(intervals)} terms",
            unit="evaluation",
            unit_scale=True,
            disable=count is None,
        ) as shown:

            def report(terms: int) -> None:
                shown.update(terms)
                check()

            for number, batch in enumerate(batches):
                name = f"terms_{number:06d}"
                if name in finished:
                    measured.append(ledger.read(name))
                    skip(shown, measured[-1]["t"].size)
                    continue
                measured.append(self._measure(batch, key, intervals, report))
                if ledger:
                    ledger.write(name, measured[-1])
        whole = {name: np.concatenate([part[name] for part in measured], axis=-1) for name in measured[0]}
        return self._summary(**whole, widths=np.diff(intervals))

    def _measure(
        self,
        batch: Batch,
        key: tf.Tensor,
        intervals: Sequence[tuple[int, int]],
        report: Callable[[int], None],
    ) -> dict[str, np.ndarray]:
        """One batch: t int32 and bits float64, (intervals, B); prior (B,)."""
        images, labels, places = map(np.asarray, batch)
        check_8_bits(images)
        count = len(images)
        # Each replica takes an equal share: the last image fills up.
        padded = np.minimum(np.arange(-(-count // self.replicas) * self.replicas), count - 1)
        arguments = (
            tf.constant(images[padded]),
            tf.constant(labels[padded], tf.int32),
            tf.constant(places[padded].astype(np.int64) % 2**31, tf.int32),
            key,
        )
        found = {"t": [], "bits": []}
        for first, stop in intervals:
            for values, part in zip(found.values(), self._terms(*arguments, first, stop)):
                shares = self.strategy.experimental_local_results(part)
                values.append(np.concatenate(shares)[:count])
            report(count)
        schedule = self.denoiser.schedule
        prior = np.zeros(count)
        if self.denoiser.t_stop == len(schedule):
            last = schedule.at(len(schedule) - 1, tf.float64)
            prior = _bits(prior_kl(tf.constant(images, tf.float64), last)).numpy()
        return {**{name: np.stack(values) for name, values in found.items()}, "prior": prior}

    def _terms_on_replicas(self, x, labels, places, *rest):
        """`_terms_of`, each replica on its share of the images."""
        return on_replicas(self.strategy, self._terms_of, (x, labels, places), rest)

    def _terms_of(self, x, labels, places, key, first, stop):
        """t int32 (B,), of first..stop-1, and bits float64 (B,)."""

        def draw(image_key):
            fold_in = tf.random.experimental.stateless_fold_in
            keys = tf.unstack(tf.random.experimental.stateless_split(image_key, 2))
            t = tf.random.stateless_uniform((), fold_in(keys[0], first), first, stop, tf.int32)
            # Keyed by t, so that an estimate's terms are those of the whole sum.
            return t, tf.random.stateless_normal(x.shape[1:], fold_in(keys[1], t))

        t, eps = draw_each(key, places, draw, (tf.TensorSpec((), tf.int32), tf.TensorSpec(x.shape[1:])))
        z = diffuse(x, eps, self.denoiser.schedule.at(t, x.dtype))
        pred_x, u = self.denoiser(z, t, labels)
        # Of two nearly equal Gaussians, as at most t, float32 would leave nothing but rounding.
        x, z, pred_x, u = (tf.cast(value, tf.float64) for value in (x, z, pred_x, u))
        level = self.denoiser.schedule.at(t, tf.float64)
        exact = bound_term(x, z, tf.clip_by_value(pred_x, -1.0, 1.0), self.variance(u, level), level)
        floored = tf.where(level.before.noise > 0, exact, tf.minimum(exact, -math.log(FLOOR)))
        return t, _bits(floored)

    def _summary(self, t, bits, prior, widths) -> Bits:
        """Means and errors; `widths` (intervals, 1) is how many t each interval stands for."""

        def between(first: int, stop: int) -> Measurement:
            return Measurement.mean_of(np.sum(widths * bits * ((t >= first) & (t < stop)), axis=0))

        denoiser = self.denoiser
        steps = len(denoiser.schedule)
        start, stop = denoiser.t_start, denoiser.t_stop
        intervals = []
        if stop == steps:
            intervals.append(Interval("L_T, the prior", steps, steps, Measurement.mean_of(prior)))
        first = max(start, 1)
        title = f"L_{first}..{stop - 1}, the steps"
        intervals.append(Interval(title, first, stop, between(first, stop)))
        if start == 0:
            intervals.append(Interval("L_0, the decoder", 0, 1, between(0, 1)))
        for part in denoiser.parts if len(denoiser.parts) > 1 else ():
            of_part = between(part.t_start, part.t_stop)
            intervals.append(Interval(part.title, part.t_start, part.t_stop, of_part))
        return Bits(
            bits_per_dim=Measurement.mean_of(np.sum(widths * bits, axis=0) + prior),
            intervals=intervals,
            count=len(prior),
        )


def intervals_of(t_start: int, t_stop: int, strata: int | None) -> list[tuple[int, int]]:
    """(first, stop) of the intervals of t that one t is drawn of: t = 0 alone, then `strata`; None: each t.

    They widen with t in proportion, as far as whole numbers can: the terms fall about as 1 / t. UserError if
    there are more strata than t.
    """
    start = max(t_start, 1)
    most = t_stop - start
    if strata is not None and not 1 <= strata <= most:
        raise UserError(f"{strata} strata of t: there are {most} t after the first, so use 1 to {most}")
    count = most if strata is None else strata
    edges = np.floor(np.geomspace(start, max(t_stop, start), count + 1) + 0.5).astype(int)
    edges = np.maximum(edges, start + np.arange(count + 1)).tolist()
    return ([(0, 1)] if t_start == 0 else []) + list(zip(edges, edges[1:]))


def held_out_batches(
    info: DatasetInfo, split: str, image_shape: Sequence[int], batch_size: int, count: int
) -> Iterator[Batch]:
    """The first images of a split as `Likelihood` wants them."""
    batches = split_in_order(info, split, batch_size, image_shape)
    with naming_shards():
        for batch in batches.unbatch().take(count).batch(batch_size).as_numpy_iterator():
            yield batch["image"], batch["label"], batch["place"]


def check_8_bits(images: np.ndarray) -> None:
    """Raises UserError if images in [-1, 1] have other values than the 256 levels."""
    levels = (images + 1.0) * 127.5
    off = np.max(np.abs(levels - np.clip(np.round(levels), 0, 255)))
    if not off < 1e-3:
        raise UserError(
            "bits per dimension are of 8-bit images, and these have values between the 256 levels: measure "
            "an 8-bit data set that has the model's size"
        )


def _bits(nats: tf.Tensor) -> tf.Tensor:
    """Bits per dimension of images, (B,)."""
    return tf.reduce_mean(nats, axis=[1, 2, 3]) / math.log(2.0)
