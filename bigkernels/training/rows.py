"""The rows of a fine-tuning job: a built-in task or the user's files, tokenised."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from .arguments import DataArguments
from .data import load_task


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokenised splits (those that are there) and the names of the classes."""

    splits: dict[str, Dataset]
    labels: list[str]


def load_rows(
    data: DataArguments,
    training: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: str | None = None,
) -> Rows:
    """Reads and tokenises the splits that ``training`` asks for.

    Raises ValueError where a split, a file or a column is missing or unusable.
    """
    if data.task_name is not None:
        task = load_task(data.task_name, data.max_train_samples, cache_dir)
        splits = {"train": task["train"], "validation": task["test"], "test": task["test"]}
    else:
        splits = _read_files(data, cache_dir)
    wanted = {
        "train": (training.do_train, data.max_train_samples),
        "validation": (training.do_eval or training.eval_strategy != "no", data.max_eval_samples),
        "test": (training.do_predict, data.max_predict_samples),
    }
    labels = _labels(splits)
    numbers = {label: i for i, label in enumerate(labels)}
    kept = {}
    for name, (needed, limit) in wanted.items():
        if not needed:
            continue
        if name not in splits:
            raise ValueError(f"no {name} data: give --{name}_file")
        split = splits[name]
        split = split.select(range(min(limit or len(split), len(split))))
        kept[name] = _tokenized(split, tokenizer, data, numbers)
    return Rows(kept, labels)


def _read_files(data: DataArguments, cache_dir: str | None) -> dict[str, Dataset]:
    given = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    files = {name: path for name, path in given.items() if path is not None}
    kinds = {Path(path).suffix.lstrip(".") for path in files.values()}
    if len(kinds) != 1 or not kinds <= {"csv", "json"}:
        raise ValueError(
            f"data files must all be .csv or all .json, not: {', '.join(sorted(kinds))}"
        )
    for path in files.values():
        if not Path(path).is_file():
            raise ValueError(f"no such data file: {path}")
    return dict(load_dataset(kinds.pop(), data_files=files, cache_dir=cache_dir))


def _labels(splits: dict[str, Dataset]) -> list[str]:
    split = splits.get("train", splits.get("validation"))
    if split is None or "label" not in split.column_names:
        raise ValueError("the data need a train or validation file with a column named label")
    feature = split.features["label"]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    found = sorted(split.unique("label"))
    if any(isinstance(label, float) for label in found):
        raise ValueError("label holds fractions: only classification is supported")
    return [str(label) for label in found]


def _tokenized(
    split: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    data: DataArguments,
    numbers: dict[str, int],
) -> Dataset:
    texts = [name for name in split.column_names if name not in ("label", "idx", "id")][:2]
    labelled = "label" in split.column_names
    named = labelled and not isinstance(split.features["label"], ClassLabel)
    length = min(data.max_seq_length, tokenizer.model_max_length)
    padding = "max_length" if data.pad_to_max_length else False

    def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
        columns = [batch[name] for name in texts]
        encoded = dict(tokenizer(*columns, padding=padding, max_length=length, truncation=True))
        if labelled:
            label = batch["label"]
            encoded["labels"] = [numbers[str(name)] for name in label] if named else label
        return encoded

    return split.map(
        encode, batched=True, remove_columns=split.column_names, load_from_cache_file=False
    )
