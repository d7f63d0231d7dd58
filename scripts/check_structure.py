"""Checks the structure of the workspace. Exit status: 1 if

- files of a crate import each other in a circle (structure/imports.py says what counts),
- a source file has over 350 lines or a function over 80, and structure/reasons.txt has no reason,
- structure/reasons.txt has a reason for something that is no longer over its limit,
- README.md has over 150 lines,
- a relative link in a Markdown file leads nowhere.

    python3 scripts/check_structure.py               # checks the git checkout that it is called in
    python3 scripts/check_structure.py --circles     # only the circles
    python3 scripts/check_structure.py --self-test   # checks the check, on made-up crates
"""

import argparse
import os
import subprocess
import sys

from structure import imports, lengths, links, selftest

REASONS = "scripts/structure/reasons.txt"


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def output(*command):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def report_circles(files):
    """Prints the circles of every crate. Returns how many there are."""
    count = 0
    for manifest in sorted(f for f in files if os.path.basename(f) == "Cargo.toml"):
        folder = os.path.dirname(manifest)
        for root in imports.roots(folder, os.path.exists, files):
            edges = imports.edges(imports.Reader(read, os.path.exists).crate(root))
            for group in imports.circles(edges):
                count += 1
                print(f"circle among {len(group)} files of {folder or '.'}:")
                for (start, end), places in sorted(edges.items()):
                    if start in group and end in group:
                        line, path = places[0]
                        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
                        print(f"    {start}:{line} -> {end}: {path}{more}")
                circle = imports.shortest_circle(edges, group)
                print("    shortest: " + " -> ".join(map(os.path.basename, [*circle, circle[0]])))
    return count


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--circles", action="store_true", help="check nothing but the circles")
    parser.add_argument("--self-test", action="store_true", help="check the check itself")
    args = parser.parse_args()
    if args.self_test:
        return selftest.run()
    os.chdir(output("git", "rev-parse", "--show-toplevel").strip())
    listed = output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    files = sorted({f for f in listed.split("\0") if os.path.isfile(f)})

    circles = report_circles(files)
    print(f"import circles: {circles}")
    if args.circles:
        sys.exit(circles > 0)

    found = lengths.over_limits(files, read)
    reasons = lengths.parse_reasons(read(REASONS)) if os.path.exists(REASONS) else {}
    for entry, lines in sorted(found.items()):
        if reasons.get(entry):
            print(f"{entry}: {lines} lines: {reasons[entry]}")
    errors = lengths.compare(found, reasons)
    readme = len(read("README.md").splitlines())
    print(f"README.md: {readme} lines")
    if readme > lengths.README_LINES:
        errors.append(f"README.md: {readme} lines, over {lengths.README_LINES}")
    errors += links.broken(files, read, os.path.exists)
    for error in errors:
        print(f"error: {error}")
    sys.exit(bool(circles or errors))


if __name__ == "__main__":
    main()
