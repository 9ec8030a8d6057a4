// Reading one kernel: registers, variables, labels, and each instruction by way of its decoder.
#pragma once

#include <optional>
#include <utility>

#include "types.h"

namespace emulator {

inline uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

// bits == 0 if there is no type of this name.
Type parse_type(std::string_view name);

struct Declaration {
  std::string_view space, name, initial;
  Type type;
  uint64_t alignment = 1, elements = 1;
  bool array = false, external = false;
  uint64_t bytes() const { return elements * type.bytes(); }
};
Declaration parse_declaration(std::string_view text);

// Sets `unfenced` of the products whose registers may change behind their wgmma.fence.
void find_unfenced_registers(Kernel& kernel);

class KernelReader {
 public:
  KernelReader(Module& module, const Entry& entry);
  std::unique_ptr<Kernel> read();

  // What decoders ask for. A register, special register, number or symbol, as a row of `bytes` a
  // lane.
  Operand row(std::string_view text, int bytes);
  // A register of any width.
  std::optional<Operand> find_register(std::string_view name) const;
  Operand constant(uint64_t value, int bytes);
  const Symbol* symbol(std::string_view name) const;
  // The least bytes that an instruction moves to or from what may be shared memory.
  void note_shared_access(uint32_t bytes) {
    kernel_->granule = bytes < kernel_->granule ? bytes : kernel_->granule;
  }

 private:
  struct Range {
    uint32_t offset;
    uint8_t bytes;
    uint32_t count;
  };
  struct Scope {
    uint32_t id;
    std::unordered_map<std::string, Range> registers;
  };
  struct Jump {
    size_t instruction;
    std::string label;
    std::vector<uint32_t> scopes;
  };

  void read_parameters();
  void read_directives();
  void read_statement();
  void directive(std::string_view text);
  void location(std::string_view text);
  void declare_registers(std::string_view text);
  void declare_variable(std::string_view text);
  void instruction(std::string_view text);
  void resolve();
  std::string_view take(char end);
  bool label();
  Operand special(std::string_view name, int bytes);
  Operand symbol_row(std::string_view text, int bytes);
  uint32_t register_row(int bytes);

  Module& module_;
  const Entry& entry_;
  std::unique_ptr<Kernel> kernel_;
  std::string_view text_;
  size_t at_;
  uint32_t line_, instruction_line_ = 0, location_ = 0, next_scope_ = 1;
  std::vector<Scope> scopes_{{0, {}}};
  std::map<std::pair<uint32_t, std::string>, uint32_t> labels_;
  std::vector<Jump> jumps_;
  std::map<std::pair<uint64_t, int>, uint32_t> constants_;
  std::vector<std::pair<uint32_t, int>> dynamic_;  // constants that are addresses of dynamic memory
};

}  // namespace emulator
