"""The command line as somebody at a shell meets it: exit codes, one-line errors, help, progress."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import write_tiny_checkpoint

from fastdistil import Encoder, __version__, encode_file, info, progress, shard_plan
from fastdistil.cli import main

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_tiny_checkpoint(tmp_path_factory.mktemp("model")))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a few inputs in it."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("one\n\ntwo words\n")
    Path("in.jsonl").write_text('{"body": "one", "key": 7}\n{"body": "two", "key": 8}\n')
    return tmp_path


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    return code, *capsys.readouterr()


def test_encode(folder, model, capsys):
    code, out, err = run(capsys, "encode", "in.txt", "-o", "out.npy", "--model", model)
    assert (code, out) == (0, "")
    assert np.array_equal(np.load("out.npy"), Encoder(model).encode(["one", "", "two words"]))
    engine, summary = err.splitlines()
    assert engine.startswith(f"{model}: ")
    assert engine.endswith("; mean pooling, at most 40 tokens a text")
    assert summary.startswith("out.npy: 3 rows of 48 numbers, 17 tokens, in ")


def test_every_option_reaches_its_place(folder, model, capsys):
    arguments = ["encode", "in.jsonl", "-o", "out.jsonl", "--text-column", "body"]
    arguments += ["--id-column", "key", "--model", model, "--pooling", "cls", "--normalize"]
    arguments += ["--precision", "fp32", "--backend", "reference", "--device", "cpu"]
    arguments += ["--max-length", "3", "--batch-tokens", "5", "--quiet"]
    assert run(capsys, *arguments) == (0, "", "")
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == [7, 8]
    enc = Encoder(model, precision="fp32", backend="reference", max_length=3)
    expected = enc.encode(["one", "two"], pooling="cls", normalize=True)
    np.testing.assert_allclose([record["vector"] for record in records], expected, atol=1e-6)


def test_several_devices(folder, model, capsys):
    arguments = ["encode", "in.txt", "-o", "out.npy", "--model", model, "--quiet"]
    assert run(capsys, *arguments, "--device", "cpu,cpu") == (0, "", "")
    expected = Encoder(model).encode(["one", "", "two words"])
    np.testing.assert_allclose(np.load("out.npy"), expected, atol=1e-6)
    code, _, err = run(capsys, *arguments, "--device", "cpu,meta")
    assert code == 1
    assert "device lists different kinds: cpu (cpu), meta (meta)" in err


def test_the_summary_tells_what_was_not_plain(folder, model, capsys):
    Path("odd.jsonl").write_text('{"text": "\\ud800", "id": 1}\n{"text": "one two", "id": 2}\n')
    arguments = ["encode", "odd.jsonl", "-o", "out.npy", "--id-column", "id", "--model", model]
    code, _, err = run(capsys, *arguments, "--max-length", "4")
    assert code == 0
    lines = err.splitlines()
    assert lines[2] == "out.ids.jsonl: their ids"
    assert lines[3] == "1 texts were longer than 4 tokens and were cut"
    assert lines[4] == "1 texts held lone surrogates, which were read as U+FFFD"
    assert Path("out.ids.jsonl").read_text() == "1\n2\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.xml", "-o", "out.npy"], "cannot tell the format of 'in.xml' from its name"),
        (["in.txt", "-o", "out.pt"], "cannot tell the format of 'out.pt' from its name"),
        (["in.txt", "-o", "out.npy", "--text-column", "x"], "a .txt input has no columns"),
        (["-", "-o", "out.npy", "--input-format", "parquet"], "standard input cannot be parquet"),
        (["in.jsonl", "-o", "./in.jsonl"], "input and output are the same file"),
    ],
)
def test_a_command_that_makes_no_sense_is_2(folder, capsys, arguments, message):
    code, out, err = run(capsys, "encode", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("fastdistil: error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["encode"], "required: IN, -o/--output"),
        (["encode", "in.txt"], "required: -o/--output"),
        (["encode", "in.txt", "-o", "o.npy", "--pooling", "none"], "invalid choice: 'none'"),
        (["encode", "in.txt", "-o", "o.npy", "--max-length", "0"], "'0' is not a whole number"),
        (["encode", "in.txt", "-o", "o.npy", "--batch-tokens", "x"], "'x' is not a whole number"),
        (["decode"], "invalid choice: 'decode'"),
    ],
)
def test_arguments_that_cannot_be_read_are_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.txt", "-o", "o.npy"], "gone.txt: No such file or directory"),
        (["in.txt", "-o", "gone/o.npy"], "gone: no such folder to write to"),
        (["in.txt", "-o", "o.npy", "--model", "./gone"], "gone"),
        (["in.txt", "-o", "o.npy", "--precision", "fp8"], "'fp8' is not available yet"),
        (["in.txt", "-o", "o.npy", "--precision", "fp7"], "fp7"),
        (["in.txt", "-o", "o.npy", "--backend", "abacus"], "abacus"),
        (["in.txt", "-o", "o.npy", "--max-length", "41"], "max_length is 41"),
        (
            ["in.jsonl", "-o", "o.npy"],
            "in.jsonl, line 1: no key 'text'; the keys are 'body'",
        ),
    ],
)
def test_what_goes_wrong_is_1_and_one_line(folder, model, capsys, arguments, message):
    model_option = [] if "--model" in arguments else ["--model", model]
    code, out, err = run(capsys, "encode", *arguments, *model_option, "--quiet")
    assert (code, out) == (1, "")
    assert err.startswith("fastdistil: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not list(folder.glob("o.*")), "something was left behind"


def test_an_interrupt_is_130_and_says_how_to_go_on(folder, model, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(encode_file, "encode_file", interrupted)
    code, _, err = run(capsys, "encode", "in.txt", "-o", "o.npy", "--model", model, "--quiet")
    assert code == 130
    assert err == "fastdistil: interrupted; run the same command again to continue\n"


def test_other_settings_need_restart(folder, model, capsys, monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_ROWS", 1)
    bad = Path("in.jsonl").read_text() + "{}\n"
    Path("bad.jsonl").write_text(bad)
    monkeypatch.setattr("fastdistil.text_io._BLOCK_BYTES", 1)
    arguments = ["encode", "bad.jsonl", "-o", "o.npy", "--text-column", "body", "--model", model]
    assert run(capsys, *arguments)[0] == 1
    Path("bad.jsonl").write_text(bad.replace("{}\n", ""))
    code, _, err = run(capsys, *arguments, "--pooling", "cls")
    assert code == 1
    assert "pooling: 'mean' there, 'cls' now" in err
    assert "--restart" in err
    code, _, err = run(capsys, *arguments)
    assert code == 0
    assert "2 rows are from the run that was interrupted" in err
    code, _, err = run(capsys, *arguments, "--pooling", "cls", "--restart")
    assert code == 0
    assert "interrupted" not in err


def test_threads(folder, model):
    """In a process of its own: thread counts are the process's."""
    script = "import sys, torch; from fastdistil.cli import main; code = main(); "
    script += "from fastdistil.backends.threads import num_threads; "
    script += "print(torch.get_num_threads(), num_threads()); sys.exit(code)"
    arguments = ["encode", "-", "-o", "out.npy", "--model", model, "--threads", "1", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        input=b"from a pipe\nand another\n",
        capture_output=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert done.stdout.split() == [b"1", b"1"]
    assert np.array_equal(np.load("out.npy"), Encoder(model).encode(["from a pipe", "and another"]))


def test_progress_is_a_bar_on_a_terminal(folder, model):
    terminal, theirs = pty.openpty()
    rows_columns = struct.pack("4H", 24, 100, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, rows_columns)
    command = [sys.executable, "-m", "fastdistil", "encode", "in.txt", "-o", "o.npy"]
    with subprocess.Popen([*command, "--model", model], stderr=theirs, env=ENVIRONMENT) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
        assert process.wait() == 0
    os.close(terminal)
    assert b"100%|" in shown
    assert b"sentences/s" in shown
    assert b"tokens/s" in shown


def test_progress_is_lines_elsewhere(folder, model, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    code, _, err = run(capsys, "encode", "in.txt", "-o", "o.npy", "--model", model)
    assert code == 0
    assert "\r" not in err
    lines = err.splitlines()
    assert lines[1].startswith("3 rows, 100%, ")
    assert lines[2].startswith("writing o.npy: 3 rows, 100%")


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["--version"]])
def test_help_answers_without_loading_anything_heavy(arguments):
    script = "import sys; from fastdistil.cli import main\n"
    script += "try: main()\nfinally: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    *shown, modules = done.stdout.splitlines()
    assert not {"torch", "numpy", "tokenizers", "huggingface_hub"} & set(modules.split())
    text = "\n".join(shown)
    if arguments == ["--version"]:
        assert text == f"fastdistil {__version__}"
    elif arguments == ["--help"]:
        assert "encode" in text
        assert "info" in text
    else:
        assert "fastdistil encode sentences.txt -o vectors.npy" in text
        assert "--text-column" in text


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "fastdistil", "--version"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    assert done.stdout == f"fastdistil {__version__}\n"


# fastdistil info ----------------------------------------------------------------------------------


def test_info(capsys):
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    assert out.startswith(f"fastdistil {__version__}, torch ")
    for line in ("CPU: ", "GPU: ", "C++ extension: ", "precision auto: ", "precision fp32: "):
        assert f"\n{line}" in out


def test_info_says_what_is_missing_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(info, "find_spec", lambda name: None)
    monkeypatch.setattr(info, "extension_error", lambda: "not built; get a compiler")
    report = info.report()
    assert "C++ extension: not built; get a compiler" in report
    assert "pyarrow: missing, for .parquet files: pip install 'fastdistil[parquet]'" in report


def test_info_tells_of_a_cap_on_the_instruction_set(monkeypatch):
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    report = info.report()
    assert "FASTDISTIL_CPU_ISA=portable: nothing above it is used" in report
    assert "AVX-512 fp32" not in report.partition("unusable")[0].partition("precision auto")[0]


def test_explain_prints_a_launch_plan(model, capsys):
    code, out, err = run(capsys, "explain", "--batch", "2x16", "--gpu", "A100")
    assert (code, err) == (0, "")
    assert out.startswith("2 sequences, 32 tokens (32 rows) in bf16 on one A100\n")
    assert "varlen_attention" in out
    code, out, _ = run(capsys, "explain", "--batch", "3,0,5", "--precision", "fp32")
    assert (code, out.splitlines()[0]) == (
        0,
        "3 sequences, 8 tokens (16 rows) in fp32 on one H100",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch", "many"], 2, "'many' is neither SEQUENCESxTOKENS like 32x128 nor a list"),
        (["--gpu", "Z80"], 1, "fastdistil: error: gpu: got 'Z80'; allowed: A100, "),
        (["--batch", "1x600"], 1, "lengths: got 600; the model takes 512"),
    ],
)
def test_explain_refuses(capsys, arguments, code, message):
    try:
        found = main(["explain", *arguments])
    except SystemExit as stop:
        found = stop.code
    assert found == code
    assert message in capsys.readouterr().err
