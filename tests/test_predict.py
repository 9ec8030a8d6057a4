"""Predicted times and the tuner of tiles: what needs no GPU of them."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest
import torch

from bigkernels.ops.ffn import triton_tiles
from tests.emulator.core import Report, Traffic
from tests.emulator.device import why_not

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
predict = pytest.importorskip("predict", reason="triton is not installed")
import tune  # noqa: E402

REASON = why_not("triton")
emulates = pytest.mark.skipif(REASON is not None, reason=f"emulated: {REASON}")


def test_the_bounds_are_counts_over_published_rates():
    lines = [
        Traffic("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16", 1, 1, 400, 0, 0, 0, 0, False),
        Traffic("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 2, 1, 10, 0, 0, 0, 0, False),
        Traffic("ex2.approx.ftz.f32", 3, 1, 7, 0, 0, 0, 0, False),
        Traffic("ld.shared.b32", 4, 1, 5, 5, 640, 9, 5, True),
    ]  # fmt: skip
    launch = predict.Launch(Report("kernel", instructions=422, traffic=lines), (torch.zeros(10),))
    found = predict.bounds(launch, 2.0)
    assert found.tensor == pytest.approx(
        2 * (400 * 2 * 64 * 64 * 16 / 4 / 989.4e12 + 10 * 2 * 16 * 8 * 8 / 494.7e12)
    )
    assert found.special == pytest.approx(2 * 7 * 2 / (132 * 1.755e9))
    assert found.shared == pytest.approx(2 * 9 / (132 * 1.755e9))
    assert found.issue == pytest.approx(2 * 422 / (4 * 132 * 1.755e9))
    assert found.memory == pytest.approx(2 * 40 / 3.35e12)
    assert found.seconds == max(
        found.tensor, found.memory, found.issue, found.shared, found.special
    )
    assert predict.bounds(launch, 2.0, {10: 30}).memory == pytest.approx(3 * 40 / 3.35e12)


@emulates
def test_a_layer_norm_is_predicted_to_be_bound_by_memory():
    for name, found in predict.rows("add_layer_norm (8192, 768), forward"):
        assert "layer_norm_forward_kernel" in name and found.name == "memory"
        assert found.seconds == pytest.approx(4 * 8192 * 768 * 2 / 3.35e12, rel=0.05)


def test_every_row_of_the_table_says_where_it_is_from():
    table = json.loads(triton_tiles.TABLE.read_text())
    names = {(r["op"], r["architecture"], r["dtype"], r["size"]) for r in table}
    assert len(names) == len(table) == 18
    for row in table:
        assert row["source"] in ("by hand", "predicted") or row["source"].startswith("measured on ")


def test_written_predictions_say_that_nobody_measured_them():
    assert "never measured" in (FOLDER / "predicted.md").read_text()


@emulates
def test_the_tuner_rehearses_and_leaves_the_tiles_as_they_were(monkeypatch):
    before = dict(triton_tiles.TILES)
    few = triton_tiles.Tile(64, 64, 64, 4, 3), triton_tiles.Tile(64, 64, 64, 4, 2)
    monkeypatch.setattr(tune, "CANDIDATES", {"small": few})
    with predict.counting() as so_far:
        found = tune.tune(
            "sm_90", lambda way, size: tune._predicted(so_far, way), "predicted", ("forward",)
        )
        rows = list(found)
    assert [(r["op"], r["size"], r["source"]) for r in rows] == [
        ("ffn_forward", "small", "predicted")
    ]
    assert triton_tiles.Tile(*rows[0]["tile"]) in few
    assert before == triton_tiles.TILES
    table = json.loads(triton_tiles.TABLE.read_text())
    assert [r["source"] for r in tune.merged(table, rows)].count("predicted") == 1
