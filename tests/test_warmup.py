"""After `bigkernels warmup` an encoder builds no kernel, and nothing on the way to a kernel waits for the device."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bigkernels as bk
from bigkernels import models
from bigkernels.cli import warmup
from bigkernels.ops.attention import arguments
from tests.emulator.memory import Running

pytestmark = pytest.mark.usefixtures("sm_80")

WIDTH, HEADS, HIDDEN, WORDS, PLACES = 32, 2, 64, 100, 64
# What brings a value of the device to the host, or makes a size of it.
WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "argwhere"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount"),
}


def forms():
    """Compiled so far for the emulated device, of every kernel there is: names, and what they were built for."""
    from triton import JITFunction

    kernels = [thing for thing in gc.get_objects() if type(thing) is JITFunction]
    built = [k for k in kernels if 80 in k.device_caches]
    return {(k.fn.__name__, form) for k in built for form in k.device_caches[80][0]}


def sizes_of(dtype, training):
    return warmup.Sizes(WIDTH, HEADS, HIDDEN, WORDS, dtype, 0.1, training, PLACES)


def encoder(dtype, training):
    config = models.BertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=PLACES,
    )
    return models.BertForMaskedLM(config).to(dtype).train(training)


def block(dtype, training):
    make = {"batch_first": True, "activation": "gelu", "dropout": 0.1, "dtype": dtype}
    return bk.nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, **make).train(training)


@pytest.mark.parametrize(
    ("dtype", "training"),
    [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)],
    ids=["bfloat16-training", "bfloat16-inference", "float32-training"],
)
def test_an_encoder_of_the_sizes_warmed_up_builds_nothing(dtype, training):
    warmup.warm(sizes_of(dtype, training), "cpu", (32,), "triton")
    before = forms()
    model, layer = encoder(dtype, training), block(dtype, training)
    with bk.use_backend("triton"), torch.set_grad_enabled(training):
        for batch, length in ((2, 9), (3, 17)):
            keep = torch.arange(length) < torch.tensor([[length], [5], [3]])[:batch]
            ids = torch.randint(5, WORDS, (batch, length))
            x = torch.randn(batch, length, WIDTH).to(dtype).requires_grad_(training)
            labels = torch.where(ids % 3 == 0, ids, -100)
            for mask in (None, keep.long()):  # padded, packed
                outs = [
                    model(ids, mask, labels=labels).loss,
                    layer(x, src_key_padding_mask=None if mask is None else ~keep).float().sum(),
                ]
                if training:
                    torch.autograd.backward(outs)
    assert sorted(map(str, forms() - before)) == []


class Watch(TorchDispatchMode):
    """Sees what is called outside of the operations; ``note`` what is called inside them."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def note(self, function):
        name = function._schema.name.rpartition("::")[2]
        self.seen.add(name)
        assert name not in WAITS, f"{name} waits for the device"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.note(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_no_operation_waits_for_the_device(training, monkeypatch):
    """Forward and backward, padded and packed. Of the CPU's tensors a first call reads the lengths, to check them: not
    of a GPU's, so that the second call is watched."""
    monkeypatch.setattr(arguments, "unread", lambda values: True)
    kept = [
        call for _, call in warmup.calls(sizes_of(torch.bfloat16, training), "cpu", (32,), "triton")
    ]
    with torch.set_grad_enabled(training):
        for call in kept:
            call()
    watch, note = Watch(), Running.note

    def noted(self, function, given, result):
        watch.note(function)
        note(self, function, given, result)

    monkeypatch.setattr(Running, "note", noted)
    monkeypatch.setattr(Running, "unwritten", lambda self, results: ())  # reads values itself
    for name in ("tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(torch.Tensor, name, _refused(name))
    monkeypatch.setattr(torch.cuda, "synchronize", _refused("synchronize"))
    for call in kept:
        with torch.set_grad_enabled(training), watch:
            out = call()
            if training:
                out.float().sum().backward()
    rooms = ("layer_norm", "add_layer_norm", "attention", "ffn", "embedding", "cross_entropy")
    for room in rooms:
        assert f"{room}_forward_triton" in watch.seen
        assert (f"{room}_backward_triton" in watch.seen) == training
    assert {"packing_plan_triton", "packing_forward_triton"} <= watch.seen


def _refused(name):
    def refuse(*arguments, **named):
        raise AssertionError(f"{name} waits for the device")

    return refuse
