"""embedding on every backend: judged by the oracle, and by what must hold without one."""

import pytest
import torch
from inputs import HALVES, dtypes

import bigkernels as bk
from bigkernels.ops.embedding.contract import Facts
from bigkernels.testing import cases
from bigkernels.testing.oracle import same_bits

HAND_PICKED_AND_RANDOM = cases("embedding")
MORE_RANDOM = [case for case in cases("embedding", full=True) if case not in HAND_PICKED_AND_RANDOM]


@pytest.mark.parametrize("case", HAND_PICKED_AND_RANDOM, ids=str)
def test_outputs_and_gradients_match_float64(case, device):
    device.check(case)


@pytest.mark.full
@pytest.mark.parametrize("case", MORE_RANDOM, ids=str)
def test_random_calls_match_float64(case, device):
    device.check(case)


def require(device, dtype, n, dropout=False):
    device.require("embedding", Facts(device.type, dtype, dtype, n, True, True, dropout, True))


def parts(dtype, n, words=30):
    """Tables of words, positions and types, and weight and bias, wanting gradients."""
    shapes = ((words, n), (16, n), (2, n), (n,), (n,))
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def both(device, ids, given, **named):
    """The output and all gradients."""
    out = bk.embedding(ids, *given, backend=device.backend, **named)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out)
    return [out.detach(), *torch.autograd.grad(out, given, dout)]


@dtypes
def test_the_number_of_threads_changes_no_bit(dtype, device):
    if device.name != "cpu":
        pytest.skip("threads belong to the CPU kernels")
    given, ids = parts(dtype, 96), torch.randint(30, (40, 16))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(both(device, ids, given, dropout_p=0.1, seed=5))
    for a, b in zip(*found, strict=True):
        assert same_bits(a, b)


@dtypes
def test_tokens_do_not_know_their_neighbours(dtype, device):
    require(device, dtype, 70, True)
    given, ids = parts(dtype, 70), torch.randint(30, (9,))
    rows = torch.arange(9)

    def call(at):
        return bk.embedding(
            ids[at], *given, dropout_p=0.3, seed=3, rows=rows[at], backend=device.backend
        )

    whole = call(slice(None))
    for at in (slice(0, 1), slice(2, 9), torch.tensor([8, 0, 3])):
        assert same_bits(call(at), whole[at])


def test_packed_tokens_equal_padded_ones(device):
    require(device, torch.float32, 40, True)
    given, ids = parts(torch.float32, 40), torch.randint(30, (2, 5))
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    sample, place = keep.nonzero(as_tuple=True)
    named = {"dropout_p": 0.3, "seed": 3, "backend": device.backend}
    padded = bk.embedding(ids, *given, **named)
    packed = bk.embedding(ids[keep], *given, rows=sample << 32 | place, **named)
    assert same_bits(packed, padded[keep])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@dtypes
def test_nan_and_infinity_of_a_word_stay_with_its_tokens(dtype, bad, device):
    require(device, dtype, 40)
    given, ids = parts(dtype, 40), torch.tensor([3, 7, 3, 9])
    clean = both(device, ids, given)
    with torch.no_grad():
        given[0][7, 5] = bad
    dirty = both(device, ids, given)
    keep = torch.tensor([0, 2, 3])
    assert dirty[0][1].isnan().all()
    assert same_bits(clean[0][keep], dirty[0][keep])
    words = torch.arange(30) != 7
    assert same_bits(clean[1][words], dirty[1][words])


@pytest.mark.parametrize("wrong", [-1, 30, 2**40])
@pytest.mark.parametrize("table", ["word", "position", "type"])
def test_an_id_outside_its_table_is_an_error_not_a_crash(table, wrong, device):
    require(device, torch.float32, 16)
    given = parts(torch.float32, 16)
    good, bad = torch.tensor([1, 0]), torch.tensor([1, wrong])
    named = {"position_ids": good, "type_ids": good}
    if table != "word":
        named[f"{table}_ids"] = bad
    with pytest.raises(IndexError, match=r"^index out of range: "):
        bk.embedding(bad if table == "word" else good, *given, backend=device.backend, **named)


def test_more_tokens_than_positions_are_an_error(device):
    require(device, torch.float32, 16)
    with pytest.raises(IndexError, match=r"^index out of range: "):
        bk.embedding(
            torch.zeros(2, 17, dtype=torch.int64), *parts(torch.float32, 16), backend=device.backend
        )


def test_one_id_is_at_position_0(device):
    require(device, torch.float32, 16)
    word, position = (table.detach() for table in parts(torch.float32, 16)[:2])
    one, row = (
        bk.embedding(ids, word, position, backend=device.backend)
        for ids in (torch.tensor(4), torch.tensor([4]))
    )
    assert one.shape == (16,)
    assert same_bits(one, row[0])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_without_gradients_the_output_is_the_same(dtype, device):
    require(device, dtype, 48)
    given, ids = parts(dtype, 48), torch.randint(30, (3, 7))
    with torch.no_grad():
        plain = bk.embedding(ids, *given, backend=device.backend)
    assert same_bits(plain, bk.embedding(ids, *given, backend=device.backend).detach())


def test_it_differentiates_twice(device):
    require(device, torch.float64, 6)
    given, ids = parts(torch.float64, 6, words=4), torch.tensor([[0, 3, 3], [1, 2, 1]])

    def call(*given):
        return bk.embedding(ids, *given, dropout_p=0.2, seed=1, backend=device.backend)

    assert torch.autograd.gradcheck(call, given)
    assert torch.autograd.gradgradcheck(call, given)


def test_changing_a_table_before_the_backward_is_noticed(device):
    require(device, torch.float32, 16)
    given = parts(torch.float32, 16)
    out = bk.embedding(torch.tensor([1, 2]), *given, backend=device.backend)
    with torch.no_grad():
        given[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_it_compiles_into_one_graph(device):
    if device.name != "cpu":
        pytest.skip("an emulated device follows eager calls only")
    given = parts(torch.float32, 24)

    def step(ids):
        return bk.embedding(ids, *given, dropout_p=0.1, seed=2)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (3, 5, 9):
        ids = torch.randint(30, (2, length))
        assert same_bits(compiled(ids).detach(), step(ids).detach())
