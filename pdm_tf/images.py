"""Images in and out of the program: 8 bits, grids, and the only reader and writer of image files."""

from __future__ import annotations

import collections
import contextlib
import io
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from pdm_tf.atomic import atomic_file
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import as_path

# Files that are taken for images by their names.
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"}
# Folders that systems leave among people's own, some with pictures in them.
SYSTEM = {
    "__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
}  # fmt: skip
PILLOW_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# EXIF's orientation -> what turns the stored pixels upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those that swap width and height.
QUARTER_TURNS = {UPRIGHT[orientation] for orientation in (5, 6, 7, 8)}
# Text beside the picture, such as a workflow that made it: Pillow refuses files with more than 1 MiB of it.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY


class ImageError(ValueError):
    """An image cannot be read, for whatever reason its decoder has; the message is one line."""


class TooManyPixelsError(ImageError):
    """An image is larger than the `pixel_limit`."""


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1] -> uint8 0..255, rounded to the nearest level; values beyond are clipped."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 in [-1, 1]; `to_uint8` gives back the same bytes."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def image_grid(images: np.ndarray, columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Lays uint8 images (N, H, W, C) out in rows on white; about square unless `columns` is given.

    Returns:
      uint8 (height, width, C).
    """
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


# --- files -> images -----------------------------------------------------------------------------


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Wrap this around whatever is done to read one image.

    Raises:
      ImageError: for any error but a UserError: decoders raise all kinds, as files damage them.
    """
    # Pillow warns of harmless oddities (EXIF, palettes) in files that it reads well.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (UserError, ImageError):
            raise
        except Image.DecompressionBombError as error:
            raise TooManyPixelsError(one_line(error).partition(", could")[0]) from error
        except UnidentifiedImageError as error:
            # Pillow's text holds an address in memory, another one each time.
            raise ImageError("its bytes are of no known image format") from error
        except Exception as error:
            raise ImageError(one_line(error)) from error


@contextlib.contextmanager
def pixel_limit(pixels: int | None) -> Iterator[None]:
    """Inside the block larger images are refused, in place of those of more than Pillow's 179 megapixels.

    None: none are.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = (
        None if pixels is None else -(-pixels // 2)
    )  # Pillow warns at its limit, and refuses at twice that
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def decode(data: bytes) -> Image.Image:
    """Bytes of an image file, of whatever format its first bytes tell -> its first frame, loaded.

    Raises:
      ImageError: damaged, no image, or larger than the `pixel_limit`.
    """
    with reading():
        image = Image.open(io.BytesIO(data))
        image.load()
    return image


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says.

    No other tag is touched: Pillow's `exif_transpose` writes all of them anew, and fails on odd ones.
    """
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        with reading():
            return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except ImageError:  # damaged tags beside a good picture
        return None


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any mode -> RGB: transparent parts on `background`, 16-bit greyscale by its upper 8 bits."""
    image = _eight_bits(image)
    if image.has_transparency_data:
        image = _on_background(image.convert("RGBA"), background)
    return image.convert("RGB")


def to_channels(image: Image.Image, channels: int, background: str = "white") -> Image.Image:
    """Any mode -> 8 bits of 1 to 4 channels; with 1 or 3 transparent parts lie on `background`."""
    if channels in (1, 3):
        return to_rgb(image, background).convert(PILLOW_MODES[channels])
    return _eight_bits(image).convert("RGBA").convert(PILLOW_MODES[channels])


def read_file(path: str | os.PathLike, channels: int = 3, background: str = "white") -> Image.Image:
    """An image file, upright, as `to_channels` has it.

    Raises:
      ImageError: it is missing, damaged or no image.
    """
    with reading():
        return to_channels(upright(decode(as_path(path).read_bytes())), channels, background)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit greyscale -> 8 bits, at 255 of which Pillow's own conversions would clip it."""
    if image.mode == "F":
        raise ImageError("its levels are floating-point numbers without a range: save it with 8 bits")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image)
    if levels.min() < 0 or levels.max() > 65535:
        raise ImageError("its levels of grey go beyond 16 bits: save it with 16 or 8")
    grey = Image.fromarray((levels >> 8).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        opaque = (levels != image.info["transparency"]) * np.uint8(255)
        grey.putalpha(Image.fromarray(opaque))
    return grey


def _on_background(image: Image.Image, background: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


def read_image(path: str | os.PathLike, image_shape: Sequence[int]) -> np.ndarray:
    """Reads an image file of exactly `image_shape` = (H, W, C), uint8. Transparent parts become white.

    Raises:
      UserError: it is missing, no image, or of another size.
    """
    if image_shape[2] not in PILLOW_MODES:
        raise UserError(f"{path}: a model of {image_shape[2]} channels cannot edit image files")
    return np.asarray(_read_sized(path, image_shape)).reshape(image_shape)


def read_fitted(path: str | os.PathLike, image_shape: Sequence[int], pixels: int) -> np.ndarray:
    """Reads any image file, upright, as `image_shape` = (H, W, C), uint8: its middle of that shape, resized.

    One of that size comes as it is, with the pixels of `read_image`. Messages have the file's own name alone.

    Args:
      pixels: the most that a file may have.
    Raises:
      UserError: it is missing, no image, or too large.
    """
    height, width, channels = image_shape
    name = as_path(path).name
    if channels not in PILLOW_MODES:
        raise UserError(f"{name}: a model of {channels} channels cannot edit image files")
    try:
        with pixel_limit(pixels):
            image = read_file(path, channels)
    except TooManyPixelsError as error:
        raise UserError(
            f"{name} has more than {pixels // 10**6} megapixels: make it smaller, and try again"
        ) from error
    except ImageError as error:
        raise UserError(f"{name} cannot be read as an image ({error}): choose another file") from error
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(image_shape)


def read_mask(path: str | os.PathLike, image_shape: Sequence[int]) -> np.ndarray:
    """Reads a mask of the size of `image_shape` = (H, W, C): bool (H, W), True where the file is light.

    Transparent parts are not painted anew, whatever colour lies under them.

    Raises:
      UserError: it is missing, no image, of another size, or dark everywhere.
    """
    mask = np.asarray(_read_sized(path, (*image_shape[:2], 1), "black")) >= 128
    if not mask.any():
        raise UserError(f"{path} is black everywhere: make white what is to be painted anew")
    return mask


def _read_sized(path: str | os.PathLike, shape: Sequence[int], background: str = "white") -> Image.Image:
    """An image file of `shape` = (H, W, C); no pixel of one of another size is decoded."""
    wanted = shape[1], shape[0]
    try:
        with reading(), pixel_limit(None):
            data = as_path(path).read_bytes()
            size = _upright_size(Image.open(io.BytesIO(data)))
            if size == wanted:
                return to_channels(upright(decode(data)), shape[2], background)
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{path} does not exist") from error
        raise UserError(f"{path} cannot be read as an image ({error})") from error
    raise UserError(
        "{} is {} pixels wide and {} high: resize it to the model's {} x {}".format(path, *size, *wanted)
    )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return image.size[::-1] if _turn(image) in QUARTER_TURNS else image.size


def samples_shape(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """(N, H, W, C) of the images in an .npz file, none of which is read.

    Raises:
      UserError: it is missing or damaged, or holds no uint8 images as `arr_0`.
    """
    with _open_samples(path) as (_, shape):
        return shape


def read_samples(path: str | os.PathLike, batch_size: int = 64) -> Iterator[np.ndarray]:
    """Yields uint8 (B, H, W, C): the images `arr_0` of an .npz file in order, a batch at a time in memory.

    The last batch may be smaller.

    Raises:
      UserError: as `samples_shape`, before the first batch; or damage, where it is found.
    """
    with _open_samples(path) as (member, (count, *image_shape)):
        for start in range(0, count, batch_size):
            size = min(batch_size, count - start)
            data = member.read(size * math.prod(image_shape))
            yield np.frombuffer(data, np.uint8).reshape(size, *image_shape)


@contextlib.contextmanager
def _open_samples(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, tuple[int, int, int, int]]]:
    """The images' bytes and shape."""
    try:
        with contextlib.ExitStack() as opened:
            file = zipfile.ZipFile(opened.enter_context(as_path(path).open("rb")))
            member = opened.enter_context(opened.enter_context(file).open("arr_0.npy"))
            version = np.lib.format.read_magic(member)
            read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, column_major, dtype = read_header(member)
            if len(shape) != 4 or column_major or dtype != np.uint8:
                raise ValueError(f"arr_0 is {dtype} {shape}")
            yield member, shape
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # zipfile and NumPy raise all kinds, as damage has it
        raise UserError(
            f"{path} is no whole .npz file of uint8 images (N, H, W, C) named arr_0 ({one_line(error)})"
        ) from error


def names_in(folder: str | os.PathLike, extensions: Collection[str] = EXTENSIONS) -> list[str]:
    """The image files in a folder and below it: their paths in it, sorted; says on stderr what is left out.

    Hidden files and folders and those of `SYSTEM` do not count. Links are followed, but each folder counts
    once: where it lies, or else by the first link to it.

    Args:
      extensions: the endings, in lower case, of the names that count.
    Raises:
      UserError: there are none, or a folder cannot be looked into.
    """
    names, left_out, seen = [], collections.Counter(), set()
    folders, links = [""], []
    while folders or links:
        inside = folders.pop() if folders else links.pop(0)
        place = os.path.realpath(os.path.join(folder, inside))
        if place in seen:
            left_out["folders met before"] += 1
            continue
        seen.add(place)
        for name in _entries(place):
            extension, path = os.path.splitext(name)[1].lower(), os.path.join(place, name)
            if name.startswith(".") or name in SYSTEM:
                left_out["hidden or system"] += 1
            elif os.path.isdir(path):
                (links if os.path.islink(path) else folders).append(os.path.join(inside, name))
            elif not os.path.isfile(path):
                left_out["no files"] += 1
            elif extension in extensions:
                names.append(os.path.join(inside, name))
            else:
                left_out[extension or "without an ending"] += 1
    counts = ", ".join(f"{count} {what}" for what, count in sorted(left_out.items()))
    if not names:
        also = f"; left out: {counts}" if counts else ""
        raise UserError(f"there are no images ({', '.join(sorted(extensions))}) in {folder}{also}")
    if counts:
        print(f"{folder}: {len(names)} images; left out: {counts}", file=sys.stderr)
    return sorted(names)


def _entries(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"cannot look into {folder} ({error.strerror}): mend that, or move it away"
        ) from error


def read_folder(files: Sequence[Path], batch_size: int = 64) -> Iterator[np.ndarray]:
    """Yields uint8 (B, H, W, 3): image files of one size in order, upright, transparent parts white.

    The last batch may be smaller.

    Raises:
      UserError: a file is no image, or of another size than the first; where it is met.
    """
    shape = None
    for start in range(0, len(files), batch_size):
        batch = []
        for path in files[start : start + batch_size]:
            try:
                image = np.asarray(read_file(path))
            except ImageError as error:
                raise UserError(f"{path} cannot be read as an image ({error})") from error
            shape = shape or image.shape
            if image.shape != shape:
                raise UserError(
                    f"{path} is {image.shape[1]} pixels wide and {image.shape[0]} high, and {files[0]} is"
                    f" {shape[1]} x {shape[0]}: keep images of one size in a folder"
                )
            batch.append(image)
        yield np.stack(batch)


# --- images -> files -----------------------------------------------------------------------------


def encode(image: Image.Image, encoding: str, *, png_level: int = 6, jpeg_quality: int = 95) -> bytes:
    """Image -> bytes of a file: "png" (lossless) or "jpeg" (full-resolution colour)."""
    buffer = io.BytesIO()
    if encoding == "png":
        image.save(buffer, format="PNG", compress_level=png_level)
    else:
        image.save(buffer, format="JPEG", quality=jpeg_quality, subsampling=0)
    return buffer.getvalue()


def png(image: np.ndarray) -> bytes:
    """uint8 (H, W, C) with 1 to 4 channels -> bytes of a PNG."""
    return encode(to_pillow(image), "png")


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 (H, W, C) with 1 to 4 channels as PNG, atomically."""
    with atomic_file(path) as partial:
        partial.write_bytes(png(image))


def write_gif(path: str | os.PathLike, frames: Sequence[np.ndarray], seconds: float = 0.15) -> None:
    """Writes uint8 frames (H, W, C) as an endless GIF, atomically; the last frame stays ten times as long."""
    first, *rest = map(to_pillow, frames)
    durations = [round(1000 * seconds)] * len(rest) + [round(10_000 * seconds)]
    with atomic_file(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) with 1 to 4 channels -> Pillow's image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def write_samples(
    path: str | os.PathLike,
    batches: Iterable[np.ndarray],
    shape: Sequence[int],
    labels: np.ndarray | None,
) -> None:
    """Writes images and labels as `arr_0` and `arr_1` of an .npz file, in the form of ADM's evaluator.

    The file is that of `np.savez`, but only one batch at a time is in memory.

    Args:
      batches: uint8 (B, H, W, C), in order; together N images.
      shape: (N, H, W, C).
      labels: int32 (N,), or None.
    """
    with atomic_file(path) as partial, zipfile.ZipFile(partial, "w", allowZip64=True) as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": tuple(shape)}
            np.lib.format.write_array_header_1_0(member, header)
            written = 0
            for batch in batches:
                member.write(np.ascontiguousarray(batch, np.uint8).data)
                written += len(batch)
            assert written == shape[0], f"{written} images came, and {shape[0]} were promised"
        if labels is not None:
            with file.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels, allow_pickle=False)
