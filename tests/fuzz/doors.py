"""The doors: each makes what it needs in a folder, and answers a function of a case's random numbers.

That function ends when the program has taken a case, and raises UserError when it has refused it. Anything
else that it raises is a mistake of the program's.
"""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from data_tools import verify
from pdm_tf import data, images
from pdm_tf.errors import UserError
from pdm_tf.evaluation import references
from pdm_tf.evaluation.features import Detector
from pdm_tf.run import RunFolder
from pdm_tf.weights import read_arrays, write_arrays
from tests.data import fixtures
from tests.fuzz.mutations import damaged, damaged_image, damaged_json, damaged_npz

Case = Callable[[random.Random], None]


def image_files(folder: Path) -> Case:
    """Files of all formats and modes, with EXIF and without, through the one reader of image files."""
    files = _pictures()

    def case(chance: random.Random) -> None:
        path = folder / "image"
        path.write_bytes(damaged_image(chance.choice(files), chance))
        try:
            image = images.read_file(path, chance.choice((1, 3, 4)))
            assert image.mode in ("L", "RGB", "RGBA")
        except images.ImageError as error:
            assert "\n" not in str(error) and str(error)
        for read in (images.read_image, images.read_mask):
            _refused(read, path, (24, 36, 3))
        list(images.read_folder([path]))

    return case


def _pictures() -> list[bytes]:
    pixels = fixtures.natural_image(0, 24, 36)
    grey = pixels[..., 0]
    clear = np.dstack([pixels, grey])
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "camera", 0x0131: "software", 0x011A: 72.5})
    files = [fixtures.cmyk_jpeg(pixels), fixtures.encode(clear, "TIFF")]
    files += [fixtures.encode(pixels, form) for form in ("GIF", "BMP", "PPM")]
    files += [fixtures.encode(pixels, form, exif=exif) for form in ("JPEG", "PNG", "WEBP", "TIFF")]
    files += [
        fixtures.encode(pixels, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate")
    ]
    files.append(fixtures.encode(pixels, "JPEG", progressive=True))
    files += [fixtures.encode(one) for one in (grey, clear, grey.astype(np.uint16) * 257, clear[..., 2:])]
    for mode, options in (("P", {"transparency": 3}), ("1", {})):
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "PNG", **options)
        files.append(buffer.getvalue())
    return files


def _refused(do: Callable, *arguments) -> None:
    """Does something that may be refused, in one line, before the rest of a case."""
    try:
        do(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and str(error)


# --- files of data sets and runs -----------------------------------------------------------------


def shards(folder: Path) -> Case:
    """A TFRecord shard: bytes of the file, or of records with good checksums."""
    tf.get_logger().setLevel("ERROR")  # as the tool does
    info = fixtures.numbered_dataset(folder / "data", [6, 5])
    shard = info.splits["train"].shards[0]
    whole = shard.read_bytes()
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(shard))]

    def case(chance: random.Random) -> None:
        if chance.random() < 0.5:
            shard.write_bytes(damaged(whole, chance))
        else:
            changed = list(records)
            changed[chance.randrange(len(changed))] = damaged(chance.choice(records), chance)
            with tf.io.TFRecordWriter(str(shard)) as writer:
                for record in changed:
                    writer.write(record)
        _refused(verify.verify, info.directory, True)
        _refused(data.has_labels, info, "train")
        for _ in data.labelled_batches(info, "train", 4):
            pass

    return case


def _copied(source: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(source, place))


def archives(folder: Path) -> Case:
    """.npz files: weights, samples and statistics."""
    weights, samples, statistics = (folder / f"{name}.npz" for name in ("weights", "samples", "statistics"))
    write_arrays(weights, {"a/kernel": np.ones((3, 4), np.float32), "a/bias": np.zeros(4, np.float32)})
    images.write_samples(samples, [np.zeros((3, 8, 8, 3), np.uint8)], (3, 8, 8, 3), np.arange(3))
    write_arrays(
        statistics, {"mu": np.zeros(4), "sigma": np.eye(4), "what": np.array("{}"), "count": np.array(3)}
    )
    whole = {path: path.read_bytes() for path in (weights, samples, statistics)}

    detector = Detector("inception", "", "", {}, lambda batch: (np.zeros((len(batch), 4)), None, None))

    def case(chance: random.Random) -> None:
        path = chance.choice(list(whole))
        path.write_bytes(damaged_npz(whole[path], chance))
        if path == weights:
            read_arrays(path)
        elif path == samples:
            _refused(images.samples_shape, path)
            for batch in images.read_samples(path):
                assert batch.dtype == np.uint8 and batch.ndim == 4
        else:
            references._of_statistics(detector, path, False, lambda count: None)

    return case


def checkpoints(folder: Path) -> Case:
    """Checkpoints of a run, its averages and what is beside them."""
    from pdm_tf.training.checkpoints import Checkpoints
    from pdm_tf.training.ema import ExponentialMovingAverage

    variables = [tf.Variable(np.arange(6.0, dtype=np.float32), name="a"), tf.Variable([[1.0]], name="b")]
    state = tf.train.Checkpoint(a=variables[0], b=variables[1])

    def keeping(run: RunFolder) -> Checkpoints:
        return Checkpoints(run, state, ExponentialMovingAverage(variables, 0.9, lengths=(0.1,)), 2)

    source = RunFolder(folder / "run")
    for step in (1, 2):
        keeping(source).save(step)

    def case(chance: random.Random) -> None:
        place = _copied(source.path, folder / "copy")
        files = sorted(path for path in place.rglob("*") if path.is_file())
        for path in chance.sample(files, chance.choice((1, 1, 2, len(files)))):
            kind = chance.random()
            if kind < 0.1:
                path.unlink()
            elif path.suffix == ".json":
                path.write_bytes(damaged_json(path.read_text(), chance))
            else:
                path.write_bytes(damaged(path.read_bytes(), chance))
        step = keeping(RunFolder(place)).restore_newest()
        assert step in (1, 2)

    return case


DOORS = {door.__name__: door for door in (image_files, shards, archives, checkpoints)}
