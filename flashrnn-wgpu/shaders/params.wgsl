// What every kernel is called with.

// Of the kernels of one step: how many steps after the first.
struct Step { index: u32, pad0: u32, pad1: u32, pad2: u32, }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> at_step: Step;

fn units() -> u32 { return params.heads * params.head_dim; }
fn tokens() -> u32 { return params.batch * params.time; }

// Of the many workgroups of a dispatch, which this is; there may be some too many.
fn group_index(id: vec3u) -> u32 { return id.x + id.y * GROUPS_X; }
