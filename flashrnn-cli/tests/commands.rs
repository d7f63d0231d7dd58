//! Tests `flashrnn info`, `verify` and `bench`.

#[allow(dead_code)] // each test file uses a part of it
mod common;

use std::process::Output;

use common::{GPUS, flashrnn, missing, stderr, stdout};
use serde_json::Value;

fn succeeds(args: &[&str]) -> Output {
    let run = flashrnn(args);
    assert!(run.status.success(), "{args:?}: {}", stderr(&run));
    run
}

#[test]
fn info_names_the_backends_and_their_element_types() {
    let text = stdout(&succeeds(&["info"]));
    for word in [
        "cpu",
        "found",
        "f16",
        "bf16",
        "f32",
        "f64",
        "slstm",
        "backend cuda",
        "backend wgpu",
        "auto picks",
    ] {
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
fn verify_without_cases_succeeds() {
    succeeds(&["verify", "--cases", "0"]);
}

const SMALL: [&str; 11] = [
    "bench",
    "--batch",
    "2",
    "--seq-len",
    "3",
    "--heads",
    "2",
    "--head-dim",
    "4",
    "--budget",
    "0.01",
];

#[test]
fn bench_prints_a_table() {
    let text = stdout(&succeeds(&SMALL));
    assert!(text.contains("forward+backward"), "{text}");
}

#[test]
fn bench_prints_json_lines() {
    for (cell, dtype, long) in [("gru", "f32", "float32"), ("slstm", "bf16", "bfloat16")] {
        let args =
            [&SMALL[..], &["--cell", cell, "--dtype", dtype, "--threads", "1", "--json"]].concat();
        let text = stdout(&succeeds(&args));
        let rows: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("each line is JSON"))
            .collect();
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

/// Asserts that a command on a GPU succeeds, or reports what is missing.
fn succeeds_or_names_what_is_missing(backend: &str, args: &[&str]) {
    let run = flashrnn(args);
    if !run.status.success() {
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(1), "{args:?}: {text}");
        assert!(text.contains(&missing(backend)), "{args:?}: {text}");
    }
}

#[test]
fn without_a_gpu_the_command_names_what_is_missing() {
    let out = tempfile::tempdir().expect("a folder");
    let out = out.path().to_str().expect("a path of text");
    let train = ["train", "--steps", "1", "--seq-len", "16", "--layers", "1", "--out", out];
    for backend in GPUS {
        for args in [&["verify", "--cases", "1"], &SMALL[..], &train] {
            succeeds_or_names_what_is_missing(backend, &[args, &["--backend", backend]].concat());
        }
    }
    let kernels = ["info", "--cell", "lstm", "--heads", "2", "--head-dim", "32", "--batch", "4"];
    for backend in GPUS {
        for kernel in ["auto", "fused", "alternating"] {
            let args = [&kernels[..], &["--backend", backend, "--kernel", kernel]].concat();
            succeeds_or_names_what_is_missing(backend, &args);
        }
    }
}

#[test]
fn a_gpu_rejects_what_it_does_not_support() {
    for backend in GPUS {
        let rejected = |more: &[&str], messages: &[&str]| {
            let run = flashrnn(&[&SMALL[..], &["--backend", backend], more].concat());
            let text = stderr(&run);
            assert_eq!(run.status.code(), Some(1), "{backend} {more:?}: {text}");
            assert!(
                messages.iter().any(|message| text.contains(message)),
                "{backend} {more:?}: {text}"
            );
        };
        rejected(&["--threads", "2"], &["backend cpu"]);
        rejected(&["--dtype", "f64"], &["does not support tensors of f64", &missing(backend)]);
    }
}

#[test]
fn auto_finds_a_backend_for_every_element_type() {
    for dtype in ["f64", "f32", "bf16", "f16"] {
        succeeds(&[&SMALL[..], &["--backend", "auto", "--dtype", dtype]].concat());
    }
}

#[test]
fn first_call_needs_a_gpu() {
    let run = flashrnn(&[&SMALL[..], &["--backend", "cpu", "--first-call"]].concat());
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("--backend cuda"), "{}", stderr(&run));
}
