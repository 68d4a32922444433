//! Linear warm-up, then a half cosine.

/// Learning rate over the steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    /// Highest rate.
    pub lr: f64,
    /// Steps of the linear rise from 0.
    pub warmup_steps: u64,
    /// All steps.
    pub steps: u64,
    /// Rate at the end, as a fraction of the highest.
    pub final_fraction: f64,
}

impl Schedule {
    /// Rate of step `step`, counted from 0. The first is `lr / warmup_steps`, so no step is wasted at rate 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / rest).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
        self.lr * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }
}

/// Weight of the new parameters at average update number `update`: the first copies, later ones use
/// `max(momentum, gamma / (gamma + update))`, and only every `interval`-th does anything.
pub fn ema_weight(update: u64, momentum: f64, gamma: f64, interval: u64) -> f64 {
    match update {
        0 => 1.0,
        u if u.is_multiple_of(interval.max(1)) => momentum.max(gamma / (gamma + u as f64)),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_rises_then_falls_to_its_end() {
        let s = Schedule { lr: 2.0, warmup_steps: 4, steps: 12, final_fraction: 0.25 };
        let rates: Vec<f64> = (0..13).map(|i| s.at(i)).collect();
        assert_eq!(rates[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!(rates[5..].windows(2).all(|w| w[0] >= w[1]));
        assert!((s.at(8) - (0.5 + 1.5 * 0.5)).abs() < 1e-12 && s.at(12) == 0.5 && s.at(99) == 0.5);
    }

    #[test]
    fn average_copies_first_then_slows_down() {
        assert_eq!(ema_weight(0, 1e-4, 100.0, 3), 1.0);
        assert_eq!(ema_weight(1, 1e-4, 100.0, 3), 0.0);
        assert_eq!(ema_weight(100, 1e-4, 100.0, 1), 0.5);
        assert_eq!(ema_weight(10_000_000, 1e-4, 100.0, 1), 1e-4);
    }
}
