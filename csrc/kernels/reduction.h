// How a loss goes from one value per item to what it returns.
#pragma once

#include <cstdint>

namespace fastmine {

enum class Reduction : std::uint8_t { mean, sum, none };

}  // namespace fastmine
