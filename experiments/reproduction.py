"""The paper's tables and figures, from data sets to REPRODUCTION.md, at the scale of two cores.

    python -m experiments.reproduction [--only fig3 table1] [--steps 400] [--seeds 3] [--list]

trains the runs of `WAYS` that the figures asked for need, evaluates them and makes the figures, all with
main.py; then it writes each figure's picture and numbers to docs/reproduction/ and its part of
REPRODUCTION.md. What is done is not done again: stopped at any time, it goes on by the same command, and with
more --steps or --seeds it trains the runs on, or more of them, and makes the same page of the larger ones.
--list only prints the commands.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments import journal
from pdm_tf import errors
from pdm_tf.analysis.tables import as_texts
from pdm_tf.errors import EXIT_STOPPED, Stopped, UserError
from pdm_tf.run import PRETRAINED, RunFolder, training_seconds

ROOT = Path(__file__).parents[1]
PICTURES = "docs/reproduction"  # beside the page
AVATARS, PHOTOGRAPHS = "avatars32", "fashion_mnist32"
SHIPPED = PRETRAINED / "emoji64"  # what figures without runs of their own are of


def _network(channels: int, multipliers: str, blocks: int, attention: str) -> dict[str, Any]:
    return {
        "network.base_channels": channels,
        "network.channel_multipliers": multipliers,
        "network.blocks_per_level": blocks,
        "network.attention_resolutions": attention,
    }


# P -> the U-Net for 32 x 32 images. As in the paper's Table 3 a larger P has fewer levels and is wider, and
# the parameters are equal, here within 2%: 1.26 to 1.28 million.
NETWORKS = {
    1: _network(32, "1,1,2,2", 1, "8"),
    2: _network(32, "1,1,2", 2, "8,4"),
    4: _network(64, "1,1", 1, "8,4"),
}
SHARED = {
    "network.head_channels": 32,
    "optimizer.learning_rate": 1e-3, "optimizer.clip_norm": 1, "optimizer.warmup_steps": 50,
    "training.batch_size": 32, "training.ema_every": 10, "training.ema_lengths": "",
    "training.score_every": 0,
    "training.sample_images": 4, "training.sample_steps": 5, "training.eval_batches": 1,
    "training.keep_checkpoints": 1,
}  # fmt: skip
LOG_LINES = 60  # of a run of full length


class Run(NamedTuple):
    """One training. `part`: how much of --steps it takes."""

    data: str
    prediction: str
    patch_size: int
    part: float
    seed: int = 0

    @property
    def name(self) -> str:
        """Its folder's."""
        longer = f"_times{self.part:g}" if self.part > 1 else ""
        return f"{self.data}_{self.prediction}_P{self.patch_size}{longer}_seed{self.seed}"


# All ways to train, the most telling first. The dearest, of which a loss curve alone is shown, are shorter.
# The last two take about as long as P = 1, by the images that two free cores train on in a second: 450 of
# P = 4, 330 of P = 2, 200 of P = 1.
WAYS = [
    Run(AVATARS, "x", 4, 1),
    Run(AVATARS, "eps", 4, 1),
    Run(AVATARS, "v", 4, 1),
    Run(AVATARS, "x", 1, 1),
    Run(AVATARS, "x", 2, 1),
    Run(AVATARS, "eps", 1, 0.5),
    Run(AVATARS, "v", 1, 0.5),
    Run(PHOTOGRAPHS, "x", 4, 1),
    Run(PHOTOGRAPHS, "eps", 4, 1),
    Run(PHOTOGRAPHS, "v", 4, 1),
    Run(AVATARS, "x", 4, 2.2),
    Run(AVATARS, "x", 2, 1.6),
]


# --- What the paper says, and what is seen here ------------------------------------------------------


class Claim(NamedTuple):
    """One finding of the paper, what is measured here, and whether it holds; None: the paper is silent."""

    paper: str
    here: str
    holds: bool | None


HOLDS = {True: "holds", False: "**does not hold**", None: ""}


def grows_blurred(numbers: dict[str, Any]) -> list[Claim]:
    """Of Fig. 1a."""
    claims, t = [], numbers["t"]
    for name, energy in {**numbers["energy"], "x*": numbers["energy_optimum"]}.items():
        rise = max(0.0, *np.diff(energy))
        here = (
            f"{name}: {energy[0]:.2f} of the images' gradient energy at t = {t[0]}, {energy[-1]:.2f} at "
            f"t = {t[-1]}, with no rise above {rise:.2f} on the way"
        )
        claims.append(Claim("the larger t, the more blur", here, rise < 0.05 and energy[-1] < energy[0]))
    for name, apart in numbers["rmse_to_optimum"].items():
        far = [at for at, value in zip(t, apart) if value > 0.1]
        where = f"up to t = {far[-1]}" if far else "nowhere"
        here = f"RMSE to x* {max(apart):.2f} at most, above 0.1 {where}"
        claims.append(Claim("x_theta approximates x*", f"{name}: {here}", not far))
    return claims


def cancels(numbers: dict[str, Any]) -> list[Claim]:
    """Of Fig. 1b."""
    share = numbers["kept_power_by_band"]
    cancelled = [1 - value for value in share]
    here = (
        f"of the samples' power {cancelled[0]:.0%} cancels in the lowest band, {cancelled[-1]:.0%} in the top"
    )
    said = "in the mean of q(x|z_t) high frequencies cancel, and low ones stay"
    return [Claim(said, here, cancelled[-1] > 2 * cancelled[0])]


def costs_little(numbers: dict[str, Any]) -> list[Claim]:
    """Of Fig. 2."""
    claims, t = [], numbers["t"]
    for title, ratio in numbers["splits"].get("held_out", numbers["splits"]["train"])["ratio"].items():
        if title.endswith("over x*"):
            continue
        at, first = next((at, value) for at, value in zip(t, ratio) if value is not None)
        here = f"{title}: {first:.2f} at t = {at}"
        claims.append(Claim("at low t a larger P has noticeably more distortion", here, first > 1.05))
        similar = [at for at, value in zip(t, ratio) if value is not None and value <= 1.05]
        here = f"{title}: at most 1.05 at {len(similar)} of {len(t)} t"
        claims.append(Claim("at most t it is similar or even lower", here, len(similar) > len(t) / 2))
    return claims


def predicts_x(numbers: dict[str, Any]) -> list[Claim]:
    """Of Fig. 3: at the last step that all have."""
    curves = {name: curve["simple_loss"] for name, curve in numbers["curves"].items()}
    step = min(curve["step"][-1] for curve in curves.values())
    ends = {name: _at(curve, step) for name, curve in curves.items()}
    claims = []
    for patch_size in sorted({name.partition("P=")[2] for name in ends}, key=int, reverse=True):
        x, eps, v = (ends[f"{kind}, P={patch_size}"] for kind in ("x", "eps", "v"))
        for kind, (value, spread) in {"eps": eps, "v": v}.items():
            apart = max(math.hypot(spread, x[1]), 0.05 * x[0])
            times = f"L_simple of {kind} is {value / x[0]:.2f} times that of x"
            here = f"P = {patch_size}, step {step:,.0f}: {times}"
            if patch_size == "1":
                claims.append(Claim("(P = 1: curves, and nothing said)", here, None))
            elif kind == "eps":
                said = "patched models do better with x than with eps"
                claims.append(Claim(said, here, value > x[0] + apart))
            else:
                similar = abs(value - x[0]) <= max(apart, 0.15 * x[0])
                claims.append(Claim("and about as well with v", here, similar))
    return claims


def _at(curve: dict[str, Any], step: float) -> tuple[float, float]:
    """Mean and spread at a step that the curve has, or the last before it."""
    place = max(n for n, at in enumerate(curve["step"]) if at <= step)
    return curve["mean"][place], curve["spread"][place] if curve["spread"] else 0.0


def leaves_noise(numbers: dict[str, Any]) -> list[Claim]:
    """Of Fig. 4."""
    energy = numbers["energy_over_optimum"]
    kinds = {name.partition(",")[0]: value for name, value in energy.items()}
    here = f"gradient energy over that of x*: {kinds['eps']:.3g} of eps, {kinds['x']:.3g} of x"
    said = "eps-prediction leaves noise in x_theta, x-prediction does not"
    return [Claim(said, here, kinds["eps"] > 2 * kinds["x"])]


def trades_quality_for_speed(numbers: dict[str, Any]) -> list[Claim]:
    """Of Table 1."""
    rows = sorted(numbers["rows"].values(), key=lambda row: row["patch_size"])
    sizes = [row["patch_size"] for row in rows]
    speeds = [row["images_per_second"] / rows[0]["images_per_second"] for row in rows]
    said = ", ".join(f"{speed:.2f} of P = {size}" for size, speed in zip(sizes, speeds))
    faster = "the larger P, the faster (1, 1.41, 2.59 times)"
    return [Claim(faster, f"times as fast: {said}", speeds == sorted(speeds)), *costs_quality(numbers)]


def costs_quality(numbers: dict[str, Any]) -> list[Claim]:
    """Of Table 1, whose networks were trained for equal hours."""
    rows = sorted(numbers["rows"].items(), key=lambda item: _patch_size(item[0]))
    name = next(key for key in rows[0][1] if key.startswith(("FID", "FD-")))
    found = [row[name] for _, row in rows]
    said = ", ".join(f"{value:.0f} of P = {_patch_size(title)}" for (title, _), value in zip(rows, found))
    larger = "the larger P, the larger FID (5.7, 7.5, 22.0)"
    return [Claim(larger, f"{name}: {said}", found == sorted(found))]


def _patch_size(title: str) -> int:
    return int(re.search(r"P=(\d+)", title)[1])


def fits_more(numbers: dict[str, Any]) -> list[Claim]:
    """Of Section 4.3."""
    few, *_, many = sorted(numbers["rows"].values(), key=lambda row: row["patch_size"])
    times = many["largest_batch"] / max(few["largest_batch"], 1)
    said = [f"{row['largest_batch']} with P = {row['patch_size']}" for row in (many, few)]
    return [Claim("4 times the batch fits with P = 4", f"{', '.join(said)}: {times:.1f} times", times >= 3.5)]


def shows_no_borders(numbers: dict[str, Any]) -> list[Claim]:
    """Of Fig. 5."""
    claims = []
    for name, value in numbers["border_energy"].items():
        if value["samples"] is not None:
            samples, data = value["samples"], value["data"]
            here = f"{name}: energy across borders over elsewhere {samples:.2f}, of data {data:.2f}"
            claims.append(Claim("no artefacts of patching are seen", here, samples <= 1.1 * data))
    return claims


class Figure(NamedTuple):
    """One of the page's.

    Attributes:
      what: the kind of analysis.
      claims: its numbers -> what they say of the paper's findings.
      data, predictions, patch_sizes: which of `WAYS` it is made of; no data: `SHIPPED`.
      every_seed: of all seeds, or of the first.
      equal_hours: of P > 1 the longer runs.
      arguments: of the analysis, beyond those.
    """

    what: str
    claims: Callable[[dict[str, Any]], list[Claim]]
    data: str = ""
    predictions: Sequence[str] = ("x",)
    patch_sizes: Sequence[int] = (1, 2, 4)
    every_seed: bool = False
    equal_hours: bool = False
    arguments: Sequence[str] = ()

    @property
    def is_table(self) -> bool:
        """Whether the page shows rows, and no picture."""
        return self.what.startswith("table")

    def ways(self) -> list[Run]:
        """Those of `WAYS`, in the order of P."""
        own = [
            way
            for way in WAYS
            if (way.data, way.part > 1) == (self.data, self.equal_hours and way.patch_size > 1)
            and way.prediction in self.predictions
        ]
        return sorted(
            (way for way in own if way.patch_size in self.patch_sizes), key=lambda way: way.patch_size
        )

    def runs(self, seeds: int) -> list[Run]:
        """What it is made of."""
        own = range(seeds if self.every_seed else 1)
        return [way._replace(seed=seed) for seed in own for way in self.ways()]


MANY = ("--num_samples=64", "--sample_batch_size=64")
FIGURES = {
    "fig1a": Figure("fig1a", grows_blurred),
    "fig1b": Figure("fig1b", cancels, arguments=("--num_samples=64",)),
    "fig2": Figure("fig2", costs_little, AVATARS, every_seed=True, arguments=MANY),
    "fig3": Figure("fig3", predicts_x, AVATARS, ("x", "eps", "v"), (1, 4), every_seed=True),
    "fig3_photographs": Figure("fig3", predicts_x, PHOTOGRAPHS, ("x", "eps", "v"), (4,), every_seed=True),
    "fig4": Figure("fig4", leaves_noise, AVATARS, ("x", "eps"), (4,)),
    "table1": Figure("table1", trades_quality_for_speed, AVATARS, every_seed=True, arguments=MANY),
    "table1_hours": Figure("table2", costs_quality, AVATARS, every_seed=True, equal_hours=True),
    "table2": Figure("table2", lambda numbers: [], AVATARS, every_seed=True),
    "memory": Figure("memory", fits_more, AVATARS, ("x",), (1, 4)),
    "grids": Figure("grids", shows_no_borders, AVATARS, arguments=MANY),
    "grids_photographs": Figure("grids", shows_no_borders, PHOTOGRAPHS, arguments=MANY),
}


# --- The commands -----------------------------------------------------------------------------------


def by_main(arguments: Sequence[str]) -> None:
    """One command of main.py, in a process that ends with this one.

    Raises:
      Stopped: it was, with what it has done saved.
      UserError: it failed, and has said why.
    """
    # In a session of its own: what stops this program is passed on once, and not by the terminal too.
    process = subprocess.Popen([sys.executable, "main.py", *arguments], cwd=ROOT, start_new_session=True)
    try:
        status = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if status == EXIT_STOPPED:
        raise Stopped("run the same command to go on")
    if status:
        raise UserError(
            f"main.py {shlex.join(arguments)} ended with status {status}: mend what it says first"
        )


# Of a table's columns on the page; its JSON has them all.
FIRST = ("seeds", "parameters", "images_per_second", "device_days")
LEFT_OUT = ("patch_size", "steps", "density", "coverage", "images")


class Reproduction:
    """The page's making, in one folder."""

    def __init__(self, options: argparse.Namespace, execute: Callable[[Sequence[str]], None] = by_main):
        self.options, self.execute = options, execute
        self.done = options.out / "done.jsonl"
        self.pictures = options.page.parent / PICTURES

    def folder(self, run: Run) -> RunFolder:
        """Where a run lies."""
        return RunFolder(self.options.out / run.name)

    def steps(self, run: Run) -> int:
        """How long it is to be."""
        return max(1, round(self.options.steps * run.part))

    def steps_done(self, run: Run) -> int:
        """How long it is, by its averaged weights."""
        try:
            return int(re.search(r"\d+", self.folder(run).newest_weights().name)[0])
        except UserError:
            return 0

    def train(self, run: Run) -> None:
        """Trains a run, or what is missing of it."""
        if self.steps_done(run) >= self.steps(run):
            return
        steps = self.options.steps
        every = max(1, steps // LOG_LINES)
        rare = every * math.ceil(steps / every)
        periods = {"training.log_every": every, "training.eval_every": rare, "training.sample_every": rare}
        settings = {
            **NETWORKS[run.patch_size],
            **SHARED,
            **periods,
            "training.checkpoint_every": max(100, rare // 10),
        }
        self.execute([
            "--mode=train", f"--dataset={self.dataset(run)}", f"--run_dir={self.folder(run)}",
            f"--seed={run.seed}", f"--prediction={run.prediction}", f"--patch_size={run.patch_size}",
            f"--train_steps={self.steps(run)}",
            *(f"--set={key}={value}" for key, value in settings.items()),
        ])  # fmt: skip

    def dataset(self, run: Run) -> str:
        """As --dataset names it."""
        return f"folder:{self.options.data_dir / run.data}"

    def evaluate(self, run: Run) -> None:
        """Distances of a run's samples to held-out images."""
        self.once(self.folder(run).path / "evaluation" / "evaluation.json", [run], [
            "--mode=evaluate", f"--dataset={self.dataset(run)}", f"--run_dir={self.folder(run)}",
            "--reference=validation", f"--num_samples={self.options.num_samples}", "--sample_batch_size=50",
        ])  # fmt: skip

    def analyze(self, name: str) -> None:
        """One figure's picture and numbers, copied to where the page has them."""
        figure, runs = FIGURES[name], FIGURES[name].runs(self.options.seeds)
        out = self.options.out / name
        places = [self.folder(run) for run in runs] or [SHIPPED.relative_to(ROOT)]
        folders = [f"--run_dir={place}" for place in places]
        data = [f"--dataset={self.dataset(runs[0])}"] if runs else []
        which = [f"--what={figure.what}", *folders, *data, *figure.arguments]
        self.once(out / f"{figure.what}.json", runs, ["--mode=analyze", *which, f"--out={out}"])
        if not self.options.list:
            self.pictures.mkdir(parents=True, exist_ok=True)
            numbers = json.loads((out / f"{figure.what}.json").read_text())
            numbers["training"] = self.training(runs)
            (self.pictures / f"{name}.json").write_text(json.dumps(numbers) + "\n")
            if not figure.is_table:
                with Image.open(out / f"{figure.what}.png") as picture:  # in a third of the bytes
                    colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
                    colours.save(self.pictures / f"{name}.png", optimize=True)

    def training(self, runs: Sequence[Run]) -> dict[str, Any]:
        """What a figure's runs have cost."""
        batch = SHARED["training.batch_size"]
        return {
            "runs": len(runs),
            "steps": sorted({self.steps_done(run) for run in runs}),
            "batch_size": batch,
            "seeds": sorted({run.seed for run in runs}),
            "hours": sum(training_seconds(self.folder(run).metrics(), batch) for run in runs) / 3600,
        }

    def once(self, made: Path, runs: Sequence[Run], arguments: Sequence[str]) -> None:
        """Executes a command that makes a file, unless it was with the weights that its runs have now."""
        key = {"command": list(arguments), "steps": [self.steps_done(run) for run in runs]}
        if not (made.exists() and journal.entries(self.done, key)):
            begun = time.monotonic()
            self.execute(arguments)
            if not self.options.list:
                journal.add(self.done, {**key, "seconds": round(time.monotonic() - begun)})

    def make(self) -> None:
        """All that is missing of the figures asked for, and then the page."""
        if not self.options.draw:
            self.make_figures()
        if not self.options.list:
            for name in self.options.only:
                write_part(self.options.page, name, self.part(name))
            write_part(self.options.page, "summary", self.summary())
            print(f"wrote {', '.join(self.options.only)} of {self.options.page}")

    def make_figures(self) -> None:
        """Trains, evaluates and analyses what is missing."""
        figures = {name: FIGURES[name].runs(self.options.seeds) for name in self.options.only}
        wanted = {run for runs in figures.values() for run in runs}
        for seed in range(self.options.seeds):  # whole pages of few seeds before those of more
            for way in WAYS:
                if way._replace(seed=seed) in wanted:
                    self.train(way._replace(seed=seed))
        measured = [one for name, runs in figures.items() if FIGURES[name].is_table for one in runs]
        for one in dict.fromkeys(measured):
            self.evaluate(one)
        for name in figures:
            self.analyze(name)

    # --- The page -----------------------------------------------------------------------------------

    def numbers(self, name: str) -> dict[str, Any]:
        """A figure's."""
        return json.loads((self.pictures / f"{name}.json").read_text())

    def summary(self) -> str:
        """How many of the paper's findings hold in all the figures that are there, and which do not."""
        made = [name for name in FIGURES if (self.pictures / f"{name}.json").exists()]
        judged = [(name, claim) for name in made for claim in FIGURES[name].claims(self.numbers(name))]
        judged = [(name, claim) for name, claim in judged if claim.holds is not None]
        others = [f"- `{name}`: {claim.paper}; {claim.here}" for name, claim in judged if not claim.holds]
        held = len(judged) - len(others)
        said = f"**Of {len(judged)} findings of the paper that can be looked at here, {held} hold.**"
        return "\n".join([said, *(["These do not:", "", *others] if others else [])])

    def part(self, name: str) -> str:
        """What the page says of a figure, in Markdown, made of its numbers."""
        figure, numbers = FIGURES[name], self.numbers(name)
        rows = numbers["rows"] if figure.is_table else {}
        rows = {title: {key: row[key] for key in columns_of(row)} for title, row in rows.items()}
        shown = markdown(*as_texts(rows)) if rows else f"![{name}]({PICTURES}/{name}.png)"
        claims = figure.claims(numbers)
        judged = markdown(["the paper", "here", ""], [[*claim[:2], HOLDS[claim.holds]] for claim in claims])
        return "\n\n".join([shown, numbers["sentence"], *([judged] if claims else []), self.about(name)])

    def about(self, name: str) -> str:
        """The command, runs, seeds and hours of a figure."""
        cost, data = self.numbers(name)["training"], FIGURES[name].data
        command = f"`python -m experiments.reproduction --only {name}`"
        numbers = f"[numbers]({PICTURES}/{name}.json)"
        if not data:
            return f"{command}: of {SHIPPED.name}'s weights that ship; {numbers}."
        lengths = " or ".join(f"{length:,}" for length in cost["steps"])
        seeds = f"seed{'s' * (len(cost['seeds']) > 1)} {', '.join(map(str, cost['seeds']))}"
        return (
            f"{command}: {cost['runs']} run{'s' * (cost['runs'] > 1)} on `{data}` of {lengths} steps of "
            f"{cost['batch_size']} images, {seeds}, {cost['hours']:.2f} hours of training; {numbers}."
        )


def columns_of(row: dict[str, Any]) -> list[str]:
    """Which of a row's numbers the page shows, in which order."""
    return sorted((key for key in row if key not in LEFT_OUT), key=lambda key: key not in FIRST)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = (titles, ["---"] * len(titles), *rows)
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in lines)


def write_part(page: Path, name: str, text: str) -> None:
    """Puts a figure's part between its marks on the page.

    Raises:
      UserError: the page has no marks for it.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise UserError(f"{page} has no lines {begin.strip()} and {end} to write {name} between: add them")
    page.write_text(before + begin + text + "\n" + end + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the data sets lie")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="FIGURE")
    parser.add_argument("--steps", type=int, default=400, help="of a run, in batches of 32")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num_samples", type=int, default=500, help="of an evaluation")
    parser.add_argument("--page", type=Path, default=ROOT / "REPRODUCTION.md")
    parser.add_argument("--draw", action="store_true", help="only write the page, of the numbers beside it")
    parser.add_argument("--list", action="store_true", help="only print the commands of main.py")
    options = parser.parse_args()
    if options.list:
        Reproduction(options, lambda arguments: print("python", "main.py", shlex.join(arguments))).make()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    Reproduction(options).make()


if __name__ == "__main__":
    sys.exit(errors.run(main))
