// The h that the product of a token's step reads: 0 after a reset and beyond the row's length.
struct Previous {
    exists: bool,
    first: bool,  // whether it is s0
    at: u32,      // its token, or for s0 the row
}

fn previous_of(token: u32) -> Previous {
    let line = select(params.time, params.batch, params.time_major != 0u);
    let of_line = vec2u(token / line, token % line);
    let row = select(of_line.x, of_line.y, params.time_major != 0u);
    let position = select(of_line.y, of_line.x, params.time_major != 0u);
    let length = length_of(row);
    if position >= length { return Previous(); }
    let step = select(position, length - 1u - position, params.reverse != 0u);
    if is_reset(row, length, step) { return Previous(); }
    if step > 0u { return Previous(true, false, step_token(row, length, step - 1u)); }
    return Previous(params.has_s0 != 0u, true, row);
}

fn previous_h(previous: Previous, place: u32) -> f32 {
    if !previous.exists { return 0.0f; }
    if previous.first {
        return saturated(work_f32(params.s0_at + state_index(0u, previous.at, place)));
    }
    return load_states(previous.at * units() + place);
}
