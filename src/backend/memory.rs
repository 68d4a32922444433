//! One block of memory for a whole step, and the safe borrowing of many disjoint ranges of it at once.

use crate::scalar::Scalar;
use crate::shape::Shape;

/// Most operands a call may read, and most it may write.
pub const MAX_OPERANDS: usize = 12;

/// A range of elements of a [`Memory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// First element.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// Where a call writes one of its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<V> {
    /// Its place, its value, or its elements.
    pub to: V,
    /// Whether it is added to what is there: the first writer sets, later ones add.
    pub add: bool,
}

impl<V> Write<V> {
    /// The same of another kind of place.
    pub fn map<W>(self, f: impl FnOnce(V) -> W) -> Write<W> {
        Write { to: f(self.to), add: self.add }
    }
}

impl Span {
    fn end(self) -> usize {
        self.offset + self.len
    }
}

/// A block of elements that starts on a cache line. It never grows: a step allocates nothing.
pub struct Memory<T> {
    block: Vec<T>,
    base: usize,
}

impl<T: Scalar> Memory<T> {
    /// A block of `len` zeros.
    pub fn new(len: usize) -> Self {
        let line = 64 / size_of::<T>();
        let block = vec![T::ZERO; len + line];
        let base = block.as_ptr().align_offset(64).min(line);
        Memory { block, base }
    }

    /// The elements of `span`.
    pub fn get(&self, span: Span) -> &[T] {
        &self.block[self.base + span.offset..self.base + span.end()]
    }

    /// The elements of `span`, to write.
    pub fn get_mut(&mut self, span: Span) -> &mut [T] {
        &mut self.block[self.base + span.offset..self.base + span.end()]
    }

    /// Borrows the operands of one call: `reads` shared, `writes` and `workspace` exclusively.
    ///
    /// # Panics
    /// If a written range overlaps any other range: that is a bug in the memory plan.
    pub fn bind<'a>(
        &'a mut self,
        shapes: &'a [Shape],
        reads: &[Span],
        writes: &[Option<Write<Span>>],
        workspace: Span,
    ) -> Io<'a, T> {
        assert!(reads.len() <= MAX_OPERANDS && writes.len() <= MAX_OPERANDS, "too many operands");
        let mut io = Io {
            shapes,
            reads: [&[]; MAX_OPERANDS],
            writes: [const { None }; MAX_OPERANDS],
            add: [false; MAX_OPERANDS],
            workspace: &mut [],
        };
        let mut order = Order::default();
        for (i, &span) in reads.iter().enumerate() {
            order.push(span, Use::Read(i));
        }
        for (i, write) in writes.iter().enumerate() {
            if let Some(Write { to: span, add }) = write {
                io.add[i] = *add;
                order.push(*span, Use::Write(i));
            }
        }
        order.push(workspace, Use::Workspace);
        let base = self.base;
        order.hand_out(&mut self.block[base..], &mut io);
        io
    }
}

/// The operands of one call.
pub struct Io<'a, T> {
    /// Shapes of the operation's inputs (of the forward pass, also when it runs backward).
    pub shapes: &'a [Shape],
    reads: [&'a [T]; MAX_OPERANDS],
    writes: [Option<&'a mut [T]>; MAX_OPERANDS],
    add: [bool; MAX_OPERANDS],
    workspace: &'a mut [T],
}

impl<'a, T> Io<'a, T> {
    /// The `i`-th range that is read.
    pub fn read(&self, i: usize) -> &'a [T] {
        self.reads[i]
    }

    /// The `i`-th range that is written.
    ///
    /// # Panics
    /// If it was not bound, or was taken before.
    pub fn write(&mut self, i: usize) -> &'a mut [T] {
        let Some(out) = self.writes[i].take() else {
            panic!("operand {i} is not bound for writing")
        };
        out
    }

    /// The gradient of input `i` and whether to add to it; `None` if nobody wants it.
    pub fn grad(&mut self, i: usize) -> Option<Write<&'a mut [T]>> {
        self.writes[i].take().map(|to| Write { to, add: self.add[i] })
    }

    /// Scratch elements of the size the operation asked for, with undefined content.
    pub fn workspace(&mut self) -> &'a mut [T] {
        std::mem::take(&mut self.workspace)
    }
}

#[derive(Clone, Copy)]
enum Use {
    Read(usize),
    Write(usize),
    Workspace,
}

/// The spans of a call sorted by offset, so that the block can be split once from left to right.
struct Order {
    items: [(Span, Use); 2 * MAX_OPERANDS + 1],
    len: usize,
}

impl Default for Order {
    fn default() -> Self {
        Order { items: [(Span::default(), Use::Workspace); 2 * MAX_OPERANDS + 1], len: 0 }
    }
}

impl Order {
    fn push(&mut self, span: Span, usage: Use) {
        if span.len > 0 {
            self.items[self.len] = (span, usage);
            self.len += 1;
        }
    }

    fn hand_out<'a, T>(&mut self, mut rest: &'a mut [T], io: &mut Io<'a, T>) {
        let items = &mut self.items[..self.len];
        items.sort_unstable_by_key(|(span, _)| (span.offset, span.len));
        let mut at = 0;
        let mut first = 0;
        while first < items.len() {
            let mut last = first + 1;
            let mut end = items[first].0.end();
            while last < items.len() && items[last].0.offset < end {
                end = end.max(items[last].0.end());
                last += 1;
            }
            let start = items[first].0.offset;
            let (_, tail) = rest.split_at_mut(start - at);
            let (run, tail) = tail.split_at_mut(end - start);
            (rest, at) = (tail, end);
            hand_out_run(run, start, &items[first..last], io);
            first = last;
        }
    }
}

/// Hands out one run of overlapping spans: a single span of any use, or several that are only read.
fn hand_out_run<'a, T>(run: &'a mut [T], start: usize, items: &[(Span, Use)], io: &mut Io<'a, T>) {
    match items {
        [(_, Use::Write(i))] => io.writes[*i] = Some(run),
        [(_, Use::Workspace)] => io.workspace = run,
        _ => {
            let run: &'a [T] = run;
            for (span, usage) in items {
                let Use::Read(i) = usage else {
                    panic!("a written range overlaps another operand")
                };
                io.reads[*i] = &run[span.offset - start..span.end() - start];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(offset: usize, len: usize) -> Span {
        Span { offset, len }
    }

    #[test]
    fn operands_are_the_ranges_asked_for() {
        let mut memory = Memory::<f32>::new(40);
        for (i, x) in memory.get_mut(span(0, 40)).iter_mut().enumerate() {
            *x = i as f32;
        }
        let reads = [span(20, 4), span(22, 2), span(20, 4)];
        let writes = [
            Some(Write { to: span(4, 2), add: true }),
            None,
            Some(Write { to: span(30, 1), add: false }),
        ];
        let mut io = memory.bind(&[], &reads, &writes, span(36, 4));
        assert_eq!(io.read(0), [20.0, 21.0, 22.0, 23.0]);
        assert_eq!(io.read(1), [22.0, 23.0]);
        assert_eq!(io.read(2), io.read(0));
        let Write { to: grad, add } = io.grad(0).unwrap();
        assert_eq!((grad.to_vec(), add), (vec![4.0, 5.0], true));
        assert!(io.grad(1).is_none());
        assert_eq!(io.write(2), [30.0]);
        assert_eq!(io.workspace(), [36.0, 37.0, 38.0, 39.0]);
    }

    #[test]
    #[should_panic(expected = "overlaps")]
    fn writing_what_is_read_is_refused() {
        let mut memory = Memory::<f32>::new(16);
        memory.bind(
            &[],
            &[span(0, 8)],
            &[Some(Write { to: span(4, 8), add: false })],
            Span::default(),
        );
    }

    #[test]
    fn memory_starts_on_a_cache_line() {
        let memory = Memory::<f32>::new(16);
        assert_eq!(memory.get(span(0, 1)).as_ptr().align_offset(64), 0);
    }
}
