// The arguments of every kernel. src/call.rs prints the structs.

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<uniform> at_step: Step;

fn units() -> u32 { return params.heads * params.head_dim; }
fn tokens() -> u32 { return params.batch * params.time; }

// The index of this workgroup. A dispatch may have more workgroups than it needs.
fn group_index(id: vec3u) -> u32 { return id.x + id.y * MAX_GROUPS_X; }
