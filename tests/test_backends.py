"""Which backend serves a call, and that it says so: choose, explain, use_backend, trace, the environment."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import drawer_table
import pytest
import torch
from conftest import HAS_GPU

import bigkernels as bk
from bigkernels import backends, library
from bigkernels.library import ROOMS
from bigkernels.ops.layer_norm.contract import Facts
from bigkernels.testing.cases import cases

HERE = pathlib.Path(__file__).parent
HAS_KERNELS = library.extension_error is None
FIRST = "cpu" if HAS_KERNELS else "reference"
X = torch.randn(3, 8)


def facts(**changes):
    usual = {"op": "layer_norm", "device": "cpu", "dtype": torch.float32}
    usual |= {"weight_dtype": None, "n": 8, "dropout": False, "needs_grad": False}
    return Facts(**{**usual, **changes})


def call(backend=None, x=X):
    return bk.layer_norm(x, (8,), backend=backend)


def test_the_table_of_drawers_is_the_committed_one():
    if reason := drawer_table.missing():
        pytest.skip(f"the table needs every kernel: {reason}")
    committed = (HERE / "drawers.md").read_text().splitlines()
    made = list(drawer_table.lines())
    worse = [line for line in made if line not in committed]
    assert made == committed, (
        "drawers take other calls than tests/drawers.md says; a new refusal needs a reason, "
        f"then: python tests/drawer_table.py > tests/drawers.md\n{chr(10).join(worse)}"
    )


def test_the_kernels_are_there_where_they_can_be_built():
    # Without them most tests skip themselves, with a reason that would be easy to overlook.
    if shutil.which("g++") and (HERE.parent / "csrc").exists():
        assert library.extension_error is None


def test_the_first_drawer_without_a_reason_serves():
    assert backends.choose("layer_norm", facts()) == FIRST
    assert backends.choose("layer_norm", facts(dtype=torch.int8)) == "reference"
    assert backends.choose("layer_norm", facts(device="meta")) == "reference"


def test_a_forced_backend_serves_or_says_why_not():
    torch.testing.assert_close(call("reference"), call(FIRST))
    with pytest.raises(
        bk.Unsupported, match=r"^layer_norm: backend cuda does not take this call: "
    ):
        call("cuda", X)
    if not HAS_GPU:
        with pytest.raises(bk.Unsupported, match="device cpu is not cuda"):
            call("cuda")
    with pytest.raises(
        bk.Unsupported, match=r"attention has no cuda kernels|device cpu is not cuda"
    ):
        bk.scaled_dot_product_attention(*[torch.randn(1, 1, 2, 8)] * 3, backend="cuda")


def test_the_interpreter_serves_only_on_request():
    if backends.refusals("layer_norm", "triton", facts(), forced=True):
        pytest.skip("interpreted: only with TRITON_INTERPRET=1")
    (reason,) = backends.refusals("layer_norm", "triton", facts())
    assert reason == "on CPU tensors it runs only when asked for"
    torch.testing.assert_close(call("triton"), call("reference"))
    with pytest.raises(bk.Unsupported, match="rounded wrong by the interpreter"):
        call("triton", X.bfloat16())


@pytest.mark.parametrize("name", ["CPU", "", "torch", 3, ["cpu"]], ids=str)
def test_an_unknown_backend_is_an_error_that_lists_the_known(name):
    for attempt in (lambda: call(name), lambda: bk.explain("layer_norm", X, (8,), backend=name)):
        with pytest.raises(
            (ValueError, TypeError), match=r"backend: .*cuda, triton, cpu, reference"
        ):
            attempt()
    with (
        pytest.raises((ValueError, TypeError), match="cuda, triton, cpu, reference"),
        bk.use_backend(name),
    ):
        pass


def test_use_backend_holds_inside_and_nests():
    with bk.trace() as seen:
        with bk.use_backend("reference"):
            call()
            if HAS_KERNELS:
                with bk.use_backend("cpu"):
                    call()
                    call("reference")
            call()
        call()
    inner = ["cpu", "reference"] if HAS_KERNELS else []
    assert [record.backend for record in seen] == ["reference", *inner, "reference", FIRST]


def test_use_backend_ends_with_an_exception():
    with pytest.raises(KeyError), bk.use_backend("reference"):
        raise KeyError
    with bk.trace() as seen:
        call()
    assert seen[0].backend == FIRST


def test_use_backend_and_trace_belong_to_their_thread():
    found = []

    def other():
        with bk.trace() as seen:
            call()
        found.extend(seen)

    with bk.use_backend("reference"), bk.trace() as mine:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert [record.backend for record in found] == [FIRST]
    assert mine == []


def test_trace_records_the_reference_where_only_that_can_serve():
    with bk.trace() as seen:
        torch.func.grad(lambda x: bk.layer_norm(x, (8,), backend=FIRST).sum())(X)
        torch.func.grad(lambda x: bk.scaled_dot_product_attention(x, x, x).sum())(X[None, None])
    assert [record.backend for record in seen] == ["reference", "reference"]


def test_explain_names_the_reference_where_only_that_can_serve():
    def explained(x):
        found = bk.explain("layer_norm", x, (8,), backend=FIRST)
        assert found.chosen == "reference"
        assert found.refusals[FIRST] == (
            "functorch's transforms, forward-mode AD and torch.jit.trace take the reference",
        )
        return x

    torch.func.vmap(explained)(X)
    with torch.autograd.forward_ad.dual_level():
        explained(X)
    assert bk.explain("layer_norm", X, (8,)).chosen == FIRST


def test_trace_records_room_backend_and_facts():
    with bk.trace() as seen:
        call()
        bk.layer_norm(X.double(), (8,), backend="reference")
        bk.add_layer_norm(X, X, None, None)
    assert [(r.room, r.backend, r.facts.op, r.facts.dtype) for r in seen] == [
        ("layer_norm", FIRST, "layer_norm", torch.float32),
        ("layer_norm", "reference", "layer_norm", torch.float64),
        ("layer_norm", FIRST, "add_layer_norm", torch.float32),
    ]
    call()
    assert len(seen) == 3


def test_a_compiled_call_takes_the_same_backend():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: bk.layer_norm(x, (8,)), fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), call(FIRST))
    with bk.use_backend("reference"):
        assert torch.equal(compiled(X), call("reference"))


def test_the_backward_runs_on_the_backend_of_the_forward():
    x = X.clone().requires_grad_()
    out = call(FIRST, x)
    with bk.use_backend("reference"):
        (dx,) = torch.autograd.grad(out.sum(), x)
    (again,) = torch.autograd.grad(call(FIRST, x).sum(), x)
    assert torch.equal(dx, again)


def test_explain_names_the_choice_and_every_refusal():
    found = bk.explain("layer_norm", X, (8,))
    assert found.chosen == FIRST
    assert set(found.refusals) == set(backends.ORDER) - {FIRST}
    assert all(found.refusals.values())
    assert found.facts == facts()
    text = str(found).splitlines()
    assert text[0] == f"layer_norm: {FIRST}"
    assert all(f"not {name}: " in str(found) for name in found.refusals)


def test_explain_runs_nothing_and_takes_forced_backends():
    with bk.trace() as seen:
        assert bk.explain("layer_norm", X, (8,), backend="reference").chosen == "reference"
        with bk.use_backend("reference"):
            explained = bk.explain("add_layer_norm", X, X, None, None, dropout_p=0.5)
        assert explained.chosen == "reference"
        assert explained.facts.dropout
    assert seen == []
    state = torch.get_rng_state()
    bk.explain("add_layer_norm", X, X, None, None, dropout_p=0.5)
    bk.explain("ffn", X, X[:4], None, X[:4].T, None, dropout_p=0.5)
    bk.explain("attention", *(torch.ones(1, 1, 2, 4) for _ in range(3)), dropout_p=0.5)
    bk.explain("embedding", torch.tensor([0]), X, dropout_p=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(bk.Unsupported, match="backend cuda does not take this call"):
        bk.explain("layer_norm", X, (8,), backend="cuda")


EXPLAINED = (
    *("attention", "varlen_attn", "ffn", "add_layer_norm", "rms_norm", "add_rms_norm"),
    *("embedding", "cross_entropy", "packing.plan", "packing.unpad", "packing.pad"),
)


@pytest.mark.parametrize("room", EXPLAINED)
def test_explain_agrees_with_the_call(room):
    q, w = torch.randn(1, 2, 4, 8), torch.randn(8, 8)
    ends = torch.tensor([0, 3, 4], dtype=torch.int32)
    packed = torch.randn(4, 2, 8)
    arguments = {
        "attention": (bk.scaled_dot_product_attention, (q, q, q)),
        "varlen_attn": (bk.varlen_attn, (packed, packed, packed, ends, ends)),
        "ffn": (bk.feed_forward, (X, w, None, w, None)),
        "add_layer_norm": (bk.add_layer_norm, (X, X, None, None)),
        "rms_norm": (bk.rms_norm, (X, (8,))),
        "add_rms_norm": (bk.add_rms_norm, (X, X)),
        "embedding": (bk.embedding, (torch.tensor([0, 3]), w)),
        "cross_entropy": (bk.cross_entropy, (w, torch.arange(8))),
        "packing.plan": (bk.packing.plan, (keep := torch.tensor([[1, 0], [1, 1]]),)),
        "packing.unpad": (bk.packing.unpad, (w[:4].view(2, 2, 8), plan := bk.packing.plan(keep))),
        "packing.pad": (bk.packing.pad, (w[:3], plan)),
    }
    function, args = arguments[room]
    with bk.trace() as seen:
        function(*args)
    explained = bk.explain(room, *args)
    assert (seen[0].backend, seen[0].facts) == (explained.chosen, explained.facts)


@pytest.mark.parametrize("room", ROOMS)
def test_calls_are_chosen_for_by_the_facts_of_the_table(room):
    if room == "encoder" and library.extension_error:
        pytest.skip(library.extension_error)
    for case in cases(room)[:20]:
        inputs = case.problem().inputs
        leaves = {
            n: t if t is None or not t.is_floating_point() else t.detach()
            for n, t in inputs.items()
        }
        for name in case.problem().wrt:
            leaves[name].requires_grad_()
        with bk.trace() as seen:
            case.call(leaves, None)
        facts = case.facts("cpu")
        chosen = {r.backend for r in seen if r.facts == facts}
        if not chosen and room == "packing":  # of a batch without padding it makes views
            continue
        assert chosen == {backends._first(room, facts, None)}, case.id


@pytest.mark.parametrize("autocast", [False, True])
def test_meta_tensors_give_the_shapes_of_results(autocast):
    q, x, w = (torch.empty(s, device="meta") for s in ((2, 3, 4, 8), (5, 8), (8, 8)))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert bk.layer_norm(x, (8,)).shape == (5, 8)
        assert bk.add_layer_norm(x, x, w[0], None, dropout_p=0.1, seed=1).device.type == "meta"
        assert bk.scaled_dot_product_attention(q, q, q, is_causal=True).shape == (2, 3, 4, 8)
        assert bk.feed_forward(x, w, None, w, None).shape == (5, 8)


def test_explain_of_an_unknown_room_or_bad_arguments_is_an_error():
    with pytest.raises(ValueError, match="room: 'softmax' is not one of layer_norm"):
        bk.explain("softmax", X)
    with pytest.raises(ValueError, match="normalized_shape"):
        bk.explain("layer_norm", X, (9,))


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


SHOW = "import bigkernels as bk, torch; print(bk.explain('layer_norm', torch.randn(2, 8), (8,)))"


def test_the_environment_can_force_a_backend():
    found = run(SHOW, BIGKERNELS_BACKEND="reference")
    assert found.stdout.startswith("layer_norm: reference"), found.stderr
    found = run(SHOW, BIGKERNELS_BACKEND="")
    assert found.stdout.startswith(f"layer_norm: {FIRST}"), found.stderr
    found = run(SHOW, BIGKERNELS_BACKEND="cuda", CUDA_VISIBLE_DEVICES="")
    assert "Unsupported: layer_norm: backend cuda does not take this call" in found.stderr


def test_a_wrong_name_in_the_environment_is_one_clear_error():
    found = run(SHOW, BIGKERNELS_BACKEND="gpu")
    assert found.returncode != 0
    assert found.stderr.splitlines()[-1] == (
        "ValueError: BIGKERNELS_BACKEND: 'gpu' is not one of cuda, triton, cpu, reference"
    )


def test_with_block_wins_over_environment_and_argument_over_both():
    code = """
import torch, bigkernels as bk
x = torch.randn(2, 8)
with bk.trace() as seen:
    bk.layer_norm(x, (8,))
    with bk.use_backend(FIRST):
        bk.layer_norm(x, (8,))
        bk.layer_norm(x, (8,), backend="reference")
print(*[record.backend for record in seen])
"""
    found = run(code.replace("FIRST", repr(FIRST)), BIGKERNELS_BACKEND="reference")
    assert found.stdout.split() == ["reference", FIRST, "reference"], found.stderr


def test_importing_brings_neither_triton_nor_transformers():
    code = (
        "import sys, bigkernels; print([m for m in ('triton', 'transformers') if m in sys.modules])"
    )
    assert run(code).stdout.strip() == "[]"


@pytest.mark.skipif(not HAS_KERNELS, reason=str(library.extension_error))
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512", "amx"])
def test_the_instruction_set_can_be_chosen(isa):
    code = """
import torch, bigkernels as bk
torch.manual_seed(0)
x = torch.randn(4, 300)
difference = bk.layer_norm(x, (300,), backend="cpu") - bk.layer_norm(x, (300,), backend="reference")
print(float(difference.abs().max()) < 1e-5)
"""
    found = run(code, BIGKERNELS_ISA=isa)
    if lacking := re.search(rf"BIGKERNELS_ISA={isa}: this machine has .*", found.stderr):
        pytest.skip(lacking.group())
    assert found.stdout.strip() == "True"


@pytest.mark.skipif(not HAS_KERNELS, reason=str(library.extension_error))
def test_an_unknown_instruction_set_is_an_error():
    found = run(SHOW + "; bk.layer_norm(torch.randn(2, 8), (8,))", BIGKERNELS_ISA="sse9")
    assert found.returncode != 0
    assert "BIGKERNELS_ISA" in found.stderr.splitlines()[-1]
