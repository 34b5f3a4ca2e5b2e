// The matrix units of AMX: eight tiles of 16 rows of 64 bytes. Included by kernels alone.
//
// A test on a machine without them compiles the kernels with VECSMITH_EMULATED_TILES, which is the
// name of a header that has these functions in plain C++.
#pragma once

#include "cpu/simd.h"

#if defined(VECSMITH_EMULATED_TILES)
#include VECSMITH_EMULATED_TILES
#elif defined(__AMX_BF16__)

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr bool kTiles = true;

// Tiles 0 to 3 are sums of `rows` rows, 4 the left factor's rows, 5 to 7 words of the right one.
VECSMITH_INLINE void tile_configure(int rows) {
  struct alignas(64) {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = static_cast<uint8_t>(tile < 5 ? rows : 16);
  }
  // GCC's header says that this reads eight bytes: the others would not be written.
  __asm__ volatile("" : : "m"(config) : "memory");
  _tile_loadconfig(&config);
}
VECSMITH_INLINE void tile_release() { _tile_release(); }
// The number of a tile is part of an instruction, and compilers want it spelled out.
#define VECSMITH_EACH_TILE(action) \
  if constexpr (kTile == 0)        \
    action(0);                     \
  else if constexpr (kTile == 1)   \
    action(1);                     \
  else if constexpr (kTile == 2)   \
    action(2);                     \
  else if constexpr (kTile == 3)   \
    action(3);                     \
  else if constexpr (kTile == 4)   \
    action(4);                     \
  else if constexpr (kTile == 5)   \
    action(5);                     \
  else if constexpr (kTile == 6)   \
    action(6);                     \
  else                             \
    action(7);
template <int kTile>
VECSMITH_INLINE void tile_zero() {
#define VECSMITH_ACTION(n) _tile_zero(n)
  VECSMITH_EACH_TILE(VECSMITH_ACTION)
#undef VECSMITH_ACTION
}
template <int kTile>
VECSMITH_INLINE void tile_load(const void* rows, int64_t stride) {
#define VECSMITH_ACTION(n) _tile_loadd(n, rows, stride)
  VECSMITH_EACH_TILE(VECSMITH_ACTION)
#undef VECSMITH_ACTION
}
template <int kTile>
VECSMITH_INLINE void tile_store(void* rows, int64_t stride) {
#define VECSMITH_ACTION(n) _tile_stored(n, rows, stride)
  VECSMITH_EACH_TILE(VECSMITH_ACTION)
#undef VECSMITH_ACTION
}
#undef VECSMITH_EACH_TILE
// sums[m][n] += the sum over k of tile 4 [m][k] times right[k / 2][2 n + k % 2], 32 terms. The
// right factor of sums 0 to 3 is tile 5, 6, 7, 5.
template <int kTile>
VECSMITH_INLINE void tile_multiply_add() {
  if constexpr (kTile == 0)
    _tile_dpbf16ps(0, 4, 5);
  else if constexpr (kTile == 1)
    _tile_dpbf16ps(1, 4, 6);
  else if constexpr (kTile == 2)
    _tile_dpbf16ps(2, 4, 7);
  else
    _tile_dpbf16ps(3, 4, 5);
}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith

#else

namespace vecsmith {
namespace VECSMITH_LEVEL {
namespace {

constexpr bool kTiles = false;

VECSMITH_INLINE void tile_configure(int) {}
VECSMITH_INLINE void tile_release() {}
template <int>
VECSMITH_INLINE void tile_zero() {}
template <int>
VECSMITH_INLINE void tile_load(const void*, int64_t) {}
template <int>
VECSMITH_INLINE void tile_store(void*, int64_t) {}
template <int>
VECSMITH_INLINE void tile_multiply_add() {}

}  // namespace
}  // namespace VECSMITH_LEVEL
}  // namespace vecsmith

#endif
