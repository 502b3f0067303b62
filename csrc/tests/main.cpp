// Runs every registered test, or those whose name contains the first argument.
#include "check.h"

int main(int argc, char** argv) {
  using namespace fastdistil::tests;
  int failed_tests = 0, run = 0;
  for (const Test& test : all_tests()) {
    if (argc > 1 && test.name.find(argv[1]) == std::string::npos) continue;
    const int before = failures();
    try {
      test.body();
    } catch (const std::exception& error) {
      check(false, test.name.c_str(), 0, std::string("uncaught: ") + error.what());
    }
    ++run;
    const bool failed = failures() != before;
    failed_tests += failed;
    std::cout << (failed ? "FAILED " : "ok     ") << test.name << "\n";
  }
  const std::string path = argv[0];
  std::cout << path.substr(path.rfind('/') + 1) << ": " << run - failed_tests << " passed, "
            << failed_tests << " failed\n";
  return failed_tests == 0 && run > 0 ? 0 : 1;
}
