//! Streams, events, and captured sequences of launches.

use std::rc::Rc;

use cudarc::driver::{DriverError, result, sys};

use crate::driver::device::Context;
use crate::driver::{Device, failed};
use crate::error::Result;

/// One of a device's two streams. What is queued on one runs in order; between the two only events order
/// ([`Device::wait_for`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Kernels, and copies in order with them.
    Main,
    /// Copies to the device beside them.
    Copies,
}

/// A point in a stream that can be waited for, and timed.
pub struct Event {
    context: Rc<Context>,
    pub(super) handle: sys::CUevent,
}

impl Event {
    pub(super) fn new(context: &Rc<Context>, timed: bool) -> Result<Event> {
        let flags = if timed {
            sys::CUevent_flags::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags::CU_EVENT_DISABLE_TIMING
        };
        let handle = result::event::create(flags).map_err(|e| failed("cuEventCreate", e))?;
        Ok(Event { context: Rc::clone(context), handle })
    }

    /// Waits until everything before its last recording is done.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if something that was queued failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event exists as long as self.
        unsafe { result::event::synchronize(self.handle) }
            .map_err(|e| self.context.lost("cuEventSynchronize", e))
    }

    /// Whether everything before its last recording is done; so is an event that was never recorded. Does not wait.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if something that was queued failed.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: the event exists as long as self.
        match unsafe { result::event::query(self.handle) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(e) => Err(self.context.lost("cuEventQuery", e)),
        }
    }

    /// Milliseconds between `earlier` and this, both timed, recorded and waited for.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if one of them is not.
    pub fn ms_since(&self, earlier: &Event) -> Result<f64> {
        // SAFETY: both events exist.
        unsafe { result::event::elapsed(earlier.handle, self.handle) }
            .map(f64::from)
            .map_err(|e| failed("cuEventElapsedTime", e))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _ = self.context.bind();
        // SAFETY: created by this context, not used any more.
        let _ = unsafe { result::event::destroy(self.handle) };
    }
}

impl Device {
    /// A new event; a timed one costs a little more.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn event(&self, timed: bool) -> Result<Event> {
        Event::new(&self.context, timed)
    }

    /// Records `event` behind everything queued on the main stream.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.record_on(Stream::Main, event)
    }

    /// Records `event` behind everything queued on a stream.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn record_on(&self, stream: Stream, event: &Event) -> Result<()> {
        // SAFETY: event and stream exist.
        unsafe { result::event::record(event.handle, self.context.handle(stream)) }
            .map_err(|e| failed("cuEventRecord", e))
    }

    /// Lets what is queued on `stream` from now on begin only when everything before the last recording of `event` is
    /// done; the host does not wait.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn wait_for(&self, stream: Stream, event: &Event) -> Result<()> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream exist.
        unsafe { result::stream::wait_event(self.context.handle(stream), event.handle, flags) }
            .map_err(|e| failed("cuStreamWaitEvent", e))
    }

    /// Captures what `queue` queues instead of running it.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if something in it cannot be captured.
    pub fn capture(&self, queue: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let stream = self.context.handle(Stream::Main);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists and is not being captured.
        unsafe { result::stream::begin_capture(stream, mode) }
            .map_err(|e| failed("cuStreamBeginCapture", e))?;
        let queued = queue();
        // SAFETY: begun above; ends the capture in any case.
        let graph = unsafe { result::stream::end_capture(stream) };
        queued?;
        Graph::new(&self.context, graph.map_err(|e| failed("cuStreamEndCapture", e))?)
    }

    /// Queues a captured sequence.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the driver refuses.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: graph and stream exist; what the graph touches outlives it (the step owns both).
        unsafe { result::graph::launch(graph.exec, self.context.handle(Stream::Main)) }
            .map_err(|e| failed("cuGraphLaunch", e))
    }
}

/// A captured sequence of launches, ready to be launched as one.
pub struct Graph {
    context: Rc<Context>,
    graph: sys::CUgraph,
    pub(super) exec: sys::CUgraphExec,
    /// Number of captured operations.
    pub nodes: usize,
}

impl Graph {
    pub(super) fn new(context: &Rc<Context>, graph: sys::CUgraph) -> Result<Graph> {
        let (mut exec, mut nodes) = (std::ptr::null_mut(), 0usize);
        // SAFETY: the graph was just captured; a null array asks for the number of nodes.
        let made = unsafe {
            sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &raw mut nodes)
                .result()
                .and_then(|()| sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0).result())
        };
        if let Err(error) = made {
            // SAFETY: the graph is ours and is given up.
            let _ = unsafe { result::graph::destroy(graph) };
            return Err(failed("cuGraphInstantiate", error));
        }
        Ok(Graph { context: Rc::clone(context), graph, exec, nodes })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.context.finish();
        // SAFETY: created by this context, not running any more.
        unsafe {
            let _ = result::graph::exec_destroy(self.exec);
            let _ = result::graph::destroy(self.graph);
        }
    }
}
