"""Each tool on its archive in the form in which it is published."""

from __future__ import annotations

import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_tools import ffhq, geometry, image_folder, imagenet, lsun, verify
from flags.errors import UserError
from pdm_tf.data import describe_directory
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
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
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
