#include "isa/table.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
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

// Linux gives a process the tile registers only if it asks, and may refuse.
bool kernel_permits_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx() {
  constexpr unsigned int kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr unsigned int kAvx512Bf16 = 1u << 5;
  unsigned int eax, ebx, ecx, edx;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool has_tiles = (edx & kAmxBf16) && (edx & kAmxTile) && (edx & kAmxInt8);
  if (!has_tiles || !__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) return false;
  static const bool permitted = (eax & kAvx512Bf16) && kernel_permits_tiles();
  return permitted;
}

#endif

bool always() { return true; }

// Best first.
const Candidate kCandidates[] = {
#if defined(__x86_64__)
    {&amx::kKernels, has_amx},
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
