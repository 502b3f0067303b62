"""The command line of distillation: `fastdistil distill`.

Mistakes are answered before torch is imported, which is when there is work for it.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .cli_options import positive, set_threads
from .distill.settings import OBJECTIVES, POOLED_LOSSES, PRECISIONS, SOFT_TARGETS, Settings
from .run_folder import check_new_folder
from .text_io import INPUT_FORMATS, STDIN, UsageError, format_of_input

if TYPE_CHECKING:
    from .distill.settings import Summary

COMMAND = "distill"

_EXAMPLES = """\
examples:
  fastdistil distill --teacher sentence-transformers/all-MiniLM-L6-v2 --texts sentences.txt \\
    --layers 3 --out small
  fastdistil distill --teacher ./my-bert-classifier --texts reviews.csv --text-column review \\
    --label-column stars --out small-classifier
  fastdistil distill --teacher bert-base-uncased --objective mlm --texts articles.jsonl \\
    --text-column body --layers 0,2,4,7,9,11 --epochs 1 --out my-distilbert

The student begins with layers of the teacher, and learns to answer as the teacher does: with its
vectors (embedding), its labels (classification) or its words for a mask (mlm). No labels are
needed. OUT is a checkpoint as any other, for transformers and for fastdistil, with a model card, a
log and a plot of the training. Interrupted (Ctrl-C, a crash, a full disk), the same command
continues where it stopped: until it is done, the work lies in OUT.partial.
"""

_NEXT = {
    "embedding": "fastdistil encode sentences.txt -o vectors.npy --model {}",
    "classification": 'fastdistil classify "A quiet, lovely film." --model {}',
    "mlm": 'fastdistil fill "The capital of France is [MASK]." --model {}',
}


def add_command(commands: Any) -> None:
    """The command, in the parser's list of them."""
    parser = commands.add_parser(
        COMMAND,
        help="a small, fast DistilBERT from a bigger model, on your own texts",
        description="Makes a small, fast DistilBERT that answers as a bigger model does on texts "
        "like yours.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_file_options(parser)
    _add_student_options(parser.add_argument_group("the student"))
    _add_loss_options(parser.add_argument_group("what it learns"))
    _add_training_options(parser.add_argument_group("the training"))
    _add_evaluation_options(parser.add_argument_group("the evaluation"))
    _add_machine_options(parser.add_argument_group("the machine"))


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit code."""
    settings = _settings(options)
    _check(options)
    set_threads(options.threads)
    from .distill import distill

    summary = distill(
        options.teacher,
        options.texts,
        options.out,
        eval_texts=options.eval_texts,
        student=options.student,
        input_format=options.input_format,
        text_column=options.text_column,
        label_column=options.label_column,
        teacher_cache=options.teacher_cache,
        device=options.device,
        resume=not options.restart,
        show_progress=not options.quiet,
        **settings,
    )
    if not options.quiet:
        print(summary_text(summary, options.out), file=sys.stderr)
    return 0


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of Settings that were given.

    Raises:
        UsageError: one that Settings refuses.
    """
    given = {
        name: value
        for name in Settings.__dataclass_fields__
        if (value := getattr(options, name, None)) is not None
    }
    if options.freeze_embeddings:
        given["train_embeddings"] = False
    try:
        Settings(**given)
    except (ValueError, TypeError) as error:
        raise UsageError(_dashed(str(error))) from None
    return given


def _dashed(message: str) -> str:
    """A message of Settings about a field or some, about the options of those names."""
    fields, verb, rest = re.split(r"( is | are )", message, maxsplit=1)
    options = ["--" + field.replace("_", "-") for field in fields.split(", ")]
    return ", ".join(options) + verb + rest


def _check(options: argparse.Namespace) -> None:
    """What can be told before a model is loaded.

    Raises:
        UsageError: formats that are not known, options that contradict each other, an OUT that
            holds something.
        OSError: an input that is not there.
    """
    inputs = [one for one in (options.texts, options.eval_texts) if one is not None]
    for one in inputs:
        chosen = format_of_input(one, options.input_format, options.text_column)
        if chosen == "txt" and options.label_column is not None:
            raise UsageError(
                f"a .txt input has no columns: --label-column is for .jsonl, .csv and .parquet, "
                f"not for {one}"
            )
        if one != STDIN and (Path(one).is_dir() or not Path(one).exists()):
            raise FileNotFoundError(2, "no such file", one)
    if inputs.count(STDIN) > 1:
        raise UsageError("--texts and --eval-texts cannot both be standard input")
    if options.eval_texts is not None and options.held_out is not None:
        raise UsageError("--held-out: with --eval-texts nothing is held out of --texts")
    if options.student is not None and options.layers is not None:
        raise UsageError("--layers: --student has its own; give one of the two")
    if options.label_column is not None and options.objective in ("embedding", "mlm"):
        raise UsageError(f"--label-column: {options.objective} has no use for labels")
    check_new_folder(Path(options.out).expanduser(), "--out")


# The options, in groups.


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--teacher",
        required=True,
        metavar="MODEL",
        help="a BERT's or DistilBERT's folder or Hugging Face hub id",
    )
    add(
        "--texts",
        required=True,
        metavar="IN",
        help="to learn from: .txt (a text a line), .jsonl, .csv, .parquet; - is stdin",
    )
    add("--out", required=True, metavar="OUT", help="the student's folder, not there yet")
    add("--input-format", choices=INPUT_FORMATS, help="where IN's name does not say; - is txt")
    add("--text-column", metavar="NAME", help='column or key with the text (default: "text")')
    add(
        "--label-column",
        metavar="NAME",
        help="column or key with the text's label, to learn from both (classification)",
    )
    add("--restart", action="store_true", help="throw away what an interrupted run has done")
    add("--quiet", action="store_true", help="say nothing but errors")


def _add_student_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--layers",
        type=_layers,
        metavar="N|N,N",
        help="how many layers, such as 3, or which of the teacher's, from 0: 0,2,4; a single one "
        "with a comma: 5, (default: half of them)",
    )
    add(
        "--student",
        metavar="MODEL",
        help="begin with this DistilBERT's weights (default: with the teacher's)",
    )
    add(
        "--freeze-embeddings",
        action="store_true",
        help="keep the embeddings as they are in the teacher",
    )


def _add_loss_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--objective",
        metavar="NAME",
        help=f"{_either(OBJECTIVES)} (default: what the teacher is for)",
    )
    for name, what in (
        ("soft", "the teacher's predictions"),
        ("hard", "the masked words, or the labels"),
        ("hidden", "the last hidden states"),
        ("pooled", "the pooled vectors"),
    ):
        add(
            f"--{name}-weight",
            type=float,
            metavar="W",
            help=f"in the loss, of {what} (default: the objective's)",
        )
    add(
        "--temperature", type=float, metavar="T", help=_default("of the predictions", "temperature")
    )
    add(
        "--pooled-loss",
        metavar="NAME",
        help=_default(f"of the pooled vectors: {_either(POOLED_LOSSES)}", "pooled_loss"),
    )
    add(
        "--mask-probability",
        type=float,
        metavar="P",
        help=_default("share of the tokens to mask (mlm)", "mask_probability"),
    )
    add(
        "--maskings",
        type=positive,
        metavar="N",
        help="so many different maskings of a text, in turn (default: a new one every epoch)",
    )
    add(
        "--soft-targets",
        metavar="NAME",
        help=_default(
            f"tokens whose predictions are learnt (mlm): {_either(SOFT_TARGETS)}", "soft_targets"
        ),
    )


def _add_training_options(group: Any) -> None:
    add = group.add_argument
    add("--epochs", type=positive, metavar="N", help=_default("how often to see a text", "epochs"))
    add("--max-steps", type=positive, metavar="N", help="stop after so many steps")
    add(
        "--batch-tokens",
        type=positive,
        metavar="TOKENS",
        help=_default("tokens in a batch", "batch_tokens"),
    )
    add(
        "--accumulation",
        type=positive,
        metavar="N",
        help=_default("batches that make a step", "accumulation"),
    )
    add(
        "--max-length",
        type=positive,
        metavar="TOKENS",
        help="cut texts at so many tokens (default: what the teacher says)",
    )
    for option, letter, what in (
        ("--learning-rate", "R", "of AdamW, at its highest"),
        ("--warmup", "SHARE", "share of the steps in which the learning rate rises"),
        ("--weight-decay", "D", "of AdamW"),
        ("--max-gradient-norm", "L", "longer gradients are cut to this length"),
    ):
        field = option.removeprefix("--").replace("-", "_")
        add(option, type=float, metavar=letter, help=_default(what, field))
    add("--seed", type=int, metavar="N", help=_default("another number, other draws", "seed"))


def _add_evaluation_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--eval-texts",
        metavar="IN",
        help="to evaluate on, in the format of --texts (default: some of those)",
    )
    add(
        "--held-out",
        type=float,
        metavar="SHARE",
        help=_default("share of the texts to evaluate on and not to learn from", "held_out"),
    )
    add(
        "--evaluate-every",
        type=positive,
        metavar="STEPS",
        help="between two evaluations (default: ten a run)",
    )
    add(
        "--checkpoint-every",
        type=positive,
        metavar="STEPS",
        help=_default("between two savings of the unfinished work", "checkpoint_every"),
    )


def _add_machine_options(group: Any) -> None:
    add = group.add_argument
    add(
        "--precision",
        metavar="NAME",
        help=_default(f"what the student multiplies in: {_either(PRECISIONS)}", "precision"),
    )
    add(
        "--teacher-precision",
        metavar="NAME",
        help=_default(
            "what the teacher runs in: auto, fp32, bf16, fp16 or int8", "teacher_precision"
        ),
    )
    add(
        "--teacher-cache",
        metavar="FOLDER",
        help="keep the teacher's outputs there, for the next epochs and runs",
    )
    add("--device", metavar="DEVICE", help="where to run, for example cuda (default: cpu)")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def _layers(text: str) -> int | tuple[int, ...]:
    """How many (3), or which (0,2,4; a single one: 5,)."""
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither how many layers, like 3, nor a list of them, like 0,2,4"
        )
    return tuple(map(int, parts)) if "," in text else int(text)


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _default(what: str, field: str) -> str:
    return f"{what} (default: {getattr(Settings, field)})".replace("%", "%%")


# What came of it, for people.


def summary_text(summary: Summary, out: str) -> str:
    """What was made, of what, at what cost and how good it is: some lines.

    Args:
        out: the folder, as the user names it.
    """
    lines = [_size_line(summary, out), _work_line(summary)]
    if summary.resumed_step:
        lines.append(f"the first {summary.resumed_step:,} steps are from a run before")
    lines += _evaluation_lines(summary)
    lines.append(f"try it: {_NEXT[summary.objective].format(shlex.quote(out))}")
    return "\n".join(lines)


def _size_line(summary: Summary, out: str) -> str:
    share = summary.parameters / max(summary.teacher_parameters, 1)
    return (
        f"{out}: {summary.parameters / 1e6:.3g} million parameters, {share:.0%} of the teacher's "
        f"{summary.teacher_parameters / 1e6:.3g} million"
    )


def _work_line(summary: Summary) -> str:
    from .progress import duration

    seconds = max(summary.seconds, 1e-9)
    return (
        f"{summary.objective}: {summary.steps:,} steps, {summary.tokens:,} tokens of "
        f"{summary.training_texts:,} texts in {duration(summary.seconds)} "
        f"({summary.tokens / seconds:,.0f} tokens/s); the teacher took "
        f"{summary.teacher_seconds / seconds:.0%} of the time"
    )


def _evaluation_lines(summary: Summary) -> list[str]:
    if not summary.after:
        return ["nothing was evaluated: no texts were held out"]
    width = max(map(len, summary.after))
    lines = [f"on {summary.eval_texts:,} texts that were not trained on:"]
    for name, after in summary.after.items():
        before = summary.before.get(name)
        shown = f"{before:.4f} -> " if before is not None else ""
        lines.append(f"  {name:<{width}}  {shown}{after:.4f}")
    return lines
