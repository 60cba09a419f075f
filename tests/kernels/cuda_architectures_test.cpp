// Which devices the CUDA library would serve, by the list that it was compiled for.
#include "kernels/cuda/architectures.h"

#include "check.h"

int main() {
  using fastmine::cuda::architectures_name;
  using fastmine::cuda::architectures_serve;
  using fastmine::test::check;
  constexpr const char* kOurs = "80-real,86-real,90-real,90a-real,80-virtual,100-real,120-real";
  for (const int capability : {80, 86, 87, 89, 90, 100, 103, 120}) {
    check(architectures_serve(kOurs, capability), "ours serve " + std::to_string(capability));
  }
  for (const int capability : {70, 75, 61}) {
    check(!architectures_serve(kOurs, capability), "ours do not serve " + std::to_string(capability));
  }
  check(architectures_serve("90a-real", 90) && !architectures_serve("90a-real", 100), "code for one device alone");
  check(!architectures_serve("90a-virtual", 100), "PTX with features of one device alone");
  check(architectures_serve("100f-real", 103) && !architectures_serve("100f-real", 120), "code for a family");
  check(!architectures_serve("80-real", 90) && architectures_serve("80-virtual", 90), "code and PTX");
  check(architectures_serve("80", 86) && architectures_serve("80", 120) && !architectures_serve("80", 75), "both");
  check(architectures_serve("86-real,75", 75), "any of several");
  check(architectures_serve("native", 75) && !architectures_serve("", 90), "no number, and nothing");
  check(architectures_name(kOurs, "90a") && architectures_name("90a", "90a"), "Hopper's own code");
  check(!architectures_name("80-real,90-real,90-virtual", "90a") && !architectures_name("native", "90a"),
        "but not 90's");
  return fastmine::test::report();
}
