"""The command line: `fastdistil encode`, `bench`, `info` and `explain`; tasks are in `task_cli`,
distillation is in `distill_cli`.

Exit codes: 0 done; 1 something went wrong, said in one line on stderr; 2 a command that makes no
sense; 130 interrupted. torch is imported when there is work for it, so that --help and mistakes
answer at once.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import distill_cli, task_cli
from ._version import __version__
from .cli_options import (
    add_engine_options,
    add_input_options,
    add_model_option,
    positive,
    set_threads,
)
from .text_io import UsageError

if TYPE_CHECKING:
    from .encode_file import EncodeSummary
    from .encoder import Encoder

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

_ENCODE_EXAMPLES = """\
examples:
  fastdistil encode sentences.txt -o vectors.npy
  fastdistil encode reviews.csv -o reviews.parquet --text-column review --id-column review_id
  fastdistil encode articles.jsonl -o articles.safetensors --model ./my-distilbert --pooling cls
  zcat dump.jsonl.gz | fastdistil encode - -o dump.npy --input-format jsonl --text-column body

Every record of the input gives one row of the output, in order. Interrupted (Ctrl-C, a crash, a
full disk), the same command continues where it stopped: until it is done, the work lies in
OUT.partial.
"""

_BENCH_EXAMPLES = """\
examples:
  fastdistil bench --quick
  fastdistil bench --model ./my-distilbert --texts reviews.txt --html bench.html
  fastdistil bench --workload mixed,1x32 --peers eager-fp32,openvino-bf16 --price-per-hour 0.10

Every engine's answers are checked against transformers in fp32 first; then all take turns on the
same inputs. Nothing is downloaded unless MODEL is a hub id: without --model DistilBERT-base's sizes
with seeded random weights run, which are as fast as trained ones. Other engines that are installed
take part; pip install 'fastdistil[bench]' brings all of them. A quick run takes less than two
minutes, any other some ten. This measures the CPU; `make gpu` in a checkout measures GPUs.
"""

_EXPLAIN_EXAMPLES = """\
examples:
  fastdistil explain --batch 256x128 --gpu H100
  fastdistil explain --batch 12,7,30,128 --gpu L4 --precision fp32 --model ./my-distilbert
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's) and returns its exit code."""
    parser = _parser()
    options = _parsed(parser, arguments)
    try:
        if options.command == "info":
            return _info()
        if options.command == "explain":
            return _explain(options)
        if options.command == "bench":
            return _bench(options)
        if options.command in task_cli.COMMANDS:
            return task_cli.run(options)
        if options.command == distill_cli.COMMAND:
            return distill_cli.run(options)
        return _encode(options)
    except UsageError as error:
        print(f"fastdistil: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the interpreter flushes it at the end
        return 1
    except KeyboardInterrupt:
        more = "; run the same command again to continue" if _resumes(options) else ""
        print(f"fastdistil: interrupted{more}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"fastdistil: error: {_one_line(error)}", file=sys.stderr)
        return 1


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """A command line's options, where texts may stand on either side of an option.

    argparse takes texts that follow an option for too many, if there were none before it.
    """
    options, rest = parser.parse_known_args(arguments)
    texts = getattr(options, "texts", None)
    if rest:
        if not isinstance(texts, list) or any(text.startswith("-") for text in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.texts = [*texts, *rest]
    return options


def _resumes(options: argparse.Namespace) -> bool:
    """Whether an interrupted command goes on where it stopped."""
    return options.command == distill_cli.COMMAND or getattr(options, "output", None) is not None


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastdistil", description="Fast inference for DistilBERT and BERT encoders."
    )
    parser.add_argument("--version", action="version", version=f"fastdistil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    encode = commands.add_parser(
        "encode",
        help="a file of texts to a file of vectors",
        description="Encodes a file of texts to a file of vectors.",
        epilog=_ENCODE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_file_options(encode)
    _add_model_options(encode)
    task_cli.add_commands(commands)
    distill_cli.add_command(commands)
    commands.add_parser(
        "info",
        help="what this machine has, what would run, and what is missing",
        description="Says what this machine has, what would run on it, and what is missing.",
    )
    bench = commands.add_parser(
        "bench",
        help="how fast a model runs here, beside other engines",
        description="Measures how fast a model runs on this machine, beside the other engines that "
        "are installed. Ends with a table and a sentence.",
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_bench_options(bench)
    explain = commands.add_parser(
        "explain",
        help="what a forward on a GPU launches, moves and computes; needs no GPU",
        description="Prints the launch plan of one forward on a GPU, and the least time that its "
        "arithmetic and its memory traffic can take there. Nothing is run; no GPU is needed.",
        epilog=_EXPLAIN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_plan_options(explain)
    return parser


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    add = bench.add_argument
    add("--quick", action="store_true", help="few texts, few turns; without torch.compile")
    add("--model", metavar="MODEL", help="a checkpoint's folder or Hugging Face hub id")
    add("--texts", metavar="FILE", help="a text a line (default: fastdistil's own sentences)")
    add(
        "--workload",
        metavar="NAME,NAME",
        help="mixed (texts in the given order), sorted (by length), ROWSxTOKENS "
        "(default: mixed,sorted,16x128,1x16; of a quick run mixed,8x128,1x16)",
    )
    add(
        "--peers",
        metavar="NAME,NAME",
        help="the engines beside fastdistil, such as eager-fp32; an unknown name lists them "
        "(default: all that are installed)",
    )
    add(
        "--precisions",
        default="int8,bf16,fp32",
        metavar="NAME,NAME",
        help="fastdistil's (default: %(default)s, those that this CPU has kernels for)",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")
    add(
        "--price-per-hour",
        type=_price,
        metavar="PRICE",
        help="of this machine, in any currency: adds what a million tokens cost",
    )
    add("--json", type=Path, metavar="FILE", help="write every turn, and the machine's record")
    add("--html", type=Path, metavar="FILE", help="write a page with charts")


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a price like 0.10")
    return price


def _add_plan_options(explain: argparse.ArgumentParser) -> None:
    add = explain.add_argument
    add(
        "--batch",
        type=_lengths,
        metavar="BATCH",
        default=[128] * 32,
        help="SEQUENCESxTOKENS, or the tokens of each sequence: 12,7,30 (default: 32x128)",
    )
    add("--gpu", default="H100", help="its name, like A100, H100 or L4 (default: H100)")
    add("--precision", default="bf16", help="bf16, fp16 or fp32 (default: bf16)")
    add(
        "--model",
        metavar="MODEL",
        help="a checkpoint (default: DistilBERT-base)",
    )


def _lengths(text: str) -> list[int]:
    sequences, times, tokens = text.partition("x")
    try:
        if times:
            return [int(tokens)] * int(sequences)
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither SEQUENCESxTOKENS like 32x128 nor a list like 12,7,30"
        ) from None


def _add_file_options(encode: argparse.ArgumentParser) -> None:
    add = encode.add_argument
    add("input", metavar="IN", help=".txt (a text a line), .jsonl, .csv, .parquet; - is stdin")
    add(
        "-o",
        "--output",
        metavar="OUT",
        required=True,
        help=".npy, .parquet, .jsonl or .safetensors; replaced if it exists",
    )
    add_input_options(encode)
    add(
        "--id-column",
        metavar="NAME",
        help="column or key that names the rows: the id in .jsonl and .parquet, otherwise in "
        "OUT's name with the ending .ids.jsonl (default: row numbers, from 0)",
    )
    add("--restart", action="store_true", help="throw away what an interrupted run has done")
    add("--quiet", action="store_true", help="say nothing but errors")


def _add_model_options(encode: argparse.ArgumentParser) -> None:
    add = encode.add_argument
    add_model_option(encode, DEFAULT_MODEL)
    add(
        "--pooling",
        choices=("mean", "cls", "max"),
        help="default: what the checkpoint says, else mean",
    )
    add(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale vectors to length 1, or do not (default: what the checkpoint says, else not)",
    )
    add_engine_options(encode)


def _encode(options: argparse.Namespace) -> int:
    from .vector_io import check_files

    columns = (options.text_column, options.id_column)
    check_files(options.input, options.output, options.input_format, *columns)
    set_threads(options.threads)
    from .encode_file import encode_file
    from .encoder import Encoder

    encoder = Encoder(
        options.model,
        device=options.device,
        precision=options.precision,
        backend=options.backend,
        max_length=options.max_length,
        pooling=options.pooling,
        normalize=options.normalize,
    )
    if not options.quiet:
        _print_engine(options.model, encoder)
    summary = encode_file(
        encoder,
        options.input,
        options.output,
        input_format=options.input_format,
        text_column=options.text_column,
        id_column=options.id_column,
        batch_tokens=options.batch_tokens,
        resume=not options.restart,
        show_progress=not options.quiet,
    )
    if not options.quiet:
        _print_summary(summary)
    return 0


def _print_engine(model: str, encoder: Encoder) -> None:
    engine = encoder.model.explain()
    pooled = f"{encoder.pooling} pooling" + (", normalised" if encoder.normalize else "")
    print(
        f"{model}: {engine['precision']}, {engine['reason']}; {pooled}, "
        f"at most {encoder.require_tokenizer().max_length} tokens a text",
        file=sys.stderr,
        flush=True,
    )


def _print_summary(summary: EncodeSummary) -> None:
    from .progress import duration

    encoded = summary.rows - summary.resumed
    rate = f" ({encoded / summary.seconds:,.0f} sentences/s)" if encoded else ""
    lines = [
        f"{_short(summary.output)}: {summary.rows:,} rows of {summary.dim} numbers, "
        f"{summary.tokens:,} tokens, in {duration(summary.seconds)}{rate}"
    ]
    if summary.ids_output is not None:
        lines.append(f"{_short(summary.ids_output)}: their ids")
    if summary.resumed:
        lines.append(f"{summary.resumed:,} rows are from the run that was interrupted")
    if summary.truncated:
        lines.append(
            f"{summary.truncated:,} texts were longer than {summary.max_length} tokens and were cut"
        )
    if summary.replaced:
        lines.append(f"{summary.replaced:,} texts held lone surrogates, which were read as U+FFFD")
    print("\n".join(lines), file=sys.stderr)


def _short(path: Path) -> Path:
    """The path seen from the current folder, where it is in there."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _info() -> int:
    from .info import report

    print(report())
    return 0


def _bench(options: argparse.Namespace) -> int:
    set_threads(options.threads)
    from .bench.command import run

    run(options)
    return 0


def _explain(options: argparse.Namespace) -> int:
    from .checkpoint import load_checkpoint
    from .config import EncoderConfig
    from .launch_plan import plan_latency, plan_launches

    config = EncoderConfig() if options.model is None else load_checkpoint(options.model).config
    batch = (config, options.batch, options.precision, options.gpu)
    print(plan_launches(*batch))
    latency = plan_latency(*batch)
    if latency is not None:
        print(f"\n{latency}")
    return 0
