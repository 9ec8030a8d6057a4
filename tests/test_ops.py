"""Every op in torch.ops.bigkernels: its schema, its fake, its behaviour under torch's compiler passes."""

import importlib
import importlib.util
import inspect
import os
import pathlib
import re

import pytest
import torch
from conftest import HAS_GPU
from op_samples import SAMPLES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

import bigkernels
from bigkernels import library

ROOT = pathlib.Path(bigkernels.__file__).parent
# Rooms register their ops when they are imported; every one there is counts, whoever defined it.
OPS = sorted(
    name.removeprefix("bigkernels::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("bigkernels::")
)
BACKENDS = ("cpu", "cuda", "triton")


def split(name):
    base, _, backend = name.rpartition("_")
    return (base, backend) if backend in BACKENDS else (name, None)


def has_kernel(name, key):
    full = f"bigkernels::{name}"
    return any(
        torch._C._dispatch_has_kernel_for_dispatch_key(full, k)
        for k in (key, "CompositeExplicitAutograd")
    )


def samples(name):
    """(op, argument tuples) on a device that has a kernel for it, or a skip."""
    base, backend = split(name)
    op = getattr(torch.ops.bigkernels, name).default
    if backend == "cpu" and library.extension_error:
        pytest.skip(library.extension_error)
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    if HAS_GPU and has_kernel(name, "CUDA"):
        device = "cuda"
    elif backend == "triton" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("interpreted: only with TRITON_INTERPRET=1")
    elif has_kernel(name, "CPU") and backend != "cuda":
        device = "cpu"
    else:
        assert backend != "cpu", f"{name} has no kernel"
        pytest.skip("no CUDA device")
    torch.manual_seed(0)

    def forward(*args):
        return getattr(torch.ops.bigkernels, name.replace("_backward_", "_forward_")).default(*args)

    return op, SAMPLES[base](device, forward)


@pytest.mark.parametrize("name", OPS)
def test_every_op_has_samples(name):
    assert split(name)[0] in SAMPLES, "add sample arguments to tests/op_samples.py"


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    op, found = samples(name)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for args in found:
        torch.library.opcheck(op, args, test_utils=checks)
    if torch.Tag.nondeterministic_seeded not in op.tags:
        for args in found[::4]:  # the slow one
            torch.library.opcheck(op, args, test_utils="test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", OPS)
def test_fakes_have_the_shapes_dtypes_and_strides_of_real_results(name):
    op, found = samples(name)
    for args in found:
        real = op(*args)
        with FakeTensorMode() as mode:
            fake = op(*tree_map_only(torch.Tensor, mode.from_tensor, args))
        real, fake = ((t,) if isinstance(t, torch.Tensor) else t for t in (real, fake))
        for index, (a, b) in enumerate(zip(real, fake, strict=True)):
            described = [(t.shape, t.dtype, t.device, t.stride()) for t in (a, b)]
            assert described[0] == described[1], f"result {index} of {name}"


@pytest.mark.parametrize("name", OPS)
def test_results_share_no_memory_with_arguments_or_each_other(name):
    op, found = samples(name)
    for args in found:
        results = op(*args)
        results = (results,) if isinstance(results, torch.Tensor) else results
        tensors = [t for t in (*args, *results) if isinstance(t, torch.Tensor) and t.numel()]
        held = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        fresh = [t.untyped_storage().data_ptr() for t in results if t.numel()]
        assert len(set(fresh)) == len(fresh)
        assert not held & set(fresh)
        assert tensors


def test_schemas_are_those_of_the_contracts_and_written_nowhere_else():
    expected = {"philox_seed"}
    for room in library.ROOMS:
        contract = importlib.import_module(f"bigkernels.ops.{room}.contract")
        for base, text in contract.SCHEMAS.items():
            for backend in contract.BACKENDS:
                name = f"{base}_{backend}"
                expected.add(name)
                schema = getattr(torch.ops.bigkernels, name).default._schema
                parsed = torch._C.parse_schema(f"bigkernels::{name}{text}")
                assert str(parsed) == str(schema)
            assert set(contract.FAKES) == set(contract.SCHEMAS)
    assert set(OPS) == expected
    sources = [*ROOT.rglob("*.py"), *(ROOT.parent / "python_bindings").glob("*.cpp")]
    for path in sources:
        if path.name in ("contract.py", "library.py"):
            continue
        # Tests may define ops of their own in another namespace.
        pattern = r"TORCH_LIBRARY(_FRAGMENT)?\(bigkernels,|\.define\(|-> \(Tensor"
        found = re.search(pattern, path.read_text())
        assert not found, f"{path} defines an op: schemas belong to contract.py"


def test_fakes_take_the_arguments_of_their_schema():
    for room in library.ROOMS:
        contract = importlib.import_module(f"bigkernels.ops.{room}.contract")
        for base, text in contract.SCHEMAS.items():
            arguments = [a.name for a in torch._C.parse_schema(base + text).arguments]
            named = [
                p.name
                for p in inspect.signature(contract.FAKES[base]).parameters.values()
                if p.kind is not p.VAR_POSITIONAL
            ]
            assert arguments[: len(named)] == named


def test_ops_are_tagged_for_the_compiler():
    for name in OPS:
        tags = getattr(torch.ops.bigkernels, name).default.tags
        seeded = torch.Tag.nondeterministic_seeded in tags
        assert seeded == (name == "philox_seed")
