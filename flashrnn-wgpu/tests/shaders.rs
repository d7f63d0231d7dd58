//! Every shader with every cell and element type is valid WGSL within what every device has.

use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{Cell, Dtype, Elman, Gru, Lstm, Problem, Shapes, Slstm};
use flashrnn_testsuite::cells::{Autonomous, Leaky, Twin};
use flashrnn_wgpu::programs::{self, Common, Program};
use flashrnn_wgpu::testing::{Adapter, Fused, Gradient};
use naga::AddressSpace;
use naga::proc::Layouter;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// The bytes of workgroup memory that a valid program takes.
fn check(name: &str, program: &Program) -> usize {
    check_with(name, program, Capabilities::empty())
}

fn check_with(name: &str, program: &Program, capabilities: Capabilities) -> usize {
    let source = &program.source;
    let module = naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|error| panic!("{name}: {}", error.emit_to_string(source)));
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    if let Err(error) = validator.validate(&module) {
        panic!("{name}: {}", error.emit_to_string(source));
    }
    assert!(
        program.tensors.len() <= 8,
        "{name}: the fewest storage buffers a stage may have are 8"
    );
    for entry in &module.entry_points {
        let [x, y, z] = entry.workgroup_size;
        assert!(x * y * z <= 256, "{name}");
    }
    let mut layouter = Layouter::default();
    layouter.update(module.to_ctx()).unwrap();
    let of_workgroup =
        module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    of_workgroup.map(|(_, variable)| layouter[variable.ty].size as usize).sum()
}

/// Sizes, functions and shapes of a cell.
fn printed<C: Cell>(cell: &C) -> (String, String, Shapes) {
    (wgsl::sizes::<C>(), wgsl::functions(cell), Problem::new(1, 1, 1, 1).shapes::<C>().unwrap())
}

#[test]
fn every_shader_is_valid() {
    let cells = [
        printed(&Elman),
        printed(&Gru),
        printed(&Lstm),
        printed(&Slstm),
        printed(&Leaky { a: f64::INFINITY }),
        printed(&Leaky { a: 1e-40 }),
        printed(&Twin),
        printed(&Autonomous),
    ];
    check("probe", &programs::probe());
    check_with("subgroups", &programs::subgroups(), Capabilities::SUBGROUP);
    check_with("unpacks", &programs::unpacks(), Capabilities::SHADER_FLOAT16_IN_FLOAT32);
    // What every device has.
    let adapter = Adapter {
        cpu: false,
        invocations: 256,
        workgroup_bytes: 16 << 10,
        matrix: false,
        subgroup: 1,
    };
    for (sizes, functions, shapes) in cells {
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
                    unpacks: false,
                    adapter,
                    chunk: 32,
                    recompute,
                };
                for head_dim in [1, 30, 300] {
                    let shapes = Shapes { head_dim, ..shapes.clone() };
                    let words = head_dim % 2 == 0;
                    let least = adapter.workgroup_bytes;
                    for (cpu, subgroup) in
                        [(false, 1), (false, 8), (false, 16), (false, 32), (true, 1)]
                    {
                        let adapter = Adapter { cpu, subgroup, ..adapter };
                        let common = Common { adapter, ..common.clone() };
                        let needs = if subgroup > 1 {
                            Capabilities::SUBGROUP
                        } else {
                            Capabilities::empty()
                        };
                        let forward = common.forward_step(&shapes, words);
                        assert!(check_with("forward_step", &forward, needs) <= least);
                        let backward = common.backward_step(&shapes, words);
                        assert!(check_with("backward_step", &backward, needs) <= least);
                    }
                }
                check("gates_again", &common.gates_again());
                for (cpu, head_dim) in [
                    (true, 1),
                    (true, 64),
                    (false, 1),
                    (false, 2),
                    (false, 64),
                    (false, 65),
                    (false, 128),
                ] {
                    let gradient = Gradient::new(head_dim, Adapter { cpu, ..adapter });
                    let gradients = common.gradients(gradient, head_dim % 2 == 0);
                    assert!(check("gradients", &gradients) <= adapter.workgroup_bytes);
                }
                for width in [64, 128] {
                    let needs = Capabilities::SHADER_FLOAT16
                        | Capabilities::SUBGROUP
                        | Capabilities::COOPERATIVE_MATRIX;
                    if element == Dtype::F16 {
                        check_with("matrix_gradient", &common.matrix_gradient(width), needs);
                    }
                }
                check("reduce", &common.reduce());
                check("pack", &common.pack());
                for (batch, head_dim) in [(1, 1), (1, 32), (64, 33), (128, 16), (256, 64)] {
                    let shapes = Shapes { batch, head_dim, ..shapes.clone() };
                    let narrow = element != Dtype::F32;
                    let fused = Fused::new(&shapes, adapter, element).unwrap();
                    check("pack_fused", &common.pack_fused(fused, &shapes));
                    let bytes = [
                        check(
                            "fused_forward",
                            &common.fused_forward(fused, &shapes, head_dim % 2 == 0),
                        ),
                        check(
                            "fused_backward",
                            &common.fused_backward(fused, &shapes, head_dim % 2 == 0),
                        ),
                    ];
                    assert_eq!(
                        bytes,
                        fused.workgroup_bytes(&shapes, narrow),
                        "what select/fused.rs computes"
                    );
                }
            }
        }
    }
}
