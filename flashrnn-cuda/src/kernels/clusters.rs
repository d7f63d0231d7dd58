//! How many clusters of blocks a GPU runs at the same time.

use std::sync::Arc;

use flashrnn_core::Result;

use crate::device::context::Context;
use crate::kernels::launch::{Launch, Module};
use crate::select::CLUSTER_SIZES;

/// An empty kernel, as PTX, which the driver compiles.
const EMPTY: &[u8] = b".version 7.8\n.target sm_90\n.address_size 64\n\
    .visible .entry empty() { ret; }\n\0";

/// Returns how many clusters of [`CLUSTER_SIZES`] the GPU runs at the same time, with one block per
/// multiprocessor; none if the driver does not answer. A cluster must fit one of the groups that the
/// GPU divides its multiprocessors into, so this can be less than their number over the size.
pub(crate) fn active_clusters(context: &Context) -> [usize; CLUSTER_SIZES.len()] {
    if let Some(clusters) = context.clusters.get() {
        return *clusters;
    }
    match ask(context) {
        Ok(clusters) => *context.clusters.get_or_init(|| clusters),
        Err(_) => [context.multiprocessors, 0, 0, 0, 0],
    }
}

fn ask(context: &Context) -> Result<[usize; CLUSTER_SIZES.len()]> {
    let mut clusters = [0; CLUSTER_SIZES.len()];
    clusters[0] = context.multiprocessors;
    if context.arch.major < 9 {
        return Ok(clusters);
    }
    let kernel = Arc::new(Module::load(context, EMPTY, "empty")?).kernel("empty")?;
    for (clusters, &size) in clusters.iter_mut().zip(&CLUSTER_SIZES).skip(1) {
        let launch = Launch {
            cluster: size as u32,
            shared: context.shared_memory as u32,
            ..Launch::new([size as u32, 1, 1], 32)
        };
        *clusters = kernel.resident_blocks(&launch)? / size;
    }
    Ok(clusters)
}
