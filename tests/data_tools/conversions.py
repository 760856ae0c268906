"""Conversions of a folder of numbered images, and what came of them."""

from __future__ import annotations

from pathlib import Path

from pdm_tf.atomic import sha256
from tests.data import fixtures


def make_input(tmp_path: Path, count: int = 30, size: int = 24) -> Path:
    """A folder of numbered images."""
    files = {f"{n:04d}.png": fixtures.encode(fixtures.numbered_image(n, size, size)) for n in range(count)}
    fixtures.make_folder(tmp_path / "in", files)
    return tmp_path / "in"


def arguments(source: Path, output: Path, *more: str, shard_mb: str = "0.01") -> list[str]:
    """The command line of a conversion into several shards."""
    shared = ["--workers", "2", "--shard_mb", shard_mb, "--validation_fraction", "0.1"]
    return ["--input", str(source), "--output", str(output), *shared, *more]


def hashes(directory: Path) -> dict[str, str]:
    """Name -> SHA-256 of each file below a folder."""
    return {path.name: sha256(path) for path in directory.rglob("*") if path.is_file()}
