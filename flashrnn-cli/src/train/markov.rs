//! An interpolated order-2 Markov model with Witten–Bell smoothing, the baseline for networks.
//!
//! Each context u predicts a character c from the characters that followed u, interpolated with the
//! prediction of the next shorter context v. `n` is the number of characters that followed u, and
//! `k` the number of distinct ones:
//!
//! ```text
//! P(c | u) = (count(u c) + k P(c | v)) / (n + k)
//! ```
//!
//! The empty context is interpolated with the uniform distribution over the vocabulary.

use std::collections::HashMap;

/// The characters that followed a context.
#[derive(Default)]
struct Followers {
    total: u64,
    counts: HashMap<u32, u64>,
}

/// The counts for contexts of 0, 1 and 2 characters.
pub struct Markov {
    contexts: HashMap<Vec<u32>, Followers>,
    vocabulary: usize,
}

/// The length of the longest context.
const ORDER: usize = 2;

impl Markov {
    /// Counts `tokens`, which are below `vocabulary`.
    pub fn train(tokens: &[u32], vocabulary: usize) -> Self {
        let mut contexts = HashMap::<Vec<u32>, Followers>::new();
        for (i, &token) in tokens.iter().enumerate() {
            for order in 0..=ORDER.min(i) {
                let followers = contexts.entry(tokens[i - order..i].to_vec()).or_default();
                followers.total += 1;
                *followers.counts.entry(token).or_default() += 1;
            }
        }
        Self { contexts, vocabulary }
    }

    /// Returns the probability of `token` after `context`, using only the last two tokens of
    /// `context`.
    pub fn probability(&self, context: &[u32], token: u32) -> f64 {
        let longest = ORDER.min(context.len());
        (0..=longest).fold(1.0 / self.vocabulary as f64, |shorter, order| {
            match self.contexts.get(&context[context.len() - order..]) {
                None => shorter,
                Some(Followers { total, counts }) => {
                    let count = counts.get(&token).copied().unwrap_or(0) as f64;
                    let kinds = counts.len() as f64;
                    (count + kinds * shorter) / (*total as f64 + kinds)
                }
            }
        })
    }

    /// Returns the bits per character of `tokens`, which follow `context`.
    pub fn bits_per_character(&self, context: &[u32], tokens: &[u32]) -> f64 {
        let all = [context, tokens].concat();
        let bits = |i: usize| -self.probability(&all[..i], all[i]).log2();
        (context.len()..all.len()).map(bits).sum::<f64>() / tokens.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::text::{Corpus, Vocabulary};

    #[test]
    fn probabilities_sum_to_one() {
        let markov = Markov::train(&[0, 1, 2, 0, 1, 3, 0, 0, 1, 2], 5);
        for context in [&[][..], &[0], &[4], &[0, 1], &[4, 1], &[4, 4], &[2, 0, 1]] {
            let sum = (0..5).map(|token| markov.probability(context, token)).sum::<f64>();
            // Allows for the rounding of five numbers below 1, 1e-16 each.
            assert!((sum - 1.0).abs() < 1e-14, "{context:?}: {sum}");
        }
    }

    #[test]
    fn a_small_case_computed_by_hand() {
        // 0 1 0 1 1 over 3 characters. The empty context is followed by 0 twice and by 1 three
        // times, 0 is followed by 1 twice, and (1, 0) by 1 once.
        let markov = Markov::train(&[0, 1, 0, 1, 1], 3);
        let empty = (3.0 + 2.0 / 3.0) / 7.0;
        let after_0 = (2.0 + empty) / 3.0;
        let after_10 = (1.0 + after_0) / 2.0;
        assert!((markov.probability(&[], 1) - empty).abs() < 1e-15);
        assert!((markov.probability(&[0], 1) - after_0).abs() < 1e-15);
        assert!((markov.probability(&[1, 0], 1) - after_10).abs() < 1e-15);
        // An unseen context predicts the same as its longest suffix that was seen.
        assert_eq!(markov.probability(&[2, 0], 1), markov.probability(&[0], 1));
    }

    #[test]
    fn the_default_text_takes_2_83_bits() -> anyhow::Result<()> {
        let text = crate::train::text::read(None)?;
        let vocabulary = Vocabulary::of(&text);
        let corpus = Corpus::new(vocabulary.encode(&text)?, 1)?;
        let markov = Markov::train(corpus.train(), vocabulary.len());
        let bits = markov.bits_per_character(corpus.context(ORDER), corpus.validation());
        // An independent implementation computed this number, to two decimals.
        assert_eq!(format!("{bits:.2}"), "2.83");
        Ok(())
    }
}
