// Bytes at a time: loads, the whitespace scan and the hash of a word. Little-endian, no flags
// needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vecsmith::io {

inline uint64_t load64(const char* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}

inline int lowest_bit(uint64_t x) { return __builtin_ctzll(x); }  // x != 0

// ASCII whitespace as bytes.split() has it: space and \t \n \v \f \r.
inline bool is_space(char c) { return c == ' ' || static_cast<unsigned char>(c - '\t') < 5; }

// Bit k of `space` and `high`: byte k is whitespace, is not ASCII.
struct ByteClasses {
  uint64_t space;
  uint64_t high;
};

// Bit 8k + 7 of x, for each byte k, to bit k.
inline uint64_t gather_high_bits(uint64_t x) { return ((x >> 7) * 0x0102040810204080ull) >> 56; }

inline ByteClasses classify8(const char* p) {
  const uint64_t ones = 0x0101010101010101ull, tops = 0x80 * ones, rest = 0x7F * ones;
  const uint64_t x = load64(p), low = x & rest;
  // Sums of 7-bit numbers: no carry from one byte into the next.
  const uint64_t not_blank = (low ^ (' ' * ones)) + rest;   // top bit: low != ' '
  const uint64_t from_tab = low + (0x80 - '\t') * ones;     // top bit: low >= '\t'
  const uint64_t past_return = low + (0x7F - '\r') * ones;  // top bit: low > '\r'
  const uint64_t space = (~not_blank | (from_tab & ~past_return)) & ~x & tops;
  return {gather_high_bits(space), gather_high_bits(x & tops)};
}

inline ByteClasses classify64_portable(const char* p) {
  ByteClasses out{0, 0};
  for (int i = 0; i < 8; ++i) {
    const ByteClasses part = classify8(p + 8 * i);
    out.space |= part.space << (8 * i);
    out.high |= part.high << (8 * i);
  }
  return out;
}

#if defined(__SSE2__)

inline ByteClasses classify64(const char* p) {
  ByteClasses out{0, 0};
  for (int i = 0; i < 4; ++i) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16 * i));
    // Signed compares do: bytes >= 0x80 are negative, and so below '\t'.
    const __m128i control = _mm_and_si128(_mm_cmpgt_epi8(x, _mm_set1_epi8('\t' - 1)),
                                          _mm_cmplt_epi8(x, _mm_set1_epi8('\r' + 1)));
    const __m128i space = _mm_or_si128(control, _mm_cmpeq_epi8(x, _mm_set1_epi8(' ')));
    out.space |= static_cast<uint64_t>(_mm_movemask_epi8(space)) << (16 * i);
    out.high |= static_cast<uint64_t>(_mm_movemask_epi8(x)) << (16 * i);
  }
  return out;
}

#else

inline ByteClasses classify64(const char* p) { return classify64_portable(p); }

#endif

// A word as the table compares it. Up to 16 bytes: `low` and `high` are its bytes, zero-padded.
// Longer: `low` is its hash, and `high` where its bytes are kept.
struct WordKey {
  uint64_t low, high;
  uint32_t length;
  uint32_t hash;
};

constexpr size_t kInlineBytes = 16;

inline uint64_t stir(uint64_t h, uint64_t x) {
  h = (h ^ x) * 0x9FB21C651E98DF25ull;
  return h ^ (h >> 32);
}

inline WordKey finish_key(uint64_t low, uint64_t high, size_t length) {
  uint64_t h = stir(0x9E3779B97F4A7C15ull + length, low);
  h = stir(h, high);
  h *= 0xD6E8FEB86659FD93ull;
  return {low, high, static_cast<uint32_t>(length), static_cast<uint32_t>(h >> 32)};
}

// The key of word[0..length). `readable`: how many bytes may be read from word on (>= length).
inline WordKey make_key(const char* word, size_t length, size_t readable) {
  if (length <= kInlineBytes) {
    uint64_t part[2] = {0, 0};
    if (readable >= kInlineBytes) {
      // Two loads and a mask: cheaper than a branch on every length.
      part[0] = load64(word);
      part[1] = load64(word + 8);
      const unsigned bits = static_cast<unsigned>(length) * 8;
      const uint64_t ones = ~0ull;
      part[0] &= bits >= 64 ? ones : ~(ones << bits);
      part[1] &= bits >= 128 ? ones : bits > 64 ? ~(ones << (bits - 64)) : 0;
    } else {
      std::memcpy(part, word, length);
    }
    return finish_key(part[0], part[1], length);
  }
  uint64_t h = length;
  size_t i = 0;
  for (; i + 8 <= length; i += 8) h = stir(h, load64(word + i));
  h = stir(h, load64(word + length - 8));
  WordKey key = finish_key(h, 0, length);
  key.high = reinterpret_cast<uintptr_t>(word);
  return key;
}

}  // namespace vecsmith::io
