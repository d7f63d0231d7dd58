//! Compiled kernels, kept on disk between processes.
//!
//! An entry's name is a hash of everything that decides its content: source, headers, options, architecture, the compiler's
//! version and build, and this crate's version. It holds a checksum and the machine code. Entries are written to a file of
//! another name and then renamed, so that processes may share the folder; one that was damaged is noticed and made again.
//!
//! The folder is the environment's `FLASHRNN_CACHE`, else `flashrnn` in the user's cache folder (on Linux `~/.cache`).
//! `FLASHRNN_CACHE=off` keeps nothing. Where the folder can't be written, nothing is kept either, and that is no error.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use flashrnn_core::Result;
use sha2::{Digest, Sha256};

use crate::compile::{Arch, Nvrtc, OPTIONS, Program, compile};

/// What an entry's file name ends in.
const SUFFIX: &str = "cubin";
/// The bytes before the machine code.
const CHECKSUM: usize = 32;

/// The folder where compiled kernels are kept; none where caching is off or the user has no cache folder.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    folder_for(std::env::var_os("FLASHRNN_CACHE"))
}

fn folder_for(wish: Option<OsString>) -> Option<PathBuf> {
    match wish {
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
            OPTIONS.into_iter().chain(program.options.iter().map(String::as_str)).collect(),
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

/// The machine code of `program` for `arch`, from the cache or compiled now.
///
/// # Errors
/// As [`compile()`].
pub fn cubin(program: &Program, arch: Arch) -> Result<Vec<u8>> {
    let key = Key::new(program, arch, Nvrtc::get()?);
    cubin_in(folder().as_deref(), &key, || Ok(compile(program, arch)?.cubin))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            name: "test.cu".into(),
            source: "source".into(),
            headers: vec![("a.cuh".into(), "text".into())],
            options: vec!["-DX=1".into()],
        }
    }

    const ARCH: Arch = Arch { major: 9, minor: 0 };

    fn nvrtc(build: &str) -> Nvrtc {
        Nvrtc::new(13, 0, build, &[90])
    }

    fn key() -> Key {
        Key::new(&program(), ARCH, &nvrtc("1"))
    }

    /// Makes the entry where `folder` has none, and says whether it was made.
    fn made(folder: Option<&Path>) -> bool {
        let mut made = false;
        let cubin = cubin_in(folder, &key(), || {
            made = true;
            Ok(b"machine code".to_vec())
        });
        assert_eq!(cubin.unwrap(), b"machine code");
        made
    }

    #[test]
    fn everything_that_decides_the_code_decides_the_key() {
        type Change = fn(&mut Program);
        let changes: [Change; 6] = [
            |p| p.name.push('x'),
            |p| p.source.push('x'),
            |p| p.headers[0].0.push('x'),
            |p| p.headers[0].1.push('x'),
            |p| p.options.push("x".into()),
            |p| p.options = vec!["-DX=".into(), "1".into()],
        ];
        let mut keys = vec![key(), Key::new(&program(), Arch { major: 8, minor: 0 }, &nvrtc("1"))];
        keys.push(Key::new(&program(), ARCH, &nvrtc("2")));
        for change in changes {
            let mut program = program();
            change(&mut program);
            keys.push(Key::new(&program, ARCH, &nvrtc("1")));
        }
        let different: std::collections::HashSet<_> = keys.iter().map(Key::name).collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(key(), key());
    }

    #[test]
    fn an_entry_is_made_once_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/when/needed");
        assert!(made(Some(&folder)));
        assert!(!made(Some(&folder)));
        let entry = folder.join(key().name()).with_extension(SUFFIX);
        let whole = fs::read(&entry).unwrap();
        let mut damaged = whole.clone();
        damaged[CHECKSUM + 3] ^= 1;
        for bytes in [&damaged[..], &whole[..whole.len() - 1], &whole[..CHECKSUM - 1], &[]] {
            fs::write(&entry, bytes).unwrap();
            assert!(made(Some(&folder)));
            assert!(!made(Some(&folder)));
        }
        // An entry under another's name is not taken for it.
        let other = Key::new(&program(), ARCH, &nvrtc("2"));
        fs::copy(&entry, folder.join(other.name()).with_extension(SUFFIX)).unwrap();
        assert_eq!(read(&folder, &other), None);
    }

    #[test]
    fn the_environment_chooses_the_folder() {
        assert_eq!(folder_for(Some("off".into())), None);
        assert_eq!(folder_for(Some("/some/where".into())), Some("/some/where".into()));
        assert_eq!(folder_for(Some("".into())), folder_for(None));
        assert!(folder_for(None).is_none_or(|folder| folder.ends_with("flashrnn")));
    }

    #[test]
    fn no_folder_means_no_cache() {
        assert!(made(None));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        assert!(made(Some(&file.join("below a file"))));
        assert!(made(Some(&file.join("below a file"))));
    }

    #[test]
    fn clearing_deletes_entries_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(clear_in(&folder.path().join("absent")).unwrap(), 0);
        assert!(made(Some(folder.path())));
        let part = folder.path().join(format!("{}-1-1.part", key().name()));
        let notes = folder.path().join("notes.cubin");
        fs::write(&part, "left by a process that was killed").unwrap();
        fs::write(&notes, "somebody's own").unwrap();
        assert_eq!(clear_in(folder.path()).unwrap(), 2);
        assert!(notes.exists() && !part.exists());
        assert!(made(Some(folder.path())));
    }

    #[test]
    fn threads_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).filter(|_| made(Some(folder.path()))).count());
            }
        });
        let files: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(files, [format!("{}.{SUFFIX}", key().name()).as_str()]);
    }
}
