//! Memory limits: checks that a problem fits the memory, and reports when memory runs out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::io::{self, Write};
use std::process;

use anyhow::{Result, bail};

/// The global allocator of the command: the system allocator, except that the process reports a
/// failed allocation and exits with status 1 instead of aborting. Most code that allocates, here
/// and in other crates, cannot return an error.
#[derive(Clone, Copy, Debug)]
pub struct Memory;

// SAFETY: every call is forwarded to `System` with the same arguments, and returns its result.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `System`'s method.
        or_exit(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `System`'s method.
        or_exit(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller upholds the contract of `System`'s method, and `old` is from `System`.
        or_exit(unsafe { System.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller upholds the contract of `System`'s method, and `old` is from `System`.
        unsafe { System.dealloc(old, layout) }
    }
}

/// Returns `memory`, or exits if it is null.
fn or_exit(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        // Neither the formatting nor stderr allocates.
        let _ = writeln!(io::stderr(), "error: out of memory: could not allocate {size} bytes");
        process::exit(1);
    }
    memory
}

/// Checks that `bytes` of memory are available, if the system reports how much is.
///
/// # Errors
/// Names `what` needs the memory, how much it needs, and how much is available.
pub fn check(bytes: u128, what: &str) -> Result<()> {
    let gigabytes = |bytes: u128| bytes as f64 / 1e9;
    match available() {
        Some(available) if bytes > available => bail!(
            "{what} needs at least {:.1} GB of memory, but only {:.1} GB are available",
            gigabytes(bytes),
            gigabytes(available)
        ),
        _ => Ok(()),
    }
}

/// Returns the memory that Linux reports as available without swapping.
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
    fn more_than_the_available_memory_is_rejected() {
        assert!(check(1, "nothing").is_ok());
        if cfg!(target_os = "linux") {
            let message =
                check(1 << 70, "too much").err().map(|e| e.to_string()).unwrap_or_default();
            assert!(message.contains("too much needs at least 1180591620717.4 GB"), "{message}");
        }
    }
}
