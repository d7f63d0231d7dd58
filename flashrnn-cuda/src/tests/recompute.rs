//! The kernels `previous_h` and `pad`, compared with the host.

use flashrnn_core::{Element, Elman, bf16, f16};

use super::{cuda, number};
use crate::backend::Cuda;
use crate::call::Sizes;
use crate::kernels::launch::{Launch, argument};
use crate::programs::{self, CellSource};
use crate::select::step::depth as depth_of;

/// Checks that `previous_h` has the same bits as the host's computation, for rows of D elements
/// that start `offset` elements after a multiple of 16 bytes.
fn check_previous_h<T: Element + PartialEq>(
    cuda: &Cuda,
    head_dim: usize,
    offset: usize,
    forwards: bool,
) {
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let program = programs::recompute(&CellSource::new(&Elman), T::DTYPE);
    let kernel = cuda.kernels.module(&program).unwrap().kernel("previous_h").unwrap();
    let (batch, time, heads, depth) = (3, 5, 7, depth_of(head_dim, size_of::<T>()));
    let units = heads * head_dim;
    let token = |row: usize, position: usize| {
        if forwards { row * time + position } else { position * batch + row }
    };

    let h: Vec<T> =
        (0..offset + batch * time * units).map(|i| T::from_f64(number(i).into())).collect();
    let s0: Vec<f32> = (0..batch * units).map(|i| number(7 * i + 3)).collect();
    let (lengths, resets) = ([5, 3, 0], [0_u8, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0]);
    let mut want = vec![T::from_f64(0.0); batch * time * heads * depth];
    for (row, length) in lengths.into_iter().enumerate() {
        let at = |step: usize| token(row, if forwards { step } else { length - 1 - step });
        for step in (0..length).filter(|&step| resets[at(step)] == 0) {
            for (head, k) in (0..heads).flat_map(|head| (0..head_dim).map(move |k| (head, k))) {
                let unit = head * head_dim + k;
                want[(at(step) * heads + head) * depth + k] = match step {
                    0 => T::from_f64(s0[row * units + unit].into()),
                    _ => h[offset + at(step - 1) * units + unit],
                };
            }
        }
    }

    let (h_on, s0_on) = (device.upload(&h).unwrap(), device.upload(&s0).unwrap());
    let (lengths_on, resets_on) =
        (device.upload(&lengths.map(|n| n as i32)).unwrap(), device.upload(&resets).unwrap());
    // Filled with a value, so that unwritten elements differ.
    let out = device.upload(&vec![T::from_f64(9.0); want.len()]).unwrap();
    let size = |n: usize| n as i32;
    let mut sizes = Sizes {
        batch: size(batch),
        time: size(time),
        heads: size(heads),
        head_dim: size(head_dim),
        depth: size(depth),
        time_major: (!forwards).into(),
        reverse: (!forwards).into(),
    };
    let mut addresses = [
        h_on.ptr() + (offset * size_of::<T>()) as u64,
        s0_on.ptr(),
        lengths_on.ptr(),
        resets_on.ptr(),
        out.ptr(),
    ];
    let mut arguments = vec![argument(&mut sizes)];
    arguments.extend(addresses.iter_mut().map(argument));
    // SAFETY: the kernel takes (Sizes, const T*, const float*, const int*, const unsigned char*,
    // T*), and the tensors have these sizes.
    unsafe {
        kernel
            .launch(cuda.stream().cu_stream(), &Launch::new([1, 1, 1], 256), &mut arguments)
            .unwrap()
    };
    let got = device.download(out.view()).unwrap();
    let differ = (0..got.len()).find(|&i| got[i] != want[i]);
    assert_eq!(differ, None, "{} D {head_dim} offset {offset} forwards {forwards}", T::DTYPE);
}

/// Checks that `pad` returns the same as the host's computation, for rows that start `offset`
/// elements after a multiple of 16 bytes.
fn check_pad<T: Element + PartialEq>(cuda: &Cuda, head_dim: usize, offset: usize) {
    let device = &cuda.device;
    let _entered = device.enter().unwrap();
    let program = programs::recompute(&CellSource::new(&Elman), T::DTYPE);
    let kernel = cuda.kernels.module(&program).unwrap().kernel("pad").unwrap();
    let (count, depth) = (37, depth_of(head_dim, size_of::<T>()));
    let rows: Vec<T> =
        (0..offset + count * head_dim).map(|i| T::from_f64(number(i).into())).collect();
    let mut want = vec![T::from_f64(0.0); count * depth];
    for (to, from) in want.chunks_exact_mut(depth).zip(rows[offset..].chunks_exact(head_dim)) {
        to[..head_dim].copy_from_slice(from);
    }
    let from = device.upload(&rows).unwrap();
    // Filled with a value, so that unwritten elements differ.
    let out = device.upload(&vec![T::from_f64(9.0); want.len()]).unwrap();
    let (mut first, mut to) = (from.ptr() + (offset * size_of::<T>()) as u64, out.ptr());
    let (mut rows, mut head_dim_on, mut depth_on) = (count as i64, head_dim as i32, depth as i32);
    let mut arguments = [
        argument(&mut first),
        argument(&mut rows),
        argument(&mut head_dim_on),
        argument(&mut depth_on),
        argument(&mut to),
    ];
    // SAFETY: the kernel takes (const T*, Offset, int, int, T*), and the tensors have these sizes.
    unsafe {
        kernel
            .launch(cuda.stream().cu_stream(), &Launch::new([2, 1, 1], 256), &mut arguments)
            .unwrap()
    };
    let got = device.download(out.view()).unwrap();
    let differ = (0..got.len()).find(|&i| got[i] != want[i]);
    assert_eq!(differ, None, "{} D {head_dim} offset {offset}", T::DTYPE);
}

#[test]
fn a_kernel_pads_rows() {
    let Some((cuda, _alone)) = cuda() else { return };
    for (head_dim, offset) in [(1, 0), (33, 0), (33, 1), (50, 0), (100, 2), (257, 1), (300, 0)] {
        check_pad::<f32>(&cuda, head_dim, offset);
        check_pad::<bf16>(&cuda, head_dim, offset);
        check_pad::<f16>(&cuda, head_dim, offset);
    }
}

#[test]
fn a_kernel_gathers_the_previous_h() {
    let Some((cuda, _alone)) = cuda() else { return };
    for (head_dim, offset) in
        [(64, 0), (40, 0), (40, 1), (40, 2), (50, 0), (8, 0), (4, 0), (33, 0), (33, 1), (1, 3)]
    {
        for forwards in [true, false] {
            check_previous_h::<f32>(&cuda, head_dim, offset, forwards);
            check_previous_h::<bf16>(&cuda, head_dim, offset, forwards);
            check_previous_h::<f16>(&cuda, head_dim, offset, forwards);
        }
    }
}
