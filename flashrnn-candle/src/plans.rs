//! A cache of plans, kept by a [`Recurrence`](crate::Recurrence) between calls.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flashrnn::Problem;

/// The number of plans kept, enough for a dozen sequence lengths, each with a plan for whole passes
/// and one for single steps.
const CAPACITY: usize = 32;

/// What a plan is for: the number of a place, and the problem.
type Key = (usize, Problem);

/// Keeps the most recently used plans of one cell, by places, sizes, options and element types.
#[derive(Default)]
pub(crate) struct Plans {
    /// Ordered from least to most recently used.
    entries: Mutex<Vec<(Key, Arc<dyn Any + Send + Sync>)>>,
}

impl Plans {
    /// Returns the plan of type `P` for `key`, calling `make` if it is not cached.
    ///
    /// The lock is not held during `make`, so that compiling kernels does not block other calls.
    /// Two threads may therefore make the same plan concurrently.
    pub fn get<P: Any + Send + Sync, E>(
        &self,
        key: &Key,
        make: impl FnOnce() -> Result<P, E>,
    ) -> Result<Arc<P>, E> {
        if let Some(plan) = self.find(key) {
            return Ok(plan);
        }
        let plan = Arc::new(make()?);
        let mut entries = self.lock();
        if entries.len() >= CAPACITY {
            entries.remove(0);
        }
        entries.push((key.clone(), plan.clone()));
        Ok(plan)
    }

    fn find<P: Any + Send + Sync>(&self, key: &Key) -> Option<Arc<P>> {
        let mut entries = self.lock();
        let i = entries.iter().rposition(|(kept, plan)| kept == key && plan.is::<P>())?;
        entries[i..].rotate_left(1);
        entries.last().and_then(|(_, plan)| plan.clone().downcast().ok())
    }

    /// Locks the plans. A poisoned lock is safe to use, since every change is a single operation of
    /// the vector.
    fn lock(&self) -> MutexGuard<'_, Vec<(Key, Arc<dyn Any + Send + Sync>)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Plans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plans").field("entries", &self.lock().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use flashrnn::Options;

    use super::*;

    /// Gets the plan for `problem`, and returns whether it had to be made.
    fn made<P: Any + Send + Sync + Default>(plans: &Plans, problem: &Problem) -> bool {
        made_at::<P>(plans, 0, problem)
    }

    fn made_at<P: Any + Send + Sync + Default>(
        plans: &Plans,
        place: usize,
        problem: &Problem,
    ) -> bool {
        let mut made = false;
        let make = || {
            made = true;
            Ok::<_, Infallible>(P::default())
        };
        let Ok(_) = plans.get::<P, _>(&(place, problem.clone()), make);
        made
    }

    #[test]
    fn plans_are_cached_by_places_sizes_options_and_types() {
        let plans = Plans::default();
        let problem = Problem::new(2, 3, 1, 4);
        assert!(made::<f32>(&plans, &problem));
        assert!(!made::<f32>(&plans, &problem));
        assert!(made::<f64>(&plans, &problem));
        assert!(made_at::<f32>(&plans, 1, &problem));
        assert!(made::<f32>(&plans, &Problem::new(2, 4, 1, 4)));
        assert!(made::<f32>(
            &plans,
            &problem.with(Options { reverse: true, ..Options::default() })
        ));
        assert!(!made::<f32>(&plans, &problem));
    }

    #[test]
    fn the_least_recently_used_plan_is_evicted() {
        let plans = Plans::default();
        let problem = |time| Problem::new(1, time, 1, 1);
        for time in 0..CAPACITY {
            assert!(made::<f32>(&plans, &problem(time)));
        }
        assert!(!made::<f32>(&plans, &problem(0)));
        assert!(made::<f32>(&plans, &problem(CAPACITY)));
        assert_eq!(plans.lock().len(), CAPACITY);
        assert!(!made::<f32>(&plans, &problem(0)));
        assert!(made::<f32>(&plans, &problem(1)), "the least recently used plan");
    }
}
