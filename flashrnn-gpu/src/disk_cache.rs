//! Keeps compiled programs on disk between processes.
//!
//! An entry is a file, named by a hash of everything that determines its content ([`Key`]). The
//! file holds a checksum of the key and the content, followed by the content. Entries are written
//! to a new file with a random name, which is then renamed, so several processes can share the
//! folder. A damaged entry fails its checksum and is replaced.
//!
//! The environment variable `FLASHRNN_CACHE` names the folder. The default is `flashrnn` in the
//! user's cache folder (`~/.cache` on Linux). `FLASHRNN_CACHE=off` turns the cache off. Machine
//! code written by another user must not run, so on Unix a folder or file is used only if it
//! belongs to this user or root and no other user can write it. If the folder cannot be used,
//! nothing is cached, which is not an error.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Size of the checksum in bytes.
const CHECKSUM: usize = 32;
/// Entries larger than this are not read.
const MAX_BYTES: u64 = 256 << 20;
/// Extension of files that are being written.
const PART: &str = "part";

/// Identifies an entry by a hash of everything that determines its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Hashes lists of strings. The length of every list and string is hashed too, so moving a
    /// boundary changes the hash.
    #[must_use]
    pub fn new(lists: &[&[&str]]) -> Self {
        let mut hash = Sha256::new();
        for list in lists {
            hash.update((list.len() as u64).to_le_bytes());
            for text in *list {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text.as_bytes());
            }
        }
        Self(hash.finalize().into())
    }

    fn name(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the checksum of the entry that has this key and `content`.
    fn checksum(&self, content: &[u8]) -> [u8; CHECKSUM] {
        Sha256::new().chain_update(self.0).chain_update(content).finalize().into()
    }
}

/// Returns the folder of the cache, or `None` if caching is off or the user has no cache folder.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    folder_for(std::env::var_os("FLASHRNN_CACHE"))
}

fn folder_for(variable: Option<OsString>) -> Option<PathBuf> {
    match variable {
        Some(folder) if folder == "off" => None,
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("flashrnn")),
    }
}

/// The entries of a folder that have one extension.
#[derive(Clone, Debug)]
pub struct DiskCache {
    folder: PathBuf,
    extension: &'static str,
}

impl DiskCache {
    /// Opens the entries with the extension `extension` in the folder that the environment selects
    /// ([`folder`]). Returns `None` if there is none.
    #[must_use]
    pub fn open(extension: &'static str) -> Option<Self> {
        folder().map(|folder| Self::new(folder, extension))
    }

    /// Opens the entries with the extension `extension` in `folder`. Writing the first entry
    /// creates the folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, extension: &'static str) -> Self {
        Self { folder: folder.into(), extension }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(key.name()).with_extension(self.extension)
    }

    /// Reads the content of an entry. Returns `None` if there is no entry, it is damaged, or
    /// another user may have written it.
    #[must_use]
    pub fn read(&self, key: &Key) -> Option<Vec<u8>> {
        let path = self.path(key);
        if !is_private(&fs::metadata(&self.folder).ok()?) {
            return None;
        }
        // In a private folder, no other user can replace the file between this check and the read.
        let file = fs::symlink_metadata(&path).ok()?;
        if !file.is_file() || !is_private(&file) || file.len() > MAX_BYTES {
            return None;
        }
        let mut content = fs::read(path).ok()?;
        let (checksum, rest) = content.split_at_checked(CHECKSUM)?;
        if checksum != key.checksum(rest) {
            return None;
        }
        content.drain(..CHECKSUM);
        Some(content)
    }

    /// Writes or replaces an entry, and creates the folder if necessary.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] if another user owns the folder or can write it; any
    /// error of the operating system.
    pub fn write(&self, key: &Key, content: &[u8]) -> io::Result<()> {
        make_private(&self.folder)?;
        if !is_private(&fs::metadata(&self.folder)?) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let random = RandomState::new().hash_one(key.0);
        let part = self.folder.join(format!("{}.{random:016x}.{PART}", key.name()));
        let written = write_new(&part, &[&key.checksum(content), content])
            .and_then(|()| fs::rename(&part, self.path(key)));
        if written.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
            let _ = fs::remove_file(&part);
        }
        written
    }

    /// Deletes all entries with this extension and what interrupted writes left behind, and nothing
    /// else in the folder. Returns the number of deleted files.
    ///
    /// # Errors
    /// The error of the operating system if the folder cannot be read or a file cannot be deleted.
    pub fn clear(&self) -> io::Result<usize> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut deleted = 0;
        for entry in entries {
            let entry = entry?;
            if !self.is_ours(&entry.path()) || entry.file_type()?.is_dir() {
                continue;
            }
            match fs::remove_file(entry.path()) {
                // Another process may have deleted the file.
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => deleted += 1,
            }
        }
        Ok(deleted)
    }

    /// Returns whether a file has the name of an entry, or of an entry that is being written.
    fn is_ours(&self, path: &Path) -> bool {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let (stem, extension) = name.split_once('.').unwrap_or_default();
        let is_key =
            stem.len() == 2 * CHECKSUM && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_key && (extension == self.extension || extension.rsplit('.').next() == Some(PART))
    }
}

/// Writes `parts` to a new file that only this user can read. Does not follow links.
fn write_new(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    parts.iter().try_for_each(|part| file.write_all(part))
}

/// Creates `folder` and its missing parents, accessible only to this user.
fn make_private(folder: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder)
}

/// Returns whether only this user or root can have written a file, or the files of a folder.
#[cfg(unix)]
fn is_private(metadata: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    let ours = [rustix::process::geteuid().as_raw(), 0].contains(&metadata.uid());
    ours && metadata.mode() & 0o022 == 0
}

/// Returns `true`, because the folder is in the user's profile, which is private by default.
#[cfg(not(unix))]
fn is_private(_: &Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests;
