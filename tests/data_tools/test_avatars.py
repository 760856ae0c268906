"""Faces drawn by Node.js, and those that ship. Where there is no Node.js, what needs it is skipped."""

from __future__ import annotations

import random
import shutil

import numpy as np
import pytest
import tensorflow as tf

from data_tools import avatars, verify
from data_tools.shards import Item
from pdm_tf.data import describe_directory, find_dataset
from pdm_tf.errors import UserError
from pdm_tf.images import decode


@pytest.fixture(scope="module")
def packages():
    """The tool's own: fetched once for all."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs Node.js and npm")
    try:
        avatars.install(avatars.CACHE)
    except UserError as error:
        pytest.skip(f"needs Node.js and what npm fetches: {error}")
    return avatars.CACHE


def small(output, *more):
    """The arguments for 50 small faces, in several shards."""
    flags = ("--size", "32", "--count", "45", "--held_out", "5", "--workers", "2", "--shard_mb", "0.01")
    return [*flags, "--output", str(output), *more]


def encoded(info):
    """Split -> the encoded images and the labels, in the order of the shards."""
    found = {}
    for name, split in info.splits.items():
        found[name] = []
        for shard in split.shards:
            for record in tf.compat.v1.io.tf_record_iterator(str(shard)):
                feature = tf.train.Example.FromString(record).features.feature
                image, label = feature["image"].bytes_list, feature["label"].int64_list
                found[name].append((image.value[0], label.value[0]))
    return found


def test_a_small_set(tmp_path, packages):
    avatars.main(small(tmp_path / "set"))
    info = describe_directory(tmp_path / "set")
    assert info.name == "avatars32" and info.image_shape == (32, 32, 3)
    assert info.label_names == avatars.STYLES and info.num_examples == {"train": 45, "validation": 5}
    found = encoded(info)
    images, labels = zip(*found["train"], *found["validation"])
    assert len(set(images)) == 50 and sorted(np.bincount(labels)) == [5] * 4 + [6] * 5
    _, styles = avatars.list_items(packages, 9)
    card = (tmp_path / "set" / "README.md").read_text()
    for style, meta in styles.items():
        (row,) = [line for line in card.splitlines() if line.startswith(f"| `{style}`")]
        assert meta["creator"] in row and meta["license"]["url"] in row
        assert meta["license"]["name"] in ("CC0 1.0", "CC BY 4.0")
    assert "python -m data_tools.avatars --size 32 --count 45 --held_out 5 " in card


def test_a_face_is_a_function_of_its_name_at_any_size(packages):
    faces = [Item(f"{style}/0", None) for style in avatars.STYLES]
    small, large = (
        [np.asarray(avatars.load(face, packages=packages, size=size), np.float32) for face in faces]
        for size in (32, 128)
    )
    shrunk = [image.reshape(32, 4, 32, 4, 3).mean((1, 3)) for image in large]
    apart = np.array([[np.abs(a - b).mean() for a in small] for b in shrunk])
    # Drawn small, or drawn large and shrunk: the same face, and no other's.
    assert (apart.argmin(1) == np.arange(len(faces))).all() and apart.diagonal().max() < 4


def test_the_set_that_ships_is_what_the_tool_draws(packages):
    info = find_dataset("avatars64", "")
    items, _ = avatars.list_items(packages, sum(info.num_examples.values()))
    random.Random(0).shuffle(items)
    for (image, label), item in zip(encoded(info)["validation"][:20], items):
        drawn = avatars.load(item, packages=packages, size=64)
        assert item.label == label and np.array_equal(np.asarray(decode(image)), np.asarray(drawn)), item.name


def test_the_set_that_ships_needs_no_node(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    info = find_dataset("avatars64", "")
    assert info.num_examples == {"train": 4000, "validation": 400} and info.label_names == avatars.STYLES
    assert verify.verify(info.directory, decode=False) == []
    assert len({image for split in encoded(info).values() for image, _ in split}) == 4400


# --- without what it needs -----------------------------------------------------------------------


def test_without_node_or_npm_or_the_network(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    for name, line, message in (
        ("", "", r"there is no npm here: install it \(https://nodejs.org"),
        ("npm", "echo 'npm error network' >&2; exit 1", r"npm failed \(npm error network\); mend that"),
    ):
        if name:
            (programs / name).write_text(f"#!/bin/sh\n{line}\n")
            (programs / name).chmod(0o755)
        with pytest.raises(UserError, match=message):
            avatars.main(small(tmp_path / "set", "--packages", str(tmp_path / "packages")))
    assert not (tmp_path / "packages").exists() and not (tmp_path / "set").exists()


def test_node_ends_while_it_draws(packages):
    face = Item("lorelei/1", None)
    avatars._drawer.cache_clear()
    drawer = avatars._drawer(packages, 16)
    drawer.kill()
    drawer.wait()
    with pytest.raises(UserError, match=r"Node.js ended while it drew lorelei/1"):
        avatars.load(face, packages=packages, size=16)
    avatars._drawer.cache_clear()
