//! Tests beyond conformance: long sequences, views, the caller's device, and errors.

use flashrnn_core::{
    Backend, Dtype, Element, Elman, Error, Gru, Len, Lstm, Options, Plan, Problem, Save, Slstm,
    bf16, f16,
};
use flashrnn_testsuite::run::{CallOptions, ForwardPass};
use flashrnn_testsuite::{Case, Results, Tensors, compare, errors, measure, run};
use flashrnn_wgpu::testing::{self, Fused};
use flashrnn_wgpu::{Family, View, Wgpu};

/// Returns the maximum error of all tensors against the f64 reference.
fn largest(got: &Results, want: &Results) -> f64 {
    errors(got, want).into_iter().map(|(_, error)| error).fold(0.0, f64::max)
}

/// f32 stays within 1e-5 of f64 over 256 steps; the error grows with the number of steps.
#[test]
fn long_sequences_stay_exact() {
    let Some(wgpu) = testing::wgpu() else { return };
    // For larger heads the reference takes too long while a driver uses the CPU.
    let largest_head = if wgpu.is_cpu() { 32 } else { 256 };
    macro_rules! check {
        ($($cell:expr),*) => {$(for head_dim in [32, 64, 128, 256].into_iter().filter(|&d| d <= largest_head) {
            let problem = Problem::new(2, 256, 1, head_dim);
            let case = Case::random::<_, f32, f32>(&$cell, &problem, Tensors::PLAIN, 3).unwrap();
            let got = run::<_, _, f32, f32>(&wgpu, &$cell, &case).unwrap();
            let error = largest(&got, &Results::reference(&$cell, &case).unwrap());
            assert!(error <= 1e-5, "{:?} of {head_dim} units: {error:e}", stringify!($cell));
        })*};
    }
    check!(Elman, Gru, Lstm, Slstm);
}

/// Runs more steps than one bind group or one dispatch of a fused kernel covers, in both passes.
#[test]
fn many_passes() {
    let Some(wgpu) = testing::wgpu() else { return };
    for family in [Family::Fused, Family::Alternating] {
        let wgpu = wgpu.clone().with_family(family);
        for save in [Save::Gates, Save::Recompute] {
            let problem = Problem::new(1, 2500, 1, 3).with(Options { save, ..Options::default() });
            let tensors = Tensors { lengths: true, resets: true, ..Tensors::PLAIN };
            let case = Case::random::<_, f32, f32>(&Lstm, &problem, tensors, 4).unwrap();
            let got = run::<_, _, f32, f32>(&wgpu, &Lstm, &case).unwrap();
            for measured in measure(&Lstm, &case, Dtype::F32, &got).unwrap() {
                assert!(measured.passes(), "{family:?}, {save:?}: {measured:?}");
            }
        }
    }
}

/// Compares fused kernels with per-step kernels and the reference. The cases cover larger heads,
/// several rows per workgroup, and weights in registers and re-read at every step. All cases have
/// lengths, resets, s0 and clips. Drivers that run on the CPU do not get these kernels otherwise.
#[test]
fn fused_tiles() {
    let Some(wgpu) = testing::wgpu() else { return };
    let on_gpus = testing::as_on_gpus(wgpu.clone());
    let alternating = wgpu.with_family(Family::Alternating);
    macro_rules! check {
        ($cell:expr, $t:ty, $head_dim:literal, $fused:expr) => {{
            let problem = Problem::new(5, 9, 2, $head_dim).with(Options {
                forward_clip: Some(0.5),
                recurrent_grad_clip: Some(0.1),
                reverse: true,
                ..Options::default()
            });
            let tensors = Tensors { lengths: true, resets: true, s0: true, ..Tensors::PLAIN };
            let fused: Fused = $fused;
            let case = Case::random::<_, $t, $t>(&$cell, &problem, tensors, 5).unwrap();
            let got =
                run::<_, _, $t, $t>(&testing::with_fused(on_gpus.clone(), fused), &$cell, &case)
                    .unwrap();
            for measured in measure(&$cell, &case, <$t>::DTYPE, &got).unwrap() {
                assert!(measured.passes(), "{fused:?}: {measured:?}");
            }
            let want = run::<_, _, $t, $t>(&alternating, &$cell, &case).unwrap();
            for measured in compare(&$cell, &case, <$t>::DTYPE, &got, &want).unwrap() {
                assert!(measured.passes(), "{fused:?} against alternating: {measured:?}");
            }
        }};
    }
    let of = |units, split, rows, registers| Fused { units, split, rows, registers };
    check!(Gru, f32, 16, of(16, 2, 2, 191));
    check!(Elman, f16, 31, of(32, 4, 4, 191));
    check!(Lstm, bf16, 30, of(32, 1, 1, 68));
    check!(Gru, f32, 31, of(32, 1, 1, 80));
    check!(Slstm, f16, 32, of(32, 2, 2, 0));
    check!(Lstm, f16, 8, of(8, 1, 1, 191));
    check!(Gru, bf16, 7, of(8, 1, 1, 191));
}

/// Tests per-step kernels that drivers on the CPU do not get otherwise: sums by subgroup
/// operations, of one, three and four lines; pairs of 16-bit units as whole words; and tiles for
/// heads of one size. Mesa's driver has subgroups of 8, and of 16 with
/// `LP_NATIVE_VECTOR_WIDTH=512`.
#[test]
fn kernels_of_gpus() {
    let Some(wgpu) = testing::wgpu() else { return };
    let wgpu = testing::as_on_gpus(wgpu).with_family(Family::Alternating);
    macro_rules! check {
        ($cell:expr, $t:ty, $head_dim:literal, $save:expr) => {{
            let problem = Problem::new(18, 3, 2, $head_dim).with(Options {
                reverse: true,
                save: $save,
                ..Options::default()
            });
            let tensors = Tensors { lengths: true, resets: true, s0: true, ..Tensors::PLAIN };
            let case = Case::random::<_, $t, $t>(&$cell, &problem, tensors, 7).unwrap();
            let got = run::<_, _, $t, $t>(&wgpu, &$cell, &case).unwrap();
            for measured in measure(&$cell, &case, <$t>::DTYPE, &got).unwrap() {
                assert!(measured.passes(), "{} units: {measured:?}", $head_dim);
            }
        }};
    }
    check!(Elman, f32, 65, Save::Gates);
    check!(Gru, f16, 30, Save::Gates);
    check!(Lstm, f32, 17, Save::Recompute);
    check!(Lstm, bf16, 64, Save::Gates);
    check!(Slstm, bf16, 34, Save::Recompute);
}

/// Tests heads whose gradient of R is computed by cooperative matrices on adapters that have them,
/// in several parts and rounds.
#[test]
fn gradients_of_whole_tiles() {
    let Some(wgpu) = testing::wgpu() else { return };
    macro_rules! check {
        ($cell:expr, $head_dim:literal) => {{
            let problem = Problem::new(3, 101, 2, $head_dim)
                .with(Options { reverse: true, ..Options::default() });
            let tensors = Tensors { lengths: true, resets: true, s0: true, ..Tensors::PLAIN };
            let case = Case::random::<_, f16, f16>(&$cell, &problem, tensors, 6).unwrap();
            let got = run::<_, _, f16, f16>(&wgpu, &$cell, &case).unwrap();
            for measured in measure(&$cell, &case, Dtype::F16, &got).unwrap() {
                assert!(measured.passes(), "{} units: {measured:?}", $head_dim);
            }
        }};
    }
    check!(Gru, 64);
    check!(Lstm, 128);
}

#[test]
fn views_begin_anywhere() {
    let Some(wgpu) = testing::wgpu() else { return };
    let data: Vec<f16> = (0..11u8).map(|v| f16::from_f32(v.into())).collect();
    let buffer = wgpu.upload(&data).unwrap();
    for range in [0..11, 1..4, 3..3, 10..11, 2..9] {
        let view = buffer.view().slice(range.clone()).unwrap();
        assert_eq!(view.len(), range.len());
        assert_eq!(wgpu.download(view).unwrap(), data[range]);
    }
    assert!(buffer.view().slice(3..12).is_err());
    assert!(buffer.view().slice(usize::MAX..usize::MAX).is_err());
}

#[test]
fn the_callers_device_and_buffers() {
    let Some(wgpu) = testing::wgpu() else { return };
    let (device, queue) = (wgpu.device().clone(), wgpu.queue().clone());
    let usage =
        wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
    let buffer = device.create_buffer(&wgpu::BufferDescriptor {
        label: None,
        size: 16,
        usage,
        mapped_at_creation: false,
    });
    queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&[1.0f32, 2.0, 3.0, 4.0]));
    let theirs = Wgpu::from_device(device, queue);
    let view = View::<f32>::of(&buffer, 1, 3).unwrap();
    assert_eq!(theirs.download(view).unwrap(), [2.0, 3.0, 4.0]);
    assert!(matches!(View::<f32>::of(&buffer, 2, 3), Err(Error::Shape { .. })));
    let case =
        Case::random::<_, f32, f32>(&Gru, &Problem::new(2, 3, 1, 5), Tensors::PLAIN, 1).unwrap();
    let got = run::<_, _, f32, f32>(&theirs, &Gru, &case).unwrap();
    assert_eq!(got, run::<_, _, f32, f32>(&wgpu, &Gru, &case).unwrap());
}

#[test]
fn problems_that_do_not_fit_are_errors() {
    let Some(wgpu) = testing::wgpu() else { return };
    assert!(matches!(wgpu.alloc::<f32>(usize::MAX / 2), Err(Error::OutOfMemory { .. })));
    assert!(matches!(wgpu.alloc::<f32>(1 << 50), Err(Error::OutOfMemory { .. })));
    let large = Problem::new(1 << 14, 1 << 14, 4, 64);
    let unsupported =
        |result: flashrnn_core::Result<()>| matches!(result, Err(Error::Unsupported { .. }));
    assert!(unsupported(wgpu.plan::<f32, f32, Lstm>(&Lstm, &large).map(|_| ())));
    assert!(unsupported(wgpu.plan::<f64, f64, Lstm>(&Lstm, &Problem::new(1, 1, 1, 1)).map(|_| ())));
    assert!(unsupported(wgpu.plan::<f32, f16, Lstm>(&Lstm, &Problem::new(1, 1, 1, 1)).map(|_| ())));
}

/// On a lost device, nothing panics or waits forever.
#[test]
fn a_lost_device_is_an_error() {
    let Some(wgpu) = testing::wgpu() else { return };
    let problem = Problem::new(2, 3, 1, 5);
    let case = Case::random::<_, f32, f32>(&Gru, &problem, Tensors::PLAIN, 1).unwrap();
    let plan = wgpu.plan::<f32, f32, _>(&Gru, &problem).unwrap();
    let pass =
        ForwardPass::<Wgpu, f32>::forward(&wgpu, &plan, &case, CallOptions::default()).unwrap();
    let buffer = wgpu.upload(&[1.0f32]).unwrap();
    // A second handle, which wgpu does not tell about the loss.
    let theirs = Wgpu::from_device(wgpu.device().clone(), wgpu.queue().clone());
    wgpu.device().destroy();
    fn lost<R>(what: Result<R, Error>) -> bool {
        matches!(what, Err(Error::Device(why)) if why.to_string().contains("lost"))
    }
    // wgpu reports the loss when something waits for the device. A run fails earlier, because it
    // cannot allocate.
    assert!(run::<_, _, f32, f32>(&wgpu, &Gru, &case).is_err());
    assert!(lost(wgpu.synchronize()));
    for _ in 0..2 {
        assert!(lost(wgpu.alloc::<f32>(1)));
        assert!(lost(wgpu.upload(&[1.0f32])));
        assert!(lost(wgpu.plan::<f32, f32, _>(&Lstm, &problem)));
        assert!(lost(run::<_, _, f32, f32>(&wgpu, &Gru, &case)));
        assert!(lost(plan.saved()));
        assert!(lost(pass.backward(&wgpu, &plan, &case, CallOptions::default())));
        assert!(lost(wgpu.download(buffer.view())));
        assert!(lost(wgpu.synchronize()));
    }
    assert!(theirs.download(buffer.view()).is_err());
    assert!(run::<_, _, f32, f32>(&theirs, &Gru, &case).is_err());
}

#[test]
fn a_missing_adapter_is_an_error() {
    match Wgpu::with_adapter("no such adapter") {
        Err(Error::Device(why)) => assert!(why.to_string().contains("no such adapter"), "{why}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("an adapter of that name"),
    }
}
