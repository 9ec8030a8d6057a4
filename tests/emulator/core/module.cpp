// The outer level of a PTX file: variables, source files, and where each kernel's body lies.
#include <algorithm>

#include "kernel_reader.h"
#include "text.h"
#include "types.h"

namespace emulator {

Type parse_type(std::string_view name) {
  static const std::unordered_map<std::string_view, Type> kTypes = {
      {"b8", {Type::kBits, 8}},           {"b16", {Type::kBits, 16}},
      {"b32", {Type::kBits, 32}},         {"b64", {Type::kBits, 64}},
      {"b128", {Type::kBits, 128}},       {"u8", {Type::kUnsigned, 8}},
      {"u16", {Type::kUnsigned, 16}},     {"u32", {Type::kUnsigned, 32}},
      {"u64", {Type::kUnsigned, 64}},     {"s8", {Type::kSigned, 8}},
      {"s16", {Type::kSigned, 16}},       {"s32", {Type::kSigned, 32}},
      {"s64", {Type::kSigned, 64}},       {"f16", {Type::kFloat, 16}},
      {"f16x2", {Type::kFloat, 16, 2}},   {"bf16", {Type::kBFloat, 16}},
      {"bf16x2", {Type::kBFloat, 16, 2}}, {"f32", {Type::kFloat, 32}},
      {"f32x2", {Type::kFloat, 32, 2}},   {"f64", {Type::kFloat, 64}},
      {"tf32", {Type::kTf32, 32}},        {"pred", {Type::kPredicate, 1}},
  };
  const auto found = kTypes.find(name);
  return found == kTypes.end() ? Type{Type::kBits, 0} : found->second;
}

Declaration parse_declaration(std::string_view text) {
  Declaration result;
  const std::vector<std::string_view> parts = split(text, '=');
  if (parts.size() > 1) result.initial = parts[1];
  const std::vector<std::string_view> list = words(parts[0]);
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string_view word = list[i];
    if (word == ".align") {
      result.alignment = number(list[++i]);
    } else if (word == ".ptr" || word == ".visible" || word == ".weak") {
      continue;
    } else if (word[0] != '.') {
      result.name = word.substr(0, word.find('['));
      for (size_t at = word.find('['); at != word.npos; at = word.find('[', at + 1)) {
        const std::string_view size = word.substr(at + 1, word.find(']', at) - at - 1);
        result.elements *= size.empty() ? 0 : number(size);
        result.array = true;
      }
    } else if (const Type type = parse_type(word.substr(1)); type.bits > 0) {
      result.type = type;
    } else if (word == ".extern") {
      result.external = true;
    } else {
      result.space = word.substr(1);
    }
  }
  result.alignment = std::max<uint64_t>(result.alignment, result.type.bytes());
  return result;
}

namespace {

void add_variable(Module& module, const Declaration& declaration) {
  auto variable = std::make_unique<Variable>();
  variable->name = declaration.name;
  variable->bytes = declaration.bytes();
  variable->constant = declaration.space == "const";
  variable->storage.resize(variable->bytes + declaration.alignment);
  const auto start = reinterpret_cast<uint64_t>(variable->storage.data());
  variable->address =
      (start + declaration.alignment - 1) / declaration.alignment * declaration.alignment;
  auto* out = reinterpret_cast<uint8_t*>(variable->address);
  std::string values(declaration.initial);
  std::replace_if(
      values.begin(), values.end(), [](char c) { return c == '{' || c == '}' || c == ','; }, ' ');
  for (const std::string_view word : words(values)) {
    const uint64_t value = number(word);
    std::memcpy(out, &value, declaration.type.bytes());
    out += declaration.type.bytes();
  }
  module.globals[variable->name] = variable.get();
  module.variables.push_back(std::move(variable));
}

void add_declaration(Module& module, std::string_view text) {
  const Declaration declaration = parse_declaration(text);
  const std::string name(declaration.name);
  if (declaration.space == "shared" && declaration.external) {
    module.dynamic_alignment =
        std::max(module.dynamic_alignment, static_cast<uint32_t>(declaration.alignment));
    module.shared[name] = {Space::kShared, 0, true};
  } else if (declaration.space == "shared") {
    module.shared_bytes = round_up(module.shared_bytes, declaration.alignment);
    module.shared[name] = {Space::kShared, module.shared_bytes};
    module.shared_bytes += declaration.bytes();
  } else if (declaration.space == "global" || declaration.space == "const") {
    add_variable(module, declaration);
  }
}

class ModuleReader {
 public:
  explicit ModuleReader(Module& module) : module_(module), text_(module.text) {}

  void read() {
    while (skip_space(), at_ < text_.size()) {
      if (text_[at_] == ';') {
        ++at_;
      } else if (starts(".version") || starts(".target") || starts(".address_size")) {
        take('\n');
      } else if (starts(".file")) {
        const std::vector<std::string_view> line = words(take('\n'));
        module_.files[number(line[1])] = std::string(line[2].substr(1, line[2].size() - 2));
      } else if (starts(".section")) {
        take('}');
      } else {
        declaration_or_function();
      }
    }
  }

 private:
  bool starts(std::string_view word) const { return text_.substr(at_, word.size()) == word; }

  void skip_space() {
    while (at_ < text_.size() && isspace(static_cast<unsigned char>(text_[at_]))) {
      line_ += text_[at_++] == '\n';
    }
  }

  // Up to `end`, which is passed over.
  std::string_view take(char end) {
    const size_t begin = at_;
    at_ = std::min(text_.find(end, at_), text_.size());
    const std::string_view result = text_.substr(begin, at_ - begin);
    line_ += std::count(result.begin(), result.end(), '\n');
    if (at_ < text_.size()) line_ += text_[at_++] == '\n';
    return result;
  }

  void declaration_or_function() {
    const size_t end = std::min(text_.find_first_of(";{=", at_), text_.size());
    const std::string_view head = text_.substr(at_, end - at_);
    const bool entry = head.find(".entry") != head.npos;
    const bool function = head.find(".func") != head.npos;
    if (!entry && !function) return add_declaration(module_, take(';'));
    if (end == text_.size() || text_[end] == ';') {  // a prototype
      take(';');
      return;
    }
    take('{');
    Entry found;
    found.begin = at_;
    found.line = line_;
    for (int depth = 1; depth > 0 && at_ < text_.size(); ++at_) {
      depth += text_[at_] == '{' ? 1 : text_[at_] == '}' ? -1 : 0;
      line_ += text_[at_] == '\n';
    }
    found.end = at_ - 1;
    if (!entry) return;
    const size_t open = head.find('('), close = head.rfind(')');
    found.name = std::string(words(head.substr(0, open)).back());
    if (open != head.npos) {
      found.parameters = std::string(head.substr(open + 1, close - open - 1));
      found.directives = std::string(head.substr(close + 1));
    }
    module_.entries.emplace(found.name, std::move(found));
  }

  Module& module_;
  std::string_view text_;
  size_t at_ = 0;
  uint32_t line_ = 1;
};

}  // namespace

Module read_module(std::string text) {
  Module module;
  module.text = std::move(text);
  blank_comments(module.text);
  ModuleReader(module).read();
  return module;
}

Kernel& read_kernel(Module& module, const std::string& name) {
  const auto found = module.entries.find(name);
  if (found == module.entries.end()) fail("the module has no kernel '%s'", name.c_str());
  Entry& entry = found->second;
  if (!entry.kernel) entry.kernel = KernelReader(module, entry).read();
  return *entry.kernel;
}

}  // namespace emulator
