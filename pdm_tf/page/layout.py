"""The look of the page: gradio's components around a `Studio`. Nothing is fetched from elsewhere, or sent."""

from __future__ import annotations

import functools
import html
import logging
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio asks for its newest version otherwise

from pdm_tf.errors import UserError, is_out_of_memory, one_line

try:
    import gradio as gr
except ImportError as error:
    raise UserError(
        "the page needs gradio, which is not installed here: pip install -r requirements-page.txt, in an "
        "environment of its own (docs/page.md)"
    ) from error

from pdm_tf.config.words import leaves, word
from pdm_tf.images import image_grid, to_pillow
from pdm_tf.models import Model
from pdm_tf.page.inside import Inside
from pdm_tf.page.studio import (
    FIELDS,
    MOST_SEED,
    SETTINGS,
    Samples,
    Studio,
    classes_of,
    description,
    enlarged,
    label_of,
    mask_of,
    part_at,
    uploaded,
    whole,
    with_patches,
)
from pdm_tf.sampling.edit import Edit

GRID = 640  # about how many pixels wide grids are shown
PICTURE = 384  # and single pictures
COUNTS = [1, 4, 16, 64]  # few, since each has a graph of its own
EDITS = 4  # pictures of an edit
UPLOAD = "200mb"
NO_CLASS = -1
CHOICES = {
    "ancestral": "Ancestral (DDPM)",
    "ddim": "DDIM",
    "dpm_solver": "DPM-Solver++",
    "unipc": "UniPC",
    "ipndm": "iPNDM",
    "logsnr": "Log-SNR",
}
INFO = {
    "sampler": "DPM-Solver++ and UniPC need the fewest steps.",
    "guidance": "How strongly pictures follow their class; 1 is off.",
    "strength": "How much of the picture changes: 0 keeps it, 1 redraws it. Brushed parts are redrawn.",
    "steps": "More steps take longer.",
    "jump_length": "Steps of a section where the brush went.",
    "resamplings": "Times to repeat each section where the brush went.",
}
INSIDE = (
    "Picture",
    "z_t: noisy picture",
    "x_theta: the network's guess",
    "x*: guess from the training pictures alone",
)
DEFAULTS = {"resamplings": 2}  # the paper's 10 take half a minute
LARGEST = {"guidance": 10.0}  # of sliders whose fields have no limit
# One event at a time computes, whoever has asked for it: two at once take longer than in turn.
IN_TURN = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
AT_ONCE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
TO_RESULT = "() => window.innerWidth < 700 && document.querySelector('.result').scrollIntoView()"
# Nothing of gradio's that leaves the machine, or that a visitor has no use for.
PRIVATE = {
    **dict.fromkeys(("share", "run_history", "ssr_mode", "pwa", "mcp_server", "enable_monitoring"), False),
    "footer_links": [],
}
CSS = """
.pixels img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
.pixels label[data-testid="block-label"] { position: static; margin: 0.4em; width: fit-content; }
.pixels label[data-testid="block-label"] span { display: none; }
.beside { max-width: 30em; }
.gradio-container button, .gradio-container button.reset-button {
  white-space: nowrap; min-height: 44px; min-width: 44px;
}
.gradio-container .tab-like-container { height: auto; }
.gradio-container :is(input[type=range], input[type=number], textarea) { min-height: 44px; }
.gradio-container button.label-wrap { align-items: center; }
.gradio-container label:has(> input[type=checkbox]) { align-items: center; min-height: 44px; }
.canvas .toolbar-wrap button::after { content: attr(aria-label); font-size: small; }
.canvas :is(button[aria-label=Color], button[aria-label=Pan], button[aria-label^=Zoom]) { display: none; }
.canvas .toolbar-wrap { width: max-content; }
.status { min-height: 1.6em; }
.status .problem { color: #b91c1c; font-weight: 600; }
.dark .status .problem { color: #fca5a5; }
"""


def serve(studio: Studio, host: str, port: int) -> None:
    """Shows the page until a signal comes; UserError if the address cannot be had."""
    # TensorFlow warns of many graphs: each count and each setting has one.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="pdm_tf_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # pictures on their way to a browser
        blocks = page_of(studio).queue(default_concurrency_limit=1)
        try:
            _, address, _ = blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                # Fonts that the reader's machine has.
                theme=gr.themes.Soft(
                    primary_hue="indigo",
                    font=["system-ui", "sans-serif"],
                    font_mono=["ui-monospace", "monospace"],
                ),
                css=CSS,
                max_file_size=UPLOAD,
                show_error=True,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                **PRIVATE,
            )
        except OSError as error:
            raise UserError(f"port {port} of {host} cannot be had: choose another") from error
        print(f"page: {address}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("the page is closed")
        finally:
            studio.close()
            blocks.close(verbose=False)


def page_of(studio: Studio) -> gr.Blocks:
    """The whole page: each model has its own components, of which those of the chosen one are visible."""
    titles = [model.title for model in studio.models]
    columns = []
    with gr.Blocks(title="pdm_tf", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        chosen = gr.Dropdown(titles, value=titles[0], label="Model", visible=len(titles) > 1)

        def column(model):
            columns.append(gr.Column(visible=model is studio.models[0]))
            return columns[-1]

        with gr.Tab("Draw"):
            for model in studio.models:
                with column(model):
                    gr.Markdown(description(model))
                    draw_tab(studio, model)
        with gr.Tab("Look inside") as tab:
            for model, info in zip(studio.models, studio.infos):
                with column(model):
                    gr.Markdown(description(model))
                    inside_tab(Inside(model, info), chosen, [tab.select, chosen.change])
        if len(studio.comparable) > 1:
            with gr.Tab("Models"):
                models_tab(studio)

        def choose(title):
            return [gr.update(visible=name == title) for name in 2 * titles]

        chosen.change(choose, chosen, columns, **AT_ONCE)
    return blocks


# --- What tabs have in common ----------------------------------------------------------------------


def status_text(text: str, is_problem: bool = False) -> str:
    """A status line as HTML."""
    return f'<span class="{"problem" if is_problem else ""}" role="status">{html.escape(text)}</span>'


def status_line(text: str = "") -> gr.HTML:
    """A tab's progress and errors."""
    return gr.HTML(status_text(text), elem_classes="status", padding=False)


def showing_errors(status: gr.HTML, answer: Callable[..., Iterator[dict]]) -> Callable:
    """An answer to a click that shows an error in `status`; one that is no UserError is logged whole, too."""

    @functools.wraps(answer)
    def wrapped(*values):
        try:
            yield from answer(*values)
        except UserError as error:
            yield {status: status_text(str(error), is_problem=True)}
        except Exception as error:
            logging.exception("an answer failed")
            text = one_line(error)
            if is_out_of_memory(error):
                text = "the memory is too small for as many pictures: draw fewer at a time"
            yield {status: status_text(text, is_problem=True)}

    return wrapped


def connect(
    draw: Callable[..., Iterator[dict]],
    buttons: Sequence[gr.Button],
    inputs: Sequence[gr.components.Component],
    outputs: Sequence[gr.components.Component],
    on_stop: dict,
) -> None:
    """Has the buttons of `draw_buttons` call `draw`, or stop it with the updates `on_stop`.

    The seed is the first of the inputs, the status line of the outputs.
    """
    button, new_seed, stop = buttons
    status = outputs[0]

    def run(values):
        yield {stop: gr.update(interactive=True)}
        yield from showing_errors(status, draw)(values)
        yield {stop: gr.update(interactive=False)}

    options = {"show_progress_on": [status], **IN_TURN}
    events = [button.click(run, set(inputs), [*outputs, stop], **options)]
    seeded = new_seed.click(lambda: random.randint(0, MOST_SEED), None, inputs[0], **AT_ONCE)
    events.append(seeded.then(run, set(inputs), [*outputs, stop], **options))
    for starts in (button, new_seed):
        starts.click(None, js=TO_RESULT)
    stopped = {status: status_text("Stopped"), stop: gr.update(interactive=False), **on_stop}
    stop.click(lambda: stopped, None, list(stopped), cancels=events, **AT_ONCE)


def draw_buttons() -> list[gr.Button]:
    """The buttons of `connect`."""
    with gr.Row():
        return [
            gr.Button("Draw", variant="primary", min_width=90, size="md"),
            gr.Button("New seed", min_width=90, size="md"),
            gr.Button("Stop", min_width=60, size="md", interactive=False),
        ]


def class_choice(classes: Sequence[tuple[str, int]]) -> gr.Dropdown:
    """The classes of the samples."""
    return gr.Dropdown(
        classes, value=[], multiselect=True, label="Classes", visible=bool(classes), min_width=160, scale=3,
        info="None chosen: all in turn. For your picture, choose its class.",
    )  # fmt: skip


def picture(label: str | None = None, classes: Sequence[str] = (), **options: Any) -> gr.Image:
    """A picture or a grid of them; `classes` of CSS."""
    return gr.Image(
        label=label, show_label=label is not None, format="png", interactive=False, buttons=["fullscreen"],
        elem_classes=["pixels", *classes], **options,
    )  # fmt: skip


def control(name: str, model: Model) -> gr.components.Component:
    """The component of a field of `SETTINGS`, with the run's value."""
    leaf = FIELDS[name]
    edit = leaves(Edit)
    value = edit[name].default if name in edit else getattr(model.config.sampling, name)
    value = DEFAULTS.get(name, value)
    about = {
        "label": label_of(name),
        "info": INFO.get(name, leaf.rule.help),
        "visible": name != "guidance" or bool(classes_of(model) and model.config.diffusion.label_dropout),
    }
    if leaf.rule.choices:
        choices = [(CHOICES.get(choice, choice.capitalize()), choice) for choice in leaf.rule.choices]
        return gr.Dropdown(choices, value=value, min_width=130, **about)
    if leaf.kind is float:
        most = leaf.rule.most or max(LARGEST[name], value)
        return gr.Slider(leaf.rule.least or 0, most, value=value, step=0.05, **about)
    if leaf.kind is int:
        return gr.Number(value, **about)
    return gr.Textbox(word(value), min_width=130, **about)


def brush_canvas() -> gr.ImageEditor:
    """A picture to brush over."""
    return gr.ImageEditor(
        show_label=False, type="numpy", format="png", sources=(), transforms=(), layers=False, buttons=[],
        brush=gr.Brush(24, colors=["#d946ef"], color_mode="fixed"), eraser=gr.Eraser(24),
        canvas_size=(PICTURE, PICTURE), height=290, elem_classes="canvas",
    )  # fmt: skip


def grid_of(samples: Samples):
    """The samples as one picture."""
    return to_pillow(enlarged(image_grid(samples.images), GRID))


# --- Tabs ------------------------------------------------------------------------------------------


def draw_tab(studio: Studio, model: Model) -> None:
    """Samples from noise; of an uploaded picture, edits; where a brush went over it, inpainting."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                labels = class_choice(classes_of(model))
                count = gr.Dropdown(COUNTS, value=16, label="Pictures", min_width=90, info="To draw.")
            upload = gr.UploadButton("Start from a picture of yours", type="filepath", size="md")
            path = gr.State()
            with gr.Column(visible=False) as editor:
                gr.Markdown("Brush over what to redraw, or nothing to change all of it.")
                canvas = brush_canvas()
            buttons = draw_buttons()
            with gr.Column(visible=False) as edit_settings:
                fields = {"strength": control("strength", model)}
                remove = gr.Button("Remove the picture", size="md")
            with gr.Accordion("More settings", open=False):
                seed = gr.Number(0, label="Seed", min_width=100)
                fields.update({name: control(name, model) for name in SETTINGS if name not in fields})
        with gr.Column(scale=3, min_width=300, elem_classes="result"):
            status = status_line("Press Draw.")
            grid = picture(height=480)
            with gr.Row():
                names = ("Save grid", "Save PNGs", "Save npz")
                files = [gr.DownloadButton(name, min_width=90, visible=False) for name in names]
    nothing = {grid: None, **{file: gr.update(visible=False) for file in files}}

    def draw(values):
        image = uploaded(values[path], model)
        layers = (values[canvas] or {}).get("layers", [])
        mask = None if image is None else mask_of(layers, image.shape)
        given = {name: values[field] for name, field in fields.items() if field.visible}
        yield nothing
        for samples in studio.draw(model, given, values[labels], values[seed], values[count], image, mask):
            yield {status: status_text(samples.status), grid: grid_of(samples)}
        yield {button: gr.update(value=str(file), visible=True) for button, file in zip(files, samples.files)}

    inputs = [seed, labels, count, path, canvas, *fields.values()]
    connect(draw, buttons, inputs, [status, *nothing], nothing)

    def take(file):
        background = to_pillow(enlarged(uploaded(file, model), PICTURE))
        picture = {"background": background, "layers": [], "composite": None}
        yield {
            path: file,
            canvas: picture,
            **dict.fromkeys((editor, edit_settings), gr.update(visible=True)),
            count: EDITS,
            status: status_text(""),
        }

    changed = [path, canvas, editor, edit_settings, count, status]
    upload.upload(showing_errors(status, take), upload, changed, **IN_TURN)
    hidden = dict.fromkeys((editor, edit_settings), gr.update(visible=False))
    removed = {path: None, canvas: None, **hidden}
    remove.click(lambda: removed, None, list(removed), **AT_ONCE)


def inside_tab(room: Inside, chosen: gr.Dropdown, events: Sequence[Callable]) -> None:
    """One picture at a noise level: the network's input, its prediction, and the best prediction."""
    model = room.model
    steps = len(model.denoiser.schedule)
    examples = len(room.examples)
    with gr.Row():
        info = f"From the split {room.split} of {room.study.info.name}." if examples else None
        shown = {"info": info, "visible": examples > 1, "min_width": 280, "scale": 2}
        example = gr.Slider(1, max(examples, 2), value=1, step=1, label="Picture", **shown)
        upload = gr.UploadButton("Use a picture of yours", type="filepath")
        path = gr.State()
    info = f"0 is clean, {steps - 1} is noise."
    level = gr.Slider(0, steps - 1, value=steps // 2, step=1, label="Noise level t", info=info)
    classes = classes_of(model)
    with gr.Row(equal_height=True):
        none = [("none", NO_CLASS)] if model.config.diffusion.label_dropout or not classes else []
        choices = none + classes
        shown = {"min_width": 200, "visible": bool(classes)}
        label = gr.Dropdown(choices, value=choices[0][1], label="Class given to the network", **shown)
        seed = gr.Number(0, label="Seed of the noise", min_width=120)
        patches = gr.Checkbox(True, label="Show the patches", min_width=120)
    status = status_line()
    with gr.Row():
        pictures = [picture(name, min_width=140) for name in INSIDE]

    def look(values):
        if values[chosen] != model.title:
            return
        image = uploaded(values[path], model)
        if image is None and not examples:
            raise UserError("Choose a picture of yours: the model's training pictures are not at hand")
        if image is None:
            image = room.examples[int(values[example]) - 1]
        t = int(values[level])
        noise_seed = whole(values[seed], "Seed", 0, MOST_SEED)
        view = room.at(image, t, None if values[label] == NO_CLASS else values[label], noise_seed)
        patch_size = part_at(model, t).patch_size
        # The network alone works on patches, so z_t and x_theta have their borders.
        border = patch_size if values[patches] else max(image.shape)
        shown = [
            enlarged(image, PICTURE),
            with_patches(view.z, PICTURE, border),
            with_patches(view.x, PICTURE, border),
        ]
        updates = {box: to_pillow(x) for box, x in zip(pictures, shown)}
        best = None if view.best is None else to_pillow(enlarged(view.best, PICTURE))
        updates[pictures[-1]] = gr.update(value=best, visible=best is not None)
        text = f"{view.status}; patches of {patch_size} x {patch_size} pixels"
        yield {**updates, status: status_text(text)}

    inputs = {chosen, example, path, level, label, seed, patches}
    looks = [*events, *(component.input for component in (level, label, seed, patches))]
    looks.append(upload.upload(lambda file: file, upload, path, **AT_ONCE).then)
    looks.append(example.input(lambda: None, None, path, **AT_ONCE).then)
    for event in looks:
        event(showing_errors(status, look), inputs, [*pictures, status], show_progress="hidden", **IN_TURN)


def models_tab(studio: Studio) -> None:
    """Several models, or experts, side by side at one seed."""
    models = {model.title: model for model in studio.comparable}
    titles = list(models)
    gr.Markdown("Each model draws from the same noise, with the settings of its run.")
    chosen = gr.CheckboxGroup(titles, value=titles, label="Models")
    classes = {tuple(classes_of(model)) for model in studio.comparable} - {()}
    labels = class_choice(list(classes.pop()) if len(classes) == 1 else [])  # where all have the same
    with gr.Row(equal_height=True):
        count = gr.Radio(COUNTS[:3], value=4, label="Pictures")
        seed = gr.Number(0, label="Seed", min_width=120)
    buttons = draw_buttons()
    status = status_line()
    with gr.Row():
        pictures = {title: picture(title, ["beside"], min_width=240) for title in titles}
    curves = studio.curves()
    if curves is not None:
        with gr.Accordion("How their runs learnt", open=False):
            gr.Image(str(curves), show_label=False, interactive=False, buttons=["fullscreen"])

    def draw(values):
        compared = [models[title] for title in values[chosen]]
        yield {
            component: gr.update(value=None, visible=title in values[chosen])
            for title, component in pictures.items()
        }
        lines = {}
        for model, samples in studio.compare(compared, values[labels], values[seed], values[count]):
            lines[model.title] = f"{model.title}: {samples.status}"
            yield {pictures[model.title]: grid_of(samples), status: status_text("; ".join(lines.values()))}

    connect(draw, buttons, [seed, chosen, labels, count], [status, *pictures.values()], {})
