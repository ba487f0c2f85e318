//! Everything that can be wrong with an input. Each message says what is concerned, what was
//! found, what was expected and what to do next; Python sees all of them as `ValueError`.

use std::fmt;

/// Why a text, a pattern, a vocabulary or a list of ids was refused.
#[derive(Debug)]
pub enum Error {
    /// The pattern is no regular expression.
    BadPattern { pattern: String, reason: String },
    /// The pattern's matches leave part of a text out.
    Gap { pattern: String, gap: String, offset: usize },
    /// The regular expression engine gave up.
    Match { pattern: String, offset: usize, reason: String },
    /// An error in one of many texts.
    InText { index: u64, source: Box<Error> },
    /// More distinct pretokens than a word number can hold.
    TooManyPretokens { found: usize },
    /// The requested size has no room for the single bytes, or no room in 32 bits.
    VocabSize { found: i128 },
    /// A merge that names a token which is not there yet.
    BadMerge { index: usize, pair: (u32, u32), expected_below: usize },
    /// Merges whose tokens would not fit in memory.
    HugeRanks { index: usize, limit: usize },
    /// Two ids with the same bytes.
    DuplicateRank { first: u32, second: u32, bytes: Vec<u8> },
    /// A rank without bytes.
    EmptyRank { id: u32 },
    /// A byte that no rank encodes.
    MissingByte { byte: u8 },
    /// A special token that could not be told from another one or from nothing.
    BadSpecial { token: String, id: i64, reason: String },
    /// A name in `allowed_special` that the vocabulary does not have.
    UnknownSpecial { token: String, known: Vec<String> },
    /// An id that the vocabulary does not have.
    UnknownId { index: usize, id: i128, vocab_size: usize },
    /// An Arrow stream of something else than one column of strings.
    Arrow { found: String, next: &'static str },
    /// A thread pool that could not be started, or a search automaton that could not be built.
    Resources { reason: String },
}

impl Error {
    /// The same error, told of text number `index`.
    pub fn in_text(self, index: u64) -> Self {
        Self::InText { index, source: Box::new(self) }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadPattern { .. } | Self::Gap { .. } | Self::Match { .. } => self.of_pattern(out),
            Self::InText { index, source } => write!(out, "text {index}: {source}"),
            Self::Arrow { found, next } => {
                write!(out, "Arrow stream: found {found}; expected one string column; {next}")
            }
            Self::Resources { reason } => write!(out, "cannot start: {reason}"),
            _ => self.of_vocabulary(out),
        }
    }
}

impl Error {
    /// Messages about the pattern.
    fn of_pattern(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadPattern { pattern, reason } => write!(
                out,
                "pattern {pattern:?} does not compile: {reason}; expected fancy-regex syntax; \
                 correct the pattern"
            ),
            Self::Gap { pattern, gap, offset } => write!(
                out,
                "pattern {pattern:?} leaves out {gap:?} at byte {offset}; expected matches that \
                 cover the whole text; end the pattern with an alternative such as |[\\s\\S]"
            ),
            Self::Match { pattern, offset, reason } => write!(
                out,
                "pattern {pattern:?} fails on the text from byte {offset}: {reason}; expected a \
                 match within the engine's limits; simplify the pattern or shorten the text"
            ),
            _ => Ok(()),
        }
    }

    /// Messages about sizes, merges, ranks, special tokens and ids.
    fn of_vocabulary(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyPretokens { found } => write!(
                out,
                "the texts have {found} distinct pretokens; expected at most {}; use fewer texts",
                u32::MAX
            ),
            Self::VocabSize { found } => write!(
                out,
                "vocab_size is {found}; expected 256 (the single bytes) to {}; raise or lower it",
                i32::MAX
            ),
            Self::BadMerge { index, pair, expected_below } => write!(
                out,
                "merge {index} is {pair:?}; expected ids below {expected_below}; pass the merges \
                 in the order in which they were learned"
            ),
            Self::HugeRanks { index, limit } => write!(
                out,
                "merge {index} takes the tokens past {limit} bytes in all; expected less; check \
                 where the merges come from"
            ),
            Self::DuplicateRank { first, second, bytes } => write!(
                out,
                "ranks {first} and {second} are both {}; expected distinct bytes; drop one",
                bytes.escape_ascii()
            ),
            Self::EmptyRank { id } => {
                write!(out, "rank {id} is empty; expected at least one byte; remove it")
            }
            Self::MissingByte { byte } => write!(
                out,
                "ranks have no token for byte 0x{byte:02x}; expected all 256 single bytes; add it"
            ),
            Self::BadSpecial { token, id, reason } => write!(
                out,
                "special token {token:?} with id {id} {reason}; expected a non-empty string and a \
                 32-bit id of its own that follows the ranks; renumber or rename it"
            ),
            Self::UnknownSpecial { token, known } => write!(
                out,
                "allowed_special has {token:?}; expected names among {known:?}; correct the name \
                 or add it to special_tokens"
            ),
            Self::UnknownId { index, id, vocab_size } => write!(
                out,
                "ids[{index}] is {id}; expected an id of this vocabulary of {vocab_size} tokens; \
                 check which tokenizer made the ids"
            ),
            _ => Ok(()),
        }
    }
}
