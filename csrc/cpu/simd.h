// Float vectors of the width of the ISA level this file is compiled for, on GCC's and Clang's
// vector extension. Include only from *.kernel.cpp: everything lives in the level's own namespace,
// and nothing here may become a symbol that the linker could share between levels (hence static,
// always_inline).
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define VECSMITH_INLINE static inline __attribute__((always_inline))
#define VECSMITH_METHOD inline __attribute__((always_inline))
#define VECSMITH_LAMBDA __attribute__((always_inline))

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vfloat __attribute__((vector_size(kLanes * 4)));
typedef int32_t vint __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vbits __attribute__((vector_size(kLanes * 4)));
typedef double vdouble __attribute__((vector_size(kLanes * 8)));  // as many lanes: two registers
typedef float vfloat_memory __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t vint_memory __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

VECSMITH_INLINE vfloat load(const float* p) { return *reinterpret_cast<const vfloat_memory*>(p); }
VECSMITH_INLINE void store(float* p, vfloat v) { *reinterpret_cast<vfloat_memory*>(p) = v; }
VECSMITH_INLINE vint load(const int32_t* p) { return *reinterpret_cast<const vint_memory*>(p); }
VECSMITH_INLINE void store(int32_t* p, vint v) { *reinterpret_cast<vint_memory*>(p) = v; }
VECSMITH_INLINE vfloat splat(float x) { return x - vfloat{}; }

// A quarter of AVX-512's width: for tails of four, which are common (dimensions 100, 20, 84, ...).
typedef float vquarter __attribute__((vector_size(16)));

template <class V>
VECSMITH_INLINE V load_as(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
VECSMITH_INLINE void store_as(float* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The vector that begins with these four lanes; the others are zero.
VECSMITH_INLINE vfloat widen(vquarter v) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_zextps128_ps512((__m128)v);
#elif defined(__AVX2__)
  return (vfloat)_mm256_zextps128_ps256((__m128)v);
#else
  return (vfloat)v;
#endif
}

template <int N>
struct Number {
  static constexpr int value = N;
};

// body(Number<n>) for n in kLeast..kMost: a loop's count, or a number of rows, as a constant.
template <int kLeast, int kMost, class Body>
VECSMITH_INLINE void with_number(int64_t n, const Body& body) {
  if constexpr (kMost == kLeast)
    body(Number<kLeast>{});
  else if (n == kMost)
    body(Number<kMost>{});
  else
    with_number<kLeast, kMost - 1>(n, body);
}

// Keeps a loaded vector in a register: else each of its uses becomes a load of its own.
VECSMITH_INLINE vfloat in_register(vfloat v) {
#if defined(__AVX512F__)
  __asm__("" : "+v"(v));
#elif defined(__x86_64__)
  __asm__("" : "+x"(v));
#endif
  return v;
}

// The first n lanes (0 < n < kLanes); the others read as zero, and are not written. Whole quarters
// go through plain narrower loads and stores, which, unlike masked ones, are forwarded from one to
// the other.
VECSMITH_INLINE vfloat load_tail(const float* p, int n) {
#if defined(__AVX512F__)
  if (n == 4) return (vfloat)_mm512_zextps128_ps512(_mm_loadu_ps(p));
  if (n == 8) return (vfloat)_mm512_zextps256_ps512(_mm256_loadu_ps(p));
  if (n == 12)
    return (vfloat)_mm512_insertf32x4(_mm512_zextps256_ps512(_mm256_loadu_ps(p)),
                                      _mm_loadu_ps(p + 8), 2);
  return (vfloat)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return (vfloat)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
#else
  vfloat v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

VECSMITH_INLINE void store_tail(float* p, vfloat v, int n) {
#if defined(__AVX512F__)
  if (n == 4) return _mm_storeu_ps(p, _mm512_castps512_ps128((__m512)v));
  if (n == 8) return _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)v));
  if (n == 12) {
    _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)v));
    return _mm_storeu_ps(p + 8, _mm512_extractf32x4_ps((__m512)v, 2));
  }
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
#elif defined(__AVX2__)
  // Not vmaskmovps: its store form is microcoded on some processors.
  __m128 part = _mm256_castps256_ps128((__m256)v);
  if (n & 4) {
    _mm_storeu_ps(p, part);
    part = _mm256_extractf128_ps((__m256)v, 1);
    p += 4;
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
    part = _mm_movehl_ps(part, part);
    p += 2;
  }
  if (n & 1) _mm_store_ss(p, part);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// out[0..3] = the sums of the lanes of a, b, c, d.
VECSMITH_INLINE void fold4(vfloat a, vfloat b, vfloat c, vfloat d, float* out) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps((__m512)a, (__m512)b),
                                  _mm512_unpackhi_ps((__m512)a, (__m512)b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps((__m512)c, (__m512)d),
                                  _mm512_unpackhi_ps((__m512)c, (__m512)d));
  const __m512 q = _mm512_add_ps(
      _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))),
      _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd))));
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(q), _mm512_extractf32x8_ps(q, 1));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps((__m256)a, (__m256)b),
                                  _mm256_unpackhi_ps((__m256)a, (__m256)b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps((__m256)c, (__m256)d),
                                  _mm256_unpackhi_ps((__m256)c, (__m256)d));
  const __m256 h = _mm256_add_ps(
      _mm256_castpd_ps(_mm256_unpacklo_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))),
      _mm256_castpd_ps(_mm256_unpackhi_pd(_mm256_castps_pd(ab), _mm256_castps_pd(cd))));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1)));
#elif defined(__x86_64__)
  const __m128 ab =
      _mm_add_ps(_mm_unpacklo_ps((__m128)a, (__m128)b), _mm_unpackhi_ps((__m128)a, (__m128)b));
  const __m128 cd =
      _mm_add_ps(_mm_unpacklo_ps((__m128)c, (__m128)d), _mm_unpackhi_ps((__m128)c, (__m128)d));
  _mm_storeu_ps(out, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
#else
  vfloat all[4] = {a, b, c, d};
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += all[i][lane];
    out[i] = sum;
  }
#endif
}

VECSMITH_INLINE vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }
VECSMITH_INLINE vfloat abs(vfloat a) { return (vfloat)((vint)a & 0x7fffffff); }

// A vector written by stores of four floats: read by fours, each is forwarded from its store.
VECSMITH_INLINE vfloat load_fours(const float* p) {
#if defined(__AVX512F__)
  const __m256 low =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4), 1);
  const __m256 high =
      _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + 8)), _mm_loadu_ps(p + 12), 1);
  return (vfloat)_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
#elif defined(__AVX2__)
  return (vfloat)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + 4),
                                      1);
#else
  return load(p);
#endif
}

// 1 / x for x in [1, 2], to within 2 units in the last place.
VECSMITH_INLINE vfloat reciprocal(vfloat x) {
#if defined(__AVX512F__)
  const vfloat r = (vfloat)_mm512_rcp14_ps((__m512)x);
  return r * (2.0f - x * r);
#else
  return 1.0f / x;
#endif
}

// exp(x) for x in [-87, 0], relative error below 2e-7: 2^k * p(r), |r| <= ln(2)/2 (Cephes' expf).
VECSMITH_INLINE vfloat exp_negative(vfloat x) {
  const vfloat shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const vfloat t = x * 1.44269504f + shift;
  const vint k = (vint)t - (vint)shift;
  const vfloat r = x - (t - shift) * 0.693147180559945f;
  vfloat p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return (vfloat)((vbits)p + ((vbits)k << 23));
}

// log(x) for normal x >= 1; absolute error below 2e-7 of max(1, log(x)): exponent and mantissa in
// [sqrt(1/2), sqrt(2)), then 2 atanh((m - 1) / (m + 1)).
VECSMITH_INLINE vfloat log_above_one(vfloat x) {
  const vint bits = (vint)x - 0x3f3504f3;
  const vint exponent = bits >> 23;
  const vfloat m = (vfloat)((bits & 0x7fffff) + 0x3f3504f3);
  const vfloat r = (m - 1.0f) / (m + 1.0f);
  const vfloat q = r * r;
  vfloat p = splat(2.0f / 9);
  p = p * q + 2.0f / 7;
  p = p * q + 2.0f / 5;
  p = p * q + 2.0f / 3;
  p = p * q + 2.0f;
  return p * r + __builtin_convertvector(exponent, vfloat) * 0.693147180559945f;
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
