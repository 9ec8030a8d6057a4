"""Loading a text encoder and making batches of it, for the commands that run one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from . import CommandError, first_line

# Of very different lengths, so that a batch of them is padded.
TEXTS = (
    "A film.",
    "It never quite comes together, but the two leads are a pleasure to watch.",
    "Slow.",
    "The plot is thin, the jokes are old, and yet by the end the whole theatre was laughing with "
    "it, mostly because nobody on screen seems to be pretending that any of this is new.",
    "An honest, modest and rather beautiful piece of work.",
)


class Encoder(NamedTuple):
    """A model in evaluation mode, float32, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(path: str) -> Encoder:
    """Loads a transformers text encoder; raises CommandError where there is none."""
    if path.startswith(("/", ".")) and not os.path.isdir(path):
        raise CommandError(f"no such folder: {path}")
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            model: PreTrainedModel = AutoModel.from_pretrained(path, dtype=torch.float32)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = first_line(error)
            raise CommandError(f"cannot load a text encoder from {path}: {reason}") from error
    if torch.cuda.is_available():
        model.to(device="cuda")  # type: ignore[call-arg]
    model.eval()  # type: ignore[no-untyped-call]
    return Encoder(model, tokenizer)


def encode(encoder: Encoder, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """One padded batch: input_ids, attention_mask, ... (B, L) on the model's device."""
    tokenizer = encoder.tokenizer
    if tokenizer.pad_token is None:  # any token will do: the mask hides it
        if tokenizer.eos_token is None:
            raise CommandError("the tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    limit = min(tokenizer.model_max_length, positions(encoder.model), 512)
    batch = tokenizer(
        list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
    )
    device = encoder.model.device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def positions(model: PreTrainedModel) -> int:
    """How many tokens a sample may have; RoBERTa and its like number the positions from padding_idx + 1."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - first
    return getattr(model.config, "max_position_embeddings", None) or 512


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers' warnings, progress bars and printed logs off."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
