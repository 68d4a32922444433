//! Views beside what is left of them and what is restored.

use crate::pretext::masked::{Cells, MASK, RESTORED};
use crate::report::{
    CaseObservation, Draw, ImageBudget, Plane, Scene, Slice, Source, cut_slice, image_row, name,
    thin_evenly,
};

/// Most views shown.
const MOST_VIEWS: usize = 4;

/// Axial slices of view 0: as it is, without the hidden blocks, with what is restored in them; none if the outputs were
/// not kept.
pub(super) fn cut(draw: &Draw, scene: &Scene<'_>) -> Vec<Slice> {
    let (restored, mask) = (draw.output(RESTORED), draw.output(MASK));
    if restored.is_empty() {
        return Vec::new();
    }
    let cells = Cells::of(draw);
    let [_, h, w] = scene.view_size;
    let grey = f32::midpoint(scene.window[0], scene.window[1]);
    let image = |p: [usize; 3]| (scene.voxel)(0, p);
    let is_hidden = |p: [usize; 3]| mask[cells.at(p)] > 0.0;
    let left = |p: [usize; 3]| if is_hidden(p) { grey } else { image(p) };
    let filled = |p: [usize; 3]| {
        if is_hidden(p) { restored[(p[0] * h + p[1]) * w + p[2]] as f32 } else { image(p) }
    };
    let voxels: [&dyn Fn([usize; 3]) -> f32; 3] = [&image, &left, &filled];
    let of = |voxel| {
        let source = Source {
            extent: scene.view_size,
            spacing_mm: scene.spacing_mm,
            window: scene.window,
            voxel,
        };
        cut_slice(&source, Plane::Axial, scene.view_size.map(|n| n / 2), &[])
    };
    voxels.map(of).into()
}

/// The section of masked reconstruction.
pub(super) fn panel(cases: &[CaseObservation], budget: &mut ImageBudget) -> String {
    let labels = ["the view", "what the network sees", "restored where it was hidden"];
    let mut out = String::new();
    let draws = cases.iter().flat_map(|case| case.draws.iter().map(move |draw| (case, draw)));
    let shown: Vec<(&CaseObservation, &Vec<Slice>)> = draws
        .filter_map(|(case, draw)| Some((case, draw.pictures.get("masked")?)))
        .filter(|(_, slices)| slices.len() == labels.len())
        .collect();
    for (case, slices) in thin_evenly(&shown, MOST_VIEWS) {
        let images: Vec<(String, &Slice)> =
            labels.iter().map(ToString::to_string).zip(slices.iter()).collect();
        let Some(row) = image_row(&case.name, &images, budget) else { break };
        out.push_str(&format!("<div class=\"pair\"><p>{}</p>{row}</div>\n", name(&case.name)));
    }
    if out.is_empty() {
        return "<p class=\"absent\">No view was restored, so there is nothing to show.</p>"
            .to_string();
    }
    format!(
        "<figure class=\"long\"><figcaption>Axial slices through the middle of a view. Grey: blocks that were hidden from the network. \
         Right: what it puts there. A flat patch is a guess; edges that go on through it, and structures that are there in the view, are \
         learnt.</figcaption>\n{out}</figure>\n"
    )
}
