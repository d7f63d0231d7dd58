// h as the product of this token's step read it: 0 after a reset and beyond the row's length.
fn previous_h(token: u32, place: u32) -> f32 {
    let row = select(token / params.time, token % params.batch, params.time_major != 0u);
    let position = select(token % params.time, token / params.batch, params.time_major != 0u);
    let length = length_of(row);
    if position >= length { return 0.0f; }
    let step = select(position, length - 1u - position, params.reverse != 0u);
    if is_reset(row, length, step) { return 0.0f; }
    if step > 0u { return load_states(step_token(row, length, step - 1u) * units() + place); }
    if params.has_s0 == 0u { return 0.0f; }
    return rounded(work_f32(params.s0_at + state_at(0u, row, place)));
}
