#include "io/sampling_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>

namespace vecsmith::io {
namespace {

constexpr int64_t kFull = int64_t{1} << 31;  // one bucket, in units

// Weights as whole units that sum to size * 2^31.
std::vector<int64_t> units_of(const int64_t* counts, int64_t size, double exponent) {
  std::vector<double> weights(size, 0.0);
  double total = 0.0;
  for (int64_t i = 0; i < size; ++i) {
    if (counts[i] < 0) throw std::invalid_argument("a count is negative");
    if (counts[i] > 0) weights[i] = std::pow(static_cast<double>(counts[i]), exponent);
    total += weights[i];
  }
  if (!(total > 0.0) || !std::isfinite(total))
    throw std::invalid_argument(
        "no word can be drawn: the counts' powers do not sum to a positive number");
  const double scale = static_cast<double>(size) * static_cast<double>(kFull) / total;
  std::vector<int64_t> units(size);
  int64_t missing = size * kFull, largest = 0;
  for (int64_t i = 0; i < size; ++i) {
    units[i] = static_cast<int64_t>(weights[i] * scale);
    missing -= units[i];
    if (units[i] > units[largest]) largest = i;
  }
  // What rounding down left over: a unit for each word that can be drawn, and the rest (more than
  // one round only if the sum itself was rounded) to the most frequent.
  for (int64_t i = 0; i < size && missing > 0; ++i)
    if (counts[i] > 0) ++units[i], --missing;
  units[largest] += missing;
  return units;
}

}  // namespace

void alias_table(const int64_t* counts, int64_t size, double exponent, int32_t* table) {
  if (size == 0) return;
  if (size >= kFull) throw std::length_error("more than 2^31 words");
  std::vector<int64_t> units = units_of(counts, size, exponent);
  // One array for both lists: buckets to fill up from the left, words with units to give from the
  // right.
  std::vector<int32_t> work(size);
  int64_t poor = 0, rich = size;
  for (int64_t i = 0; i < size; ++i)
    work[units[i] < kFull ? poor++ : --rich] = static_cast<int32_t>(i);
  while (poor > 0) {
    // Units are whole and sum to size * 2^31: while one lacks some, another has too many.
    const int32_t taker = work[--poor], giver = work[rich];
    table[2 * int64_t{taker}] = static_cast<int32_t>(units[taker]);
    table[2 * int64_t{taker} + 1] = giver;
    units[giver] -= kFull - units[taker];
    if (units[giver] < kFull) {
      ++rich;
      work[poor++] = giver;
    }
  }
  for (; rich < size; ++rich) {
    const int32_t full = work[rich];
    table[2 * int64_t{full}] =
        static_cast<int32_t>(kFull - 1);  // 2^31 does not fit: the alias is itself
    table[2 * int64_t{full} + 1] = full;
  }
}

HuffmanTree huffman_tree(const int64_t* counts, int64_t size) {
  HuffmanTree tree;
  tree.offsets.assign(size + 1, 0);
  if (size < 2) return tree;
  if (size >= kFull / 2) throw std::length_error("more than 2^30 words");

  // Nodes: 0..size-1 are the words by falling count, then the inner nodes in the order they are
  // made.
  std::vector<int32_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  const auto falling = [&](int32_t a, int32_t b) { return counts[a] > counts[b]; };
  if (!std::is_sorted(order.begin(), order.end(), falling))
    std::stable_sort(order.begin(), order.end(), falling);
  const int64_t inner = size - 1;
  std::vector<int64_t> weight(size + inner, std::numeric_limits<int64_t>::max());
  for (int64_t i = 0; i < size; ++i) weight[i] = counts[order[i]];
  std::vector<int32_t> parent(size + inner, 0);
  std::vector<uint8_t> branch(size + inner, 0);

  int64_t word = size - 1, made = size;  // the least of either kind
  const auto least = [&] { return word >= 0 && weight[word] < weight[made] ? word-- : made++; };
  for (int64_t node = size; node < size + inner; ++node) {
    const int64_t first = least(), second = least();
    weight[node] = weight[first] + weight[second];
    parent[first] = parent[second] = static_cast<int32_t>(node);
    branch[second] = 1;
  }

  const int64_t root = size + inner - 1;
  std::vector<int32_t> depth(size + inner, 0);
  for (int64_t node = root - 1; node >= 0; --node) depth[node] = depth[parent[node]] + 1;
  for (int64_t i = 0; i < size; ++i) tree.offsets[order[i] + 1] = depth[i];
  std::partial_sum(tree.offsets.begin(), tree.offsets.end(), tree.offsets.begin());
  tree.nodes.resize(tree.offsets[size]);
  tree.codes.resize(tree.offsets[size]);
  for (int64_t i = 0; i < size; ++i) {
    int64_t at = tree.offsets[order[i] + 1];
    for (int64_t node = i; node != root; node = parent[node]) {
      --at;
      tree.nodes[at] = static_cast<int32_t>(parent[node] - size);
      tree.codes[at] = branch[node];
    }
  }
  return tree;
}

}  // namespace vecsmith::io
