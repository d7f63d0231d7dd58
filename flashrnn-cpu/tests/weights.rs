//! Packed weights are accepted by all plans whose kernels read them in the same order, and refused
//! by all others.

mod common;

use flashrnn_core::{Cell, Elman, Error, Forward, Gru, Lstm, Plan, Problem, Slstm};
use flashrnn_cpu::{Cpu, Level};

/// Packs weights with one number of threads and uses them with another.
fn check_threads<C: Cell>(cell: &C, head_dim: usize) {
    let cpus: Vec<_> = [1, 2, 5, 16].map(|threads| Cpu::with_threads(threads).unwrap()).into();
    let problem = Problem::new(3, 4, 1, head_dim);
    let plans: Vec<_> =
        cpus.iter().map(|cpu| common::plan::<f32, C>(cpu, cell, &problem)).collect();
    let want = common::run(&plans[0], &common::pack(&plans[0]), None, None);
    for packing in &plans {
        let weights = common::pack(packing);
        for plan in &plans {
            assert!(plan.accepts(&weights));
            let got = common::run(plan, &weights, None, None);
            assert!(got == want, "{} D = {head_dim}: packed on another number of threads", C::NAME);
        }
        // A plan of another batch and time accepts them too.
        let other = common::plan::<f32, C>(&cpus[1], cell, &Problem::new(7, 2, 1, head_dim));
        assert!(
            common::run(&other, &weights, None, None)
                == common::run(&other, &common::pack(&other), None, None)
        );
    }
}

#[test]
fn weights_do_not_depend_on_the_number_of_threads() {
    // The block size of heads of more than 1 MiB depends on the number of threads.
    for head_dim in [5, 64, 520] {
        check_threads(&Elman, head_dim);
        check_threads(&Gru, head_dim);
        check_threads(&Lstm, head_dim);
        check_threads(&Slstm, head_dim);
    }
}

#[test]
fn weights_for_another_instruction_set_are_refused() {
    let problem = Problem::new(2, 3, 1, 33);
    for packed_for in Level::available() {
        let plan_of =
            |level| common::plan::<f32, _>(&Cpu::new().with_level(level).unwrap(), &Lstm, &problem);
        let weights = common::pack(&plan_of(packed_for));
        for level in Level::available() {
            let plan = plan_of(level);
            let wx = vec![0.0; common::len(&plan.shapes().wx())];
            let result = plan.forward(Forward::new(&weights, &wx));
            assert_eq!(plan.accepts(&weights), level == packed_for);
            if level == packed_for {
                result.unwrap();
            } else {
                assert!(
                    matches!(result, Err(Error::Argument { tensor: "weights", .. })),
                    "{result:?}"
                );
            }
        }
    }
}
