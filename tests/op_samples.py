"""Sample arguments for every op in torch.ops.bigkernels, by its name without the backend.

Each function takes the device and a `forward` that calls the op's forward of the same backend, and returns argument
tuples. A new op needs an entry here; tests/test_ops.py fails without.
"""

import itertools

import torch

from bigkernels.ops.encoder.contract import PARTS


def _draw(device, *shapes, dtype=torch.float32):
    return [torch.randn(shape, device=device, dtype=dtype) for shape in shapes]


def _seed(device):
    seed, offset = torch.tensor(5, device=device), torch.tensor(2, device=device)
    return seed, offset


def layer_norm_forward(device, forward):
    x, weight, bias = _draw(device, (2, 3, 8), (8,), (8,))
    wide = torch.randn(3, 5, 2, 8, device=device).transpose(0, 2)
    half = x.half()
    return [
        (x, weight, bias, 8, 1e-5),
        (x, None, None, 8, 1e-5),
        (x, weight.repeat(3), None, 24, 1e-5),
        (wide, weight, bias, 8, 0.1),
        (half, weight, bias.half(), 8, 1e-5),
        (x[:0], weight, bias, 8, 1e-5),
        (x, weight, None, 8, 1e-5, False),
    ]


def layer_norm_backward(device, forward):
    found = []
    for x, weight, bias, n, *rule in layer_norm_forward(device, forward):
        _, mean, rstd = forward(x, weight, bias, n, *rule)
        saved = (x, mean, rstd, weight, n)
        needs = ((True, True, True), (True, False, False), (False, True, False))
        found += [(torch.randn_like(x), *saved, *need) for need in needs]
    return found


def add_layer_norm_forward(device, forward):
    x, residual, weight, bias, x_bias = _draw(device, (2, 3, 8), (2, 3, 8), (8,), (8,), (8,))
    rows = torch.arange(6, device=device)
    nothing = (0.0, None, None, None)
    return [
        (x, residual, weight, bias, 1e-5, x_bias, *nothing, True),
        (x, residual, None, None, 1e-5, None, *nothing, False),
        (x, residual, weight, bias, 1e-5, x_bias, 0.3, *_seed(device), None, True),
        (x, residual, weight, bias, 1e-5, None, 0.3, *_seed(device), rows, False),
        (x.mT.contiguous().mT, residual.half().float(), weight, bias, 1e-5, None, *nothing, True),
        (x.half(), residual.half(), weight, bias, 1e-5, None, 0.5, None, None, None, True),
    ]


def add_layer_norm_backward(device, forward):
    found = []
    for *inputs, _ in add_layer_norm_forward(device, forward):
        out, total, mean, rstd = forward(*inputs, True)
        weight, where = inputs[2], inputs[6:]
        for need, dsum in (((True,) * 4, total), ((False, False, True, True), None)):
            found.append((torch.ones_like(out), dsum, total, mean, rstd, weight, *where, *need))
    return found


def _attention(device):
    """(q, k, v) and the rest of the forward's arguments."""
    q, k, v = _draw(device, (2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 16))
    boolean = torch.ones(2, 1, 5, 7, dtype=torch.bool, device=device).tril()
    bias = torch.randn(1, 4, 5, 7, device=device)
    lengths = torch.tensor([7, 4], device=device)
    ends = torch.tensor([0, 3, 5], dtype=torch.int32, device=device)
    open_, off = (0, -1, -1, 0.0, None, None), (0.0, None, None, None)
    dense = (None, None, None, -1, -1, 0.35)
    drop = (0.2, *_seed(device), None)
    return [
        ((q, k, v), (None, *dense, *open_, *off)),
        ((q, k, v), (boolean, *dense, *open_, *drop)),
        ((q, k, v), (bias, lengths, None, None, -1, -1, 0.35, 2, 2, 0, 0.0, None, None, *off)),
        ((q.mT.contiguous().mT, k, v), (None, *dense, 1, -1, -1, 0.0, None, None, *off)),
        ((q.transpose(1, 2).contiguous().transpose(1, 2), k, v), (None, *dense, *open_, *off)),
        ((q[0].mT.mT.transpose(0, 1), k[0, :, :5].transpose(0, 1), v[0, :, :5].transpose(0, 1)),
         (None, None, ends, ends, 3, 3, 0.35, *open_, *drop)),
    ]  # fmt: skip


def attention_forward(device, forward):
    return [(*qkv, *rest) for qkv, rest in _attention(device)]


def attention_forward_plain(device, forward):
    q, k, v = _draw(device, (2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 16))
    apart = q.transpose(1, 2).contiguous().transpose(1, 2)
    return [(q, k, v, None, 0), (apart, k, v, 0.3, 1), (q.mT.contiguous().mT, k, v, 0.3, 0)]


def attention_backward(device, forward):
    found = []
    for qkv, rest in _attention(device):
        out, lse = forward(*qkv, *rest)
        mask = rest[0]
        need_dmask = mask is not None and mask.is_floating_point()
        given = (*qkv, out, lse, *rest, need_dmask)
        found += [(torch.randn_like(out), dlse, *given) for dlse in (None, torch.randn_like(lse))]
    return found


def _ffn(device):
    x, w1, b1, w2, b2, wg, bg = _draw(
        device, (2, 3, 8), (12, 8), (12,), (8, 12), (8,), (12, 8), (12,)
    )
    drop = (0.2, *_seed(device), None)
    off = (0.0, None, None, None)
    return [
        (x, w1, b1, w2, b2, None, None, "gelu", *off),
        (x, w1, None, w2, None, None, None, "relu", *drop),
        (x, w1, b1, w2, b2, wg, bg, "silu", *drop),
        (x.mT.contiguous().mT, w1, b1, w2, b2, wg, None, "gelu_tanh", *off),
        (x[0], w1, b1, w2, b2, None, None, "gelu", *off),
    ]


def ffn_forward(device, forward):
    return [(*inputs, save) for inputs, save in itertools.product(_ffn(device), (0, 1, 2))]


def ffn_backward(device, forward):
    found = []
    for inputs, save in itertools.product(_ffn(device), (0, 1, 2)):
        out, *saved = forward(*inputs, save)
        x, w1, b1, w2, b2, wg, bg, *where = inputs
        needs = (True, True, b1 is not None, True, b2 is not None, wg is not None, bg is not None)
        given = (torch.randn_like(out), x, w1, b1, w2, wg, bg, *saved, *where)
        found += [(*given, *need) for need in (needs, (True, *(False,) * 6))]
    return found


def encoder_fingerprint(device, forward):
    parts = [t for _ in range(2) for name, t in _encoder_layer(device)]
    return [(parts, False), (parts[:1], True)]


def _encoder_layer(device):
    found = []
    for name in PARTS:
        shape = {"up.weight": (12, 8), "up.bias": (12,), "down.weight": (8, 12)}.get(name)
        matrix = name.endswith("weight") and "norm" not in name
        found.append((name, *_draw(device, shape or ((8, 8) if matrix else (8,)))))
    return found


def encoder_pack(device, forward):
    parts = [t for _ in range(2) for name, t in _encoder_layer(device)]
    bare = [t if t.dim() == 2 else t[:0] for t in parts[:16]]
    return [(parts, 2, 2, "float32"), (bare, 1, 4, "float32")]


def encoder_forward(device, forward):
    x = torch.randn(5, 8, device=device)
    starts = torch.tensor([0, 2, 5], device=device)
    found = []
    for arguments in encoder_pack(device, forward):
        packed = torch.ops.bigkernels.encoder_pack_cpu(*arguments)
        _, layers, heads, precision = arguments
        common = (packed, layers, heads, 12, 1e-5)
        found.append((x, starts, -1, *common, "gelu", False, False, precision))
        found.append((x.bfloat16(), starts.int(), 3, *common, "relu", True, True, precision))
    return found


def embedding_forward(device, forward):
    word, position, types, weight, bias = _draw(device, (9, 8), (6, 8), (2, 8), (8,), (8,))
    ids = torch.tensor([[1, 8, 1], [0, 3, 8]], device=device)
    places = torch.arange(3, device=device).expand(2, 3)
    rows = torch.arange(6, device=device)
    off, drop = (0.0, None, None, None), (0.3, *_seed(device))
    half = [t.half() for t in (word, position, types)]
    return [
        (ids, word, places, position, ids % 2, types, weight, bias, 1e-5, *off),
        (ids, word, None, None, None, types, None, None, 1e-5, *drop, None),
        (ids.flatten(), word, None, None, None, None, weight, None, 1e-5, *drop, rows),
        (ids, half[0], places, half[1], None, half[2], weight, bias, 0.1, *off),
        (ids[:0], word, places[:0], position, None, None, weight, bias, 1e-5, *off),
    ]


def embedding_backward(device, forward):
    found = []
    for *given, bias, eps, p, seed, offset, rows in embedding_forward(device, forward):
        out, mean, rstd = forward(*given, bias, eps, p, seed, offset, rows)
        there = [t is not None for t in (given[1], given[3], given[5], given[6], bias)]
        for needs in (there, [True, *[False] * 4]):
            saved = (torch.randn_like(out), mean, rstd, *given)
            found.append((*saved, 1, -1, p, seed, offset, rows, *needs))
    return found


def cross_entropy_forward(device, forward):
    (logits,) = _draw(device, (5, 9))
    target = torch.tensor([1, 8, -100, 0, 3], device=device)
    return [
        (logits, target, -100, 0.0, "mean", False),
        (logits.half(), target, -100, 0.1, "sum", True),
        (logits.T.contiguous().T, target, -100, 0.0, "none", False),
        (logits[:0], target[:0], -100, 0.0, "mean", False),
    ]


def cross_entropy_backward(device, forward):
    found = []
    for logits, target, *rule in cross_entropy_forward(device, forward):
        out, lse, rows = forward(logits, target, *rule)
        found.append((torch.randn_like(out), logits, lse, rows, target, *rule[:2]))
    return found


def packing_plan(device, forward):
    keep = torch.tensor([[1, 1, 0], [0, 1, 0]], device=device)
    return [(keep, 3), (keep.bool(), 6), (keep.T.float(), 4), (keep[:0], 0)]


def packing_forward(device, forward):
    x, heads = _draw(device, (4, 5), (4, 3, 2))
    source = torch.tensor([2, -1, 0], device=device)
    return [
        (x, source),
        (heads.transpose(1, 2), source),
        (x[:, 0].bool(), source),
        (x[:0], source),
        (x.half(), source[:0]),
    ]


def philox_seed(device, forward):
    return [(torch.empty(3, device=device),)]


SAMPLES = {
    function.__name__: function
    for function in (
        layer_norm_forward,
        layer_norm_backward,
        add_layer_norm_forward,
        add_layer_norm_backward,
        attention_forward,
        attention_forward_plain,
        attention_backward,
        ffn_forward,
        ffn_backward,
        encoder_pack,
        encoder_forward,
        encoder_fingerprint,
        embedding_forward,
        embedding_backward,
        cross_entropy_forward,
        cross_entropy_backward,
        packing_plan,
        packing_forward,
        philox_seed,
    )
}
