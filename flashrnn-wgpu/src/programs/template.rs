//! Loops and conditions in a shader's text, expanded before the driver sees it. Compilers keep an
//! array in registers only if every index is constant, and need not unroll loops.
//!
//! ```text
//! //@ for $gate in 0..RECURRENT
//! var sum$gate = 0.0f;
//! //@ end
//! //@ if !SHARED
//! gates[0] += sum0;
//! //@ end
//! ```

use std::ops::Range;

/// Named numbers that a template may refer to.
type Sizes<'a> = [(&'a str, usize)];

/// Repeats the body of each `for`, with its variable replaced by the numbers of its range, and
/// keeps the body of an `if` whose size is not 0 (or is 0, after `!`). Bounds are numbers or names
/// in `sizes`. No variable may be a prefix of another.
///
/// # Panics
/// If a directive is malformed or names an unknown size.
pub fn expand(text: &str, sizes: &Sizes<'_>) -> String {
    let mut lines = text.lines();
    let expanded = block(&mut lines, sizes);
    assert!(lines.next().is_none(), "an end without its for or if");
    expanded
}

/// Expands the lines up to the `end` of this block, or to the end of the text.
fn block<'a>(lines: &mut impl Iterator<Item = &'a str>, sizes: &Sizes<'_>) -> String {
    let mut text = String::new();
    while let Some(line) = lines.next() {
        match line.trim_start().strip_prefix("//@ ") {
            None => {
                text.push_str(line);
                text.push('\n');
            }
            Some("end") => break,
            Some(head) => {
                let directive = Directive::parse(head, sizes);
                let directive = directive.unwrap_or_else(|| panic!("//@ {head}"));
                let body = block(lines, sizes);
                match directive {
                    Directive::If(true) => text.push_str(&body),
                    Directive::If(false) => {}
                    Directive::For(variable, range) => {
                        text.extend(range.map(|i| body.replace(variable, &i.to_string())));
                    }
                }
            }
        }
    }
    text
}

/// The line that begins a block.
enum Directive<'a> {
    /// `for $variable in a..b`
    For(&'a str, Range<usize>),
    /// `if SIZE` or `if !SIZE`, evaluated.
    If(bool),
}

impl<'a> Directive<'a> {
    fn parse(head: &'a str, sizes: &Sizes<'_>) -> Option<Self> {
        let size = |name: &str| sizes.iter().find(|size| size.0 == name).map(|size| size.1);
        let bound = |text: &str| text.parse().ok().or_else(|| size(text));
        if let Some(condition) = head.strip_prefix("if ") {
            return Some(Self::If(match condition.strip_prefix('!') {
                Some(name) => size(name)? == 0,
                None => size(condition)? != 0,
            }));
        }
        let (variable, range) = head.strip_prefix("for ")?.split_once(" in ")?;
        let (first, end) = range.split_once("..")?;
        Some(Self::For(variable, bound(first)?..bound(end)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_are_written_out() {
        let text =
            "a\n  //@ for $i in 0..N\n//@ for $k in 1..3\nx$i_$k\n//@ end\ny$i\n//@ end\nb\n";
        assert_eq!(expand(text, &[("N", 2)]), "a\nx0_1\nx0_2\ny0\nx1_1\nx1_2\ny1\nb\n");
        assert_eq!(expand(text, &[("N", 0)]), "a\nb\n");
    }

    #[test]
    fn conditions_choose_lines() {
        let text = "//@ if N\na\n//@ end\n//@ if !N\nb\n//@ for $i in 0..1\nc\n//@ end\n//@ end\n";
        assert_eq!(expand(text, &[("N", 2)]), "a\n");
        assert_eq!(expand(text, &[("N", 0)]), "b\nc\n");
    }

    #[test]
    #[should_panic(expected = "for $i in 0..N")]
    fn unknown_sizes_are_seen() {
        expand("//@ for $i in 0..N\n//@ end\n", &[]);
    }
}
