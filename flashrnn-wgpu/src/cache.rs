//! Pipelines that the driver has compiled, kept on disk between processes, where it gives them out.
//!
//! There is one file an adapter, in the folder of flashrnn-cuda's kernels: the environment's `FLASHRNN_CACHE`, else `flashrnn` in
//! the user's cache folder. It holds a checksum and what the driver gave, is written under another name and then renamed.
//! `FLASHRNN_CACHE=off` keeps nothing. Where the folder can't be written, nothing is kept either, and that is no error.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use sha2::{Digest, Sha256};

use crate::device::lock;

type Checksum = [u8; 32];

/// An adapter's compiled pipelines.
pub(crate) struct Cache {
    pipelines: wgpu::PipelineCache,
    /// Whether pipelines may have been added.
    added: AtomicBool,
    file: PathBuf,
    /// Of what the file holds.
    kept: Mutex<Option<Checksum>>,
}

fn folder_for(wish: Option<OsString>) -> Option<PathBuf> {
    match wish {
        Some(folder) if folder == "off" => None,
        Some(folder) if !folder.is_empty() => Some(folder.into()),
        _ => dirs::cache_dir().map(|folder| folder.join("flashrnn")),
    }
}

impl Cache {
    /// What is kept for the device's adapter; `None` where it gives out nothing or caching is off.
    pub fn new(device: &wgpu::Device) -> Option<Self> {
        Self::new_in(&folder_for(std::env::var_os("FLASHRNN_CACHE"))?, device)
    }

    pub fn new_in(folder: &Path, device: &wgpu::Device) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(&device.adapter_info())?;
        let file = folder.join(key).with_extension("pipelines");
        let data = read(&file);
        let kept = Mutex::new(data.as_deref().map(checksum));
        let data = data.as_deref();
        let descriptor = wgpu::PipelineCacheDescriptor { label: Some("flashrnn"), data, fallback: true };
        // SAFETY: `data` is what `PipelineCache::get_data` gave for an adapter of this name, since `save` alone writes such files, and
        // the checksum tells that it is whole. wgpu drops it where the driver is another one.
        #[allow(unsafe_code)]
        let pipelines = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { pipelines, added: AtomicBool::new(false), file, kept })
    }

    /// For a pipeline that is to be made.
    pub fn pipelines(&self) -> &wgpu::PipelineCache {
        self.added.store(true, Ordering::Relaxed);
        &self.pipelines
    }

    /// Keeps what was compiled since.
    pub fn save(&self) {
        if !self.added.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.pipelines.get_data() else { return };
        let mut kept = lock(&self.kept);
        let checksum = checksum(&data);
        // Without a cache everything works, only slower the next time.
        if *kept != Some(checksum) && write(&self.file, &checksum, &data).is_ok() {
            *kept = Some(checksum);
        }
    }
}

fn checksum(data: &[u8]) -> Checksum {
    Sha256::digest(data).into()
}

/// What the file holds; none where there is no file or it is damaged.
fn read(file: &Path) -> Option<Vec<u8>> {
    let content = fs::read(file).ok()?;
    let (found, data) = content.split_at_checked(size_of::<Checksum>())?;
    (found == checksum(data)).then(|| data.to_vec())
}

fn write(file: &Path, checksum: &Checksum, data: &[u8]) -> io::Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let part = file.with_extension(format!("{}-{count}.part", std::process::id()));
    let written = File::create(&part)
        .and_then(|mut part| {
            part.write_all(checksum)?;
            part.write_all(data)
        })
        .and_then(|()| fs::rename(&part, file));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

#[cfg(test)]
mod tests {
    use flashrnn_core::{Backend, Gru, Problem};

    use super::*;
    use crate::{Wgpu, testing};

    /// A device of its own with the cache in `folder`: makes a plan, and says how many bytes the driver had from the file.
    fn plan(folder: &Path) -> Option<usize> {
        let wgpu: Wgpu = testing::wgpu()?;
        let cache = Cache::new_in(folder, wgpu.device())?;
        let had = read(&cache.file).map_or(0, |data| data.len());
        assert!(wgpu.device.cache.set(Some(cache)).is_ok());
        wgpu.plan::<f32, f32, _>(&Gru, &Problem::new(1, 2, 1, 3)).unwrap();
        Some(had)
    }

    #[test]
    fn pipelines_are_kept_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/when/needed");
        let Some(had) = plan(&folder) else { return };
        assert_eq!(had, 0);
        let files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        let whole = fs::read(file).unwrap();
        assert_eq!(plan(&folder), Some(whole.len() - size_of::<Checksum>()));
        let mut damaged = whole.clone();
        damaged[40] ^= 1;
        for bytes in [&damaged[..], &whole[..whole.len() - 1], &whole[..31], &[]] {
            fs::write(file, bytes).unwrap();
            assert_eq!(plan(&folder), Some(0));
            assert!(read(file).is_some_and(|data| !data.is_empty()));
        }
    }

    #[test]
    fn without_a_folder_everything_works() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        assert!(matches!(plan(&file.join("below a file")), None | Some(0)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn the_environment_chooses_the_folder() {
        assert_eq!(folder_for(Some("off".into())), None);
        assert_eq!(folder_for(Some("/some/where".into())), Some("/some/where".into()));
        assert_eq!(folder_for(Some("".into())), folder_for(None));
        assert!(folder_for(None).is_none_or(|folder| folder.ends_with("flashrnn")));
    }
}
