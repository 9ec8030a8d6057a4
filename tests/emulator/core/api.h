// The C interface that Python uses: read a module, launch a kernel, read the report.
#pragma once

#include "types.h"

using emulator::Module;

// Memory that a launch may touch.
struct EmulatorRegion {
  uint64_t address, bytes;
  uint32_t granule;      // bytes of an element
  uint32_t watched;      // whether races between blocks are looked for
  uint8_t* initialised;  // as Region::initialised, or null
  const char* name;
};

struct EmulatorLaunch {
  const char* kernel;
  uint32_t grid[3], block[3];
  uint32_t dynamic_shared;
  int32_t threads;
  uint64_t seed, limit, last;
  int32_t checked, counted, init_fences;
  void** arguments;  // one pointer a parameter
  uint32_t region_count;
  const EmulatorRegion* regions;
};

extern "C" {

// Null on failure: emulator_text() says why.
Module* emulator_open(const char* text);
void emulator_close(Module* module);
// What the last function returned or did, in this thread.
const char* emulator_text();
// The names of the kernels, a line each.
const char* emulator_kernels(Module* module);
// Bytes of each parameter of a kernel, separated by spaces; null on failure.
const char* emulator_parameters(Module* module, const char* kernel);
// 0: it ran and no check fired; 1: findings; 2: it could not go on. emulator_text() has the report.
int emulator_launch(Module* module, const EmulatorLaunch* wanted);

}  // extern "C"
