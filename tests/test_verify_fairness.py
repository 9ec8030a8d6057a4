"""verify(): no false alarm for models of any make, and nothing that stock returns goes unseen."""

import families
import pytest
import torch
import transformers
from torch import nn

import bigkernels
from bigkernels.integrations import backbone, twins
from bigkernels.integrations.permuted import Permuted


class OwnMask(nn.Module):
    """Makes the mask itself, from its tokens, as many models do."""

    def __init__(self, bert, whole):
        super().__init__()
        self.bert, self.whole = bert, whole

    def forward(self, tokens):
        hidden = self.bert(tokens, attention_mask=(tokens != 0).long()).last_hidden_state
        return hidden if self.whole else hidden[:, 0]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_mask_made_inside_the_model_is_found(name, whole):
    model = OwnMask(families.tiny(name), whole).eval()
    found = bigkernels.verify(model, {"tokens": families.batch(name)["input_ids"]})
    assert found.passed and found.path == ("packed",), found
    assert len(found.checks) == 3


def _head(cls, **changes):
    _, config, sizes = families.FAMILIES["bert"]
    return cls(config(**{**sizes, **changes})).eval()


def test_a_mask_of_three_dimensions_is_found():
    model = _head(transformers.BertForMultipleChoice)
    choices = {k: v.unflatten(0, (2, 2)) for k, v in families.batch("bert").items()}
    found = bigkernels.verify(model, choices)
    assert found.passed and found.path == ("packed",), found


def test_the_mask_that_a_hook_sets_is_found():
    model, inputs = families.tiny("bert"), families.batch("bert")
    shorter = inputs["attention_mask"].clone()
    shorter[:, 5:] = 0

    def change(module, args, kwargs):
        return args, {**kwargs, "attention_mask": shorter}

    model.register_forward_pre_hook(change, with_kwargs=True)
    found = bigkernels.verify(model, inputs)
    assert found.passed and found.path == ("packed",), found


@pytest.mark.parametrize("lengths", [(7,), (5, 3)])
def test_one_number_a_sample_is_not_luck(lengths):
    inputs = families.batch("bert", lengths)
    for seed in range(24):
        torch.manual_seed(seed)
        found = bigkernels.verify(
            _head(transformers.BertForSequenceClassification, num_labels=1), inputs
        )
        assert found.passed, (seed, str(found))


def test_one_wrong_number_a_sample_is_flagged(monkeypatch):
    model = _head(transformers.BertForSequenceClassification, num_labels=1)
    right = backbone._pooled
    monkeypatch.setattr(backbone, "_pooled", lambda *given: right(*given) * (1 + 1e-4))
    found = bigkernels.verify(model, families.batch("bert", (5, 3)))
    assert [c.name for c in found.checks if not c.passed] == ["end to end: logits"], found


@pytest.mark.parametrize("eager", [False, True])
def test_permuted_sums_differ_by_rounding_alone(eager):
    model = families.tiny("bert", "eager" if eager else "sdpa").double()
    inputs = families.batch("bert")
    with torch.no_grad():
        stock = model(**inputs).last_hidden_state
        with Permuted(1):
            first = model(**inputs).last_hidden_state
        with Permuted(2):
            second = model(**inputs).last_hidden_state
    assert 0 < (first - stock).abs().max() < 1e-12
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", families.SWAPPED)
def test_hooks_that_change_a_layer_are_no_error(name):
    model, inputs = families.tiny(name), families.batch(name)
    stack = {"distilbert": "transformer.layer", "torch.nn": "layers"}.get(name, "encoder.layer")
    layer = model.get_submodule(stack)[0]
    layer.register_forward_hook(lambda m, a, out: 2 * out)
    layer.register_forward_pre_hook(lambda m, a: (a[0] + 1, *a[1:]))
    found = bigkernels.verify(model, inputs)
    assert found.passed, found


def test_a_lost_output_is_flagged(monkeypatch):
    monkeypatch.setattr(backbone, "_pooled", lambda *_: None)
    found = bigkernels.verify(families.tiny("bert"), families.batch("bert"))
    wrong = {c.name: c.reason for c in found.checks if not c.passed}
    assert wrong == {"end to end: pooler_output": "lost: stock returns it"}, found


class Both(nn.Module):
    """Returns a nest of outputs, one of them wrong, or of another kind, where the model is accelerated."""

    def __init__(self, wrong):
        super().__init__()
        self.norm, self.wrong = nn.LayerNorm(16), wrong

    def forward(self, x):
        out = self.norm(x)
        other = out
        if twins.role_of(self.norm):
            other = self.wrong(out)
        return {"first": (out, [out, other]), "rest": (None, out.argmax(-1), "name")}


@pytest.mark.parametrize(
    "wrong", [lambda x: x * 1.001, lambda x: None, lambda x: x.long(), lambda x: x[1:]]
)
def test_outputs_inside_tuples_are_compared(wrong):
    given = {"x": torch.randn(4, 16)}
    assert bigkernels.verify(Both(lambda x: x), given).passed
    found = bigkernels.verify(Both(wrong), given)
    assert [c.name for c in found.checks if not c.passed] == ["end to end: first.1.1"], found


def test_a_pooled_output_as_wide_as_the_batch_is_long_is_judged_whole(monkeypatch):
    model = families.tiny("bert", max_position_embeddings=40)
    inputs = families.batch("bert", (32, 4, 3))
    assert bigkernels.verify(model, inputs).passed
    right = backbone._pooled

    def wrong(*given):
        found = right(*given).clone()
        found[1:, 4:] += 100
        return found

    monkeypatch.setattr(backbone, "_pooled", wrong)
    found = bigkernels.verify(model, inputs)
    assert [c.name for c in found.checks if not c.passed] == ["end to end: pooler_output"], found


def test_one_number_a_token_is_judged_at_tokens():
    model = transformers.ElectraForPreTraining(
        transformers.ElectraConfig(**families.FAMILIES["electra"][2])
    ).eval()
    found = bigkernels.verify(model, families.batch("electra"))
    assert found.passed and found.path == ("packed",), found


@pytest.mark.parametrize("name", ["bert", "torch.nn"])
def test_a_method_that_holds_on_to_its_weights_gets_a_verdict(name):
    model, inputs = families.tiny(name), families.batch(name)
    linear = model.encoder.layer[0].output.dense if name == "bert" else model.layers[0].linear2
    right = linear.forward
    linear.forward = lambda x: 2 * right(x)
    found = bigkernels.verify(model, inputs)
    assert not found.passed
    assert "not judged: stock does not run in float64" in str(found)
    # What can be judged is.
    last = "encoder.layer.1" if name == "bert" else "layers.1"
    assert {c.name: c.passed for c in found.checks}[last]
