//! Batched matrix products by cuBLAS.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::cublas::sys as cublas;
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use flashrnn_core::{Dtype, Error, Result};

use crate::driver::current::{Restoring, enter};
use crate::driver::library;
use crate::kernels::compile::Arch;

/// A handle of cuBLAS, for all streams of a context.
pub(crate) struct Blas {
    handle: cublas::cublasHandle_t,
    context: Restoring<Arc<CudaContext>>,
}

/// Memory that a product works in. Its results depend on how much there is; with a fixed amount the
/// same product gives the same bits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlasScratch {
    pub address: CUdeviceptr,
    pub bytes: usize,
}

impl BlasScratch {
    /// Returns the amount that cuBLAS's documentation recommends, in bytes.
    pub(crate) fn bytes(arch: Arch) -> usize {
        if arch.major >= 9 { 32 << 20 } else { 4 << 20 }
    }
}

// SAFETY: cuBLAS's handles may go from thread to thread as long as one at a time uses them, which
// the mutex around this sees to.
unsafe impl Send for Blas {}

/// A batch of matrices: in column-major order, element (i, j) lies at `i + j ld` from its matrix's
/// address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// A device array of the matrices' addresses.
    pub pointers: CUdeviceptr,
    /// The distance from a column to the next, in elements.
    pub ld: usize,
    /// Whether what lies there is the transpose of the matrix meant. Not for a result.
    pub transposed: bool,
}

/// `C = A B` for `batch` triples of matrices: A is `m × k`, B is `k × n`, C is `m × n`. Sums are in
/// f32.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// `m × k`
    pub a: Matrix,
    /// `k × n`
    pub b: Matrix,
    /// `m × n`, overwritten
    pub c: Matrix,
    /// Rows of A and C.
    pub m: usize,
    /// Columns of B and C.
    pub n: usize,
    /// Columns of A, rows of B; 1 at least.
    pub k: usize,
    /// How many triples.
    pub batch: usize,
    /// The element of A and B: f32, f16 or bf16.
    pub input: Dtype,
    /// The element of C: f32, or as `input`.
    pub output: Dtype,
    /// Whether f32 may be rounded to TF32 before it is multiplied.
    pub tf32: bool,
}

impl Blas {
    /// Makes a handle in `context`.
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        library::cublas()?;
        let _entered = enter(context)?;
        let mut handle = ptr::null_mut();
        // SAFETY: the context is current, and the pointer is to a handle that lives through the
        // call.
        check(unsafe { cublas::cublasCreate_v2(&raw mut handle) }, "starting cuBLAS")?;
        // From here on a failure drops `blas`, and with it the handle.
        let blas = Self { handle, context: Restoring::new(context.clone()) };
        // Partial sums of 16-bit products stay in f32.
        let exact = cublas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
        // SAFETY: the handle is alive.
        check(unsafe { cublas::cublasSetMathMode(handle, exact) }, "setting up cuBLAS")?;
        let no_atomics = cublas::cublasAtomicsMode_t::CUBLAS_ATOMICS_NOT_ALLOWED;
        // SAFETY: as above.
        check(unsafe { cublas::cublasSetAtomicsMode(handle, no_atomics) }, "setting up cuBLAS")?;
        Ok(blas)
    }

    /// Enqueues `product` on `stream`, to work in `scratch`. The context is current.
    ///
    /// # Safety
    /// The arrays hold `batch` addresses of matrices of the sizes given, valid until the product
    /// has run as `scratch` is, and nothing else on the device touches C or `scratch` meanwhile.
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
        // SAFETY: handle and stream are alive.
        check(
            unsafe { cublas::cublasSetStream_v2(self.handle, stream.cast()) },
            "setting cuBLAS's stream",
        )?;
        // Setting the stream makes cuBLAS forget its memory.
        let BlasScratch { address, bytes } = scratch;
        // SAFETY: the caller's promise.
        let result =
            unsafe { cublas::cublasSetWorkspace_v2(self.handle, address as *mut c_void, bytes) };
        check(result, "setting cuBLAS's memory")?;
        // The pedantic kind of f32 is never emulated by narrower types, whatever the environment
        // says.
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
        // SAFETY: the factors are read during the call; of the rest the caller is sure.
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
        // SAFETY: made by `new`, destroyed only here. Every handle of the device has waited for its
        // stream.
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
