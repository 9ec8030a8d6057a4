"""What the GPU compilers made of the kernels, read from their output on a machine without a GPU.

None of this runs a kernel: it says that every shipped configuration compiles, keeps its values in
registers, and is as tests/static/table.tsv says.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from bigkernels import backends, library
from bigkernels.ops.attention import triton_config
from tests.static import occupancy, resources, row
from tests.static.cuda_kernels import short_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
needs_tools = pytest.mark.skipif(
    resources.find_tool("cuobjdump") is None,
    reason="cuobjdump is neither on the PATH nor in a Triton wheel",
)


def gate(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The gate, or code that calls it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, *(["-c", code] if code else ["-m", "tests.static"]), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@needs_tools
def test_every_shipped_configuration_is_as_the_table_says() -> None:
    done = gate()
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@needs_tools
def test_what_is_compiled_again_is_as_the_table_says() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    done = gate(
        "--all", "--only", "^triton (layer_norm add_layer_norm_backward 1024|column_sum) bf16"
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "6 configurations, 6 compiled, 0 faults, 0 differ" in done.stdout


EDITED = """
import pathlib, sys
from tests.static import __main__ as gate, row
row.TABLE = pathlib.Path(sys.argv.pop())
sys.exit(gate.main())
"""


@needs_tools
def test_a_row_edited_by_hand_is_noticed(tmp_path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    lines, names = row.TABLE.read_text().splitlines(), [f.name for f in dataclasses.fields(row.Row)]
    number = next(
        n for n, line in enumerate(lines) if line.startswith("triton column_sum bf16\tsm_80")
    )
    words = lines[number].split("\t")
    column = names.index("registers")
    right = words[column]
    words[column] = wrong = f"1{right}"
    lines[number] = "\t".join(words)
    (tmp_path / "table.tsv").write_text("\n".join(lines) + "\n")
    done = gate("--only", "^triton column_sum bf16", str(tmp_path / "table.tsv"), code=EDITED)
    assert "3 configurations, 1 compiled, 0 faults" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"registers {wrong} -> {right}" in done.stdout


@pytest.mark.full
@needs_tools
def test_all_of_it_compiled_again_is_as_the_table_says() -> None:
    done = gate("--all")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_every_triton_drawer_has_its_configurations() -> None:
    for room in library.ROOMS:
        if (room, "triton") in backends._DRAWERS:
            assert (ROOT / "tests" / "static" / f"triton_{room}.py").exists(), room
            assert any(kernel.startswith(f"triton {room} ") for kernel, _ in row.load()), room


def test_the_table_covers_every_architecture_of_a_kernel() -> None:
    table = row.load()
    wanted = {"triton": {"sm_80", "sm_90", "gfx942"}, "cuda": {"sm_80", "sm_90a"}}
    # Not chosen on AMD, where scalars of the first spill, or on sm_80.
    elsewhere = {
        "short": {"gfx942"},
        **{name: {"gfx942", "sm_80"} for name in ("few", "once", "round")},
    }
    # Several at once, of which scalars spill there, are compiled for others; of float32 for one, whose tiles all have.
    several = {"mask", "causal mask", "most mask", "capped mask", "most bias", "causal bias"}
    several.add("full packed")
    assert triton_config.short("gfx942", 16, 64, triton_config.PLAIN, 1) is None
    assert all(
        triton_config.few(arch, 16, 64, triton_config.PLAIN, 1) is None for arch in elsewhere["few"]
    )
    assert all(
        triton_config.once(arch, 16, 64, triton_config.PLAIN) is None for arch in elsewhere["once"]
    )
    for kernel in {kernel for kernel, _ in table}:
        there = wanted[kernel.split()[0]]
        if kernel.startswith("triton attention "):
            form, variant = re.match(r"triton attention (\w+) ([a-z ]+) \d", kernel).groups()
            there = there - elsewhere.get(form, set())
            if variant in several:
                there = there - {"gfx942"} - ({"sm_90"} if " fp32" in kernel else set())
        assert {arch for name, arch in table if name == kernel} == there, kernel
    assert all(r.blocks > 0 and r.instructions > 0 for r in table.values())


BROKEN = {
    "a row cut short": (lambda text: text[: text.rindex("\t")], "fields, not 11"),
    "a conflict": (lambda text: text + "<<<<<<< here\n", "1 fields, not 11"),
    "a word for a number": (lambda text: text.replace("\t4224\t", "\tmany\t"), "'many'"),
    "a row twice": (lambda text: text + text.splitlines()[-1] + "\n", "is there twice"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_table_that_cannot_be_read_says_its_line(fault, tmp_path, monkeypatch) -> None:
    spoil, what = BROKEN[fault]
    text = row.TABLE.read_text()
    wrong = tmp_path / "table.tsv"
    wrong.write_text(spoil(text))
    assert wrong.read_text() != text
    monkeypatch.setattr(row, "TABLE", wrong)
    with pytest.raises(row.TableError, match=rf"table\.tsv, line \d+: .*{what}"):
        row.load()


def test_the_table_is_of_the_triton_that_tests_install() -> None:
    # Differences from other compilers do not count: a wrong first line would open the gate.
    pinned = re.search(r"triton==([\d.]+)", (ROOT / "Makefile").read_text())[1]
    assert row.made_with()["triton"] == pinned
    assert re.fullmatch(r"13\.\d+\.\d+", row.made_with()["cuda"])


GATES = """
import sys
from tests.static import __main__ as gate, row
from tests.static.row import Row

made = [Row("triton a", "sm_80", 8, 0, 1, 1, 9, 0, 0, 0, "x"), Row("cuda b", "sm_80", 8, 0, 1, 1, 9, 0, 0, 0, "x")]
table = {TABLE}
gate.gather = lambda known, wanted: [(r, {FAULTS}) for r in made]
gate.compilers = lambda: {"triton": "3.6.0", "cuda": "13.0.88"}
row.load, row.made_with = lambda: {r.key: r for r in table}, lambda: {HEAD}
sys.argv = ["static"]
sys.exit(gate.main())
"""
SAME = '{"triton": "3.6.0", "cuda": "13.0.88"}'
# Table, faults of the code, compilers of the table: exit status.
STATES = {
    "as it is": ("made", "[]", SAME, 0),
    "more registers": ("[made[0], Row(*list(vars(made[1]).values())[:2], 9, 0, 1, 1, 9, 0, 0, 0, 'y')]", "[]", SAME, 1),
    "a new kernel": ("made[:1]", "[]", SAME, 1),
    "a kernel gone": ("[*made, Row('cuda c', 'sm_80', 8, 0, 1, 1, 9, 0, 0, 0, 'x')]", "[]", SAME, 1),
    "a spill": ("made", "['1 spills']", SAME, 1),
    "no table": ("[]", "[]", "{}", 1),
    "another Triton, and a new CUDA kernel": ("made[:1]", "[]", SAME.replace("3.6.0", "3.7.0"), 1),
    "another nvcc, and a new CUDA kernel": ("made[:1]", "[]", SAME.replace("13.0.88", "13.1.0"), 0),
    "another nvcc, and a spill": ("made", "['1 spills']", SAME.replace("13.0.88", "13.1.0"), 1),
}  # fmt: skip


@pytest.mark.parametrize("state", STATES)
def test_the_gate_closes(state) -> None:
    table, faults, head, status = STATES[state]
    code = GATES.replace("{TABLE}", table).replace("{FAULTS}", faults).replace("{HEAD}", head)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr


def test_a_difference_names_the_field_and_a_new_seal_is_none() -> None:
    one = next(iter(row.load().values()))
    assert one.differences(dataclasses.replace(one, seal="other")) == []
    more = dataclasses.replace(one, registers=one.registers + 8)
    assert one.differences(more) == [f"registers {one.registers} -> {one.registers + 8}"]


def test_code_that_spills_is_a_fault_whatever_the_table_says() -> None:
    assert resources.Resources(32, 0, 0, 0, {"MOV": 3}).faults() == []
    assert resources.Resources(255, 8, 0, 0, {"STL": 2, "LDL": 1}).faults() == [
        "8 stack bytes",
        "3 spills",
    ]


# Of the CUDA occupancy calculator: architecture, warps, registers, bytes of shared memory, blocks.
OCCUPANCY = (
    ("80", 4, 32, 0, 16),
    ("80", 4, 128, 0, 4),
    ("80", 4, 255, 0, 2),
    ("80", 8, 64, 48 * 1024, 3),
    ("90", 8, 64, 48 * 1024, 4),
    ("90", 32, 64, 0, 1),
    ("90", 12, 168, 227 * 1024, 1),
    ("90", 1, 16, 0, 32),
)


@pytest.mark.parametrize(("arch", "warps", "registers", "shared", "blocks"), OCCUPANCY)
def test_occupancy_is_the_calculator_s(arch, warps, registers, shared, blocks) -> None:
    assert occupancy.cuda(arch, warps, registers, shared) == blocks


def test_kernels_are_named_without_their_file_s_hash() -> None:
    space = "_ZN10bigkernels4cuda48_GLOBAL__N__6446ffc5_15_cuda_forward_cu_4e06b0fd"
    name = f"{space}30layer_norm_forward_kernel_warpIfLi4ELb1EEEvNS0_22LayerNormForwardParamsE"
    assert short_name(name) == "layer_norm_forward_kernel_warp IfLi4ELb1EE"
    name = f"{space}28layer_norm_column_sum_kernelENS0_23LayerNormBackwardParamsEl"
    assert short_name(name) == "layer_norm_column_sum_kernel"


CUDA_LIBRARY = ROOT / "bigkernels" / "libbigkernels_cuda.so"
needs_cuda_library = pytest.mark.skipif(
    not CUDA_LIBRARY.exists(), reason="libbigkernels_cuda.so is not built (no nvcc here)"
)


@pytest.fixture(scope="module")
def cuda_kernels() -> dict[tuple[int, str], resources.Resources]:
    return resources.read(str(CUDA_LIBRARY))


@needs_tools
@needs_cuda_library
def test_cuda_kernels_are_built_for_every_architecture(cuda_kernels) -> None:
    info = json.loads((CUDA_LIBRARY.parent / "_build_info.json").read_text())
    wanted = {int(re.match(r"\d+", name)[0]) for name in info["cuda_architectures"]}
    names = {arch: {name for a, name in cuda_kernels if a == arch} for arch in wanted}
    assert len(set(map(frozenset, names.values()))) == 1, "an architecture lacks a kernel"
    assert {arch for arch, _ in cuda_kernels} == wanted


@needs_tools
@needs_cuda_library
def test_cuda_kernels_keep_their_values_in_registers(cuda_kernels) -> None:
    assert cuda_kernels
    for key, kernel in cuda_kernels.items():
        assert (kernel.stack, kernel.local, kernel.spills()) == (0, 0, 0), (key, kernel)


@needs_tools
@needs_cuda_library
def test_cuda_layer_norm_moves_rows_in_128_bit_pieces(cuda_kernels) -> None:
    # Template arguments: element type, elements an access. Of 1 there are both sorts of rows, of 4
    # and 8 only whole 16-byte ones.
    wide = {
        key: kernel.instructions
        for key, kernel in cuda_kernels.items()
        if re.search(r"layer_norm_(for|back)ward_kernel\w*Li[48]E", key[1])
    }
    assert len(wide) == 21 * len({arch for arch, _ in cuda_kernels})
    for key, found in wide.items():
        assert found["LDG.128"] >= 2, key
        assert found["STG.128"] >= 2, key
        assert "LDG.16" not in found, key
        assert "STG.16" not in found, key
        # Seed, offset, positions and statistics of a row.
        assert found.get("LDG.32", 0) + found.get("LDG.64", 0) <= 6, key
        assert found.get("STG.32", 0) <= 2, key
