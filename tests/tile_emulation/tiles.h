// Stands where csrc/cpu/tiles.h has the instructions of AMX, so that tests run the code for them on
// any processor with vectors as wide as a tile's rows. What the hardware would fault on ends the
// process here: no configuration, a row that is not configured.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr bool kTiles = true;

struct Tiles {
  int rows = 0;  // of sums and left factors; 0: not configured
  uint32_t words[8][16][16];
};
inline thread_local Tiles tiles;

inline int configured_rows(int tile) {
  if (tiles.rows == 0) {
    std::fprintf(stderr, "a tile is used, and none is configured\n");
    std::abort();
  }
  return tile < 5 ? tiles.rows : 16;
}
inline void tile_configure(int rows) {
  if (rows < 1 || rows > 16) std::abort();
  tiles.rows = rows;
  std::memset(tiles.words, 0, sizeof tiles.words);
}
inline void tile_release() { tiles.rows = 0; }
template <int kTile>
void tile_zero() {
  configured_rows(kTile);
  std::memset(tiles.words[kTile], 0, sizeof tiles.words[kTile]);
}
template <int kTile>
void tile_load(const void* rows, int64_t stride) {
  for (int r = 0; r < configured_rows(kTile); ++r)
    std::memcpy(tiles.words[kTile][r], static_cast<const char*>(rows) + r * stride, 64);
}
template <int kTile>
void tile_store(void* rows, int64_t stride) {
  for (int r = 0; r < configured_rows(kTile); ++r)
    std::memcpy(static_cast<char*>(rows) + r * stride, tiles.words[kTile][r], 64);
}
inline float tile_half(uint32_t word, int odd) {
  const uint32_t bits = odd ? word & 0xffff0000u : word << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
template <int kTile>
void tile_multiply_add() {
  constexpr int kRight = kTile == 3 ? 5 : 5 + kTile;
  for (int m = 0; m < configured_rows(kTile); ++m)
    for (int n = 0; n < 16; ++n) {
      float sum;
      std::memcpy(&sum, &tiles.words[kTile][m][n], 4);
      for (int k = 0; k < 16; ++k)
        for (int odd = 0; odd < 2; ++odd)
          sum += tile_half(tiles.words[4][m][k], odd) * tile_half(tiles.words[kRight][k][n], odd);
      std::memcpy(&tiles.words[kTile][m][n], &sum, 4);
    }
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith
