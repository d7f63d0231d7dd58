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
fn info_names_the_backends_and_their_element_types() {
    let text = stdout(&succeeds(&["info"]));
    for word in ["cpu", "found", "f16", "bf16", "f32", "f64", "slstm", "backend cuda", "auto picks"] {
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

/// What needs a GPU works, or says what is missing: the feature, the driver, a device, a library.
#[test]
fn without_cuda_the_command_says_what_is_missing() {
    let out = tempfile::tempdir().expect("a folder");
    let out = out.path().to_str().expect("a path of text");
    for args in [
        &["verify", "--cases", "1", "--backend", "cuda"][..],
        &["bench", "--backend", "cuda", "--batch", "1", "--budget", "0"],
        &["info", "--cell", "lstm", "--heads", "2", "--head-dim", "32", "--batch", "4"],
        &["train", "--steps", "1", "--backend", "cuda", "--out", out],
    ] {
        let run = flashrnn(args);
        let text = stderr(&run);
        if run.status.success() {
            continue;
        }
        assert_eq!(run.status.code(), Some(1), "{args:?}: {text}");
        let advice = if cfg!(feature = "cuda") { "device: " } else { "--features cuda" };
        assert!(text.contains(advice), "{args:?}: {text}");
    }
}

#[test]
fn auto_finds_a_backend_for_every_element_type() {
    for dtype in ["f64", "f32", "bf16", "f16"] {
        succeeds(&[&SMALL[..], &["--backend", "auto", "--dtype", dtype]].concat());
    }
}

#[test]
fn first_calls_are_timed_on_a_gpu_only() {
    let run = flashrnn(&[&SMALL[..], &["--backend", "cpu", "--first-call"]].concat());
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("--backend cuda"), "{}", stderr(&run));
}
