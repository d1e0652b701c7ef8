"""What `test_torch_own` runs on real ranks: torch's tests of its collectives; see `real_ranks`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import types
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.runtime.real_ranks import World, main

SHARED = tempfile.mkdtemp(prefix="nbd-torch-")  # before the ranks are forked: all have the same


def load_tests() -> Any:
    """Import torch's tests, which look at the environment and want a package for another use."""
    os.environ |= {"BACKEND": "gloo", "TEMP_DIR": SHARED, "INIT_METHOD": "env://"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "WORLD_SIZE": sys.argv[2]}
    expecttest: Any = types.ModuleType("expecttest")
    expecttest.TestCase = unittest.TestCase
    sys.modules.setdefault("expecttest", expecttest)
    for name in ("barrier", "test_dir", "init_dir"):
        (Path(SHARED) / name).mkdir(exist_ok=True)
    from torch.testing._internal.distributed import distributed_test

    return distributed_test


def make_case(tests: Any, rank: int, size: int) -> type[Any]:
    from torch.testing._internal.common_utils import TestCase

    class Case(tests.DistributedTest._DistTestBase, TestCase):  # type: ignore[misc]
        """The tests, in processes that are there already."""

        world_size = size

        def _barrier(self, *_args: Any, **_kwargs: Any) -> None:
            self.meet()

    Case.rank = rank
    return Case


def run_test(case_class: type[Any], name: str, world: World) -> str:
    case = case_class(name)
    case.meet = world.meet
    try:
        getattr(case, name)()
    except unittest.SkipTest:
        return "skipped"
    except SystemExit:
        return "skipped"
    except BaseException as exc:  # noqa: BLE001 - what it is, is compared
        return f"{type(exc).__name__}: {exc}"[:300]
    return "ok"


def run_all(world: World, names: list[str]) -> None:
    case_class = make_case(load_tests(), world.rank, world.size)
    world.join(timeout_s=15)
    for way in ("without", "with"):
        if way == "without":
            world.guard.close()
            world.lifeline.close()
        else:
            world.guard.install()
            world.lifeline.install()
        for name in names:
            world.meet()
            started = time.time()
            outcome = run_test(case_class, name, world)
            world.say(**{f"{name} {way}": [outcome, time.time() - started]})
            if os.environ.get("LOUD"):
                os.write(2, f"{world.rank} {name} {way} {outcome[:150]!r} {time.time() - started:.2f}\n".encode())


def everything(world: World) -> None:
    names = [name for name in dir(load_tests().DistributedTest._DistTestBase) if name.startswith("test_")]
    only = os.environ.get("ONLY", "").split() 
    run_all(world, only or names)


if __name__ == "__main__":
    main(globals())
