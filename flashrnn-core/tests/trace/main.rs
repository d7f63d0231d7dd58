//! Tests the tracing, differentiation and printing of cells.

mod cells;
mod evaluation;
mod graphs;
mod printed;
