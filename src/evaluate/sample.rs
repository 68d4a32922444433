//! A made-up but lifelike report, and the checks of the whole page that need one.

use std::collections::BTreeMap;

use crate::pretext::{TaskOptions, all_tasks};
use crate::report::{
    CaseObservation, Draw, FileSummary, Observable, ReportData, RunInfo, Scene, Slice, Source,
    volume_slices,
};
use crate::run::rows::Row;

/// Uniform numbers in [0, 1) from a fixed seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// About normal, standard deviation 1.
    fn bell(&mut self) -> f64 {
        (0..12).map(|_| self.roll()).sum::<f64>() - 6.0
    }
}

const EXTENT: [usize; 3] = [120, 120, 90];
const VIEW: [usize; 3] = [32; 3];
const SUB: [usize; 3] = [16; 3];
const SPACING: [f64; 3] = [2.0; 3];

/// A head of ellipsoids: skull, brain, ventricles.
fn head(p: [usize; 3]) -> f32 {
    let at: [f64; 3] = std::array::from_fn(|a| p[a] as f64 / EXTENT[a] as f64 - 0.5);
    let within = |r: [f64; 3]| (0..3).map(|a| (at[a] / r[a]).powi(2)).sum::<f64>();
    let folds =
        ((p[0] as f64 / 3.0).sin() * (p[1] as f64 / 4.0).cos() * (p[2] as f64 / 3.0).sin()) * 0.15;
    let value = if within([0.08, 0.17, 0.07]) < 1.0 {
        0.2
    } else if within([0.36, 0.38, 0.35]) < 1.0 {
        0.65 + folds
    } else if within([0.42, 0.44, 0.41]) < 1.0 {
        0.15
    } else if within([0.46, 0.48, 0.46]) < 1.0 {
        0.95
    } else {
        0.02
    };
    value as f32
}

fn steps(dice: &mut Dice, n: u64) -> Vec<Row> {
    (0..n)
        .map(|step| {
            let t = step as f64 / n as f64;
            let fall = |from: f64, to: f64| to + (from - to) * (-6.0 * t).exp();
            let mut near = |v: f64| v * (0.25 * dice.bell()).exp();
            let (gap, vector) = (near(fall(1.2, 0.09)), near(fall(0.6, 0.06)));
            let adjacent = -1.0 + near(fall(0.8, 0.02)).min(1.9);
            let distant = (fall(0.9, 0.15) + near(0.1) - 0.1).min(1.0);
            let rate = 1e-3 * (20.0 * t).min(1.0) * 0.5 * (1.0 + (std::f64::consts::PI * t).cos());
            let mut row = Row::new(step)
                .with("loss", gap * 2.0 + vector * 1.5 + 0.1 * (adjacent + distant))
                .with("gap_axis", gap)
                .with("gap_norm", gap * 0.8)
                .with("sim_adjacent", adjacent)
                .with("sim_distant", distant)
                .with("vector", vector)
                .with("route", vector * 0.5)
                .with("lr", rate)
                .with("grad_norm", near(fall(30.0, 2.0)))
                .with("step_ms", near(260.0) + if step % 97 == 0 { 400.0 } else { 0.0 })
                .with("data_ms", near(3.0));
            if step % 10 == 0 {
                row.set("grad_gap", near(fall(4.0, 0.6)));
                row.set("grad_similarity", near(fall(36.0, 1.1)));
                row.set("grad_vector", near(fall(2.0, 0.3)));
            }
            row
        })
        .collect()
}

fn validations() -> Vec<Row> {
    (1..=12u64)
        .map(|k| {
            let fall = |from: f64, to: f64| to + (from - to) * (-0.4 * k as f64).exp();
            Row::new(100 * k)
                .with("gap_mae_mm", fall(58.0, 24.0))
                .with("gap_baseline_mm", 54.1)
                .with("gap_r2", 0.78 - fall(0.9, 0.0))
                .with("direction_error_deg", fall(95.0, 24.0))
                .with("vector_mae_mm", fall(64.0, 31.0))
                .with("route_closure_mm", fall(14.0, 3.0))
                .with("similarity_accuracy", 0.94 - fall(0.44, 0.0))
                .with("adjacent_cosine", 0.97 - fall(0.2, 0.0))
                .with("distant_cosine", fall(0.8, 0.2))
                .with("feature_std", 0.4 + fall(0.5, 0.0))
        })
        .collect()
}

fn probes() -> Vec<Row> {
    (1..=6u64)
        .map(|k| {
            let gain = 0.2 * (1.0 - (-0.5 * k as f64).exp());
            Row::new(200 * k)
                .with("dice_last_map", 0.31 + gain)
                .with("dice_all_maps", 0.58 + gain)
                .with("random_dice_last_map", 0.31)
                .with("random_dice_all_maps", 0.58)
        })
        .collect()
}

fn tasks() -> Vec<std::sync::Arc<dyn crate::pretext::Task>> {
    all_tasks(&TaskOptions::default())
}

/// The page of a report with the paper's tasks.
fn html(data: &ReportData) -> String {
    let tasks = tasks();
    let tasks: Vec<&dyn Observable> = tasks.iter().map(|t| t.as_ref() as &dyn Observable).collect();
    crate::report::html(data, &tasks)
}

/// Boxes of views `i` and `j`: towards each other, and away.
fn boxes(starts: &[[usize; 3]], i: usize, j: usize) -> [[usize; 3]; 4] {
    let towards: [f64; 3] = std::array::from_fn(|a| starts[j][a] as f64 - starts[i][a] as f64);
    let reach = towards.iter().map(|d| 8.0 / (d.abs() + 1e-5)).fold(f64::INFINITY, f64::min);
    let shifted = |sign: f64| -> [usize; 3] {
        std::array::from_fn(|a| (8.0 + sign * (reach * towards[a]).round_ties_even()) as usize)
    };
    [shifted(1.0), shifted(-1.0), shifted(-1.0), shifted(1.0)]
}

fn draw(dice: &mut Dice, with_map: bool) -> Draw {
    let starts: Vec<[usize; 3]> = (0..3)
        .map(|_| std::array::from_fn(|a| (dice.roll() * (EXTENT[a] - VIEW[a]) as f64) as usize))
        .collect();
    let (mut gaps_mm, mut gap, mut vector) = (Vec::new(), Vec::new(), Vec::new());
    for (i, from) in starts.iter().enumerate() {
        for (j, to) in starts.iter().enumerate() {
            let truth_mm: [f64; 3] =
                std::array::from_fn(|a| (to[a] as f64 - from[a] as f64) * SPACING[a]);
            let mut guess = |shrink: f64, noise: f64| {
                truth_mm.map(|t| shrink * t + if i == j { 0.0 } else { noise * dice.bell() })
            };
            gap.extend(guess(0.85, 17.0));
            vector.extend(guess(0.75, 22.0));
            gaps_mm.push(truth_mm);
        }
    }
    let pairs: Vec<[usize; 2]> = vec![[0, 1], [0, 2], [1, 2]];
    let adjacent = pairs.iter().map(|_| (0.97 - 0.03 * dice.bell().abs()).min(1.0)).collect();
    let distant = pairs.iter().map(|_| (0.25 + 0.3 * dice.bell()).clamp(-1.0, 1.0)).collect();
    let features = (0..6).map(|_| 0.4 * dice.bell()).collect();
    let whole = Source { extent: EXTENT, spacing_mm: SPACING, window: [0.0, 1.0], voxel: &head };
    let view = |v: usize, p: [usize; 3]| head(std::array::from_fn(|a| p[a] + starts[v][a]));
    let [d, h, w] = VIEW;
    let image: Vec<f64> =
        (0..d * h * w).map(|i| f64::from(view(0, [i / (h * w), i / w % h, i % w]))).collect();
    let restored = image.iter().map(|x| 0.8 * x + 0.05 * dice.bell()).collect();
    let mask = (0..64).map(|_| f64::from(u8::from(dice.roll() < 0.6))).collect();
    let mut draw = Draw {
        view_centres: starts
            .iter()
            .map(|s| std::array::from_fn(|a| (s[a] + VIEW[a] / 2) as f64))
            .collect(),
        gaps_mm,
        frame_mm: std::array::from_fn(|a| EXTENT[a] as f64 * SPACING[a]),
        unit_mm: [1.0; 3],
        view_size: VIEW,
        block: [8; 3],
        boxes: pairs.iter().map(|&[i, j]| boxes(&starts, i, j)).collect(),
        outputs: BTreeMap::from([
            ("gap.prediction", gap),
            ("gap.features", features),
            ("vector.prediction", vector),
            ("similarity.adjacent", adjacent),
            ("similarity.distant", distant),
            ("masked.image", image),
            ("masked.restored", restored),
            ("masked.mask", mask),
        ]),
        slices: if with_map { volume_slices(&whole, &starts, VIEW) } else { Vec::new() },
        pictures: BTreeMap::new(),
    };
    let (view_size, sub_size, spacing_mm) = (VIEW, SUB, SPACING);
    let scene = Scene { view_size, sub_size, spacing_mm, window: [0.0, 1.0], voxel: &view };
    for task in tasks() {
        task.digest(&mut draw, with_map);
        let pictures = task.pictures(&draw, &scene);
        draw.pictures.insert(task.name(), pictures);
    }
    draw
}

/// A report as a short training run on heads would leave it.
fn sample() -> ReportData {
    let mut dice = Dice(7);
    let file = |k: usize| FileSummary {
        name: format!("IXI{k:03}-T1.nii.gz"),
        spacing_mm: SPACING,
        extent: EXTENT,
    };
    let mut cases: Vec<CaseObservation> = (32..40)
        .map(|k| CaseObservation {
            name: file(k).name,
            spacing_mm: SPACING,
            view_size: VIEW,
            sub_size: SUB,
            draws: (0..8).map(|n| draw(&mut dice, n == 0)).collect(),
        })
        .collect();
    cases[0].name = "<script>alert(1)</script>\"&'\u{202e}.nii".to_string();
    ReportData {
        run: RunInfo {
            title: "Heads, balanced losses".to_string(),
            created: "2025-11-24 13:05".to_string(),
            config_toml:
                "[data]\nspacing_mm = 2.0\n\n[tasks]\nsimilarity_weight = 0.1 # <balanced>\n"
                    .to_string(),
            command: "spatialssl train --data ixi-heads --out run-7".to_string(),
            model_preset: "small".to_string(),
            parameters: 2_345_678,
            train_files: (0..32).map(file).collect(),
            validation_files: (32..40).map(file).collect(),
            seconds_trained: 330.4,
            steps: 1281,
            warnings: vec![],
        },
        steps: steps(&mut dice, 1281),
        validations: validations(),
        probes: probes(),
        cases,
    }
}

/// Panics unless `svg` is one element whose tags are balanced and whose attributes are quoted.
fn assert_well_formed(svg: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = svg;
    while let Some(at) = rest.find('<') {
        let text = &rest[..at];
        assert!(!text.contains('>'), "a bare > in {text}");
        rest = &rest[at + 1..];
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[..end];
        assert!(!tag.contains('<'), "a < inside <{tag}>");
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes in <{tag}>");
        let name = tag.trim_matches('/').split(' ').next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closing <{tag}>");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
        for entity in text.split('&').skip(1) {
            let known = ["amp;", "lt;", "gt;", "quot;", "#39;"];
            assert!(known.iter().any(|k| entity.starts_with(k)), "entity in {text}");
        }
        rest = &rest[end + 1..];
    }
    assert!(open.is_empty(), "{open:?} are open");
}

fn svgs(html: &str) -> Vec<&str> {
    html.split("<svg").skip(1).map(|s| s.split_once("</svg>").expect("an end").0).collect()
}

#[test]
fn the_page_is_whole_self_contained_and_small() {
    let html = html(&sample());
    assert!(html.len() < 3_000_000, "{} bytes", html.len());
    let all = svgs(&html);
    // 8 losses, 7 validations, 2 probes, 4 scatters, 5 of vectors, 3 of cosines, 3 x 3 maps, 8 x 4 views,
    // 4 x 3 of masked ones, 4 others.
    assert_eq!(all.len(), 8 + 7 + 2 + 4 + 5 + 3 + 9 + 32 + 12 + 4);
    for svg in &all {
        let whole = format!("<svg{svg}</svg>");
        assert_well_formed(&whole);
        assert!(whole.contains("aria-label=\"") && whole.contains("<title>"), "{}", &whole[..200]);
    }
    for outside in ["src=", "url(", "@import", "<script", "<link", "href=\"http", "NaN", "inf\""] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("&lt;script&gt;alert(1)") && html.contains("\\u{202e}"));
}

#[test]
fn a_long_run_with_large_noisy_images_stays_small() {
    let mut data = sample();
    let mut dice = Dice(3);
    data.steps = steps(&mut dice, 40_000);
    let draws = &mut data.cases[0].draws;
    let noise = |dice: &mut Dice, s: &mut Slice| {
        (s.width, s.height) = (128, 128);
        s.pixels = (0..128 * 128).map(|_| (dice.roll() * 256.0) as u8).collect();
    };
    for slices in draws.iter_mut().flat_map(|d| d.pictures.values_mut()) {
        slices.iter_mut().for_each(|s| noise(&mut dice, s));
    }
    draws.iter_mut().flat_map(|d| &mut d.slices).for_each(|s| noise(&mut dice, s));
    data.cases = vec![data.cases[0].clone(); 60];
    let html = html(&data);
    assert!(html.len() < 3_000_000, "{} bytes", html.len());
    assert!(html.contains("figures count all of them"));
}

#[test]
fn a_page_without_anything_has_sentences_and_no_plots() {
    let html = html(&ReportData::default());
    assert_eq!(svgs(&html).len(), 0);
    assert!(html.contains("Nothing to judge yet"));
    assert!(html.matches("class=\"absent\"").count() >= 8);
}

#[test]
fn broken_values_break_no_plot() {
    let mut data = sample();
    for (k, bad) in
        [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, -1e300, 0.0].into_iter().enumerate()
    {
        let names = ["loss", "gap_axis", "sim_distant", "lr", "grad_norm", "grad_gap"];
        names.iter().for_each(|&name| data.steps[k * 100].set(name, bad));
        ["gap_mae_mm", "feature_std"].iter().for_each(|&name| data.validations[k].set(name, bad));
        let d = &mut data.cases[k].draws[0];
        for name in ["gap.prediction", "vector.prediction"] {
            d.outputs.get_mut(name).unwrap()[3..6].fill(bad);
        }
        d.gaps_mm[2] = [bad; 3];
        d.outputs.get_mut("similarity.distant").unwrap()[0] = bad;
        d.slices[0].pixels.truncate(k);
        d.slices[1].pixel_mm = [bad; 2];
    }
    let html = html(&data);
    for svg in svgs(&html) {
        assert_well_formed(&format!("<svg{svg}</svg>"));
        assert!(
            !svg.contains("NaN") && !svg.contains("\"inf") && !svg.contains(" inf"),
            "{}",
            &svg[..200]
        );
    }
    assert!(html.contains("have a prediction that is not a finite number"));
    assert!(html.contains("are left out") && html.contains("cannot be shown"));
}

#[test]
fn equal_values_are_drawn() {
    let mut data = sample();
    data.steps.iter_mut().for_each(|s| *s = Row::new(s.step).with("loss", 1.0));
    data.validations.truncate(1);
    data.cases.truncate(1);
    let draws = &mut data.cases[0].draws;
    draws.truncate(1);
    draws[0].gaps_mm.fill([0.0; 3]);
    draws[0].outputs.values_mut().for_each(|values| values.fill(0.0));
    let html = html(&data);
    svgs(&html).iter().for_each(|svg| assert!(!svg.contains("NaN")));
    assert!(html.contains("have no direction"));
}

#[test]
fn the_file_replaces_the_old_one_and_leaves_no_draft() {
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("run/report");
    let first = crate::report::write(&ReportData::default(), &[], &into).unwrap();
    let second = crate::report::write(&sample(), &[], &into).unwrap();
    assert_eq!((&first, second.file_name().unwrap().to_str()), (&second, Some("index.html")));
    assert!(std::fs::read_to_string(&second).unwrap().contains("Heads, balanced losses"));
    assert_eq!(std::fs::read_dir(&into).unwrap().count(), 1);
    // A folder that is a file cannot take a page.
    let err = crate::report::write(&ReportData::default(), &[], &second).unwrap_err();
    assert_eq!(err.exit_code(), 4);
}

#[test]
fn the_verdict_says_what_the_figures_say() {
    let last = Row::new(1244)
        .with("gap_mae_mm", 27.05)
        .with("gap_baseline_mm", 54.1)
        .with("direction_error_deg", 31.4)
        .with("similarity_accuracy", 0.925)
        .with("adjacent_cosine", 0.97)
        .with("distant_cosine", 0.3)
        .with("feature_std", 0.5);
    let with = |row: Row| html(&ReportData { validations: vec![row], ..ReportData::default() });
    let page = with(last.clone());
    for expected in
        ["27.1 mm", "54.1 mm", "50 % less", "31\u{b0}", "No sign of a collapse", "in part"]
    {
        assert!(page.contains(expected), "{expected}: {page}");
    }
    let but = |name: &'static str, value: f64| with(last.clone().with(name, value));
    assert!(but("gap_mae_mm", 60.0).contains("no better than a guess"));
    let good = last.clone().with("gap_mae_mm", 10.0);
    assert!(with(good.clone()).contains("The model has learnt distances"));
    let lost = with(good.with("gap_r2_x", -0.2));
    assert!(
        lost.contains("the gap along left-right (R\u{b2} -0.20)") && lost.contains("verdict bad")
    );
    assert!(!lost.contains("The model has learnt") && lost.contains("along some axes only"));
    let flat = but("feature_std", 1e-5);
    assert!(flat.contains("Collapse alarm") && flat.contains("verdict bad"));
    assert!(but("distant_cosine", 0.969).contains("Collapse alarm"));
    assert!(but("gap_mae_mm", f64::NAN).contains("not measured"));
    assert!(but("gap_baseline_mm", 0.0).contains("not measured"));
}
