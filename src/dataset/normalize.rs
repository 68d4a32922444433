//! Bringing voxel values to mean 0 and variance 1.

/// How voxel values are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Mean and standard deviation of the whole volume.
    Zscore,
    /// Mean and standard deviation of the voxels that are not 0; the others stay 0.
    ZscoreNonzero,
    /// Clipped to a window of Hounsfield units first, then as `Zscore`.
    Ct,
}

/// Normalises in place: `(value - mean) / deviation`, with the population's standard deviation.
///
/// `window`: the lowest and highest value kept by [`Normalize::Ct`]. Sums are float64 and in index
/// order, so the result does not depend on the number of threads.
/// Errors with the sentence for the user if the values do not vary.
///
/// Source: nnU-Net `ZScoreNormalization`; the window takes the place of its percentiles of labelled voxels.
pub(crate) fn normalize(
    voxels: &mut [f32],
    how: Normalize,
    window: [f32; 2],
) -> Result<(), String> {
    if how == Normalize::Ct {
        voxels.iter_mut().for_each(|v| *v = v.clamp(window[0], window[1]));
    }
    let masked = how == Normalize::ZscoreNonzero;
    let inside = |v: &f32| !masked || *v != 0.0;
    let (mut count, mut sum) = (0u64, 0f64);
    for &v in voxels.iter().filter(|v| inside(v)) {
        count += 1;
        sum += f64::from(v);
    }
    let mean = sum / count as f64;
    let squares: f64 =
        voxels.iter().filter(|v| inside(v)).map(|&v| (f64::from(v) - mean).powi(2)).sum();
    let deviation = (squares / count as f64).sqrt();
    let varies = voxels
        .iter()
        .find(|v| inside(v))
        .is_some_and(|first| voxels.iter().filter(|v| inside(v)).any(|v| v != first));
    if !varies || deviation.is_nan() || deviation <= 0.0 {
        return Err(constant(voxels.first().copied().unwrap_or(0.0), how, window));
    }
    for v in voxels.iter_mut().filter(|v| inside(v)) {
        *v = ((f64::from(*v) - mean) / deviation) as f32;
    }
    Ok(())
}

fn constant(value: f32, how: Normalize, window: [f32; 2]) -> String {
    let advice = "nothing can be learned from it: leave the file out";
    match how {
        Normalize::Zscore => format!("the volume is constant: every voxel is {value}\n  {advice}"),
        Normalize::ZscoreNonzero => {
            format!("the volume is constant: all voxels that are not 0 have one value\n  {advice}")
        }
        Normalize::Ct => format!(
            "the volume is constant within the CT window {} to {}\n  is it CT in Hounsfield units? \
             If not, normalise with zscore; else {advice}",
            window[0], window[1]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_the_population() {
        let mut voxels = [1.0, 3.0, 1.0, 3.0];
        normalize(&mut voxels, Normalize::Zscore, [0.0; 2]).unwrap();
        assert_eq!(voxels, [-1.0, 1.0, -1.0, 1.0]);
    }

    #[test]
    fn zeros_stay_outside_the_mask() {
        let mut voxels = [0.0, 5.0, 7.0, 0.0];
        normalize(&mut voxels, Normalize::ZscoreNonzero, [0.0; 2]).unwrap();
        assert_eq!(voxels, [0.0, -1.0, 1.0, 0.0]);
    }

    #[test]
    fn ct_is_clipped_before_the_statistics() {
        let mut voxels = [-3024.0, -1000.0, 1000.0, 30000.0];
        normalize(&mut voxels, Normalize::Ct, [-1000.0, 1000.0]).unwrap();
        assert_eq!(voxels, [-1.0, -1.0, 1.0, 1.0]);
    }

    #[test]
    fn constants_are_refused() {
        for how in [Normalize::Zscore, Normalize::ZscoreNonzero, Normalize::Ct] {
            for value in [0.0, 0.1, 4000.0] {
                let what = normalize(&mut [value; 7], how, [-1000.0, 1000.0]).unwrap_err();
                assert!(what.contains("constant"), "{what}");
            }
        }
    }

    #[test]
    fn the_smallest_numbers_do_not_divide_by_zero() {
        let mut voxels = [1e-45, 3e-45];
        normalize(&mut voxels, Normalize::Zscore, [0.0; 2]).unwrap();
        assert!(voxels.iter().all(|v| (v.abs() - 1.0).abs() < 1e-6), "{voxels:?}");
    }
}
