//! The disk cache across processes: several processes need the same kernel at once, and a later one
//! finds it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flashrnn_cuda::cache;
use flashrnn_cuda::compile::{Arch, Program};
use flashrnn_cuda::testing;

/// An environment variable that is set in the processes that the tests start.
const CHILD: &str = "FLASHRNN_TEST_CACHE_CHILD";

fn program() -> Program {
    Program {
        name: "cached.cu".into(),
        source:
            "extern \"C\" __global__ void f(float* x) { x[threadIdx.x] = tanhf(x[threadIdx.x]); }"
                .into(),
        headers: Vec::new(),
        options: Vec::new(),
    }
}

fn start(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_another_process", "--nocapture"])
        .env(CHILD, "1")
        .env("FLASHRNN_CACHE", folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Waits for a process. Returns the size of the machine code that it got, and how long that took.
fn finish(child: Child) -> (usize, Duration) {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let line = text
        .lines()
        .find_map(|line| line.split_once("code: "))
        .unwrap_or_else(|| panic!("{text}"))
        .1;
    let (bytes, micros) = line.split_once(" bytes, us: ").unwrap();
    (bytes.parse().unwrap(), Duration::from_micros(micros.parse().unwrap()))
}

#[test]
fn processes_share_the_cache() {
    if std::env::var_os(CHILD).is_some() || !testing::nvrtc() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..6).map(|_| start(folder.path())).collect();
    let results: Vec<_> = children.into_iter().map(finish).collect();
    assert!(results.iter().all(|(bytes, _)| *bytes == results[0].0 && *bytes > 0), "{results:?}");
    let files: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(
        files.len() == 1 && files[0].extension().is_some_and(|end| end == "cubin"),
        "{files:?}"
    );

    let entry = std::fs::read(&files[0]).unwrap();
    let (bytes, time) = finish(start(folder.path()));
    println!("compiled in {:?}, found in {time:?}", results[0].1);
    assert_eq!(bytes, results[0].0);
    assert_eq!(std::fs::read(&files[0]).unwrap(), entry);
}

/// Other users cannot write entries, whatever the umask allows. An entry that is not a regular file
/// is ignored: reading a FIFO, for example, would never return.
#[cfg(unix)]
#[test]
fn entries_are_private_and_files() {
    use std::os::unix::fs::PermissionsExt;

    if std::env::var_os(CHILD).is_some() || !testing::nvrtc() {
        return;
    }
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("cache");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let executable = std::env::current_exe().unwrap();
    let script = format!("umask 000; exec '{}' --exact in_another_process", executable.display());
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).env(CHILD, "1").env("FLASHRNN_CACHE", &folder);
    assert!(shell.stdout(Stdio::null()).status().unwrap().success());
    let entry = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    assert_eq!((mode(&folder), mode(&entry)), (0o700, 0o600), "of {}", entry.display());

    std::fs::remove_file(&entry).unwrap();
    if !Command::new("mkfifo").arg(&entry).status().is_ok_and(|status| status.success()) {
        println!("skipped: there is no mkfifo");
        return;
    }
    let mut child = start(&folder);
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("a FIFO in place of an entry was read");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    finish(child);
}

/// The part of the tests above that runs in other processes. Does nothing on its own.
#[test]
fn in_another_process() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let begin = Instant::now();
    let cubin = cache::cubin(&program(), Arch { major: 8, minor: 0 }).unwrap();
    println!("code: {} bytes, us: {}", cubin.len(), begin.elapsed().as_micros());
}
