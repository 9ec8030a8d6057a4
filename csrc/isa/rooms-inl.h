// Every room's CPU kernels, for the instruction set of the including translation unit.
#include "attention/cpu-inl.h"
#include "common/cpu/parts-inl.h"
#include "common/cpu/simd.h"
#include "embedding/cpu-inl.h"
#include "encoder/cpu-inl.h"
#include "ffn/cpu-inl.h"
#include "isa/table.h"
#include "layer_norm/cpu-inl.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {

extern const KernelTable kKernels = {
    BIGKERNELS_ISA_NAME,
    {Vec::kLanes, part_map<Vec>, part_map<VecD>, part_convert, part_sum, part_maximum,
     part_multiply_wide, part_philox, part_dropout},
    {layer_norm_forward, layer_norm_backward},
    {attention_forward_scratch, attention_forward, attention_backward_scratch, attention_backward},
    {ffn_multiply_scratch, ffn_multiply, ffn_forward, ffn_backward, ffn_column_sums},
    {encoder_serves, encoder_pack, encoder_workspace, encoder_forward},
    {embedding_forward, embedding_backward},
};

}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
