// Which ISA levels a processor and its operating system support, as a pure function of what CPUID
// and XGETBV say, so that processors that are not at hand can be tested.
#pragma once

namespace vecsmith {

// Registers after CPUID and XGETBV; zeros where a leaf is not there.
struct CpuRegisters {
  unsigned leaf1_ecx = 0;
  unsigned leaf7_ebx = 0, leaf7_ecx = 0, leaf7_edx = 0;  // leaf 7, subleaf 0
  unsigned leaf7_1_eax = 0;                              // leaf 7, subleaf 1
  unsigned xcr0 = 0;  // what the system saves; may be asked for only where leaf 1 says OSXSAVE
};

constexpr unsigned kOsxsave = 1u << 27;  // of leaf1_ecx

struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false;
  bool amx = false;  // but for the permission to use tiles, which is asked for on top
};

constexpr bool has_all(unsigned found, unsigned bits) { return (found & bits) == bits; }

constexpr Features features_of(const CpuRegisters& cpu) {
  Features features;
  if (!(cpu.leaf1_ecx & kOsxsave)) return features;
  const bool os_ymm = has_all(cpu.xcr0, 0x6);   // XMM and YMM state are saved
  const bool os_zmm = has_all(cpu.xcr0, 0xe6);  // and opmask, ZMM
  const bool os_tile = has_all(cpu.xcr0, 0x60000);
  const unsigned fma_f16c = (1u << 12) | (1u << 29), avx2_bmi2 = (1u << 5) | (1u << 8);
  features.avx2 = os_ymm && has_all(cpu.leaf1_ecx, fma_f16c) && has_all(cpu.leaf7_ebx, avx2_bmi2);
  const unsigned f_dq_cd_bw_vl = (1u << 16) | (1u << 17) | (1u << 28) | (1u << 30) | (1u << 31);
  features.avx512 = features.avx2 && os_zmm && has_all(cpu.leaf7_ebx, f_dq_cd_bw_vl);
  const unsigned vnni = 1u << 11, bf16 = 1u << 5;
  features.avx512_bf16 =
      features.avx512 && has_all(cpu.leaf7_ecx, vnni) && has_all(cpu.leaf7_1_eax, bf16);
  const unsigned amx_bits = (1u << 22) | (1u << 24) | (1u << 25);  // bf16, tile, int8
  features.amx = features.avx512_bf16 && os_tile && has_all(cpu.leaf7_edx, amx_bits);
  return features;
}

}  // namespace vecsmith
