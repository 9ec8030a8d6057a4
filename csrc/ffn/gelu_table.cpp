#include "ffn/gelu_table.h"

#include <cmath>

namespace bigkernels {
namespace {

double tail(FfnActivation activation, double t) {
  if (activation == FfnActivation::kGelu) return 0.5 * t * std::erfc(t / std::sqrt(2.0));
  const double inner = std::sqrt(2 / M_PI) * (t + 0.044715 * t * t * t);
  return t / (1 + std::exp(2 * inner));
}

// The cubic through g at the four points of a segment that spread the error evenly (Chebyshev's).
void fit(FfnActivation activation, double middle, double* terms) {
  constexpr int n = GeluTable::kTerms;
  double points[n], slopes[n];
  for (int i = 0; i < n; ++i) {
    points[i] = 0.5 * std::cos(M_PI * (i + 0.5) / n);
    // g as it goes on to the left of 0, where the first segment reaches.
    slopes[i] = tail(activation, middle + GeluTable::kStep * points[i]);
  }
  for (int order = 1; order < n; ++order) {  // Newton's divided differences
    for (int i = n - 1; i >= order; --i) {
      slopes[i] = (slopes[i] - slopes[i - 1]) / (points[i] - points[i - order]);
    }
  }
  for (int i = 0; i < n; ++i) terms[i] = 0;
  for (int order = n - 1; order >= 0; --order) {  // Horner's rule on polynomials
    for (int i = n - 1; i > 0; --i) terms[i] = terms[i - 1] - points[order] * terms[i];
    terms[0] = slopes[order] - points[order] * terms[0];
  }
}

GeluTable table_of(FfnActivation activation) {
  GeluTable table;
  for (int segment = 0; segment < GeluTable::kSegments; ++segment) {
    double terms[GeluTable::kTerms];
    fit(activation, segment * static_cast<double>(GeluTable::kStep), terms);
    for (int i = 0; i < GeluTable::kTerms; ++i) {
      table.terms[i][segment] = static_cast<float>(terms[i]);
    }
  }
  table.terms[0][0] = 0;  // as g(0) is
  return table;
}

}  // namespace

const GeluTable& gelu_table(FfnActivation activation) {
  static const GeluTable exact = table_of(FfnActivation::kGelu);
  static const GeluTable tanh = table_of(FfnActivation::kGeluTanh);
  return activation == FfnActivation::kGelu ? exact : tanh;
}

}  // namespace bigkernels
