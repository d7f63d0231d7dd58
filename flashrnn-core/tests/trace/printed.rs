//! Tests the printed CUDA C++ and WGSL.

use std::collections::HashSet;
use std::path::Path;

use flashrnn_core::trace::print::{cuda, wgsl};
use flashrnn_core::{Cell, Elman, Gru, Lstm, Slstm};

use crate::cells::{Everything, Leaky, MinimalGated};

const UPDATE: &str = "FLASHRNN_UPDATE_SNAPSHOTS";

/// Compares the texts of `cell` with the files in `tests/snapshots`, or updates those files.
fn snapshot<C: Cell>(cell: &C) {
    for (ending, text) in [("cuh", cuda::cell(cell)), ("wgsl", wgsl::cell(cell))] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
        let file = folder.join(format!("{}.{ending}", C::NAME));
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&file, &text).expect("the folder of snapshots is writable");
        }
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            kept == text,
            "{} differs from the text printed now. Run `{UPDATE}=1 cargo test -p flashrnn-core` \
             to update it:\n{text}",
            file.display()
        );
    }
}

#[test]
fn elman() {
    snapshot(&Elman);
}

#[test]
fn gru() {
    snapshot(&Gru);
}

#[test]
fn lstm() {
    snapshot(&Lstm);
}

#[test]
fn slstm() {
    snapshot(&Slstm);
}

#[test]
fn minimal_gated() {
    snapshot(&MinimalGated);
}

/// Every local has a distinct, valid C++ name and is defined before it is used.
#[test]
fn names_are_safe() {
    let text = cuda::cell(&Everything);
    assert!(
        text.starts_with(
            "// Cell `every?thing */ ?`, printed from its Rust definition.\nstruct Cell {\n"
        ),
        "{text}"
    );
    for function in text.split("static __device__").skip(1) {
        let mut names = HashSet::from(["s", "g", "d", "residuals", "real"]);
        for line in function.lines().skip(1) {
            let Some((left, right)) = line.trim().trim_end_matches(';').split_once(" = ") else {
                continue;
            };
            let words = right
                .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == ':'));
            for word in words.filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic())) {
                assert!(
                    names.contains(word) || word.starts_with("real::"),
                    "{word} is used before `{line}`"
                );
            }
            let Some(name) = left.strip_prefix("const float ").or(left.strip_prefix("const bool "))
            else {
                continue;
            };
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.contains("__"),
                "{name}"
            );
            assert!(names.insert(name), "{name} is defined twice");
        }
    }
    for name in ["s_h", "s_class", "s_2", "g_h", "g_x_y", "g_x_y_2", "g_2", "d_class"] {
        assert!(text.contains(&format!("const float {name} = ")), "{name}:\n{text}");
    }
    assert!(text.contains("WIDE = 0x6, WIDE_GATES = 0x0, CONSTANT = 0x4;"), "{text}");
}

/// A cell's parameter is printed without loss.
#[test]
fn literals_are_exact() {
    let printed = |a| cuda::cell(&Leaky { a });
    for a in [
        0.3,
        -0.3,
        1.0 / 3.0,
        2.0,
        16777217.0,
        1e-7,
        3e38,
        1e-40,
        f32::MAX as f64,
        f32::MIN_POSITIVE as f64,
    ] {
        let text = printed(a);
        let read = text
            .lines()
            .find_map(|line| line.split_once(" = ")?.1.split_once("f * v")?.0.parse().ok());
        assert_eq!(read.map(f32::to_bits), Some((a as f32).to_bits()), "{a}:\n{text}");
    }
    for (a, literal) in [
        (f64::INFINITY, " real::inf() * "),
        (f64::NEG_INFINITY, " -real::inf() * "),
        (1e39, " real::inf() * "),
        (f64::NAN, " real::nan() * "),
        (-0.0, " -0.0f * "),
        (0.0, " 0.0f * "),
    ] {
        assert!(printed(a).contains(literal), "{a}:\n{}", printed(a));
    }
    assert_ne!(printed(0.3), printed(0.30001));
}

/// WGSL has no literals for NaN and infinities, and takes the operands of `select` in the other
/// order.
#[test]
fn wgsl_literals_and_selects() {
    let printed = |a| wgsl::cell(&Leaky { a });
    for (a, literal) in [
        (0.3, " 0.3f * "),
        (1e-7, " 1e-7f * "),
        (f64::INFINITY, " real_inf() * "),
        (f64::NEG_INFINITY, " -real_inf() * "),
        (f64::NAN, " real_nan() * "),
        (-0.0, " -0.0f * "),
    ] {
        assert!(printed(a).contains(literal), "{a}:\n{}", printed(a));
    }
    let slstm = wgsl::cell(&Slstm);
    // m' = max(i, l) where n > 0, else i, and v2 is i.
    assert!(slstm.contains("let v2: f32 = real_min(v1, 3.4028235e38f);"), "{slstm}");
    assert!(slstm.contains("= select(v2, "), "{slstm}");
}
