"""Packed copies of weights are never stale, cost what the report says, and get into nothing that is saved."""

import copy
import io
import pickle

import families
import pytest
import torch
from torch import nn

import bigkernels
from bigkernels import library
from bigkernels.integrations import whole
from bigkernels.integrations.accelerate import restore

pytestmark = pytest.mark.skipif(
    library.extension_error is not None, reason=f"cpu: {library.extension_error}"
)
# Wide enough that a weight is more than what a fingerprint reads whole.
WIDE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def accelerated(name="bert", **changes):
    model = families.tiny(name, **(changes or (WIDE if name == "bert" else {})))
    return model, bigkernels.accelerate(model)


def run(model, name="bert"):
    inputs = families.batch(name)
    with torch.no_grad():
        return model(**inputs).last_hidden_state[families.tokens_of(inputs)]


def packed_of(model):
    call = whole.known(model)
    return None if call is None or call.copy._kept is None else call.copy._kept.packed.data


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_all_layers_are_one_native_call(name):
    model, handle = accelerated(name)
    assert handle.report().packed_bytes == 0
    run(model, name)
    report = handle.report()
    assert report.encoders == {"": "one native call, float32"}
    assert report.packed_bytes == packed_of(model).nbytes > 0
    assert "one native call" in str(report)


def test_one_copy_serves_many_calls():
    model, _ = accelerated()
    run(model)
    first = packed_of(model)
    run(model)
    with torch.inference_mode():
        model(**families.batch("bert"))
    assert packed_of(model) is first


def test_a_default_device_does_not_move_what_the_copy_is_checked_by():
    model, _ = accelerated()
    run(model)
    kept = whole.known(model).copy._kept
    with torch.device("meta"):
        assert kept.places.fingerprint(True) == kept.prints[True]
        one_weight_times(model)
        assert kept.places.fingerprint(True) != kept.prints[True]


def test_evaluation_mode_keeps_the_copy():
    model, _ = accelerated()
    run(model)
    first = packed_of(model)
    run(model.eval())
    assert packed_of(model) is first


def test_int8_keeps_the_last_third_of_the_layers_in_bfloat16():
    if reason := whole.why_not_served("int8"):
        pytest.skip(f"cpu: {reason}")
    model = families.tiny("bert", **WIDE, num_hidden_layers=3)
    handle = bigkernels.accelerate(model, dtype="int8")
    run(model)
    call = whole.known(model)
    assert (call.copy._kept.packed.layers, call._tail._kept.packed.layers) == (2, 1)
    assert call._tail._kept.packed.precision == "bfloat16"
    assert handle.report().packed_bytes == call.copy.bytes + call._tail.bytes
    model.train()
    assert handle.report().packed_bytes == 0


def fused_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def one_weight_times(model):
    model.encoder.layer[1].intermediate.dense.weight.data.mul_(1.3)


def moving_average(model):
    for parameter in model.parameters():
        parameter.data.lerp_(torch.randn_like(parameter), 0.1)


def vector_assigned(model):
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(1.2 * vector, model.parameters())


def state_assigned(model):
    state = {k: 1.2 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def state_copied(model):
    state = {k: 1.2 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def transposed(model):
    weight = model.encoder.layer[0].attention.self.query.weight
    weight.data = weight.data.t()


def data_replaced(model):
    weight = model.encoder.layer[0].attention.self.query.weight
    weight.data = 1.3 * weight.data


def parameter_replaced(model):
    model.encoder.layer[0].attention.self.query.weight = nn.Parameter(torch.randn(128, 128))


def layer_replaced(model):
    other = families.tiny("bert", **WIDE)
    model.encoder.layer[0].output.dense = other.encoder.layer[1].output.dense


def bias_removed(model):
    model.encoder.layer[0].output.dense.bias.data.add_(1)
    for layer in model.encoder.layer:
        layer.output.dense.register_parameter("bias", None)


def written_in_inference_mode(model):
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.2)


def scaled_attention(model):
    for layer in model.encoder.layer:
        layer.attention.self.scaling *= 2


def other_eps(model):
    for layer in model.encoder.layer:
        layer.output.LayerNorm.eps = layer.attention.output.LayerNorm.eps = 0.5


WRITES = (
    fused_step, one_weight_times, moving_average, vector_assigned, state_assigned, state_copied,
    transposed, data_replaced, parameter_replaced, layer_replaced, bias_removed,
    written_in_inference_mode, scaled_attention, other_eps,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITES, ids=lambda f: f.__name__)
def test_whatever_changes_the_weights_is_seen_at_once(write):
    model, handle = accelerated()
    before = run(model)
    assert packed_of(model) is not None
    write(model)
    got = run(model)
    handle.restore()
    torch.testing.assert_close(got, run(model), rtol=1e-4, atol=2e-5)
    assert (got - before).abs().max() > 1e-3


def test_inference_tensors_as_weights_are_served_and_followed():
    with torch.inference_mode():
        model = families.tiny("bert", **WIDE)
    handle = bigkernels.accelerate(model)
    before = run(model)
    assert handle.report().packed_bytes > 0
    with torch.inference_mode():
        model.encoder.layer[0].output.dense.weight.mul_(1.5)
    got = run(model)
    handle.restore()
    torch.testing.assert_close(got, run(model), rtol=1e-4, atol=2e-5)
    assert (got - before).abs().max() > 1e-3


DROPS = {
    "training": lambda model: model.train(),
    "training of what is around it": lambda model: nn.Sequential(model).train(),
    "another dtype": lambda model: model.to(torch.bfloat16),
    "a state_dict": lambda model: model.load_state_dict(model.state_dict()),
    "restore": restore,
}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_copies_are_freed_before_weights_change(drop):
    model, _ = accelerated()
    run(model)
    assert packed_of(model) is not None
    drop(model)
    assert packed_of(model) is None


def test_one_samples_pooler_is_stocks():
    for dtype in (torch.float32, torch.bfloat16):
        model = families.tiny("bert", **WIDE).to(dtype)
        families.assert_like_stock(model, families.batch("bert", (7,)))
        assert bigkernels.verify(model, families.batch("bert", (7,))).passed


def test_refresh_packs_anew():
    model, handle = accelerated()
    run(model)
    first = packed_of(model)
    handle.refresh()
    assert handle.report().packed_bytes == 0
    run(model)
    assert packed_of(model) is not first and handle.report().packed_bytes > 0


def test_no_copy_is_used_or_kept_while_weights_get_gradients():
    model, handle = accelerated()
    run(model)
    out = model(**families.batch("bert")).last_hidden_state
    assert out.requires_grad and packed_of(model) is None
    assert handle.report().encoders == {"": "one after another: gradients are wanted"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert not model(**families.batch("bert")).last_hidden_state.requires_grad
    assert packed_of(model) is not None


def test_nothing_of_it_is_saved_or_copied():
    model, _ = accelerated()
    names, attributes = list(model.state_dict()), set(model.__dict__)
    buffers = [n for n, _ in model.named_buffers()]
    size = len(pickle.dumps(model))
    before = run(model)
    assert list(model.state_dict()) == names and set(model.__dict__) == attributes
    assert [n for n, _ in model.named_buffers()] == buffers
    assert abs(len(pickle.dumps(model)) - size) < 1000
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert packed_of(other) is None
        assert torch.equal(run(other), before)
        other.encoder.layer[0].output.dense.weight.data.mul_(2)
        assert not torch.equal(run(other), before) and torch.equal(run(model), before)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)


def test_the_copy_goes_with_the_model():
    model, _ = accelerated()
    run(model)
    count = len(whole._encoders)
    del model, _
    import gc

    gc.collect()
    assert len(whole._encoders) < count


REASONS = {
    "a hook": lambda m: m.encoder.layer[0].output.dense.register_forward_hook(lambda *_: None),
    "another eps": lambda m: setattr(m.encoder.layer[1].output.LayerNorm, "eps", 0.1),
    "a layer alone in training": lambda m: m.encoder.layer[1].attention.output.dropout.train(),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_the_native_call_cannot_do_goes_layer_by_layer(name):
    model, handle = accelerated("bert", **WIDE, hidden_dropout_prob=0.1)
    run(model)
    REASONS[name](model)
    got = run(model)
    report = handle.report()
    how = report.padded.get("") or report.encoders[""]
    if name == "a hook":
        assert "has hooks" in how
    else:
        assert how.startswith("one after another: "), how
    if name != "a layer alone in training":
        handle.restore()
        torch.testing.assert_close(got, run(model), rtol=1e-4, atol=2e-5)


def test_a_forced_backend_and_traces_are_obeyed():
    model, _ = accelerated()
    run(model)
    with bigkernels.trace() as records:
        run(model)
    assert [r.room for r in records if r.room != "packing"] == ["embedding", "encoder"]
    with bigkernels.use_backend("reference"), bigkernels.trace() as records:
        run(model)
    assert {r.backend for r in records} == {"reference"}
    assert "encoder" not in {r.room for r in records}


def test_samples_do_not_know_their_neighbours():
    model, _ = accelerated()
    inputs = families.batch("bert")
    keep = families.tokens_of(inputs)
    with torch.no_grad():
        together = model(**inputs).last_hidden_state
        for row in range(len(keep)):
            alone = model(**{k: v[row : row + 1, : keep[row].sum()] for k, v in inputs.items()})
            assert torch.equal(alone.last_hidden_state[0], together[row, keep[row]])


@pytest.mark.parametrize("dtype", ["float99", torch.int8, torch.float16, 3])
def test_an_unknown_dtype_is_refused(dtype):
    model = families.tiny("bert")
    with pytest.raises(ValueError, match=r"^dtype: "):
        bigkernels.accelerate(model, dtype=dtype)
    assert type(model).__mro__[0].__name__ == "BertModel" and not twin(model)


def twin(model):
    return type(model).__module__.startswith("bigkernels")
