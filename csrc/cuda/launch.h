// Launching a kernel: on a stream of a GPU, or in the emulation.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "device.h"

namespace fastdistil::cuda {

// A cudaStream_t, as a number so that callers need not know CUDA; 0 is the default stream.
using Stream = std::uintptr_t;

// A launch or an allocation that the driver refused; what it said is in the message.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct LaunchShape {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
  // All blocks are on the GPU at once, or the launch is refused.
  bool cooperative = false;
  // It may start before the kernel before it has ended (from Hopper on): it then calls
  // wait_for_the_launch_before().
  bool dependent = false;
};

#if defined(__CUDACC__)

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  (void)cudaGetLastError();  // it is told; the next call starts clean
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
            Stream stream, Arguments&&... arguments) {
  if (shape.shared_bytes > 48u << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          name);
  }
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  if (shape.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (shape.dependent) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

#else

template <class... Parameters, class... Arguments>
void launch(const char*, void (*kernel)(Parameters...), const LaunchShape& shape, Stream,
            Arguments&&... arguments) {
  emulation::launch({shape.grid, shape.block, shape.shared_bytes, shape.cooperative},
                    [&] { kernel(arguments...); });
}

#endif

// What a dependent launch does before it touches what earlier launches wrote or read.
FASTDISTIL_DEVICE void wait_for_the_launch_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// And how it lets the next one start: once all its blocks have come here or ended.
FASTDISTIL_DEVICE void allow_the_next_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace fastdistil::cuda
