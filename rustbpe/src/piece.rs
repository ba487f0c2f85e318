//! Encodes one piece of text: starting from its single bytes, the adjacent two parts whose joined
//! bytes have the lowest rank become one, the leftmost two where ranks are equal, until no two
//! parts join. This is `tiktoken`'s rule (`src/lib.rs`, `byte_pair_merge`); for ranks that were
//! learned as merges, in order, it gives what applying the merges in order gives (github/rust-gems,
//! `crates/bpe`, derives this).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

/// From this many bytes on, a heap beats looking at all parts for each merge.
const LONG_BYTES: usize = 100;

/// Stands for "no id"; `Ranks` never holds it.
const NONE: u32 = u32::MAX;

/// The ids of all tokens that can be merged from bytes.
pub struct Ranks {
    /// The id of each token's bytes; ids are distinct and below `NONE`.
    pub ids: FxHashMap<Box<[u8]>, u32>,
    /// The id of each single byte, as in `ids`.
    pub byte_ids: [u32; 256],
    /// Length of the longest key of `ids`, in bytes.
    pub longest: usize,
}

impl Ranks {
    /// Appends the ids of `piece` to `ids`.
    pub fn encode(&self, piece: &[u8], ids: &mut Vec<u32>) {
        match self.joined(piece, 0, piece.len()) {
            NONE if piece.len() < LONG_BYTES => self.merge_short(piece, ids),
            NONE => self.merge_long(piece, ids),
            id => ids.push(id),
        }
    }

    /// The id of bytes `start..end` of `piece`, or `NONE`, also where they run past its end.
    fn joined(&self, piece: &[u8], start: usize, end: usize) -> u32 {
        if end - start > self.longest {
            return NONE;
        }
        piece.get(start..end).and_then(|bytes| self.ids.get(bytes)).copied().unwrap_or(NONE)
    }

    /// The id of one byte.
    fn of_byte(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// Looks at all parts for each merge: quadratic, and the fastest for a few bytes.
    fn merge_short(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut parts: Vec<Part> = (0..)
            .zip(piece)
            .map(|(start, &byte)| Part {
                start,
                id: self.of_byte(byte),
                joined: self.joined(piece, start, start + 2),
            })
            .collect();
        let start_of = |parts: &[Part], number: usize| {
            parts.get(number).map_or(piece.len() + usize::from(number > parts.len()), |p| p.start)
        };
        while let Some(left) = (0..parts.len()).min_by_key(|&number| parts[number].joined) {
            if parts[left].joined == NONE {
                break;
            }
            parts.remove(left + 1);
            parts[left].id = parts[left].joined;
            for number in left.saturating_sub(1)..=left {
                let end = start_of(&parts, number + 2);
                parts[number].joined = self.joined(piece, parts[number].start, end);
            }
        }
        ids.extend(parts.iter().map(|part| part.id));
    }

    /// Keeps the joins in a heap and the parts in a linked list, both by byte offset, for
    /// O(n log n). A join is in the heap from when its two parts became neighbours; it is out of
    /// date once either part has grown, which its end or its start then shows.
    fn merge_long(&self, piece: &[u8], ids: &mut Vec<u32>) {
        let mut parts = Parts::new(self, piece);
        let mut joins: BinaryHeap<Reverse<Join>> = (0..piece.len() - 1)
            .filter_map(|start| parts.join(self, piece, start))
            .map(Reverse)
            .collect();
        while let Some(Reverse(Join { id, start, end })) = joins.pop() {
            if !parts.is_current(start, end) {
                continue;
            }
            parts.merge(start, id);
            joins.extend(parts.join(self, piece, start).map(Reverse));
            if start > 0 {
                joins.extend(parts.join(self, piece, parts.previous[start]).map(Reverse));
            }
        }
        let mut start = 0;
        while start < piece.len() {
            ids.push(parts.ids[start]);
            start = parts.ends[start];
        }
    }
}

/// A part in the short form.
struct Part {
    /// Its first byte; it ends where the next part starts.
    start: usize,
    /// Its id.
    id: u32,
    /// The id of it and the next part as one, or `NONE`.
    joined: u32,
}

/// Two neighbouring parts that are one token together; the least is merged first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Join {
    /// The id of that token.
    id: u32,
    /// Where the left part starts.
    start: usize,
    /// Where the right part ends.
    end: usize,
}

/// The parts in the long form; each vector has an entry for every byte of the piece.
struct Parts {
    /// The id of the part that starts at a byte; `NONE` where no part starts.
    ids: Vec<u32>,
    /// Where the part that starts at a byte ends; of use only where `ids` is not `NONE`.
    ends: Vec<usize>,
    /// Where the part before the one that starts at a byte starts; of use as `ends` is.
    previous: Vec<usize>,
}

impl Parts {
    /// Every byte a part.
    fn new(ranks: &Ranks, piece: &[u8]) -> Self {
        Self {
            ids: piece.iter().map(|&byte| ranks.of_byte(byte)).collect(),
            ends: (1..=piece.len()).collect(),
            previous: (0..piece.len()).map(|start| start.saturating_sub(1)).collect(),
        }
    }

    /// The join of the part at `start` with the next one, if there is a next one and a token.
    fn join(&self, ranks: &Ranks, piece: &[u8], start: usize) -> Option<Join> {
        let &end = self.ends.get(self.ends[start])?;
        let id = ranks.joined(piece, start, end);
        (id != NONE).then_some(Join { id, start, end })
    }

    /// Whether a part starts at `start` and the part after it ends at `end`.
    fn is_current(&self, start: usize, end: usize) -> bool {
        self.ids[start] != NONE && self.ends.get(self.ends[start]) == Some(&end)
    }

    /// Makes the part at `start` and the next one the part `id`.
    fn merge(&mut self, start: usize, id: u32) {
        let right = self.ends[start];
        self.ids[start] = id;
        self.ids[right] = NONE;
        self.ends[start] = self.ends[right];
        if let Some(previous) = self.previous.get_mut(self.ends[start]) {
            *previous = start;
        }
    }
}
