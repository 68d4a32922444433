//! The number types the CPU code is generic over: `f32` to train, `f64` to check gradients.

use std::fmt::Debug;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point type the CPU backend can compute in.
pub trait Scalar:
    Copy
    + Default
    + Debug
    + PartialOrd
    + Send
    + Sync
    + Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// This value, exactly.
    fn to_f64(self) -> f64;
    /// `self * a + b` with one rounding.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// `e` to the power of this value.
    fn exp(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// The larger of two values.
    fn max(self, other: Self) -> Self;
    /// The smaller of two values.
    fn min(self, other: Self) -> Self;
}

macro_rules! scalar {
    ($t:ty, $exp:path, $erf:path) => {
        impl Scalar for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn mul_add(self, a: Self, b: Self) -> Self {
                <$t>::mul_add(self, a, b)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn erf(self) -> Self {
                $erf(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                <$t>::max(self, other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                <$t>::min(self, other)
            }
        }
    };
}

scalar!(f32, exp_f32, erf_f32);
scalar!(f64, f64::exp, libm::erf);

/// `erf` in f32 as `x P(x^2) / Q(x^2)` on [-4, 4], beyond which it is +-1 in this precision. Written without
/// branches so that loops over it become vector code; absolute error below 4e-7 (rational fit by reweighted
/// least squares, error of the fit 2e-9).
#[inline(always)]
fn erf_f32(x: f32) -> f32 {
    const P: [f32; 7] = [
        -1.320_220_6e-8,
        4.684_772e-6,
        3.796_087_4e-4,
        3.849_614_5e-3,
        5.431_692e-2,
        1.852_033e-1,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const Q: [f32; 6] =
        [6.311_053e-5, 1.307_570_3e-3, 1.546_209_5e-2, 1.139_584_5e-1, 4.974_655_7e-1, 1.0];
    let x = x.clamp(-4.0, 4.0);
    let t = x * x;
    let p = P.iter().skip(1).fold(P[0], |sum, &c| sum.mul_add(t, c));
    let q = Q.iter().skip(1).fold(Q[0], |sum, &c| sum.mul_add(t, c));
    (x * p / q).clamp(-1.0, 1.0)
}

/// `e^x` in f32 without branches: `2^n e^r` with `|r| <= ln 2 / 2` and the Taylor polynomial of degree 7, whose
/// remainder there is 5e-9. Below -87 the result is 0 in effect, above 88 it is capped.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const HIGH: f32 = 0.693_359_4; // ln 2 in two parts, so that x - n ln 2 is exact to the last bit
    const LOW: f32 = -2.121_944_4e-4;
    // Added to a small number it leaves the nearest integer in the lowest bits: no conversion, which would keep loops
    // from becoming vector code.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LOW, n.mul_add(-HIGH, x));
    const C: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let p = C.iter().skip(1).fold(C[0], |sum, &c| sum.mul_add(r, c));
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_and_exp_are_close_to_f64() {
        for i in -80_000..=80_000 {
            let x = i as f32 * 1e-4;
            assert!((f64::from(erf_f32(x)) - libm::erf(f64::from(x))).abs() < 5e-7, "erf({x})");
            let e = f64::from(x).exp();
            assert!((f64::from(exp_f32(x)) - e).abs() < 3e-7 * e, "exp({x})");
        }
        assert!(
            exp_f32(-1e30) < 1e-37 && exp_f32(1e30).is_finite() && erf_f32(f32::INFINITY) == 1.0
        );
    }
}
