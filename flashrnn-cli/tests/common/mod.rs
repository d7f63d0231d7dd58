//! Calling the command, and files for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Runs `flashrnn` with these arguments.
pub fn flashrnn<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flashrnn")).args(args).output().expect("the command was built")
}

/// What the command wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("output is text")
}

/// What the command wrote to stderr.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("errors are text")
}

/// The backends that need a GPU.
pub const GPUS: [&str; 2] = ["cuda", "wgpu"];

/// What the command says where it lacks this backend: the feature, or the driver, a device, a
/// library.
pub fn missing(backend: &str) -> String {
    let compiled = match backend {
        "cuda" => cfg!(feature = "cuda"),
        _ => cfg!(feature = "wgpu"),
    };
    if compiled { "device: ".into() } else { format!("--features {backend}") }
}

/// A tensor of a file.
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
    /// A tensor of f64.
    pub fn floats(name: &'static str, shape: &[usize], values: &[f64]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: Dtype::F64, shape: shape.to_vec(), data }
    }

    /// A tensor of i64.
    pub fn integers(name: &'static str, values: &[i64]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name, dtype: Dtype::I64, shape: vec![values.len()], data }
    }

    /// A tensor of flags.
    pub fn flags(name: &'static str, shape: &[usize], values: &[u8]) -> Self {
        Self { name, dtype: Dtype::BOOL, shape: shape.to_vec(), data: values.to_vec() }
    }
}

/// A good problem for the LSTM: B 2, T 3, N 1, D 2.
pub fn good() -> Vec<Tensor> {
    let floats = |name, shape: &[usize]| {
        let len = shape.iter().product::<usize>();
        Tensor::floats(name, shape, &vec![0.5; len])
    };
    vec![floats("Wx", &[2, 3, 4, 1, 2]), floats("R", &[4, 1, 2, 2]), floats("b", &[4, 1, 2])]
}

/// The bytes of a file with these tensors.
pub fn file(tensors: &[Tensor]) -> Vec<u8> {
    let views = tensors.iter().map(|t| {
        (
            t.name,
            TensorView::new(t.dtype, t.shape.clone(), &t.data).expect("the size fits the shape"),
        )
    });
    safetensors::serialize(views, None).expect("the file can be written")
}

/// A folder for one test, with room for an input and an output file.
pub struct Folder(tempfile::TempDir);

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The input file.
    pub fn input(&self) -> PathBuf {
        self.path().join("in.safetensors")
    }

    /// The output file.
    pub fn output(&self) -> PathBuf {
        self.path().join("out.safetensors")
    }

    /// Runs `flashrnn run` on `bytes` with further arguments.
    pub fn run(&self, bytes: &[u8], args: &[&str]) -> Output {
        fs::write(self.input(), bytes).expect("the folder can be written to");
        let (input, output) = (self.input(), self.output());
        let mut all = vec!["run".as_ref(), input.as_os_str(), "-o".as_ref(), output.as_os_str()];
        all.extend(args.iter().map(std::ffi::OsStr::new));
        flashrnn(&all)
    }

    /// The names of all files in the folder.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("the folder can be read");
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries.map(|entry| name(entry.expect("the folder can be read"))).collect()
    }
}
