//! Learns merges from pretoken counts: again and again the adjacent pair of tokens that occurs
//! most often becomes a new token (Sennrich et al. 2016, arXiv 1508.07909, on bytes).
//!
//! Occurrences are overlapping windows of two (`aaa` has `aa` twice), and equally frequent pairs
//! go by ascending left id, then right id. Both are what `karpathy/rustbpe` does, whose loop this
//! follows: a priority queue whose counts are refreshed only when they reach the top, and for each
//! pair the list of words that may hold it.
//!
//! Why the lazy refresh is exact: a merge can only add occurrences of pairs that contain its new
//! token, and those are queued when the merge ends. From then on a pair's count only falls, so a
//! queued count is never below the true one. An entry that comes to the top with its true count
//! therefore has a true count no smaller than any other pair's; and as the queue's order includes
//! the ids, of equal counts the one with the smallest ids comes first. An entry with an outdated
//! count goes back with the true one. The result depends on the counts alone, not on the order of
//! texts, on hashes or on threads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::count::Counts;
use crate::error::Error;

/// Ids of two adjacent tokens, left then right.
pub type Pair = (u32, u32);

/// Ids below this are the single bytes; merge i makes id `FIRST_MERGE + i`.
pub const FIRST_MERGE: u32 = 256;

/// Merges between two calls of `interrupt`.
const MERGES_PER_CHECK: usize = 256;

/// What is known of one pair.
#[derive(Default)]
struct Occurrences {
    /// Windows of two equal to the pair, over all words, each weighted by its word's count.
    count: i64,
    /// Ascending, without repeats: every word that holds the pair, and words that no longer do.
    words: Vec<u32>,
}

impl Occurrences {
    /// Records `weight` more (or fewer) windows in `word`.
    fn add(&mut self, word: u32, weight: i64) {
        self.count += weight;
        if self.words.last() != Some(&word) {
            self.words.push(word);
        }
    }
}

/// A queued pair; the greatest is the most frequent, then the one with the smallest ids.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// At least the pair's true count.
    count: i64,
    /// Reversed because a heap gives its greatest element first.
    pair: Reverse<Pair>,
}

/// One distinct pretoken.
struct Word {
    /// Where its tokens begin in `Words::tokens`.
    start: usize,
    /// How many tokens it has now; at least one, and it only falls.
    len: usize,
    /// How often the pretoken occurs in the texts.
    count: i64,
}

/// All distinct pretokens as tokens.
struct Words {
    /// One entry for each distinct pretoken, at most `u32::MAX` of them.
    words: Vec<Word>,
    /// Every word's current tokens from its `start` on; what lies between two words is unused.
    tokens: Vec<u32>,
}

type Pairs = FxHashMap<Pair, Occurrences>;

/// The first `limit` merges, or fewer when no pair is left. Calls `interrupt` now and then and
/// stops with its error.
pub fn learn<E: From<Error>>(
    counts: Counts,
    limit: u32,
    mut interrupt: impl FnMut() -> Result<(), E>,
) -> Result<Vec<Pair>, E> {
    let mut words = Words::new(counts)?;
    let mut pairs = words.pairs();
    let mut queue: BinaryHeap<Candidate> = pairs.iter().map(candidate).collect();
    let mut merges = Vec::new();
    for new in (FIRST_MERGE..).take(limit as usize) {
        if merges.len() % MERGES_PER_CHECK == 0 {
            interrupt()?;
        }
        let Some((pair, occurrences)) = most_frequent(&mut queue, &mut pairs) else {
            break;
        };
        let mut born = Pairs::default();
        for word in occurrences.words {
            words.merge(word, pair, new, &mut pairs, &mut born);
        }
        born.retain(|_, occurrences| occurrences.count > 0);
        queue.extend(born.iter().map(candidate));
        pairs.extend(born);
        merges.push(pair);
    }
    Ok(merges)
}

/// The queue entry for a pair with its true count.
fn candidate((&pair, occurrences): (&Pair, &Occurrences)) -> Candidate {
    Candidate { count: occurrences.count, pair: Reverse(pair) }
}

/// Takes the most frequent pair out of `queue` and `pairs`.
fn most_frequent(
    queue: &mut BinaryHeap<Candidate>,
    pairs: &mut Pairs,
) -> Option<(Pair, Occurrences)> {
    while let Some(Candidate { count: queued, pair: Reverse(pair) }) = queue.pop() {
        let count = pairs.get(&pair).map_or(0, |occurrences| occurrences.count);
        if count == queued {
            return pairs.remove_entry(&pair);
        }
        if count > 0 {
            queue.push(Candidate { count, pair: Reverse(pair) });
        } else {
            pairs.remove(&pair);
        }
    }
    None
}

impl Words {
    /// Every pretoken as its bytes.
    fn new(counts: Counts) -> Result<Self, Error> {
        if u32::try_from(counts.len()).is_err() {
            return Err(Error::TooManyPretokens { found: counts.len() });
        }
        let mut words = Vec::with_capacity(counts.len());
        let mut tokens = Vec::with_capacity(counts.keys().map(|pretoken| pretoken.len()).sum());
        for (pretoken, count) in counts {
            words.push(Word { start: tokens.len(), len: pretoken.len(), count });
            tokens.extend(pretoken.bytes().map(u32::from));
        }
        Ok(Self { words, tokens })
    }

    /// Every pair of the words as they are.
    fn pairs(&self) -> Pairs {
        let mut pairs = Pairs::default();
        for (number, word) in (0..).zip(&self.words) {
            for window in self.tokens[word.start..word.start + word.len].windows(2) {
                pairs.entry((window[0], window[1])).or_default().add(number, word.count);
            }
        }
        pairs
    }

    /// Replaces `pair` by `new` in one word, from left to right, and keeps counts true: after each
    /// replacement the windows of the word as it then stands are what `pairs` and `born` count.
    /// Pairs with `new` go to `born`, all others only lose windows. The word need not hold `pair`.
    fn merge(&mut self, number: u32, pair: Pair, new: u32, pairs: &mut Pairs, born: &mut Pairs) {
        let word = &mut self.words[number as usize];
        let tokens = &mut self.tokens[word.start..word.start + word.len];
        let weight = word.count;
        let mut remove = |window: Pair, born: &mut Pairs| {
            if window.0 == new {
                born.entry(window).or_default().add(number, -weight);
            } else if let Some(occurrences) = pairs.get_mut(&window) {
                occurrences.count -= weight;
            }
        };
        let (mut read, mut write) = (0, 0);
        while read < tokens.len() {
            if read + 1 == tokens.len() || (tokens[read], tokens[read + 1]) != pair {
                tokens[write] = tokens[read];
                (read, write) = (read + 1, write + 1);
                continue;
            }
            if write > 0 {
                remove((tokens[write - 1], pair.0), born);
                born.entry((tokens[write - 1], new)).or_default().add(number, weight);
            }
            if let Some(&after) = tokens.get(read + 2) {
                remove((pair.1, after), born);
                born.entry((new, after)).or_default().add(number, weight);
            }
            tokens[write] = new;
            (read, write) = (read + 2, write + 1);
        }
        word.len = write;
    }
}
