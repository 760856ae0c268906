"""The paper's tables and figures from trained models and their data set: numbers, a sentence and a picture.

Nothing trains here. `study` is the models and data, `optimum` x* of Eq. 4; each module of `ANALYSES` is one
analysis, measure(study: Study) -> Result.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from pdm_tf.atomic import atomic_json
from pdm_tf.errors import UserError
from pdm_tf.paths import as_path

if TYPE_CHECKING:
    from pdm_tf.analysis.study import Study

# The modules of this package that are analyses.
ANALYSES = ("fig1a", "fig1b", "fig2", "fig3", "fig4", "table1", "table2", "memory", "grids")
# Those of x_theta at t of which a student has learnt few.
AT_ALL_T = ("fig1a", "fig1b", "fig2", "fig3", "fig4")


def analyze(name: str, study: Study, out: str | os.PathLike) -> None:
    """Makes an analysis: writes <name>.json and <name>.png to the folder `out` and prints the sentence.

    UserError, which says what it needs, if it cannot be made of these models or data.
    """
    for model in study.models:
        if model.config.is_student and name in AT_ALL_T:
            raise UserError(
                f"{name} looks at all t, and {model} is a student, which knows few: give its teacher"
            )
    result = importlib.import_module(f"{__name__}.{name}").measure(study)
    file = as_path(out) / f"{name}.json"
    picture = as_path(out) / f"{name}.png"
    atomic_json(file, {**study.description(), **result.numbers, "what": name, "sentence": result.sentence})
    result.draw(picture)
    print(f"{result.sentence}\nnumbers: {file}\npicture: {picture}")
