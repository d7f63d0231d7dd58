//! Runs the command, and makes files for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Runs `flashrnn` with the given arguments.
pub fn flashrnn<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flashrnn")).args(args).output().expect("the command is built")
}

/// Returns what the command wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is text")
}

/// Returns what the command wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("errors are text")
}

/// The backends that need a GPU.
pub const GPUS: [&str; 2] = ["cuda", "wgpu"];

/// Returns what the command prints if this backend is not available: the missing feature, or the
/// error of the device, driver or library.
pub fn missing(backend: &str) -> String {
    let compiled = match backend {
        "cuda" => cfg!(feature = "cuda"),
        _ => cfg!(feature = "wgpu"),
    };
    if compiled { "device: ".into() } else { format!("--features {backend}") }
}

/// A tensor of a safetensors file.
#[derive(Clone)]
pub struct Tensor {
    /// Its name.
    pub name: &'static str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its bytes, little-endian.
    pub data: Vec<u8>,
}

impl Tensor {
    /// Makes a tensor of f64.
    pub fn floats(name: &'static str, shape: &[usize], values: &[f64]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F64, shape: shape.to_vec(), data }
    }

    /// Makes a tensor of i64.
    pub fn integers(name: &'static str, values: &[i64]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: Dtype::I64, shape: vec![values.len()], data }
    }

    /// Makes a tensor of flags.
    pub fn flags(name: &'static str, shape: &[usize], values: &[u8]) -> Self {
        Self { name, dtype: Dtype::BOOL, shape: shape.to_vec(), data: values.to_vec() }
    }
}

/// Returns a valid problem for the LSTM, with B 2, T 3, N 1 and D 2.
pub fn good() -> Vec<Tensor> {
    let floats = |name, shape: &[usize]| {
        let len = shape.iter().product::<usize>();
        Tensor::floats(name, shape, &vec![0.5; len])
    };
    vec![floats("Wx", &[2, 3, 4, 1, 2]), floats("R", &[4, 1, 2, 2]), floats("b", &[4, 1, 2])]
}

/// Serialises a file of `tensors`.
pub fn file(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|t| {
        (
            t.name,
            TensorView::new(t.dtype, t.shape.clone(), &t.data).expect("the size fits the shape"),
        )
    });
    safetensors::serialize(views, None).expect("the file can be written")
}

/// A temporary folder with an input and an output file, for one test.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// Makes an empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Returns the path of the folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of the input file.
    pub fn input(&self) -> PathBuf {
        self.path().join("in.safetensors")
    }

    /// Returns the path of the output file.
    pub fn output(&self) -> PathBuf {
        self.path().join("out.safetensors")
    }

    /// Writes `bytes` to the input file, and runs `flashrnn run` on it with further arguments.
    pub fn run(&self, bytes: &[u8], args: &[&str]) -> Output {
        fs::write(self.input(), bytes).expect("a writable folder");
        let (input, output) = (self.input(), self.output());
        let mut all = vec!["run".as_ref(), input.as_os_str(), "-o".as_ref(), output.as_os_str()];
        all.extend(args.iter().map(std::ffi::OsStr::new));
        flashrnn(&all)
    }

    /// Returns the names of all files in the folder.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("a readable folder");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries.map(|entry| name(entry.expect("a readable folder"))).collect()
    }
}
