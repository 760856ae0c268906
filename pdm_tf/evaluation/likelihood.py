"""Likelihood in bits per dimension, by the variational bound of a whole process.

The mean over H * W * C of  KL(q(z_T | x) || N(0, I)) + sum_{t > 0} KL(q(z_s | z_t, x) || p_theta(z_s | z_t))
- log p_theta(x | z_0),  in bits. To read it right:

- It is a bound: the model's own -log2 p(x) is at most that much. The likelihood of the probability-flow ODE is
  another quantity, and usually smaller.
- Data are of 8 bits: the last reverse step is a Gaussian rounded to the 256 levels, and nothing is
  dequantised. No pixel is given less than a probability of 1e-12, as in the DDPM family; `Bits.unfloored` is
  the bound without that help.
- Patching is a permutation of an image's numbers: there is no Jacobian, and H * W * C is that of the image.
- Of split experts, each t asks its owner (Section 4.1), and the bound is one of the whole model.
- x-prediction with gamma_t = sqrt(SNR) is not trained on the bound, whose weight is (SNR_s - SNR_t) / 2: expect
  more bits than of a model that is, at a few of the smallest t above all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.denoiser import Denoiser

# Images float32 (B, H, W, C) in [-1, 1] on the levels of 8 bits, labels int32 (B,), places int (B,): each image's
# number, which its noise belongs to. As `pdm_tf.data.load_batches` makes them.
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


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


class Bits(NamedTuple):
    """What `Likelihood` answers. Bits are bits per dimension; means are over images and draws.

    Attributes:
      bits_per_dim: the bound. Of a denoiser of a part of the process, the terms of its t alone.
      error_images: its standard error as images, their noise and their t are drawn anew; None of one image.
      error_draws: the part of it that noise and t have, on these very images; None of one draw.
      unfloored: the bound without the decoder's floor of 1e-12.
      parts: prior, decoder, each expert's interval, tenths of the process. t = 0 counts into the interval that
        it lies in; prior and experts add up to the whole, and so do prior and tenths.
      terms: (T,) bits of each t; NaN where no draw fell.
      mse_x, mse_eps: (T,) mean squared errors of x_theta, and of the eps that it implies; NaN likewise.
      counts: (T,) how many terms each t's means are of.
      count, draws, strata: images, draws of noise, and terms drawn for each image in t > 0; None: all.
      t_start, t_stop: of the denoiser.
      variance, clip: as asked.
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
    variance: str
    clip: bool

    def rows(self) -> list[tuple[str, str, str]]:
        """A table for people: (what, bits, standard error), the whole first."""

    def to_json(self) -> dict[str, Any]:
        """Everything but the curves over t, as JSON values."""


class Likelihood:
    """The bound of a denoiser, one network's or `Experts`, compiled once; weights may change between calls.

    In training, a cheap held-out figure is `Likelihood(model.denoiser)(batches, strata=16)`.
    """

    def __init__(self, denoiser: Denoiser, *, variance: str = "learned", clip: bool = True):
        """Fixes what is measured.

        Args:
          variance: sigma^2's name in `VARIANCES`.
          clip: whether x_theta is clipped to [-1, 1], as the DDPM family does (and as `guided` samples).
        """

    def __call__(
        self,
        batches: Iterable[Batch],
        *,
        seed: int = 0,
        draws: int = 1,
        strata: int | None = None,
        folder: str | os.PathLike | None = None,
        count: int | None = None,
        progress: bool = True,
    ) -> Bits:
        """Measures images given their labels (the null label for those without).

        Noise is a function of (seed, draw, an image's place, t), whatever the batch.

        Args:
          draws: of noise, and of t, for each image.
          strata: None evaluates all terms. n estimates those of t > 0 without bias by one uniform t of each of
            n intervals, which widen with t in proportion, because the terms fall; t = 0 is always evaluated.
          folder: keeps finished batches, so that the same call after a kill goes on from there. Files of other
            settings, weights or images never mix in. Whoever gives it removes it.
          count: how many images there are, for the progress bar.
        Raises:
          UserError: images that are not of 8 bits, no images, more strata than terms, a full disk.
        """


def write_terms(path: str | os.PathLike, bits: Bits) -> Path:
    """Writes the curves over t: an .npz of float64 (T,), ascending in t.

    vb_terms (bits), xstart_mse_terms and mse_terms (of eps), named as guided-diffusion's files are (whose run
    from T-1 down), and counts.
    """
