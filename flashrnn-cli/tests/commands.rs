//! `flashrnn info`, `verify` and `bench` run and say what they should.

#[allow(dead_code)] // each test file uses its part
mod common;

use std::process::Output;

use common::{flashrnn, stderr, stdout};
use serde_json::Value;

fn succeeds(args: &[&str]) -> Output {
    let run = flashrnn(args);
    assert!(run.status.success(), "{args:?}: {}", stderr(&run));
    run
}

#[test]
fn info_names_the_backend_and_its_element_types() {
    let text = stdout(&succeeds(&["info"]));
    for word in ["cpu", "found", "f16", "bf16", "f32", "f64", "slstm", "auto picks cpu"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
}

#[test]
fn verify_prints_the_error_of_every_tensor() {
    let text = stdout(&succeeds(&["verify", "--cases", "2", "--seed", "3"]));
    for word in ["states", "last", "d_wx", "d_r", "d_b", "d_s0", "tolerance", "within"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
}

#[test]
fn verify_without_cases_has_nothing_to_complain_about() {
    succeeds(&["verify", "--cases", "0"]);
}

const SMALL: [&str; 11] =
    ["bench", "--batch", "2", "--seq-len", "3", "--heads", "2", "--head-dim", "4", "--budget", "0.01"];

#[test]
fn bench_prints_a_table() {
    let text = stdout(&succeeds(&SMALL));
    assert!(text.contains("forward+backward"), "{text}");
}

#[test]
fn bench_prints_json_lines() {
    for (cell, dtype, long) in [("gru", "f32", "float32"), ("slstm", "bf16", "bfloat16")] {
        let args = [&SMALL[..], &["--cell", cell, "--dtype", dtype, "--threads", "1", "--json"]].concat();
        let text = stdout(&succeeds(&args));
        let rows: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect();
        assert_eq!(rows.len(), 2);
        for (row, pass) in rows.iter().zip(["fwd", "fwdbwd"]) {
            assert_eq!(row["peer"], "flashrnn-rs.cpu");
            assert_eq!(row["cell"], cell);
            assert_eq!(row["dtype"], long);
            assert_eq!([&row["B"], &row["T"], &row["N"], &row["D"]], [2, 3, 2, 4]);
            assert_eq!(row["pass"], pass);
            assert_eq!(row["threads"], 1);
            let time = |key| row[key].as_f64().expect("times are numbers");
            assert!(0.0 <= time("min") && time("min") <= time("q1"));
            assert!(time("q1") <= time("ms") && time("ms") <= time("q3"));
            assert!(row["runs"].as_u64() >= Some(5));
        }
    }
}
