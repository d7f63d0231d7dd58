//! Reads and checks the tensors of safetensors files, and writes such files.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use flashrnn::{Dtype, Element, bf16, f16};
use safetensors::{Dtype as FileDtype, SafeTensors, View};

use crate::output;

/// The tensors of a file in memory. Reading a tensor checks its dimensions and element type.
pub struct Input<'a>(SafeTensors<'a>);

impl<'a> Input<'a> {
    /// Parses the header of `bytes`, a whole file. Rejects tensors that are not in `known`.
    pub fn parse(bytes: &'a [u8], known: &[&str]) -> Result<Self> {
        let tensors = SafeTensors::deserialize(bytes)
            .context("not a complete safetensors file (truncated, or of another format)")?;
        let names = tensors.names().into_iter();
        let mut unknown: Vec<String> = names
            .filter(|name| !known.contains(name))
            .map(|name| name.escape_debug().to_string())
            .collect();
        unknown.sort_unstable();
        if !unknown.is_empty() {
            bail!("unknown tensor {}, wanted only {}", unknown.join(", "), known.join(", "));
        }
        Ok(Self(tensors))
    }

    /// Returns the dimensions of a required tensor.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        match self.0.tensor(name) {
            Ok(view) => Ok(view.shape().to_vec()),
            Err(_) => {
                let mut names = self.0.names();
                names.sort_unstable();
                let names = if names.is_empty() { "no tensors".into() } else { names.join(", ") };
                bail!("tensor {name} is missing; the file contains {names}")
            }
        }
    }

    /// Reads a floating-point tensor of dimensions `want`, converted to `P`. Returns `None` if it
    /// is absent.
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

    /// Reads an integer tensor of dimensions `want`. Returns `None` if it is absent.
    pub fn integers(&self, name: &str, want: &[usize]) -> Result<Option<Vec<i64>>> {
        let Some((dtype, data)) = self.take(name, want)? else { return Ok(None) };
        Ok(Some(match dtype {
            FileDtype::I32 => decode(data, |bytes| i32::from_le_bytes(bytes).into()),
            FileDtype::I64 => decode(data, i64::from_le_bytes),
            other => bail!("{name}: got element type {other}, wanted I64 or I32"),
        }))
    }

    /// Reads a tensor of flags of dimensions `want`. Returns `None` if it is absent.
    pub fn flags(&self, name: &str, want: &[usize]) -> Result<Option<Vec<u8>>> {
        let Some((dtype, data)) = self.take(name, want)? else { return Ok(None) };
        match dtype {
            FileDtype::U8 | FileDtype::BOOL => Ok(Some(data.to_vec())),
            other => bail!("{name}: got element type {other}, wanted U8 or BOOL"),
        }
    }

    /// Checks the dimensions of a tensor, and returns its type and bytes.
    fn take(&self, name: &str, want: &[usize]) -> Result<Option<(FileDtype, &'a [u8])>> {
        let Ok(view) = self.0.tensor(name) else { return Ok(None) };
        if view.shape() != want {
            bail!("{name}: got shape {:?}, wanted {want:?}", view.shape());
        }
        Ok(Some((view.dtype(), view.data())))
    }
}

/// Decodes little-endian numbers of `LEN` bytes. There are no bytes left over, since the header was
/// checked.
fn decode<const LEN: usize, P>(data: &[u8], read: impl Fn([u8; LEN]) -> P) -> Vec<P> {
    data.as_chunks::<LEN>().0.iter().map(|&bytes| read(bytes)).collect()
}

/// Converts between element types, through f64, which represents both exactly.
fn convert<P: Element>(v: impl Element) -> P {
    P::from_f64(v.to_f64())
}

/// A tensor to write.
pub struct Output {
    dtype: FileDtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Output {
    /// Encodes `values` of dimensions `shape` in the element type `P`.
    pub fn new<P: Element>(shape: &[usize], values: &[P]) -> Self {
        // The conversion through f64 is exact.
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
    let mut bytes = Vec::with_capacity(LEN * values.len());
    bytes.extend(values.iter().flat_map(|v| write(v.to_f64())));
    bytes
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

/// Writes a safetensors file with [`output::write`].
pub fn write(path: &Path, tensors: &[(&str, Output)]) -> Result<()> {
    let bytes = safetensors::serialize(tensors.iter().map(|(name, tensor)| (name, tensor)), None)?;
    output::write(path, &bytes)
}

/// The maximum length of a safetensors header, defined by the format.
const MAX_HEADER: u64 = 100_000_000;

/// Reads a whole file. If it does not start with a valid header length, reads only that, since a
/// device might never end.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let read = || {
        let mut file = File::open(path)?;
        let mut bytes = Vec::new();
        file.by_ref().take(8).read_to_end(&mut bytes)?;
        let header = bytes.first_chunk().map(|&length| u64::from_le_bytes(length));
        if header.is_some_and(|length| (1..=MAX_HEADER).contains(&length)) {
            file.read_to_end(&mut bytes)?;
        }
        io::Result::Ok(bytes)
    };
    read().with_context(|| format!("can't read {}", path.display()))
}
