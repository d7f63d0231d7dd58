//! The disk cache of compiled kernels. [`flashrnn_gpu::disk_cache`] describes its folder and files.
//!
//! The key of an entry is a hash of the source, the headers, the options, the architecture, the
//! compiler's version and build, and the version of this crate.

use std::io;

use flashrnn_core::Result;
pub use flashrnn_gpu::disk_cache::folder;
use flashrnn_gpu::disk_cache::{DiskCache, Key};

use crate::kernels::compile::{Arch, Nvrtc, OPTIONS, Program, compile};

/// Extension of the entries' files.
const EXTENSION: &str = "cubin";

/// Deletes every compiled kernel in the cache's [`folder`], and nothing else there. Returns the
/// number of deleted files.
///
/// # Errors
/// The error of the operating system if the folder can't be read or a file can't be deleted.
pub fn clear() -> io::Result<usize> {
    DiskCache::open(EXTENSION).map_or(Ok(0), |cache| cache.clear())
}

/// Returns the key of the machine code that `nvrtc` makes of `program` for `arch`.
pub(crate) fn key(program: &Program, arch: Arch, nvrtc: &Nvrtc) -> Key {
    let numbers = [arch.major, arch.minor, nvrtc.major, nvrtc.minor].map(|n| n.to_string());
    let numbers = numbers.each_ref().map(String::as_str);
    let own = [env!("CARGO_PKG_VERSION"), &nvrtc.build, &program.name, &program.source];
    let headers: Vec<&str> =
        program.headers.iter().flat_map(|(name, text)| [name.as_str(), text.as_str()]).collect();
    let options: Vec<&str> =
        OPTIONS.into_iter().chain(program.options.iter().map(String::as_str)).collect();
    Key::new(&[&numbers, &own, &headers, &options])
}

/// Returns the machine code of `program` for `arch`, from the cache or newly compiled.
///
/// # Errors
/// Same as [`compile()`].
pub fn cubin(program: &Program, arch: Arch) -> Result<Vec<u8>> {
    let key = key(program, arch, Nvrtc::get()?);
    let cache = DiskCache::open(EXTENSION);
    if let Some(cubin) = cache.as_ref().and_then(|cache| cache.read(&key)) {
        return Ok(cubin);
    }
    let cubin = compile(program, arch)?.cubin;
    if let Some(cache) = cache {
        // A failed write is not an error: the program is just compiled again next time.
        let _ = cache.write(&key, &cubin);
    }
    Ok(cubin)
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

    #[test]
    fn the_key_depends_on_everything_that_the_code_depends_on() {
        type Change = fn(&mut Program);
        let changes: [Change; 6] = [
            |p| p.name.push('x'),
            |p| p.source.push('x'),
            |p| p.headers[0].0.push('x'),
            |p| p.headers[0].1.push('x'),
            |p| p.options.push("x".into()),
            |p| p.options = vec!["-DX=".into(), "1".into()],
        ];
        let nvrtc = |build| Nvrtc::new(13, 0, build, &[90]);
        let hopper = Arch { major: 9, minor: 0 };
        let of = |program: &Program| key(program, hopper, &nvrtc("1"));
        let mut keys = vec![of(&program()), key(&program(), Arch::OLDEST, &nvrtc("1"))];
        keys.push(key(&program(), hopper, &nvrtc("2")));
        for change in changes {
            let mut program = program();
            change(&mut program);
            keys.push(of(&program));
        }
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
        assert_eq!(of(&program()), keys[0]);
    }
}
