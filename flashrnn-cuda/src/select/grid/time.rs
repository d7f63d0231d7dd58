//! The estimated time of a grid kernel's step, by which layouts are chosen.

use flashrnn_core::Shapes;

use super::{Grid, Pass, WINDOW, WORD_BYTES};

impl Grid {
    /// Returns the estimated nanoseconds of a step times the number of sets of rows that a group
    /// computes. The constants were measured on an H200.
    pub(super) fn time(&self, shapes: &Shapes, pass: Pass) -> f64 {
        let received = self.words(shapes, pass) * self.rows * WORD_BYTES;
        // Words beyond the window wait for a round trip to L2, unless bandwidth is the limit.
        let rounds = self.loads(shapes, pass).div_ceil(WINDOW / self.column_tiles()) - 1;
        let per_byte = if pass == Pass::Backward && self.rows >= 16 { 0.0115 } else { 0.0165 };
        let transfer = (per_byte * received as f64).max(250.0 * rounds as f64);
        let exchange = 860.0 + 1.1 * self.senders() as f64 + transfer;
        let (tiles, steps) = (self.tiles(shapes, pass), self.steps(shapes, pass));
        let columns = self.column_tiles();
        let product = 6.06 * (tiles * steps * columns) as f64
            + 16.2 * (tiles * (steps - self.register_steps)) as f64;
        let barrier = if self.sum_buffers == 1 { 20.0 } else { 0.0 };
        let sums = 16.0 * (tiles * columns) as f64 + barrier + self.cluster_time();
        let sets = shapes.batch.div_ceil(self.rows * self.groups);
        (exchange + product + sums + self.cell_time(pass)) * sets as f64
    }

    /// Returns the estimated nanoseconds that a thread takes for its cells, in addition to the time
    /// of a forward pass.
    fn cell_time(&self, pass: Pass) -> f64 {
        let further = 550.0 * (self.cells() - 1) as f64;
        if pass == Pass::Forward { 0.0 } else { 350.0 + further }
    }

    /// Returns the estimated nanoseconds that the blocks of a cluster take to add up their products.
    fn cluster_time(&self) -> f64 {
        let received = self.cluster * self.rows * self.units * size_of::<f32>();
        if self.cluster == 1 { 0.0 } else { 230.0 + 0.025 * received as f64 }
    }
}
