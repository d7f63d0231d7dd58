//! What core can't see of a call's tensors: whose device they are on, and which of them share a
//! buffer.

use std::ops::Range;

use flashrnn_core::{Backward, Element, Error, Forward, Result, Step};

use crate::backend::Wgpu;
use crate::device::{Device, DeviceId};
use crate::memory::{View, ViewMut};

/// What a call does with a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Written,
    /// The workspace.
    Scratch,
}

/// A tensor of a call, whatever its elements.
pub(crate) struct Operand<'a> {
    name: &'static str,
    buffer: &'a wgpu::Buffer,
    device: Option<DeviceId>,
    bytes: Range<u64>,
    used: Use,
}

fn operand<'a, P>(name: &'static str, view: Option<View<'a, P>>, used: Use) -> Option<Operand<'a>> {
    let view = view?;
    let View { buffer, device, .. } = view;
    Some(Operand { name, buffer, device, bytes: view.bytes(), used })
        .filter(|operand| !operand.bytes.is_empty())
}

/// Describes a tensor that a call reads; `None` where it is absent or empty.
pub(crate) fn read<'a, P>(name: &'static str, view: Option<View<'a, P>>) -> Option<Operand<'a>> {
    operand(name, view, Use::Read)
}

fn written<'a, P>(name: &'static str, view: Option<&ViewMut<'a, P>>) -> Option<Operand<'a>> {
    operand(name, view.map(|view| view.0), Use::Written)
}

fn workspace<'a>(view: Option<&ViewMut<'a, u8>>) -> Option<Operand<'a>> {
    operand("workspace", view.map(|view| view.0), Use::Scratch)
}

/// Refuses tensors on another device, tensors that can't be bound where they begin, and buffers
/// that are used in several ways.
///
/// # Errors
/// [`Error::Argument`]
pub(crate) fn check<const N: usize>(
    device: &Device,
    operands: [Option<Operand<'_>>; N],
) -> Result<()> {
    for (i, operand) in operands.iter().enumerate() {
        let Some(operand) = operand else { continue };
        let wrong = |why| Err(Error::Argument { tensor: operand.name, why });
        if operand.device.is_some_and(|id| id != device.id) {
            return wrong("in memory of another device");
        }
        if !device.binds(&operand.bytes) {
            return wrong("more than the device can bind; let it begin at a multiple of 256 bytes");
        }
        for other in operands[..i].iter().flatten().filter(|other| other.buffer == operand.buffer) {
            let apart =
                other.bytes.end <= operand.bytes.start || operand.bytes.end <= other.bytes.start;
            if operand.used != other.used {
                return wrong(
                    "in a buffer that this call uses otherwise too: what is read, what is written and the workspace must lie in different buffers",
                );
            }
            if operand.used == Use::Written && !apart {
                return wrong("overlaps another tensor that this call writes");
            }
        }
    }
    Ok(())
}

/// The tensors of a forward pass.
pub(crate) fn of_forward<'a, T: Element>(call: &Forward<'a, Wgpu, T>) -> [Option<Operand<'a>>; 10] {
    [
        read("wx", Some(call.wx)),
        read("s0", call.s0),
        read("lengths", call.lengths),
        read("resets", call.resets),
        written("h", call.h.as_ref()),
        written("states", call.states.as_ref()),
        written("last", call.last.as_ref()),
        written("saved.gates", call.saved.as_ref().map(|saved| &saved.gates)),
        written("saved.wide", call.saved.as_ref().map(|saved| &saved.wide)),
        workspace(call.workspace.as_ref()),
    ]
}

/// The tensors of a backward pass.
pub(crate) fn of_backward<'a, T: Element, W: Element>(
    call: &Backward<'a, Wgpu, T, W>,
) -> [Option<Operand<'a>>; 15] {
    [
        read("states", Some(call.states)),
        read("saved.gates", Some(call.saved.gates)),
        read("saved.wide", Some(call.saved.wide)),
        read("wx", call.wx),
        read("s0", call.s0),
        read("lengths", call.lengths),
        read("resets", call.resets),
        read("d_h", call.d_h),
        read("d_states", call.d_states),
        read("d_last", call.d_last),
        written("d_wx", Some(&call.d_wx)),
        written("d_r", call.d_r.as_ref()),
        written("d_b", call.d_b.as_ref()),
        written("d_s0", call.d_s0.as_ref()),
        workspace(call.workspace.as_ref()),
    ]
}

/// The tensors of a step.
pub(crate) fn of_step<'a, T: Element>(call: &Step<'a, Wgpu, T>) -> [Option<Operand<'a>>; 3] {
    [read("wx", Some(call.wx)), written("state", Some(&call.state)), written("h", call.h.as_ref())]
}
