//! Escapes terminal output, so that text from files, arguments and drivers cannot control the
//! terminal.

use std::io::{self, Write};

/// A writer that escapes control characters.
pub struct Printable<W>(pub W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // `write!` and `writeln!` write whole strings, so no character is split.
        self.0.write_all(escaped(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Escapes every character that controls a terminal, except line feeds and tabs, in Rust's syntax.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Returns whether `c` is a control character other than `\n` and `\t`, is invisible, or reorders
/// the text around it.
fn is_control(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{2069}'
        | '\u{feff}' => true,
        c => c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_characters_are_escaped() -> io::Result<()> {
        let mut out = Vec::new();
        write!(Printable(&mut out), "é \x1b[2J\x07\r\u{9b}1m\u{202e}\"日本\"\t\\\ne\u{301}")?;
        let want = "é \\u{1b}[2J\\u{7}\\r\\u{9b}1m\\u{202e}\"日本\"\t\\\ne\u{301}";
        assert_eq!(String::from_utf8_lossy(&out), want);
        Ok(())
    }
}
