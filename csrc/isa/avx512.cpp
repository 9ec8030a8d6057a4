// The CPU kernels for AVX-512 F, BW, VL and DQ. Empty on other architectures.
#if defined(__x86_64__)
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || \
    !defined(__AVX512DQ__)
#error "avx512.cpp is compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c"
#endif
#define BIGKERNELS_ISA_NAME "avx512"
#include "isa/rooms-inl.h"
#endif
