"""The tasks' commands as somebody at a shell meets them, and results of whole files."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from task_checkpoints import write_task_checkpoint
from tiny_checkpoint import write_tiny_checkpoint

import fastdistil
from fastdistil import shard_plan
from fastdistil.cli import main
from fastdistil.run_folder import ResumeError
from fastdistil.tasks.task_file import run_file

ROOT = Path(__file__).resolve().parents[1]
ENTITIES = dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]))
HEADS = {
    "classify": ("ForSequenceClassification", {"id2label": {0: "bad", 1: "good"}}),
    "entail": ("ForSequenceClassification", {"id2label": {0: "contra", 1: "entailment"}}),
    "tag": ("ForTokenClassification", {"id2label": ENTITIES}),
    "answer": ("ForQuestionAnswering", {}),
    "fill": ("ForMaskedLM", {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    found = {
        name: str(write_task_checkpoint(root / name, "DistilBert", head, **config))
        for name, (head, config) in HEADS.items()
    }
    found["generate"] = found["fill"]
    found["similar"] = found["summarize"] = str(write_tiny_checkpoint(root / "vectors"))
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with a few inputs in it."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("The river\n\nHe sold 3 boats.\n", encoding="utf-8")
    rows = [{"body": text, "key": f"k{row}"} for row, text in enumerate(["one", "two", "three"])]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


class Interrupted(Exception):
    pass


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    return code, *capsys.readouterr()


def lines(text: str) -> list:
    return [json.loads(line) for line in text.splitlines()]


def close(got, want) -> bool:
    """Equal, numbers within fp32's rounding."""
    if isinstance(want, float):
        return abs(got - want) < 1e-5
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(close(got[k], want[k]) for k in want)
    if isinstance(want, list):
        return len(got) == len(want) and all(map(close, got, want))
    return got == want


def test_texts_as_arguments(models, capsys):
    texts = ["The river", "He sold 3 boats."]
    code, out, err = run(
        capsys, "classify", *texts, "--model", models["classify"], "--precision", "fp32"
    )
    want = fastdistil.pipeline("text-classification", models["classify"], precision="fp32")(texts)
    assert (code, err) == (0, "")
    assert close(lines(out), [{"id": row, "result": one} for row, one in enumerate(want)])


@pytest.mark.parametrize(
    ("command", "arguments", "task", "options"),
    [
        ("classify", ["--top-k", "2"], "text-classification", {"top_k": 2}),
        ("tag", ["--aggregation-strategy", "first"], "token-classification",
         {"aggregation_strategy": "first"}),
        ("generate", ["--length", "4", "--seed", "7", "--method", "gibbs", "--passes", "2",
                      "--temperature", "0.5", "--num-return-sequences", "2"], "text-generation",
         {"length": 4, "seed": 7, "method": "gibbs", "passes": 2, "temperature": 0.5,
          "num_return_sequences": 2}),
    ],
)  # fmt: skip
def test_a_file_line_by_line(command, arguments, task, options, folder, models, capsys):
    model = ["--model", models[command], "--precision", "fp32"]
    code, out, _ = run(capsys, command, "-f", "in.txt", *model, *arguments)
    texts = Path("in.txt").read_text().splitlines()
    pipeline = fastdistil.pipeline(task, models[command], precision="fp32")
    want = [{"id": r, "result": one} for r, one in enumerate(pipeline(texts, **options))]
    assert code == 0
    assert close(lines(out), want)


def test_columns_and_ids(folder, models, capsys):
    code, out, _ = run(
        capsys, "classify", "-f", "in.jsonl", "--text-column", "body", "--id-column", "key",
        "--model", models["classify"],
    )  # fmt: skip
    assert code == 0
    assert [one["id"] for one in lines(out)] == ["k0", "k1", "k2"]


def test_standard_input(models, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("ein Fluß\nzwei\n".encode())))
    code, out, _ = run(capsys, "fill", "--model", models["fill"])
    assert code == 1  # there is no mask in them
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ein [MASK]\nzwei [MASK]\n")))
    code, out, _ = run(capsys, "fill", "--model", models["fill"], "--top-k", "2")
    assert code == 0
    assert [len(one["result"]) for one in lines(out)] == [2, 2]


def test_labels_of_one_s_own(models, capsys):
    code, out, _ = run(
        capsys, "classify", "The river", "--labels", "sport, water",
        "--hypothesis-template", "It is about {}.", "--model", models["entail"],
    )  # fmt: skip
    assert code == 0
    assert sorted(lines(out)[0]["result"]["labels"]) == ["sport", "water"]


def test_answers_from_an_argument_and_from_a_whole_file(folder, models, capsys):
    context = "The river ran past Berlin.\nAnna sold 3 boats."
    Path("leaflet.txt").write_text(context)
    model = ["--model", models["answer"], "--precision", "fp32", "--top-k", "2"]
    code, alone, _ = run(capsys, "answer", "What was sold?", context, *model)
    assert code == 0
    _, from_file, _ = run(capsys, "answer", "What was sold?", "-f", "leaflet.txt", *model)
    assert alone == from_file
    for one in lines(alone)[0]["result"]:
        assert context[one["start"] : one["end"]] == one["answer"]
    code, out, _ = run(
        capsys, "answer", "Which?", "-f", "in.jsonl", "--text-column", "body", *model[:4]
    )
    assert (code, len(lines(out))) == (0, 3)


def test_the_most_alike(folder, models, capsys):
    code, out, _ = run(
        capsys, "similar", "the river", "-f", "in.txt", "--top-k", "2", "--model", models["similar"]
    )
    assert code == 0
    assert next(one["index"] for one in lines(out)) == 0
    assert len(lines(out)) == 2


def test_a_summary_of_a_whole_file(folder, models, capsys):
    Path("article.txt").write_text("One went by. Two came back. Three were sold. Four remain.\n")
    code, out, _ = run(
        capsys, "summarize", "-f", "article.txt", "--sentences", "2", "--model", models["summarize"]
    )
    assert code == 0
    [one] = lines(out)
    summary = one["result"] if isinstance(one["result"], dict) else one["result"][0]
    assert summary["summary_text"].count(".") == 2


def test_results_of_a_file_in_a_file(folder, models, capsys):
    code, out, err = run(
        capsys, "classify", "-f", "in.jsonl", "--text-column", "body", "--id-column", "key",
        "-o", "out.jsonl", "--model", models["classify"],
    )  # fmt: skip
    assert (code, out) == (0, "")
    assert "out.jsonl: 3 results in" in err
    written = lines(Path("out.jsonl").read_text())
    assert [one["id"] for one in written] == ["k0", "k1", "k2"]
    assert not Path("out.jsonl.partial").exists()


def test_options_may_stand_between_texts(models, capsys):
    model = ["--model", models["similar"]]
    code, out, _ = run(capsys, "similar", "a cat", "--top-k", "2", "two cats", "old", *model)
    assert (code, len(lines(out))) == (0, 2)
    model = ["--model", models["answer"]]
    code, out, _ = run(capsys, "answer", "who", *model, "The cat ran.")
    assert (code, len(lines(out))) == (0, 1)
    with pytest.raises(SystemExit):
        run(capsys, "similar", "a cat", "--top-k", "2", "b", "--no-such-option")
    with pytest.raises(SystemExit):
        run(capsys, "info", "more")
    assert "unrecognized arguments: more" in capsys.readouterr().err


def test_characters_of_a_whole_file_are_counted_as_they_are(folder, models, capsys, monkeypatch):
    data = "\ufeffOne line.\r\nThe river ran past Berlin.\r\n".encode()
    Path("crlf.txt").write_bytes(data)
    model = ["--model", models["answer"], "--precision", "fp32"]
    _, from_file, _ = run(capsys, "answer", "Where?", "-f", "crlf.txt", *model)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    _, from_stdin, _ = run(capsys, "answer", "Where?", "-f", "-", *model)
    assert from_file == from_stdin
    answer = lines(from_file)[0]["result"]
    text = data.decode("utf-8-sig")
    assert text[answer["start"] : answer["end"]] == answer["answer"]
    Path("latin.txt").write_bytes(b"caf\xe9")
    code, _, err = run(capsys, "answer", "Where?", "-f", "latin.txt", *model)
    assert code == 1
    assert "latin.txt: byte 0xe9 at offset 3 is not UTF-8" in err


def test_results_that_hold_lone_surrogates(folder, models, capsys):
    Path("odd.jsonl").write_text('{"text": "bad \\ud800 text"}\n')
    arguments = ["classify", "-f", "odd.jsonl", "--labels", "a,b", "--model", models["entail"]]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert lines(out)[0]["result"]["sequence"] == "bad \ud800 text"
    entail = fastdistil.pipeline("zero-shot-classification", models["entail"])
    run_file(entail, "odd.jsonl", "out.jsonl", candidate_labels=["a", "b"])
    written = lines(Path("out.jsonl").read_text(encoding="utf-8"))
    assert written[0]["result"]["sequence"] == "bad \ud800 text"


def test_what_is_made_of_a_text_decides_what_is_taken_over(folder, models, monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_ROWS", 2)
    Path("pairs.txt").write_text("cat\tmen play\n" * 4)
    classify = fastdistil.pipeline("text-classification", models["classify"], precision="fp32")
    made = []

    def first_part(text: str) -> dict[str, str]:
        made.append(text)
        if len(made) == 3:
            raise Interrupted
        one, other = text.split("\t")
        return {"text": one, "text_pair": other}

    with pytest.raises(Interrupted):
        run_file(classify, "pairs.txt", "out.jsonl", make_input=first_part)
    done = run_file(classify, "pairs.txt", "out.jsonl", make_input=lambda text: text.split("\t")[1])
    assert (done.rows, done.resumed) == (4, 0)
    want = classify(["men play"] * 4)
    assert close([one["result"] for one in lines(Path("out.jsonl").read_text())], want)


def test_an_interrupted_run_continues(folder, models, monkeypatch):
    """What is done is kept, and taken over only by a run that is the same."""
    monkeypatch.setattr(shard_plan, "SHARD_ROWS", 4)
    texts = [f"row {row} sold {row} boats" for row in range(18)]
    Path("many.txt").write_text("".join(text + "\n" for text in texts))
    classify = fastdistil.pipeline("text-classification", models["classify"], precision="fp32")
    clean = run_file(classify, "many.txt", "clean.jsonl")
    assert (clean.rows, clean.resumed) == (18, 0)

    calls = []

    def breaks(text: str) -> str:
        calls.append(text)
        if len(calls) == 11:
            raise Interrupted
        return text

    with pytest.raises(Interrupted):
        run_file(classify, "many.txt", "out.jsonl", make_input=breaks)
    assert not Path("out.jsonl").exists()
    calls[:] = [""] * 20
    with pytest.raises(ResumeError, match="options"):
        run_file(classify, "many.txt", "out.jsonl", make_input=breaks, top_k=2)
    resumed = run_file(classify, "many.txt", "out.jsonl", make_input=breaks)
    assert (resumed.rows, resumed.resumed) == (18, 8)
    assert close(lines(Path("out.jsonl").read_text()), lines(Path("clean.jsonl").read_text()))
    other = fastdistil.pipeline("text-classification", models["entail"], precision="fp32")
    calls[:] = []
    with pytest.raises(Interrupted):
        run_file(classify, "many.txt", "out.jsonl", make_input=breaks)
    with pytest.raises(ResumeError, match="model"):
        run_file(other, "many.txt", "out.jsonl", make_input=lambda text: text)
    run_file(other, "many.txt", "out.jsonl", resume=False)


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (["classify", "a", "-f", "in.txt"], 2, "as arguments or from in.txt, not both"),
        (["classify", "a", "-o", "out.jsonl"], 2, "--output is for texts from a file"),
        (["classify", "-f", "in.txt", "-o", "out.csv"], 2, "should end in .jsonl"),
        (["classify", "-f", "in.txt", "-o", "no/out.jsonl"], 1, "no such folder to write to"),
        (["classify", "-f", "absent.txt"], 1, "absent.txt: no such file"),
        (["classify", "-f", "in.doc"], 2, "cannot tell the format"),
        (["classify", "a", "--hypothesis-template", "{}"], 2, "is for --labels"),
        (["classify", "a", "--labels", "b", "--top-k", "2"], 2, "--top-k: with --labels"),
        (["answer", "q", "-f", "in.txt", "-o", "o.jsonl"], 2, "a .txt file is one text here"),
        (["similar", "q", "-f", "in.txt", "-o", "o.jsonl"], 2, "one answer for all texts"),
        (["tag", "a", "--aggregation-strategy", "best"], 1, "aggregation_strategy is 'best'"),
        (["fill", "no mask here"], 1, "no [MASK] in 'no mask here'"),
        (["tag", "a", "--model", "fill"], 1, "lacks a token classification head"),
        (["generate", "a", "--temperature", "-1"], 1, "temperature is -1.0"),
    ],
)  # fmt: skip
def test_mistakes_are_said_in_one_line(arguments, code, named, folder, models, capsys):
    if "--model" in arguments:
        arguments = [models.get(each, each) if n > 2 else each for n, each in enumerate(arguments)]
    else:
        arguments = [*arguments, "--model", models[arguments[0]]]
    got, out, err = run(capsys, *arguments)
    assert (got, out) == (code, "")
    assert err.startswith("fastdistil: error: ")
    assert err.count("\n") == 1
    assert named in err
    assert not list(folder.glob("o*"))


def on_a_terminal(*arguments: str) -> str:
    """What a command writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fastdistil", *arguments]
    with subprocess.Popen(command, stdout=follower, stdin=follower, env=environment) as process:
        os.close(follower)
        out = b""
        try:
            while some := os.read(leader, 4096):
                out += some
        except OSError:  # the end of a terminal
            pass
    os.close(leader)
    assert process.returncode == 0
    return out.decode().replace("\r\n", "\n")


def test_for_people_on_a_terminal(models):
    out = on_a_terminal("tag", "Anna sold it in Berlin.", "--model", models["tag"])
    kept = out
    for label in ENTITIES.values():
        kept = kept.replace(f" {label.split('-')[-1]}]", "").replace("[", "")
    assert kept == "Anna sold it in Berlin.\n"
    out = on_a_terminal("classify", "The river", "--json", "--model", models["classify"])
    assert lines(out)[0]["result"].keys() == {"label", "score"}
