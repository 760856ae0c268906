"""The check for copies: are samples nearer to training images than unseen images of the same kind are?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from pdm_tf.evaluation.distances import nearest
from pdm_tf.evaluation.features import three_channels
from pdm_tf.evaluation.image_sets import ImageSet
from pdm_tf.evaluation.references import Reference
from pdm_tf.images import image_grid

TWIN = 1e-3  # of the training features' spread: what is nearer is the same image
PAIRS = 8  # of a sample and its nearest training image, in the picture


class CopyCheck:
    """Distances of images to their nearest training images, beside those of held-out images.

    Attributes:
      unseen: the distances of held-out images, float64 (N,), without those that are training images, too.
      twins: the number of these.
    """

    def __init__(self, train: Reference, held_out: Reference, train_image: Callable[[int], np.ndarray]):
        """`train_image` gives the training image at a place, uint8 (H, W, C)."""
        self.train = train
        self.held_out = held_out
        self.train_image = train_image
        _, distance = nearest(held_out.features, train.features)
        spread = np.sqrt(np.trace(train.moments.covariance))
        self.unseen = distance[distance > TWIN * spread]
        self.twins = len(distance) - len(self.unseen)

    def search(self, samples: np.ndarray) -> dict[str, Any]:
        """The nearest training images of samples, given as pooled features, float (N, D).

        Returns:
          The median distance to the nearest training image, of samples and of held-out images; the share of
          samples nearer than 95% of the held-out images are, and what is expected of a model that copies
          nothing: 0.05, or 1 / (n + 1) of n < 19 held-out images; the `PAIRS` closest samples with the places
          of their training images, closest first; and how many training images were looked at.
        """
        found, distance = nearest(samples, self.train.features)
        closest = np.argsort(distance, kind="stable")[:PAIRS]
        return {
            "median_distance": float(np.median(distance)),
            "median_distance_held_out": float(np.median(self.unseen)),
            "share_nearer_than_95_percent_of_held_out": float(
                np.mean(distance < np.quantile(self.unseen, 0.05, method="weibull"))  # unbiased
            ),
            "expected_share": max(0.05, 1 / (len(self.unseen) + 1)),
            "closest_samples": closest.tolist(),
            "their_training_images": self.train.places[found[closest]].tolist(),
            "training_images_searched": len(self.train.features),
        }

    def picture(self, image_set: ImageSet, found: dict[str, Any]) -> np.ndarray:
        """The closest pairs of `search`, samples above training images, uint8 (height, width, 3)."""
        samples = three_channels(image_set.images(found["closest_samples"]))
        training = three_channels(np.stack(list(map(self.train_image, found["their_training_images"]))))
        size = np.maximum(samples.shape[1:3], training.shape[1:3])
        images = np.concatenate([_enlarged(samples, size), _enlarged(training, size)])
        return image_grid(images, columns=len(samples))


def in_words(found: dict[str, Any]) -> str:
    """The result of `CopyCheck.search` in a sentence."""
    return (
        f"{found['share_nearer_than_95_percent_of_held_out']:.1%} of the samples are nearer to a training "
        f"image than 95% of the held-out images are ({found['expected_share']:.0%} if nothing is copied); "
        f"median distance {found['median_distance']:.3g}, of held-out images "
        f"{found['median_distance_held_out']:.3g}; the closest pairs:"
    )


def _enlarged(images: np.ndarray, size: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) at (height, width) `size`; the pixels stay visible."""
    height, width = map(int, size)
    return np.stack(
        [Image.fromarray(one).resize((width, height), Image.Resampling.NEAREST) for one in images]
    )
