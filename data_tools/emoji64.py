r"""Makes the embedded data set `emoji64` from the npm package `emoji-datasource-google`.

64 x 64 RGB on white, the base glyphs (no skin-tone variations), the Unicode category as label.

    npm pack emoji-datasource-google@16.0.0
    python -m data_tools.emoji64 --input emoji-datasource-google-16.0.0.tgz \
        --output pdm_tf/data/emoji64
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tarfile
from typing import Callable, NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from flags.errors import UserError

PACKAGE = "emoji-datasource-google"
VERSION = "16.0.0"
# The five "Component" entries are bare skin-tone swatches: parts of glyphs, not glyphs.
LEFT_OUT_CATEGORY = "Component"


class Glyph(NamedTuple):
    """One emoji: its name, its category, and its picture as PNG bytes."""

    name: str
    category: str
    png: bytes


def package_reader(package: str) -> Callable[[str], bytes]:
    """Returns a function from a path inside the npm package to that file's bytes.

    Args:
        package: the `.tgz` of `npm pack`, or the folder it unpacks to.
    """
    if os.path.isdir(package):

        def read_from_folder(path: str) -> bytes:
            with open(os.path.join(package, path), "rb") as file:
                return file.read()

        return read_from_folder
    with tarfile.open(package) as archive:
        files = {
            member.name: archive.extractfile(member).read() for member in archive if member.isfile()
        }
    return lambda path: files["package/" + path]


def composite_on_white(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB, its transparent parts white."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def read_glyphs(package: str) -> list[Glyph]:
    """The distinct base glyphs of the package, in the order of its `emoji.json`.

    Entries that share one picture (the flags of France and of Clipperton Island, say) count once:
    a twin in the held-out split would make it a copy of training data.

    Raises:
        UserError: `package` is not version 16.0.0 of the npm package.
    """
    try:
        read = package_reader(package)
        found = json.loads(read("package.json"))
        if (found["name"], found["version"]) != (PACKAGE, VERSION):
            raise UserError(
                f"{package} is {found['name']} {found['version']}, not {PACKAGE} {VERSION};"
                f" fetch it with: npm pack {PACKAGE}@{VERSION}"
            )
        glyphs, seen = [], set()
        for entry in json.loads(read("emoji.json")):
            if entry["category"] == LEFT_OUT_CATEGORY:
                continue
            with Image.open(io.BytesIO(read("img/google/64/" + entry["image"]))) as image:
                image = composite_on_white(image)
            if image.tobytes() in seen:
                continue
            seen.add(image.tobytes())
            png = io.BytesIO()
            image.save(png, format="PNG", compress_level=9)
            glyphs.append(Glyph(entry["short_name"], entry["category"], png.getvalue()))
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise UserError(
            f"cannot read the npm package at {package} ({error});"
            f" fetch it with: npm pack {PACKAGE}@{VERSION}"
        ) from error
    return glyphs


def write_split(output: str, split: str, glyphs: list[Glyph], labels: list[str]):
    """Writes one shard and returns its `tfds.core.SplitInfo`."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name="emoji64", split=split, filetype_suffix="tfrecord"
    )
    path = os.fspath(template.sharded_filepath(shard_index=0, num_shards=1))
    size = 0
    with tf.io.TFRecordWriter(path) as writer:
        for glyph in glyphs:
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[glyph.png])),
                "label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[labels.index(glyph.category)])
                ),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            # Map fields have no fixed order on the wire unless asked for.
            record = example.SerializeToString(deterministic=True)
            size += len(record)
            writer.write(record)
    return tfds.core.SplitInfo(
        name=split, shard_lengths=[len(glyphs)], num_bytes=size, filename_template=template
    )


def make_emoji64(package: str, output: str, validation_fraction: float, seed: int) -> None:
    """Writes the data set in TFDS layout to the folder `output`."""
    glyphs = read_glyphs(package)
    random.Random(seed).shuffle(glyphs)
    labels = sorted({glyph.category for glyph in glyphs})
    held_out = round(len(glyphs) * validation_fraction)
    os.makedirs(output, exist_ok=True)
    splits = [
        write_split(output, "train", glyphs[held_out:], labels),
        write_split(output, "validation", glyphs[:held_out], labels),
    ]
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(64, 64, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=labels),
        }
    )
    tfds.folder_dataset.write_metadata(
        data_dir=output,
        features=features,
        split_infos=splits,
        description="Google's Noto emoji, 64 x 64 RGB on white, labelled by category. Apache-2.0.",
        homepage="https://github.com/googlefonts/noto-emoji",
        supervised_keys=("image", "label"),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--input", required=True, help="the package's .tgz or unpacked folder")
    parser.add_argument("--output", required=True, help="folder of the data set")
    parser.add_argument("--validation_fraction", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        make_emoji64(
            arguments.input, arguments.output, arguments.validation_fraction, arguments.seed
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"emoji64: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
