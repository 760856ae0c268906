"""Each tool on its archive in the form in which it is published."""

from __future__ import annotations

import gzip
import io
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_tools import fashion_mnist, ffhq, geometry, image_folder, imagenet, lsun, verify
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError
from tests.data import fixtures

PICTURE = fixtures.encode(fixtures.natural_image(0, 8, 8))


def read(directory, split="train+validation"):
    """All (image uint8, label or None) of a split, as TFDS itself reads them."""
    if split not in ("train", "validation"):
        split = "+".join(describe_directory(directory).splits)
    dataset = tfds.builder_from_directory(directory).as_dataset(split=split)
    return [(e["image"], e.get("label")) for e in dataset.as_numpy_iterator()]


def same_images(found, expected):
    """Compares two lists of pixel arrays as sets."""
    found = sorted(np.ascontiguousarray(x).tobytes() for x in found)
    return found == sorted(np.ascontiguousarray(x).tobytes() for x in expected)


def run(tool, source, tmp_path, *more):
    tool.main(["--input", str(source), "--output", str(tmp_path / "out"), "--workers", "2", *more])
    return describe_directory(tmp_path / "out")


# --- LSUN ----------------------------------------------------------------------------------------


def test_lsun(tmp_path):
    raw = tmp_path / "church_outdoor_train_lmdb"
    entries = fixtures.make_lsun(raw, 20)
    more = ["--resolution", "16", "--validation_fraction", "0.2", "--shard_mb", "1e-7"]
    info = run(lsun, raw, tmp_path, *more)
    assert info.num_examples == {"train": 16, "validation": 4} and info.num_classes == 0
    assert len(info.splits["train"].shards) > 2
    expected = []
    for data in entries:
        image = Image.open(io.BytesIO(data)).crop((5, 0, 45, 40))
        expected.append(np.asarray(image.resize((16, 16), Image.Resampling.BOX)))
    assert same_images([image for image, _ in read(tmp_path / "out")], expected)
    assert verify.verify(tmp_path / "out", decode=True) == []


def test_lsun_archive_cut_short(tmp_path):
    raw = tmp_path / "lmdb"
    fixtures.make_lsun(raw, 20)
    # LMDB's file is sparse up to its map; what was written is what a download would hold.
    os.truncate(raw / "data.mdb", 20000)
    with pytest.raises(UserError, match=r"data.mdb is cut short: 20000 bytes of \d+; fetch"):
        run(lsun, raw, tmp_path)
    (raw / "data.mdb").write_bytes(b"no lmdb" * 1000)
    lsun.open_lmdb.cache_clear()
    with pytest.raises(UserError, match=r"no LMDB that can be read"):
        run(lsun, raw, tmp_path)


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
    info = run(imagenet, path, tmp_path, *more)
    assert info.label_names == ("n00000000", "n00000001", "n00000002")
    assert info.num_examples == {"train": 9, "validation": 3}
    found = read(tmp_path / "out")
    for label, wnid in enumerate(info.label_names):
        expected = [
            np.asarray(geometry.resize_then_crop(Image.open(io.BytesIO(f)).convert("RGB"), 20, 20))
            for f in files[wnid]
        ]
        assert same_images([image for image, number in found if number == label], expected)


def test_imagenet_archives_that_are_cut_or_damaged(tmp_path, imagenet_tar):
    path, _ = imagenet_tar
    whole = path.read_bytes()
    with open(path, "rb") as file:
        classes = list(imagenet.members(file, 0, len(whole), "tar"))
        begin, size = classes[1].offset_data, classes[1].size
        inner = list(imagenet.members(file, begin, begin + size, "inner"))
    damages = [whole[:end] for end in (len(whole) // 20, len(whole) // 2, classes[-1].offset)]
    for header in (classes[1].offset, inner[2].offset):
        damages.append(whole[: header + 5] + bytes([whole[header + 5] ^ 1]) + whole[header + 6 :])
    for damaged in damages:
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cut short or damaged; fetch it again"):
            run(imagenet, path, tmp_path, "--classes", "3")


# --- FFHQ ----------------------------------------------------------------------------------------


def test_ffhq_folder_and_tfrecords_give_the_same_pixels(tmp_path):
    expected = fixtures.make_ffhq_folder(tmp_path / "images1024x1024", 6, 32)
    fixtures.make_ffhq_tfrecords(tmp_path / "ffhq-r05.tfrecords", expected)
    for source in ("images1024x1024", "ffhq-r05.tfrecords"):
        place = tmp_path / f"from_{source}"
        info = run(ffhq, tmp_path / source, place, "--resolution", "32", "--validation_fraction", "0")
        assert same_images([image for image, _ in read(place / "out")], expected)
        assert info.num_examples == {"train": 6}
    with pytest.raises(UserError, match=r"is 32x32; pass --resolution=32"):
        run(ffhq, tmp_path / "images1024x1024", tmp_path)


def test_ffhq_damaged_tfrecords(tmp_path):
    path = tmp_path / "ffhq-r04.tfrecords"
    fixtures.make_ffhq_tfrecords(path, [fixtures.natural_image(n, 16, 16) for n in range(4)])
    size = path.stat().st_size
    fixtures.flip_byte(path, size // 4 + 100)  # a pixel of the second image
    with pytest.raises(UserError, match=r"cannot read ffhq-r04.tfrecords: record 1 \(.*damaged"):
        run(ffhq, path, tmp_path, "--resolution", "16")
    os.truncate(path, size - 1)
    with pytest.raises(UserError, match=r"cut short or damaged at record 3"):
        run(ffhq, path, tmp_path, "--resolution", "16")


# --- any folder ----------------------------------------------------------------------------------


def convert_folder(tmp_path, files, *more):
    fixtures.make_folder(tmp_path / "in", files)
    info = run(image_folder, tmp_path / "in", tmp_path, "--validation_fraction", "0", *more)
    return info, read(tmp_path / "out")


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
        "dogs, 2/f.png": fixtures.encode(clear),
        "dogs, 2/g.gif": fixtures.encode(np.full((30, 40), 255, np.uint8), "GIF"),
        "dogs, 2/notes.txt": b"no image",
        "dogs, 2/h.jpeg": fixtures.cmyk_jpeg(np.full((30, 40, 3), 255, np.uint8)),
        "__MACOSX/0.png": PICTURE,
    }
    info, found = convert_folder(tmp_path, files, "--labels", "--background", "#ffffff")
    printed = capsys.readouterr()
    assert printed.out.startswith("2 classes (images): 0 cats (5), 1 dogs, 2 (3)\n")
    assert "in: 8 images; left out: 1 .txt, 1 hidden or system\n" in printed.err
    assert info.label_names == ("cats", "dogs, 2") and info.image_shape == (30, 40, 3)
    assert same_images([image for image, label in found if label == 0], [pixels] * 5)
    dogs = [image for image, label in found if label == 1]
    assert len(dogs) == 3 and min(image.min() for image in dogs) >= 254


def test_classes_that_are_whole_numbers_are_in_the_numbers_order(tmp_path):
    for names in (["007", "08", "9", "10", "11"], ["1", "10", "2", "x"]):
        folder = tmp_path / names[0]
        fixtures.make_folder(folder, {f"{name}/0.png": PICTURE for name in names})
        items, classes = image_folder.list_items(folder, labels=True)
        assert classes == names
        assert all(classes[item.label] == item.name.split("/")[0] for item in items)


@pytest.mark.parametrize("crop", ["center", "stretch"])
def test_image_folder_to_a_size_that_is_not_square(tmp_path, crop):
    black_white_black = np.zeros((40, 120, 3), np.uint8)
    black_white_black[:, 40:80] = 255
    files = {"a.png": fixtures.encode(black_white_black)}
    _, ((image, _),) = convert_folder(tmp_path, files, "--resolution", "20x10", "--crop", crop)
    assert image.shape == (20, 10, 3)
    assert image[:, 4:6].min() > 250
    assert image[:, 0].max() > 250 if crop == "center" else image[:, 0].max() < 5


def test_image_folder_refuses_what_it_cannot_do(tmp_path):
    files = {"a\nb/a.png": PICTURE, "c/b.png": fixtures.encode(np.zeros((9, 8), np.uint8))}
    fixtures.make_folder(tmp_path / "in", files)
    for more, message in [
        ([], r"^c/b.png is 9x8, the first image 8x8: pass --resolution"),
        (["--on_error", "skip"], r"^c/b.png is 9x8, the first image 8x8: pass --resolution"),
        (["--output", str(tmp_path / "in")], r"is the folder of images itself: name another$"),
        (["--channels", "4", "--encoding", "jpeg"], r"--channels=4 needs --encoding=png"),
        (["--resolution", "8", "--labels"], r"the class name 'a\\nb' has .*: rename it$"),
    ]:
        with pytest.raises(UserError, match=message):
            run(image_folder, tmp_path / "in", tmp_path, *more)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there are no images"):
        run(image_folder, tmp_path / "empty", tmp_path)


def test_a_large_scan_is_let_in_by_the_flag_that_its_refusal_names(tmp_path):
    files = {"a.png": fixtures.encode(np.zeros((1000, 1200), np.uint8))}
    with pytest.raises(UserError, match=r"1200000 pixels\) exceeds .*: let it in with --max_megapixels"):
        convert_folder(tmp_path, files, "--max_megapixels", "1", "--resolution", "8")
    convert_folder(tmp_path, files, "--max_megapixels", "1.2", "--resolution", "8")


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_kept(tmp_path, channels):
    pixels = np.dstack([fixtures.natural_image(0, 10, 12), np.full((10, 12), 77, np.uint8)])
    pixels = pixels[..., 0] if channels == 1 else pixels
    files = {"a.png": fixtures.encode(pixels), "b.png": fixtures.encode(pixels)}
    if channels == 1:
        files["b.png"] = fixtures.encode(pixels.astype(np.uint16) * 257)
    info, found = convert_folder(tmp_path, files, "--channels", str(channels))
    assert info.image_shape == (10, 12, channels)
    assert same_images([image for image, _ in found], [pixels] * 2)


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
    info = run(fashion_mnist, folder, tmp_path)
    assert info.image_shape == (32, 32, 1) and info.num_classes == 10
    assert info.num_examples == {"train": 12, "validation": 2}
    found = read(tmp_path / "out")
    for label in range(10):
        inner = [image[2:30, 2:30, 0] for image, number in found if number == label]
        assert same_images(inner, images[labels == label])
    margins = np.array([image for image, _ in found])
    margins[:, 2:30, 2:30] = 0
    assert not margins.any()


def test_a_damaged_fashion_mnist(tmp_path, fashion):
    path = fashion[0] / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for damaged, message in {
        whole[:-20]: r"cannot read \S*train-images-idx3-ubyte.gz \(",
        gzip.compress(gzip.decompress(whole)[:-1]): r"no IDX file of 9,408 bytes, or is damaged",
    }.items():
        path.write_bytes(damaged)
        fashion_mnist.read_idx.cache_clear()
        with pytest.raises(UserError, match=message):
            run(fashion_mnist, fashion[0], tmp_path)
    with pytest.raises(UserError, match=r"No such file.*install the Debian package"):
        run(fashion_mnist, tmp_path / "none", tmp_path)
