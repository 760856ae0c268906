"""The paper's tables and figures, from data sets to REPRODUCTION.md, at the scale of two cores.

    python -m experiments.reproduction [--only fig3 table1] [--steps 400] [--seeds 3] [--list]

trains the runs that the figures asked for need, evaluates them and makes the figures, all with main.py; then
it writes each figure's picture and numbers to docs/reproduction/ and its part of REPRODUCTION.md. Nothing is
done twice: stopped at any time, it goes on by the same command, and with more --steps or --seeds it trains
the runs on, or more of them, and makes the same page of the larger ones. --list only prints the commands.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from experiments import claims
from experiments.driver import (
    ROOT,
    Driver,
    Execute,
    main_py,
    markdown,
    settings_flags,
    steps_done,
    write_part,
)
from pdm_tf import errors
from pdm_tf.analysis.tables import as_texts, mean_metrics
from pdm_tf.run import RunFolder, shipped_folders, training_seconds

PICTURES = "docs/reproduction"  # beside the page
AVATARS = "avatars32"
PHOTOGRAPHS = "fashion_mnist32"
LOG_LINES = 60  # of a run of --steps
STRATA = 16  # t of each held-out image, besides t = 0
GUIDANCE = (1.5, 2.25)  # w of the paper's Table 2
ALL = ("x", "eps", "v")


def _network(channels: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int]) -> dict:
    return {
        "network.base_channels": channels,
        "network.channel_multipliers": multipliers,
        "network.blocks_per_level": blocks,
        "network.attention_resolutions": attention,
    }


# P -> the U-Net for 32 x 32 images. P = 1, 2, 4 stand for the paper's P = 2, 4, 8 of 256 x 256 (Table 3):
# the channels for each number of a patch are the paper's, parameters are equal within 1%, and the FLOPs of a
# forward pass have the paper's ratios within 8%.
NETWORKS = {
    1: _network(32, (1, 1, 1, 2, 2), 2, (8, 4)),
    2: _network(64, (1, 1, 1, 1), 1, (8, 4)),
    4: _network(64, (1, 1.5), 1, (8, 4)),
}
SHARED = {
    "network.head_channels": 32,
    "optimizer.learning_rate": 1e-3,
    "optimizer.clip_norm": 1,
    "optimizer.warmup_steps": 50,
    "training.batch_size": 32,
    "training.ema_every": 10,
    "training.ema_lengths": (),
    "training.score_every": 0,
    "training.sample_images": 4,
    "training.sample_steps": 5,
    "training.eval_batches": 1,
    "training.keep_checkpoints": 1,
}


class Run(NamedTuple):
    """One training."""

    group: str
    data: str
    prediction: str
    patch_size: int
    part: float = 1  # its length over --steps
    every_seed: bool = True  # it is trained for each seed; else for the first
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.group}_{self.prediction}_P{self.patch_size}_seed{self.seed}"


# The runs of the first seed. Those of "hours" that predict x take equal times on one core.
RUNS = [
    *(Run("curves", AVATARS, prediction, 2) for prediction in ALL),
    # Of the first seed alone: P = 1 is slow, and the paper says nothing of its curves.
    Run("curves", AVATARS, "x", 4, every_seed=False),
    *(Run("curves", AVATARS, prediction, 1, every_seed=False) for prediction in ALL),
    *(Run("photographs", PHOTOGRAPHS, prediction, 2) for prediction in ALL),
    Run("hours", AVATARS, "x", 2, 14.4),
    Run("hours", AVATARS, "x", 4, 33.0),
    Run("hours", AVATARS, "x", 1, 7.2),
    Run("hours", AVATARS, "eps", 2, 4.8, every_seed=False),
]


class Figure(NamedTuple):
    """One figure or table of the page."""

    analysis: str  # one of `pdm_tf.analysis.ANALYSES`; "": a table of evaluations at each w of `GUIDANCE`
    claims: Callable[[dict[str, Any]], list[claims.Claim]]  # numbers -> the paper's findings
    # Which of `RUNS` it is made of.
    group: str = ""
    predictions: Sequence[str] = ("x",)
    patch_sizes: Sequence[int] = (1, 2, 4)
    every_seed: bool = False  # of all seeds, or of the first
    shipped: str = ""  # the name of weights that ship, of which it is made where there is no group
    arguments: Sequence[str] = ()  # further ones of the analysis

    @property
    def is_table(self) -> bool:
        """Whether the page shows rows in place of a picture."""
        return self.analysis in ("", "table1", "table2")

    def runs(self, seeds: int) -> list[Run]:
        """Its runs, by seed and then by P."""
        chosen = [
            run
            for run in RUNS
            if run.group == self.group
            and run.prediction in self.predictions
            and run.patch_size in self.patch_sizes
        ]
        chosen.sort(key=lambda run: run.patch_size)
        return [
            run._replace(seed=seed)
            for seed in range(seeds if self.every_seed else 1)
            for run in chosen
            if seed == 0 or run.every_seed
        ]


MANY = ("--num_samples=64", "--sample_batch_size=64")
FIGURES = {
    "fig1a": Figure("fig1a", claims.fig1a, shipped="emoji64"),
    "fig1b": Figure("fig1b", claims.fig1b, shipped="emoji64", arguments=("--num_samples=64",)),
    "fig2": Figure("fig2", claims.fig2, "hours", every_seed=True, arguments=MANY),
    "fig2_steps": Figure("fig2", claims.fig2, "curves", arguments=MANY),
    "fig3": Figure("fig3", claims.fig3, "curves", ALL, (1, 2), every_seed=True),
    "fig3_photographs": Figure("fig3", claims.fig3, "photographs", ALL, (2,), every_seed=True),
    "fig4": Figure("fig4", claims.fig4, "hours", ("x", "eps"), (2,)),
    "table1": Figure("table1", claims.table1, "hours", every_seed=True, arguments=MANY),
    "table2": Figure("table2", claims.equal_hours, "hours", every_seed=True),
    "guidance": Figure("", claims.guidance, "hours", patch_sizes=(2,), every_seed=True),
    "memory": Figure("memory", claims.memory, "hours", patch_sizes=(1, 4)),
    "grids": Figure("grids", claims.grids, shipped="avatars64", arguments=MANY),
    "grids256": Figure("grids", claims.grids, shipped="avatars256", arguments=MANY),
}

# Columns of tables on the page; the JSON has all.
COLUMNS = ("images_per_second", "device_days", "parameters", "seeds")
LEFT_OUT_METRICS = ("density", "coverage")


class Reproduction:
    """Makes the page from what is in one folder, and what is missing there first."""

    def __init__(self, options: argparse.Namespace, execute: Execute = main_py):
        self.options = options
        self.driver = Driver(options.out, execute, dry=options.list)
        self.pictures = options.page.parent / PICTURES

    def make(self) -> None:
        """Makes the figures asked for, and then the page."""
        if not self.options.draw:
            self._make_figures()
        if not self.options.list:
            for name in self.options.only:
                write_part(self.options.page, name, self.part(name))
            write_part(self.options.page, "summary", self.summary())
            print(f"wrote {', '.join(self.options.only)} of {self.options.page}")

    def _make_figures(self) -> None:
        """Trains, evaluates and analyzes what is missing."""
        figures = {name: FIGURES[name].runs(self.options.seeds) for name in self.options.only}
        needed = {run for runs in figures.values() for run in runs}
        for seed in range(self.options.seeds):  # whole pages of few seeds before those of more
            for run in RUNS:
                if run._replace(seed=seed) in needed:
                    self._train(run._replace(seed=seed))
        in_tables = [run for name, runs in figures.items() if FIGURES[name].is_table for run in runs]
        for run in dict.fromkeys(in_tables):
            self._evaluate(run)
            self._likelihood_of(run)
        for name, runs in figures.items():
            if FIGURES[name].analysis:
                self._analyze(name)
            else:
                self._guide(name, runs)

    def folder(self, run: Run) -> RunFolder:
        return RunFolder(self.options.out / run.name)

    def _dataset(self, run: Run) -> str:
        return f"--dataset=folder:{self.options.data_dir / run.data}"

    def _train(self, run: Run) -> None:
        log_every = max(1, self.options.steps // LOG_LINES)
        rarely = log_every * math.ceil(self.options.steps / log_every)
        settings = {
            **NETWORKS[run.patch_size],
            **SHARED,
            "training.log_every": log_every,
            "training.eval_every": rarely,
            "training.sample_every": rarely,
            "training.checkpoint_every": max(100, rarely // 10),
        }
        arguments = [
            self._dataset(run),
            "--network=unet",
            f"--seed={run.seed}",
            f"--prediction={run.prediction}",
            f"--patch_size={run.patch_size}",
            *settings_flags(settings),
        ]
        self.driver.train(self.folder(run), max(1, round(self.options.steps * run.part)), arguments)

    def _evaluate(self, run: Run, guidance: float = 1.0) -> Path:
        """Distances of a run's samples to held-out images; returns their file."""
        folder = self.folder(run).evaluation
        arguments = ["--reference=validation"]
        if guidance != 1.0:
            folder /= f"guidance_{guidance:g}"
            arguments += [f"--guidance={guidance:g}", f"--out={folder}"]
        return self._measure(run, folder / "evaluation.json", arguments)

    def _likelihood_of(self, run: Run) -> Path:
        """Bits per dimension of held-out images; returns their file."""
        file = self.folder(run).evaluation / "likelihood.json"
        return self._measure(run, file, ["--likelihood", f"--strata={STRATA}"])

    def _measure(self, run: Run, file: Path, arguments: Sequence[str]) -> Path:
        """Executes --mode=evaluate, which makes `file`."""
        shared = [
            "--mode=evaluate",
            self._dataset(run),
            f"--run_dir={self.folder(run)}",
            f"--num_samples={self.options.num_samples}",
            "--sample_batch_size=50",
        ]
        self._execute_once(file, [self.folder(run)], [*shared, *arguments])
        return file

    def _guide(self, name: str, runs: Sequence[Run]) -> None:
        """A table's numbers: distances of guided samples, means over the seeds of a network."""
        files = {w: [self._evaluate(run, w) for run in runs] for w in (1.0, *GUIDANCE)}
        if self.options.list:
            return
        rows = {}
        for w, of_seeds in files.items():
            evaluations = [json.loads(file.read_text())["results"][0] for file in of_seeds]
            rows[f"w = {w:g}"] = {"seeds": len(runs), "metrics": mean_metrics(evaluations)}
        sentence = f"{self.options.num_samples} samples of each seed; w = 1 is without guidance."
        self._keep(name, {"rows": rows, "sentence": sentence, "training": self._training(runs)})

    def _analyze(self, name: str) -> None:
        """One figure's numbers and picture, copied beside the page."""
        figure = FIGURES[name]
        runs = figure.runs(self.options.seeds)
        out = self.options.out / name
        shipped = [RunFolder(folder.relative_to(ROOT)) for folder in shipped_folders(figure.shipped)]
        folders = [self.folder(run) for run in runs] or shipped
        arguments = [
            "--mode=analyze",
            f"--what={figure.analysis}",
            *(f"--run_dir={folder}" for folder in folders),
            *([self._dataset(runs[0])] if runs else [f"--data_dir={self.options.data_dir}"]),
            *figure.arguments,
            f"--out={out}",
        ]
        file = out / f"{figure.analysis}.json"
        counts = {"num_samples": self.options.num_samples} if figure.is_table else {}
        if not runs:
            counts["configs"] = [folder.config_file.read_text() for folder in shipped]
        self._execute_once(file, folders, arguments, **counts)
        if self.options.list:
            return
        numbers = {**json.loads(file.read_text()), "training": self._training(runs)}
        if figure.is_table:
            bits = [json.loads(self._likelihood_of(run).read_text())["bits_per_dim"] for run in runs]
            numbers["likelihood"] = [{"patch_size": run.patch_size, **one} for run, one in zip(runs, bits)]
        self._keep(name, numbers)
        if not figure.is_table:
            with Image.open(out / f"{figure.analysis}.png") as picture:
                small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
                small.save(self.pictures / f"{name}.png", optimize=True)

    def _keep(self, name: str, numbers: Mapping[str, Any]) -> None:
        """Writes a figure's numbers beside the page."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        (self.pictures / f"{name}.json").write_text(json.dumps(numbers) + "\n")

    def _execute_once(
        self, file: Path, folders: Sequence[RunFolder], arguments: Sequence[str], **counts: Any
    ) -> None:
        """Executes a command that makes a file, unless it did with the weights that its runs have now.

        `counts`: what else decides the file's numbers.
        """
        key = {"command": list(arguments), "steps": [steps_done(folder) for folder in folders], **counts}
        self.driver.once(key, lambda: self.driver.execute(arguments), file)

    def _training(self, runs: Sequence[Run]) -> dict[str, Any]:
        """What a figure's runs have cost."""
        batch = SHARED["training.batch_size"]
        return {
            "runs": len(runs),
            "data": runs[0].data if runs else "",
            "steps": sorted({steps_done(self.folder(run)) for run in runs}),
            "batch_size": batch,
            "seeds": sorted({run.seed for run in runs}),
            "hours": sum(training_seconds(self.folder(run).metrics(), batch) for run in runs) / 3600,
        }

    def numbers(self, name: str) -> dict[str, Any]:
        """A figure's numbers beside the page."""
        return json.loads((self.pictures / f"{name}.json").read_text())

    def summary(self) -> str:
        """The paper's statements, each with what the figures that are there say of it."""
        made = [name for name in FIGURES if (self.pictures / f"{name}.json").exists()]
        found = [claim for name in made for claim in FIGURES[name].claims(self.numbers(name))]
        rows = []
        for name, statement in claims.STATEMENTS.items():
            measured = [claim for claim in found if claim.statement == name]
            outcome = claims.overall(measured) if measured else f"not looked at: {statement.left_out}"
            rows.append([statement.place, statement.text, outcome])
        outcomes = [row[2] for row in rows]
        judged = [one for one in outcomes if not one.startswith("not ")]
        count = (
            f"**Of {len(rows)} statements of the paper with a number or a figure, {len(judged)} are judged "
            f"here: {judged.count('holds')} hold, {judged.count('holds in part')} in part, and "
            f"{judged.count(claims.verdict(False))} do not.**"
        )
        return f"{count}\n\n{markdown(['where', 'the paper', 'here'], rows)}"

    def part(self, name: str) -> str:
        """A figure's part of the page in Markdown, made of its numbers."""
        figure = FIGURES[name]
        numbers = self.numbers(name)
        shown = f"![{name}]({PICTURES}/{name}.png)"
        if figure.is_table:
            shown = markdown(*as_texts({title: page_row(row) for title, row in numbers["rows"].items()}))
        parts = [shown, numbers["sentence"]]
        found = figure.claims(numbers)
        if found:
            rows = [
                [claims.STATEMENTS[claim.statement].text, claim.here, claims.verdict(claim.holds)]
                for claim in found
            ]
            parts.append(markdown(["the paper", "here", ""], rows))
        return "\n\n".join([*parts, self._source(name)])

    def _source(self, name: str) -> str:
        """The command, runs, seeds and hours of a figure."""
        group = FIGURES[name].group
        shipped = FIGURES[name].shipped
        command = f"`python -m experiments.reproduction --only {name}`"
        link = f"[numbers]({PICTURES}/{name}.json)"
        if not group:
            return f"{command}: of {shipped}'s weights that ship; {link}."
        cost = self.numbers(name)["training"]
        lengths = " or ".join(f"{length:,}" for length in cost["steps"])
        seeds = f"seed{'s' * (len(cost['seeds']) > 1)} {', '.join(map(str, cost['seeds']))}"
        return (
            f"{command}: {cost['runs']} run{'s' * (cost['runs'] > 1)} on `{cost['data']}` of {lengths} steps "
            f"of {cost['batch_size']} images, {seeds}, {cost['hours']:.2f} hours of training; {link}."
        )


def page_row(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row that the page shows."""
    metrics = {name: value for name, value in row["metrics"].items() if name not in LEFT_OUT_METRICS}
    return {**{name: row[name] for name in COLUMNS if name in row}, "metrics": metrics}


def show(arguments: Sequence[str]) -> None:
    print("python", "main.py", shlex.join(arguments))


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
    Reproduction(options, show if options.list else main_py).make()


if __name__ == "__main__":
    sys.exit(errors.run(main))
