"""Samples as an iterator of batches: sizes, labels, resuming from files, and what decides the pixels."""

import concurrent.futures
import dataclasses
import json
import time

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import leaves
from pdm_tf.diffusion.schedules import cosine
from pdm_tf.errors import UserError
from pdm_tf.images import to_uint8
from pdm_tf.ledger import Ledger, Share
from pdm_tf.paths import files_below
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.output import write_images
from tests.fakes import FakeDenoiser
from tests.sampling.mortal import Killed, draw_of


def test_batches_hold_the_images_in_order_and_the_last_one_is_smaller():
    draw = draw_of()
    batches = list(draw.batches())
    assert [len(batch) for batch in batches] == [4, 4, 3] and draw.shape == (11, 16, 16, 3)
    assert all(batch.dtype == np.uint8 for batch in batches)
    images = np.concatenate(batches)
    np.testing.assert_array_equal(draw.image_labels, [0, 2] * 5 + [0])
    expected = to_uint8(draw.sampler(3, [10, 4, 5, 0], [0, 0, 2, 0]))
    np.testing.assert_array_equal(images[[10, 4, 5, 0]], expected)


def test_a_batch_is_drawn_when_it_is_asked_for():
    draw = draw_of()
    batches = draw.batches()
    next(batches)
    assert draw.sampler.drawn == [[0, 1, 2, 3]]


def test_a_batch_larger_than_the_number_of_images_is_cut():
    (batch,) = draw_of(count=3).batches()
    whole = next(draw_of().batches())
    np.testing.assert_array_equal(batch, whole[:3])


def test_without_classes_images_have_no_labels():
    plain = FakeDenoiser(lambda z, t, labels: z, num_classes=0)
    assert draw_of(denoiser=plain, labels=[0]).image_labels is None


def shared(number, workers=2, patience=60.0, dies_at=None):
    return dataclasses.replace(draw_of(dies_at), share=Share(number, workers, patience))


def ledger_of(folder, **settings):
    return Ledger(folder, draw_of(**settings).identity())


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_below(folder)}


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_draw_each_batch_once_and_write_what_one_process_writes(tmp_path, workers):
    """More workers than batches among them; the first one waits for the others."""
    write_images(draw_of(), tmp_path / "alone", save_pngs=True)
    draws = [shared(number, workers) for number in range(workers)]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(write_images, draws[0], tmp_path / "together", save_pngs=True)
        while not list(tmp_path.glob("together/.unfinished-*/identity.json")):
            time.sleep(0.01)
        for draw in draws[1:]:
            assert not first.done()
            write_images(draw, tmp_path / "together", save_pngs=True)
        first.result()
    drawn = [[indices[0] for indices in draw.sampler.drawn] for draw in draws]
    assert drawn == [[0, 4, 8][number::workers] for number in range(workers)]
    assert files(tmp_path / "together") == files(tmp_path / "alone")


def test_a_lost_worker_s_share_is_finished_by_the_same_commands_again(tmp_path, capsys):
    lost = dataclasses.replace(shared(1), count=15)
    with pytest.raises(Killed):
        write_images(dataclasses.replace(shared(1, dies_at=1), count=15), tmp_path)
    first = dataclasses.replace(shared(0, patience=0.0), count=15)
    message = r"1 of 4 parts are missing, and for \d+ s no new one has come \(workers 1 of 2\): run the same"
    with pytest.raises(UserError, match=message):
        write_images(first, tmp_path)
    write_images(lost, tmp_path)
    assert [indices[0] for indices in lost.sampler.drawn] == [12]
    again = dataclasses.replace(shared(0), count=15)
    write_images(again, tmp_path)
    assert again.sampler.drawn == []
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], np.concatenate(list(draw_of(count=15).batches())))


@pytest.mark.parametrize("dies_at", [1, 2])
def test_after_a_kill_finished_batches_are_read_and_give_the_same_bytes(tmp_path, capsys, dies_at):
    with pytest.raises(Killed):
        list(draw_of(dies_at).batches(ledger_of(tmp_path)))
    capsys.readouterr()
    again = draw_of()
    images = np.concatenate(list(again.batches(ledger_of(tmp_path))))
    np.testing.assert_array_equal(images, np.concatenate(list(draw_of().batches())))
    assert [indices[0] for indices in again.sampler.drawn] == [0, 4, 8][dies_at:]
    assert f"{dies_at} of 3 batches are done already" in capsys.readouterr().out
    # And once all are there, nothing is drawn at all.
    last = draw_of(0)
    np.testing.assert_array_equal(np.concatenate(list(last.batches(ledger_of(tmp_path)))), images)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:300] + b"?" + b[301:]])
def test_a_damaged_batch_is_one_line_that_names_the_file(tmp_path, damage):
    list(draw_of().batches(ledger_of(tmp_path)))
    file = ledger_of(tmp_path).folder / "batch_00000004.npz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"damaged .*: restore it or delete it") as error:
        list(draw_of(0).batches(ledger_of(tmp_path)))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


IMAGE = np.zeros((16, 16, 3), np.float32)
# A value of each field that is not that of `draw_of`.
OTHER = {
    "sampler": "ddim", "steps": (4,), "spacing": "logsnr", "guidance": 2.0, "variance": "small", "eta": 0.5,
    "order": 3, "jit_compile": True,
}  # fmt: skip


def test_the_identity_is_json_and_the_same_for_any_number_of_images():
    identity = draw_of().identity()
    assert json.loads(json.dumps(identity)) == json.loads(json.dumps(draw_of(count=99).identity()))


@pytest.mark.parametrize("key", leaves(SamplingConfig))
def test_every_setting_of_sampling_is_a_part_of_the_identity(key):
    assert draw_of(**{key: OTHER[key]}).identity() != draw_of().identity()


def test_so_is_all_else_that_decides_the_pixels():
    """The seed, the labels, what is edited, the weights and the process, each told from all the others."""
    z_only = lambda z, t, labels: z  # noqa: E731
    weights = [(tf.Variable([1.0, value]),) for value in (2.0, 3.0)]
    others = [
        {"seed": 4},
        {"batch_size": 3},
        {"labels": [1]},
        {"edit": Edit(IMAGE)},
        {"edit": Edit(IMAGE + 0.01)},
        {"edit": Edit(IMAGE, np.ones((16, 16), bool))},
        {"edit": Edit(IMAGE, np.eye(16) > 0)},
        {"edit": Edit(IMAGE, strength=0.25)},
        {"edit": Edit(IMAGE, jump_length=5)},
        {"edit": Edit(IMAGE, resamplings=5)},
        *({"denoiser": FakeDenoiser(z_only, variables=values)} for values in weights),
        {"denoiser": FakeDenoiser(z_only, cosine(1000))},
    ]
    identities = {json.dumps(draw_of(**other).identity()) for other in [{}, *others]}
    assert len(identities) == len(others) + 1
