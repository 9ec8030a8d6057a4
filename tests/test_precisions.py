"""The precisions accelerate() offers, on the real MiniLM over real text: the rule of docs/design.md, section 6."""

import copy

import pytest
import torch

import bigkernels
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
