// The CPU kernels for AVX2 with FMA and F16C. Empty on other architectures.
#if defined(__x86_64__)
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__) || defined(__AVX512F__)
#error "avx2.cpp is compiled with -mavx2 -mfma -mf16c"
#endif
#define BIGKERNELS_ISA_NAME "avx2"
#include "isa/rooms-inl.h"
#endif
