// A fuzzer for where there is no libFuzzer: mutations of the target's seeds, without coverage, the
// same for the same numbers. On a find it says how to see it again.
//
//   fuzz_TARGET [iterations [first]]
#include <sanitizer/common_interface_defs.h>

#include <csignal>

#include "fuzz.h"

namespace {

uint64_t current = 0;

// SplitMix64.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t below(uint64_t n) { return next() % n; }
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// Bytes at which readers change their minds.
const std::string kTokens[] = {" ",
                               "\n",
                               "\r\n",
                               "\t",
                               std::string(1, '\0'),
                               "\xC3\xA9",
                               "\xF0\x9F\x90\xB1",
                               "\xE2\x82",
                               "\xED\xA0\x80",
                               "\xC0\xAF",
                               "\xF4\x90\x80\x80",
                               "\xFF",
                               "1e39",
                               "-nan",
                               "inf",
                               "0x1p3",
                               "+1",
                               "1e-50",
                               "a",
                               "aaaaaaaaaaaaaaaaa",
                               "4294967296",
                               "-1",
                               std::string(70, 'x'),
                               std::string(64, ' ')};

std::string mutate(const std::vector<std::string>& seeds, Random& random) {
  std::string text = seeds[random.below(seeds.size())];
  for (uint64_t steps = random.below(12); steps > 0; --steps) {
    const size_t at = random.below(text.size() + 1);
    switch (random.below(7)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(random.next());
        break;
      case 1:
        text.insert(at, 1, static_cast<char>(random.next()));
        break;
      case 2:
        text.insert(at, kTokens[random.below(std::size(kTokens))]);
        break;
      case 3:
        text.erase(at, random.below(text.size() + 1));
        break;
      case 4: {
        const std::string part = text.substr(at, random.below(40));
        for (uint64_t i = random.below(20); i > 0; --i) text.insert(at, part);
        break;
      }
      case 5: {
        const std::string& other = seeds[random.below(seeds.size())];
        text = text.substr(0, at) + other.substr(random.below(other.size() + 1));
        break;
      }
      case 6:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << random.below(8)));
        break;
    }
    if (text.size() > 4096) text.resize(4096);
  }
  return text;
}

void report() {
  std::fprintf(stderr, "found at iteration %llu: run with the arguments 1 %llu to see it again\n",
               static_cast<unsigned long long>(current), static_cast<unsigned long long>(current));
}

}  // namespace

int main(int argc, char** argv) {
  const uint64_t iterations = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 10000;
  const uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  __sanitizer_set_death_callback(report);
  std::signal(SIGABRT, [](int) { report(); });
  const std::vector<std::string> seeds = fuzz_seeds();
  for (current = first; current < first + iterations; ++current) {
    Random random(current * 0xD1342543DE82EF95ull);
    const std::string text = mutate(seeds, random);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(iterations));
  return 0;
}
