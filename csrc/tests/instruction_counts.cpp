// Forwards of a small model, whose instructions tests/instruction_counts.py has counted, with each
// kernel table: one sentence of 16 tokens to its states, 16 sentences to their vectors, by the mean
// of all tokens and by the first alone, for which the last layer has less to compute.
//
//     fastdistil_instruction_counts          prints the cases, one a line
//     fastdistil_instruction_counts CASE     runs it, and fails where its states are wrong
#include <cstring>
#include <iostream>

#include "compare.h"

namespace fastdistil::tests {

// What is counted, by its name: one forward, and its output's memory.
extern "C" [[gnu::noinline]] void counted_forward(const cpu::Encoder& encoder,
                                                  const cpu::Shape& shape, const Sequences& s,
                                                  cpu::Pooling pooling) {
  run(encoder, shape, s, 1, pooling, true);
}

namespace {

struct Workload {
  const char* name;
  std::vector<int> lengths;
  cpu::Pooling pooling;
};

// More tokens than a chunk has rows.
const std::vector<int> kSixteen = {12, 5, 31, 18, 9, 24, 14, 47, 20, 7, 28, 16, 22, 11, 64, 35};

const Workload kWorkloads[] = {
    {"1 x 16", {16}, cpu::Pooling::kNone},
    {"16 pooled", kSixteen, cpu::Pooling::kMean},
    {"16 first", kSixteen, cpu::Pooling::kCls},
};

std::string case_name(const cpu::Kernels& kernels, const Workload& workload) {
  return std::string(kernels.isa) + " " + kernels.precision + ", " + workload.name;
}

// Root mean square, over the largest magnitude: int8 itself costs 4e-3, a forgotten bias 2e-2.
double allowed_error(const cpu::Kernels& kernels) {
  return std::strcmp(kernels.precision, "fp32") == 0 ? 1e-6 : 1e-2;
}

int run_case(const cpu::Kernels& kernels, const Workload& workload) {
  const cpu::Shape shape = make_shape(64, 2, 256, 2, 0, cpu::Activation::kGelu);
  const Weights weights = random_weights(shape, 1);
  const Sequences s = random_sequences(shape, workload.lengths, 2);
  const cpu::Encoder encoder = make_encoder(kernels, shape, weights);
  // The first forward also takes the memory that later ones find there.
  const Error error =
      error_of(run(encoder, shape, s, 1), oracle_forward(shape, weights, s, Format::kExact));
  if (!(error.root_mean < allowed_error(kernels))) {
    std::cerr << case_name(kernels, workload) << " is wrong: " << to_string(error) << "\n";
    return 1;
  }
  counted_forward(encoder, shape, s, workload.pooling);
  return 0;
}

}  // namespace
}  // namespace fastdistil::tests

int main(int argc, char** argv) {
  using namespace fastdistil::tests;
  for (const fastdistil::cpu::Kernels* kernels : kernels_under_test()) {
    for (const Workload& workload : kWorkloads) {
      if (argc == 1) {
        std::cout << case_name(*kernels, workload) << "\n";
      } else if (case_name(*kernels, workload) == argv[1]) {
        return run_case(*kernels, workload);
      }
    }
  }
  if (argc == 1) return 0;
  std::cerr << "there is no case " << argv[1] << " here\n";
  return 2;
}
