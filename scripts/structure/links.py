"""Finds relative links in Markdown that lead nowhere."""

import os
import re

LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
DEFINITION = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?\s*$", re.MULTILINE)
FENCE = re.compile(r"^( {0,3})(```+|~~~+)[^\n]*\n.*?^ {0,3}\2[ \t]*$", re.MULTILINE | re.DOTALL)


def prose(text):
    """Returns the text without code, with its line breaks."""
    blank = lambda match: "\n" * match.group().count("\n")
    return re.sub(r"(`+)(?!`)(?s:.+?)(?<!`)\1(?!`)", blank, FENCE.sub(blank, text))


def anchors(text):
    """Returns the anchors that GitHub makes of the headings."""
    found = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", text), re.MULTILINE):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        number, unique = 0, name
        while unique in found:
            number += 1
            unique = f"{name}-{number}"
        found.add(unique)
    return found


def broken(files, read, exists):
    """Returns one line for each relative link of the .md files whose file or heading is missing."""
    errors = []
    for path in files:
        if not path.endswith(".md"):
            continue
        text = prose(read(path))
        for match in [*LINK.finditer(text), *DEFINITION.finditer(text)]:
            target, _, anchor = match.group(1).partition("#")
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            place = path
            if target:
                place = os.path.normpath(os.path.join(os.path.dirname(path), target))
            line = text.count("\n", 0, match.start()) + 1
            if not exists(place):
                errors.append(f"{path}:{line}: no file {target}")
            elif anchor and place.endswith(".md") and anchor not in anchors(read(place)):
                errors.append(f"{path}:{line}: no heading #{anchor} in {place}")
    return errors
