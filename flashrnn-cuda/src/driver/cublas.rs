//! cuBLAS's functions, in the library that `library::cublas` has loaded, and its types.

use std::ffi::c_void;

pub(crate) use cudarc::cublas::sys::{
    cublasAtomicsMode_t, cublasComputeType_t, cublasGemmAlgo_t, cublasHandle_t, cublasMath_t,
    cublasOperation_t, cublasStatus_t, cudaDataType, cudaStream_t,
};

use crate::driver::library;
use crate::driver::loader::functions;

functions! {
    library::cublas;
    fn cublasCreate_v2(handle: *mut cublasHandle_t) -> cublasStatus_t;
    fn cublasDestroy_v2(handle: cublasHandle_t) -> cublasStatus_t;
    fn cublasSetMathMode(handle: cublasHandle_t, mode: cublasMath_t) -> cublasStatus_t;
    fn cublasSetAtomicsMode(handle: cublasHandle_t, mode: cublasAtomicsMode_t) -> cublasStatus_t;
    fn cublasSetStream_v2(handle: cublasHandle_t, stream: cudaStream_t) -> cublasStatus_t;
    fn cublasSetWorkspace_v2(
        handle: cublasHandle_t,
        workspace: *mut c_void,
        bytes: usize,
    ) -> cublasStatus_t;
    fn cublasGemmBatchedEx_64(
        handle: cublasHandle_t,
        operation_a: cublasOperation_t,
        operation_b: cublasOperation_t,
        m: i64,
        n: i64,
        k: i64,
        alpha: *const c_void,
        a: *const *const c_void,
        a_type: cudaDataType,
        a_ld: i64,
        b: *const *const c_void,
        b_type: cudaDataType,
        b_ld: i64,
        beta: *const c_void,
        c: *const *mut c_void,
        c_type: cudaDataType,
        c_ld: i64,
        batch: i64,
        compute: cublasComputeType_t,
        algorithm: cublasGemmAlgo_t,
    ) -> cublasStatus_t;
}
