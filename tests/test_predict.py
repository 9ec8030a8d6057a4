"""Predicted times and the tuner of tiles: what needs no GPU of them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import sys

import pytest
import torch

from bigkernels.ops import triton_table
from tests.emulator.core import Report, Traffic
from tests.emulator.device import why_not

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(FOLDER))
predict = pytest.importorskip("predict", reason="triton is not installed")
import gpu_peers  # noqa: E402
import gpu_targets  # noqa: E402
import predict_cases  # noqa: E402
import tune  # noqa: E402
import tune_choices  # noqa: E402

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
    for case, (found,) in predict.rows("layer_norm 32768x768 forward"):
        if case.name.startswith("layer_norm"):
            assert found.kernel == "layer_norm_forward_kernel" and found.bounds.name == "memory"
            assert found.spilled == 0 and 16 <= found.registers <= 64
            least = 2 * 32768 * 768 * 2 / 3.35e12
            assert least < found.seconds < 1.25 * least
            return
    raise AssertionError("no such case")


def test_every_row_of_the_table_says_where_it_is_from():
    table = json.loads(triton_table.TABLE.read_text())
    keys = [tuple(row[n] for n in ("op", "architecture", "dtype", "bucket")) for row in table]
    assert len(set(keys)) == len(keys) > 50
    for row in table:
        assert row["source"] in ("compiled", "predicted") or row["source"].startswith(
            "measured on "
        )


def test_a_row_that_names_its_gpu_or_dtype_comes_before_one_for_any():
    def row(architecture: str, dtype: str, warps: int) -> dict[str, object]:
        names = {"op": "sum", "architecture": architecture, "dtype": dtype, "bucket": "256"}
        return {**names, "tile": {"num_warps": warps}, "source": "compiled"}

    found = triton_table.expanded(
        [row("sm_90", "16 bit", 1), row("any", "32 bit", 2), row("any", "any", 4)]
    )
    assert len(found) == 6
    warps = {key[1:3]: tile["num_warps"] for key, tile in found.items()}
    assert warps["sm_90", "16 bit"] == 1 and warps["sm_80", "16 bit"] == 4
    assert {warps[architecture, "32 bit"] for architecture in triton_table.ARCHITECTURES} == {2}


def test_what_is_tuned_is_what_the_table_has():
    ops = set()
    for choice in tune_choices.choices():
        ops.add(choice.op)
        for architecture, dtype, bucket in itertools.product(
            triton_table.ARCHITECTURES, choice.dtypes, choice.buckets
        ):
            own = triton_table.table().get((choice.op, architecture, dtype, bucket))
            if own is None:
                assert choice.room == "attention"  # some of whose kernels are not for every GPU
                continue
            found = list(choice.candidates(architecture, dtype, bucket))
            assert found and all(tile.keys() == own.keys() for tile in found), choice.op
            assert len({tuple(tile.values()) for tile in found}) == len(found), choice.op
    # Of float32 attention one tile is for all kernels.
    assert {key[0] for key in triton_table.table()} - ops == {"attention"}


def test_a_launch_takes_its_waves_and_what_too_few_programs_do_not_overlap():
    found = predict.Bounds(issue=3.0, tensor=2.0)
    whole = predict.computing(found, 264, 16, 1)
    assert whole == pytest.approx(3.0)  # two even waves of programs that fill the schedulers
    assert predict.computing(found, 265, 16, 1) == pytest.approx(3.0 * 264 / 265 * 1.5)
    assert predict.computing(found, 264, 4, 2) == pytest.approx(6.0)  # eight warps issue half
    assert predict.computing(found, 264, 8, 2) == pytest.approx(3.0)


@emulates
def test_different_tiles_are_predicted_to_take_different_times():
    (choice,) = (c for c in tune_choices.choices() if c.op == "ffn_backward")
    key = ("ffn_backward", "sm_90", "16 bit", "large")
    seconds = []
    for m in (64, 128):
        tile = {"block_m": m, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 2}
        for _ in range(2):
            with tune.trying(key, tile):
                seconds.append(tune.predicted(choice, "16 bit", "large"))
    assert seconds[0] == seconds[1] and seconds[2] == seconds[3]
    assert 1e-5 < min(seconds) < max(seconds) < 1e-3


def test_predictions_have_every_case_and_say_that_nobody_measured_them():
    text = (FOLDER / "predicted.md").read_text()
    assert "never measured" in text
    assert list(gpu_targets.predictions()) == [case.name for case in predict_cases.cases()]
    wanted = {call for target in gpu_targets.targets() for call in target.calls}
    assert wanted <= gpu_targets.predictions().keys()


@emulates
def test_the_tuner_rehearses_and_leaves_the_tiles_as_they_were():
    before = dict(triton_table.table())
    (choice,) = (c for c in tune_choices.choices() if c.op == "layer_norm_forward")
    own = before["layer_norm_forward", "sm_90", "16 bit", "512"]
    few = own, {"elements": 1024, "num_warps": 1}
    choice = choice._replace(
        candidates=lambda *key: iter(few), buckets=("512",), dtypes=("16 bit",)
    )
    rows = list(tune.tune("sm_90", tune.predicted, "predicted", [choice], 60.0))
    assert [(r["op"], r["bucket"], r["source"]) for r in rows] == [
        ("layer_norm_forward", "512", "predicted")
    ]
    assert rows[0]["tile"] in few
    assert before == triton_table.table()
    table = json.loads(triton_table.TABLE.read_text())
    merged = tune.merged(table, rows)
    assert len(merged) == len(table) + 1
    assert (
        triton_table.expanded(merged)["layer_norm_forward", "sm_90", "16 bit", "512"]
        == rows[0]["tile"]
    )
    again = tune.merged(merged, [{**rows[0], "source": "measured on a GPU"}])
    assert (
        len(again) == len(merged) and again[merged.index(rows[0])]["source"] == "measured on a GPU"
    )


def test_a_tile_that_is_not_surely_faster_or_has_faults_is_left(monkeypatch):
    (choice,) = (c for c in tune_choices.choices() if c.op == "column_sum")
    key = ("column_sum", "sm_90", "32 bit", "any")
    own = dict(triton_table.table()[key])
    small, large = {**own, "block_m": 32}, {**own, "block_m": 128}
    monkeypatch.setattr(tune, "faults", lambda room, key, tile: ["spills"] * (tile == small))
    assert tune._row(choice, key, [(0.5, small), (0.9, large), (1.0, own)]) == large
    assert tune._row(choice, key, [(0.5, small), (0.99, large), (1.0, own)]) == own


def _record() -> dict[str, object]:
    """As gpu_peers.py writes it where a GPU is: ours take 10 us, everybody else 40."""
    context = gpu_peers.gpu_cases.Context("cpu", ("cuda", "triton"), smoke=False, compile=True)
    results = []
    for group in gpu_peers.GROUPS.values():
        for case in group(context):
            us = 10.0 if "bigkernels" in case.name else 40.0
            result = gpu_peers.Result(case.group, case.name, case.shape, case.dtype, us)
            result.tflops, result.gbytes = case.flops / us * 1e-6, case.bytes / us * 1e-3
            result.host_us, result.host_worst_us = (9.0, 90.0) if case.host else (None, None)
            results.append(dataclasses.asdict(result))
    return {"smoke": False, "results": results}


def test_every_target_finds_its_measurements():
    record = _record()
    names = gpu_targets.timed(record).keys()
    assert gpu_targets.named() <= names, gpu_targets.named() - names
    found = gpu_targets.outcomes(record)
    assert len(found) > 20 and all(outcome.met is not None for outcome in found)
    for outcome in found:
        unit, measured = outcome.target.unit, outcome.measured
        assert measured == {"us": 9.0, "us at worst": 90.0}.get(unit, measured) > 0
        # of two calls of ours and two of a rival likewise; six products are one
        assert unit != "x" or measured == (2.0 if "cublas" in outcome.rival else 4.0)
        assert outcome.predicted is not None or unit in gpu_targets.HOST
        assert outcome.met == (measured >= outcome.target.wanted) or unit in gpu_targets.HOST


def test_without_measurements_targets_are_predicted_at_most():
    for record in (None, {**_record(), "smoke": True}):
        assert {outcome.measured for outcome in gpu_targets.outcomes(record)} == {None}
    text = gpu_targets.table(gpu_targets.outcomes(None))
    assert "not measured" in text and "| met |" not in text and "| missed |" not in text
    assert text.count("of the roofline") >= 8 and text.count(" TFLOP/s |") >= 8
