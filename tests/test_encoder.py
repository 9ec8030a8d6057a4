"""The encoder room: judged by the oracle, and by what must hold without one."""

import multiprocessing
import threading

import pytest
import torch

from bigkernels import Unsupported
from bigkernels.ops.encoder import api, contract, cpu
from bigkernels.ops.encoder.contract import PARTS, Facts
from bigkernels.testing import cases
from bigkernels.testing.oracle import same_bits

HAND_PICKED_AND_RANDOM = cases("encoder")
MORE_RANDOM = [case for case in cases("encoder", full=True) if case not in HAND_PICKED_AND_RANDOM]
# So long a second product is cut in K too, once there are enough rows.
widths = pytest.mark.parametrize("hidden", [128, 2176])
PRECISIONS = ["float32", "high", "bfloat16", "int8", "int8_weights"]
precisions = pytest.mark.parametrize("precision", PRECISIONS)


@pytest.fixture
def torch_precision():
    """Sets what the oracle's peers lose in a float32 product."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_outputs_match_float64(case, device, torch_precision):
    torch_precision("high" if case.precision == "high" else "highest")
    device.check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", MORE_RANDOM, ids=str)
def test_random_calls_match_float64(case, device):
    device.check(case)


def weights(layers=2, width=64, hidden=128):
    torch.manual_seed(3)
    found = []
    for _ in range(layers):
        for name in PARTS:
            rows = hidden if name.startswith("up") else width
            if name.startswith("norm"):
                found.append(torch.randn(width) / 5 + name.endswith("weight"))
            elif name.endswith("weight"):
                columns = hidden if name == "down.weight" else width
                found.append(torch.randn(rows, columns) / columns**0.5)
            else:
                found.append(torch.randn(rows) / 5)
    return found


def starts(*lengths):
    return torch.tensor((0, *lengths)).cumsum(0)


@pytest.fixture
def hidden():
    return 128


@pytest.fixture
def network(device, precision, hidden):
    """x, cu_seq to the result of a small encoder, its weights packed once."""
    facts = Facts("cpu", torch.float32, precision, "gelu", False, False, 64, hidden, 32, False)
    device.require("encoder", facts)
    packed = api.pack_encoder(weights(hidden=hidden), 2, precision)
    return lambda x, cu_seq, **options: api.encoder(
        x, cu_seq, packed, heads=2, precision=precision, backend="cpu", **options
    )


@precisions
@widths
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_has_the_same_bits_in_any_company(network, norm_first, causal):
    lengths = (5, 70, 1, 33, 16, 12, 300)
    parts = [torch.randn(length, 64) for length in lengths]
    options = {"norm_first": norm_first, "causal": causal}
    together = network(torch.cat(parts), starts(*lengths), **options).split(lengths)
    for part, expected in zip(parts, together, strict=True):
        assert same_bits(network(part, starts(len(part)), **options), expected)
    two = network(torch.cat([parts[3], parts[0]]), starts(33, 5), **options)
    assert same_bits(two, torch.cat([together[3], together[0]]))


@precisions
@widths
def test_the_number_of_threads_changes_no_bit(network):
    x, cu_seq = torch.randn(333, 64), starts(100, 3, 230)
    found = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        found.append(network(x, cu_seq))
    assert all(same_bits(found[0], out) for out in found[1:])


@precisions
def test_a_number_that_is_not_finite_stays_in_its_sequence(network):
    x, cu_seq = torch.randn(90, 64), starts(30, 20, 40)
    clean = network(x, cu_seq)
    for bad in (float("nan"), float("inf")):
        x[35, 11] = bad
        out = network(x, cu_seq)
        assert out[30:50].isnan().all()
        assert same_bits(out[:30], clean[:30])
        assert same_bits(out[50:], clean[50:])


@precisions
def test_causal_tokens_do_not_see_what_follows(network):
    x = torch.randn(40, 64)
    whole = network(x, starts(40), causal=True)
    assert same_bits(network(x[:23], starts(23), causal=True), whole[:23])


@precisions
def test_python_threads_share_the_packed_weights(network):
    inputs = [(torch.randn(n, 64), starts(n)) for n in (3, 40, 70, 100)]
    expected = [network(*given) for given in inputs]
    found = [[] for _ in inputs]

    def work(i):
        found[i] += [network(*inputs[i]) for _ in range(20)]

    team = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for member in team:
        member.start()
    for member in team:
        member.join()
    for outs, out in zip(found, expected, strict=True):
        assert all(same_bits(o, out) for o in outs)


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("precision", ["int8", "int8_weights"])
def test_int8_stays_close_to_float32(device, precision, norm_first):
    shape = (384, 1536)
    facts = Facts("cpu", torch.float32, precision, "gelu", norm_first, False, *shape, 32, False)
    device.require("encoder", facts)
    given, lengths = weights(6, *shape), (60, 1, 33)
    x = torch.randn(sum(lengths), shape[0])
    x[:, 7] *= 20  # a column as trained models have some
    options = {"heads": 12, "norm_first": norm_first}
    out, expected = (
        api.encoder(x, starts(*lengths), given, precision=precision, **options)
        for precision in (precision, "float32")
    )
    cosines = torch.cosine_similarity(out, expected, dim=1)
    assert cosines.mean() > 0.999
    assert cosines.quantile(0.01) > 0.997


@pytest.mark.parametrize(
    ("width", "hidden", "heads"), [(64, 128, 2), (96, 160, 3), (40, 72, 4), (128, 2176, 1)]
)
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("norm_first", [False, True])
def test_integer_weights_lose_no_more_than_bfloat16_where_both_hold_them_exactly(
    device, width, hidden, heads, activation, norm_first
):
    facts = Facts(
        "cpu", torch.float32, "int8_weights", "gelu", False, False, width, hidden, 8, False
    )
    device.require("encoder", facts)
    exact = []
    for index, weight in enumerate(weights(3, width, hidden)):
        if weight.dim() == 2:  # in steps of 1/512: the largest of each row is 127 of them
            weight = (weight * 300).round().clamp(-126, 126)
            weight[:, index % width] = 127
            weight = weight / 512
        exact.append(weight)
    lengths = (5, 33, 1, 90)
    x = torch.randn(sum(lengths), width)
    options = {"heads": heads, "activation": activation, "norm_first": norm_first, "causal": True}
    found, peer, truth = (
        api.encoder(x, starts(*lengths), exact, precision=precision, backend="cpu", **options)
        for precision in ("int8_weights", "bfloat16", "float32")
    )
    assert (found - truth).square().mean() <= (peer - truth).square().mean()
    assert (found - truth).abs().max() <= 2 * (peer - truth).abs().max()


def test_int8_refuses_widths_that_fill_no_tile(device):
    usual = Facts("cpu", torch.float32, "int8", "gelu", False, False, 64, 128, 32, False)
    device.require("encoder", usual)
    with pytest.raises(Unsupported, match="hidden 96 is not a multiple of 64"):
        api.pack_encoder(weights(1, 64, 96), 2, "int8")
    with pytest.raises(Unsupported, match="head_dim 16 is not a multiple of 32"):
        api.pack_encoder(weights(1, 64, 128), 4, "int8")


def _in_child(queue, network, x, cu_seq):
    queue.put(network(x, cu_seq).numpy())


@precisions
def test_a_forked_process_computes_the_same(network):
    x, cu_seq = torch.randn(70, 64), starts(70)
    expected = network(x, cu_seq)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(queue, network, x, cu_seq))
    child.start()
    out = torch.from_numpy(queue.get())
    child.join(60)
    assert child.exitcode == 0
    assert same_bits(out, expected)


@precisions
def test_a_copy_of_packed_weights_serves(network, precision):
    packed = api.pack_encoder(weights(), 2, precision)
    assert packed.data.numel() == contract.packed_bytes(2, 64, 128, precision)
    padded = torch.cat([packed.data.new_zeros(192), packed.data])[192:]
    x, cu_seq = torch.randn(20, 64), starts(20)
    for copy in (packed.data.clone(), padded):
        out = api.encoder(x, cu_seq, packed._replace(data=copy), heads=2, precision=precision)
        assert same_bits(out, network(x, cu_seq))


@pytest.mark.parametrize("pages", [False, True])
def test_a_fingerprint_tells_changed_exchanged_and_resized_weights(device, pages):
    device.require(
        "encoder", Facts("cpu", torch.float32, "float32", "gelu", False, False, 64, 128, 32, False)
    )
    given = [torch.randn(300, 300), torch.randn(300), torch.empty(0)]
    before = api.fingerprint(given, pages)
    assert torch.equal(before, api.fingerprint([t.clone() for t in given], pages))
    assert before.unique().numel() == 3
    step = given[0] * 1.001
    views = [given[0].view(100, 900), given[0].bfloat16()]
    changed = [
        *views,
        step,
        given[0].roll(1, 0),
        given[0][:, :299].contiguous(),
        given[0].T.contiguous(),
    ]
    for weight in changed:
        assert not torch.equal(before[0], api.fingerprint([weight], pages)[0])
    for place in range(300):  # a small tensor is read whole
        one = given[1].clone()
        one[place] += 1
        assert not torch.equal(before[1], api.fingerprint([one], pages)[0])
    for place in range(0, 90000 - 1024, 1024) if pages else ():  # a page's worth is seen anywhere
        one = given[0].clone()
        one.view(-1)[place : place + 1024] += 1
        assert not torch.equal(before[0], api.fingerprint([one], pages)[0])


@pytest.mark.parametrize("pages", [False, True])
def test_weights_are_fingerprinted_where_they_lie(device, pages):
    device.require(
        "encoder", Facts("cpu", torch.float32, "float32", "gelu", False, False, 64, 128, 32, False)
    )
    given = [torch.randn(300, 300), torch.randn(300), torch.empty(0)]
    places = cpu.Places(given)
    before = places.fingerprint(pages)
    assert before == cpu.Places(given).fingerprint(pages)
    assert before == cpu.Places([t.clone() for t in given]).fingerprint(pages)
    assert before != cpu.Places([given[1], given[0], given[2]]).fingerprint(pages)
    for weight, part in ((given[0], slice(None)), (given[1], slice(299, 300))):
        kept = weight.clone()
        weight.data[part] *= 1.001
        assert places.fingerprint(pages) != before
        weight.data.copy_(kept)
        assert places.fingerprint(pages) == before


def test_derivatives_are_not_lost_in_transforms():
    x, cu_seq, given = torch.randn(9, 64), starts(5, 4), weights(1)
    run = lambda x: api.encoder(x, cu_seq, given, heads=2)  # noqa: E731
    _, tangent = torch.func.jvp(run, (x,), (x.cos(),))
    step = (run(x + 1e-2 * x.cos()) - run(x - 1e-2 * x.cos())) / 2e-2
    torch.testing.assert_close(tangent, step, rtol=0.02, atol=0.005)


def test_wrong_arguments_are_named(device):
    device.require(
        "encoder", Facts("cpu", torch.float32, "float32", "gelu", False, False, 64, 128, 32, False)
    )
    given = weights()
    x, cu_seq = torch.randn(9, 64), starts(9)
    packed = api.pack_encoder(given, 2)

    def fails(words, *args, **options):
        with pytest.raises((ValueError, TypeError, RuntimeError), match=words):
            api.encoder(*args, **{"heads": 2, "backend": "cpu", **options})

    fails("weights: 15 tensors", x, cu_seq, given[:15])
    fails("layer 1: up.weight", x, cu_seq, [*given[:26], given[26].T, *given[27:]])
    fails("heads: 3 does not divide", x, cu_seq, given, heads=3)
    fails("x: shape", x[:, :60], cu_seq, given)
    fails("cu_seq: expected an int32", x, cu_seq.float(), given)
    fails("cu_seq: goes from 0 to 8, expected 0 to 9", x, starts(8), packed)
    fails("cu_seq: falls at 2", x, torch.tensor([0, 7, 3, 9]), packed)
    fails("activation", x, cu_seq, packed, activation="swish")
    fails("packed for 2 heads", x, cu_seq, packed, heads=4)
    fails("made for another encoder", x, cu_seq, packed._replace(layers=1))
    fails("packed: expected", x, cu_seq, packed._replace(data=packed.data[1:]))
    fails("there is no backward", x.clone().requires_grad_(), cu_seq, packed)
    with pytest.raises(ValueError, match="precision"):
        api.pack_encoder(given, 2, "float8")
