"""The precisions accelerate() offers, on the real MiniLM over real text: the rule of docs/design.md, section 6."""

import copy

import pytest
import torch
from stacks import torchs

import bigkernels
from bigkernels import library
from bigkernels.integrations import outputs, whole

transformers = pytest.importorskip("transformers")
TEXTS, BATCH = 256, 32


@pytest.fixture(scope="module")
def minilm():
    """The model, and batches of real text with their masks."""
    from bigkernels.bench import encoders

    model = transformers.AutoModel.from_pretrained(encoders.folder("minilm")).eval()
    batches = []
    made = encoders.batch("minilm", TEXTS, 128, "snippets")
    for first in range(0, TEXTS, BATCH):
        part = slice(first, first + BATCH)
        ids, mask = torch.from_numpy(made.ids[part]), torch.from_numpy(made.mask[part])
        batches.append({"input_ids": ids, "attention_mask": mask})
    return model, batches


def tokens(model, batches):
    """The states of all real tokens, (T, E)."""
    with torch.inference_mode():
        return torch.cat(
            [model(**b).last_hidden_state[b["attention_mask"] != 0] for b in batches]
        ).float()


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.bfloat16, "int8", "int8_weights"], ids=str)
def test_tokens_of_real_text_keep_their_direction(dtype, minilm):
    if reason := whole.why_not_served(whole.PRECISIONS[dtype]):
        pytest.skip(f"cpu: {reason}")
    stock, batches = minilm
    model = copy.deepcopy(stock)
    handle = bigkernels.accelerate(model, dtype=dtype)
    mean, low = outputs.cosines(tokens(model, batches), tokens(stock, batches))
    assert handle.report().encoders == {"": f"one native call, {whole.PRECISIONS[dtype]}"}
    assert mean >= outputs.MEAN_COSINE and low >= outputs.FIRST_PERCENTILE, (mean, low)


@pytest.mark.full
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, "int8", "int8_weights"], ids=str)
def test_verify_passes_the_real_model(dtype, minilm):
    precision = "float32" if dtype is None else whole.PRECISIONS[dtype]
    if reason := whole.why_not_served(precision):
        pytest.skip(f"cpu: {reason}")
    stock, batches = minilm
    model = copy.deepcopy(stock)
    bigkernels.accelerate(model, dtype=dtype)
    found = bigkernels.verify(model, batches[0])
    assert found.passed, found


@pytest.fixture
def settings():
    """torch's newer precision settings, which are put back."""
    matmul = torch.backends.mkldnn.matmul
    places = {"all": torch.backends, "matmul": matmul}
    before = matmul.fp32_precision, torch.backends.fp32_precision
    yield places
    matmul.fp32_precision, torch.backends.fp32_precision = before


@pytest.mark.skipif(library.extension_error is not None, reason=f"cpu: {library.extension_error}")
@pytest.mark.parametrize("place", ["all", "matmul"])
@pytest.mark.parametrize(
    ("setting", "precision"), [("bf16", "bfloat16"), ("tf32", "high"), ("ieee", "float32")]
)
def test_products_follow_the_newer_setting(place, setting, precision, settings):
    if reason := whole.why_not_served(precision):
        pytest.skip(f"cpu: {reason}")
    model, inputs = torchs()
    handle = bigkernels.accelerate(model)
    settings["matmul"].fp32_precision = "none"
    settings[place].fp32_precision = setting
    found = bigkernels.verify(model, inputs)
    assert found.passed, found
    assert handle.report().encoders == {"": f"one native call, {precision}"}


@pytest.mark.skipif(library.extension_error is not None, reason=f"cpu: {library.extension_error}")
def test_the_setting_of_one_backend_goes_before_that_of_all(settings):
    model, inputs = torchs()
    handle = bigkernels.accelerate(model)
    torch.backends.fp32_precision, settings["matmul"].fp32_precision = "bf16", "ieee"
    with torch.no_grad():
        model(**inputs)
    assert handle.report().encoders == {"": "one native call, float32"}
