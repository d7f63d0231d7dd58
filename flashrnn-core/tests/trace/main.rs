//! A cell's trace is the cell: run, differentiated and printed.

mod cells;
mod evaluation;
mod graphs;
mod printed;
