"""Checkpoints that are whole or not there, and that are checked before they are believed.

A checkpoint is a folder `checkpoints/step_00001000` with TensorFlow's files and a `manifest.json` that holds
the size and SHA-256 of each of them and of the averages `ema/step_00001000.npz`; averages of some lengths, if
the run keeps any, lie in the folder itself. It is written under another name and renamed when all is on the
disk, so a kill or a full disk leaves the one before it as it was. In a bucket it is written on this machine
first and uploaded, the manifest last; the other name is then but a sign that an upload is under way.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import tensorflow as tf
from absl import logging

from pdm_tf.atomic import disk_errors, for_tensorflow, remove_tree, replaced_folder, sha256, sync
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import entries, size_of
from pdm_tf.run import RunFolder
from pdm_tf.training.ema import ExponentialMovingAverage

MANIFEST = "manifest.json"


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints and averages of a run folder; `state` is what is saved beside the averages.

    The newest `keep` checkpoints stay, and those of every `keep_every`-th step (0: none).
    """

    run: RunFolder
    state: tf.train.Checkpoint
    ema: ExponentialMovingAverage
    keep: int = 2
    keep_every: int = 0

    def save(self, step: int) -> None:
        """Writes the checkpoint of `step`, all or nothing, and removes those beyond the newest `keep`."""
        final = self.run.checkpoint(step)
        partial = self.run.partial_checkpoint(step)
        remove_tree(partial)
        try:
            # Before the averages: it tells that they belong to a save that was not finished.
            with disk_errors(final), replaced_folder(final, partial, MANIFEST) as folder:
                self.ema.save(self.run.weights(step))
                with for_tensorflow(folder) as plain:
                    self.state.write(f"{plain}/state", options=_files_of_this_host())
                for length in self.ema.lengths:
                    self.ema.save(folder / _of_length(length), length)
                self._write_manifest(folder, step)
        finally:
            self._clear(step)
        self._prune(step)

    def restore_newest(self) -> int | None:
        """Restores the newest whole checkpoint and returns its step; None if there is no checkpoint at all.

        Removes what a killed process left of one. UserError if there are some and none of them is usable.
        """
        for step in self.run.partial_steps():
            self._clear(step)
        steps = self.run.checkpoint_steps()
        for step in reversed(steps):
            folder = self.run.checkpoint(step)
            problem = self._problem(folder)
            if problem is None:
                self._read(folder)
                self.ema.load(self.run.weights(step))
                for length in self.ema.lengths:
                    self.ema.load(folder / _of_length(length), length)
                return step
            logging.error("checkpoint %s is damaged (%s); trying the one before it", folder, problem)
        if steps:
            raise UserError(
                f"none of the {len(steps)} checkpoints in {folder.parent} is usable: restore them from a "
                f"copy, begin with the averages in another folder by training.warm_start={self.run}, or "
                f"delete {self.run} to begin again from nothing"
            )
        return None

    def _read(self, folder: Path) -> None:
        try:
            with for_tensorflow(folder) as plain:
                self.state.read(
                    f"{plain}/state", options=_files_of_this_host()
                ).assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:  # a variable is missing, or is of another shape
            raise UserError(
                f"{folder} is whole, and of another network or written by another version of pdm_tf: use "
                "that one, or another folder"
            ) from error
        except tf.errors.OpError as error:
            raise UserError(
                f"{folder} cannot be read ({one_line(error)}): delete it to go on from the one before"
            ) from error

    def _clear(self, step: int) -> None:
        """Removes an unfinished checkpoint, if there is one, and the averages that were saved with it."""
        partial = self.run.partial_checkpoint(step)
        final = self.run.checkpoint(step)
        if (entries(partial) or partial.is_dir()) and not (final / MANIFEST).exists():
            remove_tree(final)
            self.run.weights(step).unlink(missing_ok=True)
        remove_tree(partial)

    def _write_manifest(self, folder: Path, step: int) -> None:
        # Desktops and network disks leave files of their own in any folder.
        ours = [file for file in entries(folder) if file.name.startswith(("state.", "length_"))]
        averages = self.run.weights(step)
        files = {file.name: _fingerprint(file) for file in ours}
        files[f"ema/{averages.name}"] = _fingerprint(averages)
        manifest = {"step": step, "files": files}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        for file in (*ours, folder / MANIFEST):
            sync(file)
        sync(folder)

    def _problem(self, folder: Path) -> str | None:
        """The damage of a checkpoint, or None."""
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            files = dict(manifest["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{MANIFEST} is missing or not readable"
        for name, expected in files.items():
            path = self.run.path / name if name.startswith("ema/") else folder / name
            if not path.exists():
                return f"{name} is missing"
            if _fingerprint(path) != expected:
                return f"{name} is not what was written"
        return None

    def _prune(self, newest: int) -> None:
        """Keeps the `keep` newest up to the one just saved; any after that are damaged, and do not count."""
        steps = [step for step in self.run.checkpoint_steps() if step <= newest]
        for step in steps[: -self.keep]:
            if not self.keep_every or step % self.keep_every:
                remove_tree(self.run.checkpoint(step))
                self.run.weights(step).unlink(missing_ok=True)


def _of_length(length: float) -> str:
    """The file of a power-function average in a checkpoint's folder."""
    return f"length_{length}.npz"


def _fingerprint(path: Path) -> dict:
    return {"bytes": size_of(path), "sha256": sha256(path)}


def _files_of_this_host() -> tf.train.CheckpointOptions:
    """Options that write and read files here, wherever the variables are: a TPU's may be on another host."""
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    local = any(name.startswith("/job:localhost") for name in names)  # not so of several workers
    return tf.train.CheckpointOptions(experimental_io_device="/job:localhost" if local else None)
