//! One block of one time step: the recurrent product, then the cell.

pub(crate) mod backward;
pub(crate) mod forward;
pub(crate) mod packed;
pub(crate) mod product;
pub(crate) mod tile;
