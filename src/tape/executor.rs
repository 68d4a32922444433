//! A step on whichever device runs it: now on the CPU, a little later on a GPU.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::Result;
use crate::tape::{CudaStep, Plan, Step, ValueId};

/// A planned tape with its memory, on the CPU or on a CUDA device.
///
/// A step is submitted, and its results are collected later. The CPU computes it at once; a GPU works on it while the
/// next one is prepared.
pub enum Executor {
    /// On the CPU.
    Cpu {
        /// Memory and calls.
        step: Step<f32>,
        /// Whether a step was submitted and not collected.
        in_flight: bool,
    },
    /// On a CUDA device.
    Cuda(Box<CudaStep>),
}

impl Executor {
    /// On the CPU.
    pub fn cpu(step: Step<f32>) -> Self {
        Executor::Cpu { step, in_flight: false }
    }

    /// The plan it runs by, and the bytes of what it counts in.
    pub fn plan(&self) -> (&Plan, usize) {
        match self {
            Executor::Cpu { step, .. } => (step.plan(), size_of::<f32>()),
            Executor::Cuda(step) => (step.plan(), 1),
        }
    }

    /// Sets a value; see [`CudaStep::write`] for when it arrives.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn write(&mut self, id: ValueId, data: &[f32]) -> Result<()> {
        match self {
            Executor::Cpu { step, .. } => step.write(id).copy_from_slice(data),
            Executor::Cuda(step) => step.write(id, data)?,
        }
        Ok(())
    }

    /// Elements of an input, parameter, state or result, behind everything submitted.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn read(&self, id: ValueId) -> Result<Cow<'_, [f32]>> {
        Ok(match self {
            Executor::Cpu { step, .. } => Cow::Borrowed(step.read(id)),
            Executor::Cuda(step) => Cow::Owned(step.read(id)?),
        })
    }

    /// Submits one step.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    ///
    /// # Panics
    /// If as many steps are in flight as may be: collect one first.
    pub fn submit(&mut self) -> Result<()> {
        match self {
            Executor::Cpu { step, in_flight } => {
                assert!(!*in_flight, "a step is collected before the next is submitted");
                step.run();
                *in_flight = true;
                Ok(())
            }
            Executor::Cuda(step) => step.submit(),
        }
    }

    /// Whether another step can be submitted.
    pub fn can_submit(&self) -> bool {
        match self {
            Executor::Cpu { in_flight, .. } => !in_flight,
            Executor::Cuda(step) => step.can_submit(),
        }
    }

    /// Waits for the oldest step submitted and not collected; false if there is none.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the step failed on the device.
    pub fn collect(&mut self) -> Result<bool> {
        match self {
            Executor::Cpu { in_flight, .. } => Ok(std::mem::take(in_flight)),
            Executor::Cuda(step) => step.collect(),
        }
    }

    /// First element of a result of the step collected last.
    pub fn result(&self, id: ValueId) -> f64 {
        match self {
            Executor::Cpu { step, .. } => f64::from(step.read(id)[0]),
            Executor::Cuda(step) => f64::from(step.result(id)[0]),
        }
    }

    /// Runs the records of a range and waits.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails.
    pub fn run_range(&mut self, range: Range<usize>) -> Result<()> {
        match self {
            Executor::Cpu { step, .. } => step.run_range(range),
            Executor::Cuda(step) => step.run_range(range)?,
        }
        Ok(())
    }

    /// Tells a profiler of the device to begin or to end; on the CPU there is none to tell.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn profiler(&self, on: bool) -> Result<()> {
        match self {
            Executor::Cpu { .. } => Ok(()),
            Executor::Cuda(step) => step.queue().device.profiler(on),
        }
    }
}
