"""--mode=analyze: a table or figure of the paper, of runs and the data that they learnt from."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pdm_tf.analysis import ANALYSES, analyze
from pdm_tf.analysis.study import Study
from pdm_tf.commands.options import DataOptions, DrawingOptions, OutputOptions, class_numbers
from pdm_tf.config.words import choice, setting
from pdm_tf.run import RunFolder


@dataclass(frozen=True)
class Options(DrawingOptions, OutputOptions, DataOptions):
    """Make a table or figure of the paper."""

    what: str = choice(ANALYSES, "The table or figure of the paper to make of the runs.")
    memory_gib: float = setting(2.0, "Memory limit of --what=memory in GiB.", least=0.1)


def run(options: Options) -> None:
    models = options.models()
    study = Study(
        models,
        options.trained_data(models[0].config.data),
        options.seed,
        options.num_samples,
        options.batch_size(options.num_samples),
        class_numbers(options.labels, models[0].config),
        options.memory_gib,
        # Several runs are evaluated in the folder of the first, and the shipped one in the default run's.
        [RunFolder(options.run_dirs()[0]).evaluation],
    )
    analyze(options.what, study, options.out_folder(os.path.join(options.run_dirs()[0], "analysis")))
