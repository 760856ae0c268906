"""`PatchedDiffusion`: the Keras model that trains a network on the paper's losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pdm_tf import stack
from pdm_tf.config.fields import Config, DiffusionConfig, SamplingConfig
from pdm_tf.denoiser import build_denoiser, build_network
from pdm_tf.networks.patched import AUGMENTATION_LABELS, PatchedNetwork
from pdm_tf.randomness import stream
from pdm_tf.sampling.batches import all_classes
from pdm_tf.sampling.edit import Edit
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.stack import keras
from pdm_tf.training.augmentation import apply_changes, draw_changes
from pdm_tf.training.gradients import BadSteps, mean_gradients
from pdm_tf.training.metrics import LossMeans, update_mean
from pdm_tf.training.objective import Examples, Objective
from pdm_tf.training.optimizer import GuardedAdam, WarmupCooldown


@keras.utils.register_keras_serializable("pdm_tf")
class PatchedDiffusion(keras.Model):
    """A patched diffusion model for `compile`, `fit` and `evaluate`.

    It is fed images, float32 (B, H, W, C) in [-1, 1], or (images, labels) with int32 labels (B,), or (images,
    labels, place) with the images' places in the stream of training images, int64 (B,), which several input
    pipelines need. Noise, timesteps, label dropout and changes of images are functions of (seed, step,
    place in the global batch), the same on any number of replicas; dropout is one of (seed, step, replica).
    None needs saving.

    Args:
      network: what to train.
      clip_norm: the largest global gradient norm; 0 for no clipping.
      grad_accum: into how many parts each replica's batch is cut to save memory.
      augmentation: how often a training image is changed in each of several ways, which a network that is
        `augmented` is told of (`pdm_tf.training.augmentation`); 0: never.
      seed: of everything random in training.
      **diffusion: the fields of `DiffusionConfig`: process, prediction, loss weighting, interval of t.
    """

    def __init__(
        self,
        network: PatchedNetwork,
        *,
        clip_norm: float = 0.0,
        grad_accum: int = 1,
        augmentation: float = 0.0,
        seed: int = 0,
        name: str = "patched_diffusion",
        **diffusion,
    ):
        super().__init__(name=name)
        if augmentation and not network.augmented:
            raise ValueError("a network that is not `augmented` cannot be told of the changes to its images")
        self.network = network
        self.diffusion = DiffusionConfig(**diffusion)
        self.denoiser = build_denoiser(self.diffusion, network)
        self.objective = Objective(self.denoiser, self.diffusion)
        self.clip_norm = clip_norm
        self.grad_accum = grad_accum
        self.augmentation = augmentation
        self.seed = seed
        self.bad_steps = BadSteps()
        self.means = LossMeans(self.denoiser.t_start, self.denoiser.t_stop)
        self.gradient_norm = keras.metrics.Mean("gradient_norm")
        self.built = True

    def compile(self, *args, **kwargs):
        """Keras' `compile`; no loss is needed."""
        super().compile(*args, **kwargs)
        # Legacy optimizers make their step counter when it is first asked for, and a replica cannot.
        _ = self.optimizer.iterations

    @property
    def metrics(self):
        """Running means that Keras resets at the start of each epoch."""
        return [*self.means.all, self.gradient_norm]

    def call(self, inputs):
        """(z float32 (B, H, W, C), t int32 (B,), labels int32 (B,)) -> x_theta and u, shaped as z."""
        return self.denoiser(*inputs)

    def train_step(self, data):
        """One optimizer step on a batch; called by `fit`."""
        context, step = tf.distribute.get_replica_context(), self.optimizer.iterations
        augmentation_key = stream(self.seed, "augmentation", step) if self.augmentation else None
        batch = self._examples(
            stream(self.seed, "train", step), data, augmentation_key=augmentation_key, parts=self.grad_accum
        )
        dropout_key = stream(self.seed, "dropout", step, context.replica_id_in_sync_group)
        variables = self.network.trainable_variables
        gradients, losses = mean_gradients(
            self.objective.shared_out, variables, batch, dropout_key, self.grad_accum
        )
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm)
        self.bad_steps.note(finite, losses["loss"], batch.t, step)
        # One part that is not finite makes the whole gradient NaN, which GuardedAdam does not apply.
        clip = tf.minimum(1.0, self.clip_norm / norm) if self.clip_norm else 1.0
        factor = tf.where(finite, clip, float("nan"))
        self.optimizer.apply_gradients(
            zip([gradient * factor for gradient in gradients], variables),
            experimental_aggregate_gradients=False,
        )
        update_mean(self.gradient_norm, norm)
        return {**self.means.update(losses, batch.t), "gradient_norm": self.gradient_norm.result()}

    def test_step(self, data):
        """Losses of a held-out batch, at noise that is fixed for each batch number; called by `evaluate`."""
        batch = self._examples(stream(self.seed, "test", stack.test_batch(self)), data, drop_labels=False)
        return self.means.update(self.objective(batch), batch.t)

    def sample(
        self,
        num_images: int,
        *,
        steps: int | Sequence[int] = 250,
        labels: Sequence[int] | None = None,
        seed: int = 0,
        init_image: np.ndarray | None = None,
        strength: float = 1.0,
        **settings,
    ) -> np.ndarray:
        """Draws images, float32 (num_images, H, W, C) in [-1, 1].

        Args:
          steps: of `t_stop` - `t_start` at most; if there are fewer, all are taken.
          labels: int (num_images,); by default all classes in turn.
          init_image: float32 (H, W, C) or (num_images, H, W, C), diffused to begin from; needed by a model
            with `t_stop` < `num_timesteps`, which cannot begin from pure noise.
          strength: how much of `init_image` to change.
          **settings: other fields of `SamplingConfig`.
        """
        if labels is None:
            labels = np.resize(all_classes(self.denoiser), num_images)
        whole = self.denoiser.t_stop - self.denoiser.t_start
        steps = (min(steps, whole),) if isinstance(steps, int) else tuple(steps)
        edit = None if init_image is None else Edit(init_image, strength=strength)
        return Sampler(self.denoiser, SamplingConfig(**settings, steps=steps), edit)(
            seed, range(num_images), labels
        )

    def _examples(
        self,
        key: tf.Tensor,
        data,
        augmentation_key: tf.Tensor | None = None,
        drop_labels: bool = True,
        parts: int = 0,
    ) -> Examples:
        """A batch, changed if there is a key for that, with its timesteps and noise; see `Objective.draw`."""
        x, labels, place = keras.utils.unpack_x_y_sample_weight(data)
        context, size = tf.distribute.get_replica_context(), x.shape[0] or tf.shape(x)[0]
        if labels is None:
            labels = tf.zeros([size], tf.int32)
        if place is None:
            indices = context.replica_id_in_sync_group * size + tf.range(size)
        elif not place.dtype.is_integer:
            raise ValueError(
                "the third part of a batch is its images' places: sample weights are not supported"
            )
        else:
            indices = tf.cast(place % tf.cast(size * context.num_replicas_in_sync, place.dtype), tf.int32)
        # A network that can be told always is: so all its weights have a gradient.
        told = tf.zeros([size, AUGMENTATION_LABELS]) if self.network.augmented else None
        if augmentation_key is not None:
            changes = draw_changes(augmentation_key, indices, self.augmentation)
            x, told = apply_changes(x, changes), changes.labels
        rate = self.diffusion.label_dropout if drop_labels else 0.0
        examples = self.objective.draw(key, indices, x, tf.cast(labels, tf.int32), rate, parts)
        return examples._replace(augmentation=told)

    def get_config(self):
        return {
            "network": keras.utils.serialize_keras_object(self.network),
            **{
                name: getattr(self, name)
                for name in ("clip_norm", "grad_accum", "augmentation", "seed", "name")
            },
            **dataclasses.asdict(self.diffusion),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Rebuilds the model with fresh weights from `get_config`'s dictionary."""
        network = keras.utils.deserialize_keras_object(config["network"], custom_objects)
        return cls(network, **{k: v for k, v in config.items() if k != "network"})


def build_model(config: Config, precision: str) -> PatchedDiffusion:
    """The config's compiled model, with fresh weights that are a function of the config's seed."""
    keras.utils.set_random_seed(config.seed)
    optimizer, training = config.optimizer, config.training
    model = PatchedDiffusion(
        build_network(config, precision, training.gradient_checkpointing),
        clip_norm=optimizer.clip_norm,
        grad_accum=training.grad_accum,
        augmentation=config.data.augmentation,
        seed=config.seed,
        **dataclasses.asdict(config.diffusion),
    )
    rate = WarmupCooldown(
        optimizer.learning_rate, optimizer.warmup_steps, training.steps, optimizer.cooldown_steps
    )
    model.compile(
        optimizer=GuardedAdam(rate, optimizer.beta_1, optimizer.beta_2, optimizer.epsilon),
        jit_compile=training.jit_compile,
        steps_per_execution=training.steps_per_execution,
    )
    return model
