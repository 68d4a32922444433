//! Events, and captured sequences of launches.

use std::rc::Rc;

use cudarc::driver::{result, sys};

use super::device::Context;
use super::failed;
use crate::error::Result;

/// A point in the stream that can be waited for, and timed.
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
