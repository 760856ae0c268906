"""Small data sets for the tests: finished ones in TFDS layout, raw archives in their own forms."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from data_tools import ffhq, imagenet, lsun
from pdm_tf.data import DatasetInfo, describe_directory


def encode(image: np.ndarray, image_format: str = "PNG", **options) -> bytes:
    """uint8 [h, w] or [h, w, c], or uint16 [h, w] -> an encoded image file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def numbered_image(number: int, height: int = 8, width: int = 6) -> np.ndarray:
    """uint8 RGB noise whose upper corners hold `number` (below 2**16), to tell it by."""
    image = np.random.RandomState(number).randint(0, 256, (height, width, 3)).astype(np.uint8)
    image[0, 0] = image[0, -1] = (number >> 8, number & 255, 0)
    return image


def numbers_of(images: tf.Tensor) -> list[int]:
    """The numbers of a batch of `numbered_image`s, flipped or not."""
    corners = np.round((np.asarray(images)[:, 0, 0] + 1) * 127.5).astype(int)
    return [int(high << 8 | low) for high, low, _ in corners]


def example(image: bytes, label: int | None = None) -> bytes:
    """A record as TFDS writes it."""
    feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))}
    if label is not None:
        feature["label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def write_shards(
    directory: Path,
    shards: Sequence[Sequence[bytes]],
    *,
    shape: Sequence[int | None] = (8, 6, 3),
    classes: int = 0,
    dtype: type = np.uint8,
    encoding: str | None = "png",
    split: str = "train",
) -> DatasetInfo:
    """Writes records to shards, and TFDS metadata that promise exactly these."""
    directory.mkdir(parents=True, exist_ok=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name="made", split=split, filetype_suffix="tfrecord"
    )
    for index, records in enumerate(shards):
        path = template.sharded_filepath(shard_index=index, num_shards=len(shards))
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
    features = {"image": tfds.features.Image(shape=shape, dtype=dtype, encoding_format=encoding)}
    if classes:
        features["label"] = tfds.features.ClassLabel(num_classes=classes)
    info = tfds.core.SplitInfo(
        name=split,
        shard_lengths=[len(records) for records in shards],
        num_bytes=sum(len(record) for records in shards for record in records),
        filename_template=template,
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory, features=features, split_infos=[info], check_data=False
    )
    return describe_directory(directory)


def numbered_dataset(directory: Path, shard_lengths: Sequence[int], classes: int = 5) -> DatasetInfo:
    """Images numbered from 0 on through the shards, labelled by number modulo classes."""
    shards, number = [], 0
    for length in shard_lengths:
        numbers = range(number, number + length)
        shards.append([example(encode(numbered_image(n)), n % classes) for n in numbers])
        number += length
    return write_shards(directory, shards, classes=classes)


def flip_byte(path: Path, position: int) -> None:
    """Changes one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


# --- raw archives, in the forms in which they are published --------------------------------------


def natural_image(seed: int, height: int, width: int) -> np.ndarray:
    """uint8 RGB with structure at all scales and a little noise: compresses as photographs do."""
    random = np.random.RandomState(seed)
    total = np.zeros((height, width, 3))
    cells = 4
    while cells < max(height, width):
        coarse = Image.fromarray(random.randint(0, 256, (cells, cells, 3)).astype(np.uint8))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) * 2.0 / cells
        cells *= 2
    total *= 230 / total.max()
    return (total + random.normal(0, 2, total.shape)).clip(0, 255).astype(np.uint8)


def cmyk_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, format="JPEG")
    return buffer.getvalue()


def make_lsun(directory: Path, count: int, height: int = 40, width: int = 50) -> list[bytes]:
    """An LMDB as LSUN publishes it, JPEG and WebP entries mixed; returns the encoded entries."""
    entries = [
        encode(natural_image(n, height, width), ("JPEG", "WEBP")[n % 2], quality=90) for n in range(count)
    ]
    with lmdb.open(str(directory), map_size=1 << 30) as environment:
        with environment.begin(write=True) as transaction:
            for n, data in enumerate(entries):
                key = hashlib.sha1(b"%d" % n).hexdigest().encode()
                transaction.put(key, data)
    return entries


def make_imagenet(path: Path, images: dict[str, list[bytes]]) -> None:
    """A tar of one tar a wnid, as ImageNet publishes it; `images`: wnid -> .JPEG files' bytes."""
    with tarfile.open(path, "w") as outer:
        for wnid, contents in images.items():
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for n, data in enumerate(contents):
                    _add(inner, f"{wnid}_{n}.JPEG", data)
            _add(outer, f"{wnid}.tar", buffer.getvalue())


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def imagenet_images(classes: int, each: int, height: int = 60, width: int = 45):
    """wnid -> JPEG files; of each class's first two, one is CMYK and one is a PNG."""
    found = {}
    for c in reversed(range(classes)):  # the real archive is not in sorted order either
        pixels = [natural_image(c * each + n, height + n, width) for n in range(each)]
        files = [encode(image, "JPEG", quality=90) for image in pixels]
        files[:2] = [cmyk_jpeg(pixels[0]), encode(pixels[1], "PNG")]
        found[f"n{c:08d}"] = files
    return found


def make_ffhq_folder(directory: Path, count: int, resolution: int) -> list[np.ndarray]:
    """`images1024x1024/00000/00000.png` and so on, a thousand a sub-folder; returns the pixels."""
    images = [natural_image(n, resolution, resolution) for n in range(count)]
    for n, image in enumerate(images):
        folder = directory / f"{n // 1000 * 1000:05d}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{n:05d}.png")
    return images


def make_ffhq_tfrecords(path: Path, images: Sequence[np.ndarray]) -> None:
    """StyleGAN's tfrecords: uncompressed, CHW."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images:
            planes = image.transpose(2, 0, 1)
            feature = {
                "shape": tf.train.Feature(int64_list=tf.train.Int64List(value=planes.shape)),
                "data": tf.train.Feature(bytes_list=tf.train.BytesList(value=[planes.tobytes()])),
            }
            record = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(record.SerializeToString())


def make_folder(directory: Path, files: dict[str, bytes]) -> None:
    """Path in the folder -> contents."""
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# --- data sets of the real presets ---------------------------------------------------------------


def make_preset_dataset(name: str, data_dir: Path, count: int = 8) -> None:
    """Makes a raw archive at its real resolution and converts it, as a user would.

    Args:
      name: `lsun_church`, `imagenet256` (1000 classes of two images each) or `ffhq1024`.
      data_dir: what to pass as `--data_dir`; the raw archive goes beside the data set.
      count: of images, but for `imagenet256`.
    """
    raw = data_dir / f"raw_{name}"
    common = ["--input", str(raw), "--output", str(data_dir / name)]
    common += ["--workers", "2", "--validation_fraction", "0.25"]
    if name == "lsun_church":
        make_lsun(raw, count, 256, 341)
        lsun.main(common)
    elif name == "imagenet256":
        files = imagenet_images(classes=1, each=2, height=300, width=400)["n00000000"]
        make_imagenet(raw, {f"n{c:08d}": files for c in range(1000)})
        imagenet.main(common)
    else:
        make_ffhq_folder(raw, count, 1024)
        ffhq.main(common)
