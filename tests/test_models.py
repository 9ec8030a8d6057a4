"""The reference encoder: equal to transformers' BERT, names both ways, no padding inside."""

from __future__ import annotations

import itertools

import pytest
import torch

import bigkernels as bk
from bigkernels.models import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from bigkernels.models.bert import sinusoidal_table
from bigkernels.testing import oracle

transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
PAIRS = {
    "model": (BertModel, "BertModel"),
    "masked-lm": (BertForMaskedLM, "BertForMaskedLM"),
    "sequence-classification": (BertForSequenceClassification, "BertForSequenceClassification"),
    "token-classification": (BertForTokenClassification, "BertForTokenClassification"),
}


def batch(lengths: tuple[int, ...] = (9, 4, 1)) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 120, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    types = torch.randint(0, 2, ids.shape, generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}


def pair(name: str, dtype: torch.dtype = torch.float32, **sizes: object):
    ours, theirs = PAIRS[name]
    torch.manual_seed(0)
    stock_config = transformers.BertConfig(**{**SMALL, **sizes}, attn_implementation="eager")
    stock = getattr(transformers, theirs)(stock_config).eval().to(dtype)
    for parameter in stock.parameters():  # away from zero biases and unit weights
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = ours(BertConfig.from_transformers(stock_config)).eval().to(dtype)
    return model, stock


def result(output: object, name: str) -> torch.Tensor:
    return output.last_hidden_state if name == "model" else output.logits


def test_at_inference_all_layers_are_one_native_call_unless_one_is_watched():
    model, _ = pair("model")
    with torch.no_grad(), bk.trace() as records:
        once = model(**batch()).last_hidden_state
    assert {r.room for r in records if r.backend == "cpu"} == {"embedding", "encoder", "packing"}
    seen = []
    model.encoder.layer[1].register_forward_hook(lambda *given: seen.append(given))
    with torch.no_grad(), bk.trace() as records:
        layers = model(**batch()).last_hidden_state
    assert len(seen) == 1 and "encoder" not in {r.room for r in records}
    torch.testing.assert_close(once, layers, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PAIRS)
def test_state_dict_loads_both_ways(name):
    model, stock = pair(name)
    assert set(model.state_dict()) == set(stock.state_dict())
    model.load_state_dict(stock.state_dict(), strict=True)
    stock.load_state_dict(model.state_dict(), strict=True)
    for key, value in stock.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu", "silu"])
def test_equal_to_transformers(name, dtype, hidden_act):
    model, stock = pair(name, dtype, hidden_act=hidden_act)
    model.load_state_dict(stock.state_dict())
    inputs = batch()
    real = inputs["attention_mask"].bool()
    if name == "sequence-classification":
        real = slice(None)
    with torch.no_grad():
        got = result(model(**inputs), name)[real]
        peer = result(stock(**inputs), name)[real]
        truth = result(stock.double()(**inputs), name)[real]
    verdict = oracle.judge(got, truth, [peer])
    assert verdict, verdict.reason


def test_padding_is_zero_and_does_not_change_the_tokens():
    model, _ = pair("model")
    inputs = batch()
    with torch.no_grad():
        padded = model(**inputs).last_hidden_state
        alone = model(
            *(inputs[k][1:2, :4] for k in ("input_ids", "attention_mask", "token_type_ids"))
        )
    assert torch.equal(padded[1, 4:], torch.zeros_like(padded[1, 4:]))
    torch.testing.assert_close(padded[1, :4], alone.last_hidden_state[0], rtol=0, atol=2e-6)


def test_gradients_equal_transformers():
    model, stock = pair("sequence-classification", hidden_dropout_prob=0.0)
    model.load_state_dict(stock.state_dict())
    inputs = {**batch(), "labels": torch.tensor([0, 1, 1])}
    exact = pair("sequence-classification")[1].double()
    exact.load_state_dict(stock.state_dict())

    def gradients(m, order=slice(None)):
        m.zero_grad()
        m(**{name: value[order] for name, value in inputs.items()})[0].backward()
        found = {name: p.grad for name, p in m.named_parameters()}
        # Softmax does not see a key's bias: its gradient is 0 but for rounding, which is judged by
        # the scale of what it is a column of.
        for name in [name for name in found if name.endswith("key.bias")]:
            weight = name.replace("bias", "weight")
            found[weight] = torch.cat([found[weight], found.pop(name)[:, None]], dim=1)
        return found

    got, truth = gradients(model), gradients(exact)
    # Weight gradients are sums over the batch: its other orders are what an honest sum may give too.
    peers = [gradients(stock, list(order)) for order in itertools.permutations(range(3))]
    for name in truth:
        verdict = oracle.judge(got[name], truth[name], [peer[name] for peer in peers], grad=True)
        assert verdict, f"{name}: {verdict.reason}"


def test_loss_ignores_what_is_not_asked_for():
    model, stock = pair("masked-lm")
    model.load_state_dict(stock.state_dict())
    inputs = batch()
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"], -100)
    with torch.no_grad():
        got, expected = model(**inputs, labels=labels).loss, stock(**inputs, labels=labels).loss
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_dropout_needs_training_and_follows_the_seed():
    model, _ = pair("model")
    inputs = batch()
    model.train()
    torch.manual_seed(3)
    first = model(**inputs).last_hidden_state
    second = model(**inputs).last_hidden_state
    torch.manual_seed(3)
    again = model(**inputs).last_hidden_state
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_sinusoidal_positions_are_fixed():
    config = BertConfig(**SMALL, position_embedding="sinusoidal")
    model = BertModel(config)
    table = model.embeddings.position_embeddings.weight
    assert not table.requires_grad
    column = torch.arange(24) / 10000 ** (4 / 32)
    torch.testing.assert_close(table[:, 4], column.sin())
    torch.testing.assert_close(table[:, 5], column.cos())
    assert torch.equal(table, sinusoidal_table(24, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "swishy"}, "hidden_act"),
        ({"position_embedding": "rotary"}, "position_embedding"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
    ],
)
def test_bad_configuration_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        BertConfig(**{**SMALL, **change})


def test_bad_input_names_the_argument():
    model, _ = pair("model")
    with pytest.raises(ValueError, match="input_ids"):
        model(torch.ones(5, dtype=torch.long))
    with pytest.raises(ValueError, match="attention_mask"):
        model(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 4))
    with pytest.raises(ValueError, match="at most 24"):
        model(torch.ones(1, 25, dtype=torch.long))


def test_readable_in_one_sitting():
    import bigkernels.models.bert as module

    with open(module.__file__) as file:
        assert len(file.readlines()) <= 400
