"""Splits Rust, WGSL and CUDA C++ into tokens, and leaves comments out."""

import re
from typing import NamedTuple


class Token(NamedTuple):
    kind: str  # "name", "string", "mark" (punctuation) or "other" (numbers, lifetimes, characters)
    text: str
    line: int


# The order matters: a raw string starts like a name, a character like a lifetime.
RUST = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<line_comment>//[^\n]*)
  | (?P<block_comment>/\*)
  | (?P<raw_string>[bc]?r(?P<hashes>\#*)"(?s:.*?)"(?P=hashes))
  | (?P<string>[bc]?"(?:\\(?s:.)|[^"\\])*")
  | (?P<char>b?'(?:\\(?:u\{[^}]*\}|x[0-9a-fA-F]{2}|.)|[^\\'])')
  | (?P<lifetime>'[^\W\d]\w*)
  | (?P<name>(?:r\#)?[^\W\d]\w*)
  | (?P<number>\d\w*(?:\.\d\w*)?)
  | (?P<mark>::|.)
    """,
    re.VERBOSE,
)

CUDA = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<line_comment>//[^\n]*)
  | (?P<c_comment>/\*(?s:.*?)\*/)
  | (?P<directive>(?m:^[ \t]*)\#(?:\\\n|[^\n])*)
  | (?P<string>"(?:\\(?s:.)|[^"\\])*")
  | (?P<char>'(?:\\.|[^\\'\n])+')
  | (?P<name>[^\W\d]\w*)
  | (?P<number>\d(?:'?\w)*(?:\.\w*)?)
  | (?P<mark>::|.)
    """,
    re.VERBOSE,
)

KINDS = {"raw_string": "string", "string": "string", "name": "name", "mark": "mark"}
COMMENTS = {"space", "line_comment", "c_comment", "directive"}


def block_comment_end(text, start):
    """Returns the offset behind the comment that opens at `start`; Rust's comments nest."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", text[start:]):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return start + mark.end()
    return len(text)


def tokenize(text, grammar=RUST):
    """Returns the tokens of `text`. WGSL is read with Rust's grammar, whose comments it shares."""
    tokens, at, line = [], 0, 1
    # A directive starts a line, so leading spaces must not have been consumed before it.
    while at < len(text):
        match = grammar.match(text, at)
        kind, end = match.lastgroup, match.end()
        if kind == "hashes":
            kind = "raw_string"
        if kind == "space" and grammar is CUDA and "\n" in match.group():
            end = at + match.group().rindex("\n") + 1
        if kind == "block_comment":
            end = block_comment_end(text, at)
        elif kind not in COMMENTS:
            token = match.group().removeprefix("r#") if kind == "name" else match.group()
            tokens.append(Token(KINDS.get(kind, "other"), token, line))
        line += text.count("\n", at, end)
        at = end
    return tokens


OPENING = {"(": ")", "[": "]", "{": "}"}


def closing(tokens, at):
    """Returns the index of the bracket that closes the one at `at`, or the last index."""
    stack = []
    for i in range(at, len(tokens)):
        token = tokens[i]
        if token.kind != "mark":
            continue
        if token.text in OPENING:
            stack.append(OPENING[token.text])
        elif token.text in (")", "]", "}"):
            if stack and stack[-1] == token.text:
                stack.pop()
            if not stack:
                return i
    return len(tokens) - 1
