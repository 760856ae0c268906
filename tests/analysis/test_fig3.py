"""Loss curves from the logs of runs."""

import json

import numpy as np
import pytest

from pdm_tf.analysis import fig3
from pdm_tf.errors import UserError
from tests.analysis.studies import model_of, study_of

STEPS = range(10, 310, 10)


def write_log(model, value, without=()):
    """A training's log whose losses are `value` at the first step and fall as 1 / step.

    `without`: steps at which the last quarter of t had no image.
    """
    file = model.runs[0].folder.metrics_file
    file.parent.mkdir(parents=True)
    lines = []
    for step in STEPS:
        loss = value * 10 / step
        quarters = {f"mse_quarter{q + 1}": loss * (q + 0.5) / 2 for q in range(4 - (step in without))}
        lines.append(json.dumps({"step": step, "simple_loss": 3 * loss, **quarters}))
    file.write_text("\n".join(lines))


def test_curves_are_means_over_seeds_on_one_weighting(info, tmp_path):
    models = []
    for prediction, seed, value in (("x", 0, 1.0), ("x", 1, 3.0), ("v", 0, 4.0)):
        folder = tmp_path / f"{prediction}{seed}"
        models.append(model_of(None, folder, diffusion__prediction=prediction, seed=seed))
        write_log(models[-1], value)
    result = fig3.measure(study_of(info, *models))
    curves = result.numbers["curves"]
    assert {title: curve["seeds"] for title, curve in curves.items()} == {"x, P=4": [0, 1], "v, P=4": [0]}
    x = curves["x, P=4"]["mse"]
    last = np.mean([10 / step for step in range(210, 310, 10)])  # a running mean of ten lines
    assert x["step"][-1] == 300 and x["mean"][-1] == pytest.approx(2 * last)
    assert x["spread"][-1] == pytest.approx(np.sqrt(2) * last) and curves["v, P=4"]["mse"]["spread"] is None
    assert curves["v, P=4"]["simple_loss"]["mean"][-1] == pytest.approx(12 * last)
    assert "x, P=4" in result.sentence.split("v, P=4")[0]  # the lowest first
    result.draw(tmp_path / "3.png")
    other = model_of(None, tmp_path / "other", diffusion__loss_weighting="constant")
    write_log(other, 2.0)
    mixed = fig3.measure(study_of(info, *models, other)).numbers["curves"]
    assert len(mixed) == 3 and not any("simple_loss" in curve for curve in mixed.values())


@pytest.mark.parametrize(
    "settings", [{}, {"diffusion__t_distribution": "logit_normal"}, {"network__patch_switch_t": 500}]
)
def test_errors_are_of_all_t_alike_only_where_training_draws_t_so(info, tmp_path, settings):
    model = model_of(None, tmp_path / "run", network__channel_multipliers=(1, 1), **settings)
    write_log(model, 1.0)
    result = fig3.measure(study_of(info, model))
    assert result.numbers["mse"] == (fig3.AS_TRAINED if settings else fig3.EVEN)
    assert f"the {result.numbers['mse']}, is" in result.sentence


def test_a_line_without_all_quarters_of_t_is_no_point_of_the_curve_over_all_t(info, tmp_path):
    model = model_of(None, tmp_path / "rare")
    write_log(model, 1.0, without=STEPS[1::2])
    curve = fig3.measure(study_of(info, model)).numbers["curves"]["x, P=4"]
    assert curve["mse"]["step"] == list(STEPS[0::2])[9:] and len(curve["simple_loss"]["step"]) == 21
    last = np.mean([10 / step for step in STEPS[0::2][-10:]])
    assert curve["mse"]["mean"][-1] == pytest.approx(last)


def test_a_run_without_a_log_is_named(info, tmp_path):
    with pytest.raises(UserError, match=r"needs runs that were trained here$"):
        fig3.measure(study_of(info, model_of(None, tmp_path / "run")))
