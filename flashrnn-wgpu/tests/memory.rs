//! Memory of the caller: views of buffers, workspaces, other devices, and buffers used in several
//! ways.

use bytemuck::Pod;
use flashrnn_core::{
    Backend, Backward, Dtype, Element, Elman, Error, Forward, Gru, Options, Plan, Problem, Save,
    SavedMut, SavedRef, Slstm, Step, f16,
};
use flashrnn_testsuite::{Case, Results, Tensors, compare, run};
use flashrnn_wgpu::{Buffer, Family, View, ViewMut, Wgpu, testing};
use wgpu::BufferUsages as Usages;

const ALL: Usages = Usages::STORAGE.union(Usages::COPY_SRC).union(Usages::COPY_DST);

fn buffer(wgpu: &Wgpu, size: usize, usage: Usages) -> wgpu::Buffer {
    let descriptor =
        wgpu::BufferDescriptor { label: None, size: size as u64, usage, mapped_at_creation: false };
    wgpu.device().create_buffer(&descriptor)
}

/// Collects tensors for one buffer, one after another. 16-bit tensors begin at an odd element. The
/// last tensor ends at the end of the buffer.
#[derive(Default)]
struct Arena {
    bytes: Vec<u8>,
}

impl Arena {
    /// Adds a tensor. Returns the index of its first element, and its length.
    fn put<P: Pod>(&mut self, data: &[P]) -> [usize; 2] {
        let odd = if size_of::<P>() == 2 { 2 } else { 0 };
        self.bytes.resize(self.bytes.len().next_multiple_of(4) + odd, 0xff);
        let first = self.bytes.len() / size_of::<P>();
        self.bytes.extend_from_slice(bytemuck::cast_slice(data));
        [first, data.len()]
    }

    /// Adds numbers as `T`.
    fn numbers<T: Element>(&mut self, values: &[f64]) -> [usize; 2] {
        self.put(&values.iter().map(|&v| T::from_f64(v)).collect::<Vec<_>>())
    }

    /// Adds an output, filled with NaN.
    fn room<T: Element>(&mut self, len: usize) -> [usize; 2] {
        self.numbers::<T>(&vec![f64::NAN; len])
    }

    fn into_buffer(mut self, wgpu: &Wgpu) -> wgpu::Buffer {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0xff);
        let buffer = buffer(wgpu, self.bytes.len(), ALL);
        wgpu.queue().write_buffer(&buffer, 0, &self.bytes);
        buffer
    }
}

fn view<P>(buffer: &wgpu::Buffer, [first, len]: [usize; 2]) -> View<'_, P> {
    View::of(buffer, first, len).unwrap()
}

fn view_mut<P>(buffer: &wgpu::Buffer, [first, len]: [usize; 2]) -> ViewMut<'_, P> {
    ViewMut::of(buffer, first, len).unwrap()
}

/// Runs a forward and a backward pass with all tensors in three buffers, according to their use,
/// and the workspace in a fourth.
fn in_arenas<T: Element>(wgpu: &Wgpu, case: &Case) -> Results {
    let plan = wgpu.plan::<T, T, _>(&Slstm, &case.problem).unwrap();
    let shapes = plan.shapes();
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    let x = &case.inputs;

    let (mut given, mut between, mut out) = (Arena::default(), Arena::default(), Arena::default());
    let s0 = x.s0.as_ref().map(|s0| given.numbers::<T::Wide>(s0));
    let resets = x.resets.as_ref().map(|resets| given.put(resets));
    let lengths = x.lengths.as_ref().map(|lengths| given.put(lengths));
    let d_last = case.d.d_last.as_ref().map(|d| given.numbers::<T::Wide>(d));
    let d_states = case.d.d_states.as_ref().map(|d| given.numbers::<T>(d));
    let [r, b, wx] = [&x.r, &x.b, &x.wx].map(|values| given.numbers::<T>(values));
    let [gates, wide] = shapes.saved::<T>(case.problem.options.save);
    let wide = between.room::<T::Wide>(wide);
    let last = between.room::<T::Wide>(size(&shapes.state()));
    let [h, gates, states] =
        [size(&shapes.h()), gates, size(&shapes.states())].map(|len| between.room::<T>(len));
    let d_s0 = out.room::<T::Wide>(size(&shapes.state()));
    let [d_r, d_b, d_wx] =
        [size(&shapes.r()), size(&shapes.b()), size(&shapes.wx())].map(|len| out.room::<T>(len));
    let [given, between, out] = [given, between, out].map(|arena| arena.into_buffer(wgpu));
    let bytes = plan.forward_workspace().bytes.max(plan.backward_workspace().bytes);
    let scratch = buffer(wgpu, bytes + 512, ALL);
    wgpu.queue().write_buffer(&scratch, 0, &vec![0xff; bytes + 512]);
    let workspace = || Some(view_mut::<u8>(&scratch, [256, bytes]));

    let weights = plan.pack(view(&given, r), view(&given, b)).unwrap();
    plan.forward(Forward {
        s0: s0.map(|s0| view(&given, s0)),
        lengths: lengths.map(|lengths| view(&given, lengths)),
        resets: resets.map(|resets| view(&given, resets)),
        h: Some(view_mut(&between, h)),
        states: Some(view_mut(&between, states)),
        last: Some(view_mut(&between, last)),
        saved: Some(SavedMut { gates: view_mut(&between, gates), wide: view_mut(&between, wide) }),
        workspace: workspace(),
        ..Forward::new(&weights, view(&given, wx))
    })
    .unwrap();
    let saved = SavedRef { gates: view(&between, gates), wide: view(&between, wide) };
    plan.backward(Backward {
        wx: Some(view(&given, wx)),
        s0: s0.map(|s0| view(&given, s0)),
        lengths: lengths.map(|lengths| view(&given, lengths)),
        resets: resets.map(|resets| view(&given, resets)),
        d_states: d_states.map(|d_states| view(&given, d_states)),
        d_last: d_last.map(|d_last| view(&given, d_last)),
        d_r: Some(view_mut(&out, d_r)),
        d_b: Some(view_mut(&out, d_b)),
        d_s0: Some(view_mut(&out, d_s0)),
        workspace: workspace(),
        ..Backward::new(&weights, view(&between, states), saved, view_mut(&out, d_wx))
    })
    .unwrap();

    let mut results = Results::default();
    let mut push = |name, numbers: Vec<f64>| results.push(name, numbers);
    let narrow = |buffer, at| -> Vec<f64> {
        wgpu.download(view::<T>(buffer, at)).unwrap().into_iter().map(T::to_f64).collect()
    };
    let wide = |buffer, at| -> Vec<f64> {
        wgpu.download(view::<T::Wide>(buffer, at))
            .unwrap()
            .into_iter()
            .map(T::Wide::to_f64)
            .collect()
    };
    push("h", narrow(&between, h));
    push("states", narrow(&between, states));
    push("last", wide(&between, last));
    push("d_wx", narrow(&out, d_wx));
    push("d_r", narrow(&out, d_r));
    push("d_b", narrow(&out, d_b));
    push("d_s0", wide(&out, d_s0));
    results
}

/// Compares results for tensors in parts of buffers with results for tensors in buffers of their
/// own. 16-bit tensors that begin at an odd element use other kernels, which a GPU's compiler may
/// round differently.
fn check<T: Element>(wgpu: &Wgpu, problem: &Problem, what: &str) {
    let case = Case::random::<_, T, T>(&Slstm, problem, Tensors::ALL, 9).unwrap();
    let (got, want) =
        (in_arenas::<T>(wgpu, &case), run::<_, _, T, T>(wgpu, &Slstm, &case).unwrap());
    if wgpu.is_cpu() || T::DTYPE == Dtype::F32 {
        assert_eq!(got, want, "{what}");
    }
    for measured in compare(&Slstm, &case, T::DTYPE, &got, &want).unwrap() {
        assert!(measured.passes(), "{what}: {measured:?}");
    }
}

/// Results do not depend on the position of a tensor in its buffer.
#[test]
fn tensors_may_be_parts_of_buffers() {
    let Some(wgpu) = testing::wgpu() else { return };
    for (family, as_on_gpus) in
        [(Family::Auto, false), (Family::Auto, true), (Family::Alternating, true)]
    {
        let wgpu = if as_on_gpus { testing::as_on_gpus(wgpu.clone()) } else { wgpu.clone() };
        let wgpu = wgpu.with_family(family);
        for (head_dim, save) in [(3, Save::Gates), (4, Save::Recompute)] {
            let problem =
                Problem::new(2, 5, 2, head_dim).with(Options { save, ..Options::default() });
            let what = format!("{family:?}, as on GPUs: {as_on_gpus}, {head_dim} units, {save:?}");
            check::<f32>(&wgpu, &problem, &what);
            check::<f16>(&wgpu, &problem, &what);
        }
    }
}

/// Returns the `why` of an [`Error::Argument`] that names `tensor`.
fn refused<R: std::fmt::Debug>(tensor: &str, result: Result<R, Error>) -> &'static str {
    match result {
        Err(Error::Argument { tensor: got, why }) if got == tensor => why,
        other => panic!("{other:?}, wanted Error::Argument for {tensor}"),
    }
}

struct Network {
    plan: flashrnn_wgpu::WgpuPlan<f32, f32>,
    weights: flashrnn_core::Weights<Wgpu, f32>,
    wx: Buffer<f32>,
    h: Buffer<f32>,
}

impl Network {
    fn new(wgpu: &Wgpu) -> Self {
        let plan = wgpu.plan::<f32, f32, _>(&Elman, &Problem::new(2, 3, 1, 4)).unwrap();
        let size = |shape: &[usize]| shape.iter().product::<usize>();
        let (r, b) = (
            wgpu.alloc(size(&plan.shapes().r())).unwrap(),
            wgpu.alloc(size(&plan.shapes().b())).unwrap(),
        );
        let weights = plan.pack(r.view(), b.view()).unwrap();
        let (wx, h) = (
            wgpu.alloc(size(&plan.shapes().wx())).unwrap(),
            wgpu.alloc(size(&plan.shapes().h())).unwrap(),
        );
        Self { plan, weights, wx, h }
    }
}

#[test]
fn memory_of_another_device_is_refused() {
    let (Some(wgpu), Some(another)) = (testing::wgpu(), testing::wgpu()) else { return };
    let (mut own, mut other) = (Network::new(&wgpu), Network::new(&another));
    let elsewhere = "in memory of another device";
    let forward = |call| own.plan.forward(call);
    assert_eq!(refused("wx", forward(Forward::new(&own.weights, other.wx.view()))), elsewhere);
    let h = Some(other.h.view_mut());
    assert_eq!(
        refused("h", forward(Forward { h, ..Forward::new(&own.weights, own.wx.view()) })),
        elsewhere
    );
    refused("weights", forward(Forward::new(&other.weights, own.wx.view())));
    assert!(!own.plan.accepts(&other.weights) && own.plan.accepts(&own.weights));
    assert_eq!(refused("view", wgpu.download(other.wx.view())), elsewhere);
    let (r, b) = (another.alloc(16).unwrap(), wgpu.alloc(4).unwrap());
    assert_eq!(refused("r", own.plan.pack(r.view(), b.view())), elsewhere);
    let mut state = another.alloc(8).unwrap();
    let wx = wgpu.alloc(8).unwrap();
    let step = Step { weights: &own.weights, wx: wx.view(), state: state.view_mut(), h: None };
    assert_eq!(refused("state", own.plan.step(step)), elsewhere);
    // A clone is the same device.
    let clone = Network { plan: wgpu.clone().plan(&Elman, own.plan.problem()).unwrap(), ..own };
    clone.plan.forward(Forward::new(&clone.weights, clone.wx.view())).unwrap();
    own = clone;
    own.plan
        .forward(Forward { h: Some(own.h.view_mut()), ..Forward::new(&own.weights, own.wx.view()) })
        .unwrap();
}

#[test]
fn a_buffer_is_used_in_one_way() {
    let Some(wgpu) = testing::wgpu() else { return };
    let network = Network::new(&wgpu);
    let all = buffer(&wgpu, 4096, ALL);
    let forward = |wx, h, states| {
        let call =
            Forward { h: Some(h), states: Some(states), ..Forward::new(&network.weights, wx) };
        network.plan.forward(call)
    };
    let (wx, len) = (network.wx.view(), 24);
    forward(wx, view_mut(&all, [0, len]), view_mut(&all, [len, len])).unwrap();
    let why =
        refused("states", forward(wx, view_mut(&all, [0, len]), view_mut(&all, [len - 1, len])));
    assert!(why.contains("overlaps"), "{why}");
    let another = buffer(&wgpu, 4096, ALL);
    let why = refused(
        "h",
        forward(view(&all, [512, len]), view_mut(&all, [0, len]), view_mut(&another, [0, len])),
    );
    assert!(why.contains("different buffers"), "{why}");
    let workspace = Some(view_mut(&all, [1024, network.plan.forward_workspace().bytes]));
    let h = Some(view_mut(&all, [0, len]));
    let call = Forward { h, workspace, ..Forward::new(&network.weights, wx) };
    refused("workspace", network.plan.forward(call));
}

#[test]
fn a_workspace_begins_where_it_can_be_bound() {
    let Some(wgpu) = testing::wgpu() else { return };
    let network = Network::new(&wgpu);
    let needed = network.plan.forward_workspace();
    let mut workspace = wgpu.alloc::<u8>(needed.bytes + 256).unwrap();
    let mut forward = |range| {
        let workspace = Some(workspace.view_mut().slice(range).unwrap());
        network
            .plan
            .forward(Forward { workspace, ..Forward::new(&network.weights, network.wx.view()) })
    };
    forward(0..needed.bytes).unwrap();
    forward(needed.align..needed.align + needed.bytes).unwrap();
    refused("workspace", forward(4..4 + needed.bytes));
    assert!(matches!(forward(0..needed.bytes - 1), Err(Error::Shape { tensor: "workspace", .. })));
}

#[test]
fn buffers_must_allow_what_calls_do() {
    let Some(wgpu) = testing::wgpu() else { return };
    let of = |size, usage| View::<f32>::of(&buffer(&wgpu, size, usage), 0, 1).map(|_| ());
    assert_eq!(of(16, Usages::STORAGE | Usages::COPY_SRC), Ok(()));
    for usage in [Usages::STORAGE, Usages::COPY_SRC, Usages::UNIFORM | Usages::COPY_DST] {
        refused("buffer", of(16, usage));
    }
    refused("buffer", of(6, ALL));
    let read_only = buffer(&wgpu, 16, Usages::STORAGE | Usages::COPY_SRC);
    refused("buffer", ViewMut::<f32>::of(&read_only, 0, 1));
}

/// Packed weights serve plans of other batch sizes, times and options. The kernel family is part of
/// the layout.
#[test]
fn weights_belong_to_a_layout() {
    let Some(wgpu) = testing::wgpu() else { return };
    let plan =
        |wgpu: &Wgpu, batch| wgpu.plan::<f32, f32, _>(&Gru, &Problem::new(batch, 3, 1, 4)).unwrap();
    let own = plan(&wgpu, 1);
    let (r, b) = (wgpu.alloc(3 * 16).unwrap(), wgpu.alloc(4 * 4).unwrap());
    let weights = own.pack(r.view(), b.view()).unwrap();
    assert!(own.accepts(&weights) && plan(&wgpu, 300).accepts(&weights));
    assert!(!plan(&wgpu.with_family(Family::Alternating), 1).accepts(&weights));
}
