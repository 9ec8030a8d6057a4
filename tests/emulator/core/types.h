// What a PTX module becomes once it is read: kernels made of decoded instructions.
//
// A warp's registers lie in one bank, a row of 32 lanes for each: 2, 4 or 8 bytes a lane, or a
// single 32-bit mask for a predicate. Immediate operands are rows too, in the kernel's bank of
// constants, so that an instruction reads both alike.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace emulator {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = ~0u;

// Generic addresses below these windows are the host's own. Shared memory starts above 0, as on the
// device, so that a null pointer is outside of it.
constexpr uint64_t kSharedWindow = 0x0000010000000000, kLocalWindow = 0x0000020000000000,
                   kParameterWindow = 0x0000030000000000, kWindowMask = 0xffffff0000000000;
constexpr uint32_t kSharedStart = 1024;

// A module or a launch that cannot go on; what the checks find is a Finding instead.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[gnu::format(printf, 1, 2)]] [[noreturn]] void fail(const char* format, ...);
[[gnu::format(printf, 1, 2)]] std::string format(const char* format, ...);

struct Type {
  enum Kind : uint8_t { kBits, kUnsigned, kSigned, kFloat, kBFloat, kTf32, kPredicate };
  Kind kind = kBits;
  uint8_t bits = 32;
  uint8_t count = 1;  // 2: a packed pair such as .f16x2
  int bytes() const { return bits * count / 8; }
  bool is_float() const { return kind == kFloat || kind == kBFloat; }
  bool operator==(const Type&) const = default;
};

enum class Space : uint8_t { kGeneric, kGlobal, kShared, kLocal, kParameter };

struct Operand {
  enum Bank : uint8_t { kRegisters = 0, kConstants = 1, kAbsent = 2 };
  Bank bank = kAbsent;
  uint8_t bytes = 0;         // of a lane; 0: a predicate
  bool negated = false;      // of a predicate
  uint32_t offset = 0;       // of the row in its bank
  int64_t displacement = 0;  // of an address
  bool present() const { return bank != kAbsent; }
};

class Block;
struct Warp;
struct Instruction;
using Handler = void (*)(Block&, Warp&, const Instruction&, uint32_t mask);

// How the scheduler treats an instruction.
enum class Flow : uint8_t {
  kStraight,
  kBranch,  // to `target`
  kExit,
  kConverge,  // the lanes named by operand `members` run it together
  kBarrier,   // may suspend the warp
  kWait,      // may have to be tried again: others get their turn
};

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::kStraight;
  Operand guard;
  Operand d, a, b, c, e;
  std::vector<Operand> vector;  // elements of {...} operands, in order
  Operand second;               // the predicate of d|p
  Operand members;
  Type type, source_type;
  Space space = Space::kGeneric;
  uint8_t count = 1;  // elements of one vector
  int mode = 0, option = 0;
  uint32_t target = 0;
  uint32_t line = 0;      // of the PTX
  uint32_t location = 0;  // index into Kernel::locations
  bool unfenced = false;  // of wgmma: see register_order.cpp
  std::string text, opcode;
};

struct Location {
  uint32_t file = 0, line = 0;
};

struct Parameter {
  std::string name;
  uint32_t offset, bytes;
};

// A .shared, .local or .param variable: where it lies in its space.
struct Symbol {
  Space space;
  uint64_t offset;
  bool dynamic = false;  // the launch's shared memory: behind all static variables
};

enum class Special : uint8_t {
  kTidX,
  kTidY,
  kTidZ,
  kBlockX,
  kBlockY,
  kBlockZ,
  kCtaX,
  kCtaY,
  kCtaZ,
  kGridX,
  kGridY,
  kGridZ,
  kLane,
  kWarp,
  kWarps,
  kMultiprocessor,
  kDynamicShared,
  kMaskLess,
  kMaskLessEqual,
  kMaskGreater,
  kMaskGreaterEqual,
  kMaskEqual,
  kZero,
  kOne,
};

struct SpecialRow {
  Special special;
  uint32_t offset;
  uint8_t bytes;
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  std::vector<SpecialRow> specials;
  std::vector<Location> locations{{}};
  std::vector<uint8_t> constants;
  uint32_t register_bytes = 0;
  uint32_t parameter_bytes = 0, shared_bytes = kSharedStart, local_bytes = 0;
  uint32_t dynamic_alignment = 16;
  uint32_t max_threads = 1024;
  uint32_t granule = 4;  // bytes of the smallest access to shared memory
  std::unordered_map<std::string, Symbol> symbols;
};

// A kernel whose body has not been read yet.
struct Entry {
  std::string name, parameters, directives;
  size_t begin, end;  // of the body
  uint32_t line;
  std::unique_ptr<Kernel> kernel;
};

// A .global or .const variable.
struct Variable {
  std::string name;
  std::vector<uint8_t> storage;
  uint64_t address;
  uint64_t bytes;
  bool constant;
};

struct Module {
  std::string text;
  std::map<std::string, Entry> entries;
  std::map<uint32_t, std::string> files;
  std::vector<std::unique_ptr<Variable>> variables;
  std::unordered_map<std::string, Symbol> shared;  // declared outside of every kernel
  std::unordered_map<std::string, const Variable*> globals;
  uint32_t shared_bytes = kSharedStart;
  uint32_t dynamic_alignment = 16;
};

Module read_module(std::string text);
Kernel& read_kernel(Module& module, const std::string& name);  // reads its body at the first call

}  // namespace emulator
