//! Computes one block of units in one time step: the recurrent product, then the cell.
//!
//! `product` and `tile` take most of the time. `forward` and `backward` use them, `panels` is the
//! order of packed weights that they read, and `layout` is the order of gates in memory.

mod backward;
mod block;
mod forward;
mod layout;
mod packed;
mod panels;
mod product;
mod tile;

pub(crate) use backward::{BackwardBlock, BackwardCall, clear_padding};
pub(crate) use block::{Block, CellTask};
pub(crate) use forward::{ForwardBlock, ForwardCall, start_rows};
pub(crate) use layout::{GateLayout, UnitOffsets};
pub use packed::Packed;
pub use panels::PackedOrder;
pub(crate) use panels::Panels;
pub(crate) use product::Product;
pub(crate) use tile::Tile;
