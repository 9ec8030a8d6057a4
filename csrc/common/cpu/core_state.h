// How fast the matrix unit of each core runs right now.
#pragma once

namespace bigkernels {

struct CoreState {
  // Clock cycles of one bfloat16 tile product with its loads, on the best and the worst of the
  // cores that the threads ran on: 16 when a core has its matrix unit to itself, 50 and more when
  // a sibling hyperthread (perhaps another tenant of the machine) is busy.
  double best;
  double worst;
  double operations;  // floating-point operations a second, of all the cores together
};

// Runs tile products for some microseconds on each of num_threads threads at once. Only where
// kernels_for("amx") says that this process may use tiles.
CoreState core_state(int num_threads);

}  // namespace bigkernels
