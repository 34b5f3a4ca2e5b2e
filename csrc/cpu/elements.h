// Vectors of floats from and to rows of other types: half precision, bfloat16, bytes with a scale.
// Included by kernels alone, like simd.h.
#pragma once

#include "cpu/simd.h"

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

VECSMITH_INLINE vfloat square_root(vfloat v) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (vfloat)_mm256_sqrt_ps((__m256)v);
#elif defined(__x86_64__)
  return (vfloat)_mm_sqrt_ps((__m128)v);
#else
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = __builtin_sqrtf(v[lane]);
  return v;
#endif
}

VECSMITH_INLINE float sum_of_lanes(vfloat v) {
  float out[4];
  fold4(v, vfloat{}, vfloat{}, vfloat{}, out);
  return out[0];
}

// kLanes 16-bit integers.
typedef uint16_t vshort __attribute__((vector_size(kLanes * 2)));

VECSMITH_INLINE vshort load_shorts(const char* p, int n) {
  vshort v{};
  if (n == kLanes) {
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  for (int lane = 0; lane < n; ++lane) {
    uint16_t x;
    __builtin_memcpy(&x, p + 2 * lane, 2);
    v[lane] = x;
  }
  return v;
}

VECSMITH_INLINE void store_shorts(char* p, vshort v, int n) {
  if (n == kLanes) {
    __builtin_memcpy(p, &v, sizeof v);
    return;
  }
  for (int lane = 0; lane < n; ++lane) {
    const uint16_t x = v[lane];
    __builtin_memcpy(p + 2 * lane, &x, 2);
  }
}

// Each type: `size` bytes, get(row, at, n) and put(row, at, value, n) of n <= kLanes elements from
// column `at` (n is a constant where it is kLanes).

struct Float32 {
  static constexpr int size = 4;
  static VECSMITH_METHOD vfloat get(const char* row, int64_t at, int n) {
    const float* p = reinterpret_cast<const float*>(row) + at;
    return n == kLanes ? load(p) : load_tail(p, n);
  }
  static VECSMITH_METHOD void put(char* row, int64_t at, vfloat v, int n) {
    float* p = reinterpret_cast<float*>(row) + at;
    if (n == kLanes)
      store(p, v);
    else
      store_tail(p, v, n);
  }
};

struct Bfloat16 {
  static constexpr int size = 2;
  static VECSMITH_METHOD vfloat get(const char* row, int64_t at, int n) {
    return (vfloat)(__builtin_convertvector(load_shorts(row + 2 * at, n), vbits) << 16);
  }
  // To the nearest, ties to even; a NaN stays one.
  static VECSMITH_METHOD void put(char* row, int64_t at, vfloat v, int n) {
    const vbits bits = (vbits)v;
    const vbits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const vbits nan = (vbits)(v != v);
    store_shorts(row + 2 * at, __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0), vshort),
                 n);
  }
};

struct Float16 {
  static constexpr int size = 2;
  static VECSMITH_METHOD vfloat get(const char* row, int64_t at, int n) {
    const vshort h = load_shorts(row + 2 * at, n);
#if defined(__AVX512F__)
    return (vfloat)_mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
    return (vfloat)_mm256_cvtph_ps((__m128i)h);
#else
    // Exponent and mantissa moved into place and scaled by 2^112; infinities and NaN by hand.
    const vbits bits = __builtin_convertvector(h, vbits);
    const vbits magnitude = (bits & 0x7fff) << 13;
    vbits value = (vbits)((vfloat)magnitude * 0x1p112f);
    const vbits special = (vbits)(magnitude >= 0x0f800000u);
    value = (value & ~special) | (special & (magnitude | 0x7f800000u));
    return (vfloat)(value | ((bits & 0x8000) << 16));
#endif
  }
  static VECSMITH_METHOD void put(char* row, int64_t at, vfloat v, int n) {
#if defined(__AVX512F__)
    const vshort h = (vshort)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__AVX2__)
    const vshort h = (vshort)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
    const vbits bits = (vbits)v, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    // Normal results: rounded in integers. Small ones: an addition rounds them to 2^-24.
    const vbits normal = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const vbits tiny = (vbits)((vfloat)magnitude + 0.5f) - 0x3f000000u;
    const vbits small = (vbits)(magnitude < 0x38800000u);
    const vbits large = (vbits)(magnitude >= 0x477ff000u), nan = (vbits)(magnitude > 0x7f800000u);
    vbits result = (tiny & small) | (normal & ~small);
    result = (result & ~large) | (large & 0x7c00);
    result = (result & ~nan) | (nan & 0x7e00);
    const vshort h = __builtin_convertvector(result | sign, vshort);
#endif
    store_shorts(row + 2 * at, h, n);
  }
};

// Bytes; scale and bias stand behind the last of them.
struct Quantized8 {
  static constexpr int size = 1;
  static VECSMITH_METHOD vfloat get(const char* row, int64_t at, int n) {
    typedef uint8_t vbytes __attribute__((vector_size(kLanes)));
    vbytes q{};
    if (n == kLanes)
      __builtin_memcpy(&q, row + at, sizeof q);
    else
      for (int lane = 0; lane < n; ++lane) q[lane] = static_cast<uint8_t>(row[at + lane]);
    return __builtin_convertvector(__builtin_convertvector(q, vint), vfloat);
  }
};

// A row whose vectors can be read: what its type alone does not say is read once.
template <class E>
struct RowOf {
  const char* row;
  VECSMITH_METHOD RowOf(const char* p, int64_t) : row(p) {}
  VECSMITH_METHOD vfloat get(int64_t at, int n) const { return E::get(row, at, n); }
};

template <>
struct RowOf<Quantized8> {
  const char* row;
  float scale, bias;
  VECSMITH_METHOD RowOf(const char* p, int64_t dim) : row(p) {
    __builtin_memcpy(&scale, p + dim, 4);
    __builtin_memcpy(&bias, p + dim + 4, 4);
  }
  VECSMITH_METHOD vfloat get(int64_t at, int n) const {
    return Quantized8::get(row, at, n) * scale + bias;
  }
};

// sum + the two products of each word, a pair of bfloat16 in y and one in w.
VECSMITH_INLINE vfloat add_products_of_pairs(vfloat sum, vint y, vfloat w) {
#if defined(__AVX512BF16__)
  return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)y, (__m512bh)w);
#else
  const vbits a = (vbits)y, b = (vbits)w;
  sum += (vfloat)(a & 0xffff0000) * (vfloat)(b & 0xffff0000);
  return sum + (vfloat)(a << 16) * (vfloat)(b << 16);
#endif
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
