#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vecsmith {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__) && defined(VECSMITH_HAS_avx2)
struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, amx = false;
};

Features detect() {
  Features features;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return features;
  const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
  if (!osxsave) return features;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool os_ymm = (low & 0x6) == 0x6;    // XMM and YMM state are saved
  const bool os_zmm = (low & 0xe6) == 0xe6;  // and opmask, ZMM
  const bool os_tile = (low & 0x60000) == 0x60000;
  unsigned b7, c7, d7;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return features;
  const bool avx2 = b7 & (1u << 5), bmi2 = b7 & (1u << 8);
  features.avx2 = os_ymm && avx2 && fma && f16c && bmi2;
  const unsigned f_dq_cd_bw_vl = (1u << 16) | (1u << 17) | (1u << 28) | (1u << 30) | (1u << 31);
  features.avx512 = features.avx2 && os_zmm && (b7 & f_dq_cd_bw_vl) == f_dq_cd_bw_vl;
  const bool vnni = c7 & (1u << 11);
  const unsigned amx_bits = (1u << 22) | (1u << 24) | (1u << 25);  // bf16, tile, int8
  unsigned a71 = 0, b71, c71, d71;
  __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);
  features.avx512_bf16 = features.avx512 && vnni && (a71 & (1u << 5));
  if (features.avx512_bf16 && os_tile && (d7 & amx_bits) == amx_bits) {
#if defined(__linux__)
    constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
    features.amx = syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#endif
  }
  return features;
}

const Features& features() {
  static const Features found = detect();
  return found;
}
#endif

std::atomic<int> chosen{-1};

Isa best() {
  for (int level = kIsaLevels - 1; level > 0; --level)
    if (isa_supported(static_cast<Isa>(level))) return static_cast<Isa>(level);
  return Isa::base;
}

}  // namespace

const char* isa_name(Isa level) { return kNames[static_cast<int>(level)]; }

bool isa_supported(Isa level) {
  if (level == Isa::base) return true;
#if defined(__x86_64__) && defined(VECSMITH_HAS_avx2)
  if (level == Isa::avx2) return features().avx2;
  if (level == Isa::avx512) return features().avx512;
  if (level == Isa::avx512_bf16) return features().avx512_bf16;
  if (level == Isa::amx) return features().amx;
#endif
  return false;
}

void set_isa_level(const char* name) {
  if (name == nullptr || *name == '\0') {
    chosen = static_cast<int>(best());
    return;
  }
  for (int level = 0; level < kIsaLevels; ++level) {
    if (std::strcmp(name, kNames[level]) != 0) continue;
    if (!isa_supported(static_cast<Isa>(level)))
      throw std::runtime_error(std::string("ISA level '") + name +
                               "' is not supported by this processor and operating system");
    chosen = level;
    return;
  }
  throw std::invalid_argument(std::string("unknown ISA level '") + name +
                              "': expected base, avx2, avx512, avx512_bf16 or amx");
}

Isa isa_level() {
  int level = chosen.load(std::memory_order_relaxed);
  if (level < 0) {
    set_isa_level(std::getenv("VECSMITH_ISA"));
    level = chosen.load(std::memory_order_relaxed);
  }
  return static_cast<Isa>(level);
}

}  // namespace vecsmith
