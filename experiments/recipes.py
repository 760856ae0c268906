"""Which recipe draws a data set best after equal minutes: distances to the training images, of any data sets.

    python -m experiments.recipes --datasets folder:data/icons folder:data/clothes [--minutes 5 20]

trains each recipe on each data set for each number of minutes, a longer run from where the shorter one ended
(so with its warm-up), and measures its samples. The machine should do nothing else. Stopped at any time, it
goes on by the same command: the minutes that were stopped begin again. `<out>/recipes.md` has the table.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.driver import Driver, Execute, main_py, markdown, steps_done
from pdm_tf import errors
from pdm_tf.analysis.tables import mean_metrics, with_error
from pdm_tf.run import RunFolder

# Beside the default: what it is without weights that ship, and the network without them.
RECIPES = {
    "default": (),
    "random weights": ("--warm_start=",),
    "U-Net, random weights": ("--network=unet", "--warm_start="),
}
DISTANCE = "FD-efficientnet_lite0"

Results = dict[tuple[str, float, str], list[dict[str, Any]]]  # (data set, minutes, recipe) -> of each seed


def results_of(options: argparse.Namespace, execute: Execute = main_py) -> Results:
    """The numbers of all runs, short ones first; trains and measures what is missing."""
    driver = Driver(options.out, execute)
    samples = [f"--num_samples={options.num_samples}", "--sample_batch_size=50"]
    minutes = sorted(set(options.minutes))
    return {
        (dataset, longer, recipe): [
            measure(driver, dataset, shorter, longer, recipe, seed, samples) for seed in range(options.seeds)
        ]
        for shorter, longer in zip([0, *minutes], minutes)
        for dataset in options.datasets
        for recipe in options.recipes
    }


def measure(
    driver: Driver, dataset: str, shorter: float, minutes: float, recipe: str, seed: int, samples: list[str]
) -> dict[str, Any]:
    """Steps and metrics of one run, which goes on from where that of `shorter` minutes ended."""
    words = [re.sub(r"\W+", "-", dataset), *recipe.replace(",", "").split()]
    before, folder = (
        RunFolder(driver.out / "_".join([*words, f"{end:g}min", f"seed{seed}"])) for end in (shorter, minutes)
    )
    shared = [f"--dataset={dataset}", f"--run_dir={folder}", f"--seed={seed}"]
    settings = [f"--set=training.minutes={minutes - shorter:g}", "--set=training.score_every=0"]

    def train() -> dict[str, int]:
        shutil.rmtree(folder.path, ignore_errors=True)
        if shorter:
            shutil.copytree(before.path, folder.path, ignore=lambda path, _: [before.evaluation.name])
        driver.execute(["--mode=train", *shared, *settings, *RECIPES[recipe]])
        return {"steps": steps_done(folder)}

    key = {"dataset": dataset, "recipe": RECIPES[recipe], "minutes": [shorter, minutes], "seed": seed}
    steps = driver.once({"train": key}, train)["steps"]
    evaluate = ["--mode=evaluate", *shared, *samples]
    driver.once({"evaluate": key, "samples": samples}, lambda: driver.execute(evaluate))
    rows = json.loads((folder.evaluation / "evaluation.json").read_text())["results"]
    (row,) = [row for row in rows if "digest" in row]  # the other is of held-out images
    return {"steps": steps, "metrics": row["metrics"]}


def table(results: Mapping[tuple[str, float, str], Sequence[Mapping[str, Any]]]) -> str:
    """Distances in Markdown, with their steps: a row for each data set and number of minutes."""
    recipes = list(dict.fromkeys(recipe for *_, recipe in results))
    rows = []
    for dataset, minutes in dict.fromkeys(key[:2] for key in results):
        cells = []
        for recipe in recipes:
            seeds = results[dataset, minutes, recipe]
            steps = sum(seed["steps"] for seed in seeds) / len(seeds)
            cells.append(f"{with_error(mean_metrics(seeds)[DISTANCE])} ({steps:,.0f} steps)")
        rows.append([dataset, f"{minutes:g}", *cells])
    return markdown(["data set", "minutes", *recipes], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--datasets", nargs="+", required=True, help="as main.py's --dataset")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 20])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--num_samples", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    options = parser.parse_args()
    text = table(results_of(options))
    (options.out / "recipes.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    sys.exit(errors.run(main))
