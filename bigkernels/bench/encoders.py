"""The encoders that are timed, and the batches they get: folders and arrays that every peer reads.

Nothing here keeps torch loaded in a process that does not need it.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bigkernels.training.data import cache_folder, minilm_path, raw_texts

Array = np.ndarray[Any, np.dtype[Any]]
BERTS = ("minilm", "bert-base")
NAMES = (*BERTS, "vit-base", "gpt2")  # all but minilm of that shape with random weights
VIT_LENGTH = 197
_BERT_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 1024,
    "position_embedding_type": "absolute",  # which transformers no longer writes and CTranslate2 reads
}


@dataclasses.dataclass(frozen=True)
class Batch:
    """ids, mask: (B, L) int64, 1 = a real token, right-padded. texts: what they came from, if from
    whole sentences."""

    ids: Array
    mask: Array
    texts: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Real tokens."""
        return int(self.mask.sum())

    def save(self, file: Path) -> None:
        """Writes it for the peers' processes."""
        np.savez(file, ids=self.ids, mask=self.mask, texts=np.array(self.texts, dtype=str))

    @staticmethod
    def load(file: Path) -> Batch:
        """What `save` wrote."""
        found = np.load(file)
        return Batch(found["ids"], found["mask"], tuple(found["texts"].tolist()))


def folder(name: str) -> Path:
    """The model's folder in transformers' format: a name of NAMES, or a path, which stays as it is.

    "minilm" is the real all-MiniLM-L6-v2; the others have random weights (speed does not depend on
    them), written into the cache at the first call.
    """
    if name == "minilm":
        return minilm_path()
    if name not in NAMES:
        return Path(name)
    suffix = "-1024" if name == "bert-base" else ""
    made = cache_folder() / "bench" / f"{name}-random{suffix}"
    if not (made / "model.safetensors").is_file():
        _write_random(name, made)
    return made


def tokenizer(name: str) -> Any:
    """The model's tokenizer; works without torch."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder(name))


def facts(name: str) -> dict[str, int]:
    """layers, heads, hidden, intermediate of the model's configuration; causal, 1 or 0."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder(name))
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 4 * width)
    causal = int(config.model_type == "gpt2")
    values = (config.num_hidden_layers, config.num_attention_heads, width, inner, causal)
    return dict(zip(("layers", "heads", "hidden", "intermediate", "causal"), values, strict=True))


def batch(name: str, size: int, length: int, kind: str) -> Batch:
    """A batch of real text.

    kind: "dense" (size x length, no padding), "ragged" (lengths drawn from a lognormal, the first
    row full, 56 % real), "snippets" (movie snippets as they come, padded to the longest; length
    only limits them), "sorted" (snippets of about one length), or "fill_0.25": rows between half
    and one and a half times a fill of 0.25. "vit-base" gets images, whose patches make the length.
    """
    if name == "vit-base":
        return Batch(np.zeros((size, VIT_LENGTH), np.int64), np.ones((size, VIT_LENGTH), np.int64))
    tokens = tokenizer(name)
    texts = raw_texts()
    if kind in ("snippets", "sorted"):
        chosen = tuple(texts[1000 : 1000 + size])
        if kind == "sorted":
            middle = (len(texts) - size) // 2
            chosen = tuple(sorted(texts, key=len)[middle : middle + size])
        made = tokens(list(chosen), padding=True, truncation=True, max_length=length)
        ids, mask = (np.array(made[key], dtype=np.int64) for key in ("input_ids", "attention_mask"))
        return Batch(ids, mask, chosen)
    lengths = _lengths(size, length, kind)
    joined = " ".join(texts[: size * length // 8 + 64])
    # Longer than any model takes, which the tokenizer would warn of.
    stream = tokens(joined, truncation=False, verbose=False)["input_ids"]
    ids = np.full((size, length), tokens.pad_token_id, dtype=np.int64)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    for row in range(size):
        ids[row] = stream[1 + row * length : 1 + (row + 1) * length]
    ids[:, 0] = tokens.cls_token_id
    ids[np.arange(size), lengths - 1] = tokens.sep_token_id
    return Batch(np.where(mask == 1, ids, tokens.pad_token_id), mask)


def _lengths(size: int, length: int, kind: str) -> Array:
    draw = np.random.default_rng(0)
    if kind == "dense":
        return np.full(size, length)
    if kind == "ragged":
        lengths = np.exp(draw.normal(math.log(0.5 * length), 0.45, size)).astype(int)
        lengths[0] = length
    else:
        fill = float(kind.removeprefix("fill_"))
        spread = min(0.5, 1 / fill - 1)
        lengths = np.linspace(fill * (1 - spread), fill * (1 + spread), size) * length
        lengths = draw.permutation(lengths.round().astype(int))
    return np.clip(lengths, 2, length)


def converted(name: str, kind: str) -> Path:
    """A folder in the cache for a peer's own form of the model; the peer fills it if it is empty."""
    key = name
    if name not in NAMES:  # a model that was trained further is another one
        path = Path(name).resolve()
        changed = max((file.stat().st_mtime_ns for file in path.glob("*")), default=0)
        key = f"{path.as_posix().strip('/').replace('/', '_')}-{changed:x}"
    return cache_folder() / "bench" / f"{key}-{kind}"


def commit(temporary: Path, target: Path) -> None:
    """Puts a finished conversion in its place; another process may have been faster."""
    try:
        os.replace(temporary, target)
    except OSError:
        shutil.rmtree(temporary)


def _write_random(name: str, made: Path) -> None:
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2Model,
        PreTrainedModel,
        ViTConfig,
        ViTModel,
    )

    torch.manual_seed(0)
    made.parent.mkdir(parents=True, exist_ok=True)
    temporary = made.with_name(f"{made.name}.{os.getpid()}")
    model: PreTrainedModel
    if name == "bert-base":
        model = BertModel(BertConfig(**_BERT_BASE), add_pooling_layer=False)
    elif name == "vit-base":
        model = ViTModel(ViTConfig(), add_pooling_layer=False)
    else:
        model = GPT2Model(GPT2Config())
    model.save_pretrained(temporary)
    if name != "vit-base":
        tokenizer("minilm").save_pretrained(temporary)
    commit(temporary, made)
