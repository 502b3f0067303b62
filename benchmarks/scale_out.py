"""Two actors of one thread each under Ray Data, beside one process of two threads: what Ray costs.

    python -m benchmarks.scale_out                   # some eight minutes on two cores
    python -m benchmarks.scale_out --quick
    python -m benchmarks.scale_out --json            # also writes results/<device>/scale_out.json

The same parquet file of real sentences and their numbers becomes a parquet file (of Ray: a folder
of them) with the vectors beside them, by all-MiniLM-L6-v2; both take turns. The time is that of the
work: of the process from the file to the file with the model loaded before; of Ray from the first
batch, when both actors have the model, to the return of write_parquet, everything that Ray does in
between included. What comes before stands in columns of its own; a job has it once, whatever its
size. What Ray wrote is compared with what the process wrote, number by number.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.command import add_json_option, add_quick_option, command_parser, save
from benchmarks.corpora import load_corpus, minilm_folder, real_sentences
from fastdistil import Encoder
from fastdistil.backends.threads import use_threads
from fastdistil.bench import timing
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import say

ACTORS = 2
# Of a block: some three seconds of one thread. A block costs Ray some 50 ms of a core (it is cut,
# encoded and written by tasks of their own); at a job's end one actor waits for the other's last.
BLOCK_ROWS = 4096
HEADER = ("", "sentences/s", "work (s)", "before the first batch (s)")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("benchmarks.scale_out", __doc__)
    add_quick_option(parser)
    add_json_option(parser, "scale_out.json")
    options = parser.parse_args(arguments)
    try:
        results = measure(quick=options.quick)
    except (LookupError, ImportError) as missing:
        sys.exit(f"scale_out: {missing}")
    print(report(results))
    save(options.json, results)
    return 0


def measure(*, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray

    rows = BLOCK_ROWS * (4 if quick else 30)
    texts = list(itertools.islice(itertools.cycle(real_sentences()), rows))
    model = str(minilm_folder())
    turns: dict[str, list[dict[str, float]]] = {"process": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "sentences.parquet"
        pq.write_table(pa.table({"id": range(rows), "text": texts}), source)
        init_seconds = _start_ray()
        try:
            for turn in range(1 if quick else 5):
                say(f"turn {turn + 1}")
                time.sleep(timing.SETTLE_SECONDS)
                turns["process"].append(_in_a_process(model, source, Path(folder) / "one.parquet"))
                time.sleep(timing.SETTLE_SECONDS)
                turns["ray"].append(with_ray(model, source, Path(folder) / f"ray-{turn}"))
                compare(Path(folder) / "one.parquet", Path(folder) / f"ray-{turn}")
        finally:
            ray.shutdown()
    return {
        "environment": environment(),
        "ray": ray.__version__,
        "quick": quick,
        "rows": rows,
        "source": load_corpus().source,
        "block_rows": BLOCK_ROWS,
        "init_seconds": init_seconds,
        "turns": turns,
    }


def _start_ray() -> float:
    """Seconds that a Ray of this machine alone takes to be there."""
    import ray.data

    start = time.perf_counter()
    # One logical CPU more than the actors have: reads and writes need one to be scheduled at all.
    ray.init(
        num_cpus=ACTORS + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    seconds = time.perf_counter() - start
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 600
    return seconds


def ready_encoder() -> type:
    """A BatchEncoder that has its model before it gets work, and writes down when it got any."""
    import pyarrow as pa

    from fastdistil.integrations.ray import BatchEncoder

    class ReadyEncoder(BatchEncoder):
        def __init__(self, *, starts: str, **options: Any) -> None:
            super().__init__(**options)
            super().__call__(pa.table({"text": ["One sentence."]}))
            self._starts: Path | None = Path(starts)

        def __call__(self, batch: Any) -> Any:
            if self._starts is not None:
                (self._starts / f"{time.time_ns()}").touch()
                self._starts = None
            return super().__call__(batch)

    return ReadyEncoder


def with_ray(model: str, source: Path, output: Path) -> dict[str, float]:
    """A job of two actors of one thread each."""
    import ray.data

    with tempfile.TemporaryDirectory() as starts:
        begin = time.time_ns()
        ray.data.read_parquet(str(source)).repartition(
            target_num_rows_per_block=BLOCK_ROWS
        ).map_batches(
            ready_encoder(),
            fn_constructor_kwargs={"model": model, "starts": starts},
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=ACTORS),
        ).write_parquet(str(output))
        end = time.time_ns()
        first = min(int(file.name) for file in Path(starts).iterdir())
    return {"start_seconds": (first - begin) / 1e9, "work_seconds": (end - first) / 1e9}


def _in_a_process(model: str, source: Path, output: Path) -> dict[str, float]:
    """`in_one_process` in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(in_one_process, model, source, output, time.time_ns()).result()


def in_one_process(model: str, source: Path, output: Path, begin: int) -> dict[str, float]:
    """The same work by an Encoder of two threads in this process, asked for at time `begin`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    use_threads(ACTORS)
    encoder = Encoder(model)
    encoder.encode(["One sentence."])
    loaded = time.time_ns()
    table = pq.read_table(source)
    vectors = encoder.encode(table["text"].to_pylist())
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), encoder.dim)
    pq.write_table(table.append_column("vector", column), output)
    end = time.time_ns()
    return {"start_seconds": (loaded - begin) / 1e9, "work_seconds": (end - loaded) / 1e9}


def compare(one: Path, many: Path) -> None:
    """Raises AssertionError unless both have the same rows, in whatever order."""
    import pyarrow.parquet as pq

    wanted, found = (pq.read_table(each).sort_by("id") for each in (one, many))
    assert found.equals(wanted.cast(found.schema)), f"{many} differs from {one}"


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown: medians."""
    rows = results["rows"]
    names = {
        "process": f"one process, {ACTORS} threads",
        "ray": f"Ray Data, {ACTORS} actors, a thread each",
    }
    cells, work = [], {}
    for key, name in names.items():
        turns = results["turns"][key]
        work[key] = statistics.median(turn["work_seconds"] for turn in turns)
        before = statistics.median(turn["start_seconds"] for turn in turns)
        cells.append((name, f"{rows / work[key]:,.0f}", f"{work[key]:.2f}", f"{before:.2f}"))
    turns = zip(results["turns"]["process"], results["turns"]["ray"], strict=True)
    each = sorted(ray["work_seconds"] / one["work_seconds"] - 1 for one, ray in turns)
    parts = [
        markdown_table(HEADER, cells),
        f"Overhead of Ray: {work['ray'] / work['process'] - 1:+.1%} of the time (by turns "
        f"{each[0]:+.1%} to {each[-1]:+.1%}). Beside that, Ray itself took "
        f"{results['init_seconds']:.1f} s to start.",
        f"{rows:,} sentences of {results['source']}, in blocks of {results['block_rows']:,}; Ray "
        f"{results['ray']}. {describe(results['environment'])}",
    ]
    if results["quick"]:
        parts.append("A quick run: few sentences, one turn. Not for publishing.")
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
