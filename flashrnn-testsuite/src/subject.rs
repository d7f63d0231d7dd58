//! Type-erased cells with element types, so that a property is written once for all of them.

use flashrnn_core::{
    Backend, Cell, Dtype, Element, Forward, Plan, Result, Shapes, Step, bf16, f16,
};
use flashrnn_core::{Elman, Gru, Lstm, Problem, Slstm};

use crate::case::{Case, Tensors};
use crate::cells::{Autonomous, Leaky, ManyGates, Twin};
use crate::results::{Measured, Results, compare};
use crate::run::{CallOptions, ForwardPass, download, poison, run, upload};

/// A cell with the element types of its tensors and weights. The methods are the operations that
/// properties need.
pub trait Subject<B: Backend> {
    /// Returns the cell and the element types T and W as Rust code.
    fn types(&self) -> [String; 3];
    /// Returns the element type T.
    fn dtype(&self) -> Dtype;
    /// Returns the element type W.
    fn weight_dtype(&self) -> Dtype;
    /// Returns the shapes of a problem with this cell.
    ///
    /// # Errors
    /// The same as [`Problem::shapes`].
    fn shapes(&self, problem: &Problem) -> Result<Shapes>;
    /// Calls [`Case::random`].
    ///
    /// # Errors
    /// The same as [`Case::random`].
    fn case(&self, problem: &Problem, tensors: Tensors, seed: u64) -> Result<Case>;
    /// Calls [`Results::reference`].
    ///
    /// # Errors
    /// The same as [`Results::reference`].
    fn reference(&self, case: &Case) -> Result<Results>;
    /// Calls [`compare`].
    ///
    /// # Errors
    /// The same as [`compare`].
    fn compare(&self, case: &Case, got: &Results, want: &Results) -> Result<Vec<Measured>>;
    /// Calls [`run`].
    ///
    /// # Errors
    /// Any error of the backend.
    fn run(&self, backend: &B, case: &Case) -> Result<Results>;
    /// Does what [`run`] does, with optional arguments of the passes.
    ///
    /// # Errors
    /// Any error of the backend.
    fn run_with(&self, backend: &B, case: &Case, options: CallOptions<'_>) -> Result<Results>;
    /// Runs all forward passes with one plan, then all backward passes in the same order.
    ///
    /// # Errors
    /// Any error of the backend.
    fn interleaved(&self, backend: &B, cases: &[Case]) -> Result<Vec<Results>>;
    /// Runs all cases concurrently with one plan, each on its own thread.
    ///
    /// # Errors
    /// Any error of the backend.
    fn in_threads(&self, backend: &B, cases: &[Case]) -> Result<Vec<Results>>;
    /// Computes `h` and `last` by calling [`Plan::step`] for every time step.
    ///
    /// # Errors
    /// Any error of the backend.
    fn stream(&self, backend: &B, case: &Case) -> Result<Results>;
    /// Computes `h`, `states` and `last` by three inference passes, each of which returns one of
    /// them.
    ///
    /// # Errors
    /// Any error of the backend.
    fn inference(&self, backend: &B, case: &Case) -> Result<Results>;
}

/// Returns every subject whose element types `backend` supports. Built-in cells come with every T,
/// and with W = T and W = f32; the suite's own cells come only with some types, since compiling
/// kernels for a subject takes long on some backends.
pub fn subjects<B: Backend>(backend: &B) -> Vec<Box<dyn Subject<B>>> {
    let mut list = built_in(&Elman, "Elman");
    list.extend(built_in(&Gru, "Gru"));
    list.extend(built_in(&Lstm, "Lstm"));
    list.extend(built_in(&Slstm, "Slstm"));
    list.push(Typed::<_, f32, f32>::boxed(&Leaky { a: 0.3 }, "Leaky { a: 0.3 }"));
    list.push(Typed::<_, f32, f32>::boxed(&Twin, "Twin"));
    list.push(Typed::<_, f64, f64>::boxed(&Twin, "Twin"));
    list.push(Typed::<_, bf16, f32>::boxed(&Twin, "Twin"));
    list.push(Typed::<_, f32, f32>::boxed(&Autonomous, "Autonomous"));
    list.push(Typed::<_, f16, f16>::boxed(&Autonomous, "Autonomous"));
    list.push(Typed::<_, f32, f32>::boxed(&ManyGates, "ManyGates"));
    let dtypes = backend.info().dtypes;
    list.retain(|subject| {
        dtypes.contains(&subject.dtype()) && dtypes.contains(&subject.weight_dtype())
    });
    list
}

fn built_in<B: Backend, C: Cell>(cell: &C, code: &'static str) -> Vec<Box<dyn Subject<B>>> {
    vec![
        Typed::<C, f32, f32>::boxed(cell, code),
        Typed::<C, f64, f64>::boxed(cell, code),
        Typed::<C, bf16, bf16>::boxed(cell, code),
        Typed::<C, f16, f16>::boxed(cell, code),
        Typed::<C, bf16, f32>::boxed(cell, code),
        Typed::<C, f16, f32>::boxed(cell, code),
    ]
}

struct Typed<C, T, W> {
    cell: C,
    code: &'static str,
    types: std::marker::PhantomData<fn() -> (T, W)>,
}

impl<C: Cell, T: Element, W: Element> Typed<C, T, W> {
    fn boxed<B: Backend>(cell: &C, code: &'static str) -> Box<dyn Subject<B>> {
        Box::new(Self { cell: cell.clone(), code, types: std::marker::PhantomData })
    }
}

impl<B: Backend, C: Cell, T: Element, W: Element> Subject<B> for Typed<C, T, W> {
    fn types(&self) -> [String; 3] {
        [self.code.into(), T::DTYPE.to_string(), W::DTYPE.to_string()]
    }

    fn dtype(&self) -> Dtype {
        T::DTYPE
    }

    fn weight_dtype(&self) -> Dtype {
        W::DTYPE
    }

    fn shapes(&self, problem: &Problem) -> Result<Shapes> {
        problem.shapes::<C>()
    }

    fn case(&self, problem: &Problem, tensors: Tensors, seed: u64) -> Result<Case> {
        Case::random::<C, T, W>(&self.cell, problem, tensors, seed)
    }

    fn reference(&self, case: &Case) -> Result<Results> {
        Results::reference(&self.cell, case)
    }

    fn compare(&self, case: &Case, got: &Results, want: &Results) -> Result<Vec<Measured>> {
        compare(&self.cell, case, T::DTYPE, got, want)
    }

    fn run(&self, backend: &B, case: &Case) -> Result<Results> {
        run::<B, C, T, W>(backend, &self.cell, case)
    }

    fn run_with(&self, backend: &B, case: &Case, options: CallOptions<'_>) -> Result<Results> {
        let plan = backend.plan::<T, W, C>(&self.cell, &case.problem)?;
        let pass = ForwardPass::<B, T>::forward(backend, &plan, case, options)?;
        let mut results = pass.outputs(backend)?;
        results.extend(pass.backward(backend, &plan, case, options)?);
        Ok(results)
    }

    fn interleaved(&self, backend: &B, cases: &[Case]) -> Result<Vec<Results>> {
        let Some(first) = cases.first() else { return Ok(Vec::new()) };
        let plan = backend.plan::<T, W, C>(&self.cell, &first.problem)?;
        let passes = cases
            .iter()
            .map(|case| ForwardPass::<B, T>::forward(backend, &plan, case, CallOptions::default()))
            .collect::<Result<Vec<_>>>()?;
        let finish = |(pass, case): (&ForwardPass<B, T>, &Case)| {
            let gradients = pass.backward(backend, &plan, case, CallOptions::default())?;
            let mut results = pass.outputs(backend)?;
            results.extend(gradients);
            Ok(results)
        };
        passes.iter().zip(cases).map(finish).collect()
    }

    fn in_threads(&self, backend: &B, cases: &[Case]) -> Result<Vec<Results>> {
        let Some(first) = cases.first() else { return Ok(Vec::new()) };
        let plan = &backend.plan::<T, W, C>(&self.cell, &first.problem)?;
        let one = |case| {
            let pass = ForwardPass::<B, T>::forward(backend, plan, case, CallOptions::default())?;
            let mut results = pass.outputs(backend)?;
            results.extend(pass.backward(backend, plan, case, CallOptions::default())?);
            Ok(results)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = cases.iter().map(|case| scope.spawn(move || one(case))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| match thread.join() {
                Ok(results) => results,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        })
    }

    fn stream(&self, backend: &B, case: &Case) -> Result<Results> {
        let plan = backend.plan::<T, W, C>(&self.cell, &case.problem)?;
        let shapes = plan.shapes();
        let (r, b) =
            (upload::<B, W>(backend, &case.inputs.r)?, upload::<B, W>(backend, &case.inputs.b)?);
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        // state: [S, B, N, D]
        let zeros = || vec![0.0; shapes.states * shapes.batch * shapes.units()];
        let mut state =
            upload::<B, T::Wide>(backend, &case.inputs.s0.clone().unwrap_or_else(zeros))?;
        let mut h = vec![0.0; shapes.tokens() * shapes.units()];
        let input = shapes.external * shapes.units();
        for t in 0..shapes.time {
            // wx: [B, Gx, N, D], h_t: [B, N, D]
            let row = |b| &case.inputs.wx[shapes.token(b, t) * input..][..input];
            let wx: Vec<f64> = (0..shapes.batch).flat_map(row).copied().collect();
            let wx = upload::<B, T>(backend, &wx)?;
            let mut h_t = poison::<B, T>(backend, shapes.batch * shapes.units())?;
            plan.step(Step {
                wx: backend.view(&wx),
                weights: &weights,
                state: backend.view_mut(&mut state),
                h: Some(backend.view_mut(&mut h_t)),
            })?;
            for (b, row) in download(backend, &h_t)?.chunks(shapes.units()).enumerate() {
                h[shapes.token(b, t) * shapes.units()..][..shapes.units()].copy_from_slice(row);
            }
        }
        let mut results = Results::default();
        results.push("h", h);
        results.push("last", download(backend, &state)?);
        Ok(results)
    }

    fn inference(&self, backend: &B, case: &Case) -> Result<Results> {
        let plan = backend.plan::<T, W, C>(&self.cell, &case.problem)?;
        let shapes = plan.shapes();
        let x = &case.inputs;
        let (r, b) = (upload::<B, W>(backend, &x.r)?, upload::<B, W>(backend, &x.b)?);
        let weights = plan.pack(backend.view(&r), backend.view(&b))?;
        let wx = upload::<B, T>(backend, &x.wx)?;
        let s0 = x.s0.as_ref().map(|s0| upload::<B, T::Wide>(backend, s0)).transpose()?;
        let lengths = x.lengths.as_ref().map(|lengths| backend.upload(lengths)).transpose()?;
        let resets = x.resets.as_ref().map(|resets| backend.upload(resets)).transpose()?;
        let mut h = poison::<B, T>(backend, shapes.h().iter().product())?;
        let mut states = poison::<B, T>(backend, shapes.states().iter().product())?;
        let mut last = poison::<B, T::Wide>(backend, shapes.state().iter().product())?;
        let inputs = || Forward {
            s0: s0.as_ref().map(|s0| backend.view(s0)),
            lengths: lengths.as_ref().map(|lengths| backend.view(lengths)),
            resets: resets.as_ref().map(|resets| backend.view(resets)),
            ..Forward::new(&weights, backend.view(&wx))
        };
        plan.forward(Forward { h: Some(backend.view_mut(&mut h)), ..inputs() })?;
        plan.forward(Forward { states: Some(backend.view_mut(&mut states)), ..inputs() })?;
        plan.forward(Forward { last: Some(backend.view_mut(&mut last)), ..inputs() })?;
        let mut results = Results::default();
        results.push("h", download(backend, &h)?);
        results.push("states", download(backend, &states)?);
        results.push("last", download(backend, &last)?);
        Ok(results)
    }
}
