//! The storage buffers of the kernels, by name.
//!
//! `tensors!` defines a kernel's buffers as a struct with a field for each, in the order of their
//! bindings. A program declares the buffers as such a struct of [`Tensor`]s, and a call binds them
//! as the same struct of bindings. A field's name is the buffer's name in the shaders.

use flashrnn_core::Dtype;

/// Holds a value for each storage buffer of a kernel.
pub trait TensorSet<X> {
    /// The buffers' names, in the order of their bindings.
    const NAMES: &'static [&'static str];

    /// Returns the values, in the order of their bindings.
    fn into_vec(self) -> Vec<X>;
}

macro_rules! tensors {
    ($($(#[$meta:meta])* $name:ident { $($field:ident),* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name<X> {
            $(pub $field: X),*
        }

        impl<X> TensorSet<X> for $name<X> {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];

            fn into_vec(self) -> Vec<X> {
                vec![$(self.$field),*]
            }
        }
    )*};
}

tensors! {
    /// The buffers of the forward pass's time steps.
    ForwardTensors { weights, wx, work, h, states, gates, wide }
    /// The buffers of the backward pass's time steps.
    BackwardTensors { weights, states, gates, wide, d_states, work, d_wx }
    /// The buffers of the kernel that recomputes gates.
    RecomputeTensors { weights, wx, states, work, gates }
    /// The buffers of the kernels that compute partial sums of d_r and d_b.
    GradTensors { states, d_wx, work, partial }
    /// The buffers of the kernel that adds partial sums.
    ReduceTensors { partial, out }
    /// The buffers of the kernels that pack weights.
    PackTensors { r, b, weights }
    /// The buffers of the kernels that probe the driver.
    ProbeTensors { result }
}

/// Declares a storage buffer: what it holds, and how the kernel uses it.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    access: Access,
    /// Whether 16-bit elements saturate when they are stored, as states and gates do.
    saturates: bool,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    /// Only read, but bound for writing because the buffer also holds tensors that are written.
    ReadShared,
    Write,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Elements behind `load_` and `store_` functions.
    Elements(Dtype),
    /// Elements that are read or written in pairs. A pair of 16-bit elements is a whole word.
    Pairs(Dtype),
    /// An array of this WGSL type.
    Plain(&'static str),
}

impl Tensor {
    /// Declares a tensor that is read.
    pub(super) fn read(dtype: Dtype) -> Self {
        Self { access: Access::Read, saturates: false, kind: Kind::Elements(dtype) }
    }

    /// Declares a tensor that is written.
    pub(super) fn write(dtype: Dtype) -> Self {
        Self { access: Access::Write, ..Self::read(dtype) }
    }

    /// Declares an array, read by the kernel, of elements of the WGSL type `ty`.
    pub(super) fn read_plain(ty: &'static str) -> Self {
        Self { access: Access::Read, saturates: false, kind: Kind::Plain(ty) }
    }

    /// Declares an array, written by the kernel, of elements of the WGSL type `ty`.
    pub(super) fn write_plain(ty: &'static str) -> Self {
        Self { access: Access::Write, ..Self::read_plain(ty) }
    }

    /// Accesses the tensor in pairs of elements if `word_aligned`: D is even and the tensor begins
    /// at an even element, so that a pair of 16-bit elements is a word.
    pub(super) fn pairs(self, word_aligned: bool) -> Self {
        match self.kind {
            Kind::Elements(dtype) if word_aligned => Self { kind: Kind::Pairs(dtype), ..self },
            _ => self,
        }
    }

    /// Saturates elements when they are stored, as states and gates need.
    pub(super) fn saturating(self) -> Self {
        Self { saturates: true, ..self }
    }

    /// Binds the tensor for writing, because its buffer also holds tensors that are written.
    pub(super) fn shared(self) -> Self {
        Self { access: Access::ReadShared, ..self }
    }

    /// Returns whether the buffer is bound for writing.
    pub(crate) fn is_writable(&self) -> bool {
        self.access != Access::Read
    }

    /// Prints the declaration of the buffer, with its `load_` and `store_` functions.
    pub(super) fn declaration(&self, name: &str, binding: usize) -> String {
        let access = if self.is_writable() { "read_write" } else { "read" };
        let (dtype, pairs) = match self.kind {
            Kind::Plain(ty) => {
                let binding = format!("@group(0) @binding({binding})");
                return format!("{binding} var<storage, {access}> {name}: array<{ty}>;\n");
            }
            Kind::Elements(dtype) => (dtype, false),
            Kind::Pairs(dtype) => (dtype, true),
        };
        let template = match (self.access == Access::Write, dtype, pairs) {
            (false, Dtype::F32, false) => include_str!("../../shaders/tensors/read_32.wgsl"),
            (false, Dtype::F32, true) => include_str!("../../shaders/tensors/read_32_pairs.wgsl"),
            (false, _, false) => include_str!("../../shaders/tensors/read_16.wgsl"),
            (false, _, true) => include_str!("../../shaders/tensors/read_16_pairs.wgsl"),
            (true, Dtype::F32, _) => include_str!("../../shaders/tensors/write_32.wgsl"),
            (true, _, false) => include_str!("../../shaders/tensors/write_16.wgsl"),
            (true, _, true) => include_str!("../../shaders/tensors/write_16_pairs.wgsl"),
        };
        template
            .replace("TENSOR", name)
            .replace("ROUND", if self.saturates { "saturate" } else { "narrow" })
            .replace("ACCESS", access)
            .replace("FORMAT", &dtype.to_string())
            .replace("BINDING", &binding.to_string())
    }
}
