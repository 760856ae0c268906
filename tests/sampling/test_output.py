"""Samples as files: counts, resuming after a kill, and commands that do not mix."""

import numpy as np
import pytest
from PIL import Image

from flags.errors import UserError
from pdm_tf.images import to_uint8
from pdm_tf.sampling.output import draw_samples, draw_trajectory
from pdm_tf.sampling.sampler import Sampler
from tests.sampling.test_sampler import Easy

COMMAND = {"seed": 3, "count": 11, "batch_size": 4, "labels": [0, 2]}


class Killed(Exception):  # noqa: N818 (it stands for a signal)
    pass


class Mortal(Sampler):
    """A sampler that dies in the place of its k-th batch, and counts its batches."""

    def __init__(self, dies_at=None, **settings):
        super().__init__(Easy(), sections=(3,), **settings)
        self.drawn, self.dies_at = [], dies_at

    def __call__(self, seed, indices, labels):
        if len(self.drawn) == self.dies_at:
            raise Killed
        self.drawn.append(list(indices))
        return super().__call__(seed, indices, labels)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole")
    draw_samples(Mortal(), out, **COMMAND, save_pngs=True)
    return out


def test_the_files_hold_the_images_in_order(whole):
    assert sorted(p.name for p in whole.iterdir()) == sorted(
        ["grid.png", "samples.npz", *(f"sample_{n:06d}.png" for n in range(11))]
    )
    with np.load(whole / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (11, 16, 16, 3)
    np.testing.assert_array_equal(labels, [0, 2, 0, 2, 0, 2, 0, 2, 0, 2, 0])
    sampler = Mortal()
    expected = to_uint8(sampler(3, [10, 4, 5, 0], [0, 0, 2, 0]))
    np.testing.assert_array_equal(images[[10, 4, 5, 0]], expected)
    np.testing.assert_array_equal(np.asarray(Image.open(whole / "sample_000010.png")), images[10])
    np.testing.assert_array_equal(np.asarray(Image.open(whole / "grid.png"))[2:18, 20:36], images[1])


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_killed_run_goes_on_without_a_duplicate_or_a_gap(tmp_path, whole, dies_at):
    with pytest.raises(Killed):
        draw_samples(Mortal(dies_at), tmp_path, **COMMAND, save_pngs=True)
    assert not files(tmp_path)
    again = Mortal()
    draw_samples(again, tmp_path, **COMMAND, save_pngs=True)
    assert again.drawn == [list(range(start, start + 4)) for start in (0, 4, 8)][dies_at:]
    assert files(tmp_path) == files(whole) and len(list(tmp_path.iterdir())) == len(files(whole))


def test_more_images_of_the_same_command_go_on_too(tmp_path, whole):
    with pytest.raises(Killed):
        draw_samples(Mortal(2), tmp_path, **{**COMMAND, "count": 9})
    again = Mortal()
    draw_samples(again, tmp_path, **COMMAND)
    assert again.drawn == [[8, 9, 10, 11]]
    assert (tmp_path / "samples.npz").read_bytes() == (whole / "samples.npz").read_bytes()


@pytest.mark.parametrize(
    "other, settings",
    [
        ({"seed": 4}, {}),
        ({"labels": [1]}, {}),
        ({"batch_size": 3}, {}),
        ({}, {"guidance": 2.0}),
        ({}, {"sampler": "ddim"}),
        ({}, {"init_image": np.zeros((16, 16, 3), np.float32)}),
    ],
)
def test_another_command_never_mixes_in(tmp_path, capsys, other, settings):
    with pytest.raises(Killed):
        draw_samples(Mortal(2), tmp_path, **COMMAND)
    others = Mortal(1, **settings)
    with pytest.raises(Killed):
        draw_samples(others, tmp_path, **{**COMMAND, **other})
    assert len(others.drawn) == 1
    assert "holds 2 batches of another, unfinished command" in capsys.readouterr().out
    assert len(list(tmp_path.glob(".unfinished-*/command.json"))) == 2


def test_a_damaged_batch_is_named(tmp_path):
    with pytest.raises(Killed):
        draw_samples(Mortal(2), tmp_path, **COMMAND)
    (damaged,) = tmp_path.glob(".unfinished-*/batch_00000004.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"batch_00000004.npy is damaged .*: delete it and run the command"):
        draw_samples(Mortal(), tmp_path, **COMMAND)
    damaged.unlink()
    draw_samples(Mortal(), tmp_path, **COMMAND)


def test_a_trajectory_is_drawn_as_a_strip_and_an_animation(tmp_path, whole):
    draw_trajectory(Mortal(), tmp_path, **COMMAND, frames=3)
    with np.load(whole / "samples.npz") as file:
        images = file["arr_0"]
    strip = np.asarray(Image.open(tmp_path / "trajectory.png"))
    assert strip.shape == (2 + 4 * 18, 2 + 3 * 18, 3)
    for row in range(4):
        top = 2 + 18 * row
        np.testing.assert_array_equal(strip[top : top + 16, 38:54], images[row])
    assert np.abs(strip[2:18, 2:18].astype(int) - images[0]).max() > 1
    with Image.open(tmp_path / "trajectory.gif") as file:
        assert file.n_frames == 3
