#include "io/utf8.h"

namespace vecsmith::io {
namespace {

struct Step {
  int length;  // bytes of the sequence, or of its invalid part
  bool valid;
};

// One sequence at text (size >= 1), by Table 3-7 of the Unicode standard.
Step step(const unsigned char* text, size_t size) {
  const unsigned char lead = text[0];
  if (lead < 0x80) return {1, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false};
  const int length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range excludes overlong forms, surrogates and what is above U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= size) return {i, false};
    if (text[i] < (i == 1 ? low : 0x80) || text[i] > (i == 1 ? high : 0xBF)) return {i, false};
  }
  return {length, true};
}

}  // namespace

bool utf8_valid(const char* text, size_t size) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text);
  for (size_t i = 0; i < size;) {
    const Step s = step(bytes + i, size - i);
    if (!s.valid) return false;
    i += s.length;
  }
  return true;
}

int64_t utf8_repair(const char* text, size_t size, std::string& out) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text);
  int64_t replaced = 0;
  for (size_t i = 0; i < size;) {
    const Step s = step(bytes + i, size - i);
    if (s.valid) {
      out.append(text + i, s.length);
    } else {
      out.append("\xEF\xBF\xBD");
      replaced += s.length;
    }
    i += s.length;
  }
  return replaced;
}

}  // namespace vecsmith::io
