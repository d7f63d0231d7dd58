//! Tensors in safetensors files: reading with every check, writing atomically.

use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use flashrnn::{Dtype, Element, bf16, f16};
use safetensors::{Dtype as FileDtype, SafeTensors, View};

/// The tensors of a file that lies in memory. Dimensions and types are checked as each is taken out.
pub struct Input<'a>(SafeTensors<'a>);

impl<'a> Input<'a> {
    /// Reads the header of `bytes`, a whole file, and refuses tensors that are not among `known`.
    pub fn parse(bytes: &'a [u8], known: &[&str]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)
            .context("not a whole safetensors file (truncated, or of another format)")?;
        let mut unknown: Vec<&str> =
            tensors.names().into_iter().filter(|name| !known.contains(name)).collect();
        unknown.sort_unstable();
        if !unknown.is_empty() {
            bail!("unknown tensor {}; wanted only {}", unknown.join(", "), known.join(", "));
        }
        Ok(Self(tensors))
    }

    /// The dimensions of a tensor that must be there.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.0.tensor(name) {
            Ok(view) => Ok(view.shape().to_vec()),
            Err(_) => {
                let mut names = self.0.names();
                names.sort_unstable();
                bail!("tensor {name} is missing; the file has {}", some(&names.join(", ")))
            }
        }
    }

    /// The values of a floating-point tensor of dimensions `want`, converted to `P`; none if it isn't there.
    pub fn floats<P: Element>(&self, name: &str, want: &[usize]) -> Result<Option<Vec<P>>> {
        let Some((dtype, data)) = self.take(name, want)? else { return Ok(None) };
        Ok(Some(match dtype {
            FileDtype::F16 => decode(data, |bytes| convert(f16::from_le_bytes(bytes))),
            FileDtype::BF16 => decode(data, |bytes| convert(bf16::from_le_bytes(bytes))),
            FileDtype::F32 => decode(data, |bytes| convert(f32::from_le_bytes(bytes))),
            FileDtype::F64 => decode(data, |bytes| convert(f64::from_le_bytes(bytes))),
            other => bail!("{name}: got element type {other}, wanted F16, BF16, F32 or F64"),
        }))
    }

    /// The values of an integer tensor of dimensions `want`; none if it isn't there.
    pub fn integers(&self, name: &str, want: &[usize]) -> Result<Option<Vec<i64>>> {
        let Some((dtype, data)) = self.take(name, want)? else { return Ok(None) };
        Ok(Some(match dtype {
            FileDtype::I32 => decode(data, |bytes| i32::from_le_bytes(bytes).into()),
            FileDtype::I64 => decode(data, i64::from_le_bytes),
            other => bail!("{name}: got element type {other}, wanted I64 or I32"),
        }))
    }

    /// The values of a tensor of flags, of dimensions `want`; none if it isn't there.
    pub fn flags(&self, name: &str, want: &[usize]) -> Result<Option<Vec<u8>>> {
        let Some((dtype, data)) = self.take(name, want)? else { return Ok(None) };
        match dtype {
            FileDtype::U8 | FileDtype::BOOL => Ok(Some(data.to_vec())),
            other => bail!("{name}: got element type {other}, wanted U8 or BOOL"),
        }
    }

    /// A tensor's type and bytes, after a check of its dimensions.
    fn take(&self, name: &str, want: &[usize]) -> Result<Option<(FileDtype, &'a [u8])>> {
        let Ok(view) = self.0.tensor(name) else { return Ok(None) };
        if view.shape() != want {
            bail!("{name}: got shape {:?}, wanted {want:?}", view.shape());
        }
        Ok(Some((view.dtype(), view.data())))
    }
}

/// `names`, or a word for their absence.
fn some(names: &str) -> &str {
    if names.is_empty() { "no tensor at all" } else { names }
}

/// Reads a little-endian number of `LEN` bytes after the other. The file's header was checked: nothing is left over.
fn decode<const LEN: usize, P>(data: &[u8], read: impl Fn([u8; LEN]) -> P) -> Vec<P> {
    data.as_chunks::<LEN>().0.iter().map(|&bytes| read(bytes)).collect()
}

/// From one element type to another, by way of f64, which holds both.
fn convert<P: Element>(v: impl Element) -> P {
    P::from_f64(v.to_f64())
}

/// A tensor to be written.
pub struct Output {
    dtype: FileDtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Output {
    /// `values` of dimensions `shape`, in the element type `P`.
    pub fn new<P: Element>(shape: &[usize], values: &[P]) -> Self {
        // Values are exact in P, so that the way by f64 is exact too.
        let (dtype, data) = match P::DTYPE {
            Dtype::F16 => (FileDtype::F16, encode(values, |v| f16::from_f64(v).to_le_bytes())),
            Dtype::Bf16 => (FileDtype::BF16, encode(values, |v| bf16::from_f64(v).to_le_bytes())),
            Dtype::F32 => (FileDtype::F32, encode(values, |v| (v as f32).to_le_bytes())),
            Dtype::F64 => (FileDtype::F64, encode(values, f64::to_le_bytes)),
        };
        Self { dtype, shape: shape.to_vec(), data }
    }
}

fn encode<const LEN: usize, P: Element>(values: &[P], write: impl Fn(f64) -> [u8; LEN]) -> Vec<u8> {
    values.iter().flat_map(|v| write(v.to_f64())).collect()
}

impl View for &Output {
    fn dtype(&self) -> FileDtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Writes a safetensors file: to a temporary file in the same folder first, which then takes the name `path`, so that
/// nobody ever sees half of it.
pub fn write(path: &Path, tensors: &[(&str, Output)]) -> Result<()> {
    let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (name, tensor)), None)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".flashrnn-");
    // Temporary files are private by default; this one becomes an ordinary file, subject to the umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let cannot = || format!("can't write {}", path.display());
    let mut file = builder.tempfile_in(folder).with_context(cannot)?;
    file.write_all(&bytes).with_context(cannot)?;
    file.persist(path).map_err(|failed| failed.error).with_context(cannot)?;
    Ok(())
}

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("can't read {}", path.display()))
}
