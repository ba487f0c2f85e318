//! Reads texts from an Arrow C stream, the form in which pyarrow, polars and others hand over
//! columns without copying them (Arrow C data and stream interfaces).

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use arrow_array::array::{Array, ArrayRef, make_array};
use arrow_array::cast::AsArray;
use arrow_array::ffi::{FFI_ArrowArray, FFI_ArrowSchema, from_ffi_and_data_type};
use arrow_array::ffi_stream::FFI_ArrowArrayStream;
use arrow_schema::DataType;

use crate::error::Error;

/// What to do about a stream of the wrong type.
const SELECT: &str = "select the text column and cast it to string";
/// What to do about a stream that does not keep to the interface.
const PRODUCER: &str = "look for the cause in what made the stream";

/// A stream whose batches hold one column of strings.
pub struct TextStream {
    /// A stream whose callbacks are set and whose batches have type `data_type`.
    stream: FFI_ArrowArrayStream,
    /// A type of strings, or a struct with one such field.
    data_type: DataType,
    /// Rows in the batches so far, which numbers the rows in error messages.
    rows_seen: usize,
}

impl TextStream {
    /// Takes the stream out of `raw`, which is left released.
    ///
    /// # Safety
    ///
    /// `raw` points to an aligned, initialised `ArrowArrayStream` that nobody else uses meanwhile,
    /// and whatever callbacks it has keep to the interface.
    #[allow(unsafe_code, reason = "the interface is a C struct of pointers")]
    pub unsafe fn take(raw: NonNull<FFI_ArrowArrayStream>) -> Result<Self, Error> {
        // SAFETY: what `from_raw` asks for is what this function asks of its caller.
        let mut stream = unsafe { FFI_ArrowArrayStream::from_raw(raw.as_ptr()) };
        let Some(get_schema) = stream.get_schema() else {
            return Err(arrow("a stream that was already read", "make a new one"));
        };
        let mut schema = FFI_ArrowSchema::empty();
        // SAFETY: the callback belongs to this stream, which is not released; `schema` is writable
        // and owns nothing.
        let status = unsafe { get_schema(&raw mut stream, &raw mut schema) };
        check(&mut stream, status)?;
        let data_type = DataType::try_from(&schema)
            .map_err(|error| arrow(format!("a schema it cannot read ({error})"), PRODUCER))?;
        if !is_texts(&data_type) {
            return Err(arrow(describe(&data_type), SELECT));
        }
        Ok(Self { stream, data_type, rows_seen: 0 })
    }

    /// The next batch's column of strings, or nothing at the end.
    #[allow(unsafe_code, reason = "the interface is a C struct of pointers")]
    pub fn next_column(&mut self) -> Result<Option<ArrayRef>, Error> {
        let Some(get_next) = self.stream.get_next() else {
            return Err(arrow("a stream without get_next", PRODUCER));
        };
        let mut array = FFI_ArrowArray::empty();
        // SAFETY: the callback belongs to this stream, which is not released; `array` is writable
        // and owns nothing.
        let status = unsafe { get_next(&raw mut self.stream, &raw mut array) };
        check(&mut self.stream, status)?;
        if array.is_released() {
            return Ok(None);
        }
        // SAFETY: the stream's producer vouches that its arrays agree with its schema, by `take`.
        let data = unsafe { from_ffi_and_data_type(array, self.data_type.clone()) };
        let data = data.and_then(|data| data.validate_full().map(|()| data));
        let data = data.map_err(|error| arrow(format!("a broken batch ({error})"), PRODUCER))?;
        let batch = make_array(data);
        self.refuse_nulls(&batch)?;
        let column = match batch.as_struct_opt() {
            Some(columns) => ArrayRef::clone(columns.column(0)),
            None => batch,
        };
        self.refuse_nulls(&column)?;
        self.rows_seen += column.len();
        Ok(Some(column))
    }

    /// Fails if `array`, rows of the batch that is being read, has a null.
    fn refuse_nulls(&self, array: &ArrayRef) -> Result<(), Error> {
        match (0..array.len()).find(|&row| array.is_null(row)) {
            Some(row) if array.null_count() > 0 => {
                let row = self.rows_seen + row;
                Err(arrow(format!("a null in row {row}"), "drop or fill the nulls"))
            }
            _ => Ok(()),
        }
    }
}

/// The strings of a column that `TextStream` gave.
pub fn texts(column: &ArrayRef) -> Vec<&str> {
    let column: &dyn Array = column;
    if let Some(column) = column.as_string_opt::<i32>() {
        column.iter().flatten().collect()
    } else if let Some(column) = column.as_string_opt::<i64>() {
        column.iter().flatten().collect()
    } else {
        column.as_string_view_opt().into_iter().flatten().flatten().collect()
    }
}

/// Whether batches of this type are one column of strings.
fn is_texts(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => fields.len() == 1 && is_strings(fields[0].data_type()),
        other => is_strings(other),
    }
}

/// Whether arrays of this type are strings.
fn is_strings(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A stream's type, in words.
fn describe(data_type: &DataType) -> String {
    match data_type {
        DataType::Struct(fields) if fields.is_empty() => "no columns".to_owned(),
        DataType::Struct(fields) => {
            let columns =
                fields.iter().map(|f| format!("{:?} of type {}", f.name(), f.data_type()));
            format!("columns {}", columns.collect::<Vec<_>>().join(", "))
        }
        other => format!("values of type {other}"),
    }
}

/// Turns a callback's status into the error that the stream tells of.
#[allow(unsafe_code, reason = "the interface is a C struct of pointers")]
fn check(stream: &mut FFI_ArrowArrayStream, status: c_int) -> Result<(), Error> {
    if status == 0 {
        return Ok(());
    }
    let mut reason = format!("error {status}");
    if let Some(get_last_error) = stream.get_last_error() {
        // SAFETY: the callback belongs to this stream, which is not released and whose last call
        // failed, as the interface requires.
        let message = unsafe { get_last_error(stream) };
        if !message.is_null() {
            // SAFETY: a non-null message ends with a NUL and stays until the next call on the
            // stream, which is after the copy.
            let message = unsafe { CStr::from_ptr(message) };
            reason = format!("error {status} ({})", message.to_string_lossy());
        }
    }
    Err(arrow(reason, PRODUCER))
}

/// An error about the stream.
fn arrow(found: impl Into<String>, next: &'static str) -> Error {
    Error::Arrow { found: found.into(), next }
}
