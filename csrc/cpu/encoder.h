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
  // An encoder with equal weights: it shares what is packed, but reads embedding tables of its own.
  Encoder(const Encoder& twin, const WeightSource& tables);

  // Throws std::invalid_argument, naming the argument, before anything is computed when an id, a
  // position or a segment is outside its table, cu_seqlens is not a partition of the tokens, or
  // rows are not some of them.
  // `parts`: where not null, each part's seconds are added, summed over the threads.
  void run(const Batch& batch, int threads, PartSeconds* parts = nullptr) const;

  const Kernels& kernels() const { return kernels_; }
  // Memory that the packed weights take; the embedding tables are the caller's.
  std::size_t packed_bytes() const { return model_.packed->bytes(); }

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
