// ISA levels: which compiled copy of the kernels this process runs.
//
// Every *.kernel.cpp is compiled once per level into namespace vecsmith::<level>. The level is
// chosen once, from CPUID *and* what the operating system saves (XGETBV; for AMX a permission by
// arch_prctl), or forced by VECSMITH_ISA. This header and isa.cpp are compiled without any ISA
// flag.
#pragma once

namespace vecsmith {

enum class Isa { base = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };
constexpr int kIsaLevels = 5;

const char* isa_name(Isa level);

// True if the level was compiled in and both processor and operating system support it.
bool isa_supported(Isa level);

// The level in use. The first call reads VECSMITH_ISA, and throws what set_isa_level throws for it.
Isa isa_level();

// Sets the level by name (isa_name's, or "" for the best supported one).
// Throws std::invalid_argument if unknown, std::runtime_error if unsupported here. For tests.
void set_isa_level(const char* name);

// PICK_KERNEL(function) names the copy of vecsmith::<level>::function for the level in use.
#ifdef VECSMITH_HAS_avx2
#define VECSMITH_PICK_KERNEL(function)                                                           \
  (::vecsmith::isa_level() == ::vecsmith::Isa::amx           ? ::vecsmith::amx::function         \
   : ::vecsmith::isa_level() == ::vecsmith::Isa::avx512_bf16 ? ::vecsmith::avx512_bf16::function \
   : ::vecsmith::isa_level() == ::vecsmith::Isa::avx512      ? ::vecsmith::avx512::function      \
   : ::vecsmith::isa_level() == ::vecsmith::Isa::avx2        ? ::vecsmith::avx2::function        \
                                                             : ::vecsmith::base::function)
// DECLARE_KERNEL(signature) declares the copies: VECSMITH_DECLARE_KERNEL(void f(int)).
#define VECSMITH_DECLARE_KERNEL(...) \
  namespace base {                   \
  __VA_ARGS__;                       \
  }                                  \
  namespace avx2 {                   \
  __VA_ARGS__;                       \
  }                                  \
  namespace avx512 {                 \
  __VA_ARGS__;                       \
  }                                  \
  namespace avx512_bf16 {            \
  __VA_ARGS__;                       \
  }                                  \
  namespace amx {                    \
  __VA_ARGS__;                       \
  }
#else
#define VECSMITH_PICK_KERNEL(function) (::vecsmith::base::function)
#define VECSMITH_DECLARE_KERNEL(...) \
  namespace base {                   \
  __VA_ARGS__;                       \
  }
#endif

}  // namespace vecsmith
