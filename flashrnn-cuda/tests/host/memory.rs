//! Scratch memory, the pool, and memory of other handles.

use flashrnn_core::{
    Backend, Backward, Cell, Element, Elman, Error, Forward, Gru, Lstm, Options, Plan, Problem,
    Result, Save, SavedRef, Slstm, Step, bf16,
};
use flashrnn_cuda::{Buffer, Cuda, Family, ViewMut, testing};

use super::{Layer, cuda, numbers, size};

/// Checks both passes with workspaces of the caller: they return the same bits as without
/// workspaces, and never allocate from the pool.
fn check_workspaces<C: Cell, T: Element + PartialEq>(
    cuda: &Cuda,
    cell: &C,
    problem: &Problem,
    failed: &mut Vec<String>,
) -> Result<()> {
    let mut layer = Layer::<T>::new(cuda, cell, problem)?;
    layer.forward(None)?;
    layer.backward(None)?;
    let want = layer.outputs()?;
    // Workspaces of exactly the required sizes, with every bit set.
    let workspace = |bytes: usize| cuda.upload(&vec![0xff_u8; bytes]);
    let mut forward = workspace(layer.plan.forward_workspace().bytes)?;
    let mut backward = workspace(layer.plan.backward_workspace().bytes)?;
    cuda.synchronize()?;
    let before = cuda.memory()?.used;
    let own = testing::peak_memory_of(cuda, || {
        layer.forward(Some(&mut forward))?;
        layer.backward(Some(&mut backward))?;
        cuda.synchronize()
    })?;
    let what = format!("{} {} {problem:?}", C::NAME, T::DTYPE);
    if own != before {
        failed.push(format!(
            "{what}: {} bytes of the pool in addition to the workspaces",
            own - before
        ));
    }
    if layer.outputs()? != want {
        failed.push(format!("{what}: the bits differ from those without workspaces"));
    }
    let pooled = testing::peak_memory_of(cuda, || {
        layer.backward(None)?;
        cuda.synchronize()
    })?;
    if pooled <= before {
        failed.push(format!(
            "{what}: a backward pass took nothing from the pool, so the test measures nothing"
        ));
    }
    Ok(())
}

#[test]
fn a_call_with_a_workspace_allocates_nothing() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let mut failed = Vec::new();
    for family in [Family::Auto, Family::Alternating] {
        let cuda = cuda.clone().with_family(family);
        for save in [Save::Gates, Save::Recompute] {
            // Rows of 33 elements are not aligned. The last problem sums tokens in several parts.
            for (batch, time, heads, head_dim) in [(3, 40, 2, 40), (3, 40, 2, 33), (7, 300, 1, 64)]
            {
                let options = Options { save, ..Options::default() };
                let problem = Problem::new(batch, time, heads, head_dim).with(options);
                check_workspaces::<_, f32>(&cuda, &Lstm, &problem, &mut failed)?;
                check_workspaces::<_, bf16>(&cuda, &Lstm, &problem, &mut failed)?;
                check_workspaces::<_, bf16>(&cuda, &Gru, &problem, &mut failed)?;
                check_workspaces::<_, bf16>(&cuda, &Slstm, &problem, &mut failed)?;
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn workspaces_that_do_not_fit_are_refused() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let mut layer = Layer::<f32>::new(&cuda, &Lstm, &Problem::new(3, 40, 2, 40))?;
    layer.forward(None)?;
    let needed = layer.plan.backward_workspace();
    assert!(needed.bytes > 0 && needed.align == 256, "{needed:?}");
    let small = layer.backward(Some(&mut cuda.alloc(needed.bytes - 1)?));
    assert!(matches!(small, Err(Error::Shape { tensor: "workspace", .. })), "{small:?}");
    let mut room: Buffer<u8> = cuda.alloc(needed.bytes + 128)?;
    let shifted: ViewMut<'_, u8> = room.view_mut().slice(128..)?;
    let call = Backward {
        d_h: Some(layer.d_h.view()),
        workspace: Some(shifted),
        ..Backward::new(
            &layer.weights,
            layer.states.view(),
            layer.saved.view(),
            layer.d_wx.view_mut(),
        )
    };
    let shifted = layer.plan.backward(call);
    assert!(matches!(shifted, Err(Error::Argument { tensor: "workspace", .. })), "{shifted:?}");
    Ok(())
}

#[test]
fn weights_packed_into_memory_of_the_caller_serve_all_streams() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let problem = Problem::new(3, 40, 2, 33);
    let mut layer = Layer::<bf16>::new(&cuda, &Lstm, &problem)?;
    layer.forward(None)?;
    layer.backward(None)?;
    let want = layer.outputs()?;
    let shapes = layer.plan.shapes().clone();
    let r = cuda.upload(&numbers::<bf16>(1, &shapes.r(), 1.0 / 33_f64.sqrt()))?;
    let b = cuda.upload(&numbers::<bf16>(2, &shapes.b(), 1.0))?;
    let bytes = layer.plan.packed_workspace().bytes;
    let memory = cuda.upload(&vec![0xff_u8; bytes])?;
    cuda.synchronize()?;
    let borrow = |len: usize| {
        // SAFETY: `memory` outlives the weights and the work that uses them.
        unsafe { ViewMut::<u8>::from_raw(memory.ptr(), len) }
    };
    // SAFETY: as above.
    let small = unsafe { layer.plan.pack_into(r.view(), b.view(), borrow(bytes - 1)) };
    assert!(matches!(small, Err(Error::Shape { tensor: "memory", .. })), "{small:?}");
    let used = cuda.memory()?.used;
    let own = testing::peak_memory_of(&cuda, || {
        // SAFETY: as above.
        layer.weights = unsafe { layer.plan.pack_into(r.view(), b.view(), borrow(bytes)) }?;
        cuda.synchronize()
    })?;
    assert_eq!(own, used, "packing took memory of the pool");
    layer.forward(None)?;
    layer.backward(None)?;
    assert!(layer.outputs()? == want);

    let mut second = Layer::<bf16>::new(&cuda.with_new_stream()?, &Lstm, &problem)?;
    // SAFETY: as above. The packing has ended.
    second.weights = unsafe { second.plan.packed_in(borrow(bytes)) }?;
    second.forward(None)?;
    second.backward(None)?;
    assert!(second.outputs()? == want);
    Ok(())
}

#[test]
fn trim_returns_the_pools_memory() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let free = || cuda.stream().context().mem_get_info().unwrap().0;
    let passes = |batch| -> Result<()> {
        let mut layer = Layer::<bf16>::new(&cuda, &Lstm, &Problem::new(batch, 256, 12, 64))?;
        layer.forward(None)?;
        layer.backward(None)
    };
    // Load the kernels and cuBLAS first, because their memory is not returned.
    passes(1)?;
    cuda.trim()?;
    let before = free();
    passes(256)?;
    cuda.synchronize()?;
    let kept = before - free();
    cuda.trim()?;
    let (after, memory) = (free(), cuda.memory()?);
    println!(
        "the pool kept {} MiB; after trim {} KiB are missing, {memory:?}",
        kept >> 20,
        (before.saturating_sub(after)) >> 10
    );
    assert!(kept > 256 << 20, "the pool kept only {kept} bytes, so the test measures nothing");
    assert!(after + (64 << 20) >= before, "{} MiB were not returned", (before - after) >> 20);
    // Buffers in use stay valid.
    let buffer = cuda.upload(&[1.0_f32, 2.0])?;
    cuda.trim()?;
    assert_eq!(cuda.download(buffer.view())?, [1.0, 2.0]);
    Ok(())
}

/// Passes each tensor of each call in turn from another handle, which is either on another stream
/// of the same context or has a context of its own.
#[test]
fn memory_of_another_handle_is_refused() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let problem = Problem::new(3, 5, 2, 40);
    for other in [cuda.with_new_stream()?, Cuda::new()?] {
        let mut mine = Layer::<f32>::new(&cuda, &Lstm, &problem)?;
        let mut theirs = Layer::<f32>::new(&other, &Lstm, &problem)?;
        mine.forward(None)?;
        mine.backward(None)?;
        let refused = |tensor: &str, outcome: Result<()>| match outcome {
            Err(Error::Argument { tensor: named, .. }) if named == tensor => {}
            got => panic!("{tensor}: {got:?}"),
        };
        let shapes = mine.plan.shapes().clone();
        let mut state = other.alloc::<f32>(size(&shapes.state()))?;
        let mut room = other.alloc::<u8>(mine.plan.forward_workspace().bytes)?;
        let lengths = other.upload(&[1_i32, 2, 3])?;
        macro_rules! refused_forward {
            ($tensor:literal, $($field:ident: $value:expr),*) => {{
                let call = Forward::new(&mine.weights, mine.wx.view());
                refused($tensor, mine.plan.forward(Forward { $($field: $value,)* ..call }));
            }};
        }
        refused_forward!("weights", weights: &theirs.weights);
        refused_forward!("wx", wx: theirs.wx.view());
        refused_forward!("s0", s0: Some(state.view()));
        refused_forward!("lengths", lengths: Some(lengths.view()));
        refused_forward!("states", states: Some(theirs.states.view_mut()));
        refused_forward!("last", last: Some(state.view_mut()));
        // A call that saves needs states too.
        let mut states = cuda.alloc::<f32>(size(&shapes.states()))?;
        refused_forward!(
            "saved",
            saved: Some(theirs.saved.view_mut()),
            states: Some(states.view_mut())
        );
        refused_forward!("workspace", workspace: Some(room.view_mut()));

        let mut d_wx = cuda.alloc::<f32>(size(&shapes.wx()))?;
        let mut room = other.alloc::<u8>(mine.plan.backward_workspace().bytes)?;
        macro_rules! refused_backward {
            ($tensor:literal, $($field:ident: $value:expr),*) => {{
                let (states, saved) = (mine.states.view(), mine.saved.view());
                let call = Backward::new(&mine.weights, states, saved, d_wx.view_mut());
                refused($tensor, mine.plan.backward(Backward { $($field: $value,)* ..call }));
            }};
        }
        refused_backward!("weights", weights: &theirs.weights);
        refused_backward!("states", states: theirs.states.view());
        let SavedRef { gates, wide } = theirs.saved.view();
        refused_backward!("saved", saved: SavedRef { gates, ..mine.saved.view() });
        refused_backward!("saved", saved: SavedRef { wide, ..mine.saved.view() });
        refused_backward!("d_h", d_h: Some(theirs.d_h.view()));
        refused_backward!("d_last", d_last: Some(state.view()));
        refused_backward!("d_wx", d_wx: theirs.d_wx.view_mut());
        refused_backward!("d_r", d_r: Some(theirs.d_r.view_mut()));
        refused_backward!("d_b", d_b: Some(theirs.d_b.view_mut()));
        refused_backward!("d_s0", d_s0: Some(state.view_mut()));
        refused_backward!("workspace", workspace: Some(room.view_mut()));

        let wx = cuda.alloc::<f32>(shapes.batch * shapes.external * shapes.units())?;
        let step = mine.plan.step(Step {
            weights: &mine.weights,
            wx: wx.view(),
            state: state.view_mut(),
            h: None,
        });
        refused("state", step);
    }
    Ok(())
}

/// cudarc orders accesses to a borrowed slice only with the stream of the handle that borrowed it.
#[test]
fn a_slice_borrowed_by_another_handle_is_refused() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let other = cuda.with_new_stream()?;
    let mut slice = cuda.stream().clone_htod(&[1.0_f32, 2.0]).unwrap();
    let borrowed = cuda.borrow(&slice)?;
    assert_eq!(cuda.download(borrowed.view())?, [1.0, 2.0]);
    let refused = other.download(borrowed.view());
    assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");
    drop(borrowed);
    let mut borrowed = other.borrow_mut(&mut slice)?;
    let refused = cuda.download(borrowed.view_mut().as_view());
    assert!(matches!(refused, Err(Error::Argument { .. })), "{refused:?}");
    Ok(())
}

/// The address of an empty view is always 0, which the kernels take for an absent tensor.
#[test]
fn an_empty_batch_computes_nothing_and_clears_the_gradients() -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    fn check<C: Cell>(cuda: &Cuda, cell: &C) -> Result<()> {
        for (time, head_dim) in [(40, 48), (40, 700), (0, 48)] {
            for save in [Save::Gates, Save::Recompute] {
                let options = Options { save, ..Options::default() };
                let problem = Problem::new(0, time, 2, head_dim).with(options);
                let mut layer = Layer::<f32>::new(cuda, cell, &problem)?;
                layer.d_r = cuda.upload(&vec![1.0; layer.d_r.len()])?;
                layer.d_b = cuda.upload(&vec![1.0; layer.d_b.len()])?;
                let mut room = [layer.plan.forward_workspace(), layer.plan.backward_workspace()]
                    .map(|workspace| cuda.alloc::<u8>(workspace.bytes));
                for workspaces in [false, true] {
                    let [forward, backward] =
                        room.each_mut().map(|room| room.as_mut().ok().filter(|_| workspaces));
                    layer.forward(forward)?;
                    layer.backward(backward)?;
                    let [states, d_wx, d_r, d_b] = layer.outputs()?;
                    assert!(states.is_empty() && d_wx.is_empty());
                    assert!(
                        !d_r.is_empty() && d_r.iter().chain(&d_b).all(|&v| v == 0.0),
                        "{}",
                        C::NAME
                    );
                }
                let (mut state, wx) = (cuda.alloc::<f32>(0)?, cuda.alloc::<f32>(0)?);
                layer.plan.step(Step {
                    weights: &layer.weights,
                    wx: wx.view(),
                    state: state.view_mut(),
                    h: None,
                })?;
                cuda.synchronize()?;
            }
        }
        Ok(())
    }
    for family in [Family::Auto, Family::Alternating] {
        let cuda = cuda.clone().with_family(family);
        check(&cuda, &Elman)?;
        check(&cuda, &Gru)?;
        check(&cuda, &Slstm)?;
    }
    Ok(())
}
