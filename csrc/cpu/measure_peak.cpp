#include "measure_peak.h"

#include <chrono>
#include <vector>

#include "thread_pool.h"

namespace fastdistil::cpu {

double measure_peak(const Kernels& kernels, int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr long kSteps = 100000;  // a fraction of a millisecond to a few
  std::vector<double> rates(threads);
  run_together(threads, [&](int rank, int) {
    double products = 0;
    const Clock::time_point start = Clock::now();
    double elapsed = 0;
    while (elapsed < seconds) {
      products += kernels.peak(kSteps);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    rates[rank] = products / elapsed;
  });
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace fastdistil::cpu
