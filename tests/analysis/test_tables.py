"""Tables from what evaluation and training have left in run folders."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.analysis import table1, table2, tables
from pdm_tf.errors import UserError
from tests.analysis.studies import model_of, study_of
from tests.fakes import FakeDenoiser


def model(folder, patch_size, weight=0.0, seed=0, **settings):
    """A model of patch_size * 3 parameters, all equal."""
    variables = [tf.Variable(tf.fill((3, patch_size), weight), name="a")]
    denoiser = FakeDenoiser(lambda z, t, labels: 0.5 * z, num_classes=2, variables=variables)
    settings = {"sampling__steps": (2,), "sampling__sampler": "ddim", **settings}
    return model_of(denoiser, folder, network__patch_size=patch_size, seed=seed, **settings)


@pytest.fixture
def models(tmp_path):
    return [model(tmp_path / f"P{patch_size}", patch_size) for patch_size in (8, 2)]


def write_evaluation(model, folder=None, sampling=None, **metrics):
    """`metrics`: name -> value, or (value, error); `sampling`: of the samples, as an older version has it."""
    pairs = {name: pair if isinstance(pair, tuple) else (pair, None) for name, pair in metrics.items()}
    metrics = {name: {"value": value, "error": error} for name, (value, error) in pairs.items()}
    rows = [
        {"title": "held out", "images": 95, "metrics": {"FID": {"value": 1.0, "error": None}}},
        {"title": "n", "images": 500, "seed": 0, "digest": model.digest, "metrics": metrics},
    ]
    if sampling is not None:
        rows[1]["sampling"] = sampling
    folder = folder or model.runs[0].folder.path / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps({"results": rows}))


def test_table_1_orders_by_patch_size_and_names_what_is_not_evaluated(info, models, tmp_path):
    study = study_of(info, *models, count=5)
    write_evaluation(models[1], FID=(5.7, 0.1))
    result = table1.measure(study)
    rows = result.numbers["rows"]
    assert list(rows) == ["x, P=2", "x, P=8"] and [row["parameters"] for row in rows.values()] == [6, 24]
    assert rows["x, P=2"]["metrics"]["FID"] == {"value": 5.7, "error": 0.1} and not rows["x, P=8"]["metrics"]
    assert "the distance of x, P=8 is not known" in result.sentence
    ratio = rows["x, P=8"]["images_per_second"] / rows["x, P=2"]["images_per_second"]
    assert f"x, P=8 {ratio:.2f} times as many" in result.sentence
    titles, lines = tables.as_texts(rows)
    assert titles[1:4] == ["patch size", "parameters", "seeds"] and titles[-1] == "FID"
    assert [line[-1] for line in lines] == ["5.7 ± 0.1", "-"]
    result.draw(tmp_path / "1.png")


def test_an_evaluation_is_found_by_the_sampling_that_counts(info, models):
    study = study_of(info, *models)
    sampling = dataclasses.asdict(models[0].config.sampling)
    older = {name: sampling[name] for name in sampling.keys() - {"guidance_interval", "threshold"}}
    for settings in (sampling, older, {**older, "jit_compile": True}):
        write_evaluation(models[0], sampling=settings, FID=5.0)
        assert tables.evaluation_of(study, models[0])["metrics"]["FID"]["value"] == 5.0
    write_evaluation(models[0], sampling={**older, "guidance": 2.0}, FID=5.0)
    assert tables.evaluation_of(study, models[0]) is None


def test_table_2_adds_up_the_time_of_training(info, models, tmp_path):
    first = models[0]
    study = study_of(info, *models)
    with pytest.raises(UserError, match="evaluate it first"):
        table2.measure(study)
    write_evaluation(first, IS=142.2, FID=8.57, recall=0.47)
    log = first.runs[0].folder.metrics_file
    log.parent.mkdir()
    # 100 steps of four images at 2 images a second, and a pause in the second half
    lines = [{"step": step, "images_per_second": speed} for step, speed in ((50, 2), (75, 0.01), (100, 2))]
    log.write_text("\n".join(map(json.dumps, lines)))
    result = table2.measure(study)
    (row,) = result.numbers["rows"].values()
    values = {name: metric["value"] for name, metric in row["metrics"].items()}
    assert values == {"IS": 142.2, "FID": 8.57, "recall": 0.47} and row["images"] == 500
    assert row["device_days"] == pytest.approx(100 * 4 / 2 / 86400)
    assert "FID 8.57" in result.sentence and "P2 has not been evaluated" in result.sentence


def test_an_evaluation_is_known_by_the_weights_wherever_it_and_the_runs_lie(info, models, tmp_path):
    first, _ = models
    elsewhere = tmp_path / "elsewhere"
    write_evaluation(first, elsewhere, FID=7.0)
    assert tables.evaluation_of(study_of(info, first), first) is None
    moved = model(tmp_path / "moved", 8)  # the same weights in another folder
    study = study_of(info, moved, evaluations=[elsewhere])
    assert tables.evaluation_of(study, moved)["metrics"]["FID"]["value"] == 7.0
    trained_on = model(tmp_path / "P8", 8, weight=0.1)
    assert tables.evaluation_of(study, trained_on) is None
    (elsewhere / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match="is no evaluation"):
        tables.evaluation_of(study, moved)


def test_seeds_of_a_model_are_one_row_of_means_and_deviations(info, models, tmp_path):
    # Another length of training is no other way to train.
    again = model(tmp_path / "again", 8, weight=1.0, seed=1, training__steps=7)
    study = study_of(info, *models, again)
    write_evaluation(models[0], FID=(20.0, 9.0))
    write_evaluation(models[1], FID=(5.0, 0.1))
    with_missing = table2.measure(study)
    assert list(with_missing.numbers["rows"]) == ["x, P=2"] and "again has not been" in with_missing.sentence
    write_evaluation(again, FID=(24.0, 9.0))
    for analysis in (table1, table2):
        rows = analysis.measure(study).numbers["rows"]
        assert [rows[title]["seeds"] for title in ("x, P=2", "x, P=8")] == [1, 2]
        assert rows["x, P=2"]["metrics"]["FID"] == {"value": 5.0, "error": 0.1}
        assert rows["x, P=8"]["metrics"]["FID"] == pytest.approx({"value": 22, "error": np.sqrt(8)})
