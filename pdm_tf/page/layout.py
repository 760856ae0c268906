"""How the page looks: gradio's components around a `Studio`. Nothing is fetched from elsewhere, or told."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import html
import logging
import os
import random
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio asks for its newest version otherwise

from pdm_tf.errors import UserError

try:
    import gradio as gr
except ImportError as error:
    raise UserError(
        "the page needs gradio, which is not installed here: pip install -r requirements-page.txt, in an "
        "environment of its own (docs/page.md)"
    ) from error

from pdm_tf.config.fields import SamplingConfig
from pdm_tf.config.words import leaves, word
from pdm_tf.images import image_grid, to_pillow
from pdm_tf.page.inside import Inside
from pdm_tf.page.studio import (
    MOST_SEED,
    Shown,
    Studio,
    enlarged,
    fields_of,
    mask_of,
    uploaded,
    with_patches,
)
from pdm_tf.sampling.edit import Edit

GRID, PICTURE = 640, 384  # about how many pixels wide they are shown
GUIDANCE = 10.0  # the most that its slider has
UPLOAD = "200mb"
BRIEF = ("sampler", "steps")  # fields that go without an explanation
NO_CLASS = -1
FEW = " There is one: name more runs when the page is started to see them here."
# One event at a time computes, whoever has asked for it: two at once take longer than in turn.
IN_TURN = {"concurrency_id": "model", "concurrency_limit": 1}
CSS = """
.pixels img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
.pixels label[data-testid="block-label"] { position: static; margin: 0.4em; width: fit-content; }
.pixels label[data-testid="block-label"] span { display: none; }
.beside { max-width: 30em; }
.gradio-container button { white-space: nowrap; }
.said { min-height: 1.6em; }
.said .problem { color: #b91c1c; font-weight: 600; }
.dark .said .problem { color: #fca5a5; }
"""


def serve(studio: Studio, host: str, port: int) -> None:
    """Shows the page until a signal comes.

    Raises:
      UserError: the address cannot be had.
    """
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"port {port} of {host} cannot be had ({reason}): choose another") from error
    # It warns of many graphs: each number of pictures and each setting has one of its own here.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="pdm_tf_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # pictures on their way to a browser
        blocks = page_of(studio).queue(default_concurrency_limit=1)
        _, address, _ = blocks.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, show_error=True,
            share=False, inbrowser=False, max_file_size=UPLOAD, footer_links=[], run_history=False,
            ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False, theme=theme(), css=CSS,
        )  # fmt: skip
        print(f"page: {address}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("the page is closed")
        finally:
            studio.close()
            blocks.close(verbose=False)


def theme() -> gr.themes.Base:
    """With fonts that the reader's machine has."""
    return gr.themes.Soft(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )


def page_of(studio: Studio) -> gr.Blocks:
    """All of the page."""
    names = [shown.name for shown in studio.models]
    with gr.Blocks(title="pdm_tf", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        gr.Markdown("# Patched diffusion")
        chosen = gr.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
        changes = [tab(studio, chosen) for tab in (draw_tab, edit_tab, paint_tab)]
        inside = inside_tab(studio, chosen)
        changes.append(inside.of_model)
        models_tab(studio)

        def change(name):
            updates = {}
            for of_tab in changes:
                updates.update(of_tab(named(studio.models, name)))
            return updates

        outputs = list(change(names[0]))
        changed = chosen.change(change, chosen, outputs, show_progress="hidden", api_visibility="private")
        inside.look_after(changed.then)
    return blocks


def named(shown: Sequence[Shown], name: str) -> Shown:
    """The one of that name."""
    return next(one for one in shown if one.name == name)


# --- What tabs have in common ----------------------------------------------------------------------


def said_of(text: str, is_problem: bool = False) -> str:
    """A line under a button, as HTML."""
    return f'<span class="{"problem" if is_problem else ""}" role="status">{html.escape(text)}</span>'


def telling(said: gr.HTML) -> Callable:
    """Wraps what answers a click: what cannot be done is said in `said`, in one sentence."""

    def wrap(answer: Callable[..., Iterator[dict]]) -> Callable:
        @functools.wraps(answer)
        def told(*values):
            try:
                yield from answer(*values)
            except UserError as error:
                yield {said: gr.update(value=said_of(str(error), is_problem=True), visible=True)}

        return told

    return wrap


def line() -> gr.HTML:
    """Where a tab says what it does, and how far it is."""
    return gr.HTML(said_of(""), elem_classes="said", padding=False)


def note(text: str = "") -> dict:
    """How a line changes that takes no room while it says nothing."""
    return gr.update(value=said_of(text), visible=bool(text))


def class_choice(classes: Sequence[tuple[str, int]]) -> gr.Dropdown:
    """Which classes to draw."""
    return gr.Dropdown(
        classes, value=[], multiselect=True, label="Classes", visible=bool(classes), min_width=200,
        info="Drawn in turn; all of them if none is chosen.",
    )  # fmt: skip


def picture(label: str | None = None, classes: Sequence[str] = (), **how: Any) -> gr.Image:
    """Where a picture, or a grid of them, is shown; `classes` of CSS."""
    return gr.Image(
        label=label, show_label=label is not None, format="png", interactive=False, buttons=["fullscreen"],
        elem_classes=["pixels", *classes], **how,
    )  # fmt: skip


def control(name: str, value: Any, visible: bool = True) -> gr.components.Component:
    """What sets a field of `sampling`, made of what the field says of itself."""
    leaf = {**leaves(SamplingConfig), **leaves(Edit)}[name]
    rule, label = leaf.rule, name.replace("_", " ").capitalize()
    about = {"label": label, "info": None if name in BRIEF else rule.help, "visible": visible}
    if rule.choices:
        return gr.Dropdown(list(rule.choices), value=value, min_width=130, **about)
    if leaf.kind is float:
        least, most = rule.least or 0, rule.most or max(GUIDANCE, value)
        return gr.Slider(least, most, value=value, step=0.05, **about)
    if leaf.kind is int:
        return gr.Number(value, precision=0, **about)
    return gr.Textbox(word(value), min_width=130, **about)


@dataclasses.dataclass
class Controls:
    """The left side of a tab: what to draw, and how.

    Attributes:
      owner: as of `fields_of`.
      fields: of `sampling`, by name.
    """

    owner: str
    labels: gr.Dropdown
    seed: gr.Number
    another: gr.Button
    count: gr.Slider
    fields: dict[str, gr.components.Component]
    button: gr.Button
    stop: gr.Button
    said: gr.HTML

    @classmethod
    def of(cls, shown: Shown, owner: str, count: int, button: str) -> Controls:
        """Places them."""
        sampling = shown.config.sampling
        seen = fields_of(owner, "ancestral" if owner == "mask" else sampling.sampler)

        def place(name):
            visible = seen[name] and (name != "guidance" or bool(shown.classes))
            return control(name, getattr(Edit if name in leaves(Edit) else sampling, name), visible)

        labels, fields = class_choice(shown.classes), {}
        for name in ("guidance", "strength"):
            fields.update({name: place(name)} if name in seen else {})
        with gr.Row():
            fields.update({name: place(name) for name in BRIEF if name in seen})
        with gr.Row():
            count = gr.Slider(1, 100, value=count, step=1, label="Count", min_width=160)
            seed = gr.Number(0, precision=0, label="Seed", min_width=100)
        with gr.Accordion("More settings", open=False):
            fields.update({name: place(name) for name in seen if name not in fields})
        with gr.Row():
            button = gr.Button(button, variant="primary", min_width=90, size="md")
            another = gr.Button("New seed", min_width=90, size="md")
            stop = gr.Button("Stop", min_width=90, size="md")
        return cls(owner, labels, seed, another, count, fields, button, stop, line())

    @property
    def inputs(self) -> set:
        """All that is read when the button is clicked."""
        return {self.labels, self.seed, self.count, *self.fields.values()}

    def wanted(self, studio: Studio, shown: Shown, values: dict):
        """What is asked for, checked."""
        given = {name: values[field] for name, field in self.fields.items()}
        if "guidance" in given and not shown.classes:
            del given["guidance"]
        if self.owner == "mask":
            given.update(sampler="ancestral", strength=1.0)
        return studio.wanted(shown, given, values[self.labels], values[self.seed], values[self.count])

    def of_model(self, shown: Shown) -> dict:
        """How they change for another model."""
        sampling = shown.config.sampling
        seen = fields_of(self.owner, "ancestral" if self.owner == "mask" else sampling.sampler)
        classes = bool(shown.classes)
        updates = {self.labels: gr.update(choices=shown.classes, value=[], visible=classes)}
        for name, field in self.fields.items():
            value = getattr(Edit if name in leaves(Edit) else sampling, name)
            visible = seen[name] and (name != "guidance" or classes)
            value = word(value) if isinstance(value, tuple) else value
            updates[field] = gr.update(value=value, visible=visible)
        return {**updates, self.said: said_of("")}

    def answer(self, draw: Callable[..., Iterator[dict]], more: set, outputs: Sequence) -> None:
        """Lets the buttons do what they say; `draw` answers the main one, of `inputs` and `more`."""
        outputs = [self.said, *outputs]
        event = self.button.click(
            telling(self.said)(draw), self.inputs | more, outputs, show_progress="full",
            show_progress_on=[self.said], api_visibility="private", **IN_TURN,
        )  # fmt: skip
        at_once = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        self.stop.click(lambda: said_of("stopped"), None, self.said, cancels=[event], **at_once)
        self.another.click(lambda: random.randint(0, MOST_SEED), None, self.seed, **at_once)
        if "sampler" in self.fields:
            self.fields["sampler"].change(
                self._of_sampler, self.fields["sampler"], list(self.fields.values()), **at_once
            )  # fmt: skip

    def _of_sampler(self, sampler: str) -> dict:
        """Shows the fields that do something with a sampler."""
        known = {**leaves(SamplingConfig), **leaves(Edit)}
        rules = {name: leaf.rule.of for name, leaf in known.items()}
        seen = fields_of(self.owner, sampler)
        own = [name for name in self.fields if rules[name] and self.owner not in rules[name]]
        return {self.fields[name]: gr.update(visible=seen[name]) for name in own}


@dataclasses.dataclass
class Pictures:
    """The right side of a tab: the grid and its files."""

    grid: gr.Image
    files: list[gr.DownloadButton]

    @classmethod
    def place(cls) -> Pictures:
        """Places them."""
        grid = picture()
        with gr.Row():
            names = ("Save grid", "Save PNGs", "Save npz")
            files = [gr.DownloadButton(name, size="sm", min_width=90, visible=False) for name in names]
        return cls(grid, files)

    @property
    def outputs(self) -> list:
        """What `shown` changes."""
        return [self.grid, *self.files]

    def of_shot(self, shot) -> dict:
        """How they change for pictures on their way, or finished."""
        grid = to_pillow(enlarged(image_grid(shot.images), GRID))
        files = shot.files or [None] * len(self.files)
        return {
            self.grid: grid,
            **{
                button: gr.update(value=file and str(file), visible=file is not None)
                for button, file in zip(self.files, files)
            },
        }

    def nothing(self) -> dict:
        """How they change when there are no pictures."""
        return {self.grid: None, **{button: gr.update(visible=False) for button in self.files}}


# --- Tabs ------------------------------------------------------------------------------------------
# Each is placed, and returns how it changes for another model.


def draw_tab(studio: Studio, chosen: gr.Dropdown) -> Callable[[Shown], dict]:
    """Pictures of classes."""
    with gr.Tab("Draw"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = Controls.of(studio.models[0], "", 16, "Draw")
        with gr.Column(scale=3, min_width=300):
            pictures = Pictures.place()

    def draw(values):
        shown = named(studio.models, values[chosen])
        for shot in studio.draw(shown, controls.wanted(studio, shown, values)):
            yield {controls.said: said_of(shot.said), **pictures.of_shot(shot)}

    controls.answer(draw, {chosen}, pictures.outputs)
    return lambda shown: {**controls.of_model(shown), **pictures.nothing()}


def upload_button(label: str = "Upload a picture") -> gr.UploadButton:
    """Takes any file: what is no picture is said by our own reader."""
    return gr.UploadButton(label, type="filepath", file_count="single")


def edit_tab(studio: Studio, chosen: gr.Dropdown) -> Callable[[Shown], dict]:
    """A picture of one's own, changed."""
    with gr.Tab("Edit"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload, path = upload_button(), gr.State()
            told = gr.HTML(elem_classes="said", visible=False, padding=False)
            before = picture(height=240, visible=False)
            controls = Controls.of(studio.models[0], "init_image", 4, "Edit")
        with gr.Column(scale=3, min_width=300):
            pictures = Pictures.place()

    def take(file, name):
        yield {path: None, before: gr.update(visible=False), told: note()}
        image = uploaded(file, named(studio.models, name))
        yield {path: file, before: gr.update(value=to_pillow(enlarged(image, PICTURE)), visible=True)}

    def edit(values):
        shown = named(studio.models, values[chosen])
        image = uploaded(values[path], shown)
        for shot in studio.draw(shown, controls.wanted(studio, shown, values), image):
            yield {controls.said: said_of(shot.said), **pictures.of_shot(shot)}

    upload.upload(
        telling(told)(take), [upload, chosen], [path, before, told], api_visibility="private", **IN_TURN
    )
    controls.answer(edit, {chosen, path}, pictures.outputs)
    gone = {path: None, before: gr.update(value=None, visible=False), told: note()}
    return lambda shown: {**controls.of_model(shown), **pictures.nothing(), **gone}


def paint_tab(studio: Studio, chosen: gr.Dropdown) -> Callable[[Shown], dict]:
    """A part of a picture of one's own, painted anew."""
    with gr.Tab("Paint"), gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload, path = upload_button(), gr.State()
            told = gr.HTML(elem_classes="said", visible=False, padding=False)
            canvas = gr.ImageEditor(
                show_label=False, type="numpy", format="png", sources=(),
                transforms=(), layers=False, brush=gr.Brush(64, colors=["#d946ef"], color_mode="fixed"),
                eraser=gr.Eraser(64), canvas_size=(PICTURE, PICTURE), buttons=[], height=460, visible=False,
            )  # fmt: skip
            controls = Controls.of(studio.models[0], "mask", 4, "Paint")
        with gr.Column(scale=3, min_width=300):
            pictures = Pictures.place()

    def take(file, name):
        yield {path: None, canvas: gr.update(visible=False), told: note()}
        image = to_pillow(enlarged(uploaded(file, named(studio.models, name)), PICTURE))
        value = {"background": image, "layers": [], "composite": None}
        what_next = note("Brush over what is to be painted anew.")
        yield {path: file, canvas: gr.update(value=value, visible=True), told: what_next}

    def paint(values):
        shown = named(studio.models, values[chosen])
        image = uploaded(values[path], shown)
        mask = mask_of((values[canvas] or {}).get("layers", []), image.shape)
        for shot in studio.draw(shown, controls.wanted(studio, shown, values), image, mask):
            yield {controls.said: said_of(shot.said), **pictures.of_shot(shot)}

    upload.upload(
        telling(told)(take), [upload, chosen], [path, canvas, told], api_visibility="private", **IN_TURN
    )
    controls.answer(paint, {chosen, path, canvas}, pictures.outputs)
    gone = {path: None, canvas: gr.update(value=None, visible=False), told: note()}
    return lambda shown: {**controls.of_model(shown), **pictures.nothing(), **gone}


def inside_tab(studio: Studio, chosen: gr.Dropdown) -> InsideTab:
    """One picture at a noise level: what the network is given, what it answers, and the best answer."""
    with gr.Tab("Look inside") as tab:
        room = InsideTab.place(studio, chosen)
    room.answer()
    room.look_after(tab.select)
    return room


@dataclasses.dataclass
class InsideTab:
    """The parts of the tab "Look inside"."""

    studio: Studio
    chosen: gr.Dropdown
    rooms: dict[str, Inside]
    example: gr.Slider
    upload: gr.UploadButton
    path: gr.State
    clean: gr.Slider
    label: gr.Dropdown
    seed: gr.Number
    patches: gr.Checkbox
    said: gr.HTML
    pictures: list[gr.Image]

    @classmethod
    def place(cls, studio: Studio, chosen: gr.Dropdown) -> InsideTab:
        """Places them."""
        rooms = {shown.name: Inside(shown) for shown in studio.models}
        now = cls._values(studio.models[0], rooms)
        with gr.Row():
            example = gr.Slider(step=1, label="Picture", min_width=280, scale=2, **now["example"])
            upload, path = upload_button("Or upload one"), gr.State()
        clean = gr.Slider(0, step=1, label="From noise (left) to clean (right)", **now["clean"])
        with gr.Row(equal_height=True):
            label = gr.Dropdown(label="The class that the network is told", min_width=200, **now["label"])
            seed = gr.Number(0, precision=0, label="Seed of the noise", min_width=120)
            patches = gr.Checkbox(True, label="Show the patches", min_width=120)
        said = line()
        names = ("Picture", "z_t: noisy", "x_theta: guess", "x*: best guess")
        with gr.Row():
            pictures = [picture(name, min_width=140) for name in names]
        return cls(
            studio, chosen, rooms, example, upload, path, clean, label, seed, patches, said, pictures
        )  # fmt: skip

    @staticmethod
    def _values(shown: Shown, rooms: dict[str, Inside]) -> dict[str, dict]:
        """The ranges and choices of a model."""
        room, steps = rooms[shown.name], len(shown.denoiser.schedule)
        count = len(room.examples)
        about = f"Of the {room.split} split of {shown.info.name}." if count else None
        example = {"minimum": 1, "maximum": max(count, 2), "value": 1, "info": about, "visible": count > 1}
        return {
            "example": example,
            "clean": {"maximum": steps - 1, "value": steps // 2},
            "label": {
                "choices": [("none", NO_CLASS), *shown.classes], "value": NO_CLASS,
                "visible": bool(shown.classes),
            },
        }  # fmt: skip

    def of_model(self, shown: Shown) -> dict:
        """How they change for another model."""
        now = self._values(shown, self.rooms)
        updates = {getattr(self, name): gr.update(**values) for name, values in now.items()}
        return {**updates, self.path: None, **dict.fromkeys(self.pictures), self.said: said_of("")}

    def look(self, values: dict) -> Iterator[dict]:
        """The pictures, of the one that was uploaded last or else of the data set."""
        shown, path = named(self.studio.models, values[self.chosen]), values[self.path]
        room, example = self.rooms[shown.name], int(values[self.example]) - 1
        if not path and not len(room.examples):
            raise UserError("upload a picture: the data that the model has learnt from are not at hand")
        image = uploaded(path, shown) if path else room.examples[example]
        t = len(shown.denoiser.schedule) - 1 - int(values[self.clean])
        seed = self.studio.wanted(shown, {}, [], values[self.seed], 1).seed
        label = None if values[self.label] in (None, NO_CLASS) else values[self.label]
        view, patch = room.at(image, t, label, seed), shown.patch_size(t)

        # The network reads and answers in patches; the picture and x* know nothing of them.
        size = patch if values[self.patches] else max(image.shape)
        seen = [enlarged(image, PICTURE), *(with_patches(one, PICTURE, size) for one in (view.z, view.x))]
        seen.append(None if view.best is None else enlarged(view.best, PICTURE))
        yield {
            **{
                where: gr.update(value=one if one is None else to_pillow(one), visible=one is not None)
                for where, one in zip(self.pictures, seen)
            },
            self.said: said_of(f"{view.said} · patches of {patch} x {patch} pixels"),
        }

    def look_at_example(self, values: dict) -> Iterator[dict]:
        """As `look`, and what was uploaded is left."""
        for updates in self.look({**values, self.path: None}):
            yield {**updates, self.path: None}

    def look_at_upload(self, values: dict) -> Iterator[dict]:
        """As `look`, at a new picture."""
        for updates in self.look({**values, self.path: values[self.upload]}):
            yield {**updates, self.path: values[self.upload]}

    def look_after(self, event: Callable, look: Callable | None = None, more: Sequence = (), **how) -> None:
        """Looks whenever something happens; `look`: in another way, that reads `more`."""
        inputs = {
            self.chosen,
            self.example,
            self.path,
            self.clean,
            self.label,
            self.seed,
            self.patches,
            *more,
        }
        event(
            telling(self.said)(look or self.look), inputs, [*self.pictures, self.said, self.path],
            show_progress="hidden", api_visibility="private", **how, **IN_TURN,
        )  # fmt: skip

    def answer(self) -> None:
        """Lets the controls do what they say."""
        self.look_after(self.upload.upload, self.look_at_upload, [self.upload])
        self.look_after(self.example.input, self.look_at_example, trigger_mode="always_last")
        for control in (self.clean, self.label, self.seed, self.patches):
            self.look_after(control.input, trigger_mode="always_last")


def models_tab(studio: Studio) -> None:
    """Several models, or experts, side by side at one seed."""
    names, classes = [sight.name for sight in studio.sights], classes_of_all(studio.sights)
    with gr.Tab("Models"):
        gr.Markdown("Each draws from the same noise, as its run has it." + FEW * (len(names) == 1))
        sights = gr.CheckboxGroup(names, value=names, label="Models")
        with gr.Row(equal_height=True):
            labels = class_choice(classes)
            seed = gr.Number(0, precision=0, label="Seed", min_width=120)
            count = gr.Slider(1, 16, value=4, step=1, label="Count", min_width=200)
        with gr.Row():
            button, stop = (
                gr.Button("Draw", variant="primary", min_width=120),
                gr.Button("Stop", min_width=80),
            )
        said = line()
        with gr.Row():
            pictures = {name: picture(name, ["beside"], min_width=240) for name in names}

    def draw(values):
        shown = [named(studio.sights, name) for name in values[sights]]
        yield {
            where: gr.update(value=None, visible=name in values[sights]) for name, where in pictures.items()
        }
        took = {}
        for one, shot in studio.compare(shown, values[labels], values[seed], values[count]):
            took[one.name] = f"{one.name}: {shot.said}"
            grid = to_pillow(enlarged(image_grid(shot.images), GRID))
            yield {pictures[one.name]: grid, said: said_of("; ".join(took.values()))}

    event = button.click(
        telling(said)(draw), {sights, labels, seed, count}, [said, *pictures.values()],
        show_progress_on=[said], api_visibility="private", **IN_TURN,
    )  # fmt: skip
    stop.click(lambda: said_of("stopped"), None, said, cancels=[event], api_visibility="private", queue=False)


def classes_of_all(sights: Sequence[Shown]) -> list[tuple[str, int]]:
    """The classes, if all models that know classes know the same."""
    found = {tuple(sight.classes) for sight in sights} - {()}
    return list(found.pop()) if len(found) == 1 else []
