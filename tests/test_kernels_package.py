"""The folder kernels/ in the repository root must not disturb anybody.

`kernels` is the name of a package that transformers looks for whenever it is imported. A checkout
of this project has a folder of that name, and with the checkout as working directory Python finds
it first. These tests run transformers there, in processes of their own, with and without such a
package installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Every name that transformers imports from the package, as something that can be called, used as a
# decorator and asked for attributes, and does nothing.
STUB = """
import enum

class Mode(enum.Flag):
    INFERENCE = enum.auto()
    TRAINING = enum.auto()
    TORCH_COMPILE = enum.auto()

class Nothing:
    def __init__(self, *args, **kwargs):
        pass
    def __call__(self, thing=None, *args, **kwargs):
        return thing
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Nothing
"""

RUN_A_MODEL = """
import torch
import transformers
from transformers.utils import import_utils

config = transformers.DistilBertConfig(
    vocab_size=30, dim=32, n_heads=2, n_layers=2, hidden_dim=64, max_position_embeddings=16
)
model = transformers.DistilBertForSequenceClassification(config).eval()
with torch.inference_mode():
    logits = model(torch.arange(1, 9)[None], attention_mask=torch.ones(1, 8)).logits
assert logits.shape == (1, 2) and logits.isfinite().all()
"""


def run_in_root(code: str, *extra_path: Path) -> str:
    """Run Python code with the repository root as working directory; its output."""
    search_path = [*map(str, extra_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def stub_kernels(tmp_path: Path) -> Path:
    """A folder with an installed distribution `kernels`, of a version that transformers accepts."""
    from transformers.utils import import_utils

    version = getattr(import_utils, "KERNELS_MIN_VERSION", "0.6.2")
    for module in ["kernels", "kernels/layer", "kernels/layer/mode"]:
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(STUB)
    metadata = tmp_path / f"kernels-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n"
    )
    return tmp_path


def test_transformers_runs_in_the_repository_root() -> None:
    run_in_root(
        RUN_A_MODEL
        + "assert not import_utils.is_kernels_available(), 'our folder was taken for the package'\n"
    )


def test_transformers_finds_an_installed_kernels_package_from_the_repository_root(
    stub_kernels: Path,
) -> None:
    found = run_in_root(
        RUN_A_MODEL
        + "assert import_utils.is_kernels_available()\nimport kernels\nprint(kernels.__file__)\n",
        stub_kernels,
    )
    assert found == str(stub_kernels / "kernels" / "__init__.py")


def test_a_kernels_package_and_ours_live_side_by_side(stub_kernels: Path) -> None:
    found = run_in_root(
        "import kernels, fastdistil.kernels\n"
        "print(kernels.__file__, list(fastdistil.kernels.__path__)[-1])\n",
        stub_kernels,
    )
    assert found.split() == [str(stub_kernels / "kernels" / "__init__.py"), str(ROOT / "kernels")]


def test_fastdistil_kernels_is_the_folder() -> None:
    found = run_in_root("import fastdistil.kernels; print(list(fastdistil.kernels.__path__)[-1])")
    assert found == str(ROOT / "kernels")


def test_the_folder_is_no_package() -> None:
    # With an __init__.py it would win over an installed package of the name, even a real one.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "kernels.py").exists()
