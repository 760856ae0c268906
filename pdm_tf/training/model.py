"""`PatchedDiffusion`: the Keras model that trains a network on the paper's losses."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from flags.config import Config
from pdm_tf.denoiser import Denoiser, build_network
from pdm_tf.diffusion.losses import loss_weights, simple_loss, vlb_loss
from pdm_tf.diffusion.process import diffuse
from pdm_tf.diffusion.schedules import linear_schedule
from pdm_tf.randomness import draw_each, stream
from pdm_tf.sampling.sampler import Sampler, cycled_labels
from pdm_tf.training.optimizer import GuardedAdam, LinearWarmup

QUARTERS = 4


@tf.keras.utils.register_keras_serializable("pdm_tf")
class PatchedDiffusion(tf.keras.Model):
    """A patched diffusion model for `compile`, `fit` and `evaluate`.

    It is fed images, float32 (B, H, W, C) in [-1, 1], or (images, labels) with int32 labels (B,). The loss is
    gamma_t ||x_theta - x||^2 whatever the network predicts, plus L_vlb, whose gradient reaches the variance
    head alone. Noise, timesteps and label dropout are functions of (seed, step, index in the global batch),
    the same on any number of replicas; dropout is one of (seed, step, replica). None needs saving.

    Args:
      network: maps (z, t, labels, dropout_key) to a prediction and u, such as a `UNet`.
      num_timesteps, beta_start, beta_end: the linear noise schedule.
      prediction: "x", "eps" or "v", what the network's output means.
      loss_weighting: gamma_t; see `loss_weights`.
      t_start, t_stop: the network is trained on t_start <= t < t_stop; None is num_timesteps.
      label_dropout: the rate at which labels give way to the null label (classifier-free guidance).
      clip_norm: the largest global gradient norm; 0 for no clipping.
      grad_accum: into how many parts each replica's batch is cut to save memory.
      seed: of everything random in training.
    """

    def __init__(
        self,
        network: tf.keras.Model,
        *,
        num_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        prediction: str = "x",
        loss_weighting: str = "sqrt_snr",
        t_start: int = 0,
        t_stop: int | None = None,
        label_dropout: float = 0.1,
        clip_norm: float = 0.0,
        grad_accum: int = 1,
        seed: int = 0,
        name: str = "patched_diffusion",
    ):
        super().__init__(name=name)
        self._config = {k: v for k, v in locals().items() if k not in ("self", "__class__", "network")}
        self.network = network
        self.schedule = linear_schedule(num_timesteps, beta_start, beta_end)
        self.denoiser = Denoiser(network, self.schedule, prediction, t_start, t_stop)
        self.weights_table = loss_weights(self.schedule, loss_weighting)
        self.label_dropout = label_dropout
        self.clip_norm = clip_norm
        self.seed = seed
        self.grad_accum = grad_accum
        # The replicas share out the batches of this many input pipelines; `fit` makes one.
        self.input_pipelines = 1
        # Steps skipped in all, skipped in a row, and the step and t at which that row began.
        self.bad_steps = tf.Variable(
            [0, 0, 0, 0], trainable=False, dtype=tf.int64, name="bad_steps",
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )  # fmt: skip
        names = [
            "loss",
            "simple_loss",
            "vlb_loss",
            *(f"mse_quarter{q + 1}" for q in range(QUARTERS)),
        ]
        self._means = {n: tf.keras.metrics.Mean(n) for n in names}
        self._gradient_norm = tf.keras.metrics.Mean("gradient_norm")
        self.built = True

    def compile(self, *args, **kwargs):
        """Keras' `compile`; no loss is needed."""
        super().compile(*args, **kwargs)
        # Legacy optimizers make their step counter when it is first asked for, and a replica cannot.
        _ = self.optimizer.iterations

    @property
    def metrics(self):
        """Running means that Keras resets at the start of each epoch."""
        return [*self._means.values(), self._gradient_norm]

    def call(self, inputs):
        """(z float32 (B, H, W, C), t int32 (B,), labels int32 (B,)) -> x_theta and u, shaped as z."""
        z, t, labels = inputs
        return self.denoiser(z, t, labels)

    def losses_of(self, x, labels, t, eps, dropout_key=None) -> dict[str, tf.Tensor]:
        """The losses of clean images at given timesteps and noise, each (B,).

        Args:
          x, eps: float32 (B, H, W, C).  labels, t: int32 (B,).  dropout_key: int32 (2,) or None.
        """
        z = diffuse(x, eps, self.schedule, t)
        pred_x, u = self.denoiser(z, t, labels, dropout_key)
        simple = simple_loss(x, pred_x, self.weights_table, t)
        vlb = vlb_loss(x, z, pred_x, u, self.schedule, t)
        mse = tf.reduce_mean(tf.square(pred_x - x), axis=[1, 2, 3])
        return {"loss": simple + vlb, "simple_loss": simple, "vlb_loss": vlb, "mse": mse}

    def train_step(self, data):
        """One optimizer step on a batch; called by `fit`."""
        context = tf.distribute.get_replica_context()
        x, labels = self._unpack(data)
        step = self.optimizer.iterations
        t, eps, labels = self._draw(stream(self.seed, "train", step), context, x, labels)
        dropout_key = stream(self.seed, "dropout", step, context.replica_id_in_sync_group)
        gradients, losses = self._gradients(x, labels, t, eps, dropout_key)
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm)
        self._note_bad_step(context, finite, losses, t, step)
        # One part that is not finite makes the whole gradient NaN, which GuardedAdam does not apply.
        clip = tf.minimum(1.0, self.clip_norm / norm) if self.clip_norm else 1.0
        factor = tf.where(finite, clip, float("nan"))
        self.optimizer.apply_gradients(
            zip([gradient * factor for gradient in gradients], self.network.trainable_variables),
            experimental_aggregate_gradients=False,
        )
        _update_mean(self._gradient_norm, norm)
        return {**self._update_means(losses, t), "gradient_norm": self._gradient_norm.result()}

    def _gradients(self, x, labels, t, eps, dropout_key):
        """Gradients of the mean loss over a replica's batch, dense, and the losses, each (B,).

        With `grad_accum` the batch is worked off in that many parts, one after another, so that the memory
        of only one part's activations is needed.
        """
        variables = self.network.trainable_variables

        def part_of(x, labels, t, eps, key):
            with tf.GradientTape() as tape:
                losses = self.losses_of(x, labels, t, eps, key)
                mean_loss = tf.reduce_mean(losses["loss"])
            return [tf.convert_to_tensor(g) for g in tape.gradient(mean_loss, variables)], losses

        parts = self.grad_accum
        if parts == 1:
            return part_of(x, labels, t, eps, dropout_key)
        whole = [tf.reshape(v, [parts, -1, *v.shape[1:]]) for v in (x, labels, t, eps)]
        names = ("loss", "simple_loss", "vlb_loss", "mse")

        def add_part(k, total, stacked):
            key = tf.random.experimental.stateless_fold_in(dropout_key, k)
            gradients, losses = part_of(*(v[k] for v in whole), key)
            total = [sum_ + g / parts for sum_, g in zip(total, gradients)]
            return k + 1, total, stacked.write(k, tf.stack([losses[n] for n in names], axis=1))

        start = [tf.zeros(v.shape) for v in variables]
        stacked = tf.TensorArray(tf.float32, parts, element_shape=(whole[0].shape[1], len(names)))
        _, gradients, stacked = tf.while_loop(
            lambda k, *_: k < parts,
            add_part,
            [0, start, stacked],
            parallel_iterations=1,
            maximum_iterations=parts,
        )
        losses = tf.reshape(stacked.stack(), [-1, len(names)])
        return gradients, dict(zip(names, tf.unstack(losses, axis=1)))

    def _note_bad_step(self, context, finite, losses, t, step):
        """Counts steps whose gradient is not finite, and remembers where a row of them began."""
        bad_t = tf.reduce_max(tf.where(tf.math.is_finite(losses["loss"]), -1, t))
        if context.num_replicas_in_sync > 1:
            bad_t = tf.reduce_max(context.all_gather(tf.reshape(bad_t, [1]), axis=0))
        skipped, row, first_step, first_t = tf.unstack(self.bad_steps)
        begins = tf.stack([skipped + 1, tf.constant(1, tf.int64), step, tf.cast(bad_t, tf.int64)])
        goes_on = tf.stack([skipped + 1, row + 1, first_step, first_t])
        ends = tf.stack([skipped, tf.constant(0, tf.int64), first_step, first_t])
        self.bad_steps.assign(tf.where(finite, ends, tf.where(row > 0, goes_on, begins)))

    def test_step(self, data):
        """Losses of a held-out batch, at noise that is fixed for each batch number; called by `evaluate`."""
        context = tf.distribute.get_replica_context()
        x, labels = self._unpack(data)
        t, eps, _ = self._draw(stream(self.seed, "test", self._test_counter), context, x, labels)
        return self._update_means(self.losses_of(x, labels, t, eps), t)

    def sample(
        self,
        num_images: int,
        *,
        steps: int = 250,
        guidance: float = 1.0,
        labels=None,
        seed: int = 0,
        init_image: np.ndarray | None = None,
    ):
        """Draws images by ancestral sampling, float32 (num_images, H, W, C) in [-1, 1].

        Args:
          steps: of `t_stop` - `t_start` at most; if there are fewer, all are taken.
          labels: int (num_images,); by default all classes in turn.
          init_image: float32 (H, W, C) or (num_images, H, W, C), diffused to begin from; needed by a model
            with `t_stop` < `num_timesteps`, which cannot begin from pure noise.
        """
        if labels is None:
            labels = cycled_labels(self.denoiser, num_images)
        steps = min(steps, self.denoiser.t_stop - self.denoiser.t_start)
        sampler = Sampler(self.denoiser, sections=(steps,), guidance=guidance, init_image=init_image)
        return sampler(seed, range(num_images), labels)

    def _unpack(self, data):
        x, labels, _ = tf.keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            labels = tf.zeros(tf.shape(x)[:1], tf.int32)
        return x, tf.cast(labels, tf.int32)

    def _global_indices(self, context, x):
        """Each image's index in the global batch, int32 (B,); the pipelines deal out its images in turn."""
        batch, replica = x.shape[0] or tf.shape(x)[0], context.replica_id_in_sync_group
        replicas_each = context.num_replicas_in_sync // self.input_pipelines
        in_pipeline = replica % replicas_each * batch + tf.range(batch)
        return in_pipeline * self.input_pipelines + replica // replicas_each

    def _draw(self, key, context, x, labels):
        """Timesteps, noise and labels with some dropped, from each image's own stream."""
        shape, t_range = x.shape[1:], (self.denoiser.t_start, self.denoiser.t_stop)

        def draw(image_key):
            keys = tf.unstack(tf.random.experimental.stateless_split(image_key, 3))
            t = tf.random.stateless_uniform((), keys[0], *t_range, dtype=tf.int32)
            eps = tf.random.stateless_normal(shape, keys[1])
            return t, eps, tf.random.stateless_uniform((), keys[2]) < self.label_dropout

        signature = (tf.TensorSpec((), tf.int32), tf.TensorSpec(shape), tf.TensorSpec((), tf.bool))
        t, eps, dropped = draw_each(key, self._global_indices(context, x), draw, signature)
        return t, eps, tf.where(dropped, self.denoiser.num_classes, labels)

    def _update_means(self, losses, t):
        """Feeds the metrics; `mse_quarter1` is the quarter of the range of t with the least noise."""
        start, stop = self.denoiser.t_start, self.denoiser.t_stop
        quarter = (t - start) * QUARTERS // (stop - start)
        for name, mean in self._means.items():
            if name.startswith("mse"):
                _update_mean(mean, losses["mse"], tf.cast(quarter == int(name[-1]) - 1, tf.float32))
            else:
                _update_mean(mean, losses[name])
        return {name: mean.result() for name, mean in self._means.items()}

    def get_config(self):
        return {**self._config, "network": tf.keras.utils.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuilds the model with fresh weights from `get_config`'s dictionary."""
        network = tf.keras.utils.deserialize_keras_object(config["network"], custom_objects)
        return cls(network, **{k: v for k, v in config.items() if k != "network"})


def _update_mean(mean: tf.keras.metrics.Mean, values: tf.Tensor, weights: tf.Tensor | float = 1.0) -> None:
    """Takes the finite ones of `values` into a mean."""
    finite = tf.math.is_finite(values)
    mean.update_state(tf.where(finite, values, 0.0), tf.cast(finite, tf.float32) * weights)


def build_model(config: Config, precision: str) -> PatchedDiffusion:
    """The config's compiled model, with fresh weights that are a function of the config's seed."""
    tf.keras.utils.set_random_seed(config.seed)
    d, o, t = config.diffusion, config.optimizer, config.training
    model = PatchedDiffusion(
        build_network(config, precision, t.recompute),
        num_timesteps=d.num_timesteps,
        beta_start=d.beta_start,
        beta_end=d.beta_end,
        prediction=d.prediction,
        loss_weighting=d.loss_weighting,
        t_start=d.t_start,
        t_stop=d.t_stop,
        label_dropout=d.label_dropout,
        clip_norm=o.clip_norm,
        grad_accum=t.grad_accum,
        seed=config.seed,
    )
    rate = LinearWarmup(o.learning_rate, o.warmup_steps)
    optimizer = GuardedAdam(rate, o.beta_1, o.beta_2, o.epsilon)
    model.compile(optimizer=optimizer, jit_compile=t.jit_compile, steps_per_execution=t.steps_per_execution)
    return model
