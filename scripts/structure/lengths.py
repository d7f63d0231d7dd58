"""Finds the files and functions that are over the limits, and compares them with their reasons."""

from structure.tokens import CUDA, closing, tokenize

FILE_LINES, FUNCTION_LINES, README_LINES = 350, 80, 150
SOURCES = (".rs", ".cu", ".cuh", ".wgsl")


def functions(path, text):
    """Returns (name, lines) of every function, from the line of its name to its closing brace."""
    if path.endswith((".cu", ".cuh")):
        return cuda_functions(tokenize(text, CUDA))
    tokens = tokenize(text)
    found = []
    for at, token in enumerate(tokens[:-1]):
        if token.text == "fn" and tokens[at + 1].kind == "name":
            body = body_of(tokens, at + 2)
            if body is not None:
                lines = tokens[closing(tokens, body)].line - token.line + 1
                found.append((tokens[at + 1].text, lines))
    return found


def body_of(tokens, at):
    """Returns the index of the brace that opens a function's body, None where it has none."""
    while at < len(tokens):
        text = tokens[at].text
        if text == ";":
            return None
        if text == "{" and tokens[at - 1].text != "<":
            return at
        # The braces of a constant argument, as in `[f32; { N }]` and `Row<{ N }>`.
        at = closing(tokens, at) + 1 if text in ("(", "[", "{") else at + 1
    return None


def cuda_functions(tokens):
    found, at, start = [], 0, 0
    while at < len(tokens):
        text = tokens[at].text
        if text in (";", "}"):
            start = at + 1
        elif text == "{":
            head = tokens[start:at]
            words = {t.text for t in head}
            name = function_name(head)
            if name:
                close = closing(tokens, at)
                found.append((name.text, tokens[close].line - name.line + 1))
                at, start = close, close + 1
            elif "=" in words or "enum" in words:
                at = closing(tokens, at)
            else:
                start = at + 1  # a namespace or a struct, which may hold functions
        at += 1
    return found


def function_name(head):
    """Returns the name before the last parentheses of a declaration, None if it is no function."""
    name, at = None, 0
    while at < len(head):
        if head[at].text == "template":
            at = template_end(head, at + 1)
            continue
        if head[at].text == "=":
            return None
        if head[at].text == ":":
            break
        if head[at].text in ("(", "["):
            if head[at].text == "(" and at and head[at - 1].kind == "name":
                name = head[at - 1]
            at = closing(head, at)
        at += 1
    return name


def template_end(head, at):
    """Returns the index behind the parameters `<...>` that begin at `at`."""
    depth = 0
    while at < len(head):
        if head[at].text in ("(", "["):
            at = closing(head, at)
        depth += (head[at].text == "<") - (head[at].text == ">")
        at += 1
        if depth == 0:
            break
    return at


def over_limits(files, read):
    """Returns {entry: lines}: an entry is `path` of a file or `path fn name` of a function."""
    found = {}
    for path in files:
        if not path.endswith(SOURCES):
            continue
        text = read(path)
        lines = len(text.splitlines())
        if lines > FILE_LINES:
            found[path] = lines
        for name, lines in functions(path, text):
            entry = f"{path} fn {name}"
            if lines > max(FUNCTION_LINES, found.get(entry, 0)):
                found[entry] = lines
    return found


def parse_reasons(text):
    """Reads lines of `entry: reason`; an indented line continues a reason, # starts a comment."""
    reasons, entry = {}, None
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line[0].isspace() and entry:
            reasons[entry] += " " + line.strip()
        else:
            entry, _, reason = line.partition(": ")
            reasons[entry] = reason.strip()
    return reasons


def compare(found, reasons):
    """Returns the errors: what is over a limit without a reason, and reasons without need."""
    errors = []
    for entry, lines in sorted(found.items()):
        if not reasons.get(entry):
            errors.append(f"{entry}: {lines} lines, without a reason")
    for entry in sorted(set(reasons) - set(found)):
        errors.append(f"{entry}: has a reason, but is not over the limit")
    return errors
