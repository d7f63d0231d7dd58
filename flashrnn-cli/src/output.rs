//! Writing files. Every file that the command leaves goes through [`write`].

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempPath;

/// How long to wait until somebody opens a named pipe for reading.
const READER: Duration = Duration::from_secs(5);

/// Writes `bytes` to `path`.
///
/// A new or an ordinary file is whole or as it was before: the bytes go to another file in the same
/// folder, which takes the name once it is on disk. It gets the mode and the owner of the file it
/// replaces. A link is followed. Devices, pipes and files with several names are written through,
/// and so is a file whose owner or folder does not allow replacing it.
///
/// # Errors
/// Says why `path` can't be written: it is read-only (even where its folder would let it be
/// replaced), a link to nothing, a folder, or a pipe that nobody opens for reading within five
/// seconds.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    put(path, bytes).with_context(|| format!("can't write {}", path.display()))
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(old) if old.is_file() && has_one_name(&old) => {
            // Renaming asks the folder for permission, so ask the file first.
            OpenOptions::new().write(true).open(path)?;
            match replace(&fs::canonicalize(path)?, bytes, Some(&old)) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                    write_through(path, bytes)
                }
                done => done,
            }
        }
        Ok(_) => write_through(path, bytes),
        Err(error) if error.kind() == ErrorKind::NotFound => match path.is_symlink() {
            true => Err(io::Error::new(ErrorKind::NotFound, "a link to nothing")),
            false => replace(path, bytes, None),
        },
        Err(error) => Err(error),
    }
}

/// Writes to what is there. Opening a pipe blocks until it has a reader, so another thread opens
/// it.
fn write_through(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    let owned = path.to_owned();
    thread::Builder::new().spawn(move || {
        // Nobody receives once the wait is over.
        let _ = sender.send(OpenOptions::new().write(true).truncate(true).open(owned));
    })?;
    let nobody = |_| io::Error::new(ErrorKind::TimedOut, "a pipe that nobody reads");
    receiver.recv_timeout(READER).map_err(nobody)??.write_all(bytes)
}

/// Gives the name `path` to a new file that holds `bytes`, with the mode and owner of `old`.
fn replace(path: &Path, bytes: &[u8], old: Option<&Metadata>) -> io::Result<()> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = stage(folder, |file| {
        file.write_all(bytes)?;
        old.map_or(Ok(()), |old| keep(file, old))?;
        file.sync_all()
    })?;
    staged.persist(path).map_err(|failed| failed.error)
}

/// Makes a file in `folder`, filled by `fill`, under a temporary name that goes when the result is
/// dropped.
fn stage(folder: &Path, fill: impl Fn(&mut File) -> io::Result<()>) -> io::Result<TempPath> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".flashrnn-");
    // A file without a name vanishes with the process, however that ends. Not every file system has
    // them.
    #[cfg(target_os = "linux")]
    if let Ok(mut file) = nameless(folder) {
        fill(&mut file)?;
        if let Ok(named) = builder.make_in(folder, |name| give_name(&file, name)) {
            return Ok(named.into_temp_path());
        }
    }
    // Temporary files are private by default; this one becomes an ordinary file, subject to the
    // umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = builder.tempfile_in(folder)?;
    fill(file.as_file_mut())?;
    Ok(file.into_temp_path())
}

#[cfg(target_os = "linux")]
fn nameless(folder: &Path) -> io::Result<File> {
    use rustix::fs::{CWD, Mode, OFlags, openat};

    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    Ok(openat(CWD, folder, flags, Mode::from_raw_mode(0o666))?.into())
}

#[cfg(target_os = "linux")]
fn give_name(file: &File, name: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;

    use rustix::fs::{AtFlags, CWD, linkat};

    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, file, CWD, name, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(unix)]
fn has_one_name(file: &Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(file) == 1
}

#[cfg(not(unix))]
fn has_one_name(_: &Metadata) -> bool {
    true
}

/// Gives a new file the owner and the mode of an old one.
fn keep(file: &File, old: &Metadata) -> io::Result<()> {
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

    fn names(folder: &Path) -> Result<usize> {
        Ok(fs::read_dir(folder)?.count())
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_stays() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("x.txt");
        write(&path, b"a long first text")?;
        write(&path, b"second")?;
        assert_eq!(fs::read(&path)?, b"second");
        assert_eq!(names(folder.path())?, 1);
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("inside"))?;
        assert!(write(&taken, b"x").is_err());
        assert_eq!(names(folder.path())?, 2);
        Ok(())
    }

    #[test]
    fn a_failure_while_filling_leaves_nothing() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let failed = stage(folder.path(), |file| {
            file.write_all(b"half of")?;
            Err(ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(names(folder.path())?, 0);
        Ok(())
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_several_names_keeps_them() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write(&one, b"a long first text")?;
        fs::hard_link(&one, &other)?;
        write(&one, b"second")?;
        assert_eq!(fs::read(&other)?, b"second");
        Ok(())
    }
}
