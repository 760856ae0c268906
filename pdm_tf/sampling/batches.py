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

from pdm_tf.atomic import atomic_file
from pdm_tf.errors import UserError, one_line
from pdm_tf.images import to_uint8
from pdm_tf.paths import entries
from pdm_tf.progress import bar, skip
from pdm_tf.sampling.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class Share:
    """One of several processes, on machines that share a disk, that make the files of one folder.

    Each makes its own and waits for nobody; then worker 0, alone, waits for those of the others.

    Attributes:
      number, workers: this one, of how many; alone by default.
      patience: seconds that worker 0 waits for the next file of the others, beside the time that ten of its
        own would take.
    """

    number: int = 0
    workers: int = 1
    patience: float = 300.0

    def own(self, parts: Sequence[Any]) -> Sequence[Any]:
        """Every `workers`-th of some parts, from the `number`-th on."""
        return parts[self.number :: self.workers]

    def wait(self, files: Sequence[Path], seconds_each: float) -> None:
        """Returns once all files of one folder are there.

        Args:
          files: in the order that `own` shares them out in.
          seconds_each: how long one takes.
        Raises:
          UserError: no new one came within the patience.
        """
        limit, missing = self.patience + 10 * seconds_each, self._missing(files)
        last_came = time.monotonic()
        with bar(total=len(files), initial=len(files) - len(missing), unit="part", desc="wait") as shown:
            while missing:
                if time.monotonic() - last_came > limit:
                    numbers = sorted({number % self.workers for number in missing})
                    raise UserError(
                        f"{len(missing)} of {len(files)} parts are missing, and for {limit:.0f} s no new one "
                        f"has come (workers {', '.join(map(str, numbers))} of {self.workers}): run the same "
                        "command again on all workers, on devices of one kind; what is done is kept"
                    )
                time.sleep(0.5)  # at least once, so that who wrote the last one is done with the folder
                left = self._missing(files)
                if len(left) < len(missing):
                    last_came = time.monotonic()
                shown.update(len(missing) - len(left))
                missing = left

    @staticmethod
    def _missing(files: Sequence[Path]) -> list[int]:
        """The places of the files that are not there."""
        there = {entry.name for entry in entries(files[0].parent)}
        return [number for number, file in enumerate(files) if file.name not in there]


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which images of a sampler: 0..count-1 of a seed, `batch_size` at a time, of the labels in turn."""

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

    def frames(
        self, start: int, frames: int, report: Callable[[int], None] = lambda moves: None
    ) -> np.ndarray:
        """x_theta on the way to a whole batch of images, the last one beyond `count` too, so that all batches
        run one and the same graph: float32 (frames, batch_size, H, W, C). `report` as of `trajectory`."""
        indices = np.arange(start, start + self.batch_size)
        return self.sampler.trajectory(self.seed, indices, self._labels_of(indices), frames, report)

    def sharpening(self, start: int, seconds: float) -> Iterator[tuple[int, np.ndarray]]:
        """As `Sampler.sharpening`, of a batch: moves done and x_theta, uint8 (B, H, W, C), without the images
        beyond `count`."""
        indices = np.arange(start, start + self.batch_size)
        for moves, x in self.sampler.sharpening(self.seed, indices, self._labels_of(indices), seconds):
            yield moves, to_uint8(x[: self.count - start])

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
        done = self.finished(folder) & set(starts)
        if done:
            print(f"{len(done)} of {len(starts)} batches are done already", flush=True)
        elsewhere = self.count - sum(min(self.batch_size, self.count - start) for start in starts)
        title = f"sample, {self.sampler.moves} steps"
        with bar(total=self.count, initial=elsewhere, unit="image", desc=title) as shown:
            for start in starts:
                file, ready = self.file(folder, start) if folder else None, start in done
                batch = (
                    self._read(file) if ready else self._draw(start, file, step_shown(shown, self.sampler))
                )
                batch = batch[: self.count - start]
                if ready:
                    skip(shown, len(batch))
                else:
                    shown.update(len(batch))
                yield batch

    def finish_share(self, folder: Path) -> None:
        """Draws the batches of this process' share into the folder; worker 0 then waits for all others.

        Raises:
          UserError: the disk is full, or another worker draws no more.
        """
        own = self.share.own(self.starts)
        missing = sorted(set(own) - self.finished(folder))
        if len(missing) < len(own):
            print(f"{len(own) - len(missing)} of {len(own)} batches are done already", flush=True)
        seconds, begin = 0.0, time.monotonic()
        for _ in self.batches(folder, missing):
            seconds, begin = time.monotonic() - begin, time.monotonic()  # the first one traces a graph
        if not self.share.number:
            self.share.wait([self.file(folder, start) for start in self.starts], seconds)

    def finished(self, folder: Path | None) -> set[int]:
        """The starts of the batches that a folder holds."""
        there = {entry.name for entry in entries(folder)} if folder else set()
        return {start for start in self.starts if self.file(Path(), start).name in there}

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
            with file.open("rb") as opened:
                return np.load(opened, allow_pickle=False)
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
