"""Images a second of the input pipeline, beside a PyTorch-style loader of image files.

    python -m benchmarks.data_pipeline [--sizes 64 256 1024] [--seconds 10] [--repeats 5]

Both read the same pictures, in the same encoding, with the same number of processes or cores: ours
from TFRecord through `pdm_tf.data.load_batches`, the peer from PNG or JPEG files with Pillow in worker
processes that hand batches over in shared memory, as torch's DataLoader does. A ratio is that of one turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.turns import in_turns, machine, with_range
from data_tools import image_folder
from pdm_tf.data import describe_directory, load_batches, naming_shards

# Enough pictures that none stays in a decoder's cache, few enough to make in a minute.
COUNTS = {64: 2048, 256: 512, 1024: 48}
BATCHES = {64: 64, 256: 32, 1024: 4}
WARM_UP_BATCHES = 4


def natural_image(seed: int, size: int) -> np.ndarray:
    """uint8 RGB whose spectrum falls as photographs' do, and so compresses and decodes as they do."""
    random = np.random.RandomState(seed)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    planes = []
    shared = np.fft.rfft2(random.normal(size=(size, size)))
    for _ in range(3):
        channel = np.fft.rfft2(random.normal(size=(size, size)))
        planes.append(np.fft.irfft2((shared + 0.3 * channel) / frequency**1.3, s=(size, size)))
    image = np.stack(planes, -1)
    image = (image - image.mean()) / image.std() * 55 + 120
    return (image + random.normal(0, 1.5, image.shape)).clip(0, 255).astype(np.uint8)


def make_fixtures(folder: Path, size: int, encoding: str) -> tuple[list[Path], Path]:
    """Writes pictures to files and converts them; returns the paths and the data set's folder."""
    files, output = folder / "files", folder / "set"
    files.mkdir()
    paths = []
    for n in range(COUNTS[size]):
        paths.append(files / f"{n:05d}.{'jpg' if encoding == 'jpeg' else 'png'}")
        options = {"quality": 95, "subsampling": 0} if encoding == "jpeg" else {}
        Image.fromarray(natural_image(n, size)).save(paths[-1], **options)
    shared = ["--workers", "2", "--validation_fraction", "0", "--shard_mb", "10"]
    with contextlib.redirect_stdout(io.StringIO()):
        image_folder.main(["--input", str(files), "--output", str(output), "--encoding", encoding, *shared])
    return paths, output


def read_file(path: Path, flip: bool) -> np.ndarray:
    """An image file -> float32 CHW in [-1, 1], as a PyTorch data set's __getitem__ does it."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32)
    if flip:
        pixels = pixels[:, ::-1]
    return pixels.transpose(2, 0, 1) / 127.5 - 1


def _fill_slot(job: tuple[str, int, list[Path], int]) -> int:
    name, slot, paths, size = job
    memory = shared_memory.SharedMemory(name)
    shape = (len(paths), 3, size, size)
    offset = slot * int(np.prod(shape)) * 4
    batch = np.ndarray(shape, np.float32, memory.buf, offset)
    for n, path in enumerate(paths):
        batch[n] = read_file(path, flip=n % 2 == 0)
    del batch
    memory.close()
    return slot


def process_batches(paths: list[Path], batch: int, workers: int, size: int) -> Iterator[np.ndarray]:
    """Endless batches of a loader shaped like torch's.

    A worker makes a whole batch, two batches ahead for each worker, and hands it over in shared memory.
    """
    slots = 2 * workers + 1
    shape = (batch, 3, size, size)
    length = int(np.prod(shape)) * 4
    memory = shared_memory.SharedMemory(create=True, size=slots * length)
    random = np.random.RandomState(0)

    def jobs(slot: int):
        chosen = random.choice(len(paths), batch, replace=False)
        return memory.name, slot, [paths[i] for i in chosen], size

    context = multiprocessing.get_context("spawn")
    try:
        with context.Pool(workers) as pool:
            pending = [pool.apply_async(_fill_slot, (jobs(slot),)) for slot in range(slots - 1)]
            free = slots - 1
            while True:
                slot = pending.pop(0).get()
                pending.append(pool.apply_async(_fill_slot, (jobs(free),)))
                yield np.ndarray(shape, np.float32, memory.buf, slot * length)
                free = slot
    finally:
        memory.unlink()


def images_per_second(batches: Iterable, batch: int, seconds: float) -> float:
    """Takes batches for `seconds`, after a few to fill the queues."""
    iterator = iter(batches)
    for _ in range(WARM_UP_BATCHES):
        next(iterator)
    begin = time.perf_counter()
    taken = 0
    while time.perf_counter() - begin < seconds:
        next(iterator)
        taken += 1
    return taken * batch / (time.perf_counter() - begin)


def measure(size: int, encoding: str, seconds: float, repeats: int, workers: int) -> str:
    """One line of the table."""
    batch = BATCHES[size]
    with tempfile.TemporaryDirectory(prefix="data_pipeline_") as folder:
        paths, output = make_fixtures(Path(folder), size, encoding)
        info = describe_directory(output)
        kilobytes = sum(os.path.getsize(path) for path in paths) / len(paths) / 1e3

        def ours() -> float:
            batches = load_batches(info, split="train", batch_size=batch, seed=0, horizontal_flip=True)
            return images_per_second(batches, batch, seconds)

        def peer() -> float:
            with contextlib.closing(process_batches(paths, batch, workers, size)) as batches:
                return images_per_second(batches, batch, seconds)

        with naming_shards():
            rates = in_turns({"ours": ours, "peer": peer}, repeats)
    return (
        f"{size:5} {encoding:>5} {kilobytes:8.1f} {batch:6} {np.median(rates['ours']):10.1f} "
        f"{np.median(rates['peer']):10.1f}   {with_range(rates['ours'] / rates['peer'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", choices=sorted(COUNTS), default=[*COUNTS])
    parser.add_argument("--encodings", nargs="+", choices=("png", "jpeg"), default=["png", "jpeg"])
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="processes of the peer")
    arguments = parser.parse_args()
    print(f"{machine()}; peer: worker processes, shared memory")
    print(" size   enc  KB/file  batch  ours img/s peer img/s    ratio  (min to max)")
    for size in arguments.sizes:
        for encoding in arguments.encodings:
            print(
                measure(size, encoding, arguments.seconds, arguments.repeats, arguments.workers), flush=True
            )


if __name__ == "__main__":
    main()
