"""`PatchedDiffusion`: the Keras model that trains a network on the paper's losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

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
from pdm_tf.stack import GuardedAdam, keras
from pdm_tf.training.augmentation import apply_changes, draw_changes
from pdm_tf.training.metrics import LossMeans, update_mean
from pdm_tf.training.objective import Objective
from pdm_tf.training.optimizer import BadSteps, WarmupCooldown

Batch = dict[str, tf.Tensor]


@keras.utils.register_keras_serializable("pdm_tf")
class PatchedDiffusion(keras.Model):
    """A patched diffusion model for `compile`, `fit` and `evaluate`.

    Batches are {"image": float32 (B, H, W, C) in [-1, 1], "label": int32 (B,), "place": int64 (B,)}. Labels
    may be left out, and so may places, the images' numbers in the stream of training images, which several
    input pipelines need. Images alone, or pairs of images and labels, are batches too.

    Noise, timesteps, label dropout and augmentation are functions of (seed, step, index in the global batch),
    the same on any number of replicas; dropout is one of (seed, step, replica). None needs saving.

    Args:
      clip_norm: the largest global gradient norm; 0 for no clipping.
      grad_accum: the number of parts into which each replica's batch is cut to save memory.
      augmentation: probability of each of several changes of a training image; the network, which must be
        `augmented`, is given them as labels (`pdm_tf.training.augmentation`).
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
            raise ValueError("augmentation needs a network that is `augmented`, which takes its labels")
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
        context = tf.distribute.get_replica_context()
        step = self.optimizer.iterations
        batch = self._augmented(self._batch(data), step)
        key = stream(self.seed, "train", step)
        dropout_key = stream(self.seed, "dropout", step, context.replica_id_in_sync_group)
        gradients, losses = self._accumulated_gradients(batch, key, dropout_key)
        if context.num_replicas_in_sync > 1:
            gradients = context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
        norm = tf.linalg.global_norm(gradients)
        finite = tf.math.is_finite(norm)
        self.bad_steps.note(finite, losses["loss"], losses["t"], step)
        # One part that is not finite makes the whole gradient NaN, which GuardedAdam does not apply.
        clip = tf.minimum(1.0, self.clip_norm / norm) if self.clip_norm else 1.0
        factor = tf.where(finite, clip, float("nan"))
        self.optimizer.apply_gradients(
            zip([gradient * factor for gradient in gradients], self.network.trainable_variables),
            experimental_aggregate_gradients=False,
        )
        update_mean(self.gradient_norm, norm)
        return {**self.means.update(losses), "gradient_norm": self.gradient_norm.result()}

    def test_step(self, data):
        """Losses of a held-out batch, at noise that is fixed for each batch number; called by `evaluate`."""
        key = stream(self.seed, "test", stack.test_batch(self))
        examples = self.objective.held_out_examples(key, self._batch(data))
        return self.means.update(self.objective.losses(examples))

    def _batch(self, data) -> Batch:
        """A batch as `Objective` wants it: places become indices in the global batch."""
        if not isinstance(data, dict):
            image, label, weight = keras.utils.unpack_x_y_sample_weight(data)
            if weight is not None:
                raise ValueError("sample weights are not supported")
            data = {"image": image} if label is None else {"image": image, "label": label}
        context = tf.distribute.get_replica_context()
        size = data["image"].shape[0] or tf.shape(data["image"])[0]
        batch = {
            "image": data["image"],
            "label": tf.cast(data["label"], tf.int32) if "label" in data else tf.zeros([size], tf.int32),
        }
        if "place" in data:
            place = data["place"]
            batch["index"] = tf.cast(
                place % tf.cast(size * context.num_replicas_in_sync, place.dtype), tf.int32
            )
        else:
            batch["index"] = context.replica_id_in_sync_group * size + tf.range(size)
        if self.network.augmented:  # also of images as they are: so all its weights have a gradient
            batch["augmentation"] = tf.zeros([size, AUGMENTATION_LABELS])
        return batch

    def _augmented(self, batch: Batch, step: tf.Tensor) -> Batch:
        """The batch with its images changed at random, and the labels of the changes."""
        if not self.augmentation:
            return batch
        changes = draw_changes(stream(self.seed, "augmentation", step), batch["index"], self.augmentation)
        return {**batch, "image": apply_changes(batch["image"], changes), "augmentation": changes.labels}

    def _gradients(self, batch: Batch, key: tf.Tensor, dropout_key: tf.Tensor) -> tuple[list, Batch]:
        """Gradients of the mean loss of a batch, dense, and each image's losses, (B,)."""
        variables = self.network.trainable_variables
        groups = self.objective.training_examples(key, batch)
        with tf.GradientTape() as tape:
            losses = self.objective.training_losses(groups, dropout_key)
            mean_loss = tf.reduce_mean(losses["loss"])
        # A student does not learn variances.
        gradients = tape.gradient(mean_loss, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return [tf.convert_to_tensor(gradient) for gradient in gradients], losses

    def _accumulated_gradients(
        self, batch: Batch, key: tf.Tensor, dropout_key: tf.Tensor
    ) -> tuple[list, Batch]:
        """As `_gradients`, of `grad_accum` parts of the batch, one after another, to save memory."""
        count = self.grad_accum
        if count == 1:
            return self._gradients(batch, key, dropout_key)
        parts = {name: tf.reshape(v, [count, -1, *v.shape[1:]]) for name, v in batch.items()}
        size = parts["image"].shape[1]
        types = dict.fromkeys(("loss", "simple_loss", "vlb_loss", "mse"), tf.float32) | {"t": tf.int32}

        def add_part(k, total, stacked):
            part_key = tf.random.experimental.stateless_fold_in(dropout_key, k)
            part = {name: values[k] for name, values in parts.items()}
            gradients, losses = self._gradients(part, key, part_key)
            total = [one + gradient / count for one, gradient in zip(total, gradients)]
            return k + 1, total, {name: array.write(k, losses[name]) for name, array in stacked.items()}

        zeros = [tf.zeros(v.shape) for v in self.network.trainable_variables]
        empty = {name: tf.TensorArray(t, count, element_shape=(size,)) for name, t in types.items()}
        _, gradients, stacked = tf.while_loop(
            lambda k, *_: k < count,
            add_part,
            (0, zeros, empty),
            parallel_iterations=1,
            maximum_iterations=count,
        )
        return gradients, {name: tf.reshape(array.stack(), [-1]) for name, array in stacked.items()}

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

        Raises:
          ValueError: guidance without classes, or with `label_dropout` 0.
        """
        learnt = self.denoiser.conditional and self.diffusion.label_dropout
        if settings.get("guidance", 1.0) != 1.0 and not learnt:
            raise ValueError("guidance leads away from images of no class, which this model never learnt")
        if labels is None:
            labels = np.resize(all_classes(self.denoiser), num_images)
        whole = self.denoiser.t_stop - self.denoiser.t_start
        steps = (min(steps, whole),) if isinstance(steps, int) else tuple(steps)
        edit = None if init_image is None else Edit(init_image, strength=strength)
        return Sampler(self.denoiser, SamplingConfig(**settings, steps=steps), edit)(
            seed, range(num_images), labels
        )

    def get_config(self):
        fields = ("clip_norm", "grad_accum", "augmentation", "seed", "name")
        return {
            "network": keras.utils.serialize_keras_object(self.network),
            **{name: getattr(self, name) for name in fields},
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
    optimizer = config.optimizer
    training = config.training
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
    # Made before restoring, so that a checkpoint without them is noticed.
    stack.create_slots(model.optimizer, model.network.trainable_variables)
    return model


def step_on_zeros(config: Config) -> tuple[PatchedDiffusion, Callable[[], float]]:
    """A float32 model and its compiled train step on a batch of zeros, which returns the loss."""
    model = build_model(config, "float32")
    height, width, channels = config.data.image_shape
    size = config.training.batch_size
    crop = config.data.crop
    images = tf.zeros((size, crop or height, crop or width, channels))
    batch = {"image": images, "label": tf.zeros(size, tf.int32)}
    step = tf.function(lambda: model.train_step(batch)["loss"], jit_compile=config.training.jit_compile)
    return model, lambda: float(step())
