"""How Triton kernels are launched: by forms that were found before, right in every case in which Triton would build
another, and in less time."""

import statistics
import time

import pytest
import torch

import bigkernels as bk
from bigkernels import library
from bigkernels.cli import main, warmup
from bigkernels.ops import triton_launch
from bigkernels.ops.attention import triton as attention_drawer
from bigkernels.ops.layer_norm import reference
from bigkernels.testing.oracle import same_bits

pytestmark = pytest.mark.usefixtures("sm_80")


def kernel():
    from bigkernels.ops.layer_norm.triton_kernels import layer_norm_forward_kernel

    return layer_norm_forward_kernel


def forms():
    """Of the kernel, compiled so far."""
    return len(kernel().device_caches[80][0])


def call(x, weight=None):
    return bk.layer_norm(x, x.shape[-1:], weight, backend="triton")


def check(x, weight=None):
    expected = reference.layer_norm(x, weight, None, x.shape[-1], 1e-5)
    torch.testing.assert_close(call(x, weight), expected)


def test_a_known_form_is_launched_without_triton(monkeypatch):
    x = torch.randn(3, 48)
    first = call(x)
    monkeypatch.setattr(type(kernel()), "run", None)
    assert same_bits(call(x), first)


@pytest.mark.parametrize("width", [1, 40, 48])
def test_no_number_of_rows_builds_a_form(width):
    call(torch.randn(5, width))
    before = forms()
    for rows in (1, 2, 15, 16, 17, 32, 64):
        check(torch.randn(rows, width))
    assert forms() == before


def test_what_a_form_depends_on_finds_another():
    weight, half = torch.randn(48), torch.randn(48).half()
    check(torch.randn(4, 48))
    check(torch.randn(4, 48), weight)
    check(torch.randn(4, 48).half(), half)
    check(torch.randn(4, 48).half(), weight)
    check(torch.randn(4, 1), weight[:1])
    check(torch.randn(4, 47), weight[:47])


def test_addresses_that_are_not_aligned_go_through_triton():
    memory, weight = torch.randn(4 * 48 + 3), torch.randn(48)
    check(memory[: 4 * 48].view(4, 48), weight)
    for shift in (1, 2, 3):
        check(memory[shift : shift + 4 * 48].view(4, 48), weight)


def test_a_call_with_hooks_goes_through_triton(monkeypatch):
    from triton import knobs

    call(torch.randn(3, 48))
    run, seen = type(kernel()).run, []

    def counted(self, *arguments, **options):
        seen.append(self)
        return run(self, *arguments, **options)

    monkeypatch.setattr(type(kernel()), "run", counted)
    call(torch.randn(3, 48))
    assert not seen
    monkeypatch.setattr(knobs.runtime.launch_enter_hook, "calls", [lambda metadata: None])
    call(torch.randn(3, 48))
    assert seen


def test_a_launch_takes_less_time_than_triton_s(sm_80):
    """The host's part alone: the launcher does nothing. Both measured in turn, in this thread's time."""
    sm_80.get_current_device = lambda: 99  # its forms serve no other test
    sm_80.launcher_cls = lambda source, metadata: lambda *arguments: None
    sm_80.utils.load_binary = lambda *arguments: (object(), object(), 0, 0, 1024)
    x, out, weight, rstd = torch.randn(4, 48), torch.empty(4, 48), torch.randn(48), torch.empty(4)
    given = (x, None, None, weight, None, out, None, None, rstd, None, None, None)
    given += (4, 4, 48, 1e-5, 0, 1.0)
    constants = {"DROPOUT": False, "BLOCK_M": 16, "BLOCK_N": 64, "num_warps": 4}

    def ours():
        triton_launch.launch(kernel(), (1,), *given, **constants)

    def triton_s():
        kernel()[(1,)](*given, **constants)

    def seconds(function):
        before = time.thread_time()
        for _ in range(200):
            function()
        return time.thread_time() - before

    ours(), triton_s()
    ratios = [seconds(ours) / seconds(triton_s) for _ in range(9)]
    assert statistics.median(ratios) < 0.75, ratios


def test_a_call_like_an_earlier_one_is_right_with_other_tensors():
    """It is launched by what the first one left behind, but for tensors in other places, or missing ones."""
    weight, memory = torch.randn(48), torch.randn(2 * 4 * 48 + 1)
    for x in (torch.randn(4, 48), memory[: 4 * 48].view(4, 48), memory[1 : 4 * 48 + 1].view(4, 48)):
        for _ in range(2):
            check(x, weight)
            check(x)
    q = torch.randn(2, 2, 17, 16, requires_grad=True)
    lengths = torch.tensor([9, 17])
    for turn in range(3):
        given = {"key_lengths": lengths} if turn == 1 else {"is_causal": turn == 2}
        for _ in range(2):
            x = (q.detach() + turn).requires_grad_()
            found = bk.scaled_dot_product_attention(x, x, x, backend="triton", **given)
            expected = bk.scaled_dot_product_attention(x, x, x, backend="reference", **given)
            torch.testing.assert_close(found, expected)
            dout = torch.randn_like(found)
            pair = (
                torch.autograd.grad(out, x, dout, retain_graph=True) for out in (found, expected)
            )
            torch.testing.assert_close(next(pair), next(pair), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 20])
def test_attention_replays_for_rows_in_place_and_is_right_for_others(dim, monkeypatch):
    replayed, replay = [], triton_launch.replay

    def watched(known, pointers):
        replayed.append(replay(known, pointers))
        return replayed[-1]

    monkeypatch.setattr(triton_launch, "replay", watched)
    memory = torch.randn(3, 2 * 11 * dim + 8)
    for turn, offset in enumerate((0, 0, 1, 0)):
        replayed.clear()
        at = [row[offset : offset + 2 * 11 * dim].view(1, 2, 11, dim) for row in memory]
        q, k, v = (x.requires_grad_() for x in at)
        assert (q.data_ptr() % 16 == 0) is (offset == 0)
        found, expected = (
            bk.scaled_dot_product_attention(q, k, v, backend=backend)
            for backend in ("triton", "reference")
        )
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(x.sum(), (q, k, v)) for x in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
        # What is not in place fails once, and then is a copy that is. Heads of 20 are always copied.
        tries = offset > 0 and dim == 16
        assert any(replayed) is (turn > 0) and (not all(replayed)) is tries, turn


def test_what_is_remembered_of_a_call_lets_no_bad_one_through():
    x, weight = torch.randn(3, 48), torch.randn(48)
    q = torch.randn(1, 2, 5, 16)
    one = torch.randn(3, 1)
    for _ in range(2):
        call(x, weight)
        bk.layer_norm(one, 1, backend="triton")
        bk.add_layer_norm(x, x, weight, weight, backend="triton")
        bk.scaled_dot_product_attention(q, q, q, backend="triton")
        for error, bad in (
            (ValueError, lambda: bk.layer_norm(x, (48,), weight[:4], backend="triton")),
            (TypeError, lambda: bk.layer_norm(x, (48,), weight.double(), backend="triton")),
            (TypeError, lambda: bk.layer_norm(x, (48,), weight, eps="no", backend="triton")),
            (TypeError, lambda: bk.layer_norm(one, True, backend="triton")),
            (ValueError, lambda: bk.add_layer_norm(x, x, weight, weight, dropout_p=2.0, backend="triton")),
            (TypeError, lambda: bk.add_layer_norm(x, x, weight, weight, return_sum=0, backend="triton")),
            (ValueError, lambda: bk.scaled_dot_product_attention(q, q, q[:, :, :2], backend="triton")),
            (TypeError, lambda: bk.scaled_dot_product_attention(q, q, q, is_causal=0, backend="triton")),
            (bk.Unsupported, lambda: bk.layer_norm(x.double(), (48,), backend="triton")),
        ):  # fmt: skip
            with pytest.raises(error):
                bad()


def test_what_is_remembered_of_packing_lets_no_bad_call_through():
    keep, x = torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 5, 16)
    keep[1, 3:] = False
    plan = bk.packing.plan(keep, 8, backend="triton")
    full = bk.packing.plan(keep.new_ones(2, 5), backend="triton")
    for _ in range(2):
        assert bk.packing.plan(keep, 8, backend="triton").indices.shape == (8,)
        packed = bk.packing.unpad(x, plan, backend="triton")
        assert same_bits(bk.packing.pad(packed, plan, backend="triton")[0], x[0])
        assert same_bits(bk.packing.unpad(x, full, backend="triton"), x.flatten(0, 1))
        leaf = x.clone().requires_grad_()
        assert bk.packing.unpad(leaf, plan, backend="triton").requires_grad
        with torch.no_grad():
            assert not bk.packing.unpad(leaf, plan, backend="triton").requires_grad
        for error, bad in (
            (ValueError, lambda: bk.packing.plan(keep, 11, backend="triton")),
            (TypeError, lambda: bk.packing.plan(keep, True, backend="triton")),
            (ValueError, lambda: bk.packing.plan(keep[0], 8, backend="triton")),
            (ValueError, lambda: bk.packing.unpad(x[:, :4], plan, backend="triton")),
            (ValueError, lambda: bk.packing.pad(x, plan, backend="triton")),
            (TypeError, lambda: bk.packing.unpad(x, tuple(plan), backend="triton")),
        ):
            with pytest.raises(error):
                bad()


def test_records_autocast_and_gradients_are_not_forgotten():
    x = torch.randn(3, 48)
    call(x), call(x)
    with bk.trace() as records:
        call(x)
    assert [r.backend for r in records] == ["triton"]
    leaf = x.clone().requires_grad_()
    assert call(leaf).requires_grad
    with torch.no_grad():
        assert not call(leaf).requires_grad
    assert call(leaf).requires_grad


def test_slopes_and_sinks_of_another_dtype_are_read_as_such(monkeypatch):
    q, numbers = torch.randn(1, 2, 9, 16).bfloat16(), torch.tensor([0.5, 0.25])
    for name in ("alibi_slopes", "sinks"):
        calls = [
            lambda name=name, dtype=dtype: bk.scaled_dot_product_attention(
                q, q, q, backend="triton", **{name: numbers.to(dtype)}
            )
            for dtype in (torch.float32, torch.bfloat16, torch.float32)
        ]
        found = [call() for call in calls]
        for call, earlier in zip(calls, found, strict=True):
            monkeypatch.setattr(attention_drawer, "_FORWARD", triton_launch.Replays())
            assert same_bits(call(), earlier)


def test_tensors_whose_memory_is_not_their_value_go_through_torch(monkeypatch):
    """Past its dispatcher they would be read as they lie there, or not at all."""
    monkeypatch.setattr(library, "_dispatch_modes", lambda: 0)  # the emulator's own mode
    drawer = library.IMPLEMENTATIONS["layer_norm_forward_triton"]
    x, weight = torch.randn(3, 48, requires_grad=True), torch.randn(48)
    with monkeypatch.context() as patched:
        called = []  # of this test, what is read in its place goes past the dispatcher
        patched.setitem(
            library.IMPLEMENTATIONS,
            "layer_norm_forward_triton",
            lambda *given: called.append(given) or drawer(*given),
        )
        check(x.detach(), weight)
        assert called
    check(torch._neg_view(x.detach()), weight)
    check(x.detach(), torch._neg_view(weight))
    out, douts = call(x, weight), torch.randn(2, 3, 48)
    (found,) = torch.autograd.grad(out, x, douts, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(out, x, dout, retain_graph=True)[0] for dout in douts]
    assert same_bits(found, torch.stack(expected))


@pytest.mark.parametrize(
    ("capability", "configurations"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_90"),
        ((12, 0), "sm_80"),
    ],
)
def test_a_chip_gets_tiles_that_its_shared_memory_holds(capability, configurations, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    assert triton_launch._architecture.__wrapped__(0) == configurations


def test_an_op_is_seen_by_whoever_watches_torch(monkeypatch):
    """Its implementation is called past torch's dispatcher only where nobody stands between."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function._schema.name)
            return function(*args, **(kwargs or {}))

    with Watch():
        call(torch.randn(3, 48))
    assert "bigkernels::layer_norm_forward_triton" in seen


@pytest.mark.parametrize("training", [False, True])
def test_the_warm_up_reaches_the_tiles_of_short_and_of_long_sequences(training):
    sizes = warmup.Sizes(32, 2, 64, 100, torch.bfloat16, 0.1, training)
    kinds = {name for name, _ in warmup.calls(sizes, "cpu", (32,), None)}
    forms = {"attention", "varlen_attn"}
    assert kinds >= forms | {f"{form}, long" for form in forms}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_warm_up_says_that_there_is_no_gpu(capsys):
    assert main(["warmup", "--width", "64", "--heads", "4"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert main(["warmup", "--width", "65", "--heads", "4"]) == 1
    assert "--heads: 4 does not divide" in capsys.readouterr().err
