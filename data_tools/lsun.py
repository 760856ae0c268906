"""LSUN's LMDB (church_outdoor and the other categories) -> a data set of 256 x 256 images.

    python -m data_tools.lsun --input church_outdoor_train_lmdb --output data/lsun_church

Centre crop to a square, one BOX resize, as in the LSUN script of the paper's base code. Entries are
JPEG or WebP, depending on the export: their first bytes tell.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import lmdb
from PIL import Image

from data_tools import convert
from data_tools.geometry import square_then_box
from data_tools.shards import Item
from pdm_tf import images
from pdm_tf.errors import UserError, run


@functools.lru_cache(maxsize=1)
def open_lmdb(directory: Path) -> lmdb.Environment:
    """Opens an LMDB folder to read it; UserError if it is no LMDB, or cut short.

    To read on in a file that is shorter than its own header says would end the process with a bus error.
    """
    path = directory / "data.mdb"
    if not path.is_file():
        raise UserError(
            f"{directory} holds no data.mdb; unzip LSUN's church_outdoor_train_lmdb.zip and"
            " give the folder church_outdoor_train_lmdb as --input"
        )
    try:
        # Random access: reading ahead would load pages that no one asked for.
        environment = lmdb.open(str(directory), readonly=True, lock=False, readahead=False)
        promised = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    except lmdb.Error as error:
        raise UserError(f"{path} is no LMDB that can be read ({error}); fetch it again") from error
    size = path.stat().st_size
    if size < promised:
        raise UserError(f"{path} is cut short: {size} bytes of {promised}; fetch it again")
    return environment


def list_items(directory: Path) -> list[Item]:
    """All entries, in the order of their keys."""
    try:
        with open_lmdb(directory).begin() as transaction:
            keys = list(transaction.cursor().iternext(values=False))
            entries = transaction.stat()["entries"]
    except lmdb.Error as error:
        raise UserError(f"{directory} is damaged ({error}); fetch it again") from error
    if len(keys) != entries:
        raise UserError(f"{directory} is damaged: {len(keys)} of {entries} keys; fetch it again")
    name = os.path.basename(os.path.abspath(directory))
    return [Item(f"{name}: {key.decode('utf-8', 'replace')}", key) for key in keys]


def load(item: Item, *, directory: Path, resolution: int) -> Image.Image:
    """One entry -> RGB `resolution` x `resolution`."""
    with open_lmdb(directory).begin() as transaction:
        data = transaction.get(item.location)
    if not data:
        raise OSError("the entry is empty")
    return square_then_box(images.decode(data, as_stored=True), resolution)


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(__doc__, help="the folder that holds data.mdb")
    parser.add_argument("--resolution", type=int, default=256)
    options = convert.checked(parser.parse_args(argv))
    target = convert.Target(
        "lsun_church",
        (options.resolution, options.resolution, 3),
        "LSUN church_outdoor: centre crop to a square, BOX resize.",
    )
    loader = functools.partial(load, directory=options.input, resolution=options.resolution)
    convert.convert(list_items(options.input), loader, target, options)


if __name__ == "__main__":
    sys.exit(run(main))
