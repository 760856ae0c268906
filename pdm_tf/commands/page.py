"""--mode=page: a page in the browser, to draw, edit and inpaint with models, and to look inside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Optional

from pdm_tf.commands.options import DataOptions
from pdm_tf.config.words import setting
from pdm_tf.data import DatasetInfo
from pdm_tf.errors import UserError
from pdm_tf.models import Model, models_from_folders
from pdm_tf.page.studio import Studio


@dataclass(frozen=True)
class Options(DataOptions):
    """Serve a page in the browser to draw and edit with models."""

    host: str = setting(
        "127.0.0.1", "The address to serve the page at; by default this machine alone can open it."
    )
    port: int = setting(7860, "The port to serve the page at.", least=1, below=2**16)


def run(options: Options) -> None:
    from pdm_tf.page import layout  # which alone needs gradio; the flags are listed without it

    models = models_from_folders(*options.trained_dirs())
    infos = [data_at_hand(options, model) for model in models]
    exempt_from_proxies(options.host)
    layout.serve(Studio(models, infos), options.host, options.port)


def exempt_from_proxies(host: str) -> None:
    """gradio asks the page itself whether it is up, which no proxy can answer."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [os.environ.get(name), "localhost", "127.0.0.1", "::1", host]
        os.environ[name] = ",".join(filter(None, hosts))


def data_at_hand(options: Options, model: Model) -> Optional[DatasetInfo]:
    """The data that a model learnt from; None, and a printed note, where they are missing."""
    try:
        return options.trained_data(model.config.data)
    except UserError as error:
        print(f"note: no x* and no pictures of the data: {error}", flush=True)
        return None
