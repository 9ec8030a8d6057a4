"""A BERT small enough for unit tests, its tokenizer, and a learnable task, written to a folder."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

WORDS = ["good", "great", "fine", "bad", "awful", "poor", "film", "plot", "very", "the", "a", "is"]


def write_model(folder: Path) -> Path:
    """BERT with 2 layers of 32 and a 17-word tokenizer, as a folder transformers can load."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(vocabulary), model_max_length=64).save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, seed: int) -> Path:
    """Sentences of 3 to 12 words with one opinion word each; label pos or neg follows that word."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "label"])
        for _ in range(count):
            positive = draw.random() < 0.5
            words = draw.choices(WORDS[6:], k=draw.randint(2, 11))
            words.insert(
                draw.randrange(len(words)), draw.choice(WORDS[0:3] if positive else WORDS[3:6])
            )
            writer.writerow([" ".join(words), "pos" if positive else "neg"])
    return path
