//! From the three ways in which a NIfTI header places its voxels to one affine in millimetres.
//!
//! The standard's rule: the sform if its code is positive, else the qform if its code is positive, else
//! the bare voxel sizes. Files break it: zeroed sforms, sforms of unit scale beside a right qform
//! (nnU-Net issue 2741), quaternions longer than 1. What is plainly meant is taken, with a warning.

/// Voxel edges that a medical scan may have, in millimetres.
const EDGE_MM: std::ops::RangeInclusive<f64> = 1e-3..=200.0;
/// Relative difference of two voxel edges beyond which they contradict each other.
const EDGE_TOLERANCE: f64 = 1e-2;
/// Cosine between two axes beyond which a grid counts as sheared (0.06 degrees).
const SHEAR: f64 = 1e-3;

/// The geometry fields as stored, not yet believed.
#[derive(Clone, Debug)]
pub(crate) struct Forms {
    /// `pixdim[0..4]`: the sign of the third quaternion axis, then the voxel edges.
    pub(crate) pixdim: [f64; 4],
    /// `qform_code`.
    pub(crate) qform_code: i32,
    /// `sform_code`.
    pub(crate) sform_code: i32,
    /// `quatern_b`, `quatern_c`, `quatern_d`.
    pub(crate) quaternion: [f64; 3],
    /// `qoffset_x`, `qoffset_y`, `qoffset_z`.
    pub(crate) q_offset: [f64; 3],
    /// `srow_x`, `srow_y`, `srow_z`.
    pub(crate) srow: [[f64; 4]; 3],
    /// The spatial part of `xyzt_units`.
    pub(crate) units: i32,
}

/// Where voxels lie.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Grid {
    /// Voxel index (x, y, z, 1) to millimetres (right, anterior, superior).
    pub(crate) affine: [[f64; 4]; 3],
    /// Edges of a voxel along the file's axes (x, y, z), mm.
    pub(crate) spacing_mm: [f64; 3],
}

type Affine = [[f64; 4]; 3];

/// Decides on one affine.
///
/// Errors with the sentence for the user where the voxel size or the direction cannot be known.
pub(crate) fn grid(forms: &Forms, warnings: &mut Vec<String>) -> Result<Grid, String> {
    let scale = unit_scale(forms.units, warnings);
    let forms = &in_mm(forms, scale);
    let sform = sform(forms, warnings)?;
    let edges = edges(forms, sform.as_ref(), scale, warnings)?;
    for (name, code) in [("qform_code", forms.qform_code), ("sform_code", forms.sform_code)] {
        if code > 5 {
            warnings.push(format!(
                "{name} is {code}, the standard knows 0 to 5; taken as a scanner position"
            ));
        }
    }
    let affine = match sform {
        Some(sform) => checked_sform(sform, forms, edges, warnings),
        None if forms.qform_code > 0 => qform(forms, edges, warnings)?,
        None => {
            warnings.push(
                "neither sform nor qform says how the volume lies; its axes are taken as right, \
                 anterior, superior"
                    .into(),
            );
            diagonal(edges)
        }
    };
    let unit = directions(&affine);
    let cosine = |a: usize, b: usize| (0..3).map(|r| unit[r][a] * unit[r][b]).sum::<f64>();
    let shear = [cosine(0, 1), cosine(0, 2), cosine(1, 2)].iter().fold(0f64, |m, c| m.max(c.abs()));
    if shear > SHEAR {
        warnings.push(format!(
            "the axes are not at right angles (largest cosine {shear:.3}); they are taken as if they were"
        ));
    }
    Ok(Grid { affine, spacing_mm: edges })
}

/// Millimetres in one length unit of the header.
fn unit_scale(units: i32, warnings: &mut Vec<String>) -> f64 {
    match units {
        0 | 2 => 1.0,
        1 => {
            warnings.push("lengths are in metres by xyzt_units, converted to mm".into());
            1e3
        }
        3 => {
            warnings.push("lengths are in micrometres by xyzt_units, converted to mm".into());
            1e-3
        }
        other => {
            warnings.push(format!("the length unit {other} in xyzt_units is unknown, taken as mm"));
            1.0
        }
    }
}

fn in_mm(forms: &Forms, scale: f64) -> Forms {
    let mut out = forms.clone();
    if scale != 1.0 {
        out.pixdim[1..].iter_mut().for_each(|v| *v *= scale);
        out.q_offset.iter_mut().for_each(|v| *v *= scale);
        out.srow.iter_mut().flatten().for_each(|v| *v *= scale);
    }
    out
}

/// The sform if it is in use: finite, not zero, not singular.
fn sform(forms: &Forms, warnings: &mut Vec<String>) -> Result<Option<Affine>, String> {
    if forms.sform_code <= 0 {
        return Ok(None);
    }
    let rows = forms.srow;
    if rows.iter().flatten().any(|v| !v.is_finite()) {
        return Err("the sform holds a number that is not finite, so the position of the voxels is unknown\n  \
                    repair the header (set the sform code to 0, or copy the geometry from the source)"
            .into());
    }
    if rows.iter().all(|row| row[..3].iter().all(|&v| v == 0.0)) {
        warnings.push("the sform is zero although its code says that it is in use; ignored".into());
        return Ok(None);
    }
    // The determinant of the unit directions is 1 for right angles and 0 for axes in one plane.
    let d = directions(&rows);
    let determinant = d[0][0] * (d[1][1] * d[2][2] - d[1][2] * d[2][1])
        - d[0][1] * (d[1][0] * d[2][2] - d[1][2] * d[2][0])
        + d[0][2] * (d[1][0] * d[2][1] - d[1][1] * d[2][0]);
    if determinant.is_nan() || determinant.abs() < 1e-3 {
        return Err("the sform is singular: its axes lie in one plane or have no length\n  \
                    repair the header (set the sform code to 0, or copy the geometry from the source)"
            .into());
    }
    Ok(Some(rows))
}

/// Voxel edges in mm, from `pixdim`, or from the sform where `pixdim` is 0.
fn edges(
    forms: &Forms,
    sform: Option<&Affine>,
    scale: f64,
    warnings: &mut Vec<String>,
) -> Result<[f64; 3], String> {
    let mut out = [0.0; 3];
    for (axis, out) in out.iter_mut().enumerate() {
        let stored = forms.pixdim[axis + 1];
        let name = format!("pixdim[{}]", axis + 1);
        let mut edge = stored;
        if stored == 0.0 {
            let Some(rows) = sform else {
                return Err(format!(
                    "the voxel size {name} is 0, and no sform gives it\n  repair the header"
                ));
            };
            edge = norm(rows, axis);
            warnings.push(format!("the voxel size {name} is 0, taken from the sform: {edge} mm"));
        } else if stored < 0.0 {
            edge = -stored;
            warnings.push(format!("the voxel size {name} is {stored}, taken as {edge} mm"));
        }
        if !EDGE_MM.contains(&edge) {
            let unit = if scale == 1.0 { "" } else { " (by the length unit in xyzt_units)" };
            return Err(format!(
                "the voxel size {name} is {edge} mm{unit}, allowed are {} to {} mm\n  repair the header",
                EDGE_MM.start(),
                EDGE_MM.end()
            ));
        }
        *out = edge;
    }
    Ok(out)
}

/// The sform, unless its scale contradicts the voxel sizes.
fn checked_sform(
    sform: Affine,
    forms: &Forms,
    edges: [f64; 3],
    warnings: &mut Vec<String>,
) -> Affine {
    let norms = [0, 1, 2].map(|axis| norm(&sform, axis));
    // A qform that cannot be used is of no interest while the sform can: its warnings are dropped.
    let qform = (forms.qform_code > 0).then(|| qform(forms, edges, &mut Vec::new()).ok()).flatten();
    if (0..3).any(|a| (norms[a] / edges[a] - 1.0).abs() > EDGE_TOLERANCE) {
        warnings.push(format!(
            "the sform says voxels of {:.4} x {:.4} x {:.4} mm, pixdim says {:.4} x {:.4} x {:.4} mm; \
             pixdim is taken, with the directions of the {}",
            norms[0],
            norms[1],
            norms[2],
            edges[0],
            edges[1],
            edges[2],
            if qform.is_some() { "qform" } else { "sform" }
        ));
        return qform.unwrap_or_else(|| {
            let mut out = sform;
            for row in &mut out {
                (0..3).for_each(|a| row[a] *= edges[a] / norms[a]);
            }
            out
        });
    }
    if let Some(q) = qform {
        let (a, b) = (directions(&sform), directions(&q));
        let apart = (0..3).any(|c| (0..3).map(|r| a[r][c] * b[r][c]).sum::<f64>() < 0.99);
        if apart {
            warnings.push("sform and qform name different directions; the sform is taken".into());
        }
    }
    sform
}

/// The affine of the quaternion (nifti1.h, method 2).
fn qform(forms: &Forms, edges: [f64; 3], warnings: &mut Vec<String>) -> Result<Affine, String> {
    let [mut b, mut c, mut d] = forms.quaternion;
    if [b, c, d].iter().chain(&forms.q_offset).any(|v| !v.is_finite()) {
        return Err(format!(
            "the quaternion of the qform holds a number that is not finite ({b}, {c}, {d}), so the \
             position of the voxels is unknown\n  repair the header"
        ));
    }
    let squared = b * b + c * c + d * d;
    if !squared.is_finite() {
        return Err(format!("the quaternion of the qform is out of range ({b}, {c}, {d})"));
    }
    let mut a = (1.0 - squared).max(0.0).sqrt();
    // A half turn stored in float32 misses length 1 by a few 1e-7.
    if squared > 1.0 {
        let length = squared.sqrt();
        if squared > 1.0 + 1e-5 {
            warnings
                .push(format!("the quaternion of the qform has the length {length:.4}, set to 1"));
        }
        (a, b, c, d) = (0.0, b / length, c / length, d / length);
    }
    let rotation = [
        [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
        [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
        [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
    ];
    let sign = if forms.pixdim[0] < 0.0 { -1.0 } else { 1.0 };
    let scale = [edges[0], edges[1], edges[2] * sign];
    Ok([0, 1, 2].map(|r| {
        let row = rotation[r];
        [row[0] * scale[0], row[1] * scale[1], row[2] * scale[2], forms.q_offset[r]]
    }))
}

fn diagonal(edges: [f64; 3]) -> Affine {
    let mut out = [[0.0; 4]; 3];
    (0..3).for_each(|axis| out[axis][axis] = edges[axis]);
    out
}

fn norm(affine: &Affine, axis: usize) -> f64 {
    affine.iter().map(|row| row[axis] * row[axis]).sum::<f64>().sqrt()
}

/// The columns of an affine at unit length: `[world axis][file axis]`.
pub(crate) fn directions(affine: &Affine) -> [[f64; 3]; 3] {
    let norms = [0, 1, 2].map(|axis| norm(affine, axis));
    [0, 1, 2].map(|r| [0, 1, 2].map(|c| affine[r][c] / norms[c]))
}
