"""Classifier-free guidance on x, where it applies, and the thresholding of x (Section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from pdm_tf.denoiser import Denoiser
from pdm_tf.sampling.loop import Denoise

PERCENTILE = 99.5  # of |x|, which dynamic thresholding takes for the largest


def guided(
    denoiser: Denoiser,
    labels: tf.Tensor,
    weight: float | tf.Tensor,
    threshold: str = "dynamic",
    interval: Sequence[int] = (),
) -> Denoise:
    """A function (z, t) -> x_theta, u of a denoiser at fixed labels; t is () or (B,).

    x_theta = w x_cond - (w - 1) x_null, thresholded, and u of the conditional pass. At w = 1 the network runs
    once and x is clipped to [-1, 1]; otherwise both passes are one call on twice the batch. A denoiser's own
    guide takes the place of x_null.

    Args:
      labels: int32 (B,).
      weight: w; the paper's are 1.5 and 2.25. A tensor, float32 () or (B,), chooses in the graph, which holds
        the network once; of a batch only the images of w != 1 are passed a second time.
      threshold: of `THRESHOLDS`; "none" does not clip at w = 1 either.
      interval: (lo, hi), the only t, lo <= t < hi, that are guided (Kynkaanniemi et al., 2024); (): all.
    """
    limit = THRESHOLDS[threshold]
    clip = limit if threshold == "none" else THRESHOLDS["static"]

    def plain(z, t):
        pred_x, u = denoiser(z, tf.broadcast_to(t, tf.shape(labels)), labels)
        return clip(pred_x), u

    def with_weaker(z, t, rows=None):
        """x_theta and u of all images, and the x of some that guidance leads away from."""
        some_z, some_t, some_labels = (v if rows is None else tf.gather(v, rows) for v in (z, t, labels))
        if denoiser.guide is not None:
            # oneDNN's convolutions cannot do empty batches.
            weaker = tf.cond(
                tf.shape(some_z)[0] > 0,
                lambda: denoiser.guide(some_z, some_t, some_labels)[0],
                lambda: some_z,
            )
            return *denoiser(z, t, labels), weaker
        both = tf.concat([labels, tf.fill(tf.shape(some_labels), denoiser.null_label)], axis=0)
        pred_x, u = denoiser(tf.concat([z, some_z], axis=0), tf.concat([t, some_t], axis=0), both)
        count = tf.shape(labels)[0]
        # The number of some images is known in the graph only, and a loop wants the shape that z has.
        own = [tf.ensure_shape(values[:count], z.shape) for values in (pred_x, u)]
        return *own, pred_x[count:]

    def with_guidance(z, t, inside=None):
        """x of all images, or only where `inside`, bool (B,): all are passed twice, in shapes XLA knows."""
        conditional, u, weaker = with_weaker(z, tf.broadcast_to(t, tf.shape(labels)))
        w = tf.convert_to_tensor(weight, tf.float32)  # as a tensor's: an exported model draws the same images
        x = limit(w * conditional - (w - 1.0) * weaker)
        return x if inside is None else tf.where(inside[:, None, None, None], x, clip(conditional)), u

    def weight_of_each(z, t):
        t = tf.broadcast_to(t, tf.shape(labels))
        w = tf.broadcast_to(weight, tf.shape(labels))
        if interval:
            w = tf.where((t >= interval[0]) & (t < interval[1]), w, 1.0)
        places = tf.where(tf.not_equal(w, 1.0))
        rows = places[:, 0]
        conditional, u, weaker = with_weaker(z, t, rows)
        w = tf.gather(w, rows)[:, None, None, None]
        x = limit(w * tf.gather(conditional, rows) - (w - 1.0) * weaker)
        return tf.tensor_scatter_nd_update(clip(conditional), places, x), u

    def within_interval(z, t):
        inside = (t >= interval[0]) & (t < interval[1])
        if t.shape.rank:
            return with_guidance(z, t, inside)
        return tf.cond(inside, lambda: with_guidance(z, t), lambda: plain(z, t))

    if tf.is_tensor(weight):
        return weight_of_each
    if weight == 1.0:
        return plain
    return within_interval if interval else with_guidance


def dynamic_threshold(x: tf.Tensor) -> tf.Tensor:
    """Clips each image to [-s, s] and divides by s, s = max(1, percentile of |x|) (Saharia et al., 2022).

    float32 (B, H, W, C) -> (B, H, W, C) in [-1, 1]; `PERCENTILE` is linearly interpolated.
    """
    values = x.shape[1] * x.shape[2] * x.shape[3]
    place = (1.0 - PERCENTILE / 100.0) * (values - 1)  # counted from the largest
    below = int(place) + 1
    largest = tf.math.top_k(tf.abs(tf.reshape(x, [-1, values])), min(below + 1, values)).values
    fraction = place - int(place)
    s = largest[:, below - 1] * (1.0 - fraction) + largest[:, -1] * fraction
    s = tf.reshape(tf.maximum(s, 1.0), [-1, 1, 1, 1])
    return tf.clip_by_value(x, -s, s) / s


# `sampling.threshold` -> what is made of a guided x.
THRESHOLDS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "dynamic": dynamic_threshold,  # the paper's
    "static": lambda x: tf.clip_by_value(x, -1.0, 1.0),
    "none": lambda x: x,
}
