// The skip-gram kernels: whatever the settings, every level of this machine stays inside its tables
// and arrays, gives finite results that agree with the portable level's, and in shards gives the
// same bits for any number of workers.
#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>
#include <cstring>
#include <numeric>

#include "cpu/skipgram.h"
#include "fuzz.h"

#ifdef _OPENMP
// Else a machine of two processors would never have teams of four.
extern "C" int omp_get_num_procs() noexcept { return 4; }
#endif

namespace {

using vecsmith::Isa;
using vecsmith::SkipgramJob;

// Memory of just that size: one too far is an error that is seen.
template <class T>
class Array {
 public:
  explicit Array(int64_t size) : size_(size), values_(new T[static_cast<size_t>(size)]) {}
  explicit Array(const std::vector<T>& from) : Array(static_cast<int64_t>(from.size())) {
    std::copy(from.begin(), from.end(), values_.get());
  }
  T* data() const { return values_.get(); }
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  std::unique_ptr<T[]> values_;
};

// SplitMix64, for what there is too much of to be taken from the input.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-24f; }

 private:
  uint64_t state_;
};

constexpr float kUntouched = 12345.0f;

// Rows with something between them that must stay as it is.
std::vector<float> make_table(int64_t rows, int64_t dim, int64_t stride, Random& random) {
  std::vector<float> table(static_cast<size_t>(rows == 0 ? 0 : (rows - 1) * stride + dim),
                           kUntouched);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t d = 0; d < dim; ++d)
      table[static_cast<size_t>(row * stride + d)] =
          (random.uniform() - 0.5f) / std::sqrt(static_cast<float>(dim));
  return table;
}

void check_table(const Array<float>& table, int64_t dim, int64_t stride) {
  for (int64_t at = 0; at < table.size(); ++at) {
    const float value = table.data()[at];
    if (at % stride < dim)
      FUZZ_CHECK(std::isfinite(value) && std::abs(value) < 1e4f);
    else
      FUZZ_CHECK(value == kUntouched);
  }
}

// A binary tree over the words, as Huffman's: balanced at random, or one long branch.
struct Tree {
  std::vector<int64_t> offsets{0};
  std::vector<int32_t> nodes;
  std::vector<uint8_t> codes;

  Tree(int64_t words, bool branch, Random& random) {
    std::vector<int64_t> open(static_cast<size_t>(words)), parent(static_cast<size_t>(2 * words));
    std::vector<uint8_t> code(static_cast<size_t>(2 * words));
    std::iota(open.begin(), open.end(), 0);
    for (int64_t inner = words; open.size() > 1; ++inner) {
      for (uint8_t side = 0; side < 2; ++side) {
        const auto at = branch ? static_cast<int64_t>(open.size()) - 1
                               : random.below(static_cast<int64_t>(open.size()));
        const auto child = static_cast<size_t>(open[static_cast<size_t>(at)]);
        open.erase(open.begin() + at);
        parent[child] = inner;
        code[child] = side;
      }
      open.push_back(inner);
    }
    for (int64_t word = 0; word < words; ++word) {
      std::vector<int32_t> up;
      std::vector<uint8_t> turns;
      for (int64_t node = word; node != 2 * words - 2; node = parent[static_cast<size_t>(node)]) {
        up.push_back(static_cast<int32_t>(parent[static_cast<size_t>(node)] - words));
        turns.push_back(code[static_cast<size_t>(node)]);
      }
      nodes.insert(nodes.end(), up.rbegin(), up.rend());
      codes.insert(codes.end(), turns.rbegin(), turns.rend());
      offsets.push_back(static_cast<int64_t>(nodes.size()));
    }
  }
};

struct Outcome {
  std::vector<Array<float>> tables;
  double result[2] = {-1, -1};  // loss, terms
};

bool same_bits(const Outcome& a, const Outcome& b) {
  for (size_t t = 0; t < a.tables.size(); ++t)
    if (a.tables[t].size() > 0 &&
        std::memcmp(a.tables[t].data(), b.tables[t].data(),
                    static_cast<size_t>(a.tables[t].size()) * sizeof(float)) != 0)
      return false;
  return std::memcmp(a.result, b.result, sizeof a.result) == 0;
}

// One call, on copies of the tables.
Outcome train(SkipgramJob job, const std::vector<float> (&tables)[3], int64_t pairs, int threads,
              int64_t sync) {
  Outcome out;
  for (int t = 0; t < 3; ++t) {
    out.tables.emplace_back(tables[t]);
    if (job.table[t]) job.table[t] = out.tables.back().data();
  }
  if (job.tokens)
    vecsmith::skipgram_run(job, threads, sync, out.result);
  else
    vecsmith::skipgram_pairs_run(job, pairs, threads, sync, out.result);
  for (int t = 0; t < 3; ++t)
    if (job.table[t]) check_table(out.tables[static_cast<size_t>(t)], job.dim, job.stride[t]);
  FUZZ_CHECK(std::isfinite(out.result[0]) && out.result[0] >= 0 && out.result[1] >= 0);
  if (!job.compute_loss) FUZZ_CHECK(out.result[0] == 0);
  return out;
}

void check_levels(const SkipgramJob& job, const std::vector<float> (&tables)[3], int64_t pairs,
                  int threads, int64_t sync) {
  double base[2] = {};
  for (const Isa level : {Isa::base, Isa::avx2, Isa::avx512, Isa::avx512_bf16, Isa::amx}) {
    if (!vecsmith::isa_supported(level)) continue;
    vecsmith::set_isa_level(vecsmith::isa_name(level));
    const Outcome out = train(job, tables, pairs, threads, sync);
    if (sync > 0) FUZZ_CHECK(same_bits(out, train(job, tables, pairs, threads == 1 ? 2 : 1, sync)));
    if (level == Isa::base) std::copy_n(out.result, 2, base);
    FUZZ_CHECK(out.result[1] == base[1]);
    // Races of workers on one machine's rows are part of the bargain; else only roundings differ.
    if (sync > 0 || threads == 1)
      FUZZ_CHECK(std::abs(out.result[0] - base[0]) <= 1e-3 * base[0] + 1e-3);
  }
}

}  // namespace

// Settings at random: a mutation changes some of them, and the numbers that follow from their sum.
std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds(256);
  Random random(1);
  for (std::string& seed : seeds)
    for (int i = 0; i < 40; ++i) seed.push_back(static_cast<char>(random.next()));
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint64_t sum = size;
  for (size_t i = 0; i < size; ++i) sum = Random(sum + data[i]).next();
  Random random(sum);
  Input input(data, size);
  const auto flag = [&] { return input.number(0, 1) == 1; };
  const auto number = [&](int64_t low, int64_t high) {
    return static_cast<int64_t>(
        input.number(static_cast<uint64_t>(low), static_cast<uint64_t>(high)));
  };
  SkipgramJob job{};
  const bool text = number(0, 3) > 0;
  job.dim = number(1, 130);
  if (number(0, 15) == 0) job.dim += 512;
  job.vocabulary = number(1, 60);
  const int64_t output_rows = text ? job.vocabulary : number(1, 60);
  const int64_t rows[3] = {job.vocabulary, output_rows, job.vocabulary - 1};
  job.negative = static_cast<int32_t>(flag() ? number(0, 6) : number(0, 30));
  job.window = text ? static_cast<int32_t>(flag() ? number(1, 5) : number(1, 40)) : 1;
  job.cbow = text && number(0, 3) == 0;
  job.cbow_mean = flag();
  job.shrink_windows = flag();
  job.shared_negatives = !text || flag();
  job.compute_loss = flag();
  const bool tree = text && (job.negative == 0 || number(0, 2) == 0);
  const bool branch = flag();
  const bool keep = flag();
  const bool alone = number(0, 7) == 0;
  const auto threads = static_cast<int>(number(1, 4));
  const int64_t sync = flag() ? 0 : number(1, 100);
  std::vector<float> tables[3];
  for (int t = 0; t < 3; ++t) {
    job.stride[t] = job.dim + (flag() ? number(0, 20) : 0);
    if (t == vecsmith::kOutput && text && job.negative == 0) continue;
    if (t == vecsmith::kTree && !tree) continue;
    tables[t] = make_table(rows[t], job.dim, job.stride[t], random);
    // Where a table is; train() puts a copy there.
    job.table[t] = tables[t].data();
    static float none;
    if (!job.table[t]) job.table[t] = &none;
  }
  job.alpha = 0.025;
  job.rate_start = 0.025;
  job.rate_slope = -1e-5;
  job.rate_least = 1e-4;
  job.key_subsample = vecsmith::skipgram_key(sum, 0, 0);
  job.key_window = vecsmith::skipgram_key(sum, 0, 1);
  job.key_negative = vecsmith::skipgram_key(sum, 0, 2);
  job.first_position = number(0, 255) << number(0, 40);

  // With the sanitizers an input should take some milliseconds.
  const int64_t outputs = job.negative + (tree ? 8 : 1);
  int64_t room = 1'000'000 / (job.dim * outputs * (job.cbow ? 1 : job.window)) + 3;

  const Tree paths(job.vocabulary, branch, random);
  const Array<int64_t> path_offsets(paths.offsets);
  const Array<int32_t> path_nodes(paths.nodes);
  const Array<uint8_t> path_codes(paths.codes);
  if (tree) {
    job.path_offsets = path_offsets.data();
    job.path_nodes = path_nodes.data();
    job.path_codes = path_codes.data();
  }
  Array<float> keeping(job.vocabulary);
  const float rarely = flag() ? 0.05f : 0.5f;
  for (int64_t w = 0; w < job.vocabulary; ++w) keeping.data()[w] = rarely + random.uniform();
  if (keep) job.keep = keeping.data();
  Array<int32_t> alias(2 * job.vocabulary);
  for (int64_t w = 0; w < job.vocabulary; ++w) {
    alias.data()[2 * w] = static_cast<int32_t>(random.next() >> 33);
    alias.data()[2 * w + 1] = static_cast<int32_t>(random.below(job.vocabulary));
  }
  if (text && job.negative) job.alias = alias.data();

  std::vector<int64_t> offsets{text ? number(0, 3) : 0};
  for (int64_t more = !text ? 0 : flag() ? number(0, 2) : number(0, 12); more > 0; --more) {
    const int64_t kind = number(0, 5);
    int64_t length = kind < 3 ? kind : kind < 5 ? number(0, 60) : number(0, 255) * 40;
    length = std::min(length, room);
    room -= length;
    offsets.push_back(offsets.back() + length);
  }
  const Array<int64_t> sentences(offsets);
  const Array<int32_t> tokens(offsets.back());
  for (int64_t i = 0; i < tokens.size(); ++i)
    tokens.data()[i] = static_cast<int32_t>(random.below(job.vocabulary));
  const int64_t pairs = text ? 0 : std::min(number(0, 255) * (flag() ? 1 : 40), room);
  const Array<int64_t> centers(pairs), contexts(pairs), negatives(pairs * job.negative);
  for (int64_t i = 0; i < pairs; ++i) {
    centers.data()[i] = random.below(job.vocabulary);
    contexts.data()[i] = random.below(output_rows);
  }
  for (int64_t i = 0; i < negatives.size(); ++i)
    negatives.data()[i] = random.below(output_rows + 1) - 1;
  if (text) {
    job.tokens = tokens.data();
    job.offsets = sentences.data();
    job.sentences = static_cast<int64_t>(offsets.size()) - 1;
  } else {
    job.vocabulary = std::max(job.vocabulary, output_rows);
    job.centers = centers.data();
    job.contexts = contexts.data();
    job.negatives = negatives.data();
  }
  // Sometimes OpenMP gives a single thread, whatever is asked for.
#ifdef _OPENMP
  omp_set_max_active_levels(alone ? 0 : 1);
#else
  (void)alone;
#endif
  check_levels(job, tables, pairs, threads, sync);
  return 0;
}
