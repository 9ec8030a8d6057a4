#include "text.h"

#include <cctype>
#include <charconv>
#include <cstdarg>

#include "types.h"

namespace emulator {

std::string format(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return text;
}

void fail(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Error(text);
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  return text;
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> result;
  for (text = trim(text); !text.empty(); text = trim(text)) {
    size_t end = 0;
    while (end < text.size() && !isspace(static_cast<unsigned char>(text[end]))) ++end;
    result.push_back(text.substr(0, end));
    text.remove_prefix(end);
  }
  return result;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> result;
  int depth = 0;
  size_t begin = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (text[at] == '{' || text[at] == '[' || text[at] == '(') ++depth;
    if (text[at] == '}' || text[at] == ']' || text[at] == ')') --depth;
    if (text[at] != separator || depth > 0) continue;
    result.push_back(trim(text.substr(begin, at - begin)));
    begin = at + 1;
  }
  const std::string_view last = trim(text.substr(begin));
  if (!last.empty() || !result.empty()) result.push_back(last);
  return result;
}

bool starts_with_digit_or_sign(std::string_view text) {
  return !text.empty() && (isdigit(static_cast<unsigned char>(text[0])) || text[0] == '-');
}

uint64_t number(std::string_view text) {
  const std::string_view whole = text;
  bool negative = false;
  if (!text.empty() && text[0] == '-') negative = true, text.remove_prefix(1);
  if (!text.empty() && text.back() == 'U') text.remove_suffix(1);
  int base = 10;
  if (text.size() > 1 && text[0] == '0') {
    const char kind = static_cast<char>(tolower(text[1]));
    base = kind == 'b' ? 2 : kind == 'x' || kind == 'f' || kind == 'd' ? 16 : 8;
    text.remove_prefix(base == 8 ? 1 : 2);
  }
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) {
    fail("'%.*s' is not a number", static_cast<int>(whole.size()), whole.data());
  }
  return negative ? -value : value;
}

void blank_comments(std::string& text) {
  bool quoted = false;
  for (size_t at = 0; at + 1 < text.size(); ++at) {
    if (text[at] == '"') quoted = !quoted;
    if (quoted || text[at] != '/') continue;
    if (text[at + 1] == '/') {
      while (at < text.size() && text[at] != '\n') text[at++] = ' ';
    } else if (text[at + 1] == '*') {
      const size_t end = std::min(text.find("*/", at), text.size() - 2);
      for (; at < end + 2; ++at) {
        if (text[at] != '\n') text[at] = ' ';
      }
    }
  }
}

}  // namespace emulator
