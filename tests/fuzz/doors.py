"""The doors: each makes what it needs in a folder, and answers a function of a case's random numbers.

That function ends when the program has taken a case, and raises UserError when it has refused it. Anything
else that it raises is a mistake of the program's.
"""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from data_tools import convert, image_folder, verify
from pdm_tf import data, images
from pdm_tf.config.fields import Config
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


def metadata(folder: Path) -> Case:
    """What lies beside the shards, as TFDS and data_tools leave it."""
    source = _converted(folder)

    def case(chance: random.Random) -> None:
        place = _copied(source, folder / "copy")
        file = place / chance.choice(
            ("dataset_info.json", "features.json", "label.labels.txt", convert.MANIFEST)
        )
        change = damaged_json if file.suffix == ".json" else damaged
        file.write_bytes(change(file.read_text() if file.suffix == ".json" else file.read_bytes(), chance))
        _refused(verify.verify, place, False)
        info = data.find_dataset(f"folder:{place}", "data")
        for split in info.splits:
            for _ in data.labelled_batches(info, split, 4):
                pass
        if chance.random() < 0.2:
            _make(folder, place)

    return case


def _converted(folder: Path) -> Path:
    pictures = [fixtures.encode(fixtures.numbered_image(n)) for n in range(8)]
    files = {f"{name}/{n}.png": data for n, data in enumerate(pictures) for name in ("cat", "dog")}
    fixtures.make_folder(folder / "in", files)
    _make(folder, folder / "data")
    return folder / "data"


def _make(folder: Path, output: Path) -> None:
    image_folder.main([
        "--input", str(folder / "in"), "--output", str(output), "--labels", "--workers", "1",
        "--validation_fraction", "0.25",
    ])  # fmt: skip


def _copied(source: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(source, place))


def configs(folder: Path) -> Case:
    """config.json of a run."""
    from tests.tiny_runs import tiny_config

    run = RunFolder(folder)
    text = tiny_config().to_json()

    def case(chance: random.Random) -> None:
        run.config_file.write_bytes(damaged_json(text, chance))
        config = run.config()
        assert Config.from_json(config.to_json()) == config
        from pdm_tf.models import Model

        Model.from_folders(folder)

    return case


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


# --- command lines -------------------------------------------------------------------------------


ODD = (
    "", " ", "0", "1", "-1", "3", "0.5", "1e3", "1e400", "nan", "inf", "-0", "0x10", "٣", "9" * 30, "true",
    "None", "a\nb", "é", "e\u0301", "\udcff", "x" * 5000, "..", "/", ".", "~", "~nobody/x", "/dev/null",
    "/proc/self/mem", "lr[3e-4]", "lr=3e-4,bs=4", "a,b", ",", "a\\b", "%s", "{}", "*", "gs://", "s3://x/y",
    "file:///x", "-", "--", "'", "run", "run,run", "run/", "data", "folder:data", "folder:", "folder:run",
    "tfds:", "tfds:x/y:1", "image.png", "samples.npz", "cat", "0,1", "#0", "1,,2", "ddim", "auto", "cpu",
    "sampling.steps=3", "training.steps=0", "=",
)  # fmt: skip


NAMES = (
    "run", "run,run", "run/", "emoji64", "folder:data", "data", "image.png", "samples.npz", "cat", "0,1",
    "#0", "train", "validation", "new", "10", "5,5", "x", "efficientnet_lite0",
)  # fmt: skip


def command_lines(folder: Path) -> Case:
    """Flags with odd values, in all modes, through the parser and all that is checked before any compute."""

    import main
    from pdm_tf.config.fields import Config
    from pdm_tf.config.words import leaves
    from tests.tiny_runs import write_run

    os.chdir(folder)
    write_run(folder / "run")
    _converted(folder)
    (folder / "image.png").write_bytes(fixtures.encode(fixtures.natural_image(0, 16, 16)))
    images.write_samples("samples.npz", [np.zeros((3, 16, 16, 3), np.uint8)], (3, 16, 16, 3), None)
    _stop_before_compute()
    flags = {mode: leaves(main.options_of(mode)) for mode in main.MODES}
    flags_of_all = {name: leaf for own in flags.values() for name, leaf in own.items()}

    def case(chance: random.Random) -> None:
        mode = chance.choice(main.MODES)
        line = [f"--mode={mode}" if chance.random() < 0.97 else f"--mode={chance.choice(ODD)}"]
        if mode not in ("train", "describe") and chance.random() < 0.8:
            line.append("--run_dir=run")
        for _ in range(chance.randint(1, 3)):
            known = flags[mode] if chance.random() < 0.97 else flags_of_all
            name = chance.choice(list(known))
            value = _word(_kind_name(known[name]), known[name].rule.choices, chance)
            if name == "set":
                key, leaf = chance.choice(list(leaves(Config).items()))
                value = f"{key}={_word(_kind_name(leaf), leaf.rule.choices, chance)}"
            line.append(f"--{name}={value}" if chance.random() < 0.98 else chance.choice(ODD))
        os.environ["TF_CONFIG"] = chance.choice(ODD) if chance.random() < 0.1 else ""
        _one_command(main, line)

    return case


def _kind_name(leaf) -> str:
    return getattr(leaf.kind, "__name__", "tuple")


def _word(kind: str, choices: Sequence[str], chance: random.Random) -> str:
    """A value of a flag, as likely one of its kind as an odd one."""
    if chance.random() < 0.4:
        return chance.choice(ODD)
    if choices:
        return chance.choice(choices)
    kinds = {"int": ("1", "2", "8", "500"), "float": ("0.5", "1", "0.05"), "bool": ("true", "false")}
    kinds["tuple"] = ("1", "1,2", "32,32,3", "")
    return chance.choice(kinds.get(kind, NAMES))


class Reached(BaseException):
    """All was checked: what comes now is computed."""


def _stop_before_compute() -> None:
    """Everything that computes raises `Reached` instead."""
    from pdm_tf import devices
    from pdm_tf.commands import analyze, describe, evaluate, export, page

    def reached(*_, **__):
        raise Reached

    devices.make_strategy = describe.describe_network = analyze.analyze = page.Studio = reached
    export.use_asked_average = export.export_weights = references.of_split = references.of_path = reached
    load, loaded = evaluate.load_detector, []

    def load_once(name, inception):
        if (name, inception) != ("efficientnet_lite0", None):
            return load(name, inception)
        loaded[:] = loaded or [load(name, inception)]
        return loaded[0]

    evaluate.load_detector = load_once


def _one_command(main, line: list[str]) -> None:
    """Raises UserError with the line that the program ends with, if it ends with status 2."""
    import contextlib

    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            status = main.main(line)
    except Reached:
        return
    except Exception as error:
        error.args = (f"{line}: {error}",)
        raise
    if status:
        lines = err.getvalue().splitlines()
        assert status == 2 and lines, (line, status)
        assert lines[-1].startswith("error: ") and sum(text.startswith("error:") for text in lines) == 1, (
            line,
            lines,
        )
        raise UserError(lines[-1])


DOORS = {
    door.__name__: door
    for door in (
        image_files, shards, metadata, configs, archives, checkpoints, command_lines,
    )
}  # fmt: skip
