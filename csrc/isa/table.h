// The CPU kernels of one instruction set as a table of function pointers, and the choice among
// them.
#pragma once

#include "attention/attention.h"
#include "common/cpu/parts.h"
#include "embedding/embedding.h"
#include "encoder/encoder.h"
#include "ffn/ffn.h"
#include "layer_norm/layer_norm.h"

namespace bigkernels {

// One member per room, of the struct of entry points that its header declares.
struct KernelTable {
  const char* isa;
  PartKernels parts;
  LayerNormKernels layer_norm;
  AttentionKernels attention;
  FfnKernels ffn;
  EncoderKernels encoder;
  EmbeddingKernels embedding;
};

namespace scalar {
extern const KernelTable kKernels;
}
namespace avx2 {
extern const KernelTable kKernels;
}
namespace avx512 {
extern const KernelTable kKernels;
}
namespace amx {
extern const KernelTable kKernels;
}

// The table of this process, chosen at the first call: the instruction set that the environment
// variable BIGKERNELS_ISA names, else the best one this machine has. Throws std::runtime_error,
// naming the variable, if it asks for what this machine or this build lacks.
const KernelTable& kernels();

// The table of the named instruction set ("scalar", "avx2", "avx512", "amx"); null if there is none
// of that name or this machine cannot run it.
const KernelTable* kernels_for(const char* isa);

}  // namespace bigkernels
