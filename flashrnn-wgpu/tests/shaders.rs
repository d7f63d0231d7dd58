//! Every shader with every cell and element type is valid WGSL within the limits of every device.

use flashrnn_core::trace::print::wgsl;
use flashrnn_core::{Cell, Dtype, Elman, Gru, Lstm, Problem, Shapes, Slstm};
use flashrnn_testsuite::cells::{Autonomous, Leaky, ManyGates, Twin};
use flashrnn_wgpu::programs::{self, Program, Programs};
use flashrnn_wgpu::testing::{Adapter, Fused, GradTile};
use naga::AddressSpace;
use naga::proc::Layouter;
use naga::valid::{Capabilities, ValidationFlags, Validator};

/// The limits that every device has.
const MINIMAL: Adapter =
    Adapter { cpu: false, invocations: 256, workgroup_bytes: 16 << 10, matrix: false, subgroup: 1 };

/// Validates a program. Returns its bytes of workgroup memory.
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
        "{name}: some devices have only 8 storage buffers per stage"
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

/// Returns the printed sizes and functions of a cell, and its shapes.
fn printed<C: Cell>(cell: &C) -> (String, String, Shapes) {
    (wgsl::sizes::<C>(), wgsl::functions(cell), Problem::new(1, 1, 1, 1).shapes::<C>().unwrap())
}

#[test]
fn every_shader_is_valid() {
    check("long_loops", &programs::long_loops());
    check_with("subgroups", &programs::subgroups(), Capabilities::SUBGROUP);
    check_with("native_f16", &programs::native_f16(), Capabilities::SHADER_FLOAT16_IN_FLOAT32);
    let cells = [
        printed(&Elman),
        printed(&Gru),
        printed(&Lstm),
        printed(&Slstm),
        printed(&Leaky { a: f64::INFINITY }),
        printed(&Leaky { a: 1e-40 }),
        printed(&Twin),
        printed(&Autonomous),
        printed(&ManyGates),
    ];
    for (sizes, functions, shapes) in cells {
        for (element, weight) in [
            (Dtype::F32, Dtype::F32),
            (Dtype::F16, Dtype::F16),
            (Dtype::F16, Dtype::F32),
            (Dtype::Bf16, Dtype::Bf16),
        ] {
            for recompute in [false, true] {
                let programs = Programs {
                    sizes: sizes.clone(),
                    functions: functions.clone(),
                    element,
                    weight,
                    native_f16_exact: false,
                    adapter: MINIMAL,
                    chunk: 32,
                    recompute,
                };
                check("recompute", &programs.recompute());
                check("reduce", &programs.reduce());
                check("pack", &programs.pack());
                check_steps(&programs, &shapes);
                check_fused(&programs, &shapes);
                check_weight_grads(&programs);
            }
        }
    }
}

fn check_steps(programs: &Programs, shapes: &Shapes) {
    for head_dim in [1, 30, 300] {
        let shapes = Shapes { head_dim, ..shapes.clone() };
        let word_aligned = head_dim % 2 == 0;
        for (cpu, subgroup) in [(false, 1), (false, 8), (false, 16), (false, 32), (true, 1)] {
            let adapter = Adapter { cpu, subgroup, ..MINIMAL };
            let programs = Programs { adapter, ..programs.clone() };
            let needs = if subgroup > 1 { Capabilities::SUBGROUP } else { Capabilities::empty() };
            let forward = programs.forward_step(&shapes, word_aligned);
            let bytes = check_with("forward_step", &forward, needs);
            assert!(bytes <= MINIMAL.workgroup_bytes);
            let backward = programs.backward_step(&shapes, word_aligned);
            let bytes = check_with("backward_step", &backward, needs);
            assert!(bytes <= MINIMAL.workgroup_bytes);
        }
    }
}

fn check_fused(programs: &Programs, shapes: &Shapes) {
    for (batch, head_dim) in [(1, 1), (1, 32), (64, 33), (128, 16), (256, 64)] {
        let shapes = Shapes { batch, head_dim, ..shapes.clone() };
        let word_aligned = head_dim % 2 == 0;
        let narrow = programs.element != Dtype::F32;
        let Some(fused) = Fused::new(&shapes, MINIMAL, programs.element) else {
            assert_eq!(shapes.gates, 17, "only `ManyGates` does not fit");
            continue;
        };
        check("pack_fused", &programs.pack_fused(fused, &shapes));
        let forward = programs.fused_forward(fused, &shapes, word_aligned);
        let backward = programs.fused_backward(fused, &shapes, word_aligned);
        assert_eq!(
            [check("fused_forward", &forward), check("fused_backward", &backward)],
            fused.workgroup_bytes(&shapes, narrow),
            "computed by select/fused.rs"
        );
    }
}

fn check_weight_grads(programs: &Programs) {
    let on_cpu = [(true, 1), (true, 64)];
    let on_gpu = [1, 2, 64, 65, 128].map(|head_dim| (false, head_dim));
    for (cpu, head_dim) in on_cpu.into_iter().chain(on_gpu) {
        let tile = GradTile::new(head_dim, Adapter { cpu, ..MINIMAL });
        let program = programs.weight_grad(tile, head_dim % 2 == 0);
        assert!(check("weight_grad", &program) <= MINIMAL.workgroup_bytes);
    }
    if programs.element == Dtype::F16 {
        let needs = Capabilities::SHADER_FLOAT16
            | Capabilities::SUBGROUP
            | Capabilities::COOPERATIVE_MATRIX;
        for width in [64, 128] {
            let program = programs.weight_grad_matrices(width);
            check_with("weight_grad_matrices", &program, needs);
        }
    }
}
