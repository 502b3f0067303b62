// A function with a stack of its own, which runs until it gives way and goes on where it did.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace fastdistil::emulation {

class Fiber {
 public:
  // `body` must not throw. Nothing runs before the first resume().
  explicit Fiber(std::function<void()> body);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs the body until it gives way or ends. Not from inside a fiber.
  void resume();
  bool finished() const { return finished_; }

  // From inside the body: back to whoever resumed it.
  void give_way();

 private:
  struct Context;

  static void enter();

  std::function<void()> body_;
  std::unique_ptr<Context> context_;
  bool finished_ = false;
};

}  // namespace fastdistil::emulation
