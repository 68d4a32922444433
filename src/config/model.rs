//! Section `[model]`: the encoder-decoder, by a preset's name or stage by stage.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::model::{ResEncUNet, Stage};

/// Section `[model]`. Lists that are not empty override the preset's.
///
/// The meaning of a preset's name never changes, so that an old `config.toml` names the same network for ever.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// The named network the lists below start from.
    pub preset: Preset,
    /// Channels of each stage; `custom` needs it.
    pub features: Vec<usize>,
    /// Residual blocks of each stage; `custom` needs it.
    pub blocks: Vec<usize>,
    /// Stride of each stage, `[z, y, x]`. Empty: 1 for the first stage, 2 for the others.
    pub strides: Vec<[usize; 3]>,
    /// Filter size of each stage, `[z, y, x]`. Empty: 3.
    pub kernels: Vec<[usize; 3]>,
    /// Convolutions of each decoder stage.
    pub decoder_convs: usize,
    /// Whether convolutions have a bias.
    pub conv_bias: bool,
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig {
            preset: Preset::ResencS,
            features: Vec::new(),
            blocks: Vec::new(),
            strides: Vec::new(),
            kernels: Vec::new(),
            decoder_convs: 1,
            conv_bias: true,
        }
    }
}

/// A named network.
///
/// nnU-Net's ResEnc-M and ResEnc-L have the same stages; they differ in the memory they are planned for (8 and
/// 24 GB), and so in the size of the view and of the batch. The same holds here: `resenc-m` and `resenc-l` name
/// one network and differ in [`Preset::recommended_view_size`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// Four stages, small enough for a CPU. Ours, not one of nnU-Net's.
    #[serde(rename = "resenc-s")]
    ResencS,
    /// Six stages, as nnU-Net's ResEnc-M.
    #[serde(rename = "resenc-m")]
    ResencM,
    /// Six stages, as nnU-Net's ResEnc-L.
    #[serde(rename = "resenc-l")]
    ResencL,
    /// No preset: `features` and `blocks` must be given.
    #[serde(rename = "custom")]
    Custom,
}

impl Preset {
    /// The view size the network is meant for, `[z, y, x]` in voxels; none for `custom`.
    pub fn recommended_view_size(self) -> Option<[usize; 3]> {
        match self {
            Preset::ResencS => Some([32; 3]),
            Preset::ResencM => Some([128; 3]),
            Preset::ResencL => Some([160; 3]),
            Preset::Custom => None,
        }
    }

    fn stages(self) -> (&'static [usize], &'static [usize]) {
        match self {
            Preset::ResencS => (&[16, 32, 64, 128], &[1, 2, 2, 2]),
            Preset::ResencM | Preset::ResencL => {
                (&[32, 64, 128, 256, 320, 320], &[1, 3, 4, 6, 6, 6])
            }
            Preset::Custom => (&[], &[]),
        }
    }
}

/// The stages of an encoder-decoder, every list filled in and of one length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StagePlan {
    /// Channels of each stage.
    pub features: Vec<usize>,
    /// Residual blocks of each stage.
    pub blocks: Vec<usize>,
    /// Stride of each stage, `[z, y, x]`; the first is 1.
    pub strides: Vec<[usize; 3]>,
    /// Filter size of each stage, `[z, y, x]`, odd.
    pub kernels: Vec<[usize; 3]>,
    /// Convolutions of each decoder stage.
    pub decoder_convs: usize,
    /// Whether convolutions have a bias.
    pub conv_bias: bool,
}

impl StagePlan {
    /// Product of the strides per axis, `[z, y, x]`: what a view's size must be a multiple of.
    pub fn total_stride(&self) -> [usize; 3] {
        let mut total = [1; 3];
        for stride in &self.strides {
            for (t, s) in total.iter_mut().zip(stride) {
                *t *= s;
            }
        }
        total
    }
}

impl ModelConfig {
    /// The network.
    ///
    /// # Errors
    /// [`Error::Config`] as [`ModelConfig::stage_plan`].
    pub fn encoder(&self) -> Result<ResEncUNet> {
        let plan = self.stage_plan()?;
        let stages = (0..plan.features.len()).map(|s| Stage {
            features: plan.features[s],
            blocks: plan.blocks[s],
            kernel: plan.kernels[s],
            stride: plan.strides[s],
        });
        Ok(ResEncUNet {
            in_channels: 1,
            stem_channels: plan.features[0],
            stages: stages.collect(),
            decoder_convs: plan.decoder_convs,
            conv_bias: plan.conv_bias,
        })
    }

    /// The stages this section describes.
    ///
    /// # Errors
    /// [`Error::Config`] if a list is missing, its length differs, or a value is out of range.
    pub fn stage_plan(&self) -> Result<StagePlan> {
        let (features, blocks) = self.preset.stages();
        let features = pick(&self.features, features);
        let blocks = pick(&self.blocks, blocks);
        for (key, list) in [("model.features", &features), ("model.blocks", &blocks)] {
            if list.is_empty() {
                return Err(Error::config(
                    key,
                    "is empty\n  model.preset = \"custom\" needs features and blocks, one number per stage",
                ));
            }
        }
        let count = features.len();
        let mut strides = vec![[2; 3]; count];
        strides[0] = [1; 3];
        let plan = StagePlan {
            strides: pick(&self.strides, &strides),
            kernels: pick(&self.kernels, &vec![[3; 3]; count]),
            features,
            blocks,
            decoder_convs: self.decoder_convs,
            conv_bias: self.conv_bias,
        };
        check_lengths(&plan)?;
        check_values(&plan)?;
        Ok(plan)
    }
}

fn pick<T: Clone>(given: &[T], otherwise: &[T]) -> Vec<T> {
    if given.is_empty() { otherwise.to_vec() } else { given.to_vec() }
}

fn check_lengths(plan: &StagePlan) -> Result<()> {
    let count = plan.features.len();
    if !(2..=8).contains(&count) {
        return Err(Error::config(
            "model.features",
            format!("found {count} stages, needs 2 to 8\n  give one number of channels per stage"),
        ));
    }
    let lengths = [
        ("model.blocks", plan.blocks.len()),
        ("model.strides", plan.strides.len()),
        ("model.kernels", plan.kernels.len()),
    ];
    for (key, length) in lengths {
        if length != count {
            return Err(Error::config(
                key,
                format!("found {length} entries, needs {count}, one per stage of model.features"),
            ));
        }
    }
    Ok(())
}

fn check_values(plan: &StagePlan) -> Result<()> {
    let bad = |key: &str, found: String, needs: &str| {
        Err(Error::config(key, format!("found {found}, needs {needs}")))
    };
    // The heads halve the dense representation's channels three times.
    if !plan.features[0].is_multiple_of(8) {
        let needs = "a multiple of 8 in the first stage: the heads halve its channels three times";
        return bad("model.features", format!("{:?}", plan.features), needs);
    }
    if plan.features.iter().any(|f| !(1..=2048).contains(f)) {
        return bad("model.features", format!("{:?}", plan.features), "1 to 2048 per stage");
    }
    if plan.blocks.iter().any(|b| !(1..=64).contains(b)) {
        return bad("model.blocks", format!("{:?}", plan.blocks), "1 to 64 per stage");
    }
    if plan.strides[0] != [1; 3] {
        let needs = "[1, 1, 1] in the first stage: the dense representation has full resolution";
        return bad("model.strides", format!("{:?}", plan.strides[0]), needs);
    }
    if let Some(stride) = plan.strides.iter().find(|s| s.iter().any(|v| !(1..=2).contains(v))) {
        return bad("model.strides", format!("{stride:?}"), "1 or 2 on each axis");
    }
    if let Some(kernel) = plan.kernels.iter().find(|k| k.iter().any(|v| ![1, 3, 5, 7].contains(v)))
    {
        return bad("model.kernels", format!("{kernel:?}"), "1, 3, 5 or 7 on each axis");
    }
    if !(1..=8).contains(&plan.decoder_convs) {
        return bad("model.decoder_convs", plan.decoder_convs.to_string(), "1 to 8");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_stages_of_the_networks_they_name() {
        let plan = |preset| ModelConfig { preset, ..Default::default() }.stage_plan().unwrap();
        let small = plan(Preset::ResencS);
        assert_eq!(small.features, [16, 32, 64, 128]);
        assert_eq!(small.blocks, [1, 2, 2, 2]);
        assert_eq!(small.total_stride(), [8; 3]);
        let large = plan(Preset::ResencL);
        assert_eq!(large.features, [32, 64, 128, 256, 320, 320]);
        assert_eq!(large.blocks, [1, 3, 4, 6, 6, 6]);
        assert_eq!(large.total_stride(), [32; 3]);
        assert_eq!(large, plan(Preset::ResencM));
        assert_ne!(
            Preset::ResencM.recommended_view_size(),
            Preset::ResencL.recommended_view_size()
        );
    }

    #[test]
    fn custom_lists_are_taken_and_checked() {
        let custom = |features: &[usize], blocks: &[usize]| ModelConfig {
            preset: Preset::Custom,
            features: features.to_vec(),
            blocks: blocks.to_vec(),
            ..Default::default()
        };
        let plan = custom(&[8, 16], &[1, 1]).stage_plan().unwrap();
        assert_eq!(plan.strides, [[1; 3], [2; 3]]);
        assert_eq!(plan.kernels, [[3; 3], [3; 3]]);
        for (bad, key) in [
            (custom(&[], &[1, 1]), "model.features"),
            (custom(&[8, 16], &[]), "model.blocks"),
            (custom(&[8], &[1]), "model.features"),
            (custom(&[8, 16], &[1]), "model.blocks"),
            (custom(&[12, 16], &[1, 1]), "model.features"),
            (custom(&[8, 0], &[1, 1]), "model.features"),
            (custom(&[8, 16], &[1, 0]), "model.blocks"),
            (
                ModelConfig { strides: vec![[2; 3], [2; 3]], ..custom(&[8, 8], &[1, 1]) },
                "model.strides",
            ),
            (
                ModelConfig { strides: vec![[1; 3], [3; 3]], ..custom(&[8, 8], &[1, 1]) },
                "model.strides",
            ),
            (
                ModelConfig { kernels: vec![[3; 3], [2; 3]], ..custom(&[8, 8], &[1, 1]) },
                "model.kernels",
            ),
            (ModelConfig { decoder_convs: 0, ..custom(&[8, 8], &[1, 1]) }, "model.decoder_convs"),
        ] {
            match bad.stage_plan() {
                Err(Error::Config { key: found, .. }) => assert_eq!(found, key, "{bad:?}"),
                other => panic!("{bad:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_list_overrides_its_preset() {
        let model = ModelConfig { blocks: vec![1, 1, 1, 1], ..Default::default() };
        let plan = model.stage_plan().unwrap();
        assert_eq!(plan.blocks, [1, 1, 1, 1]);
        assert_eq!(plan.features, [16, 32, 64, 128]);
    }
}
