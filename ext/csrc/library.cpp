// The schemas. `smooth` is box(a^(order)(x) * factor), `smooth_adjoint` is a^(order)(x) * factor * box^T(gradient),
// with a(x) = relu(t tanh(x / t)); an absent factor is 1. Their derivatives are these two again, of order + 1.
// `smooth_adjoint_tangent` is the derivative of the latter at order 1 along (dx, dgradient), its two terms in one pass.
#include <torch/library.h>

TORCH_LIBRARY(landscope, library) {
  library.def("smooth(Tensor x, Tensor? factor, int order, float temperature) -> Tensor", {at::Tag::pt2_compliant_tag});
  library.def("smooth_adjoint(Tensor x, Tensor? factor, Tensor gradient, int order, float temperature) -> Tensor",
              {at::Tag::pt2_compliant_tag});
  library.def("smooth_adjoint_tangent(Tensor x, Tensor dx, Tensor gradient, Tensor dgradient, float temperature) -> Tensor",
              {at::Tag::pt2_compliant_tag});
}
