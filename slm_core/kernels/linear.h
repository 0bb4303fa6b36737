// y = x W^T + b in three precisions, with weights packed once into panels of COLS outputs.
//
// Each element of y sums over its inputs one group after the other in one register, whatever the
// rows around it: a row's result never depends on the others.
#pragma once

#include <algorithm>
#include <memory>

#include "simd.h"

namespace slm {

constexpr int VECTORS = 3;                         // of a panel
constexpr int COLS = VECTORS * W;                  // outputs of a panel
constexpr int ROWS = REGISTERS == 32 ? 8 : 4;      // of a tile; its sums fill the registers
constexpr int ALIGNMENT = 64;
constexpr int BLOCK_BYTES = 512 * 1024;            // of inputs that stay in the second-level cache

// R rows of a panel.
template <int R>
using Tile = vf[R][VECTORS];

template <class T>
using Buffer = std::unique_ptr<T[], void (*)(void*)>;

template <class T>
Buffer<T> allocate(size_t count) {
  size_t bytes = (count * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  void* p = aligned_alloc(ALIGNMENT, bytes ? bytes : ALIGNMENT);
  if (!p) throw std::bad_alloc();
  memset(p, 0, bytes);
  return {static_cast<T*>(p), free};
}

// A Kind of arithmetic: how inputs and weights are stored, and one multiply-add of a GROUP of them.

struct Fp32 {
  using Input = float;
  using Weight = float;
  using Cache = float;
  using Sum = vf;
  static constexpr int GROUP = 1;
  static constexpr bool SCALED = false;
  static vf weights(const float* w) { return load<vf>(w); }
  static vf input(const float* x) { return splat(*x); }
  static vf dot(vf sum, vf x, vf w) { return madd(x, w, sum); }
  static void pack(Weight* to, float w, int lane, int) { to[lane] = w; }
};

struct StoredBf16 {
  using Weight = bf16;
  using Cache = bf16;
  using Sum = vf;
  static constexpr int GROUP = 2;
  static constexpr bool SCALED = false;
  static void pack(Weight* to, float w, int lane, int index) { to[2 * lane + index] = narrow(w); }
};

#if defined(__AVX512BF16__)
struct Bf16 : StoredBf16 {
  using Input = bf16;
  static vi weights(const bf16* w) { return load<vi>(w); }
  static vi input(const bf16* x) { return splat(load<int32_t>(x)); }
  static vf dot(vf sum, vi x, vi w) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
  }
};
#else
struct Bf16 : StoredBf16 {  // widened on the fly: half the memory traffic, the arithmetic of fp32
  using Input = float;
  struct Pair {
    vf even, odd;
  };
  static Pair weights(const bf16* w) {
    vu both = load<vu>(w);
    return {bits<vf>(both << 16), bits<vf>(both & 0xffff0000u)};
  }
  static Pair input(const float* x) { return {splat(x[0]), splat(x[1])}; }
  static vf dot(vf sum, Pair x, Pair w) { return madd(x.odd, w.odd, madd(x.even, w.even, sum)); }
};
#endif

struct Scaled {
  using Cache = int8_t;
  using Sum = vi;
  static constexpr bool SCALED = true;
};

#if defined(__AVX512VNNI__)
struct Int8 : Scaled {  // exact: weights unsigned, shifted by OFFSET, which the rows' sums take back
  using Input = int8_t;
  using Weight = uint8_t;
  static constexpr int GROUP = 4;
  static constexpr int OFFSET = 128;
  static vi weights(const uint8_t* w) { return load<vi>(w); }
  static vi input(const int8_t* x) { return splat(load<int32_t>(x)); }
  static vi dot(vi sum, vi x, vi w) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
  }
  static void pack(Weight* to, float w, int lane, int index) {
    to[4 * lane + index] = uint8_t(int(w) + OFFSET);
  }
};
#else
struct Int8 : Scaled {  // exact: products of pairs in 16 bits, summed in 32
  using Input = int16_t;
  using Weight = int8_t;
  static constexpr int GROUP = 2;
  static constexpr int OFFSET = 0;
  static vh weights(const int8_t* w) {
#if defined(__AVX2__)
    return (vh)_mm256_cvtepi8_epi16(load<__m128i>(w));
#elif defined(__SSE2__)
    __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w));
    return (vh)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
#else
    typedef int8_t half __attribute__((vector_size(2 * W)));
    return __builtin_convertvector(load<half>(w), vh);
#endif
  }
  static vi input(const int16_t* x) { return splat(load<int32_t>(x)); }
  static vi dot(vi sum, vi x, vh w) {
#if defined(__AVX2__)
    return sum + (vi)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__)
    return sum + (vi)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
    vi pair = bits<vi>(w);
    return sum + (x << 16 >> 16) * (pair << 16 >> 16) + (x >> 16) * (pair >> 16);
#endif
  }
  static void pack(Weight* to, float w, int lane, int index) { to[2 * lane + index] = int8_t(w); }
};
#endif

// Rows of inputs as a Kind wants them; for int8 x = scale * data + middle, a row's own.
template <class Kind>
struct Inputs {
  int width = 0, stride = 0;
  Buffer<typename Kind::Input> data{nullptr, free};
  Buffer<float> scale{nullptr, free}, middle{nullptr, free};
  Buffer<int32_t> offset{nullptr, free};  // OFFSET * sum(data)

  void resize(int rows, int inputs) {
    width = inputs;
    stride = round_up(inputs, ALIGNMENT);
    data = allocate<typename Kind::Input>(size_t(rows) * stride);
    scale = allocate<float>(rows);
    middle = allocate<float>(rows);
    offset = allocate<int32_t>(rows);
  }

  typedef typename Kind::Input Narrow __attribute__((vector_size(sizeof(typename Kind::Input) * W)));

  // What is kept of x[i ...] of a row.
  vf decoded(int row, int i) const {
    vf levels = __builtin_convertvector(load<Narrow>(data.get() + size_t(row) * stride + i), vf);
    return madd(splat(scale[row]), levels, splat(middle[row]));
  }

  // Takes over row x, which reads as zero up to a multiple of W. A row with a NaN stays one.
  void encode(int row, const float* x) {
    typename Kind::Input* to = data.get() + size_t(row) * stride;
    if constexpr (!Kind::SCALED) {
      for (int i = 0; i < width; i += W) narrow(to + i, load<vf>(x + i));
    } else {
      vf high = splat(0.0f), low = splat(0.0f), broken = splat(0.0f);
      for (int i = 0; i < width; i += W) {
        vf v = load<vf>(x + i);
        high = vmax(high, v);
        low = vmin(low, v);
        broken += v * splat(0.0f);
      }
      float top = largest(high), bottom = -largest(-low);
      float step = std::max((top - bottom) / 254.0f, 1e-20f);
      vf centre = splat((top + bottom) / 2), factor = splat(1.0f / step);
      vi total = splat(0);
      for (int i = 0; i < width; i += W) {
        vi q = nearest(head((load<vf>(x + i) - centre) * factor, width - i));
        total += q;
        store(to + i, __builtin_convertvector(q, Narrow));
      }
      scale[row] = step + sum(broken);
      middle[row] = centre[0];
      int32_t lanes[W], all = 0;
      store(lanes, total);
      for (int32_t lane : lanes) all += lane;
      offset[row] = Kind::OFFSET * all;
    }
  }
};

// Weights that are asked for while the arithmetic of others goes on: a line with every GROUP of
// inputs, `step` bytes further each time.
struct Ahead {
  const char* at;
  int step;
};

// One output's weights in 8 bits: w is about scale * level(w). A NaN among them is in the scale.
struct Levels {
  float scale, inverse;

  Levels(const float* row, int count) {
    float most = 1e-20f, broken = 0;
    for (int i = 0; i < count; i++) {
      most = std::max(most, std::fabs(row[i]));
      broken += row[i] * 0.0f;
    }
    scale = most / 127.0f + broken;
    inverse = broken == 0 ? 127.0f / most : 0;
  }

  float level(float w) const { return inverse ? std::nearbyint(w * inverse) : 0; }
};

template <class Kind>
class Linear {
 public:
  Linear(const float* weight, const float* bias, int inputs, int outputs)
      : inputs_(inputs),
        outputs_(outputs),
        groups_(round_up(inputs, Kind::GROUP) / Kind::GROUP),
        panels_(round_up(outputs, COLS) / COLS),
        panel_size_(size_t(groups_) * COLS * Kind::GROUP),
        weights_(allocate<typename Kind::Weight>(panels_ * panel_size_)),
        scales_(allocate<float>(size_t(panels_) * COLS)),
        sums_(allocate<float>(size_t(panels_) * COLS)),
        bias_(allocate<float>(size_t(panels_) * COLS)) {
#pragma omp parallel for schedule(static)
    for (int panel = 0; panel < panels_; panel++) pack(panel, weight, bias);
  }

  // Calls use(row, column, tile) for every Tile of y, which begins there. To be called by all threads
  // of a team, which share the work; who has no more leaves.
  template <class Use>
  void apply(const Inputs<Kind>& x, int rows, int threads, Use use) const {
    if (!rows) return;
    // few panels for many threads: cut the rows, too
    int parts = std::clamp((2 * threads + panels_ - 1) / panels_, 1, (rows + ROWS - 1) / ROWS);
    int cached = BLOCK_BYTES / int(x.stride * sizeof(typename Kind::Input));
    int block = std::min(round_up((rows + parts - 1) / parts, ROWS), std::max(64, cached / ROWS * ROWS));
    int blocks = (rows + block - 1) / block;
    int items = blocks * panels_;
    int chunk = std::clamp(items / (8 * threads), 1, 8);
#pragma omp for schedule(dynamic, chunk) nowait
    for (int item = 0; item < items; item++) {
      int first = item / panels_ * block, last = std::min(rows, first + block);
      int next = (item + 1) % chunk ? item + 1 : item + 1 + (threads - 1) * chunk;  // probably
      Ahead ahead = panel_ahead(next % panels_, (last - first + ROWS - 1) / ROWS);
      for (int row = first; row < last; row += ROWS, ahead.at += size_t(ahead.step) * groups_)
        tiles<ROWS>(x, row, std::min(ROWS, last - row), item % panels_, ahead, use);
    }
  }

 private:
  // A panel to be there after `tiles` of another. A lone tile waits for memory anyway.
  Ahead panel_ahead(int panel, int tiles) const {
    constexpr int bytes = COLS * Kind::GROUP * sizeof(typename Kind::Weight);
    const typename Kind::Weight* at = weights_.get() + panel * panel_size_;
    return {reinterpret_cast<const char*>(at), tiles > 1 ? (bytes + tiles - 1) / tiles : 0};
  }

  template <int R, class Use>
  void tiles(const Inputs<Kind>& x, int row, int count, int panel, Ahead ahead, Use& use) const {
    if constexpr (R > 0) {
      if (count == R)
        tile<R>(x, row, panel, ahead, use);
      else
        tiles<R - 1>(x, row, count, panel, ahead, use);
    }
  }

  template <int R, class Use>
  void tile(const Inputs<Kind>& x, int row, int panel, Ahead ahead, Use& use) const {
    typename Kind::Sum acc[R][VECTORS] = {};
    if constexpr (Kind::SCALED)  // takes back what OFFSET adds
      for (int r = 0; r < R; r++)
        for (int j = 0; j < VECTORS; j++) acc[r][j] -= splat(x.offset[row + r]);
    const typename Kind::Input* from = x.data.get() + size_t(row) * x.stride;
    const typename Kind::Weight* w = weights_.get() + panel * panel_size_;
    for (int g = 0; g < groups_; g++, from += Kind::GROUP, w += COLS * Kind::GROUP) {
      __builtin_prefetch(ahead.at + size_t(g) * ahead.step, 0, 2);  // into the second level
      auto w0 = Kind::weights(w), w1 = Kind::weights(w + W * Kind::GROUP),
           w2 = Kind::weights(w + 2 * W * Kind::GROUP);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        auto in = Kind::input(from + size_t(r) * x.stride);
        acc[r][0] = Kind::dot(acc[r][0], in, w0);
        acc[r][1] = Kind::dot(acc[r][1], in, w1);
        acc[r][2] = Kind::dot(acc[r][2], in, w2);
      }
    }
    const float *scale = scales_.get() + panel * COLS, *bias = bias_.get() + panel * COLS;
    const float* sums = sums_.get() + panel * COLS;
    Tile<R> y;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      for (int j = 0; j < VECTORS; j++) {
        if constexpr (Kind::SCALED) {
          vf exact = __builtin_convertvector(acc[r][j], vf);
          vf level = madd(splat(x.middle[row + r]), load<vf>(sums + j * W), load<vf>(bias + j * W));
          y[r][j] = madd(exact * load<vf>(scale + j * W), splat(x.scale[row + r]), level);
        } else {
          y[r][j] = acc[r][j] + load<vf>(bias + j * W);
        }
      }
    }
    use(row, panel * COLS, y);
  }

  void pack(int panel, const float* weight, const float* bias) {
    typename Kind::Weight* to = weights_.get() + panel * panel_size_;
    for (int lane = 0; lane < COLS; lane++) {
      int output = panel * COLS + lane;
      const float* row = output < outputs_ ? weight + size_t(output) * inputs_ : nullptr;
      if (row && bias) bias_[output] = bias[output];
      Levels levels(row, row && Kind::SCALED ? inputs_ : 0);
      int total = 0;
      for (int i = 0; i < groups_ * Kind::GROUP; i++) {
        float w = row && i < inputs_ ? row[i] : 0.0f;
        if constexpr (Kind::SCALED) total += int(w = levels.level(w));
        Kind::pack(to + size_t(i / Kind::GROUP) * COLS * Kind::GROUP, w, lane, i % Kind::GROUP);
      }
      if constexpr (Kind::SCALED) {
        scales_[output] = levels.scale;
        sums_[output] = levels.scale * float(total);
      }
    }
  }

  int inputs_, outputs_, groups_, panels_;
  size_t panel_size_;
  Buffer<typename Kind::Weight> weights_;
  Buffer<float> scales_, sums_, bias_;  // of each output; sums of its weights
};

}  // namespace slm
