//! Batched matrix products with cuBLAS.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use flashrnn_core::{Dtype, Error, Result};

use crate::driver::current::{Restoring, enter};
use crate::driver::{cublas, library};
use crate::kernels::compile::Arch;

/// A cuBLAS handle, shared by all streams of a context.
pub(crate) struct Blas {
    handle: cublas::cublasHandle_t,
    context: Restoring<Arc<CudaContext>>,
}

/// Scratch memory of a product. Its size is fixed because cuBLAS chooses an algorithm by it, and
/// results must be reproducible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlasScratch {
    pub address: CUdeviceptr,
    pub bytes: usize,
}

impl BlasScratch {
    /// Returns the size in bytes that cuBLAS's documentation recommends.
    pub(crate) fn bytes(arch: Arch) -> usize {
        if arch.major >= 9 { 32 << 20 } else { 4 << 20 }
    }
}

// SAFETY: a cuBLAS handle may be used on any thread, but by only one at a time. The mutex in
// `Context` ensures that.
unsafe impl Send for Blas {}

/// A batch of matrices in column-major order: element (i, j) is at index `i + j * ld`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// A device array of the matrices' addresses.
    pub pointers: CUdeviceptr,
    /// Distance between columns in memory, in elements.
    pub ld: usize,
    /// Whether memory holds the transpose of the factor. Must be `false` for C.
    pub transposed: bool,
}

/// Describes `C = A B` for `batch` triples of matrices, with sums in f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// `m × k`
    pub a: Matrix,
    /// `k × n`
    pub b: Matrix,
    /// `m × n`; overwritten.
    pub c: Matrix,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A and rows of B, at least 1.
    pub k: usize,
    /// Number of triples.
    pub batch: usize,
    /// Element type of A and B: f32, f16 or bf16.
    pub input: Dtype,
    /// Element type of C: f32, or `input`.
    pub output: Dtype,
    /// Whether f32 factors may be rounded to TF32.
    pub tf32: bool,
}

impl Blas {
    /// Creates a handle in `context`.
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        library::cublas()?;
        let _entered = enter(context)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the context is current, and the handle outlives the call.
        check(unsafe { cublas::cublasCreate_v2(&raw mut handle) }, "starting cuBLAS")?;
        // From here on, dropping `blas` destroys the handle.
        let blas = Self { handle, context: Restoring::new(context.clone()) };
        // Keep partial sums of 16-bit products in f32.
        let exact = cublas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle is alive.
        check(unsafe { cublas::cublasSetMathMode(handle, exact) }, "setting up cuBLAS")?;
        let no_atomics = cublas::cublasAtomicsMode_t::CUBLAS_ATOMICS_NOT_ALLOWED;
        // SAFETY: as above.
        check(unsafe { cublas::cublasSetAtomicsMode(handle, no_atomics) }, "setting up cuBLAS")?;
        Ok(blas)
    }

    /// Enqueues `product` on `stream`. The context must be current.
    ///
    /// # Safety
    /// The arrays of pointers must hold the addresses of `batch` matrices of the sizes in
    /// `product`. Arrays, matrices and `scratch` must be valid until the product has run, and
    /// nothing else on the device may access C or `scratch` until then.
    pub(crate) unsafe fn batched(
        &self,
        stream: CUstream,
        product: &Product,
        scratch: BlasScratch,
    ) -> Result<()> {
        let Product { a, b, c, m, n, k, batch, input, output, tf32 } = *product;
        if m == 0 || n == 0 || batch == 0 {
            return Ok(());
        }
        // SAFETY: the handle and the stream are alive.
        let result = unsafe { cublas::cublasSetStream_v2(self.handle, stream.cast()) };
        check(result, "setting cuBLAS's stream")?;
        // After setting the stream, which resets the workspace.
        let BlasScratch { address, bytes } = scratch;
        // SAFETY: the caller guarantees that `scratch` is valid.
        let result =
            unsafe { cublas::cublasSetWorkspace_v2(self.handle, address as *mut c_void, bytes) };
        check(result, "setting cuBLAS's memory")?;
        // Pedantic f32 is never emulated with narrower types, even if the environment asks for
        // that.
        let compute = match (input, tf32) {
            (Dtype::F32, true) => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            (Dtype::F32, false) => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC,
            _ => cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let (input, output) = (data_type(input)?, data_type(output)?);
        let (one, zero) = (1.0_f32, 0.0_f32);
        let operation = |matrix: Matrix| match matrix.transposed {
            true => cublas::cublasOperation_t::CUBLAS_OP_T,
            false => cublas::cublasOperation_t::CUBLAS_OP_N,
        };
        // SAFETY: `one` and `zero` outlive the call; the caller guarantees the rest.
        let result = unsafe {
            cublas::cublasGemmBatchedEx_64(
                self.handle,
                operation(a),
                operation(b),
                size(m)?,
                size(n)?,
                size(k)?,
                (&raw const one).cast(),
                a.pointers as *const *const c_void,
                input,
                size(a.ld)?,
                b.pointers as *const *const c_void,
                input,
                size(b.ld)?,
                (&raw const zero).cast(),
                c.pointers as *const *mut c_void,
                output,
                size(c.ld)?,
                size(batch)?,
                compute,
                cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        };
        check(result, "cuBLAS's batched product")
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        let Ok(_entered) = enter(&self.context) else { return };
        // SAFETY: `new` created the handle and only this destroys it, after every device of the
        // context has waited for its stream.
        unsafe { cublas::cublasDestroy_v2(self.handle) };
    }
}

fn data_type(dtype: Dtype) -> Result<cublas::cudaDataType> {
    match dtype {
        Dtype::F32 => Ok(cublas::cudaDataType::CUDA_R_32F),
        Dtype::F16 => Ok(cublas::cudaDataType::CUDA_R_16F),
        Dtype::Bf16 => Ok(cublas::cudaDataType::CUDA_R_16BF),
        Dtype::F64 => Err(Error::Unsupported {
            backend: "cuda",
            what: "f64".into(),
            why: "its kernels compute in f32".into(),
        }),
    }
}

fn size(n: usize) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::OutOfMemory { bytes: usize::MAX })
}

fn check(status: cublas::cublasStatus_t, what: &str) -> Result<()> {
    match status {
        cublas::cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        failed => Err(Error::device(format!("{what}: {failed:?}"))),
    }
}
