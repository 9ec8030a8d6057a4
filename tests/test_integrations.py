"""accelerate(): the same results as stock for every family, on every kind of batch."""

import collections
import copy
import io
import pickle

import families
import pytest
import tiny
import torch
import transformers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bigkernels
from bigkernels.integrations import backbone

NAMES = list(families.SWAPPED)
ENCODERS = list(families.FAMILIES)
FUSED_AWAY = ("softmax", "layer_norm", "gelu", "dropout", "bernoulli", "scaled_dot_product")


class Ops(TorchDispatchMode):
    """Counts the ops that run."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))

    def of_aten(self, *words):
        return [op for op in self.counts if op.startswith("aten") and any(w in op for w in words)]


@pytest.mark.parametrize("name", NAMES)
def test_every_family_equals_stock_with_zeros_at_padding(name):
    report = families.assert_like_stock(families.tiny(name), families.batch(name))
    counts = collections.Counter(report.swapped.values())
    for block, least in families.SWAPPED[name].items():
        assert counts[block] >= least, report
    assert not report.skipped and not report.padded, report


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [False, True])
def test_no_stock_kernel_is_left(name, training):
    changes = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    if name == "distilbert":
        changes = {"dropout": 0.1, "attention_dropout": 0.1}
    model = families.tiny(name, **({} if name == "torch.nn" else changes)).train(training)
    if name == "torch.nn":
        for dropout in (m for m in model.modules() if isinstance(m, nn.Dropout)):
            dropout.p = 0.1
    bigkernels.accelerate(model)
    with torch.set_grad_enabled(training), Ops() as ops:
        out = next(iter(families.tensors(model(**families.batch(name))).values()))
        if training:
            out.square().sum().backward()
    assert not ops.of_aten(*FUSED_AWAY), ops.counts
    if not training:
        assert ops.counts["bigkernels.encoder_forward_cpu.default"] == 1, ops.counts
        return
    assert any("attention_forward" in op for op in ops.counts), ops.counts
    layers = sum(n for op, n in ops.counts.items() if "ffn_forward" in op)
    assert layers == 2, ops.counts


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_stock(name):
    model, inputs = families.tiny(name).train(), families.batch(name)
    keep = families.tokens_of(inputs)
    exact = copy.deepcopy(model).double()

    def gradients(m, given):
        m.zero_grad()
        found = families.tensors(m(**given))
        loss = found["last_hidden_state"][keep].square().sum()
        if "pooler_output" in found:
            loss = loss + found["pooler_output"].sum()
        loss.backward()
        return {n: p.grad for n, p in m.named_parameters() if p.grad is not None}

    double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    truth, peer = gradients(exact, double), gradients(model, inputs)
    bigkernels.accelerate(model)
    got = gradients(model, inputs)
    assert got.keys() == peer.keys()
    for key, value in got.items():
        # The keys' bias shifts all scores of a row alike: its gradient is rounding alone, of no known scale.
        if not (key.endswith(("key.bias", "k_lin.bias", "in_proj_bias"))):
            families.assert_judged(value, truth[key], peer[key], grad=True)


@pytest.mark.parametrize("name", ENCODERS)
def test_masks_of_any_kind_give_the_same(name):
    inputs = families.batch(name)
    model = families.tiny(name)
    bigkernels.accelerate(model)
    keep = inputs.pop("attention_mask").bool()
    with torch.no_grad():
        expected = model(**inputs, attention_mask=keep.long()).last_hidden_state
        for mask in (keep, keep.int(), keep.float(), 3 * keep.long()):
            assert torch.equal(model(**inputs, attention_mask=mask).last_hidden_state, expected)
        for b, length in enumerate(families.LENGTHS):
            alone = {k: v[b : b + 1, :length] for k, v in inputs.items()}
            # Rounding apart: torch's products depend on the number of rows.
            got = model(**alone).last_hidden_state[0]
            torch.testing.assert_close(got, expected[b, :length], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_unusual_batches_equal_stock(name, attention):
    model, inputs = families.tiny(name, attention), families.batch(name)
    keep = inputs["attention_mask"]
    left = {**inputs, "attention_mask": keep.flip(1), "input_ids": inputs["input_ids"].flip(1)}
    assert families.assert_like_stock(model, left, zeros=False).padded
    empty = {**inputs, "attention_mask": keep.clone()}
    empty["attention_mask"][1] = 0
    assert families.assert_like_stock(model, empty, zeros=False).padded
    holes = {**inputs, "attention_mask": keep.clone()}
    holes["attention_mask"][0, 3:5] = 0
    assert not families.assert_like_stock(model, holes).padded
    unmasked = {k: v for k, v in inputs.items() if k != "attention_mask"}
    assert not families.assert_like_stock(model, unmasked).padded
    full = {**inputs, "attention_mask": torch.ones_like(keep)}
    assert not families.assert_like_stock(model, full).padded
    square = (keep[:, None, None] * torch.ones(keep.shape[1], 1)).bool()  # (B, 1, L, L)
    if attention == "sdpa":
        assert families.assert_like_stock(model, {**unmasked, "attention_mask": square}).padded


@pytest.mark.parametrize("name", ENCODERS)
def test_a_sample_of_padding_alone_has_finite_gradients(name):
    # Eager attention masks with the least finite number, which must not overflow on its way.
    model, inputs = families.tiny(name, "eager").train(), families.batch(name)
    inputs["attention_mask"][1] = 0
    bigkernels.accelerate(model)
    out = model(**inputs).last_hidden_state
    assert out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ENCODERS)
def test_positions_and_embeddings_of_the_user(name):
    model, inputs = families.tiny(name), families.batch(name)
    ids = inputs["input_ids"]
    length = ids.shape[1]
    for positions in (torch.arange(length).flip(0)[None], torch.randint(0, 24, ids.shape)):
        families.assert_like_stock(model, {**inputs, "position_ids": positions})
    embeds = model.get_input_embeddings()(ids).detach()
    rest = {k: v for k, v in inputs.items() if k != "input_ids"}
    report = families.assert_like_stock(model, {**rest, "inputs_embeds": embeds})
    assert not report.padded


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_equal_stock(name, dtype):
    families.assert_like_stock(families.tiny(name).to(dtype), families.batch(name))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_equals_stock(name):
    model, inputs = families.tiny(name), families.batch(name)
    exact = copy.deepcopy(model).double()
    keep = families.tokens_of(inputs)
    double = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    # torch's fast path of its own encoder fails under autocast.
    with torch.no_grad(), families.no_fast_path():
        truth = families.tensors(exact(**double))["last_hidden_state"]
        with torch.autocast("cpu", torch.bfloat16):
            peer = families.tensors(model(**inputs))["last_hidden_state"]
            bigkernels.accelerate(model)
            got = families.tensors(model(**inputs))["last_hidden_state"]
    families.assert_judged(got.bfloat16()[keep], truth[keep], peer.bfloat16()[keep])


@pytest.mark.parametrize("name", ENCODERS)
def test_what_stock_refuses_is_refused(name):
    model = families.tiny(name)
    long = torch.full((1, 30), 7)
    masked = torch.ones(1, 30, dtype=torch.long)
    masked[:, 5:] = 0
    for inputs in (
        {"input_ids": long},
        {"input_ids": long, "attention_mask": masked},
        {},
        {"input_ids": long[:, :4], "inputs_embeds": torch.zeros(1, 4, 32)},
        {"input_ids": long[0]},
        {"input_ids": torch.full((1, 4), 99)},
    ):
        with pytest.raises(Exception) as stock:
            model(**inputs)
        with bigkernels.accelerate(model), pytest.raises(stock.type):
            model(**inputs)
    bigkernels.accelerate(model)
    with pytest.raises(TypeError):
        model(*[long[:, :4]] * 20)


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_on_request_equal_stock(name):
    model, inputs = families.tiny(name, "eager"), families.batch(name)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        stock = model(**inputs, **wanted)
        stock_tuple = model(**inputs, return_dict=False)
        handle = bigkernels.accelerate(model)
        got = model(**inputs, **wanted)
        assert "asked for" in next(iter(handle.report().padded.values()))
        found_tuple = model(**inputs, return_dict=False)
        assert not handle.report().padded
    for key in ("hidden_states", "attentions"):
        assert len(got[key]) == len(stock[key])
        keep = inputs["attention_mask"].bool()
        for ours, theirs in zip(got[key], stock[key], strict=True):
            if key == "hidden_states":
                torch.testing.assert_close(ours[keep], theirs[keep], rtol=1e-4, atol=1e-5)
            else:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert type(found_tuple) is tuple and len(found_tuple) == len(stock_tuple)


def test_gradient_checkpointing_gives_the_same_gradients():
    inputs = families.batch("bert")
    grads = []
    for checkpointing in (False, True):
        model = families.tiny("bert", hidden_dropout_prob=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        handle = bigkernels.accelerate(model)
        torch.manual_seed(5)
        model(**inputs).last_hidden_state.square().sum().backward()
        assert not handle.report().padded
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 30
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ENCODERS)
def test_padded_and_packed_drop_the_same_elements(name, monkeypatch):
    rates = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.3}
    if name == "distilbert":
        rates = {"dropout": 0.3, "attention_dropout": 0.3}
    model, inputs = families.tiny(name, **rates).train(), families.batch(name)
    keep = families.tokens_of(inputs)
    handle = bigkernels.accelerate(model)
    # Stock's embeddings drop by torch's generator; off, for the two paths to be comparable.
    model.embeddings.dropout.p = 0.0
    torch.manual_seed(7)
    packed = model(**inputs).last_hidden_state
    assert not handle.report().padded
    torch.manual_seed(7)
    monkeypatch.setattr(backbone, "_why_padded", lambda *_: "the test wants it")
    padded = model(**inputs).last_hidden_state
    assert handle.report().padded
    # Other elements dropped would differ by much more than rounding.
    torch.testing.assert_close(packed[keep], padded[keep], rtol=1e-3, atol=1e-4)
    torch.manual_seed(8)
    other = model(**inputs).last_hidden_state
    assert (other - padded)[keep].abs().max() > 0.1


@pytest.mark.parametrize("name", ENCODERS)
def test_dropout_obeys_the_mode_of_each_dropout_module(name):
    rates = {"hidden_dropout_prob": 0.5}
    if name == "distilbert":
        rates = {"dropout": 0.5}
    model, inputs = families.tiny(name, **rates), families.batch(name)
    bigkernels.accelerate(model)
    with torch.no_grad():
        still = model(**inputs).last_hidden_state
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        first, second = (model(**inputs).last_hidden_state for _ in range(2))
        assert not torch.equal(first, second)
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        assert torch.equal(model(**inputs).last_hidden_state, still)


def test_sentence_transformer_and_cross_encoder(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = tiny.write_model(tmp_path / "bert")
    texts = ["good film", "the plot is very bad a film", "awful"]
    whole = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    stock = whole.encode(texts)
    with bigkernels.accelerate(whole) as handle:
        assert list(handle.report().swapped.values()).count("BertLayer") == 2
        got = whole.encode(texts)
        assert not handle.report().padded
    torch.testing.assert_close(torch.tensor(got), torch.tensor(stock), rtol=1e-4, atol=1e-5)
    cross = sentence_transformers.CrossEncoder(str(folder), num_labels=1, device="cpu")
    pairs = [(texts[0], texts[1]), (texts[2], texts[0])]
    stock = cross.predict(pairs)
    handle = bigkernels.accelerate(cross if isinstance(cross, nn.Module) else cross.model)
    assert list(handle.report().swapped.values()).count("BertLayer") == 2
    torch.testing.assert_close(
        torch.tensor(cross.predict(pairs)), torch.tensor(stock), rtol=1e-4, atol=1e-5
    )


def test_the_real_minilm_equals_stock():
    from bigkernels.training import data

    model = transformers.AutoModel.from_pretrained(data.minilm_path()).eval()
    lengths = (19, 7, 12)
    keep = torch.arange(19) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1000, 20000, keep.shape) * keep
    report = families.assert_like_stock(model, {"input_ids": ids, "attention_mask": keep.long()})
    assert collections.Counter(report.swapped.values())["BertLayer"] == 6 and not report.padded


def test_task_heads_give_the_same_logits_and_loss():
    _, config, sizes = families.FAMILIES["bert"]
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config(**sizes, num_labels=3)).eval()
    inputs = {**families.batch("bert"), "labels": torch.tensor([0, 2, 1, 1])}
    report = families.assert_like_stock(model, inputs)
    assert not report.padded


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_compiles_into_one_graph(name):
    model, inputs = families.tiny(name), families.batch(name)
    keep = families.tokens_of(inputs)
    bigkernels.accelerate(model)
    with torch.no_grad():
        eager = model(**inputs).last_hidden_state
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(compiled.last_hidden_state[keep], eager[keep], rtol=1e-4, atol=1e-5)


def test_pickles_and_saves_like_stock(tmp_path):
    model, inputs = families.tiny("bert"), families.batch("bert")
    keys = list(model.state_dict())
    handle = bigkernels.accelerate(model)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(again(**inputs).last_hidden_state, expected)
        saved = io.BytesIO()
        torch.save(model, saved)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=False)
        assert torch.equal(loaded(**inputs).last_hidden_state, expected)
    model.save_pretrained(tmp_path)
    assert '"BertModel"' in (tmp_path / "config.json").read_text()
    fresh = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(fresh) is transformers.BertModel
    assert list(fresh.state_dict()) == keys
    handle.restore()
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True)
    )
    # The twin loads too: it is a BertModel.
    bigkernels.accelerate(model)
    assert isinstance(type(model).from_pretrained(tmp_path), transformers.BertModel)
