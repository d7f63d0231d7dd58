//! What there isn't is an error in words, never a panic. Runs with and without a GPU; the absence of single libraries is tested
//! in `src/library.rs`.

use flashrnn_core::Error;
use flashrnn_cuda::Cuda;

#[test]
fn a_missing_device_is_an_error_in_words() {
    for ordinal in [999, usize::MAX] {
        match Cuda::with_device(ordinal) {
            Err(Error::Device(text)) => {
                println!("{text}");
                let expected = ["driver", &format!("no CUDA device {ordinal}")];
                assert!(expected.iter().any(|part| text.contains(part)), "{text}");
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
            assert!(text.contains("driver") || text.contains("compute capability"), "{text}");
        }
        Err(other) => panic!("{other}"),
    }
}
