//! Launches, graphs, the side stream and the store of kernels.

use std::sync::Arc;

use flashrnn_core::Error;

use super::{cuda, grow, kernel, program};
use crate::kernels::graph::Graph;
use crate::kernels::launch::{Launch, argument};
use crate::memory::Buffer;

#[test]
fn kernels_run_in_order_early_or_not_and_in_graphs() {
    let Some((cuda, _alone)) = cuda() else { return };
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let grows = kernel(&cuda, "grow");
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
    // After k steps x is 2^k - 1, and 2^23 - 1 is exact in f32.
    let grown = device.download(x.view()).unwrap();
    assert!(grown.iter().all(|&v| v == 8_388_607.0), "{:?}", &grown[..4]);

    let failed = Graph::record(device, |_| Err(Error::device("on purpose")));
    assert_eq!(failed.err(), Some(Error::device("on purpose")));
    let nothing = Launch::new([1, 0, 1], 128);
    // SAFETY: an empty grid launches nothing.
    unsafe { grows.launch(stream, &nothing, &mut []).unwrap() };
    let too_many = Launch::new([1, 1, 1], 1 << 20);
    let (mut address, mut count) = (x.ptr(), 0_i32);
    // SAFETY: n is 0, so the kernel would access nothing.
    let refused = unsafe {
        grows.launch(stream, &too_many, &mut [argument(&mut address), argument(&mut count)])
    };
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("grow") && text.contains("src/tests/mod.rs"), "{text}");
    device.synchronize().unwrap();
}

#[test]
fn the_side_stream_runs_between_fork_and_join() {
    let Some((cuda, _alone)) = cuda() else { return };
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let grows = kernel(&cuda, "grow");
    let n = 10_000_000;
    let (x, y) = (device.zeroed::<f32>(n).unwrap(), device.zeroed::<f32>(n).unwrap());
    let grow = |stream, x: &Buffer<f32>| {
        grow(&grows, stream, x.ptr(), n as i32, false);
        Ok(())
    };
    // Every x grows three times, on two streams. A kernel that started too soon would read a
    // smaller x.
    std::thread::scope(|scope| {
        for x in [&x, &y] {
            scope.spawn(move || {
                let _entered = device.enter()?;
                let stream = device.stream.cu_stream();
                grow(stream, x)?;
                device.side.run(stream, || Ok(()), |side| grow(side, x))?;
                grow(stream, x)
            });
        }
    });
    let failed =
        device.side.run(device.stream.cu_stream(), || Ok(()), |_| Err(Error::device("on purpose")));
    assert_eq!(failed, Err(Error::device("on purpose")));
    for grown in [x, y].map(|x| device.download(x.view()).unwrap()) {
        assert!(grown.iter().all(|&v| v == 7.0), "{:?}", &grown[..4]);
    }
}

#[test]
fn a_kernel_may_use_all_shared_memory() {
    let Some((cuda, _alone)) = cuda() else { return };
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let reverse = kernel(&cuda, "reverse");
    let data: Vec<f32> = (0..1024).map(|i| i as f32).collect();
    let x = device.upload(&data).unwrap();
    let mut address = x.ptr();
    let launch =
        Launch { shared: device.context.shared_memory as u32, ..Launch::new([1, 1, 1], 1024) };
    // SAFETY: reverse takes (float*), and x has one element per thread of the block.
    unsafe {
        reverse.launch(cuda.stream().cu_stream(), &launch, &mut [argument(&mut address)]).unwrap()
    };
    assert!(device.download(x.view()).unwrap().iter().eq(data.iter().rev()));
}

#[test]
fn a_program_is_loaded_once_for_all_threads() {
    let Some((cuda, _alone)) = cuda() else { return };
    let modules: Vec<_> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| cuda.kernels.module(&program()).unwrap())).collect();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(modules.iter().all(|module| Arc::ptr_eq(module, &modules[0])));
    let error = modules[0].kernel("no_such_kernel").err().unwrap();
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
}
