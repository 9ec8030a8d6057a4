// What `bigkernels doctor` and `bench` ask of the CPU kernels: plain C functions, without torch or
// Python.
#include <exception>
#include <string>

#include "common/cpu/core_state.h"
#include "isa/table.h"

// Name of the instruction set the kernels run with, or "error: " and why none could be chosen.
extern "C" __attribute__((visibility("default"))) const char* bigkernels_cpu_isa() {
  try {
    return bigkernels::kernels().isa;
  } catch (const std::exception& error) {
    static const std::string message = std::string("error: ") + error.what();
    return message.c_str();
  }
}

// figures: best, worst and operations of common/cpu/core_state.h; zeros without AMX.
extern "C" __attribute__((visibility("default"))) void bigkernels_core_state(int num_threads,
                                                                             double* figures) {
  bigkernels::CoreState state{0, 0, 0};
  if (bigkernels::kernels_for("amx") != nullptr) state = bigkernels::core_state(num_threads);
  figures[0] = state.best;
  figures[1] = state.worst;
  figures[2] = state.operations;
}
