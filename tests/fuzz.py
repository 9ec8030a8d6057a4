"""Random calls of the public functions: `python tests/fuzz.py COUNT SEED [INDEX]`.

Each call is a plausible one with up to two arguments replaced by anything. It may raise ValueError, TypeError or
Unsupported, or succeed with the outputs and gradients of the reference; anything else is printed with the index
that repeats it alone. Should the process die, the last line of its output holds the index of the call that killed it.
"""

import math
import random
import sys
import traceback

import torch

import bigkernels as bk
from bigkernels.testing import poisoned_outputs

DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
ALLOWED = (ValueError, TypeError, bk.Unsupported)


class Draw:
    """Random arguments from one seed."""

    def __init__(self, seed):
        self.r = random.Random(seed)
        self.generator = torch.Generator().manual_seed(self.r.getrandbits(60))

    def size(self):
        return self.r.choice((0, 1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 33))

    def tensor(self, *shape, dtype):
        """Of random strides: dense, permuted, with gaps, repeated, or off by one element."""
        kind = self.r.choice(("dense", "dense", "permuted", "gaps", "repeated", "shifted"))
        if kind == "permuted":
            order = self.r.sample(range(len(shape)), len(shape))
            base = torch.randn([shape[i] for i in order], generator=self.generator)
            return base.to(dtype).permute([order.index(i) for i in range(len(shape))])
        if kind == "gaps":
            return torch.randn([2 * s for s in shape], generator=self.generator).to(dtype)[
                tuple(slice(0, 2 * s, 2) for s in shape)
            ]
        if kind == "repeated":
            return torch.randn([1 for _ in shape], generator=self.generator).to(dtype).expand(shape)
        if kind == "shifted":
            flat = torch.randn(math.prod(shape) + 1, generator=self.generator).to(dtype)
            return flat[1:].view(shape)
        return torch.randn(shape, generator=self.generator).to(dtype)

    def maybe(self, value, chance=0.5):
        return value if self.r.random() < chance else None

    def anything(self):
        r = self.r
        return r.choice(
            (
                lambda: None,
                lambda: r.choice((0, 1, -1, 2**31, -(2**40), 2**63, 10**30)),
                lambda: r.choice((0.0, -0.5, 0.5, 1.0, 1e308, math.nan, math.inf)),
                lambda: r.choice(("", "cpu", "reference", "gelu", "relu", "bottom_right", "\0")),
                lambda: r.choice((True, False)),
                lambda: tuple(r.randint(-3, 9) for _ in range(r.randint(0, 3))),
                lambda: [],
                lambda: object(),
                lambda: self.tensor(
                    *(self.size() for _ in range(r.randint(0, 5))), dtype=r.choice(DTYPES)
                ),
                lambda: torch.randint(-5, 50, [self.size() for _ in range(r.randint(0, 2))]),
                lambda: torch.randint(-5, 50, [self.size()], dtype=torch.int32),
                lambda: torch.ones([self.size() for _ in range(r.randint(0, 4))], dtype=torch.bool),
                lambda: torch.empty([self.size()], device="meta"),
                lambda: torch.full((), math.nan),
            )
        )()

    def dropout(self, rows):
        return {
            "dropout_p": self.r.choice((0.0, 0.0, 0.1, 1.0)),
            "seed": self.maybe(self.r.choice((0, -1, 2**62, torch.tensor(5)))),
            "offset": self.maybe(self.r.choice((0, 2**33, torch.tensor(5)))),
            "rows": self.maybe(torch.arange(rows), 0.2),
        }

    def layer_norm(self):
        dtype = self.r.choice(DTYPES)
        shape = [self.size() for _ in range(self.r.randint(1, 4))]
        n = shape[-self.r.randint(1, len(shape)) :]
        return {
            "input": self.tensor(*shape, dtype=dtype),
            "normalized_shape": tuple(n),
            "weight": self.maybe(self.tensor(*n, dtype=dtype)),
            "bias": self.maybe(self.tensor(*n, dtype=self.r.choice((dtype, torch.float32)))),
            "eps": self.r.choice((1e-5, 0.0, 1)),
        }

    def add_layer_norm(self):
        dtype = self.r.choice(DTYPES)
        shape = [self.size() for _ in range(self.r.randint(1, 4))]
        return {
            "x": self.tensor(*shape, dtype=dtype),
            "residual": self.tensor(*shape, dtype=self.r.choice((dtype, dtype, torch.float32))),
            "weight": self.maybe(self.tensor(shape[-1], dtype=dtype)),
            "bias": self.maybe(self.tensor(shape[-1], dtype=dtype)),
            "x_bias": self.maybe(self.tensor(shape[-1], dtype=dtype)),
            "return_sum": self.r.random() < 0.5,
            **self.dropout(math.prod(shape[:-1])),
        }

    def heads(self):
        kv = self.r.choice((1, 2, 3))
        return kv * self.r.choice((1, 1, 2)), kv, self.r.choice((1, 5, 8, 16, 40, 64))

    def scaled_dot_product_attention(self):
        r, dtype = self.r, self.r.choice(DTYPES)
        batch, lq, lk, (h, kv, d) = self.r.randint(0, 3), self.size(), self.size(), self.heads()
        mask = self.tensor(
            *(r.choice((1, full)) for full in (batch, h, lq, lk)),
            dtype=r.choice((dtype, torch.float32)),
        )
        return {
            "query": self.tensor(batch, h, lq, d, dtype=dtype),
            "key": self.tensor(batch, kv, lk, d, dtype=dtype),
            "value": self.tensor(batch, kv, lk, r.choice((d, 8, 24)), dtype=dtype),
            "attn_mask": r.choice((None, None, mask, mask > 0)),
            "is_causal": r.random() < 0.3,
            "enable_gqa": True,
            "key_lengths": self.maybe(torch.randint(0, lk + 1, (batch,)), 0.3),
            "window": self.maybe((r.randint(-1, 9), r.choice((-1, 0, 3, 2**40))), 0.3),
            "causal_alignment": r.choice(("top_left", "bottom_right")),
            "return_lse": r.random() < 0.3,
            **self.dropout(batch * lq),
        }

    def varlen_attn(self):
        r, dtype, (h, kv, d) = self.r, self.r.choice(DTYPES), self.heads()
        batch = r.randint(0, 4)
        q, k = ([self.size() for _ in range(batch)] for _ in range(2))
        if r.random() < 0.5:
            k = q
        kind = r.choice((torch.int32, torch.int64))
        longest = r.choice((None, 0, max(q, default=0), 1, 10**12))
        return {
            "query": self.tensor(sum(q), h, d, dtype=dtype),
            "key": self.tensor(sum(k), kv, d, dtype=dtype),
            "value": self.tensor(sum(k), kv, d, dtype=dtype),
            "cu_seq_q": torch.tensor([0, *torch.tensor(q).cumsum(0).int()]).to(kind),
            "cu_seq_k": torch.tensor([0, *torch.tensor(k).cumsum(0).int()]).to(kind),
            "max_q": longest,
            "max_k": r.choice((longest, max(k, default=0))),
            "window_size": (r.randint(-1, 4), r.randint(-1, 4)),
            "enable_gqa": True,
            **self.dropout(sum(q)),
        }

    def attention_weights(self):
        r, dtype, (h, kv, d) = self.r, self.r.choice(DTYPES), self.heads()
        batch, lq, lk = r.randint(0, 3), self.size(), self.size()
        chosen = [r.randint(0, max(lq - 1, 0)) for _ in range(r.randint(0, 3))]
        return {
            "query": self.tensor(batch, h, lq, d, dtype=dtype),
            "key": self.tensor(batch, kv, lk, d, dtype=dtype),
            "lse": self.tensor(batch, h, lq, dtype=r.choice((dtype, torch.float32))),
            "is_causal": r.random() < 0.3,
            "enable_gqa": True,
            "queries": self.maybe(r.choice((chosen, torch.tensor(chosen)))),
            "heads": self.maybe([0], 0.3),
        }

    def feed_forward(self):
        r, dtype = self.r, self.r.choice(DTYPES)
        e, f, out = (self.size() for _ in range(3))
        shape = [*(self.size() for _ in range(r.randint(0, 2))), e]
        gate = self.maybe(self.tensor(f, e, dtype=dtype), 0.3)
        return {
            "x": self.tensor(*shape, dtype=dtype),
            "weight1": self.tensor(f, e, dtype=dtype),
            "bias1": self.maybe(self.tensor(f, dtype=dtype)),
            "weight2": self.tensor(out, f, dtype=dtype),
            "bias2": self.maybe(self.tensor(out, dtype=dtype)),
            "activation": r.choice(("gelu", "gelu_tanh", "relu", "silu")),
            "weight_gate": gate,
            "bias_gate": None if gate is None else self.maybe(self.tensor(f, dtype=dtype)),
            "recompute": r.choice((0, 1, 2)),
            **self.dropout(math.prod(shape[:-1])),
        }


FUNCTIONS = (
    "layer_norm",
    "add_layer_norm",
    "scaled_dot_product_attention",
    "varlen_attn",
    "attention_weights",
    "feed_forward",
)


def solve(name, arguments):
    """Outputs and gradients of a call; what torch allocates starts as NaN."""
    leaves = [t for t in arguments.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    torch.manual_seed(5)  # of dropout without a seed
    with poisoned_outputs():
        result = getattr(bk, name)(**arguments)
        outputs = result if isinstance(result, tuple) else (result,)
        wanted = [t for t in outputs if t.requires_grad]
        found = [t.detach() for t in outputs]
        if wanted:
            total = sum(t.double().sum() for t in wanted)
            found += torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return found


def growth(name, arguments):
    """By how much normalizing its flattest row multiplies the rounding of a call's inputs; NaN where they hold any."""
    given = [t for t in arguments.values() if isinstance(t, torch.Tensor)]
    if not all(t.isfinite().all() for t in given):
        return math.nan
    if "layer_norm" not in name:
        return 1.0
    eps = arguments.get("eps", 1e-5)
    if name == "layer_norm":
        n = arguments["normalized_shape"]
        total, n = arguments["input"], n if isinstance(n, int) else math.prod(n)
    else:
        torch.manual_seed(5)
        whole = arguments | {"return_sum": True, "backend": "reference"}
        total = bk.add_layer_norm(**whole)[1]
        n = total.shape[-1]
    if not total.numel():
        return 1.0
    rows = total.detach().double().reshape(-1, n)
    variance = rows.var(1, correction=0)
    # A row flatter than the rounding of its sum has gradients of nothing else.
    lost = 8 * torch.finfo(total.dtype).eps * rows.abs().amax(1)
    if (variance.sqrt() <= lost).any():
        return math.nan
    return max(1.0, float((variance + eps).rsqrt().max()))


def differences(found, expected, growth):
    """What of the results is not the reference's, but for rounding."""
    for number, (got, exact) in enumerate(zip(found, expected, strict=True)):
        where = f"result {number}"
        if got.shape != exact.shape or got.dtype != exact.dtype:
            yield f"{where}: {got.dtype} {tuple(got.shape)} != {exact.dtype} {tuple(exact.shape)}"
            continue
        if not exact.numel() or not math.isfinite(growth):
            continue
        a, b = got.double(), exact.double()
        if not b.isfinite().all():
            continue  # NaN and infinity were passed in, or made by what was
        if not a.isfinite().all():
            yield f"{where}: not finite"
            continue
        error, size = float((a - b).abs().max()), max(1.0, float(b.abs().max()))
        if error > 1000 * torch.finfo(got.dtype).eps * size * growth:
            yield f"{where}: error {error}, values up to {size}"


def one(seed, index):
    """What became of one random call; failures are printed."""
    draw = Draw(f"{seed}/{index}")
    name = draw.r.choice(FUNCTIONS)
    arguments = getattr(draw, name)()
    if name != "attention_weights":
        arguments["backend"] = draw.r.choice((None, None, None, "cpu", "cpu", "reference", "cuda"))
    for _ in range(draw.r.choice((0, 0, 1, 1, 2))):
        arguments[draw.r.choice(list(arguments))] = draw.anything()
    if draw.r.random() < 0.5:
        for key, value in arguments.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                arguments[key] = value.detach().requires_grad_()
    try:
        found = solve(name, arguments)
        if "backend" in arguments and arguments["backend"] != "reference":
            expected = solve(name, arguments | {"backend": "reference"})
            if wrong := list(differences(found, expected, growth(name, arguments))):
                raise AssertionError("; ".join(wrong))
    except ALLOWED:
        return "refused"
    except Exception:
        shown = {k: f"{tuple(v.shape)} {v.stride()} {v.dtype} {v.device}"
                 if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}  # fmt: skip
        print(f"\ncall {index}: {name} {shown}\n{traceback.format_exc(limit=-3)}")
        return "failed"
    return "served"


def main(count, seed, only=None):
    torch.set_num_threads(2)
    outcomes = {"served": 0, "refused": 0, "failed": 0}
    for index in range(count) if only is None else [only]:
        sys.stdout.write(f"\r{index}")
        sys.stdout.flush()
        outcomes[one(seed, index)] += 1
    print(f"\r{outcomes}")
    # A fuzzer whose calls are all refused, or none, tests half of what it should.
    balanced = count < 1000 or min(outcomes["served"], outcomes["refused"]) > count // 10
    return 0 if not outcomes["failed"] and balanced else 1


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
