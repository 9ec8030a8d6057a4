"""mbarriers and the copy engine: tiles against NumPy, and the faults of pipelines caught at every seed."""

import dataclasses
import hashlib
import operator
import pathlib
import subprocess

import numpy as np
import pytest

from tests.conformance import driver
from tests.conformance.bulk import SIZES, TILE
from tests.conformance.cases import catalogue, module
from tests.conformance.driver import TensorMap
from tests.emulator import build
from tests.emulator.ptx import mutants

pytestmark = pytest.mark.skipif(
    build.why_no_core() is not None, reason=f"emulated: {build.why_no_core()}"
)
KERNELS = pathlib.Path(__file__).parent / "emulator" / "kernels"
SEEDS = range(25)
BULK = [name for name, case in catalogue().items() if case.family == "bulk"]


def run(case, seed=1):
    arguments = case.arguments()
    driver.emulated(seed).run(case.ptx, arguments, case.threads, case.blocks, case.shared)
    return arguments


def place(offset, swizzle):
    """Where a byte of a tile lies: 16-byte units are exchanged within rows of 128 bytes, by the row's number."""
    rows = {0: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    return offset ^ ((offset // 128 & rows) * 16)


def indices(view, name):
    """Of each element of a tile in order: its index in the array, or -1 outside of it; and its byte."""
    words = name.split(" at ")[-1].split() if " at " in name else None
    at = AT[name] if words is None else tuple(map(int, words))
    shape, box = view.sizes[::-1], view.box[::-1]
    for number, inside in enumerate(np.ndindex(*box)):
        position = [a + i for a, i in zip(at, inside, strict=True)]
        good = all(0 <= p < n for p, n in zip(position, shape, strict=True))
        index = int(np.ravel_multi_index(position, shape)) if good else -1
        yield index, place(number * SIZES[view.type], view.swizzle)


AT = {
    **{
        f"tile {kind} swizzle {s} {d}": (3 if kind == "load" else 5, (s or 64) // SIZES[d] // 2)
        for kind in ("load", "store", "add")
        for s in (0, 32, 64, 128)
        for d in ("bf16", "f32")
    },
    **{f"tile load rank {rank}": (1, 2, 1, 3, 0)[5 - rank :] for rank in (3, 4, 5)},
    "tile load rank 1": (16,),
    **{"tile load u8": (2, 16), "tile add f32": (30, 40), "tile add bf16": (8, 16)},
}


def floats(array):
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array


# What an element becomes when another one meets it.
MEETS = {
    "store": lambda old, new: new,
    "add": lambda old, new: old + new,
    "min": min,
    "max": max,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "inc": lambda old, new: 0 if old >= new else old + 1,
    "dec": lambda old, new: new if old == 0 or old > new else old - 1,
}


@pytest.mark.parametrize("name", [name for name in BULK if name.startswith("tile")])
def test_tiles_are_numpy_s(name):
    case = catalogue()[name]
    before = case.arguments()
    after = run(case)
    view = before[2]
    tensor = before[view.of].ravel()
    dtype = tensor.dtype
    if name.startswith("tile load"):
        expected = np.zeros(after[1].nbytes // dtype.itemsize, dtype)
        for index, byte in indices(view, name):
            expected[byte // dtype.itemsize] = tensor[index] if index >= 0 else 0
        np.testing.assert_array_equal(after[1].view(dtype), expected)
        return
    meets = MEETS[name.split()[1]]
    expected, source = floats(tensor.copy()), floats(before[0])
    with np.errstate(over="ignore"):
        for index, byte in indices(view, name):
            if index < 0:
                continue
            expected[index] = meets(expected[index], source[byte // dtype.itemsize])
    np.testing.assert_array_equal(floats(after[1].ravel()), expected)


def test_lines_are_copied_and_added():
    source, before = catalogue()["line load"].arguments()
    np.testing.assert_array_equal(run(catalogue()["line load"])[1], source)
    source, _ = catalogue()["line store"].arguments()
    np.testing.assert_array_equal(run(catalogue()["line store"])[1], source)
    source, before = catalogue()["line add f32"].arguments()
    np.testing.assert_array_equal(run(catalogue()["line add f32"])[1], source + before)


WAIT = "again:\n  mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r11], 0;\n  @!%p2 bra again;\n"
FAULTS = {
    # Of the program, the text that is changed, into what, and what is said of it.
    "no wait": ("tile load swizzle 128 bf16", WAIT, "", "not filled yet|race|outlives|never written"),
    "too many bytes": ("tile load swizzle 128 bf16", "_, [%r11], 2048", "_, [%r11], 4096", "hangs.*2048 bytes"),
    "too few bytes": ("tile load swizzle 128 bf16", "_, [%r11], 2048", "_, [%r11], 1024", "hangs"),
    "no barrier after init": ("line load", "  bar.sync 0;\n", "", "race: .*initialised|no mbarrier|hangs"),
    "no initialisation": ("line load", "  @%p1 mbarrier.init.shared::cta.b64 [%r11], 1;\n", "", "no mbarrier"),
    "a second arrival": ("line load", "  @%p1 mbarrier.arrive", "  mbarrier.arrive", "more arrivals|hangs"),
    "no proxy fence": ("tile store swizzle 64 f32", "  fence.proxy.async.shared::cta;\n", "", "no fence.proxy"),
    "no barrier before a store": ("line store", "  bar.sync 0;\n  @%p1 cp", "  @%p1 cp", "race|never written|no fence"),
    "no wait for a store": ("line store", "  @%p1 cp.async.bulk.wait_group 0;\n", "", "bulk stores are under way"),
    "a fence of global memory": (
        "tile store swizzle 64 f32", "proxy.async.shared::cta", "proxy.async.global", "no fence.proxy"
    ),
    "no fence after init": ("line load", "  @%p1 fence.mbarrier_init.release.cluster;\n", "", "no fence.mbarrier_init"),
    "a tile out of place": (
        "tile load swizzle 128 f32", "%r10, memory;\n  add.u32 %r11, %r10, 4096",
        "%r10, memory+128;\n  add.u32 %r11, %r10, 3968", "aligned to 1024"
    ),
    "a line too long": ("line load", "[%d0], 1024", "[%d0], 1040", "out of bounds"),
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_planted_faults_of_copies_are_found(seed):
    for fault, (name, old, new, what) in FAULTS.items():
        case = catalogue()[name]
        assert old in case.ptx, fault
        wrong = dataclasses.replace(case, ptx=case.ptx.replace(old, new))
        with pytest.raises(driver.DriverError, match=f"(?s){what}"):
            run(wrong, seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_clean_copies_raise_no_alarm(seed):
    for name in BULK[:: 4 if seed % 5 else 1]:
        run(catalogue()[name], seed)


def test_what_is_no_tensor_map_is_found():
    case = catalogue()["tile load swizzle 0 f32"]
    arguments = case.arguments()
    body = case.ptx.replace("[%d21, {", "[%d0, {")
    with pytest.raises(driver.DriverError, match=r"no tensor map|aligned to 64"):
        driver.emulated().run(body, arguments, case.threads)
    view = arguments[2]
    for change in (
        {"strides": (100,)},
        {"box": (257, 1)},
        {"swizzle": 32, "box": (16, 4)},
        {"box": (3, 4)},
    ):
        with pytest.raises(driver.DriverError, match="tensor map"):
            driver.emulated().encode(dataclasses.replace(view, **change), 4096)


def compiled(fault: int) -> str:
    """The PTX of the pipeline with a fault planted, or 0."""
    source = KERNELS / "pipeline.cu"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    out = build.FOLDER / f"pipeline_{fault}_{digest}.ptx"
    if not out.exists():
        nvcc = build._toolchain().find_nvcc()[0]
        command = [
            nvcc,
            "-std=c++20",
            "-O3",
            "-lineinfo",
            "-ptx",
            "-arch=compute_90a",
            f"-DFAULT={fault}",
        ]
        build.FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run([*command, str(source), "-o", str(out)], check=True)
    return out.read_text()


needs_nvcc = pytest.mark.skipif(
    build.why_no_cuda() is not None, reason=f"emulated: {build.why_no_cuda()}"
)


def pipeline(fault=0, seed=1, steps=5, ptx=None):
    """(A B^T as the kernel makes it, and exactly), bfloat16 of small integers."""
    random = np.random.default_rng(seed)
    exact = [random.integers(-3, 4, (64, 64 * steps)).astype(np.float32) for _ in range(2)]
    a, b = ((v.view(np.uint32) >> np.uint32(16)).astype(np.uint16) for v in exact)
    c = np.full((64, 64), np.nan, np.float32)
    sizes, strides = (64 * steps, 64), (128 * steps,)
    maps = [TensorMap(of, "bf16", sizes, strides, (64, 64), 128) for of in (0, 1)]
    maps.append(TensorMap(2, "f32", (64, 64), (256,), (64, 64)))
    shared = 4 * 8192 + 16384 + 1024
    device = driver.emulated(seed)
    device.run(ptx or compiled(fault), [*maps, a, b, c, steps], 160, 1, shared, "pipeline_kernel")
    return c, exact[0] @ exact[1].T


@needs_nvcc
@pytest.mark.parametrize("seed", SEEDS)
def test_a_clean_pipeline_is_right_and_raises_no_alarm(seed):
    got, exact = pipeline(seed=seed)
    np.testing.assert_array_equal(got, exact)


PIPELINE_FAULTS = {
    1: "hangs|not filled yet",  # half of the bytes are expected
    2: "hangs.*bytes are missing",  # twice the bytes are expected
    3: "race|asynchronous copy|more arrivals|hangs",  # buffers are filled before they are empty
    4: "race|asynchronous copy|wgmma is under way",  # products are not waited for
    5: "not filled yet|asynchronous copy|race|never written",  # nobody waits for a full buffer
    6: "no fence.proxy.async",  # an ordinary store to what wgmma reads
    7: "no fence.proxy.async",  # the result is stored by TMA without a fence
    8: "bulk stores are under way",  # the end does not wait for it
    9: "initialised|no mbarrier|hangs",  # mbarriers are used before all can see them
    10: "race|never written",  # the result is stored before all have written it
    12: "no fence.mbarrier_init",  # TMA uses mbarriers that it need not see yet
    13: "no wgmma.fence",  # the first product of all
    14: "no wgmma.fence",  # sums are scaled between two products
    15: "fills shared memory .* no fence.proxy.async",  # TMA over an ordinary store
    16: "multiply together",  # one warp of four leaves out a step
}


@needs_nvcc
@pytest.mark.parametrize("fault", PIPELINE_FAULTS)
def test_planted_faults_of_a_pipeline_are_found(fault):
    for seed in SEEDS:
        with pytest.raises(driver.DriverError, match=f"(?s){PIPELINE_FAULTS[fault]}"):
            pipeline(fault, seed)


@needs_nvcc
def test_every_barrier_wait_and_fence_of_a_pipeline_is_needed():
    survivors, tried = [], 0
    for line, ptx in mutants(compiled(0), "pipeline_kernel"):
        tried += 1
        try:
            for seed in (1, 2, 3):
                pipeline(0, seed, ptx=ptx)
        except driver.DriverError:
            continue
        survivors.append(line.partition(": ")[2])
    assert tried > 5
    # Of later steps: nobody touched the sums since the last product, of the same shape.
    assert survivors == ["wgmma.fence.sync.aligned;"] * 2


@needs_nvcc
def test_a_wrong_stride_of_a_descriptor_gives_wrong_results():
    got, exact = pipeline(11)
    assert not np.array_equal(got, exact)


def test_tiles_fit_the_shared_memory_of_the_cases():
    assert all(f"memory[{TILE + 64}]" in catalogue()[name].ptx for name in BULK)
    assert "test(" in module("", 0)
