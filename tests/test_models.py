"""Several experts as one denoiser, and what run folders make one."""

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf.averages import reconstruct
from pdm_tf.config.fields import Config, SamplingConfig
from pdm_tf.config.words import leaves
from pdm_tf.errors import UserError
from pdm_tf.models import Experts, load, read_runs, with_length
from pdm_tf.run import RunFolder
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.weights import read_arrays, variable_names
from tests.fakes import FakeDenoiser
from tests.tiny_runs import VIT, tiny_config, tiny_denoiser, write_run, write_snapshots

LOW = tiny_config(diffusion__t_stop=400, network__patch_size=2)
HIGH = tiny_config(diffusion__t_start=400, network__patch_size=4, diffusion__prediction="v", **VIT)


@pytest.fixture(scope="module")
def experts():
    return [tiny_denoiser(LOW, 1), tiny_denoiser(HIGH, 2)]


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


def test_each_image_of_a_mixed_batch_is_answered_by_its_own_expert(experts):
    z, t, labels = inputs([0, 399, 400, 999])
    both = Experts(experts)(z, t, labels)
    for own, expert in ((slice(0, 2), experts[0]), (slice(2, 4), experts[1])):
        for answer, alone in zip(both, expert(z, t, labels)):
            np.testing.assert_allclose(answer[own], alone[own], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stop", [300, 500, 1000])
def test_experts_with_a_gap_or_an_overlap_are_refused(stop):
    with pytest.raises(ValueError, match="intervals that do not meet"):
        Experts([Counting(0.25, 0, stop), Counting(-0.5, 400, 1000)])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("t, runs", [([399, 0], [1, 0]), ([400, 999], [0, 1]), ([400, 399], [1, 1])])
def test_only_experts_whose_interval_occurs_run(t, runs, jit_compile):
    counting = [Counting(0.25, 0, 400), Counting(-0.5, 400, 1000)]
    pred_x, u = tf.function(Experts(counting), jit_compile=jit_compile)(*inputs(t))
    assert [c.runs.numpy() for c in counting] == runs
    assert [len(c.rows) for c in counting] == [1, 1]
    expected = np.where(np.array(t) < 400, 0.25, -0.5)[:, None, None, None]
    np.testing.assert_array_equal(pred_x, np.broadcast_to(expected, pred_x.shape))
    np.testing.assert_array_equal(u, np.broadcast_to(expected / 2, u.shape))


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm_solver", "unipc", "ipndm"])
def test_sampling_traces_each_expert_once_and_runs_it_in_its_interval_alone(sampler):
    counting = [Counting(0.25, 0, 400), Counting(-0.5, 400, 1000)]
    sampler = Sampler(Experts(counting), SamplingConfig(sampler, (5,)))  # 0 250 500 749 999
    frames = sampler.trajectory(0, [0, 1], [0, 1], 5)
    assert [len(c.rows) for c in counting] == [1, 1] and [c.runs.numpy() for c in counting] == [2, 3]
    np.testing.assert_array_equal(frames[:, 0, 0, 0, 0], [-0.5, -0.5, -0.5, 0.25, 0.25])


def test_experts_loaded_in_any_order_answer_as_one(tmp_path):
    parts = {"high": (400, 1000), "low": (0, 400)}
    configs = {n: tiny_config(diffusion__t_start=a, diffusion__t_stop=b) for n, (a, b) in parts.items()}
    for seed, (name, config) in enumerate(configs.items()):
        write_run(tmp_path / name, config, seed)
    denoiser, config, origin = load(read_runs(*(tmp_path / name for name in parts)))
    assert [o["weights"] for o in origin] == [
        str(tmp_path / n / "ema/step_00000001.npz") for n in ("low", "high")
    ]
    assert [(o["t_start"], o["t_stop"]) for o in origin] == [(0, 400), (400, 1000)]
    assert config == configs["low"] and [e.t_stop for e in denoiser.experts] == [400, 1000]
    z, t, labels = inputs([399, 400])
    pred_x, _ = denoiser(z, t, labels)
    for i, name in enumerate(("low", "high")):
        alone = tiny_denoiser(configs[name], list(configs).index(name))
        np.testing.assert_allclose(pred_x[i], alone(z, t, labels)[0][i], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def with_snapshots(tmp_path_factory):
    """Two experts with snapshots."""
    folder = tmp_path_factory.mktemp("experts")
    for seed, (name, config) in enumerate((("low", LOW), ("high", HIGH))):
        write_snapshots(write_run(folder / name, config, seed))
    return read_runs(folder / "low", folder / "high")


def weights_of(denoiser):
    return dict(zip(variable_names(denoiser.variables), (v.numpy() for v in denoiser.variables)))


def assert_weights(denoiser, arrays):
    own = weights_of(denoiser)
    assert own.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(own[name], array, err_msg=name)


def test_experts_with_averages_of_a_length(with_snapshots):
    loaded = load(with_snapshots, ema_length=0.07)
    for expert, run, origin in zip(loaded.denoiser.experts, with_snapshots, loaded.origin):
        average = reconstruct(run.folder, 0.07)
        assert_weights(expert, average.arrays)
        assert (origin["ema_length"], origin["step"], origin["prediction"]) == (0.07, 300, expert.prediction)
        assert origin["weights"] == (
            f"{run.folder}: average of length 0.07 at step 300, from 12 snapshots "
            f"({average.misplaced:.1%} misplaced)"
        )


def test_other_lengths_go_into_the_same_variables_and_the_same_graph(with_snapshots):
    loaded, traced = load(with_snapshots), []

    @tf.function
    def answer(z, t, labels):
        traced.append(1)
        return loaded.denoiser(z, t, labels)[0]

    z, t, labels = inputs([399, 400])
    answers = [answer(z, t, labels)]
    for length in (0.05, 0.1):
        other = with_length(loaded, with_snapshots, length)
        assert other.denoiser is loaded.denoiser and [o["ema_length"] for o in other.origin] == [length] * 2
        for expert, run in zip(loaded.denoiser.experts, with_snapshots):
            assert_weights(expert, read_arrays(run.folder.snapshot(length, 300)))
        answers.append(answer(z, t, labels))
    again = with_length(loaded, with_snapshots, None)
    assert again.origin == loaded.origin and len(traced) == 1
    np.testing.assert_array_equal(answer(z, t, labels), answers[0])
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(answers, answers[1:]))


def test_one_network_and_a_run_without_snapshots(tmp_path):
    runs = read_runs(write_run(tmp_path))
    before = weights_of(load(runs).denoiser)
    for change in (lambda: load(runs, 0.1), lambda: with_length(load(runs), runs, 0.1)):
        with pytest.raises(UserError, match="kept no snapshots to make an average of another length from"):
            change()
    assert_weights(load(runs).denoiser, before)
    write_snapshots(tmp_path)
    runs = read_runs(tmp_path)
    loaded = with_length(load(runs), runs, 0.05)
    assert_weights(loaded.denoiser, read_arrays(runs[0].folder.snapshot(0.05, 300)))


def test_a_damaged_snapshot_of_the_second_expert_changes_neither(with_snapshots, tmp_path):
    loaded, file = load(with_snapshots), with_snapshots[1].folder.snapshot(0.1, 300)
    before, content = weights_of(loaded.denoiser.experts[0]), file.read_bytes()
    try:
        file.write_bytes(content[:-100])
        with pytest.raises(
            UserError, match=r"high/ema/length_0.1/step_00000300.npz is damaged .*: restore it"
        ):
            with_length(loaded, with_snapshots, 0.1)
    finally:
        file.write_bytes(content)
    assert_weights(loaded.denoiser.experts[0], before)


def refusal(tmp_path, *configs):
    folders = [tmp_path / name for name in "abc"[: len(configs)]]
    for folder, config in zip(folders, configs):
        RunFolder(folder).write_config(config)
    with pytest.raises(UserError) as caught:
        read_runs(*folders)
    message = str(caught.value).replace(str(tmp_path) + "/", "")
    assert "\n" not in message
    return message


def part(start, stop, **settings):
    return tiny_config(diffusion__t_start=start, diffusion__t_stop=stop, **settings)


def test_a_part_of_the_process_alone_is_refused(tmp_path):
    message = refusal(tmp_path, LOW)
    assert (
        message.startswith("a was not trained on 400 <= t < 1000: name the run of that")
        and "a,RUN" in message
    )


def test_a_gap_is_refused(tmp_path):
    message = refusal(tmp_path, part(500, 1000), part(0, 400))
    assert "b and a were not trained on 400 <= t < 500" in message


def test_an_overlap_is_refused(tmp_path):
    assert "a and b were both trained on t = 300" in refusal(tmp_path, part(0, 400), part(300, 1000))
    assert "a and b were both trained on t = 0" in refusal(tmp_path, tiny_config(), tiny_config())


OTHERS = {
    "data.dataset": "folder:x", "data.image_shape": (32, 32, 3), "data.num_classes": 4,
    "data.label_names": ("a", "b", "c"), "diffusion.num_timesteps": 999, "diffusion.schedule": "cosine",
    "diffusion.beta_start": 2e-4, "diffusion.beta_end": 0.025,
}  # fmt: skip


def test_the_list_below_is_whole():
    assert set(OTHERS) == {key for key, leaf in leaves(Config).items() if leaf.rule.shared}


@pytest.mark.parametrize("key", OTHERS)
def test_experts_that_differ_in_what_they_share_are_refused(tmp_path, key):
    message = refusal(tmp_path, part(0, 400), part(400, 1000).replace({key: OTHERS[key]}))
    assert "a and b cannot be experts of one model" in message and f"{key} is " in message


def test_experts_of_one_data_set_are_alike_wherever_it_lay(tmp_path):
    known = {"data__sha256": "1", "data__dataset": "folder:d"}
    for name, config in (
        ("a", part(0, 400, **known)),
        ("b", part(400, 1000, **{**known, "data__dataset": "folder:/x/"})),
    ):
        RunFolder(tmp_path / name).write_config(config)
    assert len(read_runs(tmp_path / "a", tmp_path / "b")) == 2
    message = refusal(tmp_path, part(0, 400, **known), part(400, 1000, **{**known, "data__sha256": "2"}))
    assert message.endswith("one model: data.dataset is folder:d, sha256 1 and folder:d, sha256 2")


def test_all_experts_or_none_know_classes(tmp_path):
    message = refusal(tmp_path, part(0, 400), part(400, 1000, network__class_conditioning="none"))
    assert "only one of them knows classes" in message


def test_missing_runs_and_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no run \(no config.json\): train one"):
        read_runs(tmp_path / "nothing")
    write_run(tmp_path / "run")
    (tmp_path / "run" / "ema" / "step_00000001.npz").unlink()
    with pytest.raises(UserError, match="holds no weights yet"):
        load(read_runs(tmp_path / "run"))
