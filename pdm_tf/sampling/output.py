"""Samples as files: any number of images, resumed after a kill, with one batch in memory."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pdm_tf.atomic import atomic_folder, remove_tree
from pdm_tf.errors import UserError
from pdm_tf.images import image_grid, png, write_gif, write_png, write_samples
from pdm_tf.ledger import Ledger, note_others
from pdm_tf.paths import SYSTEM_FILES, as_path, entries
from pdm_tf.sampling.batches import SampleBatches

GRID_IMAGES = 100  # a grid of more would be too large to look at
TRAJECTORY_IMAGES = 8
PNGS = "pngs"
REPLACED = re.compile(r"sample_\d{6,}\.png|\..*")  # samples of an earlier call, and hidden files


def write_images(samples: SampleBatches, out: str | Path, model: str, save_pngs: bool = False) -> None:
    """Draws images into `out`: grid.png (the first 100), samples.npz, and if asked pngs/, these images alone.

    Grey images have three equal channels in samples.npz, because evaluators read no others. The pngs/ of an
    earlier call gives way in one step.

    Finished batches wait in a `Ledger` in `out`, so that the same command run again after a kill goes on from
    there, and its files are those of an uninterrupted run. Of several workers those after the first only
    leave their batches there.

    `model` is the digest of the sampler's model. UserError if the disk is full, a finished batch is damaged,
    pngs/ holds something else, or another worker is lost.
    """
    ledger = Ledger(out, samples.identity(model))
    note_others(out, [ledger])
    share = samples.share
    if share.workers > 1:
        names = [samples.name(start) for start in samples.starts]
        share.finish(ledger, names, samples.batches(ledger, share.of(samples.starts)))
    if share.number:
        return
    write_files(samples.batches(ledger), samples.shape, samples.image_labels, out, save_pngs)
    ledger.remove()


def write_files(
    batches: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    labels: np.ndarray | None,
    out: str | Path,
    save_pngs: bool = False,
) -> None:
    """Writes the files of `write_images` from batches uint8 (B, H, W, C), of `shape` = (N, H, W, C) in all.

    UserError if the disk is full, or pngs/ holds something else.
    """
    out = as_path(out)
    first: list[np.ndarray] = []
    with _pngs_folder(out / PNGS) if save_pngs else contextlib.nullcontext() as pngs:
        batches = _with_pictures(batches, first, pngs)
        if shape[-1] == 1:
            print("note: samples.npz has the one channel three times, as evaluators need it")
            batches = (np.repeat(batch, 3, axis=-1) for batch in batches)
            shape = (*shape[:-1], 3)
        write_samples(out / "samples.npz", batches, shape, labels)
    write_png(out / "grid.png", image_grid(np.stack(first)))


def write_trajectory(samples: SampleBatches, out: str | Path, frames: int) -> None:
    """Writes x_theta along the steps (the paper's Fig. 1a) of the first images, 8 at most.

    trajectory.png has a row for each image, from noise on the left to the image on the right;
    trajectory.gif shows the same over time.
    """
    x = samples.trajectory(frames)[:, :TRAJECTORY_IMAGES]
    strip = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    write_png(as_path(out) / "trajectory.png", image_grid(strip, columns=frames))
    write_gif(as_path(out) / "trajectory.gif", [image_grid(frame) for frame in x])


@contextlib.contextmanager
def _pngs_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of an earlier call's."""
    names = {entry.name for entry in entries(path)} - SYSTEM_FILES
    others = sorted(name for name in names if not REPLACED.fullmatch(name))
    if others:
        raise UserError(
            f"{path} holds {others[0]}, and will hold samples alone: move it, or choose another folder"
        )
    with atomic_folder(path) as partial:
        yield partial
        remove_tree(path)


def _with_pictures(
    batches: Iterable[np.ndarray], first: list[np.ndarray], pngs: Path | None
) -> Iterator[np.ndarray]:
    """Passes batches on, collects the first images, and writes each as PNG if there is a folder."""
    number = 0
    for batch in batches:
        first.extend(batch[: GRID_IMAGES - len(first)])
        for image in batch if pngs else ():
            (pngs / f"sample_{number:06d}.png").write_bytes(png(image))
            number += 1
        yield batch
