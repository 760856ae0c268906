"""Images out of the program and back in."""

import io
import os
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from pdm_tf import images
from pdm_tf.errors import UserError
from pdm_tf.images import (
    from_uint8,
    image_grid,
    names_in,
    read_folder,
    read_image,
    read_mask,
    read_samples,
    samples_shape,
    to_uint8,
    write_gif,
    write_png,
    write_samples,
)
from pdm_tf.weights import read_arrays
from tests.data.fixtures import cmyk_jpeg, encode, make_folder, natural_image

RANDOM = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
PIXELS = natural_image(3, 24, 36)
# EXIF's orientation -> what a camera's sensor did, for the viewer to undo.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def test_every_byte_survives_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    floats = from_uint8(levels)
    assert floats.dtype == np.float32 and floats[0] == -1.0 and floats[255] == 1.0
    np.testing.assert_array_equal(to_uint8(floats), levels)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0, 1.0 / 255.0])), [0, 255, 128])


def test_a_grid_holds_the_images_in_reading_order():
    grid = image_grid(RANDOM, columns=2, gap=1)
    assert grid.shape == (3 * 7 + 1, 2 * 5 + 1, 3)
    np.testing.assert_array_equal(grid[8:14, 6:10], RANDOM[3])
    assert (grid[15:, 6:] == 255).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_and_image_are_inverses(tmp_path, channels):
    image = np.concatenate([RANDOM, RANDOM], axis=-1)[0, ..., :channels]
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (6, 4, channels)), image)


def test_transparent_parts_become_white(tmp_path):
    pixels = np.zeros((6, 4, 4), np.uint8)
    pixels[:3, :, 3] = 255
    write_png(tmp_path / "a.png", pixels)
    image = read_image(tmp_path / "a.png", (6, 4, 3))
    assert (image[:3] == 0).all() and (image[3:] == 255).all()


def test_light_parts_of_a_mask_are_painted(tmp_path):
    pixels = np.zeros((6, 4, 3), np.uint8)
    pixels[2] = 200
    write_png(tmp_path / "a.png", pixels)
    mask = read_mask(tmp_path / "a.png", (6, 4, 3))
    assert mask.shape == (6, 4) and mask[2].all() and mask.sum() == 4


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    write_png(tmp_path / "black.png", np.zeros((6, 4, 3), np.uint8))
    (tmp_path / "text.png").write_text("no image")
    write_png(tmp_path / "cut.png", RANDOM[0])
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:80])
    refusals = {
        lambda: read_image(tmp_path / "none.png", (6, 4, 3)): "none.png does not exist",
        lambda: read_image(tmp_path / "text.png", (6, 4, 3)): "text.png cannot be read as an image",
        lambda: read_image(tmp_path / "cut.png", (6, 4, 3)): "cut.png cannot be read as an image",
        lambda: read_image(tmp_path / "black.png", (8, 16, 3)): "4 pixels wide and 6 high: resize it to the "
        "model's 16 x 8",
        lambda: read_mask(tmp_path / "black.png", (4, 6, 3)): "resize it to the model's 6 x 4",
        lambda: read_mask(tmp_path / "black.png", (6, 4, 3)): "make white what is to be inpainted",
        lambda: read_image(tmp_path / "black.png", (6, 4, 5)): "5 channels cannot edit image files",
    }
    for read, message in refusals.items():
        with pytest.raises(UserError) as caught:
            read()
        assert message in str(caught.value) and "\n" not in str(caught.value)


def files_in(folder):
    return [folder / name for name in names_in(folder)]


def test_a_folder_s_images_come_in_order_and_those_below_it_too(tmp_path):
    for number, name in enumerate(["b/1.png", "a.png", "b/.hidden.png", ".hidden/1.png", "b/0.PNG"]):
        write_png(tmp_path / name, np.full((6, 4, 3), number, np.uint8))
    (tmp_path / "notes.txt").write_text("no image")
    assert names_in(tmp_path) == ["a.png", "b/0.PNG", "b/1.png"]
    batches = list(read_folder(files_in(tmp_path), batch_size=2))
    assert [batch.shape for batch in batches] == [(2, 6, 4, 3), (1, 6, 4, 3)]
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [[1, 4], [0]]


def test_a_folder_s_images_are_rgb_on_white_and_of_one_size(tmp_path):
    write_png(tmp_path / "0.png", np.zeros((6, 4, 4), np.uint8))
    write_png(tmp_path / "1.png", np.full((6, 4, 1), 9, np.uint8))
    (batch,) = read_folder(files_in(tmp_path))
    assert (batch[0] == 255).all() and (batch[1] == 9).all()
    write_png(tmp_path / "2.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"2\.png is 6 pixels wide and 4 high, and .*0\.png is 4 x 6"):
        list(read_folder(files_in(tmp_path)))
    (tmp_path / "2.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"2\.png cannot be read as an image"):
        list(read_folder(files_in(tmp_path)))
    with pytest.raises(UserError, match=r"cannot look into .*none"):
        names_in(tmp_path / "none")


def test_a_gif_plays_its_frames_in_order(tmp_path):
    frames = [np.full((6, 4, 3), level, np.uint8) for level in (0, 120, 255)]
    write_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 3
        for i, frame in enumerate(frames):
            file.seek(i)
            np.testing.assert_array_equal(np.asarray(file.convert("RGB")), frame)


@pytest.mark.parametrize("labels", [None, np.arange(5, dtype=np.int32)])
def test_streamed_samples_are_the_file_that_numpy_writes(tmp_path, labels):
    write_samples(tmp_path / "a.npz", iter([RANDOM[:2], RANDOM[2:4], RANDOM[4:]]), RANDOM.shape, labels)
    whole = io.BytesIO()
    np.savez(whole, **({"arr_0": RANDOM} if labels is None else {"arr_0": RANDOM, "arr_1": labels}))
    assert (tmp_path / "a.npz").read_bytes() == whole.getvalue()


def test_too_few_samples_leave_no_file(tmp_path):
    with pytest.raises(AssertionError, match="2 images came, and 5 were promised"):
        write_samples(tmp_path / "a.npz", iter([RANDOM[:2]]), RANDOM.shape, None)
    assert not list(tmp_path.iterdir())


# --- every kind of file that archives and users hold becomes the right pixels --------------------


def saved(image: Image.Image, image_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def rgb(data: bytes, background: str = "white") -> np.ndarray:
    return np.asarray(images.decode(data, background=background)).astype(int)


def rotated(orientation: int, image_format: str = "PNG") -> bytes:
    """PIXELS as a camera stores them that was held otherwise."""
    stored = Image.fromarray(PIXELS)
    if STORED[orientation] is not None:
        stored = stored.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(stored, image_format, exif=exif)


def exif_bytes(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of entries (tag, type, count, four bytes of value or offset) that no library would write."""
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + bytes(8)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP", "JPEG"])
def test_formats(image_format):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    options = options.get(image_format, {})
    found = rgb(encode(PIXELS, image_format, **options))
    assert np.abs(found - PIXELS).mean() < (6 if image_format == "JPEG" else 1e-9)


def test_animated_gif_gives_its_first_frame():
    frames = [Image.new("P", (5, 4), colour) for colour in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (rgb(data) == [255, 0, 0]).all()


def test_greyscale_and_sixteen_bits():
    grey = PIXELS[..., 0]
    assert (rgb(encode(grey)) == grey[..., None]).all()
    sixteen = grey.astype(np.uint16) * 257
    assert (rgb(encode(sixteen)) == grey[..., None]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("background, expected", [("white", 255), ("#102030", (16, 32, 48))])
def test_transparency_shows_the_background(mode, background, expected):
    if mode in ("P", "RGB"):  # one colour of the palette, or of all, is transparent
        image = Image.new(mode, (4, 2), 0)
        image.putpixel((0, 0), 1 if mode == "P" else (255, 0, 0))
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0])
        data = saved(image, "PNG", transparency=0 if mode == "P" else (0, 0, 0))
        assert (rgb(data, background)[0, 0] == [255, 0, 0]).all()
    else:
        image = Image.new("RGBA", (4, 2), (255, 0, 0, 0)).convert(mode)
        data = saved(image, "PNG")
    assert (rgb(data, background)[1, 3] == expected).all()


def test_half_transparent_pixels_are_mixed():
    data = saved(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG")
    assert np.abs(rgb(data, "black") - [128, 0, 0]).max() <= 1


def test_cmyk_jpeg():
    found = rgb(cmyk_jpeg(PIXELS))
    assert np.abs(found - PIXELS).mean() < 8


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation(orientation, image_format):
    found = np.asarray(images.decode(rotated(orientation, image_format))).astype(int)
    assert found.shape == PIXELS.shape
    assert np.abs(found - PIXELS).mean() < (1e-9 if image_format in ("PNG", "TIFF") else 12)


ORIENTATION_6 = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
ODD_TAGS = {
    "Software as RATIONAL": (exif_bytes(ORIENTATION_6, (0x0131, 5, 1, struct.pack("<I", 38))), True),
    "a value beyond the end": (exif_bytes(ORIENTATION_6, (0x010F, 2, 9999, struct.pack("<I", 9999))), True),
    "an unknown type": (exif_bytes(ORIENTATION_6, (0x010F, 99, 1, bytes(4))), True),
    "a date that is a number": (exif_bytes(ORIENTATION_6, (0x0132, 4, 1, bytes(4))), True),
    "no such orientation": (exif_bytes((0x0112, 3, 1, struct.pack("<HH", 9, 0))), False),
    "an orientation in words": (exif_bytes((0x0112, 2, 4, b"six\0")), False),
    "cut off": (exif_bytes(ORIENTATION_6)[:16], False),
    "no EXIF at all": (b"Exif\0\0rubbish and nothing else", False),
}


@pytest.mark.parametrize("name", ODD_TAGS)
@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_odd_tags_do_not_keep_a_picture_from_being_read(tmp_path, name, image_format):
    exif, turned = ODD_TAGS[name]
    (tmp_path / "a").write_bytes(encode(PIXELS, image_format, exif=exif))
    expected = np.rot90(PIXELS, -1) if turned else PIXELS
    found = read_image(tmp_path / "a", expected.shape).astype(int)
    assert np.abs(found - expected).mean() < (1e-9 if image_format == "PNG" else 12)


def test_encodings():
    image = Image.fromarray(PIXELS)
    png = images.encode(image, "png", png_level=3, jpeg_quality=1)
    assert (rgb(png) == PIXELS).all()
    jpeg = images.encode(image, "jpeg", png_level=3, jpeg_quality=95)
    assert jpeg[:2] == b"\xff\xd8" and np.abs(rgb(jpeg) - PIXELS).mean() < 3


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_cut_files_are_refused(image_format):
    data = encode(PIXELS, image_format)
    with pytest.raises(images.ImageError):
        images.decode(data[: len(data) // 2])
    for nothing in (b"", b"no image"):
        with pytest.raises(images.ImageError, match=r"^its bytes are of no known image format$"):
            images.decode(nothing)


# --- so they do for --init_image and --mask ------------------------------------------------------


def test_an_image_to_edit_is_read_as_the_tools_read_theirs(tmp_path):
    grey = PIXELS[..., 0]
    files = {
        "16 bits": (encode(grey.astype(np.uint16) * 257), grey),
        "16 bits, not all of them": (encode(grey.astype(np.uint16) * 256 + 255), grey),
        "grey": (encode(grey), grey),
        "one bit": (saved(Image.fromarray(grey > 127), "PNG"), (grey > 127) * 255),
        "grey and alpha": (encode(np.dstack([grey, grey])), 255 - (grey / 255) * (255.0 - grey)),
    }
    for name, (data, expected) in files.items():
        (tmp_path / name).write_bytes(data)
        found = {channels: read_image(tmp_path / name, (24, 36, channels)) for channels in (1, 2, 3, 4)}
        for channels in (1, 3):
            difference = found[channels] - np.asarray(expected, float)[..., None]
            assert np.abs(difference).max() <= (1 if "alpha" in name else 0), name
        for channels in (2, 4):
            opaque = "alpha" not in name
            assert (found[channels][..., -1] == (255 if opaque else grey)).all()
            np.testing.assert_array_equal(found[channels][..., 0], expected if opaque else grey)


def test_one_level_of_sixteen_bits_may_be_transparent(tmp_path):
    levels = np.array([[0x1234, 0x1235]], np.uint16)
    (tmp_path / "a.png").write_bytes(encode(levels, transparency=0x1234))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (1, 2, 1)).ravel(), [255, 0x12])
    assert (rgb((tmp_path / "a.png").read_bytes(), "red") == [[[255, 0, 0], [0x12] * 3]]).all()


@pytest.mark.parametrize("orientation", STORED)
def test_images_and_masks_are_turned_upright_before_they_are_measured(tmp_path, orientation):
    (tmp_path / "a.png").write_bytes(rotated(orientation))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", PIXELS.shape), PIXELS)
    light = np.asarray(Image.fromarray(PIXELS).convert("L")) >= 128
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", PIXELS.shape), light)


def test_transparent_parts_of_a_mask_are_not_painted(tmp_path):
    white = Image.new("RGBA", (4, 6), "white")
    white.putalpha(Image.fromarray(np.repeat(np.array([0, 100, 200, 255], np.uint8)[None], 6, 0)))
    for mode in ("RGBA", "LA"):
        (tmp_path / mode).write_bytes(saved(white.convert(mode), "PNG"))
        assert (read_mask(tmp_path / mode, (6, 4, 3)) == [False, False, True, True]).all()
    palette = Image.fromarray(np.repeat(np.array([0, 1, 2, 2], np.uint8)[None], 6, 0)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0, 255, 255, 255])
    (tmp_path / "P").write_bytes(saved(palette, "PNG", transparency=0))
    assert (read_mask(tmp_path / "P", (6, 4, 3)) == [False, False, True, True]).all()


def test_a_mask_of_sixteen_bits(tmp_path):
    levels = np.array([[0, 255, 256 * 127 + 255, 256 * 128, 65535]], np.uint16)
    (tmp_path / "a.png").write_bytes(encode(levels))
    assert (read_mask(tmp_path / "a.png", (1, 5, 3)) == [[False, False, False, True, True]]).all()


# --- a folder is whatever its owner and his system left in it ------------------------------------


def test_what_systems_leave_in_folders_is_left_out_and_counted(tmp_path, capsys):
    picture = encode(PIXELS)
    make_folder(tmp_path, dict.fromkeys((
        "cat/0.png", "cat/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "__MACOSX/cat/0.png",
        "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/1.png", "cat/deep/a\n.png", "cat/.DS_Store",
        "cat/b.txt", "cat/LICENSE",
    ), picture))  # fmt: skip
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # to read it would last for ever
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / "itself.png").symlink_to(tmp_path / "cat" / "itself.png")
    assert names_in(tmp_path) == ["cat/0.png", "cat/deep/a\n.png"]
    assert capsys.readouterr().err == (
        f"{tmp_path}: 2 images; left out: 1 .txt, 6 hidden or system, 3 no files, 1 without an ending\n"
    )


def test_each_folder_counts_once_where_it_lies(tmp_path):
    make_folder(tmp_path, {f"in/{name}": encode(PIXELS) for name in ("b/0.png", "b/c/1.png")})
    make_folder(tmp_path, {"elsewhere/2.png": encode(PIXELS)})
    for link, target in {
        "a": "in/b",
        "b/up": "in",
        "b/c/up": "in/b",
        "z": "elsewhere",
        "y": "elsewhere",
    }.items():
        (tmp_path / "in" / link).symlink_to(tmp_path / target)
    (tmp_path / "in" / "b" / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    expected = ["b/0.png", "b/3.png", "b/c/1.png", "y/2.png"]
    assert names_in(tmp_path / "in") == names_in(tmp_path / "link") == expected


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, monkeypatch):
    make_folder(tmp_path, {"a/0.png": encode(PIXELS), "b/0.png": encode(PIXELS)})
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot look into \S*b \(Permission denied\)"):
        names_in(tmp_path)


# --- whatever a decoder raises -------------------------------------------------------------------


def damaged_chunk() -> bytes:
    data = encode(PIXELS)
    place = data.index(b"IDAT") - 4
    return data[:place] + bytes(8) + b"no chunk" + data[place:]


def test_any_error_of_a_decoder_is_that_of_an_unreadable_image(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode(PIXELS))
    for raised in (
        TypeError("odd\ntag"),
        RecursionError(),
        MemoryError(),
        AttributeError("x"),
        SyntaxError("y"),
    ):

        def load(image, raised=raised):
            raise raised

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        with pytest.raises(images.ImageError, match=r"^(odd tag|RecursionError|MemoryError|x|y)$"):
            images.read_file(tmp_path / "a.png")
        with pytest.raises(UserError, match=r"a\.png cannot be read as an image \("):
            read_image(tmp_path / "a.png", PIXELS.shape)


def test_a_broken_chunk_is_an_unreadable_image(tmp_path):
    (tmp_path / "a.png").write_bytes(damaged_chunk())
    with pytest.raises(UserError, match=r"a\.png cannot be read as an image \("):
        read_image(tmp_path / "a.png", PIXELS.shape)


def test_what_has_no_range_of_eight_or_sixteen_bits_is_refused(tmp_path):
    for name, levels in {
        "float": np.zeros((6, 4), np.float32),
        "long": np.full((6, 4), 1 << 20, np.int32),
    }.items():
        (tmp_path / name).write_bytes(encode(levels, "TIFF"))
        with pytest.raises(UserError, match=r"cannot be read as an image \(its levels"):
            read_image(tmp_path / name, (6, 4, 3))


def test_large_files_are_refused_at_the_limit_and_those_to_edit_at_another_size(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 431)  # half of what is refused, as for 179 megapixels
    data = encode(PIXELS)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(
        images.TooManyPixelsError, match=r"^Image size \(864 pixels\) exceeds limit of 862 pixels$"
    ):
        images.decode(data)
    with images.pixel_limit(PIXELS[..., 0].size):
        assert images.decode(data).size == (36, 24)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", PIXELS.shape), PIXELS)
    with pytest.raises(UserError, match="36 pixels wide and 24 high: resize it to the model's 8 x 8"):
        read_image(tmp_path / "a.png", (8, 8, 3))


def test_a_png_may_hold_more_text_than_picture():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (3 << 20), zip=True)
    np.testing.assert_array_equal(rgb(saved(Image.fromarray(PIXELS), "PNG", pnginfo=info)), PIXELS)


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["ours", np.savez, np.savez_compressed])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 9])
def test_samples_are_read_in_batches_of_their_order(tmp_path, write, batch_size):
    path = tmp_path / "a.npz"
    if write == "ours":
        write_samples(path, iter([RANDOM]), RANDOM.shape, np.arange(5, dtype=np.int32))
    else:
        write(path, arr_1=np.arange(5), arr_0=RANDOM)
    assert samples_shape(path) == RANDOM.shape
    found = list(read_samples(path, batch_size))
    assert [len(batch) for batch in found[:-1]] == [batch_size] * (-(-5 // batch_size) - 1)
    np.testing.assert_array_equal(np.concatenate(found), RANDOM)


def test_files_that_hold_no_samples_are_refused_in_one_line(tmp_path):
    for name, arrays in {
        "floats": [RANDOM.astype(np.float32)],
        "flat": [RANDOM[0]],
        "columns": [np.asfortranarray(RANDOM)],
        "objects": [np.array([{}], object)],
        "none": [],
    }.items():
        np.savez(tmp_path / f"{name}.npz", *arrays)
    np.savez(tmp_path / "whole.npz", RANDOM)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-100])
    place = whole.index(RANDOM.tobytes()) + 100
    (tmp_path / "altered.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    version = whole.index(b"PK\x01\x02") + 6
    (tmp_path / "version.npz").write_bytes(whole[:version] + b"\x63" + whole[version + 1 :])
    with pytest.raises(UserError, match=r"version.npz is damaged \(zip file version 9.9\)"):
        read_arrays(tmp_path / "version.npz")
    np.save(tmp_path / "a.npy", RANDOM)
    (tmp_path / "a.npy").rename(tmp_path / "array.npz")
    (tmp_path / "folder.npz").mkdir()
    for path in set(tmp_path.iterdir()) - {tmp_path / "whole.npz"}:
        with pytest.raises(UserError, match=rf"^\S*{path.name} is no whole .npz file of uint8 images[^\n]*$"):
            list(read_samples(path))
    with pytest.raises(UserError, match=r"nowhere.npz does not exist"):
        samples_shape(tmp_path / "nowhere.npz")


def test_a_file_of_samples_is_never_whole_in_memory(tmp_path):
    shape = (400, 128, 128, 3)
    write_samples(tmp_path / "a.npz", (np.zeros((50, *shape[1:]), np.uint8) for _ in range(8)), shape, None)
    tracemalloc.start()
    assert sum(len(batch) for batch in read_samples(tmp_path / "a.npz", 10)) == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 10 * 128 * 128 * 3 < 400 * 128 * 128 * 3 / 9
