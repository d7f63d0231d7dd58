//! Writes files. Every output file of the command is written by [`write`].

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempPath;

/// The time to wait for a reader to open a named pipe.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

/// Writes `bytes` to `path`.
///
/// New and regular files are written atomically: the bytes go to a temporary file in the same
/// folder, which is renamed once it is on disk, with the mode and owner of the file it replaces.
/// Symbolic links are followed. Devices, pipes, files with several hard links, and files whose
/// owner or folder does not allow replacing them are overwritten in place.
///
/// # Errors
/// If `path` is read-only (even if its folder would allow replacing it), a dangling link, a folder,
/// or a pipe that no reader opens within five seconds.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    put(path, bytes).with_context(|| format!("can't write {}", path.display()))
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(old) if old.is_file() && has_one_link(&old) => {
            // Renaming checks only the permissions of the folder, so check the file's permissions
            // here.
            OpenOptions::new().write(true).open(path)?;
            match replace(&fs::canonicalize(path)?, bytes, Some(&old)) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => overwrite(path, bytes),
                done => done,
            }
        }
        Ok(_) => overwrite(path, bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => match path.is_symlink() {
            true => Err(io::Error::new(ErrorKind::NotFound, "it is a dangling link")),
            false => replace(path, bytes, None),
        },
        Err(error) => Err(error),
    }
}

/// Overwrites an existing file in place. Opens it on another thread, because opening a pipe blocks
/// until it has a reader.
fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    let owned = path.to_owned();
    thread::Builder::new().spawn(move || {
        // Fails if the receiver has timed out.
        let _ = sender.send(OpenOptions::new().write(true).truncate(true).open(owned));
    })?;
    let timeout = |_| io::Error::new(ErrorKind::TimedOut, "it is a pipe without a reader");
    receiver.recv_timeout(READER_TIMEOUT).map_err(timeout)??.write_all(bytes)
}

/// Replaces `path` by a new file that contains `bytes`, with the mode and owner of `old`.
fn replace(path: &Path, bytes: &[u8], old: Option<&Metadata>) -> io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = stage(folder, |file| {
        file.write_all(bytes)?;
        old.map_or(Ok(()), |old| copy_owner_and_mode(file, old))?;
        file.sync_all()
    })?;
    staged.persist(path).map_err(|failed| failed.error)
}

/// Creates a file in `folder` under a temporary name, and fills it with `fill`. Dropping the result
/// deletes it.
fn stage(folder: &Path, fill: impl Fn(&mut File) -> io::Result<()>) -> io::Result<TempPath> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".flashrnn-");
    // An unnamed file vanishes with the process, however that ends. Not every file system supports
    // them.
    #[cfg(target_os = "linux")]
    if let Ok(mut file) = unnamed(folder) {
        fill(&mut file)?;
        if let Ok(named) = builder.make_in(folder, |name| link(&file, name)) {
            return Ok(named.into_temp_path());
        }
    }
    // Temporary files are private by default, but this one becomes a regular file, subject to the
    // umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    fill(file.as_file_mut())?;
    Ok(file.into_temp_path())
}

#[cfg(target_os = "linux")]
fn unnamed(folder: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};

    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(openat(CWD, folder, flags, Mode::from_raw_mode(0o666))?.into())
}

#[cfg(target_os = "linux")]
fn link(file: &File, name: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};

    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, file, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(unix)]
fn has_one_link(file: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(file) == 1
}

#[cfg(not(unix))]
fn has_one_link(_: &Metadata) -> bool {
    true
}

/// Copies the owner and the mode of an old file to a new one.
fn copy_owner_and_mode(file: &File, old: &Metadata) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};

        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.set_permissions(old.permissions())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_files(folder: &Path) -> Result<usize> {
        Ok(fs::read_dir(folder)?.count())
    }

    #[test]
    fn files_are_replaced_without_leftovers() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.txt");
        write(&path, b"a long first text")?;
        write(&path, b"second")?;
        assert_eq!(fs::read(&path)?, b"second");
        assert_eq!(count_files(folder.path())?, 1);
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("inside"))?;
        assert!(write(&taken, b"x").is_err());
        assert_eq!(count_files(folder.path())?, 2);
        Ok(())
    }

    #[test]
    fn a_failed_write_leaves_no_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let failed = stage(folder.path(), |file| {
            file.write_all(b"half of")?;
            Err(ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(count_files(folder.path())?, 0);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn hard_links_are_preserved() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write(&one, b"a long first text")?;
        fs::hard_link(&one, &other)?;
        write(&one, b"second")?;
        assert_eq!(fs::read(&other)?, b"second");
        Ok(())
    }
}
