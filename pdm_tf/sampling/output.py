"""Samples as files: any number of images, resumed after a kill, with one batch in memory."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from flags.errors import UserError
from pdm_tf.atomic import atomic_file
from pdm_tf.images import image_grid, to_uint8, write_gif, write_png, write_samples
from pdm_tf.sampling.sampler import Sampler

GRID_IMAGES = 100  # a grid of more would be too large to look at
TRAJECTORY_IMAGES = 8


def draw_samples(
    sampler: Sampler,
    out: str | Path,
    *,
    seed: int,
    count: int,
    batch_size: int,
    labels: Sequence[int],
    save_pngs: bool = False,
) -> None:
    """Draws images 0..count-1 of a seed into `out`: grid.png (the first 100), samples.npz, PNGs if asked.

    Finished batches wait in a hidden folder of `out`, so that the same command run again after a kill goes
    on from there, and its files are those of an uninterrupted run. The folder's name is a digest of all that
    decides the pixels: another command never mixes in.

    Args:
      sampler: what draws.
      out: a folder.
      batch_size: images at a time; the last batch is drawn whole, too, and cut.
      labels: the classes to draw, in turn.
    Raises:
      UserError: the disk is full, or a finished batch is damaged.
    """
    out, labels = Path(out), np.asarray(labels, np.int32)
    folder = _batch_folder(out, _identity(sampler, seed, batch_size, labels))
    _draw_missing(sampler, folder, seed, count, batch_size, labels)
    shape = (count, *sampler.denoiser.image_shape)
    image_labels = np.resize(labels, count) if sampler.denoiser.conditional else None
    write_samples(out / "samples.npz", _read_batches(folder, count, batch_size), shape, image_labels)
    shown = []
    for start, batch in zip(range(0, count, batch_size), _read_batches(folder, count, batch_size)):
        shown.extend(batch[: max(GRID_IMAGES - start, 0)])
        for number, image in enumerate(batch, start):
            if save_pngs:
                write_png(out / f"sample_{number:06d}.png", image)
        if start >= GRID_IMAGES and not save_pngs:
            break
    write_png(out / "grid.png", image_grid(np.stack(shown)))
    shutil.rmtree(folder)


def draw_trajectory(
    sampler: Sampler,
    out: str | Path,
    *,
    seed: int,
    count: int,
    batch_size: int,
    labels: Sequence[int],
    frames: int,
) -> None:
    """Writes x_theta along the steps (the paper's Fig. 1a) of the first images, 8 at most, of `draw_samples`.

    trajectory.png has a row for each image, from noise on the left to the image on the right;
    trajectory.gif shows the same over time.
    """
    indices = np.arange(batch_size)
    x = sampler.trajectory(seed, indices, np.asarray(labels, np.int32)[indices % len(labels)], frames)
    x = to_uint8(x[:, : min(count, TRAJECTORY_IMAGES)])
    strip = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    write_png(Path(out) / "trajectory.png", image_grid(strip, columns=frames))
    write_gif(Path(out) / "trajectory.gif", [image_grid(frame) for frame in x])


def _identity(sampler: Sampler, seed: int, batch_size: int, labels: np.ndarray) -> dict:
    """All that decides the pixels of image i, whatever the number of images."""
    arrays = [sampler.init_image, sampler.mask, sampler.schedule.alpha]
    weights = 0
    for variable in sampler.denoiser.variables:
        weights = zlib.crc32(np.ascontiguousarray(variable.numpy()), weights)
    return {
        "seed": seed,
        "batch_size": batch_size,
        "replicas": sampler.replicas,
        "labels": labels.tolist(),
        "sampler": sampler.sampler,
        "timesteps": sampler.schedule.timesteps.tolist(),
        "variance": sampler.variance,
        "eta": sampler.eta,
        "guidance": sampler.guidance,
        "strength": sampler.strength,
        "jump_length": sampler.jump_length,
        "resamplings": sampler.resamplings,
        "jit_compile": sampler.jit_compile,
        "weights_crc32": weights,
        "init_image_mask_alpha_crc32": [
            None if a is None else zlib.crc32(np.asarray(a).tobytes()) for a in arrays
        ],
    }


def _batch_folder(out: Path, identity: dict) -> Path:
    """The hidden folder of this command's finished batches, made if needed; warns of other commands'."""
    text = json.dumps(identity, indent=2) + "\n"
    folder = out / f".unfinished-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    for other in sorted(out.glob(".unfinished-*")):
        if other != folder:
            print(
                f"note: {other} holds {len(list(other.glob('batch_*.npy')))} batches of another, unfinished "
                "command; delete it if you will not run that again"
            )
    with atomic_file(folder / "command.json") as partial:
        partial.write_text(text)
    return folder


def _batch_file(folder: Path, start: int) -> Path:
    return folder / f"batch_{start:08d}.npy"


def _draw_missing(
    sampler: Sampler, folder: Path, seed: int, count: int, batch_size: int, labels: np.ndarray
) -> None:
    """Draws the batches that have no file yet, all of one size, so that all run one and the same graph."""
    starts = range(0, count, batch_size)
    missing = [start for start in starts if not _batch_file(folder, start).exists()]
    if len(missing) < len(starts):
        print(f"{len(starts) - len(missing)} of {len(starts)} batches are done already", flush=True)
    bar = tqdm(
        total=count, initial=count - sum(min(batch_size, count - start) for start in missing),
        unit="image", desc=f"sample, {sampler.moves} steps", dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    )  # fmt: skip
    with bar:
        for start in missing:
            indices = np.arange(start, start + batch_size)
            images = to_uint8(sampler(seed, indices, labels[indices % len(labels)]))
            with atomic_file(_batch_file(folder, start)) as partial, open(partial, "wb") as file:
                np.save(file, images, allow_pickle=False)
            bar.update(min(batch_size, count - start))


def _read_batches(folder: Path, count: int, batch_size: int) -> Iterator[np.ndarray]:
    """The finished batches in order, uint8 (B, H, W, C); the last one cut to `count` images in all."""
    for start in range(0, count, batch_size):
        path = _batch_file(folder, start)
        try:
            batch = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): delete it and run the command again") from error
        yield batch[: count - start]
