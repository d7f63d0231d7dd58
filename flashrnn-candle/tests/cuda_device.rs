//! Tests layers on tensors of CUDA devices: streams, dropped outputs, devices that do not go
//! together. The other tests run on these devices too. Needs a GPU.

use std::thread;

use candle_core::{DType, Device, Error, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use flashrnn::Options;
use flashrnn_candle::{Lstm, Recurrence, RnnConfig, SequenceOptions};

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Makes an LSTM with the same parameters on every device.
fn lstm(device: &Device, input: usize, hidden: usize) -> Result<(VarMap, Lstm)> {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F32, device);
    let config = RnnConfig { heads: 2, ..RnnConfig::default() };
    let lstm = Lstm::new(input, hidden, config, vb)?;
    for (name, var) in map.data().lock().expect("no panic").iter() {
        let phase = name.len() as f64;
        let values = Tensor::arange(0f32, var.elem_count() as f32, &Device::Cpu)?;
        let values = ((values + phase)?.sin()? * 0.2)?.reshape(var.dims())?;
        var.set(&values.to_device(device)?)?;
    }
    Ok((map, lstm))
}

fn wave(device: &Device, dims: (usize, usize, usize), phase: f64) -> Result<Tensor> {
    let len = dims.0 * dims.1 * dims.2;
    let values = (Tensor::arange(0f32, len as f32, &Device::Cpu)? * 0.37)?;
    (values + phase)?.sin()?.reshape(dims)?.to_device(device)
}

/// Returns h, and the gradient of every parameter, of a forward and a backward pass.
fn pass(map: &VarMap, lstm: &Lstm, x: &Tensor) -> Result<Vec<Vec<f32>>> {
    let h = lstm.forward(x, &SequenceOptions::default(), true)?.h;
    let grads = h.sqr()?.sum_all()?.backward()?;
    let mut results = vec![values(&h)?];
    let data = map.data().lock().expect("no panic");
    let mut names: Vec<&String> = data.keys().collect();
    names.sort();
    for name in names {
        results.push(values(grads.get(&data[name]).expect("a gradient"))?);
    }
    Ok(results)
}

/// Each device has a stream of its own. Threads of two devices and of one compute at the same time.
#[test]
fn streams_do_not_disturb_each_other() -> Result<()> {
    let one = Device::new_cuda_with_stream(0)?;
    let two = Device::new_cuda_with_stream(0)?;
    let per_thread = Device::new_cuda(0)?;
    let dims = (8, 300, 16);
    let (map, reference) = lstm(&one, 16, 64)?;
    let want: Vec<_> = (0..4)
        .map(|i| pass(&map, &reference, &wave(&one, dims, f64::from(i))?))
        .collect::<Result<_>>()?;
    let work = |device: &Device| -> Result<()> {
        let (map, lstm) = lstm(device, 16, 64)?;
        for round in 0..20 {
            let i = round % 4;
            let got = pass(&map, &lstm, &wave(device, dims, i as f64)?)?;
            assert!(got == want[i], "round {round} on {device:?}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let devices = [&one, &two, &per_thread, &per_thread];
        let threads = devices.map(|device| scope.spawn(|| work(device)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

/// The memory of dropped outputs is reused while the kernels that write it may still run.
#[test]
fn outputs_may_be_dropped_at_once() -> Result<()> {
    for device in [Device::new_cuda(0)?, Device::new_cuda_with_stream(0)?] {
        let (map, lstm) = lstm(&device, 16, 64)?;
        let x = wave(&device, (8, 200, 16), 0.0)?;
        let others: Vec<_> =
            (1..5).map(|i| wave(&device, (8, 200, 16), f64::from(i))).collect::<Result<_>>()?;
        let want = pass(&map, &lstm, &x)?;
        for i in 0..1000 {
            let out = lstm.forward(&others[i % 4], &SequenceOptions::default(), true)?;
            match i % 3 {
                0 => drop(out),
                1 => drop(out.h.backward()?),
                _ => {
                    let h = out.h;
                    drop(out.last);
                    // Takes the memory of what was dropped.
                    let mine = Tensor::full(f32::NAN, (8, 200, 64), &device)?;
                    drop((h + mine)?);
                }
            }
            if i % 100 == 99 {
                assert!(pass(&map, &lstm, &x)? == want, "after {i} calls on {device:?}");
            }
        }
    }
    Ok(())
}

fn message<X>(result: Result<X>) -> String {
    result.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn tensors_on_two_devices_are_an_error() -> Result<()> {
    let gpu = Device::new_cuda(0)?;
    let (_, on_gpu) = lstm(&gpu, 3, 8)?;
    let (_, on_cpu) = lstm(&Device::Cpu, 3, 8)?;
    let none = SequenceOptions::default();
    let x = wave(&gpu, (2, 5, 3), 0.0)?;
    let host_x = wave(&Device::Cpu, (2, 5, 3), 0.0)?;
    let says = |result: Result<flashrnn_candle::RnnOutput>, wanted: &str| {
        let text = message(result);
        assert!(text.contains(wanted), "{text:?} does not contain {wanted:?}");
    };
    says(
        on_gpu.forward(&host_x, &none, false),
        "x is on the CPU and w is on CUDA device 0, wanted",
    );
    says(on_cpu.forward(&x, &none, false), "x is on CUDA device 0 and w is on the CPU, wanted one");
    let lengths = Tensor::new(&[5u32, 2], &Device::Cpu)?;
    let host_lengths = SequenceOptions { lengths: Some(&lengths), ..none };
    says(on_gpu.forward(&x, &host_lengths, false), "lengths is on the CPU");
    let again = wave(&Device::new_cuda(0)?, (2, 5, 3), 0.0)?;
    says(on_gpu.forward(&again, &none, false), "two values of candle's Device");
    says(on_gpu.freeze()?.forward(&host_x, &none), "the frozen w is on CUDA device 0");
    // f64 is for the CPU.
    let wide = Tensor::zeros((1, 2, 4, 1, 3), DType::F64, &gpu)?;
    let r = Tensor::zeros((4, 1, 3, 3), DType::F64, &gpu)?;
    let b = Tensor::zeros((4, 1, 3), DType::F64, &gpu)?;
    let text = message(Recurrence::new(flashrnn::Lstm).forward(&wide, &r, &b, &none));
    assert!(text.contains("f64"), "{text}");
    Ok(())
}

/// On a GPU, lengths are not read back to be checked.
#[test]
fn lengths_beyond_the_sequence_are_clamped() -> Result<()> {
    let gpu = Device::new_cuda_with_stream(0)?;
    let (_, lstm) = lstm(&gpu, 3, 8)?;
    let x = wave(&gpu, (3, 5, 3), 0.0)?;
    let run = |lengths: Tensor| -> Result<Vec<f32>> {
        let options = SequenceOptions { lengths: Some(&lengths), ..SequenceOptions::default() };
        values(&lstm.forward(&x, &options, false)?.h)
    };
    let want = run(Tensor::new(&[5u32, 2, 0], &gpu)?)?;
    assert!(run(Tensor::new(&[9u32, 2, 0], &gpu)?)? == want);
    assert!(run(Tensor::new(&[5i64, 2, 0], &gpu)?)? == want);
    assert!(run(Tensor::new(&[5u8, 2, 0], &gpu)?)? == want);
    Ok(())
}

/// TF32 products are allowed where the option says so, and only there.
#[test]
fn tf32_is_an_option() -> Result<()> {
    let gpu = Device::new_cuda_with_stream(0)?;
    let spread = |dims: &[usize], scale: f64| -> Result<Tensor> {
        let len = dims.iter().product::<usize>();
        let values = (Tensor::arange(0f32, len as f32, &Device::Cpu)? * 0.618)?.sin()?;
        (values * scale)?.reshape(dims)?.to_device(&gpu)
    };
    let wx = Var::from_tensor(&spread(&[4, 50, 4, 1, 64], 1.0)?)?;
    let (r, b) = (spread(&[4, 1, 64, 64], 0.1)?, spread(&[4, 1, 64], 0.1)?);
    let run = |tf32: bool| -> Result<Vec<f32>> {
        let rnn = Recurrence::new(flashrnn::Lstm).with(Options { tf32, ..Options::default() });
        let h = rnn.forward(&wx, &r, &b, &SequenceOptions::default())?.h;
        let grads = h.sum_all()?.backward()?;
        let d_wx = grads.get(&wx).ok_or_else(|| Error::msg("no gradient"))?;
        Ok([values(&h)?, values(d_wx)?].concat())
    };
    let (exact, rounded) = (run(false)?, run(true)?);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    let error = norm(&mut exact.iter().zip(&rounded).map(|(a, b)| a - b))
        / norm(&mut exact.iter().copied());
    assert!(error < 3e-3, "{error}");
    Ok(())
}
