#include "api.h"

#include <algorithm>
#include <numeric>
#include <thread>

#include "block.h"

namespace emulator {
namespace {

thread_local std::string g_text;  // what a function returned last

void run_blocks(Launch& launch) {
  const uint64_t all = static_cast<uint64_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  const uint64_t count = launch.options.last ? std::min(launch.options.last, all) : all;
  std::vector<uint64_t> order(count);
  std::iota(order.begin(), order.end(), all - count);
  uint64_t state = launch.options.seed * 0x9e3779b97f4a7c15 + 1;
  for (uint64_t i = count; i > 1; --i) {
    state = state * 6364136223846793005 + 1442695040888963407;
    std::swap(order[i - 1], order[(state >> 33) % i]);
  }
  std::atomic<uint64_t> next = 0;
  const auto work = [&] {
    try {
      Block block(launch);
      for (uint64_t at = next++; at < count; at = next++) block.run(order[at]);
      const std::lock_guard lock(launch.mutex);
      block.merge_counters();
    } catch (const std::exception& error) {
      next = count;
      const std::lock_guard lock(launch.mutex);
      launch.fatal = error.what();
    }
  };
  const int threads = static_cast<int>(std::min<uint64_t>(count, launch.options.threads));
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
}

std::string report_of(const Launch& launch) {
  std::string text;
  for (const std::string& finding : launch.findings) text += "finding\t" + finding + "\n";
  if (!launch.fatal.empty()) text += "fatal\t" + launch.fatal + "\n";
  text += format("instructions\t%llu\n",
                 static_cast<unsigned long long>(
                     std::accumulate(launch.executed.begin(), launch.executed.end(), uint64_t{0})));
  if (launch.traffic.empty()) return text;
  const Kernel& kernel = *launch.kernel;
  for (size_t i = 0; i < kernel.code.size(); ++i) {
    const Instruction& instruction = kernel.code[i];
    const Traffic& traffic = launch.traffic[i];
    text += format(
        "instruction\t%s\t%u\t%u\t%llu\t%llu\t%llu\t%llu\t%llu\t%d\n", instruction.opcode.c_str(),
        instruction.line, kernel.locations[instruction.location].line,
        static_cast<unsigned long long>(launch.executed[i]),
        static_cast<unsigned long long>(traffic.accesses),
        static_cast<unsigned long long>(traffic.bytes),
        static_cast<unsigned long long>(traffic.moved),
        static_cast<unsigned long long>(traffic.ideal), static_cast<int>(instruction.space));
  }
  return text;
}

}  // namespace
}  // namespace emulator

using emulator::Launch;

extern "C" {

Module* emulator_open(const char* text) {
  try {
    return new Module(emulator::read_module(text));
  } catch (const std::exception& error) {
    emulator::g_text = error.what();
    return nullptr;
  }
}

void emulator_close(Module* module) { delete module; }
const char* emulator_text() { return emulator::g_text.c_str(); }

const char* emulator_kernels(Module* module) {
  emulator::g_text.clear();
  for (const auto& [name, entry] : module->entries) emulator::g_text += name + "\n";
  return emulator::g_text.c_str();
}

const char* emulator_parameters(Module* module, const char* kernel) {
  try {
    std::string text;
    for (const emulator::Parameter& parameter : emulator::read_kernel(*module, kernel).parameters) {
      text += emulator::format("%u ", parameter.bytes);
    }
    emulator::g_text = text;
    return emulator::g_text.c_str();
  } catch (const std::exception& error) {
    emulator::g_text = error.what();
    return nullptr;
  }
}

int emulator_launch(Module* module, const EmulatorLaunch* wanted) {
  try {
    Launch launch;
    launch.module = module;
    emulator::Kernel& kernel = emulator::read_kernel(*module, wanted->kernel);
    launch.kernel = &kernel;
    std::copy_n(wanted->grid, 3, launch.grid.begin());
    std::copy_n(wanted->block, 3, launch.block.begin());
    const uint64_t threads = uint64_t{wanted->block[0]} * wanted->block[1] * wanted->block[2];
    if (threads == 0 || threads > kernel.max_threads) {
      emulator::fail("%llu threads a block, the kernel allows %u",
                     static_cast<unsigned long long>(threads), kernel.max_threads);
    }
    launch.dynamic_shared = wanted->dynamic_shared;
    launch.options = {wanted->checked != 0, wanted->counted != 0, wanted->init_fences != 0,
                      wanted->seed,         wanted->limit,        std::max(1, wanted->threads),
                      wanted->last};
    launch.parameters.resize(kernel.parameter_bytes);
    for (size_t i = 0; i < kernel.parameters.size(); ++i) {
      const emulator::Parameter& parameter = kernel.parameters[i];
      std::memcpy(&launch.parameters[parameter.offset], wanted->arguments[i], parameter.bytes);
    }
    for (uint32_t i = 0; i < wanted->region_count; ++i) {
      const EmulatorRegion& region = wanted->regions[i];
      launch.memory.add(
          {region.address, region.address + region.bytes, region.granule,
           wanted->checked ? region.initialised : nullptr, region.name, false, nullptr},
          wanted->checked && region.watched);
    }
    for (const auto& variable : module->variables) {
      launch.memory.add({variable->address, variable->address + variable->bytes, 1, nullptr,
                         variable->name, variable->constant, nullptr},
                        false);
    }
    launch.memory.sort();
    launch.executed.resize(kernel.code.size());
    if (launch.options.counted) launch.traffic.resize(kernel.code.size());
    emulator::run_blocks(launch);
    emulator::g_text = emulator::report_of(launch);
    return !launch.fatal.empty() ? 2 : !launch.findings.empty() ? 1 : 0;
  } catch (const std::exception& error) {
    emulator::g_text = std::string("fatal\t") + error.what() + "\n";
    return 2;
  }
}

}  // extern "C"
