"""Every Python snippet of the README runs, and the page stays short."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

from bigkernels.bench import report

README = pathlib.Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


def test_short():
    before, written = README.read_text().split(report.BEGIN)
    _, after = written.split(report.END)  # what the benchmark wrote is as long as it has to be
    assert len(f"{before}{after}".splitlines()) <= 120


def test_there_are_snippets():
    assert len(SNIPPETS) >= 3


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs(index, tmp_path):
    source = SNIPPETS[index]
    if "transformers" in source:
        transformers = pytest.importorskip("transformers")
        vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", "no"]
        (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
        transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
        config = transformers.BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
        )
        transformers.BertModel(config).save_pretrained(tmp_path)
    exec(compile(source, f"README snippet {index}", "exec"), {"MODEL": str(tmp_path)})


@pytest.mark.parametrize("line", re.findall(r"^bigkernels .*$", README.read_text(), re.MULTILINE))
def test_command_exists(line):
    command = line.split()[1]
    run = [sys.executable, "-m", "bigkernels", command, "--help"]
    shown = subprocess.run(run, capture_output=True, text=True, timeout=120, check=False)
    assert shown.returncode == 0, shown.stderr
    for flag in re.findall(r"--\w+", line):
        assert flag in shown.stdout, flag
