// The CPU kernels of attention for the instruction set of the including translation unit.
#pragma once

#include "attention/attention.h"
#include "common/cpu/simd.h"
#include "common/cpu/threads.h"

// In this order: each uses the ones above it.
#include "attention/dropout-inl.h"
#include "attention/forward-inl.h"
#include "attention/mask-inl.h"
#include "attention/product-inl.h"
#include "attention/rows-inl.h"
#include "attention/sequence-inl.h"
