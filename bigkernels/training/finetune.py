"""Fine-tuning on ``transformers.Trainer``, with stock or accelerated kernels.

Files are run_glue's: checkpoints, ``model.safetensors``, ``train_results.json``,
``eval_results.json``, ``all_results.json``, ``trainer_state.json``, TensorBoard under ``runs/``.
The same call again continues from the last complete checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from .arguments import DataArguments, ModelArguments
from .checkpoints import AtomicTrainer, complete_checkpoints, discard_checkpoints, remove_partial
from .data import minilm_path
from .rows import Rows, load_rows


def finetune(
    model_arguments: ModelArguments, data: DataArguments, training: TrainingArguments
) -> dict[str, Any]:
    """Fine-tunes and tests one model; returns its metrics, losses and what was accelerated.

    Raises DataError if an artifact is missing, ValueError if the arguments do not fit the data
    or ``kernels="bigkernels"`` finds nothing to accelerate.
    """
    set_seed(training.seed)
    tokenizer = _tokenizer(model_arguments)
    rows = load_rows(data, training, tokenizer, model_arguments.cache_dir)
    model = _model(model_arguments, rows.labels)
    model.to(device=training.device)  # type: ignore[call-arg]
    if model_arguments.freeze_embeddings:
        freeze_embeddings(model)
    used, report = accelerate(model, model_arguments.kernels)
    trainer = AtomicTrainer(
        model=model,
        args=training,
        train_dataset=rows.splits.get("train"),
        eval_dataset=rows.splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=_metrics,
        head_learning_rate=model_arguments.head_learning_rate,
    )
    result: dict[str, Any] = {"kernels": used, "report": report}
    if training.do_train:
        result["resumed_from"] = _resume_point(data, training)
        done = trainer.train(resume_from_checkpoint=result["resumed_from"])
        trainer.save_model()
        trainer.log_metrics("train", done.metrics)
        trainer.save_metrics("train", done.metrics)
        trainer.save_state()
        result["train"] = done.metrics
    if training.do_eval:
        result["eval"] = trainer.evaluate()
        trainer.log_metrics("eval", result["eval"])
        trainer.save_metrics("eval", result["eval"])
    if training.do_predict:
        _predict(trainer, rows, Path(training.output_dir or ""))
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    result["losses"] = {str(entry["step"]): float(entry["loss"]) for entry in logged}
    return result


def accelerate(model: PreTrainedModel, kernels: str) -> tuple[str, str | None]:
    """Accelerates the model in place as ``kernels`` says; returns the kernels used and the report.

    Raises ValueError for "bigkernels" when no block of the model can be accelerated.
    """
    if kernels == "torch":
        return "torch", None
    import bigkernels

    report = bigkernels.accelerate(model).report()
    if report.swapped:
        return "bigkernels", str(report)
    if kernels == "bigkernels":
        raise ValueError(f"--kernels bigkernels: {report.advice or report}")
    return "torch", str(report)


def _metrics(prediction: EvalPrediction) -> dict[str, float]:
    return classification_metrics(_logits(prediction.predictions), np.asarray(prediction.label_ids))


def _logits(predictions: Any) -> np.ndarray:
    # Models that return more than logits hand them over in a tuple.
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def freeze_embeddings(model: PreTrainedModel) -> None:
    """Stops gradients to every parameter of the backbone's embedding block."""
    block = getattr(model.base_model, "embeddings", None) or model.get_input_embeddings()
    for parameter in block.parameters():
        parameter.requires_grad_(False)


def classification_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of (rows, classes) logits against (rows,) labels.

    Two classes: of class 1. More: the mean over the classes (macro). Undefined ratios count as 0.
    """
    guesses, classes = logits.argmax(axis=-1), logits.shape[-1]
    per_class = []
    for wanted in [1] if classes == 2 else range(classes):
        hits = float(np.sum((guesses == wanted) & (labels == wanted)))
        precision = hits / max(float(np.sum(guesses == wanted)), 1.0)
        recall = hits / max(float(np.sum(labels == wanted)), 1.0)
        f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
        per_class.append((precision, recall, f1))
    precision, recall, f1 = (float(v) for v in np.mean(per_class, axis=0))
    accuracy = float(np.mean(guesses == labels))
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def _tokenizer(model_arguments: ModelArguments) -> PreTrainedTokenizerBase:
    name = model_arguments.tokenizer_name or _model_name(model_arguments)
    return AutoTokenizer.from_pretrained(
        name, cache_dir=model_arguments.cache_dir, use_fast=model_arguments.use_fast_tokenizer
    )


def _model_name(model_arguments: ModelArguments) -> str:
    return model_arguments.model_name_or_path or str(minilm_path(model_arguments.cache_dir))


def _model(model_arguments: ModelArguments, labels: list[str]) -> PreTrainedModel:
    name = _model_name(model_arguments)
    config = AutoConfig.from_pretrained(
        model_arguments.config_name or name,
        cache_dir=model_arguments.cache_dir,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        name,
        config=config,
        cache_dir=model_arguments.cache_dir,
        ignore_mismatched_sizes=model_arguments.ignore_mismatched_sizes,
        attn_implementation=model_arguments.attn_implementation,
    )
    return model


def _resume_point(data: DataArguments, training: TrainingArguments) -> str | None:
    """The checkpoint to continue from: the one asked for, else the newest complete one."""
    folder = Path(training.output_dir or "")
    remove_partial(folder)
    checkpoints = complete_checkpoints(folder)
    if training.resume_from_checkpoint is not None:
        asked = Path(training.resume_from_checkpoint)
        if asked.name and asked not in complete_checkpoints(asked.parent):
            raise ValueError(f"--resume_from_checkpoint {asked}: not a complete checkpoint")
        return str(asked)
    if data.overwrite_output_dir:
        discard_checkpoints(folder)
        return None
    if not checkpoints:
        return None
    print(
        f"continuing from {checkpoints[-1]} (--overwrite_output_dir starts afresh)", file=sys.stderr
    )
    return str(checkpoints[-1])


def _predict(trainer: AtomicTrainer, rows: Rows, folder: Path) -> None:
    test = rows.splits["test"]
    test = test.remove_columns([name for name in test.column_names if name == "labels"])
    guesses = _logits(trainer.predict(test, metric_key_prefix="predict").predictions).argmax(-1)
    lines = ["index\tprediction"]
    lines += [f"{index}\t{rows.labels[int(guess)]}" for index, guess in enumerate(guesses)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predict_results.txt").write_text("\n".join(lines) + "\n")
