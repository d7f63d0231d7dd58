//! Memory: what is asked for is compared with what there is, and where there is none left the
//! command says so.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{self, Write};
use std::process;

use anyhow::{Result, bail};

/// The system's allocator, for the command as a whole. Where it has no memory to give, the process
/// says so and exits with status 1, instead of aborting: most of what allocates here, in this crate
/// and in others, has no way to return an error.
#[derive(Clone, Copy, Debug)]
pub struct Memory;

// SAFETY: every call is `System`'s with the same arguments, and returns what that returned.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` asks for.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller promises what `System` asks for.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises what `System` asks for, and `old` came from it.
        given(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller promises what `System` asks for, and `old` came from it.
        unsafe { System.dealloc(old, layout) }
    }
}

/// `memory`, or the end of the process where there is none.
fn given(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        // Neither formatting nor stderr allocates.
        let _ = writeln!(io::stderr(), "error: out of memory: could not allocate {size} bytes");
        process::exit(1);
    }
    memory
}

/// Checks that this machine has memory for `bytes`, where it tells.
///
/// # Errors
/// Says how much is needed for `what`, and how much there is.
pub fn check(bytes: u128, what: &str) -> Result<()> {
    let gigabytes = |bytes: u128| bytes as f64 / 1e9;
    match available() {
        Some(there) if bytes > there => bail!(
            "{what} needs {:.1} GB of memory at least, and this machine has {:.1} GB left",
            gigabytes(bytes),
            gigabytes(there)
        ),
        _ => Ok(()),
    }
}

/// The memory that can be had without swapping, as Linux tells it.
fn available() -> Option<u128> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u128 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_there_is_is_refused() {
        assert!(check(1, "nothing").is_ok());
        if cfg!(target_os = "linux") {
            let said = check(1 << 70, "too much").err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains("too much needs 1180591620717.4 GB"), "{said}");
        }
    }
}
