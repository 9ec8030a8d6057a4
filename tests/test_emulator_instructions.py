"""Every opcode family of the emulator against formulas of its own, on random and on extreme operands."""

import numpy as np
import pytest
import torch

from tests.emulator import build
from tests.emulator.ptx import kernel, run

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
LANES = 32
# Register class, bytes and torch's type of each PTX type.
REGISTERS = {"16": "h", "32": "r", "64": "d", "f32": "f", "f64": "g", "f16": "h", "bf16": "h"}
STORED = {"16": np.int16, "32": np.int32, "64": np.int64, "f32": np.float32, "f64": np.float64}
EXTREMES = {
    16: [0, 1, -1, 0x7FFF, -0x8000, 2],
    32: [0, 1, -1, 0x7FFFFFFF, -0x80000000, 31, 32, 33],
    64: [0, 1, -1, (1 << 63) - 1, -(1 << 63), 63, 64, 1 << 32],
}
FLOATS = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 3.4e38, 1e-40, 0.3]


def integers(bits, count, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, (count, LANES), endpoint=True)
    for lane, extreme in enumerate(EXTREMES[bits]):
        values[0, lane] = extreme
        if count > 1:
            values[1, -1 - lane] = extreme
    return values


def floats(count, seed, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(count, LANES)).astype(dtype)
    values[0, : len(FLOATS)] = FLOATS
    if count > 1:
        values[1, 5 : 5 + len(FLOATS)] = FLOATS
    return values


def execute(opcode, kinds, inputs, tail=""):
    """Results of `opcode d, a, b, ...`: kinds are of d and of the operands, inputs an array for each."""
    arrays = [
        np.ascontiguousarray(v.astype(STORED[k])) for v, k in zip(inputs, kinds[1:], strict=True)
    ]
    out = np.zeros(LANES, STORED[kinds[0]])
    tensors = [torch.from_numpy(a) for a in (*arrays, out)]
    body, names = "", []
    for index, (tensor, kind) in enumerate(zip(tensors, (*kinds[1:], kinds[0]), strict=True)):
        size = tensor.element_size()
        name = f"%{REGISTERS[kind]}{20 + index}"
        body += f"  mul.wide.u32 %d40, %r0, {size};\n  add.u64 %d{48 + index}, %d{index}, %d40;\n"
        letter = "f" if kind.startswith("f") else "b"
        if index + 1 < len(tensors):
            body += f"  ld.global.{letter}{8 * size} {name}, [%d{48 + index}];\n"
            names.append(name)
    where, last = f"[%d{48 + len(tensors) - 1}]", f"%{REGISTERS[kinds[0]]}{20 + len(tensors) - 1}"
    body += f"  {opcode} {', '.join([last, *names])}{tail};\n"
    body += (
        f"  st.global.{'f' if kinds[0].startswith('f') else 'b'}{8 * out.itemsize} {where}, {last};"
    )
    report = run(kernel(body, len(tensors)), tensors)
    assert report, report
    return out


def wrap(value, bits, signed=True):
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def check_integers(opcode, bits, count, formula, signed=False, result_bits=None, counts=()):
    """formula takes Python integers, signed or not; operands named in `counts` are 32-bit counts."""
    result_bits = result_bits or bits
    kinds = [str(result_bits), *(("32" if i in counts else str(bits)) for i in range(count))]
    values = integers(bits, count, len(opcode))
    for index in counts:
        values[index] = np.random.default_rng(7).integers(0, 70, LANES)
    got = execute(opcode, kinds, list(values))
    for lane in range(LANES):
        operands = [
            int(v) if i in counts else wrap(int(v), bits, signed)
            for i, v in enumerate(values[:, lane])
        ]
        expected = wrap(formula(*operands), result_bits)
        assert int(got[lane]) == expected, (opcode, operands, int(got[lane]), expected)


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_integer_arithmetic(bits):
    for letter, signed in (("s", True), ("u", False)):
        t = f"{letter}{bits}"
        check_integers(f"add.{t}", bits, 2, lambda a, b: a + b, signed)
        check_integers(f"sub.{t}", bits, 2, lambda a, b: a - b, signed)
        check_integers(f"mul.lo.{t}", bits, 2, lambda a, b: a * b, signed)
        check_integers(f"mul.hi.{t}", bits, 2, lambda a, b: a * b >> bits, signed)
        check_integers(f"mad.lo.{t}", bits, 3, lambda a, b, c: a * b + c, signed)
        check_integers(f"min.{t}", bits, 2, min, signed)
        check_integers(f"max.{t}", bits, 2, max, signed)
        check_integers(f"div.{t}", bits, 2, lambda a, b: truncated(a, b) if b else -1, signed)
        check_integers(
            f"rem.{t}", bits, 2, lambda a, b: a - b * truncated(a, b) if b else a, signed
        )
        check_integers(f"mad.hi.{t}", bits, 3, lambda a, b, c: (a * b >> bits) + c, signed)
        if bits < 64:
            check_integers(f"mul.wide.{t}", bits, 2, lambda a, b: a * b, signed, 2 * bits)
    check_integers(f"abs.s{bits}", bits, 1, abs, True)
    if bits == 32:
        check_integers("min.relu.s32", bits, 2, lambda a, b: max(0, min(a, b)), True)
        check_integers("max.relu.s32", bits, 2, lambda a, b: max(0, a, b), True)
    check_integers(f"neg.s{bits}", bits, 1, lambda a: -a, True)


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic_and_shifts(bits):
    t = f"b{bits}"
    check_integers(f"and.{t}", bits, 2, lambda a, b: a & b)
    check_integers(f"or.{t}", bits, 2, lambda a, b: a | b)
    check_integers(f"xor.{t}", bits, 2, lambda a, b: a ^ b)
    check_integers(f"not.{t}", bits, 1, lambda a: ~a)
    check_integers(f"cnot.{t}", bits, 1, lambda a: int(a == 0))
    check_integers(f"shl.{t}", bits, 2, lambda a, n: a << n, counts=(1,))
    check_integers(f"shr.u{bits}", bits, 2, lambda a, n: a >> n, counts=(1,))
    check_integers(f"shr.s{bits}", bits, 2, lambda a, n: a >> n, True, counts=(1,))


@pytest.mark.parametrize("bits", [32, 64])
def test_bit_fields_and_counts(bits):
    check_integers(f"popc.b{bits}", bits, 1, lambda a: bin(a).count("1"), result_bits=32)
    check_integers(f"clz.b{bits}", bits, 1, lambda a: bits - a.bit_length(), result_bits=32)
    check_integers(f"bfind.u{bits}", bits, 1, lambda a: a.bit_length() - 1, result_bits=32)
    check_integers(f"brev.b{bits}", bits, 1, lambda a: int(f"{a:0{bits}b}"[::-1], 2))

    def insert(a, b, at, n):
        field = ((1 << n) - 1) << at & (1 << bits) - 1
        return b & ~field | a << at & field

    def extract(a, at, n):
        return a >> at & (1 << n) - 1

    def extract_signed(a, at, n):
        top = min(at + n - 1, bits - 1)
        sign = a >> top & 1 if n else 0
        field = sum((a >> at + i & 1) << i for i in range(n) if at + i < bits)
        kept = max(0, min(n, bits - at))
        return field | (-sign << kept)

    check_integers(f"bfi.b{bits}", bits, 4, insert, counts=(2, 3))
    check_integers(f"bfe.u{bits}", bits, 3, extract, counts=(1, 2))
    check_integers(f"bfe.s{bits}", bits, 3, extract_signed, counts=(1, 2))


def test_three_operand_words():
    def funnel(left, wraps):
        def formula(low, high, n):
            n = n & 31 if wraps else min(n, 32)
            both = high << 32 | low
            return (both << n) >> 32 if left else both >> n

        return formula

    for direction in "lr":
        for mode in ("wrap", "clamp"):
            formula = funnel(direction == "l", mode == "wrap")
            check_integers(f"shf.{direction}.{mode}.b32", 32, 3, formula, counts=(2,))

    def permute(a, b, selector):
        data = (b << 32 | a).to_bytes(8, "little")
        picks = [selector >> 4 * i & 15 for i in range(4)]
        chosen = [data[p & 7] if p < 8 else 255 * (data[p & 7] >> 7) for p in picks]
        return int.from_bytes(bytes(chosen), "little")

    check_integers("prmt.b32", 32, 3, permute)
    for table in (0x00, 0x96, 0xE8, 0xCA, 0x1B):
        a, b, c = integers(32, 3, table)
        got = execute("lop3.b32", ["32"] * 4, [a, b, c], f", {table}")
        for lane in range(LANES):
            x, y, z = (int(v[lane]) for v in (a, b, c))
            bits = [(x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1) for i in range(32)]
            expected = sum((table >> entry & 1) << i for i, entry in enumerate(bits))
            assert int(got[lane]) == wrap(expected, 32)


FLOAT_FORMULAS = {
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div.rn": (2, np.divide),
    "min": (2, np.fmin),
    "max": (2, np.fmax),
    "abs": (1, np.abs),
    "neg": (1, np.negative),
    "rcp.rn": (1, lambda a: 1 / a),
    "sqrt.rn": (1, np.sqrt),
}


@pytest.mark.parametrize("name", FLOAT_FORMULAS)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_float_arithmetic_is_rounded_to_nearest(name, kind):
    count, formula = FLOAT_FORMULAS[name]
    values = list(floats(count, 3, STORED[kind]))
    with np.errstate(all="ignore"):
        expected = formula(*values)
    np.testing.assert_array_equal(execute(f"{name}.{kind}", [kind] * (count + 1), values), expected)


def test_fused_multiply_add_rounds_once():
    a, b, c = floats(3, 5)
    c[12:] = -(a[12:] * b[12:])  # what is left is the rounding error of the product
    got = execute("fma.rn.f32", ["f32"] * 4, [a, b, c])
    with np.errstate(all="ignore"):
        exact = a.astype(np.longdouble) * b + c
    np.testing.assert_array_equal(got, exact.astype(np.float32))
    assert (got[12:] != 0).any()


def test_flushing_and_saturation():
    values = floats(2, 9)
    with np.errstate(all="ignore"):
        flushed = [np.where(np.abs(v) < 1.17549435e-38, v * 0, v) for v in values]
        total = flushed[0] + flushed[1]
        product = np.clip(np.nan_to_num(values[0] * values[1], nan=0.0), 0, 1)
    np.testing.assert_array_equal(execute("add.ftz.f32", ["f32"] * 3, list(values)), total)
    np.testing.assert_array_equal(execute("mul.sat.f32", ["f32"] * 3, list(values)), product)


@pytest.mark.parametrize(
    "name",
    [
        *("ex2.approx", "lg2.approx", "rsqrt.approx", "sin.approx", "tanh.approx"),
        *("cos.approx", "rcp.approx", "sqrt.approx"),
    ],
)
def test_approximate_functions_are_within_their_error(name):
    x = np.abs(floats(1, 4)[0]) + np.float32(0.01)
    x[~np.isfinite(x) | (x > 100)] = 1
    formula = {
        "ex2.approx": np.exp2,
        "lg2.approx": np.log2,
        "rsqrt.approx": lambda v: 1 / np.sqrt(v),
        "sin.approx": np.sin,
        "tanh.approx": np.tanh,
        "cos.approx": np.cos,
        "rcp.approx": np.reciprocal,
        "sqrt.approx": np.sqrt,
    }[name]
    got = execute(f"{name}.f32", ["f32", "f32"], [x])
    np.testing.assert_allclose(got, formula(x.astype(np.float64)), rtol=2**-22, atol=2**-22)


HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("kind", HALVES)
def test_halves_are_rounded_to_nearest_even(kind):
    x = torch.from_numpy(floats(1, 6)[0])
    x[10:20] = torch.arange(10) * 2.0**-9 + 1  # ties, for bfloat16
    x[20:30] = torch.arange(10) * 2.0**-12 + 1  # and for float16
    got = execute(f"cvt.rn.{kind}.f32", ["16", "f32"], [x.numpy()])
    expected = x.to(HALVES[kind])
    finite = ~x.isnan()
    assert torch.equal(torch.from_numpy(got).view(HALVES[kind])[finite], expected[finite])
    # And back, exactly.
    bits = expected.view(torch.int16).numpy()
    back = execute(f"cvt.f32.{kind}", ["f32", "16"], [bits])
    np.testing.assert_array_equal(back, expected.float().numpy())


@pytest.mark.parametrize("kind", HALVES)
def test_packed_half_arithmetic(kind):
    dtype = HALVES[kind]
    a, b, c = (
        torch.randn(LANES, 2, generator=torch.Generator().manual_seed(i)).to(dtype)
        for i in range(3)
    )
    words = [t.contiguous().view(torch.int32).flatten().numpy() for t in (a, b, c)]
    exact = a.double() * b.double()
    for name, operands, value in (
        ("fma.rn", words, exact + c.double()),
        ("mul", words[:2], exact),
        ("add", words[:2], a.double() + b.double()),
        ("max", words[:2], torch.maximum(a, b).double()),
    ):
        got = execute(f"{name}.{kind}x2", ["32"] * (len(operands) + 1), operands)
        assert torch.equal(torch.from_numpy(got).view(dtype).view(LANES, 2), value.to(dtype))


def test_conversions_between_integers_and_floats():
    with np.errstate(over="ignore"):
        x = floats(1, 8)[0] * np.float32(100)
    x[12:] += np.float32(0.5)
    finite = np.where(np.isnan(x), 0, x).astype(np.float64)
    low, high = -(2.0**31), 2.0**31 - 1
    for mode, rounding in (
        ("rni", np.rint),
        ("rzi", np.trunc),
        ("rmi", np.floor),
        ("rpi", np.ceil),
    ):
        got = execute(f"cvt.{mode}.s32.f32", ["32", "f32"], [x])
        np.testing.assert_array_equal(got, np.clip(rounding(finite), low, high).astype(np.int32))
    values = integers(32, 1, 3)[0].astype(np.int32)
    np.testing.assert_array_equal(
        execute("cvt.rn.f32.s32", ["f32", "32"], [values]), values.astype(np.float32)
    )
    np.testing.assert_array_equal(execute("cvt.s64.s32", ["64", "32"], [values]), values)
    np.testing.assert_array_equal(
        execute("cvt.u64.u32", ["64", "32"], [values]), values.view(np.uint32)
    )
    np.testing.assert_array_equal(
        execute("cvt.s32.s8", ["32", "32"], [values]), values.astype(np.int8)
    )


def test_tf32_keeps_ten_digits():
    x = floats(1, 11)[0]
    got = execute("cvt.rna.tf32.f32", ["f32", "f32"], [x])
    finite = np.isfinite(x) & (np.abs(x) > 1e-30)
    assert (got[finite].view(np.uint32) & 0x1FFF == 0).all()
    np.testing.assert_allclose(got[finite], x[finite], rtol=2.0**-11)


SHUFFLES = {
    "bfly": lambda lane, n: lane ^ n,
    "up": lambda lane, n: lane - n,
    "down": lambda lane, n: lane + n,
}


@pytest.mark.parametrize("mode", SHUFFLES)
@pytest.mark.parametrize("n", [1, 5, 16])
def test_shuffles(mode, n):
    x = integers(32, 1, n)[0]
    clamp = 0 if mode == "up" else 31
    got = execute(f"shfl.sync.{mode}.b32", ["32", "32"], [x], f", {n}, {clamp}, -1")
    for lane in range(LANES):
        other = SHUFFLES[mode](lane, n)
        assert got[lane] == x[other if 0 <= other < LANES else lane]


def test_reductions_and_matches():
    x = integers(32, 1, 2)[0] % 7
    assert (execute("redux.sync.add.s32", ["32", "32"], [x], ", -1") == x.sum()).all()
    assert (execute("redux.sync.max.s32", ["32", "32"], [x], ", -1") == x.max()).all()
    got = execute("match.any.sync.b32", ["32", "32"], [x], ", -1")
    for lane in range(LANES):
        expected = sum(1 << other for other in range(LANES) if x[other] == x[lane])
        assert int(got[lane]) == wrap(expected, 32)


@pytest.mark.parametrize(
    "comparison", ["eq", "ne", "lt", "le", "gt", "ge", "ltu", "geu", "num", "nan"]
)
def test_comparisons_know_nan(comparison):
    a, b = floats(2, 12)
    body = "".join(
        f"  add.u64 %d{4 + i}, %d{i}, %d32;\n  ld.global.f32 %f{i}, [%d{4 + i}];\n" for i in (0, 1)
    )
    body += f"  setp.{comparison}.f32 %p0, %f0, %f1;\n  selp.b32 %r5, 1, 0, %p0;\n"
    body += "  add.u64 %d6, %d2, %d32;\n  st.global.b32 [%d6], %r5;"
    out = torch.zeros(LANES, dtype=torch.int32)
    assert run(kernel(body, 3), [torch.from_numpy(a), torch.from_numpy(b), out])
    unordered = np.isnan(a) | np.isnan(b)
    ordered = {
        **{"eq": a == b, "ne": (a != b) & ~unordered, "lt": a < b, "le": a <= b, "gt": a > b},
        **{"ge": a >= b, "ltu": (a < b) | unordered, "geu": (a >= b) | unordered},
        **{"num": ~unordered, "nan": unordered},
    }
    np.testing.assert_array_equal(out.numpy().astype(bool), ordered[comparison])


@pytest.mark.parametrize("operation", ["add", "min", "max", "and", "or", "xor", "exch"])
def test_atomics_return_what_was_there(operation):
    x = torch.from_numpy(integers(32, 1, 13)[0].astype(np.int32))
    y = torch.from_numpy(integers(32, 1, 14)[0].astype(np.int32))
    place, old = x.clone(), torch.zeros_like(x)
    kind = "s32" if operation in ("add", "min", "max") else "b32"
    kind = "u32" if operation == "add" else kind
    body = "".join(f"  add.u64 %d{4 + i}, %d{i}, %d32;\n" for i in range(3))
    body += f"  ld.global.b32 %r1, [%d5];\n  atom.global.{operation}.{kind} %r2, [%d4], %r1;\n"
    body += "  st.global.b32 [%d6], %r2;"
    assert run(kernel(body, 3), [place, y, old])
    formulas = {
        **{"add": x + y, "min": torch.minimum(x, y), "max": torch.maximum(x, y), "and": x & y},
        **{"or": x | y, "xor": x ^ y, "exch": y},
    }
    assert torch.equal(old, x)
    assert torch.equal(place, formulas[operation])
