"""What follows from settings: sizes for any other data, periods that fit a run's length, and what resumes."""

import math
import re

import pytest

from pdm_tf.config.fields import DataConfig, validate
from pdm_tf.config.presets import MOST_ATTENTION, SIZES, fitted_to_length, preset, sized_preset
from pdm_tf.config.words import differences
from pdm_tf.errors import UserError

SHAPES = [(side, side, 3) for side in (8, 28, 50, 64, 150, 178, 300, 1024)]
SHAPES += [(218, 178, 3), (270, 480, 1), (31, 33, 4)]
PLACES = {"tiny": 256, "small": 1024, "base": 4096}


def sized(size, shape, classes=0, **given):
    given = {key.replace("__", "."): value for key, value in given.items()}
    return validate(sized_preset(size, DataConfig("folder:x", shape, classes), given))


def grids(config):
    """(height, width) of each level, in patches."""
    height, width, _ = config.data.image_shape
    patch_size, levels = config.network.patch_size, len(config.network.channel_multipliers)
    assert height % (patch_size * 2 ** (levels - 1)) == width % (patch_size * 2 ** (levels - 1)) == 0
    return [(height // patch_size >> level, width // patch_size >> level) for level in range(levels)]


def attended(config):
    """The numbers of places that are attended over: the last level's, and those of the listed levels."""
    sizes = grids(config)
    listed = [grid for grid in sizes if max(grid) in config.network.attention_resolutions]
    return [math.prod(grid) for grid in [*listed, sizes[-1]]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_a_size_fits_every_image_or_says_what_to_convert_to(size, shape):
    """And the cost of the trunk is bounded, however large the images."""
    try:
        config = sized(size, shape)
    except UserError as error:
        assert "\n" not in str(error)
        nearest = re.search(r"a size that does is (\d+) x (\d+): .* --resolution \1x\2 ", str(error))
        height, width = map(int, nearest.groups())
        assert abs(height - shape[0]) + abs(width - shape[1]) <= 0.1 * sum(shape[:2]) + 2
        config = sized(size, (height, width, shape[2]))
    assert len(grids(config)) >= 2 and max(attended(config)) <= MOST_ATTENTION
    assert math.prod(grids(config)[0]) <= PLACES[size]


def test_larger_sizes_are_larger_networks_on_finer_grids():
    for shape in ((32, 32, 3), (64, 64, 3), (256, 256, 3), (1024, 1024, 3)):
        tiny, small, base = (math.prod(grids(sized(size, shape))[0]) for size in SIZES)
        assert tiny < small <= base
    patches = [
        [sized(size, (side, side, 3)).network.patch_size for size in SIZES] for side in (64, 256, 1024)
    ]
    assert patches == [[4, 2, 2], [16, 8, 4], [64, 32, 16]]


def test_what_is_set_comes_first_and_the_rest_follows():
    assert sized("small", (150, 150, 3)).network.patch_size == 5  # no power of two divides it into levels
    coarse = sized("base", (64, 64, 3), network__patch_size=8)
    assert grids(coarse) == [(8, 8), (4, 4)]
    wide = sized("tiny", (64, 64, 3), network__base_channels=32, network__channel_multipliers=(1, 3))
    assert wide.network.head_channels == 32 and len(grids(wide)) == 2
    unlabelled = sized("tiny", (64, 64, 3), classes=5, data__num_classes=0)
    assert unlabelled.network.class_conditioning == "none"
    assert sized("tiny", (64, 64, 3), classes=5).network.class_conditioning == "gate"
    levels = sized("small", (150, 150, 3), network__patch_size=1, network__channel_multipliers=(1, 1))
    assert attended(levels)[-1] == 5625  # who says how many levels there are has them


def test_images_that_differ_in_size_need_a_shape_and_take_it():
    with pytest.raises(UserError, match=r"differ in size: .* --set=data.image_shape=64,64,3$"):
        sized("tiny", (None, None, 3))
    assert sized("tiny", (None, None, 3), data__image_shape=(32, 48, 3)).data.image_shape == (32, 48, 3)


# --- the length of a run --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 30, 5_000, 200_000])
@pytest.mark.parametrize("together", [1, 7])
@pytest.mark.parametrize("config", [preset("emoji64"), sized("base", (64, 64, 3))])
def test_warm_up_averages_and_periods_fit_the_length(config, steps, together):
    given = {"training.steps": steps * together, "training.steps_per_execution": together}
    fitted = fitted_to_length(config.replace(given), given)
    t, own, length = validate(fitted).training, config.training, steps * together
    assert fitted.optimizer.warmup_steps <= min(math.ceil(length / 10), config.optimizer.warmup_steps)
    # Of the first weights less than a thousandth is left at the end, as soon as there are ten steps.
    updates = range(length // t.ema_every)
    left = math.prod(min(t.ema_decay, (1 + n) / (10 + n)) for n in updates)
    assert steps < 10 or left < 1e-3
    assert t.ema_every <= max(length / 30, 1) + together
    for key in ("ema_every", "log_every", "eval_every", "sample_every", "checkpoint_every", "score_every"):
        assert getattr(t, key) < getattr(own, key) + max(together, t.log_every)
    for key in ("eval_every", "checkpoint_every"):
        assert getattr(t, key) <= max(100, length / 30) + together + t.log_every
    assert t.sample_every <= max(500, length / 10) + together


def test_the_length_is_that_of_the_minutes_where_they_are_less():
    def fitted(**given):
        given = {f"training.{key}": value for key, value in given.items()}
        return fitted_to_length(preset("emoji64").replace(given), given)

    short, long = fitted(minutes=5.0), fitted(steps=300)
    assert set(differences(short, long)) == {"training.steps", "training.minutes"}
    assert set(differences(fitted(minutes=1e6), fitted())) == {"training.minutes"}
    # What is set stays, and what belongs to it follows.
    assert fitted(steps=300, eval_every=77, ema_every=9).training.ema_every == 9
    assert validate(fitted(steps=300, eval_every=77)).training.log_every == 1
    assert validate(fitted(steps=300, log_every=30)).training.eval_every % 30 == 0
    assert fitted() == preset("emoji64")
