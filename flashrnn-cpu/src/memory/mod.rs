//! Cache-line aligned buffers, workspaces and slices that threads share.

mod aligned;
mod lock;
mod shared;
mod workspace;

pub(crate) use aligned::{Aligned, CACHE_LINE, Reserved, try_filled};
pub(crate) use lock::lock;
pub(crate) use shared::{SharedSlice, at};
pub(crate) use workspace::{Span, WorkspaceLayout, WorkspacePool, WorkspaceView};
