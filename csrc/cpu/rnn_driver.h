// The driver of the recurrent layers: threads, packing, steps. The bindings call it.
#pragma once

#include "cpu/rnn.h"

namespace vecsmith {

// Both throw std::invalid_argument for batch_sizes that are not positive or increase.
// With few rows products are of floats, whatever the unit.
void rnn_forward(const Rnn& rnn, RnnUnit unit, int threads);
void rnn_backward(const Rnn& rnn, const RnnGrad& grad, RnnUnit unit, int threads);

}  // namespace vecsmith
