//! In how many directions vectors lie.

/// Effective rank of vectors of one length, each taken as its direction: `n^2 / sum (u_i . u_j)^2` over all ordered
/// pairs of the `n` unit vectors, which is `(sum l)^2 / sum l^2` of the eigenvalues `l` of their second moments (the
/// participation ratio). 1 if all lie on one line, whichever way they point; `k` if they are spread evenly over `k`
/// directions. It is never above the ranks that take the entropy of the spectrum. Vectors that are zero or not finite
/// are left out; NaN without any.
///
/// Source: Gao et al. 2017, "A theory of multineuronal dimensionality, dynamics and measurement".
pub(super) fn effective_rank<'a>(vectors: impl Iterator<Item = &'a [f64]>) -> f64 {
    let units: Vec<Vec<f64>> = vectors.filter_map(unit).collect();
    let (count, width) = (units.len(), units.first().map_or(0, Vec::len));
    // The products of rows and those of columns have the same sum of squares.
    let lines = if count <= width {
        units
    } else {
        (0..width).map(|k| units.iter().map(|u| u[k]).collect()).collect()
    };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut squares = 0.0;
    for (i, a) in lines.iter().enumerate() {
        let others: f64 = lines[i + 1..].iter().map(|b| dot(a, b).powi(2)).sum();
        squares += dot(a, a).powi(2) + 2.0 * others;
    }
    (count as f64).powi(2) / squares
}

fn unit(vector: &[f64]) -> Option<Vec<f64>> {
    let length = vector.iter().map(|v| v * v).sum::<f64>().sqrt();
    (length > 0.0 && length.is_finite()).then(|| vector.iter().map(|v| v / length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(vectors: &[&[f64]]) -> f64 {
        effective_rank(vectors.iter().copied())
    }

    #[test]
    fn directions_are_counted() {
        // One line, whichever way and however long; three axes, evenly; and by hand: 9 / (3 + 2 (1/2 + 0 + 1/2)).
        assert!((rank(&[&[1.0, 2.0], &[-0.5, -1.0], &[3.0, 6.0]]) - 1.0).abs() < 1e-12);
        let axes: [&[f64]; 3] = [&[2.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[0.0, 0.0, -1.0]];
        assert!((rank(&axes) - 3.0).abs() < 1e-12);
        assert!((rank(&[axes, axes].concat()) - 3.0).abs() < 1e-12);
        assert!((rank(&[&[1.0, 0.0], &[1.0, 1.0], &[0.0, 1.0]]) - 9.0 / 5.0).abs() < 1e-12);
    }

    #[test]
    fn vectors_without_a_direction_are_left_out() {
        let with: [&[f64]; 4] = [&[1.0, 0.0], &[0.0, 0.0], &[f64::NAN, 1.0], &[0.0, 1.0]];
        assert!((rank(&with) - 2.0).abs() < 1e-12);
        assert!(rank(&[]).is_nan() && rank(&[&[0.0]]).is_nan());
    }
}
