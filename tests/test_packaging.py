"""What `pip install` of this repository gives: built, looked into, installed and used.

Everything is built from a copy of the sources, so a test run leaves the checkout as it was. The
wheel is built as pip does it for a user: in an environment of its own, without torch, with the
build requirements fetched from the package index.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from cuda_gate import find_nvcc
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    "CMakeLists.txt",
    "LICENSE",
    "MANIFEST.in",
    "README.md",
    "pyproject.toml",
    "setup.py",
    "csrc",
    "fastdistil",
    "kernels",
]
NO_COMPILER = {"CXX": "/nonexistent/c++"}
NO_NVCC = {"CUDACXX": "/nonexistent/nvcc"}


def run(
    command: list[str | Path], *, cwd: Path | None = None, fails: bool = False, **env: str
) -> str:
    """Run a command and return all it said; assert that it succeeds, or that it fails."""
    done = subprocess.run(
        command,
        check=False,
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert (done.returncode != 0) == fails, done.stdout
    return done.stdout


def pip(*arguments: str | Path, fails: bool = False, **env: str) -> str:
    return run([sys.executable, "-m", "pip", *arguments], fails=fails, **env)


def copy_sources(target: Path) -> Path:
    """The files a build reads, without what earlier builds left in the checkout."""
    leave = shutil.ignore_patterns("_C.*", "__pycache__")
    target.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=leave)
        else:
            shutil.copy2(ROOT / name, target / name)
    return target


def build_wheel(source: Path, target: Path, *options: str, **env: str) -> Path:
    pip("wheel", "--no-deps", *options, "--wheel-dir", target, source, **env)
    (wheel,) = target.glob("fastdistil-*.whl")
    return wheel


def install(wheel: Path, target: Path) -> Path:
    pip("install", "--no-deps", "--target", target, wheel)
    return target


def make_environment(folder: Path) -> Path:
    """An environment with this one's packages but not this one's fastdistil; its interpreter.

    A path file shows it the packages; the hook of an editable install does not travel that way,
    nor do commands.
    """
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    interpreter = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site_packages = Path(run([interpreter, "-c", code]).strip())
    (site_packages / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return interpreter


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("environments") / "bare")


def python(interpreter: Path, installed: Path, *arguments: str) -> str:
    """Run Python on an installed copy, from a folder where nothing else is."""
    return run([interpreter, *arguments], cwd=installed.parent, PYTHONPATH=str(installed))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_sources(tmp_path_factory.mktemp("checkout") / "source")


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    return build_wheel(source, source.parent / "wheels", FASTDISTIL_CUDA="", **NO_NVCC)


@pytest.fixture(scope="module")
def wheel_without_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without-compiler")
    source = copy_sources(folder / "source")
    # What an editable install leaves in a checkout must not slip into a wheel for any platform.
    (source / "fastdistil" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"stale")
    return build_wheel(source, folder / "wheels", "--no-build-isolation", **NO_COMPILER)


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def python_sources(folder: Path) -> set[str]:
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*.py")}


# --- the wheel ------------------------------------------------------------------------------------


def test_wheel_holds_the_package_the_kernels_and_the_extension(wheel: Path) -> None:
    files = files_in(wheel)
    assert f"fastdistil/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in files
    assert {f"fastdistil/kernels/tuning/{t}.json" for t in ("sm_80", "sm_90")} <= files
    assert "fastdistil/kernels/README.md" in files
    assert "fastdistil/py.typed" in files
    assert {f"fastdistil/bench/{name}" for name in ("sample.json", "sentences.txt")} <= files
    kernels = {f"fastdistil/{name}" for name in python_sources(ROOT / "kernels")}
    package = python_sources(ROOT / "fastdistil") - {"fastdistil/kernels/__init__.py"}
    assert {name for name in files if name.endswith(".py")} == package | kernels


def test_wheel_has_no_other_top_level_name(wheel: Path) -> None:
    top_level = {name.split("/")[0] for name in files_in(wheel)}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"fastdistil"}


def test_wheel_is_for_this_platform_only(wheel: Path) -> None:
    implementation = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.search(rf"-{implementation}-{implementation}-(?!any)\w+\.whl$", wheel.name)


def test_extension_neither_links_nor_mentions_torch(wheel: Path) -> None:
    (extension,) = (name for name in files_in(wheel) if name.startswith("fastdistil/_C."))
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(extension)
    assert not re.search(rb"libtorch|libc10|c10::|at::Tensor", content)


def test_extension_has_no_cuda_kernels_without_nvcc_and_never_emulated_ones(wheel: Path) -> None:
    (extension,) = (name for name in files_in(wheel) if name.startswith("fastdistil/_C."))
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(extension)
    assert not re.search(rb"emulation: |embed_layernorm", content)


def test_installed_wheel_resolves_kernels_in_its_own_folder(
    wheel: Path, interpreter: Path, tmp_path: Path
) -> None:
    installed = install(wheel, tmp_path / "site")
    found = python(
        interpreter,
        installed,
        "-c",
        "import fastdistil, fastdistil._C, fastdistil.kernels, importlib.util\n"
        "print(fastdistil.__file__, fastdistil._C.__file__, *fastdistil.kernels.__path__)\n"
        "assert importlib.util.find_spec('kernels') is None",
    ).split()
    assert [Path(path).parent for path in found] == [installed / "fastdistil"] * 3
    version = python(interpreter, installed, "-m", "fastdistil", "--version")
    assert version.split()[-1] == package_version()


def package_version() -> str:
    text = (ROOT / "fastdistil" / "_version.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]  # type: ignore[index]


def test_version_is_the_one_in_version_py(wheel: Path) -> None:
    assert wheel.name.split("-")[1] == package_version()


def test_source_distribution_builds_the_same_wheel(
    tmp_path: Path, wheel_without_compiler: Path
) -> None:
    source = copy_sources(tmp_path / "source")
    run([sys.executable, "setup.py", "--quiet", "sdist"], cwd=source)
    (archive,) = (source / "dist").glob("*.tar.gz")
    shutil.unpack_archive(archive, tmp_path)
    (unpacked,) = tmp_path.glob("fastdistil-*")
    # Without the compiler only because that is quick: the C++ sources are compared by name.
    rebuilt = build_wheel(unpacked, tmp_path / "wheels", "--no-build-isolation", **NO_COMPILER)
    assert files_in(rebuilt) == files_in(wheel_without_compiler)
    csrc = {path.relative_to(source) for path in (source / "csrc").rglob("*.*")}
    assert csrc == {path.relative_to(unpacked) for path in (unpacked / "csrc").rglob("*.*")}


# --- machines that lack something -----------------------------------------------------------------


def test_without_a_compiler_the_install_is_pure_python_and_info_says_so(
    wheel_without_compiler: Path, interpreter: Path, tmp_path: Path
) -> None:
    assert wheel_without_compiler.name.endswith("-py3-none-any.whl")
    assert not any(name.startswith("fastdistil/_C") for name in files_in(wheel_without_compiler))
    installed = install(wheel_without_compiler, tmp_path / "site")
    info = python(interpreter, installed, "-m", "fastdistil", "info")
    assert "fastdistil._C is missing" in info
    assert "C++ compiler" in info


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (NO_COMPILER, "the C++ compiler that CXX names, '/nonexistent/c++', is not there"),
        ({"CXX": "", "PATH": "/nonexistent"}, "there is no C++ compiler (g++ or clang++)"),
    ],
    ids=["CXX points nowhere", "none on PATH"],
)
def test_without_a_compiler_the_build_warns(
    env: dict[str, str], reason: str, tmp_path: Path
) -> None:
    source = copy_sources(tmp_path / "source")
    command: list[str | Path] = [sys.executable, "setup.py", "build_ext", "--inplace"]
    said = run(command, cwd=source, **env)
    assert f"without its C++ extension: {reason}" in said
    assert "apt install g++" in said


def test_without_python_headers_the_build_warns(tmp_path: Path) -> None:
    # What Debian's python3 is without python3-dev.
    source = copy_sources(tmp_path / "source")
    code = (
        "import runpy, sys, sysconfig\n"
        "paths = sysconfig.get_paths() | {'include': '/nonexistent'}\n"
        "sysconfig.get_paths = lambda *_, **__: paths\n"
        "sys.argv = ['setup.py', 'build_ext', '--inplace']\n"
        "runpy.run_path('setup.py', run_name='__main__')\n"
    )
    said = run([sys.executable, "-c", code], cwd=source)
    assert "Python's C headers are not there (no Python.h in /nonexistent)" in said
    assert "python3-dev" in said


def test_code_that_does_not_compile_fails_the_build_and_shows_the_error(tmp_path: Path) -> None:
    source = copy_sources(tmp_path / "source")
    (source / "csrc" / "bindings.cpp").write_text("#error these bindings are broken\n")
    for path in (source / "csrc" / "cpu").glob("*.cpp"):
        path.write_text("")  # so that the test does not wait for them
    wheels = tmp_path / "wheels"
    said = pip(
        *("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, source), fails=True
    )
    assert "these bindings are broken" in said
    assert not wheels.exists() or not list(wheels.iterdir())


# --- CUDA kernels ---------------------------------------------------------------------------------

# A driver that has one GPU, of compute capability 9.0.
DRIVER = """
extern "C" int cuInit(unsigned) { return 0; }
extern "C" int cuDeviceGetCount(int* count) { return *count = 1, 0; }
extern "C" int cuDeviceGet(int* device, int) { return *device = 0; }
extern "C" int cuDeviceGetAttribute(int* value, int attribute, int) {
  return *value = attribute == 75 ? 9 : 0, 0;
}
"""
KERNEL = """
__global__ void anybodys_kernel(int* x) { *x = 1; }
int launched() { return anybodys_kernel<<<1, 1>>>(nullptr), 0; }
"""
SMALL = {
    "bindings.cpp": "#if FASTDISTIL_HAVE_CUDA\nint launched();\n#endif\n"
    'extern "C" void* PyInit__C() {\n#if FASTDISTIL_HAVE_CUDA\nlaunched();\n#endif\nreturn 0; }\n',
    "bindings_cuda.cpp": "",
}


def small_sources(folder: Path) -> Path:
    """A checkout that compiles in a second; with one CUDA kernel."""
    source = copy_sources(folder / "source")
    for path in (source / "csrc" / "cpu").glob("*.cpp"):
        path.write_text("")
    for path in (source / "csrc" / "cuda").glob("*.cu"):
        path.unlink()
    for name, text in SMALL.items():
        (source / "csrc" / name).write_text(text)
    (source / "csrc" / "cuda" / "layernorm.cu").write_text(KERNEL)
    return source


def machine_with_gpu(folder: Path) -> dict[str, str]:
    """An environment variable that makes this machine look like one."""
    (folder / "driver.cpp").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    run(["c++", "-shared", "-fPIC", "-o", library, folder / "driver.cpp"])
    return {"LD_LIBRARY_PATH": str(folder)}


def build_in_place(source: Path, *, fails: bool = False, **env: str) -> tuple[str, bytes]:
    """What setup.py said, and the extension that it left."""
    inherited = {"FASTDISTIL_CUDA": "", **env}
    said = run(
        [sys.executable, "setup.py", "build_ext", "-i"], cwd=source, fails=fails, **inherited
    )
    return said, b"".join(path.read_bytes() for path in (source / "fastdistil").glob("_C.*"))


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"FASTDISTIL_CUDA": "yes"}, "FASTDISTIL_CUDA is 'yes': supported are 1, 0 and emulated"),
        ({"FASTDISTIL_CUDA": "1", **NO_NVCC}, "there is no nvcc"),
        ({"FASTDISTIL_CUDA": "1", **NO_COMPILER}, "but the C++ compiler that CXX names"),
    ],
)
def test_cuda_kernels_that_cannot_be_had(env: dict[str, str], reason: str, tmp_path: Path) -> None:
    said, built = build_in_place(small_sources(tmp_path), fails=True, **env)
    assert f"error: {reason}" in said or (said.count("error: ") == 1 and reason in said)
    assert built == b""


def test_a_gpu_whose_nvcc_does_not_work_gets_an_extension_for_the_cpu(tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho this nvcc is broken >&2\nexit 1\n")
    nvcc.chmod(0o755)
    source = small_sources(tmp_path)
    gpu = machine_with_gpu(tmp_path)
    said, built = build_in_place(source, CUDACXX=str(nvcc), **gpu)
    assert "WARNING: fastdistil is being installed without its CUDA kernels" in said
    assert b"PyInit__C" in built
    said, _ = build_in_place(source, CUDACXX=str(nvcc), FASTDISTIL_CUDA="0", **gpu)
    assert "WARNING" not in said
    build_in_place(source, fails=True, CUDACXX=str(nvcc), FASTDISTIL_CUDA="1", **gpu)


@pytest.mark.skipif(
    find_nvcc() is None, reason="needs nvcc, which `make cuda-gate` installs; CI runs that first"
)
def test_a_gpu_gets_kernels_of_its_own_and_every_way_its_own_extension(tmp_path: Path) -> None:
    source = small_sources(tmp_path)
    env = {"CUDACXX": str(find_nvcc()), **machine_with_gpu(tmp_path)}
    said, with_kernels = build_in_place(source, **env)
    assert "FASTDISTIL_CUDA_ARCHITECTURES=90a-real" in said
    assert b"anybodys_kernel" in with_kernels
    assert b"sm_90a" in with_kernels
    _, without = build_in_place(source, FASTDISTIL_CUDA="0", **env)
    assert b"anybodys_kernel" not in without
    # Nothing is compiled, and yet the other extension is back.
    said, again = build_in_place(source, **env)
    assert "no work to do" in said
    assert again == with_kernels


# --- editable installs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def editable(source: Path, wheel: Path) -> Path:
    """A checkout installed with `pip install -e` into an environment of its own; the checkout.

    The wheel comes first: it leaves object files to build upon.
    """
    interpreter = make_environment(source.parent / "environment")
    pip(
        *("--python", interpreter),
        *("install", "--no-deps", "--no-build-isolation", "--editable", source),
        PATH=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]),  # for cmake
    )
    return source


def python_of(editable: Path) -> Path:
    return editable.parent / "environment" / "bin" / "python"


def test_editable_install_finds_everything_in_the_checkout(editable: Path, tmp_path: Path) -> None:
    (editable / "kernels" / "probe.py").write_text("")
    found = run(
        [
            python_of(editable),
            "-c",
            "import fastdistil, fastdistil._C, fastdistil.kernels.probe as probe, importlib.util\n"
            "print(fastdistil.__file__, fastdistil._C.__file__, probe.__file__)\n"
            "assert importlib.util.find_spec('kernels') is None",
        ],
        cwd=tmp_path,
    ).split()
    package, kernels = editable / "fastdistil", editable / "kernels"
    assert [Path(path).parent for path in found] == [package, package, kernels]


def test_editable_install_puts_the_command_in_place(editable: Path, tmp_path: Path) -> None:
    command = python_of(editable).with_name("fastdistil")
    assert run([command, "--version"], cwd=tmp_path).split()[-1] == package_version()


def test_no_distribution_claims_the_name_kernels(editable: Path, tmp_path: Path) -> None:
    # transformers maps import names to distributions by what their metadata say.
    code = (
        "import importlib.metadata as metadata\n"
        "names = metadata.packages_distributions()\n"
        "print(set(names['fastdistil']), names.get('kernels'))"
    )
    said = run([python_of(editable), "-c", code], cwd=tmp_path)
    assert said.strip() == "{'fastdistil'} None"


def test_instruction_sets_share_no_code(editable: Path) -> None:
    """A function compiled for AVX-512 must never be the copy that other code gets linked to.

    An inline function or template instance that two objects carry is a weak symbol, of which the
    linker keeps one. So the objects with instruction-set flags must not define any.
    """
    objects = list((editable / "build").rglob("isa_*.o"))
    assert objects
    for path in objects:
        symbols = run(["nm", "--defined-only", path]).splitlines()
        assert symbols
        assert not [line for line in symbols if re.search(r" [WwVvu] (?!DW\.ref)", line)], path.name


# --- constraints ----------------------------------------------------------------------------------


def test_constraints_pin_all_that_the_project_asks_for() -> None:
    tomllib = pytest.importorskip("tomllib", reason="came with Python 3.11; CI runs that or newer")
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)
    asked = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(
            entry
            for extra in project["project"]["optional-dependencies"].values()
            for entry in extra
        ),
    ]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): pin for pin in pins}
    assert len(pinned) == len(pins)
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name == "fastdistil":
            continue
        assert name in pinned, f"constraints.txt has no {name}"
        (*_, newest) = sorted(spec.version for spec in pinned[name].specifier)
        assert newest in requirement.specifier, f"{pinned[name]} is not {requirement}"
