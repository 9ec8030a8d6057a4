"""accelerate(): weights are never stale, and restore() leaves no trace."""

import copy

import families
import pytest
import torch
from torch import nn

import bigkernels
from bigkernels.integrations import twins
from bigkernels.integrations.accelerate import restore

NAMES = list(families.SWAPPED)


def test_unknown_models_get_a_report():
    for model in (nn.Linear(3, 3), nn.Sequential(nn.Conv1d(3, 3, 1)), nn.Module()):
        handle = bigkernels.accelerate(model)
        report = handle.report()
        assert not report.swapped and "No block of a known family was found" in str(report)
        handle.refresh()
        handle.restore()
    report = bigkernels.accelerate(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 3))).report()
    assert set(report.swapped.values()) == {"LayerNorm"}
    assert "No block of a known family but LayerNorm was found" in report.advice
    assert not bigkernels.accelerate(families.tiny("bert")).report().advice
    with pytest.raises(TypeError, match="model"):
        bigkernels.accelerate(lambda x: x)
    with pytest.raises(ValueError, match="dtype"):
        bigkernels.accelerate(nn.Linear(3, 3), dtype=torch.int8)


def test_decoders_are_left_alone():
    model = families.tiny("bert", is_decoder=True)
    report = bigkernels.accelerate(model).report()
    assert "it is a decoder" in report.skipped[""]
    assert "it is a decoder layer" in report.skipped["encoder.layer.0"]


def fused_step_in_eval_mode(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def data_multiplied(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def moving_average(model):
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    data_multiplied(model)
    average.update_parameters(model)
    average.update_parameters(model)
    return average.module


def vector_assigned(model):
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(1.1 * vector, model.parameters())


def state_assigned(model):
    state = {k: 1.1 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def inference_mode_weights(model):
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.1)


@pytest.mark.parametrize(
    "write",
    [
        fused_step_in_eval_mode,
        data_multiplied,
        moving_average,
        vector_assigned,
        state_assigned,
        inference_mode_weights,
    ],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("name", NAMES)
def test_new_weights_are_seen_at_once(name, write):
    model, inputs = families.tiny(name), families.batch(name)
    keep = families.tokens_of(inputs)
    bigkernels.accelerate(model)

    def run(m):
        with torch.no_grad():
            return families.tensors(m(**inputs))["last_hidden_state"][keep]

    before = run(model)
    written = write(model) or model
    got = run(written)
    restore(written)
    torch.testing.assert_close(got, run(written), rtol=1e-4, atol=1e-5)
    assert (got - before).abs().max() > 1e-3


def _snapshot(model):
    classes = [type(m) for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    return classes, hooks, list(model.state_dict()), [sorted(m.__dict__) for m in model.modules()]


@pytest.mark.parametrize("name", NAMES)
def test_restore_leaves_no_trace(name):
    model, inputs = families.tiny(name), families.batch(name)
    before, parameters = _snapshot(model), list(model.parameters())
    bits = {k: v.clone() for k, v in model.state_dict().items()}
    handle = bigkernels.accelerate(model)
    assert _snapshot(model)[0] != before[0] and _snapshot(model)[2] == before[2]
    model(**inputs)
    handle.restore()
    handle.restore()
    assert _snapshot(model) == before
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(v, bits[k]) for k, v in model.state_dict().items())
    with pytest.raises(ZeroDivisionError), bigkernels.accelerate(model):
        raise ZeroDivisionError
    assert _snapshot(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_restore_after_training_keeps_what_was_learned(name):
    model, inputs = families.tiny(name).train(), families.batch(name)
    stock, parameters = copy.deepcopy(model), list(model.parameters())
    handle = bigkernels.accelerate(model)
    for trained in (model, stock):
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3, momentum=0.9)
        for _ in range(10):
            optimizer.zero_grad()
            out = families.tensors(trained(**inputs))["last_hidden_state"]
            out[families.tokens_of(inputs)].square().mean().backward()
            optimizer.step()
    bits = {k: v.clone() for k, v in model.state_dict().items()}
    handle.restore()
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(v, bits[k]) for k, v in model.state_dict().items())
    for ours, theirs in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_nested_handles_restore_what_they_swapped():
    model = families.tiny("bert")
    before = _snapshot(model)
    outer = bigkernels.accelerate(model)
    fused = _snapshot(model)
    with bigkernels.accelerate(model) as inner:
        assert not inner.report().swapped
    assert _snapshot(model) == fused
    layer = bigkernels.accelerate(model.encoder.layer[0])
    layer.restore()
    assert _snapshot(model) == fused
    outer.restore()
    assert _snapshot(model) == before


def test_refresh_takes_in_what_was_added():
    model = nn.ModuleDict({"first": families.tiny("bert")})
    handle = bigkernels.accelerate(model)
    model["second"] = families.tiny("distilbert")
    assert "second" not in handle.report().swapped
    handle.refresh()
    assert "second.transformer.layer.1" in handle.report().swapped
    handle.restore()
    assert not any(twins.role_of(m) for m in model.modules())


def test_copies_are_restored_on_their_own():
    model, inputs = families.tiny("bert"), families.batch("bert")
    before = _snapshot(model)
    handle = bigkernels.accelerate(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        handle.restore()
        assert torch.equal(twin(**inputs).last_hidden_state, expected)
    restore(twin)
    assert _snapshot(twin) == before == _snapshot(model)


def test_a_failing_model_is_left_as_it_was(monkeypatch):
    model = families.tiny("bert")
    before = _snapshot(model)
    calls = []

    def fail_late(cls, role):
        calls.append(cls)
        if len(calls) == 3:
            raise RuntimeError("late")
        return fused_class(cls, role)

    from bigkernels.integrations import accelerate as module

    fused_class = module.fused_class
    monkeypatch.setattr(module, "fused_class", fail_late)
    with pytest.raises(RuntimeError, match="late"):
        bigkernels.accelerate(model)
    assert _snapshot(model) == before
