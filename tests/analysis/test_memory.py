"""The largest batch within a limit: its search, and a real train step in a process of its own."""

import math

import pytest

from pdm_tf.analysis import memory
from tests.analysis.studies import model_of, study_of
from tests.tiny_runs import tiny_config


@pytest.mark.parametrize(
    "base, slope, limit", [(900, 7.2, 2048), (870, 100, 2048), (0, 1, 17), (10, 3, 5000)]
)
def test_the_search_finds_the_line_s_own_batch(base, slope, limit):
    asked = []

    def peak(batch):
        asked.append(batch)
        # Below the process's first peak nothing is seen of the batch.
        return max(base * 1.02, base + slope * batch)

    found, peaks = memory.largest_batch(peak, limit)
    true = int((limit - base) // slope)
    assert found <= true <= found + max(1, found // memory.TOLERANCE)
    assert len(asked) == len(set(asked)) == len(peaks) <= 12
    assert peaks[found] <= limit < min(value for value in peaks.values() if value > limit)


def test_a_killed_process_is_too_much_and_nothing_may_fit_at_all():
    found, peaks = memory.largest_batch(lambda batch: math.inf if batch > 5 else 10.0 * batch, 1000)
    assert found == 5 and max(value for value in peaks.values() if math.isfinite(value)) == 50
    assert memory.largest_batch(lambda batch: 2000.0, 1000)[0] == 0
    # Of a network of two patch sizes no batch of one image is asked for.
    assert memory.largest_batch(lambda batch: 2000.0, 1000, least=2) == (0, {2: 2000.0})
    assert memory.largest_batch(lambda batch: 400.0 * batch, 1000, least=2)[0] == 2


def test_one_model_is_beside_itself_without_patches_and_several_are_beside_each_other(
    info, tmp_path, monkeypatch
):
    mebibytes = {1: 2000.0, 2: 8.0, 4: 4.0}  # of an image with each P

    def peak(config):
        assert config.training.grad_accum == 1
        return 100 + mebibytes[config.network.patch_size] * config.training.batch_size

    monkeypatch.setattr(memory, "peak_in_child", peak)
    models = [model_of(None, tmp_path / f"P{p}", network__patch_size=p) for p in (4, 2)]
    result = memory.measure(study_of(info, models[0], memory_gib=1.0))
    rows = result.numbers["rows"]
    assert list(rows) == ["x, P=4", "the same with P=1"]
    assert rows["x, P=4"]["mebibytes_per_image"] == pytest.approx(4)
    assert rows["the same with P=1"]["largest_batch"] == 0
    assert rows["the same with P=1"]["mebibytes_per_image"] is None
    assert "0 of the same with P=1 (not even the smallest fits)" in result.sentence
    result.draw(tmp_path / "memory.png")
    result = memory.measure(study_of(info, *models, memory_gib=1.0))
    batches = {title: row["largest_batch"] for title, row in result.numbers["rows"].items()}
    assert batches["x, P=4"] / batches["x, P=2"] == pytest.approx(2, rel=0.1)
    assert result.sentence.split("x, P=4")[1].count("times as many") == 1


@pytest.mark.slow
def test_a_larger_batch_takes_more_in_a_real_process_and_crops_take_less():
    local = {"network__patch_size": 1, "network__local": True}
    small, crops, large = (
        memory.peak_in_child(tiny_config(training__batch_size=batch, data__crop=crop, **local))
        for batch, crop in ((4, 0), (512, 4), (512, 0))
    )
    assert 100 < small < large - 100 and crops < large - 100
