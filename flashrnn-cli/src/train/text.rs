//! The text: reading it, encoding its characters, and splitting it into batches.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rand::Rng;
use rand::rngs::StdRng;

/// The maximum length of a text in bytes. Longer ones are assumed to be a mistake.
const MAX_BYTES: u64 = 1 << 30;

/// Reads `path`, or returns Cicero's De finibus, book one, if there is none.
pub fn read(path: Option<&Path>) -> Result<String> {
    let Some(path) = path else { return Ok(lipsum::LIBER_PRIMUS.to_owned()) };
    let failed = || format!("can't read the text {}", path.display());
    let mut bytes = Vec::new();
    // Reads a limited number of bytes, since a device might never end.
    File::open(path)
        .with_context(failed)?
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!("the text {} is too long, wanted at most {MAX_BYTES} bytes", path.display());
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        anyhow::anyhow!("the text {} is not valid UTF-8 at byte {at}", path.display())
    })
}

/// The characters known to a model. A character is encoded as its index in the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Sorted and distinct.
    characters: Vec<char>,
}

impl Vocabulary {
    /// Collects every character that occurs in `text`.
    pub fn of(text: &str) -> Self {
        Self { characters: text.chars().collect::<BTreeSet<_>>().into_iter().collect() }
    }

    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Encodes `text`. An error names a character that is unknown.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let number = |c: char| match self.characters.binary_search(&c) {
            Ok(number) => Ok(number as u32),
            Err(_) => bail!("the character {c:?} is not in the vocabulary"),
        };
        text.chars().map(number).collect()
    }

    /// Decodes a character, or returns U+FFFD if `number` is out of range.
    pub fn character(&self, number: u32) -> char {
        self.characters.get(number as usize).copied().unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    /// Returns all characters as a string, in order.
    pub fn to_text(&self) -> String {
        self.characters.iter().collect()
    }
}

/// An encoded text, split into a training and a validation part.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// Every character of the text.
    tokens: Vec<u32>,
    /// The length of the training part. The rest is for validation.
    train: usize,
}

impl Corpus {
    /// Reserves the last tenth for validation. The training part must contain at least one sequence
    /// of `seq_len` characters and the character after it.
    pub fn new(tokens: Vec<u32>, seq_len: usize) -> Result<Self> {
        let train = tokens.len() - tokens.len().div_ceil(10);
        if train <= seq_len {
            // The smallest n with n - ⌈n / 10⌉ > seq_len.
            let wanted = seq_len.saturating_mul(10) / 9 + 2;
            bail!(
                "the text has {} characters, too short for --seq-len {seq_len}, wanted at least \
                 {wanted}, since a tenth is used for validation",
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

    /// Returns up to `len` characters from the end of the training part, which precede the
    /// validation part.
    pub fn context(&self, len: usize) -> &[u32] {
        &self.train()[self.train - len.min(self.train)..]
    }
}

/// The batch of one training step: `rows` sequences of `seq_len` characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[B, T]`
    pub inputs: Vec<u32>,
    /// `[B, T]`: the character after each input.
    pub targets: Vec<u32>,
    /// `[B, T]`: 1 at the start of the text, where the state must be reset.
    pub resets: Vec<u8>,
}

/// Iterates over batches of the training part. Each row continues where it ended in the previous
/// batch, and wraps around at the end of the text.
///
/// The final state of a row in one step is therefore its initial state in the next.
pub struct Batches<'a> {
    tokens: &'a [u32],
    /// `[B]`: the index of each row's next input, below `tokens.len() - 1`.
    positions: Vec<usize>,
    seq_len: usize,
}

impl<'a> Batches<'a> {
    /// Starts the rows at evenly spaced positions with a random offset. `tokens` must contain at
    /// least two characters.
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
    fn encoding_round_trips() -> Result<()> {
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
    fn the_last_tenth_is_for_validation() -> Result<()> {
        let corpus = Corpus::new((0..101).collect(), 10)?;
        assert_eq!((corpus.train().len(), corpus.validation().len()), (90, 11));
        assert_eq!(corpus.context(3), [87, 88, 89]);
        assert_eq!(corpus.context(1000).len(), 90);
        Ok(())
    }

    #[test]
    fn the_reported_minimum_length_is_exact() {
        for seq_len in 1..40 {
            let shortest = (0..100).find(|&n| Corpus::new(vec![0; n], seq_len).is_ok());
            assert_eq!(shortest, Some(seq_len * 10 / 9 + 2), "{seq_len}");
        }
    }

    #[test]
    fn rows_continue_where_they_ended() {
        let tokens: Vec<u32> = (0..23).collect();
        let mut batches = Batches::new(&tokens, 3, 4, &mut StdRng::seed_from_u64(5));
        let mut next: Option<Vec<u32>> = None;
        let mut resets = 0;
        for _ in 0..20 {
            let Some(batch) = batches.next() else { panic!("batches never end") };
            for ((input, target), reset) in
                batch.inputs.iter().zip(&batch.targets).zip(&batch.resets)
            {
                assert_eq!(*target, input + 1);
                assert_eq!(*reset == 1, *input == 0);
                resets += usize::from(*reset);
            }
            // Each row starts with the character after its previous one, or wraps around.
            if let Some(next) = next {
                for (row, &wanted) in next.iter().enumerate() {
                    assert_eq!(batch.inputs[row * 4], wanted % 22);
                }
            }
            next = Some((0..3).map(|row| batch.targets[row * 4 + 3]).collect());
        }
        // 3 rows of 80 characters wrap around the 22 inputs about ten times.
        assert!(resets >= 9, "{resets}");
    }

    #[test]
    fn unreadable_and_invalid_texts_are_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let missing = folder.path().join("missing.txt");
        let broken = folder.path().join("broken.txt");
        std::fs::write(&broken, b"ab\xffcd")?;
        let message =
            |path: &Path| read(Some(path)).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(message(&missing).contains("missing.txt"));
        assert!(message(&broken).contains("byte 2"));
        assert!(read(None)?.len() > 40_000);
        Ok(())
    }
}
