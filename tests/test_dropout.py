"""Dropout is a frozen function of (seed, offset, where): the same bits on every backend, now and later."""

import math

import pytest
import torch
from dropped import correlation, hidden_mask, row_mask, score_mask, served
from torch.utils.checkpoint import checkpoint

import bigkernels as bk
from bigkernels.ops import dropout

# Published with Random123 (kat_vectors, philox4x32-10): counter, key, words.
RANDOM123 = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

# (seed, offset, c0, c1, c2): words. They may never change: checkpoints of runs rely on them.
WORDS = {
    (0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (1, 0, 0, 0, 0): (0xE3E80670, 0xE50A0EBC, 0x95F222C0, 0xB615AA27),
    (0, 1, 0, 0, 0): (0x2DCE73E5, 0x1348E23F, 0xFCF8E0EC, 0xA287AADB),
    (0, 0, 1, 0, 0): (0xF8E4CCA4, 0x5CB200DB, 0xB1A574EB, 0x097EFF67),
    (0, 0, 0, 1, 0): (0x6AD0C5EC, 0xEA236249, 0x73A459F5, 0x074944B3),
    (0, 0, 0, 0, 1): (0x844515E1, 0xF08D6EAA, 0x0F19C053, 0x83F875F0),
    (2**63 - 1, 0, 7, 3, 11): (0xFCEB857A, 0xCD211A9B, 0x5D94930A, 0x7984E289),
    (-1, 5, 191, 511, 31): (0x3E66B8C2, 0x0C0CCD17, 0x368CC37D, 0x6F461B1E),
    (0x0123456789ABCDEF, 2**32 + 9, 100, 2**32 - 1, 2**31): (
        0x54D1ABD4,
        0xB4DDBDA1,
        0xA625742F,
        0x9F9A6D2B,
    ),
    (42, -1, 0, 0, 0): (0x99CF4594, 0xAE686976, 0xCB8CFBCA, 0x02E78DD0),
}

# (seed, offset, p): {(b, i): which of 30 columns are kept}.
KEPT = {
    (7, 0, 0.5): {
        (0, 0): "##...#.#..##.....###..###.....",
        (0, 1): "..##....#.#..####.##.####.....",
        (1, 0): "....###..###.....#.##..##..#..",
        (5, 300): "...#..########.#....#.#....##.",
    },
    (7, 3, 0.1): {
        (0, 0): "#################..####..#####",
        (0, 1): "##################.#########..",
        (1, 0): "############.##.##.#####.#####",
        (5, 300): "#####.#.###########.##########",
    },
    (-12345678901234567, 1, 0.9): {
        (0, 0): "....##.................#....#.",
        (0, 1): "..#......#...#...........#..#.",
        (1, 0): ".............#.....#......#...",
        (5, 300): "....#..........#.......#.#....",
    },
}


def philox(counter, key):
    """Philox4x32-10 once more, from the paper, in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right % 2**32, left >> 32 ^ c[3] ^ k[1], left % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def words(seed, offset, *where):
    seed %= 2**64
    return philox((*where, offset % 2**32), (seed % 2**32, seed >> 32))


def kept(seed, offset, p, b, i, columns):
    threshold = math.floor(p * 2**32)
    return [words(seed, offset, j // 4, i, b)[j % 4] >= threshold for j in range(columns)]


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_philox_gives_the_published_words(counter, key, expected):
    assert philox(counter, key) == expected
    seed = torch.tensor(key[1] << 32 | key[0], dtype=torch.uint64).view(torch.int64)
    found = dropout.philox(*(torch.tensor(c) for c in counter), seed)
    assert tuple(int(word) for word in found) == expected


@pytest.mark.parametrize("where", WORDS)
def test_the_frozen_words_are_unchanged(where):
    seed, offset, c0, c1, c2 = where
    assert words(*where) == WORDS[where]
    counter = (torch.tensor(c) for c in (c0, c1, c2, offset & 0xFFFFFFFF))
    found = dropout.philox(*counter, torch.tensor(seed))
    assert tuple(int(word) for word in found) == WORDS[where]


@pytest.mark.parametrize("mask", [row_mask, hidden_mask])
@pytest.mark.parametrize("key", KEPT)
def test_row_operations_keep_the_frozen_elements(key, mask, device):
    seed, offset, p = key
    for (b, i), pattern in KEPT[key].items():
        assert kept(seed, offset, p, b, i, 30) == [c == "#" for c in pattern]
        rows = torch.tensor([b << 32 | i], device=device.type)
        found = mask(device, (1, 30), p, seed, offset, rows)
        assert "".join(".#"[int(k)] for k in found[0]) == pattern


@pytest.mark.parametrize("key", KEPT)
def test_attention_keeps_the_frozen_weights(key, device):
    seed, offset, p = key
    found = score_mask(device, 2, 3, 2, 30, p, seed, offset)
    for b in range(2):
        for h in range(3):
            for i in range(2):
                expected = kept(seed, offset, p, b * 3 + h, i, 30)
                assert found[b, h, i].tolist() == expected


@pytest.mark.parametrize("shape", [(3, 5, 13), (2, 3, 4, 8), (7, 21), (10,)], ids=str)
@pytest.mark.parametrize("mask", [row_mask, hidden_mask])
def test_every_backend_keeps_what_the_definition_says(mask, shape, device):
    seed, offset = torch.tensor(987654321987), torch.tensor(77)
    expected = dropout.keep_rows(torch.empty(shape), 0.35, seed, offset, None)
    assert torch.equal(mask(device, shape, 0.35, int(seed), int(offset)), expected)


def test_the_number_of_threads_changes_no_element(device):
    if device.name != "cpu":
        pytest.skip("threads belong to the CPU kernels")
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(
            (
                row_mask(device, (9, 31, 37), 0.2, 5),
                hidden_mask(device, (9, 31, 37), 0.2, 5),
                score_mask(device, 3, 2, 33, 40, 0.2, 5),
            )
        )
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


LENGTHS = (3, 7, 1, 5)


def rows_of(lengths):
    return torch.tensor([b << 32 | i for b, length in enumerate(lengths) for i in range(length)])


@pytest.mark.parametrize("mask", [row_mask, hidden_mask])
def test_packed_rows_keep_what_padded_ones_do(mask, device):
    padded = mask(device, (len(LENGTHS), max(LENGTHS), 24), 0.4, 9)
    rows = rows_of(LENGTHS).to(device.type)
    for shape in ((sum(LENGTHS), 24), (1, sum(LENGTHS), 24)):
        packed = mask(device, shape, 0.4, 9, rows=rows).reshape(-1, 24)
        expected = torch.cat([padded[b, :length] for b, length in enumerate(LENGTHS)])
        assert torch.equal(packed, expected)


def test_packed_attention_keeps_what_padded_does(device):
    longest = max(LENGTHS)
    padded = score_mask(device, len(LENGTHS), 2, longest, longest, 0.4, 9)
    total = sum(LENGTHS)
    q = torch.zeros(total, 2, 8, device=device.type)
    v = torch.cat([torch.eye(longest)[:length] for length in LENGTHS])[:, None].expand(-1, 2, -1)
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    ends = ends.to(device.type)
    for rows in (None, rows_of(LENGTHS).to(device.type)):
        out = served(
            bk.varlen_attn,
            q,
            q,
            v.to(device.type),
            ends,
            ends,
            longest,
            longest,
            dropout_p=0.4,
            seed=9,
            rows=rows,
            backend=device.backend,
        )
        start = 0
        for b, length in enumerate(LENGTHS):
            found = (out[start : start + length] != 0).cpu().transpose(0, 1)[..., :length]
            assert torch.equal(found, padded[b, :, :length, :length])
            start += length


def weight_mask(device, shape, p, seed, offset=0):
    """score_mask with the heads as part of the batch: (B, H * Lq, Lk)."""
    batch, rows, keys = shape
    return score_mask(device, batch, 10, rows // 10, keys, p, seed, offset).reshape(shape)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        (row_mask, (10, 1000, 1000)),
        (hidden_mask, (10, 5000, 200)),
        (weight_mask, (10, 2500, 400)),
    ],
    ids=["rows", "hidden", "weights"],
)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_keep_rate_is_within_four_sigma_of_ten_million(p, mask, shape, device):
    if device.slow:
        pytest.skip("too large for an emulated device; its bits equal the others'")
    kept = mask(device, shape, p, 2024)
    count = kept.numel()
    assert count == 10**7
    sigma = math.sqrt(p * (1 - p) / count)
    assert abs(float(kept.double().mean()) - (1 - p)) < 4 * sigma
    # No column, row or sample of its own is off either: 5 sigma, for there are thousands of them.
    for dims in ((0, 1), (0, 2), (1, 2)):
        part = kept.double().mean(dims)
        assert float((part - (1 - p)).abs().max()) < 5 * sigma * math.sqrt(len(part))


@pytest.mark.parametrize("mask", [row_mask, weight_mask], ids=["rows", "weights"])
def test_layers_calls_rows_and_heads_are_uncorrelated(mask, device):
    if device.slow:
        pytest.skip("too large for an emulated device; its bits equal the others'")
    shape = (8, 200, 512)  # of weights: 10 heads of 20 queries
    base = mask(device, shape, 0.1, 1, 0)
    others = {
        "layer": mask(device, shape, 0.1, 1, 1),
        "call": mask(device, shape, 0.1, 2, 0),
        "high half of the seed": mask(device, shape, 0.1, 1 | 1 << 32, 0),
    }
    for name, other in others.items():
        assert abs(correlation(base, other)) < 4, name
    for shift in (1, 2, 3, 4, 8, 16, 64):
        assert abs(correlation(base[..., shift:], base[..., :-shift])) < 4, f"column + {shift}"
        assert abs(correlation(base[:, shift:], base[:, :-shift])) < 4, f"row + {shift}"
    for shift in (20, 40, 80):
        assert abs(correlation(base[:, shift:], base[:, :-shift])) < 4, f"head + {shift // 20}"
    assert abs(correlation(base[1:], base[:-1])) < 4


def drop(x, device, p=0.5):
    found = served(
        bk.add_layer_norm,
        x,
        torch.zeros_like(x),
        None,
        None,
        dropout_p=p,
        return_sum=True,
        backend=device.backend,
    )
    return found[1]


def test_each_call_draws_anew_and_manual_seed_repeats_it(device):
    x = torch.ones(4, 64, device=device.type)
    torch.manual_seed(1)
    first, second = drop(x, device), drop(x, device)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(drop(x, device), first)
    assert torch.equal(drop(x, device), second)
    torch.manual_seed(2)
    assert not torch.equal(drop(x, device), first)


def test_without_dropout_nothing_is_drawn(device):
    x = torch.ones(4, 64, device=device.type)
    state = torch.get_rng_state()
    drop(x, device, p=0.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_use_all_their_bits():
    drawn = [int(torch.ops.bigkernels.philox_seed(torch.empty(0))) for _ in range(200)]
    assert len(set(drawn)) == 200
    assert min(drawn) >= 0
    assert max(drawn) > 2**62
    assert any(seed % 2 for seed in drawn)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_repeats_the_same_dropout(use_reentrant, device):
    x = torch.randn(4, 64, device=device.type, requires_grad=True)

    def block(x):
        return drop(drop(x, device).sin(), device).sin()

    torch.manual_seed(5)
    (plain,) = torch.autograd.grad(block(x).sum(), x)
    torch.manual_seed(5)
    again = checkpoint(block, x, use_reentrant=use_reentrant)
    again.sum().backward()
    assert torch.equal(x.grad, plain)
    assert 0 < int((plain == 0).sum()) < plain.numel()


def test_the_gradient_drops_what_the_forward_dropped(device):
    x = torch.randn(6, 50, device=device.type, requires_grad=True)
    out = drop(x, device)
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(dx != 0, out != 0)


def test_a_seed_may_be_a_tensor(device):
    x = torch.ones(3, 40, device=device.type)
    expected = row_mask(device, (3, 40), 0.5, 99, 4)
    for shape in ((), (1,)):
        seed = torch.full(shape, 99, device=device.type)
        offset = torch.full(shape, 4, device=device.type)
        out = served(
            bk.add_layer_norm,
            x,
            torch.zeros_like(x),
            None,
            None,
            dropout_p=0.5,
            seed=seed,
            offset=offset,
            return_sum=True,
            backend=device.backend,
        )[1]
        assert torch.equal((out != 0).cpu(), expected)


def test_rows_of_any_bits_and_shape_are_words_on_every_backend():
    x, rows = torch.ones(2, 64), torch.tensor([[-1, -(2**40) + 3]])

    def kept(backend):
        call = {"dropout_p": 0.5, "seed": 7, "rows": rows, "return_sum": True, "backend": backend}
        return bk.add_layer_norm(x, torch.zeros_like(x), None, None, **call)[1]

    assert torch.equal(kept("reference"), kept(None))
    q, ends, one = torch.ones(1, 2, 8), torch.tensor([0, 1]), torch.tensor(5)
    call = {"dropout_p": 0.5, "seed": 7}
    results = [
        bk.varlen_attn(q, q, q, ends, ends, 1, 1, rows=r, backend=b, **call)
        for r in (one, one[None])
        for b in ("reference", None)
    ]
    assert all(torch.equal(results[0], other) for other in results)
