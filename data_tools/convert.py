"""The conversion that all the tools share: a list of items -> a TFRecord data set in TFDS layout.

The items' order is a shuffle by seed, and a shard is a slice of it: each shard can be made alone, by any
worker process, and comes out the same. So a run that was killed is continued by making the shards that do
not exist yet.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import tensorflow_datasets as tfds
from etils.epath import Path
from PIL import Image

from data_tools.shards import Encoder, Item, Task, write_shard
from pdm_tf.atomic import atomic_json, atomic_text, free_bytes, remove_tree, sha256, sole_writer
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError, one_line
from pdm_tf.images import ImageError
from pdm_tf.paths import as_path, local_path, size_of
from pdm_tf.progress import bar

MANIFEST = "manifest.json"
SKIPPED = "skipped.tsv"
WORK_DIR = ".conversion"
SAMPLED_ITEMS = 32  # to estimate the mean size of a record; a shard's size need not be exact
SHOWN_CLASSES = 30

Options = argparse.Namespace  # a tool's flags by name


@dataclasses.dataclass(frozen=True)
class Target:
    """The data set to make: TFDS name, image shape (H, W, C), description, class names (None: unlabelled)."""

    name: str
    image_shape: tuple[int, int, int]
    description: str
    label_names: Sequence[str] | None = None


# --- the command line ----------------------------------------------------------------------------


def tool_parser(doc: str, flag: str = "--input", **options: Any) -> argparse.ArgumentParser:
    """Command line of a tool: its input's flag, as of `add_argument`, and those that all the tools share.

    `doc`: the tool's docstring, whose first line describes it.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    required = "default" not in options
    parser.add_argument(flag, dest="input", required=required, **options)
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
    return parser


def checked(options: Options) -> Options:
    """A tool's flags with paths as `input` and `output`, when those that all tools share are in range.

    UserError for a value out of range, an input in a bucket, or an output that cannot be opened.
    """
    options.input = local_path(options.input)
    options.output = as_path(options.output)
    for name, fits, rule in (
        ("validation_fraction", 0 <= options.validation_fraction < 1, "in [0, 1)"),
        ("jpeg_quality", 1 <= options.jpeg_quality <= 100, "in 1..100"),
        ("shard_mb", 0 < options.shard_mb < math.inf, "above 0"),
        ("max_megapixels", 0 < options.max_megapixels < math.inf, "above 0"),
        ("workers", options.workers >= 1, "at least 1"),
    ):
        if not fits:
            raise UserError(f"--{name}={getattr(options, name)}: must be {rule}")
    return options


# --- the conversion ------------------------------------------------------------------------------


def convert(
    items: Sequence[Item], load: Callable[[Item], Image.Image], target: Target, options: Options
) -> None:
    """Makes the data set, or what is missing of it.

    Args:
      items: all images, in an order that is the same each time.
      load: item -> image of the target's shape; a module's function (or a partial of one) that can be sent
        to worker processes. Whatever it raises but a UserError counts as an unreadable item.
      options: the tool's flags, as `checked` has them.
    Raises:
      UserError: no items, an unreadable item (with on_error=fail), a disk that is full, or an output folder
        that holds something else.
    """
    if not items:
        raise UserError("there are no images in the input")
    if target.label_names:
        _check_classes(target.label_names)
        _print_classes(target.label_names, items)
    flags = {name: value for name, value in vars(options).items() if name in Encoder._fields}
    encoder = Encoder(load, target.image_shape, **flags)
    work_dir = options.output / WORK_DIR
    with sole_writer(work_dir, busy=f"another conversion is running in {work_dir}"):
        ordered = list(items)
        random.Random(options.seed).shuffle(ordered)
        plan = _plan(ordered, encoder, target, options)
        tasks = _tasks(ordered, plan, target, options)
        outcomes = _finished(tasks, options.output)
        todo = [task for task in tasks if task.path not in outcomes]
        if not todo:
            print(f"all shards are there, and no image was read: if images changed, remove {options.output}")
        _require_space(todo, plan, options.output)
        outcomes.update(_write_shards(todo, encoder, options.workers, len(ordered)))
        manifest = read_manifest(options.output)
        # Versions of TFDS write the same metadata in other bytes.
        if todo or not manifest or damaged_metadata(options.output, manifest):
            _write_metadata(tasks, outcomes, target, options)
        _write_manifest(tasks, outcomes, plan, options.output)
        describe_directory(options.output)
        remove_tree(work_dir)


def _check_classes(names: Sequence[str]) -> None:
    """Raises UserError for names that the data set's files, which have one a line, would not give back."""
    for name in names:
        if not name.isprintable() or name != name.strip() or not name:
            raise UserError(
                f"the class name {name!r} has spaces at an end, or what cannot be printed: rename it"
            )


def _print_classes(names: Sequence[str], items: Sequence[Item]) -> None:
    counts = collections.Counter(item.label for item in items)
    shown = ", ".join(f"{i} {name} ({counts[i]})" for i, name in enumerate(names[:SHOWN_CLASSES]))
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    print(f"{len(names)} classes (images): {shown}{more}", flush=True)


def _plan(ordered: list[Item], encoder: Encoder, target: Target, options: Options) -> dict[str, Any]:
    """All that decides the bytes of the result; read back when a conversion is resumed.

    UserError if the folder holds the result, or the beginning, of another conversion.
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
    earlier = manifest["plan"] if manifest else _read_json(path, "mean_record_bytes")
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
        shard_bytes = max(int(options.shard_mb * 1e6), 1)
        count = -(-len(items) * plan["mean_record_bytes"] // shard_bytes)
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
    """Shard path -> recorded outcome, of the shards that are there in their recorded size.

    A finished data set's images that were skipped are tried again: they may have been mended.
    """
    manifest = read_manifest(output)
    finished = {}
    for task in tasks:
        outcome = manifest["shards"].get(task.path.name) if manifest else None
        if outcome and outcome["skipped"]:
            continue
        outcome = outcome or _read_json(task.outcome_path, "records", "bytes", "payload_bytes", "skipped")
        if outcome and task.path.exists() and size_of(task.path) == outcome["bytes"]:
            finished[task.path] = outcome
    return finished


def _require_space(todo: list[Task], plan: dict[str, Any], output: Path) -> None:
    needed = sum(len(task.items) for task in todo) * plan["mean_record_bytes"]
    free = free_bytes(output)
    if needed > free:
        raise UserError(
            f"{output} needs about {needed / 1e9:.1f} GB more, {free / 1e9:.1f} GB are free there;"
            " make room, or choose another --output or --encoding=jpeg"
        )


# --- worker processes ----------------------------------------------------------------------------


def _write_shards(todo: list[Task], encoder: Encoder, workers: int, total: int) -> dict[Path, dict]:
    """Has worker processes write shards; returns shard path -> outcome."""
    if not todo:
        return {}
    # Forks of one server that has imported TensorFlow once, instead of one import each; unlike a
    # plain fork it copies no thread of this process in mid-flight.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_tools.convert"])
    counter = context.Value("q", total - sum(len(task.items) for task in todo))
    workers = min(workers, len(todo))
    outcomes = {}
    with (
        futures.ProcessPoolExecutor(workers, context, _start_worker, (counter,)) as pool,
        bar(total=total, unit="img", initial=counter.value) as progress,
    ):
        try:
            running = {pool.submit(_write, task, encoder): task.path for task in todo}
            while running:
                done, _ = futures.wait(running, timeout=0.2, return_when=futures.FIRST_COMPLETED)
                progress.update(counter.value - progress.n)
                outcomes |= {running.pop(future): future.result() for future in done}
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker process was killed (out of memory?); run the same command again,"
                    " with fewer --workers: finished shards are kept"
                ) from error
            raise
    return outcomes


def _start_worker(counter: multiprocessing.Value) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group: the parent answers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _write.counter = counter


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _write(task: Task, encoder: Encoder) -> dict:
    def report(items: int) -> None:
        with _write.counter:
            _write.counter.value += items

    return write_shard(task, encoder, report)


# --- metadata ------------------------------------------------------------------------------------


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
    else:
        (output / SKIPPED).unlink(missing_ok=True)
    digests = {name: sha256(output / name) for name in metadata}
    atomic_json(output / MANIFEST, {"plan": plan, "shards": recorded, "metadata_sha256": digests})
    count = sum(outcome["records"] for outcome in recorded.values())
    size = sum(outcome["bytes"] for outcome in recorded.values())
    shards = f"{len(recorded)} shard{'s' * (len(recorded) != 1)}"
    print(f"{count} images, {size / 1e6:.1f} MB in {shards}: {output}")
    if plan["validation_fraction"] and not any("-validation." in name for name in recorded):
        print("none of them is held out, to measure with: --validation_fraction=0.1 would hold a tenth out")


def damaged_metadata(directory: Path, manifest: dict[str, Any]) -> list[Path]:
    """The metadata files that are missing, or not as the manifest of the data set has them."""
    digests = {directory / name: digest for name, digest in manifest.get("metadata_sha256", {}).items()}
    return [path for path, digest in digests.items() if not path.is_file() or sha256(path) != digest]


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished data set; None where there is none, UserError if it is damaged."""
    return _read_json(directory / MANIFEST, "plan", "shards", "metadata_sha256")


def _read_json(path: Path, *keys: str) -> dict[str, Any] | None:
    """A file's JSON object, which must have some keys; None where there is no file."""
    try:
        values = json.loads(path.read_bytes())
        return {**values, **{key: values[key] for key in keys}}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); remove it and convert again") from error
