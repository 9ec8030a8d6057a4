// bigkernels._native: the CPU kernels on NumPy arrays, without torch. Unit tests of small parts and
// the sanitizers come in here; nothing at run time does. The first argument is always the
// instruction set.
#include "module_attention.h"
#include "module_encoder.h"
#include "module_ffn.h"
#include "module_layer_norm.h"
#include "module_parts.h"

PYBIND11_MODULE(_native, m) {
  bigkernels::define_parts(m);
  bigkernels::define_layer_norm(m);
  bigkernels::define_ffn(m);
  bigkernels::define_attention(m);
  bigkernels::define_encoder(m);
}
