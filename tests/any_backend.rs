//! A backend chosen at run time has the properties of the underlying backend, and rejects memory of
//! another backend.

#![cfg(feature = "cpu")]

use flashrnn::any::BackendName;
use flashrnn::{AnyBackend, Backend, Error};

/// Returns a CPU backend that keeps subnormal numbers, so that `operations_on_subnormals` can run.
fn with_subnormals() -> AnyBackend {
    AnyBackend::Cpu(flashrnn::Cpu::new().with_subnormals(flashrnn::cpu::Subnormals::Keep))
}

flashrnn_testsuite::conformance!(with_subnormals(), same_bits_as: [with_subnormals()], skip: []);

/// Tests the properties of calls on a GPU, or on a software driver that runs on the CPU.
#[cfg(feature = "wgpu")]
mod wgpu {
    use flashrnn::{Forward, Lstm, Plan, Problem};
    use flashrnn_testsuite::{Suite, properties};

    use super::*;

    fn cpu() -> AnyBackend {
        AnyBackend::new(BackendName::Cpu).expect("the CPU is always available")
    }

    #[test]
    fn properties_of_calls() {
        let backend = match AnyBackend::new(BackendName::Wgpu) {
            Ok(backend) => backend,
            Err(missing)
                if std::env::var("FLASHRNN_REQUIRE").is_ok_and(|list| list.contains("wgpu")) =>
            {
                panic!("{missing}")
            }
            Err(missing) => return println!("skipped: {missing}"),
        };
        let suite = Suite::new(backend, vec![], vec![]);
        suite.check("bad_input", properties::bad_input);
        suite.check("empty_batch", properties::empty_batch);
        suite.check("foreign_weights", properties::foreign_weights);
        suite.check("inference", properties::inference);
        suite.check("interleaved", properties::interleaved);
        suite.check("same_bits_twice", properties::same_bits_twice);
        suite.check("workspaces", properties::workspaces);
        memory_of_another_backend_is_rejected(&suite.backend);
    }

    /// Passes CPU buffers to calls on a GPU, and vice versa.
    fn memory_of_another_backend_is_rejected(gpu: &AnyBackend) {
        for (backend, other) in [(gpu, &cpu()), (&cpu(), gpu)] {
            let plan = backend.plan(&Lstm, &Problem::new(1, 2, 1, 3)).expect("a valid problem");
            let zeros = |backend: &AnyBackend, len| backend.alloc::<f32>(len).expect("memory");
            let (r, b, wx) = (zeros(backend, 36), zeros(backend, 12), zeros(backend, 24));
            let weights = plan.pack(r.view(), b.view()).expect("the right sizes");
            let named = |result: flashrnn::Result<()>, want: &str| match result {
                Err(Error::Argument { tensor, .. }) if tensor == want => {}
                got => panic!("got {got:?}, wanted an error for {want}"),
            };
            named(plan.pack(zeros(other, 36).view(), b.view()).map(drop), "r");
            named(plan.forward(Forward::new(&weights, zeros(other, 24).view())), "wx");
            let mut h = zeros(other, 6);
            named(
                plan.forward(Forward {
                    h: Some(h.view_mut()),
                    ..Forward::new(&weights, wx.view())
                }),
                "h",
            );
            let theirs = other
                .plan::<f32, f32, _>(&Lstm, &Problem::new(1, 2, 1, 3))
                .expect("a valid problem");
            let foreign = theirs
                .pack(zeros(other, 36).view(), zeros(other, 12).view())
                .expect("the right sizes");
            assert!(plan.accepts(&weights) && !plan.accepts(&foreign));
            named(plan.forward(Forward::new(&foreign, wx.view())), "weights");
            assert!(backend.download(h.view()).is_err());
        }
    }
}

#[test]
fn names() {
    for name in BackendName::ALL {
        assert_eq!(name.to_string().parse::<BackendName>(), Ok(name));
    }
    assert!(matches!(
        "gpu".parse::<BackendName>(),
        Err(Error::InvalidProblem { option: "backend", .. })
    ));
    let auto = AnyBackend::new(BackendName::Auto).expect("the CPU, if no GPU");
    assert!(auto.is_gpu() || auto.info().name == "cpu");
    // Only the CPU supports f64.
    assert_eq!(AnyBackend::auto(flashrnn::Dtype::F64).expect("the CPU").info().name, "cpu");
}

/// The error for a missing backend names the missing feature or device.
#[test]
fn missing_backends_are_named() {
    for (name, built) in
        [(BackendName::Cuda, cfg!(feature = "cuda")), (BackendName::Wgpu, cfg!(feature = "wgpu"))]
    {
        match AnyBackend::new(name) {
            Ok(backend) => assert_eq!(backend.info().name, name.name()),
            Err(Error::Unsupported { backend, why, .. }) => {
                assert!(!built && backend == name.name() && why.contains("feature"), "{why}");
            }
            Err(Error::Device(missing)) => assert!(built, "{missing}"),
            Err(other) => panic!("{other:?}"),
        }
    }
}
