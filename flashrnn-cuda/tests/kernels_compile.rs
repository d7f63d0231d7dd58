//! Compiles every kernel for every cell, element type and tile, for a GPU of each architecture that
//! is supported, as far as time allows. Needs no GPU. No kernel may use local memory, because these
//! kernels cannot hide the latency of a spilled register. The kernels of `ManyGates` are exempt, and
//! those for architectures that have not been measured may spill a few registers.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flashrnn_core::{Elman, Gru, Lstm, Slstm};
use flashrnn_cuda::compile::{Arch, Program, compile};
use flashrnn_cuda::select::Gpu;
use flashrnn_cuda::{programs, testing};
use flashrnn_testsuite::cells::{ManyGates, Twin};

/// Number of compiling threads: as many as the continuous integration machine has cores.
const THREADS: usize = 2;

/// A kernel in the compiler's log.
#[derive(Debug, Default)]
struct Kernel {
    name: String,
    registers: usize,
    /// Total bytes of stack frame, spill stores and spill loads.
    local: usize,
}

/// Returns the kernels in ptxas's log.
fn kernels(log: &str) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for line in log.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Sums the numbers that are `before` words before each `word`.
        let numbers = |word: &str, before: usize| -> usize {
            let at = words
                .iter()
                .enumerate()
                .filter(|(_, w)| w.trim_end_matches(',') == word)
                .map(|(i, _)| i);
            at.filter_map(|i| words[i.checked_sub(before)?].parse::<usize>().ok()).sum()
        };
        if line.contains("Compiling entry function") {
            let name = line.split('\'').nth(1).unwrap_or_default().to_string();
            kernels.push(Kernel { name, ..Kernel::default() });
        } else if let Some(kernel) = kernels.last_mut() {
            // "8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads", "Used 12 registers,
            // used 0 barriers"
            kernel.local += numbers("stack", 2) + numbers("spill", 2);
            kernel.registers += numbers("registers", 1);
        }
    }
    kernels
}

#[test]
fn the_log_is_parsed() {
    let log = "ptxas info    : 0 bytes gmem\n\
        ptxas info    : Compiling entry function 'f' for 'sm_90a'\n\
        ptxas info    : Function properties for f\n\
        ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
        ptxas info    : Used 12 registers, used 0 barriers\n\
        ptxas info    : Compiling entry function 'g' for 'sm_90a'\n\
        ptxas info    : Function properties for g\n\
        ptxas         .     8 bytes stack frame, 4 bytes spill stores, 2 bytes spill loads\n\
        ptxas info    : Used 255 registers, used 1 barriers, 8 bytes cumulative stack size\n";
    let found: Vec<_> = kernels(log).into_iter().map(|k| (k.name, k.registers, k.local)).collect();
    assert_eq!(found, [("f".to_string(), 12, 0), ("g".to_string(), 255, 14)]);
}

/// Keeps the programs that are compiled with `option`.
fn with_option(mut programs: Vec<Program>, option: &str) -> Vec<Program> {
    programs.retain(|program| program.options.iter().any(|other| other == option));
    programs
}

/// The architectures for which all programs are compiled, and must not spill. For the others, those
/// in bf16 are compiled, to save time.
const ALL: [Arch; 2] = [Arch { major: 8, minor: 0 }, Arch { major: 9, minor: 0 }];

/// Returns a GPU of each architecture.
fn gpus() -> [(Arch, Gpu); 6] {
    let arch = |major, minor| Arch { major, minor };
    let rtx_3090 = Gpu { clusters: [82, 0, 0, 0, 0], multiprocessors: 82, ..Gpu::RTX_4090 };
    let b200 = Gpu { clusters: [148, 74, 36, 16, 8], multiprocessors: 148, ..Gpu::H200 };
    let rtx_5090 =
        Gpu { cluster: 8, clusters: [170, 85, 40, 20, 0], multiprocessors: 170, ..Gpu::RTX_4090 };
    [
        (arch(8, 0), Gpu::A100),
        (arch(8, 6), rtx_3090),
        (arch(8, 9), Gpu::RTX_4090),
        (arch(9, 0), Gpu::H200),
        (arch(10, 0), b200),
        (arch(12, 0), rtx_5090),
    ]
}

#[test]
fn every_kernel_compiles_without_local_memory() {
    if !testing::nvrtc() {
        return;
    }
    let mut jobs: Vec<(&str, Arch, Program)> = Vec::new();
    for (arch, gpu) in gpus() {
        let lists = [
            ("elman", programs::all(&Elman, gpu)),
            ("gru", programs::all(&Gru, gpu)),
            ("lstm", programs::all(&Lstm, gpu)),
            ("slstm", programs::all(&Slstm, gpu)),
            // Five gates, which no single copy can load.
            ("twin", with_option(programs::all(&Twin, gpu), "-DHEAD_DIM=50")),
            // 17 gates: too many for the fused kernels, and for the registers of a tile of 8 units.
            ("many_gates", with_option(programs::all(&ManyGates, gpu), "-DELEMENT=float")),
        ];
        for (cell, mut list) in lists {
            if !ALL.contains(&arch) {
                list = with_option(list, "-DELEMENT=bf16");
            }
            for program in list {
                // Programs without a cell are in every cell's list.
                if !jobs.iter().any(|(_, at, other)| *at == arch && *other == program) {
                    jobs.push((cell, arch, program));
                }
            }
        }
    }
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some((cell, arch, program)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let what = format!(
                "{cell:<6} {}.{} {} {}",
                arch.major,
                arch.minor,
                program.name,
                program.options.join(" ")
            );
            let report = match compile(program, *arch) {
                Ok(compiled) => kernels(&compiled.log),
                Err(error) => {
                    failures.lock().unwrap().push(format!("{what}: {error}"));
                    continue;
                }
            };
            let listed: Vec<_> =
                report.iter().map(|k| format!("{} {}", k.name, k.registers)).collect();
            println!("{what}: registers: {}", listed.join(", "));
            if report.is_empty() {
                failures
                    .lock()
                    .unwrap()
                    .push(format!("{what}: the compiler's log names no kernel"));
            }
            let allowed = match *cell {
                "many_gates" => usize::MAX,
                _ if ALL.contains(arch) => 0,
                _ => 128,
            };
            for kernel in report.iter().filter(|kernel| kernel.local > allowed) {
                failures.lock().unwrap().push(format!(
                    "{what}: {} bytes of local memory in {}",
                    kernel.local, kernel.name
                ));
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    println!("{} programs, {} failures", jobs.len(), failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
