//! Instruction sets of the convolution tiles.

/// Instruction set a tile runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    /// 512-bit vectors.
    Avx512,
    /// 256-bit vectors with fused multiply-add.
    Avx2,
    /// What the compiler makes of plain code.
    Portable,
}

impl Isa {
    /// Whether this processor can run it.
    pub(super) fn supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Isa::Avx512 => is_x86_feature_detected!("avx512f"),
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Isa::Portable => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Isa::Portable
        }
    }

    /// The fastest supported one.
    pub(super) fn best() -> Self {
        let order = [Isa::Avx512, Isa::Avx2];
        order.into_iter().find(|isa| isa.supported()).unwrap_or(Isa::Portable)
    }
}
