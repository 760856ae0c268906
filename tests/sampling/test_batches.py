"""Samples as an iterator of batches: sizes, labels, several workers, and what decides the pixels."""

import concurrent.futures
import dataclasses
import json
import time

import numpy as np
import pytest

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import leaves
from pdm_tf.errors import UserError
from pdm_tf.images import to_uint8
from pdm_tf.ledger import Share
from pdm_tf.paths import files_below
from pdm_tf.sampling.batches import default_batch
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.output import write_images
from tests.fakes import FakeDenoiser
from tests.sampling.mortal import MODEL, Killed, draw_of


def test_batches_hold_the_images_in_order_and_the_last_one_is_smaller():
    draw = draw_of()
    batches = iter(draw)
    first = next(batches)
    assert draw.sampler.drawn == [[0, 1, 2, 3]]  # none before it is asked for
    batches = [first, *batches]
    assert [len(batch) for batch in batches] == [4, 4, 3] and draw.shape == (11, 16, 16, 3)
    assert all(batch.dtype == np.uint8 for batch in batches)
    images = np.concatenate(batches)
    np.testing.assert_array_equal(draw.image_labels, [0, 2] * 5 + [0])
    expected = to_uint8(draw.sampler(3, [10, 4, 5, 0], [0, 0, 2, 0]))
    np.testing.assert_array_equal(images[[10, 4, 5, 0]], expected)
    np.testing.assert_array_equal(draw.images([10, 4, 5, 0, 1]), images[[10, 4, 5, 0, 1]])
    np.testing.assert_array_equal(list(draw.predictions(8))[-1], images[8:])
    (batch,) = draw_of(count=3)
    np.testing.assert_array_equal(batch, images[:3])


def test_all_classes_come_in_turn_by_default():
    np.testing.assert_array_equal(draw_of(labels=()).image_labels, [*[0, 1, 2] * 3, 0, 1])
    plain = FakeDenoiser(lambda z, t, labels: z, num_classes=0)
    draw = draw_of(denoiser=plain, labels=())
    assert draw.image_labels is None and sum(map(len, draw)) == 11


def shared(number, workers=2, patience=60.0, dies_at=None, count=11):
    share = Share(number, workers, patience)
    return dataclasses.replace(draw_of(dies_at, count=count), share=share)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_below(folder)}


@pytest.mark.parametrize("workers", [2, 5])
def test_workers_draw_each_batch_once_and_write_what_one_process_writes(tmp_path, workers):
    """More workers than batches among them; the first one waits for the others."""
    write_images(draw_of(), tmp_path / "alone", MODEL, save_pngs=True)
    draws = [shared(number, workers) for number in range(workers)]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        first = thread.submit(write_images, draws[0], tmp_path / "together", MODEL, save_pngs=True)
        while not list(tmp_path.glob("together/.unfinished-*/identity.json")):
            time.sleep(0.01)
        for draw in draws[1:]:
            assert not first.done()
            write_images(draw, tmp_path / "together", MODEL, save_pngs=True)
        first.result()
    drawn = [[indices[0] for indices in draw.sampler.drawn] for draw in draws]
    assert drawn == [[0, 4, 8][number::workers] for number in range(workers)]
    assert files(tmp_path / "together") == files(tmp_path / "alone")


def test_a_lost_worker_s_share_is_finished_by_the_same_commands_again(tmp_path):
    with pytest.raises(Killed):
        write_images(shared(1, dies_at=1, count=15), tmp_path, MODEL)
    message = r"1 of 4 parts are missing, and for \d+ s no new one has come \(workers 1 of 2\): run the same"
    with pytest.raises(UserError, match=message):
        write_images(shared(0, patience=0.0, count=15), tmp_path, MODEL)
    lost, again = shared(1, count=15), shared(0, count=15)
    write_images(lost, tmp_path, MODEL)
    assert [indices[0] for indices in lost.sampler.drawn] == [12]
    write_images(again, tmp_path, MODEL)
    assert again.sampler.drawn == []
    with np.load(tmp_path / "samples.npz") as file:
        np.testing.assert_array_equal(file["arr_0"], np.concatenate(list(draw_of(count=15))))


IMAGE = np.zeros((16, 16, 3), np.float32)
# A value of each field that is not that of `draw_of`.
OTHER = {
    "sampler": "ddim",
    "steps": (4,),
    "spacing": "logsnr",
    "guidance": 2.0,
    "guidance_interval": (2, 8),
    "threshold": "none",
    "variance": "small",
    "eta": 0.5,
    "order": 3,
    "jit_compile": True,
}


def test_all_that_decides_the_pixels_is_a_part_of_the_identity():
    assert set(OTHER) == set(leaves(SamplingConfig))
    others = [
        {},
        *({key: value} for key, value in OTHER.items()),
        {"seed": 4},
        {"batch_size": 3},
        {"labels": [1]},
        {"edit": Edit(IMAGE)},
        {"edit": Edit(IMAGE + 0.01)},
        {"edit": Edit(IMAGE, np.ones((16, 16), bool), resamplings=1)},
        {"edit": Edit(IMAGE, np.eye(16) > 0, resamplings=1)},
        {"edit": Edit(IMAGE, strength=0.25)},
        {"edit": Edit(IMAGE, jump_length=5)},
        {"edit": Edit(IMAGE, resamplings=5)},
    ]
    identities = {json.dumps(draw_of(**other).identity(MODEL)) for other in others}
    assert len({*identities, json.dumps(draw_of().identity("1" * 64))}) == len(others) + 1
    assert json.dumps(draw_of(count=99).identity(MODEL)) in identities  # whatever the number of images


@pytest.mark.parametrize("replicas", [1, 2, 3, 7, 8, 32])
def test_a_default_batch_suits_all_replicas(replicas):
    for count in (1, 5, 16, 100):
        batch = default_batch(count, replicas)
        assert batch % replicas == 0 and batch <= max(16, replicas) and batch < count + replicas
