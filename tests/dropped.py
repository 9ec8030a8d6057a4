"""What each public function drops, seen from outside: which elements of an input of ones survive."""

import math

import pytest
import torch

import bigkernels as bk


def served(call, *args, **kwargs):
    """The call's result, or a skip with the backend's reasons."""
    try:
        return call(*args, **kwargs)
    except bk.Unsupported as refusal:
        pytest.skip(str(refusal))


def row_mask(device, shape, p, seed, offset=0, rows=None):
    """Which elements add_layer_norm keeps: of ones, added to nothing."""
    x = torch.ones(shape, device=device.type)
    _, total = served(
        bk.add_layer_norm,
        x,
        torch.zeros_like(x),
        None,
        None,
        dropout_p=p,
        seed=seed,
        offset=offset,
        rows=rows,
        return_sum=True,
        backend=device.backend,
    )
    values = total.unique()
    scale = torch.tensor(1 / (1 - p), device=device.type) if p < 1 else torch.tensor(0.0)
    assert all(v == 0 or torch.isclose(v, scale, rtol=1e-6) for v in values)
    return (total != 0).cpu()


def hidden_mask(device, shape, p, seed, offset=0, rows=None):
    """Which hidden elements feed_forward keeps: relu of ones, through unit matrices."""
    eye = torch.eye(shape[-1], device=device.type)
    x = torch.ones(shape, device=device.type)
    out = served(
        bk.feed_forward,
        x,
        eye,
        None,
        eye,
        None,
        "relu",
        p,
        seed=seed,
        offset=offset,
        rows=rows,
        backend=device.backend,
    )
    return (out != 0).cpu()


def score_mask(device, batch, heads, queries, keys, p, seed, offset=0):
    """Which weights attention keeps: all equal, values the unit matrix. (B, H, Lq, Lk)"""
    q = torch.zeros(batch, heads, queries, 8, device=device.type)
    k = torch.zeros(batch, heads, keys, 8, device=device.type)
    v = torch.eye(keys, device=device.type).expand(batch, heads, keys, keys)
    out = served(
        bk.scaled_dot_product_attention,
        q,
        k,
        v,
        dropout_p=p,
        seed=seed,
        offset=offset,
        backend=device.backend,
    )
    return (out != 0).cpu()


def correlation(a, b):
    """Of two masks, in units of its standard deviation under independence."""
    a, b = a.double().flatten() - a.double().mean(), b.double().flatten() - b.double().mean()
    return float((a * b).sum() / (a.norm() * b.norm())) * math.sqrt(a.numel())
