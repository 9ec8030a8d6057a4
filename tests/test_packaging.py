"""Installs of a bare copy into a fresh environment that has torch: never another torch, kernels or the reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.full

CHECK = """
import importlib.metadata, json, pathlib, torch
import bigkernels as bk
x = torch.randn(3, 8)
folder = pathlib.Path(bk.__file__).parent
explained = bk.explain("layer_norm", x, (8,))
chosen = explained.chosen
assert torch.equal(bk.layer_norm(x, (8,)), bk.layer_norm(x, (8,), backend=chosen))
assert importlib.metadata.version("bigkernels") == bk.__version__
print(json.dumps([str(folder), chosen, str(explained), json.loads((folder / "_build_info.json").read_text())]))
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a clone holds: the files git tracks."""
    copy = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A new environment that has this one's packages, but not bigkernels."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "bigkernels" in entry.name or entry.name.startswith(("pip", "setuptools"))
        if not ours and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return python


def install(
    python: Path, *arguments: str | Path, **environment: str
) -> tuple[Path, str, str, dict[str, Any]]:
    """pip install; (folder, backend for layer_norm, why not the others, build info) of what it installed."""
    plain = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")
    } | environment
    pip = [python, "-m", "pip", "install", "-v", *arguments]
    done = subprocess.run(pip, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    fetched = [
        line for line in done.stdout.splitlines() if line.strip().startswith("Collecting torch")
    ]
    assert fetched == []
    check = [python, "-c", CHECK]
    shown = subprocess.run(check, cwd="/", env=plain, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    folder, chosen, explained, info = json.loads(shown.stdout)
    return Path(folder), chosen, explained, info


def test_install_builds_against_the_torch_that_is_there(source: Path, python: Path) -> None:
    folder, chosen, _, info = install(python, source)
    assert folder.is_relative_to(python.parent.parent)
    if shutil.which("g++"):
        assert chosen == "cpu", info
    assert not (source / "bigkernels" / "_C.so").exists()


def test_editable_install_builds_in_place(source: Path, python: Path) -> None:
    folder, chosen, _, info = install(python, "-e", source, BIGKERNELS_CUDA="0")
    assert folder == source / "bigkernels"
    if shutil.which("g++"):
        assert chosen == "cpu", info
        assert info["not_built"]["libbigkernels_cuda.so"] == "BIGKERNELS_CUDA=0"


def test_install_without_a_compiler_is_pure_and_says_why(source: Path, python: Path) -> None:
    _, chosen, explained, info = install(python, source, CXX="no-such-compiler")
    assert chosen == "reference"
    assert info["built"] == []
    why = "no C++ compiler: no-such-compiler is not on the PATH"
    assert set(info["not_built"].values()) == {why}
    assert f"not cpu: the C++ extension is not built: {why}" in explained
