//! Byte-pair encoding under `gristmill.rustbpe`: learns merges from text, and turns text into
//! token ids and back. Only `python` knows of the interpreter; the rest is plain Rust.

mod arrow; // texts from an Arrow C stream
mod count; // texts -> how often each pretoken occurs
mod encode; // text <-> ids
mod error; // everything that can be wrong with an input
mod pattern; // text -> pretokens
mod piece; // one pretoken -> ids
mod pool; // the threads, safe across fork
mod python; // types, GIL and errors, no algorithm
mod train; // pretoken counts -> merges

use pyo3::prelude::*;

/// Learns byte-pair merges from text, and turns text into token ids and back.
#[pymodule]
mod rustbpe {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::python::{Encoder, ranks, train};

    /// Fails as an `ImportError` where the array functions would otherwise panic on first use.
    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.py().import("numpy").map(drop)
    }
}
