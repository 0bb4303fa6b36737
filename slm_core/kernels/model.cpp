// A GPT's forward pass over a flat list of rows, each a (token, slot, position), and the draw of
// their next tokens. One parallel region a step; nothing is shared but by row, panel or head, so a
// row's bits depend on its own slot only, not on the other rows or the number of threads.
//
// The interface is C, for ctypes; slm_core/native.py owns every array that is passed in.
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <new>
#include <numeric>
#include <optional>

#include "attention.h"
#include "linear.h"
#include "sampling.h"
#include "screen.h"

namespace slm {

struct Shape {
  int32_t layers, heads, width, positions, vocab, cache_slots, cache_positions;
  int head_dim() const { return width / heads; }
  int padded_head_dim() const { return round_up(head_dim(), KEY_BLOCK); }
};

// fp32, row-major [out, in]; alive during creation, embeddings for as long as the model is.
struct LayerWeights {
  const float *norm_1, *norm_1_bias, *qkv, *qkv_bias, *project, *project_bias;
  const float *norm_2, *norm_2_bias, *expand, *expand_bias, *contract, *contract_bias;
};

struct Weights {
  const float *token_embedding, *position_embedding, *norm, *norm_bias;
  const LayerWeights* layers;
};

struct Batch {
  int32_t rows;
  const int32_t *tokens, *slots, *positions;  // of each row
  int32_t outputs;
  const int32_t* output_rows;  // rows whose logits are wanted
  Draw* draws;                 // of each output; null: no tokens
  float* logits;               // [outputs, vocab]; null: none
  int32_t threads;
};

class Model {
 public:
  virtual ~Model() = default;
  virtual void forward(const Batch& batch) = 0;
};

// Where the threads of a team wait for each other. Unlike OpenMP's own it soon gives its core away:
// on a machine with other work, the thread that all wait for may be the one without a core.
class Barrier {
 public:
  void wait() {
    int phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == omp_get_num_threads() - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
    }
    for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; spins++)
      if (spins < SPINS)
        relax();
      else
        sched_yield();
  }

 private:
  static constexpr int SPINS = 2000;
  std::atomic<int> arrived_{0}, phase_{0};
};

struct Norm {
  int width;
  Buffer<float> weight, bias;

  Norm(const float* w, const float* b, int width)
      : width(width), weight(allocate<float>(round_up(width, W))), bias(allocate<float>(round_up(width, W))) {
    std::copy(w, w + width, weight.get());
    std::copy(b, b + width, bias.get());
  }

  void apply(const float* x, float* y) const {
    vf total = splat(0.0f), squares = splat(0.0f);
    for (int i = 0; i < width; i += W) total += load<vf>(x + i);
    vf mean = splat(sum(total) / width);
    for (int i = 0; i < width; i += W) {
      vf d = head(load<vf>(x + i) - mean, width - i);
      squares = madd(d, d, squares);
    }
    vf inverse = splat(1.0f / std::sqrt(sum(squares) / width + 1e-5f));
    for (int i = 0; i < width; i += W) {
      vf d = (load<vf>(x + i) - mean) * inverse;
      store(y + i, madd(d, load<vf>(weight.get() + i), load<vf>(bias.get() + i)));
    }
  }
};

template <class Kind>
class Gpt final : public Model {
  using Cache = typename Kind::Cache;

  struct Layer {
    Norm norm_1, norm_2;
    Linear<Kind> qkv, project, expand, contract;

    Layer(const LayerWeights& w, int width)
        : norm_1(w.norm_1, w.norm_1_bias, width),
          norm_2(w.norm_2, w.norm_2_bias, width),
          qkv(w.qkv, w.qkv_bias, width, 3 * width),
          project(w.project, w.project_bias, width, width),
          expand(w.expand, w.expand_bias, width, 4 * width),
          contract(w.contract, w.contract_bias, 4 * width, width) {}
  };

 public:
  Gpt(const Shape& shape, const Weights& w, void* cache)
      : shape_(shape),
        tokens_(w.token_embedding),
        positions_(w.position_embedding),
        cache_(static_cast<Cache*>(cache)),
        norm_(w.norm, w.norm_bias, shape.width),
        head_(w.token_embedding, nullptr, shape.width, shape.vocab),
        stream_stride_(round_up(shape.width, COLS)),
        qkv_stride_(round_up(3 * shape.width, COLS)),
        inner_stride_(round_up(4 * shape.width, COLS)) {
    if constexpr (std::is_same_v<Kind, Fp32>) screen_.emplace(w.token_embedding, shape.width, shape.vocab);
    layers_.reserve(shape.layers);
    for (int i = 0; i < shape.layers; i++) layers_.emplace_back(w.layers[i], shape.width);
  }

  void forward(const Batch& batch) override {
    reserve(batch);
#pragma omp parallel num_threads(batch.threads)
    {
      embed(batch);
      for (size_t i = 0; i < layers_.size(); i++) block(batch, layers_[i], int(i));
      finish(batch);
    }
  }

 private:
  // Room for a batch. Counts are set last: where memory runs out, what they say is still true.
  void reserve(const Batch& b) {
    int width = shape_.width;
    if (b.rows > rows_) {
      stream_ = allocate<float>(size_t(b.rows) * stream_stride_);
      qkv_ = allocate<float>(size_t(b.rows) * qkv_stride_);
      attended_ = allocate<float>(size_t(b.rows) * stream_stride_);
      inner_ = allocate<float>(size_t(b.rows) * inner_stride_);
      narrow_.resize(b.rows, width);
      wide_.resize(b.rows, 4 * width);
      rows_ = b.rows;
    }
    if (b.outputs > outputs_) {
      last_.resize(b.outputs, width);
      outputs_ = b.outputs;
    }
    if (b.threads > threads_) {
      size_t floats = std::max(round_up(shape_.positions, KEY_BLOCK), stream_stride_);
      scratch_.resize(b.threads);
      for (auto& mine : scratch_) mine.resize(floats + 2 * shape_.padded_head_dim());
      threads_ = b.threads;
    }
    arrange(b);
    wide_rows_.assign(b.outputs, -1);
    if (b.draws) reserve_draws(b);
  }

  // Outputs that need all their logits come first, then those whose best are collected as the whole
  // head goes by, or else are found by a screen.
  void arrange(const Batch& b) {
    screened_ = screen_ && screen_->pays() && b.draws && !b.logits;
    places_.resize(b.outputs);
    std::iota(places_.begin(), places_.end(), 0);
    auto rest = std::stable_partition(places_.begin(), places_.end(),
                                      [&](int i) { return b.logits || !b.draws[i].candidates(); });
    full_ = int(rest - places_.begin());
    whole_ = screened_ ? full_ : b.outputs;
  }

  void reserve_draws(const Batch& b) {
    size_t wide = 0, candidates = size_t(b.threads) * std::max(Collector::ROOM, Shortlist::ROOM);
    for (int i = 0; i < b.outputs; i++)
      if (!b.draws[i].candidates()) wide_rows_[i] = int(wide++);
    wide_logits_.resize(std::max(wide_logits_.size(), wide * shape_.vocab));
    best_.resize(std::max(best_.size(), size_t(b.threads)));
    for (auto& mine : best_) mine.reserve(wide ? std::max(candidates, size_t(shape_.vocab)) : candidates);
    if (screened_) return screen_->reserve(b.outputs, b.threads);
    collectors_.resize(std::max(collectors_.size(), size_t(b.threads) * b.outputs));
    for (int place = 0; place < b.outputs; place++)
      for (int t = 0; t < b.threads; t++)
        collectors_[size_t(t) * b.outputs + place].start(b.draws[places_[place]].candidates());
  }

  float* scratch() { return scratch_[omp_get_thread_num()].data(); }

  void embed(const Batch& b) {
    int width = shape_.width;
#pragma omp for schedule(static) nowait
    for (int r = 0; r < b.rows; r++) {
      const float* token = tokens_ + size_t(b.tokens[r]) * width;
      const float* position = positions_ + size_t(b.positions[r]) * width;
      float* x = stream_.get() + size_t(r) * stream_stride_;
      for (int i = 0; i < width; i++) x[i] = token[i] + position[i];
      std::fill(x + width, x + stream_stride_, 0.0f);  // a NaN may have been there
    }
    barrier_.wait();
  }

  void block(const Batch& b, const Layer& layer, int index) {
    normalise(b, layer.norm_1);
    layer.qkv.apply(narrow_, b.rows, b.threads, into(qkv_, qkv_stride_, [](float* to, vf y) { store(to, y); }));
    barrier_.wait();
    attention(b, index);
    add(layer.project, narrow_, b);
    normalise(b, layer.norm_2);
    layer.expand.apply(narrow_, b.rows, b.threads,
                       into(inner_, inner_stride_, [](float* to, vf y) { store(to, gelu(y)); }));
    barrier_.wait();
#pragma omp for schedule(static) nowait
    for (int r = 0; r < b.rows; r++) wide_.encode(r, inner_.get() + size_t(r) * inner_stride_);
    barrier_.wait();
    add(layer.contract, wide_, b);
  }

  // What calls put(to, y) for every vector of a tile, with its place in rows of `stride` floats.
  template <class Put>
  static auto into(Buffer<float>& rows, int stride, Put put) {
    return [=, first = rows.get()](int row, int column, const auto& tile) {
      float* to = first + size_t(row) * stride + column;
      for (const auto& y : tile) {
        for (int j = 0; j < VECTORS; j++) put(to + j * W, y[j]);
        to += stride;
      }
    };
  }

  void normalise(const Batch& b, const Norm& norm) {
#pragma omp for schedule(static) nowait
    for (int r = 0; r < b.rows; r++) {
      norm.apply(stream_.get() + size_t(r) * stream_stride_, scratch());
      narrow_.encode(r, scratch());
    }
    barrier_.wait();
  }

  void add(const Linear<Kind>& linear, const Inputs<Kind>& x, const Batch& b) {
    linear.apply(x, b.rows, b.threads,
                 into(stream_, stream_stride_, [](float* to, vf y) { store(to, load<vf>(to) + y); }));
    barrier_.wait();
  }

  size_t head_size() const {  // of a slot's keys or values
    return shape_.cache_positions / KEY_BLOCK * block_size<Cache>(shape_.padded_head_dim());
  }

  Cache* cached(int layer, int which, int slot, int head) const {
    size_t at = ((size_t(layer) * 2 + which) * shape_.cache_slots + slot) * shape_.heads + head;
    return cache_ + at * head_size();
  }

  void attention(const Batch& b, int index) {
    int width = shape_.width, heads = shape_.heads, dim = shape_.head_dim(), padded = shape_.padded_head_dim();
#pragma omp for schedule(static) nowait
    for (int r = 0; r < b.rows; r++) {
      float* row = scratch();
      std::fill(row, row + padded, 0.0f);
      for (int h = 0; h < heads; h++) {
        const float* from = qkv_.get() + size_t(r) * qkv_stride_ + width + h * dim;
        std::copy(from, from + dim, row);
        store_key(cached(index, 0, b.slots[r], h), b.positions[r], padded, row);
        std::copy(from + width, from + width + dim, row);
        store_value(cached(index, 1, b.slots[r], h), b.positions[r], padded, row);
      }
    }
    barrier_.wait();
    float scale = 1.0f / std::sqrt(float(dim));
#pragma omp for schedule(dynamic, 4) nowait
    for (int item = 0; item < b.rows * heads; item++) {
      int r = item / heads, h = item % heads;
      float *query = scratch(), *out = query + padded, *scores = out + padded;
      const float* from = qkv_.get() + size_t(r) * qkv_stride_ + h * dim;
      for (int d = 0; d < padded; d++) query[d] = d < dim ? from[d] * scale : 0.0f;
      const Cache *keys = cached(index, 0, b.slots[r], h), *values = cached(index, 1, b.slots[r], h);
      const Cache* next = keys + head_size();
      attend(query, keys, values, next, b.positions[r] + 1, padded, scores, out);
      std::copy(out, out + dim, attended_.get() + size_t(r) * stream_stride_ + h * dim);
    }
    barrier_.wait();
#pragma omp for schedule(static) nowait
    for (int r = 0; r < b.rows; r++) narrow_.encode(r, attended_.get() + size_t(r) * stream_stride_);
    barrier_.wait();
  }

  void finish(const Batch& b) {
#pragma omp for schedule(static) nowait
    for (int place = 0; place < b.outputs; place++) {
      int i = places_[place];
      norm_.apply(stream_.get() + size_t(b.output_rows[i]) * stream_stride_, scratch());
      if (place < whole_)
        last_.encode(place, scratch());
      else
        screen_->start(place - whole_, scratch(), b.draws[i].candidates());
    }
    barrier_.wait();
    int vocab = shape_.vocab, full = full_;
    bool collects = b.draws && !screened_;
    Collector* mine = collects ? &collectors_[size_t(omp_get_thread_num()) * b.outputs] : nullptr;
    head_.apply(last_, whole_, b.threads, [&](int place, int column, const auto& tile) {
      for (const auto& y : tile) {
        if (place < full) {
          float row[COLS];
          for (int j = 0; j < VECTORS; j++) store(row + j * W, y[j]);
          std::copy(row, row + std::min(COLS, vocab - column), logits(b, places_[place]) + column);
        }
        if (mine) mine[place].offer(y, column, vocab);
        place++;
      }
    });
    if (!b.draws) return;
    if (screened_) screen_->apply(b.outputs - whole_, b.threads);
    barrier_.wait();
#pragma omp for schedule(dynamic, 1) nowait
    for (int place = 0; place < b.outputs; place++) draw(b, place);
  }

  // All of an output that needs them.
  float* logits(const Batch& b, int i) {
    if (b.logits) return b.logits + size_t(i) * shape_.vocab;
    return &wide_logits_[size_t(wide_rows_[i]) * shape_.vocab];
  }

  void draw(const Batch& b, int place) {
    int i = places_[place];
    Draw& d = b.draws[i];
    auto& best = best_[omp_get_thread_num()];
    best.clear();
    if (place >= whole_) {
      screen_->best(place - whole_, best);
      d.token = draw_from(d, best);
    } else if (d.candidates()) {
      bool broken = false;
      for (int t = 0; t < b.threads; t++) {
        Collector& c = collectors_[size_t(t) * b.outputs + place];
        c.drain_into(best);
        broken |= c.broken();
      }
      d.token = broken ? BROKEN : draw_from(d, best);
    } else {
      d.token = draw_wide(d, logits(b, i), shape_.vocab, best);
    }
    d.step++;
  }

  Shape shape_;
  const float *tokens_, *positions_;
  Cache* cache_;
  std::vector<Layer> layers_;
  Norm norm_;
  Linear<Kind> head_;
  std::optional<Screen> screen_;  // of an fp32 head

  int stream_stride_, qkv_stride_, inner_stride_;  // floats of a row
  int rows_ = 0, outputs_ = 0, threads_ = 0;       // that there is room for
  Buffer<float> stream_{nullptr, free}, qkv_{nullptr, free}, attended_{nullptr, free}, inner_{nullptr, free};
  Inputs<Kind> narrow_, wide_, last_;
  Barrier barrier_;
  std::vector<Collector> collectors_;  // [thread][place]
  std::vector<std::vector<Candidate>> best_;
  std::vector<std::vector<float>> scratch_;
  std::vector<int> places_;  // outputs, in the order of their rows in last_, then of screen_'s
  int full_ = 0;             // of them whose logits are all kept
  int whole_ = 0;            // of them that are in last_
  bool screened_ = false;
  std::vector<int> wide_rows_;
  std::vector<float> wide_logits_;
};

}  // namespace slm

#pragma GCC visibility push(default)
extern "C" {

// 1 if this processor runs what was compiled for `variant`. Only to be asked of the baseline.
int slm_supports(const char* variant) {
#if defined(__x86_64__)
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("f16c") && __builtin_cpu_supports("lzcnt") &&
              __builtin_cpu_supports("movbe");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (!strcmp(variant, "avx2")) return avx2;
  if (!strcmp(variant, "avx512")) return avx512;
  if (!strcmp(variant, "avx512_bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return !strcmp(variant, "baseline");
}

// Null where memory runs out, or there is no such precision.
slm::Model* slm_create(const slm::Shape* shape, const slm::Weights* weights, const char* precision, void* cache) {
  try {
    if (!strcmp(precision, "fp32")) return new slm::Gpt<slm::Fp32>(*shape, *weights, cache);
    if (!strcmp(precision, "bf16")) return new slm::Gpt<slm::Bf16>(*shape, *weights, cache);
    if (!strcmp(precision, "int8")) return new slm::Gpt<slm::Int8>(*shape, *weights, cache);
  } catch (const std::bad_alloc&) {
  }
  return nullptr;
}

// 0, or 1 where memory runs out; then nothing was computed.
int slm_forward(slm::Model* model, const slm::Batch* batch) {
  try {
    model->forward(*batch);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

void slm_destroy(slm::Model* model) { delete model; }
}
