//! Gaps, offsets and boxes, exactly.

use spatialssl::views::geometry::{
    OffsetRule, box_extent, boxes, gap_matrix, normed_gap_matrix, offsets, owners, sub_view_centres,
};

use crate::format::Case;

/// Equality of every number.
fn equal(case: &Case, name: &str, got: impl IntoIterator<Item = f64>) {
    let got: Vec<f64> = got.into_iter().collect();
    assert_eq!(got, case.outputs[name].full(), "{} {name}", case.label);
}

pub(crate) fn check(case: &Case) {
    let coords = &case.inputs["coords"];
    let centres: Vec<[i32; 3]> =
        coords.data.chunks(3).map(|c| [c[0] as i32, c[1] as i32, c[2] as i32]).collect();
    let views = centres.len();
    let (view, sub, div) =
        (case.triple("view_size"), case.triple("sub_view_size"), case.triple("div"));
    let gap = gap_matrix(&centres);
    equal(case, "abs_gap", gap.iter().flatten().map(|&g| f64::from(g)));
    let normed = normed_gap_matrix(&centres, div.map(|d| d as f32));
    equal(case, "normed_abs_gap", normed.iter().flatten().map(|&g| f64::from(g)));
    equal(case, "owner", owners(views).iter().flatten().map(|&o| o as f64));
    for (rule, shift, place) in
        [(OffsetRule::Source, "offsets", "boxes"), (OffsetRule::Ray, "ray_offsets", "ray_boxes")]
    {
        let offsets = offsets(&gap, views, view, sub, rule);
        equal(case, shift, offsets.iter().flatten().map(|&o| f64::from(o)));
        let starts = boxes(&offsets, views, view, sub);
        let spans = starts.iter().flatten().flat_map(|start| {
            let extent = box_extent(sub);
            (0..3).flat_map(move |a| [f64::from(start[a]), f64::from(start[a]) + extent[a] as f64])
        });
        equal(case, place, spans);
        if rule == OffsetRule::Source {
            let centres = sub_view_centres(&centres, &offsets);
            equal(case, "centres", centres.iter().flatten().flatten().map(|&c| f64::from(c)));
        }
    }
}
