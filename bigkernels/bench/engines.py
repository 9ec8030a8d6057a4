"""Peers that are not torch: ONNX Runtime, OpenVINO, CTranslate2, each set up as its documentation asks.

Converted models are kept in the cache; what is timed never includes a conversion.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bigkernels.training.data import raw_texts

from . import encoders
from .built import Built, Forward
from .encoders import Array, Batch


def onnxruntime(model: str, threads: int, precision: str) -> Built:
    """precision: "float32" or "int8" (dynamic, weights by channel). The graph is fused by
    onnxruntime.transformers."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = _onnx(model, precision)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}

    def prepare(batch: Batch) -> Forward:
        feed = {name: value for name, value in _feed(batch).items() if name in names}
        return lambda: session.run(None, feed)[0]

    how = f"graph of onnxruntime.transformers (fused), {precision}, {threads} threads"
    return Built(how, ort.__version__, prepare, np.asarray)


def openvino(model: str, threads: int, precision: str) -> Built:
    """precision: "float32", "bfloat16", or "int8" (NNCF, static, 128 snippets, transformer)."""
    import openvino as ov

    core = ov.Core()
    hint = {"float32": "f32", "bfloat16": "bf16", "int8": "f32"}[precision]
    settings = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    path = _openvino(model, "int8" if precision == "int8" else "float32")
    compiled = core.compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    names = {name for port in compiled.inputs for name in port.get_names()}

    def prepare(batch: Batch) -> Forward:
        feed = {name: value for name, value in _feed(batch).items() if name in names}
        return lambda: request.infer(feed, share_inputs=True)[0]

    how = f"latency hint, one stream, {precision}, {threads} threads"
    return Built(how, ov.__version__.split("-")[0], prepare, np.asarray)


def ctranslate2(model: str, threads: int, precision: str) -> Built:
    """precision: "float32" or "int8". It drops padding by itself from the lengths."""
    import ctranslate2 as ct2

    target = encoders.converted(model, f"ctranslate2-{ct2.__version__}")
    if not target.is_dir():
        temporary = _temporary(target)
        converter = ct2.converters.TransformersConverter(str(encoders.folder(model)))
        converter.convert(str(temporary), force=True)
        encoders.commit(temporary, target)
    encoder = ct2.Encoder(str(target), compute_type=precision, intra_threads=threads)

    def prepare(batch: Batch) -> Forward:
        ids = ct2.StorageView.from_array(batch.ids.astype(np.int32))
        lengths = ct2.StorageView.from_array(batch.mask.sum(1).astype(np.int32))
        return lambda: encoder.forward_batch(ids, lengths).last_hidden_state

    how = f"Encoder, compute_type {encoder.compute_type}, {threads} threads"
    return Built(how, ct2.__version__, prepare, np.array)


def _feed(batch: Batch) -> dict[str, Array]:
    kinds = np.zeros_like(batch.ids)
    return {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": kinds}


def _temporary(target: Path) -> Path:
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True, exist_ok=True)
    return temporary


def _traced(model: str) -> tuple[Any, dict[str, Any]]:
    """The model to be exported, with eager attention, and two sentences for it."""
    import torch
    from transformers import AutoModel

    loaded: Any = AutoModel.from_pretrained(
        encoders.folder(model), dtype=torch.float32, attn_implementation="eager"
    )
    two = encoders.batch(model, 2, 16, "ragged")
    return loaded.eval(), {name: torch.from_numpy(value) for name, value in _feed(two).items()}


def _onnx(model: str, precision: str) -> Path:
    import onnxruntime as ort

    target = encoders.converted(model, f"onnxruntime-{ort.__version__}-{precision}")
    if not target.is_dir():
        temporary = _temporary(target)
        {"float32": _export_onnx, "int8": _quantize_onnx}[precision](model, temporary)
        encoders.commit(temporary, target)
    return target / "model.onnx"


def _export_onnx(model: str, into: Path) -> None:
    import torch
    from onnxruntime.transformers.optimizer import optimize_model

    loaded, feed = _traced(model)
    plain = into / "plain.onnx"
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        _HiddenState(loaded),
        tuple(feed.values()),
        str(plain),
        input_names=list(feed),
        output_names=["last_hidden_state"],
        dynamic_axes=dict.fromkeys([*feed, "last_hidden_state"], axes),
        opset_version=17,
        dynamo=False,
    )
    shape = encoders.facts(model)
    fused = optimize_model(
        str(plain), model_type="bert", num_heads=shape["heads"], hidden_size=shape["hidden"]
    )
    fused.save_model_to_file(str(into / "model.onnx"))
    plain.unlink()


def _quantize_onnx(model: str, into: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(_onnx(model, "float32")),
        str(into / "model.onnx"),
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},  # fused nodes have no type
    )


def _HiddenState(model: Any) -> Any:  # noqa: N802 - torch is imported only by who exports
    import torch

    class HiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            token_type_ids: torch.Tensor,
        ) -> Any:
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    return HiddenState().eval()


def _openvino(model: str, precision: str) -> Path:
    import openvino as ov

    version = ov.__version__.split("-")[0]
    target = encoders.converted(model, f"openvino-{version}-{precision}")
    if not target.is_dir():
        temporary = _temporary(target)
        if precision == "float32":
            loaded, feed = _traced(model)
            made = ov.convert_model(_HiddenState(loaded), example_input=feed)
        else:
            made = _quantized_openvino(model)
        ov.save_model(made, str(temporary / "model.xml"), compress_to_fp16=False)
        encoders.commit(temporary, target)
    return target / "model.xml"


def _quantized_openvino(model: str) -> Any:
    import nncf
    import openvino as ov

    source = ov.Core().read_model(str(_openvino(model, "float32")))
    tokens = encoders.tokenizer(model)
    texts = raw_texts()[2000:2128]
    samples = []
    for text in texts:
        ids = np.array(tokens([text], truncation=True, max_length=128)["input_ids"], dtype=np.int64)
        samples.append(_feed(Batch(ids, np.ones_like(ids))))
    return nncf.quantize(
        source,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )


ENGINES: dict[str, Callable[[str, int, str], Built]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "ctranslate2": ctranslate2,
}
