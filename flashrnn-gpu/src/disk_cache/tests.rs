use super::*;

fn key() -> Key {
    Key::new(&[&["key"]])
}

fn cache(folder: impl Into<PathBuf>) -> DiskCache {
    DiskCache::new(folder, "entry")
}

/// Returns the names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn boundaries_between_texts_change_the_key() {
    let keys =
        [Key::new(&[&["ab", "c"]]), Key::new(&[&["a", "bc"]]), Key::new(&[&["ab"], &["c"]]), key()];
    let different: std::collections::HashSet<_> = keys.iter().map(Key::name).collect();
    assert_eq!(different.len(), keys.len());
}

#[test]
fn what_is_written_is_read_and_damage_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path().join("made/when/needed"));
    assert_eq!(cache.read(&key()), None);
    cache.write(&key(), b"content").unwrap();
    assert_eq!(cache.read(&key()).unwrap(), b"content");
    let whole = fs::read(cache.path(&key())).unwrap();
    let mut damaged = whole.clone();
    damaged[CHECKSUM + 3] ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() - 1], &whole[..CHECKSUM - 1], &[]] {
        fs::write(cache.path(&key()), bytes).unwrap();
        assert_eq!(cache.read(&key()), None);
    }
    // A renamed entry is not accepted.
    cache.write(&key(), b"content").unwrap();
    let other = Key::new(&[&["other"]]);
    fs::copy(cache.path(&key()), cache.path(&other)).unwrap();
    assert_eq!(cache.read(&other), None);
}

#[test]
fn the_environment_chooses_the_folder() {
    assert_eq!(folder_for(Some("off".into())), None);
    assert_eq!(folder_for(Some("/some/where".into())), Some("/some/where".into()));
    assert_eq!(folder_for(Some("".into())), folder_for(None));
    assert!(folder_for(None).is_none_or(|folder| folder.ends_with("flashrnn")));
}

#[test]
fn a_folder_that_cannot_be_made_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a file");
    fs::write(&file, "").unwrap();
    let cache = cache(file.join("below a file"));
    assert!(cache.write(&key(), b"content").is_err());
    assert_eq!(cache.read(&key()), None);
}

#[test]
fn clearing_deletes_entries_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    assert_eq!(DiskCache::new(folder.path().join("absent"), "entry").clear().unwrap(), 0);
    cache.write(&key(), b"content").unwrap();
    let part = folder.path().join(format!("{}.0123456789abcdef.part", key().name()));
    fs::write(part, "left by a process that was killed").unwrap();
    let others = ["notes.entry".to_string(), format!("{}.other", key().name())];
    others.iter().for_each(|name| fs::write(folder.path().join(name), "somebody's own").unwrap());
    fs::create_dir(folder.path().join(format!("{}.part", key().name()))).unwrap();
    assert_eq!(cache.clear().unwrap(), 2);
    assert_eq!(names(folder.path()).len(), 3);
}

#[test]
fn threads_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let cache = cache(folder.path());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..50).for_each(|_| cache.write(&key(), b"content").unwrap()));
        }
    });
    assert_eq!(names(folder.path()), [format!("{}.entry", key().name())]);
}

#[cfg(unix)]
mod strangers {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn folders_and_files_are_made_for_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path().join("a/b"));
        cache.write(&key(), b"content").unwrap();
        assert_eq!(mode(&folder.path().join("a")), 0o700);
        assert_eq!(mode(&cache.folder), 0o700);
        assert_eq!(mode(&cache.path(&key())), 0o600);
    }

    #[test]
    fn what_others_may_write_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        cache.write(&key(), b"content").unwrap();
        for open in [0o777, 0o1777, 0o775] {
            set_mode(folder.path(), open);
            assert_eq!(cache.read(&key()), None, "{open:o}");
            let refused = cache.write(&key(), b"content").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{open:o}");
        }
        set_mode(folder.path(), 0o700);
        assert!(cache.read(&key()).is_some());
        set_mode(&cache.path(&key()), 0o666);
        assert_eq!(cache.read(&key()), None);
        // A private entry replaces it.
        cache.write(&key(), b"content").unwrap();
        assert!(cache.read(&key()).is_some());
    }

    /// Needs root. In containers, tests often run as root.
    #[test]
    fn what_belongs_to_another_user_is_not_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path());
        cache.write(&key(), b"content").unwrap();
        if std::os::unix::fs::chown(folder.path(), Some(65534), None).is_err() {
            println!("skipped: only root can change a folder's owner");
            return;
        }
        assert_eq!(cache.read(&key()), None);
        assert!(cache.write(&key(), b"content").is_err());
    }

    #[test]
    fn only_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let cache = cache(folder.path().join("cache"));
        cache.write(&key(), b"content").unwrap();
        let entry = cache.path(&key());
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&entry, &elsewhere).unwrap();
        let whole = fs::read(&elsewhere).unwrap();

        symlink(&elsewhere, &entry).unwrap();
        assert_eq!(cache.read(&key()), None, "a link");
        fs::remove_file(&entry).unwrap();
        symlink("/dev/zero", &entry).unwrap();
        assert_eq!(cache.read(&key()), None, "a device");
        // Writing replaces the link, not its target.
        fs::remove_file(&entry).unwrap();
        symlink(&elsewhere, &entry).unwrap();
        cache.write(&key(), b"new").unwrap();
        assert_eq!(cache.read(&key()).unwrap(), b"new");
        assert_eq!(fs::read(&elsewhere).unwrap(), whole);

        fs::remove_file(&entry).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&entry).status();
        if made.is_ok_and(|status| status.success()) {
            assert_eq!(cache.read(&key()), None, "a FIFO");
        }
        fs::remove_file(&entry).unwrap();
        fs::create_dir(&entry).unwrap();
        assert_eq!(cache.read(&key()), None, "a folder");
        assert!(cache.write(&key(), b"new").is_err());
    }

    #[test]
    fn a_link_at_the_temporary_name_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, part) = (folder.path().join("victim"), folder.path().join("x.part"));
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &part).unwrap();
        assert!(write_new(&part, &[b"content"]).is_err());
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }
}
