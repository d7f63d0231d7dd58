//! Every shader with every cell and element type is valid WGSL within what every device has.

use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{Dtype, Elman, Gru, Lstm, Slstm};
use flashrnn_testsuite::cells::{Autonomous, Leaky, Twin};
use flashrnn_wgpu::programs::{self, Common, Program};
use naga::valid::{Capabilities, ValidationFlags, Validator};

fn check(name: &str, program: &Program) {
    let source = &program.source;
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::empty());
    if let Err(error) = validator.validate(&module) {
        panic!("{name}: {}", error.emit_to_string(source));
    }
    assert!(program.tensors.len() <= 8, "{name}: the fewest storage buffers a stage may have are 8");
    for entry in &module.entry_points {
        let [x, y, z] = entry.workgroup_size;
        assert!(x * y * z <= 256, "{name}");
    }
}

#[test]
fn every_shader_is_valid() {
    let cells = [
        (wgsl::sizes::<Elman>(), wgsl::functions(&Elman)),
        (wgsl::sizes::<Gru>(), wgsl::functions(&Gru)),
        (wgsl::sizes::<Lstm>(), wgsl::functions(&Lstm)),
        (wgsl::sizes::<Slstm>(), wgsl::functions(&Slstm)),
        (wgsl::sizes::<Leaky>(), wgsl::functions(&Leaky { a: f64::INFINITY })),
        (wgsl::sizes::<Leaky>(), wgsl::functions(&Leaky { a: 1e-40 })),
        (wgsl::sizes::<Twin>(), wgsl::functions(&Twin)),
        (wgsl::sizes::<Autonomous>(), wgsl::functions(&Autonomous)),
    ];
    check("probe", &programs::probe());
    for (sizes, functions) in cells {
        for (element, weight) in [
            (Dtype::F32, Dtype::F32),
            (Dtype::F16, Dtype::F16),
            (Dtype::F16, Dtype::F32),
            (Dtype::Bf16, Dtype::Bf16),
        ] {
            for recompute in [false, true] {
                let common = Common {
                    sizes: sizes.clone(),
                    functions: functions.clone(),
                    element,
                    weight,
                    chunk: 32,
                    recompute,
                };
                check("forward_step", &common.forward_step());
                check("backward_step", &common.backward_step());
                check("gates_again", &common.gates_again());
                check("gradients", &common.gradients());
                check("reduce", &common.reduce());
                check("pack", &common.pack());
            }
        }
    }
}
