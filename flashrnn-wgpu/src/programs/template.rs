//! Loops of a shader's text, written out: compilers keep in registers what only constant indices
//! name, and may not unroll.
//!
//! ```text
//! //@ for $gate in 0..RECURRENT
//! var sum$gate = 0.0f;
//! //@ end
//! ```

use std::ops::Range;

/// `text` with each `for` repeated, its name replaced by the numbers of its range. Ends of a range
/// are numbers or names of `sizes`; no name may begin with another's.
///
/// # Panics
/// Where a line is none of the above.
pub fn unroll(text: &str, sizes: &[(&str, usize)]) -> String {
    let mut lines = text.lines();
    let unrolled = block(&mut lines, sizes);
    assert!(lines.next().is_none(), "an end without its for");
    unrolled
}

/// The lines up to the `end` of this block, or the text's.
fn block<'a>(lines: &mut impl Iterator<Item = &'a str>, sizes: &[(&str, usize)]) -> String {
    let mut text = String::new();
    while let Some(line) = lines.next() {
        match line.trim_start().strip_prefix("//@ ") {
            None => {
                text.push_str(line);
                text.push('\n');
            }
            Some("end") => break,
            Some(head) => {
                let (name, range) = parse(head, sizes).unwrap_or_else(|| panic!("//@ {head}"));
                let body = block(lines, sizes);
                text.extend(range.map(|i| body.replace(name, &i.to_string())));
            }
        }
    }
    text
}

/// `for $name in a..b`: the name and the range.
fn parse<'a>(head: &'a str, sizes: &[(&str, usize)]) -> Option<(&'a str, Range<usize>)> {
    let (name, range) = head.strip_prefix("for ")?.split_once(" in ")?;
    let (first, end) = range.split_once("..")?;
    let value = |text: &str| {
        text.parse()
            .ok()
            .or_else(|| sizes.iter().find(|(name, _)| *name == text).map(|&(_, size)| size))
    };
    Some((name, value(first)?..value(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_written_out() {
        let text =
            "a\n  //@ for $i in 0..N\n//@ for $k in 1..3\nx$i_$k\n//@ end\ny$i\n//@ end\nb\n";
        assert_eq!(unroll(text, &[("N", 2)]), "a\nx0_1\nx0_2\ny0\nx1_1\nx1_2\ny1\nb\n");
        assert_eq!(unroll(text, &[("N", 0)]), "a\nb\n");
    }

    #[test]
    #[should_panic(expected = "for $i in 0..N")]
    fn unknown_sizes_are_seen() {
        unroll("//@ for $i in 0..N\n//@ end\n", &[]);
    }
}
