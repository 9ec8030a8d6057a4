// One instruction's text, and what the families' decoders ask of it.
#pragma once

#include "kernel_reader.h"
#include "types.h"

namespace emulator {

class Decoder {
 public:
  Decoder(KernelReader& reader, std::string_view opcode, std::string_view operands,
          Instruction& instruction);

  Instruction& out;
  std::string_view name;                    // "mul" of mul.wide.s32
  std::vector<std::string_view> modifiers;  // all, in order, without the name
  std::vector<std::string_view> operands;
  std::vector<Type> types;  // those among the modifiers

  bool has(std::string_view modifier) const;
  // Index of the first modifier that is among `names`, or -1.
  int which(std::initializer_list<std::string_view> names) const;
  // Raises unless every modifier that is no type is among `names`: what is unknown is not ignored.
  void allow(std::initializer_list<std::string_view> names) const;
  Type type(size_t index = 0) const;
  Operand row(size_t operand, int bytes);
  Operand destination(size_t operand, int bytes);
  Operand predicate(size_t operand);
  Operand address(size_t operand);
  // The registers of {a, b}, or of a alone; any width where bytes is 0.
  std::vector<Operand> elements(size_t operand, int bytes);
  Operand element(std::string_view text, int bytes);
  // d|p: d, with p noted as `second`.
  Operand with_predicate(size_t operand, int bytes);
  // An operand that must be a number.
  int64_t literal(size_t operand) const;
  Space space() const;
  KernelReader& reader() { return reader_; }
  [[noreturn]] void unsupported(const char* why) const;

 private:
  KernelReader& reader_;
  std::string opcode_;
};

// Fills `out` of the decoder; raises Error, naming the instruction, if it is not known.
void decode(Decoder& decoder);

// The families. Each returns false if the name is none of its own.
bool decode_integer(Decoder& decoder);
bool decode_float(Decoder& decoder);
bool decode_half(Decoder& decoder);
bool decode_bits(Decoder& decoder);
bool decode_select(Decoder& decoder);
bool decode_convert(Decoder& decoder);
bool decode_memory(Decoder& decoder);
bool decode_atomic(Decoder& decoder);
bool decode_warp(Decoder& decoder);
bool decode_control(Decoder& decoder);
bool decode_matrix(Decoder& decoder);
bool decode_async(Decoder& decoder);
bool decode_phase_barrier(Decoder& decoder);
bool decode_bulk(Decoder& decoder);
bool decode_wgmma(Decoder& decoder);

}  // namespace emulator
