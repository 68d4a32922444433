//! Logarithm, exponential, sine and cosine in `f32`, from additions, multiplications and divisions only.
//!
//! The system's versions differ between machines in the last bit. These are the same everywhere, can be repeated
//! operation by operation in a kernel (without contraction to fused multiply-add), and the compiler turns loops
//! over them into vector code (integer steps wrap by name, though they never do: a check would forbid that). Errors are
//! stated per function, against `f64`.

/// Natural logarithm of a positive normal number; relative error below 3e-7, absolute below 1e-7 near 1.
///
/// The argument is `2^e m` with `m` in `[sqrt(1/2), sqrt(2))`, and `ln m = 2 atanh(s)` with `s = (m-1) / (m+1)`.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    // Subtracting the bits of sqrt(1/2) puts the exponent's carry where m reaches sqrt(2).
    const SQRT_HALF: i32 = 0x3f35_04f3;
    let bits = x.to_bits() as i32;
    let exponent = bits.wrapping_sub(SQRT_HALF) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(exponent << 23) as u32);
    let s = (m - 1.0) / (m + 1.0);
    let q = s * s;
    let series = ((q * (2.0 / 9.0) + 2.0 / 7.0) * q + 2.0 / 5.0) * q + 2.0 / 3.0;
    // ln 2 in two parts, the first with few bits, so that its product with the exponent is exact.
    let e = exponent as f32;
    e * 0.693_359_4 + (s * 2.0 + (s * q * series - e * 2.121_944_4e-4))
}

/// `e` to the power `x`, for `x` in `[-87, 88]` (others are clamped); relative error below 3e-7.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Rounded by truncation of a positive number: `floor` is a call on processors without SSE4.1.
    let rounded = (x * std::f32::consts::LOG2_E + 127.5) as i32;
    let twos = rounded.wrapping_sub(127) as f32;
    let r = (x - twos * 0.693_359_4) + twos * 2.121_944_4e-4;
    let series =
        ((((r * (1.0 / 720.0) + 1.0 / 120.0) * r + 1.0 / 24.0) * r + 1.0 / 6.0) * r + 0.5) * r * r;
    let power = f32::from_bits((rounded << 23) as u32);
    (series + r + 1.0) * power
}

/// Sine and cosine of `turns` whole turns, `turns` in `[0, 1)`; absolute error below 2e-7.
#[inline(always)]
pub(crate) fn sin_cos_turn(turns: f32) -> (f32, f32) {
    // The nearest quarter turn is taken off exactly; the rest is at most an eighth of a turn.
    let quarter = (turns * 4.0 + 0.5) as i32;
    let a = (turns - quarter as f32 * 0.25) * std::f32::consts::TAU;
    let q = a * a;
    let sin =
        a + a * q * (((q * (1.0 / 362_880.0) - 1.0 / 5040.0) * q + 1.0 / 120.0) * q - 1.0 / 6.0);
    let cos = 1.0
        + q * ((((q * (-1.0 / 3_628_800.0) + 1.0 / 40_320.0) * q - 1.0 / 720.0) * q + 1.0 / 24.0)
            * q
            - 0.5);
    let (sin, cos) = if quarter & 1 == 1 { (cos, sin) } else { (sin, cos) };
    let negate = |x: f32, flag: i32| f32::from_bits(x.to_bits() ^ ((flag & 2) as u32) << 30);
    (negate(sin, quarter), negate(cos, quarter.wrapping_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for i in 1..1 << 16 {
            for x in [i as f32 / 65536.0, 1.0 + i as f32 / 65536.0, i as f32, i as f32 * 1e-30] {
                let exact = f64::from(x).ln();
                worst = worst.max((f64::from(ln(x)) - exact).abs() / exact.abs().max(1.0 / 3.0));
            }
        }
        assert!(worst < 3e-7, "{worst:e}");
        assert_eq!(ln(1.0), 0.0);
    }

    #[test]
    fn exponential_is_accurate_over_its_range() {
        let mut worst = 0f64;
        for i in -8700..8800 {
            let x = i as f32 / 100.0;
            worst = worst.max((f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs());
        }
        assert!(worst < 3e-7, "{worst:e}");
        assert!(exp(-1e9) > 0.0 && exp(1e9).is_finite());
    }

    #[test]
    fn sine_and_cosine_are_accurate_all_around() {
        let mut worst = 0f64;
        for i in 0..1 << 16 {
            let t = i as f32 / 65536.0;
            let (sin, cos) = sin_cos_turn(t);
            let (exact_sin, exact_cos) = (f64::from(t) * std::f64::consts::TAU).sin_cos();
            worst = worst
                .max((f64::from(sin) - exact_sin).abs())
                .max((f64::from(cos) - exact_cos).abs());
        }
        assert!(worst < 2e-7, "{worst:e}");
        assert_eq!(sin_cos_turn(0.25), (1.0, 0.0));
    }
}
