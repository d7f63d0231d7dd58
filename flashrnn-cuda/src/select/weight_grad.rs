//! How sums over all tokens, for the gradients of the weights, are divided into parts.

/// A division of the tokens into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Number of parts that have `length` tokens.
    pub whole: usize,
    pub length: usize,
    /// Tokens of one additional part; 0 if there is none.
    pub rest: usize,
    /// Number of parts, including the additional one.
    pub total: usize,
}

impl Parts {
    /// Divides the tokens as [`parts`] does, and adds a part for the remaining tokens.
    pub(crate) fn new(tokens: usize, blocks: usize, multiprocessors: usize) -> Self {
        let (whole, length) = parts(tokens, blocks, multiprocessors);
        let rest = tokens - whole * length;
        let total = if tokens == 0 { 0 } else { whole + usize::from(rest > 0) };
        Self { whole, length, rest, total }
    }
}

/// Returns a number of equal parts and their length. The remaining tokens are fewer than a part
/// has.
///
/// The target is enough parts to keep the GPU busy if each has `blocks` blocks, but at most 64, and
/// at least 256 tokens per part. Numbers from half to twice the target are used instead if they
/// leave no remainder.
pub(crate) fn parts(tokens: usize, blocks: usize, multiprocessors: usize) -> (usize, usize) {
    let max_parts = (tokens / 256).clamp(1, 64);
    let wanted = (2 * multiprocessors).div_ceil(blocks.max(1)).clamp(1, max_parts);
    let mut near = (wanted..=max_parts.min(2 * wanted)).chain((wanted.div_ceil(2)..wanted).rev());
    let parts = near.find(|&parts| tokens.is_multiple_of(parts)).unwrap_or(wanted);
    (parts, tokens / parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_tokens_up_to_less_than_a_part() {
        for tokens in [1, 255, 256, 257, 16384, 16381, 100_000, 1 << 33] {
            for blocks in [1, 48, 144, 1000] {
                let (parts, length) = parts(tokens, blocks, 132);
                assert!(
                    parts * length <= tokens && tokens - parts * length < length,
                    "{tokens} {blocks}"
                );
                assert!(parts == 1 || (parts <= 64 && length >= 256), "{tokens} {blocks}");
            }
        }
    }

    #[test]
    fn parts_leave_nothing_over_where_they_can() {
        // With 48 blocks per part the target is 6 parts. Larger numbers are tried before smaller
        // ones, and 6 remains if no number from 3 to 12 divides the tokens.
        for (tokens, want) in
            [(12 * 512, 6), (16 * 1024, 8), (7 * 512, 7), (5 * 521, 5), (13 * 17 * 19, 6)]
        {
            assert_eq!(parts(tokens, 48, 132), (want, tokens / want), "{tokens}");
        }
        // 6 would divide the tokens, but with at least 256 tokens per part the target is 4.
        assert_eq!(parts(1026, 48, 132), (3, 342));
        assert_eq!(parts(0, 48, 132), (1, 0));
    }
}
