#include "fiber.h"

#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define FASTDISTIL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FASTDISTIL_ASAN 1
#endif
#endif

#if defined(FASTDISTIL_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
// swapcontext asks the kernel for the signal mask every time; a forward switches millions of times.
extern "C" void fastdistil_switch_stacks(void** left, void* entered);
asm(R"(
.text
.p2align 4
.hidden fastdistil_switch_stacks
.globl fastdistil_switch_stacks
.type fastdistil_switch_stacks, @function
fastdistil_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastdistil_switch_stacks, . - fastdistil_switch_stacks
)");
#endif

namespace fastdistil::emulation {

namespace {

// Sanitizers make frames several times as large.
constexpr std::size_t kStackBytes = std::size_t{256} << 10;

// Stacks of fibers that have ended, for the next ones.
struct StackPool {
  std::vector<void*> free;
  ~StackPool() {
    for (void* stack : free) std::free(stack);
  }
};
thread_local StackPool stacks;

void* take_stack() {
  if (!stacks.free.empty()) {
    void* stack = stacks.free.back();
    stacks.free.pop_back();
    return stack;
  }
  void* stack = std::aligned_alloc(4096, kStackBytes);
  if (stack == nullptr) throw std::bad_alloc();
  return stack;
}

void give_back(void* stack) {
#if defined(FASTDISTIL_ASAN)
  // An abandoned frame leaves its guards behind.
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
  stacks.free.push_back(stack);
}

}  // namespace

struct Fiber::Context {
  void* stack = take_stack();
#if defined(__x86_64__)
  void* inside = nullptr;
  void* outside = nullptr;
#else
  ucontext_t inside{};
  ucontext_t outside{};
#endif
  // What AddressSanitizer wants to know about whoever resumed the fiber.
  const void* outer_stack = nullptr;
  std::size_t outer_bytes = 0;
  void* fake_stack = nullptr;

  ~Context() { give_back(stack); }

  void switch_in() {
#if defined(FASTDISTIL_ASAN)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack, kStackBytes);
#endif
#if defined(__x86_64__)
    fastdistil_switch_stacks(&outside, inside);
#else
    swapcontext(&outside, &inside);
#endif
#if defined(FASTDISTIL_ASAN)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void switch_out(bool for_good) {
#if defined(FASTDISTIL_ASAN)
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, outer_stack, outer_bytes);
#else
    (void)for_good;
#endif
#if defined(__x86_64__)
    fastdistil_switch_stacks(&inside, outside);
#else
    swapcontext(&inside, &outside);
#endif
    arrived();
  }

  // The first thing to do inside, each time.
  void arrived() {
#if defined(FASTDISTIL_ASAN)
    __sanitizer_finish_switch_fiber(fake_stack, &outer_stack, &outer_bytes);
#endif
  }
};

namespace {
// Whose body `enter` is to run.
thread_local Fiber* entering = nullptr;
}  // namespace

Fiber::Fiber(std::function<void()> body)
    : body_(std::move(body)), context_(std::make_unique<Context>()) {
#if defined(__x86_64__)
  // What fastdistil_switch_stacks will pop: six registers, then where to return to. A function
  // expects the stack eight bytes off a multiple of sixteen.
  auto* top = reinterpret_cast<std::uintptr_t*>(static_cast<char*>(context_->stack) + kStackBytes);
  *--top = 0;
  *--top = reinterpret_cast<std::uintptr_t>(&Fiber::enter);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context_->inside = top;
#else
  getcontext(&context_->inside);
  context_->inside.uc_stack.ss_sp = context_->stack;
  context_->inside.uc_stack.ss_size = kStackBytes;
  context_->inside.uc_link = nullptr;
  makecontext(&context_->inside, &Fiber::enter, 0);
#endif
}

Fiber::~Fiber() = default;

void Fiber::resume() {
  entering = this;
  context_->switch_in();
}

void Fiber::give_way() { context_->switch_out(false); }

void Fiber::enter() {
  Fiber* fiber = entering;
  fiber->context_->arrived();
  fiber->body_();
  fiber->finished_ = true;
  fiber->context_->switch_out(true);
}

}  // namespace fastdistil::emulation
