"""Flags of ``bigkernels finetune``: run_glue's names, TrainingArguments, and what kernels add."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import sys
from typing import Any, Literal

import torch
from transformers import HfArgumentParser, TrainingArguments

from .data import TASKS

# Measured on the real MiniLM-L6: 3,000 sentences, 2 epochs. The rate was chosen by three-fold cross
# validation inside those 3,000, not on the test rows. Every value is a default only.
RECIPES: dict[str, dict[str, Any]] = {
    "movie-polarity": {
        "max_train_samples": 3000,
        "max_seq_length": 64,
        "freeze_embeddings": True,
        "learning_rate": 6e-5,
        "head_learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "num_train_epochs": 2.0,
        "weight_decay": 0.01,
        "label_smoothing_factor": 0.1,
        "warmup_steps": 0.1,  # below 1: a share of all steps
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 10,
    }
}


@dataclasses.dataclass
class ModelArguments:
    """Which model, and which kernels run it."""

    model_name_or_path: str | None = dataclasses.field(
        default=None, metadata={"help": "Folder or hub name; default: the real all-MiniLM-L6-v2."}
    )
    config_name: str | None = dataclasses.field(
        default=None, metadata={"help": "Configuration, if not the model's."}
    )
    tokenizer_name: str | None = dataclasses.field(
        default=None, metadata={"help": "Tokenizer, if not the model's."}
    )
    cache_dir: str | None = dataclasses.field(
        default=None, metadata={"help": "Where downloads are kept."}
    )
    use_fast_tokenizer: bool = dataclasses.field(
        default=True, metadata={"help": "Use the tokenizers library."}
    )
    ignore_mismatched_sizes: bool = dataclasses.field(
        default=False, metadata={"help": "Load a checkpoint whose head has other sizes."}
    )
    attn_implementation: str | None = dataclasses.field(
        default=None, metadata={"help": "transformers' own attention choice, e.g. eager, sdpa."}
    )
    freeze_embeddings: bool = dataclasses.field(
        default=False, metadata={"help": "Train everything but the embeddings."}
    )
    head_learning_rate: float | None = dataclasses.field(
        default=None, metadata={"help": "Rate of pooler and classifier; default: --learning_rate."}
    )
    kernels: Literal["auto", "torch", "bigkernels"] = dataclasses.field(
        default="auto",
        metadata={
            "help": "torch: the stock model; bigkernels: accelerated, an error if nothing can be; "
            "auto: accelerated where possible."
        },
    )
    compare: bool = dataclasses.field(
        default=False, metadata={"help": "Run stock, then accelerated, and print both."}
    )
    json: bool = dataclasses.field(
        default=False, metadata={"help": "Print one JSON object on stdout, all else on stderr."}
    )


@dataclasses.dataclass
class DataArguments:
    """What to train and test on: a built-in task or CSV/JSON files."""

    task_name: str | None = dataclasses.field(
        default=None, metadata={"help": f"One of: {', '.join(TASKS)} (default without files)."}
    )
    train_file: str | None = dataclasses.field(
        default=None, metadata={"help": "CSV or JSON lines: one or two text columns and label."}
    )
    validation_file: str | None = dataclasses.field(default=None, metadata={"help": "Same form."})
    test_file: str | None = dataclasses.field(
        default=None, metadata={"help": "Same form; label may be missing."}
    )
    max_seq_length: int = dataclasses.field(
        default=128, metadata={"help": "Longer texts are cut to this many tokens."}
    )
    pad_to_max_length: bool = dataclasses.field(
        default=False, metadata={"help": "Pad to max_seq_length, not to the batch's longest."}
    )
    max_train_samples: int | None = dataclasses.field(
        default=None, metadata={"help": "movie-polarity is tested on all rows not trained on."}
    )
    max_eval_samples: int | None = dataclasses.field(
        default=None, metadata={"help": "Test on the first rows only."}
    )
    max_predict_samples: int | None = dataclasses.field(
        default=None, metadata={"help": "Predict the first rows only."}
    )
    overwrite_output_dir: bool = dataclasses.field(
        default=False, metadata={"help": "Start afresh: delete the checkpoints in output_dir."}
    )


def parse(argv: list[str]) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Reads the command line. A built-in task's recipe gives the defaults; every flag overrides it.

    Exits with argparse's one-line error (status 2) on an unknown flag or value.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--task_name", "--train_file"):
        first.add_argument(flag)
    known, _ = first.parse_known_args(argv)
    task = known.task_name or (None if known.train_file else TASKS[0])

    kinds: Any = (ModelArguments, DataArguments, TrainingArguments)
    parser = HfArgumentParser(kinds, prog="bigkernels finetune")
    parser.set_defaults(task_name=task, **RECIPES.get(task or "", {}))
    parser.set_defaults(output_dir=f"runs/{task or 'finetune'}")
    parser.set_defaults(dataloader_pin_memory=torch.cuda.is_available())
    parser.set_defaults(disable_tqdm=not sys.stderr.isatty())
    if importlib.util.find_spec("tensorboard") is not None:
        parser.set_defaults(report_to=["tensorboard"])
    if task is not None and task not in TASKS:
        parser.error(f"argument --task_name: {task!r} is not one of: {', '.join(TASKS)}")
    if task is not None and known.train_file:
        parser.error("argument --train_file: give either --task_name or files, not both")
    model, data, training = parser.parse_args_into_dataclasses(args=argv)
    if not (training.do_train or training.do_eval or training.do_predict):
        training.do_train = training.do_eval = True
    return model, data, training
