//! Writing an output preserves the kind of file it replaces, and an interrupted training run leaves
//! complete files of a single run.

#![cfg(unix)]

#[allow(dead_code)] // each test file uses a part of it
mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Folder, file, flashrnn, good, stderr};
use safetensors::SafeTensors;
use serde_json::Value;

/// Runs the good problem, writing the output to `name` in `folder`.
fn run_onto(folder: &Folder, name: &str) -> std::process::Output {
    fs::write(folder.input(), file(&good())).expect("a writable folder");
    let (input, output) = (folder.input(), folder.path().join(name));
    flashrnn(&[
        "run".as_ref(),
        input.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--cell".as_ref(),
        "lstm".as_ref(),
    ])
}

fn is_result(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| {
        SafeTensors::deserialize(&bytes).is_ok_and(|file| file.tensor("states").is_ok())
    })
}

/// Runs a system tool.
fn tool(name: &str, args: &[&str], folder: &Folder) -> bool {
    Command::new(name)
        .args(args)
        .current_dir(folder.path())
        .status()
        .is_ok_and(|status| status.success())
}

#[test]
fn links_are_followed() {
    let folder = Folder::new();
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    fs::write(&target, "old").expect("a writable folder");
    symlink("target", &link).expect("links can be made");
    let run = run_onto(&folder, "link");
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(link.is_symlink() && is_result(&target));

    symlink("nowhere", folder.path().join("dangling")).expect("links can be made");
    let run = run_onto(&folder, "dangling");
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("a dangling link"), "{}", stderr(&run));
    assert!(folder.path().join("dangling").is_symlink());
}

#[test]
fn devices_are_not_replaced() {
    let folder = Folder::new();
    // Makes a separate device, in case it gets replaced. This needs root; otherwise links to the
    // system's device.
    if !tool("mknod", &["null", "c", "1", "3"], &folder) {
        symlink("/dev/null", folder.path().join("null")).expect("links can be made");
    }
    let run = run_onto(&folder, "null");
    assert!(run.status.success(), "{}", stderr(&run));
    let null = fs::metadata(folder.path().join("null")).expect("it still exists");
    assert!(null.file_type().is_char_device());
}

#[test]
fn pipes_need_a_reader() {
    let folder = Folder::new();
    assert!(tool("mkfifo", &["pipe"], &folder));
    let pipe = folder.path().join("pipe");
    let reader = {
        let pipe = pipe.clone();
        thread::spawn(move || fs::read(pipe).expect("the pipe can be read"))
    };
    let run = run_onto(&folder, "pipe");
    assert!(run.status.success(), "{}", stderr(&run));
    assert!(fs::metadata(&pipe).expect("it still exists").file_type().is_fifo());
    let bytes = reader.join().expect("the reader ends");
    assert!(SafeTensors::deserialize(&bytes).is_ok());

    let run = run_onto(&folder, "pipe");
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("a pipe without a reader"), "{}", stderr(&run));
    assert!(fs::metadata(&pipe).expect("it still exists").file_type().is_fifo());
}

#[test]
fn mode_and_owner_are_preserved() {
    let folder = Folder::new();
    for mode in [0o600, 0o640, 0o666] {
        let path = folder.output();
        fs::write(&path, "old").expect("a writable folder");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("we own it");
        // Without root, this fails and the file keeps its owner.
        let _ = std::os::unix::fs::chown(&path, Some(1), Some(1));
        let before = fs::metadata(&path).expect("it exists");
        let run = run_onto(&folder, "out.safetensors");
        assert!(run.status.success(), "{}", stderr(&run));
        let after = fs::metadata(&path).expect("it exists");
        assert!(is_result(&path));
        let kept = |file: &fs::Metadata| (file.mode(), file.uid(), file.gid());
        assert_eq!(kept(&after), kept(&before));
    }
}

#[test]
fn read_only_files_are_rejected_or_keep_their_mode() {
    let folder = Folder::new();
    let path = folder.output();
    fs::write(&path, "old").expect("a writable folder");
    fs::set_permissions(&path, Permissions::from_mode(0o444)).expect("we own it");
    // Root may write to it nevertheless.
    let allowed = fs::OpenOptions::new().append(true).open(&path).is_ok();
    let run = run_onto(&folder, "out.safetensors");
    assert_eq!(run.status.success(), allowed, "{}", stderr(&run));
    assert_eq!(is_result(&path), allowed);
    assert_eq!(fs::metadata(&path).expect("it exists").mode() & 0o777, 0o444);
}

/// Starts a training run with small sizes that writes to `out` in `folder`.
fn train(folder: &Folder, steps: &str, cell: &str) -> Child {
    let text = folder.path().join("text.txt");
    fs::write(&text, "ara mara tara. bella puella salve. ".repeat(60)).expect("a writable folder");
    let sizes = "--backend cpu --layers 1 --heads 1 --head-dim 8 --seq-len 8 --batch 4";
    Command::new(env!("CARGO_BIN_EXE_flashrnn"))
        .arg("train")
        .args(sizes.split(' '))
        .args(["--steps", steps, "--cell", cell])
        .arg("--text")
        .arg(text)
        .arg("--out")
        .arg(out(folder))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the command is built")
}

fn out(folder: &Folder) -> PathBuf {
    folder.path().join("out")
}

/// Returns the names and contents of the files in `out`.
fn files(folder: &Folder) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(out(folder)) else { return Vec::new() };
    let read = |entry: fs::DirEntry| {
        (
            entry.file_name().to_string_lossy().into_owned(),
            fs::read(entry.path()).expect("it can be read"),
        )
    };
    entries.map(|entry| read(entry.expect("a readable folder"))).collect()
}

/// Waits until `done`, for at most a minute.
fn wait_until(done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "timed out");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn interrupted_training_leaves_files_of_one_run() {
    let folder = Folder::new();
    let first = train(&folder, "12", "lstm").wait().expect("it ends");
    assert!(first.success());
    let earlier = files(&folder);
    assert_eq!(earlier.len(), 4);
    let checkpoint =
        || fs::read(out(&folder).join("checkpoint.safetensors")).expect("it always exists");
    let old = checkpoint();
    let mut second = train(&folder, "100000", "gru");
    wait_until(|| checkpoint() != old);
    // The next validation, which would write the metrics again, is thousands of steps away.
    wait_until(|| out(&folder).join("metrics.jsonl").exists());
    second.kill().expect("it runs");
    second.wait().expect("it ends");
    for (name, bytes) in files(&folder) {
        assert!(!earlier.contains(&(name.clone(), bytes)), "{name} is from the first run");
    }
}

#[test]
fn killed_training_leaves_complete_files() {
    let folder = Folder::new();
    for run in 0..12 {
        let mut training = train(&folder, "400", "slstm");
        thread::sleep(Duration::from_millis(17 * run));
        training.kill().expect("it was started");
        training.wait().expect("it ends");
        for (name, bytes) in files(&folder) {
            let text = || String::from_utf8_lossy(&bytes);
            match name.as_str() {
                "checkpoint.safetensors" => {
                    assert!(SafeTensors::deserialize(&bytes).is_ok(), "{name}")
                }
                "loss.svg" => assert!(text().trim_end().ends_with("</svg>"), "{name}"),
                "metrics.jsonl" => {
                    assert!(text().ends_with('\n') && text().lines().count() > 1, "{}", text());
                    let json = |line: &str| serde_json::from_str::<Value>(line).is_ok();
                    assert!(text().lines().all(json), "{}", text());
                }
                "sample.txt" => assert!(!bytes.is_empty(), "{name}"),
                _ => assert!(name.starts_with(".flashrnn-"), "{name}"),
            }
        }
    }
}
