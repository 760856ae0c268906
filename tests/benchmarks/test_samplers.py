"""The table of samplers: what is measured, and what is printed."""

import sys

from benchmarks import samplers
from benchmarks.samplers import main
from pdm_tf.errors import run
from tests.evaluation.test_report import DETECTOR
from tests.tiny_runs import tiny_config, write_run


def test_the_table_has_the_held_out_images_and_a_row_for_each_sampler(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(samplers, "load_detector", lambda: DETECTOR)
    monkeypatch.setattr("pdm_tf.evaluation.references.CACHE", tmp_path)
    config = tiny_config(data__image_shape=(64, 64, 3), data__num_classes=9, data__label_names=())
    write_run(tmp_path / "run", config)
    arguments = ["--samplers=ddim,heun", "--steps=2", "--num_images=4", "--batch_size=4", "--seeds=2"]
    arguments += ["--guidance=1,1.5", "--threshold=static", "--guidance_interval", "all", "150,550"]
    monkeypatch.setattr(sys, "argv", ["samplers", f"--run_dir={tmp_path / 'run'}", *arguments])
    assert run(main) == 0
    header, _, floor, *rows = capsys.readouterr().out.strip().splitlines()
    assert header.startswith("| sampler | steps | guidance | passes | seconds an image | FD-colour |")
    assert floor.startswith("| emoji64, validation (95) |")
    assert [row.split(" | ")[:4] for row in rows] == [
        [f"| {sampler}", "2", guidance, passes]
        for sampler, passes in (("ddim", "2"), ("heun", "3"))
        for guidance in ("none", "1.5, static", "1.5, static, t in [150, 550)")
    ]
    assert rows[0].endswith("| - | - | - | - | - |")  # of so few images
    assert all(len(row.split("|")) == len(header.split("|")) for row in (floor, *rows))
