//! Bad input causes an error that names what was wrong and what was wanted, the right exit status,
//! and no output file.

#[allow(dead_code)] // each test file uses a part of it
mod common;

use std::fs;

use common::{Folder, Tensor, file, flashrnn, good, stderr, stdout};
use safetensors::Dtype;

/// Returns the valid input file with `tensor` added, or replaced if it has one of that name.
fn with(tensor: Tensor) -> Vec<u8> {
    let mut tensors = good();
    tensors.retain(|t| t.name != tensor.name);
    tensors.push(tensor);
    file(&tensors)
}

/// Asserts that the command, run on `bytes` with further arguments, exits with `status`, prints an
/// error that contains every one of `words`, and writes nothing.
fn rejects(bytes: &[u8], args: &[&str], status: i32, words: &[&str]) {
    let folder = Folder::new();
    let run = folder.run(bytes, &[&["--cell", "lstm"], args].concat());
    let error = stderr(&run);
    assert_eq!(run.status.code(), Some(status), "{args:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{args:?}: no {word:?} in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
    assert_eq!(folder.files(), ["in.safetensors"], "no other file is left");
    assert_eq!(stdout(&run), "");
}

fn zeros(name: &'static str, dtype: Dtype, shape: &[usize]) -> Tensor {
    let data = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    Tensor { name, dtype, shape: shape.to_vec(), data }
}

#[test]
fn the_good_problem_runs() {
    let folder = Folder::new();
    let run = folder.run(&file(&good()), &["--cell", "lstm", "--backward"]);
    assert!(run.status.success(), "{}", stderr(&run));
}

#[test]
fn shapes() {
    let cases: [(&'static str, &[usize], &str); 9] = [
        ("R", &[4, 1, 2, 3], "[4, 1, 2, 2]"),
        ("R", &[3, 1, 2, 2], "[4, 1, 2, 2]"),
        ("b", &[8], "[4, 1, 2]"),
        ("states", &[1, 2, 1, 2], "[2, 2, 1, 2]"),
        ("d_states", &[2, 3, 2, 1, 2], "[2, 2, 3, 1, 2]"),
        ("d_last_states", &[2, 2, 2], "[2, 2, 1, 2]"),
        ("Wx", &[2, 3, 3, 1, 2], "4 gates"),
        ("Wx", &[2, 3, 8], "[B, T, Gx, N, D]"),
        ("R", &[], "[4, 1, 2, 2]"),
    ];
    for (name, shape, want) in cases {
        let got = format!("{shape:?}");
        rejects(&with(zeros(name, Dtype::F32, shape)), &["--backward"], 1, &[name, &got, want]);
    }
    rejects(&with(zeros("lengths", Dtype::I64, &[3])), &[], 1, &["lengths", "[3]", "[2]"]);
    rejects(&with(zeros("resets", Dtype::U8, &[3, 2])), &[], 1, &["resets", "[3, 2]", "[2, 3]"]);
}

#[test]
fn sizes_of_zero() {
    for (shape, option) in [([2, 3, 4, 0, 2], "heads"), ([2, 3, 4, 1, 0], "head_dim")] {
        rejects(&with(zeros("Wx", Dtype::F32, &shape)), &[], 1, &[option, "at least 1"]);
    }
}

#[test]
fn sizes_beyond_any_memory() {
    let huge = 1 << 45;
    rejects(&with(zeros("Wx", Dtype::F32, &[huge, 0, 4, 1, 2])), &[], 1, &["bytes of memory"]);
    rejects(&with(zeros("Wx", Dtype::F32, &[1 << 62, 0, 4, 1, 2])), &[], 1, &["address space"]);
}

/// A file of a few hundred bytes must not require gigabytes.
#[test]
fn results_out_of_proportion_to_the_file() {
    for (batch, time) in [(1 << 24, 0), (1 << 27, 0), (1, 0), (1 << 20, 0), (0, 3), (0, 1 << 30)] {
        let mut tensors = good();
        tensors.retain(|t| t.name != "Wx");
        tensors.push(zeros("Wx", Dtype::F32, &[batch, time, 4, 1, 2]));
        let bytes = file(&tensors);
        let folder = Folder::new();
        let run = folder.run(&bytes, &["--cell", "lstm", "--backend", "cpu"]);
        if batch <= 1 << 20 {
            assert!(run.status.success(), "{batch}: {}", stderr(&run));
        } else {
            rejects(&bytes, &["--backward"], 1, &["too much for a file of"]);
        }
    }
}

#[test]
fn a_device_that_never_ends() {
    let folder = Folder::new();
    let run = flashrnn(&[
        "run".as_ref(),
        "/dev/zero".as_ref(),
        "-o".as_ref(),
        folder.output().as_os_str(),
        "--cell".as_ref(),
        "gru".as_ref(),
    ]);
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("safetensors file"), "{}", stderr(&run));
}

#[test]
fn escape_sequences_are_not_printed() {
    let evil = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[31mall well";
    let shown = |run: &std::process::Output| {
        let text = stderr(run) + &stdout(run);
        assert!(!text.contains(['\u{1b}', '\u{7}', '\r']), "{text:?}");
        assert!(text.contains("all well"), "{text:?}");
        text
    };
    let folder = Folder::new();
    let mut tensors = good();
    tensors.push(Tensor { name: evil, ..zeros("", Dtype::F32, &[1]) });
    let run = folder.run(&file(&tensors), &["--cell", "lstm"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(shown(&run).contains("unknown tensor \\u{1b}]0;owned"));
    // Arguments: file names, and words unknown to clap, which it would print in colour on a
    // terminal.
    for args in [
        &["run", evil, "-o", evil, "--cell", "gru"][..],
        &["train", "--text", evil],
        &["run", "--cell", evil],
        &[evil],
    ] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_flashrnn"));
        let run =
            command.args(args).env("CLICOLOR_FORCE", "1").output().expect("the command was built");
        assert!(!run.status.success());
        shown(&run);
    }
}

/// Limits set by the environment and by the shell.
#[cfg(unix)]
mod limits {
    use std::process::{Command, Output};

    use super::*;

    /// Runs the command in a shell after `before`.
    fn limited(before: &str, args: &str) -> Output {
        let line = format!("{before}; exec {} {args}", env!("CARGO_BIN_EXE_flashrnn"));
        Command::new("sh").args(["-c", &line]).output().expect("there is a shell")
    }

    fn fails(before: &str, args: &str, message: &str) {
        let run = limited(before, args);
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(1), "{before}; {args}: {text}");
        assert!(text.contains(message) && !text.contains("panicked"), "{before}; {args}: {text}");
    }

    #[test]
    fn too_many_threads() {
        fails("export RAYON_NUM_THREADS=40000", "info", "RAYON_NUM_THREADS is 40000");
        // The threads' stacks exceed the limit.
        fails(
            "export RAYON_NUM_THREADS=900; ulimit -v 1000000",
            "info",
            "can't start the worker threads",
        );
    }

    #[test]
    fn too_much_memory() {
        let out = tempfile::tempdir().expect("a folder");
        let out = out.path().join("out");
        let train = |sizes: &str| {
            format!("train --backend cpu --layers 1 --steps 1 --out {} {sizes}", out.display())
        };
        let limit = "ulimit -c 0; ulimit -v 1500000; export RAYON_NUM_THREADS=2";
        fails(limit, &train("--heads 1 --head-dim 4096 --batch 1 --seq-len 4"), "memory");
        fails(limit, &train("--heads 1 --head-dim 1 --seq-len 1 --batch 134217728"), "memory");
        fails(limit, &train("--text /dev/zero"), "memory");
        let layers = train("--heads 1 --head-dim 1 --seq-len 4 --layers 268435456")
            .replace("--layers 1 ", "");
        fails(limit, &layers, "memory");
    }
}

#[test]
fn values() {
    let lengths = |values: &[i64]| with(Tensor::integers("lengths", values));
    rejects(&lengths(&[1, -1]), &[], 1, &["lengths[1]", "-1", "0 to 3"]);
    rejects(&lengths(&[4, 0]), &[], 1, &["lengths[0]", "4", "0 to 3"]);
    // The lengths would be valid if truncated to 32 bits.
    rejects(&lengths(&[1 << 32, 0]), &[], 1, &["lengths[0]", "4294967296"]);
    rejects(&lengths(&[0, i64::MIN + 1]), &[], 1, &["lengths[1]"]);
}

#[test]
fn missing_and_unknown_tensors() {
    for name in ["Wx", "R", "b"] {
        let mut tensors = good();
        tensors.retain(|t| t.name != name);
        rejects(&file(&tensors), &[], 1, &[name, "missing"]);
    }
    rejects(&file(&[]), &[], 1, &["Wx", "missing"]);
    rejects(
        &with(zeros("d_last", Dtype::F32, &[2, 2, 1, 2])),
        &[],
        1,
        &["unknown", "d_last", "d_last_states"],
    );
}

#[test]
fn element_types() {
    rejects(&with(zeros("Wx", Dtype::I32, &[2, 3, 4, 1, 2])), &[], 1, &["Wx", "I32", "BF16"]);
    rejects(&with(zeros("b", Dtype::F8_E4M3, &[4, 1, 2])), &[], 1, &["b", "F8_E4M3"]);
    rejects(&with(zeros("lengths", Dtype::F32, &[2])), &[], 1, &["lengths", "F32", "I64"]);
    rejects(&with(zeros("lengths", Dtype::U8, &[2])), &[], 1, &["lengths", "U8", "I64"]);
    rejects(&with(zeros("resets", Dtype::I64, &[2, 3])), &[], 1, &["resets", "I64", "BOOL"]);
}

#[test]
fn files() {
    let whole = file(&good());
    for len in [0, 4, 8, 20, whole.len() / 2, whole.len() - 1] {
        rejects(&whole[..len], &[], 1, &["in.safetensors", "truncated"]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    rejects(&longer, &[], 1, &["in.safetensors", "safetensors file"]);
    rejects(&[0xff; 64], &[], 1, &["in.safetensors", "safetensors file"]);

    let folder = Folder::new();
    let nowhere = folder.path().join("nowhere.safetensors");
    let run = flashrnn(&[
        "run".as_ref(),
        nowhere.as_os_str(),
        "-o".as_ref(),
        folder.output().as_os_str(),
        "--cell".as_ref(),
        "gru".as_ref(),
    ]);
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("nowhere.safetensors"), "{}", stderr(&run));
    assert!(folder.files().is_empty());
}

#[test]
fn unwritable_outputs() {
    let folder = Folder::new();
    fs::write(folder.input(), file(&good())).expect("the folder can be written to");
    let missing = folder.path().join("no").join("out.safetensors");
    // A file in a missing folder, and a folder in place of the file.
    for output in [missing.as_path(), folder.path()] {
        let input = folder.input();
        let run = flashrnn(&[
            "run".as_ref(),
            input.as_os_str(),
            "-o".as_ref(),
            output.as_os_str(),
            "--cell".as_ref(),
            "lstm".as_ref(),
        ]);
        assert_eq!(run.status.code(), Some(1));
        assert!(stderr(&run).contains("can't write"), "{}", stderr(&run));
    }
    assert_eq!(folder.files(), ["in.safetensors"]);
}

#[test]
fn a_failure_keeps_an_older_output() {
    let folder = Folder::new();
    fs::write(folder.output(), "older").expect("the folder can be written to");
    let run = folder.run(&with(Tensor::integers("lengths", &[9, 9])), &["--cell", "lstm"]);
    assert_eq!(run.status.code(), Some(1));
    assert_eq!(fs::read(folder.output()).expect("it is still there"), b"older");
}

#[test]
fn options() {
    let bytes = file(&good());
    for option in ["--forward-clip", "--recurrent-grad-clip"] {
        for value in ["nan", "0", "-1", "-inf"] {
            rejects(
                &bytes,
                &[&format!("{option}={value}")],
                1,
                &[&option[2..].replace('-', "_"), "a number above 0"],
            );
        }
        rejects(&bytes, &[option, "-1"], 1, &["-1", "a number above 0"]);
        rejects(&bytes, &[option, "much"], 2, &[option, "much"]);
    }
    rejects(&bytes, &["--dtype", "f8"], 2, &["f8", "bf16"]);
    rejects(&bytes, &["--backend", "abacus"], 2, &["abacus", "cpu"]);
    rejects(&bytes, &["--save", "nothing"], 2, &["nothing", "recompute"]);
    rejects(&bytes, &["--backwards"], 2, &["--backwards"]);
}

#[test]
fn usage() {
    for args in
        [&["run"][..], &["dance"], &["bench", "--batch", "-3"], &["bench", "--cell", "perceptron"]]
    {
        let run = flashrnn(args);
        assert_eq!(run.status.code(), Some(2), "{args:?}: {}", stderr(&run));
    }
    for (args, message) in [
        (&["bench", "--head-dim", "0"][..], "at least 1"),
        (&["bench", "--seq-len", "99999999999"], "time"),
        (&["bench", "--batch", "2000000", "--head-dim", "4096"], "GB of memory"),
        (&["bench", "--budget", "nan"], "budget"),
        (&["bench", "--budget", "-1"], "budget"),
        (&["bench", "--threads", "0"], "1 to 1024"),
        (&["bench", "--threads", "1000000"], "1 to 1024"),
    ] {
        let run = flashrnn(args);
        assert_eq!(run.status.code(), Some(1), "{args:?}: {}", stderr(&run));
        assert!(stderr(&run).contains(message), "{args:?}: {}", stderr(&run));
    }
}
