"""Attention on every backend: what must hold without knowing the right numbers."""

import json
import subprocess
import sys
from itertools import accumulate, pairwise

import pytest
import torch
from inputs import draw, dtypes, gradients, moved

import bigkernels as bk
from bigkernels.ops.attention import api, reference
from bigkernels.testing import judge, poisoned_outputs
from bigkernels.testing.oracle import same_bits

INF = float("inf")

# Bytes by which memory grows in one forward and backward of a variant.
GROWTH = """
import json, resource, sys, torch
import bigkernels as bk
batch, heads, length, variant, device, backend = json.loads(sys.argv[1])
torch.set_default_device(device)
def step(length):
    q, k, v, dout = (torch.randn(batch, heads, length, 16) for _ in range(4))
    options = {"is_causal": variant == "causal", "dropout_p": 0.1 * (variant == "dropout")}
    if variant == "padding":
        options["attn_mask"] = torch.ones(batch, 1, 1, length, dtype=torch.bool)
    if variant == "bias":
        options["attn_mask"] = torch.zeros(heads, 1, length, requires_grad=True)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    bk.scaled_dot_product_attention(q, k, v, backend=backend, **options).backward(dout)
def peak():
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
step(64)
before = peak()
step(length)
print(peak() - before)
"""


def attend(device, q, k, v, mask=None, **options):
    """scaled_dot_product_attention on the backend, or a skip with its reasons."""
    options = {"enable_gqa": True} | options
    facts = api.attention_facts(q, k, v, mask, **options)
    device.require("attention", facts, q.numel())
    return bk.scaled_dot_product_attention(q, k, v, mask, backend=device.backend, **options)


def attend_packed(device, q, k, v, cu_q, cu_k, **options):
    """varlen_attn likewise."""
    options = {"enable_gqa": True} | options
    device.require("attention", api.varlen_facts(q, k, v, cu_q, cu_k, **options), q.numel())
    return bk.varlen_attn(q, k, v, cu_q, cu_k, backend=device.backend, **options)


def qkv(device, dtype, batch, heads, queries, keys, dim=24, heads_kv=None):
    kv = (batch, heads_kv or heads, keys, dim)
    return draw(device, dtype, (batch, heads, queries, dim), kv, kv)


def all_same_bits(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert same_bits(a, b)


def rows_of(batch, queries):
    return (torch.arange(batch) << 32)[:, None] + torch.arange(queries)


def cut(mask, part):
    """The samples of a mask, which may be broadcast along the batch."""
    return mask if mask is None or mask.shape[0] == 1 else mask[part]


DROPOUT = {"dropout_p": 0.3, "seed": 3}
options = pytest.mark.parametrize("dropout", [{}, DROPOUT], ids=["kept", "dropped"])


@dtypes
@options
def test_a_causal_row_does_not_know_what_follows(dropout, dtype, device):
    q, k, v = qkv(device, dtype, 2, 2, 130, 130, heads_kv=1)

    def call(q, k, v):
        rows = rows_of(2, q.shape[2]).reshape(-1).to(q.device)
        return attend(device, q, k, v, is_causal=True, rows=rows, **dropout)

    (dout,) = draw(device, dtype, (2, 2, 130, 24))
    for n in (1, 16, 47, 49, 129):
        dout[:, :, n:] = 0
        whole = gradients(call, q, k, v, dout=dout)
        part = gradients(call, *(t[:, :, :n] for t in (q, k, v)), dout=dout[:, :, :n])
        for a, b in zip(whole, part, strict=True):
            assert same_bits(a[:, :, :n], b), n
        assert not any(d[:, :, n:].any() for d in whole[1:])
        dout = torch.randn_like(dout)


@dtypes
@options
@pytest.mark.parametrize("kind", ["plain", "causal", "lengths", "padding", "pairs", "bias"])
def test_samples_do_not_know_their_neighbours(kind, dropout, dtype, device):
    batch, queries, keys = 4, 50, 67
    q, k, v = qkv(device, dtype, batch, 4, queries, keys, heads_kv=2)
    on = torch.rand(batch, 4, queries, keys, device=q.device) > 0.3
    mask = {"padding": on[:, :1, :1], "pairs": on, "bias": torch.randn_like(on, dtype=dtype)}
    lengths = torch.tensor([67, 5, 40, 66], device=q.device) if kind == "lengths" else None
    rows = rows_of(batch, queries).to(q.device)
    (dout,) = draw(device, dtype, (batch, 4, queries, 24))

    def both(part):
        def call(q, k, v):
            return attend(
                device, q, k, v, cut(mask.get(kind), part), is_causal=kind == "causal",
                key_lengths=None if lengths is None else lengths[part],
                rows=rows[part].reshape(-1), **dropout,
            )  # fmt: skip

        return gradients(call, q[part], k[part], v[part], dout=dout[part])

    whole = both(slice(None))
    for part in (slice(0, 1), slice(2, 3), slice(1, 4), torch.tensor([3, 0, 2])):
        all_same_bits(both(part), [t[part] for t in whole])


LENGTHS = (5, 1, 48, 33, 70)


def packs(t):
    """(B, H, L, D), padded to the right, as (T, H, D)."""
    return torch.cat([x[:, :n].transpose(0, 1) for x, n in zip(t, LENGTHS, strict=True)])


@dtypes
@options
@pytest.mark.parametrize("padding", ["lengths", "bool", "additive"])
@pytest.mark.parametrize("causal", [False, True], ids=["open", "causal"])
def test_packed_equals_padded(causal, padding, dropout, dtype, device):
    batch, longest = len(LENGTHS), max(LENGTHS)
    q, k, v = qkv(device, dtype, batch, 4, longest, longest, heads_kv=2)
    (dout,) = draw(device, dtype, q.shape)
    lengths = torch.tensor(LENGTHS, device=q.device)
    inside = torch.arange(longest, device=q.device) < lengths[:, None]
    dout *= inside[:, None, :, None]
    on = inside[:, None, None]
    mask = {"bool": on, "additive": torch.zeros_like(on, dtype=dtype).masked_fill(~on, -INF)}

    def padded(q, k, v):
        key_lengths = lengths if padding == "lengths" else None
        return attend(
            device, q, k, v, mask.get(padding), is_causal=causal, key_lengths=key_lengths, **dropout
        )

    ends = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=q.device)

    def packed(q, k, v):
        return attend_packed(device, q, k, v, ends, ends, is_causal=causal, **dropout)

    found = gradients(packed, *map(packs, (q, k, v)), dout=packs(dout))
    expected = [packs(x) for x in gradients(padded, q, k, v, dout=dout)]
    if device.backend == "triton" and padding != "lengths":  # whose tiles may be others
        near = 8 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected, rtol=near, atol=near)
    else:
        all_same_bits(found, expected)


@dtypes
def test_packed_sequences_may_lie_in_any_order(dtype, device):
    order, ends = torch.tensor([3, 0, 4, 2, 1]), torch.tensor([0, *accumulate(LENGTHS)])
    x = draw(device, dtype, *[(sum(LENGTHS), 2, 16)] * 4)
    rows = torch.cat([(b << 32) + torch.arange(n) for b, n in enumerate(LENGTHS)])
    place = torch.cat([torch.arange(*ends[b : b + 2]) for b in order]).to(device.type)
    moved_ends = torch.tensor([0, *accumulate(LENGTHS[b] for b in order)])

    def run(q, k, v, dout, rows, ends):
        def call(q, k, v):
            return attend_packed(device, q, k, v, ends, ends, rows=rows, **DROPOUT)

        return gradients(call, q, k, v, dout=dout)

    straight = run(*x, rows.to(device.type), ends.to(device.type))
    rows = rows.to(device.type)[place]
    other = run(*(t[place] for t in x), rows, moved_ends.to(device.type))
    all_same_bits(other, [t[place] for t in straight])


def dead_calls(device, dtype):
    """name, inputs, mask, options, which queries (B, H, Lq) see no key."""
    q, k, v = qkv(device, dtype, 3, 2, 50, 20)
    none = torch.zeros(3, 2, 50, dtype=torch.bool, device=q.device)
    some, sample, early = none.clone(), none.clone(), none.clone()
    some[:, :, 1::3] = sample[1] = early[:, :, :30] = True
    on = ~some[..., None].expand(3, 2, 50, 20)
    yield "bool rows", (q, k, v), on, {}, some
    yield "-inf rows", (q, k, v), torch.zeros_like(on, dtype=dtype).masked_fill(~on, -INF), {}, some
    yield "padding", (q, k, v), ~sample[:, :1, :1, None].expand(3, 1, 1, 20), {}, sample
    lengths = torch.tensor([20, 0, 7], device=q.device)
    yield "lengths", (q, k, v), None, {"key_lengths": lengths}, sample
    corner = {"is_causal": True, "causal_alignment": "bottom_right"}
    yield "causal corner", (q, k, v), None, corner, early
    yield "no keys", (q, k[:, :, :0], v[:, :, :0]), None, {}, ~none


@dtypes
@options
def test_queries_without_keys_give_zeros_and_finite_gradients(dropout, dtype, device):
    for name, inputs, mask, extra, dead in dead_calls(device, dtype):
        bias = mask if mask is not None and mask.dtype != torch.bool else None

        def call(q, k, v, bias, lse=False, mask=mask, extra=extra):
            own = mask if bias is None else bias
            return attend(device, q, k, v, own, return_lse=lse, **extra, **dropout)

        out, dq, *others = gradients(call, *inputs, bias)
        lse = call(*inputs, bias, True)[1]
        assert not out[dead].any(), name
        assert not dq[dead].any(), name
        assert (lse[dead] == -INF).all(), name
        assert lse[~dead].isfinite().all(), name
        assert out[~dead].any(-1).all() or dropout, name
        assert all(t.isfinite().all() for t in (out, dq, *others)), name


@dtypes
def test_the_order_of_the_keys_does_not_matter(dtype, device):
    q, k, v = qkv(device, dtype, 2, 2, 30, 150)
    bias = torch.randn(2, 2, 30, 150).to(q)
    order = torch.randperm(150, device=q.device)

    def by(function):
        return gradients(function, q, k, v, bias)

    def shuffled(q, k, v, bias):
        return attend(device, q, k[:, :, order], v[:, :, order], bias[..., order])

    def plain(q, k, v, bias):
        return reference.dense(
            q, k, v, bias, None, 24**-0.5, 0, -1, -1, 0.0, None, None, 0.0, None, None
        )[0]

    truth = gradients(plain, *(t.double() for t in (q, k, v, bias)))
    names = ("out", "dq", "dk", "dv", "dbias")
    for name, got, exact, peer in zip(names, by(shuffled), truth, by(plain), strict=True):
        verdict = judge(got, exact, [peer], grad=name != "out")
        assert verdict, f"{name}: {verdict}"


@pytest.mark.parametrize(
    ("batch", "queries", "keys"), [(0, 5, 6), (2, 0, 6), (2, 5, 0), (0, 0, 0), (2, 0, 0)]
)
def test_sizes_of_zero_are_served(batch, queries, keys, device):
    q, k, v = qkv(device, torch.float32, batch, 4, queries, keys, heads_kv=2)
    full = (batch, 4, queries, keys)
    # The gradient of a mask with elements, broadcast along nothing, is 0.
    sizes = (full, (1, 1, 1, 1), (1, 4, queries, 1), (1, 1, 1, keys), (batch, 1, 1, 1))
    for bias in (None, *draw(device, torch.float32, *sizes)):
        with poisoned_outputs():
            out, dq, *others = gradients(lambda *t: attend(device, *t), q, k, v, bias)
        assert out.shape == dq.shape == q.shape
        assert [t.shape for t in others] == [t.shape for t in (k, v, bias) if t is not None]
        assert not any(t.any() for t in (out, dq, *others))


@pytest.mark.parametrize("tokens", [0, 7, 300])
def test_a_packed_call_of_no_sequence_gives_zeros(tokens, device):
    q, k, v = draw(device, torch.float32, *[(tokens, 2, 16)] * 3)
    ends = torch.zeros(1, dtype=torch.int32, device=device.type)
    with poisoned_outputs():
        found = gradients(lambda *t: attend_packed(device, *t, ends, ends), q, k, v)
    assert [t.shape for t in found] == [q.shape] * 4
    assert not any(t.any() for t in found)


@dtypes
@options
def test_the_number_of_threads_changes_no_bit(dropout, dtype, device):
    if device.name != "cpu":
        pytest.skip("threads belong to the CPU kernels")
    # Many heads, and one of so many keys that threads share it.
    for batch, heads, queries, keys in ((2, 4, 60, 50), (1, 1, 120, 700)):
        q, k, v = qkv(device, dtype, batch, heads, queries, keys)
        bias = torch.randn(1, heads, queries, keys)
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gradients(lambda *t: attend(device, *t, **dropout), q, k, v, bias))
        all_same_bits(*found)


@dtypes
def test_strides_and_addresses_change_no_bit(dtype, device):
    q, k, v = qkv(device, dtype, 2, 3, 20, 37, dim=19)
    bias = torch.randn(2, 3, 20, 37).to(q)

    def call(*t):
        return attend(device, *t)

    straight = gradients(call, q, k, v, bias)
    layouts = [
        [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v, bias)],
        [t.mT.contiguous().mT for t in (q, k, v, bias)],
        [t.transpose(0, 3).contiguous().transpose(0, 3) for t in (q, k, v, bias)],
        *([moved(t, shift) for t in (q, k, v, bias)] for shift in (1, 3, 7)),
    ]
    for layout in layouts:
        all_same_bits(layout, (q, k, v, bias))
        all_same_bits(gradients(call, *layout), straight)


@dtypes
def test_expanded_inputs_are_not_copied_wrong(dtype, device):
    q, k, v = (t[:1] for t in qkv(device, dtype, 1, 2, 20, 37))
    (bias,) = draw(device, dtype, (1, 1, 20, 1))

    def call(*t):
        return attend(device, *t)

    wide = [t.expand(3, *t.shape[1:]) for t in (q, k, v)]
    mask = bias.expand(3, 2, 20, 37)
    assert 0 in wide[0].stride() and 0 in mask.stride()
    straight = gradients(call, *(t.contiguous() for t in (*wide, mask)))
    all_same_bits(gradients(call, *wide, mask), straight)
    token = k[:, :, :1].expand(1, 2, 37, 24)  # one and the same key everywhere
    all_same_bits(gradients(call, q, token, v), gradients(call, q, token.contiguous(), v))


@dtypes
@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("bad", [float("nan"), INF, -INF], ids=str)
def test_nan_and_infinity_stay_in_their_sample(bad, where, dtype, device):
    inputs = dict(zip("qkv", qkv(device, dtype, 3, 2, 20, 37), strict=True))
    lengths = torch.tensor([37, 30, 12], device=inputs["q"].device)

    def run(key_lengths=None, **changed):
        return gradients(
            lambda *t: attend(device, *t, key_lengths=key_lengths), *(inputs | changed).values()
        )

    poisoned = inputs[where].clone()
    poisoned[1, 0, 5, 3] = bad
    clean, found = run(), run(**{where: poisoned})
    others = torch.tensor([0, 2])
    for a, b in zip(clean, found, strict=True):
        assert same_bits(a[others], b[others])
        assert same_bits(a[1, 1], b[1, 1])  # another head
    # An infinite score of the right sign only turns a key off.
    expected = bk.scaled_dot_product_attention(
        *(inputs | {where: poisoned}).values(), backend="reference"
    )
    assert torch.equal(found[0].isfinite(), expected.isfinite())
    assert not found[0].isfinite().all()
    if where == "q":
        rest = [i for i in range(20) if i != 5]
        assert same_bits(clean[0][1, 0, rest], found[0][1, 0, rest])
    else:  # behind the sample's length nothing is read
        poisoned = inputs[where].clone()
        poisoned[1, :, 30:] = bad
        all_same_bits(run(lengths, **{where: poisoned}), run(lengths))


@dtypes
def test_nan_stays_in_its_packed_sequence(dtype, device):
    ends = torch.tensor([0, *accumulate(LENGTHS)], dtype=torch.int32, device=device.type)
    x = draw(device, dtype, *[(sum(LENGTHS), 2, 16)] * 3)
    bad = [t.clone() for t in x]
    for t in bad:
        t[6:54] = float("nan")  # the third sequence

    def run(inputs):
        return gradients(lambda *t: attend_packed(device, *t, ends, ends), *inputs)

    for a, b in zip(run(x), run(bad), strict=True):
        for i, (begin, end) in enumerate(pairwise(ends.tolist())):
            same = same_bits(a[begin:end], b[begin:end])
            assert same if i != 2 else b[begin:end].isnan().all()


@pytest.mark.parametrize("variant", ["plain", "causal", "dropout", "padding", "bias"])
def test_no_score_matrix_is_ever_in_memory(variant, device):
    batch, heads, length = 2, 2, 4096
    facts = api.attention_facts(*qkv(device, torch.float32, 1, 1, 2, 2))
    # Every score is computed, and in another process, where there is no emulator.
    device.require("attention", facts, batch * heads * length * length)
    call = json.dumps([batch, heads, length, variant, device.type, device.backend])
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, call], capture_output=True, text=True, check=True
    )
    matrix = batch * heads * length * length  # in bytes, even if it held single ones
    assert int(done.stdout) < matrix / 2
