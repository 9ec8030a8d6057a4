"""What accelerate() may look through and fuse: only what is exactly what it seems."""

import copy

import families
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import bigkernels


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Adapted(nn.Module):
    """A Linear with a low-rank addition, as LoRA libraries wrap them."""

    def __init__(self, base):
        super().__init__()
        self.base, self.scale = base, 0.5

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + self.scale * x[..., : self.base.out_features]


class OwnParameter(nn.Parameter):
    pass


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def _first_layer(model):
    return model.encoder.layer[0]


def hook(model):
    _first_layer(model).intermediate.dense.register_forward_hook(lambda m, a, out: 2 * out)


def pre_hook(model):
    _first_layer(model).attention.self.key.register_forward_pre_hook(lambda m, a: (2 * a[0],))


def hook_on_a_container(model):
    _first_layer(model).attention.self.register_forward_hook(lambda m, a, out: (2 * out[0], out[1]))


def hook_on_the_layer(model):
    _first_layer(model).register_forward_hook(lambda m, a, out: 2 * out)


def hook_on_the_activation(model):
    act = _first_layer(model).intermediate.intermediate_act_fn
    act.register_forward_hook(lambda m, a, out: 2 * out)


def hook_on_the_words(model):
    model.embeddings.word_embeddings.register_forward_hook(lambda m, a, out: 2 * out)


def hook_on_the_pooler(model):
    model.pooler.register_forward_hook(lambda m, a, out: 2 * out)


def parametrization(model):
    parametrize.register_parametrization(_first_layer(model).output.dense, "weight", Half())


def weight_norm(model):
    parametrizations.weight_norm(_first_layer(model).output.dense)
    _first_layer(model).output.dense.parametrizations.weight.original0.data.mul_(2)


def subclass(model):
    _first_layer(model).attention.self.query.__class__ = Doubled


def adapter(model):
    attention = _first_layer(model).attention.self
    attention.query = Adapted(attention.query)


def parameter_subclass(model):
    dense = _first_layer(model).output.dense
    dense.weight = OwnParameter(dense.weight.detach())


def own_forward(model):
    dense = _first_layer(model).output.dense
    dense.forward = lambda x: 2 * nn.functional.linear(x, dense.weight, dense.bias)


def own_forward_of_a_container(model):
    output = _first_layer(model).output
    output.forward = lambda hidden, x: output.LayerNorm(output.dense(hidden) - x)


def own_forward_of_the_layer(model):
    layer = _first_layer(model)
    layer.forward = lambda x, *args, **kwargs: 2 * x


class OwnOutput(nn.Module):
    def __init__(self, stock):
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = stock.dense, stock.LayerNorm, stock.dropout

    def forward(self, hidden, x):
        return self.LayerNorm(self.dense(hidden)) + x


def replaced_container(model):
    _first_layer(model).output = OwnOutput(_first_layer(model).output)


class MeanPooler(nn.Module):
    def forward(self, hidden):
        return hidden[:, :2].mean(1)


def replaced_pooler(model):
    model.pooler = MeanPooler()


def activation(model):
    _first_layer(model).intermediate.intermediate_act_fn = nn.Tanh()


def own_forward_of_the_activation(model):
    act = _first_layer(model).intermediate.intermediate_act_fn
    act.forward = lambda x: 2 * nn.functional.gelu(x)


def own_chunk(model):
    layer = _first_layer(model)
    layer.feed_forward_chunk = lambda x: 2 * x


def no_norm(model):
    _first_layer(model).output.LayerNorm = nn.Identity()


def position_wise_norm(model):
    _first_layer(model).output.LayerNorm = nn.LayerNorm((9, 32))


def causal(model):
    _first_layer(model).attention.self.is_causal = True
    model.encoder.layer[0].attention.self.query.weight.data.mul_(3)


# What is done to a BERT, and the words of the reason that must be given.
CHANGES = {
    hook: "intermediate.dense has hooks",
    pre_hook: "attention.self.key has hooks",
    hook_on_a_container: "attention.self has hooks",
    hook_on_the_layer: "layer 0: has hooks",
    hook_on_the_activation: "intermediate_act_fn has hooks",
    hook_on_the_words: "word_embeddings has hooks",
    hook_on_the_pooler: "pooler has hooks",
    parametrization: "output.dense is torch.nn.utils.parametrize.ParametrizedLinear",
    weight_norm: "output.dense is torch.nn.utils.parametrize.ParametrizedLinear",
    subclass: "attention.self.query is test_fusing.Doubled",
    adapter: "attention.self.query is test_fusing.Adapted",
    parameter_subclass: "output.dense.weight is a OwnParameter",
    own_forward: "output.dense has a forward of its own",
    own_forward_of_a_container: "output has a forward of its own",
    own_forward_of_the_layer: "a forward of its own",
    replaced_container: "output is test_fusing.OwnOutput",
    replaced_pooler: "pooler is test_fusing.MeanPooler",
    activation: "activation Tanh is not fused",
    own_forward_of_the_activation: "intermediate_act_fn has a forward of its own",
    own_chunk: "a feed_forward_chunk of its own",
    no_norm: "output.LayerNorm is torch.nn.modules.linear.Identity, not a plain torch.nn.LayerNorm",
    position_wise_norm: "output.LayerNorm is over 2 dimensions",
    causal: "its attention is causal",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_may_not_be_fused_is_called(change, when):
    model, inputs = families.tiny("bert"), families.batch("bert")
    with torch.no_grad():
        unchanged = model(**inputs)
    if when == "before":
        change(model)
    handle = bigkernels.accelerate(model)
    if when == "after":
        change(model)
    with torch.no_grad():
        got = model(**inputs)
    report = handle.report()
    said = " ".join([*report.padded.values(), *report.skipped.values()])
    assert CHANGES[change] in said, said
    handle.restore()
    with torch.no_grad():
        peer = model(**inputs)
        # Exact copies of instance forwards would call the original's weights.
        if "of its own" not in CHANGES[change]:
            truth = copy.deepcopy(model).double()(**inputs)
            keep = inputs["attention_mask"].bool()
            for key in ("last_hidden_state", "pooler_output"):
                at = keep if key == "last_hidden_state" else ...
                families.assert_judged(got[key][at], truth[key][at], peer[key][at])
        torch.testing.assert_close(got.pooler_output, peer.pooler_output, rtol=1e-4, atol=1e-5)
    if change is not parameter_subclass:
        assert (peer.pooler_output - unchanged.pooler_output).abs().max() > 1e-3


def test_hooks_for_every_module_are_run():
    model, inputs = families.tiny("bert"), families.batch("bert")
    handle = bigkernels.accelerate(model)
    seen = []
    remove = nn.modules.module.register_module_forward_hook(lambda m, a, out: seen.append(m))
    try:
        model(**inputs)
    finally:
        remove.remove()
    assert model.encoder.layer[1].output.dense in seen
    assert "every module" in next(iter(handle.report().padded.values()))
