"""README's examples run as they stand, and its table is what the named results hold."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastdistil
from benchmarks import report
from benchmarks.sections import models
from fastdistil import cli, task_cli
from fastdistil.bench import results

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLASSIFIER = "distilbert-base-uncased-finetuned-sst-2-english"
SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> Path:
    """A tiny classifier in the place of the one on the hub; the tokenizer is the same."""
    transformers = pytest.importorskip("transformers", reason="the drop-in is for its models")
    folder: Path = tmp_path_factory.mktemp("classifier")
    sizes = {"n_layers": 2, "dim": 48, "n_heads": 3, "hidden_dim": 96}
    config = transformers.DistilBertConfig(**sizes)
    transformers.DistilBertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(minilm_folder / name, folder)
    return folder


def run(example: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)  # the user's own program
    return names


def test_drop_in_example(classifier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, _ = blocks("python")
    assert CLASSIFIER in example
    names = run(example.replace(CLASSIFIER, str(classifier)))
    printed = capsys.readouterr().out
    assert printed.count("'label'") == 2
    explanation = fastdistil.explain(names["classify"].model)
    assert str(explanation) in printed
    assert explanation.fast_calls > 0
    assert explanation.fallback_calls == 0


def test_vectors_and_labels_example(
    minilm_folder: Path, classifier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, example = blocks("python")
    assert SENTENCE_MODEL in example
    assert CLASSIFIER in example
    example = example.replace(SENTENCE_MODEL, str(minilm_folder))
    vectors = run(example.replace(CLASSIFIER, str(classifier)))["vectors"]
    assert vectors.shape == (3, 384)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > cosines[0, 2]
    assert capsys.readouterr().out.count("'label'") == 2


def test_task_commands_are_those_that_there_are() -> None:
    (listed,) = re.findall(r"`fastdistil (classify [^`]*)`", README)
    assert listed.split(" | ") == list(task_cli.COMMANDS)


def test_file_example(minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    (example,) = [line for line in lines if line.startswith("fastdistil encode")]
    assert SENTENCE_MODEL in example
    monkeypatch.chdir(tmp_path)
    Path("sentences.txt").write_text("one line\nanother line\n", encoding="utf-8")
    _, *arguments = shlex.split(example.replace(SENTENCE_MODEL, str(minilm_folder)))
    assert cli.main(arguments) == 0
    assert np.load("vectors.npy").shape == (2, 384)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


def test_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m (benchmarks\.[a-z_]+)", README)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module


def test_table_is_what_was_measured() -> None:
    """README names the results file its table was made from, and shows exactly that table."""
    (name,) = re.findall(r"\]\((\S+\.json)\)", README)
    assert report.with_figures(README, ROOT / name) == README
    assert models.figures(results.read(ROOT / name)) in README
