//! Cuts text into pretokens, the pieces that no merge crosses: the successive matches of a
//! regular expression. Text between two matches is an error, so nothing is ever lost.

use fancy_regex::{Regex, RegexBuilder};

use crate::error::Error;

/// Backtracking steps for one match. A run of n blanks takes about n of them, so the engine's
/// own default of a million refuses text that is merely long; this one only stops patterns whose
/// cost is exponential.
const BACKTRACK_LIMIT: usize = 1 << 30;

/// How much of a gap an error message shows, in characters.
const SHOWN_CHARS: usize = 40;

/// A compiled pretokenization pattern.
pub struct Pattern {
    /// Compiled from exactly the string that `Regex::as_str` gives back.
    regex: Regex,
}

impl Pattern {
    /// Compiles `pattern`.
    pub fn new(pattern: &str) -> Result<Self, Error> {
        RegexBuilder::new(pattern)
            .backtrack_limit(BACKTRACK_LIMIT)
            .build()
            .map(|regex| Self { regex })
            .map_err(|error| Error::BadPattern {
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })
    }

    /// Hands each pretoken of `text` to `visit`, in order; together they are exactly `text`.
    pub fn split<'t>(&self, text: &'t str, mut visit: impl FnMut(&'t str)) -> Result<(), Error> {
        let mut covered = 0;
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| Error::Match {
                pattern: self.regex.as_str().to_owned(),
                offset: covered,
                reason: error.to_string(),
            })?;
            if found.start() != covered {
                return Err(self.gap(&text[covered..found.start()], covered));
            }
            // A pattern may match the empty string, which is no pretoken.
            if found.end() > covered {
                visit(&text[covered..found.end()]);
                covered = found.end();
            }
        }
        if covered < text.len() {
            return Err(self.gap(&text[covered..], covered));
        }
        Ok(())
    }

    /// The error for `gap`, text at byte `offset` that no match covers.
    fn gap(&self, gap: &str, offset: usize) -> Error {
        Error::Gap {
            pattern: self.regex.as_str().to_owned(),
            gap: gap.chars().take(SHOWN_CHARS).collect(),
            offset,
        }
    }
}
