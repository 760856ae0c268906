"""Everything in a bucket: TensorFlow's own client against tests/bucket.py, a stand-in for the service."""

import json
import os
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pdm_tf import atomic
from pdm_tf.atomic import (
    append_text,
    atomic_file,
    atomic_folder,
    atomic_text,
    remove_tree,
    sha256,
    sole_writer,
)
from pdm_tf.data import describe_directory
from pdm_tf.errors import UserError
from pdm_tf.paths import as_path, entries, files_below, is_remote, size_of
from pdm_tf.run import RunFolder
from pdm_tf.sampling.output import write_images
from pdm_tf.training import checkpoints
from tests.bucket import stand_in
from tests.data.fixtures import numbered_dataset
from tests.data_tools.conversions import arguments, make_input
from tests.in_process import run_mode
from tests.sampling.mortal import MODEL, Killed, draw_of
from tests.tiny_runs import write_run
from tests.training.kill_and_resume import SETTINGS, wait_and_kill
from tests.training.test_checkpoints import Run, restored

ROOT = Path(__file__).parent.parent


class Bucket:
    """The stand-in, and how to look into it without its client."""

    def __init__(self, folder, environment):
        self.folder, self.environment = folder / "objects", environment

    def objects(self, prefix: str = "") -> list[str]:
        names = [urllib.parse.unquote(name) for name in os.listdir(self.folder)]
        return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        return (self.folder / urllib.parse.quote(name, safe="")).read_bytes()

    def run(self, *command: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *command], cwd=ROOT, env={**os.environ, **self.environment},
            capture_output=True, text=True, **options,
        )  # fmt: skip


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bucket")
    with stand_in(folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield Bucket(folder, environment)


@pytest.fixture
def place(bucket, request):
    """A folder of a test's own."""
    return as_path(f"gs://test-bucket/{request.node.name}")


def test_paths_are_as_on_this_machine(place):
    assert is_remote(place) and not is_remote(Path("gs:/x")) and not place.exists()
    assert entries(place) == [] and list(files_below(place)) == []
    for name in ("b/2", "b/1", "a"):
        atomic_text(place / name, name)
    assert [path.name for path in entries(place)] == ["a", "b"]
    assert [path.name for path in files_below(place)] == ["a", "1", "2"]
    assert place.is_dir() and not (place / "a").is_dir() and size_of(place / "a") == 1
    with pytest.raises(FileNotFoundError):
        size_of(place / "none")
    append_text(place / "a", "more")
    assert (place / "a").read_text() == "amore"
    remove_tree(place / "b")
    assert [path.name for path in entries(place)] == ["a"]
    remove_tree(place)
    remove_tree(place)
    assert entries(place) == []


def test_a_bucket_that_is_not_there_is_refused(bucket):
    with pytest.raises(
        UserError, match=r"gs://other-bucket cannot be reached \(there is no such bucket\): check its"
    ):
        as_path("gs://other-bucket/x")


def test_a_file_is_there_when_it_is_whole(place):
    atomic_text(place / "file", "before")
    with pytest.raises(Killed), atomic_file(place / "file") as partial:
        partial.write_text("after")
        raise Killed
    assert (place / "file").read_text() == "before"
    with atomic_file(place / "file") as partial:
        partial.write_text("after")
    assert (place / "file").read_text() == "after" and [p.name for p in entries(place)] == ["file"]


def test_of_a_folder_the_last_file_tells_that_it_is_whole(place, bucket, monkeypatch):
    def fill(folder):
        for name in ("a", "last", "z/y"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(name)

    uploaded, copy = [], tf.io.gfile.copy

    def noted(source, target, overwrite):
        uploaded.append(target.rpartition(place.name + "/")[2])
        if len(uploaded) == 6:
            raise tf.errors.UnavailableError(None, None, "no more")
        copy(source, target, overwrite=overwrite)

    monkeypatch.setattr(tf.io.gfile, "copy", noted)
    with atomic_folder(place / "one", "last") as folder:
        fill(folder)
    assert uploaded == ["one/a", "one/z/y", "one/last"]
    with (
        pytest.raises(UserError, match=r"cannot write .*two/last.*no more"),
        atomic_folder(place / "two", "last") as folder,
    ):
        fill(folder)
    assert bucket.objects(f"{place.name}/") == ["one/a", "one/last", "one/z/y"]


def test_there_are_no_locks_and_it_is_said(place, capsys):
    with sole_writer(place, "busy"):
        pass
    assert "is in a bucket, which has no locks: let no second process" in capsys.readouterr().out


def test_a_checkpoint_that_was_not_uploaded_to_its_end_is_none(place, monkeypatch):
    Run(place).save(10)

    def killed(folder, path, last):
        upload(folder / "length_0.1.npz", path / "length_0.1.npz")
        raise KeyboardInterrupt

    def upload(file, path):
        path.write_bytes(file.read_bytes())

    with monkeypatch.context() as context:
        context.setattr(atomic, "upload_folder", killed)
        # A killed process does not clean up.
        context.setattr(checkpoints, "remove_tree", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            Run(place).save(20)
    run = RunFolder(place)
    assert run.checkpoint_steps() == [10, 20] and run.partial_steps() == [20]
    assert restored(place) == (10, 10.0, 10.5)
    assert run.checkpoint_steps() == [10] and run.partial_steps() == [] and not run.weights(20).exists()
    Run(place).save(20, 30)
    assert run.checkpoint_steps() == [20, 30]  # `keep` is 2
    assert restored(place) == (30, 30.0, 30.5)
    (run.checkpoint(30) / "state.index").write_bytes(b"odd")
    assert restored(place)[0] == 20


def test_killed_samples_go_on_there(place, tmp_path):
    with pytest.raises(Killed):
        write_images(draw_of(1), place, MODEL)
    again = draw_of()
    write_images(again, place, MODEL, save_pngs=True)
    assert again.sampler.drawn == [[4, 5, 6, 7], [8, 9, 10, 11]]
    write_images(draw_of(), tmp_path, MODEL, save_pngs=True)
    there, here = (
        {os.path.relpath(file, folder): file.read_bytes() for file in files_below(folder)}
        for folder in (place, tmp_path)
    )
    assert there == here and f"pngs{os.sep}sample_000000.png" in here


def test_a_data_set_there_is_described_as_here(place, tmp_path):
    here = numbered_dataset(tmp_path / "data", [3, 2])
    for file in files_below(tmp_path / "data"):
        (place / file.name).write_bytes(file.read_bytes())
    there = describe_directory(place)
    assert there.num_examples == here.num_examples and there.sha256 == here.sha256
    assert [sha256(s) for s in there.splits["train"].shards] == [
        sha256(s) for s in here.splits["train"].shards
    ]


@pytest.mark.slow
def test_modes_do_there_what_they_do_here(place, tmp_path, capsys):
    """Sampling and exporting of a run there, to there."""
    write_run(tmp_path / "run")
    write_run(place / "run")
    flags = {"strategy": "cpu", "num_samples": 2, "sample_batch_size": 2, "steps": "3"}
    for where in (place, tmp_path):
        status, said = run_mode(capsys, mode="sample", run_dir=str(where / "run"), **flags)
        assert status == 0 and said.endswith(f"samples: {where}/run/samples/samples.npz\n")
    name = "run/samples/samples.npz"
    assert (place / name).read_bytes() == (tmp_path / name).read_bytes()

    status, _ = run_mode(
        capsys, mode="export", run_dir=str(place / "run"), out=str(place / "model"), steps="3"
    )
    assert status == 0
    sample = tf.saved_model.load(str(place / "model")).signatures["sample"]
    numbers = {"seed": tf.constant(0), "labels": tf.constant([0, 1]), "guidance": tf.constant(1.0)}
    with np.load(tmp_path / name) as file:
        np.testing.assert_array_equal(sample(**numbers)["images"], file["arr_0"])
    status, error = run_mode(capsys, mode="export", run_dir=str(place / "run"), out=str(place / "model"))
    assert status == 2 and "exists: delete it" in error


SMALL = {
    **SETTINGS, "training.steps": 12, "training.checkpoint_every": 3, "training.eval_every": 6,
    "training.eval_batches": 1, "training.ema_every": 1, "training.ema_lengths": "0.05,0.1",
    "network.channel_multipliers": "1", "training.score_every": 6, "training.score_images": 8,
    "training.keep_best": "true",
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_a_killed_run_there_ends_as_one_that_was_left_alone_here(bucket, place, tmp_path):
    """From a conversion to an export, each a process; the kill falls while a checkpoint is uploaded."""
    source, prefix = make_input(tmp_path), f"{place.name}/"

    def train(where):
        settings = [f"--set={key}={value}" for key, value in SMALL.items()]
        return [
            "main.py",
            f"--dataset=folder:{where}/set",
            f"--run_dir={where}/run",
            "--strategy=cpu",
            *settings,
        ]

    for where in (place, tmp_path):
        done = bucket.run("-m", "data_tools.image_folder", *arguments(source, f"{where}/set"))
        assert done.returncode == 0, done.stderr
    here = {f"set/{p.name}": p.read_bytes() for p in (tmp_path / "set").iterdir()}
    assert {name: bucket.read(prefix + name) for name in bucket.objects(prefix)} == here
    done = bucket.run("-m", "data_tools.verify", "--decode", "--input", f"{place}/set")
    assert done.returncode == 0 and "as in the manifest" in done.stdout

    process = subprocess.Popen(
        [sys.executable, *train(place)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    uploading = bucket.folder / urllib.parse.quote(
        f"{prefix}run/checkpoints/.step_00000006.partial/uploading", safe=""
    )
    assert wait_and_kill(process, uploading.exists)
    done = bucket.run(*train(place))
    assert done.returncode == 0 and "resuming" in done.stdout, done.stderr
    assert "at step 3 of 12" in done.stdout or "at step 6 of 12" in done.stdout
    done = bucket.run(*train(tmp_path))
    assert done.returncode == 0, done.stderr
    for name in (
        "ema/step_00000012.npz",
        "ema/best.npz",
        "ema/length_0.1/step_00000012.npz",
        "previews/step_00000012.png",
    ):
        assert bucket.read(f"{prefix}run/{name}") == (tmp_path / "run" / name).read_bytes(), name
    lines = [json.loads(line) for line in bucket.read(f"{prefix}run/logs/metrics.jsonl").splitlines()]
    assert lines[-1]["step"] == 12

    draw = ["--num_samples=20", "--sample_batch_size=4", "--strategy=cpu"]
    for where in (place, tmp_path):
        done = bucket.run("main.py", "--mode=sample", f"--run_dir={where}/run", *draw)
        assert done.returncode == 0, done.stderr
        done = bucket.run("main.py", "--mode=evaluate", f"--run_dir={where}/run", *draw)
        assert done.returncode == 0, done.stderr
    samples = "run/samples/samples.npz"
    assert bucket.read(prefix + samples) == (tmp_path / samples).read_bytes()
    there, here = (
        json.loads(text)["results"][0]
        for text in (
            bucket.read(f"{prefix}run/evaluation/evaluation.json"),
            (tmp_path / "run/evaluation/evaluation.json").read_bytes(),
        )
    )
    assert there["metrics"]["FD-efficientnet_lite0"] == here["metrics"]["FD-efficientnet_lite0"]
    done = bucket.run(
        "main.py", "--mode=evaluate", f"--samples={place}/{samples}", f"--reference={place}/{samples}",
        f"--out={place}/scores",
    )  # fmt: skip
    assert done.returncode == 0 and f"{prefix}scores/evaluation.json" in bucket.objects(), done.stderr
    done = bucket.run("main.py", "--mode=export", f"--run_dir={place}/run", f"--out={place}/model")
    assert done.returncode == 0 and "model/saved_model.pb" in bucket.objects(prefix), done.stderr
    assert not [name for name in bucket.objects(prefix) if "partial" in name or "unfinished" in name]
