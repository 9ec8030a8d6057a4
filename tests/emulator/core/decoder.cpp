#include "decoder.h"

#include <algorithm>

#include "text.h"

namespace emulator {

Decoder::Decoder(KernelReader& reader, std::string_view opcode, std::string_view operand_text,
                 Instruction& instruction)
    : out(instruction), operands(split(operand_text, ',')), reader_(reader), opcode_(opcode) {
  modifiers = split(opcode, '.');
  // shared::cta, mbarrier::complete_tx::bytes stay one word.
  name = modifiers[0];
  modifiers.erase(modifiers.begin());
  for (const std::string_view modifier : modifiers) {
    if (const Type type = parse_type(modifier); type.bits > 0) types.push_back(type);
  }
  if (!types.empty()) out.type = types[0];
}

bool Decoder::has(std::string_view modifier) const {
  return std::find(modifiers.begin(), modifiers.end(), modifier) != modifiers.end();
}

int Decoder::which(std::initializer_list<std::string_view> names) const {
  int index = 0;
  for (const std::string_view candidate : names) {
    if (has(candidate)) return index;
    ++index;
  }
  return -1;
}

void Decoder::allow(std::initializer_list<std::string_view> names) const {
  for (const std::string_view modifier : modifiers) {
    if (parse_type(modifier).bits > 0) continue;
    if (std::find(names.begin(), names.end(), modifier) != names.end()) continue;
    fail("modifier .%s is not emulated", std::string(modifier).c_str());
  }
}

Type Decoder::type(size_t index) const {
  if (index >= types.size()) unsupported("it names too few types");
  return types[index];
}

void Decoder::unsupported(const char* why) const {
  fail("unknown instruction %s: %s", opcode_.c_str(), why);
}

Operand Decoder::row(size_t operand, int bytes) {
  if (operand >= operands.size()) unsupported("too few operands");
  return element(operands[operand], bytes);
}

Operand Decoder::element(std::string_view text, int bytes) {
  if (text == "_") return {};
  const Operand result = reader_.row(text, bytes == 0 ? 4 : bytes);
  if (bytes > 0 && result.bytes != bytes) {
    fail("operand '%s' has %d bytes, not %d", std::string(text).c_str(), result.bytes, bytes);
  }
  return result;
}

Operand Decoder::destination(size_t operand, int bytes) {
  if (operand >= operands.size()) unsupported("too few operands");
  if (operands[operand] == "_") return {};
  const auto found = reader_.find_register(operands[operand]);
  if (!found) fail("'%s' is not a register", std::string(operands[operand]).c_str());
  if (bytes >= 0 && found->bytes != bytes) {
    fail("'%s' has %d bytes, not %d", std::string(operands[operand]).c_str(), found->bytes, bytes);
  }
  return *found;
}

Operand Decoder::predicate(size_t operand) {
  if (operand >= operands.size()) unsupported("too few operands");
  std::string_view text = operands[operand];
  const bool negated = text[0] == '!';
  if (negated) text = trim(text.substr(1));
  if (starts_with_digit_or_sign(text)) return reader_.constant(number(text), 0);
  const auto found = reader_.find_register(text);
  if (!found || found->bytes != 0) fail("'%s' is not a predicate", std::string(text).c_str());
  Operand result = *found;
  result.negated = negated;
  return result;
}

Operand Decoder::address(size_t operand) {
  if (operand >= operands.size()) unsupported("too few operands");
  std::string_view text = operands[operand];
  if (text.front() != '[' || text.back() != ']') fail("an address was expected");
  text = trim(text.substr(1, text.size() - 2));
  const size_t plus = text.find('+');
  const std::string_view base = trim(text.substr(0, plus));
  const uint64_t more = plus == text.npos ? 0 : number(trim(text.substr(plus + 1)));
  Operand result = reader_.row(base, 8);
  if (result.bytes != 4 && result.bytes != 8) fail("an address of 2 bytes");
  result.displacement = static_cast<int64_t>(more);
  return result;
}

std::vector<Operand> Decoder::elements(size_t operand, int bytes) {
  if (operand >= operands.size()) unsupported("too few operands");
  std::string_view text = operands[operand];
  std::vector<Operand> result;
  if (text.front() != '{') return {element(text, bytes)};
  for (const std::string_view item : split(text.substr(1, text.size() - 2), ',')) {
    result.push_back(element(item, bytes));
  }
  return result;
}

Operand Decoder::with_predicate(size_t operand, int bytes) {
  if (operand >= operands.size()) unsupported("too few operands");
  const size_t bar = operands[operand].find('|');
  if (bar == std::string_view::npos) return destination(operand, bytes);
  const std::string_view both = operands[operand];
  const auto second = reader_.find_register(trim(both.substr(bar + 1)));
  if (second) out.second = *second;
  operands[operand] = trim(both.substr(0, bar));
  const Operand result = destination(operand, bytes);
  operands[operand] = both;
  return result;
}

int64_t Decoder::literal(size_t operand) const {
  if (operand >= operands.size()) unsupported("too few operands");
  return static_cast<int64_t>(number(operands[operand]));
}

Space Decoder::space() const {
  for (const std::string_view modifier : modifiers) {
    if (modifier == "global") return Space::kGlobal;
    if (modifier == "const") return Space::kGlobal;
    if (modifier == "local") return Space::kLocal;
    if (modifier == "param" || modifier == "param::entry") return Space::kParameter;
    if (modifier == "shared" || modifier == "shared::cta" || modifier == "shared::cluster") {
      return Space::kShared;
    }
  }
  return Space::kGeneric;
}

void decode(Decoder& decoder) {
  for (const auto family :
       {decode_integer, decode_float, decode_half, decode_bits, decode_select, decode_convert,
        decode_memory, decode_atomic, decode_warp, decode_control, decode_matrix, decode_async,
        decode_phase_barrier, decode_bulk, decode_wgmma}) {
    if (family(decoder)) return;
  }
  decoder.unsupported("the emulator has no such opcode");
}

}  // namespace emulator
