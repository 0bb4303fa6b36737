// Attention of one query over the keys and values of its slot, up to its own position.
//
// Keys of 16 positions stand together, [position / 16][dim][position % 16], so that 16 scores grow
// side by side and no sum runs across lanes; values are [position][dim], in blocks of 16, too. `dim`
// is a multiple of 16. In 8 bits every position of a head has a scale for its key and one for its value.
// What a query gives depends on its length alone: prefill and decode round alike.
#pragma once

#include "simd.h"

namespace slm {

constexpr int KEY_BLOCK = 16;
constexpr int AHEAD = 3;  // blocks to ask for early: the processor's own prefetch ends with a page

inline void prefetch(const void* from, int bytes) {
  for (int i = 0; i < bytes; i += LINE) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// How many T at the start of a block of 8-bit keys or values hold what each position's are multiples
// of, in fp32; others have none.
template <class T>
constexpr int SCALES = sizeof(T) == 1 ? KEY_BLOCK * int(sizeof(float)) : 0;

template <class T>
constexpr size_t block_size(int dim) {
  return SCALES<T> + size_t(KEY_BLOCK) * dim;
}

// Where the block of a position begins. If it is in 8 bits, notes the scale that x will have there,
// and gives its inverse as the factor; a NaN in x is in the scale.
template <class T>
inline T* open_block(T* from, int position, int dim, const float* x, float& factor) {
  T* block = from + position / KEY_BLOCK * block_size<T>(dim);
  factor = 1;
  if constexpr (SCALES<T> > 0) {
    vf most = splat(1e-20f), broken = splat(0.0f);
    for (int d = 0; d < dim; d += W) {
      vf v = load<vf>(x + d);
      most = vmax(most, vmax(v, -v));
      broken += v * splat(0.0f);
    }
    float scale = largest(most) / 127.0f;
    factor = 1.0f / scale;
    store(block + position % KEY_BLOCK * sizeof(float), scale + sum(broken));
  }
  return block;
}

template <class T>
inline void store_key(T* keys, int position, int dim, const float* key) {
  float factor;
  T* to = open_block(keys, position, dim, key, factor) + SCALES<T> + position % KEY_BLOCK;
  for (int d = 0; d < dim; d += W) {
    T lanes[W];
    narrow(lanes, load<vf>(key + d) * splat(factor));
    for (int i = 0; i < W; i++) to[(d + i) * KEY_BLOCK] = lanes[i];
  }
}

template <class T>
inline void store_value(T* values, int position, int dim, const float* value) {
  float factor;
  T* to = open_block(values, position, dim, value, factor) + SCALES<T> + position % KEY_BLOCK * dim;
  for (int d = 0; d < dim; d += W) narrow(to + d, load<vf>(value + d) * splat(factor));
}

// The data of a block that will be read soon; its scales are asked for.
template <class T>
inline const T* past_scales(const T* block) {
  prefetch(block, SCALES<T>);
  return block + SCALES<T>;
}

// Multiplies what belongs to the positions of a block by their scales.
template <class T>
inline void apply_scales(float* x, const T* block) {
  if constexpr (SCALES<T> > 0)
    for (int t = 0; t < KEY_BLOCK; t += W) store(x + t, load<vf>(x + t) * load<vf>(block + t * sizeof(float)));
}

// Scores of one block of keys, in CHAINS interleaved sums over dim; asks for the block `ahead`.
template <class T>
inline void score(const float* query, const T* block, int dim, float* scores, const T* ahead) {
  constexpr int PARTS = KEY_BLOCK / W, CHAINS = PARTS == 4 ? 2 : 4;
  vf sums[CHAINS][PARTS] = {};
  const T* keys = block + SCALES<T>;
  ahead = past_scales(ahead);
  for (int d = 0; d < dim; d += CHAINS, keys += CHAINS * KEY_BLOCK, ahead += CHAINS * KEY_BLOCK) {
    prefetch(ahead, CHAINS * KEY_BLOCK * sizeof(T));
    for (int c = 0; c < CHAINS; c++)
      for (int part = 0; part < PARTS; part++)
        sums[c][part] = madd(splat(query[d + c]), widen(keys + c * KEY_BLOCK + part * W), sums[c][part]);
  }
  for (int part = 0; part < PARTS; part++) {
    vf total = sums[0][part] + sums[1][part];
    if constexpr (CHAINS == 4) total += sums[2][part] + sums[3][part];
    store(scores + part * W, total);
  }
  apply_scales(scores, block);
}

// Adds N vectors of sum(weights[t] * values[t]) over the first `length` positions of a block, in
// two interleaved sums.
template <int N, class T>
inline void mix(const float* weights, const T* values, int length, int dim, vf (&even)[N], vf (&odd)[N],
                const T* ahead) {
  int t = 0;
  for (; t + 1 < length; t += 2, values += 2 * size_t(dim), ahead += 2 * size_t(dim)) {
    vf w0 = splat(weights[t]), w1 = splat(weights[t + 1]);
    prefetch(ahead, N * W * sizeof(T));
    prefetch(ahead + dim, N * W * sizeof(T));
    for (int j = 0; j < N; j++) {
      even[j] = madd(w0, widen(values + j * W), even[j]);
      odd[j] = madd(w1, widen(values + dim + j * W), odd[j]);
    }
  }
  if (t < length)
    for (int j = 0; j < N; j++) even[j] = madd(splat(weights[t]), widen(values + j * W), even[j]);
}

// Where a slot's keys and values of one head lie, and the keys that will be asked for next.
template <class T>
struct Stream {
  const T *keys, *values, *next;
  int blocks;
  size_t size;  // of a block

  // The block that is read AHEAD blocks after block b of the keys, the values following the keys.
  const T* after(int b) const {
    b += AHEAD;
    if (b < blocks) return keys + b * size;
    if (b < 2 * blocks) return values + (b - blocks) * size;
    return next + (b - 2 * blocks) * size;
  }
};

template <int N, class T>
inline void mix_all(const float* weights, const Stream<T>& stream, int column, int length, int dim,
                    float factor, float* out) {
  vf even[N] = {}, odd[N] = {};
  for (int b = 0; b < stream.blocks; b++)
    mix<N>(weights + b * KEY_BLOCK, stream.values + b * stream.size + SCALES<T> + column,
           length - b * KEY_BLOCK < KEY_BLOCK ? length - b * KEY_BLOCK : KEY_BLOCK, dim, even, odd,
           past_scales(stream.after(stream.blocks + b)) + column);
  for (int j = 0; j < N; j++) store(out + column + j * W, (even[j] + odd[j]) * splat(factor));
}

// softmax(query . keys) . values over the first `length` positions. `query` is scaled already;
// `scores` has room for `length` rounded up to KEY_BLOCK.
template <class T>
inline void attend(const float* query, const T* keys, const T* values, const T* next, int length, int dim,
                   float* scores, float* out) {
  int blocks = round_up(length, KEY_BLOCK) / KEY_BLOCK, end = blocks * KEY_BLOCK;
  Stream<T> stream{keys, values, next, blocks, block_size<T>(dim)};
  for (int b = 0; b < blocks; b++)
    score(query, keys + b * stream.size, dim, scores + b * KEY_BLOCK, stream.after(b));
  for (int t = length; t < end; t++) scores[t] = -INFINITY;
  vf peak = load<vf>(scores);
  for (int t = W; t < end; t += W) peak = vmax(peak, load<vf>(scores + t));
  vf most = splat(largest(peak)), total = splat(0.0f);
  for (int t = 0; t < end; t += W) {
    vf weight = head(vexp(load<vf>(scores + t) - most), length - t);
    store(scores + t, weight);
    total += weight;
  }
  float factor = 1.0f / sum(total);
  for (int b = 0; b < blocks; b++) apply_scales(scores + b * KEY_BLOCK, values + b * stream.size);
  int d = 0;
  for (; d + 4 * W <= dim; d += 4 * W) mix_all<4>(scores, stream, d, length, dim, factor, out);
  for (; d < dim; d += W) mix_all<1>(scores, stream, d, length, dim, factor, out);
}

}  // namespace slm
