#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/isa_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vecsmith {
namespace {

constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__) && defined(VECSMITH_HAS_avx2)
CpuRegisters ask() {
  CpuRegisters cpu;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return cpu;
  cpu.leaf1_ecx = c;
  if (!(c & kOsxsave)) return cpu;
  __asm__ volatile("xgetbv" : "=a"(cpu.xcr0), "=d"(d) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &cpu.leaf7_ebx, &cpu.leaf7_ecx, &cpu.leaf7_edx)) return cpu;
  // Where leaf 7 has no subleaf 1 (a is its last one), processors answer with other bits.
  if (a >= 1) __get_cpuid_count(7, 1, &cpu.leaf7_1_eax, &b, &c, &d);
  return cpu;
}

Features detect() {
  Features features = features_of(ask());
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kTileData = 18;
  features.amx = features.amx && syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  features.amx = false;
#endif
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
