"""`explain` names for each row of tests/drawers.md the drawer that the table has, of tensors on a GPU and on the CPU:
the table is made of facts, a user asks with arguments. Fake tensors need no GPU."""

import pathlib

import drawer_table
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import bigkernels as bk

ROOMS = [room for room in drawer_table.ROOMS if room != "encoder"]  # which has no public function
COMMITTED = (pathlib.Path(__file__).parent / "drawers.md").read_text()


class Tensors:
    """Makes the tensors of a call, on a device."""

    def __init__(self, device, facts):
        self.device, self.dtype, self.grad = device, facts["dtype"], facts["needs_grad"]

    def __call__(self, *shape, dtype=None, grad=None):
        dtype = dtype or self.dtype
        grad = dtype.is_floating_point and (self.grad if grad is None else grad)
        return torch.empty(shape, device=self.device, dtype=dtype, requires_grad=grad)

    def index(self, *shape):
        return self(*shape, dtype=torch.int64)

    def weight(self, facts):
        if facts["weight_dtype"] is None:
            return None
        wide = facts["dtype"] == torch.float64  # beside which no other dtype goes
        return self(facts["n"], dtype=self.dtype if wide else facts["weight_dtype"])


def layer_norm(f, make):
    x, n = make(3, f["n"]), (f["n"],)
    weight = make.weight(f)
    if f["op"] in ("layer_norm", "rms_norm") and f["dropout"]:
        f["op"] = f"add_{f['op']}"  # the others have none
    drops = {"dropout_p": 0.1} if f["dropout"] else {}
    first = (x, x) if f["op"].startswith("add") else (x, n)
    return f["op"], (*first, weight, *([None] if "layer" in f["op"] else [])), drops


def attention(f, make):
    heads, d, dv = (2 if f["grouped"] else 4), f["head_dim"], f["head_dim_v"]
    options = {"enable_gqa": f["grouped"], "dropout_p": 0.1 if f["dropout"] else 0.0}
    options["softcap"] = 30.0 if f["softcap"] else 0.0
    for name, there in (("alibi_slopes", f["alibi"]), ("sinks", f["sinks"])):
        options[name] = make(4, dtype=torch.float32, grad=f["learned"]) if there else None
    if f["packed"]:
        ends = make(3, dtype=torch.int32)
        return (
            "varlen_attn",
            (make(8, 4, d), make(8, heads, d), make(8, heads, dv), ends, ends),
            options,
        )
    if f["mask"] != "none":
        dtype = torch.bool if f["mask"] == "bool" else f["dtype"]
        options["attn_mask"] = make(2, 1, 8, 8, dtype=dtype, grad=f["mask_grad"])
    options["is_causal"] = f["causal"] in (1, 2)
    options["causal_alignment"] = "bottom_right" if f["causal"] > 1 else "top_left"
    # An alignment without a diagonal means nothing: a window has one.
    options["window"] = 3 if f["window"] or f["causal"] == 3 else None
    options["key_lengths"] = make.index(2) if f["lengths"] else None
    return "attention", (make(2, 4, 8, d), make(2, heads, 8, d), make(2, heads, 8, dv)), options


def ffn(f, make):
    up, down = make(32, 16), make(16, 32)
    options = {"weight_gate": up if f["gated"] else None, "dropout_p": 0.1 if f["dropout"] else 0.0}
    return "ffn", (make(3, 16), up, make(32), down, None, f["activation"]), options


def embedding(f, make):
    n = f["n"]
    tables = (
        make(30, n),
        make(9, n) if f["position"] else None,
        make(2, n) if f["types"] else None,
    )
    drops = {"dropout_p": 0.1 if f["dropout"] else 0.0}
    return "embedding", (make.index(2, 5), *tables, make.weight(f)), drops


def cross_entropy(f, make):
    smoothing = 0.1 if f["smoothing"] else 0.0
    return "cross_entropy", (make(6, 30), make.index(6)), {"label_smoothing": smoothing}


def packing(f, make):
    ids = make.index
    plan = bk.packing.Plan(ids(5), make(3, dtype=torch.int32), ids(5), 4, 2, 4, False, ids(8))
    return "packing.unpad", (make(2, 4, 16), plan), {}


ARGUMENTS = {
    function.__name__: function
    for function in (layer_norm, attention, ffn, embedding, cross_entropy, packing)
}


def rows(room):
    """(label, fact or None, its value, all facts) of each row of a room's table."""
    _, values = drawer_table.ROOMS[room]
    usual = {name: choices[0] for name, choices in values.items()}
    yield "usual", None, None, usual
    for name, choices in values.items():
        for value in choices[1:]:
            facts = {**usual, name: value, **drawer_table.BESIDE.get(name, {})}
            yield f"{name} {drawer_table.word(value)}", name, value, facts


def committed(room, label, column):
    part = COMMITTED.split(f"## {room}\n")[1].split("\n## ")[0]
    header, line = (
        next(line for line in part.splitlines() if line.startswith(f"| {start} |"))
        for start in ("fact", label)
    )
    cells = [[cell.strip() for cell in text.split("|")] for text in (header, line)]
    return cells[1][cells[0].index(column)]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("column", drawer_table.SERVED)
def test_explain_names_the_drawer_of_every_row_of_the_table(room, column):
    if reason := drawer_table.missing():
        pytest.skip(f"the table needs every kernel: {reason}")
    for label, name, value, facts in rows(room):
        with FakeTensorMode():
            make = Tensors(drawer_table.SERVED[column], facts)
            function, given, options = ARGUMENTS[room](facts, make)
            found = bk.explain(function, *given, **options)
        if name is not None:
            assert getattr(found.facts, name) == value, label
        assert found.chosen == committed(room, label, column), (label, str(found))
        assert all(found.refusals.values()), label
