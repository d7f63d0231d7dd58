//! The properties. Each is a function that checks a suite's backend and returns the failures.

mod bad_input;
mod calls;
mod limits;
mod operations;
mod options;
mod pieces;
mod probe;
mod symmetries;
mod vectors;
mod weights;

pub use bad_input::bad_input;
pub use calls::{
    accumulate, empty_batch, gradient_of_h_only, inference, interleaved, nan_stays_nan,
    padding_is_not_read, same_bits_on_any_threads, same_bits_twice, threads_share_a_plan,
    workspaces,
};
pub use limits::{infinite_gates, slopes_in_the_tails, states_saturate};
pub use operations::{
    operation_gradients, operations, operations_on_special_values, operations_on_subnormals,
};
pub use options::{extreme_inputs, large_sizes, master_weights, recompute, reference, time_major};
pub use pieces::{
    chunks, resets_split_sequences, rows_match_single_rows, streaming, streaming_has_the_same_bits,
};
pub use symmetries::{batch_permutation, head_permutation, heads_one_by_one, reverse_is_flipping};
pub use vectors::pytorch;
pub use weights::foreign_weights;
