// Integer helpers and the polynomials behind the float32 exp, erf and tanh of every instruction
// set.
#pragma once

#include <cstdint>

namespace bigkernels {

static inline constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static inline constexpr int64_t min_int(int64_t a, int64_t b) { return a < b ? a : b; }
static inline constexpr int64_t max_int(int64_t a, int64_t b) { return a > b ? a : b; }

constexpr float kLog2E = 1.44269504f;
// ln 2 in two parts: the high one has 9 significant bits, so its product with an exponent is exact.
constexpr float kLn2High = 0.693359375f;
constexpr float kLn2Low = -2.12194440e-4f;

// Minimax fits, lowest power first; the errors are those of the fit, relative to the result.
// exp(r) = 1 + r + r^2 P(r) on |r| <= ln 2 / 2, error 3e-9.
constexpr float kExpPolynomial[5] = {4.999999404e-01f, 1.666651964e-01f, 4.166840762e-02f,
                                     8.368899114e-03f, 1.381421927e-03f};
// 2^r = 1 + r P(r) on |r| <= 1/2, error 2e-9.
constexpr float kExp2Polynomial[6] = {6.931471825e-01f, 2.402264774e-01f, 5.550332367e-02f,
                                      9.618436918e-03f, 1.339887385e-03f, 1.535336196e-04f};
// log(1 + f) = f - f^2 / 2 + f^3 P(f) on sqrt(1/2) - 1 <= f <= sqrt(2) - 1 (Cephes' logf).
constexpr float kLogPolynomial[9] = {3.3333331174e-01f,  -2.4999993993e-01f, 2.0000714765e-01f,
                                     -1.6668057665e-01f, 1.4249322787e-01f,  -1.2420140846e-01f,
                                     1.1676998740e-01f,  -1.1514610310e-01f, 7.0376836292e-02f};
// erf(x) = x + x P(x^2) on |x| <= 0.93, error 2e-8.
constexpr float kErfSmallPolynomial[6] = {1.283791512e-01f,  -3.761247993e-01f, 1.128168255e-01f,
                                          -2.676171996e-02f, 4.985940177e-03f,  -5.953739164e-04f};
// 1 - erf(t) = exp(-t - t P(t)) on 0.9 <= t <= 4.05, error 1e-9.
constexpr float kErfLargePolynomial[7] = {1.286370754e-01f,  6.351980567e-01f, 1.061590463e-01f,
                                          -2.369456552e-02f, 3.610341810e-03f, -3.148580727e-04f,
                                          1.043310931e-05f};
// tanh(x) = x + x^3 P(x^2) on |x| <= 0.625, error 4e-9.
constexpr float kTanhPolynomial[5] = {-3.333328366e-01f, 1.333149076e-01f, -5.374349654e-02f,
                                      2.065057866e-02f, -5.717036780e-03f};

}  // namespace bigkernels
