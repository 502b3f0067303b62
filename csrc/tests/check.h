// The smallest test harness that does: TEST registers a function, CHECK counts and reports.
#pragma once

#include <functional>
#include <iostream>
#include <string>
#include <vector>

namespace fastdistil::tests {

struct Test {
  std::string name;
  std::function<void()> body;
};

inline std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, std::function<void()> body) {
    all_tests().push_back({name, std::move(body)});
  }
};

inline bool check(bool passed, const char* file, int line, const std::string& what) {
  if (!passed) {
    ++failures();
    std::cerr << file << ":" << line << ": failed: " << what << "\n";
  }
  return passed;
}

}  // namespace fastdistil::tests

#define TEST(name)                                                                \
  static void test_##name();                                                      \
  static const ::fastdistil::tests::Register register_##name{#name, test_##name}; \
  static void test_##name()

// CHECK(condition) or CHECK(condition, explanation as a std::string).
#define CHECK(condition, ...)                                 \
  ::fastdistil::tests::check((condition), __FILE__, __LINE__, \
                             std::string(#condition " ") + std::string(__VA_ARGS__))
