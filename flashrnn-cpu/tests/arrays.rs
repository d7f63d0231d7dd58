//! Calls on ndarray's arrays compute the same as calls on slices, for views of any strides, and
//! report wrong dimensions.

use flashrnn_core::{Backend, Error, Forward, Lstm, Plan, Problem};
use flashrnn_cpu::{Cpu, Inputs, OutputGradients};
use ndarray::{Array, Array3, Array4, Array5, Dimension};

fn ramp<D: Dimension>(shape: impl ndarray::ShapeBuilder<Dim = D>) -> Array<f32, D> {
    let mut i = 0_u32;
    Array::from_shape_simple_fn(shape, || {
        i += 1;
        (i * 37 % 101) as f32 / 50.0 - 1.0
    })
}

#[test]
fn arrays_compute_the_same_as_slices() {
    let (batch, time, heads, head_dim) = (3, 5, 2, 7);
    let plan =
        Cpu::new().plan::<f32, f32, _>(&Lstm, &Problem::new(batch, time, heads, head_dim)).unwrap();
    let wx: Array5<f32> = ramp((batch, time, 4, heads, head_dim));
    let (r, b): (Array4<f32>, Array3<f32>) =
        (ramp((4, heads, head_dim, head_dim)), ramp((4, heads, head_dim)));
    let weights = plan.pack_arrays(r.view(), b.view()).unwrap();

    // The same input with its axes in another order in memory.
    let mut scattered = wx.clone();
    scattered.swap_axes(0, 4);
    let mut scattered = scattered.as_standard_layout().to_owned();
    scattered.swap_axes(0, 4);
    assert!(scattered.as_slice().is_none() && scattered == wx);

    let out = plan.forward_arrays(&weights, &Inputs::new(scattered.view())).unwrap();
    let mut states = vec![f32::NAN; out.states.len()];
    let call =
        Forward { states: Some(&mut states[..]), ..Forward::new(&weights, wx.as_slice().unwrap()) };
    plan.forward(call).unwrap();
    assert_eq!(out.states.as_slice().unwrap(), &states[..]);

    let d = OutputGradients { d_states: Some(out.states.view()), d_last: Some(out.last.view()) };
    let plain = plan.backward_arrays(&weights, &Inputs::new(wx.view()), &out, &d).unwrap();
    let again = plan.backward_arrays(&weights, &Inputs::new(scattered.view()), &out, &d).unwrap();
    assert_eq!(
        (plain.d_wx, plain.d_r, plain.d_b, plain.d_s0),
        (again.d_wx, again.d_r, again.d_b, again.d_s0)
    );
}

#[test]
fn wrong_dimensions_are_reported() {
    let plan = Cpu::new().plan::<f32, f32, _>(&Lstm, &Problem::new(3, 5, 2, 7)).unwrap();
    let (r, b): (Array4<f32>, Array3<f32>) = (ramp((4, 2, 7, 7)), ramp((4, 2, 7)));
    let weights = plan.pack_arrays(r.view(), b.view()).unwrap();
    // The right number of elements, but with batch and time swapped.
    let wx: Array5<f32> = ramp((5, 3, 4, 2, 7));
    match plan.forward_arrays(&weights, &Inputs::new(wx.view())) {
        Err(Error::Shape { tensor: "wx", got, want }) => {
            assert_eq!((got, want), (vec![5, 3, 4, 2, 7], vec![3, 5, 4, 2, 7]));
        }
        other => panic!("{:?}", other.err()),
    }
}
