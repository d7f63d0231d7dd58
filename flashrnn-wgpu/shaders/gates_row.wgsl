// The index of the gates of a row's step. Recomputed gates are stored as [steps, B] and cover only
// some steps.
fn gates_row(token: u32, row: u32, step: u32) -> u32 {
    return select(token, (step - params.gates_step) * params.batch + row, RECOMPUTED);
}
