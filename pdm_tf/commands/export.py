"""--mode=export: a SavedModel of a model and a sampler, or a run's weights for other frameworks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pdm_tf.commands.options import (
    AverageOptions,
    OutputOptions,
    RunOptions,
    last_part,
    overrides,
    sampled_as_asked,
)
from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import choice
from pdm_tf.errors import UserError
from pdm_tf.export import export_saved_model, export_weights
from pdm_tf.models import Run
from pdm_tf.run import RunFolder

# Each call of an export gives it guidance.
SamplingInAnExport = overrides(SamplingConfig, without=("guidance", "jit_compile"))


@dataclass(frozen=True)
class Options(AverageOptions, SamplingInAnExport, OutputOptions, RunOptions):
    """Export a model with its sampler for TensorFlow, or its weights for other frameworks."""

    format: str = choice(
        ("saved_model", "safetensors"),
        "A model with its sampler for TensorFlow, or one network's weights alone for other frameworks.",
    )

    @property
    def default_out(self) -> str:
        name = "_".join(map(last_part, self.run_dirs())) + (
            "_weights" if self.format == "safetensors" else ""
        )
        return "exports/" + re.sub(r"[][*?\\]", "_", name)  # TensorFlow loads from no folder with these


def run(options: Options) -> None:
    out = options.out_folder(options.default_out)
    if options.format == "safetensors":
        print(f"weights: {export_weights(one_run(options), options.ema_length, out)}")
        print(f"their names and shapes: {out}/README.md")
        return
    model = options.model()
    options.use_average(model)
    export_saved_model(model, out)
    print(f"SavedModel: {out}")
    print(f"how to call it: {out}/README.md")


def one_run(options: Options) -> Run:
    """The run, which may be an expert; its config says how to sample."""
    folders = options.trained_dirs()
    if len(folders) > 1:
        raise UserError(f"weights are exported one network at a time, not {len(folders)}: name one run")
    folder = RunFolder(folders[0])
    return Run(folder, sampled_as_asked(folder.config(), options))
