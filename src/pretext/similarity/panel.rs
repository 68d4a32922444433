//! Slices with the boxes of the similarity task drawn on them, and how alike the boxes are.

use crate::pretext::similarity::{Pair, pairs};
use crate::report::{
    CaseObservation, Draw, ImageBudget, MarkKind, Picture, Plane, Plot, Scene, Shape, Slice,
    Source, VoxelBox, cut_slice, direction, figure, image_row, name, norm, number, thin_evenly,
};

/// Most pairs shown with images.
const MOST_PAIRS: usize = 8;

/// The section of the similarity task.
pub(super) fn panel(cases: &[CaseObservation], images: &mut ImageBudget) -> String {
    let draws: Vec<(&CaseObservation, &Draw)> =
        cases.iter().flat_map(|c| c.draws.iter().map(move |d| (c, d))).collect();
    cosines(&draws) + &boxes(&draws, images)
}

/// Axial slices of the two views of a pair, through the centres of their adjacent and of their distant boxes: adjacent
/// in both views, then distant. `starts`: first voxels, as in [`Draw::boxes`].
pub(super) fn cut(pair: &Pair, starts: &[[usize; 3]; 4], scene: &Scene<'_>) -> [Slice; 4] {
    std::array::from_fn(|at| {
        let owner = at % 2;
        let view = pair.views[owner];
        let voxel = |p: [usize; 3]| (scene.voxel)(view, p);
        let source = Source {
            extent: scene.view_size,
            spacing_mm: scene.spacing_mm,
            window: scene.window,
            voxel: &voxel,
        };
        let marked = [(MarkKind::Adjacent, owner), (MarkKind::Distant, 2 + owner)]
            .map(|(kind, k)| VoxelBox { kind, start: starts[k], size: scene.sub_size });
        cut_slice(&source, Plane::Axial, marked[at / 2].centre(), &marked)
    })
}

/// The slices that [`cut`] made of a pair, if any.
fn slices_of<'a>(draw: &'a Draw, pair: &Pair) -> Option<&'a [Slice]> {
    draw.pictures.get("similarity")?.get(4 * pair.number..4 * pair.number + 4)
}

/// The two cosines against each other, against the distance of the views, and their difference.
fn cosines(draws: &[(&CaseObservation, &Draw)]) -> String {
    const SQUARE: [f64; 2] = [340.0, 354.0];
    let all: Vec<(f64, Pair)> = draws
        .iter()
        .flat_map(|(_, draw)| pairs(draw).map(move |pair| (norm(truth_mm(draw, &pair)), pair)))
        .collect();
    if all.is_empty() {
        return "<p class=\"absent\">No similarity of boxes was observed.</p>\n".to_string();
    }
    let of = |value: fn(f64, &Pair) -> [f64; 2]| all.iter().map(|(mm, s)| value(*mm, s)).collect();
    let titles = ["cosine of the distant boxes", "cosine of the adjacent boxes"];
    let mut against = Plot::new("Adjacent against distant", titles, SQUARE).square();
    against.add_labelled("s2", "pair of views", Shape::Dots(of(|_, s| [s.distant, s.adjacent])));
    against.add_labelled("ink", "equal", Shape::Identity);
    let titles = ["true distance between the views, mm", "cosine"];
    let mut over = Plot::new("Cosines over distance", titles, SQUARE).include(&[0.0], &[0.0, 1.0]);
    over.add_labelled("s2", "adjacent boxes", Shape::Dots(of(|mm, s| [mm, s.adjacent])));
    over.add_labelled("s1", "distant boxes", Shape::Dots(of(|mm, s| [mm, s.distant])));
    let plots = [against.draw(), margins(&all, SQUARE), over.draw()];
    figure(
        "thirds",
        &plots,
        "One dot is one pair of views. Left, above the line = right: the sides of two views \
        that face each other look more alike to the model than the sides that face away; all dots in the top \
        right corner: everything looks the same, which is a collapse. Middle: the same as a difference, right of zero = right. Right: \
        whether it depends on how far the views are apart.",
    )
}

/// True vector between the views of a pair.
fn truth_mm(draw: &Draw, pair: &Pair) -> [f64; 3] {
    let [i, j] = pair.views;
    draw.gaps_mm.get(i * draw.views() + j).copied().unwrap_or([f64::NAN; 3])
}

/// Share of pairs by the adjacent minus the distant cosine, in bins of 0.1 from -2 to 2.
fn margins(all: &[(f64, Pair)], size: [f64; 2]) -> Picture {
    let mut counts = [0usize; 40];
    let differences = all.iter().map(|(_, s)| s.adjacent - s.distant);
    let known: Vec<f64> = differences.filter(|d| (-2.001..=2.001).contains(d)).collect();
    for d in &known {
        counts[(((d + 2.0) * 10.0 + 1e-9) as usize).min(39)] += 1;
    }
    let bars = (0..40)
        .filter(|&k| counts[k] > 0)
        .map(|k| {
            let from = k as f64 / 10.0 - 2.0;
            [from, from + 0.1, 100.0 * counts[k] as f64 / known.len() as f64]
        })
        .collect();
    let titles = ["adjacent minus distant cosine", "% of pairs"];
    let mut plot = Plot::new("Difference of the cosines", titles, size).include(&[-0.5, 0.5], &[]);
    plot.add_labelled("s2", "pairs of views", Shape::Bars(bars));
    plot.add_labelled("ink", "equal", Shape::Upright(0.0));
    plot.draw()
}

/// Pairs of views with their boxes.
fn boxes(draws: &[(&CaseObservation, &Draw)], budget: &mut ImageBudget) -> String {
    let all: Vec<(&CaseObservation, &Draw, Pair, &[Slice])> = draws
        .iter()
        .flat_map(|&(case, draw)| {
            pairs(draw).filter_map(move |pair| Some((case, draw, pair, slices_of(draw, &pair)?)))
        })
        .collect();
    if all.is_empty() {
        return "<p class=\"absent\">No slices of views were supplied, so the boxes are not drawn.</p>".to_string();
    }
    let mut shown = 0;
    let mut out = String::new();
    for (case, draw, pair, slices) in thin_evenly(&all, MOST_PAIRS) {
        let label = |view: usize, what: &str, cosine: f64| {
            format!("view {view}, {what}, cosine {}", number(cosine, 2))
        };
        let [i, j] = pair.views;
        let images = [
            (label(i, "adjacent", pair.adjacent), &slices[0]),
            (label(j, "adjacent", pair.adjacent), &slices[1]),
            (label(i, "distant", pair.distant), &slices[2]),
            (label(j, "distant", pair.distant), &slices[3]),
        ];
        let Some(row) = image_row(&case.name, &images, budget) else { break };
        out.push_str(&format!(
            "<div class=\"pair\"><p>{}</p>{row}</div>\n",
            pair_words(case, draw, &pair)
        ));
        shown += 1;
    }
    format!(
        "<h3>The boxes of some pairs</h3>\n<figure class=\"long\"><figcaption><span class=\"key adjacent\"></span>adj.: adjacent box, \
         the side that faces the other view. <span class=\"key distant\"></span>dist.: distant box, the side that faces \
         away. <span class=\"key hidden\"></span>dashed: the box lies above or below the slice. The two images at the \
         left are cut through the adjacent boxes, the two at the right through the distant ones; the cosine is \
         between the two boxes of the same name. Right = high for adjacent, low for distant. {shown} of {} pairs are \
         shown, evenly chosen.</figcaption>\n{out}</figure>\n",
        all.len()
    )
}

fn pair_words(case: &CaseObservation, draw: &Draw, pair: &Pair) -> String {
    let ([i, j], gap) = (pair.views, truth_mm(draw, pair));
    let way = if norm(gap).is_finite() {
        format!(" lies {} of view {i} ({} mm)", direction(gap), number(norm(gap), 0))
    } else {
        String::new()
    };
    let order = if pair.adjacent > pair.distant { "right order" } else { "wrong order" };
    format!(
        "{}: view {j}{way}. Cosine adjacent <strong>{}</strong>, distant <strong>{}</strong>: {order}.",
        name(&case.name),
        number(pair.adjacent, 2),
        number(pair.distant, 2),
    )
}
