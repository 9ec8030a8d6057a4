"""The command line: doctor, verify, bench, warmup, finetune, demo; tables, JSON and errors."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bigkernels
import bigkernels.cli
from bigkernels import library
from bigkernels.cli import doctor, machine, main
from bigkernels.cli.tables import plain_table

ROWS = [["tokens/s", "900", "2.09x"], ["[bold]error[/]", "1.5e-06", ""]]


def test_plain_tables_align_numbers_to_the_right() -> None:
    lines = plain_table("Speed", ["what", "value", "ratio"], ROWS).splitlines()
    assert lines == [
        "Speed",
        "what              value  ratio",
        "tokens/s            900  2.09x",
        "[bold]error[/]  1.5e-06",
    ]


def test_a_pipe_gets_plain_text_and_a_terminal_a_rich_table() -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    script = (
        f"from bigkernels.cli.tables import print_table; print_table('T', ['a', 'b', 'c'], {ROWS})"
    )
    command = [sys.executable, "-c", script]
    piped = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert piped == plain_table("T", ["a", "b", "c"], ROWS) + "\n\n"
    parent, child = pty.openpty()
    subprocess.run(command, stdout=child, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(child)
    shown = os.read(parent, 10000).decode()
    os.close(parent)
    assert "┃" in shown
    assert "[bold]error[/]" in shown


def test_doctor_reports_every_operation_on_both_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bigkernels"] == bigkernels.__version__
    assert report["versions"]["torch"]
    assert set(report["operations"]) == {
        "attention", "varlen_attn", "layer_norm", "add_layer_norm", "ffn",
    }  # fmt: skip
    for devices in report["operations"].values():
        assert set(devices) == {"cpu", "cuda"}
        for answer in devices.values():
            assert answer["backend"] in ("cuda", "triton", "cpu", "reference")
            assert all(answer["why_not"].values())
    explained = bigkernels.explain("layer_norm", *doctor._samples()["layer_norm"])
    assert report["operations"]["layer_norm"]["cpu"]["backend"] == explained.chosen
    assert (report["extension_error"] is None) == (report["isa"] is not None)
    if report["isa"] is not None:
        assert report["isa"] in ("scalar", "avx2", "avx512", "amx")


# Linux refuses the tile registers to a process with a signal stack too small to save them on.
REFUSED = """
import ctypes, json, sys
class Stack(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
room = ctypes.create_string_buffer(8192)
small = Stack(ctypes.addressof(room), 0, 8192)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(small), None) == 0
from bigkernels.cli import main
sys.exit(main(["doctor", "--json"]))
"""


def test_without_permission_for_amx_the_kernels_fall_back_and_doctor_says_so() -> None:
    if machine.processor()["amx"] != "permitted":
        pytest.skip("the AMX tile registers are not to be had on this machine")
    command = [sys.executable, "-c", REFUSED]
    environment = {**os.environ, "BIGKERNELS_ISA": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    report = json.loads(done.stdout)
    assert report["cpu"]["amx"].startswith("refused by the kernel")
    assert report["isa"] in ("avx512", None)


def test_doctor_prints_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "Versions",
        "Machine",
        "Build",
        "Operations",
        "kernels use",
        "why not a faster one",
    ):
        assert word in shown


def test_doctor_says_what_a_pure_install_lacks() -> None:
    script = """
import pathlib, sys
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self: self.name != "_C.so" and exists(self)
from bigkernels.cli import doctor, machine, main
missing = {"_C.so": "no C++ compiler was found"}
doctor.build_info = lambda _: {"built": [], "not_built": missing}
main(["doctor"])
sys.exit(main(["doctor", "--json"]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown, _, text = done.stdout.partition("\n{")
    assert "nothing: pure Python install" in shown
    assert "no C++ compiler was found" in shown
    report = json.loads("{" + text)
    assert report["isa"] is None
    assert report["extension_error"].startswith("the C++ extension is not built")
    for devices in report["operations"].values():
        assert devices["cpu"]["backend"] == "reference"
        assert devices["cpu"]["why_not"]["cpu"] == [report["extension_error"]]


def test_doctor_needs_nothing_but_torch() -> None:
    script = """
import importlib.machinery, sys
absent = ("transformers", "datasets", "rich", "triton", "accelerate")
find_spec = importlib.machinery.PathFinder.find_spec
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else find_spec(name, path, target)
at = sys.meta_path.index(importlib.machinery.PathFinder)
sys.meta_path[at] = Finder
from bigkernels.cli import main
sys.exit(main(["doctor"]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Operations" in done.stdout


def test_a_forced_instruction_set_shows_in_doctor() -> None:
    if library.extension_error is not None:
        pytest.skip(library.extension_error)
    command = [sys.executable, "-m", "bigkernels", "doctor", "--json"]
    for forced, expected in (
        ("scalar", "scalar"),
        ("sse9", "error: BIGKERNELS_ISA=sse9: this machine"),
    ):
        environment = {**os.environ, "BIGKERNELS_ISA": forced}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        report = json.loads(done.stdout)
        assert report["isa"].startswith(expected)
        assert report["environment"]["BIGKERNELS_ISA"] == forced


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="needs transformers")
    import tiny

    return tiny.write_model(tmp_path_factory.mktemp("model"))


def test_verify_passes_on_a_model_that_is_right(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["verify", str(model), "--json", "--text", "good film", "--text", "a bad plot"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert found["path"] == ["packed"]
    names = [check["name"] for check in found["checks"]]
    assert names[0] == "end to end: last_hidden_state"
    assert "encoder.layer.1" in names
    assert main(["verify", str(model)]) == 0
    assert "verify: passed" in capsys.readouterr().out


def test_verify_fails_on_a_model_that_is_wrong(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bigkernels.integrations import whole

    right = whole.Encoder.run
    # The native call of all layers adds a little to its result.
    monkeypatch.setattr(whole.Encoder, "run", lambda *given: right(*given) + 1e-3)
    assert main(["verify", str(model)]) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify /nowhere", "bench --quick --mine /nowhere"])
def test_a_model_that_is_not_there_is_one_line(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    assert main(command.split()) == 1
    assert capsys.readouterr().err == f"bigkernels {command.split()[0]}: no such folder: /nowhere\n"


def test_json_has_no_nan_and_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {"nan": float("nan"), "list": [float("inf"), 1.5, (2.5, float("-inf"))], "text": "NaN"}
    bigkernels.cli.print_json(parts)
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found == {"nan": None, "list": [None, 1.5, [2.5, None]], "text": "NaN"}


def test_verify_does_not_judge_weights_that_are_no_numbers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import transformers

    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path)
    spoiled = transformers.AutoModel.from_pretrained(model)
    torch.nn.init.constant_(spoiled.pooler.dense.bias, float("nan"))
    spoiled.save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["verify", str(tmp_path), "--json"]) == 1
    shown = capsys.readouterr()
    assert not shown.out
    assert "pooler.dense.bias holds NaN or infinity" in shown.err


@pytest.mark.parametrize("family", ["roberta", "gpt2"])
def test_verify_takes_tokenizers_without_padding_or_limit(
    family: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    if family == "roberta":  # position 0 and 1 are never used
        config: Any = transformers.RobertaConfig(**sizes, max_position_embeddings=20)
    else:
        config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_head=2, n_layer=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.model_max_length = 10**30
    if family == "gpt2":
        tokenizer.eos_token, tokenizer.pad_token = tokenizer.sep_token, None
    tokenizer.save_pretrained(tmp_path)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    main(["verify", str(tmp_path), "--text", "good " * 40, "--text", "bad"])
    assert "verify: passed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("bench --threads x", "argument --threads: 'x' is not a whole number of at least 1"),
        ("bench --rounds 0", "argument --rounds: '0' is not a whole number of at least 1"),
        ("bench --bogus", "unrecognized arguments: --bogus"),
    ],
)
def test_a_wrong_flag_is_told_by_its_command(
    flags: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(flags.split())
    shown = capsys.readouterr().err
    assert stopped.value.code == 2
    assert shown.startswith("usage: bigkernels bench ")
    assert shown.endswith(f"bigkernels bench: error: {told}\n")


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"bigkernels {bigkernels.__version__}\n"


def test_a_run_without_flags_writes_where_git_does_not_look() -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    from bigkernels.training.arguments import parse

    assert [parse(flags)[2].output_dir for flags in ([], ["--train_file", "a.csv"])] == [
        "runs/movie-polarity",
        "runs/finetune",
    ]
    ignored = (Path(__file__).parents[1] / ".gitignore").read_text().splitlines()
    assert "/runs/" in ignored


def test_bench_of_a_users_model_runs_the_harness_and_ends_in_three_lines(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bigkernels.bench import encoders
    from bigkernels.cli import mine

    texts = [" ".join(["good", "film"] * (1 + i % 7)) for i in range(2000)]
    monkeypatch.setattr(mine, "raw_texts", lambda: texts)
    monkeypatch.setattr(encoders, "raw_texts", lambda: texts)
    flags = ["bench", "--quick", "--rounds", "2", "--mine", str(model), "--batch-size", "8"]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    speed_up, difference, code = capsys.readouterr().out.splitlines()[-3:]
    assert re.fullmatch(
        r"speed-up: \S+x \(snippets 8x\d+\), \S+x \(sorted 8x\d+\), \S+x \(dense 1x16\)", speed_up
    )
    assert difference.startswith("largest difference from stock: ")
    assert difference.endswith("(verified)")
    assert code == "import bigkernels; bigkernels.accelerate(model)"
    found = json.loads((tmp_path / "mine.json").read_text())
    assert found["verification"]["passed"]
    assert {row["peer"] for row in found["rows"]} == {"HF sdpa", "bigkernels"}
    assert all(row["speed_up"] > 0 and row["error_ratio"] > 0 for row in found["rows"])


def test_finetune_compares_and_prints_one_json_object(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import tiny

    train, test = tiny.write_rows(tmp_path / "train.csv", 64, 0), tmp_path / "test.csv"
    tiny.write_rows(test, 40, 1)
    flags = ["finetune", "--model_name_or_path", str(model), "--train_file", str(train)]
    flags += ["--validation_file", str(test), "--cache_dir", str(tmp_path / "cache")]
    flags += ["--output_dir", str(tmp_path / "out"), "--max_steps", "16", "--logging_steps", "4"]
    flags += [
        "--save_strategy",
        "no",
        "--learning_rate",
        "1e-3",
        "--use_cpu",
        "--report_to",
        "none",
    ]
    assert main([*flags, "--compare", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [run["kernels"] for run in result["runs"]] == ["torch", "bigkernels"]
    assert set(result["comparison"]) == {"training_speed_up", "accuracy_points", "loss_difference"}
    first = [run["losses"]["4"] for run in result["runs"]]
    assert abs(first[0] - first[1]) < 0.2  # other dropout masks, the same task
    for kernels in ("torch", "bigkernels"):
        folder = tmp_path / "out" / kernels
        assert (folder / "model.safetensors").is_file()
        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["BertForSequenceClassification"]
    assert main([*flags, "--kernels", "torch", "--overwrite_output_dir"]) == 0
    shown = capsys.readouterr().out
    assert "torch (stock)" in shown
    assert "trained samples/s" in shown


def test_finetune_errors_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["finetune", "--model_name_or_path", str(model), "--output_dir", str(tmp_path)]
    assert main([*flags, "--train_file", str(tmp_path / "no.csv")]) == 1
    assert capsys.readouterr().err.endswith(f"no such data file: {tmp_path / 'no.csv'}\n")
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--task_name", "cola"])
    assert stopped.value.code == 2
    assert "'cola' is not one of: movie-polarity" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*flags, "--kernels", "cudnn"])
    assert "--kernels" in capsys.readouterr().err


def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("verify", "encoders"):
        monkeypatch.delitem(sys.modules, f"bigkernels.cli.{name}", raising=False)
        monkeypatch.delattr(bigkernels.cli, name, raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["verify", "somewhere"]) == 1
    expected = 'bigkernels verify: needs transformers: pip install "bigkernels[hf]"\n'
    assert capsys.readouterr().err == expected
