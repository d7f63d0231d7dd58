//! How sums over all tokens, for the gradients of the weights, are divided into parts.

/// The division of the tokens into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parts {
    /// Number of parts of `length` tokens.
    pub whole: usize,
    pub length: usize,
    /// Tokens of one more part, 0 if there is none.
    pub rest: usize,
    /// Number of all parts.
    pub total: usize,
}

impl Parts {
    /// Divides the tokens as [`parts`] does, with what is left over as one more part.
    pub(crate) fn new(tokens: usize, blocks: usize, multiprocessors: usize) -> Self {
        let (whole, length) = parts(tokens, blocks, multiprocessors);
        let rest = tokens - whole * length;
        let total = if tokens == 0 { 0 } else { whole + usize::from(rest > 0) };
        Self { whole, length, rest, total }
    }
}

/// Returns a number of equal parts and their length, so that less than a part of the tokens is left
/// over.
///
/// There are as many parts as keep the GPU busy if each has `blocks` blocks, but at most 64, and
/// each has at least 256 tokens. Up to twice as many parts are taken, or down to half, if then
/// nothing is left over.
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
        // With 48 blocks per part 6 parts are wanted. More parts are tried before fewer, and 6
        // remain if no number from 3 to 12 divides the tokens.
        for (tokens, want) in
            [(12 * 512, 6), (16 * 1024, 8), (7 * 512, 7), (5 * 521, 5), (13 * 17 * 19, 6)]
        {
            assert_eq!(parts(tokens, 48, 132), (want, tokens / want), "{tokens}");
        }
        // 6 would divide the tokens, but parts of at least 256 tokens allow only 4.
        assert_eq!(parts(1026, 48, 132), (3, 342));
        assert_eq!(parts(0, 48, 132), (1, 0));
    }
}
