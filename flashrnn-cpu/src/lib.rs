//! scaffold: the reference behind the backend interface
use bytemuck::Pod;
use flashrnn_core::*;
use flashrnn_core::reference as rf;
use std::sync::Arc;
/// cpu
#[derive(Clone, Debug, Default)]
pub struct Cpu;
impl Cpu {
    /// new
    pub fn new() -> Self { Cpu }
    /// An own pool of n threads
    pub fn with_threads(_n: usize) -> Result<Self> { Ok(Cpu) }
}
/// plan
pub struct CpuPlan<T: Element, W: Element> { problem: Problem, shapes: Shapes, run: Arc<dyn Run>, _t: std::marker::PhantomData<(T, W)> }
trait Run: Send + Sync {
    fn f(&self, p: &Problem, x: &rf::Inputs) -> Result<rf::Outputs>;
    fn b(&self, p: &Problem, x: &rf::Inputs, o: &rf::Outputs, d: &rf::OutputGradients) -> Result<rf::Gradients>;
}
struct R<C>(C);
impl<C: Cell> Run for R<C> {
    fn f(&self, p: &Problem, x: &rf::Inputs) -> Result<rf::Outputs> { rf::forward(&self.0, p, x) }
    fn b(&self, p: &Problem, x: &rf::Inputs, o: &rf::Outputs, d: &rf::OutputGradients) -> Result<rf::Gradients> { rf::backward(&self.0, p, x, o, d) }
}
/// weights
pub struct CpuWeights { r: Vec<f64>, b: Vec<f64>, wx: std::sync::Mutex<Vec<f64>> }
fn v<T: Element>(x: &[T]) -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() }
fn put<T: Element>(o: &mut [T], x: &[f64]) { for (o, x) in o.iter_mut().zip(x) { *o = T::from_f64(*x) } }
impl Backend for Cpu {
    type Buffer<P: Pod + Send + Sync> = Vec<P>;
    type View<'a, P: Pod + Send + Sync> = &'a [P];
    type ViewMut<'a, P: Pod + Send + Sync> = &'a mut [P];
    type Plan<T: Element, W: Element> = CpuPlan<T, W>;
    fn info(&self) -> Info { Info { name: "cpu", device: "x".into(), dtypes: vec![Dtype::F32, Dtype::F64, Dtype::Bf16, Dtype::F16] } }
    fn alloc<P: Pod + Send + Sync>(&self, len: usize) -> Result<Vec<P>> { Ok(vec![P::zeroed(); len]) }
    fn upload<P: Pod + Send + Sync>(&self, data: &[P]) -> Result<Vec<P>> { Ok(data.to_vec()) }
    fn download<P: Pod + Send + Sync>(&self, view: &[P]) -> Result<Vec<P>> { Ok(view.to_vec()) }
    fn synchronize(&self) -> Result<()> { Ok(()) }
    fn view<'a, P: Pod + Send + Sync>(&self, buffer: &'a Vec<P>) -> &'a [P] { buffer }
    fn view_mut<'a, P: Pod + Send + Sync>(&self, buffer: &'a mut Vec<P>) -> &'a mut [P] { buffer }
    fn plan<T: Element, W: Element, C: Cell>(&self, cell: &C, problem: &Problem) -> Result<CpuPlan<T, W>> {
        Ok(CpuPlan { problem: problem.clone(), shapes: problem.shapes::<C>()?, run: Arc::new(R(cell.clone())), _t: Default::default() })
    }
}
impl<T: Element, W: Element> Plan<T, W> for CpuPlan<T, W> {
    type Backend = Cpu;
    type Weights = CpuWeights;
    fn problem(&self) -> &Problem { &self.problem }
    fn shapes(&self) -> &Shapes { &self.shapes }
    fn pack(&self, r: &[W], b: &[W]) -> Result<CpuWeights> {
        Shapes::check("r", r.len(), &self.shapes.r())?;
        Shapes::check("b", b.len(), &self.shapes.b())?;
        Ok(CpuWeights { r: v(r), b: v(b), wx: Default::default() }) }
    fn saved(&self) -> Result<Saved<Cpu, T>> { Saved::new(&Cpu, &self.shapes, self.problem.save) }
    fn forward(&self, c: Forward<'_, Cpu, T, W>) -> Result<()> {
        c.check(&Cpu, &self.shapes, self.problem.save)?;
        *c.weights.wx.lock().unwrap() = v(c.wx);
        let x = rf::Inputs { wx: v(c.wx), r: c.weights.r.clone(), b: c.weights.b.clone(), s0: c.s0.map(v), lengths: c.lengths.map(|l| l.to_vec()), resets: c.resets.map(|l| l.to_vec()) };
        let o = self.run.f(&self.problem, &x)?;
        if let Some(h) = c.h { put(h, &o.states) }
        if let Some(h) = c.states { put(h, &o.states) }
        if let Some(h) = c.last { put(h, &o.last) }
        Ok(())
    }
    fn backward(&self, c: Backward<'_, Cpu, T, W>) -> Result<()> {
        c.check(&Cpu, &self.shapes, self.problem.save)?;
        let wx = c.wx.map(v).unwrap_or_else(|| c.weights.wx.lock().unwrap().clone());
        let x = rf::Inputs { wx, r: c.weights.r.clone(), b: c.weights.b.clone(), s0: c.s0.map(v), lengths: c.lengths.map(|l| l.to_vec()), resets: c.resets.map(|l| l.to_vec()) };
        let o = self.run.f(&self.problem, &x)?;
        let n = self.shapes.states().iter().product::<usize>();
        let mut ds = c.d_states.map(v);
        if let Some(d) = c.d_h { let mut d = v(d); d.resize(n, 0.0); ds = Some(d); }
        let g = self.run.b(&self.problem, &x, &o, &rf::OutputGradients { d_states: ds, d_last: c.d_last.map(v) })?;
        put(c.d_wx, &g.d_wx);
        if let Some(h) = c.d_r { put(h, &g.d_r) }
        if let Some(h) = c.d_b { put(h, &g.d_b) }
        if let Some(h) = c.d_s0 { put(h, &g.d_s0) }
        Ok(())
    }
    fn step(&self, c: Step<'_, Cpu, T, W>) -> Result<()> {
        c.check(&self.shapes)?;
        let x = rf::Inputs { wx: v(c.wx), r: c.weights.r.clone(), b: c.weights.b.clone(), s0: Some(v(c.state)), lengths: None, resets: None };
        let o = self.run.f(&Problem { time: 1, ..self.problem.clone() }, &x)?;
        put(c.state, &o.last);
        if let Some(h) = c.h { put(h, &o.last) }
        Ok(())
    }
}
