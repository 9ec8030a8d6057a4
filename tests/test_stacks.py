"""ViT, GPT-2 and torch.nn's encoders: all layers in one native call where that is allowed, stock's elsewhere."""

import copy
import pickle

import families
import pytest
import torch
import transformers
from stacks import CASES, LENGTHS, SIZES, gpt2, moved, torchs, vit
from torch import nn

import bigkernels
from bigkernels import library
from bigkernels.integrations import whole
from bigkernels.integrations.accelerate import restore
from bigkernels.ops.encoder import cpu

pytestmark = pytest.mark.skipif(
    library.extension_error is not None, reason=f"cpu: {library.extension_error}"
)
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


def layout(inputs, out):
    """Which positions of out hold tokens, or all."""
    ignore = inputs.get("src_key_padding_mask")
    keep = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
    keep = ~ignore if ignore is not None else keep
    if keep is None:
        return ...
    return keep if out.shape[:2] == keep.shape else keep.T


def run(model, inputs):
    with torch.no_grad(), families.no_fast_path():
        out = model(**inputs)
    return out if isinstance(out, torch.Tensor) else out.last_hidden_state


def double(inputs):
    return {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_native_call_equals_stock(make, dtype):
    model, inputs = make()
    model.to(dtype)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    names, parameters = list(model.state_dict()), list(model.parameters())
    classes = [type(m) for m in model.modules()]
    exact = copy.deepcopy(model).double()
    stock = copy.deepcopy(model)
    restore(stock)
    restore(exact)
    truth, peer = run(exact, double(inputs)), run(stock, inputs)
    handle = bigkernels.accelerate(model)
    got = run(model, inputs)
    at = layout(inputs, got)
    families.assert_judged(got[at], truth[at], peer[at])
    if at is not ...:
        assert not got[~at].any()
    precision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    assert handle.report().encoders == {"": f"one native call, {precision}"}
    assert handle.report().packed_bytes > 0 and list(model.state_dict()) == names
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), inputs), got)
    handle.restore()
    ours = isinstance(model, bigkernels.nn.TransformerEncoder)
    assert ours or whole.known(model) is None
    assert [type(m) for m in model.modules()] == classes
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


OFF_TILES = {
    "BERT": (lambda: (families.tiny("bert"), families.batch("bert")), "head_dim 16"),
    "ViT": (lambda: vit(intermediate_size=72), "hidden 72"),
    "GPT-2": (lambda: gpt2(n_inner=72), "hidden 72"),
    "torch.nn": (lambda: (families.tiny("torch.nn"), families.batch("torch.nn")), "head_dim 16"),
}


@pytest.mark.parametrize("isa", ["amx", "avx2"])
@pytest.mark.parametrize("asked", [None, torch.bfloat16, "int8_weights"], ids=str)
@pytest.mark.parametrize("name", OFF_TILES)
def test_sizes_that_fill_no_tile_keep_the_tiles_of_torch(name, asked, isa, monkeypatch):
    make, size = OFF_TILES[name]
    model, inputs = make()
    model.to(torch.bfloat16)
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    truth, peer = run(copy.deepcopy(model).double(), double(inputs)), run(model, inputs)
    monkeypatch.setattr(cpu, "_isa", lambda: isa)
    handle = bigkernels.accelerate(model, dtype=asked)
    got = run(model, inputs)
    story = handle.report().encoders[""]
    if isa == "avx2":
        assert story == f"one native call, {whole.PRECISIONS.get(asked, 'bfloat16')}"
    else:
        assert f"{size} is not a multiple of" in story, story
        assert story.endswith("is slower than torch in bfloat16") and not whole.known(model).bytes
        at = layout(inputs, got)
        families.assert_judged(got[at], truth[at], peer[at])


@pytest.mark.parametrize("name", OFF_TILES)
def test_products_that_torch_makes_in_float32_need_no_tiles(name, monkeypatch):
    model, inputs = OFF_TILES[name][0]()
    monkeypatch.setattr(cpu, "_isa", lambda: "amx")
    handle = bigkernels.accelerate(model, dtype=torch.bfloat16)
    run(model, inputs)
    assert handle.report().encoders == {"": "one native call, bfloat16"}
    with torch.autocast("cpu", torch.bfloat16):
        run(model, inputs)
    assert handle.report().encoders[""].startswith("one after another: ")


@cases
def test_verify_passes_and_checks_each_layer(make):
    model, inputs = make()
    found = bigkernels.verify(model, inputs)
    assert found.passed, found
    layers = [check for check in found.checks if not check.name.startswith("end to end")]
    assert len(layers) == 2


@pytest.mark.parametrize("name", ["ViT", "GPT-2", "torch.nn, causal and padded"])
@pytest.mark.parametrize("part", ["eps", "activation", "causal"])
def test_verify_flags_planted_errors(name, part, monkeypatch):
    model, inputs = CASES[name]()
    bigkernels.accelerate(model)
    place = {"eps": 7, "activation": 8, "causal": 10}[part]
    right = whole._forward

    def wrong(*given):
        changed = {"eps": 1e-2, "activation": "silu", "causal": not given[10]}[part]
        return right(*given[:place], changed, *given[place + 1 :])

    monkeypatch.setattr(whole, "_forward", wrong)
    found = bigkernels.verify(model, inputs)
    failed = {check.name for check in found.checks if not check.passed}
    assert any(check.startswith("end to end") for check in failed), found
    assert len([check for check in failed if not check.startswith("end to end")]) == 2, found


@pytest.mark.parametrize("name", ["ViT", "GPT-2", "torch.nn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "int8", "int8_weights"], ids=str)
def test_other_precisions_of_the_products(name, dtype):
    if reason := whole.why_not_served(whole.PRECISIONS[dtype]):
        pytest.skip(f"cpu: {reason}")
    model, inputs = CASES[name]()
    expected = run(model, inputs)
    handle = bigkernels.accelerate(model, dtype=dtype)
    got = run(model, inputs)
    assert handle.report().encoders == {"": f"one native call, {whole.PRECISIONS[dtype]}"}
    at = layout(inputs, got)
    cosines = torch.cosine_similarity(got[at], expected[at], dim=-1)
    assert cosines.min() > 0.99 and not torch.equal(got[at], expected[at])


def test_a_model_of_ours_forgets_the_precision_it_was_asked_for():
    model, inputs = CASES["bigkernels.nn"]()
    expected = run(model, inputs)
    with bigkernels.accelerate(model, dtype=torch.bfloat16):
        assert not torch.equal(run(model, inputs), expected)
    assert torch.equal(run(model, inputs), expected)


def first_matrix(model):
    return next(p for n, p in model.named_parameters() if p.dim() == 2 and ("0." in n))


def data_scaled(model):
    first_matrix(model).data.mul_(1.3)


def data_replaced(model):
    weight = first_matrix(model)
    weight.data = 1.3 * weight.data


def state_assigned(model):
    state = {k: 1.2 * v if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def fused_step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("write", [data_scaled, data_replaced, state_assigned, fused_step])
@pytest.mark.parametrize("name", ["ViT", "GPT-2", "torch.nn", "bigkernels.nn"])
def test_weights_are_never_stale(name, write):
    model, inputs = CASES[name]()
    handle = bigkernels.accelerate(model)
    before = run(model, inputs)
    write(model)
    got = run(model, inputs)
    assert handle.report().packed_bytes > 0
    stock = copy.deepcopy(model)
    restore(stock)
    at = layout(inputs, got)
    torch.testing.assert_close(got[at], run(stock, inputs)[at], rtol=1e-4, atol=1e-4)
    assert (got - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ViT", "GPT-2", "torch.nn", "bigkernels.nn"])
def test_copies_are_freed_before_weights_change(name):
    for change in (
        lambda m: m.train(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.load_state_dict(m.state_dict()),
    ):
        model, inputs = CASES[name]()
        handle = bigkernels.accelerate(model)
        run(model, inputs)
        assert handle.report().packed_bytes > 0
        change(model)
        assert handle.report().packed_bytes == 0


def hook(model):
    layers = model.h if hasattr(model, "h") else model.layers
    next(layers[1].children()).register_forward_hook(lambda *_: None)


def other_eps(model):
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    norms[1].eps = 0.1


def own_forward(model):
    layers = model.h if hasattr(model, "h") else model.layers
    layers[0].forward = layers[0].forward


def dropout_on(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
            module.training = True


@pytest.mark.parametrize("change", [hook, other_eps, own_forward, dropout_on])
@pytest.mark.parametrize("name", ["ViT", "GPT-2", "torch.nn"])
def test_what_one_call_cannot_do_goes_layer_by_layer(name, change):
    model, inputs = CASES[name]()
    handle = bigkernels.accelerate(model)
    run(model, inputs)
    change(model)
    got = run(model, inputs)
    assert handle.report().encoders[""].startswith("one after another: ")
    if change not in (dropout_on, own_forward):
        stock = copy.deepcopy(model)
        restore(stock)
        at = layout(inputs, got)
        torch.testing.assert_close(got[at], run(stock, inputs)[at], rtol=1e-4, atol=1e-5)


def reasons():
    yield "ViT", {"output_hidden_states": True}, "output_hidden_states was asked for"
    yield "ViT", {"attention_mask": torch.ones(3, 17)}, "attention_mask was passed"
    yield "GPT-2", {"use_cache": True}, "a cache was asked for"
    left = torch.ones(4, 9, dtype=torch.long)
    left[1, :4] = 0
    yield "GPT-2", {"attention_mask": left}, "padded on the left"
    holes = torch.ones(4, 9, dtype=torch.long)
    holes[1, 4] = 0
    yield "GPT-2", {"attention_mask": holes}, "the mask has holes"
    yield "GPT-2", {"output_attentions": True}, "output_attentions was asked for"
    band = torch.ones(9, 9, dtype=torch.bool).triu(2)
    yield "torch.nn, no padding", {"mask": band}, "a mask that is not the causal one"
    middle = torch.zeros(4, 9, dtype=torch.bool)
    middle[0, 4] = True
    yield "torch.nn", {"src_key_padding_mask": middle}, "on both sides or in between"


@pytest.mark.parametrize(("name", "given", "reason"), list(reasons()))
def test_reasons_are_reported_and_results_are_stocks(name, given, reason):
    model, inputs = CASES[name]()
    inputs |= given
    expected = run(model, inputs)
    handle = bigkernels.accelerate(model)
    got = run(model, inputs)
    assert reason in handle.report().encoders[""]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_stocks():
    for name in ("ViT", "GPT-2", "torch.nn"):
        model, inputs = CASES[name]()
        grads = []
        for accelerated in (False, True):
            if accelerated:
                handle = bigkernels.accelerate(model)
            model.zero_grad()
            out = model(**inputs)
            out = out if isinstance(out, torch.Tensor) else out.last_hidden_state
            out[layout(inputs, out)].square().sum().backward()
            grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert "gradients are wanted" in handle.report().encoders[""]
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_positions_types_and_embeddings_of_the_user():
    model, inputs = gpt2()
    places = torch.arange(9).flip(0)[None]
    types = torch.randint(0, 40, (4, 9))
    embeds = torch.randn(4, 9, 64)
    for given in (
        {"position_ids": places},
        {"position_ids": places.expand(4, 9), "token_type_ids": types},
        {"input_ids": None, "inputs_embeds": embeds},
    ):
        report = families.assert_like_stock(
            model, {k: v for k, v in (inputs | given).items() if v is not None}
        )
        assert report.encoders == {"": "one native call, float32"}


def test_losses_of_language_models_are_stocks():
    model, inputs = gpt2(cls=transformers.GPT2LMHeadModel)
    keep = inputs["attention_mask"].bool()
    for labels, reason in (
        (torch.where(keep, inputs["input_ids"], -100), "one native call, float32"),
        (inputs["input_ids"], "one after another: labels of GPT2LMHeadModel stand at padded"),
    ):
        with torch.no_grad():
            expected = model(**inputs, labels=labels)
            with bigkernels.accelerate(model) as handle:
                got = model(**inputs, labels=labels)
                assert handle.report().encoders["transformer"].startswith(reason)
        torch.testing.assert_close(got.loss, expected.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got.logits[keep], expected.logits[keep], rtol=1e-4, atol=1e-5)


def test_generation_with_a_cache_is_stocks():
    model, inputs = gpt2(cls=transformers.GPT2LMHeadModel)
    ids = inputs["input_ids"][:1, :5]
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": True}
    expected = model.generate(ids, **options)
    with bigkernels.accelerate(model):
        assert torch.equal(model.generate(ids, **options), expected)
        assert torch.equal(model.generate(ids, **options | {"use_cache": False}), expected)


def test_image_classifiers_and_tuples():
    torch.manual_seed(0)
    sizes = {**SIZES, "intermediate_size": 128, "image_size": 16, "patch_size": 4}
    model = moved(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixels).logits
        with bigkernels.accelerate(model) as handle:
            torch.testing.assert_close(model(pixels).logits, expected, rtol=1e-4, atol=1e-5)
            assert handle.report().encoders["vit"] == "one native call, float32"
            assert type(model.vit(pixels, return_dict=False)) is tuple
            larger = torch.randn(1, 3, 24, 24)
            assert model.vit(larger, interpolate_pos_encoding=True)[0].shape == (1, 37, 64)
            with pytest.raises(ValueError, match="doesn't match model"):
                model.vit(larger)


def test_one_sequence_and_nested_sequences():
    model, _ = torchs(norm_first=True)
    handle = bigkernels.accelerate(model)
    parts = [torch.randn(length, 64) for length in LENGTHS]
    with torch.no_grad():
        alone = [model(part) for part in parts]
        assert handle.report().encoders == {"": "one native call, float32"}
        nested = model(torch.nested.nested_tensor(parts, layout=torch.jagged))
    assert handle.report().encoders == {"": "one native call, float32"}
    for one, part in zip(alone, nested.unbind(), strict=True):
        assert torch.equal(one, part)


@pytest.mark.parametrize("name", ["ViT", "GPT-2", "torch.nn"])
def test_compiles_into_one_graph(name):
    model, inputs = CASES[name]()
    bigkernels.accelerate(model)
    eager = run(model, inputs)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    got = compiled if isinstance(compiled, torch.Tensor) else compiled.last_hidden_state
    at = layout(inputs, got)
    torch.testing.assert_close(got[at], eager[at], rtol=1e-4, atol=1e-5)
