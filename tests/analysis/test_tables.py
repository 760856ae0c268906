"""Tables from what evaluation and training have left in run folders."""

import json

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.analysis import tables
from pdm_tf.errors import UserError
from tests.analysis.subjects import model_of, small_data, subject_of
from tests.fakes import FakeDenoiser


@pytest.fixture
def models(tmp_path):
    made = []
    for patch_size in (8, 2):
        network = FakeDenoiser(
            lambda z, t, labels: 0.5 * z,
            num_classes=2,
            variables=[tf.Variable(tf.zeros((3, patch_size)))],
        )
        settings = {"network__patch_size": patch_size, "sampling__steps": (2,), "sampling__sampler": "ddim"}
        made.append(model_of(network, tmp_path / f"P{patch_size}", **settings))
    return made


def write_evaluation(model, folder, **values):
    """Values alone, or with their errors."""
    pairs = {name: value if isinstance(value, tuple) else (value, None) for name, value in values.items()}
    metrics = {name: {"value": value, "error": error} for name, (value, error) in pairs.items()}
    row = {"title": "n", "images": 500, "seed": 0, "digest": model.digest, "metrics": metrics}
    held_out = {"title": "held out", "images": 95, "metrics": {"FID": {"value": 1.0, "error": None}}}
    folder.mkdir(parents=True, exist_ok=True)
    results = {"results": [row, held_out], "detector": {"name": "inception"}}
    (folder / "evaluation.json").write_text(json.dumps(results))


def test_table_1_orders_by_patch_size_and_says_what_is_not_known(models, tmp_path):
    subject = subject_of(small_data(tmp_path / "data"), *models, count=5)
    write_evaluation(models[1], models[1].runs[0].folder.evaluation, FID=(5.7, 0.1))
    found = tables.patch_sizes(subject)
    rows = found.numbers["rows"]
    assert list(rows) == ["x, P=2", "x, P=8"] and [row["parameters"] for row in rows.values()] == [6, 24]
    assert rows["x, P=2"]["FID"] == 5.7 and "FID" not in rows["x, P=8"]
    assert "the distance of x, P=8 is not known" in found.sentence
    ratio = rows["x, P=8"]["images_per_second"] / rows["x, P=2"]["images_per_second"]
    assert f"x, P=8 {ratio:.2f} times as many" in found.sentence
    tables.draw_table(found, tmp_path / "1.png")


def test_table_2_is_of_the_newest_weights_and_adds_up_the_time(models, tmp_path):
    first = models[0]
    subject = subject_of(small_data(tmp_path / "data"), *models)
    with pytest.raises(UserError, match="evaluate it first"):
        tables.measures(subject)
    write_evaluation(first, first.runs[0].folder.evaluation, IS=142.2, FID=8.57, recall=0.47)
    log = first.runs[0].folder.metrics_file
    log.parent.mkdir()
    # 100 steps of four images, the first half at 2 images a second, the second at 4
    lines = [{"step": 50, "images_per_second": 2.0}, {"step": 100, "images_per_second": 4.0}]
    log.write_text("\n".join(map(json.dumps, lines)))
    found = tables.measures(subject)
    (row,) = found.numbers["rows"].values()
    assert (row["IS"], row["FID"], row["recall"], row["images"]) == (142.2, 8.57, 0.47, 500)
    assert row["device_days"] == pytest.approx((50 * 4 / 2 + 50 * 4 / 4) / 86400)
    assert "FID 8.57" in found.sentence and "P2 has not been evaluated" in found.sentence
    tables.draw_table(found, tmp_path / "2.png")
    # The evaluation was of other weights than the run has now.
    first.denoiser.variables[0].assign_add(tf.ones((3, 8)))
    assert tables.evaluated(first) is None
    (first.runs[0].folder.evaluation / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="is no evaluation"):
        tables.evaluated(first)


def test_an_evaluation_is_of_the_weights_that_it_names_wherever_it_lies(models, tmp_path):
    model, other = models
    write_evaluation(model, tmp_path / "together", FID=7.0)
    assert tables.evaluated(model) is None
    assert tables.distances(tables.evaluated(model, [tmp_path / "together"])) == {"FID": 7.0}
    assert tables.evaluated(other, [tmp_path / "together"]) is None


def test_seeds_of_a_model_are_one_row_of_means_and_deviations(models, tmp_path):
    settings = {"network__patch_size": 8, "sampling__steps": (2,), "sampling__sampler": "ddim"}
    # Another length of training is no other way to train; neither are more steps of sampling.
    again = model_of(models[0].denoiser, tmp_path / "again", seed=1, training__steps=7, **settings)
    subject = subject_of(small_data(tmp_path / "data"), *models, again)
    write_evaluation(models[0], models[0].runs[0].folder.evaluation, FID=(20.0, 9.0))
    write_evaluation(models[1], models[1].runs[0].folder.evaluation, FID=(5.0, 0.1))
    with_missing = tables.measures(subject)
    assert list(with_missing.numbers["rows"]) == ["x, P=2"] and "again has not been" in with_missing.sentence
    write_evaluation(again, again.runs[0].folder.evaluation, FID=(24.0, 9.0))
    for found in (tables.patch_sizes(subject), tables.measures(subject)):
        rows = found.numbers["rows"]
        assert [(rows[name]["FID"], rows[name]["seeds"]) for name in ("x, P=2", "x, P=8")] == [
            (5, 1),
            (22, 2),
        ]
        assert rows["x, P=2"]["FID error"] == 0.1
        assert rows["x, P=8"]["FID error"] == pytest.approx(np.sqrt(8))
