// The kernels of the CPU, as the tests take them.
#include "check.h"
#include "kernels/selective_terms.h"
#include "kernels/triplet_loss.h"
#include "kernels/triplet_terms.h"

namespace fastmine::test {

const bool kEmulated = false;

Tables tables() {
  Tables found;
  for (std::size_t i = 0; const cpu::KernelTable* table = cpu::compiled(i); ++i) {
    if (cpu::supported(*table)) {
      found.push_back(table);
    } else {
      std::printf("SKIPPED %s: not on this CPU\n", table->isa);
    }
  }
  return found;
}

int launches() { return 0; }
void triplet_loss(const TripletLoss& problem) { cpu::triplet_loss(problem); }
void triplet_terms(const TripletTerms& problem) { cpu::triplet_terms(problem); }
void selective_terms(const SelectiveTerms& problem) { cpu::selective_terms(problem); }

}  // namespace fastmine::test
