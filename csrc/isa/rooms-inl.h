// Every room's CPU kernels, for the instruction set of the including translation unit.
#include "common/cpu/simd.h"
#include "isa/table.h"

namespace bigkernels::BIGKERNELS_ISA_NAMESPACE {

extern const KernelTable kKernels = {
    BIGKERNELS_ISA_NAME,
};

}  // namespace bigkernels::BIGKERNELS_ISA_NAMESPACE
