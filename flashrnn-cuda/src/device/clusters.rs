//! How many clusters of blocks a GPU runs at the same time.

use std::sync::Arc;

use flashrnn_core::Result;

use crate::device::context::Context;
use crate::kernels::launch::{Launch, Module};
use crate::select::CLUSTER_SIZES;

/// An empty kernel, as PTX, which the driver compiles.
const EMPTY: &[u8] = b".version 7.8\n.target sm_90\n.address_size 64\n\
    .visible .entry empty() { ret; }\n\0";

/// Returns how many clusters of [`CLUSTER_SIZES`] `context`'s GPU runs at the same time, with one
/// block per multiprocessor. A multiprocessor belongs to a group of at most 16 or 18, and a cluster
/// must fit such a group, so this is less than a quotient. If the driver does not answer, it is
/// taken to be none.
pub(super) fn active_clusters(context: &Context) -> [usize; CLUSTER_SIZES.len()] {
    let mut clusters = [0; CLUSTER_SIZES.len()];
    clusters[0] = context.multiprocessors;
    if context.arch.major >= 9 {
        let _ = ask(context, &mut clusters[1..]);
    }
    clusters
}

fn ask(context: &Context, clusters: &mut [usize]) -> Result<()> {
    let kernel = Arc::new(Module::load(context, EMPTY, "empty")?).kernel("empty")?;
    for (clusters, size) in clusters.iter_mut().zip(&CLUSTER_SIZES[1..]) {
        let launch = Launch {
            cluster: *size as u32,
            shared: context.shared_memory as u32,
            ..Launch::new([*size as u32, 1, 1], 32)
        };
        *clusters = kernel.resident_blocks(&launch)? / size;
    }
    Ok(())
}
