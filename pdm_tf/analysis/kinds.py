"""The list of analyses, and how one is reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from pdm_tf.analysis import blur, distortion, grids, losses, memory, reconstructions, tables
from pdm_tf.analysis.subject import Findings, Subject
from pdm_tf.atomic import atomic_json
from pdm_tf.config.fields import ANALYSES
from pdm_tf.paths import as_path


class Kind(NamedTuple):
    """One table or figure.

    Attributes:
      measure: models and data -> what is found.
      draw: writes the picture of it.
    """

    measure: Callable[[Subject], Findings]
    draw: Callable[[Findings, str | os.PathLike], None]


KINDS = {
    "fig1a": Kind(blur.as_t_grows, blur.draw_growth),
    "fig1b": Kind(reconstructions.reconstructions, reconstructions.draw_reconstructions),
    "fig2": Kind(distortion.distortion, distortion.draw_distortion),
    "fig3": Kind(losses.losses, losses.draw_losses),
    "fig4": Kind(blur.at_much_noise, blur.draw_much_noise),
    "table1": Kind(tables.patch_sizes, tables.draw_table),
    "table2": Kind(tables.measures, tables.draw_table),
    "memory": Kind(memory.memory, memory.draw_memory),
    "grids": Kind(grids.grids, grids.draw_grids),
}
assert set(KINDS) == set(ANALYSES)


def report(what: str, subject: Subject, out: str | os.PathLike) -> None:
    """Makes one of `KINDS`: writes <what>.json and <what>.png to a folder, and prints the sentence.

    Raises:
      UserError: the runs, or the data, are not what it can be made of; says what it needs.
    """
    kind, out = KINDS[what], as_path(out)
    found = kind.measure(subject)
    file, picture = out / f"{what}.json", out / f"{what}.png"
    atomic_json(file, {**subject.about(), **found.numbers, "what": what, "sentence": found.sentence})
    kind.draw(found, picture)
    print(f"{found.sentence}\nnumbers: {file}\npicture: {picture}")
