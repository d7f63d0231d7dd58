//! Keeps the pipelines that the driver compiled on disk between processes, if the driver returns
//! them.
//!
//! There is one entry per adapter, in the folder that [`flashrnn_gpu::disk_cache`] describes. An
//! entry that wgpu or the driver refuses is replaced.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use flashrnn_core::Result;
pub use flashrnn_gpu::disk_cache::folder;
use flashrnn_gpu::disk_cache::{DiskCache, Key};
use flashrnn_gpu::lock;
use sha2::{Digest, Sha256};

use crate::device::Device;

/// Extension of the entries' files.
const EXTENSION: &str = "pipelines";

/// Deletes all compiled pipelines in [`folder`], and nothing else there. Returns the number of
/// files.
///
/// # Errors
/// The system's error if the folder cannot be read or a file cannot be deleted.
pub fn clear() -> io::Result<usize> {
    DiskCache::open(EXTENSION).map_or(Ok(0), |cache| cache.clear())
}

/// The compiled pipelines of an adapter.
pub(crate) struct Cache {
    pipelines: wgpu::PipelineCache,
    /// Whether pipelines may have been added since the last `save`.
    added: AtomicBool,
    disk: DiskCache,
    key: Key,
    /// The checksum of the entry on disk when this process last read or wrote it.
    on_disk: Mutex<Option<[u8; 32]>>,
}

impl Cache {
    /// Opens the entry of the device's adapter. Returns `None` if the driver returns no pipelines
    /// or caching is off.
    pub fn new(device: &Device) -> Option<Self> {
        Self::open(DiskCache::open(EXTENSION)?, device)
    }

    fn open(disk: DiskCache, device: &Device) -> Option<Self> {
        if !device.handle.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let adapter = wgpu::util::pipeline_cache_key(&device.handle.adapter_info())?;
        let key = Key::new(&[&[env!("CARGO_PKG_VERSION"), &adapter]]);
        let data = disk.read(&key);
        let pipelines = match pipelines(device, data.as_deref()) {
            Err(_) if data.is_some() => pipelines(device, None),
            pipelines => pipelines,
        };
        let on_disk = data.as_deref().map(checksum);
        Some(Self {
            pipelines: pipelines.ok()?,
            added: AtomicBool::new(false),
            disk,
            key,
            on_disk: Mutex::new(on_disk),
        })
    }

    /// Returns the pipeline cache, for compiling another pipeline.
    pub fn pipelines(&self) -> &wgpu::PipelineCache {
        self.added.store(true, Ordering::Relaxed);
        &self.pipelines
    }

    /// Writes the pipelines to disk if some were added.
    pub fn save(&self) {
        if !self.added.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.pipelines.get_data() else { return };
        let mut on_disk = lock(&self.on_disk);
        // A failed write is ignored, because it only makes the next process slower.
        let checksum = Some(checksum(&data));
        if *on_disk != checksum && self.disk.write(&self.key, &data).is_ok() {
            *on_disk = checksum;
        }
    }
}

fn checksum(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// Makes a pipeline cache that contains `data`.
///
/// # Errors
/// wgpu's error if the data belongs to another adapter.
fn pipelines(device: &Device, data: Option<&[u8]>) -> Result<wgpu::PipelineCache> {
    device.scope(0, || {
        let descriptor =
            wgpu::PipelineCacheDescriptor { label: Some("flashrnn"), data, fallback: true };
        // SAFETY: `data` was returned by `PipelineCache::get_data`: only `Cache::save` writes such
        // files, a checksum shows that a file is intact, and `DiskCache` reads none that another
        // user may have written. wgpu refuses or drops the data of other adapters and drivers.
        #[allow(unsafe_code)]
        Ok(unsafe { device.handle.create_pipeline_cache(&descriptor) })
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use flashrnn_core::{Backend, Gru, Problem};

    use super::*;
    use crate::{Wgpu, testing};

    /// Makes a plan on a new device with the cache in `folder`. Returns the entry that was there
    /// before.
    fn plan(folder: &Path) -> Option<Option<Vec<u8>>> {
        let wgpu: Wgpu = testing::wgpu()?;
        let cache = Cache::open(DiskCache::new(folder, EXTENSION), &wgpu.device)?;
        let had = cache.disk.read(&cache.key);
        assert!(wgpu.kernels.cache.set(Some(cache)).is_ok());
        wgpu.plan::<f32, f32, _>(&Gru, &Problem::new(1, 2, 1, 3)).unwrap();
        Some(had)
    }

    #[test]
    fn pipelines_are_kept_and_damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made/when/needed");
        let Some(had) = plan(&folder) else { return };
        assert_eq!(had, None);
        let files: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &files[..] else { panic!("{files:?}") };
        let whole = fs::read(file).unwrap();
        assert!(plan(&folder).unwrap().is_some_and(|had| !had.is_empty()));
        fs::write(file, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(plan(&folder), Some(None));
        // The damaged entry was replaced.
        assert!(plan(&folder).unwrap().is_some());
        assert_eq!(DiskCache::new(&folder, EXTENSION).clear().unwrap(), 1);
    }

    /// An entry of another adapter does no harm, and the next process finds a valid one.
    #[test]
    fn data_that_wgpu_refuses_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let Some(_) = plan(folder.path()) else { return };
        let good = plan(folder.path()).unwrap().unwrap();
        let wgpu = testing::wgpu().unwrap();
        let Cache { disk, key, .. } =
            Cache::open(DiskCache::new(folder.path(), EXTENSION), &wgpu.device).unwrap();
        let changed = (0..64).map(|at| {
            let mut other = good.clone();
            other[at] ^= 0x55;
            other
        });
        let refused: Vec<_> =
            changed.filter(|data| pipelines(&wgpu.device, Some(data)).is_err()).collect();
        // The bytes that name the adapter.
        let [first, ..] = &refused[..] else { panic!("wgpu accepts data of every adapter") };
        disk.write(&key, first).unwrap();
        assert_eq!(plan(folder.path()).unwrap().as_ref(), Some(first));
        let after = plan(folder.path()).unwrap().unwrap();
        assert!(pipelines(&wgpu.device, Some(&after)).is_ok());
    }

    #[test]
    fn without_a_folder_everything_works() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        assert!(matches!(plan(&file.join("below a file")), None | Some(None)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
