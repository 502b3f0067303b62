"""The checkpoint of a training run: what is loaded goes on to the same bits, whatever happened.

Run as a script, `python test_distill_state.py FOLDER`, it kills a save at every file operation: it
forks, which a process with other tests' threads in it should not. Prints in how many places.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from killed_runs import kill_at
from safetensors.torch import load_file, save_file

from fastdistil.distill.state import StateFile, TrainingState

ROOT = Path(__file__).resolve().parents[1]
STATE = TrainingState(step=3, tokens=12345678901, seconds=0.1 + 0.2, teacher_seconds=1e-300)


class Model(torch.nn.Module):
    """Some parameters of each kind: used, frozen, used late only, and lying across in memory."""

    def __init__(self, dtype: torch.dtype = torch.float32, width: int = 5) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, width)
        self.late = torch.nn.Linear(3, width)
        self.across = torch.nn.Parameter(torch.randn(4, width).t())
        self.frozen = torch.nn.Parameter(torch.randn(width), requires_grad=False)
        self.register_buffer("positions", torch.arange(width))
        self.to(dtype)

    def forward(self, inputs: torch.Tensor, step: int) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs)) * self.frozen
        if step >= 4:
            hidden = hidden + self.late(inputs)
        return (hidden @ self.across).square().mean()


class Run:
    """A model in training; each step is a function of the seed and the step's number."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32, width: int = 5, **options):
        torch.manual_seed(seed)
        self.model = Model(dtype, width)
        groups = [
            {"params": [self.model.across, self.model.frozen], "weight_decay": 0.0},
            {"params": [*self.model.first.parameters(), *self.model.late.parameters()]},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, **options)
        by_parameter = {parameter: name for name, parameter in self.model.named_parameters()}
        self.names = [by_parameter[one] for group in groups for one in group["params"]]

    def train(self, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(8, 3, generator=generator).to(self.model.frozen.dtype)
            for group in self.optimizer.param_groups:
                group["lr"] = 0.01 / (step + 1)
            self.optimizer.zero_grad(set_to_none=True)
            self.model(inputs, step).backward()
            self.optimizer.step()

    def save(self, path: Path, state: TrainingState = STATE) -> None:
        StateFile(path).save(state, self.model.state_dict(), self.optimizer, self.names)

    def load(self, path: Path) -> TrainingState | None:
        return StateFile(path).load(self.model.state_dict(), self.optimizer, self.names)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Copies of all that a run is made of."""
        found = dict(self.model.state_dict())
        for name, parameter in self.model.named_parameters():
            kept = self.optimizer.state.get(parameter, {})
            found |= {f"{name} {part}": tensor for part, tensor in kept.items()}
        return {name: tensor.clone() for name, tensor in found.items()}


def same(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype and torch.equal(tensor, others[name])
        for name, tensor in some.items()
    )


@pytest.fixture
def saved(tmp_path):
    """A run of three steps, and the file it was saved in."""
    run = Run(0)
    run.train(range(3))
    run.save(tmp_path / "state.safetensors")
    return run, tmp_path / "state.safetensors"


# Continued ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_run_continues_to_the_same_bits(tmp_path, options, dtype):
    """Bits of weights, moments and steps, as after a run that was never stopped."""
    straight, first, second = (Run(seed, dtype, **options) for seed in (0, 0, 1))
    straight.train(range(6))
    first.train(range(3))
    first.save(tmp_path / "state.safetensors")
    assert second.load(tmp_path / "state.safetensors") == STATE
    assert same(second.tensors(), first.tensors())
    second.train(range(3, 6))
    assert "late.weight exp_avg" in second.tensors()
    assert same(second.tensors(), straight.tensors())


def test_loading_goes_back_too(saved):
    """What the optimizer has gathered since is forgotten, the state of `late` included."""
    run, path = saved
    before = run.tensors()
    run.train(range(3, 6))
    assert not same(run.tensors(), before)
    run.load(path)
    assert same(run.tensors(), before)


def test_weights_are_loaded_in_place_and_learning_rates_left_alone(saved):
    _, path = saved
    run = Run(1)
    where = {name: tensor.data_ptr() for name, tensor in run.model.state_dict().items()}
    run.optimizer.param_groups[1]["lr"] = 0.123
    run.load(path)
    assert {name: one.data_ptr() for name, one in run.model.state_dict().items()} == where
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.01, 0.123]
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.0, 0.1]
    assert run.model.first.weight.requires_grad


def test_moments_lie_in_memory_as_their_parameters(saved):
    _, path = saved
    run = Run(1)
    run.load(path)
    across = run.model.across
    assert across.stride() == (1, 5)
    assert run.optimizer.state[across]["exp_avg"].stride() == across.stride()


def test_what_is_loaded_does_not_hang_on_the_file(saved):
    first, path = saved
    run = Run(1)
    run.load(path)
    with open(path, "r+b") as stream:
        stream.write(bytes(path.stat().st_size))
    assert same(run.tensors(), first.tensors())


def test_no_file_is_no_state(tmp_path):
    run = Run(0)
    before = run.tensors()
    assert run.load(tmp_path / "state.safetensors") is None
    assert same(run.tensors(), before)


def test_other_programs_read_it(saved):
    run, path = saved
    found = load_file(path)
    assert torch.equal(found["weights.across"], run.model.across)
    moment = run.optimizer.state[run.model.first.bias]["exp_avg_sq"]
    assert torch.equal(found["exp_avg_sq.first.bias"], moment)
    assert found["step.first.bias"] == 3
    assert "step.late.bias" not in found
    assert "step.frozen" not in found


# Refused ------------------------------------------------------------------------------------------


def refused(run: Run, path: Path, message: str) -> None:
    before = run.tensors()
    with pytest.raises(ValueError, match=message):
        run.load(path)
    assert same(run.tensors(), before), "something was changed"


def test_a_truncated_file(saved):
    _, path = saved
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused(Run(1), path, r"is damaged or not the state of a training run.*--restart")


def test_a_flipped_bit_anywhere(saved):
    _, path = saved
    whole = path.read_bytes()
    run = Run(1)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged or not the state of a training run"):
            run.load(path)
    path.write_bytes(whole)
    assert run.load(path) == STATE


def test_a_foreign_file(saved):
    _, path = saved
    save_file({"weights.across": torch.zeros(5, 4)}, path)
    refused(Run(1), path, "is damaged or not the state of a training run .its metadata lacks")
    path.write_text("step,loss\n" * 100)
    refused(Run(1), path, "is damaged or not the state of a training run")


def test_other_shapes_are_named(saved):
    _, path = saved
    message = (
        r"another model or optimizer "
        r"\(weights.across: float32 \[5, 4\] there, float32 \[7, 4\] now; "
        r"weights.first.bias: float32 \[5\] there, float32 \[7\] now; .*; and 8 more\): "
        "continue with those"
    )
    refused(Run(1, width=7), path, message)


def test_other_dtypes_are_named(saved):
    _, path = saved
    message = r"weights.across: float32 \[5, 4\] there, bfloat16 \[5, 4\] now"
    refused(Run(1, torch.bfloat16), path, message)


def test_other_names_are_named(saved):
    run, path = saved
    other = Run(1)
    weights = {f"encoder.{name}": one for name, one in other.model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        StateFile(path).load(weights, other.optimizer, run.names)
    assert "encoder.across: nothing there, float32 [5, 4] now" in str(error.value)
    names = [f"encoder.{name}" for name in run.names]
    with pytest.raises(ValueError, match=r"exp_avg.across: float32 \[5, 4\] there, nothing now"):
        StateFile(path).load(other.model.state_dict(), other.optimizer, names)


@pytest.mark.parametrize("names", [["one"], ["one", "one"], ["one", "two", "three"]])
def test_each_parameter_wants_its_name(tmp_path, names):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2)) for _ in range(2)])
    file = StateFile(tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match=f"names: {len(names)} names, .*2 parameters"):
        file.save(STATE, {}, optimizer, names)
    assert not list(tmp_path.iterdir())


def test_an_optimizer_with_other_state(tmp_path):
    run = Run(0, amsgrad=True)
    run.train(range(1))
    with pytest.raises(ValueError, match=r"keeps .*max_exp_avg_sq.* for 'across': only what AdamW"):
        run.save(tmp_path / "state.safetensors")
    assert not list(tmp_path.iterdir())


# Killed -------------------------------------------------------------------------------------------


def test_killed_at_every_file_operation(tmp_path):
    """SIGKILL before each open, flush and rename of a save leaves the old state or the new one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, tmp_path],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "5 places, the new state after 2 of them\n"


def flush_counted(handle: int, really=os.fsync) -> None:
    """As os.fsync, and an event on a file, which kill_at knows."""
    sys.audit("open", os.readlink(f"/proc/self/fd/{handle}"))
    really(handle)


def killed_save(run: Run, path: Path, state: TrainingState, operation: int) -> int:
    """The exit status of a process that saves and is killed before its n-th file operation."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        os.fsync = flush_counted
        kill_at(operation, str(path.parent))
        run.save(path, state)
        status = 0
    finally:
        os._exit(status)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    path = folder / "state.safetensors"
    old, new, loaded = Run(0), Run(0), Run(1)
    old.train(range(3))
    new.train(range(5))
    later = TrainingState(step=5, tokens=50, seconds=5.0, teacher_seconds=0.5)
    renewed = 0
    for operation in range(1, 100):
        old.save(path)
        status = killed_save(new, path, later, operation)
        state = loaded.load(path)
        assert state in (STATE, later), f"operation {operation}"
        expected = new if state == later else old
        assert same(loaded.tensors(), expected.tensors()), f"operation {operation}"
        if status == 0:
            assert state == later
            print(f"{operation - 1} places, the new state after {renewed} of them")
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"operation {operation}: status {status}"
        renewed += state == later


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
