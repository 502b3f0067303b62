// A prepared encoder: packed weights and the way to run them. Immutable; any number of threads may
// call run() at once.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"
#include "pack.h"

namespace fastdistil::cpu {

class Encoder {
 public:
  Encoder(const Kernels& kernels, const Shape& shape, const WeightSource& weights);

  // Throws std::invalid_argument, naming the argument, before anything is computed when an id, a
  // position or a segment is outside its table or cu_seqlens is not a partition of the tokens.
  void run(const Batch& batch, int threads) const;

  const Kernels& kernels() const { return kernels_; }

 private:
  void validate(const Batch& batch) const;
  std::unique_ptr<Workspace> borrow() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;

  const Kernels& kernels_;
  Model model_;
  // Workspaces that no call is using. Not guarded across fork: see borrow().
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace fastdistil::cpu
