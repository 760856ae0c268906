"""An export draws what --mode=sample draws, in a process that has TensorFlow and nothing of this project."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from safetensors.numpy import load_file, save_file
from tensorflow.core.protobuf import saved_model_pb2

from pdm_tf.config.fields import Config, SamplingConfig
from pdm_tf.denoiser import SplitDenoiser
from pdm_tf.diffusion.process import learned_log_variance
from pdm_tf.errors import UserError
from pdm_tf.export import METADATA, WARM_UP, Inputs, export_saved_model, servable
from pdm_tf.images import to_uint8
from pdm_tf.models import Model, Run
from pdm_tf.run import RunFolder
from pdm_tf.sampling.sampler import Sampler
from pdm_tf.weights import read_arrays, write_arrays
from tests.fakes import FakeDenoiser
from tests.in_process import run_mode
from tests.tiny_runs import CLASSES, VIT, tiny_config, tiny_denoiser, write_run, write_snapshots

MAIN = Path(__file__).parent.parent / "main.py"
LABELS = [0, 2, len(CLASSES)]  # the last one is the null label
SAMPLINGS = {
    "ancestral": SamplingConfig(steps=(3, 2), variance="large"),
    "dpm_solver": SamplingConfig("dpm_solver", (4,), "logsnr", guidance=2.0),
}


@functools.cache
def denoisers(name):
    if name == "experts":
        low = tiny_denoiser(tiny_config(diffusion__t_stop=396))
        settings = {"network__patch_size": 8, "diffusion__prediction": "v", "diffusion__t_start": 396, **VIT}
        return SplitDenoiser([low, tiny_denoiser(tiny_config(**settings), seed=1)])
    if name == "unconditional":
        settings = {"network__class_conditioning": "none", "data__num_classes": 0, "data__label_names": ()}
        return tiny_denoiser(tiny_config(**settings))
    return tiny_denoiser()


def model_of(name, sampling, **settings) -> Model:
    config = Config(sampling=SAMPLINGS[sampling])
    config = config.replace({key.replace("__", "."): value for key, value in settings.items()})
    model = Model([Run(RunFolder("run"), config)])
    model.denoiser = denoisers(name)
    model.denoisers = [part.denoiser for part in model.denoiser.parts]
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function (denoiser's name, sampling's name) -> the folder of its export, made once."""

    @functools.cache
    def export(name, sampling="ancestral"):
        folder = tmp_path_factory.mktemp("exports") / f"{name}_{sampling}"
        names = CLASSES if name != "unconditional" else ()
        export_saved_model(model_of(name, sampling, data__label_names=names), folder)
        return folder

    return export


@functools.cache
def load(folder):
    return tf.saved_model.load(str(folder))


def call_sample(model, seed, labels, guidance):
    inputs = {"seed": tf.constant(seed), "labels": tf.constant(labels), "guidance": tf.constant(guidance)}
    return model.signatures["sample"](**inputs)["images"].numpy()


def expected(name, sampling, seed, labels, guidance):
    sampler = Sampler(denoisers(name), dataclasses.replace(SAMPLINGS[sampling], guidance=guidance))
    return to_uint8(sampler(seed, range(len(labels)), labels))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(("name", "sampling", "guidances"), [
    ("single", "ancestral", (1.0, 1.7)),
    pytest.param("experts", "dpm_solver", (1.7, 1.0), marks=SLOW),
])  # fmt: skip
def test_sample_gives_the_sampler_s_bytes_for_any_batch_and_guidance(exported, name, sampling, guidances):
    model = load(exported(name, sampling))
    for guidance, count in zip(guidances, (3, 2)):
        images = call_sample(model, 7, LABELS[:count], guidance)
        assert images.dtype == np.uint8 and images.std() > 10
        np.testing.assert_array_equal(images, expected(name, sampling, 7, LABELS[:count], guidance))
        assert np.any(images != call_sample(model, 8, LABELS[:count], guidance))


def test_denoise_gives_x_and_the_log_variance_of_one_step(exported):
    model, denoiser = load(exported("single")), denoisers("single")
    z = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)
    t, labels = np.array([0, 395, 396, 999], np.int32), np.array([3, 0, 1, 2], np.int32)
    inputs = [tf.constant(values) for values in (z, t, labels)]
    found = model.signatures["denoise"](**dict(zip(("z", "t", "labels"), inputs)))
    x, u = denoiser(*inputs)
    np.testing.assert_allclose(found["x"], x, atol=1e-4)
    np.testing.assert_allclose(found["u"], u, atol=1e-5)
    log_variance = learned_log_variance(u, denoiser.schedule.at(inputs[1]))
    np.testing.assert_allclose(found["log_variance"], log_variance, atol=1e-4)
    assert np.abs(x).max() > 0.1 and np.std(u) > 0.01


@pytest.mark.slow
def test_denoise_can_be_differentiated(exported):
    model = load(exported("single"))
    z = tf.random.stateless_normal((1, 16, 16, 3), (0, 1))
    with tf.GradientTape() as tape:
        tape.watch(z)
        x = model.denoise(z, tf.constant([500]), tf.constant([1]))["x"]
    gradient = tape.gradient(x, z)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3


def test_without_guidance_only_one_pass_is_computed():
    batches = []

    def answer(z, t, labels):
        with tf.control_dependencies([tf.py_function(batches.append, [tf.shape(z)[0]], [])]):
            return z * 0.5

    denoiser = FakeDenoiser(answer, image_shape=(4, 4, 1))
    model = servable(denoiser, SamplingConfig(steps=(5,)), Inputs.of(denoiser, 0.1))
    for guidance, images in ((1.0, 2), (1.5, 4), (0.0, 4)):
        model.sample(tf.constant(0), tf.constant([0, 1]), tf.constant(guidance))
        assert [int(batch) for batch in batches] == 5 * [images]
        batches.clear()


def test_a_model_that_never_learnt_images_of_no_class_is_asked_for_classes_alone():
    seen = []

    def answer(z, t, labels):
        with tf.control_dependencies([tf.py_function(lambda values: seen.extend(values), [labels], [])]):
            return z * 0.5

    denoiser = FakeDenoiser(answer, image_shape=(4, 4, 1))
    assert Inputs.of(denoiser, 0.1, is_student=True) == (4, 3, False)
    model = servable(denoiser, SamplingConfig(steps=(2,), guidance=2.0), Inputs.of(denoiser, 0.0))
    model.sample()
    assert [int(label) for label in seen] == [0, 0]  # class 0 unguided, in two steps
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"labels must be 0 to 2\]"):
        model.sample(labels=tf.constant([denoiser.null_label]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot be guided: guidance must be 1"):
        model.sample(guidance=tf.constant(1.5))


WRONG = [
    ("single", "sample", {"labels": [0, 4]}, "labels must be 0 to 3, of which 3 is no class"),
    ("single", "denoise", {"t": [1000]}, "t must be 0 to 999"),
    ("single", "sample", {"labels": np.zeros(0, np.int32)}, "labels is empty: ask for at least one image"),
    ("single", "sample", {"seed": [1, 2], "labels": [0, 1]}, "seed must be one number, the same in all rows"),
    ("single", "sample_rows", {"guidance": [float("nan")]}, "guidance must be a finite number"),
    ("unconditional", "sample", {"guidance": 1.5}, "this model cannot be guided: guidance must be 1"),
]


@pytest.mark.parametrize("name", ["single", pytest.param("unconditional", marks=SLOW)])
def test_wrong_inputs_are_refused(exported, name):
    model = load(exported(name))
    for signature, inputs, complaint in (wrong[1:] for wrong in WRONG if wrong[0] == name):
        z = np.zeros((1, 16, 16, 3), np.float32)
        given = {"seed": 0, "labels": [0], "guidance": 1.0, "z": z, "t": [5]}
        if signature == "sample_rows":
            given |= {"seed": [0], "index": [0], "guidance": [1.0]}
        function = model.signatures[signature]
        names = function.structured_input_signature[1]
        with pytest.raises(tf.errors.InvalidArgumentError, match=complaint):
            function(**{key: tf.constant({**given, **inputs}[key]) for key in names})


@pytest.mark.parametrize("name", ["single", pytest.param("unconditional", marks=SLOW)])
def test_rows_of_several_requests_are_the_images_of_each(exported, name):
    """Seeds, labels, weights and places of several callers in one batch, in any order."""
    model, generator = load(exported(name)), np.random.default_rng(0)
    # Without classes the images of a seed that is asked for twice would be the same.
    seeds, weights = ((7, 8, 7, 9), (1.7, 1.0, 1.0, 2.5)) if name == "single" else (range(4), [1.0] * 4)
    requests = list(zip(seeds, ([0, 2, 3], [1], [2, 0], [3]), weights))
    wanted = np.concatenate([call_sample(model, *request) for request in requests])
    seed, labels, guidance = zip(*((s, label, w) for s, own, w in requests for label in own))
    index = [place for _, own, _ in requests for place in range(len(own))]
    order = generator.permutation(len(index))
    rows = {"seed": seed, "index": index, "labels": labels, "guidance": guidance}
    rows = {key: tf.constant(np.array(value)[order].tolist()) for key, value in rows.items()}
    np.testing.assert_array_equal(model.signatures["sample_rows"](**rows)["images"], wanted[order])
    assert len({image.tobytes() for image in wanted}) == len(wanted)


@pytest.mark.slow
def test_the_default_signature_is_sample_and_says_what_may_be_left_out(exported):
    """As a server finds it: fed are the inputs that a request has, and the defaults of the others."""
    name, sampling = "single", "ancestral"
    folder = exported(name, sampling)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = graph.signature_def["serving_default"]
        default = {key: tf.make_ndarray(value) for key, value in signature.defaults.items()}
        images = signature.outputs["images"].name
        fed = {signature.inputs[key].name: value for key, value in {**default, "labels": [1, 2]}.items()}
        drawn, left_out = session.run(images, fed), session.run(images)
    weight = SAMPLINGS[sampling].guidance
    assert default.keys() == {"seed", "labels", "guidance"}
    assert (default["seed"], default["labels"].tolist(), default["guidance"]) == (0, [3], weight)
    told = json.loads((folder / METADATA).read_text())["signatures"]["sample"]["defaults"]
    assert told == {key: value.tolist() for key, value in default.items()}
    np.testing.assert_array_equal(drawn, expected(name, sampling, 0, [1, 2], weight))
    np.testing.assert_array_equal(left_out, expected(name, sampling, 0, [3], weight))


# The part of TensorFlow Serving's prediction_log.proto, predict.proto and model.proto that a request needs.
LOGS = """
syntax: "proto3" name: "logs.proto" package: "logs" dependency: "tensorflow/core/framework/tensor.proto"
message_type { name: "Log" field { name: "predict_log" number: 6 type: 11 type_name: ".logs.PredictLog" } }
message_type { name: "PredictLog" field { name: "request" number: 1 type: 11 type_name: ".logs.Request" } }
message_type { name: "Request"
  field { name: "model_spec" number: 1 type: 11 type_name: ".logs.Spec" }
  field { name: "inputs" number: 2 label: 3 type: 11 type_name: ".logs.Request.InputsEntry" }
  nested_type { name: "InputsEntry" options { map_entry: true }
    field { name: "key" number: 1 type: 9 }
    field { name: "value" number: 2 type: 11 type_name: ".tensorflow.TensorProto" } } }
message_type { name: "Spec"
  field { name: "name" number: 1 type: 9 } field { name: "signature_name" number: 3 type: 9 } }
"""


@functools.cache
def log_message():
    """The class of PredictionLog, as the library of protocol buffers makes it of its description."""
    pool = descriptor_pool.Default()
    pool.Add(text_format.Parse(LOGS, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("logs.Log"))


@pytest.mark.parametrize(("name", "weights"), [
    ("single", [1.0, 1.5]), pytest.param("unconditional", [1.0], marks=SLOW)
])  # fmt: skip
def test_warm_up_requests_call_every_signature_and_every_way_of_guiding(exported, name, weights):
    folder = exported(name)
    model, guided_by, called = load(folder), [], set()
    for record in tf.data.TFRecordDataset(str(folder / WARM_UP)):
        request = log_message().FromString(record.numpy()).predict_log.request
        assert request.model_spec.name == folder.name
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        outputs = model.signatures[request.model_spec.signature_name](**inputs)
        called.add(request.model_spec.signature_name)
        rows = weights if "index" in inputs else [None]
        assert all(value.shape == (len(rows), 16, 16, 3) for value in outputs.values())
        guided_by += [inputs["guidance"].numpy().tolist()] if "guidance" in inputs else []
    assert guided_by == [*weights, weights]
    assert called == {"denoise", "serving_default", "sample_rows"}  # `sample` is serving_default


def test_the_file_holds_the_weights_once_and_nothing_of_keras(exported):
    folder, denoiser = exported("single"), denoisers("single")
    weights = 4 * sum(variable.shape.num_elements() for variable in denoiser.variables)
    data = folder / "variables" / "variables.data-00000-of-00001"
    assert weights <= data.stat().st_size < weights + 100_000
    proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (graph,) = proto.meta_graphs
    constants = [
        node.attr["value"].tensor
        for function in graph.graph_def.library.function
        for node in function.node_def
        if node.op == "Const"
    ]
    table = [len(denoiser.schedule), 11]  # of the schedule, which the experts share
    others = [c for c in constants if [dim.size for dim in c.tensor_shape.dim] != table]
    assert max(c.ByteSize() for c in others) < 16_000  # the names of the variables, no weights
    kinds = {
        node.user_object.identifier for node in graph.object_graph_def.nodes if node.HasField("user_object")
    }
    assert kinds and not any("keras" in kind or "pdm_tf" in kind for kind in kinds)
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "assets", "assets.extra", "fingerprint.pb", "saved_model.pb", "variables",
    }  # fmt: skip


def test_the_metadata_are_those_of_the_signatures(exported):
    folder = exported("single")
    about = json.loads((folder / METADATA).read_text())
    model = load(folder)
    for name, signature in about["signatures"].items():
        function = model.signatures[name]
        _, inputs = function.structured_input_signature
        for found, told in (
            (inputs, signature["inputs"]),
            (function.structured_outputs, signature["outputs"]),
        ):
            # Seed and guidance are of any shape that holds one value: as rows of a request have them, too.
            shapes = {
                key: [spec.dtype.name, [] if spec.shape.rank is None else spec.shape.as_list()]
                for key, spec in found.items()
            }
            assert shapes == {
                key: [dtype, [None if size == "batch" else size for size in shape]]
                for key, (dtype, shape) in told.items()
            }
    assert about["image_shape"] == [16, 16, 3] and about["label_names"] == list(CLASSES)
    assert about["null_label"] == about["num_classes"] == 3
    timesteps = about["sampling"].pop("timesteps")
    assert len(timesteps) == 5 and timesteps[-1] == 999
    assert about["sampling"] == json.loads(json.dumps(dataclasses.asdict(SAMPLINGS["ancestral"])))
    text = (folder / "README.md").read_text()
    assert "ancestral, variance large, 3 + 2 steps, even" in text and "TF_ENABLE_ONEDNN_OPTS=1" in text
    assert about["parameters"] == sum(v.shape.num_elements() for v in denoisers("single").variables)


# What a process does that must not find this project, tensorflow-addons or a Keras class of ours.
ALONE = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("pdm_tf", "flags", "main", "tensorflow_addons", "tensorflow_datasets"):
            raise ImportError(f"{name} is refused")

sys.meta_path.insert(0, Refuse())
import numpy as np
import tensorflow as tf

arguments = json.loads(sys.argv[1])
model = tf.saved_model.load(arguments["folder"])
images = model.signatures["sample"](
    seed=tf.constant(arguments["seed"]),
    labels=tf.constant(arguments["labels"]),
    guidance=tf.constant(arguments["guidance"]),
)["images"]
np.save(arguments["output"], images)
text = open(arguments["folder"] + "/README.md").read()
code = text.partition("```python\\n")[2].partition("```")[0]
names = {}
exec(code.replace("path/of/this/folder", arguments["folder"]), names)
assert names["images"].dtype == tf.uint8 and names["images"].shape == (2, 16, 16, 3)
assert not [name for name in sys.modules if name.partition(".")[0] in ("pdm_tf", "tensorflow_addons")]
"""


def run_main(*arguments):
    """--mode and more -> the finished process."""
    command = [sys.executable, str(MAIN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_a_process_with_tensorflow_alone_draws_the_bytes_of_mode_sample(tmp_path):
    settings = {"network__patch_size": 8, "diffusion__t_start": 396, "diffusion__prediction": "v"}
    low = write_run(tmp_path / "low", tiny_config(diffusion__t_stop=396))
    runs = [low, write_run(tmp_path / "high", tiny_config(**settings), seed=1)]
    common = [f"--run_dir={','.join(map(str, runs))}", "--sampler=dpm_solver", "--steps=6"]
    made = run_main("--mode=export", *common, f"--out={tmp_path}/model")
    assert made.returncode == 0 and made.stdout.startswith(f"SavedModel: {tmp_path}/model\n"), made.stderr
    assert made.stderr == ""
    drawn = run_main(
        "--mode=sample", *common, "--guidance=1.7", "--seed=5", "--num_samples=4", "--sample_batch_size=4",
        f"--out={tmp_path}/samples",
    )  # fmt: skip
    assert drawn.returncode == 0, drawn.stderr
    with np.load(tmp_path / "samples" / "samples.npz") as samples:
        wanted, labels = samples["arr_0"], samples["arr_1"]
    call = {"folder": f"{tmp_path}/model", "seed": 5, "labels": labels.tolist(), "guidance": 1.7}
    alone = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps({**call, "output": f"{tmp_path}/alone.npy"})],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert "WARNING:tensorflow" not in alone.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "alone.npy"), wanted)
    assert wanted.std() > 10


def test_weights_come_back_bit_for_bit_and_draw_the_same_images(tmp_path, capsys):
    """Written as .safetensors, read by the library alone, and as the run of other modes."""
    run = RunFolder(write_run(tmp_path / "run"))
    arrays = read_arrays(run.weights(1))
    arrays = {name: a.astype(np.float16 if "conv" in name else np.float32) for name, a in arrays.items()}
    write_arrays(run.weights(1), arrays)
    settings = {"mode": "export", "format": "safetensors", "sampler": "ddim", "steps": "3"}
    status, said = run_mode(capsys, run_dir=str(run), out=str(tmp_path / "out"), **settings)
    file = tmp_path / "out" / "ema" / "step_00000001.safetensors"
    assert (status, said) == (0, f"weights: {file}\ntheir names and shapes: {tmp_path}/out/README.md\n")
    table = (tmp_path / "out" / "README.md").read_text()
    back = load_file(file)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
        assert back[name].tobytes() == array.tobytes()
        assert f"| `{name}` | {' x '.join(map(str, array.shape))} | {array.dtype} |\n" in table + "\n"
    assert RunFolder(tmp_path / "out").config().sampling.sampler == "ddim"

    drawn = []
    for run_dir in (run, tmp_path / "out"):
        out = tmp_path / f"samples_{len(drawn)}"
        settings = {"mode": "sample", "sampler": "ddim", "steps": "3", "num_samples": 2, "strategy": "cpu"}
        assert run_mode(capsys, run_dir=str(run_dir), out=str(out), **settings)[0] == 0
        with np.load(out / "samples.npz") as samples:
            drawn.append(samples["arr_0"])
    np.testing.assert_array_equal(*drawn)
    assert drawn[0].std() > 10

    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    status, error = run_mode(
        capsys, mode="sample", run_dir=str(tmp_path / "out"), out=str(tmp_path / "no"), strategy="cpu"
    )
    assert status == 2 and f"{file} is damaged (the arrays' crc32 is" in error


def test_weights_of_another_length_or_program(tmp_path, capsys):
    run = write_snapshots(write_run(tmp_path / "run"))
    settings = {"mode": "export", "format": "safetensors", "run_dir": str(run)}
    assert run_mode(capsys, out=str(tmp_path / "out"), ema_length=0.1, **settings)[0] == 0
    wanted, file = read_arrays(run.snapshot(0.1, 300)), tmp_path / "out" / "ema" / "step_00000300.safetensors"
    for name, array in read_arrays(file).items():
        np.testing.assert_array_equal(array, wanted[name].astype(np.float32))  # as averages are
    save_file(wanted, file)  # as other programs do: no checksum
    assert read_arrays(file).keys() == wanted.keys()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        read_arrays(file)
    status, error = run_mode(capsys, out=str(tmp_path / "out"), **settings)
    assert status == 2 and "out exists: delete it" in error


def test_files_of_desktops_do_not_occupy_a_folder(tmp_path, capsys):
    name = ".DS_Store"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()
    expert = write_run(tmp_path / "run", tiny_config(diffusion__t_stop=400))
    settings = {"mode": "export", "format": "safetensors", "run_dir": str(expert)}
    assert run_mode(capsys, out=str(tmp_path / "out"), **settings)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "config.json", "ema"}
    (tmp_path / "out" / "ema" / name).touch()
    assert RunFolder(tmp_path / "out").newest_weights().name == "step_00000001.safetensors"


@pytest.mark.parametrize("error", [tf.errors.ResourceExhaustedError(None, None, "disk"), KeyboardInterrupt()])
def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch, error):
    def fail(module, folder, **_):
        Path(folder, "variables").mkdir()
        Path(folder, "variables", "variables.index").write_text("begun")
        raise error

    monkeypatch.setattr(tf.saved_model, "save", fail)
    kind = UserError if isinstance(error, tf.errors.OpError) else type(error)
    with pytest.raises(kind):
        export_saved_model(model_of("single", "ancestral"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
