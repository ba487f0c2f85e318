//! Counts how often each pretoken occurs. Training needs nothing else of the texts, and there are
//! about a hundred times fewer distinct pretokens than pretokens.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::pattern::Pattern;
use crate::pool;

/// Tasks for each thread, so that a thread whose texts are short can take over others' work.
const TASKS_PER_THREAD: usize = 8;

/// How often each distinct pretoken occurs.
pub type Counts = FxHashMap<Box<str>, i64>;

/// Counts the pretokens of texts that arrive in batches.
pub struct Counter {
    /// Cuts every text.
    pattern: Pattern,
    /// Sums over all batches so far; every key is non-empty and every count positive.
    counts: Counts,
    /// Texts in the batches so far, which numbers the texts in error messages.
    texts_seen: u64,
}

impl Counter {
    /// A counter that has seen nothing.
    pub fn new(pattern: Pattern) -> Self {
        Self { pattern, counts: Counts::default(), texts_seen: 0 }
    }

    /// Texts counted so far.
    pub fn texts_seen(&self) -> u64 {
        self.texts_seen
    }

    /// The counts of all texts.
    pub fn into_counts(self) -> Counts {
        self.counts
    }

    /// Counts a batch, its texts in parallel. On an error, that of the first text concerned, the
    /// counter holds part of the batch and is of no further use.
    pub fn add<T: AsRef<str> + Sync>(&mut self, texts: &[T]) -> Result<(), Error> {
        let pattern = &self.pattern;
        let parts = pool::run(|| {
            let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
            let texts_per_task = texts.len().div_ceil(tasks).max(1);
            let parts: Vec<_> =
                texts.par_chunks(texts_per_task).map(|chunk| count_chunk(pattern, chunk)).collect();
            parts
        })?;
        for part in parts {
            let (texts, result) = part;
            for (pretoken, count) in
                result.map_err(|error| error.in_text(self.texts_seen + texts))?
            {
                match self.counts.get_mut(pretoken) {
                    Some(sum) => *sum += count,
                    None => drop(self.counts.insert(pretoken.into(), count)),
                }
            }
            self.texts_seen += texts;
        }
        Ok(())
    }
}

/// How many of `texts` were counted, and their counts or the error of the text that follows them.
fn count_chunk<'t, T: AsRef<str>>(
    pattern: &Pattern,
    texts: &'t [T],
) -> (u64, Result<FxHashMap<&'t str, i64>, Error>) {
    let mut counts = FxHashMap::default();
    let mut counted = 0;
    for text in texts {
        let split = pattern.split(text.as_ref(), |pretoken| {
            *counts.entry(pretoken).or_default() += 1;
        });
        if let Err(error) = split {
            return (counted, Err(error));
        }
        counted += 1;
    }
    (counted, Ok(counts))
}
