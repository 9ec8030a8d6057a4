"""What users pass, checked and brought into the one form the drawers take."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigkernels.ops import checks, triton_launch
from bigkernels.ops.attention import contract, triton_config
from bigkernels.ops.attention.contract import Facts

_ALIGNMENTS = ("top_left", "bottom_right")


class Call(NamedTuple):
    """One checked call; the order of the fields is the schema's, without seed and offset."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None  # 4-D, each size 1 or full
    key_lengths: Tensor | None
    cu_seq_q: Tensor | None
    cu_seq_k: Tensor | None
    max_q: int
    max_k: int
    scale: float
    causal: int
    window_left: int
    window_right: int
    softcap: float
    alibi_slopes: Tensor | None
    sinks: Tensor | None
    dropout_p: float
    rows: Tensor | None


def one_pass(facts: Facts) -> bool:
    """Whether Triton's backward of such a call may add up the gradient of query in no fixed order."""
    if triton_launch.deterministic():
        return False
    architecture = triton_launch.architecture(torch.device(facts.device))
    dim = triton_config.padded(max(facts.head_dim, facts.head_dim_v))
    once = triton_config.once(architecture, facts.dtype.itemsize * 8, dim, triton_config.PLAIN)
    return once is not None


def notes(facts: Facts, chosen: str) -> tuple[str, ...]:
    """Remarks for ``explain``."""
    if chosen == "reference":
        return ("builds the whole score matrix",)
    # Of fake tensors it is not known which GPU they are on.
    here = facts.device != "cuda" or torch.cuda.is_available()
    if chosen != "triton" or not facts.needs_grad or not here or not one_pass(facts):
        return ()
    how = "unless torch.use_deterministic_algorithms(True) asks for one"
    return (f"one pass over the scores adds up the gradient of query in no fixed order, {how}",)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    # What torch's autocast casts; what is no tensor, or no floating point, is told by the checks that follow.
    castable = isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.float64
    return x.to(dtype) if castable else x


def _autocast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    checks.check_float_tensor("query", query)
    dtype = checks.autocast_dtype(query.device.type)
    if dtype is None:
        return query, key, value, mask
    if isinstance(mask, Tensor) and mask.dtype in (torch.bfloat16, torch.float16):
        mask = mask.to(dtype)  # float32 masks stay: the kernels add them unrounded
    return _cast(query, dtype), _cast(key, dtype), _cast(value, dtype), mask


def _check_kv(query: Tensor, key: Tensor, value: Tensor) -> None:
    dtype, device = query.dtype, query.device
    for name, x in (("key", key), ("value", value)):
        # What check_like says, tested here first: this is on the way of every small call.
        if (
            type(x) is not Tensor
            or x.dtype != dtype
            or x.device != device
            or x.layout != torch.strided
            or x.is_nested
        ):
            checks.check_like(name, x, "query", query)


def _check_sizes(
    q: Tensor, k: Tensor, v: Tensor, heads_dim: int, length_dim: int, gqa: bool
) -> None:
    qs, ks, vs = q.shape, k.shape, v.shape
    if qs[-1] != ks[-1] or qs[-1] == 0:
        raise ValueError(
            f"key: shape {tuple(ks)}, expected the last dimension of query {tuple(qs)}, at least 1"
        )
    if vs[-1] == 0:
        raise ValueError(f"value: shape {tuple(vs)}, expected a last dimension of at least 1")
    if ks[length_dim] != vs[length_dim]:
        raise ValueError(f"value: shape {tuple(vs)}, expected as many positions as key {tuple(ks)}")
    heads, kv = qs[heads_dim], ks[heads_dim]
    if heads == 0:
        raise ValueError(f"query: shape {tuple(qs)} has no heads")
    if kv != vs[heads_dim]:
        raise ValueError(f"value: shape {tuple(vs)}, expected as many heads as key {tuple(ks)}")
    if heads != kv and not (gqa and kv > 0 and heads % kv == 0):
        hint = "a divisor of" if gqa else "enable_gqa=True or"
        raise ValueError(f"key: {kv} heads, expected {hint} query's {heads}")


def _scale(scale: float | None, head_dim: int) -> float:
    if scale is None:
        return float(head_dim**-0.5)
    checks.check_number("scale", scale)
    return float(scale)


def _window(name: str, window: object) -> tuple[int, int]:
    pair = (window, window) if isinstance(window, int) else window
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or any(isinstance(w, bool) or not isinstance(w, (int, torch.SymInt)) for w in pair)
    ):
        raise TypeError(f"{name}: expected (left, right) integers, got {window!r}")
    if min(pair) < -1 or max(pair) >= 2**63:
        raise ValueError(f"{name}: got {tuple(pair)}, expected -1 (unbounded) or more, below 2^63")
    return pair[0], pair[1]


def _mask_4d(mask: Tensor, q: Tensor, keys: int, leading: torch.Size | None) -> Tensor:
    checks.check_like("attn_mask", mask, "query", q, torch.bool, torch.float32)
    full = (*(leading if leading is not None else q.shape[:2]), q.shape[-2], keys)
    if mask.dim() > len(full) or any(
        m not in (1, f) for m, f in zip(reversed(mask.shape), reversed(full), strict=False)
    ):
        raise ValueError(f"attn_mask: shape {tuple(mask.shape)} does not broadcast to {full}")
    if mask.dim() > 4:
        return mask.expand(full).reshape(-1, *full[-3:])
    if leading is not None and mask.dim() == 4 and len(full) > 4 and mask.shape[0] != 1:
        return mask.expand(full).reshape(-1, *full[-3:])
    return mask[(None,) * (4 - mask.dim())] if mask.dim() < 4 else mask


def readable(x: Tensor) -> bool:
    """Whether x's values can be read now at no cost: on the CPU, real, not being compiled or traced."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and not checks.recorded()
        and not checks.through_reference()
    )


def unread(values: Tensor | None) -> bool:
    """Whether the checks of a call look at no element of a tensor of lengths."""
    return values is None or (isinstance(values, Tensor) and not values.is_cpu)


def _check_lengths(name: str, lengths: object, q: Tensor, shape: tuple[int, ...]) -> None:
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        kind = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{name}: expected an int32 or int64 tensor, got {kind}")
    checks.check_dense(name, lengths)
    if tuple(lengths.shape) != shape:
        raise ValueError(f"{name}: shape {tuple(lengths.shape)}, expected {shape}")
    if lengths.device != q.device:
        raise ValueError(f"{name}: device {lengths.device}, but query is on {q.device}")


def _check_cu_seq(
    name: str, cu: Tensor, q: Tensor, batch: int | None, total: int, packed: str
) -> None:
    size = (
        cu.shape[0]
        if isinstance(cu, Tensor) and cu.dim() == 1 and batch is None
        else (batch or 0) + 1
    )
    _check_lengths(name, cu, q, (size,))
    if size < 1:
        raise ValueError(f"{name}: shape (0,), expected (B + 1,)")
    if readable(cu):
        ends = cu.tolist()
        if ends[0] != 0 or ends[-1] > total or any(a > b for a, b in itertools.pairwise(ends)):
            raise ValueError(
                f"{name}: expected 0, then rising ends up to {packed}'s {total} tokens"
            )


def _check_extras(
    q: Tensor, heads: int, softcap: float, slopes: Tensor | None, sinks: Tensor | None
) -> None:
    if softcap != 0.0:
        checks.check_number("softcap", softcap, 0.0)
    for name, value in (("alibi_slopes", slopes), ("sinks", sinks)):
        if value is not None:
            checks.check_parameter(name, value, "query", q, (heads,))


def _to_4d(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, torch.Size | None]:
    """(B, H, L, D) views of inputs of other ranks or broadcastable batches, and query's leading dims."""
    rank = q.dim()
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.dim() != rank or rank < 2:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, expected (..., H, L, D) of one rank")
    if rank == 4 and q.shape[0] == k.shape[0] == v.shape[0]:
        return q, k, v, None
    if rank < 4:
        lift = (None,) * (4 - rank)
        return q[lift], k[lift], v[lift], q.shape[:-2]
    try:
        batch = torch.broadcast_shapes(q.shape[:-3], k.shape[:-3], v.shape[:-3])
    except RuntimeError:
        batches = [tuple(x.shape[:-3]) for x in (q, k, v)]
        raise ValueError(
            "key, value: batches {1}, {2} do not fit query's {0}".format(*batches)
        ) from None
    q, k, v = (x.expand(*batch, *x.shape[-3:]) for x in (q, k, v))
    leading = q.shape[:-2]
    return q.flatten(0, -4), k.flatten(0, -4), v.flatten(0, -4), leading


def dense_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    key_lengths: Tensor | None = None,
    window: int | tuple[int, int] | None = None,
    causal_alignment: str = "top_left",
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    rows: Tensor | None = None,
) -> tuple[Call, torch.Size | None]:
    """Checks the arguments of ``scaled_dot_product_attention``; also query's leading dims unless it is 4-D."""
    checks.check_flag("is_causal", is_causal)
    checks.check_flag("enable_gqa", enable_gqa)
    q, k, v, attn_mask = _autocast(query, key, value, attn_mask)
    _check_kv(q, k, v)
    q, k, v, leading = _to_4d(q, k, v)
    _check_sizes(q, k, v, 1, 2, enable_gqa)
    mask = None if attn_mask is None else _mask_4d(attn_mask, q, k.shape[2], leading)
    if causal_alignment not in _ALIGNMENTS:
        raise ValueError(
            f"causal_alignment: {causal_alignment!r} is not one of {', '.join(_ALIGNMENTS)}"
        )
    bottom_right = causal_alignment == "bottom_right"
    causal = (
        (contract.BOTTOM_RIGHT if is_causal else contract.OPEN_BOTTOM_RIGHT)
        if bottom_right
        else (contract.TOP_LEFT if is_causal else contract.OPEN)
    )
    left, right = (-1, -1) if window is None else _window("window", window)
    if causal == contract.OPEN_BOTTOM_RIGHT and left < 0 and right < 0 and alibi_slopes is None:
        causal = contract.OPEN  # nothing looks at the diagonal
    checks.check_number("dropout_p", dropout_p, 0.0, 1.0)
    if key_lengths is not None:
        _check_lengths("key_lengths", key_lengths, q, (q.shape[0],))
        if readable(key_lengths) and q.shape[0]:
            low, high = int(key_lengths.min()), int(key_lengths.max())
            if low < 0 or high > k.shape[2]:
                raise ValueError(
                    f"key_lengths: values in [{low}, {high}], expected [0, {k.shape[2]}]"
                )
    if rows is not None:
        checks.check_rows(rows, q, q.shape[0] * q.shape[2])
        rows = rows.reshape(-1)
    _check_extras(q, q.shape[1], softcap, alibi_slopes, sinks)
    call = Call(
        q, k, v, mask, key_lengths, None, None, -1, -1, _scale(scale, q.shape[-1]), causal, left, right,
        float(softcap), alibi_slopes, sinks, float(dropout_p), rows,
    )  # fmt: skip
    return call, leading


def packed_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    scale: float | None = None,
    window_size: Any = (-1, -1),
    enable_gqa: bool = False,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    rows: Tensor | None = None,
) -> Call:
    """Checks the arguments of ``varlen_attn``."""
    checks.check_flag("is_causal", is_causal)
    checks.check_flag("enable_gqa", enable_gqa)
    q, k, v, _ = _autocast(query, key, value, None)
    _check_kv(q, k, v)
    for name, x in (("query", q), ("key", k), ("value", v)):
        if x.dim() != 3:
            raise ValueError(f"{name}: shape {tuple(x.shape)}, expected (T, H, D)")
    _check_sizes(q, k, v, 1, 0, enable_gqa)
    _check_cu_seq("cu_seq_q", cu_seq_q, q, None, q.shape[0], "query")
    if cu_seq_k is not cu_seq_q or k.shape[0] != q.shape[0]:  # else it has just been read
        _check_cu_seq("cu_seq_k", cu_seq_k, q, cu_seq_q.shape[0] - 1, k.shape[0], "key")
    for name, longest in (("max_q", max_q), ("max_k", max_k)):
        checks.check_integer_or_none(name, longest)
        if longest is not None and not 0 <= longest < 2**63:
            raise ValueError(f"{name}: got {longest}, expected 0 or more, below 2^63")
    left, right = _window("window_size", window_size)
    if is_causal:
        right = 0 if right < 0 else min(right, 0)
    looked_at = left >= 0 or right >= 0 or alibi_slopes is not None  # the diagonal
    causal = contract.OPEN_BOTTOM_RIGHT if looked_at else contract.OPEN
    if right == 0:
        causal = contract.BOTTOM_RIGHT
    checks.check_number("dropout_p", dropout_p, 0.0, 1.0)
    if rows is not None:
        checks.check_rows(rows, q, q.shape[0])
        rows = rows.reshape(-1)
    _check_extras(q, q.shape[1], softcap, alibi_slopes, sinks)
    return Call(
        q, k, v, None, None, cu_seq_q, cu_seq_k, -1 if max_q is None else max_q, -1 if max_k is None else max_k,
        _scale(scale, q.shape[-1]), causal, left, -1 if right <= 0 else right,
        float(softcap), alibi_slopes, sinks, float(dropout_p), rows,
    )  # fmt: skip
