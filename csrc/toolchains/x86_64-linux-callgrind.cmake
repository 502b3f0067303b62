# For valgrind's callgrind on 64-bit x86 Linux, by the clang in the package ziglang (see
# aarch64-linux.cmake): with its C and C++ libraries linked in, the same instructions on every machine.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_CXX_COMPILER python3 -m ziglang c++)
set(CMAKE_CXX_COMPILER_TARGET x86_64-linux-musl)
set(CMAKE_CXX_FLAGS_INIT -gline-tables-only)
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
# valgrind knows AVX2 and FMA, and nothing newer.
foreach(isa AVX2_INT8 AVX512_FP32 AVX512_BF16 AVX512_INT8 AVX512_INT8_BF16 AMX_BF16 AMX_INT8)
  set(FASTDISTIL_COMPILES_${isa} OFF)
endforeach()
