"""Several experts as one denoiser, and what run folders make one."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.averages import reconstruct
from pdm_tf.config.fields import SamplingConfig
from pdm_tf.denoiser import MagnifiedDenoiser, SplitDenoiser
from pdm_tf.errors import UserError
from pdm_tf.models import Model, models_from_folders, origin_text
from pdm_tf.run import RunFolder, shipped_folders
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.weights import read_arrays, variable_names, write_arrays
from tests.fakes import FakeDenoiser
from tests.tiny_runs import VIT, tiny_config, tiny_denoiser, write_run, write_snapshots

LOW = tiny_config(diffusion__t_stop=400, network__patch_size=2)
HIGH = tiny_config(diffusion__t_start=400, network__patch_size=4, diffusion__prediction="v", **VIT)


def inputs(t):
    z = tf.random.stateless_normal((len(t), 16, 16, 3), [1, 2])
    return z, tf.constant(t), tf.range(len(t)) % 3


class Counting(FakeDenoiser):
    """Answers one number; knows how often it was traced (`rows`), and how often it then ran."""

    def __init__(self, number, t_start, t_stop):
        self.runs = tf.Variable(0)
        super().__init__(self.count, t_start=t_start, t_stop=t_stop)
        self.number = number

    def count(self, z, t, labels):
        with tf.control_dependencies([self.runs.assign_add(1)]):
            return tf.fill(tf.shape(z), self.number), tf.fill(tf.shape(z), self.number / 2)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_only_parts_whose_interval_occurs_run(jit_compile):
    for t, runs in (([399, 0], [1, 0]), ([400, 999], [0, 1]), ([400, 399], [1, 1])):
        counting = [Counting(0.25, 0, 400), Counting(-0.5, 400, 1000)]
        pred_x, u = tf.function(SplitDenoiser(counting), jit_compile=jit_compile)(*inputs(t))
        assert [c.runs.numpy() for c in counting] == runs
        assert [len(c.rows) for c in counting] == [1, 1]
        expected = np.where(np.array(t) < 400, 0.25, -0.5)[:, None, None, None]
        np.testing.assert_array_equal(pred_x, np.broadcast_to(expected, pred_x.shape))
        np.testing.assert_array_equal(u, np.broadcast_to(expected / 2, u.shape))


def test_parts_are_flat_and_ascending():
    low = SplitDenoiser([FakeDenoiser(None, t_stop=100), FakeDenoiser(None, t_start=100, t_stop=400)])
    whole = SplitDenoiser([low, FakeDenoiser(None, t_start=400)])
    assert [(part.t_start, part.t_stop) for part in whole.parts] == [(0, 100), (100, 400), (400, 1000)]
    assert whole.parts[1].title == "P=1, t 100..399"


@pytest.mark.parametrize("sampler", ["ancestral"])
def test_sampling_traces_each_expert_once_and_runs_it_in_its_interval_alone(sampler):
    counting = [Counting(0.25, 0, 400), Counting(-0.5, 400, 1000)]
    sampler = Sampler(SplitDenoiser(counting), SamplingConfig(sampler, (5,)))  # 0 250 500 749 999
    frames = sampler.trajectory(0, [0, 1], [0, 1], 5)
    assert [len(c.rows) for c in counting] == [1, 1] and [c.runs.numpy() for c in counting] == [2, 3]
    np.testing.assert_array_equal(frames[:, 0, 0, 0, 0], [-0.5, -0.5, -0.5, 0.25, 0.25])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Run folders of two experts, with snapshots."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, (name, config) in enumerate((("low", LOW), ("high", HIGH))):
        write_snapshots(write_run(folder / name, config, seed))
    return folder / "low", folder / "high"


@pytest.fixture(scope="module")
def model(folders):
    """The experts' model; tests that load other averages load its own again."""
    return Model.from_folders(*reversed(folders))


def weights_of(denoiser):
    return dict(zip(variable_names(denoiser.variables), (v.numpy() for v in denoiser.variables)))


def assert_weights(denoiser, arrays):
    weights = weights_of(denoiser)
    assert weights.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(weights[name], array, err_msg=name)


def test_experts_loaded_in_any_order_are_one_denoiser(model, folders):
    low, high = model.runs
    assert [run.folder.path for run in model.runs] == list(folders) and model.title == "low + high"
    assert model.config == low.config
    parts = [(part.t_start, part.t_stop, part.patch_size) for part in model.denoiser.parts]
    assert parts == [(0, 400, 2), (400, 1000, 4)]
    assert model.origin == [
        {"run": str(run.folder), "step": 1, "t_start": start, "t_stop": stop, "patch_size": size,
         "prediction": prediction}
        for run, start, stop, size, prediction in ((low, 0, 400, 2, "x"), (high, 400, 1000, 4, "v"))
    ]  # fmt: skip
    z, t, labels = inputs([0, 399, 400, 999])
    results = model.denoiser(z, t, labels)
    for seed, (run, images) in enumerate(((low, slice(0, 2)), (high, slice(2, 4)))):
        for found, alone in zip(results, tiny_denoiser(run.config, seed)(z, t, labels)):
            np.testing.assert_allclose(found[images], alone[images], rtol=1e-4, atol=1e-4)


def test_other_lengths_go_into_the_same_variables_and_the_same_graph(model):
    traced = []

    @tf.function
    def predict(z, t, labels):
        traced.append(1)
        return model.denoiser(z, t, labels)[0]

    z, t, labels = inputs([399, 400])
    origin, digest, found = model.origin, model.digest, [predict(z, t, labels)]
    for length in (0.05, 0.07):
        model.use_ema_length(length)
        assert [(o["ema_length"], o["step"]) for o in model.origin] == [(length, 300)] * 2
        for denoiser, run in zip(model.denoisers, model.runs):
            assert_weights(denoiser, reconstruct(run.folder, length).arrays())
        found.append(predict(z, t, labels))
        assert model.digest != digest
    low = model.runs[0].folder
    misplaced = f"({reconstruct(low, 0.07).misplaced:.1%} misplaced)"
    assert origin_text(model.origin[0]) == f"{low}, step 300, average of length 0.07 {misplaced}"
    model.use_ema_length(None)
    assert (model.origin, model.digest, len(traced)) == (origin, digest, 1)
    np.testing.assert_array_equal(predict(z, t, labels), found[0])
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(found, found[1:]))


def test_a_damaged_snapshot_of_the_second_expert_changes_neither(model):
    low = model.denoisers[0]
    file = model.runs[1].folder.snapshot(0.1, 300)
    before, content = weights_of(low), file.read_bytes()
    try:
        file.write_bytes(content[:-100])
        with pytest.raises(UserError, match=r"high/ema/length_0.1/step_00000300.npz is damaged .*: restore"):
            model.use_ema_length(0.1)
    finally:
        file.write_bytes(content)
    assert_weights(low, before)
    assert model.ema_length is None


def test_a_digest_is_of_weights_and_process_wherever_they_lie(model, folders, tmp_path):
    for folder in folders:
        shutil.copytree(folder, tmp_path / folder.name)
    copies = [tmp_path / "low", tmp_path / "high"]
    assert Model.from_folders(*copies).digest == model.digest
    low, high = map(RunFolder, copies)
    arrays = read_arrays(low.newest_weights())
    low.newest_weights().unlink()
    write_arrays(low.weights(7, ".safetensors"), arrays)
    low.write_config(low.config().replace({"training.steps": 99, "sampling.steps": (7,)}))
    assert Model.from_folders(*copies).digest == model.digest
    high.write_config(high.config().replace({"diffusion.prediction": "x"}))
    assert Model.from_folders(*copies).digest != model.digest
    high.write_config(HIGH)
    write_arrays(low.weights(8), {name: np.nextafter(array, 9) for name, array in arrays.items()})
    low.weights(7, ".safetensors").unlink()
    assert Model.from_folders(*copies).digest != model.digest


def test_experts_of_one_kind_whose_variables_have_one_name_have_a_digest(tmp_path):
    folders = [
        write_run(tmp_path / "low", tiny_config(diffusion__t_stop=400), seed=1),
        write_run(tmp_path / "high", tiny_config(diffusion__t_start=400), seed=2),
    ]
    before = Model.from_folders(*folders).digest
    write_run(folders[1], tiny_config(diffusion__t_start=400), seed=1)
    assert Model.from_folders(*folders).digest != before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    run = RunFolder(write_run(tmp_path))
    write_snapshots(tmp_path)
    for file, length in ((run.weights(1), None), (run.snapshot(0.05, 300), 0.05)):
        arrays = read_arrays(file)
        name = next(iter(arrays))
        arrays[name].flat[0] = value
        write_arrays(file, arrays)
        with pytest.raises(UserError) as caught:
            _ = Model.from_folders(tmp_path, ema_length=length).denoiser
        assert str(caught.value).startswith(f"{file}: {name} has values that are not finite")


def refusal(tmp_path, *configs):
    folders = [tmp_path / name for name in "abc"[: len(configs)]]
    for folder, config in zip(folders, configs):
        RunFolder(folder).write_config(config)
    with pytest.raises(UserError) as caught:
        Model.from_folders(*folders)
    message = str(caught.value).replace(str(tmp_path) + "/", "")
    assert "\n" not in message
    return message


def part(start, stop, **settings):
    return tiny_config(diffusion__t_start=start, diffusion__t_stop=stop, **settings)


def test_runs_that_are_no_whole_process_are_refused(tmp_path):
    message = refusal(tmp_path, LOW)
    assert message.startswith("a was not trained on 400 <= t < 1000: name the run of that")
    assert "a,RUN" in message
    message = refusal(tmp_path, part(500, 1000), part(0, 400))
    assert "b and a were not trained on 400 <= t < 500" in message
    assert "a and b were both trained on t = 0" in refusal(tmp_path, tiny_config(), tiny_config())


def test_of_runs_that_overlap_the_one_that_stops_first_is_used(tmp_path):
    low, high = write_run(tmp_path / "low", LOW), write_run(tmp_path / "whole", tiny_config(), 1)
    alone, both = models_from_folders(tmp_path / "low", tmp_path / "whole")
    assert (alone.title, both.title) == ("whole", "low + whole")
    assert [(part.t_start, part.t_stop) for part in both.denoiser.parts] == [(0, 400), (400, 1000)]
    assert [origin["t_start"] for origin in both.origin] == [0, 400]
    assert [run.folder.path for run in both.runs] == [low, high]
    z, t, labels = inputs([400, 999])
    np.testing.assert_allclose(both.denoiser(z, t, labels)[0], alone.denoiser(z, t, labels)[0], atol=1e-6)


def test_an_expert_of_smaller_images_sees_averages_and_its_prediction_is_magnified(tmp_path):
    shifted = {"diffusion__schedule": "shifted_linear"}
    large = write_run(tmp_path / "a", part(0, 400, data__image_shape=(48, 48, 3), **shifted))
    small = write_run(tmp_path / "b", tiny_config(**shifted), 1)
    (model,) = models_from_folders(small, large)
    denoiser = model.denoiser
    alone = Model.from_folders(small).denoiser
    assert [part.title for part in denoiser.parts] == ["P=4, t 0..399", "P=12, t 400..999"]
    z, t, labels = (
        tf.random.stateless_normal((2, 48, 48, 3), [1, 2]),
        tf.constant([400, 999]),
        tf.constant([0, 1]),
    )
    pred_x, u = tf.function(denoiser, jit_compile=True)(z, t, labels)
    alpha, alpha_small = (one.schedule.alpha for one in (denoiser, alone))
    np.testing.assert_allclose(alpha_small / alpha * (1 - alpha) / 3**2, 1 - alpha_small)
    scales = np.sqrt(alpha_small / alpha)[[400, 999], None, None, None]
    expected_x, expected_u = alone(tf.cast(scales * averages(z), tf.float32), t, labels)
    np.testing.assert_allclose(averages(pred_x), expected_x, atol=1e-4)
    np.testing.assert_allclose(averages(u), expected_u, atol=1e-6)


def averages(images):
    return np.reshape(images, (2, 16, 3, 16, 3, 3)).mean(axis=(2, 4))


def test_a_magnified_ramp_stays_a_ramp():
    ramp = tf.tile(tf.linspace(-1.0, 1.0, 16)[None, :, None, None], [1, 1, 16, 3])
    small = FakeDenoiser(lambda z, t, labels: (ramp, ramp))
    pred_x, _ = MagnifiedDenoiser(small, 4, small.schedule)(
        tf.zeros((1, 64, 64, 3)), tf.zeros(1, tf.int32), None
    )
    np.testing.assert_allclose(np.diff(pred_x[0, 20:-20, 0, 0]), 2 / 15 / 4, rtol=1e-3)


@pytest.mark.parametrize(("dataset", "stop"), [("avatars256", 8), ("avatars1024", 20)])
def test_experts_that_ship_make_one_whole_process(dataset, stop):
    runs = Model.from_folders(*shipped_folders(dataset)).runs
    assert [(run.config.diffusion.t_start, run.config.diffusion.t_stop) for run in runs] == [
        (0, stop),
        (stop, 1000),
    ]
    assert sum(os.path.getsize(run.folder.newest_weights()) for run in runs) < 12e6


@pytest.mark.parametrize(("key", "value"), [
    ("data.dataset", "folder:x"), ("data.image_shape", (8, 8, 3)), ("diffusion.schedule", "cosine"),
])  # fmt: skip
def test_experts_that_differ_in_what_they_share_are_refused(tmp_path, key, value):
    unconditional = part(400, 1000, network__class_conditioning="none")
    assert "only one of them knows classes" in refusal(tmp_path, part(0, 400), unconditional)
    message = refusal(tmp_path, part(0, 400), part(400, 1000).replace({key: value}))
    assert "a and b cannot be experts of one model" in message and f"{key} is " in message


def test_experts_of_one_data_set_are_alike_wherever_it_lay(tmp_path):
    known = {"data__sha256": "1", "data__dataset": "folder:d"}
    RunFolder(tmp_path / "a").write_config(part(0, 400, **known))
    RunFolder(tmp_path / "b").write_config(part(400, 1000, **{**known, "data__dataset": "folder:/x/"}))
    assert len(Model.from_folders(tmp_path / "a", tmp_path / "b").runs) == 2
    message = refusal(tmp_path, part(0, 400, **known), part(400, 1000, **{**known, "data__sha256": "2"}))
    assert message.endswith("one model: data.dataset is folder:d, sha256 1 and folder:d, sha256 2")


def test_a_model_that_another_guides_is_another_and_is_of_the_same_process(tmp_path):
    config = tiny_config(network__class_conditioning="none")
    for seed, name in enumerate(("model", "guide")):
        write_run(tmp_path / name, config, seed)
    write_run(tmp_path / "cosine", config.replace({"diffusion.schedule": "cosine"}))
    alone, guided = (Model.from_folders(tmp_path / "model") for _ in range(2))
    with pytest.raises(UserError, match=r"diffusion\.schedule is cosine there and linear here"):
        guided.be_guided_by(tmp_path / "cosine")
    write_run(tmp_path / "classes")
    with pytest.raises(UserError, match=r"classes cannot guide .*, which has no classes to give it"):
        guided.be_guided_by(tmp_path / "classes")
    guided.be_guided_by(tmp_path / "guide")
    assert guided.digest != alone.digest
    settings = SamplingConfig("ddim", (2,), guidance=2.0)
    drawn, unguided = (Sampler(m.denoiser, settings)(0, range(2), [0, 0]) for m in (guided, alone))
    assert np.abs(drawn - unguided).max() > 0.01


def test_models_of_several_runs_have_titles_of_their_own(tmp_path):
    for name, config in (("x/a", tiny_config()), ("y/a", tiny_config()), ("low", LOW), ("high", HIGH)):
        RunFolder(tmp_path / name).write_config(config)
    models = models_from_folders(*(tmp_path / name for name in ("high", "x/a", "low", "y/a")))
    assert [model.title for model in models] == [f"{tmp_path}/x/a (1)", f"{tmp_path}/y/a (2)", "low + high"]
