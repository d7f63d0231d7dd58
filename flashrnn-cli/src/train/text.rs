//! The text: where it comes from, its characters as numbers, and the order in which they are read.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;

/// A longer text, in bytes, is taken for a mistake.
const LONGEST: u64 = 1 << 30;

/// Reads `path`, or the Latin of Cicero's De finibus, book one, where there is none.
pub fn read(path: Option<&Path>) -> Result<String> {
    let Some(path) = path else { return Ok(lipsum::LIBER_PRIMUS.to_owned()) };
    let cannot = || format!("cannot read the text {}", path.display());
    let mut bytes = Vec::new();
    // A device might never end.
    File::open(path)
        .with_context(cannot)?
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)
        .with_context(cannot)?;
    if bytes.len() as u64 > LONGEST {
        bail!("the text {} is too long: wanted at most {LONGEST} bytes", path.display());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("the text {} is not UTF-8: wanted UTF-8, byte {at} is not", path.display())
    })
}

/// The characters that a model knows; a character's place in the list is its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Sorted.
    characters: Vec<char>,
}

impl Vocabulary {
    /// Every character that occurs in `text`.
    pub fn of(text: &str) -> Self {
        Self { characters: text.chars().collect::<BTreeSet<_>>().into_iter().collect() }
    }

    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// The numbers of the characters of `text`; an error names one that is unknown.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let number = |c: char| match self.characters.binary_search(&c) {
            Ok(number) => Ok(number as u32),
            Err(_) => bail!("the character {c:?} is not in the vocabulary"),
        };
        text.chars().map(number).collect()
    }

    /// The character of a number; U+FFFD for a number out of range.
    pub fn character(&self, number: u32) -> char {
        self.characters.get(number as usize).copied().unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    /// All characters in one string, in order.
    pub fn to_text(&self) -> String {
        self.characters.iter().collect()
    }
}

/// A text as numbers, and where its training part ends.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Every character of the text.
    tokens: Vec<u32>,
    /// The first so many are for training, the rest, the last tenth, for validation.
    train: usize,
}

impl Corpus {
    /// Keeps the last tenth for validation. The training part must hold a sequence of `seq_len` and
    /// the character after it.
    pub fn new(tokens: Vec<u32>, seq_len: usize) -> Result<Self> {
        let train = tokens.len() - tokens.len().div_ceil(10);
        if train <= seq_len {
            // The smallest n with n - ⌈n / 10⌉ > seq_len.
            let wanted = seq_len.saturating_mul(10) / 9 + 2;
            bail!(
                "the text has {} characters, too short for --seq-len {seq_len}: wanted {wanted} at least, since a \
                 tenth is kept for validation",
                tokens.len()
            );
        }
        Ok(Self { tokens, train })
    }

    pub fn train(&self) -> &[u32] {
        &self.tokens[..self.train]
    }

    pub fn validation(&self) -> &[u32] {
        &self.tokens[self.train..]
    }

    /// Up to `len` characters of the training part's end: what comes before validation.
    pub fn context(&self, len: usize) -> &[u32] {
        &self.train()[self.train - len.min(self.train)..]
    }
}

/// One step's reading: `rows` sequences of `seq_len`, row after row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[B, T]`
    pub inputs: Vec<u32>,
    /// `[B, T]`: the character after each input.
    pub targets: Vec<u32>,
    /// `[B, T]`: 1 where the text starts anew, so that the state must too.
    pub resets: Vec<u8>,
}

/// Reads the training part in `B` rows side by side, each going on where it stopped, around the end
/// to the start.
///
/// Thus the state that a row ends one step in is the one it starts the next step from.
pub struct Batches<'a> {
    tokens: &'a [u32],
    /// `[B]`: the index of each row's next input, below `tokens.len() - 1`.
    positions: Vec<usize>,
    seq_len: usize,
}

impl<'a> Batches<'a> {
    /// `tokens` must hold two characters at least. The rows start evenly spread, from an offset
    /// that `rng` draws.
    pub fn new(tokens: &'a [u32], rows: usize, seq_len: usize, rng: &mut StdRng) -> Self {
        let inputs = tokens.len() - 1;
        let offset = rng.random_range(0..inputs);
        let start = |row: usize| (row as u128 * inputs as u128 / rows as u128) as usize;
        let positions = (0..rows).map(|row| (start(row) + offset) % inputs).collect();
        Self { tokens, positions, seq_len }
    }
}

impl Iterator for Batches<'_> {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let len = self.positions.len() * self.seq_len;
        let [inputs, targets] = [Vec::with_capacity(len), Vec::with_capacity(len)];
        let mut batch = Batch { inputs, targets, resets: Vec::with_capacity(len) };
        for position in &mut self.positions {
            for _ in 0..self.seq_len {
                batch.inputs.push(self.tokens[*position]);
                batch.targets.push(self.tokens[*position + 1]);
                batch.resets.push(u8::from(*position == 0));
                *position = (*position + 1) % (self.tokens.len() - 1);
            }
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn vocabulary_goes_there_and_back() -> Result<()> {
        let text = "žluťoučký kůň, 馬!\n";
        let vocabulary = Vocabulary::of(text);
        let numbers = vocabulary.encode(text)?;
        assert_eq!(numbers.iter().map(|&n| vocabulary.character(n)).collect::<String>(), text);
        assert_eq!(Vocabulary::of(&vocabulary.to_text()), vocabulary);
        assert!(numbers.iter().all(|&n| (n as usize) < vocabulary.len()));
        assert!(vocabulary.encode("x").is_err());
        assert_eq!(vocabulary.character(99), '\u{fffd}');
        Ok(())
    }

    #[test]
    fn the_last_tenth_is_kept() -> Result<()> {
        let corpus = Corpus::new((0..101).collect(), 10)?;
        assert_eq!((corpus.train().len(), corpus.validation().len()), (90, 11));
        assert_eq!(corpus.context(3), [87, 88, 89]);
        assert_eq!(corpus.context(1000).len(), 90);
        Ok(())
    }

    #[test]
    fn the_length_that_is_wanted_is_enough_and_no_less_is() {
        for seq_len in 1..40 {
            let enough = (0..100).find(|&n| Corpus::new(vec![0; n], seq_len).is_ok());
            assert_eq!(enough, Some(seq_len * 10 / 9 + 2), "{seq_len}");
        }
    }

    #[test]
    fn rows_go_on_where_they_stopped() {
        let tokens: Vec<u32> = (0..23).collect();
        let mut batches = Batches::new(&tokens, 3, 4, &mut StdRng::seed_from_u64(5));
        let mut next: Option<Vec<u32>> = None;
        let mut resets = 0;
        for _ in 0..20 {
            let Some(batch) = batches.next() else { panic!("the reading never ends") };
            for ((input, target), reset) in
                batch.inputs.iter().zip(&batch.targets).zip(&batch.resets)
            {
                assert_eq!(*target, input + 1);
                assert_eq!(*reset == 1, *input == 0);
                resets += usize::from(*reset);
            }
            // Each row begins with the character after its last one, or at the start of the text.
            if let Some(next) = next {
                for (row, &wanted) in next.iter().enumerate() {
                    assert_eq!(batch.inputs[row * 4], wanted % 22);
                }
            }
            next = Some((0..3).map(|row| batch.targets[row * 4 + 3]).collect());
        }
        // 3 rows of 80 characters pass the start of 22 ten times at least.
        assert!(resets >= 9, "{resets}");
    }

    #[test]
    fn unreadable_and_broken_texts_are_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let missing = folder.path().join("missing.txt");
        let broken = folder.path().join("broken.txt");
        std::fs::write(&broken, b"ab\xffcd")?;
        let said =
            |path: &Path| read(Some(path)).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said(&missing).contains("missing.txt"));
        assert!(said(&broken).contains("byte 2"));
        assert!(read(None)?.len() > 40_000);
        Ok(())
    }
}
