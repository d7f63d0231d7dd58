"""Finds which files of a crate import which, and the circles among them.

An edge leads from a file to the file that defines what it names, by a `use` declaration or by a
path: `super::tile::Tile` or, where `tile` is a module in scope, `tile::Tile`. A re-export is
followed to its definition, so `use crate::Tile` leads to tile.rs and not to lib.rs. A glob leads to
the file of the module that it names. `mod` lines are not edges, and items under `#[cfg(test)]` are
left out.
"""

import os
import re
from dataclasses import dataclass, field

from structure.tokens import closing, tokenize


@dataclass
class Module:
    file: str
    folder: str  # where the files of its child modules are
    parent: "Module | None" = None
    children: dict = field(default_factory=dict)
    items: set = field(default_factory=set)
    exported_macros: dict = field(default_factory=dict)  # only the crate's root has any: name, file
    uses: dict = field(default_factory=dict)  # name: the paths it is imported from
    globs: list = field(default_factory=list)
    paths: list = field(default_factory=list)  # (path, line), of imports and of other paths

    def root(self):
        return self.parent.root() if self.parent else self


ITEM_WORDS = {"fn", "struct", "enum", "union", "trait", "type", "const", "static", "mod"}
FN_QUALIFIERS = {"fn", "unsafe", "async", "extern"}


class Reader:
    """Reads the modules of one crate, from its root file on."""

    def __init__(self, read, exists):
        self.read, self.exists = read, exists

    def crate(self, root_file):
        root = Module(root_file, os.path.dirname(root_file))
        self.file(root)
        return root

    def file(self, module):
        tokens = tokenize(self.read(module.file))
        self.items(tokens, 0, len(tokens), module)

    def items(self, tokens, at, end, module):
        """Reads the items of `module`, or the statements of a function in it."""
        depth, test, path, exported = 0, False, None, False
        while at < end:
            token = tokens[at]
            if token.text == "#" and at + 1 < end and tokens[at + 1].text in ("[", "!"):
                inner = tokens[at + 1].text == "!"
                close = closing(tokens, at + 1 + inner)
                words = [t.text for t in tokens[at + 2 + inner : close]]
                if is_test(words):
                    if inner:
                        return
                    test = True
                if words[:2] == ["path", "="]:
                    path = words[2].strip('"')
                exported |= words[:1] == ["macro_export"]
                at = close + 1
                continue
            if test:
                at, test, path, exported = item_end(tokens, at, end) + 1, False, None, False
                continue
            at, opened = self.item(tokens, at, module, depth, path, exported)
            depth += opened
            if token.text not in ("pub", "(", ")", "crate", "super", "in"):
                path, exported = None, False

    def item(self, tokens, at, module, depth, path, exported):
        """Reads one token, or the item that it begins. Returns the next index, and how far the
        depth of braces has changed."""
        token = tokens[at]
        after = tokens[at + 1 : at + 3]
        word = token.text if token.kind == "name" else ""
        if token.text == "{":
            return at + 1, 1
        if token.text == "}":
            return at + 1, -1
        if word == "pub" and after and after[0].text == "(":
            # `pub(super)` and `pub(in a::b)`, not the `pub (a::B, C)` of a tuple struct.
            close = closing(tokens, at + 1)
            if after[1].text == "in" or close == at + 3:
                return close + 1, 0
        elif word == "mod" and len(after) == 2 and after[0].kind == "name":
            if after[1].text == ";":
                self.child_file(module, after[0].text, path)
                return at + 3, 0
            if after[1].text == "{":
                close = closing(tokens, at + 2)
                name = after[0].text
                inline = Module(module.file, os.path.join(module.folder, path or name), module)
                module.children[name] = inline
                self.items(tokens, at + 3, close, inline)
                return close + 1, 0
        elif word == "use":
            return self.use(tokens, at, module), 0
        elif word == "macro_rules" and len(after) == 2 and after[0].text == "!":
            module.items.add(after[1].text)
            if exported:
                module.root().exported_macros[after[1].text] = module.file
            close = closing(tokens, at + 3)
            self.paths(tokens, at + 3, close, module)
            return close + 1, 0
        elif word in ITEM_WORDS and depth == 0 and after and after[0].kind == "name":
            if word not in ("const", "static") or after[0].text not in FN_QUALIFIERS:
                name = after[0] if after[0].text != "mut" else after[1]
                module.items.add(name.text)
        return self.path(tokens, at, module), 0

    def child_file(self, module, name, path):
        # `#[path]` counts from the file's own folder, the rest from the module's.
        place = os.path.join(module.folder, name)
        places = [place + ".rs", os.path.join(place, "mod.rs")]
        if path:
            places = [os.path.normpath(os.path.join(os.path.dirname(module.file), path))]
        for place in places:
            if self.exists(place):
                folder = os.path.join(module.folder, name)
                if path:
                    folder = os.path.splitext(place)[0]
                    if os.path.basename(place) == "mod.rs":
                        folder = os.path.dirname(place)
                child = Module(place, folder, module)
                module.children.setdefault(name, child)
                self.file(child)

    def use(self, tokens, at, module):
        end = at
        while end < len(tokens) and tokens[end].text != ";":
            end = closing(tokens, end) if tokens[end].text == "{" else end
            end += 1
        for path, name, line in use_tree(tokens, at + 1, end, ()):
            module.paths.append((path, line))
            if name == "*":
                module.globs.append(path)
            elif name != "_":
                module.uses.setdefault(name, []).append(path)
        return end + 1

    def path(self, tokens, at, module):
        """Notes the path that starts at `at`, if one does. Returns the next index."""
        token = tokens[at]
        starts = token.kind == "name" and at + 1 < len(tokens) and tokens[at + 1].text == "::"
        if not starts or at and tokens[at - 1].text == "::":
            return at + 1
        end = at
        while end + 2 < len(tokens) and tokens[end + 1].text == "::":
            if tokens[end + 2].kind != "name":
                break
            end += 2
        found = tuple(t.text for t in tokens[at : end + 1 : 2])
        if end + 2 < len(tokens) and tokens[end + 1].text == "::" and tokens[end + 2].text == "{":
            # A `use` in a macro.
            close = closing(tokens, end + 2)
            for path, _, line in use_tree(tokens, end + 2, close + 1, found):
                module.paths.append((path, line))
            return close + 1
        if len(found) > 1:
            module.paths.append((found, token.line))
        return end + 1

    def paths(self, tokens, at, end, module):
        while at < end:
            at = self.path(tokens, at, module)


def is_test(words):
    """Tells whether an attribute compiles its item for tests only."""
    if words == ["test"]:
        return True
    if words[:2] != ["cfg", "("]:
        return False

    def only_test(words):
        if words in (["test"], ["doctest"]):
            return True
        if words[:2] != ["all", "("]:
            return False
        parts, depth = [[]], 0
        for word in words[2:-1]:
            depth += (word == "(") - (word == ")")
            if word == "," and depth == 0:
                parts.append([])
            else:
                parts[-1].append(word)
        return any(only_test(part) for part in parts)

    return only_test(words[2:-1])


def item_end(tokens, at, end):
    """Returns the index of the last token of the item, statement, field or match arm at `at`."""
    words = [t.text for t in tokens[at : at + 8]]
    while words[:1] == ["pub"]:
        words = words[1:]
        if words[:1] == ["("]:
            words = words[words.index(")") + 1 :] if ")" in words else []
    first = words[0] if words else ""
    is_function = any(w in FN_QUALIFIERS for w in words[1:2])
    to_semicolon = first in ("use", "static", "type", "let") or first == "const" and not is_function
    is_item = first in ITEM_WORDS | FN_QUALIFIERS | {"impl", "macro_rules"}
    while at < end:
        text = tokens[at].text
        if text == ";" or text == "," and not is_item and not to_semicolon:
            return at
        if text in ("(", "[", "{"):
            close = closing(tokens, at)
            if text == "{" and not to_semicolon:
                return close
            at = close
        elif text in (")", "]", "}"):
            return at - 1  # of what surrounds a last field
        at += 1
    return end


def use_tree(tokens, at, end, prefix):
    """Yields (path, name in scope, line) of each leaf of a use tree; the name of a glob is "*"."""
    while at < end:
        path, name = list(prefix), None
        if tokens[at].text == "::":
            path.append("::")  # another crate, whatever modules are in scope
        line = tokens[at].line
        while at < end and tokens[at].text != ",":
            token = tokens[at]
            if token.text == "{":
                close = closing(tokens, at)
                yield from use_tree(tokens, at + 1, close, tuple(path))
                at, path = close + 1, None
                break
            if token.text == "as":
                name = tokens[at + 1].text
                at += 1
            elif token.text == "*":
                name = "*"
            elif token.text == "self" and path:
                pass
            elif token.kind == "name":
                path.append(token.text)
            line = token.line
            at += 1
        if path:
            yield tuple(path), name or path[-1], line
        while at < end and tokens[at].text != ",":
            at += 1
        at += 1


class Resolver:
    """Finds what a path names: modules, and files that define items.

    Modules import each other's names by globs, which may lead back to where they came from, so each
    name is looked up in each module once.
    """

    def __init__(self):
        self.known = {}

    def resolve(self, path, module):
        """Returns what `path`, written in `module`, names; nothing if it is in another crate."""
        first, rest = path[0], path[1:]
        if first == "crate":
            return self.descend(module.root(), rest)
        if first == "self":
            return self.descend(module, rest)
        if first == "super":
            return self.descend(module.parent, rest) if module.parent else []
        found = self.lookup(module, first)
        return self.descend_all(found, rest) if found else []

    def descend(self, module, path):
        if not path:
            return [module]
        if path[0] == "super":
            return self.descend(module.parent, path[1:]) if module.parent else []
        found = self.lookup(module, path[0])
        # A name that nothing here defines, perhaps made by a macro, is taken for the module's own.
        return [module.file] if found is None else self.descend_all(found, path[1:])

    def descend_all(self, targets, path):
        found = []
        if path and any(isinstance(target, Module) for target in targets):
            # A function may have the name of a module; here the module is meant.
            targets = [target for target in targets if isinstance(target, Module)]
        for target in targets:
            found += self.descend(target, path) if isinstance(target, Module) else [target]
        return found

    def lookup(self, module, name):
        """Returns what `name` is in the scope of `module`, None if it is not there."""
        key = (id(module), name)
        if key not in self.known:
            self.known[key] = None  # for a glob that leads back here
            self.known[key] = self.in_scope(module, name)
        return self.known[key]

    def in_scope(self, module, name):
        found = [module.children[name]] if name in module.children else []
        for path in module.uses.get(name, ()):
            found += self.resolve(path, module)
        if name in module.items:
            found.append(module.file)
        if name in module.exported_macros:
            found.append(module.exported_macros[name])
        if found or name in module.uses:
            return found
        for path in module.globs:
            for target in self.resolve(path, module):
                if isinstance(target, Module):
                    found += self.lookup(target, name) or []
        return found or None


def edges(root):
    """Returns {(from, to): [(line, path)]} for the files of the crate."""
    found, resolver = {}, Resolver()

    def walk(module):
        for path, line in module.paths:
            for target in resolver.resolve(path, module):
                to = target.file if isinstance(target, Module) else target
                if to != module.file:
                    places = found.setdefault((module.file, to), [])
                    place = (line, "::".join(path))
                    if place not in places:
                        places.append(place)
        for child in module.children.values():
            walk(child)

    walk(root)
    return found


def circles(edges):
    """Returns the groups of files that import each other, directly or through others."""
    graph = {}
    for start, end in edges:
        graph.setdefault(start, set()).add(end)

    def reachable(start):
        seen, todo = set(), [start]
        while todo:
            for end in graph.get(todo.pop(), ()):
                if end not in seen:
                    seen.add(end)
                    todo.append(end)
        return seen

    reach = {file: reachable(file) for file in graph}
    groups = []
    for file in sorted(graph):
        group = {other for other in reach[file] if file in reach.get(other, ())}
        if group and group not in groups:
            groups.append(group)
    return groups


def shortest_circle(edges, group):
    """Returns a shortest circle in `group`, as a list of files."""
    graph = {}
    for start, end in sorted(edges):
        if start in group and end in group:
            graph.setdefault(start, []).append(end)
    best = None
    for start in sorted(group):
        came_from, todo = {}, [start]
        while todo and start not in came_from:
            file = todo.pop(0)
            for end in graph[file]:
                if end not in came_from:
                    came_from[end] = file
                    todo.append(end)
        circle = [came_from[start]]
        while circle[0] != start:
            circle.insert(0, came_from[circle[0]])
        if not best or len(circle) < len(best):
            best = circle
    return best


def roots(manifest_folder, exists, files):
    """Returns the root files of the targets under a crate's src."""
    src = os.path.join(manifest_folder, "src")
    found = [os.path.join(src, name) for name in ("lib.rs", "main.rs")]
    bins = re.compile(re.escape(os.path.join(src, "bin")) + r"/([^/]+\.rs|[^/]+/main\.rs)$")
    return [f for f in found if exists(f)] + [f for f in files if bins.match(f)]
