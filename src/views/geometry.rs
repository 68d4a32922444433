//! Where the views of a volume lie to each other, and where the sub-views lie inside them.
//!
//! Pure arithmetic on centres, in voxels, axis order (z, y, x). It knows no volumes and no random numbers.
//! View sizes that the method can use are those of [`sizes_fit`]; every other function takes any size.
//!
//! Source: Zhang et al. 2025, arXiv 2509.05967, and the operations of its published program, whose rounding is
//! part of the definition: the targets are `f32` results of exactly the operations written here.

use serde::{Deserialize, Serialize};

/// The small constant that the authors add to a gap before they divide by it.
const GUARD: f32 = 1e-5;

/// Most views per sample: `(V-1)!` routes from each of `V` views stay countable.
pub const MAX_VIEWS: usize = 7;

/// The four sub-views of a pair `(i, j)` of views, in this order wherever four are listed: adjacent in `i`,
/// adjacent in `j`, distant in `i`, distant in `j`.
pub const SUB_VIEWS: usize = 4;

/// Sign of the pair's offset for each of the four sub-views.
pub const OFFSET_SIGN: [i32; SUB_VIEWS] = [1, -1, -1, 1];

/// End of the pair that owns each of the four sub-views: 0 for view `i`, 1 for view `j`.
pub const PAIR_END: [usize; SUB_VIEWS] = [0, 1, 0, 1];

/// How far a sub-view is shifted towards (or away from) the other view of its pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OffsetRule {
    /// The longest step along the direction from view to view that keeps the sub-view inside its view.
    #[default]
    Ray,
    /// What the authors' program computes: the limit of each axis is the smallest over all first views of the
    /// pair, so that axes saturate alone and the offset leaves the direction of the pair.
    Source,
}

/// Whether the method can use views and sub-views of these sizes, in voxels, (z, y, x).
///
/// Each must be even: with an odd view and an even sub-view a box can leave its view by half a voxel of rounding, and
/// an odd sub-view loses one voxel. A sub-view must fit into its view.
pub fn sizes_fit(view: [usize; 3], sub_view: [usize; 3]) -> bool {
    let is_usable = |n: &usize| (2..=1 << 15).contains(n) && n.is_multiple_of(2);
    view.iter().chain(&sub_view).all(is_usable) && sub_view.iter().zip(&view).all(|(s, v)| s <= v)
}

/// Centre of a view that starts at voxel `start`: `start + floor(size / 2)`.
pub fn centre(start: [usize; 3], size: [usize; 3]) -> [i32; 3] {
    std::array::from_fn(|axis| (start[axis] + size[axis] / 2) as i32)
}

/// Gap matrix in voxels, `[V][V]` row-major: entry `(i, j)` is `c_j - c_i`.
pub fn gap_matrix(centres: &[[i32; 3]]) -> Vec<[i32; 3]> {
    pairwise(centres, |from, to| to - from)
}

/// Gap matrix in units of `divisor`, `[V][V]` row-major, as the losses see it.
///
/// Entry `(i, j)` is the `f32` difference of the `f32` quotients `c_j / divisor` and `c_i / divisor`, which is
/// not the quotient of the difference.
pub fn normed_gap_matrix(centres: &[[i32; 3]], divisor: [f32; 3]) -> Vec<[f32; 3]> {
    let normed: Vec<[f32; 3]> = centres
        .iter()
        .map(|c| std::array::from_fn(|axis| c[axis] as f32 / divisor[axis]))
        .collect();
    pairwise(&normed, |from, to| to - from)
}

/// `[V][V]` row-major: `op` of each axis of entry `i` and entry `j`.
fn pairwise<T: Copy>(all: &[[T; 3]], op: impl Fn(T, T) -> T) -> Vec<[T; 3]> {
    let row = |from: &[T; 3]| {
        let from = *from;
        let op = &op;
        all.iter().map(move |to| std::array::from_fn(|axis| op(from[axis], to[axis])))
    };
    all.iter().flat_map(row).collect()
}

/// Offset of the sub-view centres from their view's centre for every ordered pair, in voxels, `[V][V]` row-major.
///
/// `gap`: `[V][V]` in voxels. With `reach = |((view - sub) / 2) / (gap + 1e-5)|`, the sum rounded to `f32` and
/// the quotient taken in `f64`, the offset is `limit * gap` rounded half to even; [`OffsetRule`] says over what
/// the limit is the smallest reach. A gap of 0 gives offset 0.
///
/// # Panics
/// If `gap` does not hold `views * views` entries.
pub fn offsets(
    gap: &[[i32; 3]],
    views: usize,
    view_size: [usize; 3],
    sub_size: [usize; 3],
    rule: OffsetRule,
) -> Vec<[i32; 3]> {
    assert_eq!(gap.len(), views * views, "a gap matrix has one entry per ordered pair of views");
    let reach = |at: usize, axis: usize| {
        let available = (view_size[axis] as f64 - sub_size[axis] as f64) / 2.0;
        (available / f64::from(gap[at][axis] as f32 + GUARD)).abs()
    };
    let offset = |at: usize, axis: usize| {
        let limit = match rule {
            OffsetRule::Ray => reach(at, 0).min(reach(at, 1)).min(reach(at, 2)),
            OffsetRule::Source => (0..views)
                .map(|i| reach(i * views + at % views, axis))
                .fold(f64::INFINITY, f64::min),
        };
        (limit * f64::from(gap[at][axis] as f32)).round_ties_even() as i32
    };
    (0..gap.len()).map(|at| std::array::from_fn(|axis| offset(at, axis))).collect()
}

/// The pairs `(i, j)` of views with `i < j`, in lexicographic order.
pub fn pairs(views: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..views).flat_map(move |i| (i + 1..views).map(move |j| [i, j]))
}

/// The views that own the four sub-views of each pair, `[P][4]`.
pub fn owners(views: usize) -> Vec<[usize; SUB_VIEWS]> {
    pairs(views).map(|pair| PAIR_END.map(|end| pair[end])).collect()
}

/// First voxel of each sub-view inside its owning view, `[P][4]`.
///
/// A box spans `[c - floor(sub / 2), c + floor(sub / 2))` around `c = floor(view / 2) +- offset`; its extent is
/// [`box_extent`].
///
/// # Panics
/// If `offsets` does not hold `views * views` entries.
pub fn boxes(
    offsets: &[[i32; 3]],
    views: usize,
    view_size: [usize; 3],
    sub_size: [usize; 3],
) -> Vec<[[i32; 3]; SUB_VIEWS]> {
    assert_eq!(offsets.len(), views * views, "one offset per ordered pair of views");
    let start = |[i, j]: [usize; 2], sign: i32| {
        std::array::from_fn(|axis| {
            (view_size[axis] / 2) as i32 + sign * offsets[i * views + j][axis]
                - (sub_size[axis] / 2) as i32
        })
    };
    pairs(views).map(|pair| OFFSET_SIGN.map(|sign| start(pair, sign))).collect()
}

/// Extent of a sub-view's box: twice half the size, so that an odd size loses one voxel.
pub fn box_extent(sub_size: [usize; 3]) -> [usize; 3] {
    sub_size.map(|n| n / 2 * 2)
}

/// Centres of the sub-views in the frame the view centres are given in, `[P][4]`, in voxels.
///
/// # Panics
/// If `offsets` does not hold one entry per ordered pair of `centres`.
pub fn sub_view_centres(centres: &[[i32; 3]], offsets: &[[i32; 3]]) -> Vec<[[i32; 3]; SUB_VIEWS]> {
    let views = centres.len();
    assert_eq!(offsets.len(), views * views, "one offset per ordered pair of views");
    let place = |pair: [usize; 2], role: usize| {
        let offset = offsets[pair[0] * views + pair[1]];
        let from = centres[pair[PAIR_END[role]]];
        std::array::from_fn(|axis| from[axis] + OFFSET_SIGN[role] * offset[axis])
    };
    pairs(views).map(|pair| std::array::from_fn(|role| place(pair, role))).collect()
}

/// All routes: from every start view every order of the other views, `V * (V-1)!` of `V` stops each.
///
/// Routes are sorted by start, then by order of the stops. The steps of a route are its neighbouring stops; the
/// authors add a last step `(0, 0)`, whose vector is zero. A route does not return to its start.
///
/// # Panics
/// If there are more than [`MAX_VIEWS`] views.
pub fn routes(views: usize) -> Vec<Vec<usize>> {
    assert!(
        views <= MAX_VIEWS,
        "routes grow with the factorial: at most {MAX_VIEWS} views, got {views}"
    );
    let mut all: Vec<Vec<usize>> = (0..views).map(|start| vec![start]).collect();
    for _ in 1..views {
        let longer = |route: &Vec<usize>| {
            let route = route.clone();
            (0..views)
                .filter(|v| !route.contains(v))
                .map(|v| [&route[..], &[v]].concat())
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gap matrix and offsets of views of these centres.
    fn placed(
        centres: &[[i32; 3]],
        view: [usize; 3],
        sub: [usize; 3],
        rule: OffsetRule,
    ) -> Vec<[i32; 3]> {
        offsets(&gap_matrix(centres), centres.len(), view, sub, rule)
    }

    const THREE: [[i32; 3]; 3] = [[32, 100, 47], [70, 64, 90], [55, 33, 120]];

    // Numbers of the next four tests: the float64 PyTorch reference of the published program.

    #[test]
    fn three_views_match_the_reference() {
        let source = [
            [[0, 0, 0], [24, -24, 24], [24, -24, 24]],
            [[-24, 13, -14], [0, 0, 0], [-16, -11, 10]],
            [[-15, 24, -24], [9, 21, -17], [0, 0, 0]],
        ];
        let ray = [
            [[0, 0, 0], [21, -20, 24], [8, -22, 24]],
            [[-21, 20, -24], [0, 0, 0], [-12, -24, 23]],
            [[-8, 22, -24], [12, 24, -23], [0, 0, 0]],
        ];
        assert_eq!(placed(&THREE, [64; 3], [16; 3], OffsetRule::Source), source.concat());
        assert_eq!(placed(&THREE, [64; 3], [16; 3], OffsetRule::Ray), ray.concat());
        let starts = boxes(&ray.concat(), 3, [64; 3], [16; 3]);
        assert_eq!(starts[0], [[45, 4, 48], [3, 44, 0], [3, 44, 0], [45, 4, 48]]);
        assert_eq!(starts[2], [[12, 0, 47], [36, 48, 1], [36, 48, 1], [12, 0, 47]]);
        let normed = normed_gap_matrix(&THREE, [160.0, 200.0, 180.0]);
        assert_eq!(normed[1], [0.2375, -0.18, 0.238_888_89]);
        assert_eq!(normed[7], [0.09375, 0.154_999_99, -0.166_666_69]);
    }

    #[test]
    fn ties_are_broken_by_the_guard_as_in_the_reference() {
        let centres = [[100, 100, 100], [104, 108, 96], [108, 116, 92]];
        let ray = placed(&centres, [26; 3], [16; 3], OffsetRule::Ray);
        // 2.5 becomes 2, -2.5 becomes -3.
        assert_eq!(ray[1], [2, 5, -2]);
        assert_eq!(ray[3], [-3, -5, 3]);
        let source = placed(&centres, [26; 3], [16; 3], OffsetRule::Source);
        assert_eq!(source[3], [-3, -3, 2]);
        assert_eq!(source[5], [2, 2, -3]);
    }

    #[test]
    fn odd_views_push_boxes_outside_as_in_the_reference() {
        let centres = [[40, 50, 60], [90, 44, 75], [61, 70, 20]];
        let found = boxes(
            &placed(&centres, [65, 33, 21], [16; 3], OffsetRule::Source),
            3,
            [65, 33, 21],
            [16; 3],
        );
        assert_eq!(found[2], [[-1, 16, -1], [49, 0, 5], [49, 0, 5], [-1, 16, -1]]);
        assert!(!sizes_fit([65, 33, 21], [16; 3]));
    }

    #[test]
    fn equal_centres_on_an_axis_give_no_offset_there() {
        let centres = [[40, 50, 60], [40, 81, 32]];
        let ray = placed(&centres, [64; 3], [16; 3], OffsetRule::Ray);
        assert_eq!(ray[1], [0, 24, -22]);
        for rule in [OffsetRule::Ray, OffsetRule::Source] {
            assert_eq!(placed(&[[9; 3]; 3], [64; 3], [16; 3], rule), [[0; 3]; 9]);
        }
    }

    #[test]
    fn boxes_of_even_sizes_stay_inside_and_owners_alternate() {
        // A grid of gaps around 0, near the guard's vanishing point (256) and far beyond.
        let gaps = [-3000, -257, -256, -255, -64, -7, -1, 0, 1, 7, 64, 255, 256, 257, 3000];
        for (view, sub) in [([64, 48, 16], [16; 3]), ([26, 30, 34], [16; 3]), ([512; 3], [16; 3])] {
            for rule in [OffsetRule::Ray, OffsetRule::Source] {
                for (k, &g) in gaps.iter().enumerate() {
                    let second =
                        [g, gaps[(k * 7 + 3) % 15], gaps[(k * 4 + 1) % 15]].map(|d| 5000 + d);
                    let found = boxes(&placed(&[[5000; 3], second], view, sub, rule), 2, view, sub);
                    for start in found.as_flattened() {
                        for axis in 0..3 {
                            let room = (view[axis] - sub[axis]) as i32;
                            assert!(
                                (0..=room).contains(&start[axis]),
                                "{view:?} {second:?} {start:?}"
                            );
                        }
                    }
                }
            }
        }
        assert_eq!(owners(3), [[0, 1, 0, 1], [0, 2, 0, 2], [1, 2, 1, 2]]);
    }

    #[test]
    fn sub_view_centres_follow_the_boxes() {
        let moved = placed(&THREE, [64; 3], [16; 3], OffsetRule::Ray);
        let places = sub_view_centres(&THREE, &moved);
        let starts = boxes(&moved, 3, [64; 3], [16; 3]);
        for ((place, start), owner) in places.iter().zip(&starts).zip(owners(3)) {
            for role in 0..SUB_VIEWS {
                for axis in 0..3 {
                    let view_start = THREE[owner[role]][axis] - 32;
                    assert_eq!(place[role][axis], view_start + start[role][axis] + 8);
                }
            }
        }
    }

    #[test]
    fn routes_visit_every_view_once_in_order() {
        assert_eq!(routes(3), [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]);
        let five = routes(5);
        assert_eq!(five.len(), 5 * 24);
        assert!(five.is_sorted() && five.windows(2).all(|two| two[0] != two[1]));
        for route in five {
            let mut stops = route;
            stops.sort_unstable();
            assert_eq!(stops, [0, 1, 2, 3, 4]);
        }
        assert_eq!(routes(1), [[0]]);
    }

    #[test]
    fn sizes_are_even_and_sub_views_fit() {
        assert!(sizes_fit([64, 32, 16], [16; 3]));
        assert!(!sizes_fit([64, 33, 16], [16; 3]) && !sizes_fit([64; 3], [16, 15, 16]));
        assert!(!sizes_fit([64, 16, 64], [32; 3]));
        assert!(!sizes_fit([64; 3], [0, 2, 2]) && !sizes_fit([usize::MAX; 3], [2; 3]));
    }
}
