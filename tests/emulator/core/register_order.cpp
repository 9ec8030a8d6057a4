// Registers that an ordinary instruction may write between a wgmma.fence and the product that uses
// them: found in the code, on every path, once a kernel. Moves do not count: compilers rename
// registers with them.
#include <algorithm>
#include <set>

#include "kernel_reader.h"
#include "text.h"

namespace emulator {
namespace {

using Names = std::set<std::string_view>;

void add_registers(std::string_view text, Names& names) {
  for (size_t at = text.find('%'); at != text.npos; at = text.find('%', at + 1)) {
    const size_t end = text.find_first_of(",}[]|+ ;", at);
    names.insert(text.substr(at, end == text.npos ? end : end - at));
  }
}

std::string_view operands(const Instruction& i) {
  return trim(std::string_view(i.text).substr(i.text.find(i.opcode) + i.opcode.size()));
}

bool is_wgmma(const Instruction& i) { return i.opcode.starts_with("wgmma"); }

// The sums, and A where it lies in registers.
Names used(const Instruction& product) {
  Names names;
  std::string_view text = operands(product);
  for (size_t end = text.find('}'); end != text.npos; end = text.find('}')) {
    add_registers(text.substr(0, end), names);
    text.remove_prefix(end + 1);
  }
  return names;
}

Names written(const Instruction& i) {
  Names names;
  if (i.run == nullptr || is_wgmma(i) || i.opcode.starts_with("mov.")) return names;
  const std::string_view text = operands(i);
  if (text.starts_with("{")) add_registers(text.substr(0, text.find('}')), names);
  if (text.starts_with("%")) add_registers(text.substr(0, text.find(',')), names);
  return names;
}

}  // namespace

void find_unfenced_registers(Kernel& kernel) {
  std::vector<Instruction>& code = kernel.code;
  if (std::none_of(code.begin(), code.end(), is_wgmma)) return;
  std::vector<std::vector<size_t>> before(code.size());
  for (size_t i = 0; i < code.size(); ++i) {
    const bool ends =
        (code[i].flow == Flow::kBranch || code[i].flow == Flow::kExit) && !code[i].guard.present();
    if (code[i].flow == Flow::kBranch) before[code[i].target].push_back(i);
    if (!ends && i + 1 < code.size()) before[i + 1].push_back(i);
  }
  for (size_t i = 0; i < code.size(); ++i) {
    if (!code[i].opcode.starts_with("wgmma.mma_async")) continue;
    const Names names = used(code[i]);
    std::vector<bool> seen(code.size());
    std::vector<size_t> todo = before[i];
    while (!todo.empty()) {
      const size_t at = todo.back();
      todo.pop_back();
      if (seen[at] || code[at].opcode.starts_with("wgmma.fence")) continue;
      seen[at] = true;
      const Names targets = written(code[at]);
      code[i].unfenced |= std::any_of(targets.begin(), targets.end(),
                                      [&](std::string_view name) { return names.contains(name); });
      todo.insert(todo.end(), before[at].begin(), before[at].end());
    }
  }
}

}  // namespace emulator
