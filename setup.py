"""Builds fastdistil._C with CMake. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent


def find_compiler() -> list[str] | None:
    """The C++ compiler and the arguments it always gets: what CXX says, else the system's."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [["c++"], ["g++"], ["clang++"]]
    for name, *arguments in candidates:
        path = shutil.which(name)
        if path is not None:
            return [path, *arguments]
    return None


def missing_tool() -> str | None:
    """Why no extension can be built on this machine at all, or None if one can."""
    if find_compiler() is None:
        named = os.environ.get("CXX")
        if named:
            return f"the C++ compiler that CXX names, {named!r}, is not there"
        return "there is no C++ compiler (g++ or clang++)"
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").exists():
        return f"Python's C headers are not there (no Python.h in {headers})"
    return None


def warn(problem: str) -> None:
    """Say what the user goes without, where they can see it."""
    text = (
        f"\nWARNING: fastdistil is being installed without its C++ extension: {problem}."
        "\nIt works on PyTorch alone, several times slower on a CPU. To have the extension,"
        "\ninstall a C++ compiler and Python's headers (on Debian or Ubuntu: apt install g++"
        "\npython3-dev), then install fastdistil again with --no-cache-dir --force-reinstall.\n\n"
    )
    sys.stderr.write(text)
    if not sys.stderr.isatty():
        # pip shows nothing of a build that succeeds, so this goes to the user's terminal, if any.
        try:
            with open("/dev/tty", "w") as terminal:
                terminal.write(text)
        except OSError:
            pass


def find_tool(name: str) -> str:
    """The path of cmake or ninja: this environment's own, else the first on PATH.

    A tool installed by pip is not on PATH unless its environment has been activated.
    """
    found = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if found is None:
        raise ExecError(f"{name} is not installed; `pip install {name}` provides it")
    return found


class CMakeBuild(build_ext):
    """Runs CMake for the one extension there is.

    The build folder, one for each Python and compiler, stays between builds, so an unchanged source
    is not compiled twice. Tools may lie elsewhere each time (pip makes an environment for a single
    build), so CMake is told of them each time.
    """

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compiler = shlex.join(find_compiler() or [])
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        key = hashlib.sha256(compiler.encode()).hexdigest()[:8]
        tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{key}"
        build = ROOT / "build" / f"cmake-{tag}"
        ninja = find_tool("ninja")
        cmake = find_tool("cmake")
        self.run_tool(
            [
                cmake,
                *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
                f"-DCMAKE_MAKE_PROGRAM={ninja}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output}",
            ],
            CXX=compiler,
        )
        self.run_tool([cmake, "--build", str(build)])

    def run_tool(self, command: list[str], **env: str) -> None:
        print(shlex.join(command), flush=True)
        status = subprocess.run(command, check=False, env={**os.environ, **env}).returncode
        if status != 0:
            raise ExecError(f"{command[0]} failed with exit status {status}; what it said is above")


problem = missing_tool()
if problem and {"bdist_wheel", "editable_wheel", "build_ext"}.intersection(sys.argv):
    warn(problem)

setup(
    ext_modules=[] if problem else [Extension("fastdistil._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
