"""Writes files as the command does (flashrnn-cli/src/output.rs). As a script, checks itself."""

import os
import stat
import tempfile


def write(path, data):
    """Writes the bytes `data` to `path`.

    A regular file, new or old, ends up complete or unchanged, and keeps its mode and owner. Links
    are followed. Anything else, and a file with several names, is written through. A read-only file
    is an error.
    """
    path = os.path.realpath(path)
    old = os.stat(path) if os.path.exists(path) else None
    if old and not (stat.S_ISREG(old.st_mode) and old.st_nlink == 1):
        with open(path, "wb") as file:
            file.write(data)
        return
    if old:
        open(path, "ab").close()  # renaming needs no permission of the file, so check it first
    handle, name = tempfile.mkstemp(prefix=".flashrnn-", dir=os.path.dirname(path))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            new = os.fstat(handle)
            if old and (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(handle, old.st_uid, old.st_gid)
            os.fchmod(handle, stat.S_IMODE(old.st_mode) if old else 0o666 & ~umask())
            os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def umask():
    """Returns the mode bits that new files do not get. They can be read only by setting them."""
    bits = os.umask(0)
    os.umask(bits)
    return bits


def check():
    with tempfile.TemporaryDirectory() as folder:
        at = lambda name: os.path.join(folder, name)
        read = lambda name: open(at(name), "rb").read()
        write(at("new"), b"1")
        assert read("new") == b"1" and stat.S_IMODE(os.stat(at("new")).st_mode) == 0o666 & ~umask()
        os.chmod(at("new"), 0o600)
        os.symlink("new", at("link"))
        write(at("link"), b"2")
        assert (
            read("new") == b"2"
            and os.path.islink(at("link"))
            and stat.S_IMODE(os.stat(at("new")).st_mode) == 0o600
        )
        os.link(at("new"), at("other"))
        write(at("new"), b"3")
        assert read("other") == b"3"
        os.symlink("/dev/null", at("null"))
        write(at("null"), b"4")
        assert stat.S_ISCHR(os.stat(at("null")).st_mode)
        os.mkdir(at("folder"))
        try:
            write(at("folder"), b"5")
            raise AssertionError("a folder was written to")
        except IsADirectoryError:
            pass
        assert sorted(os.listdir(folder)) == ["folder", "link", "new", "null", "other"]


if __name__ == "__main__":
    check()
