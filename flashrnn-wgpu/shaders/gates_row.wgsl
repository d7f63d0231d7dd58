// Where the gates of a row's step lie: those computed again are of some steps only, [steps, B].
fn gates_row(token: u32, row: u32, step: u32) -> u32 {
    return select(token, (step - params.gates_step) * params.batch + row, RECOMPUTED);
}
