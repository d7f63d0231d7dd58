//! What reaches the terminal: text from files, arguments and drivers must not steer it.

use std::io::{self, Write};

/// Passes text on with control characters escaped.
pub struct Printable<W>(pub W);

impl<W: Write> Write for Printable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // `write!` and `writeln!` hand over whole strings.
        self.0.write_all(escaped(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// `text` with every character that a terminal obeys instead of showing, but for line feeds and
/// tabs, written as Rust writes it.
pub fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Control characters, and those that are invisible or reorder what is around them.
fn obeyed(c: char) -> bool {
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
    fn control_characters_are_shown_and_everything_else_stays() -> io::Result<()> {
        let mut out = Vec::new();
        write!(Printable(&mut out), "é \x1b[2J\x07\r\u{9b}1m\u{202e}\"日本\"\t\\\ne\u{301}")?;
        let want = "é \\u{1b}[2J\\u{7}\\r\\u{9b}1m\\u{202e}\"日本\"\t\\\ne\u{301}";
        assert_eq!(String::from_utf8_lossy(&out), want);
        Ok(())
    }
}
