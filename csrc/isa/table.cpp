#include "isa/table.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace bigkernels {
namespace {

struct Candidate {
  const KernelTable* table;
  bool (*machine_has_it)();
};

#if defined(__x86_64__)

// __builtin_cpu_supports also asks whether the operating system saves the wide registers.
bool has_avx2() {
  unsigned int eax, ebx, ecx = 0, edx;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

#endif

bool always() { return true; }

// Best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&avx512::kKernels, has_avx512},
    {&avx2::kKernels, has_avx2},
#endif
    {&scalar::kKernels, always},
};

const KernelTable& choose_table() {
  const char* forced = std::getenv("BIGKERNELS_ISA");
  if (forced == nullptr || *forced == '\0') {
    for (const Candidate& candidate : kCandidates)
      if (candidate.machine_has_it()) return *candidate.table;
  }
  if (const KernelTable* table = kernels_for(forced)) return *table;
  std::string message = std::string("BIGKERNELS_ISA=") + forced + ": this machine has";
  for (const Candidate& candidate : kCandidates)
    if (candidate.machine_has_it()) message += std::string(" ") + candidate.table->isa;
  throw std::runtime_error(message);
}

}  // namespace

const KernelTable* kernels_for(const char* isa) {
  for (const Candidate& candidate : kCandidates)
    if (std::strcmp(candidate.table->isa, isa) == 0 && candidate.machine_has_it())
      return candidate.table;
  return nullptr;
}

const KernelTable& kernels() {
  static const KernelTable& table = choose_table();
  return table;
}

}  // namespace bigkernels
