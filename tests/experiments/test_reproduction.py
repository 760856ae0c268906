"""The paper's page: which runs it takes, that nothing is done twice, and what is said of numbers."""

import argparse
import json
import os

import numpy as np
import pytest

from experiments import reproduction
from experiments.claims import STATEMENTS, overall
from experiments.driver import settings_flags, steps_done
from experiments.reproduction import FIGURES, NETWORKS, RUNS, SHARED, Reproduction
from pdm_tf.analysis import ANALYSES
from pdm_tf.config.fields import DataConfig, parse_settings, validate
from pdm_tf.config.presets import sized_preset
from pdm_tf.config.words import get
from pdm_tf.denoiser import build_network
from pdm_tf.describe import forward_flops
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
        "rmse_to_optimum": {"x, P=4": 0.1, "eps, P=4": 6.0},
        "t": 970,
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
        flags = dict(argument[2:].split("=", 1) for argument in arguments if "=" in argument)
        if flags["mode"] == "train":
            folder = RunFolder(flags["run_dir"])
            write_arrays(folder.weights(int(flags["train_steps"])), {"a": np.zeros(1)})
            folder.logs.mkdir(exist_ok=True)
            folder.metrics_file.write_text('{"step": 100, "images_per_second": 8.0}\n')
        elif flags["mode"] == "evaluate":
            evaluation = RunFolder(flags["run_dir"]).evaluation
            evaluation.mkdir(exist_ok=True)
            file = "likelihood.json" if "--likelihood" in arguments else "evaluation.json"
            (evaluation / file).write_text('{"bits_per_dim": {"value": 3.0, "error": 0.1}}')
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
    # Three patch sizes for two seeds, evaluated twice, and the eps-network of Fig. 4.
    assert fake.modes() == ["train"] * 7 + ["evaluate"] * 12 + ["analyze"] * 2
    seeds = [word[-1] for command in fake.commands[:7] for word in command if word.startswith("--seed=")]
    assert len(seeds) == 7 and seeds == sorted(seeds)  # whole pages of few seeds first
    page = options.page.read_text()
    assert "stale" not in page and page.startswith("Before.\n") and "\nBetween.\n" in page
    assert "| x, P=4 | 40 | 20 ± 1 |" in page and "2 are judged here: 2 hold" in page
    assert (
        "seeds 0, 1" in page and "720 or 1,440 or 3,300 steps of 32 images" in page and "0.67 hours" in page
    )
    Reproduction(options, fake).make()
    assert len(fake.commands) == 21 and options.page.read_text() == page
    options.draw, options.only = True, ["fig4"]
    options.page.write_text(page.replace("30 of eps", "changed"))
    Reproduction(options, fake).make()
    assert len(fake.commands) == 21 and options.page.read_text() == page
    options.draw = False
    (options.out / "fig4" / "fig4.json").unlink()
    Reproduction(options, fake).make()
    assert fake.modes()[21:] == ["analyze"]
    options.num_samples, options.only = 9, ["table1"]
    Reproduction(options, fake).make()
    assert fake.modes()[22:] == ["evaluate"] * 12 + ["analyze"]
    options.steps, options.only = 200, ["fig4"]
    Reproduction(options, fake).make()
    assert fake.modes()[35:] == ["train", "train", "analyze"]
    numbers = {**FOUND["fig4"], "energy_over_optimum": {"x, P=4": 1.1, "eps, P=4": 1.2}}
    (options.out / reproduction.PICTURES / "fig4.json").write_text(json.dumps(numbers))
    summary = Reproduction(options, fake).summary()
    assert "2 are judged here: 1 hold, 0 in part, and 1 do not" in summary
    assert "large errors of x_theta | **does not hold** |" in summary


def test_commands_are_shown_without_doing_anything(options):
    options.list, shown = True, []
    before = options.page.read_text()
    Reproduction(options, shown.append).make()
    assert len(shown) == 21 and options.page.read_text() == before
    assert sorted(os.listdir(options.out)) == ["PAGE.md"]
    options.only = ["fig1a"]
    Reproduction(options, shown.append).make()
    (folder,) = [word.removeprefix("--run_dir=") for word in shown[-1] if word.startswith("--run_dir=")]
    assert RunFolder(reproduction.ROOT / folder).newest_weights().exists()  # where commands are run


def test_every_figure_has_runs_and_every_analysis_a_figure():
    assert {figure.analysis for figure in FIGURES.values()} == {*ANALYSES, ""}
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


# Of the paper's P = 2, 4, 8 (Table 3), for which P = 1, 2, 4 stand.
PAPER_CHANNELS = {1: 128 / 12, 2: 256 / 48, 4: 256 / 192}
PAPER_FLOPS = {1: 1.0, 2: 0.631, 4: 0.264}


def test_networks_have_the_shapes_of_the_papers():
    parameters, flops = {}, {}
    for patch_size, settings in NETWORKS.items():
        given = {"network.patch_size": patch_size, **settings, **SHARED}
        config = validate(sized_preset("tiny", DataConfig("a", (32, 32, 3), 11), given))
        network = build_network(config)
        parameters[patch_size] = network.count_params()
        flops[patch_size] = forward_flops(network)
        channels = config.network.base_channels / (3 * patch_size**2)
        assert channels == pytest.approx(PAPER_CHANNELS[patch_size])
    assert max(parameters.values()) <= 1.01 * min(parameters.values())
    for patch_size, ratio in PAPER_FLOPS.items():
        assert flops[patch_size] / flops[1] == pytest.approx(ratio, rel=0.08)


def test_runs_that_are_kept_are_those_of_the_page():
    """Trained by its commands, so that it takes copies of them for trained."""
    kept = reproduction.ROOT / reproduction.PICTURES / "runs"
    folders = [folder for folder in kept.iterdir() if folder.is_dir()]
    assert {"README.md", "LICENSE"} <= set(os.listdir(kept)) and folders
    runs = {run.name: run for run in RUNS}
    for folder in folders:
        run, config = runs[folder.name], RunFolder(folder).config()
        assert steps_done(RunFolder(folder)) == 400 * run.part
        assert (config.diffusion.prediction, config.seed) == (run.prediction, run.seed)
        settings = {"network.patch_size": run.patch_size, **NETWORKS[run.patch_size]}
        texts = [flag.removeprefix("--set=") for flag in settings_flags(settings)]
        for key, value in parse_settings(texts).items():
            assert get(config, key) == value, f"{folder}: {key}"
        assert RunFolder(folder).metrics()["simple_loss"][-1, 0] == 400 * run.part


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


def optimum(averaged, *distances):
    """Numbers of Fig. 1a: x* averages so many images at each t."""
    energy = [1.0, 0.5, 0.1]
    numbers = {"t": [0, 500, 999], "energy": {"a": energy}, "energy_optimum": energy}
    return {**numbers, "images_averaged": averaged, "rmse_to_optimum": {"a": list(distances)}}


def noise(eps_energy, eps_rmse):
    """Numbers of Fig. 4."""
    numbers = {"energy_over_optimum": {"x, P=4": 1.0, "eps, P=4": eps_energy}}
    return {**FOUND["fig4"], **numbers, "rmse_to_optimum": {"x, P=4": 0.1, "eps, P=4": eps_rmse}}


def speeds(*rates):
    return {"rows": {n: {"patch_size": n, "images_per_second": rate} for n, rate in enumerate(rates)}}


def trained(*rows, bits=(3.0, 3.0)):
    """Numbers of Table 2: (days, distance, recall) of P = 1 and 2, and the bits of either, ± 0.01."""
    titles = [f"x, P={patch_size}" for patch_size in range(1, len(rows) + 1)]
    return {
        "models": models(*titles),
        "rows": {
            title: {"device_days": days, "metrics": {"FD-net": {"value": fd}, "recall": {"value": recall}}}
            for title, (days, fd, recall) in zip(titles, rows)
        },
        "likelihood": [
            {"patch_size": patch_size, "value": value, "error": 0.01}
            for patch_size, value in enumerate(bits, 1)
        ],
    }


def guided(precisions, recalls):
    """Numbers at w = 1.5 and 2.25, of two seeds with a spread of 0.01."""
    rows = {
        f"w = {w}": {
            "seeds": 2,
            "metrics": {"precision": {"value": p, "error": 0.01}, "recall": {"value": r, "error": 0.01}},
        }
        for w, p, r in zip((1.5, 2.25), precisions, recalls)
    }
    return {"rows": rows}


def batches(small, large):
    return {"rows": {n: {"patch_size": n, "largest_batch": size} for n, size in ((1, small), (4, large))}}


def borders(samples, error):
    return {"border_steps": {"a": {"8": {"samples": [samples, error], "data": [1.0, 0.03]}}}}


@pytest.mark.parametrize(("name", "numbers", "outcomes"), [
    ("fig1a", optimum([1, 60, 200], 0.4, 0.1, 0.05), {"blur": True, "optimum": True}),
    ("fig1a", optimum([1, 60, 200], 0.0, 0.1, 0.11), {"blur": True, "optimum": False}),
    ("fig1a", optimum([1, 2, 49], 0.4, 0.1, 0.05), {"blur": True, "optimum": None}),
    ("fig1a", {**optimum([1] * 3, 0, 0, 0), "energy_optimum": [1, 1, 1]}, {"blur": "part", "optimum": None}),
    ("fig1b", {"kept_power_by_band": [0.9, 0.5, 0.79]}, {"cancel": True}),
    ("fig1b", {"kept_power_by_band": [0.9, 0.5, 0.81]}, {"cancel": False}),
    ("fig2", ratios(1.06, 1.02, 1.0), {"distortion": True, "similar": True}),
    ("fig2", ratios(None, 1.02, 1.1), {"distortion": False, "similar": False}),
    ("fig3", curves(x4=(1,), eps4=(2,), v4=(1.05,)), {"x_prediction": True, "v_prediction": True}),
    ("fig3", curves(x4=(1.0, 0.2), eps4=(1.1, 0.2), v4=(0.5,)), {
        "x_prediction": False, "v_prediction": False
    }),
    ("fig3", curves(x1=(1,), eps1=(1,), v1=(1,)), {"x_prediction": None, "v_prediction": None}),
    ("fig4", noise(30.0, 6.0), {"magnified": True}),
    ("fig4", noise(1.5, 6.0), {"magnified": False}),
    ("fig4", noise(30.0, 50.0), {"magnified": None}),
    ("table1", speeds(1.0, 1.5, 2.0), {"speed": True}),
    ("table1", speeds(1.0, 2.0, 1.9), {"speed": False}),
    ("table2", trained((1.0, 5.0, 0.2), (1.05, 6.0, 0.2)), {"fid": True}),
    ("table2", trained((1.0, 6.0, 0.2), (1.05, 5.0, 0.2)), {"fid": False}),
    ("table2", trained((1.0, 5.0, 0.2), (1.2, 6.0, 0.2)), {"fid": None}),
    ("table2", trained((1.0, 5.0, 0.2), (1.0, 6.0, 0.0)), {"fid": None}),
    ("table2", trained((1.0, 5.0, 0.0), (1.0, 6.0, 0.0), bits=(3.0, 3.1)), {"fid": True}),
    ("table2", trained((1.0, 5.0, 0.0), (1.0, 6.0, 0.0), bits=(3.1, 3.0)), {"fid": False}),
    ("table2", trained((1.0, 5.0, 0.0), (1.2, 6.0, 0.0), bits=(3.0, 3.1)), {"fid": None}),
    ("table2", trained((1.0, 5.0, 0.2), (1.0, 6.0, 0.2), bits=(3.1, 3.0)), {"fid": "part"}),
    ("guidance", guided((0.1, 0.2), (0.3, 0.2)), {"precision": True, "recall": True}),
    ("guidance", guided((0.2, 0.1), (0.2, 0.3)), {"precision": False, "recall": False}),
    ("guidance", guided((0.1, 0.11), (0.2, 0.21)), {"precision": None, "recall": None}),
    ("memory", batches(10, 35), {"memory": True}),
    ("memory", batches(10, 34), {"memory": False}),
    ("grids", borders(1.09, 0.04), {"borders": True}),
    ("grids", borders(1.11, 0.04), {"borders": False}),
])  # fmt: skip
def test_each_rule_can_fail(name, numbers, outcomes):
    found = FIGURES[name].claims(numbers)
    words = {True: "holds", False: "**does not hold**", None: "not judged", "part": "holds in part"}
    for statement, outcome in outcomes.items():
        assert overall(claim for claim in found if claim.statement == statement) == words[outcome]
    assert {claim.statement for claim in found} == set(outcomes) <= set(STATEMENTS)


def test_every_statement_is_measured_or_left_out_with_a_reason():
    numbers = reproduction.ROOT / reproduction.PICTURES
    found = [FIGURES[name].claims(json.loads((numbers / f"{name}.json").read_text())) for name in FIGURES]
    measured = {claim.statement for claims in found for claim in claims}
    assert measured == {name for name, statement in STATEMENTS.items() if not statement.left_out}


@pytest.mark.slow
def test_a_figure_from_nothing_with_the_real_program(options, tmp_path):
    records = [fixtures.example(fixtures.encode(fixtures.natural_image(n, 32, 32)), n % 2) for n in range(32)]
    fixtures.write_shards(tmp_path / "avatars32", [records], shape=(32, 32, 3), classes=2)

    options.only, options.steps = ["fig4"], 4
    Reproduction(options).make()
    assert "gradient energy over that of x*" in options.page.read_text()
    assert (tmp_path / "docs/reproduction/fig4.png").read_bytes()[:4] == b"\x89PNG"
