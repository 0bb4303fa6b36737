// Vectors of W floats, for whatever instruction set this file is compiled for.
//
// GCC's and clang's vector extensions carry most of it; intrinsics stand only where the compiler
// would not find the instruction. Built with -ffp-contract=off: a fused multiply-add is written as
// `madd`, so that one expression rounds the same wherever it is compiled into.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace slm {

#if defined(__AVX512F__)
constexpr int W = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int W = 4;
constexpr int REGISTERS = 32;
#else
constexpr int W = 4;
constexpr int REGISTERS = 16;
#endif

constexpr int LINE = 64;  // bytes of a cache line

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef int16_t vh __attribute__((vector_size(4 * W)));  // 2 W of them
typedef uint16_t bf16;

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
inline V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
inline void store(void* p, V v) {
  memcpy(p, &v, sizeof v);
}

inline vf splat(float x) {
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(x);
#else
  vf v;
  for (int i = 0; i < W; i++) v[i] = x;
  return v;
#endif
}

inline vi splat(int32_t x) {
#if defined(__AVX512F__)
  return (vi)_mm512_set1_epi32(x);
#else
  vi v;
  for (int i = 0; i < W; i++) v[i] = x;
  return v;
#endif
}

// a * b + c, rounded once where the processor can.
inline vf madd(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline float madd(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

inline vf vmax(vf a, vf b) { return a > b ? a : b; }
inline vf vmin(vf a, vf b) { return a < b ? a : b; }

inline vi lane_numbers() {
  vi lane;
  for (int i = 0; i < W; i++) lane[i] = i;
  return lane;
}

// The first `count` lanes of v, then zeros.
inline vf head(vf v, int count) { return lane_numbers() < splat(count) ? v : splat(0.0f); }

// Sums and maxima over lanes, always in the same order: halves, then quarters, ...
template <class Combine>
inline float fold(vf v, Combine combine) {
  float lanes[W];
  store(lanes, v);
  for (int half = W / 2; half; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = combine(lanes[i], lanes[i + half]);
  return lanes[0];
}

inline float sum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  return fold(v, [](float a, float b) { return a + b; });
#endif
}

inline float largest(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  return fold(v, [](float a, float b) { return a > b ? a : b; });
#endif
}

// A bit for each lane that is not below the bound; a NaN never is.
inline uint32_t reaches(vf v, vf bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, (__m512)bound, _CMP_NLT_UQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, (__m256)bound, _CMP_NLT_UQ));
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpnlt_ps((__m128)v, (__m128)bound));
#else
  vi below = v < bound;
  uint32_t mask = 0;
  for (int i = 0; i < W; i++) mask |= uint32_t(!below[i]) << i;
  return mask;
#endif
}

// The lanes that the mask names, side by side, and then anything up to W; returns how many they are.
template <class V>
inline int squeeze(void* to, V v, uint32_t mask) {
#if defined(__AVX512F__)
  store(to, _mm512_maskz_compress_epi32(mask, (__m512i)v));
#else
  float lanes[W];
  store(lanes, v);
  char* at = static_cast<char*>(to);
  for (uint32_t left = mask; left; left &= left - 1, at += sizeof(float))
    memcpy(at, lanes + __builtin_ctz(left), sizeof(float));
#endif
  return __builtin_popcount(mask);
}

// Nearest integer, ties to even, of |x| < 2^22, as the low bits of a float's mantissa.
constexpr float ROUNDER = 12582912.0f;  // 1.5 * 2^23

inline vi nearest(vf x) { return bits<vi>(x + splat(ROUNDER)) - splat(0x4B400000); }

// e^x to 2e-7, for x clamped to [-87, 88] (Cephes' polynomial); NaN of NaN.
inline vf vexp(vf unclamped) {
  vf x = vmin(splat(88.0f), vmax(splat(-87.0f), unclamped));  // of a NaN either gives the second
  vf shifted = madd(x, splat(1.44269504f), splat(ROUNDER));
  vf n = shifted - splat(ROUNDER);
  vf r = madd(n, splat(-0.693359375f), x);
  r = madd(n, splat(2.12194440e-4f), r);
  vf p = splat(1.9875691500e-4f);
  p = madd(p, r, splat(1.3981999507e-3f));
  p = madd(p, r, splat(8.3334519073e-3f));
  p = madd(p, r, splat(4.1665795894e-2f));
  p = madd(p, r, splat(1.6666665459e-1f));
  p = madd(p, r, splat(5.0000001201e-1f));
  p = madd(p, r * r, r + splat(1.0f));
  vi exponent = (bits<vi>(shifted) << 23) + splat(0x3f800000);
  return p * bits<vf>(exponent);
}

// 1 / x for x >= 1, to 2 units in the last place; where it is no normal number it may be 0.
inline vf reciprocal(vf x) {
#if defined(__AVX512F__)
  vf guess = (vf)_mm512_rcp14_ps((__m512)x);  // and one step of Newton's method
  return madd(madd(-x, guess, splat(1.0f)), guess, guess);
#else
  return splat(1.0f) / x;
#endif
}

// tanh-GELU (Hendrycks & Gimpel, 2016) as x * sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
inline vf gelu(vf x) {
  vf minus_2u = x * madd(x * x, splat(-2 * 0.7978845608f * 0.044715f), splat(-2 * 0.7978845608f));
  return x * reciprocal(splat(1.0f) + vexp(minus_2u));
}

inline vf widen(const bf16* p) {
  typedef uint16_t half __attribute__((vector_size(2 * W)));
  return bits<vf>(__builtin_convertvector(load<half>(p), vu) << 16);
}
inline vf widen(const float* p) { return load<vf>(p); }
typedef int8_t vb __attribute__((vector_size(W)));
inline vf widen(const int8_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(p)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(load<vb>(p), vf);
#endif
}

// To bfloat16, nearest, ties to even; a NaN stays one.
inline bf16 narrow(float x) {
  uint32_t u = bits<uint32_t>(x);
  return x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fc0;
}

inline void narrow(bf16* p, vf x) {
  typedef uint16_t half __attribute__((vector_size(2 * W)));
  vu u = bits<vu>(x), rounded = u + 0x7fff + (u >> 16 & 1);
  vu kept = x == x ? rounded : u | 0x7fc00000u;
  store(p, __builtin_convertvector(kept >> 16, half));
}
inline void narrow(float* p, vf x) { store(p, x); }
inline void narrow(int8_t* p, vf x) { store(p, __builtin_convertvector(nearest(x), vb)); }

// For the time of a short wait.
inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace slm
