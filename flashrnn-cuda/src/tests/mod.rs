//! Tests of the ground floor (memory, launches, graphs, streams, cuBLAS, h before every step) on a
//! real device. Where there is none they say so and pass.

use std::sync::Arc;

use bytemuck::Pod;
use flashrnn_core::{Backend, Dtype, Element, Elman, Error, bf16, f16};

use crate::call::Sizes;
use crate::device::blas::{BlasScratch, Matrix, Product};
use crate::device::{Cuda, Device};
use crate::kernels::compile::Program;
use crate::kernels::launch::{Graph, Kernel, Launch};
use crate::memory::{Buffer, View};
use crate::passes::time_loop::argument;
use crate::programs::{self, CellSource};
use crate::select::step as select;
use crate::testing;

fn program() -> Program {
    let source = r#"
        // x[i] = 2 x[i] + 1, after the kernel before has ended.
        extern "C" __global__ void grow(float* x, int n) {
        #if __CUDA_ARCH__ >= 900
            asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
            asm volatile("griddepcontrol.wait;" ::: "memory");
        #endif
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) x[i] = 2.0f * x[i] + 1.0f;
        }
        // Turns the block's part of x round, by way of shared memory.
        extern "C" __global__ void turn(float* x) {
            extern __shared__ float part[];
            part[threadIdx.x] = x[threadIdx.x];
            __syncthreads();
            x[threadIdx.x] = part[blockDim.x - 1 - threadIdx.x];
        }
    "#;
    Program {
        name: "src/tests/mod.rs".into(),
        source: source.into(),
        headers: Vec::new(),
        options: vec!["-DTEST".into()],
    }
}

fn kernel(device: &Arc<Device>, name: &str) -> Kernel {
    device.module(&program()).unwrap().kernel(name).unwrap()
}

fn grow(
    kernel: &Kernel,
    stream: cudarc::driver::sys::CUstream,
    mut x: u64,
    mut n: i32,
    early: bool,
) {
    let launch = Launch { early, ..Launch::new([(n as u32).div_ceil(128), 1, 1], 128) };
    // SAFETY: grow takes (float*, int), and the callers' x has n elements.
    unsafe { kernel.launch(stream, &launch, &mut [argument(&mut x), argument(&mut n)]).unwrap() };
}

#[test]
fn what_goes_up_comes_down() {
    let Some(cuda) = testing::cuda() else { return };
    fn check<P: Pod + Send + Sync + PartialEq + std::fmt::Debug>(cuda: &Cuda, data: &[P]) {
        let buffer = cuda.device.upload(data).unwrap();
        assert_eq!(buffer.len(), data.len());
        assert_eq!(cuda.device.download(buffer.view()).unwrap(), data);
        let (from, to) = (data.len() / 3, data.len() - data.len() / 4);
        assert_eq!(
            cuda.device.download(buffer.view().slice(from..to).unwrap()).unwrap(),
            &data[from..to]
        );
        assert!(matches!(buffer.view().slice(..data.len() + 1), Err(Error::Shape { .. })));
        assert!(cuda.alloc::<u8>(data.len()).is_ok_and(|zeros| {
            cuda.device.download(zeros.view()).unwrap().iter().all(|&byte| byte == 0)
        }));
    }
    check::<f32>(&cuda, &[]);
    check(&cuda, &[1.5_f32]);
    check(&cuda, &(0..100_001).collect::<Vec<i32>>());
    check(&cuda, &[1_u8, 2, 3, 4, 5]);
    check(&cuda, &[(); 7]);
}

#[test]
fn memory_is_given_back_and_running_out_is_an_error() {
    let Some(cuda) = testing::cuda() else { return };
    for len in [usize::MAX, usize::MAX / 4, cuda.device.shared.memory / 4 + 1] {
        assert!(matches!(cuda.alloc::<f32>(len), Err(Error::OutOfMemory { .. })), "{len}");
    }
    // Two thirds of the device are there at most once.
    let most = cuda.device.shared.memory / 3 * 2;
    let first = cuda.device.alloc::<u8>(most);
    let second = cuda.device.alloc::<u8>(most);
    assert!(first.is_err() || matches!(second, Err(Error::OutOfMemory { .. })));
    drop((first, second));
    for _ in 0..10_000 {
        drop(cuda.device.alloc::<f32>(1 << 20).unwrap());
    }
    cuda.synchronize().unwrap();
    let memory = cuda.memory().unwrap();
    println!("{memory:?}");
    assert_eq!(memory.used, 0);
}

#[test]
fn buffers_stay_with_their_stream() {
    let Some(cuda) = testing::cuda() else { return };
    let other = Cuda::new().unwrap();
    let buffer = other.upload(&[1.0_f32]).unwrap();
    assert!(matches!(cuda.device.download(buffer.view()), Err(Error::Argument { .. })));
    let same = Cuda::on_stream(other.stream().clone()).unwrap();
    assert_eq!(same.device.download(buffer.view()).unwrap(), [1.0]);
}

#[test]
fn slices_of_cudarc_are_lent_without_a_copy() {
    let Some(cuda) = testing::cuda() else { return };
    let grows = kernel(&cuda.device, "grow");
    // Of the same stream, and of another one of the same context.
    for stream in [cuda.stream().clone(), cuda.stream().fork().unwrap()] {
        let mut slice = stream.clone_htod(&[1.0_f32, 2.0, 3.0]).unwrap();
        {
            let mut lent = cuda.borrow_mut(&mut slice).unwrap();
            let _entered = cuda.device.enter().unwrap();
            grow(&grows, cuda.stream().cu_stream(), lent.view_mut().ptr(), 3, false);
        }
        assert_eq!(stream.clone_dtoh(&slice).unwrap(), [3.0, 5.0, 7.0]);
        let lent = cuda.borrow(&slice).unwrap();
        assert_eq!(cuda.download(lent.view()).unwrap(), [3.0, 5.0, 7.0]);
    }
    // Another context's stream knows nothing of ours.
    let other = Cuda::new().unwrap();
    let slice = other.stream().clone_htod(&[1.0_f32]).unwrap();
    assert!(matches!(cuda.borrow(&slice), Err(Error::Argument { .. })));
}

#[test]
fn kernels_run_in_order_early_or_not_and_in_graphs() {
    let Some(cuda) = testing::cuda() else { return };
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let grows = kernel(device, "grow");
    let n = 100_000;
    let x = device.zeroed::<f32>(n).unwrap();
    let stream = cuda.stream().cu_stream();
    for early in [false, true, true] {
        grow(&grows, stream, x.ptr(), n as i32, early);
    }
    let grown = device.download(x.view()).unwrap();
    assert!(grown.iter().all(|&v| v == 7.0), "three times: {:?}", &grown[..4]);

    let graph = Graph::record(device, |stream| {
        (0..10).for_each(|i| grow(&grows, stream, x.ptr(), n as i32, i > 0));
        Ok(())
    })
    .unwrap();
    assert_eq!(device.download(x.view()).unwrap()[n - 1], 7.0, "recording runs nothing");
    graph.launch(stream).unwrap();
    graph.launch(stream).unwrap();
    // After k times x is 2^k - 1, and 2^23 - 1 is exact in f32.
    let grown = device.download(x.view()).unwrap();
    assert!(grown.iter().all(|&v| v == 8_388_607.0), "{:?}", &grown[..4]);

    let failed = Graph::record(device, |_| Err(Error::device("on purpose")));
    assert_eq!(failed.err(), Some(Error::device("on purpose")));
    let nothing = Launch::new([1, 0, 1], 128);
    // SAFETY: with an empty grid nothing is launched.
    unsafe { grows.launch(stream, &nothing, &mut []).unwrap() };
    let too_many = Launch::new([1, 1, 1], 1 << 20);
    let (mut address, mut count) = (x.ptr(), 0_i32);
    // SAFETY: n is 0, so that nothing would be touched.
    let refused = unsafe {
        grows.launch(stream, &too_many, &mut [argument(&mut address), argument(&mut count)])
    };
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("grow") && text.contains("src/tests/mod.rs"), "{text}");
    device.synchronize().unwrap();
}

#[test]
fn work_beside_the_stream_keeps_its_place() {
    let Some(cuda) = testing::cuda() else { return };
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let grows = kernel(device, "grow");
    let n = 10_000_000;
    let (x, y) = (device.zeroed::<f32>(n).unwrap(), device.zeroed::<f32>(n).unwrap());
    let grow = |stream, x: &Buffer<f32>| {
        grow(&grows, stream, x.ptr(), n as i32, false);
        Ok(())
    };
    // Every x grows three times, whichever streams its kernels are on. One that ran too soon would
    // find an x that is yet to grow.
    std::thread::scope(|scope| {
        for x in [&x, &y] {
            scope.spawn(move || {
                let _entered = device.enter()?;
                let stream = device.stream.cu_stream();
                grow(stream, x)?;
                device.beside.run(stream, || Ok(()), |beside| grow(beside, x))?;
                grow(stream, x)
            });
        }
    });
    let failed = device.beside.run(
        device.stream.cu_stream(),
        || Ok(()),
        |_| Err(Error::device("on purpose")),
    );
    assert_eq!(failed, Err(Error::device("on purpose")));
    for grown in [x, y].map(|x| device.download(x.view()).unwrap()) {
        assert!(grown.iter().all(|&v| v == 7.0), "{:?}", &grown[..4]);
    }
}

#[test]
fn a_kernel_may_have_all_shared_memory() {
    let Some(cuda) = testing::cuda() else { return };
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let turn = kernel(device, "turn");
    let data: Vec<f32> = (0..1024).map(|i| i as f32).collect();
    let x = device.upload(&data).unwrap();
    let mut address = x.ptr();
    let launch =
        Launch { shared: device.shared.shared_memory as u32, ..Launch::new([1, 1, 1], 1024) };
    // SAFETY: turn takes (float*), which has as many elements as the block threads.
    unsafe {
        turn.launch(cuda.stream().cu_stream(), &launch, &mut [argument(&mut address)]).unwrap()
    };
    assert!(device.download(x.view()).unwrap().iter().eq(data.iter().rev()));
}

#[test]
fn a_program_is_loaded_once_whoever_asks() {
    let Some(cuda) = testing::cuda() else { return };
    let modules: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| cuda.device.module(&program()).unwrap())).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(modules.iter().all(|module| Arc::ptr_eq(module, &modules[0])));
    let error = modules[0].kernel("no_such_kernel").err().unwrap();
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
}

/// A number in -1..1, the same every time.
fn number(i: usize) -> f32 {
    ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// `C = A B` with every choice of transposes; the norm of C's error against f64 relative to C's
/// norm.
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
    let room = device.alloc::<u8>(BlasScratch::bytes(cuda.arch())).unwrap();
    let scratch = BlasScratch { address: room.ptr(), bytes: room.len() };
    let mut worst: f64 = 0.0;
    for (a_turned, b_turned) in [(false, false), (true, false), (false, true), (true, true)] {
        let product = Product {
            a: Matrix {
                pointers: a_at.ptr(),
                ld: if a_turned { k } else { m },
                transposed: a_turned,
            },
            b: Matrix {
                pointers: b_at.ptr(),
                ld: if b_turned { n } else { k },
                transposed: b_turned,
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
            let blas = device.shared.blas().unwrap();
            // SAFETY: the arrays hold the addresses of matrices of these sizes, which live until
            // the download has ended.
            unsafe { blas.batched(cuda.stream().cu_stream(), &product, scratch).unwrap() };
            device.download(view).unwrap()
        };
        let c = run(c_on.view());
        assert_eq!(c, run(c_on.view()), "the same bits again");
        let (mut error, mut norm) = (0.0, 0.0);
        for (at, got) in c.iter().enumerate() {
            let (z, j, i) = (at / (m * n), at / m % n, at % m);
            let a = |l: usize| a[z * m * k + if a_turned { i * k + l } else { l * m + i }].to_f64();
            let b = |l: usize| b[z * k * n + if b_turned { l * n + j } else { j * k + l }].to_f64();
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
    let Some(cuda) = testing::cuda() else { return };
    let f32 = product_error::<f32>(&cuda, false);
    let narrow = [product_error::<f16>(&cuda, false), product_error::<bf16>(&cuda, false)];
    let tf32 = product_error::<f32>(&cuda, true);
    println!("f32 {f32}, f16 and bf16 {narrow:?}, tf32 {tf32}");
    // Sums of 300 products, each step rounded to f32: some units of 2^-24 in norm.
    assert!(f32 < 1e-6, "{f32}");
    // Tensor cores cut sums off instead of rounding them.
    assert!(narrow.iter().all(|&error| error < 5e-6), "{narrow:?}");
    // TF32 keeps 11 bits of each factor: 2^-12 each at most. cuBLAS may be more exact.
    assert!(tf32 < 1e-3, "{tf32}");
}

/// `previous_h` against the same worked out here, bit for bit, for rows of D elements that begin
/// `offset` elements after a multiple of 16 bytes.
fn check_previous_h<T: Element + PartialEq>(
    cuda: &Cuda,
    head_dim: usize,
    offset: usize,
    forwards: bool,
) {
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let program = programs::tokens(&CellSource::new(&Elman), T::DTYPE);
    let kernel = device.module(&program).unwrap().kernel("previous_h").unwrap();
    let (batch, time, heads, depth) = (3, 5, 7, select::depth(head_dim, size_of::<T>()));
    let units = heads * head_dim;
    let token = |row: usize, position: usize| {
        if forwards { row * time + position } else { position * batch + row }
    };

    let h: Vec<T> =
        (0..offset + batch * time * units).map(|i| T::from_f64(number(i).into())).collect();
    let s0: Vec<f32> = (0..batch * units).map(|i| number(7 * i + 3)).collect();
    let (lengths, resets) = ([5, 3, 0], [0_u8, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0]);
    let mut want = vec![T::from_f64(0.0); batch * time * heads * depth];
    for (row, length) in lengths.into_iter().enumerate() {
        let at = |step: usize| token(row, if forwards { step } else { length - 1 - step });
        for step in (0..length).filter(|&step| resets[at(step)] == 0) {
            for (head, k) in (0..heads).flat_map(|head| (0..head_dim).map(move |k| (head, k))) {
                let unit = head * head_dim + k;
                want[(at(step) * heads + head) * depth + k] = match step {
                    0 => T::from_f64(s0[row * units + unit].into()),
                    _ => h[offset + at(step - 1) * units + unit],
                };
            }
        }
    }

    let (h_on, s0_on) = (device.upload(&h).unwrap(), device.upload(&s0).unwrap());
    let (lengths_on, resets_on) =
        (device.upload(&lengths.map(|n| n as i32)).unwrap(), device.upload(&resets).unwrap());
    // Whatever is not written would be seen.
    let out = device.upload(&vec![T::from_f64(9.0); want.len()]).unwrap();
    let size = |n: usize| n as i32;
    let mut sizes = Sizes {
        batch: size(batch),
        time: size(time),
        heads: size(heads),
        head_dim: size(head_dim),
        depth: size(depth),
        time_major: (!forwards).into(),
        reverse: (!forwards).into(),
    };
    let mut addresses = [
        h_on.ptr() + (offset * size_of::<T>()) as u64,
        s0_on.ptr(),
        lengths_on.ptr(),
        resets_on.ptr(),
        out.ptr(),
    ];
    let mut arguments = vec![argument(&mut sizes)];
    arguments.extend(addresses.iter_mut().map(argument));
    // SAFETY: the kernel takes (Sizes, const T*, const float*, const int*, const unsigned char*,
    // T*), of these sizes.
    unsafe {
        kernel
            .launch(cuda.stream().cu_stream(), &Launch::new([1, 1, 1], 256), &mut arguments)
            .unwrap()
    };
    let got = device.download(out.view()).unwrap();
    let differ = (0..got.len()).find(|&i| got[i] != want[i]);
    assert_eq!(differ, None, "{} D {head_dim} offset {offset} forwards {forwards}", T::DTYPE);
}

/// `pad` against the same worked out here, for rows that begin `offset` elements after a multiple
/// of 16 bytes.
fn check_pad<T: Element + PartialEq>(cuda: &Cuda, head_dim: usize, offset: usize) {
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let program = programs::tokens(&CellSource::new(&Elman), T::DTYPE);
    let kernel = device.module(&program).unwrap().kernel("pad").unwrap();
    let (count, depth) = (37, select::depth(head_dim, size_of::<T>()));
    let rows: Vec<T> =
        (0..offset + count * head_dim).map(|i| T::from_f64(number(i).into())).collect();
    let mut want = vec![T::from_f64(0.0); count * depth];
    for (to, from) in want.chunks_exact_mut(depth).zip(rows[offset..].chunks_exact(head_dim)) {
        to[..head_dim].copy_from_slice(from);
    }
    let from = device.upload(&rows).unwrap();
    // Whatever is not written would be seen.
    let out = device.upload(&vec![T::from_f64(9.0); want.len()]).unwrap();
    let (mut first, mut to) = (from.ptr() + (offset * size_of::<T>()) as u64, out.ptr());
    let (mut rows, mut head_dim_on, mut depth_on) = (count as i64, head_dim as i32, depth as i32);
    let mut arguments = [
        argument(&mut first),
        argument(&mut rows),
        argument(&mut head_dim_on),
        argument(&mut depth_on),
        argument(&mut to),
    ];
    // SAFETY: the kernel takes (const T*, Offset, int, int, T*), of these sizes.
    unsafe {
        kernel
            .launch(cuda.stream().cu_stream(), &Launch::new([2, 1, 1], 256), &mut arguments)
            .unwrap()
    };
    let got = device.download(out.view()).unwrap();
    let differ = (0..got.len()).find(|&i| got[i] != want[i]);
    assert_eq!(differ, None, "{} D {head_dim} offset {offset}", T::DTYPE);
}

#[test]
fn a_kernel_pads_rows() {
    let Some(cuda) = testing::cuda() else { return };
    for (head_dim, offset) in [(1, 0), (33, 0), (33, 1), (50, 0), (100, 2), (257, 1), (300, 0)] {
        check_pad::<f32>(&cuda, head_dim, offset);
        check_pad::<bf16>(&cuda, head_dim, offset);
        check_pad::<f16>(&cuda, head_dim, offset);
    }
}

#[test]
fn h_before_every_step() {
    let Some(cuda) = testing::cuda() else { return };
    for (head_dim, offset) in
        [(64, 0), (40, 0), (40, 1), (40, 2), (50, 0), (8, 0), (4, 0), (33, 0), (33, 1), (1, 3)]
    {
        for forwards in [true, false] {
            check_previous_h::<f32>(&cuda, head_dim, offset, forwards);
            check_previous_h::<bf16>(&cuda, head_dim, offset, forwards);
            check_previous_h::<f16>(&cuda, head_dim, offset, forwards);
        }
    }
}
