// The best logits of an fp32 head from a fraction of its work, bit for bit.
//
// An 8-bit copy of the head tells each logit within an error that is known beforehand; the few that
// may be among the best are then computed as the head itself computes them. With h the final hidden
// state, w the weights of an output, and a hat on what 8 bits keep of them, by Cauchy-Schwarz
//
//   |h w - ĥ ŵ| = |h (w - ŵ) + (h - ĥ) ŵ| <= |h| |w - ŵ| + |h - ĥ| |ŵ|
#pragma once

#include <omp.h>

#include <atomic>

#include "linear.h"
#include "sampling.h"

namespace slm {

// Outputs whose logits may be among the best `keep` of a row: all whose upper bound reaches the
// `keep`-th best lower bound so far. Where more do than there is room for, such as the many equal
// rows of tokens that a model has never seen, logits themselves decide.
class Shortlist {
 public:
  struct Entry {
    float low, high;
    int32_t token;
  };
  static constexpr int ROOM = 8 * CANDIDATES;

  void start(int keep) {
    keep_ = keep;
    count_ = 0;
    bound_ = -INFINITY;
    broken_ = false;
  }

  // `exact(entries, count)` puts logits in the place of bounds.
  template <int N, class Exact>
  void offer(const vf (&y)[N], const vf (&error)[N], int first_token, int vocab, const Exact& exact) {
    uint64_t mask = 0;
    for (int j = 0; j < N; j++) mask |= uint64_t(reaches(y[j] + error[j], splat(bound_))) << (j * W);
    if (mask) take(y, error, mask, first_token, vocab, exact);
  }

  // Whether bounds or logits are no numbers.
  bool broken() const { return broken_; }
  void drain_into(std::vector<Entry>& to) const { to.insert(to.end(), entries_, entries_ + count_); }

  // Leaves what reaches the `keep`-th best lower bound, which it returns; returns how many.
  static int shorten(Entry* entries, int count, int keep, float& bound) {
    if (count <= keep) return count;
    std::nth_element(entries, entries + keep - 1, entries + count,
                     [](const Entry& a, const Entry& b) { return a.low > b.low; });
    bound = entries[keep - 1].low;
    return int(std::partition(entries, entries + count, [&](const Entry& e) { return e.high >= bound; }) - entries);
  }

 private:
  template <int N, class Exact>
  __attribute__((noinline)) void take(const vf (&y)[N], const vf (&error)[N], uint64_t mask, int first_token,
                                      int vocab, const Exact& exact) {
    if (broken_) return;
    if (count_ + N * W > ROOM) count_ = shorten(entries_, count_, keep_, bound_);
    if (count_ + N * W > ROOM && (broken_ = !decide(exact))) return;
    float low[N * W], high[N * W];
    for (int j = 0; j < N; j++) {
      store(low + j * W, y[j] - error[j]);
      store(high + j * W, y[j] + error[j]);
    }
    for (; mask; mask &= mask - 1) {
      int i = __builtin_ctzll(mask);
      if (first_token + i >= vocab) break;
      if ((broken_ = !(high[i] - low[i] < INFINITY))) return;
      entries_[count_++] = {low[i], high[i], first_token + i};
    }
  }

  template <class Exact>
  bool decide(const Exact& exact) {
    exact(entries_, count_);
    for (int i = 0; i < count_; i++)
      if (!(entries_[i].low < INFINITY)) return false;
    std::nth_element(entries_, entries_ + keep_ - 1, entries_ + count_, [](const Entry& a, const Entry& b) {
      return Candidate{a.low, a.token} < Candidate{b.low, b.token};
    });
    count_ = keep_;
    bound_ = entries_[keep_ - 1].low;
    return true;
  }

  int keep_ = 1, count_ = 0;
  float bound_ = 0;
  bool broken_ = false;
  Entry entries_[ROOM];
};

class Screen {
 public:
  Screen(const float* weights, int inputs, int outputs)
      : weights_(weights),
        inputs_(inputs),
        outputs_(outputs),
        head_(weights, nullptr, inputs, outputs),
        lost_(allocate<float>(round_up(outputs, COLS))),
        kept_(allocate<float>(round_up(outputs, COLS))) {
#pragma omp parallel for schedule(static)
    for (int output = 0; output < outputs; output++) {
      const float* row = weights + size_t(output) * inputs;
      Levels levels(row, inputs);
      double lost = 0, kept = 0;
      for (int i = 0; i < inputs; i++) {
        double w = double(levels.scale) * levels.level(row[i]);
        lost += (row[i] - w) * (row[i] - w);
        kept += w * w;
      }
      lost_[output] = float(std::sqrt(lost)) * SLACK;
      kept_[output] = float(std::sqrt(kept)) * SLACK;
    }
  }

  // Whether lists are short. Logits one by one take longer than all in one product.
  bool pays() const { return computed_ <= (rows_done_ + 64) * (outputs_ / 32 + 1); }

  // Room for a step. Counts are set last: where memory runs out, what they say is still true.
  void reserve(int rows, int threads) {
    if (rows <= rows_ && threads <= threads_) return;
    rows = std::max(rows, rows_);
    threads = std::max(threads, threads_);
    hidden_ = allocate<float>(size_t(rows) * inputs_);
    hidden8_.resize(rows, inputs_);
    length_.resize(rows);
    away_.resize(rows);
    keep_.resize(rows);
    lists_.resize(size_t(threads) * rows);
    merged_.resize(threads);
    for (auto& mine : merged_) mine.reserve(threads * Shortlist::ROOM);
    rows_ = rows;
    threads_ = threads;
  }

  // A row, which reads as zero up to a multiple of W, of whose logits the best `keep` are wanted.
  void start(int row, const float* x, int keep) {
    keep_[row] = keep;
    for (int t = 0; t < threads_; t++) lists_[size_t(t) * rows_ + row].start(keep);
    std::copy(x, x + inputs_, hidden_.get() + size_t(row) * inputs_);
    hidden8_.encode(row, x);
    vf length = splat(0.0f), away = splat(0.0f);
    for (int i = 0; i < inputs_; i += W) {
      vf v = load<vf>(x + i), lost = head(v - hidden8_.decoded(row, i), inputs_ - i);
      length = madd(v, v, length);
      away = madd(lost, lost, away);
    }
    length_[row] = std::sqrt(sum(length)) * SLACK;
    // and what rounding does to sums of fp32, here and in the head: with unit u = 2^-24 less than
    // (inputs + 6 sqrt(inputs) + 3) u |h| |ŵ|
    away_[row] = std::sqrt(sum(away)) * SLACK + length_[row] * float(inputs_ + 8) * 0x1p-22f;
  }

  // Makes the lists of rows 0 ... To be called by all threads of a team, which share the work.
  void apply(int rows, int threads) {
    Shortlist* mine = lists_.data() + size_t(omp_get_thread_num()) * rows_;
    head_.apply(hidden8_, rows, threads, [&](int row, int column, const auto& tile) {
      for (const auto& y : tile) {
        vf error[VECTORS];
        for (int j = 0; j < VECTORS; j++) {
          vf lost = load<vf>(lost_.get() + column + j * W), kept = load<vf>(kept_.get() + column + j * W);
          error[j] = madd(splat(length_[row]), lost, splat(away_[row]) * kept);
        }
        mine[row].offer(y, error, column, outputs_, [this, row](Entry* e, int count) { exact(row, e, count); });
        row++;
      }
    });
  }

  // Once all have left `apply`: the best logits of a row, perhaps some others, in any order; none
  // where one that may be among them is no number.
  void best(int row, std::vector<Candidate>& to) {
    auto& merged = merged_[omp_get_thread_num()];
    merged.clear();
    for (int t = 0; t < threads_; t++) {
      const Shortlist& list = lists_[size_t(t) * rows_ + row];
      if (list.broken()) return;
      list.drain_into(merged);
    }
    float bound = -INFINITY;
    int count = Shortlist::shorten(merged.data(), int(merged.size()), keep_[row], bound);
    exact(row, merged.data(), count);
    rows_done_++;
    for (int i = 0; i < count; i++) {
      if (!(merged[i].low < INFINITY)) return to.clear();
      to.push_back({merged[i].low, merged[i].token});
    }
  }

 private:
  using Entry = Shortlist::Entry;
  static constexpr float SLACK = 1.0001f;  // for how the bounds themselves round

  // Logits as Linear<Fp32> sums them: each in one register, one input after the other.
  void exact(int row, Entry* entries, int count) {
    constexpr int SIDE_BY_SIDE = 8;  // sums, to keep the multipliers busy
    const float* x = hidden_.get() + size_t(row) * inputs_;
    for (int first = 0; first < count; first += SIDE_BY_SIDE) {
      const float* w[SIDE_BY_SIDE];
      for (int j = 0; j < SIDE_BY_SIDE; j++)
        w[j] = weights_ + size_t(entries[std::min(first + j, count - 1)].token) * inputs_;
      float sums[SIDE_BY_SIDE] = {};
      for (int i = 0; i < inputs_; i++)
#pragma GCC unroll 8
        for (int j = 0; j < SIDE_BY_SIDE; j++) sums[j] = madd(x[i], w[j][i], sums[j]);
      for (int j = 0; j < SIDE_BY_SIDE && first + j < count; j++) {
        Entry& e = entries[first + j];
        e.low = e.high = sums[j] + 0.0f;  // its bias
      }
    }
    computed_ += count;
  }

  const float* weights_;
  int inputs_, outputs_;
  Linear<Int8> head_;
  Buffer<float> lost_, kept_;  // |w - ŵ| and |ŵ| of each output

  int rows_ = 0, threads_ = 0;  // that there is room for
  Buffer<float> hidden_{nullptr, free};
  Inputs<Int8> hidden8_;
  std::vector<float> length_, away_;  // |h| and |h - ĥ| of each row
  std::vector<int> keep_;
  std::vector<Shortlist> lists_;                        // [thread][row]
  std::vector<std::vector<Shortlist::Entry>> merged_;  // by each thread
  std::atomic<int64_t> rows_done_{0}, computed_{0};  // rows, and logits one by one
};

}  // namespace slm
