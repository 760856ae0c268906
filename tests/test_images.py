"""Images out of the program and back in."""

import io
import os
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from pdm_tf import images
from pdm_tf.errors import UserError
from pdm_tf.images import (
    names_in,
    read_fitted,
    read_folder,
    read_image,
    read_mask,
    read_samples,
    samples_shape,
    write_png,
    write_samples,
)
from tests.data.fixtures import encode, make_folder, natural_image

RANDOM = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
PIXELS = natural_image(3, 24, 36)
GREY = PIXELS[..., 0]
# EXIF's orientation -> the turn of a camera's sensor, for the viewer to undo.
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


def saved(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def rgb(data: bytes, background: str = "white") -> np.ndarray:
    return np.asarray(images.decode(data, background=background)).astype(int)


def test_every_byte_survives_the_way_to_floats_and_back():
    levels = np.arange(256, dtype=np.uint8)
    floats = images.from_uint8(levels)
    assert floats.dtype == np.float32 and floats[0] == -1.0 and floats[255] == 1.0
    np.testing.assert_array_equal(images.to_uint8(floats), levels)
    np.testing.assert_array_equal(images.to_uint8(np.array([-3.0, 3.0, 1.0 / 255.0])), [0, 255, 128])


def test_a_grid_holds_the_images_in_reading_order():
    grid = images.image_grid(RANDOM, columns=2, gap=1)
    assert grid.shape == (3 * 7 + 1, 2 * 5 + 1, 3)
    np.testing.assert_array_equal(grid[8:14, 6:10], RANDOM[3])
    assert (grid[15:, 6:] == 255).all()


# --- every kind of file that archives and users hold becomes the right pixels --------------------


def test_what_is_no_image_is_refused_without_an_address_in_memory():
    for nothing in (b"", b"no image"):
        with pytest.raises(images.ImageError, match=r"^its bytes are of no known image format$"):
            images.decode(nothing)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
@pytest.mark.parametrize("background, expected", [("white", 255), ("#102030", (16, 32, 48))])
def test_transparency_shows_the_background(mode, background, expected):
    if mode in ("P", "RGB"):  # one colour of the palette, or of all, is transparent
        image = Image.new(mode, (4, 2), 0)
        image.putpixel((0, 0), 1 if mode == "P" else (255, 0, 0))
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0])
        data = saved(image, transparency=0 if mode == "P" else (0, 0, 0))
        assert (rgb(data, background)[0, 0] == [255, 0, 0]).all()
    else:
        data = saved(Image.new("RGBA", (4, 2), (255, 0, 0, 0)).convert(mode))
    assert (rgb(data, background)[1, 3] == expected).all()


def test_grey_of_any_depth_is_read_by_its_upper_eight_bits(tmp_path):
    files = {
        "16 bits": (encode(GREY.astype(np.uint16) * 257), GREY),
        "16 bits, not all of them": (encode(GREY.astype(np.uint16) * 256 + 255), GREY),
        "grey": (encode(GREY), GREY),
        "one bit": (saved(Image.fromarray(GREY > 127)), (GREY > 127) * 255),
        "grey and alpha": (encode(np.dstack([GREY, GREY])), 255 - (GREY / 255) * (255.0 - GREY)),
    }
    for name, (data, expected) in files.items():
        (tmp_path / name).write_bytes(data)
        found = {channels: read_image(tmp_path / name, (24, 36, channels)) for channels in (1, 2, 3, 4)}
        opaque = "alpha" not in name
        for channels in (1, 3):
            difference = found[channels] - np.asarray(expected, float)[..., None]
            assert np.abs(difference).max() <= (0 if opaque else 1), name
        for channels in (2, 4):
            assert (found[channels][..., -1] == (255 if opaque else GREY)).all()
            np.testing.assert_array_equal(found[channels][..., 0], expected if opaque else GREY)


def test_one_level_of_sixteen_bits_may_be_transparent():
    data = encode(np.array([[0x1234, 0x1235]], np.uint16), transparency=0x1234)
    assert (rgb(data, "red") == [[[255, 0, 0], [0x12] * 3]]).all()


def test_a_png_may_hold_more_text_than_picture():
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * (3 << 20), zip=True)
    np.testing.assert_array_equal(rgb(saved(Image.fromarray(PIXELS), pnginfo=info)), PIXELS)


# --- orientation ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize("orientation", STORED)
def test_images_and_masks_are_turned_upright_before_they_are_measured(tmp_path, orientation):
    for image_format in ("PNG", "TIFF", "JPEG", "WEBP"):
        found = rgb(rotated(orientation, image_format))
        assert found.shape == PIXELS.shape
        assert np.abs(found - PIXELS).mean() < (1e-9 if image_format in ("PNG", "TIFF") else 12)
    (tmp_path / "a.png").write_bytes(rotated(orientation))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", PIXELS.shape), PIXELS)
    light = np.asarray(Image.fromarray(PIXELS).convert("L")) >= 128
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png", PIXELS.shape), light)
    stored = images.decode((tmp_path / "a.png").read_bytes(), as_stored=True)
    assert stored.size == ((36, 24) if orientation < 5 else (24, 36))


ORIENTATION_6 = (0x0112, 3, 1, struct.pack("<HH", 6, 0))
ODD_TAGS = {
    "Software as RATIONAL": (exif_bytes(ORIENTATION_6, (0x0131, 5, 1, struct.pack("<I", 38))), True),
    "no such orientation": (exif_bytes((0x0112, 3, 1, struct.pack("<HH", 9, 0))), False),
    "cut off": (exif_bytes(ORIENTATION_6)[:16], False),
    "no EXIF at all": (b"Exif\0\0rubbish and nothing else", False),
}


@pytest.mark.parametrize("name", ODD_TAGS)
def test_odd_tags_do_not_keep_a_picture_from_being_read(tmp_path, name):
    exif, turned = ODD_TAGS[name]
    expected = np.rot90(PIXELS, -1) if turned else PIXELS
    for image_format in ("PNG", "JPEG"):
        (tmp_path / "a").write_bytes(encode(PIXELS, image_format, exif=exif))
        found = read_image(tmp_path / "a", expected.shape).astype(int)
        assert np.abs(found - expected).mean() < (1e-9 if image_format == "PNG" else 12)


# --- colour profiles -----------------------------------------------------------------------------


def matrix_profile(columns, gamma: float) -> bytes:
    """An ICC profile of version 2: the primaries' XYZ at D50, and one gamma."""

    def fixed(values):
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed((0.9642, 1.0, 0.8249))}
    for letter, column in zip((b"r", b"g", b"b"), columns):
        tags[letter + b"XYZ"] = b"XYZ " + bytes(4) + fixed(column)
        tags[letter + b"TRC"] = curve
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", 2) + b"w\0" + bytes(78)
    begin = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", begin + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4xI", begin + len(body), 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    return header.ljust(68, b"\0") + fixed((0.9642, 1.0, 0.8249)) + bytes(48) + table + body


PROPHOTO = [(0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)]
SRGB = [(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]


def in_prophoto(pixels: np.ndarray) -> np.ndarray:
    """sRGB uint8 -> the same colours in ProPhoto's levels."""
    levels = pixels / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    wide = linear @ np.array(SRGB) @ np.linalg.inv(PROPHOTO)
    return np.round(255 * wide.clip(0, 1) ** (1 / 1.8)).astype(np.uint8)


def test_colours_of_a_wide_profile_are_those_of_srgb_in_every_reader(tmp_path):
    wide, profile = Image.fromarray(in_prophoto(PIXELS)), matrix_profile(PROPHOTO, 1.8)
    for name, image in {"a.png": wide, "alpha.png": wide.convert("RGBA"), "p.gif": wide}.items():
        image.save(tmp_path / name, icc_profile=profile)
    assert np.abs(np.asarray(wide, int) - PIXELS).mean() > 10
    for found in (
        read_image(tmp_path / "a.png", PIXELS.shape),
        read_image(tmp_path / "alpha.png", (24, 36, 4))[..., :3],
        read_fitted(tmp_path / "a.png", PIXELS.shape, 10**6),
        next(read_folder([tmp_path / "a.png"]))[0],
    ):
        assert np.abs(found.astype(int) - PIXELS).mean() < 1
    stored = images.decode((tmp_path / "a.png").read_bytes(), as_stored=True)
    assert (np.asarray(stored) == wide).all() and not stored.info


def test_profiles_of_srgb_and_broken_ones_leave_the_pixels_and_no_profile_is_passed_on():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    rubbish = np.random.default_rng(0).integers(0, 256, 550_000, np.uint8).tobytes()
    wide = matrix_profile(PROPHOTO, 1.8)
    for profile in (srgb, rubbish, wide[:200], b"x"):
        image = images.decode(saved(Image.fromarray(PIXELS), icc_profile=profile))
        assert (np.asarray(image) == PIXELS).all() and not image.info
    assert (rgb(saved(Image.fromarray(GREY), icc_profile=srgb)) == GREY[..., None]).all()  # it fits no grey
    cmyk = Image.fromarray(PIXELS).convert("CMYK")
    image = images.decode(saved(cmyk, "JPEG", icc_profile=rubbish, quality=95, comment=b"c" * 9999))
    assert np.abs(np.asarray(image, int) - PIXELS).mean() < 8
    assert len(images.encode(image, "png")) < 3000 and len(images.encode(image, "jpeg")) < 3000


# --- images and masks to edit --------------------------------------------------------------------


def test_light_parts_of_a_mask_are_inpainted_and_transparent_ones_are_not(tmp_path):
    levels = np.array([[0, 255, 256 * 127 + 255, 256 * 128, 65535]], np.uint16)
    (tmp_path / "16.png").write_bytes(encode(levels))
    assert (read_mask(tmp_path / "16.png", (1, 5, 3)) == [[False, False, False, True, True]]).all()
    white = Image.new("RGBA", (4, 6), "white")
    white.putalpha(Image.fromarray(np.repeat(np.array([0, 100, 200, 255], np.uint8)[None], 6, 0)))
    palette = Image.fromarray(np.repeat(np.array([0, 1, 2, 2], np.uint8)[None], 6, 0)).convert("P")
    palette.putpalette([255, 255, 255, 0, 0, 0, 255, 255, 255])
    files = {"RGBA": saved(white), "LA": saved(white.convert("LA")), "P": saved(palette, transparency=0)}
    for mode, data in files.items():
        (tmp_path / mode).write_bytes(data)
        assert (read_mask(tmp_path / mode, (6, 4, 3)) == [False, False, True, True]).all()


def test_files_that_cannot_be_used_are_refused_in_one_line(tmp_path):
    write_png(tmp_path / "black.png", np.zeros((6, 4, 3), np.uint8))
    whole = encode(PIXELS)
    (tmp_path / "cut.png").write_bytes(whole[:80])
    (tmp_path / "float").write_bytes(encode(np.zeros((6, 4), np.float32), "TIFF"))
    refusals = {
        ("none.png", (6, 4, 3)): "none.png does not exist",
        ("cut.png", PIXELS.shape): "cut.png cannot be read as an image",
        ("float", (6, 4, 3)): "cannot be read as an image (its levels",
        ("black.png", (8, 16, 3)): "4 pixels wide and 6 high: resize it to the model's 16 x 8",
        ("black.png", (6, 4, 5)): "image files have 1 to 4 channels, and not 5",
    }
    for (name, shape), message in refusals.items():
        with pytest.raises(UserError) as caught:
            read_image(tmp_path / name, shape)
        assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="make white what is to be inpainted"):
        read_mask(tmp_path / "black.png", (6, 4, 3))


def test_any_error_of_a_decoder_is_that_of_an_unreadable_image(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(encode(PIXELS))
    for raised in (TypeError("odd\ntag"), RecursionError(), MemoryError(), SyntaxError("y")):

        def load(image, raised=raised):
            raise raised

        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
        with pytest.raises(images.ImageError, match=r"^(odd tag|RecursionError|MemoryError|y)$"):
            images.read_file(tmp_path / "a.png")
        with pytest.raises(UserError, match=r"a\.png cannot be read as an image \("):
            read_image(tmp_path / "a.png", PIXELS.shape)


def test_large_files_are_refused_at_the_limit_and_those_to_edit_at_another_size(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 431)  # half of what is refused, as for 179 megapixels
    data = encode(PIXELS)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(images.TooManyPixelsError, match=r"^Image size \(864 pixels\) exceeds limit of 862 "):
        images.decode(data)
    with images.pixel_limit(PIXELS[..., 0].size):
        assert images.decode(data).size == (36, 24)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", PIXELS.shape), PIXELS)
    with pytest.raises(UserError, match="36 pixels wide and 24 high: resize it to the model's 8 x 8"):
        read_image(tmp_path / "a.png", (8, 8, 3))


# --- folders: whatever their owners and systems left in them -------------------------------------


def test_what_systems_leave_in_folders_is_left_out_and_counted(tmp_path, capsys):
    names = (
        "cat/0.png cat/._0.png .ipynb_checkpoints/0-checkpoint.png __MACOSX/cat/0.png cat/.DS_Store "
        "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg $RECYCLE.BIN/1.png cat/deep/1.PNG cat/Thumbs.db "
        "desktop.ini cat/.nfs0001 cat/LICENSE"
    )
    make_folder(tmp_path, dict.fromkeys(names.split(), encode(PIXELS)))
    os.mkfifo(tmp_path / "cat" / "pipe.png")  # to read it would last for ever
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "cat" / "itself.png").symlink_to(tmp_path / "cat" / "itself.png")
    assert names_in(tmp_path) == ["cat/0.png", "cat/deep/1.PNG"]
    counts = "1 .db, 1 .ini, 7 hidden or system, 3 no files, 1 without an ending"
    assert capsys.readouterr().err == f"{tmp_path}: 2 images; left out: {counts}\n"


def test_each_folder_counts_once_where_it_lies(tmp_path):
    make_folder(tmp_path, {f"in/{name}": encode(PIXELS) for name in ("b/0.png", "b/c/1.png")})
    make_folder(tmp_path, {"elsewhere/2.png": encode(PIXELS)})
    links = {"a": "in/b", "b/up": "in", "b/c/up": "in/b", "z": "elsewhere", "y": "elsewhere"}
    for link, target in links.items():
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

    with pytest.raises(UserError, match=r"cannot look into .*none"):
        names_in(tmp_path / "none")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot look into \S*b \(Permission denied\)"):
        names_in(tmp_path)


def test_a_folder_s_images_are_rgb_on_white_in_batches_and_of_one_size(tmp_path):
    write_png(tmp_path / "0.png", np.zeros((6, 4, 4), np.uint8))
    write_png(tmp_path / "1.png", np.full((6, 4, 1), 9, np.uint8))
    write_png(tmp_path / "2.png", np.full((6, 4, 3), 7, np.uint8))
    files = [tmp_path / f"{n}.png" for n in range(4)]
    first, second = read_folder(files[:3], batch_size=2)
    assert (first[0] == 255).all() and (first[1] == 9).all() and second.shape == (1, 6, 4, 3)
    write_png(tmp_path / "3.png", np.zeros((4, 6, 3), np.uint8))
    with pytest.raises(UserError, match=r"3\.png is 6 pixels wide and 4 high, and .*0\.png is 4 x 6"):
        list(read_folder(files))
    (tmp_path / "3.png").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"3\.png cannot be read as an image"):
        list(read_folder(files))


# --- samples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [None, np.arange(5, dtype=np.int32)])
def test_streamed_samples_are_the_file_that_numpy_writes(tmp_path, labels):
    write_samples(tmp_path / "a.npz", iter([RANDOM[:2], RANDOM[2:4], RANDOM[4:]]), RANDOM.shape, labels)
    whole = io.BytesIO()
    np.savez(whole, **({"arr_0": RANDOM} if labels is None else {"arr_0": RANDOM, "arr_1": labels}))
    assert (tmp_path / "a.npz").read_bytes() == whole.getvalue()


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_samples_are_read_in_batches_of_their_order(tmp_path, write):
    path = tmp_path / "a.npz"
    write(path, arr_1=np.arange(5), arr_0=RANDOM)
    assert samples_shape(path) == RANDOM.shape
    for batch_size in (1, 2, 5, 9):
        found = list(read_samples(path, batch_size))
        assert [len(batch) for batch in found[:-1]] == [batch_size] * (-(-5 // batch_size) - 1)
        np.testing.assert_array_equal(np.concatenate(found), RANDOM)


def test_files_that_hold_no_samples_are_refused_in_one_line(tmp_path):
    for name, arrays in {
        "floats": [RANDOM.astype(np.float32)],
        "objects": [np.array([{}], object)],
        "none": [],
    }.items():
        np.savez(tmp_path / f"{name}.npz", *arrays)
    np.savez(tmp_path / "whole.npz", RANDOM)
    whole = (tmp_path / "whole.npz").read_bytes()
    place = whole.index(RANDOM.tobytes()) + 100
    (tmp_path / "altered.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
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
