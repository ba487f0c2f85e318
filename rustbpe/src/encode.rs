//! Text to ids and back: a vocabulary of ranks and special tokens, and the pattern that cuts text
//! into the pieces that `piece` encodes.

use aho_corasick::{AhoCorasick, MatchKind};
use rayon::prelude::*;
use rustc_hash::FxHashMap;

use crate::error::Error;
use crate::pattern::Pattern;
use crate::piece::Ranks;
use crate::pool;
use crate::train::{FIRST_MERGE, Pair};

/// Bytes that the tokens of a merge list may have in all. Real vocabularies have a few megabytes,
/// while a list where each merge doubles the one before passes any memory in a few dozen entries.
const MAX_RANKS_BYTES: usize = 1 << 28;

/// A vocabulary, complete and free of contradictions.
pub struct Encoder {
    /// Cuts text between special tokens.
    pattern: Pattern,
    /// The ids of `tokens`, with all single bytes among them.
    ranks: Ranks,
    /// The bytes of each id below `tokens.len()`, non-empty and distinct.
    tokens: Vec<Box<[u8]>>,
    /// Special tokens: non-empty distinct strings, distinct ids from `tokens.len()` on.
    special_ids: FxHashMap<String, u32>,
    /// The inverse of `special_ids`.
    special_tokens: FxHashMap<u32, String>,
}

impl Encoder {
    /// Checks and indexes a vocabulary; `tokens[i]` are the bytes of id i.
    pub fn new(
        tokens: Vec<Box<[u8]>>,
        pattern: &str,
        specials: Vec<(String, i64)>,
    ) -> Result<Self, Error> {
        let pattern = Pattern::new(pattern)?;
        let ranks = index(&tokens)?;
        let mut special_ids = FxHashMap::default();
        let mut special_tokens = FxHashMap::default();
        for (token, id) in specials {
            let bad = |reason: &str| Error::BadSpecial {
                token: token.clone(),
                id,
                reason: reason.to_owned(),
            };
            let id = u32::try_from(id).map_err(|_| bad("has no 32-bit id"))?;
            if token.is_empty() {
                return Err(bad("is empty"));
            }
            if (id as usize) < tokens.len() {
                return Err(bad(&format!("collides with one of the {} ranks", tokens.len())));
            }
            if let Some(other) = special_tokens.insert(id, token.clone()) {
                return Err(bad(&format!("shares its id with {other:?}")));
            }
            special_ids.insert(token, id);
        }
        Ok(Self { pattern, ranks, tokens, special_ids, special_tokens })
    }

    /// How many tokens there are, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.tokens.len() + self.special_ids.len()
    }

    /// The ids of `text`, where special tokens are ordinary text except for the `allowed` ones.
    pub fn encode(&self, text: &str, allowed: &[String]) -> Result<Vec<u32>, Error> {
        let mut ids = Vec::new();
        let mut ordinary = 0;
        for (start, end, id) in self.find_specials(text, allowed)? {
            self.encode_ordinary(&text[ordinary..start], &mut ids)?;
            ids.push(id);
            ordinary = end;
        }
        self.encode_ordinary(&text[ordinary..], &mut ids)?;
        Ok(ids)
    }

    /// The ids of all texts in one row, and where each text's ids begin, with the end of the last.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
    ) -> Result<(Vec<u32>, Vec<u64>), Error> {
        let encoded: Vec<Result<Vec<u32>, Error>> =
            pool::run(|| texts.par_iter().map(|text| self.encode(text.as_ref(), &[])).collect())?;
        let found = encoded.iter().flatten().map(Vec::len).sum();
        let mut ids = Vec::with_capacity(found);
        let mut offsets = Vec::with_capacity(texts.len() + 1);
        offsets.push(0);
        for (index, encoded) in (0..).zip(encoded) {
            ids.extend(encoded.map_err(|error| error.in_text(index))?);
            offsets.push(ids.len() as u64);
        }
        Ok((ids, offsets))
    }

    /// The bytes of `ids`, one token after the other.
    pub fn decode(&self, ids: &[u32]) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        for (index, &id) in ids.iter().enumerate() {
            let token = self.tokens.get(id as usize).map(|token| &**token);
            let special = || self.special_tokens.get(&id).map(String::as_bytes);
            bytes.extend_from_slice(token.or_else(special).ok_or_else(|| Error::UnknownId {
                index,
                id: i128::from(id),
                vocab_size: self.vocab_size(),
            })?);
        }
        Ok(bytes)
    }

    /// Appends the ids of `text`, all of it ordinary.
    fn encode_ordinary(&self, text: &str, ids: &mut Vec<u32>) -> Result<(), Error> {
        self.pattern.split(text, |piece| self.ranks.encode(piece.as_bytes(), ids))
    }

    /// Start, end and id of each allowed special token in `text`, in order; where several match at
    /// one place, the longest.
    fn find_specials(
        &self,
        text: &str,
        allowed: &[String],
    ) -> Result<Vec<(usize, usize, u32)>, Error> {
        if allowed.is_empty() {
            return Ok(Vec::new());
        }
        let ids = allowed.iter().map(|token| self.special_id(token));
        let ids = ids.collect::<Result<Vec<u32>, Error>>()?;
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(allowed)
            .map_err(|error| Error::Resources { reason: error.to_string() })?;
        let found = finder.find_iter(text);
        Ok(found.map(|found| (found.start(), found.end(), ids[found.pattern()])).collect())
    }

    /// The id of a special token.
    fn special_id(&self, token: &str) -> Result<u32, Error> {
        self.special_ids.get(token).copied().ok_or_else(|| {
            let mut known: Vec<String> = self.special_ids.keys().cloned().collect();
            known.sort();
            Error::UnknownSpecial { token: token.to_owned(), known }
        })
    }
}

/// The ids of `tokens`, each of which must be distinct and among which every byte must be.
fn index(tokens: &[Box<[u8]>]) -> Result<Ranks, Error> {
    if i32::try_from(tokens.len()).is_err() {
        return Err(Error::VocabSize { found: tokens.len() as i128 });
    }
    let mut ids = FxHashMap::default();
    for (id, token) in (0..).zip(tokens) {
        if token.is_empty() {
            return Err(Error::EmptyRank { id });
        }
        if let Some(first) = ids.insert(token.clone(), id) {
            return Err(Error::DuplicateRank { first, second: id, bytes: token.to_vec() });
        }
    }
    let mut byte_ids = [0; 256];
    for (byte, slot) in (0..=u8::MAX).zip(&mut byte_ids) {
        *slot = *ids.get(&[byte][..]).ok_or(Error::MissingByte { byte })?;
    }
    let longest = tokens.iter().map(|token| token.len()).max().unwrap_or(0);
    Ok(Ranks { ids, byte_ids, longest })
}

/// The bytes of each id: the single bytes in order, then each merge's.
pub fn ranks(merges: &[Pair]) -> Result<Vec<Vec<u8>>, Error> {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    let mut total = FIRST_MERGE as usize;
    for (index, &pair) in merges.iter().enumerate() {
        let (Some(left), Some(right)) = (tokens.get(pair.0 as usize), tokens.get(pair.1 as usize))
        else {
            return Err(Error::BadMerge { index, pair, expected_below: tokens.len() });
        };
        total += left.len() + right.len();
        if total > MAX_RANKS_BYTES {
            return Err(Error::HugeRanks { index, limit: MAX_RANKS_BYTES });
        }
        tokens.push([left.as_slice(), right].concat());
    }
    Ok(tokens)
}
