"""The recipe for Spark in docs/scale-out.md: its files as they stand there, run by spark-submit.

pyspark is a download of 450 MB, so `make test` leaves it out and this is skipped; `make
pytest-spark` gets it and runs this, where there is a Java (17 or newer).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdistil import Encoder

pyspark = pytest.importorskip(
    "pyspark", reason="pyspark is not installed; `make pytest-spark` installs it and runs this"
)
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("pandas", reason="pandas is not installed: pip install 'fastdistil[spark]'")

if "JAVA_HOME" not in os.environ and shutil.which("java") is None:
    pytest.skip("Spark needs a Java, and there is none", allow_module_level=True)

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale-out.md"

# What each task used: its process, and how often that had loaded a model by then.
COUNTING_JOB = """
import os
import sys

from pyspark.sql import SparkSession
from vectors_udf import encoder

source, output, model = sys.argv[1:]


def count(batches):
    import torch

    for batch in batches:
        encoder(model)
        names = "FASTDISTIL_NUM_THREADS", "RAYON_NUM_THREADS"
        threads = {torch.get_num_threads(), *(int(os.environ[name]) for name in names)}
        batch["process"], batch["loads"] = os.getpid(), encoder.cache_info().misses
        batch["threads"] = max(threads)
        yield batch[["process", "loads", "threads"]]


spark = SparkSession.builder.getOrCreate()
rows = spark.read.parquet(source).repartition(8)
rows.mapInPandas(count, "process long, loads long, threads long").write.parquet(output)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page."""
    folder = tmp_path_factory.mktemp("recipe")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert [name for name, _ in blocks] == ["vectors_udf.py", "job.py"]
    for name, code in blocks:
        (folder / name).write_text(code, encoding="utf-8")
    (folder / "counting_job.py").write_text(COUNTING_JOB, encoding="utf-8")
    return folder


def submit(folder: Path, job: str, *arguments: Path) -> None:
    home = Path(pyspark.__file__).parent
    environment = os.environ | {
        "SPARK_HOME": str(home),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command: list[Any] = [home / "bin" / "spark-submit", "--master", "local[2]"]
    command += ["--conf", "spark.ui.enabled=false", "--py-files", "vectors_udf.py", job]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_job_of_the_page(
    recipe: Path, minilm_folder: Path, real_sentences: list[str], tmp_path: Path
) -> None:
    texts = [*real_sentences[:99], ""]
    pq.write_table(pa.table({"id": range(100), "text": texts}), tmp_path / "in.parquet")
    submit(recipe, "job.py", tmp_path / "in.parquet", tmp_path / "out", minilm_folder)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    found = pq.read_table(tmp_path / "out").sort_by("id")
    assert found["id"].to_pylist() == list(range(100))
    assert found["text"].to_pylist() == texts
    assert np.array_equal(
        np.stack(found["vector"].to_numpy()), Encoder(minilm_folder).encode(texts)
    )


def test_model_is_loaded_once_in_a_worker_and_uses_its_cpus(
    recipe: Path, minilm_folder: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["A sentence."] * 80}), tmp_path / "in.parquet")
    submit(recipe, "counting_job.py", tmp_path / "in.parquet", tmp_path / "out", minilm_folder)
    found = pq.read_table(tmp_path / "out")
    assert len(found) == 80
    # Eight tasks, two at a time, in no more processes: one had several.
    assert len(set(found["process"].to_pylist())) <= 2
    assert set(found["loads"].to_pylist()) == {1}
    assert set(found["threads"].to_pylist()) == {1}
