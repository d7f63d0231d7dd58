//! Compiled kernels, kept on disk between processes.
//!
//! An entry's name is a hash of everything that decides its content: source, headers, options, architecture, the compiler's
//! version and build, and this crate's version. It holds a checksum and the machine code. Entries are written to a file of
//! another name and then renamed, so that processes may share the folder; one that was damaged is noticed and made again.
//!
//! The folder is the environment's `FLASHRNN_CACHE`, else `flashrnn` in the user's cache folder (on Linux `~/.cache`).
//! `FLASHRNN_CACHE=off` keeps nothing. Where the folder can't be written, nothing is kept either, and that is no error.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use flashrnn_core::Result;
use sha2::{Digest, Sha256};

use crate::compile::{Arch, Nvrtc, Program, compile};

/// What an entry's file name ends in.
const SUFFIX: &str = "cubin";
/// The bytes before the machine code.
const CHECKSUM: usize = 32;

/// The folder where compiled kernels are kept; none where caching is off or the user has no cache folder.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    match std::env::var_os("FLASHRNN_CACHE") {
        Some(folder) if folder == "off" => None,
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("flashrnn")),
    }
}

/// Deletes every compiled kernel in [`folder`], and nothing else there. Returns how many there were.
///
/// # Errors
/// The system's, where the folder can't be read or a file can't be deleted.
pub fn clear() -> io::Result<usize> {
    folder().map_or(Ok(0), |folder| clear_in(&folder))
}

fn clear_in(folder: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut deleted = 0;
    for entry in entries {
        let path = entry?.path();
        let ours = path.extension().is_some_and(|end| end == SUFFIX || end == "part")
            && path.file_stem().is_some_and(|name| name.len() >= 2 * CHECKSUM);
        if ours {
            match fs::remove_file(&path) {
                // Another process may have been faster.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => deleted += 1,
            }
        }
    }
    Ok(deleted)
}

/// Identifies machine code: a hash of everything it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key([u8; 32]);

impl Key {
    pub(crate) fn new(program: &Program, arch: Arch, nvrtc: &Nvrtc) -> Self {
        let numbers = [arch.major, arch.minor, nvrtc.major, nvrtc.minor].map(|n| n.to_string());
        let own = [env!("CARGO_PKG_VERSION"), &nvrtc.build, &program.name, &program.source];
        let headers = program.headers.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()]);
        let lists = [
            numbers.iter().map(String::as_str).collect::<Vec<_>>(),
            own.to_vec(),
            headers.collect(),
            program.options.iter().map(String::as_str).collect(),
        ];
        let mut hash = Sha256::new();
        // Every list and every text goes in after its length, so that no two programs run together to the same bytes.
        for list in lists {
            hash.update((list.len() as u64).to_le_bytes());
            for text in list {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
        Self(hash.finalize().into())
    }

    fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Of the entry with this key that holds `cubin`.
    fn checksum(&self, cubin: &[u8]) -> [u8; CHECKSUM] {
        Sha256::new().chain_update(self.0).chain_update(cubin).finalize().into()
    }
}

/// The machine code of `program`, from the cache or compiled now.
///
/// # Errors
/// As [`compile`].
pub(crate) fn cubin(key: &Key, program: &Program, arch: Arch) -> Result<Vec<u8>> {
    cubin_in(folder().as_deref(), key, || Ok(compile(program, arch)?.cubin))
}

fn cubin_in(folder: Option<&Path>, key: &Key, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    if let Some(cubin) = folder.and_then(|folder| read(folder, key)) {
        return Ok(cubin);
    }
    let cubin = make()?;
    if let Some(folder) = folder {
        // Without a cache everything works, only slower the next time.
        let _ = write(folder, key, &cubin);
    }
    Ok(cubin)
}

/// The entry's content; none where there is no entry or it is damaged.
fn read(folder: &Path, key: &Key) -> Option<Vec<u8>> {
    let entry = fs::read(folder.join(key.name()).with_extension(SUFFIX)).ok()?;
    let (checksum, cubin) = entry.split_at_checked(CHECKSUM)?;
    (checksum == key.checksum(cubin)).then(|| cubin.to_vec())
}

fn write(folder: &Path, key: &Key, cubin: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    fs::create_dir_all(folder)?;
    let unique =
        format!("{}-{}-{}.part", key.name(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let part = folder.join(unique);
    let written = File::create(&part)
        .and_then(|mut file| {
            file.write_all(&key.checksum(cubin))?;
            file.write_all(cubin)
        })
        .and_then(|()| fs::rename(&part, folder.join(key.name()).with_extension(SUFFIX)));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}
