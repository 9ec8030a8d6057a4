// What `bigkernels doctor` asks of the CPU kernels: a plain C function, without torch or Python.
#include <exception>
#include <string>

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
