"""What `test_torch_own` runs on real ranks: torch's tests of its collectives; see `real_ranks`."""

from __future__ import annotations

import os
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.runtime.real_ranks import World, main

_FOLDER = tempfile.TemporaryDirectory(prefix="nbd-torch-")  # removed by the parent of the ranks
SHARED = _FOLDER.name


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


# What needs a GPU, another number of ranks or a package, ends the world's group, or takes seconds.
NOT_FOR_US = (
    *("cuda", "nccl", "gpu", "timeout", "destroy", "monitored", "compile", "profil", "averager"),
    *("logging", "logged", "localSGD", "powerSGD", "Sampler", "uneven_input_exc", "has_finalized"),
    *("unused_params_err", "hang", "mixed_precision", "SyncBatchNorm", "sync_bn", "dump_DDP"),
    *("diff_num_params", "diff_shape", "mixed_backend_err", "op_err", "with_group_param"),
)
THREE_RANKS_DO_NOT_FIT = (
    "test_all_to_all",
    "test_all_to_all_complex",
    "test_all_to_all_full_group",
)


def is_for_us(name: str) -> bool:
    return name not in THREE_RANKS_DO_NOT_FIT and not any(part in name for part in NOT_FOR_US)


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
    world.meet()
    case = case_class(name)
    case.meet = world.meet
    try:
        getattr(case, name)()
    except (unittest.SkipTest, SystemExit):  # the latter: torch's way for ranks of a test
        return "skipped"
    except BaseException as exc:  # noqa: BLE001 - what it is, is compared
        return f"{type(exc).__name__}: {exc}"[:300]
    return "ok"


def run_both_ways(world: World) -> None:
    """Run each test without guard and lifeline, then all of them with both."""
    tests = load_tests()
    case_class = make_case(tests, world.rank, world.size)
    names = [name for name in dir(case_class) if name.startswith("test_") and is_for_us(name)]
    world.join(timeout_s=15)
    world.guard.close()
    world.lifeline.close()
    without = [run_test(case_class, name, world) for name in names]
    world.guard.install()
    world.lifeline.install()
    for name, outcome in zip(names, without, strict=True):
        world.say(**{name: [outcome, run_test(case_class, name, world)]})


if __name__ == "__main__":
    main(globals())
