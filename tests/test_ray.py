"""fastdistil.integrations.ray: batches by themselves, then jobs of a Ray on this machine."""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SOME_ENVIRONMENT
from task_checkpoints import write_task_checkpoint

import fastdistil
from benchmarks import scale_out
from fastdistil import Encoder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
# Read once, when Ray's core is loaded: no lines on stderr for what Ray itself decided.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
ray = pytest.importorskip("ray", reason="Ray is not installed; `make test` installs it")
pytest.importorskip("ray.data", reason="Ray Data is not installed; `make test` installs it")

from ray.data import ActorPoolStrategy, DataContext  # noqa: E402
from ray.data.datasource import FilenameProvider  # noqa: E402

from fastdistil.integrations import ray as integration  # noqa: E402
from fastdistil.integrations.ray import BatchEncoder, BatchPipeline  # noqa: E402

# The workers of Ray cannot import this module.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale-out.md"
TEXTS = ["A good film.", "Not a good film.", "", "Naïve café, 日本, 👍"]


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test makes this process use is undone."""
    for name in ("FASTDISTIL_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- a batch, without Ray -------------------------------------------------------------------------


def test_table_keeps_its_columns_and_gains_vectors(minilm_folder: Path) -> None:
    table = pa.table({"id": [3, 1, 2, 0], "text": TEXTS, "tags": [["a"], [], None, ["b", "c"]]})
    result = BatchEncoder(minilm_folder)(table)
    assert result.select(table.column_names).equals(table)
    assert result.schema.field("vector").type == pa.list_(pa.float32(), 384)
    found = np.stack(result["vector"].to_numpy())
    assert np.array_equal(found, Encoder(minilm_folder).encode(TEXTS))


def test_arrays_keep_theirs_and_gain_vectors(minilm_folder: Path) -> None:
    batch = {"id": np.arange(4), "body": np.array(TEXTS, dtype=object)}
    encoder = BatchEncoder(
        minilm_folder, text_column="body", vector_column="v", pooling="cls", normalize=False
    )
    result = encoder(batch)
    assert list(batch) == ["id", "body"], "the batch itself is left as it was"
    assert list(result) == ["id", "body", "v"]
    assert result["id"] is batch["id"]
    assert result["v"].dtype == np.float32
    wanted = Encoder(minilm_folder, pooling="cls", normalize=False).encode(TEXTS)
    assert np.array_equal(result["v"], wanted)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS).dictionary_encode(),
        pa.chunked_array([TEXTS[:1], TEXTS[1:]]),
    ],
    ids=["large", "dictionary", "chunks"],
)
def test_every_kind_of_string_column(column: Any, minilm_folder: Path) -> None:
    result = BatchEncoder(minilm_folder)(pa.table({"text": column}))
    found = np.stack(result["vector"].to_numpy())
    assert np.array_equal(found, Encoder(minilm_folder).encode(TEXTS))


def test_no_rows_give_no_vectors_of_the_same_type(minilm_folder: Path) -> None:
    encoder = BatchEncoder(minilm_folder)
    table = encoder(pa.table({"text": pa.array([], pa.string())}))
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
    assert len(table) == 0
    assert encoder({"text": np.array([], dtype=object)})["vector"].shape == (0, 384)


def test_object_pickles_small_and_loads_once_in_a_process(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    integration._loaded.cache_clear()
    encoder = BatchEncoder(minilm_folder)
    batch = {"text": np.array(TEXTS, dtype=object)}
    wanted = encoder(batch)["vector"]
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 2000
    # Nothing can be loaded from here on, so the copy must find what the first one loaded.
    monkeypatch.setattr("fastdistil.Encoder", None)
    assert np.array_equal(pickle.loads(pickled)(batch)["vector"], wanted)


def test_threads_asked_for_are_used(minilm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a worker may inherit it: for the engine what is asked for, for the tokenizer not.
    monkeypatch.setenv("FASTDISTIL_NUM_THREADS", "3")
    BatchEncoder(minilm_folder, threads=3)({"text": np.array(["A text."])})
    assert torch.get_num_threads() == 3
    assert os.environ["FASTDISTIL_NUM_THREADS"] == os.environ["RAYON_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (pa.table({"id": [1], "body": ["a"]}), KeyError, "text_column is 'text'.* has id, body"),
        (
            pa.table({"id": [7, 8], "text": ["a", None]}),
            TypeError,
            r"'text' is None in row 1 of a batch \(id=8\); a string is wanted",
        ),
        ({"text": np.array(["a", 5.0], dtype=object)}, TypeError, "is float in row 1 of a batch;"),
        (pa.table({"text": [1, 2]}), TypeError, "is int in row 0"),
        (pa.table({"text": ["a"], "vector": [1]}), ValueError, "column 'vector' already"),
        (["a"], TypeError, "the batch is builtins.list; give map_batches batch_format='pyarrow'"),
    ],
    ids=["column", "none", "float", "numbers", "taken", "list"],
)
def test_bad_batches_are_named(batch: Any, error: type[Exception], message: str) -> None:
    """Before any model is loaded: there is none here."""
    with pytest.raises(error, match=message):
        BatchEncoder("no-such-folder")(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads is 0; it must be at least 1"),
        ({"pooling": "none"}, "pooling is 'none'; a vector for each text is wanted"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchEncoder("no-such-folder", **options)


def test_without_ray_the_cure_is_named() -> None:
    code = "import sys; sys.modules['ray'] = None; import fastdistil.integrations.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs Ray Data" in done.stderr
    assert done.stderr.rstrip().endswith("pip install 'fastdistil[ray]'")


@pytest.mark.parametrize(
    ("answers", "columns"),
    [
        (
            [{"label": "good", "score": 0.75}, {"label": "bad", "score": np.float32(0.5)}],
            {"r_label": ["good", "bad"], "r_score": [0.75, 0.5]},
        ),
        (
            [[], [{"word": "Ä", "score": np.float32(0.5)}]],
            {"r": ["[]", '[{"word": "\\u00c4", "score": 0.5}]']},
        ),
        (
            [{"labels": ["a", "b"], "scores": np.array([0.5, 0.25])}],
            {"r": ['{"labels": ["a", "b"], "scores": [0.5, 0.25]}']},
        ),
        (["short", "shorter"], {"r": ["short", "shorter"]}),
        ([], {}),
    ],
    ids=["dicts", "lists", "nested", "scalars", "nothing"],
)
def test_answers_become_columns(answers: list[Any], columns: dict[str, list[Any]]) -> None:
    found = integration._answer_columns(answers, "r")
    assert {name: column.to_pylist() for name, column in found.items()} == columns


def test_pipeline_labels_become_columns(tmp_path: Path) -> None:
    names = {0: "bad", 1: "good"}
    model = write_task_checkpoint(tmp_path, "Bert", "ForSequenceClassification", id2label=names)
    answers = fastdistil.pipeline("text-classification", model)(TEXTS)
    table = pa.table({"id": range(4), "text": TEXTS})
    found = BatchPipeline("text-classification", model)(table)
    assert found.column_names == ["id", "text", "result_label", "result_score"]
    assert found["result_label"].to_pylist() == [answer["label"] for answer in answers]
    assert found["result_score"].to_pylist() == [answer["score"] for answer in answers]
    batch = {"body": np.array(TEXTS, dtype=object)}
    arrays = BatchPipeline(
        "text-classification", model, text_column="body", result_column="all", top_k=None
    )(batch)
    wanted = fastdistil.pipeline("text-classification", model, top_k=None)(TEXTS)
    assert [json.loads(text) for text in arrays["all"]] == wanted


@pytest.mark.parametrize("rows", [1, 3])
def test_pipeline_of_several_columns(rows: int, tmp_path: Path) -> None:
    model = write_task_checkpoint(tmp_path, "DistilBert", "ForQuestionAnswering")
    asked = ["Who made it?", "When?", "What is it?"][:rows]
    told = ["Anna Schmidt made it.", "It was in 1997, they say.", "A boat of wood."][:rows]
    columns = {"question": "title", "context": "body"}
    task = BatchPipeline("question-answering", model, text_column=columns, result_column="a")
    found = task(pa.table({"title": asked, "body": told}))
    pairs = [{"question": q, "context": c} for q, c in zip(asked, told, strict=True)]
    answers = list(fastdistil.pipeline("question-answering", model)(iter(pairs)))
    for name in ("answer", "score", "start", "end"):
        assert found[f"a_{name}"].to_pylist() == [answer[name] for answer in answers]
    with pytest.raises(TypeError, match=r"'body' is None in row 0 of a batch \(title=Who\)"):
        task(pa.table({"title": ["Who"], "body": pa.array([None], pa.string())}))


# --- jobs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of this machine alone: room for two actors of a CPU each, and their reads and writes;
    GPUs in name only."""
    ray.init(
        num_cpus=3,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
        logging_level="error",
    )
    context = DataContext.get_current()
    context.enable_progress_bars = False
    # Both actors are there before the first task, so that both get some.
    context.wait_for_min_actors_s = 300
    yield context
    ray.shutdown()


def write_input(folder: Path, texts: list[str], files: int = 2) -> Path:
    folder.mkdir()
    ids = [f"row-{index}" for index in range(len(texts))]
    for part in range(files):
        table = pa.table({"id": ids[part::files], "text": texts[part::files]})
        pq.write_table(table, folder / f"{part}.parquet")
    return folder


def check_output(found: Any, texts: list[str], model: Path) -> None:
    """Every id once, with the vector that an Encoder here gives its text, bit for bit."""
    assert sorted(found["id"].to_pylist()) == sorted(f"row-{i}" for i in range(len(texts)))
    rows = np.array([int(name.removeprefix("row-")) for name in found["id"].to_pylist()])
    assert found["text"].to_pylist() == [texts[row] for row in rows]
    wanted = Encoder(model).encode(texts)[rows]
    assert np.array_equal(np.stack(found["vector"].to_numpy()), wanted)


@pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors")  # one small block
def test_recipe_of_the_page(
    cluster: Any, minilm_folder: Path, real_sentences: list[str], tmp_path: Path
) -> None:
    texts = real_sentences[:100]
    write_input(tmp_path / "sentences", texts)
    recipe = re.search(r"```python\n(import ray.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert recipe is not None
    code = recipe[1].replace("my-model", str(minilm_folder))
    for name in ("sentences/", "vectors/"):
        assert f'("{name}")' in code
        code = code.replace(f'("{name}")', f'("{tmp_path / name}")')
    exec(code, {})
    check_output(pq.read_table(tmp_path / "vectors"), texts, minilm_folder)


class Watched(BatchEncoder):
    """A BatchEncoder that says who did a row, with how many threads."""

    def __call__(self, batch: Any) -> Any:
        result = super().__call__(batch)
        torch_threads = torch.get_num_threads()
        for name, value in {
            "process": os.getpid(),
            "threads": int(os.environ["FASTDISTIL_NUM_THREADS"]),
            "tokenizer_threads": int(os.environ["RAYON_NUM_THREADS"]),
            "torch_threads": torch_threads,
        }.items():
            result = result.append_column(name, pa.array([value] * len(result)))
        return result


def test_two_actors_from_parquet_to_parquet(
    cluster: Any,
    minilm_folder: Path,
    real_sentences: list[str],
    tmp_path: Path,
) -> None:
    texts = real_sentences[:400]
    source = write_input(tmp_path / "in", texts)
    ray.data.read_parquet(str(source)).repartition(target_num_rows_per_block=25).map_batches(
        Watched,
        fn_constructor_kwargs={"model": str(minilm_folder)},
        batch_format="pyarrow",
        num_cpus=1,
        compute=ActorPoolStrategy(size=2),
    ).write_parquet(str(tmp_path / "out"))
    found = pq.read_table(tmp_path / "out")
    check_output(found, texts, minilm_folder)
    assert found.schema.field("vector").type == pa.list_(pa.float32(), 384)
    processes = set(found["process"].to_pylist())
    assert len(processes) == 2
    assert os.getpid() not in processes
    for name in ("threads", "tokenizer_threads", "torch_threads"):
        assert set(found[name].to_pylist()) == {1}


def test_actor_of_two_cpus_uses_two_threads_and_reads_json_lines(
    cluster: Any, minilm_folder: Path, real_sentences: list[str], tmp_path: Path
) -> None:
    texts = real_sentences[:40]
    lines = (json.dumps({"id": f"row-{i}", "text": text}) for i, text in enumerate(texts))
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    ray.data.read_json(str(source), lines=True).map_batches(
        Watched,
        fn_constructor_kwargs={"model": str(minilm_folder)},
        batch_format="pyarrow",
        num_cpus=2,
        compute=ActorPoolStrategy(size=1),
    ).write_parquet(str(tmp_path / "out"))
    found = pq.read_table(tmp_path / "out")
    check_output(found, texts, minilm_folder)
    for name in ("threads", "tokenizer_threads", "torch_threads"):
        assert set(found[name].to_pylist()) == {2}


def test_an_object_works_in_tasks_and_on_arrays(cluster: Any, minilm_folder: Path) -> None:
    rows = [{"id": index, "text": text} for index, text in enumerate(TEXTS)]
    found = (
        ray.data.from_items(rows, override_num_blocks=1)
        .map_batches(BatchEncoder(minilm_folder))
        .take_all()
    )
    wanted = Encoder(minilm_folder).encode(TEXTS)
    assert len(found) == len(TEXTS)
    for row in found:
        assert np.array_equal(row["vector"], wanted[row["id"]])


class Killed(BatchEncoder):
    """A BatchEncoder whose process is killed, once for each of these batches, with the work done
    and not yet handed over."""

    def __init__(self, *, deadly: list[int], markers: str, **options: Any) -> None:
        super().__init__(**options)
        self._deadly, self._markers, self._count = deadly, Path(markers), 0

    def __call__(self, batch: Any) -> Any:
        result = super().__call__(batch)
        self._count += 1
        if self._count in self._deadly:
            die_once(self._markers / f"batch-{self._count}")
        return result


class HalfWritten(FilenameProvider):
    """Names output files; the first one to be written is left half there by a writer's death."""

    def __init__(self, output: Path, markers: Path) -> None:
        self._output, self._markers = output, markers

    def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
        if not (self._markers / "writer").exists():
            (self._output / f"{write_uuid}-{task_index}-0.parquet").write_bytes(b"PAR1half")
            die_once(self._markers / "writer")
        return f"{write_uuid}-{task_index}.parquet"


def die_once(marker: Path) -> None:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def test_killed_actors_and_writers_lose_no_row_and_repeat_none(
    cluster: Any,
    minilm_folder: Path,
    real_sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = real_sentences[:320]
    source = write_input(tmp_path / "in", texts)
    output, markers = tmp_path / "out", tmp_path / "markers"
    output.mkdir()
    markers.mkdir()
    # Blocks of some ten rows: a task of 80 rows has handed over several before its actor dies, and
    # these must not come twice.
    monkeypatch.setattr(cluster, "target_max_block_size", 16 << 10)
    ray.data.read_parquet(str(source)).repartition(target_num_rows_per_block=80).map_batches(
        Killed,
        fn_constructor_kwargs={
            "model": str(minilm_folder),
            "deadly": [1, 7],
            "markers": str(markers),
        },
        batch_format="pyarrow",
        batch_size=10,
        num_cpus=1,
        compute=ActorPoolStrategy(size=2),
    ).write_parquet(str(output), filename_provider=HalfWritten(output, markers))
    assert {path.name for path in markers.iterdir()} == {"batch-1", "batch-7", "writer"}
    check_output(pq.read_table(output), texts, minilm_folder)


def test_a_bad_row_ends_the_job_and_is_named(cluster: Any, minilm_folder: Path) -> None:
    rows = [{"id": "seven", "text": None}]
    job = ray.data.from_items(rows, override_num_blocks=1).map_batches(
        BatchEncoder(minilm_folder), batch_format="pyarrow"
    )
    with pytest.raises(Exception, match=r"'text' is None in row 0 of a batch \(id=seven\)"):
        job.take_all()


def test_each_actor_gets_gpus_of_its_own(cluster: Any) -> None:
    """Which devices an actor would use; there need be no GPU to be told."""

    @ray.remote
    class Actor:
        def placement(self) -> Any:
            return integration._assigned(), os.environ.get("CUDA_VISIBLE_DEVICES")

    one, two = (Actor.options(num_gpus=1, num_cpus=1).remote() for _ in range(2))
    found = ray.get([one.placement.remote(), two.placement.remote()])
    assert [placed for placed, _ in found] == [(1, "cuda:0")] * 2
    assert {visible for _, visible in found} == {"0", "1"}
    del one, two
    both = Actor.options(num_gpus=2, num_cpus=0.5).remote()
    assert ray.get(both.placement.remote()) == ((1, ["cuda:0", "cuda:1"]), "0,1")
    del both
    none = Actor.options(num_cpus=2).remote()
    assert ray.get(none.placement.remote())[0] == (2, None)


def test_pipeline_in_actors(cluster: Any, real_sentences: list[str], tmp_path: Path) -> None:
    model = write_task_checkpoint(tmp_path, "DistilBert", "ForTokenClassification")
    texts = real_sentences[:40]
    rows = [{"id": index, "text": text} for index, text in enumerate(texts)]
    found = (
        ray.data.from_items(rows, override_num_blocks=4)
        .map_batches(
            BatchPipeline,
            fn_constructor_args=["token-classification", str(model)],
            fn_constructor_kwargs={"result_column": "entities", "aggregation_strategy": "simple"},
            batch_format="pyarrow",
            num_cpus=1,
            compute=ActorPoolStrategy(size=2),
        )
        .take_all()
    )
    pipeline = fastdistil.pipeline("token-classification", model, aggregation_strategy="simple")
    answers = {row["id"]: json.loads(row["entities"]) for row in found}
    wanted = json.loads(json.dumps(pipeline(texts), default=float))
    assert answers == dict(enumerate(wanted))


# --- benchmarks.scale_out -------------------------------------------------------------------------


def test_benchmark_compares_what_both_wrote(
    cluster: Any,
    minilm_folder: Path,
    real_sentences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scale_out, "BLOCK_ROWS", 20)
    source, one, many = (tmp_path / name for name in ("in.parquet", "one.parquet", "many"))
    pq.write_table(pa.table({"id": range(60), "text": real_sentences[:60]}), source)
    turns = [
        scale_out.in_one_process(str(minilm_folder), source, one, time.time_ns()),
        scale_out.with_ray(str(minilm_folder), source, many),
    ]
    assert all(seconds > 0 for turn in turns for seconds in turn.values())
    scale_out.compare(one, many)
    pq.write_table(pq.read_table(one).slice(1), one)
    with pytest.raises(AssertionError, match=r"many differs from .*one\.parquet"):
        scale_out.compare(one, many)


def test_benchmark_table_is_of_medians() -> None:
    def turns(*seconds: float) -> list[dict[str, float]]:
        return [{"start_seconds": 2 * each, "work_seconds": each} for each in seconds]

    printed = scale_out.report(
        {
            "environment": SOME_ENVIRONMENT,
            "ray": "2.0",
            "quick": True,
            "rows": 1000,
            "source": "somewhere",
            "block_rows": 10,
            "init_seconds": 3.0,
            "turns": {"process": turns(1.0, 2.0, 4.0), "ray": turns(1.0, 2.5, 4.0)},
        }
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:4]]
    assert rows == [
        ["one process, 2 threads", "500", "2.00", "4.00"],
        ["Ray Data, 2 actors, a thread each", "400", "2.50", "5.00"],
    ]
    assert "Overhead of Ray: +25.0% of the time (by turns +0.0% to +25.0%)" in printed
    assert "Ray itself took 3.0 s to start" in printed
    assert printed.endswith("Not for publishing.")
