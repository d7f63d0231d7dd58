//! Tensors of more than 2³¹ elements.

use flashrnn_core::{Backend, Backward, Element, Elman, Forward, Plan, Problem, Result, f16};
use flashrnn_cuda::{Buffer, Cuda, Family};
use flashrnn_testsuite::random::Random;

use super::{cuda, memory};

/// `[B, T, N, D]`, slightly more than 2³¹ elements.
const LARGE: [usize; 4] = [4160, 8192, 1, 64];

/// Some rows of [`LARGE`]: the first ones, those around element 2³¹, and the last. There are as
/// many rows as in a tile of the large batch, so that the sums of a row are the same.
const ROWS: [usize; 16] =
    [0, 1, 2047, 2048, 4000, 4094, 4095, 4096, 4097, 4098, 4099, 4100, 4128, 4157, 4158, 4159];

#[test]
fn more_than_2_to_the_31_elements_in_one_kernel() -> Result<()> {
    large::<f16>(Family::Fused)
}

#[test]
fn more_than_2_to_the_31_elements_in_a_kernel_per_step() -> Result<()> {
    large::<f16>(Family::Alternating)
}

#[test]
fn more_than_2_to_the_31_elements_of_f32() -> Result<()> {
    large::<f32>(Family::Auto)
}

/// Runs Elman forward and backward. The outputs of [`ROWS`] must have the same bits as those of a
/// small problem with only these rows.
fn large<T: Element + PartialEq>(family: Family) -> Result<()> {
    let Some((cuda, _alone)) = cuda() else { return Ok(()) };
    let cuda = cuda.with_family(family);
    let [batch, time, heads, head_dim] = LARGE;
    let (row, elements) = (time * head_dim, batch * time * head_dim);
    assert!(elements > 1 << 31);
    // wx, h in states, gates, d_h and d_wx, and half as much again for the scratch memory of a
    // pass.
    let bytes = 15 * elements / 2 * size_of::<T>();
    let (free, _) = memory(&cuda);
    if free < bytes {
        println!(
            "skipped: {} GB of device memory are free, {} are needed",
            free >> 30,
            bytes >> 30
        );
        return Ok(());
    }
    let (wx, d_h) = (pattern::<T>(elements, 1.0), pattern::<T>(elements, 0.125));
    let mut random = Random::new(3);
    // Weights are f32, and so is d_b, because a sum over 34 million tokens exceeds the range of
    // f16.
    let mut values = |n: usize, deviation| -> Vec<f32> {
        random.normals(n, deviation).into_iter().map(|v| v as f32).collect()
    };
    let (r, b) = (values(head_dim * head_dim, 0.125), values(head_dim, 1.0));

    let part = |all: &[T]| ROWS.map(|i| &all[i * row..][..row]).concat();
    let small = Problem::new(ROWS.len(), time, heads, head_dim);
    let small = both_passes(&cuda, &small, [&part(&wx), &part(&d_h)], [&r, &b])?;
    let small_h = cuda.download(small.h.view())?;
    let small_d_wx = cuda.download(small.d_wx.view())?;
    drop(small);

    let large = Problem::new(batch, time, heads, head_dim);
    let large = both_passes(&cuda, &large, [&wx, &d_h], [&r, &b])?;
    for (i, at) in ROWS.into_iter().enumerate() {
        for (name, got, want) in [("h", &large.h, &small_h), ("d_wx", &large.d_wx, &small_d_wx)] {
            let got = cuda.download(got.view().slice(at * row..(at + 1) * row)?)?;
            let differ =
                got.iter().zip(&want[i * row..][..row]).filter(|(got, want)| got != want).count();
            assert_eq!(
                differ,
                0,
                "{}: {differ} of {row} elements of row {at} of {name} differ",
                T::DTYPE
            );
        }
    }

    // d_b is the sum of d_wx over all tokens.
    let (d_wx, d_b) = (cuda.download(large.d_wx.view())?, cuda.download(large.d_b.view())?);
    let mut sums = vec![0.0; head_dim];
    for token in d_wx.chunks_exact(head_dim) {
        sums.iter_mut().zip(token).for_each(|(sum, d)| *sum += d.to_f64());
    }
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut d_b.iter().zip(&sums).map(|(d, sum)| d.to_f64() - sum))
        / norm(&mut sums.iter().copied());
    println!("{}: d_b off by {off:.1e} from the sum of d_wx", T::DTYPE);
    // The f32 sum has 34 million terms, which nearly cancel, in at most 64 parts.
    assert!(off < 2e-3, "{off}");
    Ok(())
}

struct Passes<T> {
    h: Buffer<T>,
    d_wx: Buffer<T>,
    d_b: Buffer<f32>,
}

fn both_passes<T: Element>(
    cuda: &Cuda,
    problem: &Problem,
    [wx, d_h]: [&[T]; 2],
    [r, b]: [&[f32]; 2],
) -> Result<Passes<T>> {
    let plan = cuda.plan::<T, f32, _>(&Elman, problem)?;
    let (r, b, wx) = (cuda.upload(r)?, cuda.upload(b)?, cuda.upload(wx)?);
    let weights = plan.pack(r.view(), b.view())?;
    let mut h = cuda.alloc::<T>(wx.len())?;
    let mut saved = plan.saved()?;
    plan.forward(Forward {
        states: Some(h.view_mut()),
        saved: Some(saved.view_mut()),
        ..Forward::new(&weights, wx.view())
    })?;
    drop(wx);
    let d_h = cuda.upload(d_h)?;
    let (mut d_wx, mut d_r) = (cuda.alloc::<T>(h.len())?, cuda.alloc::<f32>(r.len())?);
    let mut d_b = cuda.alloc::<f32>(b.len())?;
    plan.backward(Backward {
        d_h: Some(d_h.view()),
        d_r: Some(d_r.view_mut()),
        d_b: Some(d_b.view_mut()),
        ..Backward::new(&weights, h.view(), saved.view(), d_wx.view_mut())
    })?;
    cuda.synchronize()?;
    Ok(Passes { h, d_wx, d_b })
}

/// Returns `len` normally distributed numbers that repeat with a prime period, so that all rows
/// differ.
fn pattern<T: Element>(len: usize, deviation: f64) -> Vec<T> {
    let base: Vec<T> =
        Random::new(1).normals(1_000_003, deviation).into_iter().map(T::from_f64).collect();
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&base[..base.len().min(len - all.len())]);
    }
    all
}
