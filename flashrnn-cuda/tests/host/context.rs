//! The caller's current context before and after every call.

use std::ptr;

use flashrnn_core::{Backend, Error, Lstm, Plan, Problem, Result, Step};
use flashrnn_cuda::Cuda;
use flashrnn_cuda::cudarc::driver::sys::{self, CUcontext, CUresult};
use libloading::Library;

use super::{Layer, cuda, size};

/// Returns the context that is current on this thread.
fn current() -> CUcontext {
    let mut current = ptr::null_mut();
    // SAFETY: `current` outlives the call.
    let result = unsafe { sys::cuCtxGetCurrent(&raw mut current) };
    assert_eq!(result, CUresult::CUDA_SUCCESS);
    current
}

/// A context on the first GPU that belongs to the caller. Dropping it destroys it.
struct OwnContext(CUcontext, Library);

impl OwnContext {
    /// Creates a context, then makes no context current.
    fn new(cuda: &Cuda) -> Self {
        type Create = unsafe extern "C" fn(*mut CUcontext, u32, sys::CUdevice) -> CUresult;
        let mut context = ptr::null_mut();
        // SAFETY: the driver is loaded, its function of this name has this type, and `context`
        // outlives the call.
        unsafe {
            let names = ["libcuda.so.1", "nvcuda.dll"];
            let driver = names.into_iter().find_map(|name| Library::new(name).ok()).unwrap();
            let create = *driver.get::<Create>(b"cuCtxCreate_v2").unwrap();
            let result = create(&raw mut context, 0, cuda.stream().context().cu_device());
            assert_eq!(result, CUresult::CUDA_SUCCESS);
            assert_eq!(sys::cuCtxSetCurrent(ptr::null_mut()), CUresult::CUDA_SUCCESS);
            Self(context, driver)
        }
    }
}

impl Drop for OwnContext {
    fn drop(&mut self) {
        type Destroy = unsafe extern "C" fn(CUcontext) -> CUresult;
        // SAFETY: `new` created the context, only this destroys it, and the function has this type.
        unsafe {
            if let Ok(destroy) = self.1.get::<Destroy>(b"cuCtxDestroy_v2") {
                destroy(self.0);
            }
        }
    }
}

#[test]
fn every_call_restores_the_callers_context() -> Result<()> {
    let Some((found, _alone)) = cuda() else { return Ok(()) };
    let own = OwnContext::new(&found);
    drop(found);
    for mine in [ptr::null_mut(), own.0] {
        // SAFETY: the context is alive, or null.
        assert_eq!(unsafe { sys::cuCtxSetCurrent(mine) }, CUresult::CUDA_SUCCESS);
        let kept = |call: &str| assert_eq!(current(), mine, "after {call}");
        // Opened while this context is current, because the first opening of a GPU must restore it
        // too.
        let cuda = Cuda::new()?;
        kept("Cuda::new");
        let second = cuda.with_new_stream()?;
        kept("with_new_stream");
        let on_stream = Cuda::on_stream(cuda.stream().clone())?;
        kept("on_stream");
        let (family, problem) = (flashrnn_cuda::Family::Alternating, Problem::new(3, 40, 2, 48));
        for cuda in [cuda.clone(), second.with_family(family)] {
            let mut layer = Layer::<f32>::new(&cuda, &Lstm, &problem)?;
            kept("plan, pack, saved, upload and alloc");
            layer.forward(None)?;
            kept("forward");
            layer.backward(None)?;
            kept("backward");
            let shapes = layer.plan.shapes().clone();
            let mut state = cuda.alloc::<f32>(size(&shapes.state()))?;
            let wx = cuda.alloc::<f32>(shapes.batch * shapes.external * shapes.units())?;
            layer.plan.step(Step {
                weights: &layer.weights,
                wx: wx.view(),
                state: state.view_mut(),
                h: None,
            })?;
            kept("step");
            layer.outputs()?;
            kept("download");
            cuda.memory()?;
            kept("memory");
            drop((wx, state));
            kept("dropping buffers");
            cuda.trim()?;
            kept("trim");
            cuda.synchronize()?;
            kept("synchronize");
            assert!(cuda.alloc::<u8>(usize::MAX / 2).is_err());
            kept("an allocation that fails");
            drop(layer);
            kept("dropping a plan");
        }
        {
            // On another stream, so that cudarc records events and waits for them.
            let stream = cuda.stream().context().new_stream().unwrap();
            let mut slice = stream.clone_htod(&[1.0_f32, 2.0]).unwrap();
            // SAFETY: as above. cudarc has made its own context current.
            assert_eq!(unsafe { sys::cuCtxSetCurrent(mine) }, CUresult::CUDA_SUCCESS);
            let borrowed = cuda.borrow(&slice)?;
            kept("borrow");
            assert_eq!(cuda.download(borrowed.view())?, [1.0, 2.0]);
            drop(borrowed);
            kept("dropping a borrowed slice");
            let borrowed = cuda.borrow_mut(&mut slice)?;
            kept("borrow_mut");
            drop(borrowed);
            kept("dropping a slice borrowed for writing");
            drop(slice);
            drop(stream);
            // SAFETY: as above.
            assert_eq!(unsafe { sys::cuCtxSetCurrent(mine) }, CUresult::CUDA_SUCCESS);
        }
        drop(on_stream);
        kept("dropping a handle");
        drop(cuda);
        kept("dropping the last handle");
    }
    // SAFETY: a null context makes none current.
    unsafe { sys::cuCtxSetCurrent(ptr::null_mut()) };
    Ok(())
}

#[test]
fn a_stream_of_another_context_is_refused() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let own = OwnContext::new(&cuda);
    // SAFETY: the context is alive. It must not be dropped here, because cudarc would destroy it
    // too.
    let (context, ours) = unsafe {
        use flashrnn_cuda::cudarc::driver::CudaContext;
        (CudaContext::from_raw_context(0, cuda.stream().context().cu_device(), own.0).unwrap(), own)
    };
    std::mem::forget(ours);
    let refused = cuda.with_stream(context.new_stream().unwrap());
    assert!(matches!(refused, Err(Error::Argument { tensor: "stream", .. })), "{refused:?}");
    // The default streams of two contexts have the same address.
    let mine = Cuda::on_stream(cuda.stream().context().default_stream())?;
    let other = Cuda::on_stream(context.default_stream())?;
    let buffer = other.upload(&[1.0_f32])?;
    let refused = mine.download(buffer.view());
    assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");
    assert_eq!(other.download(buffer.view())?, [1.0]);
    Ok(())
}
