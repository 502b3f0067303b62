"""`fastdistil distill` as somebody at a shell meets it, without what it would run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fastdistil import distill as package
from fastdistil.cli import main
from fastdistil.distill.settings import Settings, Summary

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ["--teacher", "T", "--texts", "in.txt", "--out", "small"]


def summary(**changes: Any) -> Summary:
    told = {
        "output": Path("small").absolute(),
        "objective": "embedding",
        "steps": 2000,
        "epochs": 3.0,
        "tokens": 4_000_000,
        "seconds": 200.0,
        "resumed_step": 0,
        "teacher_seconds": 20.0,
        "training_texts": 20_000,
        "eval_texts": 1000,
        "parameters": 17_400_000,
        "teacher_parameters": 22_600_000,
        "before": {"loss": 0.75, "pooled_cosine": 0.5},
        "after": {"loss": 0.0625, "pooled_cosine": 0.96875},
    }
    return Summary(**(told | changes))


@pytest.fixture
def calls(tmp_path, monkeypatch) -> list:
    """What `distill` is called with, in a folder with a few inputs; what it gives is in front."""
    monkeypatch.chdir(tmp_path)
    for name in ("in.txt", "in.jsonl", "eval.jsonl", "in.docx"):
        Path(name).write_text("{}\n")
    given: list = []

    def distill(*arguments: Any, **named: Any) -> Summary:
        given.append((arguments, named))
        return given[0] if isinstance(given[0], Summary) else summary()

    monkeypatch.setitem(vars(package), "distill", distill)
    return given


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["distill", *arguments])
    return code, *capsys.readouterr()


def test_only_what_is_given_goes_to_distill(calls, capsys):
    assert run(capsys, *NEEDED, "--quiet") == (0, "", "")
    ((arguments, named),) = calls
    assert arguments == ("T", "in.txt", "small")
    assert named == {
        **dict.fromkeys(("eval_texts", "student", "input_format", "text_column")),
        **dict.fromkeys(("label_column", "teacher_cache", "device")),
        "resume": True,
        "show_progress": False,
    }


def test_every_option_reaches_its_place(calls, capsys):
    fields = {
        **{"objective": "classification", "layers": (0, 2, 4), "epochs": 2, "max_steps": 9},
        **{"batch_tokens": 512, "accumulation": 4, "learning_rate": 1e-4, "warmup": 0.1},
        **{"weight_decay": 0.0, "max_gradient_norm": 0.5, "temperature": 3.0, "soft_weight": 1.0},
        **{"hard_weight": 0.0, "hidden_weight": 0.5, "pooled_weight": 0.25, "pooled_loss": "mse"},
        **{"mask_probability": 0.3, "maskings": 5, "soft_targets": "all", "max_length": 64},
        **{"evaluate_every": 7, "checkpoint_every": 8, "precision": "fp32"},
        **{"teacher_precision": "int8", "seed": 11},
    }
    assert fields.keys() == Settings.__dataclass_fields__.keys() - {"train_embeddings", "held_out"}
    others = {"text_column": "body", "label_column": "stars", "input_format": "jsonl"}
    others |= {"eval_texts": "eval.jsonl", "teacher_cache": "kept", "device": "cuda:1"}
    arguments = ["--teacher", "T", "--texts", "in.jsonl", "--out", "small"]
    for name, value in (fields | others).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        arguments += ["--" + name.replace("_", "-"), text]
    arguments += ["--freeze-embeddings", "--restart"]
    code, out, _ = run(capsys, *arguments)
    assert (code, out) == (0, "")
    ((_, named),) = calls
    assert named == {
        **fields,
        **others,
        **{"train_embeddings": False, "student": None, "resume": False, "show_progress": True},
    }
    assert Settings(**fields).layers == (0, 2, 4)


def test_held_out_student_and_threads(calls, capsys, monkeypatch):
    from fastdistil.backends import threads

    asked: list = []
    monkeypatch.setattr(threads, "use_threads", asked.append)
    arguments = ["--held-out", "0", "--student", "S", "--threads", "2", "--quiet"]
    assert run(capsys, *NEEDED, *arguments)[0] == 0
    ((_, named),) = calls
    assert (named["held_out"], named["student"], asked) == (0.0, "S", [2])


@pytest.mark.parametrize(
    ("text", "layers"), [("3", 3), ("0,2,4", (0, 2, 4)), ("5,", (5,)), ("0, 1", (0, 1))]
)
def test_layers(calls, capsys, text, layers):
    assert run(capsys, *NEEDED, "--quiet", "--layers", text)[0] == 0
    assert calls[0][1]["layers"] == layers


@pytest.mark.parametrize("text", ["", ",", "two", "1.5", "-1", "0,,2", "0-3"])
def test_layers_that_are_none(calls, capsys, text):
    with pytest.raises(SystemExit) as caught:
        main(["distill", *NEEDED, f"--layers={text}"])
    assert caught.value.code == 2
    assert "nor a list of them, like 0,2,4" in capsys.readouterr().err
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--objective", "squad"], "--objective is 'squad'; it can be mlm, embedding, class"),
        (["--learning-rate", "nan"], "--learning-rate is nan; a number above 0 is allowed"),
        (["--layers", "1,1"], "--layers is (1, 1); every layer can be there once"),
        (["--seed", "-1"], "--seed is -1; a whole number from 0 "),
        (["--teacher-precision", "fp4"], "--teacher-precision is 'fp4'; it can be auto"),
        (
            [f"--{name}-weight=0" for name in ("soft", "hard", "hidden", "pooled")],
            "--soft-weight, --hard-weight, --hidden-weight, --pooled-weight are all 0; ",
        ),
        (["--texts", "in.docx"], "cannot tell the format of 'in.docx'"),
        (["--eval-texts", "in.docx"], "cannot tell the format of 'in.docx'"),
        (["--text-column", "body"], "a .txt input has no columns"),
        (["--label-column", "stars"], "a .txt input has no columns: --label-column is for"),
        (
            ["--texts", "in.jsonl", "--label-column", "stars", "--objective", "mlm"],
            "--label-column: mlm has no use for labels",
        ),
        (["--texts", "-", "--eval-texts", "-"], "--texts and --eval-texts cannot both be"),
        (["--eval-texts", "in.txt", "--held-out", "0.1"], "--held-out: with --eval-texts"),
        (["--student", "S", "--layers", "3"], "--layers: --student has its own"),
        (["--out", "in.txt"], "--out: in.txt is a file"),
        (["--out", "."], "--out: . holds something: choose another name"),
    ],
)
def test_commands_that_make_no_sense(calls, capsys, arguments, told):
    code, out, err = run(capsys, *NEEDED, *arguments)
    assert (code, out, calls) == (2, "", [])
    (line,) = err.splitlines()
    assert line.startswith(f"fastdistil: error: {told}")


@pytest.mark.parametrize("option", ["--texts", "--eval-texts"])
def test_no_such_texts(calls, capsys, option):
    code, _, err = run(capsys, *NEEDED, option, "nowhere.txt")
    assert (code, err) == (1, "fastdistil: error: nowhere.txt: no such file\n")
    assert calls == []


def test_an_empty_folder_will_do(calls, capsys):
    Path("small").mkdir()
    assert run(capsys, *NEEDED, "--quiet")[0] == 0


def test_summary(calls, capsys):
    code, out, err = run(capsys, *NEEDED)
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        "small: 17.4 million parameters, 77% of the teacher's 22.6 million",
        "embedding: 2,000 steps, 4,000,000 tokens of 20,000 texts in 3 min 20 s "
        "(20,000 tokens/s); the teacher took 10% of the time",
        "on 1,000 texts that were not trained on:",
        "  loss           0.7500 -> 0.0625",
        "  pooled_cosine  0.5000 -> 0.9688",
        "try it: fastdistil encode sentences.txt -o vectors.npy --model small",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"resumed_step": 1200}, "the first 1,200 steps are from a run before"),
        ({"before": {}, "after": {}}, "nothing was evaluated: no texts were held out"),
        ({"before": {}}, "  pooled_cosine  0.9688"),
        ({"seconds": 0.0, "teacher_seconds": 0.0, "tokens": 0}, "in 0 s (0 tokens/s)"),
        ({"objective": "classification"}, 'fastdistil classify "A quiet, lovely film." --model'),
        ({"objective": "mlm"}, 'fastdistil fill "The capital of France is [MASK]." --model'),
    ],
)
def test_summaries_of_other_runs(calls, capsys, changes, told):
    calls.append(summary(**changes))
    assert told in run(capsys, *NEEDED)[2]


def test_the_next_command_can_be_pasted(calls, capsys):
    _, _, err = run(capsys, *NEEDED, "--out", "my model")
    assert err.endswith("--model 'my model'\n")


def test_interrupted(calls, capsys, monkeypatch):
    def distill(*_: Any, **__: Any) -> Summary:
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(package), "distill", distill)
    told = "fastdistil: interrupted; run the same command again to continue\n"
    assert run(capsys, *NEEDED) == (130, "", told)


def test_a_run_that_fails_says_so_in_a_line(calls, capsys, monkeypatch):
    def distill(*_: Any, **__: Any) -> Summary:
        raise RuntimeError("step 7: the loss is\nnan")

    monkeypatch.setitem(vars(package), "distill", distill)
    assert run(capsys, *NEEDED) == (1, "", "fastdistil: error: step 7: the loss is nan\n")


def test_help_names_every_option_and_default():
    code = (
        "import sys\nfrom fastdistil.cli import main\n"
        "try:\n    main(['distill', '--help'])\nfinally:\n    assert 'torch' not in sys.modules"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for name, field in Settings.__dataclass_fields__.items():
        if name != "train_embeddings":
            assert f"--{name.replace('_', '-')} " in shown
            assert field.default is None or f"(default: {field.default})" in " ".join(shown.split())
    assert "--freeze-embeddings" in shown
    examples = shown[shown.index("examples:") :]
    assert len(re.findall(r"^  fastdistil distill --teacher", examples, re.MULTILINE)) == 3


def test_mistakes_need_no_torch(tmp_path):
    code = (
        "import sys\nfrom fastdistil.cli import main\n"
        "assert main(['distill', '--teacher', 'T', '--texts', 'x.doc', '--out', 'o']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
