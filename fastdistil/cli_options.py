"""Options that several commands have. Imports no torch."""

from __future__ import annotations

import argparse

from .text_io import INPUT_FORMATS


def add_model_option(parser: argparse.ArgumentParser, default: str) -> None:
    """--model."""
    parser.add_argument(
        "--model",
        metavar="MODEL",
        default=default,
        help="a checkpoint's folder or Hugging Face hub id (default: %(default)s)",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """How and where a model runs."""
    add = parser.add_argument
    add("--precision", default="auto", help="auto, fp32, bf16, fp16 or int8 (default: auto)")
    add("--backend", default="auto", help="auto, cuda, cpu or reference (default: auto)")
    add(
        "--device",
        type=devices,
        help="where to run, for example cuda, or cuda:0,cuda:1 to share the work (default: cpu)",
    )
    add(
        "--max-length",
        type=positive,
        metavar="TOKENS",
        help="cut texts at so many tokens (default: what the checkpoint says)",
    )
    add("--batch-tokens", type=positive, metavar="TOKENS", help="tokens in a batch")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """How a file of texts is read."""
    add = parser.add_argument
    add("--input-format", choices=INPUT_FORMATS, help="where IN's name does not say; - is txt")
    add("--text-column", metavar="NAME", help='column or key with the text (default: "text")')


def positive(text: str) -> int:
    """An option's whole number from 1 up."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return value


def devices(text: str) -> str | list[str]:
    """One device, or several with commas between them."""
    return text.split(",") if "," in text else text


def set_threads(count: int | None) -> None:
    """What --threads asks for, if anything. Imports torch."""
    if count is not None:
        from .backends.threads import use_threads

        use_threads(count)
