# For 64-bit ARM Linux, by the clang in the package ziglang (a python3 that has it comes first on
# PATH). It brings its C and C++ libraries along: linked statically with musl, a program needs
# nothing of the system that it runs on, or that QEMU would otherwise have to be given.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER python3 -m ziglang c++)
set(CMAKE_CXX_COMPILER_TARGET aarch64-linux-musl)
# CMake's probes do not optimise. Were they linked, Zig would build its libraries that way, too.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
