"""Makes stand-ins for the CUDA libraries that PyTorch's wheel links to.

With them, PyTorch imports and works on the CPU, without 4 GB of libraries for GPUs. Needs gcc and
readelf.

    python scripts/torch_stand_ins.py TORCH_LIB OUT

TORCH_LIB is the folder `torch/lib`. Afterwards, LD_LIBRARY_PATH must hold OUT and the folder of the
real libcudart and libcupti (wheels nvidia-cuda-runtime and nvidia-cuda-cupti), because importing
PyTorch calls them.
"""

import collections
import pathlib
import re
import subprocess
import sys

# The libraries without a stand-in: those of the two wheels, and the driver's.
REAL = ("libcudart", "libcupti", "libcuda.")
# The libraries whose symbols have no versions, with the prefixes of their symbols.
UNVERSIONED = {"libcusparseLt": "cusparseLt", "libnccl": "p?nccl", "libcufile": "cuFile"}


def output(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Wanted:
    """The libraries and symbols that PyTorch's own libraries need."""

    def __init__(self, folder):
        self.libraries = set()
        # The versions needed from each library, and the symbols needed from each version.
        self.versions = collections.defaultdict(set)
        self.symbols = collections.defaultdict(set)
        own = {path.name for path in folder.glob("*.so*")}
        for path in folder.glob("*.so"):
            needed = re.findall(
                r"NEEDED.*\[(lib(?:cu|nccl|nv)[^\]]+)\]", output("readelf", "-dW", path)
            )
            self.libraries |= {name for name in needed if name not in own}
            self.read_versions(path)
            self.read_symbols(path)

    def read_versions(self, path):
        library = None
        for line in output("readelf", "-VW", path).splitlines():
            if match := re.search(r"File: (\S+)", line):
                library = match[1]
            if library and (match := re.search(r"Name: (\S+)\s+Flags", line)):
                self.versions[library].add(match[1])

    def read_symbols(self, path):
        for line in output("readelf", "--dyn-syms", "-W", path).splitlines():
            columns = line.split()
            if len(columns) >= 8 and columns[6] == "UND":
                name, _, version = columns[7].replace("@@", "@").partition("@")
                self.symbols[version].add(name)

    def symbols_of(self, library):
        names = set().union(*(self.symbols[version] for version in self.versions[library]))
        if prefix := UNVERSIONED.get(library.split(".so")[0]):
            names |= {name for name in self.symbols[""] if re.match(prefix, name)}
        return sorted(names)


def make(library, wanted, out):
    """Builds a library that has the wanted symbols, as data."""
    source, script = out / f"{library}.c", out / f"{library}.map"
    source.write_text("".join(f"char {name}[64];\n" for name in wanted.symbols_of(library)))
    command = ["gcc", "-w", "-shared", f"-Wl,-soname,{library}", "-o", out / library, source]
    if versions := sorted(wanted.versions[library]):
        globals_of = {
            v: "".join(f"{name}; " for name in sorted(wanted.symbols[v])) for v in versions
        }
        script.write_text("".join(f"{v} {{ global: {globals_of[v]}}};\n" for v in versions))
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, check=True)


def main():
    folder, out = map(pathlib.Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    wanted = Wanted(folder)
    libraries = sorted(name for name in wanted.libraries if not name.startswith(REAL))
    for library in libraries:
        make(library, wanted, out)
    print("stand-ins:", *libraries)


if __name__ == "__main__":
    main()
