"""What is made of the harness's records: comparison, plots, page, the README's table."""

import json
from pathlib import Path

import bench_records
import pytest

from bigkernels.bench import cases, grid, peers, report, targets
from bigkernels.bench.compare import compare
from bigkernels.cli import main

SLOWED = "attention forward 8x12x128x64 float32"


def regressed(before, after):
    return {(c.case, c.peer) for c in compare(before, after) if c.regressed}


def test_a_second_run_compares_clean():
    for seed in range(1, 6):
        assert not regressed(bench_records.made(0), bench_records.made(seed))


def test_a_kernel_that_became_a_fifth_slower_is_found_and_only_that_one():
    for seed in range(1, 6):
        after = bench_records.made(seed, slower={SLOWED: 1.2})
        assert regressed(bench_records.made(0), after) == {(SLOWED, peers.OURS)}


def test_a_change_within_the_noise_is_no_regression():
    after = bench_records.made(1, noise=0.5, slower={SLOWED: 1.2})
    found = compare(bench_records.made(0, noise=0.5), after)
    (row,) = [c for c in found if (c.case, c.peer) == (SLOWED, peers.OURS)]
    assert not row.regressed
    assert row.limit > 0.2
    after = bench_records.made(1, slower={SLOWED: 2.0})
    for row in after["rows"]:
        row["disturbed"] = True
    assert not regressed(bench_records.made(0), after)


def test_compare_says_what_became_slower_by_its_status(tmp_path, capsys):
    before, same, after = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    before.write_text(json.dumps(bench_records.made(0)))
    same.write_text(json.dumps(bench_records.made(1)))
    after.write_text(json.dumps(bench_records.made(1, slower={SLOWED: 1.2})))
    assert main(["bench", "--compare", str(before), str(same)]) == 0
    assert "nothing is slower" in capsys.readouterr().out
    assert main(["bench", "--compare", str(before), str(after)]) == 1
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "SLOWER" in line]
    assert line.startswith(SLOWED)
    after.write_text('{"schema": 99}')
    assert main(["bench", "--compare", str(before), str(after)]) == 1
    assert "schema 99" in capsys.readouterr().err


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    made = bench_records.made()
    return folder, made, report.write(made, folder)


def test_a_full_record_becomes_every_plot_and_one_page(written):
    folder, made, files = written
    names = [file.name for file in files]
    assert names[0] == "full.json" and names[-1] == "index.html"
    assert {
        "kernels.png",
        "encoders.png",
        "latency.png",
        "memory.png",
        "roofline.png",
        "fill.png",
    } < set(names)
    assert report.load(files[0]) == json.loads(json.dumps(made))
    page = (folder / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(files) - 2
    assert "http" not in page  # nothing is loaded from elsewhere
    assert "A &lt;made-up&gt; CPU" in page
    for case in cases.catalogue():
        assert case in page
    for line in ("pip install liger-kernel", "width=device-width"):
        assert line in page


def test_the_readme_of_a_record_leaves_the_records_beside_it(written, tmp_path, monkeypatch):
    _, record, _ = written
    kept = tmp_path / f"{record['mode']}.json"
    kept.write_text("another run")
    (tmp_path / "later.json").write_text(json.dumps(record))
    (tmp_path / "README.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "--readme", str(tmp_path / "later.json")]) == 0
    assert kept.read_text() == "another run" and "| **bigkernels**" in Path("README.md").read_text()


def test_the_readme_gets_its_table_between_its_marks(written, tmp_path):
    folder, made, _ = written
    readme = tmp_path / "README.md"
    readme.write_text(f"# before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):  # writing it again changes nothing
        report.write_readme(made, folder, readme)
        text = readme.read_text()
        assert text.startswith(f"# before\n{report.BEGIN}\n| times as fast")
        assert text.endswith(f"{report.END}\nafter\n") and "old" not in text
    row = next(r for r in made["rows"] if r["peer"] == peers.OURS and r["group"] == "encoder")
    (line,) = [line for line in text.splitlines() if line.startswith("| **bigkernels** |")]
    assert f"{row['speed_up']:.2f}" in line
    assert (tmp_path / report.CHART).is_file()
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the lines"):
        report.write_readme(made, folder, readme)


def test_every_target_has_its_case_and_its_rivals():
    for target in targets.targets():
        case = cases.find(target.case)
        kind = "encoder" if case.batch else "room"
        for name in (target.ours, *target.rivals):
            assert case.group in peers.find(kind, name).groups, target
        wanted = peers.find(kind, target.ours)
        if kind == "encoder":
            assert {peers.find(kind, n).precision for n in target.rivals} == {wanted.precision}
            assert case.patience > 1 and case.narrow >= wanted.narrow
    assert "HF sdpa AVX2" not in targets._of("float32")


def test_a_target_is_met_only_if_it_is_in_each_core_state():
    (target,) = [t for t in targets.targets() if t.name.startswith("BERT-base int8, 8x128")]

    def row(peer, states):
        samples = [[i, s] for i, s in enumerate(s for s in states.values() for _ in range(3))]
        by_state = {name: {"median": s, "samples": 3} for name, s in states.items()}
        facts = {"case": target.case, "peer": peer, "median": states["fast"], "bytes": 100}
        facts |= {"samples": samples, "by_state": by_state, "disturbed": False, "dtype": "int8"}
        return facts | {"first_result_seconds": 1.0}

    for ours, met in (({"fast": 1.0, "slow": 2.0}, True), ({"fast": 1.0, "slow": 4.0}, False)):
        rows = [row(target.ours, ours), row("OpenVINO int8", {"fast": 2.0, "slow": 4.0})]
        (found,) = targets.outcomes({"rows": rows, "mode": "full"})
        assert (found.met, found.rival, found.by_state["fast"]) == (met, "OpenVINO int8", 2.0)
        assert found.by_state["slow"] == 4.0 / ours["slow"]


def test_a_call_that_is_mostly_the_reading_of_its_weights_meets_a_target_too():
    made = bench_records.made(chosen={"encoder forward bert-base dense 1x16"})
    rows = {row["peer"]: row for row in made["rows"]}
    mine, read = rows[peers.OURS], rows[peers.READS["float32"]]
    for share, met in ((0.9, True), (0.5, False)):
        read["samples"] = [[turn, share * seconds] for turn, seconds in mine["samples"]]
        found = next(o for o in targets.outcomes(made) if o.name == "BERT-base float32, 1x16")
        assert found.ratio < found.least and found.share == pytest.approx(share)
        assert found.met == met and found.rival != read["peer"]


def test_the_targets_are_on_the_page_and_a_table(written, tmp_path, capsys):
    folder = written[0]
    assert "<h2>Targets</h2>" in (folder / "index.html").read_text()
    file = tmp_path / "cells.json"
    cell = grid.Cell("float32", "minilm", 1, 16, 0.9, True, True)
    rows = {"cells": [cell._asdict()], "mode": "grid"}
    file.write_text(json.dumps(bench_records.made(slower={SLOWED: 9.0}) | rows))
    assert main(["bench", "--targets", str(folder / "full.json"), str(file)]) == 0
    shown = capsys.readouterr().out
    assert "| never slower, 1 cells | 1.00x | 0.90x | stock |  |  | 0 | missed |" in shown
    assert shown.count("\n| ") == len(list(targets.targets())) + 2
    file.write_text(json.dumps(bench_records.made(chosen=set())))
    assert main(["bench", "--targets", str(file)]) == 1
    assert "no case of a target" in capsys.readouterr().err


def test_a_record_of_few_cases_has_the_plots_it_has_data_for(tmp_path):
    made = bench_records.made(chosen={SLOWED})
    names = [file.name for file in report.write(made, tmp_path)]
    assert names == ["full.json", "kernels.png", "roofline.png", "index.html"]


def test_the_grid_marks_the_cells_below_stock():
    def row(peer, seconds):
        samples = [[turn, value] for turn, value in enumerate(seconds)]
        facts = {"case": case.id, "peer": peer, "shape": case.shape}
        return {**facts, "samples": samples, "disturbed": False}

    full = grid.grid_cases(quick=False)
    assert len(full) == 3 * (6 + 7)
    assert all(cases.find(case.id).batch == case.batch for case in full)
    case = full[0]
    stock = row(peers.BASELINES["encoder"], [1.0, 1.1, 0.9, 1.0, 1.0])
    noisy = [s * f for (_, s), f in zip(stock["samples"], (1.3, 0.8, 1.6, 1.05, 0.9), strict=True)]
    for seconds, speed_up, slower in (
        ([2.0 * s for _, s in stock["samples"]], 0.5, True),
        ([0.5 * s for _, s in stock["samples"]], 2.0, False),
        (noisy, 1 / 1.05, False),
    ):
        (cell,) = grid.cells({"rows": [stock, row(peers.OURS, seconds)]})
        assert cell.speed_up == pytest.approx(speed_up) and cell.slower == slower
        assert (cell.model, cell.batch, cell.length) == ("minilm", 1, 16)
        assert (cell.precision, cell.keep) == ("float32", slower)
        kept = '[\n  ["float32", 384, 1, 16]\n]' if slower else "[]"
        record = {"rows": [stock, row(peers.OURS, seconds)]}
        assert grid.slower_table(record) == f'{{"cells": {kept}}}\n'
        (unsure,) = grid.cells({"rows": [stock | {"disturbed": True}, row(peers.OURS, seconds)]})
        assert not unsure.slower
        shown = f"{speed_up:.2f}{' !' if slower else ''}"
        assert grid.rows([cell], "minilm", "float32") == [["1", shown]]


def test_the_grid_counts_the_faster_stock_but_keeps_only_what_was_there():
    facts = {"case": "encoder forward minilm dense 4x16", "shape": "minilm 4x16"}
    fast, same = [[t, 0.5] for t in range(5)], [[t, 1.0] for t in range(5)]
    rows = [
        {**facts, "peer": peer, "samples": samples, "disturbed": False}
        for peer, samples in (
            ("HF sdpa", same),
            ("nn.TransformerEncoder", fast),
            (peers.OURS, same),
        )
    ]
    (cell,) = grid.cells({"rows": rows})
    assert (cell.speed_up, cell.slower, cell.keep) == (0.5, True, False)
