//! Whatever is missing is reported as an error, never by a panic. Runs with and without a GPU.

use flashrnn_core::Error;
use flashrnn_cuda::Cuda;

#[test]
fn a_missing_device_is_an_error() {
    for ordinal in [999, usize::MAX] {
        match Cuda::with_device(ordinal) {
            Err(Error::Device(text)) => {
                println!("{text}");
                let expected = ["driver", &format!("no CUDA device {ordinal}")];
                assert!(expected.iter().any(|part| text.to_string().contains(part)), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_first_device_opens_or_an_error_says_what_is_missing() {
    match Cuda::new() {
        Ok(cuda) => println!("{cuda:?}, driver for CUDA {}", cuda.driver_version()),
        Err(Error::Device(text)) => {
            println!("{text}");
            assert!(
                text.to_string().contains("driver")
                    || text.to_string().contains("compute capability"),
                "{text}"
            );
        }
        Err(other) => panic!("{other}"),
    }
}

/// Tests with broken libraries.
#[cfg(target_os = "linux")]
mod broken {
    use std::path::Path;
    use std::process::Command;

    use flashrnn_cuda::{Cuda, libraries};

    /// An environment variable that is set in the processes that the test starts.
    const CHILD: &str = "FLASHRNN_TEST_MISSING_CHILD";

    /// C functions of libraries that pose as the driver.
    const VERSION_13: &str = "int cuDriverGetVersion(int* v) { *v = 13000; return 0; }";
    const VERSION_11: &str = "int cuDriverGetVersion(int* v) { *v = 11000; return 0; }";
    const FAILS: &str = "int cuDriverGetVersion(int* v) { return 999; }";
    const UNDEFINED: &str =
        "extern int nowhere(void); int cuDriverGetVersion(int* v) { return nowhere(); }";
    const INIT: &str = "int cuInit(unsigned flags) { return 0; }";
    const ONE_DEVICE: &str = "int cuDeviceGetCount(int* n) { *n = 1; return 0; }";

    /// If the loader finds a broken library first, the error names it. Broken means that the
    /// library lacks functions, fails, or is not a library.
    #[test]
    fn broken_libraries_are_named() {
        if std::env::var_os(CHILD).is_some() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("library.c"), folder.path().join("library.so"));
        let compiled = |text: &str| {
            std::fs::write(&source, text).unwrap();
            let cc = Command::new("cc")
                .args(["-shared", "-fPIC", "-o"])
                .args([&library, &source])
                .status();
            cc.is_ok_and(|status| status.success()).then(|| std::fs::read(&library).unwrap())
        };
        let Some(nothing) = compiled("int nothing;") else {
            println!("skipped: there is no C compiler");
            return;
        };
        let lacks = "has no cu";
        let drivers = [
            (vec![], "libcuda.so"),
            (b"not a library".to_vec(), "libcuda.so"),
            (nothing[..200].to_vec(), "libcuda.so"),
            (nothing.clone(), "libcuda.so has no cuDriverGetVersion"),
            (compiled(VERSION_13).unwrap(), lacks),
            (compiled(&[VERSION_13, INIT].join("\n")).unwrap(), lacks),
            (compiled(&[VERSION_13, INIT, ONE_DEVICE].join("\n")).unwrap(), lacks),
            (compiled(&[VERSION_11, INIT].join("\n")).unwrap(), "supports CUDA 11.0"),
            (compiled(FAILS).unwrap(), "failed (error 999)"),
            (compiled(UNDEFINED).unwrap(), "libcuda.so"),
        ];
        let lib = tempfile::tempdir().unwrap();
        for (i, (content, want)) in drivers.into_iter().enumerate() {
            std::fs::write(lib.path().join("libcuda.so"), content).unwrap();
            let seen = what_a_process_sees(lib.path());
            // The loader ignores a file that is not a library, and may then find a real driver
            // under another name.
            let ignored = want == "libcuda.so" && seen.contains("device found");
            assert!(seen.contains(want) || ignored, "driver {i}: {want} is not in:\n{seen}");
        }
        std::fs::remove_file(lib.path().join("libcuda.so")).unwrap();
        let nvrtc = "int nvrtcGetLTOIR(void) { return 0; }";
        let cublas = "int cublasGemmBatchedEx_64(void) { return 0; }";
        for (stem, some, prefix) in [("nvrtc", nvrtc, "nvrtc"), ("cublas", cublas, "cublas")] {
            for content in [nothing.clone(), compiled(some).unwrap()] {
                std::fs::write(lib.path().join(format!("lib{stem}.so")), content).unwrap();
                let seen = what_a_process_sees(lib.path());
                let want = format!("lib{stem}.so has no {prefix}");
                assert!(seen.contains(&want), "{want} is not in:\n{seen}");
            }
        }
    }

    /// Returns what another process prints about GPUs and libraries. Its loader searches `folder`
    /// first.
    fn what_a_process_sees(folder: &Path) -> String {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "broken::in_another_process", "--nocapture"])
            .env(CHILD, "1")
            .env("LD_LIBRARY_PATH", folder)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr]
            .map(|part| String::from_utf8_lossy(&part).into_owned())
            .concat();
        assert!(output.status.success() && !text.contains("panicked"), "{}: {text}", output.status);
        text
    }

    /// The part of the test above that runs in other processes. Does nothing on its own.
    #[test]
    fn in_another_process() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        match Cuda::new() {
            Ok(_) => println!("device found"),
            Err(why) => println!("{why}"),
        }
        libraries().iter().for_each(|library| println!("{library:?}"));
    }
}
