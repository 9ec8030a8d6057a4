"""Public functions of the attention room: the choice of a drawer, autograd. Checks are in ``arguments.py``."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bigkernels import backends, library
from bigkernels.ops import checks, dropout
from bigkernels.ops.attention import arguments, contract, reference
from bigkernels.ops.attention.arguments import Call
from bigkernels.ops.attention.contract import Facts

_OPS = {name: library.kernels(name, contract.BACKENDS) for name in contract.SCHEMAS}
backends.register("attention", contract.BACKENDS)

# Of earlier calls: the numbers from max_q to dropout_p, the drawer, whether gradients are wanted.
_KNOWN: backends.Remembered[tuple[tuple[Any, ...], str, bool]] = backends.Remembered()
_plain_cpu = _OPS["attention_forward_plain"]["cpu"]._op
_functorch = torch._C._are_functorch_transforms_active
_tracing = torch._C._get_tracing_state
_autocast = torch.is_autocast_enabled
_grad = torch.is_grad_enabled
_LARGEST = sys.float_info.max
_OPEN = (-1, -1)
notes = arguments.notes


def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, flags: tuple[Any, ...]) -> Any:
    lengths, cu_q, cu_k, _, _, *rest = flags
    if cu_q is None:
        return reference.dense(q, k, v, mask, lengths, *rest)
    return reference.packed(q, k, v, cu_q, cu_k, *rest)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        key_lengths: Tensor | None,
        cu_seq_q: Tensor | None,
        cu_seq_k: Tensor | None,
        max_q: int,
        max_k: int,
        scale: float,
        causal: int,
        window_left: int,
        window_right: int,
        softcap: float,
        alibi_slopes: Tensor | None,
        sinks: Tensor | None,
        dropout_p: float,
        seed: Tensor | None,
        offset: Tensor | None,
        rows: Tensor | None,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        plain = (scale, causal, window_left, window_right, softcap)
        out, lse = _OPS["attention_forward"][backend](
            q, k, v, mask, key_lengths, cu_seq_q, cu_seq_k, max_q, max_k, *plain, alibi_slopes, sinks,
            dropout_p, seed, offset, rows,
        )  # fmt: skip
        ctx.save_for_backward(
            q, k, v, out, lse, mask, key_lengths, cu_seq_q, cu_seq_k, alibi_slopes, sinks, seed, offset, rows
        )  # fmt: skip
        ctx.maxima, ctx.plain = (max_q, max_k), plain
        ctx.dropout_p, ctx.backend = dropout_p, backend
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, mask, lengths, cu_q, cu_k, slopes, sinks, seed, offset, rows = (
            ctx.saved_tensors
        )
        needs = ctx.needs_input_grad[:4]
        flags = (
            lengths, cu_q, cu_k, *ctx.maxima, *ctx.plain, slopes, sinks, ctx.dropout_p, seed, offset, rows,
        )  # fmt: skip
        if checks.recomputing():
            found = checks.differentiate(
                lambda q, k, v, m: _reference(q, k, v, m, flags),
                (q, k, v, mask),
                needs,
                (dout, dlse),
            )
            return (*found, *(None,) * 17)
        if dout is None:
            dout = torch.zeros_like(out)
        dq, dk, dv, dmask = _OPS["attention_backward"][ctx.backend](
            dout, dlse, q, k, v, out, lse, mask, *flags, needs[3]
        )
        return (
            dq if needs[0] else None,
            dk if needs[1] else None,
            dv if needs[2] else None,
            dmask if needs[3] else None,
            *(None,) * 17,
        )


def _facts(call: Call) -> Facts:
    q, k, v, mask = call.q, call.k, call.v, call.mask
    grad = torch.is_grad_enabled()
    mask_grad = grad and mask is not None and mask.requires_grad
    learned = grad and any(
        x is not None and x.requires_grad for x in (call.alibi_slopes, call.sinks)
    )
    return Facts(
        device=q.device.type,
        dtype=q.dtype,
        head_dim=q.shape[-1],
        head_dim_v=v.shape[-1],
        packed=call.cu_seq_q is not None,
        grouped=q.shape[-3 if q.dim() == 4 else -2] != k.shape[-3 if k.dim() == 4 else -2],
        mask="none" if mask is None else "bool" if mask.dtype == torch.bool else "float",
        mask_grad=mask_grad,
        causal=call.causal,
        window=call.window_left >= 0 or call.window_right >= 0,
        lengths=call.key_lengths is not None,
        dropout=call.dropout_p > 0.0,
        softcap=call.softcap > 0.0,
        alibi=call.alibi_slopes is not None,
        sinks=call.sinks is not None,
        needs_grad=mask_grad or learned or (grad and any(x.requires_grad for x in (q, k, v))),
        learned=learned,
        chip=checks.chip(q.device),
    )


def _run(
    call: Call,
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    backend: str | None,
    told: tuple[Any, ...] | None,
    given: tuple[Tensor | None, ...],
) -> Any:
    """told: the key under which a call that came through is remembered, if its tensors were taken as given."""
    facts = _facts(call)
    name = backends.choose("attention", facts, backend)
    where = dropout.seeds(seed, offset, call.q, call.dropout_p)
    found = _serve((*call[:-1], *where, call.rows), name, facts.needs_grad)
    if told is not None and all(a is b for a, b in zip(call[:4], given, strict=True)):
        _KNOWN.keep(told, (call[7:-1], name, facts.needs_grad))
    return found


def _serve(arguments: tuple[Any, ...], name: str, needs_grad: bool) -> Any:
    """arguments: of the op."""
    if name == "reference":
        q, k, v, mask, *flags = arguments
        return _reference(q, k, v, mask, tuple(flags))
    if needs_grad:
        return checks.apply(_Attention, *arguments, name)
    return _OPS["attention_forward"][name](*arguments)


def _again(
    told: tuple[Any, ...] | None,
    tensors: tuple[Any, ...],
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    rows: Tensor | None,
) -> Any:
    """Runs a call like an earlier one, if there was one; tensors: from q to cu_seq_k."""
    known = None if told is None else _KNOWN.get(told)
    if known is None:
        return None
    numbers, name, needs_grad = known
    where = dropout.seeds(seed, offset, tensors[0], numbers[-1])
    rows = None if rows is None else rows.reshape(-1)
    return _serve((*tensors, *numbers, *where, rows), name, needs_grad)


def _plain(q: Tensor, k: Tensor, v: Tensor, scale: float | None, is_causal: bool) -> Tensor | None:
    """A CPU call with nothing beside q, k, v and without gradients, by the fewest steps; None if it is not one.

    The kernel checks its arguments itself. Whatever it does not take goes the long way, where faults are named.
    """
    if (
        torch.compiler.is_compiling()
        or type(q) is not Tensor
        or type(k) is not Tensor
        or type(v) is not Tensor
        or type(is_causal) is not bool
        or not (q.is_cpu and k.is_cpu and v.is_cpu)
        or (_grad() and (q.requires_grad or k.requires_grad or v.requires_grad))
        or not (scale is None or (type(scale) is float and -_LARGEST <= scale <= _LARGEST))
        or _functorch()
        or _tracing() is not None
        or forward_ad._current_level >= 0
        or _autocast("cpu")
        or not backends.undisturbed()
    ):
        return None
    try:
        return _plain_cpu(q, k, v, scale, 1 if is_causal else 0)  # type: ignore[no-any-return]
    except (RuntimeError, TypeError):
        return None


def _dense(
    tensors: tuple[Tensor | None, ...],
    scalars: tuple[Any, ...],
    extras: dict[str, Any],
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    backend: str | None,
    return_lse: bool,
) -> Any:
    """Runs a dense call and puts query's leading dimensions back. tensors: q, k, v, mask, key_lengths, rows."""
    *given, lengths, rows = tensors
    told = None
    plain = (
        type(extras["window"]) is not tuple and extras["alibi_slopes"] is extras["sinks"] is None
    )
    if plain and arguments.unread(lengths):
        told = backends.call_key((*scalars, *extras.values(), backend, return_lse), *tensors)
    found = _again(told, (*given, lengths, None, None), seed, offset, rows)
    if found is not None:
        return found if return_lse else found[0]
    call, leading = arguments.dense_call(*given, *scalars, key_lengths=lengths, rows=rows, **extras)  # type: ignore[arg-type]
    checks.check_flag("return_lse", return_lse)
    out, lse = _run(call, seed, offset, backend, told, tuple(given))
    if leading is not None:
        out, lse = out.reshape(*leading, *out.shape[-2:]), lse.reshape(*leading, lse.shape[-1])
    return (out, lse) if return_lse else out


def _packed(
    tensors: tuple[Tensor, ...],
    scalars: dict[str, Any],
    extras: dict[str, Any],
    seed: int | Tensor | None,
    offset: int | Tensor | None,
    backend: str | None,
) -> Any:
    """out and lse of a packed call. tensors: q, k, v, cu_seq_q, cu_seq_k."""
    q, k, v, cu_q, cu_k = tensors
    rows, told = extras["rows"], None
    # A window is the default or none that is known: what equals it may be of another type.
    plain = extras["window_size"] is _OPEN and extras["alibi_slopes"] is extras["sinks"] is None
    if plain and arguments.unread(cu_q):
        told = backends.call_key((*scalars.values(), backend), *tensors, rows)
    found = _again(told, (q, k, v, None, None, cu_q, cu_k), seed, offset, rows)
    if found is not None:
        return found
    call = arguments.packed_call(q, k, v, cu_q, cu_k, **scalars, **extras)
    return _run(call, seed, offset, backend, told, (q, k, v, None))


def attention_facts(*args: Any, **kwargs: Any) -> Facts:
    """The facts by which ``scaled_dot_product_attention`` chooses its drawer; takes its arguments."""
    for name in ("seed", "offset", "return_lse"):
        kwargs.pop(name, None)
    return _facts(arguments.dense_call(*args, **kwargs)[0])


def varlen_facts(*args: Any, **kwargs: Any) -> Facts:
    """The facts by which ``varlen_attn`` chooses its drawer; takes its arguments."""
    for name in ("seed", "offset", "return_aux"):
        kwargs.pop(name, None)
    return _facts(arguments.packed_call(*args, **kwargs))


def scaled_dot_product_attention(
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
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Any:
    """Attention without ever storing the score matrix; matches ``F.scaled_dot_product_attention``.

    Args:
        query: (..., H, Lq, D), float32, bfloat16, float16 or float64, any strides.
        key, value: (..., Hkv, Lk, D) and (..., Hkv, Lk, Dv), of query's dtype; Hkv == H unless enable_gqa.
        attn_mask: fits (..., H, Lq, Lk): bool (True = attend), or additive (query's dtype, float32; differentiable).
        dropout_p: probability of dropping a weight; no ``training`` flag: pass 0.0 for evaluation.
        is_causal: query i sees keys j <= i, or j <= i + Lk - Lq with ``causal_alignment="bottom_right"``.
        scale, enable_gqa: of the scores, default 1 / sqrt(D); H may be a multiple of Hkv.
        key_lengths: (B,) int32 or int64; keys from that position on are off.
        window: w or (left, right): only keys within that distance of the diagonal; -1 = unbounded.
        causal_alignment: "top_left" (torch's) or "bottom_right"; holds for the window and ALiBi too.
        softcap: scores become ``softcap * tanh(scores / softcap)``; 0.0 = off.
        alibi_slopes, sinks: (H,): subtracts slope * distance from the diagonal; one more score in the denominator.
        seed, offset: int or int64 (); equal values drop equal weights. None draws a seed, offset 0.
        rows: int64 (B * Lq,), ``b << 32 | i`` of each query, default its own place.
        return_lse: also return the natural log-sum-exp of the scores, (..., H, Lq), differentiable.
        backend: forces a backend ("cuda", "triton", "cpu", "reference").

    Returns:
        (..., H, Lq, Dv) in query's dtype and dimension order, or (out, lse). No key: 0, lse -inf, gradients 0.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device.
        Unsupported: the forced backend cannot serve the call.
    """
    if (
        attn_mask is None and key_lengths is None and window is None and backend is None and rows is None
        and seed is offset is alibi_slopes is sinks is None and enable_gqa is False and return_lse is False
        and type(dropout_p) is type(softcap) is float and dropout_p == softcap == 0.0 and causal_alignment == "top_left"
    ) and (out := _plain(query, key, value, scale, is_causal)) is not None:  # fmt: skip
        return out
    return _dense(
        (query, key, value, attn_mask, key_lengths, rows), (dropout_p, is_causal, scale, enable_gqa),
        {"window": window, "causal_alignment": causal_alignment, "softcap": softcap, "alibi_slopes": alibi_slopes,
         "sinks": sinks}, seed, offset, backend, return_lse,
    )  # fmt: skip


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: tuple[int, int] = _OPEN,
    enable_gqa: bool = False,
    is_causal: bool = False,
    dropout_p: float = 0.0,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    seed: int | Tensor | None = None,
    offset: int | Tensor | None = None,
    rows: Tensor | None = None,
    backend: str | None = None,
) -> Any:
    """Attention over packed sequences; matches ``torch.nn.attention.varlen.varlen_attn``, on the CPU too.

    Args:
        query: (T, H, D), the sequences one after another.
        key, value: (Tk, Hkv, D) and (Tk, Hkv, Dv).
        cu_seq_q, cu_seq_k: (B + 1,) int32 or int64, 0 and then the ends of the sequences. Rows behind the
            last end belong to none: 0, lse -inf, gradients 0.
        max_q, max_k: longest sequence; None = not known.
        return_aux: an object with a true ``lse`` attribute (torch's AuxRequest) adds lse (H, T) to the result.
        scale: of the scores, default 1 / sqrt(D).
        window_size: (left, right) around the bottom-right diagonal, -1 = unbounded; (-1, 0) is causal.
        enable_gqa: H may be a multiple of Hkv.
        is_causal: the same as window_size=(-1, 0): query i sees keys j <= i + Lk - Lq.
        dropout_p, softcap, alibi_slopes, sinks, seed, offset: as in ``scaled_dot_product_attention``.
        rows: int64 (T,), ``b << 32 | i`` of each query as the user passed the batch, for dropout.
        backend: forces a backend.

    Returns:
        (T, H, Dv), or (out, lse).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, range or device.
        Unsupported: the forced backend cannot serve the call.
    """
    if return_aux is not None and not hasattr(return_aux, "lse"):
        raise TypeError(f"return_aux: expected torch's AuxRequest, got {type(return_aux).__name__}")
    tensors = (query, key, value, cu_seq_q, cu_seq_k)
    scalars = {"max_q": max_q, "max_k": max_k, "scale": scale, "enable_gqa": enable_gqa, "is_causal": is_causal,
               "dropout_p": dropout_p, "softcap": softcap}  # fmt: skip
    extras = {
        "window_size": window_size,
        "alibi_slopes": alibi_slopes,
        "sinks": sinks,
        "rows": rows,
    }
    out, lse = _packed(tensors, scalars, extras, seed, offset, backend)
    return (out, lse) if return_aux is not None and return_aux.lse else out
