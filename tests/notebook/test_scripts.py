"""A training script that was not written for nbdist, run in cells and by ``%run``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.notebook.driving import Cell, Notebook

pytestmark = pytest.mark.ranks

SCRIPT = '''
"""What the examples of PyTorch look like."""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel as DDP


def ddp_setup():
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "12355")
    init_process_group(backend="gloo", rank=int(os.environ["RANK"]),
                       world_size=int(os.environ["WORLD_SIZE"]))


def main(total_epochs, failing=-1):
    ddp_setup()
    torch.manual_seed(0)
    model = DDP(nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pair = dist.new_group([0, 1])
    if dist.get_rank() == failing:
        raise ValueError("a bug of the script")
    for _ in range(total_epochs):
        optimizer.zero_grad()
        model(torch.ones(2, 4) * (dist.get_rank() + 1)).sum().backward()
        optimizer.step()
    weight = model.module.weight.detach().clone()
    dist.all_reduce(weight, op=dist.ReduceOp.MAX, group=pair)
    same = torch.equal(weight, model.module.weight)
    destroy_process_group()
    print(f"trained {total_epochs} epochs, alike: {same}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("total_epochs", type=int)
    parser.add_argument("--failing", type=int, default=-1)
    main(**vars(parser.parse_args()))
'''
TRAINED = "trained 3 epochs, alike: True"
BOTH = "[ranks 0, 1] "
JOINED = "init_process_group: joined nbdist's group of 2 ranks, cpu:gloo"
BACK = "destroy_process_group: nbdist's group of 2 ranks is back for the next cell"
MODEL = """%%dist
from torch import nn
torch.manual_seed(1)
kept = nn.parallel.DistributedDataParallel(nn.Linear(4, 1))
kept_optimizer = torch.optim.SGD(kept.parameters(), lr=0.1)
kept_group = dist.new_group([0, 1])

def step():
    kept_optimizer.zero_grad()
    loss = kept(torch.ones(2, 4) * (rank + 1)).square().mean()
    loss.backward()
    kept_optimizer.step()
    dist.all_reduce(loss, group=kept_group)
    return kept.module.weight.detach().sum().item()
"""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """A notebook beside a script, with two ranks that have a model of an earlier cell."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "train.py").write_text(SCRIPT)
    with Notebook(cwd=folder) as notebook:
        assert notebook.run("%load_ext nbdist").status == "ok"
        assert notebook.run("%dist start -n 2 device=cpu").status == "ok"
        assert notebook.run(MODEL).status == "ok"
        yield notebook


def trains_on(notebook: Notebook) -> None:
    """Assert that the model of the earlier cell makes a step, the same on both ranks."""
    before = notebook.run("%%dist\nkept.module.weight.detach().sum().item()").display
    after = notebook.run("%%dist\nstep()").display

    assert before != after
    assert after.startswith(BOTH), after


def said(cell: Cell) -> list[str]:
    """Return what both ranks have printed, without the line that counts collectives."""
    assert cell.status == "ok", cell
    *lines, counts = cell.display.splitlines()
    assert "all_reduce" in counts
    assert all(line.startswith(BOTH) for line in lines), cell.display
    return [line.removeprefix(BOTH) for line in lines]


def test_a_script_by_run_three_times_in_a_row(notebook: Notebook) -> None:
    for _ in range(3):
        cell = notebook.run("%%dist\n%run train.py 3")
        assert said(cell) == [JOINED, TRAINED, BACK]
        trains_on(notebook)


def test_a_script_by_run_three_times_in_one_cell(notebook: Notebook) -> None:
    cell = notebook.run("%%dist\nfor _ in range(3):\n    %run train.py 3")

    assert said(cell) == [*[JOINED, TRAINED] * 3, BACK]
    trains_on(notebook)


def test_a_script_pasted_into_cells_three_times(notebook: Notebook) -> None:
    pasted = SCRIPT.partition("if __name__")[0]
    notebook.run(f"%%dist\n{pasted}")

    for _ in range(3):
        cell = notebook.run("%%dist\nmain(3)")
        assert said(cell) == [JOINED, TRAINED, BACK]
        trains_on(notebook)


def test_a_script_as_a_module_and_one_that_was_imported(notebook: Notebook) -> None:
    for line in ("%run -m train 3", "import train; train.main(3)"):
        for _ in range(2):
            assert said(notebook.run(f"%%dist\n{line}")) == [JOINED, TRAINED, BACK]
            trains_on(notebook)


def test_a_script_that_failed_on_one_rank_before_it_destroyed(notebook: Notebook) -> None:
    failed = notebook.run("%%dist\n%run train.py 3 --failing 1")
    assert failed.status == "error"
    assert "a bug of the script" in failed.error

    for _ in range(2):
        assert said(notebook.run("%%dist\n%run train.py 3")) == [JOINED, TRAINED, BACK]
        trains_on(notebook)
