"""Samples as files: counts, resuming after a kill, and commands that do not mix."""

import numpy as np
import pytest
from PIL import Image

from pdm_tf.errors import UserError
from pdm_tf.images import names_in, read_folder, to_uint8
from pdm_tf.ledger import Ledger
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.output import write_images, write_trajectory
from tests.sampling.mortal import MODEL, Killed, draw_of
from tests.sampling.test_sampler import easy_denoiser


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole")
    write_images(draw_of(), out, MODEL, save_pngs=True)
    return out


def test_the_files_hold_the_images_in_order(whole):
    names = ["grid.png", "samples.npz", *(f"pngs/sample_{n:06d}.png" for n in range(11))]
    assert sorted(files(whole)) == sorted(names)
    with np.load(whole / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (11, 16, 16, 3)
    np.testing.assert_array_equal(labels, [0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0])
    expected = to_uint8(draw_of().sampler(3, [10, 4, 5, 0], [0, 0, 2, 0]))
    np.testing.assert_array_equal(images[[10, 4, 5, 0]], expected)
    np.testing.assert_array_equal(np.asarray(Image.open(whole / "pngs" / "sample_000010.png")), images[10])
    np.testing.assert_array_equal(np.asarray(Image.open(whole / "grid.png"))[2:18, 20:36], images[1])


@pytest.mark.parametrize("dies_at", [0, 2])
def test_a_killed_run_goes_on_without_a_duplicate_or_a_gap(tmp_path, whole, dies_at, capsys):
    with pytest.raises(Killed):
        write_images(draw_of(dies_at), tmp_path, MODEL, save_pngs=True)
    assert not [name for name in files(tmp_path) if not name.startswith(".unfinished")]
    again = draw_of()
    write_images(again, tmp_path, MODEL, save_pngs=True)
    assert [indices[0] for indices in again.sampler.drawn] == [0, 4, 8][dies_at:]
    assert ("2 of 3 batches are done already" in capsys.readouterr().out) == (dies_at == 2)
    assert files(tmp_path) == files(whole) and len(list(tmp_path.iterdir())) == 3


def test_more_images_of_the_same_command_go_on_too(tmp_path, whole):
    """The last batch of fewer images is whole in the ledger."""
    fewer = draw_of(count=9)
    list(fewer.batches(Ledger(tmp_path, fewer.identity(MODEL))))
    write_images(draw_of(dies_at=0), tmp_path, MODEL)
    assert (tmp_path / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()


@pytest.mark.parametrize("other", [{"seed": 4}, {"edit": Edit(np.zeros((16, 16, 3), np.float32))}])
def test_another_command_never_mixes_in(tmp_path, capsys, other):
    with pytest.raises(Killed):
        write_images(draw_of(2), tmp_path, MODEL)
    others = draw_of(1, **other)
    with pytest.raises(Killed):
        write_images(others, tmp_path, MODEL)
    assert len(others.sampler.drawn) == 1
    assert "holds 2 finished parts of another, unfinished command" in capsys.readouterr().out
    assert len(list(tmp_path.glob(".unfinished-*/identity.json"))) == 2


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:300] + b"?" + b[301:]])
def test_a_damaged_batch_is_named(tmp_path, damage):
    with pytest.raises(Killed):
        write_images(draw_of(2), tmp_path, MODEL)
    (damaged,) = tmp_path.glob(".unfinished-*/batch_00000004.npz")
    damaged.write_bytes(damage(damaged.read_bytes()))
    with pytest.raises(
        UserError, match=r"batch_00000004.npz is damaged .*: restore it or delete it"
    ) as error:
        write_images(draw_of(), tmp_path, MODEL)
    assert "\n" not in str(error.value)
    damaged.unlink()
    write_images(draw_of(), tmp_path, MODEL)


def test_a_folder_of_pngs_holds_one_call_s_images_alone(tmp_path):
    write_images(draw_of(count=5), tmp_path, MODEL, save_pngs=True)
    (tmp_path / "pngs" / ".DS_Store").touch()  # file browsers' own files are nobody's work
    write_images(draw_of(seed=4, count=3), tmp_path, MODEL, save_pngs=True)
    (batch,) = read_folder([tmp_path / "pngs" / name for name in names_in(tmp_path / "pngs")])
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(batch, file["arr_0"])
    (tmp_path / "pngs" / "holiday.png").touch()
    draw = draw_of()
    with pytest.raises(UserError, match=r"pngs holds holiday.png, and will hold samples alone"):
        write_images(draw, tmp_path, MODEL, save_pngs=True)
    assert not draw.sampler.drawn and len(list((tmp_path / "pngs").iterdir())) == 4


def test_grey_samples_have_three_channels_where_evaluators_read_them(tmp_path, capsys):
    denoiser = easy_denoiser()
    denoiser.image_shape = (16, 16, 1)
    write_images(draw_of(denoiser=denoiser, count=3), tmp_path, MODEL, save_pngs=True)
    with np.load(tmp_path / "samples.npz") as file:
        images = file["arr_0"]
    assert images.shape == (3, 16, 16, 3) and (images == images[..., :1]).all() and images.std() > 1
    assert "samples.npz has the one channel three times" in capsys.readouterr().out
    assert Image.open(tmp_path / "pngs" / "sample_000000.png").mode == "L"


def test_a_trajectory_is_drawn_as_a_strip_and_an_animation(tmp_path, whole):
    """Of no more images than were asked for."""
    write_trajectory(draw_of(count=2), tmp_path, frames=3)
    with np.load(whole / "samples.npz") as file:
        images = file["arr_0"]
    strip = np.asarray(Image.open(tmp_path / "trajectory.png"))
    assert strip.shape == (2 + 2 * 18, 2 + 3 * 18, 3)
    for row in range(2):
        top = 2 + 18 * row
        np.testing.assert_array_equal(strip[top : top + 16, 38:54], images[row])
    assert np.abs(strip[2:18, 2:18].astype(int) - images[0]).max() > 1
    with Image.open(tmp_path / "trajectory.gif") as file:
        assert file.n_frames == 3
