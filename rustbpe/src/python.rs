//! What Python sees: converts types, releases the GIL around long work, and maps errors.
//! `src/gristmill/rustbpe.pyi` describes the same functions in Python's terms.

use numpy::{Element, IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::pybacked::{PyBackedBytes, PyBackedStr};
use pyo3::types::{PyBytes, PyCapsule, PyMapping, PyString};

use crate::arrow::{self, TextStream};
use crate::count::Counter;
use crate::encode;
use crate::error::Error;
use crate::pattern::Pattern;
use crate::train::{self as training, FIRST_MERGE, Pair};

/// Text that is collected before it is counted, which bounds the time between two checks for
/// Ctrl-C.
const BATCH_BYTES: usize = 8 << 20;

/// What a collected text takes besides its bytes, so that empty texts fill a batch too.
const TEXT_OVERHEAD_BYTES: usize = 64;

/// Work on fewer bytes or ids is done before another thread could make use of the GIL.
const SMALL: usize = 4096;

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        PyValueError::new_err(error.to_string())
    }
}

/// Learns the merges of `texts`.
#[pyfunction]
#[pyo3(signature = (texts, *, vocab_size, pattern))]
pub fn train(
    py: Python<'_>,
    texts: &Bound<'_, PyAny>,
    vocab_size: i64,
    pattern: &str,
) -> PyResult<Vec<Pair>> {
    let wrong_size = || Error::VocabSize { found: vocab_size.into() };
    let limit = i32::try_from(vocab_size).ok().and_then(|size| u32::try_from(size).ok());
    let limit = limit.and_then(|size| size.checked_sub(FIRST_MERGE)).ok_or_else(wrong_size)?;
    let mut counter = Counter::new(Pattern::new(pattern)?);
    if texts.hasattr("__arrow_c_stream__")? {
        let mut stream = text_stream(texts)?;
        py.detach(|| count_stream(&mut counter, &mut stream))?;
    } else {
        count_iterable(&mut counter, texts)?;
    }
    py.detach(|| training::learn(counter.into_counts(), limit, check_signals))
}

/// The bytes of each id of a merge list.
#[pyfunction]
pub fn ranks(py: Python<'_>, merges: Vec<Pair>) -> PyResult<Vec<Bound<'_, PyBytes>>> {
    let tokens = encode::ranks(&merges)?;
    Ok(tokens.iter().map(|token| PyBytes::new(py, token)).collect())
}

/// Raises `KeyboardInterrupt` if Ctrl-C was pressed.
#[allow(clippy::redundant_closure_for_method_calls, reason = "the method has one lifetime only")]
fn check_signals() -> PyResult<()> {
    Python::attach(|py| py.check_signals())
}

/// Counts an iterable of `str`, a batch at a time.
fn count_iterable(counter: &mut Counter, texts: &Bound<'_, PyAny>) -> PyResult<()> {
    if texts.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(
            "texts is a single str; expected an iterable of str; wrap it in a list",
        ));
    }
    let mut batch = Vec::new();
    let mut batch_bytes = 0;
    for text in texts.try_iter()? {
        let text = text_of(&text?, counter.texts_seen() + batch.len() as u64)?;
        batch_bytes += text.len() + TEXT_OVERHEAD_BYTES;
        batch.push(text);
        if batch_bytes >= BATCH_BYTES {
            count_batch(texts.py(), counter, &batch)?;
            batch.clear();
            batch_bytes = 0;
        }
    }
    count_batch(texts.py(), counter, &batch)
}

/// Counts one batch with the GIL released.
fn count_batch(py: Python<'_>, counter: &mut Counter, batch: &[PyBackedStr]) -> PyResult<()> {
    py.check_signals()?;
    Ok(py.detach(|| counter.add(batch))?)
}

/// The UTF-8 of text number `index`.
fn text_of(text: &Bound<'_, PyAny>, index: u64) -> PyResult<PyBackedStr> {
    let text = text.cast::<PyString>().map_err(|_| {
        let found = text.get_type();
        PyTypeError::new_err(format!("text {index} is {found}; expected str; convert it first"))
    })?;
    PyBackedStr::try_from(text.clone()).map_err(|error| {
        PyValueError::new_err(format!(
            "text {index} is no valid Unicode: {}; expected no lone surrogates; replace them, for \
             example by decoding the input with errors=\"replace\"",
            error.value(text.py())
        ))
    })
}

/// Takes the stream out of an object that has `__arrow_c_stream__`.
#[allow(unsafe_code, reason = "a capsule holds a C pointer")]
fn text_stream(texts: &Bound<'_, PyAny>) -> PyResult<TextStream> {
    let capsule = texts.call_method0("__arrow_c_stream__")?;
    let capsule = capsule.cast::<PyCapsule>()?;
    let pointer = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
    // SAFETY: the Arrow PyCapsule interface says that a capsule of this name holds an
    // `ArrowArrayStream`; this call made the capsule, so nobody else uses it.
    Ok(unsafe { TextStream::take(pointer.cast()) }?)
}

/// Counts a stream. Runs without the GIL, because a stream may wait for threads that need it.
fn count_stream(counter: &mut Counter, stream: &mut TextStream) -> PyResult<()> {
    while let Some(column) = stream.next_column()? {
        let mut texts = arrow::texts(&column).into_iter().peekable();
        while texts.peek().is_some() {
            check_signals()?;
            let mut room = BATCH_BYTES;
            let mut batch = Vec::new();
            while let Some(text) = texts.next_if(|_| room > 0) {
                room = room.saturating_sub(text.len() + TEXT_OVERHEAD_BYTES);
                batch.push(text);
            }
            counter.add(&batch)?;
        }
    }
    Ok(())
}

/// Text to ids and back.
#[pyclass(frozen, module = "gristmill.rustbpe")]
pub struct Encoder(encode::Encoder);

#[pymethods]
impl Encoder {
    #[new]
    #[pyo3(signature = (ranks, *, pattern, special_tokens))]
    fn new(
        ranks: Vec<PyBackedBytes>,
        pattern: &str,
        special_tokens: &Bound<'_, PyMapping>,
    ) -> PyResult<Self> {
        let tokens = ranks.iter().map(|token| Box::from(&**token)).collect();
        let specials = special_tokens.items()?.extract()?;
        Ok(Self(encode::Encoder::new(tokens, pattern, specials)?))
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    #[pyo3(signature = (text, *, allowed_special = None))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        allowed_special: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray1<u32>>> {
        let allowed = allowed_special.map_or_else(|| Ok(Vec::new()), names)?;
        let ids = detach_if(py, text.len() > SMALL, || self.0.encode(text, &allowed))?;
        Ok(ids.into_pyarray(py))
    }

    #[allow(clippy::type_complexity, reason = "the pair of arrays is what Python sees")]
    fn encode_batch<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<PyBackedStr>,
    ) -> PyResult<(Bound<'py, PyArray1<u32>>, Bound<'py, PyArray1<u64>>)> {
        let (ids, offsets) = py.detach(|| self.0.encode_batch(&texts))?;
        Ok((ids.into_pyarray(py), offsets.into_pyarray(py)))
    }

    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.bytes_of(ids)?))
    }

    fn decode(&self, ids: &Bound<'_, PyAny>) -> PyResult<String> {
        Ok(String::from_utf8(self.bytes_of(ids)?)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}

impl Encoder {
    /// The bytes of `ids`.
    fn bytes_of(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
        let py = ids.py();
        let ids = self.ids_of(ids)?;
        Ok(detach_if(py, ids.len() > SMALL, || self.0.decode(&ids))?)
    }

    /// An array of any integer type that ids are stored in, or a sequence of `int`.
    fn ids_of(&self, ids: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        if let Ok(array) = ids.extract::<PyReadonlyArray1<'_, u32>>() {
            return Ok(array.as_array().to_vec());
        }
        let found = wide::<u16>(ids).or_else(|| wide::<i32>(ids)).or_else(|| wide::<i64>(ids));
        let found = found.or_else(|| wide::<u64>(ids)).map_or_else(|| ids.extract(), Ok)?;
        let narrow = |(index, id): (usize, i128)| {
            let vocab_size = self.0.vocab_size();
            u32::try_from(id).map_err(|_| Error::UnknownId { index, id, vocab_size }.into())
        };
        found.into_iter().enumerate().map(narrow).collect()
    }
}

/// The values of an array of type `T`, or nothing for any other object.
fn wide<T: Element + Copy + Into<i128>>(ids: &Bound<'_, PyAny>) -> Option<Vec<i128>> {
    let array = ids.extract::<PyReadonlyArray1<'_, T>>().ok()?;
    Some(array.as_array().iter().map(|&id| id.into()).collect())
}

/// The strings of a collection.
fn names(names: &Bound<'_, PyAny>) -> PyResult<Vec<String>> {
    if names.is_instance_of::<PyString>() {
        return Err(PyTypeError::new_err(
            "allowed_special is a single str; expected a collection of str; wrap it in a list",
        ));
    }
    names.try_iter()?.map(|name| name?.extract()).collect()
}

/// Runs `work`, without the GIL where the work is large.
fn detach_if<R: Send>(py: Python<'_>, large: bool, work: impl FnOnce() -> R + Send) -> R {
    if large { py.detach(work) } else { work() }
}
