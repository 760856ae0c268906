"""The conversion that all the tools share: a list of items -> a TFRecord data set in TFDS layout.

The items' order is a shuffle by seed, and a shard is a slice of it: each shard can be made alone,
by any worker process, at any time, and comes out the same. That makes a conversion resumable: a
run that was killed is continued by making the shards that do not exist yet.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection as mp_connection
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from data_tools import shards
from data_tools.shards import Encoder, Item, Task
from pdm_tf.atomic import atomic_json, atomic_text, remove_tree, sha256, sole_writer
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError, one_line
from pdm_tf.images import PILLOW_MODES, ImageError
from pdm_tf.paths import as_path, is_remote, local_path, size_of
from pdm_tf.progress import bar

MANIFEST = "manifest.json"
SKIPPED = "skipped.tsv"
WORK_DIR = ".conversion"
# Enough for the mean size of a record to within some percent; a shard's size need not be exact.
SAMPLED_ITEMS = 32
SHOWN_CLASSES = 30


@dataclasses.dataclass(frozen=True)
class Options:
    """What every tool lets its user choose; see `add_arguments`."""

    output: Path
    encoding: str
    png_level: int
    jpeg_quality: int
    validation_fraction: float
    seed: int
    shard_mb: float
    workers: int
    on_error: str
    max_megapixels: float


@dataclasses.dataclass(frozen=True)
class Target:
    """The data set to make: TFDS name, image size, class names (None: unlabelled), a line about it."""

    name: str
    height: int
    width: int
    label_names: Sequence[str] | None
    description: str
    channels: int = 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


# --- the command line ----------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that all the tools share."""
    add = functools.partial(parser.add_argument_group("all the tools").add_argument, metavar="VALUE")
    add("--output", required=True, help="folder of the data set, here or gs://; run again to resume")
    add("--encoding", choices=("png", "jpeg"), default="png", help="png (lossless, default) or jpeg")
    add("--png_level", type=int, choices=range(1, 10), default=6, help="zlib level 1-9; default 6")
    add("--jpeg_quality", type=int, default=95, help="1-100, default 95; colour is not subsampled")
    add("--validation_fraction", type=float, default=0.01, help="share held out, default 0.01")
    add("--seed", type=int, default=0, help="of the order and the held-out split, default 0")
    add("--shard_mb", type=float, default=150, help="size of a shard in megabytes, default 150")
    add("--workers", type=int, default=os.cpu_count(), help="processes, default one a core")
    add("--on_error", choices=("fail", "skip"), default="fail", help="at unreadable images")
    add("--max_megapixels", type=float, default=179, help="size of the largest image to read, default 179")


def options_from(arguments: argparse.Namespace) -> Options:
    """Checks the shared flags, and makes paths of `arguments.input` and `arguments.output`.

    Raises:
      UserError: a value out of range, an input in a bucket, or an output that cannot be opened.
    """
    arguments.input, arguments.output = local_path(arguments.input), as_path(arguments.output)
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(arguments, name) for name in names})
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"--validation_fraction={options.validation_fraction}: must be in [0, 1)")
    if not 1 <= options.jpeg_quality <= 100:
        raise UserError(f"--jpeg_quality={options.jpeg_quality}: must be in 1..100")
    if options.shard_mb <= 0:
        raise UserError(f"--shard_mb={options.shard_mb}: must be above 0")
    if options.max_megapixels <= 0:
        raise UserError(f"--max_megapixels={options.max_megapixels}: must be above 0")
    if options.workers < 1:
        raise UserError(f"--workers={options.workers}: must be at least 1")
    return options


# What the first bytes of a file say that is not what a tool takes -> what to do with it.
OTHER_KINDS = {
    b"PK": "is a zip archive: unpack it first",
    b"\x1f\x8b": "is compressed by gzip: unpack it first",
    b"BZh": "is compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"Rar!": "is a rar archive: unpack it first",
    b"\x89PNG": "is a single image: give the folder that it lies in",
    b"\xff\xd8": "is a single image: give the folder that it lies in",
    b"<": "is a web page, such as a server sends in place of a file: fetch it again",
}


def other_kind(path: Path) -> str | None:
    """A line of what a file is, and what to do, if its first bytes show that it is not what a tool takes."""
    with path.open("rb") as file:
        begin = file.read(512)
    if begin[257:262] == b"ustar":
        return f"{path} is a tar archive: unpack it first"
    if not begin:
        return f"{path} is empty: fetch it again"
    found = (f"{path} {what}" for magic, what in OTHER_KINDS.items() if begin.lstrip().startswith(magic))
    return next(found, None)


# --- the conversion ------------------------------------------------------------------------------


def convert(
    items: Sequence[Item], load: Callable[[Item], Image.Image], target: Target, options: Options
) -> None:
    """Makes the data set, or what is missing of it.

    Args:
      items: all images, in an order that is the same each time.
      load: item -> image of the target's size and channels; a module's function (or a partial of one) that
        can be sent to worker processes. Whatever it raises but a UserError counts as an unreadable item.
      target: the data set to make.
      options: the shared flags.
    Raises:
      UserError: no items, an unreadable item (with on_error=fail), a disk that is full, or an output folder
        that holds something else.
    """
    if not items:
        raise UserError("there are no images in the input")
    if target.label_names:
        _check_classes(target.label_names)
        _tell_classes(target.label_names, items)
    encoder = Encoder(
        load,
        (target.width, target.height),
        PILLOW_MODES[target.channels],
        options.encoding,
        options.png_level,
        options.jpeg_quality,
        options.on_error,
        options.max_megapixels,
    )
    work_dir = options.output / WORK_DIR
    with sole_writer(work_dir, busy=f"another conversion is running in {work_dir}"):
        ordered = list(items)
        random.Random(options.seed).shuffle(ordered)
        plan = _plan(ordered, encoder, target, options)
        tasks = _tasks(ordered, plan, target, options)
        outcomes = _finished(tasks, options.output)
        todo = [task for task in tasks if task.path not in outcomes]
        _require_space(todo, plan, options.output)
        outcomes.update(_write_shards(todo, encoder, options.workers, len(ordered)))
        _write_metadata(tasks, outcomes, target, options)
        _write_manifest(tasks, outcomes, plan, options.output)
        describe_directory(options.output)
        remove_tree(work_dir)


def _check_classes(names: Sequence[str]) -> None:
    """Raises UserError for names that the data set's files, which have one a line, would not give back."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.isprintable() or name != name.strip() or not name:
            raise UserError(
                f"the class name {name!r} has spaces at an end, or what cannot be printed: rename it"
            )
        # Systems write one letter with an accent as one character, or as two.
        twin = seen.setdefault(unicodedata.normalize("NFC", name), name)
        if twin is not name:
            raise UserError(f"two classes are named {name}, in letters that look alike: rename one")


def _tell_classes(names: Sequence[str], items: Sequence[Item]) -> None:
    counts = collections.Counter(item.label for item in items)
    shown = ", ".join(f"{i} {name} ({counts[i]})" for i, name in enumerate(names[:SHOWN_CLASSES]))
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    print(f"{len(names)} classes (images): {shown}{more}", flush=True)


def _plan(ordered: list[Item], encoder: Encoder, target: Target, options: Options) -> dict[str, Any]:
    """What decides every byte of the result; read back when a conversion is resumed.

    Raises:
      UserError: the folder holds the result, or the beginning, of another conversion.
    """
    listing = "".join(sorted(f"{item.name}\t{item.label}\n" for item in ordered))
    digest = hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()
    chosen = {
        "input": f"{len(ordered)} images, sha256 of their names and labels {digest}",
        "name": target.name,
        "description": target.description,
        "image_shape": list(target.image_shape),
        "label_names": list(target.label_names) if target.label_names else None,
        "encoding": options.encoding,
        "level_or_quality": options.png_level if options.encoding == "png" else options.jpeg_quality,
        "validation_fraction": options.validation_fraction,
        "seed": options.seed,
        "shard_mb": options.shard_mb,
    }
    path = options.output / WORK_DIR / "plan.json"
    manifest = read_manifest(options.output)
    earlier = manifest["plan"] if manifest else _read_json(path, _is_plan)
    if earlier is None:
        plan = {**chosen, "mean_record_bytes": _mean_record_bytes(ordered, encoder)}
        atomic_json(path, plan)
        return plan
    different = [key for key, value in chosen.items() if earlier.get(key) != value]
    if different:
        raise UserError(
            f"{options.output} holds a conversion that differs in {', '.join(different)};"
            " choose another --output, or remove that folder"
        )
    return earlier


def _mean_record_bytes(ordered: list[Item], encoder: Encoder) -> int:
    """The mean size of a record, from the first items; the items are in random order."""
    sizes = []
    for item in ordered[:SAMPLED_ITEMS]:
        try:
            sizes.append(len(encoder.record(item)))
        except ImageError as error:
            encoder.refuse_or_skip(item, error)
    if not sizes:
        raise UserError(f"none of {SAMPLED_ITEMS} images tried can be read; is the input right?")
    return sum(sizes) // len(sizes)


def _tasks(ordered: list[Item], plan: dict[str, Any], target: Target, options: Options) -> list[Task]:
    """All shards of both splits with their items; the first of the order are held out."""
    held_out = round(len(ordered) * options.validation_fraction)
    tasks = []
    for split, items in (("train", ordered[held_out:]), ("validation", ordered[:held_out])):
        template = _template(target, options, split)
        count = -(-len(items) * plan["mean_record_bytes"] // int(options.shard_mb * 1e6))
        # With fewer items than shards some would be empty.
        count = min(count, len(items))
        for index in range(count):
            path = as_path(template.sharded_filepath(shard_index=index, num_shards=count))
            begin, end = index * len(items) // count, (index + 1) * len(items) // count
            tasks.append(Task(split, path, options.output / WORK_DIR, items[begin:end]))
    return tasks


def _template(target: Target, options: Options, split: str) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=options.output, dataset_name=target.name, split=split, filetype_suffix="tfrecord"
    )


def _finished(tasks: list[Task], output: Path) -> dict[Path, dict]:
    """Shard path -> recorded outcome, of the shards that are there in their recorded size."""
    manifest = read_manifest(output)
    finished = {}
    for task in tasks:
        outcome = manifest["shards"].get(task.path.name) if manifest else None
        outcome = outcome or _read_json(task.outcome_path, _is_outcome)
        if outcome and task.path.exists() and size_of(task.path) == outcome["bytes"]:
            finished[task.path] = outcome
    return finished


def _require_space(todo: list[Task], plan: dict[str, Any], output: Path) -> None:
    if is_remote(output):  # a bucket has room; this machine holds but the shards that are being written
        return
    needed = sum(len(task.items) for task in todo) * plan["mean_record_bytes"]
    free = shutil.disk_usage(output).free
    if needed > free:
        raise UserError(
            f"{output} needs about {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free there;"
            " make room, or choose another --output or --encoding=jpeg"
        )


def _write_shards(todo: list[Task], encoder: Encoder, workers: int, total: int) -> dict[Path, dict]:
    """Has worker processes write shards; returns shard path -> outcome."""
    if not todo:
        return {}
    # Forks of one server that has imported TensorFlow once, instead of one import each; unlike a
    # plain fork it copies no thread of this process in mid-flight.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_tools.convert"])
    processes = []
    waiting = iter(todo)
    outcomes = {}
    initial = total - sum(len(task.items) for task in todo)
    try:
        connections = []
        for _ in range(min(workers, len(todo))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, encoder), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
            ours.send(next(waiting))
        with bar(total=total, unit="img", initial=initial) as progress:
            while len(outcomes) < len(todo):
                for ready in mp_connection.wait(connections):
                    _receive(ready, waiting, outcomes, progress)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return outcomes


def _work(connection: mp_connection.Connection, encoder: Encoder) -> None:
    # Ctrl-C reaches the whole process group; the parent answers for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shards.work(connection, encoder)


def _receive(
    connection: mp_connection.Connection,
    waiting: Iterator[Task],
    outcomes: dict[Path, dict],
    progress: tqdm,
) -> None:
    """Takes one message of a worker, and gives it its next shard when it has finished one."""
    try:
        kind, *content = connection.recv()
    except (EOFError, ConnectionResetError) as error:
        raise UserError(
            "a worker process was killed (out of memory?); run the same command again,"
            " with fewer --workers: finished shards are kept"
        ) from error
    if kind == "error":
        raise UserError(content[0])
    if kind == "crash":
        raise RuntimeError(f"a worker process failed:\n{content[0]}")
    if kind == "progress":
        progress.update(content[0])
        return
    path, outcome = content
    outcomes[path] = outcome
    done = sum(o["records"] + len(o["skipped"]) for o in outcomes.values())
    progress.update(max(0, progress.initial + done - progress.n))
    task = next(waiting, None)
    if task is not None:
        connection.send(task)


def _write_metadata(tasks: list[Task], outcomes: dict[Path, dict], target: Target, options: Options) -> None:
    """Writes what TFDS needs to open the data set."""
    if not any(outcome["records"] for outcome in outcomes.values()):
        raise UserError("no image could be read: no data set is made")
    splits = []
    for split in ("train", "validation"):
        found = [outcomes[task.path] for task in tasks if task.split == split]
        if found:
            splits.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[outcome["records"] for outcome in found],
                    num_bytes=sum(outcome["payload_bytes"] for outcome in found),
                    filename_template=_template(target, options, split),
                )
            )
    features = {"image": tfds.features.Image(shape=target.image_shape, encoding_format=options.encoding)}
    if target.label_names:
        features["label"] = tfds.features.ClassLabel(names=list(target.label_names))
    tfds.folder_dataset.write_metadata(
        data_dir=options.output,
        features=features,
        split_infos=splits,
        description=target.description,
        supervised_keys=("image", "label") if target.label_names else None,
        check_data=False,
    )


def _write_manifest(
    tasks: list[Task], outcomes: dict[Path, dict], plan: dict[str, Any], output: Path
) -> None:
    """Writes the list of skipped items, and last the manifest: with it the data set is finished."""
    recorded = {task.path.name: outcomes[task.path] for task in tasks}
    metadata = ["dataset_info.json", "features.json"]
    if plan["label_names"]:
        metadata.append("label.labels.txt")
    skipped = [line for outcome in recorded.values() for line in outcome["skipped"]]
    if skipped:
        report = output / SKIPPED
        atomic_text(report, "".join(f"{name}\t{reason}\n" for name, reason in skipped))
        metadata.append(SKIPPED)
        print(f"{len(skipped)} images were skipped; {report} names them", file=sys.stderr)
    digests = {name: sha256(output / name) for name in metadata}
    atomic_json(output / MANIFEST, {"plan": plan, "shards": recorded, "metadata_sha256": digests})
    count = sum(outcome["records"] for outcome in recorded.values())
    size = sum(outcome["bytes"] for outcome in recorded.values())
    print(f"{count} images, {size / 1e6:.1f} MB in {len(recorded)} shards: {output}")


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished data set; None where there is none.

    Raises:
      UserError: it is damaged.
    """
    return _read_json(directory / MANIFEST, _is_manifest)


def _read_json(path: Path, is_right: Callable[[Any], bool]) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); remove it and convert again") from error
    if not is_right(values):
        raise UserError(f"{path} is damaged; remove it and convert again")
    return values


def _is_manifest(values: Any) -> bool:
    """Whether JSON values are a manifest, in all that is read of it."""
    if not isinstance(values, dict) or not _is_plan(values.get("plan")):
        return False
    found, digests = values.get("shards"), values.get("metadata_sha256")
    return isinstance(found, dict) and isinstance(digests, dict) and all(map(_is_outcome, found.values()))


def _is_plan(values: Any) -> bool:
    return isinstance(values, dict) and type(values.get("mean_record_bytes")) is int


def _is_outcome(values: Any) -> bool:
    kinds = {"records": int, "bytes": int, "payload_bytes": int, "sha256": str, "skipped": list}
    return (
        isinstance(values, dict)
        and all(type(values.get(key)) is kind for key, kind in kinds.items())
        and all(isinstance(line, list) and [*map(type, line)] == [str, str] for line in values["skipped"])
    )
