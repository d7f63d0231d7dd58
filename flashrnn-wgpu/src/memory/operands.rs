//! Checks of a call's tensors that core cannot make: the device of each, and which of them share a
//! buffer.

use std::ops::Range;

use flashrnn_core::{Error, Result};

use crate::device::Device;
use crate::memory::{DeviceId, View, ViewMut};

/// How a call uses a tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Written,
    Workspace,
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

/// Describes a tensor that a call reads; `None` if it is absent or empty.
pub(crate) fn read<'a, P>(name: &'static str, view: Option<View<'a, P>>) -> Option<Operand<'a>> {
    operand(name, view, Use::Read)
}

/// Describes a tensor that a call writes; `None` if it is absent or empty.
pub(crate) fn written<'a, P>(
    name: &'static str,
    view: Option<&ViewMut<'a, P>>,
) -> Option<Operand<'a>> {
    operand(name, view.map(|view| view.0), Use::Written)
}

/// Describes a call's workspace.
pub(crate) fn workspace<'a>(view: Option<&ViewMut<'a, u8>>) -> Option<Operand<'a>> {
    operand("workspace", view.map(|view| view.0), Use::Workspace)
}

/// Checks that all tensors are on `device` and can be bound at their offsets, and that no buffer is
/// used in two ways.
///
/// # Errors
/// [`Error::Argument`] for the first tensor that violates a rule.
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
                    "in a buffer that this call also uses in another way: tensors that are read, \
                     tensors that are written and the workspace must be in different buffers",
                );
            }
            if operand.used == Use::Written && !apart {
                return wrong("overlaps another tensor that this call writes");
            }
        }
    }
    Ok(())
}
