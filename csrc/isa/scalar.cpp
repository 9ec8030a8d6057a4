// The CPU kernels for machines without AVX2; also what tests compare the others with.
#if defined(__AVX__)
#error "scalar.cpp is compiled without instruction-set flags"
#endif
#define BIGKERNELS_ISA_NAME "scalar"
#include "isa/rooms-inl.h"
