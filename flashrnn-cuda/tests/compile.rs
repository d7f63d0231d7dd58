//! The compiler: its messages, its log, and the architectures that it accepts.

use flashrnn_core::Error;
use flashrnn_cuda::compile::{Arch, Nvrtc, Program, compile};
use flashrnn_cuda::testing;

const HOPPER: Arch = Arch { major: 9, minor: 0 };

fn program(source: &str, header: &str) -> Program {
    Program {
        name: "kernels/test.cu".into(),
        source: source.into(),
        headers: vec![("test.cuh".into(), header.into())],
        options: vec!["-DFACTOR=3".into()],
    }
}

const SOURCE: &str = r#"
#include "test.cuh"
extern "C" __global__ void scale(float* x) { x[threadIdx.x] *= factor(); }
"#;
const HEADER: &str = "__device__ float factor() { return FACTOR; }\n";

#[test]
fn a_program_compiles_to_machine_code_and_a_log() {
    if !testing::nvrtc() {
        return;
    }
    for arch in [Arch { major: 8, minor: 0 }, Arch { major: 8, minor: 7 }, HOPPER] {
        let compiled = compile(&program(SOURCE, HEADER), arch).unwrap();
        assert!(compiled.cubin.starts_with(b"\x7fELF"), "{arch}: not an ELF file");
        assert!(
            compiled.log.contains("registers") && compiled.log.contains("scale"),
            "{}",
            compiled.log
        );
    }
}

#[test]
fn messages_name_files_and_lines() {
    if !testing::nvrtc() {
        return;
    }
    let wrong_header = "\n\n__device__ float factor() { return nothing; }\n";
    let wrong_source = SOURCE.replace("factor()", "factor() + elsewhere");
    for (source, header, place) in
        [(SOURCE, wrong_header, "test.cuh(3)"), (&wrong_source, HEADER, "kernels/test.cu(3)")]
    {
        match compile(&program(source, header), HOPPER) {
            Err(Error::Compile { kernel, log }) => {
                assert_eq!(kernel, "kernels/test.cu");
                assert!(log.contains(place), "{place} is not in:\n{log}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn failures_are_errors() {
    if !testing::nvrtc() {
        return;
    }
    let mut strange = program(SOURCE, HEADER);
    strange.options.push("--no-such-option".into());
    for program in [program("\0", HEADER), program(SOURCE, "\0"), strange] {
        assert!(matches!(compile(&program, HOPPER), Err(Error::Compile { .. })), "{program:?}");
    }
    let error = compile(&program(SOURCE, HEADER), Arch { major: 99, minor: 0 }).unwrap_err();
    assert!(error.to_string().contains("99.0"), "{error}");
}

#[test]
fn the_compilers_build_is_known() {
    if testing::nvrtc() {
        let nvrtc = Nvrtc::get().unwrap();
        let release = format!("release {}.{}", nvrtc.major, nvrtc.minor);
        assert!(nvrtc.build.contains("Build") && nvrtc.build.contains(&release), "{}", nvrtc.build);
    }
}
