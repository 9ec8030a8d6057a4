// The CPU kernels for AMX (tiles of bfloat16 and int8) beside AVX-512. Empty on other
// architectures.
#if defined(__x86_64__)
#if !defined(__AMX_TILE__) || !defined(__AMX_BF16__) || !defined(__AMX_INT8__) ||  \
    !defined(__AVX512BF16__) || !defined(__AVX512F__) || !defined(__AVX512BW__) || \
    !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error \
    "amx.cpp is compiled with the flags of avx512.cpp, -mavx512bf16 -mamx-tile, -mamx-bf16, -mamx-int8"
#endif
#define BIGKERNELS_ISA_NAME "amx"
#include "isa/rooms-inl.h"
#endif
