"""Builds fastdistil._C with CMake. Everything else about the package is in pyproject.toml.

The environment variable FASTDISTIL_CUDA says whether its CUDA kernels are in it:

    unset       for the GPUs of this machine, if there are any and nvcc is there, too
    1           for every GPU that they are written for; nvcc must be there
    0           no
    emulated    as C++ that plays them on the CPU: slow, for the tests of their developers
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError

ROOT = Path(__file__).resolve().parent

# Compute capabilities that the CUDA kernels are compiled for by name. What PTX of the nearest below
# can do, its driver compiles for any other; below the first they do not run.
GENERATIONS = {80: "80", 86: "86", 89: "89", 90: "90a", 100: "100"}

# cuDeviceGetAttribute's names for the two halves of a GPU's compute capability.
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True)
class CudaBuild:
    """What becomes of the CUDA kernels.

    Attributes:
        mode: CMake's FASTDISTIL_CUDA.
        nvcc: the compiler, where the mode is ON.
        architectures: what it compiles for; empty for everything.
        required: whether the user asked for it: then it must not fail.
    """

    mode: str
    nvcc: str = ""
    architectures: str = ""
    required: bool = True

    def arguments(self) -> list[str]:
        """For CMake."""
        given = [f"-DFASTDISTIL_CUDA={self.mode}"]
        if self.nvcc:
            given.append(f"-DCMAKE_CUDA_COMPILER={self.nvcc}")
        if self.architectures:
            given.append(f"-DFASTDISTIL_CUDA_ARCHITECTURES={self.architectures}")
        return given


def find_nvcc() -> str | None:
    """Where CUDA's compiler is: what CUDACXX says, else where it usually is."""
    named = os.environ.get("CUDACXX")
    if named:
        return shutil.which(named)
    roots = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [os.path.join(root, "bin") for root in roots if root]
    folders += [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(folders))


def gpu_capabilities() -> set[int]:
    """The compute capabilities of this machine's GPUs, as in 90 for 9.0; empty without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return set()
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return set()
    found = set()
    for number in range(count.value):
        if driver.cuDeviceGet(ctypes.byref(device), number) != 0:
            continue
        capability = 0
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
            capability = 10 * capability + value.value
        found.add(capability)
    return found


def architecture(capability: int) -> str | None:
    """What nvcc must compile for, so that such a GPU can run it; None if none can."""
    if capability in GENERATIONS:
        return f"{GENERATIONS[capability]}-real"
    older = [known for known in GENERATIONS if known < capability]
    return f"{max(older)}-virtual" if older else None


def cuda_build() -> CudaBuild:
    """What FASTDISTIL_CUDA and this machine say is to become of the CUDA kernels."""
    asked = os.environ.get("FASTDISTIL_CUDA", "")
    nvcc = find_nvcc()
    if asked == "":
        targets = sorted({name for name in map(architecture, gpu_capabilities()) if name})
        if nvcc is None or not targets:
            return CudaBuild("OFF")
        return CudaBuild("ON", nvcc, ";".join(targets), required=False)
    if asked == "0":
        return CudaBuild("OFF")
    if asked == "emulated":
        return CudaBuild("EMULATED")
    if asked != "1":
        raise ExecError(f"FASTDISTIL_CUDA is {asked!r}: supported are 1, 0 and emulated, or unset")
    if nvcc is None:
        raise ExecError(
            "FASTDISTIL_CUDA=1 asks for the CUDA kernels, but there is no nvcc: not by CUDACXX,"
            " CUDA_HOME or CUDA_PATH, not on PATH, not in /usr/local/cuda. Install NVIDIA's CUDA"
            " toolkit, 12.8 or newer, and have CUDA_HOME name its folder; or unset FASTDISTIL_CUDA"
        )
    return CudaBuild("ON", nvcc)


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


def warn_of_no_extension(problem: str) -> None:
    warn(
        f"\nWARNING: fastdistil is being installed without its C++ extension: {problem}."
        "\nIt works on PyTorch alone, several times slower on a CPU. To have the extension,"
        "\ninstall a C++ compiler and Python's headers (on Debian or Ubuntu: apt install g++"
        "\npython3-dev), then install fastdistil again with --no-cache-dir --force-reinstall.\n\n"
    )


def warn_of_no_kernels(nvcc: str) -> None:
    warn(
        f"\nWARNING: fastdistil is being installed without its CUDA kernels: {nvcc}"
        "\nfailed to compile a program (what it said is in pip's log, with -v on the screen)."
        "\nOn a GPU it runs on Triton alone. To have them, install a CUDA toolkit that supports"
        "\nthis machine's GPU and C++ compiler, then install fastdistil again with"
        "\n--no-cache-dir --force-reinstall. FASTDISTIL_CUDA=0 says that they are not wanted.\n\n"
    )


def warn(text: str) -> None:
    """Say what the user goes without, where they can see it."""
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

    The build folder, one for each Python, compiler and way with the CUDA kernels, stays between
    builds, so an unchanged source is not compiled twice. Tools may lie elsewhere each time (pip
    makes an environment for a single build), so CMake is told of them each time.
    """

    def build_extension(self, ext: Extension) -> None:
        cuda = cuda_build()
        try:
            build = self.configure(cuda)
        except ExecError:
            if cuda.required:
                raise
            warn_of_no_kernels(cuda.nvcc)
            build = self.configure(CudaBuild("OFF"))
        self.run_tool([find_tool("cmake"), "--build", str(build)])
        # Built there and copied, since each build folder takes what it built last for current;
        # and renamed into place, since a running program may have the one before it loaded.
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        shutil.copy(build / "module" / target.name, partial)
        partial.replace(target)

    def configure(self, cuda: CudaBuild) -> Path:
        """Have CMake look at everything; the folder to build in."""
        import pybind11

        compiler = shlex.join(find_compiler() or [])
        identity = "\n".join([compiler, *cuda.arguments()])
        key = hashlib.sha256(identity.encode()).hexdigest()[:8]
        tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}-{key}"
        build = ROOT / "build" / f"cmake-{tag}"
        self.run_tool(
            [
                find_tool("cmake"),
                *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
                f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'module'}",
                *cuda.arguments(),
            ],
            CXX=compiler,
        )
        return build

    def run_tool(self, command: list[str], **env: str) -> None:
        print(shlex.join(command), flush=True)
        status = subprocess.run(command, check=False, env={**os.environ, **env}).returncode
        if status != 0:
            raise ExecError(f"{command[0]} failed with exit status {status}; what it said is above")


problem = missing_tool()
if problem and {"bdist_wheel", "editable_wheel", "build_ext"}.intersection(sys.argv):
    if os.environ.get("FASTDISTIL_CUDA") == "1":
        raise SystemExit(f"error: FASTDISTIL_CUDA=1 asks for the CUDA kernels, but {problem}")
    warn_of_no_extension(problem)

setup(
    ext_modules=[] if problem else [Extension("fastdistil._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
