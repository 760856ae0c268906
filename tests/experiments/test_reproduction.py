"""The paper's page: which runs it takes, that nothing is done twice, and what is said of numbers."""

import argparse
import json
import os

import numpy as np
import pytest

from experiments import reproduction
from experiments.claims import HOLDS
from experiments.driver import settings_flags, steps_done
from experiments.reproduction import FIGURES, NETWORKS, RUNS, SHARED, Reproduction
from pdm_tf.analysis import ANALYSES
from pdm_tf.config.fields import DataConfig, parse_settings, validate
from pdm_tf.config.presets import sized_preset
from pdm_tf.config.words import get
from pdm_tf.denoiser import build_network
from pdm_tf.images import write_png
from pdm_tf.run import RunFolder
from pdm_tf.weights import write_arrays
from tests.data import fixtures


def models(*titles):
    """The `models` of an analysis's JSON for titles such as "x, P=4"."""
    words = {title: title.split(", P=") for title in titles}
    return {title: {"prediction": p, "patch_size": int(size)} for title, (p, size) in words.items()}


FOUND = {
    "fig4": {
        "models": models("x, P=4", "eps, P=4"),
        "energy_over_optimum": {"x, P=4": 1.1, "eps, P=4": 30.0},
        "sentence": "Noise.",
    },
    "table1": {
        "models": models("x, P=1", "x, P=2", "x, P=4"),
        "rows": {
            f"x, P={p}": {
                "patch_size": p,
                "images_per_second": 10.0 * p,
                "metrics": {"FD-net": {"value": 5.0 * p, "error": 1.0}, "density": {"value": 0.0}},
            }
            for p in (1, 2, 4)
        },
        "sentence": "Faster.",
    },
}


class FakeMain:
    """Leaves what main.py would: weights of the step asked for, or an analysis' numbers and picture."""

    def __init__(self):
        self.commands = []
        self.stop_at = None

    def __call__(self, arguments):
        if len(self.commands) == self.stop_at:
            raise KeyboardInterrupt("SIGTERM")
        self.commands.append(list(arguments))
        flags = dict(argument[2:].split("=", 1) for argument in arguments)
        if flags["mode"] == "train":
            folder = RunFolder(flags["run_dir"])
            write_arrays(folder.weights(int(flags["train_steps"])), {"a": np.zeros(1)})
            folder.logs.mkdir(exist_ok=True)
            folder.metrics_file.write_text('{"step": 100, "images_per_second": 8.0}\n')
        elif flags["mode"] == "evaluate":
            evaluation = RunFolder(flags["run_dir"]).evaluation
            evaluation.mkdir()
            (evaluation / "evaluation.json").touch()
        elif flags["mode"] == "analyze":
            os.makedirs(flags["out"], exist_ok=True)
            write_png(f"{flags['out']}/{flags['what']}.png", np.zeros((4, 4, 3), np.uint8))
            with open(f"{flags['out']}/{flags['what']}.json", "w") as file:
                json.dump(FOUND[flags["what"]], file)

    def modes(self):
        return [command[0].removeprefix("--mode=") for command in self.commands]


@pytest.fixture
def options(tmp_path):
    page = tmp_path / "PAGE.md"
    marks = {name: f"<!-- {name} -->\nstale\n<!-- /{name} -->\n" for name in ("summary", "fig4", "table1")}
    page.write_text("Before.\n" + marks["summary"] + marks["fig4"] + "Between.\n" + marks["table1"])
    return argparse.Namespace(
        out=tmp_path,
        data_dir=tmp_path,
        only=["table1", "fig4"],
        steps=100,
        seeds=2,
        num_samples=8,
        page=page,
        list=False,
        draw=False,
    )


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(options):
    fake = FakeMain()
    fake.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        Reproduction(options, fake).make()
    fake.stop_at = None
    Reproduction(options, fake).make()
    # Three patch sizes for two seeds, and the eps-network of Fig. 4; six evaluations; two figures.
    assert fake.modes() == ["train"] * 7 + ["evaluate"] * 6 + ["analyze"] * 2
    seeds = [word[-1] for command in fake.commands[:7] for word in command if word.startswith("--seed=")]
    assert len(seeds) == 7 and seeds == sorted(seeds)  # whole pages of few seeds first
    page = options.page.read_text()
    assert "stale" not in page and page.startswith("Before.\n") and "\nBetween.\n" in page
    assert "| x, P=4 | 40 | 20 ± 1 |" in page and "Of 3 findings" in page and "3 hold" in page
    assert "seeds 0, 1" in page and "100 steps of 32 images" in page and "0.67 hours" in page
    Reproduction(options, fake).make()
    assert len(fake.commands) == 15 and options.page.read_text() == page
    options.draw, options.only = True, ["fig4"]
    options.page.write_text(page.replace("30 of eps", "changed"))
    Reproduction(options, fake).make()
    assert len(fake.commands) == 15 and options.page.read_text() == page
    options.draw = False
    (options.out / "fig4" / "fig4.json").unlink()
    Reproduction(options, fake).make()
    assert fake.modes()[15:] == ["analyze"]
    options.steps, options.only = 200, ["fig4"]
    Reproduction(options, fake).make()
    assert fake.modes()[16:] == ["train", "train", "analyze"]
    # What does not hold is listed first.
    numbers = {**FOUND["fig4"], "energy_over_optimum": {"x, P=4": 1.1, "eps, P=4": 1.2}}
    (options.out / reproduction.PICTURES / "fig4.json").write_text(json.dumps(numbers))
    summary = Reproduction(options, fake).summary()
    assert "Of 3 findings" in summary and "2 hold" in summary
    assert "- `fig4`: eps-prediction leaves noise" in summary


def test_commands_are_shown_without_doing_anything(options):
    options.list, shown = True, []
    before = options.page.read_text()
    Reproduction(options, shown.append).make()
    assert len(shown) == 15 and options.page.read_text() == before
    assert sorted(os.listdir(options.out)) == ["PAGE.md"]
    options.only = ["fig1a"]
    Reproduction(options, shown.append).make()
    (folder,) = [word.removeprefix("--run_dir=") for word in shown[-1] if word.startswith("--run_dir=")]
    assert RunFolder(reproduction.ROOT / folder).newest_weights().exists()  # where commands are run


def test_every_figure_has_runs_and_every_analysis_a_figure():
    assert {figure.analysis for figure in FIGURES.values()} == set(ANALYSES)
    used = {one for figure in FIGURES.values() for one in figure.runs(1)}
    assert used == set(RUNS)


def test_the_page_is_that_of_the_numbers_beside_it(options, tmp_path):
    page = tmp_path / "REPRODUCTION.md"
    before = (reproduction.ROOT / "REPRODUCTION.md").read_text()
    page.write_text(before)
    (tmp_path / "docs").symlink_to(reproduction.ROOT / "docs")
    options.page, options.draw, options.only = page, True, list(FIGURES)
    Reproduction(options, None).make()
    assert page.read_text() == before


def test_networks_have_equal_parameters_within_3_percent():
    counts = []
    for patch_size, settings in NETWORKS.items():
        given = {"network.patch_size": patch_size, **settings, **SHARED}
        config = validate(sized_preset("tiny", DataConfig("a", (32, 32, 3), 11), given))
        variables = build_network(config).trainable_variables
        counts.append(sum(int(np.prod(variable.shape)) for variable in variables))
    assert max(counts) <= 1.03 * min(counts)


def test_runs_that_are_kept_are_those_of_the_page():
    """Trained by its commands, so that it takes copies of them for trained."""
    kept = reproduction.ROOT / reproduction.PICTURES / "runs"
    folders = [folder for folder in kept.iterdir() if folder.is_dir()]
    assert {"README.md", "LICENSE"} <= set(os.listdir(kept)) and folders
    runs = {run.name: run for run in RUNS}
    for folder in folders:
        run, config = runs[folder.name], RunFolder(folder).config()
        assert steps_done(RunFolder(folder)) == 400
        assert (config.diffusion.prediction, config.seed) == (run.prediction, run.seed)
        settings = {"network.patch_size": run.patch_size, **NETWORKS[run.patch_size]}
        texts = [flag.removeprefix("--set=") for flag in settings_flags(settings)]
        for key, value in parse_settings(texts).items():
            assert get(config, key) == value, f"{folder}: {key}"
        assert RunFolder(folder).metrics()["simple_loss"][-1, 0] == 400


def curve(mean, spread=0.01):
    return {"simple_loss": {"step": [10, 20], "mean": [9.0, mean], "spread": [0.0, spread]}}


def ratios(*values):
    ratio = {"x, P=4": {"value": list(values)}}
    splits = {"train": {"ratio_to_smallest": ratio, "ratio_to_optimum": {"x, P=4": {"value": [None]}}}}
    return {"t": [0, 500, 999], "smallest": "x, P=1", "splits": splits}


def curves(**means):
    """`means`: x4=..., eps1=..., of each prediction and P."""
    titles = {f"{name[:-1]}, P={name[-1]}": value for name, value in means.items()}
    return {"models": models(*titles), "curves": {title: curve(*value) for title, value in titles.items()}}


MEMORY = {"a": {"patch_size": 4, "largest_batch": 20}, "b": {"patch_size": 1, "largest_batch": 10}}
GRIDS = {"a": {"samples": None, "data": None}, "b": {"samples": 1.5, "data": 1.0}}


@pytest.mark.parametrize(
    "name, numbers, holds",
    [
        ("fig2", ratios(None, 1.02, 1.1), [False, False]),
        (
            "fig3",
            curves(x4=(1,), eps4=(2,), v4=(1.05,), x1=(1,), eps1=(1,), v1=(1,)),
            [True, True, None, None],
        ),
        ("fig3", curves(x4=(1.0, 0.2), eps4=(1.1, 0.2), v4=(0.5,)), [False, False]),
        ("memory", {"rows": MEMORY}, [False]),
        ("grids", {"border_energy": GRIDS}, [False]),
    ],
)
def test_what_is_said_of_numbers(name, numbers, holds):
    claims = FIGURES[name].claims(numbers)
    assert [claim.holds for claim in claims] == holds
    assert all(claim.paper and claim.here and claim.holds in HOLDS for claim in claims)


@pytest.mark.slow
def test_a_figure_from_nothing_with_the_real_program(options, tmp_path):
    records = [fixtures.example(fixtures.encode(fixtures.natural_image(n, 32, 32)), n % 2) for n in range(32)]
    fixtures.write_shards(tmp_path / "avatars32", [records], shape=(32, 32, 3), classes=2)

    options.only, options.steps = ["fig4"], 4
    Reproduction(options).make()
    assert "gradient energy over that of x*" in options.page.read_text()
    assert (tmp_path / "docs/reproduction/fig4.png").read_bytes()[:4] == b"\x89PNG"
