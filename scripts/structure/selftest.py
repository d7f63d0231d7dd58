"""Tests of the structure check, on small made-up crates."""

from structure import imports, lengths, links


def crate_edges(files):
    """Returns {(from, to)} of a crate given as {path under src: text}."""
    files = {f"src/{name}": text for name, text in files.items()}
    root = imports.Reader(files.__getitem__, files.__contains__).crate("src/lib.rs")
    short = lambda path: path.removeprefix("src/").removesuffix(".rs")
    return {(short(a), short(b)) for a, b in imports.edges(root)}


def circle_of(files):
    files = {f"src/{name}": text for name, text in files.items()}
    edges = imports.edges(imports.Reader(files.__getitem__, files.__contains__).crate("src/lib.rs"))
    return [sorted(group) for group in imports.circles(edges)]


def edges_are(files, *wanted):
    found = crate_edges(files)
    assert found == set(wanted), f"{files}: {sorted(found)}, not {sorted(wanted)}"


A_AND_B = "mod a;\nmod b;\n"


def mod_lines_are_no_edges():
    edges_are({"lib.rs": A_AND_B, "a.rs": "", "b.rs": ""})


def use_and_paths_are_edges():
    for text in (
        "use crate::b::B;",
        "use super::b::B;",
        "use super::b;",
        "pub(crate) use crate::b::B as C;",
        "pub(in crate::a) fn f() -> crate::b::B { todo!() }",
        "fn f() { super::b::g::<u8>(1) }",
        "fn f() { use crate::b; }",
        "use crate::{\n    b::{\n        self,\n        B,\n    },\n};",
        "macro_rules! m { () => { use $crate::{b::B}; } }",
        "use crate::b::*;",
        "fn f<'a>(x: &'a str) -> char { crate::b::g('\"', '\\'', 'x') }",
        "struct S(pub (crate::b::B, u8));",
    ):
        edges_are({"lib.rs": A_AND_B, "a.rs": text, "b.rs": "pub struct B;"}, ("a", "b"))


def what_is_not_code_is_no_edge():
    for text in (
        "// use crate::b::B;",
        "/* use crate::b::B; /* nested */ crate::b::B */",
        "/// See [`crate::b::B`].\nfn f() {}",
        'const X: &str = "use crate::b::B; \\" crate::b::B";',
        'const X: &str = r#"crate::b::B " crate::b::B"#;',
        "use ::b::B;",
        "use std::b::B;",
        "pub(in crate::a) struct A;",
    ):
        edges_are({"lib.rs": A_AND_B, "a.rs": text, "b.rs": "pub struct B;"})


def tests_are_left_out():
    for text in (
        "#[cfg(test)]\nmod tests { use crate::b::B; }",
        "#[cfg(test)]\nuse crate::{b::B, b};\nfn f() {}",
        '#[cfg(all(test, feature = "x"))]\n#[allow(unused)]\nfn f() { crate::b::g() }',
        "#[test]\nfn f() -> [u8; 2] { crate::b::g() }",
        "struct S { #[cfg(test)] b: crate::b::B, c: u8 }",
        "struct S { c: u8, #[cfg(test)] b: crate::b::B }",
        "fn f() { #[cfg(test)] crate::b::g(); }",
        "#[cfg(test)]\nconst X: crate::b::B = crate::b::B { x: 1 };",
        "#[cfg(test)]\nconst fn f() { crate::b::g() }",
        "#[cfg(test)]\npub(crate) const X: B = { crate::b::B };",
        "#![cfg(test)]\nuse crate::b::B;",
        "#[cfg(test)]\nmod tests;",
    ):
        files = {"lib.rs": A_AND_B, "a.rs": text, "b.rs": "pub struct B;"}
        edges_are({**files, "a/tests.rs": "use crate::b::B;"})
    # Code after test items, and code that is not for tests alone, counts.
    for text in (
        "#[cfg(test)]\nmod tests { fn f() {} }\nuse crate::b::B;",
        "struct S { #[cfg(test)] c: u8, b: crate::b::B }",
        "#[cfg(not(test))]\nuse crate::b::B;",
        "#[cfg(any(test, unix))]\nuse crate::b::B;",
    ):
        edges_are({"lib.rs": A_AND_B, "a.rs": text, "b.rs": "pub struct B;"}, ("a", "b"))


def reexports_are_followed():
    files = {
        "lib.rs": "mod a;\npub mod b;\npub(crate) use b::{B, inner as deep};\nuse std::fmt::Debug;",
        "b/mod.rs": "mod inner;\npub use self::inner::B;",
        "b/inner.rs": "pub struct B;\npub fn g() {}",
    }
    own = {("lib", "b/inner"), ("b/mod", "b/inner")}
    # `use b::{inner}` leads to inner.rs, and so does B, which b/mod.rs re-exports.
    edges_are({**files, "a.rs": "use crate::B;"}, *own, ("a", "b/inner"))
    edges_are({**files, "a.rs": "use crate::b::B;"}, *own, ("a", "b/inner"))
    edges_are({**files, "a.rs": "fn f() { crate::deep::g() }"}, *own, ("a", "b/inner"))
    edges_are({**files, "a.rs": "use super::Debug;"}, *own)
    edges_are(
        {**files, "a.rs": "use crate::b;\nfn f() { b::B }"}, *own, ("a", "b/mod"), ("a", "b/inner")
    )
    edges_are({**files, "a.rs": "use crate::missing;"}, *own, ("a", "lib"))


def nested_modules_are_resolved():
    files = {
        "lib.rs": "mod a;\nmod b { pub mod c; pub fn f() { self::c::g() } }",
        "b/c.rs": "pub fn g() { super::f() }",
    }
    edges_are(
        {**files, "a.rs": "mod x { use super::super::b::c; fn f() { c::g() } }"},
        ("a", "b/c"),
        ("lib", "b/c"),
        ("b/c", "lib"),
    )
    edges_are(
        {
            "lib.rs": '#[path = "elsewhere/one.rs"]\npub(crate) mod a;\nmod b;',
            "elsewhere/one.rs": "",
            "b.rs": "use crate::a::A;",
        },
        ("b", "elsewhere/one"),
    )
    # A function with the name of a module.
    edges_are(
        {"lib.rs": A_AND_B + "fn b() {}", "a.rs": "use super::b::B;", "b.rs": "pub struct B;"},
        ("a", "b"),
    )
    # A child module named without `self`, and a name of another crate.
    edges_are(
        {"lib.rs": "mod a;\nfn f() { a::g(); b::g() }", "a.rs": "pub fn g() {}"}, ("lib", "a")
    )


def globs_lead_to_their_module():
    files = {"lib.rs": "mod a;\nmod b;\npub use b::*;", "b.rs": "pub struct B;"}
    edges_are({**files, "a.rs": "use super::*;"}, ("a", "lib"), ("lib", "b"))
    # A name imported by a glob is looked up in the module that the glob names.
    edges_are({**files, "a.rs": "use crate::B;"}, ("a", "b"), ("lib", "b"))


def exported_macros_are_at_the_root():
    files = {"lib.rs": A_AND_B, "a.rs": "fn f() { crate::m!() }"}
    edges_are({**files, "b.rs": "#[macro_export]\nmacro_rules! m { () => {} }"}, ("a", "b"))


def circles_are_found():
    files = {"lib.rs": A_AND_B + "mod c;", "a.rs": "use crate::b::B;", "c.rs": "use crate::a::A;"}
    assert circle_of({**files, "b.rs": "pub struct B;"}) == []
    assert circle_of({**files, "b.rs": "use crate::c;"}) == [["src/a.rs", "src/b.rs", "src/c.rs"]]
    parent = {"lib.rs": "mod a;", "a/mod.rs": "mod b;\npub(crate) use b::B;\npub struct A;"}
    assert circle_of({**parent, "a/b.rs": "pub struct B;"}) == []
    assert circle_of({**parent, "a/b.rs": "use super::A;"}) == [["src/a/b.rs", "src/a/mod.rs"]]
    assert circle_of({**parent, "a/b.rs": "use super::*;"}) == [["src/a/b.rs", "src/a/mod.rs"]]
    edges = {("a", "b"): [], ("b", "c"): [], ("c", "a"): [], ("c", "b"): []}
    assert imports.shortest_circle(edges, {"a", "b", "c"}) == ["b", "c"]


def functions_are_measured():
    rust = (
        "fn a<const N: usize>(x: [u8; { N }]) -> Row<{ N }>\nwhere\n    X: Y,\n{\n"
        "    '{'; \"{\";\n}\n"
        "trait T {\n    fn none(&self);\n    fn b(f: fn(u8)) {\n        // }\n    }\n}\n"
    )
    assert lengths.functions("x.rs", rust) == [("a", 6), ("b", 3)]
    wgsl = "//@ for x in N {\n@compute\nfn main(@builtin(x) i: vec3<u32>) {\n    if a {\n    }\n}\n"
    assert lengths.functions("x.wgsl", wgsl) == [("main", 4)]
    cuda = (
        "#define OPEN() \\\n    f() {\nnamespace n {\nstruct S {\n    int x = {1};\n"
        "    __device__ S(int y) : x(y) {\n    }\n};\n"
        'extern "C" __global__ void __launch_bounds__(128)\n'
        "kernel(float *x) {\n  if (x) {\n  }\n}\n"
        "}\nint table[] = {1, 2};\nenum E { A };\n"
        "template <int N, bool B = (N > 1)>\n__device__ auto g() -> int {\n  return '{';\n}\n"
    )
    assert lengths.functions("x.cu", cuda) == [("S", 2), ("kernel", 4), ("g", 3)]


def lengths_need_reasons():
    files = {"long.rs": "\n" * 351, "f.rs": "fn f() {" + "\n" * 80 + "}", "ok.rs": "\n" * 350}
    found = lengths.over_limits(files, files.__getitem__)
    assert found == {"long.rs": 351, "f.rs fn f": 81}
    reasons = lengths.parse_reasons("# why\nlong.rs: a table\n    of tests\nf.rs fn f: one loop\n")
    assert reasons == {"long.rs": "a table of tests", "f.rs fn f": "one loop"}
    assert lengths.compare(found, reasons) == []
    assert len(lengths.compare(found, {"long.rs": ""})) == 2
    assert len(lengths.compare({}, reasons)) == 2


def links_are_checked():
    files = {
        "README.md": "[a](docs/a.md) [b](docs/a.md#two-words) ![p](docs/p.svg) [w](https://x.y/z)\n"
        "```sh\n[no](nowhere.md)\n```\n`[no](nowhere.md)` [own](#top)\n\n# Top\n",
        "docs/a.md": "# A\n\n## Two `words`\n[up](../README.md)\n[ref]: p.svg\n",
    }
    names = {*files, "docs/p.svg", "docs"}
    assert links.broken(files, files.__getitem__, names.__contains__) == []
    files["docs/a.md"] += "[x](a/b.md) [y](../README.md#bottom)\n[r]: missing.svg\n"
    assert len(links.broken(files, files.__getitem__, names.__contains__)) == 3


TESTS = [
    mod_lines_are_no_edges,
    use_and_paths_are_edges,
    what_is_not_code_is_no_edge,
    tests_are_left_out,
    reexports_are_followed,
    nested_modules_are_resolved,
    globs_lead_to_their_module,
    exported_macros_are_at_the_root,
    circles_are_found,
    functions_are_measured,
    lengths_need_reasons,
    links_are_checked,
]


def run():
    for test in TESTS:
        test()
        print(f"ok: {test.__name__}")
