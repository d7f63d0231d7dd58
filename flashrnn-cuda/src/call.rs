//! The arguments of the time loops, as the kernels read them; each struct stands in the kernel file
//! of the same name too.

use bytemuck::{Pod, Zeroable};

/// An address in device memory, 0 for none.
pub type Address = u64;

/// `Sizes` of kernels/operator.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Sizes {
    pub batch: i32,
    pub time: i32,
    pub heads: i32,
    pub head_dim: i32,
    pub depth: i32,
    pub time_major: i32,
    pub reverse: i32,
}

/// `Gates` of kernels/operator.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Gates {
    pub external: Address,
    pub inner: Address,
}

/// `ForwardCall` of kernels/forward_step.cu, where each field's shape stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ForwardCall {
    pub sizes: Sizes,
    pub first_step: i32,
    pub save_gates: i32,
    pub forward_clip: f32,
    pub r: Address,
    pub b: Address,
    pub wx: Address,
    pub s0: Address,
    pub lengths: Address,
    pub resets: Address,
    pub exchange: Address,
    pub carried: Address,
    pub h: Address,
    pub states: Address,
    pub gates: Gates,
    pub wide_states: Address,
    pub wide_gates: Address,
}

/// `BackwardCall` of kernels/backward_step.cu, where each field's shape stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct BackwardCall {
    pub sizes: Sizes,
    pub first_step: i32,
    pub d_states_count: i32,
    pub cut_recurrent_grad: i32,
    pub forward_clip: f32,
    pub recurrent_grad_clip: f32,
    pub r: Address,
    pub s0: Address,
    pub lengths: Address,
    pub resets: Address,
    pub states: Address,
    pub gates: Gates,
    pub wide_states: Address,
    pub wide_gates: Address,
    pub d_states: Address,
    pub d_last: Address,
    pub exchange: Address,
    pub carried: Address,
    pub d_gates: Gates,
    pub d_s0: Address,
}
