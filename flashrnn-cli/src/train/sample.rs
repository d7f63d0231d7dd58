//! Samples text from a network, one character at a time.

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::{Dropout, LanguageModel};

/// Samples `len` characters that continue `prompt`, which must not be empty. With a `temperature`
/// of 1, characters are drawn from the network's distribution; lower values favour likely
/// characters, and 0 selects the most likely one.
pub fn sample(
    model: &LanguageModel,
    prompt: &[u32],
    len: usize,
    temperature: f64,
    seed: u64,
) -> Result<Vec<u32>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut state = model.initial_state();
    let mut read = prompt.to_vec();
    let mut drawn = Vec::with_capacity(len);
    for _ in 0..len {
        let rows = read.len();
        let tokens = Tensor::from_vec(read, (1, rows), &Device::Cpu)?;
        let (logits, after) = model.forward(&tokens, &state, None, &mut Dropout::off())?;
        let logits: Vec<f32> = logits.get(rows - 1)?.to_vec1()?;
        let next = draw(&logits, temperature, &mut rng).context("the vocabulary is empty")?;
        drawn.push(next);
        read = vec![next];
        state = after;
    }
    Ok(drawn)
}

/// Draws an index with probabilities softmax(logits / temperature).
fn draw(logits: &[f32], temperature: f64, rng: &mut StdRng) -> Option<u32> {
    let likeliest = (0..logits.len()).max_by(|&i, &j| logits[i].total_cmp(&logits[j]))?;
    // Logits relative to the largest, whose weight is 1 even if the temperature is 0.
    let weight = |&logit: &f32| match f64::from(logit - logits[likeliest]) {
        0.0 => 1.0,
        below => (below / temperature).exp(),
    };
    let weights: Vec<f64> = logits.iter().map(weight).collect();
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    for (number, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return Some(number as u32);
        }
    }
    // Reached only because of rounding.
    Some(likeliest as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_temperature() {
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY, 1.0f32.ln()];
        let mut rng = StdRng::seed_from_u64(1);
        assert!((0..50).all(|_| draw(&logits, 0.0, &mut rng) == Some(1)));
        let mut counts = [0; 4];
        for _ in 0..4000 {
            if let Some(number) = draw(&logits, 1.0, &mut rng) {
                counts[number as usize] += 1;
            }
        }
        // Probabilities 1/4, 1/2, 0, 1/4; the standard deviation of a count is below 32.
        for (count, want) in counts.into_iter().zip([1000, 2000, 0, 1000]) {
            assert!(i32::abs(count - want) < 160, "{counts:?}");
        }
        assert_eq!(draw(&[], 1.0, &mut rng), None);
    }
}
