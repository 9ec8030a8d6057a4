#include "kernel_reader.h"

#include <algorithm>

#include "decoder.h"
#include "text.h"

namespace emulator {

KernelReader::KernelReader(Module& module, const Entry& entry)
    : module_(module),
      entry_(entry),
      kernel_(std::make_unique<Kernel>()),
      text_(std::string_view(module.text).substr(0, entry.end)),
      at_(entry.begin),
      line_(entry.line) {
  kernel_->name = entry.name;
  kernel_->shared_bytes = module.shared_bytes;
  kernel_->dynamic_alignment = module.dynamic_alignment;
}

std::unique_ptr<Kernel> KernelReader::read() {
  read_parameters();
  read_directives();
  while (true) {
    while (at_ < text_.size() && isspace(static_cast<unsigned char>(text_[at_]))) {
      line_ += text_[at_++] == '\n';
    }
    if (at_ >= text_.size()) break;
    read_statement();
  }
  Instruction exit;
  exit.flow = Flow::kExit;
  exit.opcode = "ret";
  exit.line = line_;
  kernel_->code.push_back(exit);
  resolve();
  find_unfenced_registers(*kernel_);
  return std::move(kernel_);
}

void KernelReader::read_parameters() {
  for (const std::string_view text : split(entry_.parameters, ',')) {
    const Declaration declaration = parse_declaration(text);
    const uint32_t offset = round_up(kernel_->parameter_bytes, declaration.alignment);
    const auto bytes = static_cast<uint32_t>(declaration.bytes());
    kernel_->parameters.push_back({std::string(declaration.name), offset, bytes});
    kernel_->symbols[std::string(declaration.name)] = {Space::kParameter, offset};
    kernel_->parameter_bytes = offset + bytes;
  }
}

void KernelReader::read_directives() {
  std::string text = entry_.directives;
  std::replace(text.begin(), text.end(), ',', ' ');
  const std::vector<std::string_view> list = words(text);
  for (size_t i = 0; i + 1 < list.size(); ++i) {
    if (list[i] != ".maxntid" && list[i] != ".reqntid") continue;
    kernel_->max_threads = 1;
    for (size_t j = i + 1; j < list.size() && starts_with_digit_or_sign(list[j]); ++j) {
      kernel_->max_threads *= number(list[j]);
    }
  }
}

std::string_view KernelReader::take(char end) {
  const size_t begin = at_;
  int depth = 0;
  for (; at_ < text_.size(); ++at_) {
    const char c = text_[at_];
    if (c == end && depth == 0) break;
    if (c == '{') ++depth;
    if (c == '}') --depth;
    line_ += c == '\n';
  }
  const std::string_view result = text_.substr(begin, at_ - begin);
  if (at_ < text_.size()) line_ += text_[at_++] == '\n';
  return result;
}

bool KernelReader::label() {
  size_t end = at_;
  while (end < text_.size() &&
         (isalnum(static_cast<unsigned char>(text_[end])) || strchr("_$%", text_[end]))) {
    ++end;
  }
  if (end == at_ || end >= text_.size() || text_[end] != ':') return false;
  labels_[{scopes_.back().id, std::string(text_.substr(at_, end - at_))}] = kernel_->code.size();
  at_ = end + 1;
  return true;
}

void KernelReader::read_statement() {
  const char c = text_[at_];
  if (c == '{') {
    scopes_.push_back({next_scope_++, {}});
    ++at_;
  } else if (c == '}') {
    scopes_.pop_back();
    ++at_;
  } else if (c == ';') {
    ++at_;
  } else if (text_.substr(at_, 4) == ".loc") {
    location(take('\n'));
  } else if (c == '.') {
    directive(take(';'));
  } else if (!label()) {
    instruction_line_ = line_;
    instruction(take(';'));
  }
}

void KernelReader::location(std::string_view text) {
  const std::vector<std::string_view> list = words(text);
  kernel_->locations.push_back(
      {static_cast<uint32_t>(number(list[1])), static_cast<uint32_t>(number(list[2]))});
  location_ = kernel_->locations.size() - 1;
}

void KernelReader::directive(std::string_view text) {
  const std::string_view name = words(text)[0];
  if (name == ".reg") return declare_registers(text);
  if (name == ".pragma" || name == ".branchtargets") return;
  if (name == ".shared" || name == ".local" || name == ".extern") return declare_variable(text);
  fail("PTX line %u: directive '%.*s' is not emulated", line_, static_cast<int>(name.size()),
       name.data());
}

uint32_t KernelReader::register_row(int bytes) {
  // A predicate needs 4 bytes; rows stay aligned for vector instructions.
  const uint32_t offset = kernel_->register_bytes;
  kernel_->register_bytes += bytes == 0 ? 32 : kLanes * bytes;
  return offset;
}

void KernelReader::declare_registers(std::string_view text) {
  const std::string_view type_name = words(text)[1];
  const Type type = parse_type(type_name.substr(1));
  if (type.bits == 0 || type.bits > 64) {
    fail("PTX line %u: registers of type %s are not emulated", line_,
         std::string(type_name).c_str());
  }
  const int bytes = type.kind == Type::kPredicate ? 0 : std::max(2, type.bytes());
  const size_t names = text.find(type_name) + type_name.size();
  for (const std::string_view item : split(text.substr(names), ',')) {
    const size_t open = item.find('<');
    const uint32_t count =
        open == item.npos ? 1 : number(item.substr(open + 1, item.find('>') - open - 1));
    const std::string name(open == item.npos ? item : std::string(item.substr(0, open)) + "<>");
    scopes_.back().registers[name] = {register_row(bytes), static_cast<uint8_t>(bytes), count};
    for (uint32_t i = 1; i < count; ++i) register_row(bytes);
  }
}

void KernelReader::declare_variable(std::string_view text) {
  const Declaration declaration = parse_declaration(text);
  const std::string name(declaration.name);
  if (declaration.external) {
    kernel_->dynamic_alignment =
        std::max(kernel_->dynamic_alignment, static_cast<uint32_t>(declaration.alignment));
    kernel_->symbols[name] = {Space::kShared, 0, true};
    return;
  }
  const bool shared = declaration.space == "shared";
  uint32_t& top = shared ? kernel_->shared_bytes : kernel_->local_bytes;
  top = round_up(top, declaration.alignment);
  kernel_->symbols[name] = {shared ? Space::kShared : Space::kLocal, top};
  top += declaration.bytes();
}

void KernelReader::instruction(std::string_view text) {
  Instruction result;
  result.line = instruction_line_;
  result.location = location_;
  result.text = std::string(text);
  std::replace_if(
      result.text.begin(), result.text.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
  text = trim(text);
  try {
    if (text[0] == '@') {
      const std::string_view guard = words(text)[0];
      const bool negated = guard[1] == '!';
      const auto found = find_register(guard.substr(negated ? 2 : 1));
      if (!found) fail("no such guard");
      result.guard = *found;
      result.guard.negated = negated;
      text = trim(text.substr(guard.size()));
    }
    const std::string_view opcode = words(text)[0];
    result.opcode = std::string(opcode);
    Decoder decoder(*this, opcode, trim(text.substr(opcode.size())), result);
    if (decoder.name == "bra") {
      std::vector<uint32_t> ids;
      for (const Scope& scope : scopes_) ids.push_back(scope.id);
      jumps_.push_back({kernel_->code.size(), std::string(decoder.operands.at(0)), ids});
      result.flow = Flow::kBranch;
    } else {
      decode(decoder);
    }
  } catch (const Error& error) {
    fail("PTX line %u: '%s': %s", result.line, std::string(text).c_str(), error.what());
  }
  kernel_->code.push_back(std::move(result));
}

void KernelReader::resolve() {
  for (const Jump& jump : jumps_) {
    bool found = false;
    for (auto id = jump.scopes.rbegin(); id != jump.scopes.rend() && !found; ++id) {
      const auto label = labels_.find({*id, jump.label});
      if (label == labels_.end()) continue;
      kernel_->code[jump.instruction].target = label->second;
      found = true;
    }
    if (!found) fail("kernel %s has no label '%s'", kernel_->name.c_str(), jump.label.c_str());
  }
  const uint64_t dynamic = round_up(kernel_->shared_bytes, kernel_->dynamic_alignment);
  for (const auto& [offset, bytes] : dynamic_) {
    for (int lane = 0; lane < kLanes; ++lane) {
      uint64_t value = 0;
      uint8_t* at = kernel_->constants.data() + offset + lane * bytes;
      std::memcpy(&value, at, bytes);
      value += dynamic;
      std::memcpy(at, &value, bytes);
    }
  }
}

std::optional<Operand> KernelReader::find_register(std::string_view name) const {
  size_t digits = name.size();
  while (digits > 0 && isdigit(static_cast<unsigned char>(name[digits - 1]))) --digits;
  const std::string exact(name), family = std::string(name.substr(0, digits)) + "<>";
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    Operand result;
    result.bank = Operand::kRegisters;
    if (const auto found = scope->registers.find(exact); found != scope->registers.end()) {
      result.bytes = found->second.bytes;
      result.offset = found->second.offset;
      return result;
    }
    if (digits == name.size()) continue;
    const auto found = scope->registers.find(family);
    if (found == scope->registers.end()) continue;
    const Range& range = found->second;
    const uint64_t index = std::stoul(std::string(name.substr(digits)));
    if (index >= range.count) continue;
    result.bytes = range.bytes;
    result.offset = range.offset + index * (range.bytes == 0 ? 32 : kLanes * range.bytes);
    return result;
  }
  return std::nullopt;
}

Operand KernelReader::constant(uint64_t value, int bytes) {
  Operand result;
  result.bank = Operand::kConstants;
  result.bytes = static_cast<uint8_t>(bytes);
  if (bytes == 0) value = value ? kAllLanes : 0;
  if (bytes > 0 && bytes < 8) value &= (1ull << (8 * bytes)) - 1;
  const auto [found, added] =
      constants_.try_emplace({value, bytes}, static_cast<uint32_t>(kernel_->constants.size()));
  result.offset = found->second;
  if (!added) return result;
  std::vector<uint8_t>& bank = kernel_->constants;
  const size_t start = bank.size();
  bank.resize(start + (bytes == 0 ? 32 : kLanes * bytes));
  for (int lane = 0; lane < (bytes == 0 ? 1 : kLanes); ++lane) {
    std::memcpy(&bank[start + lane * bytes], &value, bytes == 0 ? 4 : bytes);
  }
  return result;
}

const Symbol* KernelReader::symbol(std::string_view name) const {
  const auto own = kernel_->symbols.find(std::string(name));
  if (own != kernel_->symbols.end()) return &own->second;
  const auto shared = module_.shared.find(std::string(name));
  return shared == module_.shared.end() ? nullptr : &shared->second;
}

Operand KernelReader::symbol_row(std::string_view text, int bytes) {
  const size_t plus = text.find('+');
  const std::string name(trim(text.substr(0, plus)));
  const uint64_t more = plus == text.npos ? 0 : number(trim(text.substr(plus + 1)));
  if (const Symbol* found = symbol(name)) {
    if (!found->dynamic) return constant(found->offset + more, bytes);
    // Where it starts is known when all static variables are: one row for each use.
    constants_.erase({more, bytes});
    const Operand result = constant(more, bytes);
    constants_.erase({more, bytes});
    dynamic_.emplace_back(result.offset, bytes);
    return result;
  }
  const auto global = module_.globals.find(name);
  if (global == module_.globals.end()) fail("'%s' is not declared", name.c_str());
  return constant(global->second->address + more, bytes);
}

Operand KernelReader::row(std::string_view text, int bytes) {
  if (const auto found = find_register(text)) return *found;
  if (text[0] == '%') return special(text, bytes);
  if (text == "WARP_SZ") return constant(kLanes, bytes);
  if (starts_with_digit_or_sign(text)) return constant(number(text), bytes);
  return symbol_row(text, bytes);
}

Operand KernelReader::special(std::string_view name, int bytes) {
  using S = Special;
  static const std::unordered_map<std::string_view, Special> kSpecials = {
      {"%tid.x", S::kTidX},
      {"%tid.y", S::kTidY},
      {"%tid.z", S::kTidZ},
      {"%ntid.x", S::kBlockX},
      {"%ntid.y", S::kBlockY},
      {"%ntid.z", S::kBlockZ},
      {"%ctaid.x", S::kCtaX},
      {"%ctaid.y", S::kCtaY},
      {"%ctaid.z", S::kCtaZ},
      {"%nctaid.x", S::kGridX},
      {"%nctaid.y", S::kGridY},
      {"%nctaid.z", S::kGridZ},
      {"%laneid", S::kLane},
      {"%warpid", S::kWarp},
      {"%nwarpid", S::kWarps},
      {"%smid", S::kMultiprocessor},
      {"%dynamic_smem_size", S::kDynamicShared},
      {"%lanemask_lt", S::kMaskLess},
      {"%lanemask_le", S::kMaskLessEqual},
      {"%lanemask_gt", S::kMaskGreater},
      {"%lanemask_ge", S::kMaskGreaterEqual},
      {"%lanemask_eq", S::kMaskEqual},
      {"%cluster_ctaid.x", S::kZero},
      {"%cluster_ctaid.y", S::kZero},
      {"%cluster_ctaid.z", S::kZero},
      {"%cluster_ctarank", S::kZero},
      {"%cluster_nctarank", S::kOne},
      {"%clusterid.x", S::kCtaX},
      {"%nclusterid.x", S::kGridX},
  };
  const auto found = kSpecials.find(name);
  if (found == kSpecials.end())
    fail("special register %s is not emulated", std::string(name).c_str());
  for (const SpecialRow& row : kernel_->specials) {
    if (row.special == found->second && row.bytes == bytes) {
      return {Operand::kRegisters, row.bytes, false, row.offset, 0};
    }
  }
  const SpecialRow row{found->second, register_row(bytes), static_cast<uint8_t>(bytes)};
  kernel_->specials.push_back(row);
  return {Operand::kRegisters, row.bytes, false, row.offset, 0};
}

}  // namespace emulator
