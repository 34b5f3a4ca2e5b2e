// What the host sides of all CUDA operators share. No CUDA header, so that the host's compiler
// needs none for what calls this.
#pragma once

struct CUstream_st;

namespace vecsmith::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Number of devices; 0 without a driver.
int device_count();

// Makes a device current while this lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace vecsmith::cuda
