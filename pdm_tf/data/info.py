"""Data sets: where they lie, and their description from TFDS metadata; no image is read here."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from pdm_tf.atomic import sha256
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import as_path, entries, size_of
from pdm_tf.stack import image_encoding

METADATA = "dataset_info.json"
EMBEDDED = {name: Path(__file__).absolute().parent / name for name in ("emoji64", "avatars64")}

# name -> (the raw archive, the arguments that make the data set from it)
SOURCES = {
    "lsun_church": (
        "church_outdoor_train_lmdb.zip of LSUN, unzipped",
        "lsun --input church_outdoor_train_lmdb",
    ),
    "imagenet256": ("ILSVRC2012_img_train.tar of ImageNet", "imagenet --input ILSVRC2012_img_train.tar"),
    "ffhq1024": ("images1024x1024 of FFHQ (or its ffhq-r10.tfrecords)", "ffhq --input images1024x1024"),
    "avatars32": ("nothing (Node.js draws it)", "avatars --size 32 --count 50000 --held_out 5000"),
    "avatars256": ("nothing (Node.js draws it)", "avatars --size 256 --count 20000 --held_out 2000"),
    "avatars1024": ("nothing (Node.js draws it)", "avatars --size 1024 --count 5000 --held_out 500"),
}


@dataclass(frozen=True)
class Split:
    """One split: its shard files in order, and the number of records promised for each."""

    shards: tuple[Path, ...]
    shard_lengths: tuple[int, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """A data set as its metadata describe it."""

    name: str
    directory: Path  # that of `dataset_info.json` and the shards
    image_shape: tuple[int | None, int | None, int]  # (H, W, C); None where images differ in size
    num_classes: int  # 0 when unlabelled
    label_names: tuple[str, ...]
    num_examples: dict[str, int]  # split -> number of images
    image_key: str  # the feature's name in a record
    label_key: str | None  # None when unlabelled
    image_dtype: str  # "uint8" or "uint16"
    encoding: str | None  # "png" or "jpeg"; None where it may be either
    splits: dict[str, Split]

    @functools.cached_property
    def sha256(self) -> str:
        """A digest that other data do not share, wherever they lie; no image is read for it.

        That of the manifest, which holds the shards' hashes, where data_tools made the set; otherwise of the
        metadata and the shards' names and sizes.
        """
        manifest = self.directory / "manifest.json"
        if manifest.exists():
            return sha256(manifest)
        shards = [
            [path.name, size_of(path) if path.exists() else None]
            for split in sorted(self.splits)
            for path in self.splits[split].shards
        ]
        text = json.dumps([sha256(self.directory / METADATA), shards])
        return hashlib.sha256(text.encode()).hexdigest()


def find_dataset(dataset: str, data_dir: str | os.PathLike) -> DatasetInfo:
    """Finds a data set and describes it from its metadata alone.

    Args:
      dataset: `emoji64` or `avatars64` (embedded: they need no `data_dir`); one of `SOURCES`, found under
        `data_dir/<name>`; `tfds:NAME`, where NAME may go on with `/CONFIG` and `:VERSION`, found where
        TFDS puts it under `data_dir`; `folder:PATH`.
    Raises:
      UserError: unknown name, missing data (says how to make them), or unusable metadata.
    """
    kind, _, rest = dataset.partition(":")
    if dataset in EMBEDDED:
        return describe_directory(EMBEDDED[dataset], name=dataset)
    if dataset in SOURCES:
        return describe_directory(_named_directory(dataset, as_path(data_dir)), name=dataset)
    if kind == "tfds" and rest:
        return describe_directory(_tfds_directory(rest, as_path(data_dir)))
    if kind == "folder" and rest:
        found = _newest_version(as_path(rest))
        if found is None:
            raise UserError(
                f"no data set ({METADATA}) in {rest}: if it was moved, name its new place by --dataset; or "
                "make one from a folder of images with: python -m data_tools.image_folder --input IMAGES "
                "--output FOLDER, and then --dataset=folder:FOLDER"
            )
        return describe_directory(found)
    known = ", ".join([*EMBEDDED, *SOURCES, "tfds:NAME", "folder:PATH"])
    raise UserError(f"unknown data set {dataset!r}; write one of {known}")


def describe_directory(directory: str | os.PathLike, name: str | None = None) -> DatasetInfo:
    """Describes the data set in TFDS layout in `directory`, under `name` or its own name."""
    directory = as_path(directory)
    # TFDS raises whatever its JSON and protobuf readers happen to raise on damaged metadata.
    try:
        info = tfds.builder_from_directory(directory).info
        splits = {
            key: Split(tuple(map(as_path, split.filepaths)), tuple(split.shard_lengths))
            for key, split in info.splits.items()
            if split.num_examples
        }
        features = dict(_flatten(info.features))
        file_format = info.file_format.value if info.file_format else "tfrecord"
    except Exception as error:
        raise UserError(
            f"the metadata in {directory} cannot be read ({one_line(error)}); make the data set again"
        ) from error
    if file_format != "tfrecord":
        raise UserError(f"{directory} is stored as {file_format}; prepare it with file_format='tfrecord'")
    image_key, image = _image_feature(directory, features)
    label_key, label = _label_feature(features)
    return DatasetInfo(
        name=name or info.name,
        directory=directory,
        image_shape=image.shape,
        num_classes=label.num_classes if label else 0,
        label_names=tuple(label.names) if label else (),
        num_examples={key: sum(split.shard_lengths) for key, split in splits.items()},
        image_key=image_key,
        label_key=label_key,
        image_dtype=np.dtype(image.np_dtype).name,
        encoding=image_encoding(image),
        splits=splits,
    )


def held_out_split(info: DatasetInfo) -> str | None:
    """The split to measure a run on, if there is one."""
    return next((split for split in ("validation", "test") if info.num_examples.get(split)), None)


def _flatten(features, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Feature name in a record -> feature; TFDS joins the names of nested ones with a slash."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _flatten(feature, f"{prefix}{key}/")
        else:
            yield prefix + key, feature


def _image_feature(directory: Path, features: dict[str, object]):
    # A LabeledImage (a subclass) is a segmentation map, no picture.
    images = [(key, found) for key, found in features.items() if type(found) is tfds.features.Image]
    if not images:
        raise UserError(f"{directory} has no image feature; its features: {', '.join(features)}")
    key, image = images[0]
    dtype = np.dtype(image.np_dtype).name
    if dtype not in ("uint8", "uint16") or (dtype == "uint16" and image_encoding(image) != "png"):
        raise UserError(f"image feature {key!r} of {directory} is {dtype}; only uint8 and uint16 PNG")
    if image.shape[-1] is None:
        raise UserError(f"image feature {key!r} of {directory} has no fixed number of channels")
    return key, image


def _label_feature(features: dict[str, object]):
    labels = {key: found for key, found in features.items() if isinstance(found, tfds.features.ClassLabel)}
    key = "label" if "label" in labels else next(iter(labels), None)
    return key, labels.get(key)


def _named_directory(name: str, data_dir: Path) -> Path:
    """Where a data set of `SOURCES` lies, finished."""
    directory = data_dir / name
    archive, arguments = SOURCES[name]
    command = f"python -m data_tools.{arguments} --output {directory}"
    found = _newest_version(directory)
    if found is None:
        raise UserError(f"{directory} holds no finished {name}; make or resume it from {archive}: {command}")
    return found


def _newest_version(directory: Path) -> Path | None:
    """The folder with the metadata: `directory` itself or its highest version; else None."""
    if (directory / METADATA).exists():
        return directory
    versions = {
        tfds.core.Version(entry.name): entry
        for entry in entries(directory)
        if tfds.core.Version.is_valid(entry.name) and (entry / METADATA).exists()
    }
    return versions[max(versions)] if versions else None


def _tfds_directory(name: str, data_dir: Path) -> Path:
    """`NAME`, `NAME/CONFIG`, either with `:VERSION` -> its folder under `data_dir`."""
    path, _, version = name.partition(":")
    root = data_dir / path / version
    configs = [entry for entry in (root, *entries(root)) if _newest_version(entry)]
    if not configs:
        raise UserError(f"{root} has no tfds:{name}; prepare it: tfds build {path} --data_dir={data_dir}")
    if len(configs) > 1 and configs[0] != root:
        names = ", ".join(config.name for config in configs)
        raise UserError(f"{root} holds several configurations ({names}); name one, as in tfds:{path}/NAME")
    return _newest_version(configs[0])
