"""Each tool on its archive in the form in which it is published."""

from __future__ import annotations

import gzip
import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_tools import fashion_mnist, ffhq, geometry, image_folder, imagenet, lsun, verify
from data_tools.shards import Encoder, Item, Task, write_shard
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError
from pdm_tf.images import ImageError
from tests.data import fixtures


def read(directory, split="train"):
    """All (image uint8, label or None) of a split, as TFDS itself reads them."""
    dataset = tfds.builder_from_directory(directory).as_dataset(split=split)
    return [(e["image"], e.get("label")) for e in dataset.as_numpy_iterator()]


def read_all(directory):
    info = describe_directory(directory)
    return [found for split in info.splits for found in read(directory, split)]


def same_images(found, expected):
    """Compares two lists of pixel arrays as sets."""
    found = sorted(np.ascontiguousarray(x).tobytes() for x in found)
    return found == sorted(np.ascontiguousarray(x).tobytes() for x in expected)


def common(tmp_path, *more):
    return ["--output", str(tmp_path / "out"), "--workers", "2", *more]


# --- LSUN ----------------------------------------------------------------------------------------


def test_lsun(tmp_path):
    raw = tmp_path / "church_outdoor_train_lmdb"
    entries = fixtures.make_lsun(raw, 20)
    more = ["--resolution", "16", "--validation_fraction", "0.2", "--shard_mb", "0.004"]
    lsun.main(["--input", str(raw), *common(tmp_path, *more)])
    info = describe_directory(tmp_path / "out")
    assert info.num_examples == {"train": 16, "validation": 4} and info.num_classes == 0
    assert len(info.splits["train"].shards) > 2
    expected = []
    for data in entries:
        image = Image.open(io.BytesIO(data)).crop((5, 0, 45, 40))
        expected.append(np.asarray(image.resize((16, 16), Image.Resampling.BOX)))
    assert same_images([image for image, _ in read_all(tmp_path / "out")], expected)
    assert verify.verify(tmp_path / "out", decode=True) == []


def test_lsun_archive_cut_short(tmp_path):
    raw = tmp_path / "lmdb"
    fixtures.make_lsun(raw, 20)
    path = raw / "data.mdb"
    # LMDB's file is sparse up to its map; what was written is what a download would hold.
    with pytest.raises(UserError, match=r"data.mdb is cut short: 20000 bytes of \d+; fetch"):
        os.truncate(path, 20000)
        lsun.main(["--input", str(raw), *common(tmp_path)])
    path.write_bytes(b"no lmdb" * 1000)
    lsun.open_lmdb.cache_clear()
    with pytest.raises(UserError, match=r"no LMDB that can be read"):
        lsun.main(["--input", str(raw), *common(tmp_path)])
    with pytest.raises(UserError, match=r"holds no data.mdb; unzip"):
        lsun.main(["--input", str(tmp_path), *common(tmp_path)])


# --- ImageNet ------------------------------------------------------------------------------------


@pytest.fixture
def imagenet_tar(tmp_path):
    files = fixtures.imagenet_images(classes=3, each=4)
    path = tmp_path / "ILSVRC2012_img_train.tar"
    fixtures.make_imagenet(path, files)
    return path, files


def test_imagenet(tmp_path, imagenet_tar):
    path, files = imagenet_tar
    more = ["--classes", "3", "--resolution", "20", "--validation_fraction", "0.25"]
    imagenet.main(["--input", str(path), *common(tmp_path, *more)])
    info = describe_directory(tmp_path / "out")
    assert info.label_names == ("n00000000", "n00000001", "n00000002")
    assert info.num_examples == {"train": 9, "validation": 3}
    found = read_all(tmp_path / "out")
    for label, wnid in enumerate(info.label_names):
        expected = [
            np.asarray(geometry.resize_then_crop(Image.open(io.BytesIO(f)).convert("RGB"), 20, 20))
            for f in files[wnid]
        ]
        assert same_images([image for image, number in found if number == label], expected)


def test_imagenet_with_fewer_classes_than_expected(tmp_path, imagenet_tar):
    with pytest.raises(UserError, match=r"holds 3 classes, not 1000.*--classes=3"):
        imagenet.main(["--input", str(imagenet_tar[0]), *common(tmp_path)])


@pytest.mark.parametrize("part", [0.05, 0.5, 0.75])
def test_imagenet_archive_cut_short(tmp_path, imagenet_tar, part):
    os.truncate(imagenet_tar[0], int(imagenet_tar[0].stat().st_size * part))
    with pytest.raises(UserError, match=r"is cut short or damaged; fetch it again"):
        imagenet.main(["--input", str(imagenet_tar[0]), *common(tmp_path, "--classes", "3")])


def test_imagenet_archive_cut_between_two_classes(tmp_path, imagenet_tar):
    with open(imagenet_tar[0], "rb") as file:
        last = list(imagenet.members(file, 0, imagenet_tar[0].stat().st_size, "tar"))[-1]
    os.truncate(imagenet_tar[0], last.offset)
    with pytest.raises(UserError, match=r"is cut short or damaged"):
        imagenet.main(["--input", str(imagenet_tar[0]), *common(tmp_path, "--classes", "2")])


def test_imagenet_damaged_headers(tmp_path, imagenet_tar):
    path, _ = imagenet_tar
    with open(path, "rb") as file:
        classes = list(imagenet.members(file, 0, path.stat().st_size, "tar"))
        begin, size = classes[1].offset_data, classes[1].size
        inner = list(imagenet.members(file, begin, begin + size, "inner"))
    for header in (classes[1].offset, inner[2].offset):
        fixtures.flip_byte(path, header + 5)
        with pytest.raises(UserError, match=r"cut short or damaged"):
            imagenet.main(["--input", str(path), *common(tmp_path, "--classes", "3")])
        fixtures.flip_byte(path, header + 5)


def test_imagenet_given_another_tar(tmp_path, imagenet_tar):
    fixtures.make_imagenet(tmp_path / "x.tar", {"validation": [b"1"]})
    with pytest.raises(UserError, match=r"holds validation.tar, not nXXXXXXXX.tar"):
        imagenet.main(["--input", str(tmp_path / "x.tar"), *common(tmp_path)])
    with pytest.raises(UserError, match=r"there is no file .*none.tar"):
        imagenet.main(["--input", str(tmp_path / "none.tar"), *common(tmp_path)])


# --- FFHQ ----------------------------------------------------------------------------------------


def test_ffhq_folder_and_tfrecords_give_the_same_pixels(tmp_path):
    expected = fixtures.make_ffhq_folder(tmp_path / "images1024x1024", 6, 32)
    fixtures.make_ffhq_tfrecords(tmp_path / "ffhq-r05.tfrecords", expected)
    for source in ("images1024x1024", "ffhq-r05.tfrecords"):
        output = tmp_path / f"out_{source}"
        ffhq.main(
            [
                *("--input", str(tmp_path / source), "--output", str(output)),
                *("--resolution", "32", "--workers", "2", "--validation_fraction", "0"),
            ]
        )
        assert same_images([image for image, _ in read(output)], expected)
        assert describe_directory(output).num_examples == {"train": 6}


def test_ffhq_of_another_resolution(tmp_path):
    fixtures.make_ffhq_folder(tmp_path / "raw", 2, 32)
    with pytest.raises(UserError, match=r"is 32x32; pass --resolution=32"):
        ffhq.main(["--input", str(tmp_path / "raw"), *common(tmp_path)])
    with pytest.raises(UserError, match=r"neither a folder nor a file"):
        ffhq.main(["--input", str(tmp_path / "none"), *common(tmp_path)])


def test_ffhq_damaged_tfrecords(tmp_path):
    path = tmp_path / "ffhq-r04.tfrecords"
    fixtures.make_ffhq_tfrecords(path, [fixtures.natural_image(n, 16, 16) for n in range(4)])
    size = path.stat().st_size
    fixtures.flip_byte(path, size // 4 + 100)  # a pixel of the second image
    with pytest.raises(UserError, match=r"cannot read ffhq-r04.tfrecords: record 1 \(.*damaged"):
        ffhq.main(["--input", str(path), *common(tmp_path, "--resolution", "16")])
    os.truncate(path, size - 1)
    with pytest.raises(UserError, match=r"cut short or damaged at record 3"):
        ffhq.main(["--input", str(path), *common(tmp_path, "--resolution", "16")])


# --- any folder ----------------------------------------------------------------------------------


def test_image_folder_with_all_its_formats_and_labels(tmp_path, capsys):
    pixels = fixtures.natural_image(0, 30, 40)
    rotated = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = np.dstack([pixels, np.zeros((30, 40), np.uint8)])
    files = {
        "cats/a.png": fixtures.encode(pixels),
        "cats/b.bmp": fixtures.encode(pixels, "BMP"),
        "cats/c.WEBP": fixtures.encode(pixels, "WEBP", lossless=True),
        "cats/deep/d.jpg": fixtures.encode(pixels),  # a PNG by its contents
        "cats/e.png": fixtures.encode(np.asarray(rotated), exif=exif),
        "dogs/f.png": fixtures.encode(clear),
        "dogs/g.gif": fixtures.encode(np.full((30, 40), 255, np.uint8), "GIF"),
        "dogs/notes.txt": b"no image",
        "dogs/h.jpeg": fixtures.cmyk_jpeg(np.full((30, 40, 3), 255, np.uint8)),
    }
    fixtures.make_folder(tmp_path / "in", files)
    image_folder.main(
        [
            *("--input", str(tmp_path / "in"), "--labels", "--background", "#ffffff"),
            *common(tmp_path, "--validation_fraction", "0"),
        ]
    )
    assert "in: 8 images; left out: 1 .txt\n" in capsys.readouterr().err
    info = describe_directory(tmp_path / "out")
    assert info.label_names == ("cats", "dogs") and info.image_shape == (30, 40, 3)
    found = read(tmp_path / "out")
    assert same_images([image for image, label in found if label == 0], [pixels] * 5)
    dogs = [image for image, label in found if label == 1]
    assert len(dogs) == 3 and min(image.min() for image in dogs) >= 254


@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_image_folder_to_a_size_that_is_not_square(tmp_path, crop):
    black_white_black = np.zeros((40, 120, 3), np.uint8)
    black_white_black[:, 40:80] = 255
    fixtures.make_folder(
        tmp_path / "in",
        {"a.png": fixtures.encode(black_white_black), "b.png": fixtures.encode(black_white_black)},
    )
    more = ["--resolution", "20x10", "--crop", crop, "--validation_fraction", "0.5"]
    image_folder.main(["--input", str(tmp_path / "in"), *common(tmp_path, *more)])
    ((image, _),) = read(tmp_path / "out", "validation")
    assert image.shape == (20, 10, 3)
    assert image[:, 4:6].min() > 250
    assert image[:, 0].max() > 250 if crop == "center" else image[:, 0].max() < 5


def test_image_folder_refuses_what_it_cannot_do(tmp_path):
    source = tmp_path / "in"
    fixtures.make_folder(
        source,
        {
            "a.png": fixtures.encode(fixtures.natural_image(0, 8, 8)),
            "b.png": fixtures.encode(fixtures.natural_image(0, 9, 8)),
        },
    )
    for more, message in [
        ([], r"cannot read b.png \(the image is 9x8, the first one 8x8; pass --resolution"),
        (["--labels"], r"a.png lies in no sub-folder"),
        (["--resolution", "8y8"], r"--resolution=8y8: write a size"),
        (["--background", "whyte"], r"--background=whyte"),
        (["--validation_fraction", "1"], r"--validation_fraction=1.0"),
        (["--shard_mb", "0"], r"--shard_mb"),
        (["--jpeg_quality", "0"], r"--jpeg_quality"),
        (["--workers", "0"], r"--workers"),
    ]:
        with pytest.raises(UserError, match=message):
            image_folder.main(["--input", str(source), *common(tmp_path), *more])
    with pytest.raises(UserError, match=r"is no folder"):
        image_folder.main(["--input", f"{source}x", *common(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there are no images"):
        image_folder.main(["--input", str(tmp_path / "empty"), *common(tmp_path)])


def test_jpeg_encoding(tmp_path):
    pixels = fixtures.natural_image(0, 64, 64)
    fixtures.make_folder(tmp_path / "in", {"a.png": fixtures.encode(pixels)})
    more = ["--encoding", "jpeg", "--validation_fraction", "0"]
    image_folder.main(["--input", str(tmp_path / "in"), *common(tmp_path, *more)])
    assert describe_directory(tmp_path / "out").encoding == "jpeg"
    ((image, _),) = read(tmp_path / "out")
    assert 0 < np.abs(image.astype(int) - pixels).mean() < 4
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["plan"]["level_or_quality"] == 95


def convert_folder(tmp_path, files, *more):
    fixtures.make_folder(tmp_path / "in", files)
    image_folder.main(
        ["--input", str(tmp_path / "in"), *common(tmp_path, "--validation_fraction", "0", *more)]
    )
    return [image for image, _ in read(tmp_path / "out")]


def test_classes_are_what_is_no_system_s_and_are_told_before_the_work(tmp_path, capsys):
    picture = fixtures.encode(fixtures.natural_image(0, 8, 8))
    names = (".ipynb_checkpoints/0.png", "__MACOSX/0.png", "cat/0.png", "cat/._0.png", "Pepper,_bell/1.png")
    convert_folder(tmp_path, dict.fromkeys(names, picture), "--labels")
    assert describe_directory(tmp_path / "out").label_names == ("Pepper,_bell", "cat")
    told = capsys.readouterr()
    assert told.out.startswith("2 classes (images): 0 Pepper,_bell (1), 1 cat (1)\n")
    assert "in: 2 images; left out: 3 hidden or system\n" in told.err


@pytest.mark.parametrize("names", [["a\nb"], [" a"], ["b "], [os.fsdecode(b"caf\xe9")], ["é", "e\u0301"]])
def test_names_that_would_not_come_back_are_refused_before_the_first_shard(tmp_path, names):
    picture = fixtures.encode(fixtures.natural_image(0, 8, 8))
    with pytest.raises(UserError, match=r"rename (it|one)$"):
        convert_folder(tmp_path, {f"{name}/0.png": picture for name in names}, "--labels")
    assert not (tmp_path / "out").exists()


def test_any_error_of_one_image_is_refused_or_skipped_by_its_name(tmp_path, monkeypatch):
    """In this process, whose decoder can be made to fail; workers run the same code."""

    def load(item):
        if item.name == "1":
            raise AttributeError("'NoneType' object\nhas no attribute")
        return Image.new("RGB", (4, 4))

    items = [Item(str(n), None) for n in range(3)]
    encoder = Encoder(load, (4, 4, 3), on_error="skip")
    outcome = write_shard(Task("train", tmp_path / "a", tmp_path / "work", items), encoder)
    assert outcome["records"] == 2 and outcome["skipped"] == [["1", "'NoneType' object has no attribute"]]
    with pytest.raises(UserError, match=r"^cannot read 1 \('NoneType' object has no attribute\); mend it"):
        encoder._replace(on_error="fail").refuse_or_skip(*raised_by(encoder, items[1]))


def raised_by(encoder, item):
    with pytest.raises(ImageError) as caught:
        encoder.record(item)
    return item, caught.value


def test_a_large_scan_is_let_in_by_the_flag_that_its_refusal_names(tmp_path):
    files = {"a.png": fixtures.encode(np.zeros((1000, 1200), np.uint8))}
    small = ("--resolution", "8")
    for more in (small, ()):
        with pytest.raises(UserError, match=r"1200000 pixels\) exceeds .*: let it in with --max_megapixels"):
            convert_folder(tmp_path, files, "--max_megapixels", "1", *more)
    convert_folder(tmp_path, files, "--max_megapixels", "1.2", *small)
    with pytest.raises(UserError, match=r"--max_megapixels=0"):
        convert_folder(tmp_path, files, "--max_megapixels", "0")


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_kept(tmp_path, channels):
    pixels = np.dstack([fixtures.natural_image(0, 10, 12), np.full((10, 12), 77, np.uint8)])
    pixels = pixels[..., 0] if channels == 1 else pixels
    files = {"a.png": fixtures.encode(pixels), "b.png": fixtures.encode(pixels.astype(np.uint8))}
    if channels == 1:
        files["b.png"] = fixtures.encode(pixels.astype(np.uint16) * 257)
    found = convert_folder(tmp_path, files, "--channels", str(channels))
    assert describe_directory(tmp_path / "out").image_shape == (10, 12, channels)
    assert same_images(found, [pixels] * 2)
    with pytest.raises(UserError, match=r"--channels=4 needs --encoding=png"):
        convert_folder(tmp_path, files, "--channels", "4", "--encoding", "jpeg")


def test_grey_images_are_told_of_their_flag(tmp_path, capsys):
    convert_folder(tmp_path, {"a.png": fixtures.encode(np.zeros((8, 8), np.uint8))})
    assert "--channels=1 keeps them so" in capsys.readouterr().err


def test_a_file_of_another_kind_is_said_to_be_that(tmp_path):
    fixtures.make_imagenet(tmp_path / "tar", {"n00000000": [b"1"]})
    whole = {
        "zip": (b"PK\x03\x04" + bytes(100), "is an archive, or compressed: unpack it first"),
        "gzip": (b"\x1f\x8b\x08" + bytes(100), "is an archive, or compressed"),
        "page": (b"\n<!DOCTYPE html><html>Quota exceeded</html>" * 3, "is a web page"),
        "image": (fixtures.encode(np.zeros((8, 8), np.uint8)), "is a single image: give the folder"),
        "tar": ((tmp_path / "tar").read_bytes(), "is an archive, or compressed: unpack it first"),
        "empty": (b"", "is empty: fetch it again"),
    }
    for name, (data, message) in whole.items():
        (tmp_path / name).write_bytes(data)
        for tool in {ffhq, image_folder, imagenet} - ({imagenet} if name == "tar" else set()):
            with pytest.raises(UserError, match=rf"{name} {message}"):
                tool.main(["--input", str(tmp_path / name), *common(tmp_path)])


# --- Fashion-MNIST ---------------------------------------------------------------------------------


def write_idx(path, values):
    """An IDX file of unsigned bytes."""
    sizes = np.array(values.shape, ">u4").tobytes()
    data = bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def fashion(tmp_path):
    """The four files, as the package has them but for the test part's images, which are unpacked."""
    generator, folder = np.random.default_rng(0), tmp_path / "fashion"
    folder.mkdir()
    images = generator.integers(0, 256, (14, 28, 28), np.uint8)
    labels = np.arange(14, dtype=np.uint8) % 10
    for part, chosen, ending in (("train", slice(12), ".gz"), ("t10k", slice(12, 14), "")):
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images[chosen])
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels[chosen])
    fashion_mnist.read_idx.cache_clear()
    return folder, images, labels


def test_fashion_mnist(tmp_path, fashion):
    folder, images, labels = fashion
    fashion_mnist.main(["--input", str(folder), *common(tmp_path)])
    info = describe_directory(tmp_path / "out")
    assert info.image_shape == (32, 32, 1) and info.num_classes == 10
    assert info.num_examples == {"train": 12, "validation": 2}
    found = read_all(tmp_path / "out")
    for label in range(10):
        own = [image[2:30, 2:30, 0] for image, number in found if number == label]
        assert same_images(own, images[labels == label])
    margins = np.array([image for image, _ in found])
    margins[:, 2:30, 2:30] = 0
    assert not margins.any()


@pytest.mark.parametrize("damage, said", [
    (lambda data: data[:-20], r"cannot read \S*train-images-idx3-ubyte.gz \("),
    (lambda data: gzip.compress(gzip.decompress(data)[:-1]), r"no IDX file of 9,408 bytes, or is damaged"),
    (lambda data: b"<html>quota exceeded</html>", r"no IDX file|cannot read"),
    (lambda data: gzip.compress(bytes([0, 0, 8, 3]) + bytes(12)), r"that is no Fashion-MNIST"),
])  # fmt: skip
def test_a_damaged_fashion_mnist(tmp_path, fashion, damage, said):
    path = fashion[0] / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=said):
        fashion_mnist.main(["--input", str(fashion[0]), *common(tmp_path)])
    with pytest.raises(UserError, match=r"No such file.*install the Debian package"):
        fashion_mnist.main(["--input", str(tmp_path / "none"), *common(tmp_path)])
