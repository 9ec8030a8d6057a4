"""Dropout shared by all rooms: Philox4x32-10 as a pure function of (seed, offset, where).

This is the definition; kernels draw the same words. Source: Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011. Counter words: attention (key // 4, i, b * H + h, offset); row operations (column // 4, i, b,
offset), with b the sample and i the position as the user passed the batch. The key is the seed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bigkernels.library import LIBRARY as LIBRARY  # defines philox_seed
from bigkernels.ops import checks

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b for 32-bit values held in int64, without overflowing 63 bits."""
    middle = (a >> 16) * b + (((a & 0xFFFF) * b) >> 16)
    return (middle >> 16) & _WORD, (a * b) & _WORD  # the low word survives int64 wrap-around


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10.

    Args:
        c0, c1, c2, c3: int64 counter words in [0, 2^32), broadcast against each other.
        seed: int64 (), the 64-bit key.

    Returns:
        Four int64 tensors of the broadcast shape, words in [0, 2^32).
    """
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _keep(words: tuple[Tensor, ...], n: int, dropout_p: float) -> Tensor:
    word = torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(-2)[..., :n]
    return word >= int(dropout_p * 2.0**32)


def _scalar(value: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=like.device) if value is None else value


def row_positions(x: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """(b, i) of each row of x (..., N) as int64 (M,): sample and position as the user passed the batch."""
    if rows is not None:
        flat = rows.reshape(-1)
        return flat >> 32 & _WORD, flat & _WORD
    length = x.shape[-2] if x.dim() > 1 else 1
    batch = x.shape[:-2].numel() if x.dim() > 2 else 1
    b = torch.arange(batch, device=x.device).repeat_interleave(length)
    return b, torch.arange(length, device=x.device).repeat(batch)


def keep_rows(
    x: Tensor, dropout_p: float, seed: Tensor | None, offset: Tensor | None, rows: Tensor | None
) -> Tensor:
    """Keep mask (bool, shape of x (..., N)) of a row operation."""
    n = x.shape[-1]
    b, i = row_positions(x, rows)
    column = torch.arange((n + 3) // 4, device=x.device)
    words = philox(
        column[None, :], i[:, None], b[:, None], _scalar(offset, x) & _WORD, _scalar(seed, x)
    )
    return _keep(words, n, dropout_p).reshape(x.shape)


def keep_scores(
    bh: Tensor, i: Tensor, keys: int, dropout_p: float, seed: Tensor | None, offset: Tensor | None
) -> Tensor:
    """Keep mask of attention scores: bh (b * H + h) and i (query position) broadcast to (...), result (..., keys)."""
    block = torch.arange((keys + 3) // 4, device=i.device)
    words = philox(block, i[..., None], bh[..., None], _scalar(offset, i) & _WORD, _scalar(seed, i))
    return _keep(words, keys, dropout_p)


def drop(x: Tensor, keep: Tensor, dropout_p: float) -> Tensor:
    """x with dropped elements zero and the others times 1 / (1 - p); all zero at p = 1."""
    scale = 0.0 if dropout_p >= 1.0 else 1.0 / (1.0 - dropout_p)
    return torch.where(keep, x * scale, torch.zeros((), dtype=x.dtype, device=x.device))


def _seed_tensor(name: str, value: int | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        checks.check_dense(name, value)
        if value.dtype != torch.int64 or value.numel() != 1:
            raise TypeError(
                f"{name}: expected one int64, got {value.dtype} of shape {tuple(value.shape)}"
            )
        if value.device != like.device:
            raise ValueError(f"{name}: device {value.device}, but the input is on {like.device}")
        return value if value.dim() == 0 else value.reshape(())  # which takes a microsecond
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an int or an int64 tensor, got {type(value).__name__}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{name}: {value} does not fit in 64 bits")
    return torch.full((), value, dtype=torch.int64, device=like.device)


def _draw(like: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        levels = torch._C._functorch.get_interpreter_stack() or ()
        if any(level.key() == torch._C._functorch.TransformType.Vmap for level in levels):
            # torch's own draw obeys vmap's randomness: an error, one seed, or one for every sample.
            return torch.randint(2**63 - 1, (), device=like.device)
    return torch.ops.bigkernels.philox_seed(like)  # type: ignore[no-any-return]


def seeds(
    seed: int | Tensor | None, offset: int | Tensor | None, like: Tensor, dropout_p: float
) -> tuple[Tensor | None, Tensor | None]:
    """(seed, offset) as int64 () tensors; both None without dropout. No seed: one from the default generator.

    Raises:
        TypeError, ValueError: neither an int nor an int64 tensor of one element on like's device.
    """
    seed_ = None if seed is None else _seed_tensor("seed", seed, like)
    offset_ = None if offset is None else _seed_tensor("offset", offset, like)
    if dropout_p <= 0.0:
        return None, None
    if seed_ is None:
        seed_ = _draw(like)
    return seed_, offset_
