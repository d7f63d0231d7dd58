//! Processing a sequence in pieces (steps, chunks, rows, segments between resets) yields the same
//! results as processing it whole.

use std::ops::Range;

use flashrnn_core::{Backend, Problem};

use crate::case::Case;
use crate::map::{Map, lengths};
use crate::results::Results;
use crate::subject::Subject;
use crate::suite::{Draw, Failures, Suite, close, ok, same_bits};

/// Streaming a sequence by [`Plan::step`](flashrnn_core::Plan::step) agrees with one forward pass.
pub fn streaming<B: Backend>(suite: &Suite<B>) -> Failures {
    stream(suite, |subject, case, got, want| close(subject, case, got, want))
}

/// Streaming a sequence produces the same bits as one forward pass.
pub fn streaming_has_the_same_bits<B: Backend>(suite: &Suite<B>) -> Failures {
    stream(suite, |_, _, got, want| same_bits(got, want))
}

fn stream<B: Backend>(
    suite: &Suite<B>,
    agree: impl Fn(&dyn Subject<B>, &Case, &Results, &Results) -> Result<(), String>,
) -> Failures {
    suite.each(
        Draw { cases: 5, work: 50_000 },
        |setup| {
            setup.problem.options.reverse = false;
            setup.tensors.lengths = false;
            setup.tensors.resets = false;
        },
        |subject, case| {
            let want = ok(subject.run(&suite.backend, case))?.only(&["h", "last"]);
            agree(subject, case, &ok(subject.stream(&suite.backend, case))?, &want)
        },
    )
}

/// A sequence split into two or three chunks produces the same bits in the forward pass, and the
/// same gradients up to rounding. The `last` of a chunk is the `s0` of the next one, and the `d_s0`
/// of a chunk is the `d_last` of the previous one.
pub fn chunks<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 5, work: 50_000 },
        |_| {},
        |subject, case| {
            let time = case.problem.time;
            let mut cuts =
                vec![0..time / 3, time / 3..time / 3 + time / 2, time / 3 + time / 2..time];
            if case.problem.options.reverse {
                cuts.reverse();
            }
            let want = ok(subject.run(&suite.backend, case))?;
            let got = in_pieces(subject, &suite.backend, case, None, &cuts, |_| true)?;
            let outputs = ["h", "states", "last"];
            same_bits(&got.only(&outputs), &want.only(&outputs))?;
            close(subject, case, &got, &want)
        },
    )
}

/// Rows of different lengths in one batch agree with each row run by itself, and are zero beyond
/// their lengths.
pub fn rows_match_single_rows<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 50_000 },
        |setup| setup.tensors.lengths = true,
        |subject, case| {
            let got = ok(subject.run(&suite.backend, case))?;
            let mut want = got.zeroed();
            for (row, &length) in lengths(case).iter().enumerate() {
                let whole = 0..length;
                let alone = in_pieces(
                    subject,
                    &suite.backend,
                    case,
                    Some(row),
                    std::slice::from_ref(&whole),
                    |_| true,
                )?;
                add_row(&mut want, &alone);
            }
            close(subject, case, &got, &want)
        },
    )
}

/// A reset is equivalent to starting a new sequence at that step; no gradient flows across it.
pub fn resets_split_sequences<B: Backend>(suite: &Suite<B>) -> Failures {
    suite.each(
        Draw { cases: 4, work: 50_000 },
        |setup| setup.tensors.resets = true,
        |subject, case| {
            let shapes = ok(subject.shapes(&case.problem))?;
            let Some(resets) = &case.inputs.resets else { return Err("no resets".into()) };
            let got = ok(subject.run(&suite.backend, case))?;
            let mut want = got.zeroed();
            for (row, &length) in lengths(case).iter().enumerate() {
                // The segments of this row in processing order. A flag marks the first step of a
                // segment.
                let flagged = |t: &usize| resets[shapes.token(row, *t)] != 0;
                let mut segments = Vec::new();
                if case.problem.options.reverse {
                    let mut end = length;
                    for t in (0..length).rev().filter(flagged) {
                        segments.push(t + 1..end);
                        end = t + 1;
                    }
                    segments.push(0..end);
                } else {
                    let mut start = 0;
                    for t in (0..length).filter(flagged) {
                        segments.push(start..t);
                        start = t;
                    }
                    segments.push(start..length);
                }
                let mut plain = case.clone();
                plain.inputs.resets = None;
                let alone =
                    in_pieces(subject, &suite.backend, &plain, Some(row), &segments, |i| i == 0)?;
                add_row(&mut want, &alone);
            }
            close(subject, case, &got, &want)
        },
    )
}

/// Adds results that are 0 outside of one row.
fn add_row(sum: &mut Results, row: &Results) {
    for (name, row) in row.iter() {
        for (sum, v) in sum.get_mut(name).iter_mut().zip(row) {
            *sum += v;
        }
    }
}

/// Runs `case` (or only one `row` of it) in pieces, listed in processing order, and joins the
/// results; elements outside of all pieces are 0. Piece `i` starts from the final state of the
/// piece before if `linked(i)`, else from zeros; the first piece starts from `s0`.
fn in_pieces<B: Backend>(
    subject: &dyn Subject<B>,
    backend: &B,
    case: &Case,
    row: Option<usize>,
    pieces: &[Range<usize>],
    linked: impl Fn(usize) -> bool,
) -> Result<Results, String> {
    let shapes = ok(subject.shapes(&case.problem))?;
    let rows: Vec<usize> = row.map_or((0..shapes.batch).collect(), |row| vec![row]);
    let problem = |piece: &Range<usize>| Problem {
        batch: rows.len(),
        time: piece.len(),
        ..case.problem.clone()
    };
    let mut whole = Results::default();
    for (name, len) in [
        ("h", shapes.h().iter().product()),
        ("states", shapes.states().iter().product()),
        ("last", shapes.state().iter().product()),
        ("d_wx", shapes.wx().iter().product()),
        ("d_r", shapes.r().iter().product()),
        ("d_b", shapes.b().iter().product()),
        ("d_s0", shapes.state().iter().product()),
    ] {
        whole.push(name, vec![0.0; len]);
    }
    // Forward passes in order, to find the initial state of each piece.
    let mut cases = Vec::new();
    let mut state: Option<Vec<f64>> = None;
    for (i, piece) in pieces.iter().enumerate() {
        let to = ok(subject.shapes(&problem(piece)))?;
        let step = |_, t| piece.start + t;
        let map = Map { rows: rows.clone(), step: &step, ..Map::new(&shapes, &to) };
        let mut part = map.case(case);
        part.inputs.lengths = match row {
            Some(_) => None,
            None => part.inputs.lengths.map(|lengths| {
                let within = |n: i32| (n - piece.start as i32).clamp(0, piece.len() as i32);
                lengths.into_iter().map(within).collect()
            }),
        };
        if i > 0 {
            part.inputs.s0 = state.filter(|_| linked(i));
        }
        let results = ok(subject.run(backend, &part))?;
        state = Some(results.get("last").to_vec());
        map.paste(&results.only(&["h", "states", "last"]), &mut whole);
        cases.push(part);
    }
    // Backward passes, from the last piece to the first.
    let mut d_state = None;
    for (i, (piece, mut part)) in pieces.iter().zip(cases).enumerate().rev() {
        let to = ok(subject.shapes(&part.problem))?;
        let step = |_, t| piece.start + t;
        let map = Map { rows: rows.clone(), step: &step, ..Map::new(&shapes, &to) };
        if i + 1 < pieces.len() {
            part.d.d_last = d_state.take().filter(|_| linked(i + 1));
        }
        let results = ok(subject.run(backend, &part))?;
        d_state = Some(results.get("d_s0").to_vec());
        map.paste(&results.only(&["d_wx", "d_r", "d_b", "d_s0"]), &mut whole);
    }
    Ok(whole)
}
