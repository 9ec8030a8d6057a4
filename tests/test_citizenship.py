"""The rest of torch finds what it expects: transforms, autocast, copies, export, checkpoints, processes."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from differentiable import functions
from nn_problems import pair, random, scramble
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import bigkernels as bk
from bigkernels.ops.packing import api as packing
from bigkernels.testing import judge

B, L, E, H, HIDDEN = 2, 5, 16, 2, 24


def _encoder(**make: Any) -> bk.nn.TransformerEncoder:
    layer = bk.nn.TransformerEncoderLayer(E, H, HIDDEN, batch_first=True, **make)
    return scramble(bk.nn.TransformerEncoder(layer, 2, bk.nn.LayerNorm(E)))


def _ignore(lengths: tuple[int, ...] = (L, 3)) -> Tensor:
    return torch.arange(L) >= torch.tensor(lengths)[:, None]


@functions
def test_tensors_may_begin_anywhere_in_their_storage(function, inputs):
    apart = [torch.stack([torch.full_like(x, torch.nan), x.detach()])[1] for x in inputs]
    alone, got = function(*(x.detach() for x in inputs)), function(*apart)
    torch.testing.assert_close(got, alone, rtol=0, atol=0)


@pytest.mark.parametrize("norm_first", [False, True])
def test_autocast_gives_torchs_dtypes_and_values(norm_first):
    ours, theirs = pair(
        "TransformerEncoderLayer", E, H, HIDDEN, batch_first=True, norm_first=norm_first
    )
    x, ignore = random(B, L, E, seed=0), _ignore()
    kept = (~ignore)[..., None]
    truth = copy.deepcopy(theirs).double()(x.double(), src_key_padding_mask=ignore) * kept
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(x, src_key_padding_mask=ignore) * kept
        peer = theirs(x, src_key_padding_mask=ignore) * kept
    assert got.dtype == peer.dtype
    verdict = judge(
        got.bfloat16(), truth, [peer.bfloat16()]
    )  # float32, but no better than its products
    assert verdict, verdict.reason
    got.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in ours.parameters())


def test_autocast_dtypes_of_functions_are_torchs():
    x, w = random(2, 2, L, 8, seed=0), random(8, 8, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        assert bk.scaled_dot_product_attention(x, x, x).dtype == torch.bfloat16
        assert bk.feed_forward(x, w, None, w, None).dtype == torch.bfloat16
        assert bk.layer_norm(x, 8).dtype == torch.float32
        assert bk.layer_norm(x.bfloat16(), 8).dtype == torch.bfloat16
        assert bk.add_layer_norm(x.bfloat16(), x, None, None).dtype == torch.float32
        assert bk.scaled_dot_product_attention(*[x.double()] * 3).dtype == torch.float64


def test_autocast_casts_attention_inputs_of_several_dtypes_as_torch_does():
    low, ends = torch.bfloat16, torch.tensor([0, 2, L])
    x = random(1, 2, L, 8, seed=0)
    mixes = [(x, x.to(low), x.to(low)), (x.to(low), x, x.half()), (x.half(), x.half(), x)]
    masks = [None, torch.zeros(L, L), torch.zeros(L, L, dtype=low), torch.zeros(L, L).half()]
    with torch.autocast("cpu", low):
        for mix in mixes:
            for mask in masks:
                out = bk.scaled_dot_product_attention(*mix, mask)
                expected = F.scaled_dot_product_attention(*mix, mask)
                assert out.dtype == expected.dtype == low
                torch.testing.assert_close(out, expected)
            packed = [t[0].transpose(0, 1) for t in mix]
            assert bk.varlen_attn(*packed, ends, ends).dtype == low
        for wrong in ((x.double(), x, x), (x, x.double(), x), (x, x.int(), x), (x, None, x)):
            with pytest.raises(TypeError, match=r"^key: "):
                bk.scaled_dot_product_attention(*wrong)


def _x() -> Tensor:
    return random(B, L, E, seed=0)


MODULES: list[tuple[str, Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = [
    ("LayerNorm", lambda: bk.nn.LayerNorm(E), lambda m: m(_x())),
    ("MultiheadAttention", lambda: bk.nn.MultiheadAttention(E, H, 0.3), lambda m: m(*[_x()] * 3)[0]),
    ("FeedForward", lambda: bk.nn.FeedForward(E, HIDDEN, gated=True), lambda m: m(_x())),
    ("TransformerEncoderLayer", lambda: bk.nn.TransformerEncoderLayer(E, H, HIDDEN), lambda m: m(_x())),
    ("TransformerEncoder", _encoder, lambda m: m(_x(), src_key_padding_mask=_ignore())),
]  # fmt: skip
_MODULES = pytest.mark.parametrize(
    ("make", "run"), [m[1:] for m in MODULES], ids=[m[0] for m in MODULES]
)


def _saved(module: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _loaded(module: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(module.state_dict(), strict=True, assign=True)
    return fresh


@_MODULES
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), _saved, _loaded],
    ids=["deepcopy", "pickle", "save", "load_state_dict"],
)  # fmt: skip
def test_copies_compute_the_same_bits(make, run, copied):
    module = make()
    run(module).sum().backward()  # whatever a call leaves behind must not get in the way
    twin = copied(module)
    assert type(twin) is type(module)
    for training in (False, True):
        torch.manual_seed(1)
        expected = run(module.train(training))
        torch.manual_seed(1)
        assert torch.equal(run(twin.train(training)), expected)


@_MODULES
def test_inference_mode_and_no_grad_compute_the_same_bits(make, run):
    module = make().eval()
    graded = run(module)
    with torch.no_grad():
        expected = run(module)
    with torch.inference_mode():
        assert torch.equal(run(module), expected)
    if isinstance(
        module, bk.nn.TransformerEncoder
    ):  # one native call where no gradients are wanted
        torch.testing.assert_close(graded, expected, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(graded, expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_checkpointing_with_dropout_gives_the_same_gradients(norm_first, reentrant):
    ours = _encoder(dropout=0.3, norm_first=norm_first).train()
    found = []
    for checkpointed in (False, True):
        x = random(B, L, E, seed=0).requires_grad_()
        torch.manual_seed(7)
        hidden = x
        for layer in ours.layers:
            if checkpointed:
                hidden = checkpoint(layer, hidden, None, _ignore(), use_reentrant=reentrant)
            else:
                hidden = layer(hidden, None, _ignore())
        ours.zero_grad()
        hidden.square().sum().backward()
        found.append([x.grad, *(p.grad.clone() for p in ours.layers.parameters())])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("norm_first", [False, True])
def test_export_with_dynamic_shapes_runs_at_other_shapes(norm_first):
    ours = _encoder(norm_first=norm_first).eval()
    batch, length = (
        torch.export.Dim("batch", min=2, max=64),
        torch.export.Dim("length", min=2, max=512),
    )
    x, ignore = random(3, 7, E, seed=0), torch.arange(7) >= torch.tensor([[7], [4], [2]])
    program = torch.export.export(
        ours, (x,), {"src_key_padding_mask": ignore},
        dynamic_shapes={"src": {0: batch, 1: length}, "src_key_padding_mask": {0: batch, 1: length}},
    )  # fmt: skip
    for at in ((3, 7), (2, 5), (6, 11)):
        x = random(*at, E, seed=1)
        ignore = torch.arange(at[1]) >= torch.randint(1, at[1] + 1, (at[0], 1))
        torch.testing.assert_close(
            program.module()(x, src_key_padding_mask=ignore), ours(x, src_key_padding_mask=ignore)
        )


def _train_on_half(rank: int, world: int, address: str, results: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    try:
        wrapped = nn.parallel.DistributedDataParallel(_encoder(dropout=0.0))
        x = random(2 * B, L, E, seed=0)[rank * B : (rank + 1) * B]
        wrapped(x, src_key_padding_mask=_ignore()).square().sum().backward()
        results.put((rank, [p.grad.numpy() for p in wrapped.parameters()]))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_average_their_gradients(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = torch.multiprocessing.spawn(
        _train_on_half, (2, f"file://{tmp_path}/meeting", results), nprocs=2, join=False
    )
    found = dict(results.get() for _ in range(2))
    while not workers.join():
        pass
    ours = _encoder(dropout=0.0)
    out = ours(random(2 * B, L, E, seed=0), src_key_padding_mask=_ignore().repeat(2, 1))
    (out.square().sum() / 2).backward()
    for first, second, alone in zip(found[0], found[1], ours.parameters(), strict=True):
        assert (first == second).all()
        torch.testing.assert_close(torch.from_numpy(first), alone.grad)


def test_numbers_of_numpy_are_numbers():
    x, n = random(B, L, E, seed=0), np.int64(E)
    expected = F.layer_norm(x, (E,))
    torch.testing.assert_close(bk.layer_norm(x, n), expected)
    torch.testing.assert_close(bk.layer_norm(x, [n]), expected)
    torch.testing.assert_close(bk.nn.LayerNorm(n, eps=np.float32(1e-5))(x), expected)
    layer = bk.nn.TransformerEncoderLayer(np.int64(E), H, HIDDEN, dropout=np.float32(0.1))
    layer.train()(x).sum().backward()
    norm = nn.Sequential(nn.LayerNorm(n, np.float64(1e-5)))
    bk.accelerate(norm)
    torch.testing.assert_close(norm(x), expected)
    with pytest.raises(TypeError, match=r"^normalized_shape: "):
        bk.layer_norm(x, np.float32(E))
    with pytest.raises(ValueError, match=r"^eps: "):
        bk.layer_norm(x, E, eps=np.float32("nan"))
    with pytest.raises(ValueError, match=r"^scale: "):
        bk.scaled_dot_product_attention(x, x, x, scale=np.float32("inf"))


def test_a_layer_norm_over_nothing_gives_nothing():
    for shape in ((0,), (2, 0), (0, 3)):
        ours, theirs = bk.nn.LayerNorm(shape), nn.LayerNorm(shape)
        x = torch.randn(3, *shape, requires_grad=True)
        assert ours(x).shape == theirs(x).shape == (3, *shape)
        ours(x).sum().backward()
        assert x.grad is not None and ours.weight.grad is not None
        assert x.grad.shape == x.shape and ours.weight.grad.shape == shape
    x, bias = torch.randn(3, 0, dtype=torch.float16), torch.randn(0, requires_grad=True)
    out = bk.layer_norm(x, 0, None, bias)  # float32 beside 16 bits
    assert out.shape == x.shape and out.dtype == x.dtype
    out.sum().backward()
    assert bias.grad is not None and bias.grad.dtype == bias.dtype


class _Masked(nn.Module):
    """A module of ours as a function of its input and its mask, as ``torch.jit.trace`` wants it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, ignore: Tensor) -> Tensor:
        if isinstance(self.inner, nn.MultiheadAttention):
            return self.inner(x, x, x, ignore, need_weights=False)[0]  # type: ignore[no-any-return]
        return self.inner(x, src_key_padding_mask=ignore)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make", [lambda: scramble(bk.nn.MultiheadAttention(E, H, batch_first=True)), _encoder]
)
@pytest.mark.parametrize("grad", [False, True])
def test_a_trace_serves_other_masks_and_sizes(make, grad):
    model, x = _Masked(make()).eval(), _x()
    with torch.set_grad_enabled(grad):
        saved = io.BytesIO()
        torch.jit.save(torch.jit.trace(model, (x, _ignore())), saved)
        saved.seek(0)
        traced = torch.jit.load(saved)
        others = [
            (x, _ignore().flip(1)),
            (x, _ignore((L, L))),
            (x, torch.arange(L) % 2 == torch.tensor([0, 1])[:, None]),
            (x[:1, :3], _ignore((2,))[:, :3]),
            (torch.cat([x, x + 1]), _ignore((1, 2, 3, L))),
        ]
        for inputs in others:
            torch.testing.assert_close(traced(*inputs), model(*inputs))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_plan_packs_other_masks():
    def there_and_back(x: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        plan = packing.plan(keep)
        return packing.pad(packing.unpad(x, plan) * 2, plan), plan.cu_seq

    x = _x()
    traced = torch.jit.trace(there_and_back, (x, torch.ones(B, L)))
    keep = (~_ignore()).float()
    torch.testing.assert_close(traced(x, keep), there_and_back(x, keep))
