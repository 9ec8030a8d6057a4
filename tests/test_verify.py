"""verify(): passes what is right, flags every planted error, and leaves the model as it was."""

import families
import pytest
import tiny
import torch
from torch import nn

import bigkernels
from bigkernels.integrations import bert, distilbert, outputs, verify, whole
from bigkernels.integrations.packed import PackedCopy

NAMES = list(families.SWAPPED)


def state(model):
    modules = list(model.modules())
    return (
        [type(m) for m in modules],
        [m.training for m in modules],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        {k: v.clone() for k, v in model.state_dict().items()},
        list(model.parameters()),
    )


def assert_untouched(model, before):
    after = state(model)
    assert after[:3] == before[:3]
    assert all(torch.equal(v, before[3][k]) for k, v in after[3].items())
    assert all(a is b for a, b in zip(after[4], before[4], strict=True))
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("accelerated", [True, False])
def test_right_models_pass_and_stay_as_they_were(name, accelerated):
    model, inputs = families.tiny(name).train(), families.batch(name)
    handle = bigkernels.accelerate(model) if accelerated else None
    before = state(model)
    found = bigkernels.verify(model, inputs)
    assert found.passed, found
    assert_untouched(model, before)
    layers = [check for check in found.checks if not check.name.startswith("end to end")]
    assert len(layers) == 2 and len(found.checks) > 2
    assert 0 < found.largest_difference < 1e-4
    assert "passed" in str(found)
    if name in families.FAMILIES:
        assert found.path == ("packed",)
    if handle is not None:
        handle.restore()


@pytest.mark.parametrize("name", ["bert", "distilbert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["right", "left", "full", "unmasked", "hooked"])
def test_right_models_pass_on_any_path(name, dtype, kind):
    model, inputs = families.tiny(name).to(dtype), families.batch(name)
    mask = inputs["attention_mask"]
    if kind == "left":
        inputs |= {"attention_mask": mask.flip(1), "input_ids": inputs["input_ids"].flip(1)}
    elif kind == "full":
        inputs["attention_mask"] = torch.ones_like(mask)
    elif kind == "unmasked":
        del inputs["attention_mask"]
    elif kind == "hooked":
        model.get_input_embeddings().register_forward_hook(lambda m, a, out: out)
    found = bigkernels.verify(model, inputs)
    assert found.passed, found
    assert (found.path == ("packed",)) == (kind not in ("left", "hooked")), found.path


def wrong_eps(monkeypatch, module, model):
    right = module.add_layer_norm

    def wrong(x, residual, weight, bias, eps, **rest):
        return right(x, residual, weight, bias, 1e-5, **rest)  # torch's default; theirs is 1e-12

    monkeypatch.setattr(module, "add_layer_norm", wrong)


def heads_swapped(monkeypatch, module, model):
    right = module.attend

    def wrong(q, k, v, heads, *rest):
        out = right(q, k, v, heads, *rest)
        return out.unflatten(-1, (heads, -1)).flip(-2).flatten(-2)

    monkeypatch.setattr(module, "attend", wrong)


def tanh_for_erf(monkeypatch, module, model):
    right = module.feed_forward

    def wrong(x, w1, b1, w2, b2, activation, **rest):
        assert activation == "gelu"
        return right(x, w1, b1, w2, b2, "gelu_tanh", **rest)

    monkeypatch.setattr(module, "feed_forward", wrong)


def one_stale_weight(monkeypatch, module, model):
    layer = model.encoder.layer[1] if module is bert else model.transformer.layer[1]
    weight = layer.output.dense.weight if module is bert else layer.ffn.lin2.weight
    old = weight.detach().clone()
    weight.data[3, 5] += 0.01
    right = module.feed_forward

    def wrong(x, w1, b1, w2, b2, activation, **rest):
        return right(x, w1, b1, old if w2 is weight else w2, b2, activation, **rest)

    monkeypatch.setattr(module, "feed_forward", wrong)


def leak_between_sequences(monkeypatch, module, model):
    right = bert.varlen_attn

    def wrong(q, k, v, cu_q, cu_k, *rest, **named):
        cu = cu_k.clone()
        cu[1] -= 1  # the first sequence's last token is seen by the second one instead
        return right(q, k, v, cu_q, cu, None, None, **named)

    monkeypatch.setattr(bert, "varlen_attn", wrong)


def position_off_by_one(monkeypatch, module, model):
    right = bert.position_ids
    monkeypatch.setattr(bert, "position_ids", lambda *given: right(*given) + 1)


ERRORS = (
    wrong_eps,
    heads_swapped,
    tanh_for_erf,
    one_stale_weight,
    leak_between_sequences,
    position_off_by_one,
)


def layer_by_layer(monkeypatch):
    monkeypatch.setattr(whole.Encoder, "_why_not", lambda *_: "the test asks for it")


@pytest.mark.parametrize("plant", ERRORS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
@pytest.mark.parametrize("accelerated", [True, False])
def test_planted_errors_are_flagged(name, plant, accelerated, monkeypatch):
    layer_by_layer(monkeypatch)
    model, inputs = families.tiny(name), families.batch(name)
    if accelerated:
        bigkernels.accelerate(model)
    before = state(model)
    assert bigkernels.verify(model, inputs).passed
    with monkeypatch.context() as patch:
        plant(patch, bert if name == "bert" else distilbert, model)
        found = bigkernels.verify(model, inputs)
    assert not found.passed and "FAILED" in str(found)
    wrong = {check.name for check in found.checks if not check.passed}
    assert any(name.startswith("end to end") for name in wrong), found
    layers = {name for name in wrong if not name.startswith("end to end")}
    if plant is one_stale_weight:
        # Each layer is fed with stock's input, so the layer at fault is the only one named.
        assert layers == {"encoder.layer.1" if name == "bert" else "transformer.layer.1"}
    elif plant is not position_off_by_one:
        assert len(layers) == 2, found
    else:
        assert not layers
    assert [type(m) for m in model.modules()] == before[0]


def native(**changed):
    """What the native call is given instead: each change is a function of the argument."""
    names = ("x", "cu_seq", "longest", "packed", "layers", "heads", "hidden", "eps", "activation")
    right = whole._forward

    def wrong(*given):
        named = dict(zip(names, given, strict=False))
        named |= {name: change(named[name]) for name, change in changed.items()}
        return right(*named.values(), *given[len(names) :])

    return wrong


def without_the_first_end(cu_seq):
    moved = cu_seq.clone()
    moved[1] -= 1
    return moved


@pytest.mark.parametrize(
    "changes",
    [
        {"eps": lambda eps: 1e-5},
        {"activation": lambda name: "gelu_tanh"},
        {"cu_seq": without_the_first_end},
        {"x": lambda x: x.roll(1, 0)},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_planted_errors_in_the_native_call_are_flagged(name, changes, monkeypatch):
    model, inputs = families.tiny(name), families.batch(name)
    bigkernels.accelerate(model)
    assert bigkernels.verify(model, inputs).passed
    monkeypatch.setattr(whole, "_forward", native(**changes))
    found = bigkernels.verify(model, inputs)
    wrong = {check.name for check in found.checks if not check.passed}
    assert any(name.startswith("end to end") for name in wrong), found
    assert len([name for name in wrong if not name.startswith("end to end")]) == 2, found


def served(precision):
    if reason := whole.why_not_served(precision):
        pytest.skip(f"cpu: {reason}")


@pytest.mark.parametrize("precision", ["bfloat16", "high"])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_lower_precisions_are_judged_by_what_they_may_lose(name, precision, monkeypatch):
    served(precision)
    model, inputs = families.tiny(name), families.batch(name)
    setting = torch.get_float32_matmul_precision()
    try:
        if precision == "high":
            torch.set_float32_matmul_precision("high")
            handle = bigkernels.accelerate(model)
        else:
            handle = bigkernels.accelerate(model, dtype=torch.bfloat16)
        found = bigkernels.verify(model, inputs)
        assert found.passed, found
        assert handle.report().encoders == {"": f"one native call, {precision}"}
        monkeypatch.setattr(whole, "_forward", native(x=lambda x: x.roll(1, 0)))
        assert not bigkernels.verify(model, inputs).passed
    finally:
        torch.set_float32_matmul_precision(setting)


def test_int8_is_judged_by_cosines():
    truth = torch.randn(400, 32).double()
    for size, good in ((0.001, True), (0.2, False)):
        got = (truth + size * torch.randn(400, 32)).float()
        found = outputs.judged("x", got, truth, truth.float(), None, loss="int8")
        assert found.passed == good, found
    got = truth.clone()
    got[:5] *= -1  # few tokens wholly wrong
    assert "1st percentile" in outputs.judged("x", got, truth, truth, None, loss="int8").reason
    got[7] = torch.nan
    assert not outputs.judged("x", got, truth, truth, None, loss="int8").passed


def test_stale_packed_weights_are_flagged(monkeypatch):
    model, inputs = families.tiny("bert"), families.batch("bert")
    bigkernels.accelerate(model)
    assert bigkernels.verify(model, inputs).passed
    fresh = PackedCopy.of

    def stale(self, *given):
        return fresh(self, *given) if self._kept is None else self._kept.packed

    monkeypatch.setattr(PackedCopy, "of", stale)
    model.encoder.layer[1].output.dense.weight.data[3, 5] += 0.01
    found = bigkernels.verify(model, inputs)
    assert any(not c.passed and c.name.startswith("end to end") for c in found.checks), found


def test_one_stale_weight_in_torchs_own_encoder_is_flagged(monkeypatch):
    from bigkernels.nn import transformer

    layer_by_layer(monkeypatch)
    model, inputs = families.tiny("torch.nn"), families.batch("torch.nn")
    bigkernels.accelerate(model)
    weight = model.layers[0].linear1.weight
    old = weight.detach().clone()
    weight.data[3, 5] += 0.01
    right = transformer.feed_forward
    monkeypatch.setattr(
        transformer, "feed_forward", lambda x, w, *rest, **named: right(x, old if w is weight else w, *rest, **named)
    )  # fmt: skip
    found = bigkernels.verify(model, inputs)
    assert {c.name for c in found.checks if not c.passed} >= {"layers.0"}
    assert "layers.1" not in {c.name for c in found.checks if not c.passed}


@pytest.mark.parametrize("moment", ["_to_stock", "_ends", "_as_stock", "_keep"])
@pytest.mark.parametrize("accelerated", [True, False])
def test_an_exception_leaves_the_model_as_it_was(moment, accelerated, monkeypatch):
    model, inputs = families.tiny("bert").train(), families.batch("bert")
    if accelerated:
        bigkernels.accelerate(model)
    before = state(model)

    def fail(*_, **__):
        raise RuntimeError("planted")

    monkeypatch.setattr(verify, moment, fail)
    with pytest.raises(RuntimeError, match="planted"):
        bigkernels.verify(model, inputs)
    assert_untouched(model, before)


def test_sentence_transformers_are_verified(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tiny.write_model(tmp_path / "bert")
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    features = model.tokenize(["good film", "the plot is very bad a film"])
    found = bigkernels.verify(model, features)
    assert found.passed, found
    assert any("sentence_embedding" in check.name for check in found.checks)
    assert found.path == ("packed",)


def test_what_cannot_be_verified_says_so():
    found = bigkernels.verify(nn.Linear(3, 3), {"input": torch.randn(2, 3)})
    assert not found.passed and "nothing in this model" in str(found)
    with pytest.raises(TypeError, match="model"):
        bigkernels.verify(3, {})
    with pytest.raises(TypeError, match="batch"):
        bigkernels.verify(nn.Linear(3, 3), torch.randn(2, 3))
