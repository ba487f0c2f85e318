//! The threads. They are started on first use, as many as `RAYON_NUM_THREADS` says or as the
//! machine has, and once more in a forked child, where the parent's threads do not exist and work
//! handed to rayon's own global pool would wait for ever.

use std::process;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::Error;

/// The pool, with the id of the process whose threads it holds.
static POOL: Mutex<Option<(u32, Arc<ThreadPool>)>> = Mutex::new(None);

/// Runs `work` inside the pool of this process.
pub fn run<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, Error> {
    Ok(current()?.install(work))
}

/// The pool of this process.
fn current() -> Result<Arc<ThreadPool>, Error> {
    let mut slot = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, pool)) = &*slot
        && *owner == process::id()
    {
        return Ok(Arc::clone(pool));
    }
    let pool = ThreadPoolBuilder::new()
        .thread_name(|number| format!("rustbpe-{number}"))
        .build()
        .map(Arc::new)
        .map_err(|error| Error::Resources { reason: error.to_string() })?;
    // Locks inside the parent's pool may be held by threads that the fork left behind, so its
    // destructor must not run here.
    std::mem::forget(slot.replace((process::id(), Arc::clone(&pool))));
    Ok(pool)
}
