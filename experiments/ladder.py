"""From the Vision Transformer of Appendix D, which diverged, to the one that does not: one change a rung.

    nice -n 19 python -m experiments.ladder [--rate 0.003] [--seeds 3] [--steps 400] [--rungs 1 2 14]

trains each rung on emoji64, averaged down to 32 x 32, with P = 4 at a rate that is high enough to break the
first. Stopped at any time, it goes on by the same command. At its end `<out>/ladder.md` and `.png` are made.

Rungs weight noise levels differently, so that their training losses cannot be compared. All are measured by
the paper's loss (sqrt(SNR) weights, t uniform) of held-out images at fixed t and noise, per value. It is made
of the least noise for the most part; so the squared error of x in the noisier half of t stands beside it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from experiments.driver import Driver, markdown
from pdm_tf import data, errors
from pdm_tf.config.fields import Config, DiffusionConfig, validate
from pdm_tf.config.presets import APPENDIX_D, preset
from pdm_tf.denoiser import build_network
from pdm_tf.plots import png_figure
from pdm_tf.randomness import normal_each
from pdm_tf.stack import keras
from pdm_tf.training.model import build_model
from pdm_tf.training.objective import Examples, Objective

SIDE = 32
SPIKE = 10.0  # a gradient norm over the median of the 50 steps before it
# Each rung is those above it and its own changes; the first is the paper's.
RUNGS: list[tuple[str, dict[str, Any]]] = [
    ("PostNorm, LayerNorm, x prediction (Appendix D)", {}),
    ("PreNorm", {"network.norm_place": "before"}),
    ("1/sqrt(N) on initial weights", {"network.residual_scaling": "initial_weights"}),
    ("1/sqrt(N) on the branch instead", {"network.residual_scaling": "branch"}),
    ("GroupNorm", {"network.norm": "group"}),
    ("v prediction", {"diffusion.prediction": "v"}),
    ("blurred inputs (the last of Appendix D)", {"network.blurred_inputs": (1.0, 2.0, 4.0, 8.0)}),
    ("no blurred inputs, no injections", {"network.blurred_inputs": (), "network.input_injections": ()}),
    ("x prediction, bounded v-loss", {"diffusion.prediction": "x", "diffusion.loss_weighting": "bounded_v"}),
    ("RMSNorm", {"network.norm": "rms"}),
    ("adaLN-Zero in place of 1/sqrt(N)", {"network.t_gates": True, "network.residual_scaling": "none"}),
    ("QK-norm", {"network.qk_norm": True}),
    ("logit-normal t", {"diffusion.t_distribution": "logit_normal", "diffusion.t_mean": -2.88}),
    (
        "RoPE, SwiGLU, bottleneck (ours)",
        {"network.rope": True, "network.feed_forward": "swiglu", "network.bottleneck": 32},
    ),
]

Results = dict[int, list[dict[str, Any]]]  # rung -> the numbers of each seed


def config_of(rung: int, rate: float, batch_size: int, width: int) -> Config:
    """The config of a rung, counted from 1: 11 blocks on 8 x 8 patches, without labels."""
    settings = {
        **APPENDIX_D,
        "data.image_shape": (SIDE, SIDE, 3),
        "data.num_classes": 0,
        "network.class_conditioning": "none",
        "network.kind": "vit",
        "network.base_channels": width,
        "network.head_channels": 16,
        "network.patch_size": 4,
        "optimizer.learning_rate": rate,
        "optimizer.warmup_steps": 50,
        "training.batch_size": batch_size,
    }
    for _, changes in RUNGS[:rung]:
        settings |= changes
    return validate(preset("emoji64").replace(settings))


def images_of(split: str) -> np.ndarray:
    """All images of a split, averaged down to SIDE: float32 (N, SIDE, SIDE, 3)."""
    batches = data.split_in_order(data.find_dataset("emoji64", "data"), split, batch_size=32)
    with data.naming_shards():
        images = np.concatenate([batch["image"] for batch in batches.as_numpy_iterator()])
    factor = 64 // SIDE
    return images.reshape(-1, SIDE, factor, SIDE, factor, 3).mean(axis=(2, 4))


class Trainer:
    """One rung's compiled train step and measurement, for any seed."""

    def __init__(self, config: Config, train: np.ndarray, held_out: np.ndarray):
        self.config = config
        self.train = train
        self.model = build_model(config, "float32")
        self.model.seed = tf.Variable(0, trainable=False)  # one trace for all seeds
        self.optimizer_start = [variable.numpy() for variable in self.model.optimizer.variables()]
        self.step = tf.function(self._step)
        self.measure = tf.function(self._measurement(held_out))

    def _step(self, images: tf.Tensor) -> tf.Tensor:
        for metric in self.model.metrics:
            metric.reset_state()
        return self.model.train_step(images)["gradient_norm"]

    def _measurement(self, held_out: np.ndarray) -> Callable[[], tuple[tf.Tensor, tf.Tensor]]:
        denoiser = self.model.denoiser
        count = len(held_out)
        t = tf.constant((np.arange(count) + 0.5) * len(denoiser.schedule) / count, tf.int32)
        eps = normal_each(0, "ladder", tf.range(count), held_out.shape[1:])
        examples = Examples(denoiser, tf.constant(held_out), tf.zeros(count, tf.int32), t, eps)
        objective = Objective(denoiser, DiffusionConfig())

        def measure():
            losses = objective.losses(examples)
            loss = tf.reduce_mean(losses["simple_loss"]) / held_out[0].size
            return loss, tf.reduce_mean(losses["mse"][count // 2 :])

        return measure

    def run(self, seed: int, steps: int) -> dict[str, Any]:
        """Trains from fresh weights; the held-out losses, gradient norms and skipped steps."""
        keras.utils.set_random_seed(seed)
        self.model.network.set_weights(build_network(self.config).get_weights())
        for variable, value in zip(self.model.optimizer.variables(), self.optimizer_start):
            variable.assign(value)
        self.model.bad_steps.variable.assign([0, 0, 0, 0])
        self.model.seed.assign(seed)
        begin = time.perf_counter()
        norms = []
        generator = np.random.default_rng(seed)
        for _ in range(steps):
            chosen = generator.integers(len(self.train), size=self.config.training.batch_size)
            norms.append(float(self.step(tf.constant(self.train[chosen]))))
        held_out, noisy = self.measure()
        return {
            "held_out": float(held_out),
            "noisy_mse": float(noisy),
            "skipped": int(self.model.bad_steps.variable[0]),
            "seconds": time.perf_counter() - begin,
            "gradient_norm": norms,
        }


def spikes(norms: Sequence[float]) -> int:
    """Steps whose gradient norm is not finite, or SPIKE times the median of the 50 steps before."""
    values = np.nan_to_num(np.array(norms), nan=np.inf)
    medians = [np.median(values[max(0, k - 50) : k]) for k in range(1, len(values))]
    found = ~np.isfinite(values)
    found[1:] |= values[1:] > SPIKE * np.array(medians)
    return int(found.sum())


def train_rungs(options: argparse.Namespace) -> Results:
    """Trains and measures each rung and seed that is missing; all numbers."""
    driver = Driver(options.out)
    images: dict[str, np.ndarray] = {}
    results: Results = {}
    for rung in options.rungs:
        trainers: list[Trainer] = []  # made for the first seed that is missing

        def measure(seed: int, rung=rung, trainers=trainers) -> dict[str, Any]:
            if not images:
                images.update({split: images_of(split) for split in ("train", "validation")})
            if not trainers:
                config = config_of(rung, options.rate, options.batch_size, options.width)
                trainers.append(Trainer(config, images["train"], images["validation"]))
            numbers = trainers[0].run(seed, options.steps)
            print(
                f"rung {rung}, seed {seed}: held-out loss {numbers['held_out']:.4g}, "
                f"{spikes(numbers['gradient_norm'])} spikes, {numbers['skipped']} skipped, "
                f"{numbers['seconds']:.0f} s",
                flush=True,
            )
            return numbers

        decisive = {name: getattr(options, name) for name in ("rate", "steps", "batch_size", "width")}
        results[rung] = [
            driver.once({"rung": rung, "seed": seed, **decisive}, lambda seed=seed: measure(seed))
            for seed in range(options.seeds)
        ]
        keras.backend.clear_session()
    return results


def _mean_and_range(values: Sequence[float]) -> str:
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(results: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    """The rungs in Markdown: mean and range over the seeds."""
    titles = ["rung", "held-out loss", "error of x, noisier half", "largest gradient norm over median"]
    titles += ["spikes", "skipped steps", "seeds"]
    lines = []
    for rung, seeds in sorted(results.items()):
        norms = [seed["gradient_norm"] for seed in seeds]
        peaks = [np.nanmax(one) / np.nanmedian(one) for one in norms]
        lines.append([
            f"{rung}. {RUNGS[rung - 1][0]}",
            _mean_and_range([seed["held_out"] for seed in seeds]),
            _mean_and_range([seed["noisy_mse"] for seed in seeds]),
            f"{np.median(peaks):.3g} (to {max(peaks):.3g})",
            sum(map(spikes, norms)),
            sum(seed["skipped"] for seed in seeds),
            len(seeds),
        ])  # fmt: skip
    return markdown(titles, lines)


def draw(results: Mapping[int, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Gradient norm over its median by step, a panel for each rung, and the held-out losses of all."""
    columns = 4
    rows = -(-(len(results) + 1) // columns)
    with png_figure(path, 12, 2.3 * rows, layout="constrained") as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False).flat)
        for panel, (rung, seeds) in zip(panels, sorted(results.items())):
            for seed in seeds:
                norms = np.array(seed["gradient_norm"])
                panel.plot(np.arange(1, len(norms) + 1), norms / np.nanmedian(norms), linewidth=0.6)
            panel.set(yscale="log", ylim=(0.05, 1e3))
            panel.set_title(f"{rung}. {RUNGS[rung - 1][0]}", fontsize=7)
        last = panels[len(results)]
        for rung, seeds in results.items():
            for name, marker, colour in (("held_out", "o", "C0"), ("noisy_mse", "x", "C1")):
                values = [seed[name] for seed in seeds]
                last.plot([rung] * len(values), values, marker, color=colour, markersize=3)
        last.set(yscale="log")
        last.set_title("held-out loss (o), error of x in the noisier half (x), by rung", fontsize=7)
        for panel in panels[: len(results) + 1]:
            panel.tick_params(labelsize=6)
            panel.grid(alpha=0.3)
        for panel in panels[len(results) + 1 :]:
            panel.axis("off")
        figure.suptitle("gradient norm over its median, by step; one line a seed", fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rungs", type=int, nargs="+", default=list(range(1, len(RUNGS) + 1)))
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    options = parser.parse_args()
    results = train_rungs(options)
    (options.out / "ladder.md").write_text(table(results) + "\n")
    draw(results, options.out / "ladder.png")
    print(f"wrote {options.out / 'ladder.md'} and {options.out / 'ladder.png'}")


if __name__ == "__main__":
    sys.exit(errors.run(main))
