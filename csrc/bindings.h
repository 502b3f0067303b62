// What the files that know Python share.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>

// Defines the submodule "cuda"; in bindings_cuda.cpp, which is there if FASTDISTIL_HAVE_CUDA.
void bind_cuda(pybind11::module_& module);

namespace fastdistil {

template <class Value>
Value one_of(const char* argument, const std::string& name,
             const std::map<std::string, Value>& known) {
  const auto found = known.find(name);
  if (found != known.end()) return found->second;
  std::string names;
  for (const auto& entry : known) names += (names.empty() ? "" : ", ") + entry.first;
  throw std::invalid_argument(std::string(argument) + " is '" + name + "': supported are " + names);
}

template <class T>
T* address(std::uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

}  // namespace fastdistil
