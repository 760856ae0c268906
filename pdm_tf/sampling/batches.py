"""Samples as an iterator of uint8 batches: what files, evaluation, benchmarks and pages eat."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flags.errors import UserError, one_line
from pdm_tf.atomic import atomic_file
from pdm_tf.images import to_uint8
from pdm_tf.progress import bar, skip
from pdm_tf.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which images of a sampler: 0..count-1 of a seed, `batch_size` at a time, of the labels in turn."""

    sampler: Sampler
    seed: int
    count: int
    batch_size: int
    labels: Sequence[int]

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

    def frames(
        self, start: int, frames: int, report: Callable[[int], None] = lambda moves: None
    ) -> np.ndarray:
        """x_theta on the way to a whole batch of images, the last one beyond `count` too, so that all batches
        run one and the same graph: float32 (frames, batch_size, H, W, C). `report` as of `trajectory`."""
        indices = np.arange(start, start + self.batch_size)
        return self.sampler.trajectory(self.seed, indices, self._labels_of(indices), frames, report)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Some of the images, uint8 (N, H, W, C), in batches of the same size, so of the same pixels."""
        size = self.batch_size
        # Images beyond those that were asked for fill the last batch.
        padded = np.resize(np.asarray(indices, np.int64), -(-len(indices) // size) * size)
        parts = np.split(padded, len(padded) // size)
        drawn = [self.sampler(self.seed, part, self._labels_of(part)) for part in parts]
        return to_uint8(np.concatenate(drawn)[: len(indices)])

    def batches(
        self, folder: Path | None = None, starts: Sequence[int] | None = None
    ) -> Iterator[np.ndarray]:
        """The images in order, uint8 (B, H, W, C), with a progress bar; the last batch may be smaller.

        Args:
          folder: keeps finished batches, so that what is drawn there already is read and not drawn again.
          starts: the indices of the first images of the batches that are wanted; all by default.
        Raises:
          UserError: the disk is full, or a finished batch is damaged.
        """
        starts = self.starts if starts is None else starts
        files = {start: self.file(folder, start) for start in starts} if folder else {}
        done = sum(file.exists() for file in files.values())
        if done:
            print(f"{done} of {len(files)} batches are done already", flush=True)
        elsewhere = self.count - sum(min(self.batch_size, self.count - start) for start in starts)
        title = f"sample, {self.sampler.moves} steps"
        with bar(total=self.count, initial=elsewhere, unit="image", desc=title) as shown:
            for start in starts:
                file = files.get(start)
                ready = file is not None and file.exists()
                batch = (
                    self._read(file) if ready else self._draw(start, file, step_shown(shown, self.sampler))
                )
                batch = batch[: self.count - start]
                if ready:
                    skip(shown, len(batch))
                else:
                    shown.update(len(batch))
                yield batch

    @staticmethod
    def file(folder: Path, start: int) -> Path:
        """Where `batches` keeps the batch whose first image is `start`."""
        return folder / f"batch_{start:08d}.npy"

    def identity(self) -> dict[str, Any]:
        """All that decides the pixels of image i, whatever the number of images, as JSON values."""
        sampler, weights = self.sampler, 0
        for variable in sampler.denoiser.variables:
            weights = zlib.crc32(np.ascontiguousarray(variable.numpy()), weights)
        arrays = [sampler.image, sampler.mask, sampler.schedule.alpha]
        return {
            **dataclasses.asdict(sampler.settings),
            "timesteps": sampler.schedule.timesteps.tolist(),
            "seed": self.seed,
            "batch_size": self.batch_size,
            "replicas": sampler.replicas,
            "labels": np.asarray(self.labels).tolist(),
            "weights_crc32": weights,
            "image_mask_alpha_crc32": [
                None if a is None else zlib.crc32(np.asarray(a).tobytes()) for a in arrays
            ],
        }

    def _labels_of(self, indices: np.ndarray) -> np.ndarray:
        return np.asarray(self.labels, np.int32)[indices % len(self.labels)]

    def _draw(self, start: int, file: Path | None, report: Callable[[int], None]) -> np.ndarray:
        images = to_uint8(self.frames(start, 1, report)[0])
        if file is not None:
            with atomic_file(file) as partial, open(partial, "wb") as opened:
                np.save(opened, images, allow_pickle=False)
        return images

    @staticmethod
    def _read(file: Path) -> np.ndarray:
        try:
            return np.load(file, allow_pickle=False)
        except Exception as error:  # NumPy raises all kinds, as damage has it
            raise UserError(
                f"{file} is damaged ({one_line(error)}): delete it and run the command again"
            ) from error


def step_shown(bar: tqdm, sampler: Sampler) -> Callable[[int], None]:
    """A `report` that shows in a bar of images at which step a batch is, as often as the bar is drawn."""
    shown = time.monotonic()

    def report(moves: int) -> None:
        nonlocal shown
        done = moves == sampler.moves
        bar.set_postfix_str("" if done else f"step {moves}/{sampler.moves}", refresh=False)
        if not done and time.monotonic() - shown >= bar.mininterval:
            shown = time.monotonic()
            bar.refresh()

    return report
