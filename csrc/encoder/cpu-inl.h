// The CPU kernels of the encoder for the instruction set of the including translation unit.
#pragma once

#include "encoder/pack-inl.h"
#include "encoder/vectors-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {
namespace {

bool encoder_serves(const EncoderShape& shape) {
  return shape.precision == EncoderPrecision::kFloat32;
}

void encoder_pack(const EncoderPackParams& params) {
  const EncoderLayout layout(params.shape);
  for (int64_t i = 0; i < params.shape.layers; ++i) pack_rows(params, layout, i);
  for_each_panel(params, layout, kPanelWidth,
                 [](const PackSource& source, int64_t n, char* out, float* room) {
                   float* panel = reinterpret_cast<float*>(out) + n * source.depth();
                   pack_vector_panel(source, n, room, panel);
                 });
}

int64_t encoder_workspace(const EncoderForwardParams& params) {
  return VectorEncoder<float>(params).bytes;
}

void encoder_forward(const EncoderForwardParams& params) { forward_vectors<float>(params); }

}  // namespace
}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
