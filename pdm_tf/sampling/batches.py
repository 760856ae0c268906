"""Samples as an iterator of uint8 batches: what files, previews, evaluation, benchmarks and the page take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pdm_tf.config.fields import TOGETHER
from pdm_tf.images import to_uint8
from pdm_tf.ledger import Ledger, Share
from pdm_tf.progress import bar, skip
from pdm_tf.sampling.sampler import Sampler

ALONE = Share()
BAR = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}, {rate_fmt}]"


def default_batch(count: int, replicas: int = 1) -> int:
    """How many of `count` images to draw at a time: `TOGETHER`, or all of fewer, as many on each replica."""
    return min(max(TOGETHER // replicas, 1), -(-count // replicas)) * replicas


@dataclasses.dataclass(frozen=True)
class SampleBatches:
    """Images 0..count-1 of a seed: iterating yields them in order, uint8 (B, H, W, C), as they are drawn.

    All batches run one graph: the last one is drawn whole, and yielded without the images beyond `count`.
    """

    sampler: Sampler
    seed: int  # of their noise
    count: int
    batch_size: int  # images drawn at a time, a multiple of the sampler's replicas
    labels: Sequence[int] = ()  # classes that the images take in turn; () for all classes
    share: Share = ALONE  # which batches this process draws, where several do
    title: str = "sample"  # of the progress bar
    leave_bar: bool = True  # it stays when all is drawn

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C) of all images."""
        return (self.count, *self.sampler.denoiser.image_shape)

    @property
    def starts(self) -> range:
        """The index of each batch's first image."""
        return range(0, self.count, self.batch_size)

    @property
    def image_labels(self) -> np.ndarray | None:
        """The images' labels, int32 (N,); None of a model without classes."""
        return self._labels_of(np.arange(self.count)) if self.sampler.denoiser.conditional else None

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.batches()

    def batches(
        self,
        ledger: Ledger | None = None,
        starts: Sequence[int] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[np.ndarray]:
        """The images in order, uint8 (B, H, W, C), with a progress bar.

        Args:
          ledger: keeps finished batches: those in it are read and not drawn again.
          starts: the indices of the first images of the batches that are wanted; all by default.
          check: called after each step; what it raises ends the drawing.
        Raises:
          UserError: the disk is full, or a finished batch is damaged.
        """
        starts = self.starts if starts is None else starts
        finished = ledger.names() if ledger else set()
        done = sum(self.name(start) in finished for start in starts)
        if done:
            print(f"{done} of {len(starts)} batches are done already", flush=True)
        elsewhere = self.count - sum(min(self.batch_size, self.count - start) for start in starts)
        sampler = self.sampler
        steps = sampler.num_steps
        passes = "" if sampler.num_passes == steps else f", {sampler.num_passes} passes"
        title = f"{self.title}, {steps} steps{passes}"
        with bar(
            total=self.count * steps,
            initial=elsewhere * steps,
            unit="image",
            unit_scale=1 / steps,  # it counts the steps of images, and shows images
            bar_format=BAR,
            desc=title,
            leave=self.leave_bar,
        ) as shown:
            for start in starts:
                size = min(self.batch_size, self.count - start)
                if self.name(start) in finished:
                    batch = ledger.read(self.name(start))["images"]
                    skip(shown, size * steps)
                else:
                    for x in self._predictions(start):
                        check()
                        batch = to_uint8(x)
                        shown.update(size)
                    if ledger:
                        ledger.write(self.name(start), {"images": batch})
                yield batch[:size]

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Some of the images, uint8 (N, H, W, C), in batches of the same size, so of the same pixels."""
        batches = -(-len(indices) // self.batch_size)
        # Images beyond those that were asked for fill the last batch.
        padded = np.resize(np.asarray(indices), batches * self.batch_size).reshape(batches, -1)
        drawn = [self.sampler(self.seed, part, self._labels_of(part)) for part in padded]
        return to_uint8(np.concatenate(drawn)[: len(indices)])

    def trajectory(self, frames: int) -> np.ndarray:
        """x_theta on the way to the first batch of images, uint8 (frames, B, H, W, C)."""
        indices = self._indices(0)
        x = self.sampler.trajectory(self.seed, indices, self._labels_of(indices), frames)
        return to_uint8(x[:, : self.count])

    def predictions(self, start: int) -> Iterator[np.ndarray]:
        """x_theta of each step of a batch, uint8 (B, H, W, C); the last one is the images."""
        for x in self._predictions(start):
            yield to_uint8(x[: self.count - start])

    @staticmethod
    def name(start: int) -> str:
        """The name in a ledger of the batch whose first image is `start`."""
        return f"batch_{start:08d}"

    def identity(self, model: str) -> dict[str, Any]:
        """All that decides the pixels of image i, whatever the number of images, as JSON values.

        `model` is the digest of the sampler's model.
        """
        sampler = self.sampler
        return {
            "model": model,
            "sampling": dataclasses.asdict(sampler.settings),
            "edit": sampler.edit and sampler.edit.identity(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "replicas": sampler.replicas,
            "labels": self._labels_in_turn().tolist(),
        }

    def _predictions(self, start: int) -> Iterator[np.ndarray]:
        """x_theta of each step of a whole batch, float32 (batch_size, H, W, C)."""
        indices = self._indices(start)
        return self.sampler.predictions(self.seed, indices, self._labels_of(indices))

    def _indices(self, start: int) -> np.ndarray:
        """Those of a whole batch, beyond `count` too: a command for more images goes on from it."""
        return np.arange(start, start + self.batch_size)

    def _labels_in_turn(self) -> np.ndarray:
        denoiser = self.sampler.denoiser
        return np.asarray(self.labels if len(self.labels) else all_classes(denoiser), np.int32)

    def _labels_of(self, indices: np.ndarray) -> np.ndarray:
        labels = self._labels_in_turn()
        return labels[indices % len(labels)]


def all_classes(denoiser) -> range:
    """The labels of all classes; 0 alone without class conditioning."""
    return range(denoiser.num_classes if denoiser.conditional else 1)
