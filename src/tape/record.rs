//! Recording: values, records, and the tape that holds them.

use crate::backend::Write;
use crate::error::Result;
use crate::ops::{Op, Pass};
use crate::shape::Shape;

/// Handle of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(super) u32);

impl ValueId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// How a parameter is initialised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// All elements equal.
    Constant(f64),
    /// Normal, mean 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in `[-bound, bound]`.
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
}

/// What a value is for, which decides where it lives and how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Written from outside before each run.
    Input,
    /// A trained tensor.
    Param(Init),
    /// Kept from step to step but not trained: moments, the averaged encoder.
    State,
    /// Kept until read from outside.
    Result,
    /// Lives in the arena from its first write to its last read.
    Temporary,
}

/// A tensor on the tape.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name, parameters by the field's own.
    pub name: String,
    /// Extents.
    pub shape: Shape,
    /// What it is for.
    pub role: Role,
    /// The value whose memory it shares, and where in it.
    pub(super) alias: Option<(ValueId, usize)>,
    /// Whether a gradient flows through it.
    pub(super) requires_grad: bool,
}

/// One operation in one pass.
#[derive(Clone, Debug)]
pub struct Record {
    /// Name of what it makes.
    pub name: String,
    /// The operation.
    pub op: Op,
    /// Forward or backward.
    pub pass: Pass,
    /// Shapes of the operation's inputs.
    pub shapes: Vec<Shape>,
    /// Values read, in the operation's order.
    pub reads: Vec<ValueId>,
    /// Values written, in the operation's order, and whether to add to them.
    pub writes: Vec<Option<Write<ValueId>>>,
    /// Number of the forward record that a backward record differentiates (of a gradient-norm tap, which runs nothing
    /// forward, the next one); a forward record's own.
    pub forward: usize,
}

/// A list of records under construction.
#[derive(Clone, Debug, Default)]
pub struct Tape {
    pub(super) values: Vec<Value>,
    pub(super) records: Vec<Record>,
    /// Forward records that backward differentiates, with inputs and outputs, in order.
    pub(super) forward: Vec<(usize, Vec<ValueId>, Vec<ValueId>)>,
    /// Results that taps write, by the tap's output.
    pub(super) taps: Vec<(ValueId, ValueId)>,
}

impl Tape {
    pub(super) fn value(&mut self, name: impl Into<String>, shape: Shape, role: Role) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).unwrap_or(u32::MAX));
        let requires_grad = matches!(role, Role::Param(_));
        self.values.push(Value { name: name.into(), shape, role, alias: None, requires_grad });
        id
    }

    /// A value written from outside before each run.
    pub fn input(&mut self, name: impl Into<String>, dims: &[usize]) -> ValueId {
        self.value(name, Shape::new(dims), Role::Input)
    }

    /// A trained tensor.
    pub fn param(&mut self, name: impl Into<String>, dims: &[usize], init: Init) -> ValueId {
        self.value(name, Shape::new(dims), Role::Param(init))
    }

    /// A tensor kept from step to step that no gradient reaches; starts as zeros.
    pub fn state(&mut self, name: impl Into<String>, dims: &[usize]) -> ValueId {
        self.value(name, Shape::new(dims), Role::State)
    }

    /// Makes `id` stay readable after the run.
    pub fn keep(&mut self, id: ValueId) {
        let root = self.root(id).0;
        if self.values[root.index()].role == Role::Temporary {
            self.values[root.index()].role = Role::Result;
        }
    }

    /// The value `id` names.
    pub fn get(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// Shape of `id`.
    pub fn shape(&self, id: ValueId) -> Shape {
        self.values[id.index()].shape
    }

    /// All values with their handles.
    pub fn values(&self) -> impl Iterator<Item = (ValueId, &Value)> {
        self.values.iter().enumerate().map(|(i, v)| (ValueId(i as u32), v))
    }

    /// All records, in the order they run.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Handles of all parameters, in the order they were made.
    pub fn params(&self) -> Vec<ValueId> {
        self.values().filter(|(_, v)| matches!(v.role, Role::Param(_))).map(|(id, _)| id).collect()
    }

    /// Lays `members`, in this order, one behind the other in one new value of the role given, each on a cache line.
    /// They keep their handles and shapes.
    ///
    /// # Panics
    /// If a member already shares another value's memory.
    pub fn pack(&mut self, name: impl Into<String>, members: &[ValueId], role: Role) -> ValueId {
        let mut len = 0;
        let offsets: Vec<usize> = members
            .iter()
            .map(|&m| {
                let at = len;
                len += self.shape(m).len().next_multiple_of(16);
                at
            })
            .collect();
        let root = self.value(name, Shape::new(&[len]), role);
        for (&member, offset) in members.iter().zip(offsets) {
            let value = &mut self.values[member.index()];
            assert!(value.alias.is_none(), "{} is packed already", value.name);
            value.alias = Some((root, offset));
        }
        root
    }

    /// The value that owns the memory of `id`, and where in it `id` begins.
    pub(super) fn root(&self, id: ValueId) -> (ValueId, usize) {
        let (mut id, mut offset) = (id, 0);
        while let Some((parent, at)) = self.values[id.index()].alias {
            offset += at;
            id = parent;
        }
        (id, offset)
    }

    /// Records `op` on `inputs`; returns its outputs.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the shapes do not fit.
    pub fn record_all(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> Result<Vec<ValueId>> {
        let op = op.into();
        let shapes: Vec<Shape> = inputs.iter().map(|&i| self.shape(i)).collect();
        let outputs: Vec<ValueId> = op
            .rule()
            .infer(&shapes)?
            .into_iter()
            .map(|shape| self.value(name, shape, Role::Temporary))
            .collect();
        let grad = inputs
            .iter()
            .enumerate()
            .any(|(i, v)| op.rule().differentiable(i) && self.values[v.index()].requires_grad);
        self.values[outputs[0].index()].requires_grad = grad;
        self.forward.push((self.records.len(), inputs.to_vec(), outputs.clone()));
        self.records.push(Record {
            name: name.to_string(),
            op,
            pass: Pass::Forward,
            shapes,
            reads: inputs.to_vec(),
            writes: outputs.iter().map(|&o| Some(Write { to: o, add: false })).collect(),
            forward: self.records.len(),
        });
        Ok(outputs)
    }

    /// Records `op` on `inputs`; returns its first output.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the shapes do not fit.
    pub fn record(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        Ok(self.record_all(name, op, inputs)?[0])
    }

    /// Records `op`, an update, which writes into the existing `outputs`. Backward does not see it.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the shapes do not fit.
    pub fn update(
        &mut self,
        name: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
        outputs: &[ValueId],
    ) -> Result<()> {
        let op = op.into();
        let shapes: Vec<Shape> = inputs.iter().map(|&i| self.shape(i)).collect();
        let made = op.rule().infer(&shapes)?;
        let fits = made.len() == outputs.len()
            && made.iter().zip(outputs).all(|(m, &o)| *m == self.shape(o));
        assert!(fits, "{name} writes {made:?}");
        self.records.push(Record {
            name: name.to_string(),
            op,
            pass: Pass::Forward,
            shapes,
            reads: inputs.to_vec(),
            writes: outputs.iter().map(|&o| Some(Write { to: o, add: false })).collect(),
            forward: self.records.len(),
        });
        Ok(())
    }

    /// The same elements under another shape, in the same memory.
    ///
    /// # Panics
    /// If the number of elements differs.
    pub fn reshape(&mut self, id: ValueId, dims: &[usize]) -> ValueId {
        let shape = Shape::new(dims);
        assert_eq!(shape.len(), self.shape(id).len(), "reshaping {} to {shape}", self.shape(id));
        self.values[id.index()].shape = shape;
        id
    }

    /// A second name for `id` at which the gradient is measured: returns the name and the result, one element, that
    /// will hold the norm of the gradient arriving there.
    ///
    /// # Errors
    /// None in practice; the shape rule of the operation is asked as for any other.
    pub fn tap(&mut self, name: &str, id: ValueId) -> Result<(ValueId, ValueId)> {
        let output = self.record(name, crate::ops::GradNormTap, &[id])?;
        self.values[output.index()].alias = Some((id, 0));
        // The output is the input: nothing runs forward.
        self.records.pop();
        let norm = self.value(format!("{name}.grad_norm"), Shape::new(&[1]), Role::Result);
        self.taps.push((output, norm));
        Ok((output, norm))
    }
}
