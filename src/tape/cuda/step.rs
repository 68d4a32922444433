//! A planned tape in the memory of a CUDA device: what runs there.
//!
//! One allocation holds everything, or one each value (`places.rs`). A step is: one copy of all inputs from page-locked
//! memory, the launches (after two eager steps captured into a graph and replayed), one copy of all results back.
//! Inputs that are made on the device are made by launches at the head of the step, captured with the others, and not
//! copied. Nothing is allocated or read back in between, and the host may prepare the next step while one runs.

use std::ops::Range;

use half::bf16;

use crate::backend::Span;
use crate::backend::cuda::{Queue, Storage};
use crate::driver::{DevPtr, Device, Event, Graph, Kernel, Pinned, Range as ProfilerRange, Stream};
use crate::error::Result;
use crate::ops::{CudaIo, FusedCall, Op, Pass};
use crate::tape::cuda::fusion::{FusedPair, pairs};
use crate::tape::cuda::layout::{ALIGN, Call, Layout};
use crate::tape::cuda::places::{Arrangement, Places};
use crate::tape::{Plan, Role, Tape, ValueId};

/// Steps that are launched one kernel at a time before one is captured.
const EAGER: u64 = 2;
/// Steps that may be in flight at once: one runs while the next is prepared.
const SLOTS: usize = 2;

/// Page-locked copies of inputs and results of one step in flight.
struct Slot {
    inputs: Pinned,
    results: Pinned,
    done: Event,
    busy: bool,
}

/// All memory and all calls of a tape on a device.
pub struct CudaStep {
    // Dropped in this order: what uses the device before the device.
    graph: Option<Graph>,
    slots: Vec<Slot>,
    places: Places,
    queue: Queue,
    calls: Vec<Call>,
    layout: Layout,
    /// Role, storage and root of every value, for copies.
    values: Vec<(Role, ValueId, usize)>,
    use_graph: bool,
    /// Bytes at the start of the inputs that are made on the device.
    made: usize,
    submitted: u64,
    collected: u64,
}

impl CudaStep {
    /// Plans `tape`, allocates its memory on `device`, all zeros, and loads all kernels it needs.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if memory does not suffice or a kernel is missing.
    pub fn new(tape: &Tape, device: Device, use_graph: bool) -> Result<CudaStep> {
        CudaStep::arranged(tape, device, use_graph, Arrangement::Planned)
    }

    /// The same with values in allocations as `arrangement` says. The bits are the same.
    ///
    /// # Errors
    /// As [`CudaStep::new`].
    pub fn arranged(
        tape: &Tape,
        device: Device,
        use_graph: bool,
        arrangement: Arrangement,
    ) -> Result<CudaStep> {
        let layout = Layout::new(tape, pairs(tape), arrangement);
        CudaStep::with(tape, device, use_graph, layout)
    }

    /// The same with every call on its own: none does a part of another's work. For comparison.
    ///
    /// # Errors
    /// As [`CudaStep::new`].
    pub fn unfused(tape: &Tape, device: Device, use_graph: bool) -> Result<CudaStep> {
        let layout = Layout::new(tape, Vec::new(), Arrangement::Planned);
        CudaStep::with(tape, device, use_graph, layout)
    }

    /// The same with those pairs only whose operations `fuses` accepts: the first and the second. For comparison.
    ///
    /// # Errors
    /// As [`CudaStep::new`].
    pub fn fusing(
        tape: &Tape,
        device: Device,
        use_graph: bool,
        fuses: impl Fn(&Op, &Op) -> bool,
    ) -> Result<CudaStep> {
        let op = |at: usize| &tape.records()[at].op;
        let mut pairs = pairs(tape);
        pairs.retain(|pair| fuses(op(pair.first), op(pair.second)));
        let layout = Layout::new(tape, pairs, Arrangement::Planned);
        CudaStep::with(tape, device, use_graph, layout)
    }

    fn with(tape: &Tape, device: Device, use_graph: bool, layout: Layout) -> Result<CudaStep> {
        device.load(tape.records().iter().flat_map(|r| r.op.cuda().kernels()))?;
        let places = Places::new(layout.allocations(tape), &device)?;
        for range in [0..layout.plan.persistent_len, layout.plan.len..layout.len] {
            for piece in places.pieces(range) {
                device.zero(piece.block, piece.offset, piece.bytes.len())?;
            }
        }
        let calls = layout.calls(tape, &places);
        let slots = (0..SLOTS)
            .map(|_| {
                Ok(Slot {
                    inputs: device.pinned(layout.plan.inputs.len)?,
                    results: device.pinned(layout.plan.results.len)?,
                    done: device.event(false)?,
                    busy: false,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let values = tape
            .values()
            .map(|(id, _)| {
                let (root, elements) = tape.root(id);
                (tape.get(root).role, root, elements)
            })
            .collect();
        let use_graph = use_graph && !device.syncs_each();
        let queue = Queue::new(device);
        let (submitted, collected) = (0, 0);
        let graph = None;
        let step = CudaStep {
            graph,
            slots,
            places,
            queue,
            calls,
            layout,
            values,
            use_graph,
            made: 0,
            submitted,
            collected,
        };
        step.queue.device.sync()?;
        Ok(step)
    }

    /// The plan it runs by, in bytes; the bf16 copies of filters lie behind it.
    pub fn plan(&self) -> &Plan {
        &self.layout.plan
    }

    /// Bytes of device memory in all.
    pub fn device_len(&self) -> usize {
        self.places.len()
    }

    /// The queue, to time launches.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Where a value that is stored in bf16 lies, for kernels that make an input.
    ///
    /// # Panics
    /// If it is stored otherwise.
    pub fn half_address(&self, id: ValueId) -> DevPtr {
        assert_eq!(self.storage(id), Storage::Half, "an input made on the device is bf16");
        self.places.address(self.layout.plan.span(id).offset)
    }

    fn storage(&self, id: ValueId) -> Storage {
        self.layout.storages[self.values[id.index()].1.index()]
    }

    /// Sets a value. An input is copied to the device by the next step, and stays for later steps only if it was
    /// written while none was in flight; anything else is copied at once.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if a copy or something queued before fails.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn write(&mut self, id: ValueId, data: &[f32]) -> Result<()> {
        let span = self.layout.plan.span(id);
        let storage = self.storage(id);
        assert_eq!(data.len() * storage.element_len(), span.len, "elements of a value");
        if self.values[id.index()].0 == Role::Input {
            let at = span.offset - self.layout.plan.inputs.offset;
            for slot in &mut self.slots {
                if !slot.busy {
                    encode(data, storage, &mut slot.inputs.bytes_mut()[at..at + span.len]);
                }
            }
            return Ok(());
        }
        let mut bytes = vec![0; span.len];
        encode(data, storage, &mut bytes);
        self.upload(span.offset, &bytes)?;
        let (_, root, elements) = self.values[id.index()];
        if let Some(at) = self.layout.half_copy((root, elements)) {
            let mut bytes = vec![0; 2 * data.len()];
            encode(data, Storage::Half, &mut bytes);
            self.upload(at, &bytes)?;
        }
        Ok(())
    }

    fn upload(&self, at: usize, bytes: &[u8]) -> Result<()> {
        for piece in self.places.pieces(at..at + bytes.len()) {
            self.queue.device.upload(piece.block, piece.offset, &bytes[piece.bytes])?;
        }
        Ok(())
    }

    fn download(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        for piece in self.places.pieces(at..at + len) {
            self.queue.device.download(piece.block, piece.offset, &mut bytes[piece.bytes])?;
        }
        Ok(bytes)
    }

    /// Elements of a value, behind everything queued: an input, parameter, state or result.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if a copy or something queued before fails.
    pub fn read(&self, id: ValueId) -> Result<Vec<f32>> {
        let span = self.layout.plan.span(id);
        Ok(decode(&self.download(span.offset, span.len)?, self.storage(id)))
    }

    /// The bf16 copy of a value that has one.
    ///
    /// # Errors
    /// As [`CudaStep::read`].
    pub fn read_half_copy(&self, id: ValueId) -> Result<Option<Vec<f32>>> {
        let (_, root, elements) = self.values[id.index()];
        let Some(at) = self.layout.half_copy((root, elements)) else { return Ok(None) };
        let bytes = self.download(at, self.layout.plan.span(id).len / 2)?;
        Ok(Some(decode(&bytes, Storage::Half)))
    }

    /// Number of steps submitted and not collected.
    pub fn in_flight(&self) -> usize {
        (self.submitted - self.collected) as usize
    }

    /// Whether another step can be prepared without collecting one first.
    pub fn can_submit(&self) -> bool {
        self.in_flight() < SLOTS
    }

    /// Queues one step: inputs, all records, results.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    ///
    /// # Panics
    /// If two steps are in flight: collect one first. If inputs are made on the device.
    pub fn submit(&mut self) -> Result<()> {
        assert_eq!(self.made, 0, "inputs are made on the device: by submit_making");
        self.submit_making(|_| Ok(()))
    }

    /// From now on steps make these inputs, the first of the tape, on the device, and copy only the others.
    ///
    /// # Panics
    /// If they are not the first, or a step was submitted.
    pub fn make_on_device(&mut self, ids: &[ValueId]) {
        assert_eq!(self.submitted, 0, "what is made on the device is said before the first step");
        let begin = self.layout.plan.inputs.offset;
        for &id in ids {
            let span = self.layout.plan.span(id);
            assert_eq!(span.offset, begin + self.made, "inputs made on the device come first");
            self.made += span.len.next_multiple_of(ALIGN);
        }
    }

    /// The same as [`CudaStep::submit`] with inputs that are made on the device by the launches that `make` queues, the
    /// same for every step: they are captured with the records. What they read is in device memory, or on its way by
    /// what was queued before.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses, or what `make` returns.
    ///
    /// # Panics
    /// If two steps are in flight: collect one first.
    pub fn submit_making(&mut self, make: impl FnOnce(&Queue) -> Result<()>) -> Result<()> {
        assert!(self.can_submit(), "a step is collected before a third is submitted");
        let number = self.submitted;
        let _range = ProfilerRange::new(|| format!("step {number}"));
        self.send_inputs(self.made)?;
        let launch = || {
            make(&self.queue)?;
            self.launch(0..self.calls.len())
        };
        match &self.graph {
            Some(graph) => self.queue.device.replay(graph)?,
            None if self.use_graph && self.submitted >= EAGER => {
                let graph = self.queue.device.capture(launch)?;
                self.queue.device.replay(&graph)?;
                self.graph = Some(graph);
            }
            None => launch()?,
        }
        let at = (self.submitted % SLOTS as u64) as usize;
        let Span { offset, len } = self.layout.plan.results;
        let slot = &mut self.slots[at];
        for piece in self.places.pieces(offset..offset + len) {
            self.queue.device.download_later(
                &mut slot.results,
                piece.bytes,
                piece.block,
                piece.offset,
            )?;
        }
        self.queue.device.record(&slot.done)?;
        slot.busy = true;
        self.submitted += 1;
        Ok(())
    }

    /// Waits for the oldest step in flight; [`CudaStep::result`] then gives its results. Returns whether there was one.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the step failed on the device.
    pub fn collect(&mut self) -> Result<bool> {
        if self.in_flight() == 0 {
            return Ok(false);
        }
        let slot = &mut self.slots[(self.collected % SLOTS as u64) as usize];
        slot.done.wait()?;
        slot.busy = false;
        self.collected += 1;
        Ok(true)
    }

    /// A result of the step collected last.
    ///
    /// # Panics
    /// If the value is not a result or no step was collected.
    pub fn result(&self, id: ValueId) -> Vec<f32> {
        assert!(self.collected > 0, "a result is read after a step was collected");
        assert_eq!(self.values[id.index()].0, Role::Result, "only results are read late");
        let slot = &self.slots[((self.collected - 1) % SLOTS as u64) as usize];
        let (span, results) = (self.layout.plan.span(id), self.layout.plan.results);
        let at = span.offset - results.offset;
        decode(&slot.results.bytes()[at..at + span.len], self.storage(id))
    }

    /// Copies the inputs, all of them from the host, and runs the records of a range, one launch at a time, and waits:
    /// for validation and tests.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if something fails on the device.
    ///
    /// # Panics
    /// If steps are in flight.
    pub fn run_range(&mut self, range: Range<usize>) -> Result<()> {
        assert_eq!(self.in_flight(), 0, "steps in flight are collected first");
        self.send_inputs(0)?;
        self.launch(range)?;
        self.queue.device.sync()
    }

    /// All kernels its records may launch, some more than once.
    pub fn kernels(&self) -> impl Iterator<Item = &'static Kernel> + '_ {
        self.calls.iter().flat_map(|call| call.op.cuda().kernels())
    }

    /// Pairs of records that are fused: the numbers of the first and the second.
    pub fn fusions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.layout.pairs.iter().map(|pair| (pair.first, pair.second))
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether steps are replayed from a graph, and of how many operations.
    pub fn graph_nodes(&self) -> Option<usize> {
        self.graph.as_ref().map(|graph| graph.nodes)
    }

    /// Everything that the launches of a call may write and someone may read later, what it does for the calls it is
    /// fused with included.
    fn written(&self, call: &Call) -> Vec<(DevPtr, usize)> {
        let fused = [call.next, call.last].into_iter().flatten().map(|(at, _)| &self.calls[at]);
        [call].into_iter().chain(fused).flat_map(|call| call.written.iter().copied()).collect()
    }

    /// Queues the copy of the inputs behind their first `from` bytes.
    fn send_inputs(&self, from: usize) -> Result<()> {
        let Span { offset, len } = self.layout.plan.inputs;
        if from == len {
            return Ok(());
        }
        let slot = &self.slots[(self.submitted % SLOTS as u64) as usize];
        for piece in self.places.pieces(offset + from..offset + len) {
            let bytes = from + piece.bytes.start..from + piece.bytes.end;
            let (device, block) = (&self.queue.device, piece.block);
            device.upload_on(Stream::Main, block, piece.offset, &slot.inputs, bytes)?;
        }
        Ok(())
    }

    /// Queues the records of a range, one launch at a time, and nothing else: neither copies nor waits. For
    /// measurements.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn launch(&self, range: Range<usize>) -> Result<()> {
        let work = self.places.address(self.layout.plan.workspace.offset);
        for FusedPair { first, second, fusion } in &self.layout.pairs {
            let whole = range.contains(first) == range.contains(second);
            assert!(
                whole || fusion.eliminated.is_none(),
                "calls {first} and {second} run together"
            );
        }
        for call in &self.calls[range.clone()] {
            let fused = |other: Option<(usize, DevPtr)>| {
                let (at, fused_scratch) = other.filter(|(at, _)| range.contains(at))?;
                let Call { op, shapes, reads, writes, .. } = &self.calls[at];
                Some(FusedCall { op, shapes, reads, writes, fused_scratch })
            };
            let (next, last) = (fused(call.next), fused(call.last));
            let io = CudaIo {
                shapes: &call.shapes,
                reads: &call.reads,
                writes: &call.writes,
                work,
                next,
                last,
            };
            let phase = call.phase();
            let _range = ProfilerRange::new(|| format!("{phase} {}", call.name));
            let first = self.queue.begin_record(|| self.written(call));
            match call.pass {
                Pass::Forward => call.op.cuda().cuda_forward(&io, &self.queue)?,
                Pass::Backward => call.op.cuda().cuda_backward(&io, &self.queue)?,
            }
            if let Some(first) = first {
                self.queue.state_work(first, |names, at| call.work.of(names, at));
            }
        }
        Ok(())
    }
}

/// Numbers as they lie on the device: f32, or rounded to the nearest bf16.
fn encode(data: &[f32], storage: Storage, bytes: &mut [u8]) {
    if storage == Storage::Half {
        for (to, &x) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(data) {
            *to = bf16::from_f32(x).to_le_bytes();
        }
    } else {
        bytes.copy_from_slice(bytemuck::cast_slice(data));
    }
}

fn decode(bytes: &[u8], storage: Storage) -> Vec<f32> {
    if storage == Storage::Half {
        bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
    } else {
        bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }
}
