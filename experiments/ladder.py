"""From the Vision Transformer of Appendix D, which diverged, to the one that does not: one change a rung.

    nice -n 19 python -m experiments.ladder [--rate 0.003] [--seeds 3] [--steps 400] [--rungs 1 2 14]

trains each rung on emoji64, averaged down to 32 x 32, with P = 4 at a rate that is high enough to break the
first. What a run did is one line of `<out>/runs.jsonl`: a run that is there is not done again, so a ladder
that was stopped goes on by the same command. At the end, and with `--draw` at once, `<out>/ladder.png` and
`<out>/ladder.md` are made of all lines of that rate and number of steps.

Rungs weight noise levels differently, so that their training losses cannot be compared. All are measured by
the same: the paper's loss (sqrt(SNR) weights, t uniform) of held-out images at fixed t and noise, per value.
It is made of the least noise for the most part; so the squared error of x in the noisier half of t stands
beside it.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from experiments import journal
from pdm_tf import data
from pdm_tf.config.fields import Config, DiffusionConfig, validate
from pdm_tf.config.presets import preset
from pdm_tf.denoiser import build_network
from pdm_tf.randomness import normal_each, stream
from pdm_tf.stack import keras
from pdm_tf.training import loop
from pdm_tf.training.model import PatchedDiffusion, build_model
from pdm_tf.training.objective import Examples, Objective

SIDE = 32
SPIKE = 10.0  # a gradient norm so many times the median of the 50 steps before it
# Each rung is those above it and its own changes.
RUNGS: list[tuple[str, dict]] = [
    ("PostNorm, LayerNorm, x prediction (Appendix D)", {
        "network.norm": "layer", "network.norm_place": "after", "network.t_gates": False,
        "network.qk_norm": False, "network.rope": False, "network.feed_forward": "gelu",
        "network.input_injections": (4, 8, 11), "network.bottleneck": 0,
    }),
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
    ("RoPE, SwiGLU, bottleneck (ours)", {
        "network.rope": True, "network.feed_forward": "swiglu", "network.bottleneck": 32,
    }),
]  # fmt: skip


def config_of(rung: int, rate: float, batch_size: int, width: int) -> Config:
    """The config of a rung, counted from 1: 11 blocks on 8 x 8 patches, without labels."""
    changes = {key: value for _, own in RUNGS[:rung] for key, value in own.items()}
    return validate(preset("emoji64").replace({
        "data.image_shape": (SIDE, SIDE, 3), "data.num_classes": 0, "network.class_conditioning": "none",
        "network.kind": "vit", "network.depth": 11, "network.base_channels": width,
        "network.head_channels": 16, "network.patch_size": 4, "optimizer.learning_rate": rate,
        "optimizer.beta_2": 0.95, "optimizer.warmup_steps": 50, "training.batch_size": batch_size, **changes,
    }))  # fmt: skip


def images_of(split: str) -> np.ndarray:
    """All images of a split, averaged down to SIDE."""
    info = data.find_dataset("emoji64", "data")
    batches = data.load_batches(
        info, split=split, batch_size=32, seed=0, repeat=False, shuffle=False, image_shape=(64, 64, 3),
        drop_remainder=False,
    )  # fmt: skip
    with data.naming_shards():
        whole = np.concatenate([images for images, *_ in batches.as_numpy_iterator()])
    factor = 64 // SIDE
    return whole.reshape(-1, SIDE, factor, SIDE, factor, 3).mean(axis=(2, 4))


class Trainer:
    """One rung's compiled train step and measure, for any seed."""

    def __init__(self, config: Config, train: np.ndarray, held_out: np.ndarray):
        self.config, self.train = config, train
        self.model = build_model(config, "float32")
        self.state = loop.training_state(self.model)
        self.model.seed = tf.Variable(0, trainable=False)  # one trace for all seeds
        self.optimizer_start = [v.numpy() for v in self.model.optimizer.variables()]
        self.step = tf.function(self._step)
        self.measure = tf.function(self._measure_of(self.model, held_out))

    def _step(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for metric in self.model.metrics:
            metric.reset_state()
        values = self.model.train_step((images,))
        return values["simple_loss"], values["gradient_norm"]

    @staticmethod
    def _measure_of(model: PatchedDiffusion, held_out: np.ndarray):
        objective, count = Objective(model.denoiser, DiffusionConfig()), len(held_out)
        t = tf.constant((np.arange(count) + 0.5) * len(model.denoiser.schedule) / count, tf.int32)
        eps = normal_each(stream(0, "ladder"), tf.range(count), held_out.shape[1:])
        examples = Examples(tf.constant(held_out), tf.zeros(count, tf.int32), t, eps)

        def measure() -> tuple[tf.Tensor, tf.Tensor]:
            losses = objective(examples)
            return tf.reduce_mean(losses["simple_loss"]) / held_out[0].size, tf.reduce_mean(
                losses["mse"][count // 2 :]
            )

        return measure

    def run(self, seed: int, steps: int) -> dict:
        """Trains from fresh weights; the losses, gradient norms and skipped steps."""
        keras.utils.set_random_seed(seed)
        fresh = build_network(self.config).get_weights()
        self.model.network.set_weights(fresh)
        for variable, value in zip(self.model.optimizer.variables(), self.optimizer_start):
            variable.assign(value)
        self.model.bad_steps.variable.assign([0, 0, 0, 0])
        self.model.seed.assign(seed)
        begin, losses, norms = time.perf_counter(), [], []
        for images in self._batches(seed, steps):
            loss, norm = self.step(images)
            losses.append(float(loss) / self.train[0].size)
            norms.append(float(norm))
        held_out, noisy = map(float, self.measure())
        return {
            "held_out": held_out, "noisy_mse": noisy, "skipped": int(self.model.bad_steps.variable[0]),
            "seconds": round(time.perf_counter() - begin, 1),
            "loss": [float(f"{v:.4g}") for v in losses], "gradient_norm": [float(f"{v:.4g}") for v in norms],
        }  # fmt: skip

    def _batches(self, seed: int, steps: int) -> Iterator[tf.Tensor]:
        generator, size = np.random.default_rng(seed), self.config.training.batch_size
        for _ in range(steps):
            yield tf.constant(self.train[generator.integers(len(self.train), size=size)])


def spikes(norms: list[float]) -> int:
    """Steps whose gradient norm is not finite, or SPIKE times the median of the 50 steps before."""
    values = np.nan_to_num(np.array(norms), nan=np.inf)
    before = [np.median(values[max(0, k - 50) : k]) for k in range(1, len(values))]
    found = ~np.isfinite(values)
    found[1:] |= values[1:] > SPIKE * np.array(before)
    return int(found.sum())


def read(path: Path, chosen: dict) -> dict[int, dict[int, dict]]:
    """Rung -> seed -> run, of the lines that were made with what is `chosen`."""
    found = defaultdict(dict)
    for run in journal.entries(path, chosen):
        found[run["rung"]][run["seed"]] = run
    return found


def spread(values: list[float]) -> str:
    """The mean, and the range."""
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def table(found: dict[int, dict[int, dict]]) -> str:
    """The runs in Markdown: mean and range over the seeds."""
    lines = [
        "| rung | held-out loss | error of x, noisier half | largest gradient norm over median | spikes "
        "| skipped steps | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for rung in sorted(found):
        runs = found[rung].values()
        peaks = [np.nanmax(run["gradient_norm"]) / np.nanmedian(run["gradient_norm"]) for run in runs]
        cells = [
            f"{rung}. {RUNGS[rung - 1][0]}",
            *(spread([run[name] for run in runs]) for name in ("held_out", "noisy_mse")),
            f"{np.median(peaks):.3g} (to {max(peaks):.3g})",
            sum(spikes(run["gradient_norm"]) for run in runs),
            sum(run["skipped"] for run in runs),
            len(runs),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def draw(found: dict[int, dict[int, dict]], path: Path) -> None:
    """Gradient norm over its median by step, a panel for each rung, and the held-out losses of all."""
    columns = 4
    rows = -(-(len(found) + 1) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(12, 2.3 * rows), layout="constrained")
    for axis, rung in zip(axes.flat, sorted(found)):
        for run in found[rung].values():
            norms = np.array(run["gradient_norm"])
            axis.plot(np.arange(1, len(norms) + 1), norms / np.nanmedian(norms), linewidth=0.6)
        axis.set(yscale="log", ylim=(0.05, 1e3))
        axis.set_title(f"{rung}. {RUNGS[rung - 1][0]}", fontsize=7)
        axis.tick_params(labelsize=6)
        axis.grid(alpha=0.3)
    last = axes.flat[len(found)]
    for rung, runs in found.items():
        last.plot(
            [rung] * len(runs), [run["held_out"] for run in runs.values()], "o", color="C0", markersize=3
        )
        last.plot(
            [rung] * len(runs), [run["noisy_mse"] for run in runs.values()], "x", color="C1", markersize=3
        )
    last.set(yscale="log")
    last.set_title("held-out loss (o), error of x in the noisier half (x), by rung", fontsize=7)
    last.tick_params(labelsize=6)
    last.grid(alpha=0.3)
    for axis in axes.flat[len(found) + 1 :]:
        axis.axis("off")
    figure.suptitle("gradient norm over its median, by step; one line a seed", fontsize=9)
    figure.savefig(path, dpi=72)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rungs", type=int, nargs="+", default=list(range(1, len(RUNGS) + 1)))
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"))
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    arguments = parser.parse_args()
    chosen = {name: getattr(arguments, name) for name in ("rate", "steps", "batch_size", "width")}
    results = arguments.out / "runs.jsonl"
    arguments.out.mkdir(parents=True, exist_ok=True)
    done = read(results, chosen)
    missing = {r: [s for s in range(arguments.seeds) if s not in done[r]] for r in arguments.rungs}
    if any(missing.values()) and not arguments.draw:
        train, held_out = images_of("train"), images_of("validation")
        for rung, seeds in missing.items():
            config = config_of(rung, arguments.rate, arguments.batch_size, arguments.width)
            trainer = Trainer(config, train, held_out) if seeds else None
            for seed in seeds:
                run = {"rung": rung, "seed": seed, **chosen, **trainer.run(seed, arguments.steps)}
                journal.add(results, run)
                print(
                    f"rung {rung}, seed {seed}: held-out loss {run['held_out']:.4g}, "
                    f"{spikes(run['gradient_norm'])} spikes, {run['skipped']} skipped, {run['seconds']} s",
                    flush=True,
                )
            keras.backend.clear_session()
    found = {rung: runs for rung, runs in sorted(read(results, chosen).items()) if runs}
    (arguments.out / "ladder.md").write_text(table(found))
    draw(found, arguments.out / "ladder.png")
    print(f"wrote {arguments.out / 'ladder.md'} and {arguments.out / 'ladder.png'}")


if __name__ == "__main__":
    main()
