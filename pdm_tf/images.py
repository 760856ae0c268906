"""Image files in and out: the one reader, 8-bit levels, folders, .npz files of samples, grids, PNG, GIF."""

from __future__ import annotations

import collections
import contextlib
import functools
import io
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from pdm_tf.atomic import atomic_file
from pdm_tf.errors import UserError, one_line
from pdm_tf.paths import as_path

# Files that are taken for images by their names.
EXTENSIONS = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp"}
# Folders that systems leave among people's, some with pictures in them.
SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
PILLOW_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
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
    """uint8 images (N, H, W, C) in rows on white, (height, width, C); by default about square."""
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top = gap + i // columns * (height + gap)
        left = gap + i % columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


# --- bytes -> one image --------------------------------------------------------------------------


def decode(data: bytes, channels: int = 3, background: str = "white", as_stored: bool = False) -> Image.Image:
    """Bytes of an image file, of whatever format its first bytes tell -> its first frame, pixels alone.

    Args:
      channels: 1 to 4 of 8 bits; of 16-bit greyscale the upper 8 bits.
      background: colour under transparent parts, with 1 or 3 channels.
      as_stored: levels and orientation as in the file; else the image is turned upright as its EXIF tag says,
        and converted to sRGB from its colour profile.
    Raises:
      ImageError: damaged, no image, or larger than the `pixel_limit`.
    """
    with reading():
        image = Image.open(io.BytesIO(data))
        image.load()
        if not as_stored:
            image = _in_srgb(_upright(image))
        image = _with_channels(_eight_bits(image), channels, background)
    image.info = {}  # Pillow would write profiles and comments into each file that it makes of the image
    return image


def read_file(path: str | os.PathLike, channels: int = 3, background: str = "white") -> Image.Image:
    """An image file, as `decode` has it; ImageError if it is missing, damaged or no image."""
    with reading():
        return decode(as_path(path).read_bytes(), channels, background)


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(width, height) when upright of an image file, of which no pixel is decoded."""
    with reading():
        image = Image.open(io.BytesIO(as_path(path).read_bytes()))
        lies_on_its_side = _orientation(image) in (5, 6, 7, 8)
        return image.size[::-1] if lies_on_its_side else image.size


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Raises ImageError for any error of the block but a UserError: decoders raise all kinds."""
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
    # Pillow warns at its limit, and refuses at twice that.
    Image.MAX_IMAGE_PIXELS = None if pixels is None else -(-pixels // 2)
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged tags beside a good picture
        return 1


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) not in range(2, 9):
        return image
    image.info.pop("exif", None)  # Pillow would write the other tags again, and fails at odd ones
    return ImageOps.exif_transpose(image)


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


def _in_srgb(image: Image.Image) -> Image.Image:
    """Converts an image with a colour profile to sRGB; one whose profile is broken or does not fit stays."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    image = _eight_bits(image)
    mode = {"L": "L", "LA": "L", "1": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    try:
        transform = _srgb_transform(profile, mode)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image
    if transform is None:
        return image
    colours = ImageCms.applyTransform(image.convert(mode), transform)
    if image.has_transparency_data:
        colours.putalpha(image.convert("RGBA").getchannel("A"))
    return colours


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Transform of images of `mode` from a profile to sRGB; None from sRGB itself: it would round levels."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "RGB":
        levels = np.arange(0, 256, 15, np.uint8)
        colours = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        moved = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform), int) - colours
        if np.abs(moved).max() <= 2:
            return None
    return transform


def _with_channels(image: Image.Image, channels: int, background: str) -> Image.Image:
    if channels not in PILLOW_MODES:
        raise ImageError(f"image files have 1 to 4 channels, and not {channels}")
    if channels in (2, 4):
        return image.convert("RGBA").convert(PILLOW_MODES[channels])
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB").convert(PILLOW_MODES[channels])


# --- images and masks to edit --------------------------------------------------------------------


def read_image(path: str | os.PathLike, image_shape: Sequence[int]) -> np.ndarray:
    """Reads an image file of exactly `image_shape` = (H, W, C), uint8. Transparent parts become white."""
    return np.asarray(_read_sized(path, image_shape)).reshape(image_shape)


def read_fitted(path: str | os.PathLike, image_shape: Sequence[int], pixels: int) -> np.ndarray:
    """Reads any image file of at most `pixels` as `image_shape` = (H, W, C), uint8: its middle, resized.

    One of that size comes as it is, with the pixels of `read_image`. Messages have the file's own name alone.
    """
    height, width, channels = image_shape
    name = as_path(path).name
    try:
        with pixel_limit(pixels):
            image = read_file(path, channels)
    except TooManyPixelsError as error:
        raise UserError(f"{name} has more than {pixels // 10**6} megapixels: make it smaller") from error
    except ImageError as error:
        raise UserError(f"{name} cannot be read as an image ({error}): choose another file") from error
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(fitted).reshape(image_shape)


def read_mask(path: str | os.PathLike, image_shape: Sequence[int]) -> np.ndarray:
    """Reads a mask of the size of `image_shape` = (H, W, C): bool (H, W), True where the file is light.

    Transparent parts are not inpainted, whatever colour lies under them.
    """
    mask = np.asarray(_read_sized(path, (*image_shape[:2], 1), "black")) >= 128
    if not mask.any():
        raise UserError(f"{path} is black everywhere: make white what is to be inpainted")
    return mask


def _read_sized(path: str | os.PathLike, shape: Sequence[int], background: str = "white") -> Image.Image:
    """An image file of `shape` = (H, W, C); no pixel of one of another size is decoded."""
    height, width, channels = shape
    try:
        with pixel_limit(None):
            size = read_size(path)
            if size == (width, height):
                return read_file(path, channels, background)
    except ImageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise UserError(f"{path} does not exist") from error
        raise UserError(f"{path} cannot be read as an image ({error})") from error
    raise UserError(
        f"{path} is {size[0]} pixels wide and {size[1]} high: resize it to the model's {width} x {height}"
    )


# --- folders of images ---------------------------------------------------------------------------


def names_in(folder: str | os.PathLike, extensions: Collection[str] = EXTENSIONS) -> list[str]:
    """Paths in a folder of the image files in it and below it, sorted; a note tells what is left out.

    Hidden files and folders and those of `SYSTEM` do not count. Links are followed, but each folder counts
    once: where it lies, or else by the first link to it.

    Args:
      extensions: the endings, in lower case, of the names that count.
    Raises:
      UserError: there are none, or a folder cannot be looked into.
    """
    names, left_out, seen = [], collections.Counter(), set()
    places = [os.fspath(folder)]  # links to folders are added on the way
    for place in places:
        for top, folders, files in os.walk(place, onerror=_refuse_folder):
            real = os.path.realpath(top)
            if real in seen:
                left_out["folders met before"] += 1
                folders.clear()
                continue
            seen.add(real)
            for name in folders[:]:
                if name.startswith(".") or name in SYSTEM:
                    left_out["hidden or system"] += 1
                    folders.remove(name)
            folders.sort()
            places += filter(os.path.islink, (os.path.join(top, name) for name in folders))
            for name in files:
                kind = _left_out_as(top, name, extensions)
                if kind:
                    left_out[kind] += 1
                else:
                    names.append(os.path.relpath(os.path.join(top, name), folder))
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
    if not names:
        also = f"; left out: {counts}" if counts else ""
        raise UserError(f"there are no images ({', '.join(sorted(extensions))}) in {folder}{also}")
    if counts:
        print(f"{folder}: {len(names)} images; left out: {counts}", file=sys.stderr)
    return sorted(names)


def _left_out_as(folder: str, name: str, extensions: Collection[str]) -> str:
    """The kind of file that is no image, for the note; empty for an image."""
    extension = os.path.splitext(name)[1].lower()
    if name.startswith(".") or name in SYSTEM:
        return "hidden or system"
    if not os.path.isfile(os.path.join(folder, name)):
        return "no files"
    return "" if extension in extensions else extension or "without an ending"


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"cannot look into {error.filename} ({error.strerror}): mend or move it") from error


def read_folder(files: Sequence[os.PathLike], batch_size: int = 64) -> Iterator[np.ndarray]:
    """Yields uint8 (B, H, W, 3): image files of one size in order, upright, transparent parts white.

    The last batch may be smaller. UserError where a file is no image, or of another size than the first.
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


# --- samples.npz ---------------------------------------------------------------------------------


def samples_shape(path: str | os.PathLike) -> tuple[int, int, int, int]:
    """(N, H, W, C) of the images in an .npz file, none of which is read."""
    with _open_samples(path) as (_, shape):
        return shape


def read_samples(path: str | os.PathLike, batch_size: int = 64) -> Iterator[np.ndarray]:
    """Yields uint8 (B, H, W, C): the images `arr_0` of an .npz file in order, a batch at a time in memory.

    The last batch may be smaller. UserError where the file is found damaged.
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
            read_header_of = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
            shape, column_major, dtype = read_header_of(member)
            if len(shape) != 4 or column_major or dtype != np.uint8:
                raise ValueError(f"arr_0 is {dtype} {shape}")
            yield member, shape
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Exception as error:  # zipfile and NumPy raise all kinds, as damage has it
        raise UserError(
            f"{path} is no whole .npz file of uint8 images (N, H, W, C) named arr_0 ({one_line(error)})"
        ) from error


def write_samples(
    path: str | os.PathLike, batches: Iterable[np.ndarray], shape: Sequence[int], labels: np.ndarray | None
) -> None:
    """Writes images and labels as `arr_0` and `arr_1` of an .npz file, in the form of ADM's evaluator.

    The file is that of `np.savez`, but only one batch at a time is in memory.

    Args:
      batches: uint8 (B, H, W, C), in order; together those of `shape`, (N, H, W, C).
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


# --- PNG, JPEG, GIF ------------------------------------------------------------------------------


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


def write_gif(path: str | os.PathLike, frames: Sequence[np.ndarray]) -> None:
    """Writes uint8 frames (H, W, C) as an endless GIF, atomically; the last frame stays ten times as long."""
    first, *rest = map(to_pillow, frames)
    durations = [150] * len(rest) + [1500]  # milliseconds
    with atomic_file(path) as partial:
        first.save(partial, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0)


def to_pillow(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) with 1 to 4 channels -> Pillow's image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
