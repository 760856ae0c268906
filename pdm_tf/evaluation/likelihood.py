"""Likelihood in bits per dimension, by the variational bound of a whole process.

The mean over H * W * C of  KL(q(z_T | x) || N(0, I)) + sum_{t > 0} KL(q(z_s | z_t, x) || p_theta(z_s | z_t))
- log p_theta(x | z_0),  in bits. To read it right:

- It is a bound: the model's own -log2 p(x) is at most that much. The likelihood of the probability-flow ODE
  is another quantity, and usually smaller.
- Data are of 8 bits: the last reverse step is a Gaussian rounded to the 256 levels, and nothing is
  dequantised. No number is given less than a probability of 1e-12, as in the DDPM family;
  `Bits.unfloored` is the bound without that help.
- Patching is a permutation of an image's numbers: there is no Jacobian, and H * W * C is that of the image.
- Of split experts, each t asks its owner (Section 4.1), and the bound is one of the whole model.
- x-prediction with gamma_t = sqrt(SNR) is not trained on the bound, whose weight is (SNR_s - SNR_t) / 2:
  expect more bits than of a model that is, at the smallest t above all. Guidance has no part in it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pdm_tf.atomic import atomic_json
from pdm_tf.data import DatasetInfo, load_batches, naming_shards
from pdm_tf.denoiser import Denoiser
from pdm_tf.diffusion.likelihood import bound_term, prior_kl
from pdm_tf.diffusion.process import VARIANCES, diffuse
from pdm_tf.errors import UserError
from pdm_tf.paths import as_path
from pdm_tf.progress import bar, skip
from pdm_tf.randomness import draw_each, stream
from pdm_tf.sampling.sampler import own_share
from pdm_tf.weights import read_arrays, write_arrays

# Images float32 (B, H, W, C) in [-1, 1] on the levels of 8 bits, labels int32 (B,), and places int (B,), the
# numbers that the images' noise belongs to; as `pdm_tf.data.load_batches` makes them.
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
# The least probability that the decoder gives a number, in the DDPM family.
FLOOR = 1e-12
TENTHS = 10


class Way(NamedTuple):
    """How the bound reads a network's answer.

    Attributes:
      variance: sigma^2's name in `VARIANCES`.
      clip: whether x_theta is clipped to [-1, 1], as the DDPM family does (and as `guided` samples).
    """

    variance: str = "learned"
    clip: bool = True


def ways_from(variance: str) -> list[Way]:
    """All ways, the clipped one of a variance first."""
    ways = [Way(name, clip) for name in VARIANCES for clip in (True, False)]
    return sorted(ways, key=lambda way: way.variance != variance)


class Part(NamedTuple):
    """The bits of t_start <= t < t_stop, a mean over images and draws.

    Attributes:
      name: "prior", "decoder" (t = 0), "expert k", or "t" for one of ten equal parts of the process.
      error: its standard error over images, as `Bits.error_images`.
    """

    name: str
    t_start: int
    t_stop: int
    bits: float
    error: float | None

    @property
    def title(self) -> str:
        """What a table calls it."""
        if self.name in ("prior", "decoder"):
            return self.name
        span = f"t {self.t_start}..{self.t_stop - 1}"
        return span if self.name == "t" else f"{self.name}, {span}"


class Bits(NamedTuple):
    """What `Likelihood` answers for one way. Bits are bits per dimension; means are over images and draws.

    Attributes:
      bits_per_dim: the bound. Of a denoiser of a part of the process, the terms of its t alone.
      error_images: its standard error as images, their noise and their t are drawn anew; None of one image.
      error_draws: the part of it that noise and t have, on these very images; None of one draw.
      unfloored: the bound without the decoder's floor of 1e-12.
      parts: prior, decoder, each expert's interval, tenths of the process. t = 0 counts into the interval
        that it lies in; prior and experts add up to the whole, and so do prior and tenths.
      terms: (T,) bits of each t; NaN where no draw fell.
      mse_x, mse_eps: (T,) mean squared errors of x_theta, and of the eps that it implies; NaN likewise.
      counts: (T,) how many terms each t's means are of.
      count, draws, strata: images, draws of noise, and terms drawn for each image in t > 0; None: all.
      t_start, t_stop: of the denoiser.
      way: as asked.
    """

    bits_per_dim: float
    error_images: float | None
    error_draws: float | None
    unfloored: float
    parts: list[Part]
    terms: np.ndarray
    mse_x: np.ndarray
    mse_eps: np.ndarray
    counts: np.ndarray
    count: int
    draws: int
    strata: int | None
    t_start: int
    t_stop: int
    way: Way

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: (what, bits, standard error), the whole first."""
        whole = self.parts[0].name == "prior" and self.t_start == 0
        name = "bits/dim" if whole else f"t {self.t_start}..{self.t_stop - 1} alone, bits/dim"
        rows = [(name, self.bits_per_dim, self.error_images), ("without the floor", self.unfloored, None)]
        rows += [(part.title, part.bits, part.error) for part in self.parts]
        return [(name, f"{bits:.4f}", "" if error is None else f"{error:.4f}") for name, bits, error in rows]

    def to_json(self) -> dict[str, Any]:
        """Everything but the curves over t, as JSON values."""
        left_out = ("terms", "mse_x", "mse_eps", "counts", "parts", "way")
        values = {name: value for name, value in self._asdict().items() if name not in left_out}
        return {**values, **self.way._asdict(), "parts": [part._asdict() for part in self.parts]}


class Likelihood:
    """The bound of a model, compiled once; weights may change between calls.

    One made inside a strategy's scope shares each batch among the replicas.
    """

    def __init__(self, denoiser: Denoiser, ways: Sequence[Way] = (Way(),)):
        """Fixes what is measured.

        Args:
          denoiser: the model. Of one that answers for a part of the process only, the terms of its t are
            measured: a part of the bound.
          ways: how to read its answers; all of them are measured by one run of the network.
        """
        self.denoiser, self.ways = denoiser, [Way(*way) for way in ways]
        self.strategy = tf.distribute.get_strategy()
        self.replicas = self.strategy.num_replicas_in_sync
        images = tf.TensorSpec((None, *denoiser.image_shape), tf.float32)
        each, scalar = tf.TensorSpec((None,), tf.int32), tf.TensorSpec((), tf.int32)
        key = tf.TensorSpec((2,), tf.int32)
        self._terms = tf.function(self._terms_on_replicas, [images, each, each, key, scalar, scalar])
        self._prior = tf.function(self._prior_of, [images])

    def __call__(
        self,
        batches: Iterable[Batch],
        *,
        seed: int = 0,
        draws: int = 1,
        strata: int | None = None,
        folder: str | os.PathLike | None = None,
        count: int | None = None,
        check: Callable[[], None] = lambda: None,
        progress: bool = True,
    ) -> list[Bits]:
        """Measures images given their labels (the null label for those without): one answer for each way.

        Noise is a function of (seed, draw, an image's place, t), whatever the batch.

        Args:
          draws: of noise, and of t, for each image.
          strata: None evaluates all terms. n estimates those of t > 0 without bias by one uniform t of each
            of n intervals, which widen with t in proportion, because the terms fall; t = 0 is always
            evaluated.
          folder: keeps finished batches, so that the same call after a kill goes on from there. Files of
            other settings, weights or images never mix in. Whoever gives it removes it.
          count: how many images there are, for the progress bar.
          check: called after each term of a batch; what it raises ends the measurement.
        Raises:
          UserError: images that are not of 8 bits, no images, more strata than terms, a full disk.
        """
        asked = {"seed": seed, "draws": draws, "strata": strata, "ways": self.ways}
        intervals = intervals_of(self.denoiser.t_start, self.denoiser.t_stop, strata)
        identity = None if folder is None else self._identity(asked)
        evaluations = draws * len(intervals)
        keys = [stream(seed, "likelihood", draw) for draw in range(draws)]
        measured = []
        with bar(
            total=count and count * evaluations, desc=f"likelihood, {len(intervals)} terms",
            unit="evaluation", unit_scale=True, disable=not progress,
        ) as shown:  # fmt: skip

            def report(terms: int) -> None:
                shown.update(terms)
                check()

            for batch in batches:
                images, labels, places = map(np.asarray, batch)
                check_8_bits(images)
                file = None if identity is None else as_path(folder) / _name(identity, images, labels, places)
                if file is not None and file.exists():
                    skip(shown, len(images) * evaluations)
                    measured.append(read_arrays(file))
                    continue
                measured.append(self._measure(images, labels, places, keys, intervals, report))
                if file is not None:
                    write_arrays(file, measured[-1])
        if not measured:
            raise UserError("no images to measure a likelihood of: choose a split that has some")
        widths = np.diff(intervals)[:, 0]
        return [self._summary(place, measured, widths, draws, strata) for place in range(len(self.ways))]

    def _measure(
        self, images: np.ndarray, labels: np.ndarray, places: np.ndarray, keys: Sequence[tf.Tensor],
        intervals: Sequence[tuple[int, int]], report: Callable[[int], None],
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """One batch: t int32 (draws, intervals, B), prior float64 (B,), and of W ways floored, exact and
        mse_x, float64 (draws, intervals, W, B).
        """
        count, whole = len(images), self.denoiser.t_stop == len(self.denoiser.schedule)
        padded = np.minimum(np.arange(-(-count // self.replicas) * self.replicas), count - 1)
        x, labels = tf.constant(images[padded]), tf.constant(labels[padded], tf.int32)
        places = tf.constant(places[padded].astype(np.int64) % 2**31, tf.int32)
        found = []
        for key in keys:
            for first, stop in intervals:
                parts = map(
                    self.strategy.experimental_local_results, self._terms(x, labels, places, key, first, stop)
                )
                found.append([np.concatenate(part, axis=-1)[..., :count] for part in parts])
                report(count)
        shape = (len(keys), len(intervals))
        parts = (np.stack(part).reshape(*shape, *part[0].shape) for part in zip(*found))
        prior = self._prior(images).numpy() if whole else np.zeros(count)
        return {**dict(zip(("t", "floored", "exact", "mse_x"), parts)), "prior": prior}

    def _terms_on_replicas(self, x, labels, places, key, first, stop):
        """`_terms_of`, each replica on its share of the images."""

        def own():
            shares = (own_share(value, self.replicas) for value in (x, labels, places))
            return self._terms_of(*shares, key, first, stop)

        return self.strategy.run(own)

    def _terms_of(self, x, labels, places, key, first, stop):
        """t int32 (B,), of first..stop-1; bits with and without the floor, and mse_x, float64 (W, B)."""

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

        def of_way(way: Way) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            shown = tf.clip_by_value(pred_x, -1.0, 1.0) if way.clip else pred_x
            exact = bound_term(x, z, shown, VARIANCES[way.variance](u, level), level)
            floored = tf.where(level.before.noise > 0, exact, tf.minimum(exact, -math.log(FLOOR)))
            return _bits(floored), _bits(exact), tf.reduce_mean(tf.square(shown - x), axis=[1, 2, 3])

        return t, *(tf.stack(values) for values in zip(*map(of_way, self.ways)))

    def _prior_of(self, x):
        schedule = self.denoiser.schedule
        return _bits(prior_kl(tf.cast(x, tf.float64), schedule.at(len(schedule) - 1, tf.float64)))

    def _summary(
        self, place: int, measured: Sequence[dict[str, np.ndarray]], widths: np.ndarray, draws: int,
        strata: int | None,
    ) -> Bits:  # fmt: skip
        """Means and errors of one way and all batches; `widths` is how many t each interval stands for."""
        t = np.concatenate([batch["t"] for batch in measured], axis=-1)
        floored, exact, mse_x = (
            np.concatenate([batch[name][:, :, place] for batch in measured], axis=-1)
            for name in ("floored", "exact", "mse_x")
        )
        prior = np.concatenate([batch["prior"] for batch in measured])
        widths = widths[:, None]
        totals = np.sum(widths * floored, axis=1) + prior  # (draws, N)
        schedule = self.denoiser.schedule

        def part(name: str, first: int, stop: int) -> Part:
            bits = np.mean(np.sum(widths * floored * ((t >= first) & (t < stop)), axis=1), axis=0)
            return Part(name, first, stop, float(np.mean(bits)), _error(bits))

        steps, parts = len(schedule), [part(*interval) for interval in self._parts()]
        if self.denoiser.t_stop == steps:
            parts.insert(0, Part("prior", steps, steps, float(np.mean(prior)), _error(prior)))
        counts = np.bincount(t.ravel(), minlength=steps)

        def curve(values: np.ndarray) -> np.ndarray:
            sums = np.bincount(t.ravel(), values.ravel(), minlength=steps)
            return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

        mse_x = curve(mse_x)
        noise = np.mean(np.var(totals, axis=0, ddof=1)) if draws > 1 else None
        return Bits(
            bits_per_dim=float(np.mean(totals)),
            error_images=_error(np.mean(totals, axis=0)),
            error_draws=None if noise is None else math.sqrt(noise / totals.size),
            unfloored=float(np.mean(np.sum(widths * exact, axis=1) + prior)),
            parts=parts,
            terms=curve(floored),
            mse_x=mse_x,
            mse_eps=schedule.snr * mse_x,  # eps - eps_theta = sqrt(SNR) (x_theta - x)
            counts=counts,
            count=len(prior),
            draws=draws,
            strata=strata,
            t_start=self.denoiser.t_start,
            t_stop=self.denoiser.t_stop,
            way=self.ways[place],
        )

    def _parts(self) -> list[tuple[str, int, int]]:
        """(name, t_start, t_stop) of the intervals to report on."""
        d = self.denoiser
        parts = [("decoder", 0, 1)] if d.t_start == 0 else []
        if len(d.parts) > 1:
            parts += [(f"expert {k + 1}", one.t_start, one.t_stop) for k, one in enumerate(d.parts)]
        edges = np.linspace(0, len(d.schedule), TENTHS + 1).astype(int).tolist()
        tenths = [(max(first, d.t_start), min(stop, d.t_stop)) for first, stop in zip(edges, edges[1:])]
        return parts + [("t", first, stop) for first, stop in tenths if first < stop]

    def _identity(self, asked: dict[str, Any]):
        """A running SHA-256 of all but the images that decides the terms."""
        d = self.denoiser
        text = json.dumps({**asked, "t": [d.t_start, d.t_stop]}, sort_keys=True)
        digest = hashlib.sha256(text.encode() + d.schedule.alpha.tobytes())
        for variable in d.variables:
            digest.update(np.ascontiguousarray(variable.numpy()))
        return digest


def intervals_of(t_start: int, t_stop: int, strata: int | None) -> list[tuple[int, int]]:
    """(first, stop) of the intervals of t that one t is drawn of: t = 0 alone, then `strata`; None: each t.

    They widen with t in proportion, as far as whole numbers can: the terms fall about as 1 / t.

    Raises:
      UserError: more strata than t.
    """
    start = max(t_start, 1)
    most = t_stop - start
    if strata is not None and not 1 <= strata <= most:
        raise UserError(f"{strata} strata of t: there are {most} t after the first, so use 1 to {most}")
    count = most if strata is None else strata
    edges = np.floor(np.geomspace(start, max(t_stop, start), count + 1) + 0.5).astype(int)
    edges = np.maximum(edges, start + np.arange(count + 1)).tolist()
    return ([(0, 1)] if t_start == 0 else []) + list(zip(edges, edges[1:]))


def most_strata(denoiser: Denoiser) -> int:
    """The most strata that `intervals_of` can make of a denoiser's t."""
    return denoiser.t_stop - max(denoiser.t_start, 1)


def held_out_batches(
    info: DatasetInfo, split: str, image_shape: Sequence[int], batch_size: int, count: int
) -> Iterator[Batch]:
    """The first images of a split as `Likelihood` wants them."""
    batches = load_batches(
        info, split=split, batch_size=batch_size, seed=0, repeat=False, shuffle=False,
        image_shape=image_shape, drop_remainder=False,
    ).unbatch().take(count).batch(batch_size)  # fmt: skip
    with naming_shards():
        yield from batches.as_numpy_iterator()


def check_8_bits(images: np.ndarray) -> None:
    """Raises UserError if images in [-1, 1] have other values than the 256 levels."""
    levels = (images + 1.0) * 127.5
    off = np.max(np.abs(levels - np.clip(np.round(levels), 0, 255)))
    if not off < 1e-3:
        raise UserError(
            "bits per dimension are of 8-bit images, and these have values between the 256 levels: measure a "
            "data set of 8 bits that is not resized as it is read"
        )


def write_terms(path: str | os.PathLike, bits: Bits) -> None:
    """Writes the curves over t: an .npz of (T,), ascending in t.

    vb_terms (bits), xstart_mse_terms and mse_terms (of eps), named as guided-diffusion's files are (whose
    arrays run from T-1 down), and counts.
    """
    curves = {"vb_terms": bits.terms, "mse_terms": bits.mse_eps, "xstart_mse_terms": bits.mse_x}
    write_arrays(path, {**curves, "counts": bits.counts})


def _bits(nats: tf.Tensor) -> tf.Tensor:
    """Bits per dimension of images, (B,)."""
    return tf.reduce_mean(nats, axis=[1, 2, 3]) / math.log(2.0)


def _error(values: np.ndarray) -> float | None:
    """Standard error of the mean of values (N,); None of one."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _name(identity, images: np.ndarray, labels: np.ndarray, places: np.ndarray) -> str:
    """A finished batch's file."""
    digest = identity.copy()
    for array in (images, labels, places):
        digest.update(np.ascontiguousarray(array))
    return f"terms_{digest.hexdigest()[:24]}.npz"


def report_bits(answers: Sequence[Bits], out: str | os.PathLike, about: dict[str, Any]) -> None:
    """Prints the first answer's table and the bounds of all ways, and writes likelihood.json and its terms.

    likelihood.json has all of the first answer, `about`, and the bound in each way; likelihood_terms.npz the
    first answer's curves.
    """
    out = as_path(out)
    bits, file, terms = answers[0], out / "likelihood.json", out / "likelihood_terms.npz"
    named = ("bits_per_dim", "error_images", "unfloored")
    ways = [{**one.way._asdict(), **{name: getattr(one, name) for name in named}} for one in answers]
    atomic_json(file, {**about, **bits.to_json(), "ways": ways})
    write_terms(terms, bits)
    print(f"variance {bits.way.variance}, x {_clipped(bits.way)}:")
    print("| part | bits/dim | standard error |\n|---|---|---|")
    for row in bits.rows():
        print(f"| {' | '.join(row)} |")
    print("| variance | x | bits/dim | standard error | without the floor |\n|---|---|---|---|---|")
    for one in answers:
        (_, value, error), (_, unfloored, _) = one.rows()[:2]
        print(f"| {one.way.variance} | {_clipped(one.way)} | {value} | {error} | {unfloored} |")
    print(f"likelihood: {file}\nits terms by t: {terms}")


def _clipped(way: Way) -> str:
    return "clipped" if way.clip else "unclipped"
