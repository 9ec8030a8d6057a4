"""The benchmark harness: cases, peers, processes, which samples count."""

import json
import math

import numpy
import pytest

from bigkernels.bench import cases, ceilings, encoders, fleet, grid, peers, record, rooms, run
from bigkernels.cli import main
from bigkernels.training.data import DataError

TINY = "attention overhead 1x1x1x16 float32"


def answer(peer, samples, **facts):
    return {"peer": peer, "samples": samples, "calls": 1, **facts}


def test_every_case_is_found_by_its_id_and_every_group_has_its_baseline():
    for name, case in cases.catalogue().items():
        assert cases.find(name) is case
        assert case.mode in cases.MODES and case.group in cases.GROUPS
    for group, name in peers.BASELINES.items():
        assert group in peers.find("encoder" if group == "encoder" else "room", name).groups
    grid = cases.find("encoder forward bert-base dense 4x64")
    assert grid.batch == ("bert-base", 4, 64, "dense")
    with pytest.raises(KeyError):
        cases.find("attention forward of something else")


def test_every_peer_can_be_set_up_or_says_how_to_get_it():
    for peer in peers.PEERS:
        assert peer.build or peer.install, peer.name
        if peer.build and not peer.missing():
            assert callable(peer.builder())
        assert not peer.needs or peer.install, peer.name


def test_peers_that_read_berts_alone_are_left_out_of_other_encoders():
    engine, stock = peers.find("encoder", "CTranslate2"), peers.find("encoder", "HF sdpa")
    image = cases.find("encoder forward vit-base dense 8x197")
    bert = cases.find("encoder forward bert-base dense 8x128")
    assert [run._takes(p, c) for p in (engine, stock) for c in (bert, image)] == [1, 0, 1, 1]
    assert encoders.batch("vit-base", 3, 0, "dense").tokens == 3 * 197


def test_peers_held_to_avx2_run_beside_each_other_only():
    wide, narrow = (peers.find("encoder", f"HF sdpa{held}") for held in ("", " AVX2"))
    taken = {case.id for case in cases.catalogue().values() if run._takes(narrow, case)}
    assert taken == {
        f"encoder forward bert-base {size}" for size in ("dense 8x128", "ragged 16x128")
    }
    assert all(run._takes(wide, cases.find(name)) for name in taken)
    ours = peers.find("encoder", "bigkernels AVX2")
    assert ours.ours and {*narrow.environment} < {*ours.environment}


def test_peers_that_are_never_the_fastest_are_spared_the_heavy_cases():
    slow, fast = (peers.find("encoder", name) for name in ("HF eager", "OpenVINO"))
    large, small = (cases.find(f"encoder forward bert-base dense {n}") for n in ("4x512", "1x128"))
    assert [run._takes(p, c) for p in (slow, fast) for c in (large, small)] == [0, 1, 1, 1]
    (cell,) = [c for c in grid.grid_cases(False) if c.id == large.id]
    assert run._takes(slow, cell) and cell.patience == 1


def test_a_copy_moves_the_bytes_of_add_layer_norm_and_has_no_result(tmp_path):
    case = cases.find("add_layer_norm forward 128x768 float32")
    made = rooms.timed(rooms.copy(case.problem), case.problem.problem(), "forward")
    made.call()
    assert made.results() == {} and case.bytes == 3 * 128 * 768 * 4
    numpy.savez(tmp_path / "copy.npz")
    assert record.room_errors(case, tmp_path, ["copy", "torch"]) == {}
    with pytest.raises(rooms.RefusedError, match="float32 without dropout only"):
        rooms.copy(cases.find("layer_norm forward 128x768 float32").problem)


def test_the_mere_reading_of_weights_stands_beside_one_sentence():
    read = peers.find("encoder", peers.READS["bfloat16"])
    taken = [case for case in cases.catalogue().values() if run._takes(read, case)]
    assert [case.id for case in taken] == ["encoder forward bert-base dense 1x16"]
    built = read.builder()("bert-base", 1, *read.arguments)
    assert built.configuration.startswith(f"{12 * 768 * (4 * 768 + 2 * 3072) * 2} bytes")
    assert built.numpy(built.prepare(None)()).ndim == 0


def test_a_causal_encoder_computes_half_the_scores():
    shape = {"layers": 2, "hidden": 8, "intermediate": 16, "causal": 0}
    full, half = (cases.encoder_flops(shape | {"causal": c}, [1, 3]) for c in (0, 1))
    assert full - half == 2 * 4 * 8 * (10 - 7)


def test_rows_compare_rounds_of_one_core_state():
    # In the slow state everything takes four times as long; ours was mostly sampled there.
    base = [[0, 4.0, "slow", True], *[[turn, 1.0, "fast", True] for turn in range(1, 6)]]
    ours = [[0, 2.0, "slow", True], [1, 2.0, "slow", True], [2, 2.0, "mixed", True]]
    ours += [[turn, 0.5, "fast", True] for turn in range(3, 6)] + [[6, 9.0, "fast", False]]
    answers = [answer("torch", base), answer("bigkernels", ours), answer("other", [], refused="no")]
    rows = record.rows(cases.find(TINY), answers, {"bigkernels": {"error": 1.0}})
    stock, mine, refused = rows
    assert (stock["state"], stock["median"], stock["speed_up"]) == ("fast", 1.0, 1.0)
    assert (mine["median"], mine["speed_up"], mine["dropped"]) == (0.5, 2.0, 1)
    assert mine["by_state"]["slow"] == {"median": 2.0, "samples": 2, "speed_up": None}
    assert mine["by_state"]["fast"] == {"median": 0.5, "samples": 3, "speed_up": 2.0}
    assert mine["error"] == 1.0
    assert refused["refused"] == "no" and "median" not in refused


def test_too_few_samples_of_a_state_are_not_a_class():
    few = [answer("torch", [[0, 1.0, "fast", True], [1, 2.0, "slow", True]])]
    assert record.common_state(few) == "all"


def test_the_roof_is_the_tighter_of_memory_and_products():
    roofs = {"flops": {"float32": 100.0}, "copy": {"L2": 10.0, "L3": 5.0, "memory": 1.0}}
    case = {"flops": 100, "bytes": 5, "dtype": "float32"}
    assert ceilings.share(case, 2.0, roofs) == (0.5, "products")
    assert ceilings.share(case | {"bytes": 1 << 30}, 2.0**31, roofs) == (0.5, "memory")
    assert ceilings.share(case | {"dtype": "int8"}, 2.0, roofs) is None


def test_a_silent_or_dead_peer_refuses_with_the_reason():
    slow = fleet.Process(peers.find("room", "torch"), 1, seconds=0.0)
    try:
        assert slow.ask(do="prepare", case=TINY)["refused"].startswith("no answer within 0 s")
        assert "no answer" in slow.ask(do="sample")["refused"]
    finally:
        slow.close()
    dead = fleet.Process(peers.find("room", "torch"), 1, seconds=60.0)
    dead.child.kill()
    try:
        assert dead.ask(do="sample")["refused"].startswith("its process ended")
    finally:
        dead.close()


def test_bench_times_peers_in_rounds_and_writes_the_record(tmp_path, capsys):
    flags = [
        "bench",
        "--quick",
        "--cases",
        f"^{TINY}$",
        "--peers",
        "torch,bigkernels,sdpa cudnn,Liger",
    ]
    assert main([*flags, "--rounds", "2", "--threads", "1", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert TINY in shown and "Peers that are not here" in shown
    found = json.loads((tmp_path / "quick.json").read_text())
    assert found["schema"] == record.SCHEMA and found["threads"] == 1
    assert [row["peer"] for row in found["rows"]] == ["torch", "bigkernels"]
    for row in found["rows"]:
        assert 0 < row["lower"] <= row["median"] <= row["upper"] < math.inf
        assert row["refused"] is None and row["calls"] > 1
    rounds = [{turn for turn, _ in row["samples"]} for row in found["rows"]]
    assert rounds[0] & rounds[1]
    (missing,) = [p for p in found["peers"] if p["name"] == "Liger"]
    assert missing["install"] == "pip install liger-kernel" or missing["available"]


def test_without_its_model_the_rest_is_timed(monkeypatch, tmp_path, capsys):
    def absent(*_):
        raise DataError("cannot download the model: put it into the cache")

    monkeypatch.setattr(encoders, "batch", absent)
    flags = ["--cases", f"^({TINY}|encoder forward minilm dense 1x16)$", "--peers", "torch,HF sdpa"]
    assert main(["bench", "--quick", *flags, "--rounds", "1", "--out", str(tmp_path)]) == 0
    assert "encoders are left out: cannot download the model" in capsys.readouterr().err
    found = json.loads((tmp_path / "quick.json").read_text())
    assert [row["peer"] for row in found["rows"]] == ["torch"]


def test_an_interrupted_run_keeps_what_it_has_timed(monkeypatch, tmp_path, capsys):
    timed, case = [], run.Bench._case

    def interrupted(self, *arguments):
        if timed:
            raise KeyboardInterrupt
        timed.append(case(self, *arguments))
        return timed[0]

    monkeypatch.setattr(run.Bench, "_case", interrupted)
    flags = ["bench", "--quick", "--cases", "^attention overhead", "--peers", "torch,bigkernels"]
    assert main([*flags, "--rounds", "1", "--out", str(tmp_path)]) == 130
    found = json.loads((tmp_path / "quick.json").read_text())
    assert found["interrupted"] and len({row["case"] for row in found["rows"]}) == 1
    assert "refused" not in timed[0][0][0] and "attention overhead" in capsys.readouterr().out


def test_the_grid_takes_cases_peers_and_list(capsys):
    flags = ["--cases", "minilm dense 4x1024$|bert-base dense 4x1024$", "--peers", "HF sdpa"]
    assert main(["bench", "--grid", "--list", *flags]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["encoder forward bert-base dense 4x1024", "HF sdpa"]


def test_unknown_cases_and_peers_are_one_line(capsys):
    assert main(["bench", "--cases", "no such case"]) == 1
    assert capsys.readouterr().err == "bigkernels bench: --cases: no case matches 'no such case'\n"
    assert main(["bench", "--quick", "--peers", "cuBLAS"]) == 1
    assert "'cuBLAS' not in" in capsys.readouterr().err
