"""What verify says of whole, damaged and lying data sets."""

from __future__ import annotations

import os

import pytest
import tensorflow as tf

from data_tools import image_folder, verify
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError
from tests.data import fixtures
from tests.data_tools.conversions import arguments, make_input


@pytest.fixture
def finished(tmp_path):
    image_folder.main(arguments(make_input(tmp_path), tmp_path / "out"))
    return describe_directory(tmp_path / "out")


def test_verify_names_what_is_damaged(finished, capsys):
    flipped, cut, removed, emptied = finished.splits["train"].shards[:4]
    size = os.path.getsize(cut)
    fixtures.flip_byte(flipped, 30)
    os.truncate(cut, size - 3)
    removed.unlink()
    os.truncate(emptied, 0)
    capsys.readouterr()
    with pytest.raises(UserError, match=r"^4 files .*remove them and run the command"):
        verify.main(["--input", str(finished.directory)])
    lines = {line.partition(": ")[0]: line for line in capsys.readouterr().err.splitlines()}
    length = finished.splits["train"].shard_lengths[1]
    assert "differs from the manifest; record 0 of" in lines[str(flipped)]
    assert f"has {size - 3} bytes, the manifest says {size}" in lines[str(cut)]
    assert f"record {length - 1} of {length} is damaged or cut off" in lines[str(cut)]
    assert "is missing" in lines[str(removed)]
    assert "has 0 bytes" in lines[str(emptied)] and "holds 0 records" in lines[str(emptied)]


def test_verify_of_damaged_metadata(finished):
    features = finished.directory / "features.json"
    features.write_text(features.read_text() + " ")
    assert verify.verify(finished.directory, decode=False) == [
        f"{features}: is missing or differs from the manifest"
    ]
    (finished.directory / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json cannot be read"):
        verify.verify(finished.directory, decode=False)
    with pytest.raises(UserError, match=r"holds no finished data set"):
        verify.verify(finished.directory.parent, decode=False)


def test_verify_without_a_manifest(tmp_path, capsys):
    info = fixtures.numbered_dataset(tmp_path, (4, 5))
    assert verify.verify(info.directory, decode=True) == []
    assert "there is no manifest" in capsys.readouterr().out
    first, second = info.splits["train"].shards
    fixtures.flip_byte(second, 40)
    with tf.io.TFRecordWriter(str(first)) as writer:
        writer.write(fixtures.example(fixtures.encode(fixtures.numbered_image(0)), 0))
    assert verify.verify(info.directory, decode=False) == [
        f"{first}: holds 1 records, 4 are promised",
        f"{second}: record 0 of 5 is damaged or cut off",
    ]
    with pytest.raises(UserError, match=r"^2 files .*prepare the data set again, as with tfds build"):
        verify.main(["--input", str(info.directory)])


def test_verify_decode_names_the_record_without_a_usable_image(tmp_path):
    good = fixtures.encode(fixtures.numbered_image(0))
    wrong = fixtures.encode(fixtures.numbered_image(0, 9, 9))
    shards = [[good, good[:70]], [good, good, wrong]]
    info = fixtures.write_shards(tmp_path, [[fixtures.example(data) for data in shard] for shard in shards])
    assert verify.verify(info.directory, decode=False) == []
    first, second = verify.verify(info.directory, decode=True)
    assert "00000-of-00002: record 1 of 2 holds no usable image" in first
    assert "00001-of-00002: record 2 of 3 holds no usable image (the image is 9x9)" in second
