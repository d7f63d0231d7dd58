//! Batched products, compared with f64.

use flashrnn_core::{Dtype, Element, bf16, f16};

use super::{cuda, number};
use crate::backend::Cuda;
use crate::device::blas::{BlasScratch, Matrix, Product};
use crate::memory::View;

/// Computes `C = A B` with every choice of transposes. Returns the norm of C's error, relative to
/// the norm of the exact C.
fn product_error<T: Element>(cuda: &Cuda, tf32: bool) -> f64 {
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let (m, n, k, batch) = (33, 20, 300, 3);
    let a: Vec<T> = (0..batch * m * k).map(|i| T::from_f64(number(i).into())).collect();
    let b: Vec<T> = (0..batch * k * n).map(|i| T::from_f64(number(7 * i + 3).into())).collect();
    let (a_on, b_on) = (device.upload(&a).unwrap(), device.upload(&b).unwrap());
    let c_on = device.zeroed::<f32>(batch * m * n).unwrap();
    let addresses = |start: u64, step: usize| {
        device.upload(&(0..batch).map(|i| start + (i * step) as u64).collect::<Vec<u64>>()).unwrap()
    };
    let a_at = addresses(a_on.ptr(), m * k * size_of::<T>());
    let b_at = addresses(b_on.ptr(), k * n * size_of::<T>());
    let c_at = addresses(c_on.ptr(), m * n * size_of::<f32>());
    let memory = device.alloc::<u8>(BlasScratch::bytes(cuda.arch())).unwrap();
    let scratch = BlasScratch { address: memory.ptr(), bytes: memory.len() };
    let mut worst: f64 = 0.0;
    for (a_transposed, b_transposed) in [(false, false), (true, false), (false, true), (true, true)]
    {
        let product = Product {
            a: Matrix {
                pointers: a_at.ptr(),
                ld: if a_transposed { k } else { m },
                transposed: a_transposed,
            },
            b: Matrix {
                pointers: b_at.ptr(),
                ld: if b_transposed { n } else { k },
                transposed: b_transposed,
            },
            c: Matrix { pointers: c_at.ptr(), ld: m, transposed: false },
            m,
            n,
            k,
            batch,
            input: T::DTYPE,
            output: Dtype::F32,
            tf32,
        };
        let run = |view: View<'_, f32>| {
            let blas = device.context.blas().unwrap();
            // SAFETY: the arrays hold the addresses of matrices of these sizes, which stay alive
            // until the download has ended.
            unsafe { blas.batched(cuda.stream().cu_stream(), &product, scratch).unwrap() };
            device.download(view).unwrap()
        };
        let c = run(c_on.view());
        assert_eq!(c, run(c_on.view()), "the same bits again");
        let (mut error, mut norm) = (0.0, 0.0);
        for (at, got) in c.iter().enumerate() {
            let (z, j, i) = (at / (m * n), at / m % n, at % m);
            let a =
                |l: usize| a[z * m * k + if a_transposed { i * k + l } else { l * m + i }].to_f64();
            let b =
                |l: usize| b[z * k * n + if b_transposed { l * n + j } else { j * k + l }].to_f64();
            let want: f64 = (0..k).map(|l| a(l) * b(l)).sum();
            error += (f64::from(*got) - want).powi(2);
            norm += want * want;
        }
        worst = worst.max((error / norm).sqrt());
    }
    worst
}

#[test]
fn products_are_rounded_no_more_than_asked_for() {
    let Some((cuda, _alone)) = cuda() else { return };
    let f32 = product_error::<f32>(&cuda, false);
    let narrow = [product_error::<f16>(&cuda, false), product_error::<bf16>(&cuda, false)];
    let tf32 = product_error::<f32>(&cuda, true);
    println!("f32 {f32}, f16 and bf16 {narrow:?}, tf32 {tf32}");
    // Sums of 300 products, with each step rounded to f32: an error of a few times 2^-24.
    assert!(f32 < 1e-6, "{f32}");
    // Tensor cores truncate sums instead of rounding them.
    assert!(narrow.iter().all(|&error| error < 5e-6), "{narrow:?}");
    // TF32 keeps 11 bits of each factor, so each has an error of at most 2^-11. cuBLAS may be more
    // accurate.
    assert!(tf32 < 1e-3, "{tf32}");
}
