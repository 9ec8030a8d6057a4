"""Who is timed: every peer by name, what it needs, and how it is set up."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

_OPS = ("layer_norm", "attention", "ffn", "embedding")
BASELINES = {**dict.fromkeys(_OPS, "torch"), "encoder": "HF sdpa"}
OURS = "bigkernels"
COPY = "copy"  # not a peer: what moving the same bytes costs
READS = {"float32": "weights read", "bfloat16": "weights read bf16"}  # the same of weights


@dataclasses.dataclass(frozen=True)
class Peer:
    """One competitor; each runs in a process of its own.

    groups: of cases.GROUPS. build: "module:function" of this package and its further arguments.
    needs: modules it imports; install: the line that brings them. environment: variables of its
    process. precision: whose error it is compared with. full: only in full runs, on cases that are
    `compiled`, because setting it up takes minutes. gpu: it can run on GPUs only. berts: of the
    encoders it takes BERTs only. narrow, streams: it is held to AVX2, or only reads as many bytes as the weights
    have; only on cases that are `narrow`, or `streams`.
    """

    name: str
    groups: tuple[str, ...]
    build: str = ""
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    install: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    precision: str = "float32"
    full: bool = False
    gpu: bool = False
    berts: bool = False
    narrow: bool = False
    streams: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is bigkernels, in any precision."""
        return self.name.startswith(OURS)

    def missing(self) -> str:
        """Why it cannot run here, "" if it can."""
        import torch

        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent:
            return f"{', '.join(absent)} not installed"
        return "it needs a GPU" if self.gpu and not torch.cuda.is_available() else ""

    def load(self) -> None:
        """Imports what setting it up will need."""
        if not self.missing():
            for name in self.needs[:1]:
                importlib.import_module(name)
            self.builder()

    def builder(self) -> Callable[..., Any]:
        """The function that sets it up."""
        module, _, function = self.build.partition(":")
        built: Callable[..., Any] = getattr(
            importlib.import_module(f"bigkernels.bench.{module}"), function
        )
        return built


def _encoder(name: str, build: str, *arguments: str, **rest: Any) -> Peer:
    return Peer(name, ("encoder",), build, arguments, **rest)


_HF = "torch_encoders:stock"
_NEEDS_HF = {"needs": ("transformers",), "install": "pip install transformers"}
_BERTS: dict[str, Any] = {"berts": True}
_ORT = _BERTS | {"needs": ("onnxruntime", "onnx"), "install": "pip install onnxruntime onnx"}
_OV = _BERTS | {"needs": ("openvino",), "install": "pip install openvino"}
_OV8 = _BERTS | {"needs": ("openvino", "nncf"), "install": "pip install openvino nncf"}
# Its own threads take each other's CPU when they spin: 9 ms instead of 1.7 for a small batch.
_PASSIVE = (("OMP_WAIT_POLICY", "passive"),)
_CT2 = _BERTS | {
    "needs": ("ctranslate2",), "install": "pip install ctranslate2", "environment": _PASSIVE
}  # fmt: skip
# ATen's own kernels, and the products of MKL and oneDNN, as on a CPU without AVX-512.
_ATEN_AVX2 = (("ATEN_CPU_CAPABILITY", "avx2"),)
_AVX2 = (*_ATEN_AVX2, ("MKL_ENABLE_INSTRUCTIONS", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "AVX2"))
_OURS_AVX2 = (*_AVX2, ("BIGKERNELS_ISA", "avx2"))
_BF16, _INT8, _AUTO = {"precision": "bfloat16"}, {"precision": "int8"}, {"precision": "autocast"}

PEERS: tuple[Peer, ...] = (
    Peer("torch", _OPS, "rooms:torch_default"),
    Peer("eager attention", ("attention",), "rooms:eager_attention"),
    Peer("sdpa flash", ("attention",), "rooms:sdpa", ("flash",)),
    Peer("sdpa math", ("attention",), "rooms:sdpa", ("math",)),
    Peer("sdpa efficient", ("attention",), "rooms:sdpa", ("efficient",), gpu=True),
    Peer("sdpa cudnn", ("attention",), "rooms:sdpa", ("cudnn",), gpu=True),
    Peer("mkldnn prepacked", ("ffn",), "rooms:prepacked"),
    Peer(COPY, ("layer_norm",), "rooms:copy"),
    Peer("torch.compile", _OPS, "rooms:compiled", full=True),
    Peer("bigkernels", _OPS, "rooms:bigkernels"),
    _encoder("HF sdpa", _HF, "sdpa", "float32", **_NEEDS_HF),
    _encoder("HF eager", _HF, "eager", "float32", **_NEEDS_HF),
    _encoder("HF autocast", _HF, "sdpa", "autocast", **_NEEDS_HF, **_AUTO),
    _encoder("HF bf16", _HF, "sdpa", "bfloat16", **_NEEDS_HF, **_BF16),
    _encoder("nn.TransformerEncoder", "torch_encoders:fast_path", "float32", **_NEEDS_HF, **_BERTS),
    _encoder("mkldnn prepacked bf16", "torch_encoders:prepacked", **_NEEDS_HF, **_BF16),
    _encoder("compile", "torch_encoders:compiled", "float32", "default", full=True, **_NEEDS_HF),
    _encoder(
        "compile autotuned", "torch_encoders:compiled", "float32", "max-autotune", full=True, **_NEEDS_HF
    ),
    _encoder(
        "compile autotuned bf16", "torch_encoders:compiled", "bfloat16", "max-autotune", full=True,
        **_NEEDS_HF, **_BF16,
    ),
    _encoder("ONNX Runtime", "engines:onnxruntime", "float32", **_ORT),
    _encoder("ONNX Runtime int8", "engines:onnxruntime", "int8", **_ORT, **_INT8),
    _encoder("OpenVINO", "engines:openvino", "float32", **_OV),
    _encoder("OpenVINO bf16", "engines:openvino", "bfloat16", **_OV, **_BF16),
    _encoder("OpenVINO int8", "engines:openvino", "int8", **_OV8, **_INT8),
    _encoder("CTranslate2", "engines:ctranslate2", "float32", **_CT2),
    _encoder("CTranslate2 int8", "engines:ctranslate2", "int8", **_CT2, **_INT8),
    _encoder("bigkernels", "torch_encoders:accelerated", "float32", **_NEEDS_HF),
    _encoder("bigkernels autocast", "torch_encoders:accelerated", "autocast", **_NEEDS_HF, **_AUTO),
    _encoder("bigkernels high", "torch_encoders:accelerated", "high", **_NEEDS_HF),
    _encoder("bigkernels bf16", "torch_encoders:accelerated", "bfloat16", **_NEEDS_HF, **_BF16),
    _encoder(
        "bigkernels nn", "torch_encoders:fast_path", "float32", "accelerated", **_NEEDS_HF, **_BERTS
    ),
    _encoder("bigkernels int8", "torch_encoders:accelerated", "int8", **_NEEDS_HF, **_INT8),
    _encoder(
        "bigkernels int8_weights", "torch_encoders:accelerated", "int8_weights", **_NEEDS_HF, **_INT8
    ),
    _encoder(READS["float32"], "torch_encoders:reading", "float32", streams=True),
    _encoder(READS["bfloat16"], "torch_encoders:reading", "bfloat16", streams=True, **_BF16),
    _encoder("HF sdpa AVX2", _HF, "sdpa", "float32", environment=_AVX2, narrow=True, **_NEEDS_HF),
    _encoder(
        "HF sdpa ATen AVX2", _HF, "sdpa", "float32", environment=_ATEN_AVX2, narrow=True, **_NEEDS_HF
    ),
    _encoder(
        "bigkernels AVX2", "torch_encoders:accelerated", "float32", environment=_OURS_AVX2,
        narrow=True, **_NEEDS_HF,
    ),
    Peer("Liger", _OPS, needs=("liger_kernel",), install="pip install liger-kernel", gpu=True),
    Peer("FlashAttention", ("attention",), needs=("flash_attn",), install="pip install flash-attn", gpu=True),
    Peer("FlashAttention 3", ("attention",), needs=("fa3_fwd",), install="pip install fa3-fwd", gpu=True),
    Peer("apex", ("layer_norm",), needs=("apex",), install="build github.com/NVIDIA/apex", gpu=True),
    Peer("Transformer Engine", _OPS, needs=("transformer_engine",), install="pip install transformer-engine", gpu=True),
)  # fmt: skip

# No rivals of one who may use all of this machine.
ASIDE = tuple(peer.name for peer in PEERS if peer.narrow or peer.streams)
NEVER_FASTEST = ("HF eager", "nn.TransformerEncoder", "bigkernels nn", "compile")
TRUTH = _encoder("float64", _HF, "eager", "float64", **_NEEDS_HF)


def find(kind: str, name: str) -> Peer:
    """A peer by name; kind "encoder" or "room", because ours is called the same in both."""
    for peer in (*PEERS, TRUTH):
        if peer.name == name and ("encoder" in peer.groups) == (kind == "encoder"):
            return peer
    raise KeyError(name)
