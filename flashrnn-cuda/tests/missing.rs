//! What is missing is an error in words, never a panic. Runs with and without a GPU.

use flashrnn_core::Error;
use flashrnn_cuda::Cuda;

#[test]
fn a_missing_device_is_an_error_in_words() {
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
fn the_first_device_is_there_or_an_error_says_what_is_missing() {
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

/// Libraries that are broken.
#[cfg(target_os = "linux")]
mod broken {
    use std::path::Path;
    use std::process::Command;

    use flashrnn_cuda::{Cuda, libraries};

    /// Set in the processes that `broken_libraries_are_named` starts.
    const CHILD: &str = "FLASHRNN_TEST_MISSING_CHILD";

    /// A driver's library with these functions, in C.
    const VERSION_13: &str = "int cuDriverGetVersion(int* v) { *v = 13000; return 0; }";
    const VERSION_11: &str = "int cuDriverGetVersion(int* v) { *v = 11000; return 0; }";
    const FAILS: &str = "int cuDriverGetVersion(int* v) { return 999; }";
    const UNDEFINED: &str =
        "extern int nowhere(void); int cuDriverGetVersion(int* v) { return nowhere(); }";
    const INIT: &str = "int cuInit(unsigned flags) { return 0; }";
    const ONE_DEVICE: &str = "int cuDeviceGetCount(int* n) { *n = 1; return 0; }";

    /// Libraries that lack functions, fail or are none, each found first by the loader: another
    /// process says what it sees.
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
            // Where a true driver lies under another name of the loader's, what is no library is
            // passed over.
            let passed_over = want == "libcuda.so" && seen.contains("device found");
            assert!(seen.contains(want) || passed_over, "driver {i}: {want} is not in:\n{seen}");
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

    /// What another process says of a device and of the libraries, with `folder` first where the
    /// loader looks.
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

    /// A part of the test above; alone, it does nothing.
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
