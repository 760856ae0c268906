"""Samples as an iterator of uint8 batches: what files, evaluation, benchmarks and pages eat."""

from __future__ import annotations

import dataclasses
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flags.errors import UserError, one_line
from pdm_tf.atomic import atomic_file
from pdm_tf.images import to_uint8
from pdm_tf.paths import entries
from pdm_tf.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Share:
    """Which batches a worker draws, of several that share a folder: `number`, and each `workers`-th after it.

    Attributes:
      patience: seconds without a new batch, beside ten times what one takes here, after which worker 0 takes
        the others for lost.
    """

    number: int = 0
    workers: int = 1
    patience: float = 300.0


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which images of a sampler: 0..count-1 of a seed, `batch_size` at a time, of the labels in turn.

    With a `share` several processes draw them together, each alone: they meet in the folder of `batches`, and
    the images are those of one process.
    """

    sampler: Sampler
    seed: int
    count: int
    batch_size: int
    labels: Sequence[int]
    share: Share = Share()

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

    def frames(self, start: int, frames: int) -> np.ndarray:
        """x_theta on the way to a whole batch of images, the last one beyond `count` too, so that all batches
        run one and the same graph: float32 (frames, batch_size, H, W, C)."""
        indices = np.arange(start, start + self.batch_size)
        return self.sampler.trajectory(self.seed, indices, self._labels_of(indices), frames)

    def batches(self, folder: Path | None = None) -> Iterator[np.ndarray]:
        """The images in order, uint8 (B, H, W, C), with a progress bar; the last batch may be smaller.

        Of several workers only worker 0 may ask for them; it draws its share first and waits for the others.

        Args:
          folder: keeps finished batches, so that what is drawn there already is read and not drawn again.
        Raises:
          UserError: the disk is full, a finished batch is damaged, or another worker draws no more.
        """
        if self.share.workers > 1:
            self._wait_for_others(folder, self.draw_share(folder))
        ready = self._ready(folder)
        with self._bar(self.count) as bar:
            for start in self.starts:
                file = folder / _name(start) if folder else None
                is_ready = start in ready
                batch = (self._read(file) if is_ready else self._draw(start, file))[: self.count - start]
                bar.initial += is_ready * len(batch)  # the rate is that of drawing
                bar.update(len(batch))
                yield batch

    def draw_share(self, folder: Path) -> float:
        """Draws this worker's batches into the folder, but for those that are there already.

        Returns:
          seconds that the slowest one took.
        Raises:
          UserError: the disk is full.
        """
        own = self.starts[self.share.number :: self.share.workers]
        ready, slowest = self._ready(folder, own), 0.0
        with self._bar(sum(map(self._size, own)), f"worker {self.share.number}, ") as bar:
            for start in own:
                begin = time.monotonic()
                if start not in ready:
                    self._draw(start, folder / _name(start))
                    slowest = max(slowest, time.monotonic() - begin)
                bar.initial += (start in ready) * self._size(start)
                bar.update(self._size(start))
        return slowest

    def _wait_for_others(self, folder: Path, seconds_a_batch: float) -> None:
        """Returns once all batches are there; see `Share.patience`."""
        limit = self.share.patience + 10 * seconds_a_batch
        missing, last_came = set(self.starts), time.monotonic()
        with self._bar(self.count, "all workers, ") as bar:
            while True:
                now_missing = set(self.starts) - self._found(folder)
                if len(now_missing) < len(missing):
                    bar.update(sum(map(self._size, missing - now_missing)))
                    missing, last_came = now_missing, time.monotonic()
                if not missing:
                    return
                if time.monotonic() - last_came > limit:
                    numbers = {start // self.batch_size % self.share.workers for start in missing}
                    who = ", ".join(map(str, sorted(numbers)))
                    raise UserError(
                        f"{len(missing)} of {len(self.starts)} batches are missing, and for {limit:.0f} s no "
                        f"new one has come (workers {who} of {self.share.workers}): run the same command "
                        "again on all workers; what is drawn is kept"
                    )
                time.sleep(0.5)

    def _size(self, start: int) -> int:
        """How many images of a batch count."""
        return min(self.batch_size, self.count - start)

    def _found(self, folder: Path | None) -> set[int]:
        """The starts of the batches that are there."""
        names = {entry.name for entry in entries(folder)} if folder else set()
        return {start for start in self.starts if _name(start) in names}

    def _ready(self, folder: Path | None, wanted: Sequence[int] | None = None) -> set[int]:
        """As `_found`, of the wanted ones, and says how many that are."""
        wanted = self.starts if wanted is None else wanted
        ready = self._found(folder) & set(wanted)
        if ready and (self.share.workers == 1 or len(ready) < len(self.starts)):
            print(f"{len(ready)} of {len(wanted)} batches are done already", flush=True)
        return ready

    def _bar(self, total: int, who: str = "") -> tqdm:
        return tqdm(
            total=total, unit="image", desc=f"{who}sample, {self.sampler.moves} steps", dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 20,
        )  # fmt: skip

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

    def _draw(self, start: int, file: Path | None) -> np.ndarray:
        images = to_uint8(self.frames(start, 1)[0])
        if file is not None:
            with atomic_file(file) as partial, open(partial, "wb") as opened:
                np.save(opened, images, allow_pickle=False)
        return images

    @staticmethod
    def _read(file: Path) -> np.ndarray:
        try:
            with file.open("rb") as opened:
                return np.load(opened, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(
                f"{file} is damaged ({one_line(error)}): delete it and run the command again"
            ) from error


def _name(start: int) -> str:
    """The file of a batch."""
    return f"batch_{start:08d}.npy"
