// From logits to tokens, as slm_core/sampling.py does it, which see for sources and meaning.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"

namespace slm {

constexpr int CANDIDATES = 64;  // rows with top_k up to this never need all their logits
constexpr int32_t BROKEN = -1;  // drawn where a logit is NaN or infinite

// One row's parameters; the same struct stands in slm_core/native.py.
struct Draw {
  double temperature;
  double top_p;
  uint64_t key;
  int64_t step;
  int32_t top_k;  // 0: all
  int32_t token;  // out

  // How many of the best logits decide; 0: more than CANDIDATES.
  int candidates() const {
    if (temperature == 0) return 1;
    return top_k >= 1 && top_k <= CANDIDATES ? top_k : 0;
  }
};

struct Candidate {
  float logit;
  int32_t token;
  // a total order, so that the best are the same in whichever order they were met
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : token < other.token;
  }
};

// The best `keep` of a stream of logits, and some more: all that reach a bound, which rises to about
// the worst of the best so far whenever there is no more room. With `keep` 0 takes none.
class Collector {
 public:
  static constexpr int ROOM = 2 * CANDIDATES;

  void start(int keep) {
    keep_ = keep;
    count_ = 0;
    bound_ = keep ? -INFINITY : INFINITY;
    broken_ = false;
  }

  template <int N>
  void offer(const vf (&v)[N], int first_token, int vocab) {
    uint32_t any = 0;
    for (int j = 0; j < N; j++) any |= reaches(v[j], splat(bound_));
    if (any) take(v, first_token, vocab);
  }

  bool broken() const { return broken_; }

  void drain_into(std::vector<Candidate>& to) {
    raise_bound();
    for (int i = 0; i < count_; i++) to.push_back({logits_[i], tokens_[i]});
  }

 private:
  template <int N>
  __attribute__((noinline)) void take(const vf (&v)[N], int first_token, int vocab) {
    if (broken_) return;
    if (count_ + N * W > ROOM) make_room(N * W);
    for (int j = 0; j < N; j++, first_token += W) {
      uint32_t mask = reaches(v[j], splat(bound_));
      if (first_token + W > vocab) mask &= (1u << std::max(0, vocab - first_token)) - 1;
      if ((broken_ = mask & reaches(v[j], splat(INFINITY)))) return;
      squeeze(logits_ + count_, v[j], mask);
      count_ += squeeze(tokens_ + count_, lane_numbers() + splat(first_token), mask);
    }
  }

  void make_room(int wanted) {
    raise_bound();
    if (count_ + wanted > ROOM) sort_out();
  }

  // To where not many more than `keep` reach it, by halving the range that it is in.
  void raise_bound() {
    if (count_ <= enough()) return;
    vf least = splat(INFINITY), most = splat(-INFINITY);
    fill_up(logits_[0]);
    for (int t = 0; t < count_; t += W) {
      least = vmin(least, load<vf>(logits_ + t));
      most = vmax(most, load<vf>(logits_ + t));
    }
    fill_up(-INFINITY);
    float low = -largest(-least), high = largest(most);
    for (int round = 0, reaching = count_; round < HALVINGS && reaching > enough(); round++) {
      float middle = low / 2 + high / 2;
      int n = count_of(middle);
      if (n >= keep_)
        low = middle, reaching = n;
      else
        high = middle;
    }
    bound_ = low;
    int kept = 0;
    for (int t = 0; t < count_; t += W) {
      uint32_t mask = reaches(load<vf>(logits_ + t), splat(low));
      if (t + W > count_) mask &= (1u << (count_ - t)) - 1;
      squeeze(logits_ + kept, load<vf>(logits_ + t), mask);
      kept += squeeze(tokens_ + kept, load<vi>(tokens_ + t), mask);
    }
    count_ = kept;
  }

  // To whole vectors.
  void fill_up(float logit) {
    for (int t = count_; t % W; t++) logits_[t] = logit;
  }

  // How many of the logits, which are filled up with -inf, are not below `bound`.
  int count_of(float bound) const {
    vi counts = splat(0);
    for (int t = 0; t < count_; t += W) counts -= load<vf>(logits_ + t) >= splat(bound);
    int32_t lanes[W], all = 0;
    store(lanes, counts);
    for (int32_t lane : lanes) all += lane;
    return all;
  }

  // Leaves exactly `keep`: many are equal.
  void sort_out() {
    Candidate all[ROOM];
    for (int i = 0; i < count_; i++) all[i] = {logits_[i], tokens_[i]};
    std::nth_element(all, all + keep_ - 1, all + count_);
    count_ = keep_;
    for (int i = 0; i < count_; i++) logits_[i] = all[i].logit, tokens_[i] = all[i].token;
    bound_ = all[keep_ - 1].logit;
  }

  int enough() const { return keep_ + 8; }  // fewer would take more halvings

  static constexpr int HALVINGS = 16;

  float bound_ = 0;
  int keep_ = 1, count_ = 0;
  bool broken_ = false;
  float logits_[ROOM + W];  // what is squeezed in may write W more
  int32_t tokens_[ROOM + W];
};

inline uint64_t mix64(uint64_t z) {  // SplitMix64's finaliser
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15ull;

// The argmax of scaled logit + Gumbel noise, offered in any order; the lowest token among equals.
//
// With u the row's uniform number, -log(-log u) <= -log(1 - u): most tokens cannot win whatever
// their exact noise, and cost one hash and one exp in fp32 instead of two logs in fp64.
class Race {
 public:
  Race(const Draw& draw, float best)
      : row_(mix64(draw.key + uint64_t(draw.step + 1) * GAMMA)), temperature_(draw.temperature), best_(best) {}

  double scaled(float logit) const { return double(logit - best_) / temperature_; }

  void run(const Candidate* from, size_t count) {
    constexpr int MANY = 64;
    for (size_t at = 0; at < count; at += MANY) {
      int n = int(std::min<size_t>(MANY, count - at));
      const Candidate* c = from + at;
      uint64_t random[MANY];
      float chance[MANY] = {};
      for (int i = 0; i < n; i++) random[i] = mix64(row_ + uint64_t(int64_t(c[i].token) + 1) * GAMMA) >> 12;
      for (int i = 0; i < n; i++) chance[i] = float(std::max(scaled(c[i].logit) - score_, -80.0));
      for (int i = 0; i < n; i += W) store(chance + i, vexp(load<vf>(chance + i)));
      for (int i = 0; i < n; i++) {
        float left = (float((1ull << 52) - random[i]) - 0.5f) * 0x1p-52f;  // 1 - u
        if (left * 0.9999f > chance[i]) continue;
        double uniform = (double(random[i]) + 0.5) * 0x1p-52;
        enter(scaled(c[i].logit) - std::log(-std::log(uniform)), c[i].token);
      }
    }
  }

  int32_t winner() const { return token_; }

 private:
  void enter(double score, int32_t token) {
    if (score > score_ || (score == score_ && token < token_)) {
      score_ = score;
      token_ = token;
    }
  }

  uint64_t row_;
  double temperature_;
  float best_;
  double score_ = -INFINITY;
  int32_t token_ = std::numeric_limits<int32_t>::max();
};

// Puts the best candidates that together reach top_p of `mass` first, and returns how many they are.
// Mostly they are few. Else it halves the range in which the last of them must be: a sort of the
// whole vocabulary takes longer than a step.
inline size_t nucleus(const Draw& draw, const Race& race, std::vector<Candidate>& from, double mass) {
  const double wanted = draw.top_p * mass;
  double reached = 0;
  auto first = from.begin(), last = from.end();
  const auto few = first + std::min<size_t>(from.size(), CANDIDATES);
  std::partial_sort(first, few, last);
  while (first != few && reached < wanted) reached += std::exp(race.scaled((first++)->logit));
  if (reached >= wanted) return first - from.begin();
  while (last - first > CANDIDATES) {
    auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last);
    double half = 0;
    for (auto c = first; c != middle; c++) half += std::exp(race.scaled(c->logit));
    if (reached + half >= wanted) {
      last = middle;
    } else {
      reached += half;
      first = middle;
    }
  }
  std::sort(first, last);
  while (first != last && reached < wanted) reached += std::exp(race.scaled((first++)->logit));
  return first - from.begin();
}

// Draws from candidates of which `from` holds all that may be drawn, in any order.
inline int32_t draw_from(const Draw& draw, std::vector<Candidate>& from) {
  if (from.empty()) return BROKEN;
  size_t keep = draw.temperature == 0 ? 1 : draw.top_k ? std::min(from.size(), size_t(draw.top_k)) : from.size();
  if (keep < from.size()) std::nth_element(from.begin(), from.begin() + keep, from.end());
  from.resize(keep);
  // which thread found which of them must not matter to a sum
  if (keep <= CANDIDATES && draw.top_p < 1) std::sort(from.begin(), from.end());
  auto best_first = [&] { std::iter_swap(from.begin(), std::min_element(from.begin(), from.end())); };
  best_first();
  if (from[0].logit == -INFINITY) return BROKEN;
  if (draw.temperature == 0) return from[0].token;
  Race race(draw, from[0].logit);
  if (draw.top_p < 1) {
    double mass = 0;
    for (const Candidate& c : from) mass += std::exp(race.scaled(c.logit));
    from.resize(nucleus(draw, race, from, mass));
    best_first();  // a fast runner sets the pace
  }
  race.run(from.data(), from.size());
  return race.winner();
}

// A row that needs more than its best CANDIDATES: top_k beyond them, or none.
inline int32_t draw_wide(const Draw& draw, const float* logits, int vocab, std::vector<Candidate>& all) {
  all.resize(vocab);
  for (int i = 0; i < vocab; i++) {
    if (!(logits[i] < INFINITY)) return BROKEN;
    all[i] = {logits[i], i};
  }
  return draw_from(draw, all);
}

}  // namespace slm
