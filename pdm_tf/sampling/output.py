"""Samples as files: any number of images, resumed after a kill, with one batch in memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from pdm_tf.atomic import atomic_folder, atomic_text, remove_tree
from pdm_tf.errors import UserError
from pdm_tf.images import image_grid, png, to_uint8, write_gif, write_png, write_samples
from pdm_tf.paths import as_path, entries
from pdm_tf.sampling.batches import Draw

GRID_IMAGES = 100  # a grid of more would be too large to look at
TRAJECTORY_IMAGES = 8
PNGS = "pngs"
PNG_NAME = re.compile(r"sample_\d{6,}\.png")


def write_images(draw: Draw, out: str | Path, save_pngs: bool = False) -> None:
    """Draws images into `out`: grid.png (the first 100), samples.npz, and if asked pngs/, these images alone.

    Grey images have three equal channels in samples.npz, because evaluators read no others. The pngs/ of an
    earlier call gives way in one step.

    Finished batches wait in a hidden folder of `out`, so that the same command run again after a kill goes
    on from there, and its files are those of an uninterrupted run. The folder's name is a digest of all that
    decides the pixels: another command never mixes in. Of several workers those after the first only leave
    their batches there.

    Raises:
      UserError: the disk is full, a finished batch is damaged, pngs/ holds something else, or another worker
        is lost.
    """
    out = as_path(out)
    folder = batch_folder(out, draw)
    if draw.share.workers > 1:
        draw.finish_share(folder)
    if draw.share.number:
        return
    write_files(draw.batches(folder), draw.shape, draw.image_labels, out, save_pngs)
    remove_tree(folder)


def write_files(
    batches: Iterable[np.ndarray],
    shape: tuple[int, int, int, int],
    labels: np.ndarray | None,
    out: str | Path,
    save_pngs: bool = False,
) -> None:
    """Writes the files of `write_images` of images that come from anywhere.

    Args:
      batches: uint8 (B, H, W, C), in order.
      shape: (N, H, W, C) of all.
      labels: int32 (N,), or None.
    Raises:
      UserError: the disk is full, or pngs/ holds something else.
    """
    out, shown = as_path(out), []
    with _pngs_folder(out / PNGS) if save_pngs else contextlib.nullcontext() as pngs:
        batches = _with_pictures(batches, shown, pngs)
        if shape[-1] == 1:
            print("note: samples.npz has the one channel three times, as evaluators need it")
            batches, shape = (np.repeat(batch, 3, axis=-1) for batch in batches), (*shape[:-1], 3)
        write_samples(out / "samples.npz", batches, shape, labels)
    write_png(out / "grid.png", image_grid(np.stack(shown)))


@contextlib.contextmanager
def _pngs_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of an earlier call's."""
    others = [entry.name for entry in entries(path) if not PNG_NAME.fullmatch(entry.name)]
    if others:
        raise UserError(
            f"{path} holds {others[0]}, and will hold samples alone: move it, or choose another folder"
        )
    with atomic_folder(path) as partial:
        yield partial
        remove_tree(path)


def write_trajectory(draw: Draw, out: str | Path, frames: int) -> None:
    """Writes x_theta along the steps (the paper's Fig. 1a) of the first images, 8 at most.

    trajectory.png has a row for each image, from noise on the left to the image on the right;
    trajectory.gif shows the same over time.
    """
    x = to_uint8(draw.frames(0, frames)[:, : min(draw.count, TRAJECTORY_IMAGES)])
    strip = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    write_png(as_path(out) / "trajectory.png", image_grid(strip, columns=frames))
    write_gif(as_path(out) / "trajectory.gif", [image_grid(frame) for frame in x])


def _with_pictures(
    batches: Iterable[np.ndarray], shown: list[np.ndarray], pngs: Path | None
) -> Iterator[np.ndarray]:
    """Passes batches on, keeps the first images in `shown`, and writes each as PNG if there is a folder."""
    number = 0
    for batch in batches:
        shown.extend(batch[: GRID_IMAGES - len(shown)])
        for image in batch if pngs else ():
            (pngs / f"sample_{number:06d}.png").write_bytes(png(image))
            number += 1
        yield batch


def batch_folder(out: Path, draw: Draw) -> Path:
    """The hidden folder of this command's finished batches, made if needed; warns of other commands'."""
    text = json.dumps(draw.identity(), indent=2) + "\n"
    folder = out / f".unfinished-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    for other in entries(out):
        if other != folder and other.name.startswith(".unfinished-"):
            count = sum(entry.suffix in (".npy", ".npz") for entry in entries(other))
            print(
                f"note: {other} holds {count} batches of another, unfinished "
                "command; delete it if you will not run that again"
            )
    if not (folder / "command.json").exists():
        atomic_text(folder / "command.json", text)
    return folder
