// The CPU kernels of attention for the instruction set of the including translation unit.
#pragma once

#include "attention/forward-inl.h"
