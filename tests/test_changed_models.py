"""Accelerated encoders whose weights change their sizes or dtypes, and copies of accelerated models."""

import copy
import pickle

import families
import pytest
import torch
from stacks import CASES, gpt2
from test_stacks import layout, run

import bigkernels
from bigkernels import library
from bigkernels.integrations import whole
from bigkernels.integrations.accelerate import restore

pytestmark = pytest.mark.skipif(
    library.extension_error is not None, reason=f"cpu: {library.extension_error}"
)
HIDDEN, KEPT = 128, 96


def bert():
    model = families.tiny("bert", hidden_size=64, intermediate_size=HIDDEN)
    return model, families.batch("bert")


ALL = {"bert": bert, "GPT-2": lambda: gpt2(n_inner=HIDDEN)}
ALL |= {name: CASES[name] for name in ("ViT", "torch.nn", "bigkernels.nn")}


def prune(layer):
    """Takes the last hidden units out of a feed-forward layer, as pruning does it: by writing to .data."""
    for parameter in layer.parameters():
        for dim, size in enumerate(parameter.shape):
            if size == HIDDEN:
                parameter.data = parameter.data.narrow(dim, 0, KEPT)
    for module in layer.modules():  # GPT-2's own Linear keeps its width
        if getattr(module, "nf", None) == HIDDEN:
            module.nf = KEPT


def layers_of(model):
    model = getattr(model, "encoder", model)
    return next(getattr(model, name) for name in ("layer", "layers", "h") if hasattr(model, name))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_weights_resized_in_place_are_seen(make):
    model, inputs = make()
    handle = bigkernels.accelerate(model)
    run(model, inputs)
    for index, how in enumerate(["its layers differ", "one native call, float32"]):
        prune(layers_of(model)[index])
        stock = copy.deepcopy(model)
        restore(stock)
        got, expected = run(model, inputs), run(stock, inputs)
        at = layout(inputs, got)
        torch.testing.assert_close(got[at], expected[at], rtol=1e-4, atol=1e-5)
        assert how in handle.report().encoders[""]


def test_layers_of_unlike_dtypes_are_left_to_stock():
    model, inputs = bert()
    stock = copy.deepcopy(model)
    handle = bigkernels.accelerate(model)
    run(model, inputs)
    for each in (model, stock):
        layers_of(each)[1].to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        run(stock, inputs)
    with pytest.raises(RuntimeError, match="dtype"):
        run(model, inputs)
    assert "several dtypes" in handle.report().encoders[""]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_the_precision_that_was_asked_for(make, copied):
    model, inputs = make()
    attributes, names = sorted(vars(model)), list(model.state_dict())
    handle = bigkernels.accelerate(model, dtype=torch.bfloat16)
    twin = copied(model)
    expected = run(model, inputs)
    assert list(twin.state_dict()) == names
    handle.restore()
    assert sorted(vars(model)) == attributes
    assert torch.equal(run(twin, inputs), expected)
    assert whole.known(twin).story == "one native call, bfloat16"
    restore(twin)
    assert sorted(vars(twin)) == attributes
