// Cutting PTX text into pieces.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace emulator {

std::string_view trim(std::string_view text);
// At white space; "ld.u32 %r1" gives two words.
std::vector<std::string_view> words(std::string_view text);
// At each `separator` outside of brackets and braces, trimmed.
std::vector<std::string_view> split(std::string_view text, char separator);
bool starts_with_digit_or_sign(std::string_view text);
// An integer, or the bits of a 0f or 0d float.
uint64_t number(std::string_view text);
// The text with every comment overwritten by spaces; line ends stay.
void blank_comments(std::string& text);

}  // namespace emulator
