//! Buffers, transfers and borrowed slices.

use bytemuck::Pod;
use flashrnn_core::{Backend, Error};

use super::{cuda, grow, kernel};
use crate::backend::Cuda;

#[test]
fn uploads_are_downloaded_unchanged() {
    let Some((cuda, _alone)) = cuda() else { return };
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
fn memory_is_returned_and_running_out_is_an_error() {
    let Some((cuda, _alone)) = cuda() else { return };
    for len in [usize::MAX, usize::MAX / 4, cuda.device.context.memory / 4 + 1] {
        assert!(matches!(cuda.alloc::<f32>(len), Err(Error::OutOfMemory { .. })), "{len}");
    }
    // The GPU cannot hold two buffers of two thirds of its memory.
    let large = cuda.device.context.memory / 3 * 2;
    let first = cuda.device.alloc::<u8>(large);
    let second = cuda.device.alloc::<u8>(large);
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
    let Some((cuda, _alone)) = cuda() else { return };
    let other = Cuda::new().unwrap();
    let buffer = other.upload(&[1.0_f32]).unwrap();
    assert!(matches!(cuda.device.download(buffer.view()), Err(Error::Argument { .. })));
    let same = Cuda::on_stream(other.stream().clone()).unwrap();
    assert_eq!(same.device.download(buffer.view()).unwrap(), [1.0]);
}

#[test]
fn slices_of_cudarc_are_borrowed_without_a_copy() {
    let Some((cuda, _alone)) = cuda() else { return };
    let grows = kernel(&cuda, "grow");
    // On the handle's stream, and on another one of the same context.
    for stream in [cuda.stream().clone(), cuda.stream().fork().unwrap()] {
        let mut slice = stream.clone_htod(&[1.0_f32, 2.0, 3.0]).unwrap();
        {
            let mut borrowed = cuda.borrow_mut(&mut slice).unwrap();
            let _entered = cuda.device.enter().unwrap();
            grow(&grows, cuda.stream().cu_stream(), borrowed.view_mut().ptr(), 3, false);
        }
        assert_eq!(stream.clone_dtoh(&slice).unwrap(), [3.0, 5.0, 7.0]);
        let borrowed = cuda.borrow(&slice).unwrap();
        assert_eq!(cuda.download(borrowed.view()).unwrap(), [3.0, 5.0, 7.0]);
    }
    // cudarc does not order streams of another `CudaContext`.
    let other = Cuda::new().unwrap();
    let slice = other.stream().clone_htod(&[1.0_f32]).unwrap();
    assert!(matches!(cuda.borrow(&slice), Err(Error::Argument { .. })));
}
