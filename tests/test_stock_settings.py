"""accelerate(): what a model's configuration, buffers, registries and heads say is obeyed."""

import copy
import pickle

import families
import pytest
import torch
import transformers
from torch import nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

import bigkernels
from bigkernels.integrations import twins

ENCODERS = list(families.FAMILIES)
ROOM = {"bert": "Bert", "distilbert": "DistilBert", "electra": "Electra"}


def _attention_of_my_own(module, query, key, value, mask, **kwargs):
    return 2 * value.transpose(1, 2), None


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("known", [False, True])
def test_attention_of_the_users_own_is_called(name, known, monkeypatch):
    model, inputs = families.tiny(name), families.batch(name)
    if known:  # a registry's entry under a name we know
        registry = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
        monkeypatch.setitem(registry._global_mapping, "sdpa", _attention_of_my_own)
    else:
        transformers.AttentionInterface.register("mine", _attention_of_my_own)
        AttentionMaskInterface.register("mine", sdpa_mask)
        model.set_attn_implementation("mine")
    report = families.assert_like_stock(model, inputs, zeros=False)
    assert "attention implementation" in str(report)
    assert "attention implementation" in " ".join(report.skipped.values())


def test_attention_set_after_accelerate_is_obeyed():
    model, inputs = families.tiny("bert"), families.batch("bert")
    handle = bigkernels.accelerate(model)
    transformers.AttentionInterface.register("mine", _attention_of_my_own)
    AttentionMaskInterface.register("mine", sdpa_mask)
    model.set_attn_implementation("mine")
    with torch.no_grad():
        got = model(**inputs).last_hidden_state
        assert "mine is not one of eager, sdpa" in handle.report().padded[""]
        handle.restore()
        stock = model(**inputs).last_hidden_state
    torch.testing.assert_close(got, stock, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_asked_for_by_the_configuration_are_there(name):
    model, inputs = families.tiny(name, "eager"), families.batch(name)
    model.config.output_attentions = model.config.output_hidden_states = True
    with torch.no_grad():
        stock = model(**inputs)
        bigkernels.accelerate(model)
        got = model(**inputs)
    for key in ("attentions", "hidden_states"):
        assert len(got[key]) == len(stock[key]) == (2 if key == "attentions" else 3)
        for ours, theirs in zip(got[key], stock[key], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # The recorder is what counts, not the keyword that reaches the layers.
    with torch.no_grad():
        assert not model(**inputs, output_attentions=False).attentions


@pytest.mark.parametrize("name", ENCODERS)
def test_default_positions_and_types_are_read_from_the_buffers(name):
    inputs = families.batch(name)
    inputs.pop("token_type_ids", None)
    changes = {} if name == "distilbert" else {"type_vocab_size": 2}
    model = families.tiny(name, **changes)
    before = model(**inputs).last_hidden_state
    if hasattr(model.embeddings, "token_type_ids"):
        model.embeddings.token_type_ids = (torch.arange(24) % 2)[None]
    else:
        model.embeddings.position_ids = torch.arange(24).flip(0)[None]
    assert not families.assert_like_stock(model, inputs).padded
    assert (model(**inputs).last_hidden_state - before).abs().max() > 0.1
    model.embeddings.position_ids = torch.arange(24).flip(0)[None]
    assert not families.assert_like_stock(model, inputs).padded
    model.embeddings.position_ids = torch.arange(24).flip(0).repeat(len(families.LENGTHS), 1)
    report = families.assert_like_stock(model, inputs, zeros=False)
    assert "position_ids is not (1, positions)" in str(report)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_an_identity_in_a_dropouts_place_drops_nothing(name):
    model, inputs = families.tiny(name), families.batch(name)
    layer = model.encoder.layer[0] if name == "bert" else model.transformer.layer[0]
    if name == "bert":
        layer.output.dropout = layer.attention.output.dropout = nn.Identity()
    else:
        layer.ffn.dropout = nn.Identity()
    model.embeddings.dropout = nn.Identity()
    for training in (False, True):
        report = families.assert_like_stock(model.train(training), inputs)
        assert not report.skipped and not report.padded


def _head(family, task, **changes):
    _, config, sizes = families.FAMILIES[family]
    torch.manual_seed(0)
    cls = getattr(transformers, f"{ROOM[family]}For{task}")
    return cls(config(**{**sizes, **changes})).eval()


@pytest.mark.parametrize("family", ROOM)
def test_question_answering_reads_what_stock_reads(family):
    model, inputs = _head(family, "QuestionAnswering").train(), families.batch(family)
    inputs |= {"start_positions": torch.tensor([1, 2, 0, 3]), "end_positions": torch.full((4,), 3)}
    report = bigkernels.accelerate(model).report()
    assert "softmax over padded positions" in str(report.padded)  # before anything has run
    bigkernels.integrations.accelerate.restore(model)
    report = families.assert_like_stock(model, inputs, zeros=False)
    assert list(report.padded) == [model.base_model_prefix]
    assert "QuestionAnswering" not in str(report.swapped)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    handle = bigkernels.accelerate(model)
    model(**inputs)
    assert twins.role_of(model) and not bigkernels.integrations.backbone.why_padded(
        model.base_model
    )
    handle.restore()
    assert type(model).__name__ == f"{ROOM[family]}ForQuestionAnswering"
    assert not twins.role_of(model)


def test_copies_and_subclasses_of_a_head_read_what_stock_reads():
    class Mine(transformers.BertForQuestionAnswering):
        pass

    model, inputs = _head("bert", "QuestionAnswering"), families.batch("bert")
    with torch.no_grad():
        stock = model(**inputs).start_logits
        bigkernels.accelerate(model)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(copied(**inputs).start_logits, stock, rtol=1e-4, atol=1e-5)
        bigkernels.integrations.accelerate.restore(model)
        model.__class__ = Mine
        bigkernels.accelerate(model)
        torch.testing.assert_close(model(**inputs).start_logits, stock, rtol=1e-4, atol=1e-5)


def test_a_head_that_cannot_be_guarded_keeps_its_stock_backbone():
    model, inputs = _head("bert", "QuestionAnswering"), families.batch("bert")
    model.forward = model.forward
    report = families.assert_like_stock(model, inputs, zeros=False)
    assert "it is in a BertForQuestionAnswering" in report.skipped["bert"]


@pytest.mark.parametrize("task", ["TokenClassification", "MaskedLM"])
def test_labels_at_padded_positions_count_as_in_stock(task):
    model, inputs = _head("bert", task), families.batch("bert")
    labels = torch.randint(0, 2, inputs["input_ids"].shape)
    report = families.assert_like_stock(model, {**inputs, "labels": labels}, zeros=False)
    assert "stand at padded positions" in report.padded["bert"]
    ignored = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    handle = bigkernels.accelerate(model)
    model(**inputs, labels=ignored)
    assert not handle.report().padded
